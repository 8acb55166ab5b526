package netjail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/egress"
)

// A guest is a connection of the box's whose requests are judged one by one. The server
// of the jail speaks with the box on it, and its transport with the host; the two share
// nothing but the requests.
type guest struct {
	net.Conn // the connection as it is, TLS not opened
	link     *link
	tls      bool

	// upgrade is set for HTTP/1: it lets the connection go over to another protocol.
	upgrade func()

	transport *http.Transport
	proxy     *httputil.ReverseProxy

	// watched is set once credentials were bound to the host of a request: from then on
	// every response is looked through, whatever is bound by then.
	watched atomic.Bool

	sent, received atomic.Int64
	once           sync.Once
	closed         chan struct{}
}

func newGuest(l *link, first []byte) *guest {
	return &guest{Conn: &replay{l.conn, first}, link: l, closed: make(chan struct{})}
}

func (g *guest) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.sent.Add(int64(n))
	return n, err
}

func (g *guest) Write(p []byte) (int, error) {
	n, err := g.Conn.Write(p)
	g.received.Add(int64(n))
	return n, err
}

func (g *guest) Close() error {
	err := g.Conn.Close()
	g.once.Do(func() { close(g.closed) })
	return err
}

// Bounds of the HTTP that is judged.
const (
	responseHeadMax = 1 << 20          // bytes of a response's head
	streamsMax      = 100              // requests at a time on one connection
	fromBoxMax      = 256 << 10        // bytes of bodies that a connection of the box may be ahead of the host, with HTTP/2
	fromHostMax     = 1 << 20          // the same, of the host ahead of the box
	handshakeMax    = 10 * time.Second // for TLS with a host
	continueMax     = 2 * time.Second  // for a host to say that it wants a body that the box asks about
)

// judged serves a connection whose requests are judged one by one.
func (l *link) judged(g *guest, open bool) {
	j := l.jail
	g.tls = open
	admission := l.grant(func(a egress.Access, _ bool) bool {
		return a.TCP || open && (a.TLS || a.HTTPS) || !open && a.HTTP
	})
	defer j.release(admission)
	if !j.admit(admission) {
		l.deny(l.blocked("it was allowed until just now"))
		return
	}
	l.d.Allow = true
	if err := j.note(l.d); err != nil {
		l.deny(l.blocked("%v", err))
		return
	}
	g.transport = &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
		TLSClientConfig:        &tls.Config{ServerName: l.host.String(), RootCAs: j.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    handshakeMax,
		ForceAttemptHTTP2:      open,
		DisableCompression:     true,
		MaxConnsPerHost:        streamsMax,
		MaxIdleConnsPerHost:    streamsMax,
		ExpectContinueTimeout:  continueMax,
		MaxResponseHeaderBytes: responseHeadMax,
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerConnection: fromHostMax, MaxReceiveBufferPerStream: fromHostMax},
	}
	defer g.transport.CloseIdleConnections()
	g.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			// As it was judged: not what ReverseProxy thinks of it.
			r.Out.URL = r.In.URL
			r.Out.Host = r.In.Host
			r.Out.Trailer = r.In.Trailer // filled when the body has been read
		},
		Transport:      g.transport,
		FlushInterval:  -1,
		ErrorLog:       slog.NewLogLogger(j.log.Handler(), slog.LevelDebug),
		ModifyResponse: g.response,
		ErrorHandler:   g.failed,
	}

	why := ""
	conn, err := g.open()
	if err != nil {
		g.distrusted(err)
		why = "TLS with the box failed: " + plain(err).Error()
		_ = g.Close()
	} else if !j.guests.hand(conn) {
		_ = g.Close()
	}
	<-g.closed
	l.end(g.sent.Load(), g.received.Load(), why)
}

// open is the connection as the server gets it: with TLS opened, if it is to be.
func (g *guest) open() (net.Conn, error) {
	j := g.link.jail
	if g.tls {
		ctx, cancel := context.WithTimeout(j.ctx, j.limits.Greeting)
		defer cancel()
		conn := tls.Server(g, j.authority.config(g.link.host))
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		if conn.ConnectionState().NegotiatedProtocol == "h2" {
			return conn, nil
		}
		return g.framed(conn), nil
	}
	return g.framed(g), nil
}

// distrusted tells why TLS with the box failed, where it did: most often a program has
// authorities of its own to trust.
func (g *guest) distrusted(err error) {
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		g.link.jail.tell(g.link.d.Call, fmt.Sprintf("%s: the program in the box broke off TLS: %v; it must trust the certificates in %s", g.link.at(), alert.Err, BundlePath))
	}
}

func (g *guest) framed(conn net.Conn) net.Conn {
	f := &framed{Conn: conn, guest: g, framing: newFraming()}
	g.upgrade = func() { f.raw.Store(true) }
	return f
}

// A queue is the listener at which the server of a jail gets its connections.
type queue struct {
	ctx   context.Context
	conns chan net.Conn
}

func newQueue(ctx context.Context) *queue { return &queue{ctx, make(chan net.Conn)} }

// hand gives the server a connection, if it still serves.
func (q *queue) hand(conn net.Conn) bool {
	select {
	case q.conns <- conn:
		return true
	case <-q.ctx.Done():
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.ctx.Done():
		return nil, http.ErrServerClosed
	}
}

func (q *queue) Close() error   { return nil }
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

type guestKey struct{}

func (j *Jail) newServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(serveGuest),
		ReadHeaderTimeout: j.limits.Greeting,
		IdleTimeout:       j.limits.Idle,
		MaxHeaderBytes:    headMax,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsMax, MaxReceiveBufferPerConnection: fromBoxMax, MaxReceiveBufferPerStream: fromBoxMax},
		ErrorLog:          slog.NewLogLogger(j.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			switch conn := conn.(type) {
			case *framed:
				return context.WithValue(ctx, guestKey{}, conn.guest)
			case *tls.Conn:
				return context.WithValue(ctx, guestKey{}, conn.NetConn())
			}
			return ctx // without a guest, no request is served
		},
	}
}

func serveGuest(w http.ResponseWriter, r *http.Request) {
	g, ok := r.Context().Value(guestKey{}).(*guest)
	if !ok {
		http.Error(w, "no connection of a box", http.StatusInternalServerError)
		return
	}
	g.serve(w, r)
}

// scheme is that of the requests.
func (g *guest) scheme() string {
	if g.tls {
		return "https"
	}
	return "http"
}

// serve judges one request and passes it on.
func (g *guest) serve(w http.ResponseWriter, r *http.Request) {
	j, l := g.link.jail, g.link
	j.counters.requests.Add(1)
	select {
	case j.requests <- struct{}{}:
		defer func() { <-j.requests }()
	default:
		reason := fmt.Sprintf("the box has %d requests under way, which is as many as it may; try again when some are done", cap(j.requests))
		j.limit("requests", reason)
		g.answer(w, http.StatusServiceUnavailable, reason)
		return
	}
	d := j.decision(ActionRequest)
	d.Host, d.Port, d.Protocol = l.host.String(), l.port, g.scheme()
	d.Method, d.Path = r.Method, r.URL.EscapedPath()

	if reason := g.misdirected(r); reason != "" {
		d.Rule, d.Reason = l.rule, fmt.Sprintf("%s is blocked by the network policy: %s", d.Target(), reason)
		j.refuse(d)
		g.answer(w, http.StatusMisdirectedRequest, d.Reason)
		return
	}
	ask := egress.Request{Host: l.host, Port: l.port, TLS: g.tls, Method: r.Method, Path: r.URL.EscapedPath()}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	admission := &grant{holds: func(s *state) bool { return s.rules.Request(ask).Allow }, cut: func(string) { cancel() }}
	defer j.release(admission)
	admitted := j.admit(admission)
	s := j.state.Load()
	verdict := s.rules.Request(ask)
	d.Allow, d.Rule, d.Reason = verdict.Allow && admitted, verdict.Rule, verdict.Reason
	if !d.Allow {
		j.refuse(d)
		g.answer(w, http.StatusForbidden, d.Reason)
		return
	}
	if err := j.note(d); err != nil {
		g.answer(w, http.StatusForbidden, fmt.Sprintf("%s: %v", d.Target(), err))
		return
	}
	out := r.Clone(ctx)
	out.URL.Scheme, out.URL.Host = g.scheme(), l.at()
	out.Host = g.authority()
	out.Trailer = r.Trailer
	out.Header.Del("Host")
	if !strings.EqualFold(out.Header.Get("Upgrade"), "websocket") || r.ProtoMajor != 1 {
		out.Header.Del("Upgrade") // a host may answer any request without changing protocols
	}
	forget, failed := g.putIn(out, s)
	defer func() {
		cancel() // what still asks for a value
		forget()
	}()
	if failed != nil {
		g.answer(w, failed.status, failed.reason)
		return
	}
	if out.Body != nil {
		defer out.Body.Close() // what was gathered of it
	}
	// A host may answer while it is asked. Without this, the server would end the reading of
	// an HTTP/1 request's body where the response begins, and the transport, which had not
	// seen the end of it, would break the connection off under the response. The body has to
	// be closed here then.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		g.answer(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer r.Body.Close()
	g.proxy.ServeHTTP(finalOnly{w}, out)
}

// A finalOnly drops what a host says before its response, such as hints: it is not
// looked through for secrets.
type finalOnly struct{ http.ResponseWriter }

func (w finalOnly) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Unwrap lets [http.ResponseController] flush and hijack.
func (w finalOnly) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// authority is how the host is called in requests to it.
func (g *guest) authority() string {
	host := g.link.host.String()
	if addr, ok := g.link.host.Addr(); ok && addr.Is6() {
		host = "[" + host + "]"
	}
	if g.tls && g.link.port == 443 || !g.tls && g.link.port == 80 {
		return host
	}
	return host + ":" + strconv.Itoa(int(g.link.port))
}

// misdirected says why a request is not for the host that its connection is for; it
// returns "" if it is. With HTTP/2 a client may use one connection for several hosts.
func (g *guest) misdirected(r *http.Request) string {
	if !strings.HasPrefix(r.URL.Path, "/") || r.URL.Host != "" || r.URL.Opaque != "" {
		return "it is no request for a path"
	}
	for _, named := range append([]string{r.Host}, r.Header["Host"]...) {
		host, port := named, ""
		if i := strings.LastIndexByte(named, ':'); i > strings.LastIndexByte(named, ']') {
			host, port = named[:i], named[i+1:]
			if port != strconv.Itoa(int(g.link.port)) {
				return fmt.Sprintf("it is for %s, and the connection for port %d", printable(named), g.link.port)
			}
		}
		if h, err := egress.ParseHost(host); err != nil || h != g.link.host {
			return fmt.Sprintf("it is for %s, and the connection for %s", printable(named), g.link.host)
		}
	}
	return ""
}

// answer tells the box why its request is not passed on.
func (g *guest) answer(w http.ResponseWriter, status int, reason string) {
	http.Error(w, "bailey: "+printable(reason), status)
}

// refuseRequest records that what came on the connection is no proper request.
func (g *guest) refuseRequest(err error) {
	j, l := g.link.jail, g.link
	d := j.decision(ActionRequest)
	d.Host, d.Port, d.Protocol, d.Rule = l.host.String(), l.port, g.scheme(), l.rule
	d.Reason = fmt.Sprintf("a request to %s was refused: %v", l.at(), err)
	j.refuse(d)
}

// failed answers a request whose host did not.
func (g *guest) failed(w http.ResponseWriter, r *http.Request, err error) {
	j, l := g.link.jail, g.link
	var refused *egress.Refused
	var unsaid *unsent
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	switch {
	case r.Context().Err() != nil:
		// Whoever asked is gone, or the policy has changed.
		g.answer(w, http.StatusBadGateway, "the request was cut short")
	case errors.As(err, &refused):
		d := j.decision(ActionConnect)
		d.Host, d.Port, d.Protocol = l.host.String(), l.port, g.scheme()
		d.Rule, d.Reason = refused.Verdict.Rule, refused.Verdict.Reason
		j.refuse(d)
		g.answer(w, http.StatusForbidden, d.Reason)
	case errors.As(err, &unsaid):
		g.answer(w, unsaid.status, unsaid.reason)
	default:
		reason := string(j.Redact([]byte(plain(err).Error())))
		if errors.As(err, &authority) || errors.As(err, &hostname) {
			reason += " (certificates of hosts whose TLS is opened are verified outside the box, against the worker's roots)"
		}
		reason = fmt.Sprintf("%s is allowed by the network policy, but could not be reached: %s", l.at(), reason)
		j.tell(l.d.Call, reason)
		g.answer(w, http.StatusBadGateway, reason)
	}
}

// response takes out of a response what the box must not see.
func (g *guest) response(r *http.Response) error {
	j := g.link.jail
	// Another address or protocol for the host would not be served.
	r.Header.Del("Alt-Svc")
	upgraded := r.StatusCode == http.StatusSwitchingProtocols
	if upgraded {
		if g.upgrade == nil || r.Request.Header.Get("Upgrade") == "" {
			return errors.New("it changes to another protocol without being asked to")
		}
		g.upgrade()
	}
	if !g.watched.Load() && len(j.state.Load().bound(g.link.host)) == 0 {
		return nil
	}
	secrets := j.secrets.patterns // as they are when something arrives
	redactHeader(r.Header, secrets())
	hasBody := r.Request.Method != http.MethodHead && r.Body != http.NoBody && r.StatusCode != http.StatusNotModified
	switch {
	case upgraded:
		both, ok := r.Body.(io.ReadWriteCloser)
		if !ok {
			return errors.New("the connection cannot change protocols")
		}
		r.Body = struct {
			io.Reader
			io.WriteCloser
		}{newRewriter(both, secrets, filled), both}
		return nil
	case !hasBody:
		return nil
	}
	if err := decode(r); err != nil {
		return err
	}
	body := r.Body
	redactTrailer := func() { redactHeader(r.Trailer, secrets()) }
	partial := r.StatusCode == http.StatusPartialContent || r.Header.Get("Content-Range") != ""
	switch {
	case r.ContentLength >= 0 && r.ContentLength <= gatherMax && !partial:
		whole, err := j.gather(newRewriter(body, secrets, replaced), body)
		if err != nil {
			return err
		}
		whole.atEnd = redactTrailer
		r.Body, r.ContentLength = whole, whole.length
		r.Header.Del("Content-Length")
		if whole.length >= 0 {
			r.Header.Set("Content-Length", strconv.FormatInt(whole.length, 10))
		}
	case r.ContentLength >= 0 || partial:
		// Its length is told, so it stays what it is.
		r.Body = &readCloser{newRewriter(body, secrets, filled), body, redactTrailer}
	default:
		r.Body = &readCloser{newRewriter(body, secrets, replaced), body, redactTrailer}
	}
	return nil
}

// A readCloser reads from one and closes another, and does something at the end.
type readCloser struct {
	io.Reader
	io.Closer
	atEnd func()
}

func (r *readCloser) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.EOF {
		r.atEnd()
	}
	return n, err
}

func redactHeader(h http.Header, secrets *patterns) {
	for name, values := range maps.Clone(h) {
		clean := make([]string, len(values))
		for i, value := range values {
			clean[i] = string(secrets.redact([]byte(value)))
		}
		if cleanName := string(secrets.redact([]byte(name))); cleanName != name {
			delete(h, name)
			name = cleanName
		}
		if !slices.Equal(h[name], clean) {
			h[name] = clean
		}
	}
}

// cleanURL is a URL with another query.
func cleanURL(u *url.URL, query string) *url.URL {
	changed := *u
	changed.RawQuery = query
	return &changed
}
