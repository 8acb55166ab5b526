package connect

import (
	"context"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/overquic"
)

// How it is found out whether UDP passes: by trying. Where it does not, TCP is used, and
// UDP is tried again after a while that doubles.
const (
	quicDialMax = 3 * time.Second
	udpAgainMax = time.Hour
)

// udp is what is known of UDP to an edge; guarded by the connector's mutex.
type udp struct {
	blocked bool
	after   time.Duration // between tries
	again   time.Time     // of the next
}

// dial makes a link to an edge, by whichever protocol gets there.
func (c *Connector) dial(ctx context.Context, e *edge, to tunnel.EdgeAddr) (*link, error) {
	proxy, err := c.proxyFor(to.Addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	blocked := e.udp.blocked && time.Now().Before(e.udp.again)
	c.mu.Unlock()
	switch {
	case c.cfg.Protocol == api.ProtocolTCP || proxy != nil:
		return c.dialTCP(ctx, e, to, proxy)
	case c.cfg.Protocol == api.ProtocolQUIC:
		return c.dialQUIC(ctx, e, to)
	case !blocked:
		l, err := c.dialQUIC(ctx, e, to)
		if err == nil {
			c.mu.Lock()
			e.udp = udp{}
			c.mu.Unlock()
			return l, nil
		}
		c.log.Debug("no QUIC to the edge", "edge", to.Addr, "error", err)
	}
	l, err := c.dialTCP(ctx, e, to, nil)
	if err != nil || blocked {
		return l, err // an edge that TCP does not reach either says nothing of UDP
	}
	c.mu.Lock()
	e.udp.blocked = true
	e.udp.after = min(max(2*e.udp.after, c.cfg.UDPAgain), udpAgainMax)
	e.udp.again = time.Now().Add(e.udp.after)
	c.mu.Unlock()
	return l, nil
}

// udpPasses waits until QUIC gets to the edge of a link by TCP again, and closes
// better then.
func (l *link) udpPasses(ctx context.Context, better chan<- struct{}) {
	for {
		l.c.mu.Lock()
		wait := time.Until(l.edge.udp.again)
		l.c.mu.Unlock()
		if l.c.pause(ctx, wait); ctx.Err() != nil {
			return
		}
		conn, err := l.c.quicConn(ctx, l.addr)
		l.c.mu.Lock()
		u := &l.edge.udp
		if err == nil {
			*u = udp{}
		} else {
			u.after = min(2*u.after, udpAgainMax)
			u.again = time.Now().Add(u.after)
		}
		l.c.mu.Unlock()
		if err == nil {
			conn.CloseWithError(0, "")
			close(better)
			return
		}
	}
}

func (c *Connector) quicConn(ctx context.Context, to tunnel.EdgeAddr) (*quic.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, quicDialMax)
	defer cancel()
	conn, err := quic.DialAddr(ctx, to.Addr, c.tlsConfig(to), overquic.ConnectorConfig())
	if err != nil {
		return nil, fmt.Errorf("edge %s: QUIC: %w", to.Addr, err)
	}
	return conn, nil
}

// dialQUIC makes a link over QUIC.
func (c *Connector) dialQUIC(ctx context.Context, e *edge, to tunnel.EdgeAddr) (*link, error) {
	conn, err := c.quicConn(ctx, to)
	if err != nil {
		return nil, err
	}
	first, err := conn.OpenStreamSync(ctx)
	if err != nil {
		conn.CloseWithError(0, "")
		return nil, fmt.Errorf("edge %s: QUIC: %w", to.Addr, err)
	}
	l := &link{c: c, edge: e, addr: to, control: overquic.NewStream(conn, first), quic: &quicLink{conn: conn}}
	l.view.Addr, l.view.Protocol = to.Addr, api.ProtocolQUIC
	return l, nil
}

// A quicLink is a link's connection of QUIC.
type quicLink struct{ conn *quic.Conn }

// acceptStreams takes the streams in that the edge opens, until the connection ends.
func (l *link) acceptStreams(ctx context.Context) {
	for {
		s, err := l.quic.conn.AcceptStream(ctx)
		if err != nil {
			return
		}
		l.c.parts.Go(func() { l.begin(overquic.NewStream(l.quic.conn, s)) })
	}
}

// begin delivers a stream once the edge has begun it.
func (l *link) begin(s *overquic.Stream) {
	s.SetReadDeadline(time.Now().Add(sendMax))
	t, _, err := tunnel.ReadFrame(s, maxControl)
	if err != nil || t != tunnel.FrameOpen {
		s.Abort()
		return
	}
	s.SetReadDeadline(time.Time{})
	l.c.deliver(l, s)
}

func (q *quicLink) close() { q.conn.CloseWithError(0, "") }
