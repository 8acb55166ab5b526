package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/telemetry"
)

const (
	handshakeTime = 10 * time.Second
	handshakesMax = 1000   // at a time; a connection more is closed
	connsMax      = 10_000 // connections of the platform's at a time, of either protocol
	h2StreamsMax  = 1000   // calls at a time on one connection of HTTP/2
)

// A door takes connections in until it is closed.
type door struct {
	g     *Gateway
	h2    *http.Server
	queue *queue // of the connections for h2

	most int // connections at a time

	mu     sync.Mutex
	conns  map[*conn1]struct{}   // of HTTP/1.1
	shared map[net.Conn]struct{} // of HTTP/2
	closed bool                  // connections end as soon as they can
	over   bool                  // none is taken any more

	greeting atomic.Int64  // handshakes under way
	emptied  chan struct{} // 1: conns may be empty
	parts    sync.WaitGroup
}

func newDoor(g *Gateway) *door {
	d := &door{
		g: g, h2: g.newH2(), queue: newQueue(), most: connsMax,
		conns: make(map[*conn1]struct{}), shared: make(map[net.Conn]struct{}), emptied: make(chan struct{}, 1),
	}
	d.h2.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			d.unshare(conn)
		}
	}
	return d
}

// serve takes connections from l until l is closed, which it does soon after ctx has
// ended. From then on connections end with the next answer, or when none is asked for in
// a while, and drain later at the latest. A listener that goes on, as that of a tunnel does
// while its streams end, is served on.
func (d *door) serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		d.drain(l, drain)
	})
	h2 := make(chan struct{})
	go func() {
		defer close(h2)
		_ = d.h2.Serve(d.queue) // until it is shut down
	}()
	failed := d.accept(ctx, l)
	if stop() {
		d.drain(l, drain) // the listener was closed by somebody else
	} else {
		<-drained
	}
	d.parts.Wait()
	<-h2
	return failed
}

func (d *door) accept(ctx context.Context, l net.Listener) error {
	for pause := time.Duration(0); ; {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
				return nil
			}
			if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) {
				return fmt.Errorf("accept: %w", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			d.g.log.Error("connection not accepted", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		d.parts.Add(1)
		go func() {
			defer d.parts.Done()
			d.handshake(conn)
		}()
	}
}

// drain lets calls under way finish, and those on their way: connections too, as long as
// there are some and l may bring others.
func (d *door) drain(l net.Listener, limit time.Duration) {
	d.mu.Lock()
	d.closed = true
	for c := range d.conns {
		c.drain()
	}
	d.mu.Unlock()
	d.g.leave()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if d.h2.Shutdown(ctx) != nil {
			_ = d.h2.Close()
		}
	}()
	soon, stop := context.WithTimeout(ctx, leaveTime)
	d.empty(soon)
	stop()
	_ = l.Close()
	if !d.empty(ctx) {
		d.cut()
	}
	<-done
}

// empty waits until there is no connection of HTTP/1.1, or ctx ends. It reports whether
// there is none.
func (d *door) empty(ctx context.Context) bool {
	for d.left() > 0 {
		select {
		case <-d.emptied:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// left is how many connections of HTTP/1.1 there are.
func (d *door) left() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

// cut ends what has not ended by itself.
func (d *door) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.g.log.Warn("calls were cut short, as the time to finish is over", "connections", len(d.conns))
	for c := range d.conns {
		c.abort()
	}
}

// add makes a connection one of the door's. It returns false if it is to end.
func (d *door) add(c *conn1) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || d.full() {
		return false
	}
	if d.closed {
		c.drain()
	}
	d.conns[c] = struct{}{}
	d.g.metrics.conns.Inc()
	return true
}

// full reports whether there are as many connections as there may be. The caller holds mu.
func (d *door) full() bool { return len(d.conns)+len(d.shared) >= d.most }

// share hands a connection to the server of HTTP/2, whose it is then, until unshare.
func (d *door) share(conn net.Conn) bool {
	d.mu.Lock()
	full := d.full()
	if !full {
		d.shared[conn] = struct{}{}
		d.g.metrics.conns.Inc()
	}
	d.mu.Unlock()
	if full {
		return false
	}
	if !d.queue.hand(conn) {
		d.unshare(conn)
		return false
	}
	return true
}

func (d *door) unshare(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.shared[conn]; there {
		delete(d.shared, conn)
		d.g.metrics.conns.Dec()
	}
}

func (d *door) remove(c *conn1) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	d.g.metrics.conns.Dec()
	if len(d.conns) == 0 {
		select {
		case d.emptied <- struct{}{}:
		default:
		}
	}
}

// handshake ends the inner TLS of a connection, and serves it.
func (d *door) handshake(raw net.Conn) {
	g := d.g
	conn := tls.Server(raw, g.tls)
	err := errHandshakes
	if d.greeting.Add(1) <= handshakesMax {
		err = d.greet(conn)
	}
	d.greeting.Add(-1)
	if err != nil {
		g.metrics.handshakes.WithLabelValues("failed").Inc()
		g.log.Warn("tls handshake failed", "from", raw.RemoteAddr(), "error", err)
		_ = raw.Close()
		return
	}
	g.metrics.handshakes.WithLabelValues("ok").Inc()
	state := conn.ConnectionState()
	if state.NegotiatedProtocol == protocolH2 {
		if !d.share(conn) {
			_ = raw.Close()
		}
		return
	}
	defer raw.Close()
	server, err := canonicalHost(state.ServerName)
	if err != nil {
		return // the handshake has seen to it
	}
	ctx, stop := context.WithCancel(g.ctx())
	defer stop()
	c := &conn1{g: g, ctx: ctx, tls: conn, under: raw, server: server}
	c.gather, _ = raw.(gatherer)
	c.reads, c.writes, c.idle = g.sweeper.watch(c.abort), g.sweeper.watch(c.abort), g.sweeper.watch(c.idled)
	defer c.reads.drop()
	defer c.writes.drop()
	defer c.idle.drop()
	c.idle.set(idleTime)
	if !d.add(c) {
		return
	}
	defer d.remove(c)
	c.serve()
}

var errHandshakes = fmt.Errorf("%d handshakes are under way, which is the most", handshakesMax)

func (d *door) greet(conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(d.g.ctx(), handshakeTime)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

const protocolH2 = "h2"

// newTLS is the inner TLS.
func (g *Gateway) newTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocolH2, "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if _, err := canonicalHost(hello.ServerName); err != nil {
				return nil, fmt.Errorf("the client names no server (SNI): %w", err)
			}
			return g.certs.current(), nil
		},
		// The stream is the tunnel's, which has its own view of how much to send at once.
		DynamicRecordSizingDisabled: true,
	}
}

// quiet is a logger for what net/http has to say.
func quiet(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

func redacted(err error) string { return string(telemetry.Redact([]byte(err.Error()))) }
