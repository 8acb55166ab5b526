package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// ID is the edge's own, as in its Config.
func (e *Edge) ID() api.EdgeID { return e.cfg.ID }

// Open begins a stream for a dialer of this process. What such a dialer says need not be
// protected on its way here, as there is none, nor be passed on: its inner TLS goes onto
// the connector's own connection. All else is as for dialers that come by the network:
// limits, counts, cuts, drains and [Config.Tap].
//
// It fails with a *[tunnel.Error]; with the context's error if that has ended; or, where
// the connector came by QUIC, with [errors.ErrUnsupported]: whether a stream of QUIC has
// ended while nobody read it cannot be asked, as the dialer has to of an idle one.
func (e *Edge) Open(ctx context.Context, open tunnel.Open, onDrain func()) (*tunnel.Stream, error) {
	candidates, names, err := e.candidates(open)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(candidates, func(a *attachment) bool { return a.quic != nil }) {
		e.leaveStream(open)
		return nil, errors.ErrUnsupported
	}
	a, gateway, err := begin(ctx, candidates)
	if err != nil {
		e.leaveStream(open)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	h := &here{Conn: gateway.(*tls.Conn), a: a, open: open}
	h.stream = tunnel.NewStream(h, tunnel.StreamConfig{
		OnDrain: onDrain, Passed: h.passed, Late: h.late, Opened: &tunnel.Opened{Connector: a.connector, Connectors: names},
	})
	over := a.enter(h)
	h.watch()
	if over != nil {
		h.cut(over)
		return nil, over
	}
	return h.stream, nil
}

// A here is what a stream of this process's dialer runs on: a connector's connection.
type here struct {
	*tls.Conn
	a      *attachment
	open   tunnel.Open
	stream *tunnel.Stream

	until time.Time   // the write deadline; owned by who writes
	set   atomic.Bool // the dialer has set one

	mu     sync.Mutex // guards what follows
	stop   func() bool
	closed bool
}

// watch ends the stream with the edge.
func (h *here) watch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.stop = context.AfterFunc(h.a.edge.closing, func() { h.cut(tunnel.Errorf(tunnel.StageConnectorLost, "the edge has stopped")) })
	}
}

func (h *here) passed(sent bool, data []byte) {
	if sent {
		h.a.toGateway.Add(int64(len(data)))
	} else {
		h.a.fromGateway.Add(int64(len(data)))
	}
	if tap := h.a.edge.cfg.Tap; tap != nil {
		tap(h.a.tunnel, sent, data)
	}
}

// Write implements [tunnel.Carrier]. There is always a deadline, if not the dialer's.
func (h *here) Write(p []byte) (int, error) {
	stall := h.a.edge.cfg.Limits.Stall
	if now := time.Now(); !h.set.Load() && h.until.Sub(now) < stall*3/4 {
		h.until = now.Add(stall)
		h.Conn.SetWriteDeadline(h.until)
	}
	return h.Conn.Write(p)
}

// late cuts a gateway that takes nothing for too long, as it is where the edge passes on:
// who reads has to know.
func (h *here) late(err error) {
	if !h.set.Load() {
		h.cut(&tunnel.Error{Stage: tunnel.StageConnectorLost, Detail: "the gateway took nothing for too long", Err: err})
	}
}

// SetWriteDeadline implements [tunnel.Carrier].
func (h *here) SetWriteDeadline(t time.Time) error {
	h.set.Store(!t.IsZero())
	if t.IsZero() {
		// Not before until, which a Write may go by that finds it far enough away.
		t = time.Now().Add(h.a.edge.cfg.Limits.Stall)
	}
	return h.Conn.SetWriteDeadline(t)
}

// SetDeadline implements [tunnel.Carrier].
func (h *here) SetDeadline(t time.Time) error {
	return errors.Join(h.Conn.SetReadDeadline(t), h.SetWriteDeadline(t))
}

// Close implements [tunnel.Carrier].
func (h *here) Close() error {
	h.mu.Lock()
	first, stop := !h.closed, h.stop
	h.closed = true
	h.mu.Unlock()
	if first {
		if stop != nil {
			stop()
		}
		h.a.exit(h)
		h.a.edge.leaveStream(h.open)
	}
	return h.Conn.Close()
}

// cut implements stream.
func (h *here) cut(why *tunnel.Error) { h.stream.Fail(why) }

// sayDrain implements stream.
func (h *here) sayDrain() { h.stream.Drain() }
