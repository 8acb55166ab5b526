package worker

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the worker's counters, all named bailey_worker_….
type metrics struct {
	polls      *prometheus.CounterVec // by outcome: work, empty, duplicate, error
	sessions   prometheus.Gauge
	items      *prometheus.CounterVec // by how they ended
	leases     *prometheus.CounterVec // by how they ended
	calls      *prometheus.CounterVec // by tool and outcome
	callTime   *prometheus.HistogramVec
	results    *prometheus.CounterVec // by outcome: posted, retried, refused, abandoned
	reconnects prometheus.Counter
	boxes      *prometheus.CounterVec // by outcome: started, claimed, failed
	boxStart   prometheus.Histogram
	boxLost    *prometheus.CounterVec // by cause
	pooled     prometheus.Gauge
	kept       prometheus.Gauge
	reaped     *prometheus.CounterVec // by why: age, count, memory, room
}

// newMetrics makes the metrics and registers them, unless reg is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "bailey", Subsystem: "worker", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "bailey", Subsystem: "worker", Name: name, Help: help})
	}
	opts := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "bailey", Subsystem: "worker", Name: name, Help: help, Buckets: buckets}
	}
	m := &metrics{
		polls:    counter("polls_total", "Polls for work, by outcome.", "outcome"),
		sessions: gauge("sessions", "Sessions served now."),
		items:    counter("items_total", "Work items served, by how that ended.", "end"),
		leases:   counter("leases_total", "Leases, by how they ended.", "end"),
		calls:    counter("calls_total", "Tool calls, by tool and outcome.", "tool", "outcome"),
		callTime: prometheus.NewHistogramVec(opts("call_seconds", "Time a tool call took, its box's start included.", prometheus.ExponentialBuckets(0.001, 4, 10)), []string{"tool"}),
		results:  counter("results_total", "Attempts to post a result, by outcome.", "outcome"),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "bailey", Subsystem: "worker",
			Name: "stream_reconnects_total", Help: "Event streams that ended and were opened again."}),
		boxes:    counter("boxes_total", "Boxes given to sessions (started, or claimed from the pool), and starts that failed.", "outcome"),
		boxStart: prometheus.NewHistogram(opts("box_start_seconds", "Time until a session had its box.", prometheus.ExponentialBuckets(0.0005, 2, 16))),
		boxLost:  counter("boxes_lost_total", "Boxes that ended without being asked to, by cause.", "cause"),
		pooled:   gauge("boxes_pooled", "Boxes in the pool: started, frozen, and nobody's yet."),
		kept:     gauge("boxes_kept", "Boxes kept, frozen, for sessions that went away."),
		reaped:   counter("boxes_reaped_total", "Kept boxes that were given up, by the limit that they were over.", "limit"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.polls, m.sessions, m.items, m.leases, m.calls, m.callTime, m.results, m.reconnects, m.boxes, m.boxStart, m.boxLost,
		m.pooled, m.kept, m.reaped,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
