package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/httpapi"
	"github.com/bailey-platform/bailey/loop"
	"github.com/bailey-platform/bailey/messages"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/telemetry"
)

// A Daemon is one server, built and listening. Every connection waits until
// [Daemon.Run].
type Daemon struct {
	// Static after New.
	cfg      Config
	log      *slog.Logger
	locks    []*lock
	audit    *audit.Log // nil if none is kept
	control  *control.Control
	loop     *loop.Engine
	scripted *scripted.Listener // the fake model, if that was asked for
	face     *httpapi.Server
	server   *http.Server
	listener net.Listener
	inside   *pipeListener
	insider  *http.Client // reaches inside
	registry *prometheus.Registry
	metrics  *metricsServer // nil unless they have an address of their own
	tunnels  *tunnels
	outbound *egress.Outbound // to hosts that users name
	firstKey *api.Key         // made by this start; nil if there was one already

	// Set before Run.
	cloud Cloud   // nil if sessions of cloud environments are refused
	tap   EdgeTap // nil if nobody looks
}

// A Cloud runs the sessions of cloud environments in this process. What it is made of
// is [Daemon.Inside].
type Cloud interface {
	// Ready says whether it has a sandbox to run them in, or why not.
	Ready(context.Context) error

	// Run serves them until ctx ends, and then until calls under way are done.
	Run(context.Context) error
}

// An Inside is what a part of this process that is no part of the plane is given to
// reach it: environments that need a worker, a key for each, and the public API.
type Inside struct {
	*control.Control
	HTTPClient *http.Client // reaches this server, whatever host a request names
	Registerer prometheus.Registerer
	Drain      time.Duration // how long calls may take once the server is to stop
	Data       string        // a directory for it
}

// Inside returns how to reach the server from within.
func (d *Daemon) Inside() Inside {
	return Inside{d.control, d.insider, d.registry, d.cfg.grace(), filepath.Join(d.cfg.Data, "cloud")}
}

// SetCloud has the sessions of cloud environments run in c. It is called before Run.
func (d *Daemon) SetCloud(c Cloud) { d.cloud = c }

// An EdgeTap is shown what the server's own edge passes on, as the edge has it: the inner
// TLS of a tunnel, which it has no key to. It must not keep data, and is called by
// several goroutines.
type EdgeTap func(id api.TunnelID, toGateway bool, data []byte)

// SetEdgeTap has tap see what somebody at the edge would, for tests and demonstrations. It
// is called before Run.
func (d *Daemon) SetEdgeTap(tap EdgeTap) { d.tap = tap }

// cloudReady is what control asks before it takes such a session.
func (d *Daemon) cloudReady(ctx context.Context) error {
	if d.cloud == nil {
		return control.ErrNoCloud
	}
	return d.cloud.Ready(ctx)
}

// New builds a server from cfg: it takes the data directory, opens the database
// and brings it up to date, makes the first API key if there is none, and binds
// the address. What it returns must be run or closed. ctx bounds only New.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Daemon, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, log: log, inside: newPipeListener()}
	d.insider = d.inside.client()
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.cfg.Data, err = openData(cfg.Data); err != nil {
		return nil, err
	}
	cfg.Data = d.cfg.Data
	if d.locks, err = cfg.locks(); err != nil {
		return nil, err
	}
	prices, err := cfg.prices()
	if err != nil {
		return nil, err
	}
	registry := telemetry.NewRegistry(telemetry.ReadBuild())
	d.registry = registry
	if err := d.openAudit(registry); err != nil {
		return nil, fmt.Errorf("open the audit record: %w", err)
	}
	secrets, err := cfg.newVault()
	if err != nil {
		return nil, fmt.Errorf("set up the key of secrets: %w", err)
	}
	if d.control, err = control.New(ctx, cfg.Database(), store.Options{}, control.Config{
		Logger:    log.With("part", "control"),
		Audit:     d.audit,
		Vault:     secrets,
		Prices:    prices,
		Cloud:     d.cloudReady,
		ShellsMax: orNone(cfg.MaxShells),

		TunnelDomain: cfg.TunnelDomain,
		TunnelsMax:   cfg.MaxTunnels,
		Issuers:      d.askIssuer,
		Sole:         strings.HasPrefix(cfg.Database(), "sqlite:"), // the lock says so
	}); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	if err := d.checkClock(ctx); err != nil {
		return nil, err
	}
	if err := d.bootstrap(ctx); err != nil {
		return nil, err
	}
	if cfg.ModelProvider == scriptedProvider {
		if d.scripted, err = scripted.New(scripted.Options{}, scripted.Demo()).Listen("127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("start the scripted model: %w", err)
		}
		cfg.ModelProvider, cfg.ModelURL = model.Anthropic, d.scripted.URL
		log.Warn("the model is a script: it plays the demo's session, calls tools for messages such as `call bash {…}`, and answers nothing else")
	}
	endpoint, err := newModel(ctx, &cfg, log)
	if err != nil {
		return nil, fmt.Errorf("set up the model: %w", err)
	}
	if d.outbound, err = d.newOutbound(); err != nil {
		return nil, err
	}
	d.control.SetHTTP(d.outbound.Client()) // for what renews credentials
	d.loop = loop.New(loop.Config{
		Control:  d.control,
		Model:    endpoint,
		MCP:      d.outbound.Client(),
		Logger:   log.With("part", "loop"),
		Metrics:  registry,
		TurnsMax: cfg.MaxTurns,
		Grace:    cfg.grace(),
	})
	faceConfig := httpapi.Config{
		Control: d.control,
		Model:   endpoint,
		Messages: messages.New(messages.Config{
			Model: endpoint, HTTP: d.outbound.Client(), Plain: d.outbound.Opened, Logger: log.With("part", "messages"),
		}),
		Logger:     log.With("part", "http"),
		Audit:      d.audit,
		AuditReads: cfg.AuditReads,
		Registerer: registry,

		StreamsMax:      cfg.MaxStreams,
		WritesPerMinute: cfg.WritesPerMinute,
		ReadsPerMinute:  cfg.ReadsPerMinute,
	}
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	switch cfg.Metrics {
	case metricsOff:
	case metricsForKeys, metricsOpen:
		faceConfig.Metrics, faceConfig.OpenMetrics = metrics, cfg.Metrics == metricsOpen
	default:
		if err := d.listenMetrics(metrics); err != nil {
			return nil, err
		}
	}
	face := httpapi.New(faceConfig)
	d.server = &http.Server{
		Handler:           face,
		ReadHeaderTimeout: httpapi.ReadHeaderTimeout,
		IdleTimeout:       httpapi.IdleTimeout,
		MaxHeaderBytes:    httpapi.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.With("part", "http").Handler(), slog.LevelDebug),
	}
	d.face = face
	d.server.RegisterOnShutdown(face.EndStreams)
	if cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("read tls-cert and tls-key: %w", err)
		}
		d.server.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{cert},
			MinVersion:   tls.VersionTLS12,
			// A server sets HTTP/2 up once, and not at all if it begins with the listener
			// inside, which has no TLS, unless it reads here that it is to.
			NextProtos: []string{"h2", "http/1.1"},
		}
	}
	if d.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; is another server there? (--listen takes another address)", err)
		}
		return nil, fmt.Errorf("listen on %s: %w", cfg.Listen, err)
	}
	if d.tunnels, err = d.newTunnels(); err != nil {
		return nil, err
	}
	return d, nil
}

// bootstrap makes the first API key and keeps it in the data directory.
func (d *Daemon) bootstrap(ctx context.Context) error {
	key, made, err := d.control.Bootstrap(ctx, func(secret string) error {
		if d.audit != nil {
			if err := d.audit.Append(audit.Record{Action: audit.KeyFirst, Attrs: map[string]string{"file": d.cfg.AdminKeyFile()}}); err != nil {
				return err
			}
		}
		return writeSecret(d.cfg.AdminKeyFile(), secret)
	})
	if err != nil {
		return fmt.Errorf("make the first API key: %w", err)
	}
	if made {
		d.firstKey = key
	}
	return nil
}

// writeSecret replaces the file at path, readable by its owner only, so that a
// crash leaves the old file or the new one.
func writeSecret(path, secret string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(secret + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// FirstKey returns the API key that this start made, or "" if the database had
// one already.
func (d *Daemon) FirstKey() string {
	if d.firstKey == nil {
		return ""
	}
	return d.firstKey.Secret
}

// Addr is the address the server listens on.
func (d *Daemon) Addr() net.Addr { return d.listener.Addr() }

// URL is the server's address for clients on this machine.
func (d *Daemon) URL() string {
	scheme := "http"
	if d.cfg.TLSCert != "" {
		scheme = "https"
	}
	tcp := d.Addr().(*net.TCPAddr)
	if tcp.IP.IsUnspecified() {
		return fmt.Sprintf("%s://127.0.0.1:%d", scheme, tcp.Port)
	}
	return scheme + "://" + tcp.String()
}

// Run serves until ctx ends, and then for up to the configured grace until what
// is under way has finished. It returns when every goroutine is gone and closes
// what New opened. A part that fails ends the others; that error is returned.
func (d *Daemon) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, d.Close()) }()
	d.log.Info("serving", "url", d.URL(), "database", d.control.Engine(), "data", d.cfg.Data, "version", telemetry.ReadBuild().Version)
	parts, ctx := errgroup.WithContext(ctx)
	asked := ctx
	// Those who use the API from within finish first: what their calls come to has to be
	// taken by somebody.
	ctx, done := context.WithCancel(context.WithoutCancel(ctx))
	parts.Go(func() error {
		defer done()
		// Connections that nobody used yet would hold the server up.
		defer d.insider.CloseIdleConnections()
		var within errgroup.Group
		within.Go(func() error { return d.tunnels.runEdge(asked) })
		if d.cloud != nil {
			within.Go(func() error { return d.cloud.Run(asked) })
		}
		return within.Wait()
	})
	parts.Go(func() error { return d.tunnels.run(ctx) })
	parts.Go(func() error { return d.control.Run(ctx) })
	parts.Go(func() error { return d.loop.Run(ctx) })
	parts.Go(func() error { return d.watchClock(ctx) })
	parts.Go(func() error { return d.serveHTTP(ctx) })
	if d.metrics != nil {
		parts.Go(func() error { return d.metrics.run(ctx) })
	}
	if d.scripted != nil {
		parts.Go(func() error { return d.scripted.Run(ctx) })
	}
	defer context.AfterFunc(asked, func() {
		d.log.Info("stopping; what is under way may finish", "at_most", d.cfg.ShutdownGrace)
	})()
	if err := parts.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (d *Daemon) serveHTTP(ctx context.Context) error {
	served := make(chan error, 2)
	go func() { served <- d.server.Serve(d.inside) }()
	go func() {
		if d.cfg.TLSCert != "" {
			served <- d.server.ServeTLS(d.listener, "", "")
		} else {
			served <- d.server.Serve(d.listener)
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	// Streams end at once, and their clients come back elsewhere; calls finish.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.grace())
	defer cancel()
	if err := d.server.Shutdown(grace); err != nil {
		d.log.Warn("calls were cut off", "error", err)
		d.server.Close()
	}
	d.face.Wait()
	<-served
	<-served
	return nil
}

// Close gives up what New took. Run does it too; it may be called twice.
func (d *Daemon) Close() error {
	var errs []error
	if d.listener != nil {
		if err := d.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	d.inside.Close()
	d.tunnels.close()
	if d.metrics != nil {
		d.metrics.listener.Close() // closed already after a run
	}
	if d.control != nil {
		errs = append(errs, d.control.Close())
		d.control = nil
	}
	errs = append(errs, d.closeAudit())
	for _, l := range d.locks {
		l.release()
	}
	d.locks = nil
	return errors.Join(errs...)
}
