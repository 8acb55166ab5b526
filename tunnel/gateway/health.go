package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// HealthHandler answers /healthz (the process lives), /readyz (calls can come through, or
// why not) and /metrics. attached returns why no call can come in, or nil. It is for a
// local address: it has no credentials.
func (g *Gateway) HealthHandler(attached func() error, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, g.Ready(attached)) })
	if metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	}
	return mux
}

var errStopping = errors.New("the gateway is stopping")

// Ready returns nil while calls can come through, and otherwise why they cannot.
func (g *Gateway) Ready(attached func() error) error {
	if g.leaving.Err() != nil {
		return errStopping
	}
	if err := g.certs.usable(time.Now()); err != nil {
		return err
	}
	if attached == nil {
		return nil
	}
	return attached()
}

func writeHealth(w http.ResponseWriter, err error) {
	status, body := http.StatusOK, map[string]string{"status": "ok"}
	if err != nil {
		status, body = http.StatusServiceUnavailable, map[string]string{"status": "unavailable", "reason": redacted(err)}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a prober that left needs no answer
}
