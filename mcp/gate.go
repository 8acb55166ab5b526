package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"github.com/bailey-platform/bailey/api"
)

// A gate is what every request to a server and every answer of it pass: it keeps requests
// at the server's own origin, adds the credential, bounds and mends what comes back, and
// takes down what became of the request, which the SDK does not tell.
type gate struct {
	server *Server
	origin string // scheme://host
	next   http.RoundTripper
	client *http.Client

	mu      sync.Mutex
	last    string // the credential that was sent last
	before  string // and the one before it
	refused string // one that the server refused, and for which there is no other
}

func newGate(server *Server, at *url.URL) *gate {
	g := &gate{server: server, origin: origin(at), next: http.DefaultTransport}
	if server.HTTP.Transport != nil {
		g.next = server.HTTP.Transport
	}
	client := *server.HTTP
	client.Transport = g
	g.client = &client
	return g
}

func origin(u *url.URL) string { return u.Scheme + "://" + api.LowerHost(u.Host) }

// RoundTrip makes a request and, if the credential is refused and there is another, once
// more: a server that answers 401 has not looked at what it was asked.
func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	t := traceOf(r.Context())
	res, err := g.try(r, t)
	if err != nil {
		t.fail(err)
		return nil, err
	}
	return g.mend(r, res, t), nil
}

func (g *gate) try(r *http.Request, t *trace) (*http.Response, error) {
	if o := origin(r.URL); o != g.origin {
		return nil, fmt.Errorf("the server names an address of %s, which is another origin than its own", o)
	}
	header, err := g.authorization(r.Context(), "")
	if err != nil {
		return nil, err
	}
	res, err := g.send(r, t, header)
	if err != nil || res.StatusCode != http.StatusUnauthorized || header == "" || !g.renewable(header) {
		return res, err
	}
	another, err := g.authorization(r.Context(), header)
	if err != nil || another == "" || another == header {
		g.mu.Lock()
		g.refused = header
		g.mu.Unlock()
		if err != nil {
			res.Body.Close()
		}
		return res, err
	}
	body := io.ReadCloser(nil)
	if r.GetBody != nil {
		if body, err = r.GetBody(); err != nil {
			return res, nil
		}
	} else if r.Body != nil && r.Body != http.NoBody {
		return res, nil
	}
	drain(res)
	again := r.Clone(r.Context())
	again.Body = body
	return g.send(again, t, another)
}

// renewable reports whether another credential may be asked for in place of header.
func (g *gate) renewable(header string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused != header
}

func (g *gate) authorization(ctx context.Context, refused string) (string, error) {
	if g.server.Authorization == nil {
		return "", nil
	}
	header, err := g.server.Authorization(ctx, refused)
	if err != nil && ctx.Err() == nil {
		if g.server.Logger != nil {
			g.server.Logger.Warn("the credential of an MCP server cannot be had", "error", err)
		}
		err = &credentialError{err}
	}
	if header != "" {
		g.mu.Lock()
		if header != g.last {
			g.last, g.before = header, g.last
		}
		g.mu.Unlock()
	}
	return header, err
}

func (g *gate) send(r *http.Request, t *trace, authorization string) (*http.Response, error) {
	// A transport that says when it has a connection is believed that nothing was sent
	// before; by any other, everything may have been.
	var says, connected atomic.Bool
	r = r.Clone(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { says.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}))
	r.Header.Set("User-Agent", "bailey")
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	res, err := g.next.RoundTrip(r)
	if r.Method == http.MethodPost && (err == nil || connected.Load() || !says.Load()) {
		t.sent.Store(true)
	}
	if err == nil {
		t.answered(r, res)
	}
	return res, err
}

// mend bounds an answer, and gives one to a request the content type that it has.
func (g *gate) mend(r *http.Request, res *http.Response, t *trace) *http.Response {
	if res.StatusCode < 200 || res.StatusCode >= 300 {
		t.listen(r, res)
		return res
	}
	limit := int64(messageMax)
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	known := media == "application/json" || media == "text/event-stream"
	if r.Method == http.MethodPost && !known && res.StatusCode == http.StatusOK && res.Body != http.NoBody {
		body := bufio.NewReader(res.Body)
		if kind := sniff(body); kind != "" {
			media = kind
			res.Header.Set("Content-Type", kind)
		}
		res.Body = struct {
			io.Reader
			io.Closer
		}{body, res.Body}
	}
	if media == "text/event-stream" {
		limit = streamMax
	}
	res.Body = &bounded{ReadCloser: res.Body, left: limit, limit: limit, trace: t}
	return res
}

// sniff tells a message and a stream of events by how they begin; "" is neither.
func sniff(r *bufio.Reader) string {
	for n := 1; n <= 64; n++ {
		head, _ := r.Peek(n)
		if len(head) < n {
			return "" // what there is does not tell
		}
		text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \r\n\t")
		switch {
		case len(text) == 0:
		case text[0] == '{':
			return "application/json"
		default:
			for _, field := range []string{"event:", "data:", "id:", "retry:", ":"} {
				if bytes.HasPrefix(text, []byte(field)) {
					return "text/event-stream"
				}
			}
		}
	}
	return ""
}

func drain(res *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, errorMax))
	_ = res.Body.Close()
}

// bounded is a body that ends with an error where there is more than limit bytes of it.
type bounded struct {
	io.ReadCloser
	left, limit int64
	trace       *trace
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// Whether there is more decides.
		var one [1]byte
		if n, err := b.ReadCloser.Read(one[:]); n == 0 {
			return 0, err
		}
		err := fmt.Errorf("%w: %d MiB in one answer", errTooLarge, b.limit>>20)
		b.trace.fail(err)
		return 0, err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// clean makes a text fit to show: see the function. A server that quotes the credential,
// or the one that it has just refused, does not get it into a log that way.
func (g *gate) clean(text string) string {
	g.mu.Lock()
	sent := []string{g.last, g.before}
	g.mu.Unlock()
	for _, header := range sent {
		_, secret, _ := strings.Cut(header, " ")
		for _, s := range []string{header, secret} {
			if len(s) >= 8 {
				text = strings.ReplaceAll(text, s, "[credential]")
			}
		}
	}
	return clean(text)
}

// A trace takes down what became of the requests of one operation. The SDK may make
// several for one: a call's own POST, and GETs by which its stream is resumed.
type trace struct {
	sent   atomic.Bool  // bytes of a POST may have reached the server
	status atomic.Int32 // of the newest answer with an error status, to whatever
	post   atomic.Int32 // of the newest answer to a POST

	mu         sync.Mutex
	err        error  // the first that is none of the SDK's
	challenge  bool   // the newest error answer asks for a credential
	noSession  bool   // it refuses the session of the request, not what was asked in it
	provenance string // of the newest error answer: that it is a tunnel's gateway's, and why, as the dialer words it
	says       string // and what the server said of it
}

type traceKey struct{}

func (t *trace) into(ctx context.Context) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

func traceOf(ctx context.Context) *trace {
	if t, ok := ctx.Value(traceKey{}).(*trace); ok {
		return t
	}
	return new(trace)
}

func (t *trace) answered(r *http.Request, res *http.Response) {
	if r.Method == http.MethodPost {
		t.post.Store(int32(res.StatusCode))
	}
	if res.StatusCode < 400 {
		return
	}
	t.status.Store(int32(res.StatusCode))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.challenge = res.Header.Get("Www-Authenticate") != ""
	t.noSession = false
	t.provenance = res.Header.Get("Bailey-Tunnel-Error")
}

// listen reads what an error answer says, as far as it is the protocol's.
func (t *trace) listen(r *http.Request, res *http.Response) {
	text, _ := io.ReadAll(io.LimitReader(res.Body, errorMax)) // half of it may still say something
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(text))
	var body struct {
		ID    any
		Error struct{ Message string }
	}
	_ = json.Unmarshal(text, &body)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.says = body.Error.Message
	// Many servers say with status 400 instead of 404 that they have no such session. An
	// error that answers the request by its id is the request's own.
	t.noSession = res.StatusCode == http.StatusBadRequest && body.ID == nil && r.Header.Get("Mcp-Session-Id") != "" &&
		strings.Contains(strings.ToLower(t.says), "session")
}

func (t *trace) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

func (t *trace) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *trace) failedStatus() int { return int(t.status.Load()) }

// denied reports whether the server has refused the credential, or the lack of one.
func (t *trace) denied() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status.Load()
	return s == http.StatusUnauthorized || s == http.StatusForbidden && t.challenge
}

// refused reports whether the server has answered the request itself with a refusal: it
// has not done what it was asked.
func (t *trace) refused() bool {
	s := t.post.Load()
	return s >= 400 && s < 500 && s != http.StatusRequestTimeout
}

// unseen reports whether an operation failed before the server took notice of it: nothing
// was sent, or the answer is that its session is no more.
func (t *trace) unseen(err error) bool {
	if errors.As(t.failure(), new(*credentialError)) {
		return false
	}
	switch t.post.Load() {
	case http.StatusNotFound:
		refusal := refusalIn(err)
		return refusal == nil || refusal.Code != jsonrpc.CodeMethodNotFound
	case http.StatusBadRequest:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.noSession
	}
	return !t.sent.Load()
}
