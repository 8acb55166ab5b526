package httpapi

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

// A record is what is remembered of one request. Handlers add to it; [Server.finish]
// makes one log line and the metrics of it. It holds no secret, no body and no
// query.
type record struct {
	ctx     context.Context
	id      api.RequestID
	start   time.Time
	method  string
	client  string // address
	op      string
	quiet   bool              // log a success only for debugging
	stream  bool              // the response stays open, so its time says nothing
	who     control.Principal // zero until authenticated
	ids     []slog.Attr       // path parameters
	public  *api.Error        // what the caller was told went wrong
	cause   error             // what went wrong, when the caller is not told
	gone    bool              // the client left
	outcome string            // why a stream ended

	announced bool   // in the audit record
	made      string // the id of what was made
}

func newRecord(r *http.Request, rt *route) *record {
	var e api.Entropy
	_, _ = rand.Read(e[:]) // never fails
	rec := &record{
		ctx: r.Context(), id: api.NewID[api.RequestID](api.PrefixRequest, e), start: time.Now(),
		method: r.Method, client: r.RemoteAddr, op: "unknown",
	}
	if rt != nil {
		rec.op = rt.op
	}
	return rec
}

// finish is deferred around every request. A panic becomes a 500 and, when the
// response has already begun, a broken connection.
func (s *Server) finish(w *response, rec *record) {
	p, begun := recover(), w.began()
	if p != nil && p != http.ErrAbortHandler {
		s.fail(w, rec, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
	s.write(w, rec)
	w.deadline(w.timeout) // what is still buffered goes out after this
	if p == http.ErrAbortHandler || p != nil && begun {
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) write(w *response, rec *record) {
	status := w.status
	if rec.gone && status == 0 {
		status = statusClientGone
	}
	s.audit.answered(rec, status)
	took := time.Since(rec.start)
	s.metrics.requests.WithLabelValues(rec.op, strconv.Itoa(status)).Inc()
	if !rec.stream {
		s.metrics.seconds.WithLabelValues(rec.op).Observe(took.Seconds())
	}

	level := slog.LevelInfo
	switch {
	case rec.cause != nil || status >= 500:
		level = slog.LevelError
	case rec.quiet && status < 400:
		level = slog.LevelDebug
	}
	if !s.log.Enabled(rec.ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request_id", string(rec.id)),
		slog.String("method", rec.method),
		slog.String("op", rec.op),
		slog.Int("status", status),
		slog.Duration("took", took),
		slog.Int64("bytes", w.bytes),
		slog.String("client", rec.client),
	}
	if rec.who.Kind != "" {
		attrs = append(attrs, slog.String("credential", string(rec.who.Kind)), slog.String("key_id", string(rec.who.KeyID)))
	}
	attrs = append(attrs, rec.ids...)
	if rec.outcome != "" {
		attrs = append(attrs, slog.String("outcome", rec.outcome))
	}
	if rec.public != nil {
		attrs = append(attrs, slog.String("error_type", string(rec.public.Type)), slog.String("error", rec.public.Message))
	}
	if rec.cause != nil {
		attrs = append(attrs, slog.String("cause", rec.cause.Error()))
	}
	s.log.LogAttrs(rec.ctx, level, "request", attrs...)
}

// metrics are the counters of this package. Their labels are operations, statuses
// and reasons: a fixed set, never an id.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	streams  prometheus.Gauge
	ended    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailey_http_requests_total", Help: "Requests by operation and status.",
		}, []string{"op", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bailey_http_request_seconds", Help: "Time to answer, without event streams.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"op"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bailey_http_streams", Help: "Open event streams.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailey_http_streams_ended_total", Help: "Ended event streams by reason.",
		}, []string{"reason"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.streams, m.ended)
	}
	return m
}
