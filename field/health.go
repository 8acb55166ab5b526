package field

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bailey-platform/bailey/telemetry"
)

// serveHealth answers probes until ctx ends.
func (f *Field) serveHealth(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, f.Ready()) })
	if f.opts.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(f.opts.Metrics, promhttp.HandlerOpts{}))
	}
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}

func writeHealth(w http.ResponseWriter, err error) {
	status, body := http.StatusOK, map[string]string{"status": "ok"}
	if err != nil {
		status, body = http.StatusServiceUnavailable, map[string]string{"status": "unavailable", "reason": string(telemetry.Redact([]byte(err.Error())))}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a prober that left needs no answer
}
