package loop

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model/scripted"
)

func use(name string, input map[string]any) scripted.Call {
	return scripted.Call{Name: name, Input: input}
}

func TestTurnWithoutTools(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Thinking: "hm", Text: "Hello, you."}}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	events := p.idle(id, api.StopEndTurn)
	wantTypes(t, events,
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.thinking", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	if got := said(t, events); got != "Hello, you." {
		t.Errorf("the agent said %q", got)
	}
}

func TestTurnWithTools(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "Looking.", Calls: []scripted.Call{use("read", map[string]any{"file_path": "a"}), use("weather", nil)}},
		{Expect: []scripted.Expect{{Contains: "file a", OK: true}, {Result: 1, Contains: "sunny", OK: true}}, Text: "Done."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	idle := last[*api.SessionStatusIdle](t, p.idle(id, api.StopRequiresAction))
	ids := idle.StopReason.EventIDs
	if len(ids) != 2 {
		t.Fatalf("the session waits for %v", ids)
	}
	p.send(id, customResult(ids[1], "sunny"))
	events := p.until(id, "the rest", func(e []*api.Event) bool { return len(of(e, api.EvSessionStatusIdle)) == 2 })
	if got := last[*api.SessionStatusIdle](t, events).StopReason.EventIDs; len(got) != 1 || got[0] != ids[0] {
		t.Errorf("after the second result the session waits for %v, not for %v", got, ids[0])
	}
	p.send(id, result(ids[0], "file a"), result(ids[0], "file a, again"))
	events = p.idle(id, api.StopEndTurn)
	wantTypes(t, events,
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.message", "agent.tool_use", "agent.custom_tool_use", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle",
		"user.custom_tool_result", "session.thread_status_idle", "session.usage", "session.status_idle",
		"user.tool_result", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	checkLog(t, p, id)
}

// checkLog verifies from outside what every log must promise.
func checkLog(t *testing.T, p *plane, id api.SessionID) {
	t.Helper()
	log := &memLog{}
	var spans api.SpanUsage
	for i, e := range p.events(id) {
		log.entries = append(log.entries, api.Entry{Seq: int64(i + 1), Event: *e, Queued: e.ProcessedAt == nil})
		if b, ok := e.Body.(*api.SpanModelRequestEnd); ok {
			spans.InputTokens += b.ModelUsage.InputTokens
			spans.OutputTokens += b.ModelUsage.OutputTokens
			spans.CacheCreationInputTokens += b.ModelUsage.CacheCreationInputTokens
			spans.CacheReadInputTokens += b.ModelUsage.CacheReadInputTokens
		}
	}
	log.check(t)
	session := must(p.control.GetSession(p.ctx, p.admin, id))(t)
	if got := session.Usage.Tokens.Span(); got != spans {
		t.Errorf("the session used %+v, its requests %+v", got, spans)
	}
	for _, c := range log.calls() {
		if session.Status == api.StatusIdle && c.result != 1 {
			open := log.waiting()
			if len(open) == 0 {
				t.Errorf("call %s has %d results", c.id, c.result)
			}
		}
	}
}

func TestToolsOffered(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Hi."}}})
	p.run(p.engine())
	p.idle(p.session(func(in *api.SessionCreate) {
		in.Agent.Type = "agent_with_overrides"
		in.Agent.System = api.Some("Be kind.")
	}, "hello"), api.StopEndTurn)
	var req struct {
		System []struct{ Text string }
		Tools  []struct{ Name string }
	}
	if err := json.Unmarshal(p.server.Requests()[0].Body, &req); err != nil {
		t.Fatal(err)
	}
	if len(req.Tools) != 6 || req.System[0].Text != "Be kind.\n\n"+environmentPrompt {
		t.Errorf("the request offers %v with the system prompt %v", req.Tools, req.System)
	}
}

func TestMessageDuringRequest(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "First.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 300}}},
		{Expect: []scripted.Expect{{User: "and this"}}, Text: "Second."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	if err := p.server.WaitStalled(p.ctx, 1); err != nil {
		t.Fatal(err)
	}
	p.send(id, userMessage("and this"))
	p.server.Release()
	wantTypes(t, p.idle(id, api.StopEndTurn),
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.message", "span.model_request_end", "user.message", "span.model_request_start",
		"agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle")
}

func TestInterruptDuringRequest(t *testing.T) {
	t.Parallel()
	p := newPlane(t, better("do something else"), scripted.Script{Turns: []scripted.Turn{
		{Text: "This will never be read to its end.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 600}}},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	if err := p.server.WaitStalled(p.ctx, 1); err != nil {
		t.Fatal(err)
	}
	p.send(id, interrupt(), userMessage("do something else"))
	events := p.until(id, "the second turn", func(e []*api.Event) bool {
		return len(of(e, api.EvSessionStatusIdle)) == 2
	})
	wantTypes(t, events,
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"span.model_request_end", "user.interrupt", "session.thread_status_idle", "session.usage", "session.status_idle",
		"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
		"agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle")
	if b := of(events, api.EvSpanModelRequestEnd)[0].Body.(*api.SpanModelRequestEnd); !b.IsError {
		t.Error("an interrupted request ended without is_error")
	}
	for _, e := range of(events, api.EvSessionStatusIdle) {
		if got := e.Body.(*api.SessionStatusIdle).StopReason.Type; got != api.StopEndTurn {
			t.Errorf("idle with %s", got)
		}
	}
}

func TestInterruptWaitingCalls(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{use("read", map[string]any{"file_path": "a"})}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "interrupted before completion"}, {User: "never mind"}}, Text: "Fine."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	p.idle(id, api.StopRequiresAction)
	p.send(id, interrupt())
	events := p.idle(id, api.StopEndTurn)
	wantTypes(t, events[len(events)-5:], "user.interrupt", "agent.tool_result", "session.thread_status_idle", "session.usage", "session.status_idle")
	p.send(id, userMessage("never mind"))
	p.until(id, "the answer", func(e []*api.Event) bool { return len(of(e, api.EvAgentMessage)) == 1 })
	p.idle(id, api.StopEndTurn)
	checkLog(t, p, id)
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{
			use("write", map[string]any{"file_path": "a", "content": "x"}), // always_ask
			use("bash", map[string]any{"command": "rm -rf /"}),             // auto: denied
			use("bash", map[string]any{"command": "ls"}),                   // auto: allowed
			use("grep", map[string]any{"pattern": "x"}),                    // not enabled
			use("write", map[string]any{"file_path": "b", "content": "x"}),
		}},
		{Expect: []scripted.Expect{
			{Result: 0, Failed: true, Contains: "The user said: Not there."},
			{Result: 1, Failed: true, Contains: "Permission to use bash has been denied."},
			{Result: 2, OK: true, Contains: "a b c"},
			{Result: 3, Failed: true, Contains: "no tool named grep"},
			{Result: 4, OK: true, Contains: "written"},
		}, Text: "Done."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	events := p.idle(id, api.StopRequiresAction)
	calls := of(events, api.EvAgentToolUse)
	var permissions []string
	for _, c := range calls {
		b := c.Body.(*api.AgentToolUse)
		kind := "none"
		if b.Evaluation != nil {
			kind = b.Evaluation.Type
		}
		permissions = append(permissions, string(b.EvaluatedPermission)+" "+kind)
	}
	if diff := cmp.Diff([]string{"ask always_ask", "deny auto", "allow auto", "deny none", "ask always_ask"}, permissions); diff != "" {
		t.Error(diff)
	}
	want := []api.EventID{calls[0].ID, calls[2].ID, calls[4].ID}
	if diff := cmp.Diff(want, last[*api.SessionStatusIdle](t, events).StopReason.EventIDs); diff != "" {
		t.Error(diff)
	}
	p.send(id,
		event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": want[0], "result": "deny", "deny_message": "Not there."}),
		event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": want[2], "result": "allow"}))
	p.until(id, "the rest", func(e []*api.Event) bool {
		return len(e) > 0 && len(last[*api.SessionStatusIdle](t, e).StopReason.EventIDs) == 2
	})
	p.send(id, result(want[2], "written"), result(want[1], "a b c"))
	if got := said(t, p.idle(id, api.StopEndTurn)); got != "Done." {
		t.Errorf("the agent said %q", got)
	}
	checkLog(t, p, id)
}

// better is what a model says that has recovered by the time it is asked again.
func better(marker string) scripted.Script {
	return scripted.Script{Name: "better", Marker: marker, Turns: []scripted.Turn{{Text: "Better now."}}, OpenEnd: true}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "At last, after all of this.", Faults: []scripted.Fault{
			{Kind: scripted.FaultStatus, Status: 529},
			{Kind: scripted.FaultStatus, Status: 429, RetryAfter: 17 * time.Second},
			{Kind: scripted.FaultStatus, Status: 500},
			{Kind: scripted.FaultCut, After: 500},
			{Kind: scripted.FaultGarbage, After: 400, Garbage: "event: nonsense\ndata: {{{\n\n"},
			{Kind: scripted.FaultError, Type: "overloaded_error"},
			{Kind: scripted.FaultEnd, After: 500},
		}}}})
		p.patience = time.Hour
		p.run(p.engine())
		id := p.session(nil, "hello")
		events := p.idle(id, api.StopEndTurn)
		var errors []string
		for _, e := range of(events, api.EvSessionError) {
			b := e.Body.(*api.SessionError).Error
			errors = append(errors, b.Type+" "+b.RetryStatus.Type)
		}
		overloaded, limited, failed := "model_overloaded_error retrying", "model_rate_limited_error retrying", "model_request_failed_error retrying"
		if diff := cmp.Diff([]string{overloaded, limited, failed, failed, failed, overloaded, failed}, errors); diff != "" {
			t.Error(diff)
		}
		starts := of(events, api.EvSpanModelRequestStart)
		for i := range len(starts) - 1 {
			wait := starts[i+1].ProcessedAt.Sub(*starts[i].ProcessedAt)
			least, most := backoff(i+1, 0), backoff(i+1, 1)
			if i == 1 {
				least, most = 17*time.Second, 17*time.Second // as the endpoint asked
			}
			if wait < least || wait > most+time.Second {
				t.Errorf("request %d came after %s, not between %s and %s", i+1, wait, least, most)
			}
		}
		wantTypes(t, events[:12],
			"user.message", "session.status_running", "session.thread_status_running", "span.model_request_start",
			"span.model_request_end", "session.error", "session.status_rescheduled", "session.thread_status_rescheduled",
			"session.status_running", "session.thread_status_running", "span.model_request_start", "span.model_request_end")
		checkLog(t, p, id)
	})
}

func TestRetriesExhausted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, better("and now?"), scripted.Script{Turns: []scripted.Turn{{Text: "Never.", Faults: []scripted.Fault{{Kind: scripted.FaultStatus, Status: 529, Times: -1}}}}})
		p.patience = time.Hour
		p.run(p.engine())
		id := p.session(nil, "hello")
		p.seen(id, api.EvSessionError, 3)
		p.send(id, userMessage("are you there?")) // joins the next attempt
		events := p.idle(id, api.StopRetriesExhausted)
		if n := len(of(events, api.EvSpanModelRequestStart)); n != failuresMax {
			t.Errorf("%d requests, not %d", n, failuresMax)
		}
		if got := last[*api.SessionError](t, events).Error; got.Type != api.ErrorModelOverloaded || got.RetryStatus.Type != api.RetryExhausted {
			t.Errorf("the last error is %+v", got)
		}
		for _, e := range events {
			if e.ProcessedAt == nil {
				t.Errorf("%s is still queued", e.ID)
			}
		}
		p.send(id, userMessage("and now?"))
		if got := said(t, p.idle(id, api.StopEndTurn)); got != "Better now." {
			t.Errorf("the agent said %q", got)
		}
		checkLog(t, p, id)
	})
}

func TestFinalFailures(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fault scripted.Fault
		kind  string
	}{
		{scripted.Fault{Status: 400}, api.ErrorModelRequest},
		{scripted.Fault{Status: 401}, api.ErrorModelRequest},
		{scripted.Fault{Status: 403}, api.ErrorModelRequest},
		{scripted.Fault{Status: 404, Message: "model: claude-x"}, api.ErrorModelRequest},
		{scripted.Fault{Status: 400, Message: "Your credit balance is too low to access the API."}, api.ErrorBilling},
		{scripted.Fault{Status: 413}, api.ErrorModelRequest},
	} {
		t.Run(fmt.Sprint(tt.fault.Status, tt.fault.Message), func(t *testing.T) {
			t.Parallel()
			tt.fault.Kind = scripted.FaultStatus
			p := newPlane(t, better("again"), scripted.Script{Turns: []scripted.Turn{
				{On: "Summarize the conversation above.", Text: "SUMMARY"},
				{Text: "Never.", Faults: []scripted.Fault{tt.fault}},
			}})
			p.run(p.engine())
			id := p.session(nil, "hello")
			events := p.idle(id, api.StopRetriesExhausted)
			if got := last[*api.SessionError](t, events).Error; got.Type != tt.kind || got.RetryStatus.Type != api.RetryExhausted {
				t.Errorf("the error is %+v", got)
			}
			if n := len(p.server.Requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
			p.send(id, userMessage("again"))
			p.idle(id, api.StopEndTurn)
		})
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	p := newPlane(t, better("something nice"), scripted.Script{Turns: []scripted.Turn{
		{Text: "I will not", Calls: []scripted.Call{use("bash", map[string]any{"command": "ls"})}, Stop: "refusal", Category: "cyber", Explanation: "Because."},
	}})
	p.run(p.engine())
	id := p.session(nil, "something bad")
	events := p.idle(id, api.StopRefusal)
	wantTypes(t, events[3:], "span.model_request_start", "agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle")
	category, explanation := "cyber", "Because."
	want := &api.StopDetails{Type: "refusal", Category: &category, Explanation: &explanation}
	if diff := cmp.Diff(want, last[*api.SessionStatusIdle](t, events).StopDetails); diff != "" {
		t.Error(diff)
	}
	p.send(id, userMessage("something nice"))
	p.idle(id, api.StopEndTurn)
	requests := p.server.Requests()
	if body := string(requests[len(requests)-1].Body); strings.Contains(body, "something bad") || strings.Contains(body, "I will not") {
		t.Errorf("what was refused is sent again: %s", body)
	}
}

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "One, two,", Calls: []scripted.Call{{Name: "write", Raw: `{"file_path":"a","cont`}}, Stop: "max_tokens"},
		{Expect: []scripted.Expect{{User: "Go on from exactly where it stopped"}}, Text: "three."},
	}})
	p.run(p.engine())
	events := p.idle(p.session(nil, "count"), api.StopEndTurn)
	wantTypes(t, events[3:],
		"span.model_request_start", "agent.message", "span.model_request_end",
		"span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
}

func TestBudget(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{use("read", map[string]any{"file_path": "a"})}, Usage: &scripted.Usage{InputTokens: 1_000_000, OutputTokens: 1}},
		{Text: "Done.", Usage: &scripted.Usage{InputTokens: 2_000_000}},
	}})
	p.run(p.engine(func(c *Config) { c.CompactTokens = 1 << 40 }))
	id := p.session(func(in *api.SessionCreate) { in.Budget = budget("300") }, "hello")

	// Three dollars and a bit are over the budget, but the call is asked for first.
	events := p.idle(id, api.StopRequiresAction)
	p.send(id, result(last[*api.SessionStatusIdle](t, events).StopReason.EventIDs[0], "a"))
	events = p.idle(id, api.StopBudgetReached)
	wantTypes(t, events[len(events)-4:], "user.tool_result", "session.thread_status_idle", "session.usage", "session.status_idle")
	if n := len(p.server.Requests()); n != 1 {
		t.Errorf("%d requests before the budget was raised", n)
	}

	// Raised, the turn goes on, crosses the budget again, and is done all the same.
	must(p.control.UpdateSession(p.ctx, p.admin, id, api.SessionUpdate{Budget: api.Some(*budget("500"))}))(t)
	p.seen(id, api.EvAgentMessage, 1)
	events = p.idle(id, api.StopBudgetReached)
	if got := last[*api.ThreadStatusIdle](t, events).StopReason.Type; got != api.StopEndTurn {
		t.Errorf("the thread is idle with %s", got)
	}
	usage := last[*api.SessionUsage](t, events)
	if got := usage.Usage.ListCost.Money().Amount; got != "900" {
		t.Errorf("the session cost %s cents", got)
	}
	checkLog(t, p, id)
}

func budget(cents string) *api.Budget {
	return &api.Budget{Type: "limit", MaxListCost: api.Money{Amount: cents, Currency: "USD"}}
}

func TestCompaction(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "I am the first answer.", Usage: &scripted.Usage{InputTokens: 900, OutputTokens: 200}},
		{On: "Summarize the conversation above.", Expect: []scripted.Expect{{User: "Agent: I am the first answer."}}, Text: "SUMMARY", Usage: &scripted.Usage{InputTokens: 500, OutputTokens: 10}},
		{On: "second question", Expect: []scripted.Expect{{User: "SUMMARY"}}, Text: "I am the second answer.", Usage: &scripted.Usage{InputTokens: 300}},
	}})
	p.run(p.engine(func(c *Config) { c.CompactTokens = 1000 }))
	id := p.session(nil, "first question")
	p.idle(id, api.StopEndTurn)
	p.send(id, userMessage("second question"))
	events := p.until(id, "the second answer", func(e []*api.Event) bool { return len(of(e, api.EvSessionStatusIdle)) == 2 })
	wantTypes(t, events[9:],
		"session.status_running", "session.thread_status_running",
		"span.model_request_start", "agent.thread_context_compacted", "span.model_request_end",
		"user.message", "span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	checkLog(t, p, id)
}

func TestConversationTooLong(t *testing.T) {
	t.Parallel()
	tooLong := scripted.Fault{Kind: scripted.FaultStatus, Status: 400, Message: "prompt is too long: 210000 tokens > 200000 maximum"}
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "First."},
		{On: "Summarize the conversation above.", Text: "SUMMARY"},
		{On: "SUMMARY", Text: "Second."},
		{On: "second question", Text: "Never said.", Faults: []scripted.Fault{tooLong}},
	}})
	p.run(p.engine())
	id := p.session(nil, "first question")
	p.idle(id, api.StopEndTurn)
	p.send(id, userMessage("second question"))
	events := p.until(id, "the second answer", func(e []*api.Event) bool { return len(of(e, api.EvSessionStatusIdle)) == 2 })
	if got := said(t, events); got != "Second." {
		t.Errorf("the agent said %q", got)
	}
	if n := len(of(events, api.EvSessionError)); n != 0 {
		t.Errorf("%d errors for what a summary cured", n)
	}
}

func TestPreviews(t *testing.T) {
	t.Parallel()
	// The answer stops in the middle until some of it was shown: previews of what is
	// finished already are not.
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{
		Thinking: "hm", Text: strings.Repeat("A text in several pieces, to be shown one by one. ", 100),
		Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 3000}},
	}}})
	id := p.session(nil)
	f := must(p.control.Follow(p.ctx, p.admin, id, "", control.FollowOptions{Previews: []api.EventType{api.EvAgentMessage, api.EvAgentThinking}}))(t)
	defer f.Close()
	p.run(p.engine())
	p.send(id, userMessage("hello"))
	ids, text, started := map[string]string{}, "", 0
	for ids["agent.message"] == "" {
		for _, frame := range must(f.Next(p.ctx))(t) {
			var e struct {
				Type, ID string
				Event    struct{ Type, ID string }
				EventID  string `json:"event_id"`
				Delta    struct{ Content struct{ Text string } }
			}
			if err := json.Unmarshal(frame.Data, &e); err != nil {
				t.Fatal(err)
			}
			switch e.Type {
			case "event_start":
				started++
				ids["preview of "+e.Event.Type] = e.Event.ID
			case "event_delta":
				if e.EventID != ids["preview of agent.message"] {
					t.Errorf("a delta of %s", e.EventID)
				}
				text += e.Delta.Content.Text
				if err := p.server.WaitStalled(p.ctx, 1); err != nil {
					t.Fatal(err)
				}
				p.server.Release()
			case "agent.message", "agent.thinking":
				ids[e.Type] = e.ID
			}
		}
	}
	if started != 2 || ids["preview of agent.message"] != ids["agent.message"] || ids["preview of agent.thinking"] != ids["agent.thinking"] {
		t.Errorf("%d previews: %v", started, ids)
	}
	if want := said(t, p.events(id)); !strings.HasPrefix(want, text) || text == "" {
		t.Errorf("the preview %q is not a beginning of %q", text, want)
	}
}

// A stopped engine lets the request under way finish, and begins no other.
func TestStopLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "The first.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 400}}},
		{Text: "The second."},
	}})
	e := p.engine()
	stop := p.run(e)
	id := p.session(nil, "hello")
	if err := p.server.WaitStalled(p.ctx, 1); err != nil {
		t.Fatal(err)
	}
	p.send(id, userMessage("more"))
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	for !e.stop.Load() {
		runtime.Gosched()
	}
	p.server.Release()
	<-stopped
	wantTypes(t, p.events(id)[3:], "span.model_request_start", "agent.message", "span.model_request_end", "?user.message")

	p.run(p.engine())
	events := p.idle(id, api.StopEndTurn)
	if got := said(t, events); got != "The second." {
		t.Errorf("the agent said %q", got)
	}
	checkLog(t, p, id)
}

// One that outlasts the grace period is cut off, and made again elsewhere.
func TestStopCutsOffAfterGrace(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Slow.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 400}}}}})
	stop := p.run(p.engine(func(c *Config) { c.Grace = time.Nanosecond }))
	id := p.session(nil, "hello")
	if err := p.server.WaitStalled(p.ctx, 1); err != nil {
		t.Fatal(err)
	}
	stop()
	wantTypes(t, p.events(id)[3:], "span.model_request_start", "span.model_request_end")
	p.run(p.engine())
	events := p.idle(id, api.StopEndTurn)
	if n := len(of(events, api.EvSessionError)); n != 0 {
		t.Errorf("%d errors for an orderly stop", n)
	}
	checkLog(t, p, id)
}

// A lease lasts as long as the request, and a fenced holder writes no more.
func TestLeaseIsRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "A slow answer, in pieces.", Faults: []scripted.Fault{{Kind: scripted.FaultSlow, Delay: 20 * time.Second}}}}})
		p.patience = time.Hour
		p.run(p.engine())
		p.run(p.engine()) // would take the session over as soon as the lease ends
		events := p.idle(p.session(nil, "hello"), api.StopEndTurn)
		if n := len(of(events, api.EvSpanModelRequestStart)); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestArchivedDuringWait(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Calls: []scripted.Call{use("read", nil)}}}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	p.idle(id, api.StopRequiresAction)
	must(p.control.ArchiveSession(p.ctx, p.admin, id))(t)
	other := p.session(nil, "another")
	p.idle(other, api.StopRequiresAction)
	wantTypes(t, p.events(id)[9:], "session.thread_status_terminated", "session.status_terminated")
}

// A mistake in the loop's own rules ends the turn visibly, once, and not the
// process.
func TestPanicEndsTheTurn(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Hi."}}})
	e := p.engine()
	e.cfg.Model = nil // the mistake
	p.run(e)
	id := p.session(nil, "hello")
	events := p.idle(id, api.StopRetriesExhausted)
	wantTypes(t, events[3:], "span.model_request_start", "span.model_request_end", "session.error", "session.thread_status_idle", "session.usage", "session.status_idle")
	if got := last[*api.SessionError](t, events).Error; got.Type != api.ErrorUnknown || strings.Contains(got.Message, "nil pointer") {
		t.Errorf("the error is %+v", got)
	}
	checkLog(t, p, id)
}

// The number of sessions at work is bounded; the others wait their turn.
func TestTurnsMax(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Hi.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 100}}}}})
	p.run(p.engine(func(c *Config) { c.TurnsMax = 2 }))
	var ids []api.SessionID
	for i := range 5 {
		ids = append(ids, p.session(nil, fmt.Sprint("hello ", i)))
	}
	if err := p.server.WaitStalled(p.ctx, 2); err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, id := range ids {
		running += len(of(p.events(id), api.EvSpanModelRequestStart))
	}
	if running != 2 {
		t.Errorf("%d requests at a time", running)
	}
	for n := 3; n <= 5; n++ {
		p.server.Release()
		if err := p.server.WaitStalled(p.ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	p.server.Release()
	for _, id := range ids {
		p.idle(id, api.StopEndTurn)
	}
}
