package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/overquic"
)

// releaseKey is the context key of what ends a connection's being half open.
type releaseKey struct{}

// acceptQUIC takes connectors in that come over QUIC.
func (e *Edge) acceptQUIC() error {
	transport := &quic.Transport{
		Conn: e.cfg.Packets,
		// Who comes has to show that its address is its own, which costs connectors a
		// round trip now and then, and floods their disguise.
		VerifySourceAddress: func(net.Addr) bool { return true },
		ConnContext: func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			release, ok := e.halfOpen.enter(info.RemoteAddr)
			if !ok {
				return nil, errors.New("too many connections are half open")
			}
			context.AfterFunc(ctx, release)
			return context.WithValue(ctx, releaseKey{}, release), nil
		},
	}
	defer transport.Close()
	defer e.cfg.Packets.Close()
	listener, err := transport.Listen(e.connector, overquic.EdgeConfig())
	if err != nil {
		return fmt.Errorf("edge: QUIC: %w", err)
	}
	stop := context.AfterFunc(e.drains, func() { listener.Close() }) // connections go on
	defer stop()
	var conns sync.WaitGroup
	for {
		conn, err := listener.Accept(context.Background())
		if err != nil {
			if errors.Is(err, quic.ErrServerClosed) {
				<-e.closing.Done()
				conns.Wait() // the other ends are told, as long as the transport is there
				return nil
			}
			return fmt.Errorf("edge: QUIC: accept: %w", err)
		}
		conns.Go(func() { e.meetQUIC(conn) })
	}
}

// meetQUIC serves a connector until it goes.
func (e *Edge) meetQUIC(conn *quic.Conn) {
	defer conn.CloseWithError(0, "")
	stop := context.AfterFunc(e.closing, func() { conn.CloseWithError(0, "the edge has stopped") })
	defer stop()
	deadline := time.Now().Add(e.cfg.Limits.Handshake)
	ctx, cancel := context.WithDeadline(e.closing, deadline)
	defer cancel()
	first, err := conn.AcceptStream(ctx)
	if err != nil {
		e.log.Debug("connector opened no stream", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	control := overquic.NewStream(conn, first)
	control.SetDeadline(deadline)
	_, payload, err := tunnel.ReadFrame(control, messageMax, tunnel.FrameAttach)
	if err != nil {
		e.log.Debug("connector did not say what it wants", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	a := e.meetConnector(ctx, newControl(control), payload, quicOpener{conn})
	if a == nil {
		control.Close()
		// A refusal that is on its way gets there before the connection ends.
		waitFor(conn.Context(), ctx, time.Second)
		return
	}
	conn.Context().Value(releaseKey{}).(func())()
	a.serve()
}

// waitFor returns when either context has ended, or after d.
func waitFor(a, b context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-a.Done():
	case <-b.Done():
	case <-t.C:
	}
}

// A quicOpener opens streams on a connector's connection.
type quicOpener struct{ conn *quic.Conn }

func (o quicOpener) open(ctx context.Context) (tunnel.Carrier, error) {
	s, err := o.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	return overquic.NewStream(o.conn, s), nil
}

func (o quicOpener) close(reason string) { o.conn.CloseWithError(0, reason) }

// closedByOther reports whether the other end has closed a connection of QUIC, which it
// does where it goes in order; one that is killed says nothing.
func closedByOther(err error) bool {
	closed, ok := errors.AsType[*quic.ApplicationError](err)
	return ok && closed.Remote
}
