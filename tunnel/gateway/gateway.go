package gateway

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/tunnel"
)

// Options are what a Gateway is made of, besides its configuration.
type Options struct {
	// Load returns the configuration. New calls it, and Reload again.
	Load func() (*Config, error)

	// File is where Load reads it. While the gateway serves, it is reloaded when this file
	// changes, or one that it names. Empty for no such thing.
	File string

	// Audit keeps the record of what is called. Nil keeps none. It is not closed.
	Audit Recorder

	// Resolver looks the names of upstreams up; nil is the host's own.
	Resolver egress.Resolver

	Logger  *slog.Logger          // required
	Metrics prometheus.Registerer // nil registers nothing
}

// A Gateway serves the private servers of one tunnel. It is safe for concurrent use.
type Gateway struct {
	// Static.
	opts         Options
	log          *slog.Logger
	audit        Recorder
	arguments    bool // are given to the record
	metrics      *metrics
	sweeper      *sweeper
	dialer       *egress.Dialer
	own          *ownAddresses
	tls          *tls.Config
	certs        *certificates
	replica      string
	replicaField field

	refusals *rate.Limiter // of those that are noted on the record
	unnoted  atomic.Int64  // the others since

	held  atomic.Int64 // bytes of bodies that calls hold
	state atomic.Pointer[state]
	life  atomic.Pointer[context.Context] // of Serve

	leaving context.Context // ends when the gateway begins to stop
	leave   context.CancelFunc

	reloading sync.Mutex // one at a time
}

// New reads the configuration and what it names. It listens at nothing and connects to
// nothing.
func New(o Options) (*Gateway, error) {
	g := newBare(o)
	cfg, err := o.Load()
	if err != nil {
		return nil, err
	}
	cfg.SetDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g.arguments = cfg.Audit.Arguments != "none"
	if g.replica = cfg.Replica; g.replica == "" {
		g.replica = "cnct_" + rand.Text()
	}
	g.replicaField = newField([]byte(tunnel.ReplicaHeader), []byte(g.replica))
	if g.certs, err = newCertificates(cfg.TLS.Cert, cfg.TLS.Key, g.log, g.metrics); err != nil {
		return nil, err
	}
	g.tls = g.newTLS()
	s, err := g.newState(cfg)
	if err != nil {
		return nil, err
	}
	g.state.Store(s)
	return g, nil
}

// newBare makes what a gateway is without a configuration.
func newBare(o Options) *Gateway {
	g := &Gateway{opts: o, log: o.Logger, audit: o.Audit, metrics: newMetrics(o.Metrics), sweeper: newSweeper(), refusals: rate.NewLimiter(refusalsRate, refusalsBurst), own: &ownAddresses{list: net.InterfaceAddrs}}
	g.leaving, g.leave = context.WithCancel(context.Background())
	g.dialer = &egress.Dialer{Resolver: o.Resolver}
	if o.Resolver == nil {
		g.dialer.Resolver = new(hostResolver)
	}
	return g
}

// Config is the configuration in force. It must not be changed.
func (g *Gateway) Config() *Config { return g.state.Load().cfg }

// Replica is the gateway's name among those of its tunnel.
func (g *Gateway) Replica() string { return g.replica }

// ctx ends when calls under way are to be cut short.
func (g *Gateway) ctx() context.Context {
	if ctx := g.life.Load(); ctx != nil {
		return *ctx
	}
	return context.Background()
}

// Serve serves the calls that come on l until ctx ends, and returns when those under way
// are done, or the configured time for it is over. It closes l. It is called once.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	if !g.life.CompareAndSwap(nil, &life) {
		end()
		return errors.New("gateway: it serves already")
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	defer end()
	parts.Go(func() { g.sweeper.run(life) })
	parts.Go(func() { g.certs.poll(life) })
	parts.Go(func() { g.tidy(life) })
	parts.Go(func() { g.renew(life) })
	if g.opts.File != "" {
		parts.Go(func() { g.pollFiles(life) })
	}
	s := g.state.Load()
	g.tell(s)
	err := newDoor(g).serve(ctx, l, s.drain())
	s = g.state.Load()
	s.close()
	for _, r := range s.routes {
		if r.stdio != nil {
			r.stdio.parts.Wait()
		}
	}
	return err
}

// tidy lets go of what has been unused for long.
func (g *Gateway) tidy(ctx context.Context) {
	t := time.NewTicker(idleConnTime / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			for _, r := range g.state.Load().routes {
				if r.upstream != nil {
					r.upstream.tidy()
				}
			}
		}
	}
}
