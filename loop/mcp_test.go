package loop

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model/scripted"
)

// A far is a real MCP server at the other end of in-memory connections. It counts how
// often each call was run: callers give every call a word of its own.
type far struct {
	away atomic.Bool  // nothing listens
	deny atomic.Bool  // 401
	conn atomic.Int32 // sessions begun

	mu    sync.Mutex
	ran   map[string]int
	begun chan string   // receives the word of a slow call when it begins
	free  chan struct{} // closed: slow calls end
	ended chan string   // receives the word of a slow call that was given up
	work  func() time.Duration
}

type farInput struct {
	Word string `json:"word"`
}

func (p *plane) farServer() *far {
	p.t.Helper()
	f := &far{ran: map[string]int{}, begun: make(chan string, 100), ended: make(chan string, 100), free: make(chan struct{})}
	server := sdk.NewServer(&sdk.Implementation{Name: "far", Version: "1"}, nil)
	text := func(s string) *sdk.CallToolResult {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: s}}}
	}
	for _, name := range []string{"look", "push"} {
		sdk.AddTool(server, &sdk.Tool{Name: name}, func(_ context.Context, _ *sdk.CallToolRequest, in farInput) (*sdk.CallToolResult, any, error) {
			f.count(in.Word)
			return text(name + " " + in.Word), nil, nil
		})
	}
	sdk.AddTool(server, &sdk.Tool{Name: "slow"}, func(ctx context.Context, _ *sdk.CallToolRequest, in farInput) (*sdk.CallToolResult, any, error) {
		f.count(in.Word)
		f.begun <- in.Word
		select {
		case <-ctx.Done():
			f.ended <- in.Word
			return nil, nil, ctx.Err()
		case <-f.free:
			return text("slow " + in.Word), nil, nil
		}
	})
	sdk.AddTool(server, &sdk.Tool{Name: "work"}, func(ctx context.Context, _ *sdk.CallToolRequest, in farInput) (*sdk.CallToolResult, any, error) {
		f.count(in.Word)
		if !sleep(ctx, f.work()) {
			return nil, nil, ctx.Err()
		}
		return text("work " + in.Word), nil, nil
	})
	sdk.AddTool(server, &sdk.Tool{Name: "big"}, func(context.Context, *sdk.CallToolRequest, struct{}) (*sdk.CallToolResult, any, error) {
		return text("begin " + strings.Repeat("x", 300_000) + " end"), nil, nil
	})
	handler := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, &sdk.StreamableHTTPOptions{
		Stateless: true, JSONResponse: true, PropagateRequestCancellation: true,
	})
	listener := newMemListener()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.deny.Load() {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		f.conn.Add(1)
		handler.ServeHTTP(w, r)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = web.Serve(listener) // ends with the test
	}()
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if f.away.Load() {
			return nil, errFault
		}
		return listener.dial(ctx, network, addr)
	}}
	p.t.Cleanup(func() {
		transport.CloseIdleConnections()
		web.Close()
		<-served
	})
	p.mcp = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if f.away.Load() {
			transport.CloseIdleConnections()
		}
		return transport.RoundTrip(r)
	})}
	return f
}

// check verifies that no call was run twice, and that those which the log says were run
// and those which it says were not are what it says.
func (f *far) check(t *testing.T, log *memLog) {
	t.Helper()
	words := map[api.EventID]string{}
	for _, e := range log.entries {
		switch b := e.Event.Body.(type) {
		case *api.AgentMCPToolUse:
			var in farInput
			_ = json.Unmarshal(b.Input, &in)
			words[e.Event.ID] = in.Word
		case *api.AgentMCPToolResult:
			text, ran := b.Content.Text(), f.counted(words[b.MCPToolUseID])
			unknown := strings.Contains(text, "Whether")
			if ran > 1 || !unknown && (ran == 1) != (b.IsError == nil) {
				t.Errorf("call %s of %q was run %d times and is answered %q", b.MCPToolUseID, words[b.MCPToolUseID], ran, text)
			}
		}
	}
}

func (f *far) count(word string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ran[word]++
}

func (f *far) counted(word string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ran[word]
}

// farSession starts a session whose agent has the server far: look and slow are allowed,
// everything else is asked for.
func (p *plane) farSession(messages ...string) api.SessionID {
	p.t.Helper()
	return p.session(overFar, messages...)
}

func overFar(in *api.SessionCreate) {
	agent := testSession().Agent
	withMCP(&agent)
	toolset := &agent.Tools[len(agent.Tools)-1]
	toolset.Configs = append(toolset.Configs, api.ToolConfig{Name: "slow", PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAllow}},
		api.ToolConfig{Name: "work", PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAllow}},
		api.ToolConfig{Name: "big", PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAllow}})
	in.Agent.Type = "agent_with_overrides"
	in.Agent.Tools, in.Agent.MCPServers = api.Some(agent.Tools), api.Some(agent.MCPServers)
}

func word(tool, w string) scripted.Call {
	return use("mcp__far__"+tool, map[string]any{"word": w})
}

func TestMCPToolAllowed(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Expect: []scripted.Expect{{Tool: "mcp__far__look"}}, Text: "Looking.", Calls: []scripted.Call{word("look", "here"), word("nothing", "x")}},
		{Expect: []scripted.Expect{{Contains: "look here", OK: true}, {Result: 1, Failed: true, Contains: "no tool named nothing"}}, Text: "Done."},
	}})
	f := p.farServer()
	p.run(p.engine())
	id := p.farSession("hello")
	events := p.idle(id, api.StopEndTurn)
	wantTypes(t, events,
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.message", "agent.mcp_tool_use", "agent.mcp_tool_use", "span.model_request_end",
		"agent.mcp_tool_result", "agent.mcp_tool_result",
		"span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	use := of(events, api.EvAgentMCPToolUse)[0].Body.(*api.AgentMCPToolUse)
	if use.Name != "look" || use.MCPServerName != "far" || use.EvaluatedPermission != api.PermissionAllow || use.Evaluation.Type != api.AlwaysAllow {
		t.Errorf("the call is %+v", use)
	}
	if use := of(events, api.EvAgentMCPToolUse)[1].Body.(*api.AgentMCPToolUse); use.EvaluatedPermission != api.PermissionDeny || use.Evaluation != nil {
		t.Errorf("the call of an unknown tool is %+v", use)
	}
	if n := f.counted("here"); n != 1 {
		t.Errorf("the call was run %d times", n)
	}
	checkLog(t, p, id)
}

func TestMCPToolAskedFor(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{word("push", "a"), word("push", "b"), word("look", "c")}},
		{Expect: []scripted.Expect{{Contains: "push a", OK: true}, {Result: 1, Failed: true, Contains: "The user said: No."}, {Result: 2, Contains: "look c"}}, Text: "Done."},
	}})
	f := p.farServer()
	p.run(p.engine())
	id := p.farSession("hello")
	events := p.idle(id, api.StopRequiresAction)
	calls := of(events, api.EvAgentMCPToolUse)
	waits := last[*api.SessionStatusIdle](t, events).StopReason.EventIDs
	if !slices.Equal(waits, []api.EventID{calls[0].ID, calls[1].ID}) || f.counted("c") != 1 || f.counted("a") != 0 {
		t.Fatalf("the session waits for %v", waits)
	}
	sent := p.send(id, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": calls[0].ID, "result": "allow"}))
	if sent[0].ProcessedAt != nil {
		t.Error("the confirmation was processed before a turn took it")
	}
	p.until(id, "the first result", func(e []*api.Event) bool { return len(of(e, api.EvAgentMCPToolResult)) == 2 })
	events = p.idle(id, api.StopRequiresAction)
	if waits := last[*api.SessionStatusIdle](t, events).StopReason.EventIDs; !slices.Equal(waits, []api.EventID{calls[1].ID}) {
		t.Fatalf("then it waits for %v", waits)
	}
	p.send(id, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": calls[1].ID, "result": "deny", "deny_message": "No."}))
	p.idle(id, api.StopEndTurn)
	if f.counted("a") != 1 || f.counted("b") != 0 {
		t.Errorf("the calls were run %v times", f.ran)
	}
	checkLog(t, p, id)
}

// Other calls can be allowed while one is under way, and answered by workers.
func TestMCPCallsSideBySide(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{word("slow", "s"), word("push", "a"), use("weather", nil)}},
		{Expect: []scripted.Expect{{Contains: "slow s"}, {Result: 1, Contains: "push a"}, {Result: 2, Contains: "sunny"}}, Text: "Done."},
	}})
	f := p.farServer()
	p.run(p.engine())
	id := p.farSession("hello")
	<-f.begun
	events := p.seen(id, api.EvAgentCustomToolUse, 1)
	call := of(events, api.EvAgentMCPToolUse)[1].ID
	p.send(id, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": call, "result": "allow"}), customResult(of(events, api.EvAgentCustomToolUse)[0].ID, "sunny"))
	p.seen(id, api.EvAgentMCPToolResult, 1)
	close(f.free)
	p.idle(id, api.StopEndTurn)
	checkLog(t, p, id)
}

// However many calls the model makes at once, a few are under way at the same time.
func TestMCPCallsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = callsOnce + 5
		first := scripted.Turn{}
		for range n {
			first.Calls = append(first.Calls, word("slow", "s"))
		}
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{first, {Text: "Done."}}})
		f := p.farServer()
		stop := p.run(p.engine())
		id := p.farSession("hello")
		<-f.begun
		time.Sleep(time.Second) // when nothing more can come
		if got := 1 + len(f.begun); got != callsOnce {
			t.Errorf("%d calls are under way", got)
		}
		close(f.free)
		p.idle(id, api.StopEndTurn)
		stop()
		if got := f.counted("s"); got != n {
			t.Errorf("%d calls of %d were made", got, n)
		}
		checkLog(t, p, id)
	})
}

func TestMCPServerAway(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "I do without."},
		{Calls: []scripted.Call{word("look", "again")}},
		{Expect: []scripted.Expect{{Contains: "look again"}}, Text: "There it is."},
		{Text: "Not any more."},
	}})
	f := p.farServer()
	f.away.Store(true)
	p.run(p.engine())
	id := p.farSession("hello")
	events := p.idle(id, api.StopEndTurn)
	wantTypes(t, events,
		"user.message", "session.status_running", "session.thread_status_running", "session.error", "span.model_request_start",
		"agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle")
	problem := last[*api.SessionError](t, events).Error
	if problem.Type != api.ErrorMCPConnection || problem.MCPServerName != "far" || problem.RetryStatus.Type != api.RetryRetrying ||
		!strings.HasPrefix(problem.Message, "MCP server 'far' initialize failed: ") {
		t.Errorf("the error is %+v", problem)
	}
	f.away.Store(false)
	p.send(id, userMessage("and now?"))
	events = p.until(id, "an answer", func(e []*api.Event) bool { return len(of(e, api.EvSessionStatusIdle)) == 2 })
	if got := said(t, events); got != "There it is." {
		t.Errorf("the agent said %q", got)
	}

	// It refuses from now on. The session has its tools from a moment ago; another has not.
	f.deny.Store(true)
	other := p.farSession("hello")
	problem = last[*api.SessionError](t, p.idle(other, api.StopEndTurn)).Error
	if problem.Type != api.ErrorMCPAuthentication || problem.MCPServerName != "far" {
		t.Errorf("the error is %+v", problem)
	}
	checkLog(t, p, id)
}

// A server that goes away in the middle of a call is told of, and so is that the call may
// have run.
func TestMCPServerLostDuringCall(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{word("look", "x")}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "The call was not run"}}, Text: "Sorry."},
	}})
	f := p.farServer()
	p.run(p.engine())
	// The server answers what is asked of it before the call.
	inner := p.mcp.Transport
	p.mcp.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Mcp-Method") == "tools/call" {
			f.away.Store(true)
		}
		return inner.RoundTrip(r)
	})
	id := p.farSession("hello")
	events := p.idle(id, api.StopEndTurn)
	if f.counted("x") != 0 || len(of(events, api.EvSessionError)) != 1 {
		t.Errorf("the call was run %d times; the events are %v", f.counted("x"), types(events))
	}
}

func TestMCPInterrupt(t *testing.T) {
	t.Parallel()
	p := newPlane(t, better("go on"), scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{word("slow", "s"), word("push", "a")}},
	}})
	f := p.farServer()
	p.run(p.engine())
	id := p.farSession("hello")
	<-f.begun
	p.send(id, interrupt())
	events := p.idle(id, api.StopEndTurn)
	<-f.ended // the server was told
	results := of(events, api.EvAgentMCPToolResult)
	if len(results) != 2 {
		t.Fatalf("the events are %v", types(events))
	}
	if got := results[0].Body.(*api.AgentMCPToolResult).Content.Text(); got != textCutShort {
		t.Errorf("the call that ran is answered %q", got)
	}
	if got := results[1].Body.(*api.AgentMCPToolResult).Content.Text(); got != textInterrupted {
		t.Errorf("the call that did not run is answered %q", got)
	}
	checkLog(t, p, id)
}

// A process that dies with a call under way leaves it to the next one to say so. The call
// is not run again.
func TestMCPCallLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
			{Calls: []scripted.Call{word("slow", "s")}},
			{Expect: []scripted.Expect{{Failed: true, Contains: "Whether it had an effect is unknown"}}, Text: "I shall look."},
		}})
		f := p.farServer()
		stop := p.run(p.engine(func(c *Config) { c.Grace = time.Nanosecond }))
		id := p.farSession("hello")
		<-f.begun
		p.close() // it can write nothing any more
		stop()
		p.cfg.Sole = true
		p.open()
		stop = p.run(p.engine())
		p.idle(id, api.StopEndTurn)
		stop()
		if n := f.counted("s"); n != 1 {
			t.Errorf("the call was run %d times", n)
		}
		checkLog(t, p, id)
	})
}

// Told to stop, an engine gives calls the grace period and says what it cut off.
func TestMCPCallCutOffByStop(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{word("slow", "s")}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "Whether it had an effect is unknown"}}, Text: "I shall look."},
	}})
	f := p.farServer()
	stop := p.run(p.engine(func(c *Config) { c.Grace = time.Nanosecond }))
	id := p.farSession("hello")
	<-f.begun
	stop()
	if got := of(p.events(id), api.EvAgentMCPToolResult); len(got) != 1 {
		t.Errorf("the log has %d results", len(got))
	}
	p.run(p.engine())
	p.idle(id, api.StopEndTurn)
	checkLog(t, p, id)
}

// Half an hour of silence is nothing.
func TestMCPCallOfHalfAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
			{Calls: []scripted.Call{word("slow", "s")}},
			{Expect: []scripted.Expect{{Contains: "slow s"}}, Text: "At last."},
		}})
		p.patience = time.Hour
		f := p.farServer()
		stop := p.run(p.engine())
		id := p.farSession("hello")
		<-f.begun
		time.Sleep(30 * time.Minute)
		close(f.free)
		p.idle(id, api.StopEndTurn)
		stop()
		if n := f.counted("s"); n != 1 {
			t.Errorf("the call was run %d times", n)
		}
		checkLog(t, p, id)
	})
}

func TestMCPServersOfSessionUpdated(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "Hello."},
		{Expect: []scripted.Expect{{Tool: "mcp__far__look"}}, Text: "There is one now."},
	}})
	p.farServer()
	p.run(p.engine())
	id := p.session(nil, "hello")
	p.idle(id, api.StopEndTurn)
	var in api.SessionCreate
	overFar(&in)
	_, err := p.control.UpdateSession(p.ctx, p.admin, id, api.SessionUpdate{Agent: api.Some(api.SessionAgentUpdate{Tools: in.Agent.Tools, MCPServers: in.Agent.MCPServers})})
	if err != nil {
		t.Fatal(err)
	}
	p.send(id, userMessage("and now?"))
	events := p.until(id, "an answer", func(e []*api.Event) bool { return len(of(e, api.EvSessionStatusIdle)) == 2 })
	if got := said(t, events); got != "There is one now." {
		t.Errorf("the agent said %q", got)
	}
}

func TestMCPLimitedNetworking(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "I do without."}}})
	f := p.farServer()
	p.cfg.Cloud = func(context.Context) error { return nil }
	p.close()
	p.open()
	p.run(p.engine())
	p.session(nil)
	network := func(hosts []string, mcp bool) *api.EnvironmentConfig {
		return &api.EnvironmentConfig{Type: api.EnvCloud, Networking: &api.Networking{Type: api.NetworkLimited, AllowedHosts: hosts, AllowMCPServers: mcp}}
	}
	for _, test := range []struct {
		hosts []string
		mcp   bool
		works bool
	}{{nil, false, false}, {[]string{"other.test"}, false, false}, {[]string{"far.test"}, false, true}, {[]string{"*.test"}, false, true}, {[]string{"*.far.test"}, false, false}, {nil, true, true}} {
		env := must(p.control.CreateEnvironment(p.ctx, p.admin, api.EnvironmentCreate{Name: "limited", Config: network(test.hosts, test.mcp)}))(t)
		in := api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: p.agent}, EnvironmentID: env.ID}
		overFar(&in)
		_, err := p.control.CreateSession(p.ctx, p.admin, in)
		if (err == nil) != test.works {
			t.Errorf("with %v and %t: %v", test.hosts, test.mcp, err)
		}
		if e := api.AsError(err); e != nil && e.Details["error_code"] != "mcp_egress_blocked_error" {
			t.Errorf("the error is %v %v", e, e.Details)
		}
	}
	// An environment may be narrowed later.
	env := must(p.control.CreateEnvironment(p.ctx, p.admin, api.EnvironmentCreate{Name: "limited", Config: network([]string{"far.test"}, false)}))(t)
	id := p.session(func(in *api.SessionCreate) { overFar(in); in.EnvironmentID = env.ID })
	var update api.EnvironmentUpdate
	if err := json.Unmarshal([]byte(`{"config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":[]}}}`), &update); err != nil {
		t.Fatal(err)
	}
	must(p.control.UpdateEnvironment(p.ctx, p.admin, env.ID, update))(t)
	p.send(id, userMessage("hello"))
	if got := last[*api.SessionError](t, p.idle(id, api.StopEndTurn)).Error; got.Type != api.ErrorMCPConnection || !strings.Contains(got.Message, "does not allow far.test") {
		t.Errorf("the error is %+v", got)
	}
	if f.conn.Load() != 0 {
		t.Error("the server was connected to")
	}
}

// Of an output that is too long for the model the event shows a part, and tells where the
// whole is.
func TestMCPLongOutput(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{use("mcp__far__big", nil), word("look", "x")}},
		{Expect: []scripted.Expect{{Contains: "the whole is in the file .bailey/mcp/sevt_", OK: true}, {Contains: "begin xxx"}, {Contains: "xxx end"}}, Text: "Done."},
	}})
	p.farServer()
	p.run(p.engine())
	id := p.farSession("hello")
	events := p.idle(id, api.StopEndTurn)
	for _, e := range of(events, api.EvAgentMCPToolResult) {
		b := e.Body.(*api.AgentMCPToolResult)
		text, err := p.control.EventOutput(p.ctx, p.admin, id, e.ID)
		if b.OutputFile == "" {
			if api.AsError(err) == nil || api.AsError(err).Status != http.StatusNotFound {
				t.Errorf("the output of a short result: %v", err)
			}
			continue
		}
		want := "begin " + strings.Repeat("x", 300_000) + " end"
		if err != nil || text != want || len(b.Content.Text()) > 2*previewMax || b.OutputFile != ".bailey/mcp/"+string(b.MCPToolUseID)+".txt" {
			t.Errorf("the output has %d bytes, the event %d: %v", len(text), len(b.Content.Text()), err)
		}
		worker := control.Principal{Kind: api.KeySession, SessionID: "sesn_other"}
		if _, err := p.control.EventOutput(p.ctx, worker, id, e.ID); err == nil {
			t.Error("another session's worker can read it")
		}
	}
}

// Calls are on record before they are made; without a record there are none.
func TestMCPCallsAreOnRecord(t *testing.T) {
	t.Parallel()
	for _, writable := range []bool{true, false} {
		text := "look a"
		if !writable {
			text = "so nothing was run"
		}
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
			{Calls: []scripted.Call{word("look", "a")}},
			{Expect: []scripted.Expect{{Contains: text}}, Text: "Done."},
		}})
		f := p.farServer()
		file := filepath.Join(t.TempDir(), "audit.jsonl")
		p.cfg.Audit = must(audit.Open(file, audit.Options{}))(t)
		if !writable {
			p.cfg.Audit.Close()
		}
		p.close()
		p.open()
		inner := p.mcp.Transport
		p.mcp.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Mcp-Method") == "tools/call" && !strings.Contains(string(must(os.ReadFile(file))(t)), `"action":"tool.start"`) {
				t.Error("a call reaches the server and is not on record")
			}
			return inner.RoundTrip(r)
		})
		stop := p.run(p.engine())
		p.idle(p.farSession("hello"), api.StopEndTurn)
		stop()
		if got := f.counted("a"); (got == 1) != writable {
			t.Errorf("with a record that is writable (%t) the call was run %d times", writable, got)
		}
		if record := string(must(os.ReadFile(file))(t)); writable && !strings.Contains(record, `"action":"tool.end"`) {
			t.Errorf("the record is\n%s", record)
		}
		p.cfg.Audit.Close()
	}
}
