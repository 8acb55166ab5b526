package control

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
)

// mcpServer is one whose tools are for the holder of the token "good" alone: over
// Streamable HTTP at /mcp, and over the transport of 2024-11-05 at /sse. At /bare is one
// that has no tools and says so to whoever asks for them.
func mcpServer(t *testing.T) *httptest.Server {
	server := mcp.NewServer(&mcp.Implementation{Name: "fake", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "t"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{}, nil, nil
	})
	bare := mcp.NewServer(&mcp.Implementation{Name: "bare", Version: "1"}, &mcp.ServerOptions{Capabilities: &mcp.ServerCapabilities{}})
	bare.AddReceivingMiddleware(func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
			if method == "tools/list" {
				return nil, &jsonrpc.Error{Code: jsonrpc.CodeMethodNotFound, Message: "no such method"}
			}
			return next(ctx, method, req)
		}
	})
	streamable := func(s *mcp.Server) http.Handler {
		return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, nil)
	}
	sse := mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return server }, nil)
	guard := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			header := r.Header.Get("Authorization")
			if header == "Bearer good" {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":"invalid_token","token":%q,"said":%q}`, strings.TrimPrefix(header, "Bearer "), header)
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", guard(streamable(server)))
	mux.Handle("/bare", guard(streamable(bare)))
	mux.Handle("/sse", guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" && r.URL.Query().Get("sessionid") == "" {
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		sse.ServeHTTP(w, r)
	})))
	s := httptest.NewServer(mux)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// validate puts a credential for a server into a vault of its own, and tries it.
func (w *world) validate(url, token string) *api.CredentialValidation {
	w.t.Helper()
	v := w.vault()
	cred := must1[*api.Credential](w.t)(w.put(v, fmt.Sprintf(`{"type":"mcp_oauth","mcp_server_url":%q,"access_token":%q}`, url, token)))
	return must1[*api.CredentialValidation](w.t)(w.ValidateCredential(w.ctx, w.admin, v, cred.ID))
}

func TestValidateCredential(t *testing.T) {
	t.Parallel()
	s := mcpServer(t)
	w := newVaultWorld(t, Config{})
	refusal := &api.ProbeResponse{StatusCode: 401, ContentType: "application/json", Body: `{"error":"invalid_token","token":"[scrubbed]","said":"Bearer [scrubbed]"}`}
	nothing := &api.ProbeResponse{StatusCode: 404, ContentType: "text/plain", Body: "404 page not found\n"}
	for _, tt := range []struct {
		url, token, status string
		probe              *api.MCPProbe
	}{
		{s.URL + "/mcp", "good", api.CredentialValid, nil},
		{s.URL + "/sse", "good", api.CredentialValid, nil},
		{s.URL + "/bare", "good", api.CredentialValid, nil},
		{s.URL + "/mcp", "SECRET-token", api.CredentialInvalid, &api.MCPProbe{Method: "initialize", HTTPResponse: refusal}},
		{s.URL + "/sse", "SECRET-token", api.CredentialInvalid, &api.MCPProbe{Method: "initialize", HTTPResponse: refusal}},
		{s.URL + "/nothing", "good", api.CredentialUnknown, &api.MCPProbe{Method: "initialize", HTTPResponse: nothing}},
		{"http://127.0.0.1:1/", "good", api.CredentialUnknown, &api.MCPProbe{Method: "initialize"}},
	} {
		got := w.validate(tt.url, tt.token)
		if diff := cmp.Diff(tt.probe, got.MCPProbe); diff != "" || got.Status != tt.status || got.HasRefreshToken || got.ValidatedAt.IsZero() {
			t.Errorf("%s with %s: %+v\n%s", tt.url, tt.token, got, diff)
		}
	}
}

func TestATokenThatIsRefusedIsRenewedAndTriedAgain(t *testing.T) {
	t.Parallel()
	s, as := mcpServer(t), newFakeAS(t)
	as.answer = func(w http.ResponseWriter) bool {
		_, _ = io.WriteString(w, `{"access_token":"good","token_type":"Bearer"}`)
		return true
	}
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := must1[*api.Credential](t)(w.put(v, fmt.Sprintf(`{"type":"mcp_oauth","mcp_server_url":"%s/mcp","access_token":"bad","refresh":{
		"token_endpoint":"%s/token","client_id":"c","refresh_token":"r0","token_endpoint_auth":{"type":"none"}}}`, s.URL, as.URL)))
	got := must1[*api.CredentialValidation](t)(w.ValidateCredential(w.ctx, w.admin, v, cred.ID))
	if got.Status != api.CredentialValid || got.MCPProbe != nil || got.Refresh == nil || got.Refresh.Status != api.RefreshSucceeded || as.count() != 1 {
		t.Errorf("%+v, refresh %+v, asked %d times", got, got.Refresh, as.count())
	}
}

// A server may answer without end. What is read of it is bounded.
func TestAValidationReadsNoMoreThanItMay(t *testing.T) {
	t.Parallel()
	const most = 64 << 20
	var longest atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		sent, _ := io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"x":"`)
		chunk := []byte(strings.Repeat("x", 64<<10))
		for sent < most {
			n, err := w.Write(chunk)
			if sent += n; err != nil {
				break
			}
		}
		longest.Store(max(longest.Load(), int64(sent)))
	}))
	w := newVaultWorld(t, Config{})
	got := w.validate(s.URL, "good")
	s.Close() // waits for the handler
	if got.Status != api.CredentialUnknown || got.MCPProbe == nil || got.MCPProbe.Method != "initialize" {
		t.Errorf("%+v, %+v", got, got.MCPProbe)
	}
	if n := longest.Load(); n == 0 || n >= most {
		t.Errorf("%d MiB were read of it", n>>20)
	}
}

// By the transport of 2024-11-05 a server names the address that messages go to, with the
// token. Only its own origin is believed.
func TestAValidationSendsTheTokenToNoOtherOrigin(t *testing.T) {
	t.Parallel()
	var stolen atomic.Value
	stolen.Store("")
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen.Store(r.Method + " with " + r.Header.Get("Authorization"))
		w.WriteHeader(202)
	}))
	defer thief.Close()
	ended := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" {
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "event: endpoint\ndata: %s/messages\n\n", thief.URL)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	}))
	defer s.Close()
	defer close(ended)
	w := newVaultWorld(t, Config{})
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	w.ctx = ctx
	if got := w.validate(s.URL, "good"); got.Status != api.CredentialUnknown {
		t.Errorf("%+v", got)
	}
	if got := stolen.Load(); got != "" {
		t.Errorf("the other origin got a %s", got)
	}
}
