package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/httpapi"
)

// A metricsServer serves the metrics at an address of their own.
type metricsServer struct {
	listener net.Listener
	server   *http.Server
}

func (d *Daemon) listenMetrics(metrics http.Handler) error {
	listener, err := net.Listen("tcp", d.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("listen on %s for the metrics: %w", d.cfg.Metrics, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	d.metrics = &metricsServer{listener, &http.Server{
		Handler: mux, ReadHeaderTimeout: httpapi.ReadHeaderTimeout, ReadTimeout: httpapi.ReadHeaderTimeout,
		WriteTimeout: time.Minute, IdleTimeout: httpapi.IdleTimeout, MaxHeaderBytes: httpapi.MaxHeaderBytes,
	}}
	d.log.Info("metrics", "address", listener.Addr().String())
	return nil
}

// run serves until ctx ends.
func (m *metricsServer) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { m.server.Close() })()
	if err := m.server.Serve(m.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the metrics: %w", err)
	}
	return nil
}
