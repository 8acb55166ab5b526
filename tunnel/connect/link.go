package connect

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// A link is an attachment to an edge.
type link struct {
	// Static after construction.
	c       *Connector
	edge    *edge
	addr    tunnel.EdgeAddr
	control tunnel.Carrier
	data    func(ctx context.Context) (tunnel.Carrier, error) // dials a data connection; nil over QUIC
	quic    *quicLink                                         // nil over TCP
	ticket  []byte

	sending sync.Mutex // held while sending on control

	view    Link // guarded by Connector.mu
	streams int  // guarded by Connector.mu

	mu     sync.Mutex // guards what follows
	want   int
	coming int // data connections being dialled
	parked map[tunnel.Carrier]struct{}
	failed int // data connections in a row that could not be had
	over   bool
}

var (
	errDraining = errors.New("the edge is about to stop")
	errBetter   = errors.New("a better link is there")
)

// The bounds of dialling an edge.
const (
	dialMax     = 10 * time.Second
	sendMax     = 10 * time.Second
	wantMax     = 64 // parked connections; edges ask for fewer
	comingMax   = 16 // dialled at once
	dataFailMax = 5  // in a row: the link is of no use

	parkedMin = 2 * time.Second // a parked connection that breaks sooner counts as failed
)

// attach dials an edge and shows the token.
func (c *Connector) attach(ctx context.Context, e *edge, to tunnel.EdgeAddr) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialMax)
	defer cancel()
	l, err := c.dial(ctx, e, to)
	if err != nil {
		return nil, err
	}
	attached, err := l.greet(ctx)
	if err != nil {
		l.close()
		return nil, err
	}
	if !c.learn(e, attached) {
		l.close()
		return nil, errBetter
	}
	c.tell(attached)
	l.ticket, l.want = attached.Ticket, min(attached.Want, wantMax)
	l.view.EdgeID, l.view.AttachmentID = attached.EdgeID, attached.AttachmentID
	l.view.TunnelID, l.view.Domain, l.view.Since = attached.TunnelID, attached.Domain, time.Now()
	return l, nil
}

// greet says who has come, and returns the edge's consent.
func (l *link) greet(ctx context.Context) (tunnel.Attached, error) {
	token, err := l.c.cfg.Token()
	if err != nil {
		return tunnel.Attached{}, fmt.Errorf("read the tunnel's token: %w", err)
	}
	hello, err := tunnel.AppendMessage(nil, tunnel.FrameAttach, tunnel.Attach{
		Token: tunnel.Secret(token.Text()), ConnectorID: l.c.cfg.ID, Version: l.c.cfg.Version,
	})
	if err != nil {
		return tunnel.Attached{}, err
	}
	deadline, _ := ctx.Deadline()
	l.control.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { l.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := l.control.Write(hello); err != nil {
		return tunnel.Attached{}, err
	}
	t, payload, err := tunnel.ReadFrame(l.control, tunnel.MessageMax)
	switch {
	case err != nil:
		return tunnel.Attached{}, fmt.Errorf("the edge did not answer: %w", err)
	case t == tunnel.FrameRefused:
		return tunnel.Attached{}, tunnel.ParseRefusal(payload)
	case t != tunnel.FrameAttached:
		return tunnel.Attached{}, tunnel.Errorf(tunnel.StageProtocol, "the edge answered with a frame of type %#x", byte(t))
	}
	if !stop() {
		return tunnel.Attached{}, ctx.Err()
	}
	l.control.SetDeadline(time.Time{})
	return tunnel.ParseAttached(payload)
}

// run serves the link until it breaks, another is to take its place (errDraining,
// errBetter), or ctx ends. In the last two cases it goes on beside: until there is
// another, or life ends.
func (l *link) run(ctx, life context.Context) error {
	c := l.c
	c.mu.Lock()
	c.links[l] = struct{}{}
	c.change()
	c.mu.Unlock()
	c.log.Info("attached to an edge", "edge", l.addr.Addr, "protocol", l.view.Protocol, "attachment_id", l.view.AttachmentID)

	broken := make(chan error, 1)
	drain, better := make(chan struct{}), make(chan struct{})
	c.parts.Go(func() {
		err := l.serve(life, drain)
		c.mu.Lock()
		delete(c.links, l)
		c.change()
		c.mu.Unlock()
		reason := err
		if life.Err() != nil {
			reason = errStopping
		}
		c.log.Info("no longer attached to an edge", "edge", l.addr.Addr, "attachment_id", l.view.AttachmentID, "reason", reason)
		broken <- err
	})
	if c.cfg.Protocol == "" && l.view.Protocol == api.ProtocolTCP && l.view.Proxy == "" {
		probe, stop := context.WithCancel(ctx)
		defer stop()
		c.parts.Go(func() { l.udpPasses(probe, better) })
	}
	var err error
	select {
	case err = <-broken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-drain:
		err = errDraining
	case <-better:
		err = errBetter
	}
	c.mu.Lock()
	l.view.Draining = true
	c.mu.Unlock()
	c.parts.Go(func() { l.retire(life, broken) })
	return err
}

var errStopping = errors.New("this gateway stops")

// retireMax is how long a link that another is to replace is kept.
const retireMax = 8 * time.Second

// retire ends a link once another took its place: no stream begins on it any more, and
// those under way end by themselves. Over TCP they need no link for that.
func (l *link) retire(life context.Context, broken <-chan error) {
	until := time.Now().Add(retireMax)
	for life.Err() == nil && time.Now().Before(until) && !l.c.replaced() {
		l.c.wait(life, time.Second)
	}
	l.send(tunnel.AppendFrame(nil, tunnel.FrameDrain, nil))
	for l.quic != nil && life.Err() == nil && len(broken) == 0 && l.busy() {
		l.c.wait(life, time.Second)
	}
	l.send(tunnel.AppendFrame(nil, tunnel.FrameEnd, nil))
	l.control.Close()
}

func (l *link) busy() bool {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.streams > 0
}

// replaced reports whether there are as many links as there can be with edges that stay.
func (c *Connector) replaced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	good := 0
	for l := range c.links {
		if !l.view.Draining {
			good++
		}
	}
	staying := make(map[api.EdgeID]struct{})
	for _, e := range c.edges {
		if e.id != "" && !e.avoid.After(time.Now()) {
			staying[e.id] = struct{}{}
		}
	}
	return good >= min(len(staying), c.cfg.Links) // where there is nowhere to go, nothing is waited for
}

// serve reads what the edge has to say until the link breaks or life ends. drain is
// closed when the edge is about to stop.
func (l *link) serve(life context.Context, drain chan<- struct{}) error {
	ctx, cancel := context.WithCancel(life)
	defer cancel()
	defer l.close()
	stop := context.AfterFunc(ctx, func() { l.control.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	l.c.parts.Go(func() { l.ping(ctx) })
	if l.quic != nil {
		l.c.parts.Go(func() { l.acceptStreams(ctx) })
	}
	l.fill(ctx)
	draining := false
	for {
		l.control.SetReadDeadline(time.Now().Add(tunnel.SilenceMax))
		if life.Err() != nil {
			l.send(tunnel.AppendFrame(nil, tunnel.FrameEnd, nil))
			return life.Err()
		}
		t, payload, err := tunnel.ReadFrame(l.control, maxControl)
		if err != nil {
			if life.Err() != nil {
				continue
			}
			return fmt.Errorf("the connection to the edge broke: %w", err)
		}
		switch t {
		case tunnel.FramePong:
		case tunnel.FrameWant:
			if len(payload) != 2 {
				return tunnel.Errorf(tunnel.StageProtocol, "the edge wants a number of connections that is no number")
			}
			l.mu.Lock()
			l.want = min(int(binary.BigEndian.Uint16(payload)), wantMax)
			l.mu.Unlock()
			l.fill(ctx)
		case tunnel.FrameDrain:
			if !draining {
				draining = true
				close(drain)
			}
		case tunnel.FrameEdges:
			a, err := tunnel.ParseAttached(payload)
			if err != nil {
				return err
			}
			l.c.relearn(a)
		case tunnel.FrameRefused:
			return tunnel.ParseRefusal(payload)
		default:
			return tunnel.Errorf(tunnel.StageProtocol, "the edge sent a frame of type %#x", byte(t))
		}
	}
}

// maxControl bounds what an edge says on a control connection.
const maxControl = tunnel.MessageMax

// ping keeps the control connection and the parked ones alive.
func (l *link) ping(ctx context.Context) {
	tick := time.NewTicker(tunnel.KeepAlive)
	defer tick.Stop()
	ping := tunnel.AppendFrame(nil, tunnel.FramePing, nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.send(ping)
		l.mu.Lock()
		for conn := range l.parked {
			conn.SetWriteDeadline(time.Now().Add(time.Second))
			conn.Write(ping) // who cannot take it breaks, and its reader sees that
		}
		l.mu.Unlock()
	}
}

// send sends on the control connection. After an error it is closed, and its reader
// sees that.
func (l *link) send(b []byte) {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.control.SetWriteDeadline(time.Now().Add(sendMax))
	if _, err := l.control.Write(b); err != nil {
		l.control.Close()
	}
}

// fill dials data connections until as many are parked, or coming, as the edge wants.
func (l *link) fill(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.data != nil && !l.over && len(l.parked)+l.coming < l.want && l.coming < comingMax {
		l.coming++
		l.c.parts.Go(func() { l.park(ctx) })
	}
}

// park brings the edge one data connection, and delivers the stream that begins on it.
func (l *link) park(ctx context.Context) {
	conn, err := l.bring(ctx)
	l.mu.Lock()
	l.coming--
	if err != nil || l.over {
		l.mu.Unlock()
		if err != nil {
			l.failedToPark(ctx, err)
		} else {
			conn.Close()
		}
		return
	}
	l.parked[conn] = struct{}{}
	l.mu.Unlock()

	began := time.Now()
	t, _, err := tunnel.ReadFrame(conn, maxControl)
	l.mu.Lock()
	delete(l.parked, conn)
	if err == nil && t == tunnel.FrameOpen {
		l.failed = 0
	}
	over := l.over
	conn.SetWriteDeadline(time.Time{})
	l.mu.Unlock()
	switch {
	case err != nil && !over && time.Since(began) < parkedMin:
		conn.Close()
		l.failedToPark(ctx, fmt.Errorf("it does not last: %w", err))
	case err != nil: // the edge needs it no more, or the connection broke
		conn.Close()
		l.fill(ctx)
	case t != tunnel.FrameOpen:
		conn.Close()
		l.failedToPark(ctx, errors.New("the edge refuses it"))
	default:
		l.fill(ctx)
		l.c.deliver(l, conn)
	}
}

// failedToPark tries again after a while that grows. A link for which no connections
// can be had is of no use, and is given up.
func (l *link) failedToPark(ctx context.Context, err error) {
	l.mu.Lock()
	l.failed++
	failed := l.failed
	l.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	l.c.log.Warn("no data connection to the edge", "edge", l.addr.Addr, "error", err)
	if failed >= dataFailMax {
		l.control.Close()
		return
	}
	l.c.pause(ctx, min(backoffMin<<failed, backoffMax))
	l.fill(ctx)
}

func (l *link) bring(ctx context.Context) (tunnel.Carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, dialMax)
	defer cancel()
	conn, err := l.data(ctx)
	if err != nil {
		return nil, err
	}
	conn.SetWriteDeadline(time.Now().Add(sendMax))
	if _, err := conn.Write(tunnel.AppendFrame(nil, tunnel.FramePark, l.ticket)); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetWriteDeadline(time.Time{})
	return conn, nil
}

// close ends the link. Its streams go on, but for those of QUIC, which have nothing to
// go on with.
func (l *link) close() {
	l.mu.Lock()
	l.over = true
	parked := l.parked
	l.parked = nil
	l.mu.Unlock()
	for conn := range parked {
		conn.Close()
	}
	l.control.Close()
	if l.quic != nil {
		l.quic.close()
	}
}

// dialTCP makes a link by TCP, through a proxy if there is one.
func (c *Connector) dialTCP(ctx context.Context, e *edge, to tunnel.EdgeAddr, proxy *url.URL) (*link, error) {
	control, err := c.dialTLS(ctx, to, c.tlsConfig(to), to.Addr, proxy)
	if err != nil {
		return nil, err
	}
	l := &link{c: c, edge: e, addr: to, control: control, parked: make(map[tunnel.Carrier]struct{})}
	l.view.Addr, l.view.Protocol = to.Addr, api.ProtocolTCP
	// A name can have several addresses, and each may be another edge: data
	// connections go where the control connection went.
	target := to.Addr
	if proxy == nil {
		target = control.RemoteAddr().String()
	} else {
		l.view.Proxy = proxy.Host
	}
	data := c.tlsConfig(to)
	data.CurvePreferences = tunnel.DataCurves
	l.data = func(ctx context.Context) (tunnel.Carrier, error) { return c.dialTLS(ctx, to, data, target, proxy) }
	return l, nil
}

func (c *Connector) tlsConfig(to tunnel.EdgeAddr) *tls.Config {
	name := to.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(to.Addr)
	}
	return &tls.Config{
		ServerName:                  name,
		RootCAs:                     to.CAs,
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{tunnel.ALPNConnector},
		ClientSessionCache:          c.sessions,
		DynamicRecordSizingDisabled: true, // a frame is a record
	}
}
