// Package connect is the inside end of a tunnel's transport: it dials out to edges,
// shows the tunnel's token, stays, and hands the streams that come to a gateway as a
// net.Listener. What a stream carries is the gateway's business: this package holds
// no key of the inner TLS and reads nothing.
//
// It knows no plane and no HTTP beyond what a proxy on the way out wants.
//
// Start reading at [Connector.Run].
package connect

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// Config says where a connector goes and as what.
type Config struct {
	// Edges are where to begin. An edge that takes the connector names others, which
	// are then used as well.
	Edges []tunnel.EdgeAddr

	// Learned, if not nil, is told of the edges that an edge names, each time one does, so
	// that a connector that is started again may know of them. It may be called by several
	// goroutines at once, and keeps an edge waiting.
	Learned func([]api.EdgeAddress)

	// Token is asked for at each attachment, so that a rotation needs no restart.
	Token func() (tunnel.Token, error)

	// ID names the connector; all its connections have the same. "" makes one up.
	ID      string
	Version string

	// Protocol is api.ProtocolQUIC, api.ProtocolTCP, or "" for QUIC where UDP passes
	// and TCP elsewhere.
	Protocol api.TunnelProtocol

	// UDPAgain is how long TCP is used where UDP did not pass before that is looked at
	// again: 5 min by default, and twice as long after each time it still does not, up
	// to an hour.
	UDPAgain time.Duration

	// Links is how many edges to be attached to at once, if there are as many: 2 by
	// default, 8 at most.
	Links int

	// Proxy says which HTTP proxy leads to an edge, given as an https URL; nil is what
	// the environment says (HTTPS_PROXY, NO_PROXY). Through one everything goes by TCP.
	Proxy func(*url.URL) (*url.URL, error)

	// Grace is how long streams under way may take once Run's context has ended: 30 s
	// by default.
	Grace time.Duration

	Log *slog.Logger // nil logs nothing
}

const linksMax = 8

// A Connector keeps a gateway attached to edges. Its methods may be called
// concurrently.
type Connector struct {
	// Static after construction.
	cfg      Config
	log      *slog.Logger
	sessions tls.ClientSessionCache
	accepted chan *conn
	listener *listener
	parts    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	edges   []*edge
	links   map[*link]struct{}
	changed chan struct{} // closed and replaced when edges or links change
	running bool
	streams int
}

// New checks cfg and makes a connector. It dials once Run is called.
func New(cfg Config) (*Connector, error) {
	switch {
	case len(cfg.Edges) == 0:
		return nil, errors.New("connect: at least one edge is needed")
	case cfg.Token == nil:
		return nil, errors.New("connect: a token is needed")
	case cfg.Links < 0 || cfg.Links > linksMax:
		return nil, fmt.Errorf("connect: links: want 1 to %d", linksMax)
	}
	switch cfg.Protocol {
	case "", api.ProtocolQUIC, api.ProtocolTCP:
	default:
		return nil, fmt.Errorf("connect: protocol %q: want quic, tcp or nothing", cfg.Protocol)
	}
	cfg.Links = cmp.Or(cfg.Links, 2)
	cfg.Grace = cmp.Or(cfg.Grace, 30*time.Second)
	cfg.UDPAgain = cmp.Or(cfg.UDPAgain, 5*time.Minute)
	if cfg.ID == "" {
		cfg.ID = "cnct_" + rand.Text()
	}
	if cfg.Proxy == nil {
		cfg.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	}
	c := &Connector{
		cfg:      cfg,
		log:      cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		sessions: tls.NewLRUClientSessionCache(64),
		accepted: make(chan *conn),
		links:    make(map[*link]struct{}),
		changed:  make(chan struct{}),
	}
	c.listener = &listener{c: c, done: make(chan struct{})}
	for _, addr := range cfg.Edges {
		c.edges = append(c.edges, &edge{id: addr.ID, addrs: []tunnel.EdgeAddr{addr}, configured: true})
	}
	return c, nil
}

// Run keeps the connector attached until ctx ends. Then it tells the edges that it
// leaves, lets the streams under way end for at most Config.Grace, closes everything
// and returns nil. Nothing that goes wrong with an edge ends it: it tries again, and
// [Connector.Status] says what happened. It can be called once.
func (c *Connector) Run(ctx context.Context) error {
	c.mu.Lock()
	ran := c.running
	c.running = true
	c.mu.Unlock()
	if ran {
		return errors.New("connect: Run was called before")
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for range c.cfg.Links {
		c.parts.Go(func() { c.keepOne(ctx, life) })
	}
	<-ctx.Done()
	c.leave()
	stop()
	c.listener.Close()
	c.parts.Wait()
	return nil
}

// leave tells the edges to send no more, and waits for what is under way.
func (c *Connector) leave() {
	c.mu.Lock()
	for l := range c.links {
		go l.send(tunnel.AppendFrame(nil, tunnel.FrameDrain, nil))
	}
	c.log.Info("leaving the edges; calls under way may finish", "links", len(c.links), "streams", c.streams, "at_most", c.cfg.Grace)
	c.mu.Unlock()
	over := time.NewTimer(c.cfg.Grace)
	defer over.Stop()
	for {
		c.mu.Lock()
		streams, changed := c.streams, c.changed
		c.mu.Unlock()
		if streams == 0 {
			return
		}
		select {
		case <-changed:
		case <-over.C:
			c.log.Warn("streams are cut: the time to end them is over", "streams", streams)
			return
		}
	}
}

// change wakes whoever waits for edges, links or streams to change. The caller holds
// mu.
func (c *Connector) change() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Listener is where streams come in; each call returns the same one. It is open until
// it is closed or Run is over. Once it is closed, streams that come are closed too.
func (c *Connector) Listener() net.Listener { return c.listener }

type listener struct {
	c    *Connector
	done chan struct{}
	once sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.c.accepted:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.c.cfg.ID) }

type addr string

func (addr) Network() string  { return "tunnel" }
func (a addr) String() string { return string(a) }

// A conn is a stream that a gateway has or will get.
type conn struct {
	*tunnel.Stream
	link *link
	once sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Stream.Close()
	c.once.Do(func() { c.link.c.count(c.link, -1) })
	return err
}

func (c *Connector) count(l *link, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.streams += by
	c.streams += by
	if l.streams == 0 {
		c.change()
	}
}

// deliver hands a stream to the gateway.
func (c *Connector) deliver(l *link, carrier tunnel.Carrier) {
	s := &conn{Stream: tunnel.NewStream(carrier, tunnel.StreamConfig{}), link: l}
	c.count(l, 1)
	select {
	case c.accepted <- s:
	case <-c.listener.done:
		s.Close()
	}
}

// A Link is a connection to an edge, as [Status] shows it.
type Link struct {
	EdgeID       api.EdgeID // "" if the edge did not say
	Addr         string     // host:port, as it was dialled
	Protocol     api.TunnelProtocol
	Proxy        string // host:port of the proxy on the way, or ""
	AttachmentID api.AttachmentID
	TunnelID     api.TunnelID
	Domain       string
	Since        time.Time
	Streams      int
	Draining     bool // the edge is about to stop
}

// Status is how a connector stands.
type Status struct {
	Links []Link // those attached

	// LastError is the last thing that went wrong with an edge, if that was after the
	// last success; a *tunnel.Error where the edge has refused.
	LastError error
	LastAt    time.Time
}

// Status says which edges the connector is attached to.
func (c *Connector) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s Status
	for l := range c.links {
		v := l.view
		v.Streams = l.streams
		s.Links = append(s.Links, v)
	}
	for _, e := range c.edges {
		if e.err != nil && e.failedAt.After(s.LastAt) {
			s.LastError, s.LastAt = e.err, e.failedAt
		}
	}
	return s
}
