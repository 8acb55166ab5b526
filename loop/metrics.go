package loop

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/model"
)

type metrics struct {
	turns    prometheus.Gauge
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
	tokens   *prometheus.CounterVec
	calls    *prometheus.CounterVec
	took     prometheus.Histogram
}

// newMetrics registers the metrics of an engine, if there is where to.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		turns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bailey_loop_turns", Help: "Sessions whose turn this process holds.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailey_model_requests_total", Help: "Model requests of sessions, by outcome: ok, interrupted, fenced, stopped, or the kind of failure.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bailey_model_request_seconds", Help: "How long whole model requests took.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640},
		}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailey_model_tokens_total", Help: "Tokens used by sessions, by kind: input, output, cache_read, cache_write.",
		}, []string{"kind"}),
	}
	m.calls = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bailey_mcp_calls_total", Help: "Calls of MCP tools by sessions, by outcome: ok, error (the tool says so), or the kind of failure.",
	}, []string{"outcome"})
	m.took = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "bailey_mcp_call_seconds", Help: "How long calls of MCP tools took.",
		Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 1800, 3600},
	})
	if r != nil {
		r.MustRegister(m.turns, m.requests, m.seconds, m.tokens, m.calls, m.took)
	}
	return m
}

// asked counts a model request and what came of it.
func (m *metrics) asked(res *model.Response, err, cause error, took time.Duration) {
	outcome := "ok"
	var failed *model.Error
	switch {
	case err == nil:
		m.seconds.Observe(took.Seconds())
		used := tokens(res.Usage)
		m.tokens.WithLabelValues("input").Add(float64(used.Input))
		m.tokens.WithLabelValues("output").Add(float64(used.Output))
		m.tokens.WithLabelValues("cache_read").Add(float64(used.CacheRead))
		m.tokens.WithLabelValues("cache_write").Add(float64(used.CacheCreate5m + used.CacheCreate1h))
	case errors.Is(cause, control.ErrFenced):
		outcome = "fenced"
	case errors.Is(cause, errInterrupted):
		outcome = "interrupted"
	case errors.As(err, &failed):
		outcome = string(failed.Kind)
	default:
		outcome = "stopped"
	}
	m.requests.WithLabelValues(outcome).Inc()
}

// called counts a call of an MCP tool and what came of it.
func (m *metrics) called(res mcp.Result, err error, took time.Duration) {
	outcome := "ok"
	var failed *mcp.Error
	switch {
	case errors.As(err, &failed):
		outcome = string(failed.Kind)
	case err != nil:
		outcome = "failed"
	case res.IsError:
		outcome = "error"
	}
	m.calls.WithLabelValues(outcome).Inc()
	m.took.Observe(took.Seconds())
}
