// Package mcp uses MCP servers: it connects, lists their tools and calls them. The
// official Go SDK speaks the protocol, every revision of it that it knows, over Streamable
// HTTP and, where a server has nothing else, over the HTTP+SSE of 2024-11-05.
//
// What is added here is what a platform needs with servers that strangers name: bounds on
// all that they send, one kind of error that says what failed, whether a call may have
// had its effect, connections that are made again when a server forgets them, and tools
// in a form that the Messages API accepts.
//
// The package knows nothing of sessions, agents, vaults or tunnels: it is given an
// [http.Client] that reaches the server, and a function that gives the credential.
//
// Start reading at [Connect], then [Session.Call] and gate.go.
package mcp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// A Server says how to reach one MCP server. Name, URL and HTTP are required.
type Server struct {
	Name string // for errors; unique where it is used
	URL  string // http or https

	// HTTP makes the requests. It should have no Timeout, and must not follow a redirect
	// to another origin. Requests go to the origin of URL only.
	HTTP *http.Client

	// Authorization returns the value of the Authorization header for a request; "" is
	// none. It is asked for every request. refused is "", or the value that the server
	// has just answered 401 to: another one is then tried once. Nil: there is none. An
	// error has an [*api.Error] in its chain if a person may read why, which says by its
	// Retry whether somebody has to authorize again; any other is only logged.
	Authorization func(ctx context.Context, refused string) (string, error)

	Logger *slog.Logger // nil: no records

	ConnectTimeout time.Duration // of connecting and agreeing on a revision; 0 is 30 s
	ListTimeout    time.Duration // of listing all tools; 0 is 1 min
	CallTimeout    time.Duration // of one call, silent or not; 0 is 1 h
}

// The bounds of what a server may send. What goes beyond is an [*Error] of kind TooLarge.
const (
	messageMax = 16 << 20  // bytes of one message: a page of tools, a result
	streamMax  = 256 << 20 // bytes of a whole event stream
	errorMax   = 64 << 10  // bytes of an answer with an error status that are read
	pagesMax   = 100       // pages of a tool list
	toolsMax   = 1000      // tools of a server
	listMax    = 8 << 20   // bytes of all their descriptions and schemas
)

// legacyRevision is the newest one with a handshake. Servers that choke on the question
// for a newer one are asked for it at once.
const legacyRevision = "2025-11-25"

// A Session is the use of one server. It keeps a connection while there is one, and makes
// another when it is needed: the server may forget its session at any time. It is safe
// for concurrent use. What it holds in memory is nothing that could not be had again.
type Session struct {
	// Static.
	server Server
	gate   *gate

	life  context.Context // ends with Close, and whatever is under way with it
	end   context.CancelFunc
	stale atomic.Bool // the server has said that its tools changed

	// slot holds one token; its holder may connect, and owns stream.
	slot   chan struct{}
	stream bool // the server has only the transport of 2024-11-05

	mu   sync.Mutex
	conn *conn // nil while there is none
}

// A conn is one connection, initialized.
type conn struct {
	*sdk.ClientSession
	cancel context.CancelFunc
	dead   chan struct{} // closed when it can carry nothing more
}

func (c *conn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// Connect connects to a server and agrees on a revision of the protocol. Errors are
// [*Error]s. The caller closes the session.
func Connect(ctx context.Context, server Server) (*Session, error) {
	if server.Logger == nil {
		server.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&server.ConnectTimeout, 30*time.Second)
	setDefault(&server.ListTimeout, time.Minute)
	setDefault(&server.CallTimeout, time.Hour)
	at, err := url.Parse(server.URL)
	if err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" {
		return nil, &Error{Server: server.Name, Doing: doingConnect, Kind: Connection, Message: "its URL is not one of http or https"}
	}
	s := &Session{server: server, slot: make(chan struct{}, 1)}
	s.gate = newGate(&s.server, at)
	s.life, s.end = context.WithCancel(context.Background())
	s.slot <- struct{}{}
	if _, _, err := s.connection(ctx); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

func setDefault(d *time.Duration, to time.Duration) {
	if *d == 0 {
		*d = to
	}
}

// Revision is that of the protocol, as agreed on with the server; "" while there is no
// connection.
func (s *Session) Revision() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return ""
	}
	return s.conn.InitializeResult().ProtocolVersion
}

// Stale reports, once, that the server has said its tools changed.
func (s *Session) Stale() bool { return s.stale.Swap(false) }

// Close ends the session. What is under way fails. It takes a few seconds at most, which
// the server has for being told.
func (s *Session) Close() error {
	s.end()
	s.mu.Lock()
	c := s.conn
	s.conn = nil
	s.mu.Unlock()
	if c != nil {
		c.close()
	}
	return nil
}

// close ends a connection once nothing is under way on it any more. Telling the server is
// a courtesy, for which the SDK takes a few seconds at most.
func (c *conn) close() {
	_ = c.ClientSession.Close()
	c.cancel()
}

// connection returns a connection that is alive. fresh says that it was made just now.
func (s *Session) connection(ctx context.Context) (c *conn, fresh bool, err error) {
	select {
	case <-s.slot:
		defer func() { s.slot <- struct{}{} }()
	case <-ctx.Done():
		return nil, false, s.fail(ctx, doingConnect, nil, ctx.Err())
	}
	s.mu.Lock()
	old := s.conn
	s.mu.Unlock()
	if old != nil && old.alive() {
		return old, false, nil
	}
	if old != nil {
		go old.close() // it is dead, which closing makes known to nobody
	}
	if c, err = s.connect(ctx); err != nil {
		return nil, true, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		go c.close()
		return nil, true, &Error{Server: s.server.Name, Doing: doingConnect, Kind: Canceled, Message: "the session was closed", Err: context.Canceled}
	}
	s.conn = c
	return c, true, nil
}

// A way is one to connect to a server.
type way struct {
	revision string // that is asked for; "" is the newest
	stream   bool   // by the transport of 2024-11-05
}

var (
	ways       = []way{{}, {revision: legacyRevision}, waysStream[0]}
	waysStream = []way{{revision: "2024-11-05", stream: true}}
)

// connect tries the ways to a server, the newest first. The caller holds the slot.
func (s *Session) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.server.ConnectTimeout, errTimeout)
	defer cancel()
	all := ways
	if s.stream {
		all = waysStream
	}
	var first *Error
	for _, w := range all {
		if first != nil && first.Status != 0 && w.revision == legacyRevision {
			continue // the SDK has asked for this one as well, and was refused
		}
		c, t, err := s.attempt(ctx, w)
		if err == nil {
			s.stream = w.stream
			return c, nil
		}
		e := s.fail(ctx, doingConnect, t, err)
		if first == nil || e.Kind == Authentication {
			first = e
		}
		if e.Kind != Connection || t.failure() != nil || e.Status >= 500 || e.Status == http.StatusTooManyRequests {
			break // it is not for the way in which it was asked
		}
	}
	return nil, first
}

var errTimeout = errors.New("it took too long")

// attempt makes one connection, which goes on after ctx has ended.
func (s *Session) attempt(ctx context.Context, w way) (*conn, *trace, error) {
	t := new(trace)
	life, end := context.WithCancel(context.WithoutCancel(t.into(ctx)))
	stop := context.AfterFunc(ctx, end)
	client := sdk.NewClient(&sdk.Implementation{Name: "bailey", Version: "1"}, &sdk.ClientOptions{
		Logger: s.server.Logger,
		// A server that asks its client something is told that it cannot: there is nobody
		// to ask, and no model to lend.
		Capabilities:   &sdk.ClientCapabilities{},
		MultiRoundTrip: &sdk.MultiRoundTripOptions{Disabled: true},
	})
	client.AddReceivingMiddleware(func(next sdk.MethodHandler) sdk.MethodHandler {
		return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
			if method == "notifications/tools/list_changed" {
				s.stale.Store(true)
			}
			return next(ctx, method, req)
		}
	})
	cs, err := client.Connect(life, s.transport(w), &sdk.ClientSessionOptions{ProtocolVersion: w.revision})
	if err == nil && !stop() {
		err = context.Cause(ctx)
		_ = cs.Close()
	}
	if err != nil {
		end()
		return nil, t, err
	}
	c := &conn{ClientSession: cs, cancel: end, dead: make(chan struct{})}
	go func() { // ends with the connection
		_ = cs.Wait()
		close(c.dead)
	}()
	return c, t, nil
}

func (s *Session) transport(w way) sdk.Transport {
	if w.stream {
		return &sdk.SSEClientTransport{Endpoint: s.server.URL, HTTPClient: s.gate.client, MaxEventSize: messageMax}
	}
	return &sdk.StreamableClientTransport{
		Endpoint: s.server.URL, HTTPClient: s.gate.client, MaxEventSize: messageMax,
		// Nothing is waited for that servers say unasked, and many answer the question
		// for it oddly.
		DisableStandaloneSSE: true,
	}
}

// use does something with a connection, for at most timeout. If the server turns out to
// have ended the session before it looked at the request, or the connection to be dead
// before the request left, the same is done once more with a new one: nothing has happened
// then.
func (s *Session) use(ctx context.Context, doing string, timeout time.Duration, do func(context.Context, *conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	stop := context.AfterFunc(s.life, cancel)
	defer stop()
	for again := false; ; again = true {
		c, fresh, err := s.connection(ctx)
		if err != nil {
			cancel()
			return err
		}
		t := new(trace)
		if err = do(t.into(ctx), c); err == nil {
			// A stream that ends by itself leaves its connection to the next request.
			time.AfterFunc(streamEnd, cancel)
			return nil
		}
		if t.denied() {
			s.drop(c) // the SDK has given it up
		}
		if !again && !fresh && ctx.Err() == nil && t.unseen(err) {
			s.drop(c)
			continue
		}
		e := s.fail(ctx, doing, t, err)
		cancel()
		return e
	}
}

// streamEnd is how long a stream may go on after what was waited for has come.
const streamEnd = time.Second

// drop lets go of a connection that is of no more use to new requests. It is closed when
// those under way on it are over.
func (s *Session) drop(c *conn) {
	s.mu.Lock()
	if s.conn == c {
		s.conn = nil
	}
	s.mu.Unlock()
	go c.close()
}

// fail makes the error of something that failed.
func (s *Session) fail(ctx context.Context, doing string, t *trace, err error) *Error {
	if t == nil {
		t = new(trace)
	}
	e := t.explain(ctx, err)
	e.Server, e.Doing = s.server.Name, doing
	e.MayHaveRun = doing == doingCall && t.sent.Load() && !t.refused()
	e.Message = s.gate.clean(e.Message)
	return e
}
