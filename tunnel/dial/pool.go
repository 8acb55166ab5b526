package dial

import (
	"cmp"
	"context"
	"crypto/x509"
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
	http1  *http1           // nil where HTTP/2 is spoken
	http2  *http.ClientConn // nil where HTTP/1.1 is
	stream *tunnel.Stream
	ca     *x509.Certificate // that certified the gateway

	used time.Time // guarded by Dialer.mu: when it became idle
	gone atomic.Bool

	dropped atomic.Bool // by [Dialer.Drop]
}

// get is a connection for one request, which do makes and done or discard ends.
func (d *Dialer) get(ctx context.Context, to *target) (*clientConn, error) {
	key := poolKey{to.route.TunnelID, to.host}
	known := cmp.Or(to.replica, d.sessions.connector(to.host, to.session), tunnel.SessionReplica(to.session))
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, net.ErrClosed
		}
		connector := known
		var c *clientConn
		if p := d.pools[key]; p != nil {
			connector = p.prefer(known, to)
			c = p.take(connector, to)
		}
		d.mu.Unlock()
		switch {
		case c == nil:
			return d.open(ctx, to, key, cmp.Or(known, connector))
		case c.usable():
			return c, nil
		}
		c.discard()
	}
}

// prefer is the connector that a request should go to; "" is any. known is the one
// that has answered the request's session, or should.
func (p *pool) prefer(known string, to *target) string {
	if to.session == "" || len(p.connectors) == 0 || to.replica != "" {
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
		return (connector == "" || c.connector() == connector) && slices.ContainsFunc(to.route.CAs, c.ca.Equal) && !c.stream.Draining()
	}
	for i := len(p.idle) - 1; i >= 0; i-- {
		c := p.idle[i]
		if fits(c) {
			p.idle = slices.Delete(p.idle, i, i+1)
			return c
		}
	}
	for _, c := range p.shared {
		if fits(c) && !c.gone.Load() && c.http2.Reserve() == nil {
			return c
		}
	}
	return nil
}

// open makes a connection.
func (d *Dialer) open(ctx context.Context, to *target, key poolKey, connector string) (*clientConn, error) {
	c := &clientConn{d: d, key: key}
	w := &want{to: to, connector: connector, drain: c.drain}
	inner, err := d.innerTLS(ctx, w)
	if err != nil {
		return nil, err
	}
	c.stream, c.ca = w.stream, w.ca
	if inner.ConnectionState().NegotiatedProtocol == "h2" {
		c.http2, err = d.http2.NewClientConn(context.WithValue(ctx, innerKey{}, inner), "https", net.JoinHostPort(to.host, "443"))
		if err == nil {
			err = c.http2.Reserve()
		}
		if err != nil {
			inner.Close()
			return nil, err
		}
	} else {
		c.http1 = newHTTP1(inner, w.stream.Socket())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		go c.discard()
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
	if c.http2 != nil {
		p.shared = append(p.shared, c)
	}
	return c, nil
}

func (c *clientConn) connector() string {
	if o := c.stream.Opened(); o != nil {
		return o.Connector
	}
	return ""
}

// usable reports whether a connection out of the pool is good for a request: the other
// end has not closed it, nor said that it will leave, nor gone without a word.
func (c *clientConn) usable() bool {
	return (c.http1 == nil || c.http1.quiet()) && !c.stream.Draining() && !c.stream.Stale()
}

// do makes a request. sent says, of one that failed, whether anything of it may have
// left.
func (c *clientConn) do(req *http.Request, to *target) (res *http.Response, sent bool, err error) {
	before := c.stream.Written()
	var x *exchange
	if c.http1 != nil {
		res, x, err = c.http1.roundTrip(req)
	} else {
		res, err = c.http2.RoundTrip(req)
	}
	if err != nil {
		return nil, c.stream.Written() != before, err
	}
	if c.dropped.Load() {
		// The server may have answered because it saw the end coming, and its gateway is not
		// to be believed any more.
		if x != nil {
			x.stop()
		} else {
			res.Body.Close()
		}
		return nil, true, net.ErrClosed // why knows better
	}
	b := &body{from: res.Body, c: c, x: x, to: to, last: res.Close || req.Close}
	if res.Body == http.NoBody {
		b.end(true)
	} else {
		res.Body = b
	}
	return res, true, nil
}

// why is err of a request as an error of the tunnel: what the edge said, if it did.
func (c *clientConn) why(err error) error {
	if c.dropped.Load() {
		return &tunnel.Error{Stage: tunnel.StageConnectorLost, Detail: "the connection was ended by the platform: the CA that vouched for its gateway, or the tunnel, was archived"}
	}
	if e := tunnel.AsError(c.stream.Err()); e != nil {
		return e
	}
	if e := tunnel.AsError(err); e != nil {
		return e
	}
	return &tunnel.Error{Stage: tunnel.StageConnectorLost, Detail: "the connection to the gateway broke under the request", Err: err}
}

// rest puts a connection whose request is answered to the end into the pool.
func (c *clientConn) rest() {
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
	if c.http1 != nil {
		c.http1.close()
	} else {
		c.http2.Close()
	}
}

// drain is called when the edge or the connector will leave: an idle connection is
// closed, and one in use after its request.
func (c *clientConn) drain() {
	go func() { // not under the reader of the connection
		d := c.d
		d.mu.Lock()
		idle := false
		if p := d.pools[c.key]; p != nil {
			idle = slices.Contains(p.idle, c) || c.http2 != nil && c.http2.InFlight() == 0
			if c.http2 != nil {
				p.shared = slices.DeleteFunc(p.shared, func(other *clientConn) bool { return other == c })
			}
		}
		d.mu.Unlock()
		if idle {
			c.discard()
		}
	}()
}

// sweepEvery is how often idle connections are looked at: whether the other end has
// closed them, or an edge that drains waits for them to go.
const sweepEvery = 2 * time.Second

// sweepIdle closes what was idle for too long, or is of no use any more.
func (d *Dialer) sweepIdle() {
	d.mu.Lock()
	var old, look []*clientConn
	left := false
	now := time.Now()
	for _, p := range d.pools {
		kept := p.idle[:0]
		for _, c := range p.idle {
			switch {
			case now.Sub(c.used) >= d.cfg.IdleTime:
				old = append(old, c)
			case now.Sub(c.used) >= sweepEvery: // not in the way of who is busy
				look = append(look, c)
			default:
				kept = append(kept, c)
			}
		}
		clear(p.idle[len(kept):])
		p.idle = kept
		left = left || len(kept) > 0
		for _, c := range p.shared {
			switch {
			case c.http2.Err() != nil:
				old = append(old, c)
			case c.http2.InFlight() > 0:
				c.used, left = time.Time{}, true
			case c.used.IsZero():
				c.used, left = now, true
			case now.Sub(c.used) >= d.cfg.IdleTime:
				old = append(old, c)
			default:
				left = true
			}
		}
	}
	d.mu.Unlock()

	for _, c := range old {
		c.discard()
	}
	for i, c := range look {
		if !c.usable() {
			c.discard()
			look[i] = nil
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range look {
		if c == nil || c.gone.Load() {
			continue
		}
		if p := d.pools[c.key]; p != nil {
			p.idle = slices.Insert(p.idle, 0, c)
			left = true
		}
	}
	d.sweep = nil
	if left && !d.closed {
		d.sweep = time.AfterFunc(sweepEvery, d.sweepIdle)
	}
}

// A body is the body of an answer. Its end gives the connection back.
type body struct {
	from io.ReadCloser
	c    *clientConn
	x    *exchange // nil over HTTP/2
	to   *target
	last bool // the connection is good for no other request
	once sync.Once
	off  bool // set by end: the request's context had ended before
}

// Read passes on what comes as it comes.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	switch err {
	case nil:
		return n, nil
	case io.EOF:
		b.end(true)
		if !b.off && !b.c.dropped.Load() {
			return n, err
		}
		// The server may have ended its answer because it saw the end coming: what it
		// left out nobody knows.
	}
	if b.x != nil && b.x.req.Context().Err() != nil {
		err = b.x.req.Context().Err()
	} else if !isContext(err) && !errors.Is(err, http.ErrBodyReadAfterClose) {
		err = b.to.fail(context.Background(), b.c.why(err))
		if b.c.d.cfg.OnError != nil {
			b.c.d.cfg.OnError(tunnel.AsError(err))
		}
	}
	b.end(false)
	return n, err
}

// Close before the end gives the rest up, and with it a connection of HTTP/1.1.
func (b *body) Close() error {
	b.end(false)
	if b.x == nil {
		return b.from.Close()
	}
	return nil
}

// end is called when the answer was read to its end, or nobody wants the rest.
func (b *body) end(whole bool) {
	b.once.Do(func() {
		if b.x == nil {
			return
		}
		b.off = !b.x.stop()
		if !b.off && b.x.sentAll() && whole && !b.last && b.c.http1.rest() && !b.c.stream.Draining() {
			b.c.rest()
		} else {
			b.c.discard()
		}
	})
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
