package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
)

// A far is a real MCP server, of the official SDK, over real HTTP.
type far struct {
	*httptest.Server
	calls  atomic.Int32
	begun  chan struct{} // receives when the tool wait begins
	ended  chan struct{} // receives when its context has ended
	quit   chan struct{} // closed when the test is over
	server *sdk.Server
}

type word struct {
	Text string `json:"text"`
}

func newFar() *far {
	f := &far{begun: make(chan struct{}, 16), ended: make(chan struct{}, 16), quit: make(chan struct{})}
	f.server = sdk.NewServer(&sdk.Implementation{Name: "far", Version: "1"}, nil)
	sdk.AddTool(f.server, &sdk.Tool{Name: "echo", Description: "Says it again."}, func(_ context.Context, _ *sdk.CallToolRequest, in word) (*sdk.CallToolResult, any, error) {
		f.calls.Add(1)
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: in.Text}}}, nil, nil
	})
	sdk.AddTool(f.server, &sdk.Tool{Name: "fail"}, func(context.Context, *sdk.CallToolRequest, struct{}) (*sdk.CallToolResult, any, error) {
		return nil, nil, errors.New("no such luck")
	})
	sdk.AddTool(f.server, &sdk.Tool{Name: "wait"}, func(ctx context.Context, _ *sdk.CallToolRequest, _ struct{}) (*sdk.CallToolResult, any, error) {
		f.calls.Add(1)
		f.begun <- struct{}{}
		select {
		case <-ctx.Done():
			f.ended <- struct{}{}
		case <-f.quit:
		}
		return nil, nil, ctx.Err()
	})
	sdk.AddTool(f.server, &sdk.Tool{Name: "big"}, func(context.Context, *sdk.CallToolRequest, struct{}) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: strings.Repeat("x", messageMax+1)}}}, nil, nil
	})
	return f
}

// serve starts it behind wrap, which may be nil.
func (f *far) serve(t *testing.T, opt *sdk.StreamableHTTPOptions, wrap func(http.Handler) http.Handler) *far {
	t.Helper()
	var h http.Handler = sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return f.server }, opt)
	return f.serveHandler(t, h, wrap)
}

func (f *far) serveHandler(t *testing.T, h http.Handler, wrap func(http.Handler) http.Handler) *far {
	t.Helper()
	if wrap != nil {
		h = wrap(h)
	}
	f.Server = httptest.NewServer(h)
	t.Cleanup(func() {
		close(f.quit)
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *far) of() Server { return Server{Name: "far", URL: f.URL, HTTP: f.Client()} }

func connect(t *testing.T, server Server) *Session {
	t.Helper()
	s, err := Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func wantEcho(t *testing.T, s *Session) {
	t.Helper()
	res, err := s.Call(t.Context(), "echo", json.RawMessage(`{"text":"hello"}`))
	if err != nil || res.IsError || res.Content.Text() != "hello" {
		t.Errorf("echo answers %v, %v", res, err)
	}
}

func wantError(t *testing.T, err error, kind Kind, mayHaveRun bool, parts ...string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("the error is %v", err)
	}
	if e.Kind != kind || e.MayHaveRun != mayHaveRun {
		t.Errorf("the error is of kind %s, may have run %t: %v", e.Kind, e.MayHaveRun, err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error %q does not say %q", err, p)
		}
	}
	return e
}

func TestEveryTransport(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		serve    func(*testing.T, *far)
		revision string
	}{
		"with sessions":    {func(t *testing.T, f *far) { f.serve(t, nil, nil) }, "2025-11-25"},
		"JSON answers":     {func(t *testing.T, f *far) { f.serve(t, &sdk.StreamableHTTPOptions{JSONResponse: true}, nil) }, "2025-11-25"},
		"without sessions": {func(t *testing.T, f *far) { f.serve(t, &sdk.StreamableHTTPOptions{Stateless: true}, nil) }, "2026-07-28"},
		"2024-11-05": {func(t *testing.T, f *far) {
			f.serveHandler(t, sdk.NewSSEHandler(func(*http.Request) *sdk.Server { return f.server }, nil), nil)
		}, "2024-11-05"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFar()
			test.serve(t, f)
			s := connect(t, f.of())
			if got := s.Revision(); got != test.revision {
				t.Errorf("the revision is %s", got)
			}
			tools, err := s.Tools(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tool := range tools {
				names = append(names, tool.Name)
			}
			if diff := cmp.Diff([]string{"big", "echo", "fail", "wait"}, names); diff != "" {
				t.Error(diff)
			}
			wantEcho(t, s)
			res, err := s.Call(t.Context(), "fail", json.RawMessage(`{}`))
			if err != nil || !res.IsError || res.Content.Text() != "no such luck" {
				t.Errorf("fail answers %v, %v", res, err)
			}
			res, err = s.Call(t.Context(), "nothing", json.RawMessage(`{}`))
			if err != nil || !res.IsError || !strings.Contains(res.Content.Text(), "nothing") {
				t.Errorf("an unknown tool answers %s, %v", res.Content, err)
			}
		})
	}
}

// awkward are servers that do one thing other than the specification has it.
func TestAwkwardServers(t *testing.T) {
	t.Parallel()
	get := func(status int) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet || r.Method == http.MethodDelete {
					http.Error(w, "no", status)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	answers := func(change func(http.Header)) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(&rewriter{ResponseWriter: w, change: change}, r)
			})
		}
	}
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"405 to GET":              get(405),
		"406 to GET":              get(406),
		"404 to GET":              get(404),
		"500 to GET":              get(500),
		"no content type":         answers(func(h http.Header) { h["Content-Type"] = nil }),
		"content type text/plain": answers(func(h http.Header) { h.Set("Content-Type", "text/plain") }),
		"HTML to an unknown method": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Mcp-Method") == "server/discover" {
					w.Header().Set("Content-Type", "text/html")
					io.WriteString(w, "<html>Welcome!</html>")
					return
				}
				next.ServeHTTP(w, r)
			})
		},
		"500 to an unknown method": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Mcp-Method") == "server/discover" {
					http.Error(w, "what?", 500)
					return
				}
				next.ServeHTTP(w, r)
			})
		},
	} {
		for _, stateless := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " stateless ", stateless), func(t *testing.T) {
				t.Parallel()
				f := newFar().serve(t, &sdk.StreamableHTTPOptions{Stateless: stateless, JSONResponse: stateless}, wrap)
				s := connect(t, f.of())
				if _, err := s.Tools(t.Context()); err != nil {
					t.Error(err)
				}
				wantEcho(t, s)
			})
		}
	}
}

type rewriter struct {
	http.ResponseWriter
	change func(http.Header)
	once   sync.Once
}

func (w *rewriter) WriteHeader(status int) {
	w.once.Do(func() { w.change(w.Header()) })
	w.ResponseWriter.WriteHeader(status)
}

func (w *rewriter) Write(p []byte) (int, error) {
	w.once.Do(func() { w.change(w.Header()) })
	return w.ResponseWriter.Write(p)
}

func (w *rewriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

// A server may forget a session at any time. Calls go on in a new one, each is run once.
func TestForgottenSession(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"404":                   func(w http.ResponseWriter) { http.Error(w, "gone", 404) },
		"404 of the TypeScript": func(w http.ResponseWriter) { rpcError(w, 404, -32001, "Session not found") },
		"400 of its examples":   func(w http.ResponseWriter) { rpcError(w, 400, -32000, "Bad Request: No valid session ID provided") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var forgotten sync.Map
			var forget atomic.Bool
			f := newFar().serve(t, nil, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					id := r.Header.Get("Mcp-Session-Id")
					if id != "" && forget.Swap(false) {
						forgotten.Store(id, true)
					}
					if _, ok := forgotten.Load(id); ok {
						answer(w)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			s := connect(t, f.of())
			wantEcho(t, s)
			forget.Store(true)
			wantEcho(t, s)
			forget.Store(true)
			if _, err := s.Tools(t.Context()); err != nil {
				t.Error(err)
			}
			if n := f.calls.Load(); n != 2 {
				t.Errorf("2 calls were run %d times", n)
			}
		})
	}
}

func rpcError(w http.ResponseWriter, status, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"jsonrpc":"2.0","error":{"code":%d,"message":%q},"id":null}`, code, message)
}

// What may have reached the server is never sent twice, however the answer is lost.
func TestCallsAreNotRepeated(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(http.ResponseWriter){
		"connection cut": func(w http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"502":            func(w http.ResponseWriter) { http.Error(w, "bad gateway", http.StatusBadGateway) },
		"504":            func(w http.ResponseWriter) { http.Error(w, "timeout", http.StatusGatewayTimeout) },
		"stream ends": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
		},
		"garbage": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{nothing")
		},
		"HTML": func(w http.ResponseWriter) { io.WriteString(w, "<html>") },
		"202 for an answer": func(w http.ResponseWriter) {
			w.WriteHeader(202)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFar().serve(t, nil, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					r.Body = io.NopCloser(strings.NewReader(string(body)))
					if strings.Contains(string(body), "spoil me") {
						next.ServeHTTP(httptest.NewRecorder(), r)
						spoil(w)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			s := connect(t, f.of())
			wantEcho(t, s)
			_, err := s.Call(t.Context(), "echo", json.RawMessage(`{"text":"spoil me"}`))
			wantError(t, err, Connection, true)
			if n := f.calls.Load(); n != 2 {
				t.Errorf("2 calls were run %d times", n)
			}
			wantEcho(t, s) // it goes on
		})
	}
}

// An error with status 400 that answers the call itself is the call's, whatever it says.
func TestErrorOfACallIsNotOfItsSession(t *testing.T) {
	t.Parallel()
	f := newFar().serve(t, nil, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !bytes.Contains(body, []byte("pay")) {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(httptest.NewRecorder(), r)
			var call struct{ ID json.RawMessage }
			_ = json.Unmarshal(body, &call)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Paid, but the browser session was lost"},"id":%s}`, call.ID)
		})
	})
	s := connect(t, f.of())
	res, err := s.Call(t.Context(), "echo", json.RawMessage(`{"text":"pay"}`))
	if n := f.calls.Load(); n != 1 {
		t.Errorf("the call was run %d times", n)
	}
	if text := fmt.Sprint(res.Content.Text(), err); !strings.Contains(text, "browser session was lost") {
		t.Errorf("the caller is told %q", text)
	}
}

func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	f := newFar().serve(t, nil, nil)
	s := connect(t, f.of())
	f.CloseClientConnections()
	f.Close()
	_, err := s.Call(t.Context(), "echo", json.RawMessage(`{"text":"x"}`))
	wantError(t, err, Connection, false, "MCP server 'far'", "connection refused")
	_, err = Connect(t.Context(), f.of())
	wantError(t, err, Connection, false, "initialize failed", "connection refused")
}

func TestStatusesOfConnecting(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status int
		header string
		way    string // what a tunnel's dialer says of it
		kind   Kind
		says   string
	}{
		{502, "", "", Connection, "upstream server error (HTTP 502)"},
		{404, "", "", Connection, "HTTP 404"},
		{403, "", "", Connection, "host: rewrite"},
		{403, `Bearer error="insufficient_scope"`, "", Authentication, "HTTP 403"},
		{401, "", "", Authentication, "the server refuses the credential, or needs one (HTTP 401)"},
		{429, "", "", Connection, "the server answered HTTP 429"},
		{429, "", "tunnel to x: rate_limited: slow down", Connection, "initialize failed: tunnel to x: rate_limited: slow down (HTTP 429)"},
		{401, "Bearer", "tunnel to x: caller_refused: who is it?", Authentication, "initialize failed: tunnel to x: caller_refused: who is it? (HTTP 401)"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if test.header != "" {
				w.Header().Set("WWW-Authenticate", test.header)
			}
			if test.way != "" {
				w.Header().Set("Bailey-Tunnel-Error", test.way)
			}
			http.Error(w, "no", test.status)
		}))
		_, err := Connect(t.Context(), Server{Name: "x", URL: srv.URL, HTTP: srv.Client()})
		if e := wantError(t, err, test.kind, false, test.says); e.Status != test.status {
			t.Errorf("%d is reported as %d", test.status, e.Status)
		}
		srv.Close()
	}
}

func TestCredential(t *testing.T) {
	t.Parallel()
	good := "Bearer new-secret"
	var posts atomic.Int32
	f := newFar().serve(t, nil, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != good {
				posts.Add(1)
				w.Header().Set("WWW-Authenticate", "Bearer")
				http.Error(w, "token "+r.Header.Get("Authorization")+" expired", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	t.Run("renewed once", func(t *testing.T) {
		now, renewed := "Bearer old-secret", 0
		server := f.of()
		server.Authorization = func(_ context.Context, refused string) (string, error) {
			if refused != "" {
				if refused != "Bearer old-secret" {
					t.Errorf("asked for another than %q", refused)
				}
				now, renewed = good, renewed+1
			}
			return now, nil
		}
		s := connect(t, server)
		wantEcho(t, s)
		if renewed != 1 {
			t.Errorf("renewed %d times", renewed)
		}
	})
	t.Run("refused for good", func(t *testing.T) {
		renewed := 0
		server := f.of()
		server.Authorization = func(_ context.Context, refused string) (string, error) {
			if refused != "" {
				renewed++
				return "", nil
			}
			return "Bearer old-secret", nil
		}
		_, err := Connect(t.Context(), server)
		wantError(t, err, Authentication, false)
		if strings.Contains(err.Error(), "old-secret") || renewed != 1 {
			t.Errorf("%v; renewed %d times", err, renewed)
		}
	})
	no, yes := false, true
	for name, test := range map[string]struct {
		err  error
		kind Kind
		says string
	}{
		"refused":         {&api.Error{Message: "authorize again, please", Retry: &no}, Authentication, "authorize again, please"},
		"unavailable":     {fmt.Errorf("ask: %w", &api.Error{Message: "try later", Retry: &yes}), Connection, "try later"},
		"for own reasons": {errors.New("write /var/lib/x: no space left"), Connection, "the server's log says why"},
	} {
		t.Run("cannot be had, "+name, func(t *testing.T) {
			before := posts.Load()
			server := f.of()
			server.Authorization = func(context.Context, string) (string, error) { return "", test.err }
			_, err := Connect(t.Context(), server)
			wantError(t, err, test.kind, false, test.says)
			if strings.Contains(err.Error(), "/var/lib") {
				t.Errorf("%v: what is for the log is told", err)
			}
			if posts.Load() != before {
				t.Error("the server was asked without")
			}
		})
	}
}

// A redirect that the client does not follow is said in words.
func TestRedirect(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.RedirectHandler("https://elsewhere.example/mcp", http.StatusPermanentRedirect))
	defer srv.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("name that address instead") }}
	_, err := Connect(t.Context(), Server{Name: "x", URL: srv.URL, HTTP: client})
	wantError(t, err, Connection, false, "initialize failed: name that address instead")
}

// The credential stays at the server's own origin, whatever the server says.
func TestCredentialStaysHome(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s reached another origin with %q", r.Method, r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	for name, h := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		},
		"endpoint": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				http.Error(w, "no", http.StatusMethodNotAllowed)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "event: endpoint\ndata: %s/messages\n\n", elsewhere.URL)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		srv := httptest.NewServer(h)
		server := Server{Name: "x", URL: srv.URL, HTTP: srv.Client(), Authorization: func(context.Context, string) (string, error) { return "Bearer s3cret-s3cret", nil }}
		if _, err := Connect(t.Context(), server); err == nil {
			t.Errorf("%s: connected", name)
		} else {
			wantError(t, err, Connection, false)
		}
		srv.CloseClientConnections()
		srv.Close()
	}
}

func TestLongCallsAndCancellation(t *testing.T) {
	t.Parallel()
	f := newFar().serve(t, nil, nil)
	server := f.of()
	s := connect(t, server)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Call(ctx, "wait", json.RawMessage(`{}`))
		done <- err
	}()
	<-f.begun
	wantEcho(t, s) // others go on meanwhile
	cancel()
	wantError(t, <-done, Canceled, true)
	<-f.ended // the server was told
	wantEcho(t, s)

	server.CallTimeout = 50 * time.Millisecond
	s = connect(t, server)
	_, err := s.Call(t.Context(), "wait", json.RawMessage(`{}`))
	wantError(t, err, Timeout, true, "no answer in time")
	<-f.ended
}

func TestCloseEndsCalls(t *testing.T) {
	t.Parallel()
	f := newFar().serve(t, &sdk.StreamableHTTPOptions{Stateless: true}, nil)
	s := connect(t, f.of())
	done := make(chan error)
	go func() {
		_, err := s.Call(t.Context(), "wait", json.RawMessage(`{}`))
		done <- err
	}()
	<-f.begun
	s.Close()
	wantError(t, <-done, Canceled, true)
	_, err := s.Call(t.Context(), "echo", json.RawMessage(`{"text":"x"}`))
	wantError(t, err, Canceled, false)
}

func TestTooMuch(t *testing.T) {
	t.Parallel()
	for _, json_ := range []bool{true, false} {
		f := newFar().serve(t, &sdk.StreamableHTTPOptions{JSONResponse: json_}, nil)
		s := connect(t, f.of())
		_, err := s.Call(t.Context(), "big", json.RawMessage(`{}`))
		kind := TooLarge
		if !json_ {
			kind = Connection // the SDK bounds an event, and says only that the stream broke
		}
		wantError(t, err, kind, true)
		wantEcho(t, s)
	}
}

func TestToolListsWithoutEnd(t *testing.T) {
	t.Parallel()
	for name, page := range map[string]func(n int) string{
		"pages":     func(n int) string { return fmt.Sprintf(`{"tools":[],"nextCursor":"%d"}`, n) },
		"same page": func(n int) string { return `{"tools":[],"nextCursor":"again"}` },
		"tools": func(n int) string {
			var tools []string
			for i := range 300 {
				tools = append(tools, fmt.Sprintf(`{"name":"t%d_%d","inputSchema":{"type":"object"}}`, n, i))
			}
			return fmt.Sprintf(`{"tools":[%s],"nextCursor":"%d"}`, strings.Join(tools, ","), n)
		},
		"descriptions": func(n int) string {
			return fmt.Sprintf(`{"tools":[{"name":"t%d","description":%q,"inputSchema":{"type":"object"}}],"nextCursor":"%d"}`, n, strings.Repeat("d", 2<<20), n)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 0
			srv := httptest.NewServer(scripted(func(string) string { n++; return page(n) }))
			defer srv.Close()
			s := connect(t, Server{Name: "x", URL: srv.URL, HTTP: srv.Client()})
			_, err := s.Tools(t.Context())
			wantError(t, err, TooLarge, false, "more than it may")
		})
	}
}

// scripted is a server that answers every request but those of connecting with list.
func scripted(answer func(method string) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			ID     json.RawMessage
			Method string
		}
		json.NewDecoder(r.Body).Decode(&req)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case len(req.ID) == 0:
			w.WriteHeader(202)
		case req.Method == "server/discover":
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, req.ID)
		case req.Method == "initialize":
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}}`, req.ID)
		default:
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, req.ID, answer(req.Method))
		}
	}
}

func TestToolsFitTheMessagesAPI(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(scripted(func(string) string {
		return `{"tools":[
			{"name":"good","inputSchema":{"type":"object","properties":{"a":{"type":"string"}},"$defs":{}}},
			{"name":"no type","inputSchema":{"properties":{"a":{}}}},
			{"name":"union","description":"U.","inputSchema":{"type":"object","oneOf":[{"required":["a"]}]}},
			{"name":"text","inputSchema":{"type":"string"}},
			{"name":"property","inputSchema":{"type":"object","properties":{"a b":{}}}},
			{"name":"none","inputSchema":null}
		]}`
	}))
	defer srv.Close()
	s := connect(t, Server{Name: "x", URL: srv.URL, HTTP: srv.Client()})
	tools, err := s.Tools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, tool := range tools {
		got[tool.Name] = string(tool.InputSchema) + " " + tool.Description
	}
	want := map[string]string{
		"good":     `{"$defs":{},"properties":{"a":{"type":"string"}},"type":"object"} `,
		"no type":  `{"properties":{"a":{}},"type":"object"} `,
		"union":    `{"type":"object"} U.` + "\n\n" + `The input has to fit this JSON Schema: {"oneOf":[{"required":["a"]}],"type":"object"}`,
		"text":     `{"type":"object"} The input has to fit this JSON Schema: {"type":"string"}`,
		"property": `{"type":"object"} The input has to fit this JSON Schema: {"properties":{"a b":{}},"type":"object"}`,
		"none":     `{"type":"object"} `,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestModelName(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 200)
	seen := map[string]bool{}
	for _, c := range [][2]string{{"docs", "search"}, {"my docs", "search"}, {"my_docs", "search"}, {"docs", long}, {"docs", long + "x"}, {"a__b", "c"}, {"a", "b__c"}, {"ü", "ö"}, {"o", "u"}} {
		name := ModelName(c[0], c[1])
		if unfitName.MatchString(name) || len(name) > nameMax || !strings.HasPrefix(name, "mcp__") {
			t.Errorf("%q is not a name", name)
		}
		if seen[name] {
			t.Errorf("%q is twice", name)
		}
		seen[name] = true
	}
	if got := ModelName("docs", "search"); got != "mcp__docs__search" {
		t.Errorf("the plain name is %s", got)
	}
}

const pngHead = "\x89PNG\r\n\x1a\n"

// What the model's endpoint would refuse, and with it the whole conversation, is left out.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	image := func(bytes int) sdk.Content {
		data := make([]byte, bytes)
		copy(data, pngHead)
		return &sdk.ImageContent{MIMEType: "image/png", Data: data}
	}
	largest := base64.StdEncoding.DecodedLen(fileMax) - 2
	res := newResult(&sdk.CallToolResult{Content: []sdk.Content{image(largest + 3), image(largest), image(largest), image(100)}})
	var got []string
	for _, raw := range res.Content {
		var b struct{ Type, Text string }
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(b.Type+" "+b.Text))
	}
	want := []string{
		fmt.Sprintf(`text (image of type "image/png" and %d bytes left out: it is too large)`, largest+3), "image", "image",
		`text (image of type "image/png" and 100 bytes left out: it is too large)`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestKindsOfContent(t *testing.T) {
	t.Parallel()
	res := newResult(&sdk.CallToolResult{Content: []sdk.Content{
		&sdk.TextContent{Text: "a"},
		&sdk.ImageContent{MIMEType: "image/jpeg", Data: []byte(pngHead)}, // it is not
		&sdk.ImageContent{MIMEType: "image/png", Data: []byte("tiff")},
		&sdk.AudioContent{MIMEType: "audio/wav", Data: []byte("wav")},
		&sdk.ResourceLink{URI: "file:///x", Name: "x"},
		&sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: "u:1", Text: "t"}},
		&sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: "u:2", MIMEType: "application/pdf", Blob: []byte("%PDF-1.7")}},
		&sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: "u:3", MIMEType: "application/zip", Blob: []byte("zip")}},
	}})
	if err := res.Content.Check(api.BlockText, api.BlockImage, api.BlockDocument); err != nil {
		t.Error(err)
	}
	got, _ := json.Marshal(res.Content)
	want := `[{"type":"text","text":"a"},` +
		`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}},` +
		`{"type":"text","text":"(image of type \"image/png\" and 4 bytes left out: this kind of content is not supported)"},` +
		`{"type":"text","text":"(audio of type \"audio/wav\" and 3 bytes left out: this kind of content is not supported)"},` +
		`{"type":"text","text":"Resource: file:///x\nx"},` +
		`{"type":"text","text":"Resource u:1:\nt"},` +
		`{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0xLjc="}},` +
		`{"type":"text","text":"(resource u:3 of type \"application/zip\" and 3 bytes left out: this kind of content is not supported)"}]`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if got := newResult(&sdk.CallToolResult{StructuredContent: map[string]any{"a": 1}}).Content.Text(); got != `{"a":1}` {
		t.Errorf("structured content is %s", got)
	}
}
