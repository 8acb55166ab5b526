package remote

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// A Config says which edge joins which plane.
type Config struct {
	// Client reaches the plane, with an edge key.
	Client *client.Client

	// Edge is what the plane is told of the edge. With Certificate, ServerName is the
	// name in that and CAs, in PEM, who signed it; without, both are empty.
	Edge api.EdgeRegister

	// Certificate is the operator's own, asked for at each handshake. Nil has the plane
	// make one.
	Certificate func() (*tls.Certificate, error)

	Log *slog.Logger // nil logs nothing

	// Started, if not nil, is called once the plane knows the edge, which then serves.
	Started func(*edge.Edge)
}

// Run registers an edge and serves it until ctx ends, which drains it. serve is the
// edge's configuration; its ID, Plane, Certificate and DialerCAs are set here. A plane that
// does not answer is tried again until it does; one that refuses the edge ends Run with
// an error, and so does another process that takes the edge's name, with
// [ErrReplaced], after the edge has drained. The listeners of serve are closed in any
// case.
func Run(ctx context.Context, c Config, serve edge.Config) (err error) {
	p := newPlane(c)
	var e *edge.Edge
	if err = p.register(ctx); err == nil {
		serve.ID, serve.Plane, serve.Certificate, serve.DialerCAs = p.edgeID(), p, p.certificate, p.dialerCAs
		e, err = edge.New(serve)
	}
	if err != nil {
		serve.Listener.Close()
		if serve.Packets != nil {
			serve.Packets.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if c.Started != nil {
		c.Started(e)
	}
	// What the edge has to tell while it drains still needs the plane's certificates, so
	// renewal ends after it.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, asked := errgroup.WithContext(ctx)
	parts.Go(func() error { return p.renew(life) })
	parts.Go(func() error {
		for {
			select {
			case edges := <-p.news:
				e.TellEdges(edges)
			case <-life.Done():
				return nil
			}
		}
	})
	parts.Go(func() error {
		defer stop()
		return e.Run(asked)
	})
	parts.Go(func() error {
		select {
		case <-p.replaced:
			return ErrReplaced
		case <-life.Done():
			return nil
		}
	})
	err = parts.Wait()
	if !errors.Is(err, ErrReplaced) {
		p.leave()
	}
	return err
}

// ErrReplaced is the error of an edge that is not one to its plane any more.
var ErrReplaced = errors.New("another process has registered under this edge's name, or its key was revoked")

// The times of this package.
const (
	callMax   = 10 * time.Second // for one request
	retryMin  = time.Second
	retryMax  = 30 * time.Second
	renewSoon = time.Minute // after a renewal that failed
	leaveMax  = 3 * time.Second
)

// register introduces the edge until the plane has taken or refused it.
func (p *Plane) register(ctx context.Context) error {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := p.registerOnce(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e := api.AsError(err); e != nil && e.Status >= 400 && e.Status < 500 && !worthAnotherTry(e) {
			return fmt.Errorf("register the edge: %w", err)
		}
		p.log.Warn("the plane cannot be reached; trying again", "error", err)
		if err := sleep(ctx, wait/2+rand.N(wait/2)); err != nil {
			return err
		}
	}
}

// worthAnotherTry reports whether a 4xx answer may be another one later.
func worthAnotherTry(e *api.Error) bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return false
}

// registerOnce introduces the edge and takes on what the plane answers.
func (p *Plane) registerOnce(ctx context.Context) error {
	in := p.cfg.Edge
	var key *signing
	if p.cfg.Certificate == nil {
		var err error
		if key, err = newSigning(); err != nil {
			return err
		}
		in.CSR = key.csr
	}
	call, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	out, err := p.cfg.Client.RegisterEdge(call, in)
	if err != nil {
		return err
	}
	if err := p.adopt(key, out.EdgeCertificate); err != nil {
		return err
	}
	p.mu.Lock()
	p.id = out.ID
	p.counted = 0
	p.mu.Unlock()
	p.log.Info("the plane knows this edge", "edge_id", out.ID, "name", out.Name)
	return nil
}

// renew gets the next certificate when its time has come, or when the plane's
// authority has changed.
func (p *Plane) renew(ctx context.Context) error {
	for {
		p.mu.Lock()
		at := p.renewAt
		p.mu.Unlock()
		wait := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		case <-p.stale:
			wait.Stop()
		}
		if err := p.renewOnce(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("the edge's certificate could not be renewed; trying again", "error", err, "good_until", p.goodUntil())
			p.mu.Lock()
			p.renewAt = time.Now().Add(renewSoon)
			p.mu.Unlock()
		}
	}
}

func (p *Plane) renewOnce(ctx context.Context) error {
	var in api.EdgeCertificateRequest
	var key *signing
	if p.cfg.Certificate == nil {
		var err error
		if key, err = newSigning(); err != nil {
			return err
		}
		in.CSR = key.csr
	}
	call, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	id := p.edgeID()
	out, err := p.cfg.Client.CertifyEdge(call, id, in)
	if err != nil {
		return p.understand(ctx, id, err)
	}
	return p.adopt(key, *out)
}

// renewalMax is how long an edge goes without asking who signs for dialers.
const renewalMax = 12 * time.Hour

// adopt serves with a new certificate from now on.
func (p *Plane) adopt(key *signing, c api.EdgeCertificate) error {
	dialers := x509.NewCertPool()
	if !dialers.AppendCertsFromPEM([]byte(c.DialerCAs)) {
		return errors.New("the plane sent no CA of its dialers that can be read")
	}
	at := time.Now().Add(renewalMax)
	if key != nil {
		cert, err := key.certificate(c.Certificate)
		if err != nil {
			return fmt.Errorf("the plane's certificate for this edge: %w", err)
		}
		if c.RenewAt != nil && c.RenewAt.Before(at) {
			at = *c.RenewAt
		}
		p.cert.Store(cert)
	}
	p.dialers.Store(dialers)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewAt, p.revision = at, c.Revision
	return nil
}

// leave tells the plane that the edge has stopped. If it cannot be told, it will see.
func (p *Plane) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveMax)
	defer cancel()
	if err := p.cfg.Client.LeaveEdge(ctx, p.edgeID()); err != nil {
		p.log.Warn("the plane could not be told that this edge has stopped", "error", err)
	}
}

func newPlane(c Config) *Plane {
	return &Plane{
		cfg: c, log: cmp.Or(c.Log, slog.New(slog.DiscardHandler)),
		stale: make(chan struct{}, 1), news: make(chan []api.EdgeAddress, 1), replaced: make(chan struct{}),
		live: map[api.AttachmentID]api.TunnelID{},
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
