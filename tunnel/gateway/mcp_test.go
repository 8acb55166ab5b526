package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/settings"
)

// connectMCP is a session of the official client's through the gateway.
func connectMCP(t *testing.T, l *lab, c *mcp.Client) (*mcp.ClientSession, error) {
	t.Helper()
	session, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: "https://docs." + domain + "/mcp", HTTPClient: l.client(false)}, nil)
	if err == nil {
		t.Cleanup(func() { session.Close() })
	}
	return session, err
}

func mustConnect(t *testing.T, l *lab, o *mcp.ClientOptions) *mcp.ClientSession {
	t.Helper()
	session, err := connectMCP(t, l, mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, o))
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func callTool(t *testing.T, s *mcp.ClientSession, name, in string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: text{in}})
	if err != nil {
		return "", err
	}
	return r.Content[0].(*mcp.TextContent).Text, nil
}

func toolNames(t *testing.T, s *mcp.ClientSession) (names []string) {
	t.Helper()
	r, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range r.Tools {
		names = append(names, tool.Name)
	}
	slices.Sort(names)
	return names
}

// ownUser has programs run as the tests do, which a gateway that is root has to be told.
func ownUser() (p Process) {
	if os.Geteuid() == 0 {
		p.User = "root"
	}
	return p
}

// stdioRoute is a route whose program is this test.
func stdioRoute(how string, change func(*Route)) func(*Config) {
	return func(c *Config) {
		r := &Route{Command: []string{os.Args[0]}, Env: map[string]string{"GATEWAY_TEST_SERVER": how}, Process: ownUser(), Settings: c.Routes["docs"].Settings}
		c.Routes["docs"] = r
		if change != nil {
			change(r)
		}
	}
}

// The servers of the official SDK: over HTTP, with and without sessions, and on standard
// streams, under the official client.
func TestServersOfTheSDK(t *testing.T) {
	t.Parallel()
	server := testServer(false)
	handler := func(o *mcp.StreamableHTTPOptions) http.HandlerFunc {
		o.DisableLocalhostProtection = true // the gateway preserves Host
		return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, o).ServeHTTP
	}
	for name, start := range map[string]func(t *testing.T, change func(*Config)) *lab{
		"sessions": func(t *testing.T, change func(*Config)) *lab {
			return serve(t, upstreamServer(t, handler(&mcp.StreamableHTTPOptions{EventStore: mcp.NewMemoryEventStore(nil)})).URL, change)
		},
		"JSON": func(t *testing.T, change func(*Config)) *lab {
			return serve(t, upstreamServer(t, handler(&mcp.StreamableHTTPOptions{JSONResponse: true})).URL, change)
		},
		"stateless": func(t *testing.T, change func(*Config)) *lab {
			return serve(t, upstreamServer(t, handler(&mcp.StreamableHTTPOptions{Stateless: true})).URL, change)
		},
		"stdio": func(t *testing.T, change func(*Config)) *lab {
			return serve(t, "", func(c *Config) {
				stdioRoute("old", nil)(c)
				change(c)
			})
		},
		"stdio without sessions": func(t *testing.T, change func(*Config)) *lab {
			return serve(t, "", func(c *Config) {
				stdioRoute("new", nil)(c)
				change(c)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t, func(c *Config) { c.Routes["docs"].Tools.Deny = []string{"secret"} })
			steps := make(chan float64, 10)
			s := mustConnect(t, l, &mcp.ClientOptions{
				ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) { steps <- r.Params.Progress },
				ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					return &mcp.ElicitResult{Action: "decline"}, nil
				},
			})
			if names := toolNames(t, s); slices.Contains(names, "secret") || !slices.Contains(names, "echo") {
				t.Errorf("tools %v", names)
			}
			if got, err := callTool(t, s, "echo", "hello"); got != "hello" || err != nil {
				t.Errorf("echo: %q, %v", got, err)
			}
			if _, err := callTool(t, s, "secret", ""); err == nil || !strings.Contains(err.Error(), "may not be called") {
				t.Errorf("secret: %v", err)
			}
			if got, err := callTool(t, s, "echo", "after it"); got != "after it" || err != nil {
				t.Errorf("the session does not go on: %q, %v", got, err)
			}
			if name == "sessions" || strings.HasPrefix(name, "stdio") {
				p := &mcp.CallToolParams{Name: "steps", Arguments: text{}}
				p.SetProgressToken("p1")
				if _, err := s.CallTool(t.Context(), p); err != nil {
					t.Errorf("steps: %v", err)
				}
				for i := range 3 {
					if got := <-steps; got != float64(i+1) {
						t.Errorf("step %d is %v", i+1, got)
					}
				}
			}
			if name == "sessions" || name == "stdio" {
				if got, err := callTool(t, s, "ask", "well?"); got != "you said decline" || err != nil {
					t.Errorf("ask: %q, %v", got, err)
				}
			}
		})
	}
}

func TestStdioProgramsEnvironmentAndEnd(t *testing.T) {
	t.Setenv("SECRET_OF_THE_GATEWAY", "x")
	l := serve(t, "", stdioRoute("env", func(r *Route) {
		r.Env["OWN"] = "1"
		r.Process = Process{Sessions: 2, Files: 64, Memory: 8 << 30, CPU: settings.Duration(time.Hour), User: ownUser().User}
	}))
	s := mustConnect(t, l, nil)
	env, err := callTool(t, s, "env", "")
	if err != nil || !strings.Contains(env, "OWN=1") || strings.Contains(env, "SECRET_OF_THE_GATEWAY") {
		t.Errorf("%s, %v", env, err)
	}
	if !strings.Contains(l.logs.String(), "program: server starts: env") {
		t.Error("its standard error is not in the log")
	}
	mustConnect(t, l, nil)
	if _, err := connectMCP(t, l, mcp.NewClient(&mcp.Implementation{Name: "x"}, nil)); err == nil {
		t.Error("a third program runs")
	}
	pids := l.pids()
	if len(pids) != 2 {
		t.Fatalf("%v run", pids)
	}
	l.close()
	for _, pid := range pids {
		if err := exec.Command("kill", "-0", fmt.Sprint(pid)).Run(); err == nil {
			t.Errorf("process %d is left", pid)
		}
	}
}

// pids are the processes of the route's programs.
func (l *lab) pids() (pids []int) {
	s := l.g.state.Load().routes["docs"].stdio
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		pids = append(pids, ses.run.cmd.Process.Pid)
	}
	return pids
}

// A program that ends takes its session with it: the call under way gets an error, later
// ones a 404, by which a client knows that it is to begin another. Another one works.
func TestStdioProgramThatEnds(t *testing.T) {
	t.Parallel()
	l := serve(t, "", stdioRoute("die", nil))
	s := mustConnect(t, l, nil)
	if _, err := callTool(t, s, "die", ""); err == nil || !strings.Contains(err.Error(), "the server has ended") {
		t.Errorf("the call under way: %v", err)
	}
	if _, err := callTool(t, s, "echo", "x"); !errors.Is(err, mcp.ErrSessionMissing) {
		t.Errorf("the call after it: %v", err)
	}
	for {
		another, err := connectMCP(t, l, mcp.NewClient(&mcp.Implementation{Name: "x"}, nil))
		if err != nil {
			if !strings.Contains(err.Error(), "Service Unavailable") {
				t.Fatal(err)
			}
			continue // it ended soon after its start, so that there is a pause
		}
		if got, err := callTool(t, another, "echo", "again"); got != "again" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		return
	}
}

// What a program has started may leave its group and keep its pipes open: the session and
// its place end with the program all the same, and so does the gateway.
func TestStdioProgramThatLeavesAnother(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "orphans")
	l := serve(t, "", stdioRoute("orphan", func(r *Route) {
		r.Env["ORPHAN"] = file
		r.Process.Sessions = 1
	}))
	t.Cleanup(func() {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		for pid := range strings.FieldsSeq(string(text)) {
			if err := exec.Command("kill", pid).Run(); err != nil {
				t.Errorf("process %s: %v", pid, err)
			}
		}
	})
	s := mustConnect(t, l, nil)
	if _, err := callTool(t, s, "die", ""); err == nil || !strings.Contains(err.Error(), "the server has ended") {
		t.Errorf("the call under way: %v", err)
	}
	for {
		another, err := connectMCP(t, l, mcp.NewClient(&mcp.Implementation{Name: "x"}, nil))
		if err != nil {
			if !strings.Contains(err.Error(), "Service Unavailable") {
				t.Fatal(err)
			}
			continue // it ended soon after its start, so that there is a pause
		}
		if got, err := callTool(t, another, "echo", "again"); got != "again" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		break
	}
	l.close()
}

// A program that ends as soon as it is started is not started for every call.
func TestStdioProgramThatCannotStart(t *testing.T) {
	t.Parallel()
	for how, change := range map[string]func(*Route){
		"crash":   nil,
		"missing": func(r *Route) { r.Command = []string{"/nowhere/program"} },
	} {
		l := serve(t, "", stdioRoute(how, change))
		c := l.client(false)
		paused := false
		for range 20 {
			res, body := get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}`, "Content-Type", "application/json", "Accept", "application/json, text/event-stream")
			if res.StatusCode == 503 && res.Header.Get("Retry-After") != "" {
				paused = true
				break
			}
			if res.StatusCode == 200 && !strings.Contains(body, "error") || res.StatusCode == 404 {
				t.Fatalf("%s: %d %s", how, res.StatusCode, body)
			}
		}
		if !paused {
			t.Errorf("%s: it is started again and again", how)
		}
	}
}

// Nobody makes a program root by saying nothing.
func TestStdioProgramsOfRootAreToldWhoTheyAre(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("it takes root")
	}
	start := func(user string) error {
		dir := t.TempDir()
		writePair(t, dir, "tls", time.Now().Add(24*time.Hour), "*."+domain)
		_, err := New(Options{Logger: slog.New(slog.DiscardHandler), Load: func() (*Config, error) {
			return config(dir, "", stdioRoute("old", func(r *Route) { r.Process.User = user })), nil
		}})
		return err
	}
	if err := start(""); err == nil || !strings.Contains(err.Error(), "process.user: this gateway is root") {
		t.Errorf("without a user: %v", err)
	}
	for _, user := range []string{"root", "nobody"} {
		if err := start(user); err != nil {
			t.Errorf("as %s: %v", user, err)
		}
	}
}

// A stream that broke is taken up where it was, and sessions of another replica are sent
// there.
func TestStdioResumeAndReplicas(t *testing.T) {
	t.Parallel()
	l := serve(t, "", stdioRoute("resume", nil))
	c := l.client(false)
	head := []string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream"}
	res, _ := get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`, head...)
	id := res.Header.Get("Mcp-Session-Id")
	if res.StatusCode != 200 || !strings.HasPrefix(id, l.g.Replica()+"~") || res.Header.Get("Bailey-Tunnel-Replica") != l.g.Replica() {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	head = append(head, "Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-06-18")
	get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, head...)
	_, events := get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"steps","arguments":{"text":""},"_meta":{"progressToken":5}}}`, head...)
	if strings.Count(events, "event: message") != 4 {
		t.Fatalf("%s", events)
	}
	all := strings.SplitAfter(events, "\n\n")
	first := strings.TrimPrefix(strings.SplitN(all[0], "\n", 2)[0], "id: ")
	_, resumed := get(t, c, "GET", "https://docs."+domain+"/", "", append(head, "Last-Event-ID", first)...)
	if want := strings.Join(all[1:], ""); resumed != want {
		t.Errorf("resumed:\n%s\nwant:\n%s", resumed, want)
	}
	for last, want := range map[string]int{"x": 400, "nothing_1": 400, first + "0000": 200} {
		if res, _ := get(t, c, "GET", "https://docs."+domain+"/", "", append(head, "Last-Event-ID", last)...); res.StatusCode != want {
			t.Errorf("Last-Event-ID %s: %d", last, res.StatusCode)
		}
	}
	// Of another replica: no 404, and where it is.
	for _, method := range []string{"POST", "GET", "DELETE"} {
		res, _ := get(t, c, method, "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":3,"method":"ping"}`, "Mcp-Session-Id", "cnct_other~abc", "Content-Type", "application/json", "Accept", "*/*")
		if res.StatusCode != 503 || res.Header.Get("Bailey-Tunnel-Replica") != "cnct_other" || !strings.HasPrefix(res.Header.Get("Bailey-Tunnel-Error"), "other_replica") {
			t.Errorf("%s: %d %v", method, res.StatusCode, res.Header)
		}
	}
	// Of this one, and ended.
	if res, _ := get(t, c, "DELETE", "https://docs."+domain+"/", "", head...); res.StatusCode != 204 {
		t.Errorf("DELETE: %d", res.StatusCode)
	}
	for {
		res, _ := get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":4,"method":"ping"}`, head...)
		if res.StatusCode == 404 {
			break
		}
	}
	for body, want := range map[string]int{"": 415, "x": 400, `{"jsonrpc":"2.0","id":1,"method":"ping"}`: 400, `[]`: 400} {
		if res, _ := get(t, c, "POST", "https://docs."+domain+"/", body, "Content-Type", "application/json", "Accept", "*/*"); res.StatusCode != want {
			t.Errorf("%q: %d, want %d", body, res.StatusCode, want)
		}
	}
	if res, _ := get(t, c, "PUT", "https://docs."+domain+"/", "x", head[:4]...); res.StatusCode != 400 && res.StatusCode != 405 {
		t.Errorf("PUT: %d", res.StatusCode)
	}
}

// What a program says and nobody reads, or has read, is kept within bounds.
func TestStdioKeepsWithinBounds(t *testing.T) {
	t.Parallel()
	head := []string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream", "MCP-Protocol-Version", "2025-06-18"}
	start := func(t *testing.T) (l *lab, c *http.Client, own []string) {
		l = serve(t, "", stdioRoute("flood", nil))
		c = l.client(false)
		res, _ := get(t, c, "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`, head...)
		return l, c, append(slices.Clone(head), "Mcp-Session-Id", res.Header.Get("Mcp-Session-Id"))
	}
	kept := func(l *lab) int {
		s := l.g.state.Load().routes["docs"].stdio
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, ses := range s.sessions {
			ses.mu.Lock()
			defer ses.mu.Unlock()
			return ses.bytes
		}
		return 0
	}
	// open asks, and leaves the answer to be read.
	open := func(t *testing.T, c *http.Client, method, body string, head []string) *bufio.Reader {
		req, err := http.NewRequest(method, "https://docs."+domain+"/", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(head); i += 2 {
			req.Header.Set(head[i], head[i+1])
		}
		res, err := c.Do(req)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return bufio.NewReaderSize(res.Body, 4096)
	}
	const hold = `{"jsonrpc":"2.0","id":"held","method":"tools/call","params":{"name":"hold","_meta":{"progressToken":"p"}}}`
	more := func(id, mib int, token string) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"more","arguments":{"mib":%d,"token":%q}}}`, id, mib, token)
	}

	t.Run("a call that is read", func(t *testing.T) {
		t.Parallel()
		l, c, own := start(t)
		events := open(t, c, "POST", hold, own)
		for n := range 10 {
			get(t, c, "POST", "https://docs."+domain+"/", more(n+1, 4, "p"), own...)
			for got := 0; got < 4; {
				line, err := events.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "data:") {
					got++
				}
			}
			if n := kept(l); n > eventsMax+4<<20+1<<16 {
				t.Fatalf("%d bytes are kept", n)
			}
		}
	})
	t.Run("a call that is not read", func(t *testing.T) {
		t.Parallel()
		l, c, own := start(t)
		events := open(t, c, "POST", hold, own)
		get(t, c, "POST", "https://docs."+domain+"/", more(1, 64, "p"), own...)
		if n := kept(l); n > eventsMax+lineMax {
			t.Errorf("%d bytes are kept", n)
		}
		text, err := io.ReadAll(events)
		if err != nil {
			t.Error(err)
		}
		last := text[bytes.LastIndex(text, []byte("data: ")):]
		if !bytes.Contains(last, []byte(`"id":"held","error"`)) || !bytes.Contains(last, []byte("wait for the caller")) {
			t.Errorf("it ends with %.300q", last)
		}
		for !strings.Contains(l.logs.String(), `cancelled \"held\"`) {
			time.Sleep(time.Millisecond)
		}
	})
	t.Run("a stream of no call that is not read", func(t *testing.T) {
		t.Parallel()
		l, c, own := start(t)
		events := open(t, c, "GET", "", own)
		open(t, c, "POST", hold, own)
		get(t, c, "POST", "https://docs."+domain+"/", more(1, 64, ""), own...)
		if n := kept(l); n > eventsMax+lineMax {
			t.Errorf("%d bytes are kept", n)
		}
		if _, err := io.Copy(io.Discard, events); err != nil {
			t.Error(err)
		}
		again := open(t, c, "GET", "", own)
		get(t, c, "POST", "https://docs."+domain+"/", more(2, 1, ""), own...)
		for {
			line, err := again.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data: {") {
				return
			}
		}
	})
	t.Run("a call of which only the answer is taken", func(t *testing.T) {
		t.Parallel()
		l, c, own := start(t)
		res, body := get(t, c, "POST", "https://docs."+domain+"/", more(1, 64, ""), append(own[4:], "Content-Type", "application/json", "Accept", "application/json")...)
		if res.StatusCode != 200 {
			t.Fatalf("%d %.100s", res.StatusCode, body)
		}
		if n := kept(l); n > eventsMax {
			t.Errorf("%d bytes are kept", n)
		}
	})
}

// Sessions of a server behind one gateway, among several, carry its name.
func TestStickySessions(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Mcp-Session-Id", "own")
		w.Header().Set("X-Seen", r.Header.Get("Mcp-Session-Id"))
	})
	l := serve(t, s.URL, func(c *Config) {
		c.Replica = "r1"
		c.Routes["docs"].StickySessions = true
	})
	c := l.client(false)
	res, _ := get(t, c, "GET", "https://docs."+domain+"/", "")
	if res.Header.Get("Mcp-Session-Id") != "r1~own" || res.Header.Get("Bailey-Tunnel-Replica") != "r1" {
		t.Errorf("%v", res.Header)
	}
	for id, want := range map[string]string{"r1~own": "own", "bare": "bare"} {
		if res, _ := get(t, c, "GET", "https://docs."+domain+"/", "", "Mcp-Session-Id", id); res.Header.Get("X-Seen") != want {
			t.Errorf("%s: the server saw %q", id, res.Header.Get("X-Seen"))
		}
	}
	if res, _ := get(t, c, "GET", "https://docs."+domain+"/", "", "Mcp-Session-Id", "r2~own"); res.StatusCode != 503 || res.Header.Get("Bailey-Tunnel-Replica") != "r2" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

// Real servers from npm, on standard streams and over HTTP.
func TestServersOfNPM(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it installs packages")
	}
	dir := npmServers(t)
	bin := func(name string) string { return filepath.Join(dir, "node_modules", ".bin", name) }
	t.Run("filesystem", func(t *testing.T) {
		t.Parallel()
		files := t.TempDir()
		if err := os.WriteFile(filepath.Join(files, "a.txt"), []byte("hello from a file"), 0o600); err != nil {
			t.Fatal(err)
		}
		l := serve(t, "", func(c *Config) {
			c.Routes["docs"] = &Route{Command: []string{bin("mcp-server-filesystem"), files}, Process: ownUser(), Settings: c.Routes["docs"].Settings}
			c.Routes["docs"].Tools.Deny = []string{"write_*", "edit_*", "move_*", "create_*"}
		})
		s := mustConnect(t, l, nil)
		names := toolNames(t, s)
		if !slices.Contains(names, "list_directory") || slices.Contains(names, "write_file") {
			t.Errorf("%v", names)
		}
		r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "list_directory", Arguments: map[string]string{"path": files}})
		if err != nil || !strings.Contains(asJSON(r), "a.txt") {
			t.Errorf("%s, %v", asJSON(r), err)
		}
		if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "write_file", Arguments: map[string]string{"path": files + "/b", "content": "x"}}); err == nil {
			t.Error("write_file was called")
		}
		if _, err := os.Stat(filepath.Join(files, "b")); err == nil {
			t.Error("the file was written")
		}
	})
	everything := func(t *testing.T, l *lab) {
		s := mustConnect(t, l, nil)
		if names := toolNames(t, s); !slices.Contains(names, "echo") {
			t.Fatalf("%v", names)
		}
		r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]string{"message": "through the tunnel"}})
		if err != nil || !strings.Contains(asJSON(r), "through the tunnel") {
			t.Errorf("%s, %v", asJSON(r), err)
		}
	}
	t.Run("everything on stdio", func(t *testing.T) {
		t.Parallel()
		everything(t, serve(t, "", func(c *Config) {
			c.Routes["docs"] = &Route{Command: []string{bin("mcp-server-everything")}, Process: ownUser(), Settings: c.Routes["docs"].Settings}
		}))
	})
	t.Run("everything over HTTP", func(t *testing.T) {
		t.Parallel()
		port := freePort(t)
		cmd := exec.Command(bin("mcp-server-everything"), "streamableHttp")
		cmd.Env = append(os.Environ(), "PORT="+port)
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		up := false
		for lines := bufio.NewScanner(out); !up && lines.Scan(); {
			up = strings.Contains(lines.Text(), "listening on port "+port)
		}
		if !up {
			t.Fatal("the server did not come up")
		}
		go io.Copy(io.Discard, out)
		everything(t, serve(t, "http://127.0.0.1:"+port, nil))
	})
}

func asJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// npmServers installs the servers once, and skips where that cannot be done.
func npmServers(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, tool+" is not installed")
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "bailey-test", "npm-mcp-servers")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".bin", "mcp-server-filesystem")); err == nil {
		return dir
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "npm", "install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
		"@modelcontextprotocol/server-everything", "@modelcontextprotocol/server-filesystem")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		skip(t, fmt.Sprintf("npm install: %v\n%s", err, out))
	}
	return dir
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
