package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/tunnel"
)

// metrics are what a gateway counts.
type metrics struct {
	calls    *prometheus.CounterVec // by route and class of status
	refusals *prometheus.CounterVec // by route and stage
	bytes    *prometheus.CounterVec // by route and direction
	seconds  *prometheus.HistogramVec
	active   *prometheus.GaugeVec

	conns      prometheus.Gauge
	handshakes *prometheus.CounterVec // by outcome
	expiry     prometheus.Gauge
	reloads    *prometheus.CounterVec
	processes  *prometheus.CounterVec // that were started, by stdio route
}

func newMetrics(to prometheus.Registerer) *metrics {
	const ns = "bailey_gateway_"
	m := &metrics{
		calls:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "calls_total", Help: "Calls answered, by route and class of status."}, []string{"route", "status"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "refusals_total", Help: "Calls that the gateway answered itself, by route and why."}, []string{"route", "stage"}),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "bytes_total", Help: "Bytes of bodies taken in and of answers sent, by route."}, []string{"route", "direction"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: ns + "call_seconds", Help: "How long calls took to the last byte of their answer.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 600, 3600},
		}, []string{"route"}),
		active:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: ns + "calls_active", Help: "Calls under way, open streams included."}, []string{"route"}),
		conns:      prometheus.NewGauge(prometheus.GaugeOpts{Name: ns + "connections", Help: "Connections of the platform's, inner TLS ended."}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "handshakes_total", Help: "Inner TLS handshakes, by outcome."}, []string{"outcome"}),
		expiry:     prometheus.NewGauge(prometheus.GaugeOpts{Name: ns + "certificate_expiry_timestamp_seconds", Help: "When the certificate in use expires."}),
		reloads:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "reloads_total", Help: "Settings and certificates read anew, by what and outcome."}, []string{"what", "outcome"}),
		processes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "processes_total", Help: "Programs of stdio routes that were started, by route."}, []string{"route"}),
	}
	if to != nil {
		to.MustRegister(m.calls, m.refusals, m.bytes, m.seconds, m.active, m.conns, m.handshakes, m.expiry, m.reloads, m.processes)
	}
	return m
}

// routeMetrics are the metrics of one route, looked up once.
type routeMetrics struct {
	of      *metrics
	name    string
	classes [6]prometheus.Counter
	in, out prometheus.Counter
	seconds prometheus.Observer
	active  prometheus.Gauge
}

func (m *metrics) route(name string) *routeMetrics {
	r := &routeMetrics{of: m, name: name, in: m.bytes.WithLabelValues(name, "in"), out: m.bytes.WithLabelValues(name, "out"),
		seconds: m.seconds.WithLabelValues(name), active: m.active.WithLabelValues(name)}
	for i := range r.classes {
		r.classes[i] = m.calls.WithLabelValues(name, strconv.Itoa(i)+"xx")
	}
	return r
}

func (r *routeMetrics) count(ex *exchange) {
	if class := ex.status / 100; class > 0 && class < len(r.classes) {
		r.classes[class].Inc()
	}
	r.in.Add(float64(ex.in.Load()))
	r.out.Add(float64(ex.out))
	r.seconds.Observe(time.Since(ex.began).Seconds())
	if ex.stage != "" {
		r.of.refused(r.name, ex.stage)
	}
}

func (m *metrics) refused(route string, stage tunnel.Stage) {
	m.refusals.WithLabelValues(route, string(stage)).Inc()
}
