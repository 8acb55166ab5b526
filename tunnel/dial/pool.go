package dial

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// A poolKey is what inner connections are shared by: a gateway lets each be used for the
// one host that its handshake named.
type poolKey struct {
	tunnel api.TunnelID
	host   string
}

// A pool holds the inner connections to one host; guarded by the dialer's mutex.
type pool struct {
	all        map[*clientConn]struct{}
	idle       []*clientConn // HTTP/1.1, the last used last
	shared     []*clientConn // HTTP/2
	connectors []string      // those attached, as the edge said last
}

// A clientConn is an inner connection.
type clientConn struct {
	// Static after construction.
	d      *Dialer
	key    poolKey
	http   *http.ClientConn
	stream *tunnel.Stream
	ca     string // fingerprint of the CA that certified the gateway
	isH2   bool

	used time.Time // guarded by Dialer.mu: when it became idle
	gone atomic.Bool
}

// get is a connection for one request, which do makes and done or discard ends.
func (d *Dialer) get(ctx context.Context, to *target) (*clientConn, error) {
	key := poolKey{to.route.TunnelID, to.host}
	known := d.sessions.connector(to.host, to.session)
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, net.ErrClosed
	}
	connector := ""
	if p := d.pools[key]; p != nil {
		connector = p.prefer(known, to)
		if c := p.take(connector, to); c != nil {
			d.mu.Unlock()
			return c, nil
		}
	}
	d.mu.Unlock()
	if known != "" {
		connector = known
	}
	return d.open(ctx, to, key, connector)
}

// prefer is the connector that a request should go to; "" is any. known is the one
// that has answered the request's session.
func (p *pool) prefer(known string, to *target) string {
	if to.session == "" || len(p.connectors) == 0 {
		return known
	}
	if slices.Contains(p.connectors, known) {
		return known
	}
	key := keyOf(to)
	return slices.MaxFunc(p.connectors, func(a, b string) int {
		if tunnel.Affinity(key, a) < tunnel.Affinity(key, b) {
			return -1
		}
		return 1
	})
}

// take takes a connection out of the pool, or shares one of HTTP/2.
func (p *pool) take(connector string, to *target) *clientConn {
	fits := func(c *clientConn) bool {
		return (connector == "" || c.connector() == connector) && certifies(to.route.CAs, c.ca) && !c.stream.Draining()
	}
	for i := len(p.idle) - 1; i >= 0; i-- {
		c := p.idle[i]
		if c.http.Err() != nil || c.gone.Load() {
			p.idle = slices.Delete(p.idle, i, i+1)
			continue
		}
		if fits(c) {
			p.idle = slices.Delete(p.idle, i, i+1)
			return c
		}
	}
	for _, c := range p.shared {
		if fits(c) && !c.gone.Load() && c.http.Reserve() == nil {
			return c
		}
	}
	return nil
}

// open makes a connection.
func (d *Dialer) open(ctx context.Context, to *target, key poolKey, connector string) (*clientConn, error) {
	c := &clientConn{d: d, key: key}
	w := &want{to: to, connector: connector, drain: c.drain}
	hc, err := d.http.NewClientConn(context.WithValue(ctx, wanted{}, w), "https", net.JoinHostPort(to.host, "443"))
	if err != nil {
		return nil, err
	}
	c.http, c.stream, c.ca, c.isH2 = hc, w.stream, w.ca, w.isH2
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		hc.Close()
		return nil, net.ErrClosed
	}
	p := d.pools[key]
	if p == nil {
		p = &pool{all: make(map[*clientConn]struct{})}
		d.pools[key] = p
	}
	p.all[c] = struct{}{}
	if o := c.stream.Opened(); o != nil {
		p.connectors = o.Connectors
	}
	if c.isH2 {
		p.shared = append(p.shared, c)
		if err := hc.Reserve(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *clientConn) connector() string {
	if o := c.stream.Opened(); o != nil {
		return o.Connector
	}
	return ""
}

// do makes a request. sent says, of one that failed, whether anything of it may have
// left.
func (c *clientConn) do(req *http.Request) (res *http.Response, sent bool, err error) {
	before := c.stream.Written()
	res, err = c.http.RoundTrip(req)
	if err != nil {
		return nil, c.stream.Written() != before, err
	}
	return res, true, nil
}

// why is err of a request as an error of the tunnel: what the edge said, if it did.
func (c *clientConn) why(err error) error {
	if e := tunnel.AsError(c.stream.Err()); e != nil {
		return e
	}
	if e := tunnel.AsError(err); e != nil {
		return e
	}
	return &tunnel.Error{Stage: tunnel.StageConnectorLost, Detail: "the connection to the gateway broke under the request", Err: err}
}

// done gives a connection back whose request is answered to the end, if it can be used
// again.
func (c *clientConn) done(reusable bool) {
	if c.isH2 {
		return
	}
	if !reusable || c.http.Err() != nil || c.stream.Draining() {
		c.discard()
		return
	}
	d := c.d
	d.mu.Lock()
	p := d.pools[c.key]
	kept := p != nil && !d.closed && !c.gone.Load() && len(p.idle) < d.cfg.IdleMax
	if kept {
		c.used = time.Now()
		p.idle = append(p.idle, c)
		if d.sweep == nil {
			d.sweep = time.AfterFunc(sweepEvery, d.sweepIdle)
		}
	}
	d.mu.Unlock()
	if !kept {
		c.discard()
	}
}

// discard closes a connection, under a request as well.
func (c *clientConn) discard() {
	if c.gone.Swap(true) {
		return
	}
	c.d.mu.Lock()
	if p := c.d.pools[c.key]; p != nil {
		delete(p.all, c)
		is := func(other *clientConn) bool { return other == c }
		p.idle = slices.DeleteFunc(p.idle, is)
		p.shared = slices.DeleteFunc(p.shared, is)
		if len(p.all) == 0 {
			delete(c.d.pools, c.key)
		}
	}
	c.d.mu.Unlock()
	c.http.Close()
}

// drain is called when the edge or the connector will leave: an idle connection is
// closed, and one in use after its request.
func (c *clientConn) drain() {
	go func() { // not under the reader of the connection
		d := c.d
		d.mu.Lock()
		idle := false
		if p := d.pools[c.key]; p != nil {
			idle = slices.Contains(p.idle, c) || c.isH2 && c.http.InFlight() == 0
			if c.isH2 {
				p.shared = slices.DeleteFunc(p.shared, func(other *clientConn) bool { return other == c })
			}
		}
		d.mu.Unlock()
		if idle {
			c.discard()
		}
	}()
}

// sweepEvery is how often idle connections are looked at.
const sweepEvery = 15 * time.Second

// sweepIdle closes what was idle for too long.
func (d *Dialer) sweepIdle() {
	d.mu.Lock()
	var old []*clientConn
	left := false
	for _, p := range d.pools {
		for _, c := range p.idle {
			if time.Since(c.used) >= d.cfg.IdleTime || c.http.Err() != nil {
				old = append(old, c)
			} else {
				left = true
			}
		}
		for _, c := range p.shared {
			switch {
			case c.http.Err() != nil:
				old = append(old, c)
			case c.http.InFlight() > 0:
				c.used, left = time.Time{}, true
			case c.used.IsZero():
				c.used, left = time.Now(), true
			case time.Since(c.used) >= d.cfg.IdleTime:
				old = append(old, c)
			default:
				left = true
			}
		}
	}
	d.sweep = nil
	if left && !d.closed {
		d.sweep = time.AfterFunc(sweepEvery, d.sweepIdle)
	}
	d.mu.Unlock()
	for _, c := range old {
		c.discard()
	}
}

// body is the body of an answer, whose end gives the connection back.
func (c *clientConn) body(b io.ReadCloser, to *target) io.ReadCloser {
	if b == http.NoBody {
		c.done(true)
		return b
	}
	return &body{ReadCloser: b, c: c, to: to}
}

type body struct {
	io.ReadCloser
	c    *clientConn
	to   *target
	once sync.Once
}

// Read passes on what comes as it comes.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		b.end(true)
	default:
		b.end(false)
		if !isContext(err) && !errors.Is(err, http.ErrBodyReadAfterClose) {
			err = b.to.fail(context.Background(), b.c.why(err))
			if b.c.d.cfg.OnError != nil {
				b.c.d.cfg.OnError(tunnel.AsError(err))
			}
		}
	}
	return n, err
}

// Close before the end gives the rest up, and the connection with it.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.end(false)
	return err
}

func (b *body) end(whole bool) { b.once.Do(func() { b.c.done(whole) }) }

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
