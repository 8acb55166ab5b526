package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// A Probe is what came of trying a token at its MCP server.
type Probe struct {
	Method   string    // that failed, such as initialize; "" if none did
	Response *Response // of the failure, if there was an answer
	Refused  bool      // the server does not accept the token
}

// probeTimeout bounds the whole of a probe.
const probeTimeout = 30 * time.Second

// ProbeMCP connects to an MCP server with a bearer token, lists its tools and leaves.
// Every request goes through client.
func ProbeMCP(ctx context.Context, client *http.Client, serverURL, token string) Probe {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	w := &watch{under: client.Transport, token: token}
	if w.under == nil {
		w.under = http.DefaultTransport
	}
	watched := *client
	watched.Transport, watched.Timeout = w, 0
	watched.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

	session, err := connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: serverURL, HTTPClient: &watched, MaxRetries: -1, DisableStandaloneSSE: true,
	})
	if err != nil && w.old() {
		// What a server answers that knows the first transport of MCP alone.
		w.forget()
		session, err = connect(ctx, &mcp.SSEClientTransport{Endpoint: serverURL, HTTPClient: &watched})
	}
	if err != nil {
		return w.failed("initialize")
	}
	defer session.Close()
	w.forget()
	if _, err := session.ListTools(ctx, nil); err != nil && session.InitializeResult().Capabilities.Tools != nil {
		return w.failed("tools/list")
	}
	return Probe{}
}

func connect(ctx context.Context, t mcp.Transport) (*mcp.ClientSession, error) {
	return mcp.NewClient(&mcp.Implementation{Name: "bailey", Version: "1"}, nil).Connect(ctx, t, nil)
}

// A watch adds the token to requests, and keeps the last answer that was an error.
type watch struct {
	under http.RoundTripper
	token string

	mu     sync.Mutex
	method string // of the request that was refused
	last   *Response
}

func (w *watch) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	method := rpcMethod(r)
	resp, err := w.under.RoundTrip(r)
	// A server need not take goodbyes, nor streams of its own.
	if err != nil || resp.StatusCode < 300 || r.Method == http.MethodDelete {
		return resp, err
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, bodyShown+tokenMax)) // what there is of it
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.method, w.last = method, shown(resp, body, w.token)
	return resp, nil
}

// rpcMethod is the method that a request's body calls, or "".
func rpcMethod(r *http.Request) string {
	if r.Body == nil || r.GetBody == nil {
		return ""
	}
	body, err := r.GetBody()
	if err != nil {
		return ""
	}
	defer body.Close()
	var call struct {
		Method string `json:"method"`
	}
	_ = json.NewDecoder(io.LimitReader(body, 64<<10)).Decode(&call) // one that is none has no method
	return call.Method
}

func (w *watch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.method, w.last = "", nil
}

// old reports whether the server refused the way of the request, not the token.
func (w *watch) old() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil {
		return false
	}
	switch w.last.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}

// failed is the probe of a step that failed.
func (w *watch) failed(step string) Probe {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := Probe{Method: step, Response: w.last}
	if w.method != "" {
		p.Method = w.method
	}
	p.Refused = w.last != nil && (w.last.Status == http.StatusUnauthorized || w.last.Status == http.StatusForbidden)
	return p
}
