// Package dial is the plane's end of tunnels: an http.RoundTripper for servers that
// stand behind them. It goes to an edge by mutual TLS, has it open a stream, and on the
// stream begins an inner TLS connection with the tunnel's gateway, whose certificate
// must be one that a live CA of the tunnel has signed. What is asked and answered is
// within that, where the edge cannot read it.
//
// It knows no plane: which tunnel a host belongs to, whether the caller may use it and
// which edges lead there is for [Config.Route] to say.
//
// Start reading at [Dialer.RoundTrip], then pool.go for connections and inner.go for
// the inner TLS.
package dial

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// Config says how a dialer finds its way.
type Config struct {
	// Route says how to get to a host, or why not: its errors should be *tunnel.Error,
	// and are returned as they are. It is asked at every request, with the request's
	// context, also when connections are pooled: it is what decides whether this caller
	// may use them.
	Route func(ctx context.Context, host string) (Route, error)

	// Certificate is the client certificate for edges, asked for at each handshake with
	// one.
	Certificate func() (*tls.Certificate, error)

	// Here, if not nil, is the edge with an ID if it is in the dialer's own process, and nil
	// if it is not. There is no way to such an edge on which somebody could listen, so none
	// is dialled: streams go from here to the connector's connection.
	Here func(api.EdgeID) Opener

	// HTTP2 offers HTTP/2 to gateways, which then carries many requests over one inner
	// connection. Without it each request in flight has a connection of its own, which
	// is faster for each and costs more memory for all.
	HTTP2 bool

	// IdleMax is how many inner connections to keep open, unused, for one host: 64 by
	// default. IdleTime is for how long: 4 min by default.
	IdleMax  int
	IdleTime time.Duration

	// Spare is how many connections to keep ready with each edge in use: 2 by default.
	Spare int

	// OnLeaf, if not nil, is told of each gateway's certificate that was accepted in a
	// full handshake; OnError of each failure of a tunnel. Neither may block.
	OnLeaf  func(id api.TunnelID, host string, leaf, ca *x509.Certificate)
	OnError func(*tunnel.Error)

	Log *slog.Logger // nil logs nothing
}

// An Opener is an edge in the dialer's own process.
type Opener interface {
	// Open begins a stream, whose onDrain is as in [tunnel.StreamConfig]. It fails with a
	// *tunnel.Error, with ctx's error if that has ended, or with [errors.ErrUnsupported]
	// where the stream has to come by the network.
	Open(ctx context.Context, o tunnel.Open, onDrain func()) (*tunnel.Stream, error)
}

// A Route is how to get to a host.
type Route struct {
	TunnelID api.TunnelID
	Domain   string

	// Edges are those that hold the tunnel, the better ones first. None means that no
	// connector is attached anywhere.
	Edges []tunnel.EdgeAddr

	// CAs are the tunnel's live ones. Connections whose gateway one of them did not
	// certify are not used.
	CAs []*x509.Certificate
}

// A Dialer is an http.RoundTripper for https URLs whose hosts are behind tunnels. It is
// safe for concurrent use.
//
// It follows no redirects, changes no headers, adds no compression, and passes on each
// byte of an answer as it comes. When a request's context ends, the gateway learns of it
// within a round trip. No request is sent twice: another connection is tried only while
// not one byte of the request has left, and, once, where a gateway says that the
// request's session is another one's and nobody has seen it.
//
// Errors are *tunnel.Error for what fails on the way, whether an edge, the gateway or
// this end says so; the context's error if that has ended. What a gateway answers itself
// because of the call (see [tunnel.Stage.OfCall]) is a response, with the error's text in
// [tunnel.ErrorHeader].
type Dialer struct {
	// Static after construction.
	cfg      Config
	log      *slog.Logger
	http2    *http.Transport
	inner    tls.ClientSessionCache // with gateways
	outer    tls.ClientSessionCache // with edges
	sessions *sessions

	mu     sync.Mutex // guards what follows
	pools  map[poolKey]*pool
	edges  map[string]*edge // by address and name
	closed bool
	sweep  *time.Timer // nil while nothing is idle
}

// New makes a dialer.
func New(cfg Config) (*Dialer, error) {
	if cfg.Route == nil || cfg.Certificate == nil {
		return nil, errors.New("dial: Route and Certificate are needed")
	}
	cfg.IdleMax = cmp.Or(cfg.IdleMax, 64)
	cfg.IdleTime = cmp.Or(cfg.IdleTime, 4*time.Minute)
	cfg.Spare = cmp.Or(cfg.Spare, 2)
	d := &Dialer{
		cfg:      cfg,
		log:      cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		inner:    tls.NewLRUClientSessionCache(1024),
		outer:    tls.NewLRUClientSessionCache(256),
		sessions: newSessions(),
		pools:    make(map[poolKey]*pool),
		edges:    make(map[string]*edge),
	}
	d.http2 = newHTTP2()
	return d, nil
}

// triesMax bounds the connections that are tried for one request.
const triesMax = 4

// RoundTrip implements http.RoundTripper.
func (d *Dialer) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := d.roundTrip(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		if e := tunnel.AsError(err); e != nil && d.cfg.OnError != nil {
			d.cfg.OnError(e)
		}
		return nil, err
	}
	return res, nil
}

func (d *Dialer) roundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	host, err := hostOf(req)
	if err != nil {
		return nil, err
	}
	// Whoever traces the request learns, as of any other transport, whether it can have
	// left: what fails without a connection was not sent.
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(host)
	}
	route, err := d.cfg.Route(ctx, host)
	if err != nil {
		return nil, err
	}
	to := target{route: route, host: host, session: req.Header.Get(sessionHeader)}
	for try := 1; ; try++ {
		c, err := d.get(ctx, &to)
		if err != nil {
			return nil, to.fail(ctx, err)
		}
		if trace != nil && trace.GotConn != nil {
			trace.GotConn(httptrace.GotConnInfo{})
		}
		res, sent, err := c.do(req, &to)
		if err == nil {
			replica := res.Header.Get(tunnel.ReplicaHeader)
			res, err := d.answer(res, c, &to)
			if e := tunnel.AsError(err); e == nil || e.Stage != tunnel.StageOtherReplica || to.replica != "" || replica == "" || try == triesMax {
				return res, err
			}
			// The gateway has refused the request unread, and says who would not.
			next, unread := again(req)
			if unread != nil {
				return nil, err
			}
			req, to.replica = next, replica
			continue
		}
		c.discard()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if sent || try == triesMax {
			return nil, to.fail(ctx, c.why(err))
		}
		if req, err = again(req); err != nil {
			return nil, to.fail(ctx, c.why(err))
		}
	}
}

// hostOf is the host that a request is for, without port.
func hostOf(req *http.Request) (string, error) {
	if req.URL == nil || req.URL.Scheme != "https" {
		return "", errors.New("dial: a server behind a tunnel has an https URL")
	}
	if port := req.URL.Port(); port != "" && port != "443" {
		return "", &tunnel.Error{Stage: tunnel.StageNoRoute, Host: req.URL.Hostname(), Detail: "servers behind tunnels have no ports: leave :" + port + " out"}
	}
	return strings.TrimSuffix(strings.ToLower(req.URL.Hostname()), "."), nil
}

// again is a request whose first attempt has sent nothing.
func again(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the connection broke before the request was sent, and its body cannot be read twice")
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	next := *req
	next.Body = body
	return &next, nil
}

// A target is what a request wants to reach.
type target struct {
	route   Route
	host    string
	session string // MCP's, "" if the request has none
	replica string // the connector that a gateway has sent the request to
}

// fail is err with where it happened.
func (t *target) fail(ctx context.Context, err error) error {
	if ctx.Err() != nil && tunnel.AsError(err) == nil {
		return ctx.Err()
	}
	e := tunnel.AsError(err)
	if e == nil {
		e = &tunnel.Error{Stage: tunnel.StageConnectorLost, Err: err}
	}
	copied := *e
	copied.Tunnel, copied.Host = string(t.route.TunnelID), t.host
	return &copied
}

// answer hands a gateway's answer to the caller, or turns it into the error that it is.
func (d *Dialer) answer(res *http.Response, c *clientConn, to *target) (*http.Response, error) {
	d.sessions.learn(to.host, res.Header.Get(sessionHeader), c.connector())
	if e := tunnel.ErrorFromHeader(res.Header); e != nil {
		if e.Stage.OfCall() {
			e.Tunnel, e.Host = string(to.route.TunnelID), to.host
			if d.cfg.OnError != nil {
				d.cfg.OnError(e)
			}
			res.Header.Set(tunnel.ErrorHeader, e.Error())
			return res, nil
		}
		// The rest is a page for people. A short one leaves the connection usable.
		_, _ = io.CopyN(io.Discard, res.Body, errorBodyMax)
		res.Body.Close()
		return nil, to.fail(context.Background(), e)
	}
	return res, nil
}

// errorBodyMax bounds what is read of a gateway's own answer.
const errorBodyMax = 4 << 10

// Drop closes the pooled connections of a tunnel, those in use as well: all, or those
// whose gateway was certified by the CA with this fingerprint (see
// [tunnel.Fingerprint]). The next request connects anew, if its route still allows.
func (d *Dialer) Drop(id api.TunnelID, fingerprint string) {
	d.mu.Lock()
	var drop []*clientConn
	for key, p := range d.pools {
		if key.tunnel == id {
			for c := range p.all {
				if fingerprint == "" || tunnel.Fingerprint(c.ca) == fingerprint {
					drop = append(drop, c)
				}
			}
		}
	}
	d.mu.Unlock()
	for _, c := range drop {
		c.dropped.Store(true)
	}
	var gone sync.WaitGroup
	for _, c := range drop { // none waits for the farewell of another
		gone.Go(c.discard)
	}
	gone.Wait()
}

// Close closes all connections, those in use as well.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed = true
	var all []*clientConn
	for _, p := range d.pools {
		for c := range p.all {
			all = append(all, c)
		}
	}
	edges := d.edges
	d.edges = make(map[string]*edge)
	if d.sweep != nil {
		d.sweep.Stop()
	}
	d.mu.Unlock()
	for _, c := range all {
		c.discard()
	}
	for _, e := range edges {
		e.close()
	}
	return nil
}

// innerKey is the context key of the inner connection that newHTTP2 is to use.
type innerKey struct{}

// newHTTP2 speaks HTTP/2 on connections that are there already. It pools nothing: which
// one a request may use is for this package to say.
func newHTTP2() *http.Transport {
	t := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(innerKey{}).(*tls.Conn), nil
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: headMax,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP2(true)
	return t
}
