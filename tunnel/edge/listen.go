package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// tlsConfigs are what connectors and dialers are met with. Both share one set of keys
// for session tickets; a session without a client certificate resumes none with one.
func (e *Edge) tlsConfigs() (connector, dialer *tls.Config) {
	connector = &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{tunnel.ALPNConnector},
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.cfg.Certificate() },
		DynamicRecordSizingDisabled: true, // a frame is a record
	}
	dialer = connector.Clone()
	dialer.NextProtos = []string{tunnel.ALPNDial}
	dialer.ClientAuth = tls.RequireAndVerifyClientCert
	return connector, dialer
}

// listenerTLS chooses between the two by what a client offers.
func (e *Edge) listenerTLS() *tls.Config {
	cfg := e.connector.Clone()
	cfg.NextProtos = nil
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		connector := slices.Contains(hello.SupportedProtos, tunnel.ALPNConnector)
		dialer := slices.Contains(hello.SupportedProtos, tunnel.ALPNDial)
		switch {
		case connector == dialer:
			return nil, errors.New("the client offers neither or both of the protocols spoken here")
		case connector:
			return e.connector, nil
		}
		cfg := e.dialer.Clone()
		if cfg.ClientCAs = e.cfg.DialerCAs(); cfg.ClientCAs == nil {
			return nil, errors.New("there is no CA for dialers yet") // a nil pool would mean the system's
		}
		return cfg, nil
	}
	return cfg
}

// acceptRest is how long accepting pauses when the process is out of what it takes.
const acceptRest = 50 * time.Millisecond

// accept takes TCP connections in until the listener is closed.
func (e *Edge) accept(ctx context.Context) error {
	config := e.listenerTLS()
	for {
		conn, err := e.cfg.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || isShortage(err) {
				e.log.Warn("connections cannot be accepted", "error", err)
				time.Sleep(acceptRest)
				continue
			}
			return fmt.Errorf("edge: accept: %w", err)
		}
		setUp(conn)
		release, ok := e.halfOpen.enter(conn.RemoteAddr())
		if !ok {
			reset(conn)
			continue
		}
		e.conns.Go(func() {
			defer release()
			if kept := e.meet(tls.Server(tunnel.NewSocket(conn), config), release); !kept {
				conn.Close()
			}
		})
	}
}

// meet finds out who has come. A connector's connections are kept by its attachment,
// without the goroutine that met them and the stack that a handshake takes; dialers are
// served here until they go. release ends the time in which a connection counts as half
// open.
func (e *Edge) meet(conn *tls.Conn, release func()) (kept bool) {
	deadline := time.Now().Add(e.cfg.Limits.Handshake)
	conn.SetDeadline(deadline)
	ctx, cancel := context.WithDeadline(e.closing, deadline)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		e.log.Debug("handshake failed", "remote", conn.RemoteAddr(), "error", err)
		return false
	}
	if conn.ConnectionState().NegotiatedProtocol == tunnel.ALPNDial {
		release()
		e.serveDialer(conn)
		return false
	}
	t, payload, err := tunnel.ReadFrame(conn, messageMax, tunnel.FrameAttach, tunnel.FramePark)
	switch {
	case err != nil:
		e.log.Debug("connector did not say what it wants", "remote", conn.RemoteAddr(), "error", err)
		return false
	case t == tunnel.FramePark:
		return e.park(conn, payload)
	}
	a := e.meetConnector(ctx, newControl(conn), payload, nil)
	if a == nil {
		return false
	}
	e.conns.Go(a.serve)
	return true
}

// messageMax bounds what is said first on a connection.
const messageMax = 4 << 10

// setUp makes the kernel notice that the other machine is gone.
func setUp(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: tunnel.KeepAlive, Interval: tunnel.KeepAlive / 2, Count: 4})
	setUserTimeout(tcp, tunnel.SilenceMax)
}

// reset closes a connection without the farewell that costs memory.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// A gate counts the connections that have not yet shown who they are.
type gate struct {
	all, each int

	mu    sync.Mutex
	total int
	of    map[netip.Addr]int
}

func newGate(all, each int) *gate {
	return &gate{all: all, each: each, of: make(map[netip.Addr]int)}
}

// enter counts a connection until release is called, which may be called repeatedly.
func (g *gate) enter(remote net.Addr) (release func(), ok bool) {
	addr := remoteIP(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.all || g.of[addr] >= g.each {
		return nil, false
	}
	g.total++
	g.of[addr]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.total--
		if g.of[addr]--; g.of[addr] == 0 {
			delete(g.of, addr)
		}
	}), true
}

// remoteIP is what connections are counted by: an IPv4 address, or the network of an
// IPv6 one, of which every host has as many addresses as it likes.
func remoteIP(remote net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.Addr{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.Addr()
		}
	}
	return addr
}
