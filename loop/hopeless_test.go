package loop

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// badWrites reopens p's database so that the next writes can be made to fail.
func badWrites(p *plane) (left *atomic.Int32) {
	left = new(atomic.Int32)
	p.close()
	p.store.BeforeCommit = func() error {
		if left.Add(-1) >= 0 {
			return errors.New("this row is more than I can take")
		}
		return nil
	}
	p.open()
	return left
}

// A response that the database did not take was asked for anew, for as long as the
// server ran.
func TestAWriteThatFailsEachTimeEndsTheTurnAndItsTokensAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
			{Text: "Too much.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 400}}},
		}})
		left := badWrites(p)
		p.run(p.engine())
		id := p.session(nil, "hello")
		if err := p.server.WaitStalled(p.ctx, 1); err != nil {
			t.Fatal(err)
		}
		left.Store(sameFailuresMax)
		p.server.Release()
		events := p.idle(id, api.StopRetriesExhausted)
		wantTypes(t, events[3:], "span.model_request_start", "span.model_request_end", "session.error", "session.thread_status_idle", "session.usage", "session.status_idle")
		if got := last[*api.SpanModelRequestEnd](t, events).ModelUsage; got.OutputTokens == 0 {
			t.Error("the request that was paid for counts no tokens")
		}
		checkLog(t, p, id)
		p.send(id, userMessage("again"))
		if err := p.server.WaitStalled(p.ctx, 2); err != nil {
			t.Fatal(err)
		}
		p.server.Release()
		p.idle(id, api.StopEndTurn)
		checkLog(t, p, id)
	})
}

func TestASessionThatCannotBeBegunEndsInAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Hi."}}})
		left := badWrites(p)
		id := p.session(nil, "hello")
		left.Store(sameFailuresMax)
		p.run(p.engine())
		wantTypes(t, p.idle(id, api.StopRetriesExhausted), "session.error", "user.message", "session.thread_status_idle", "session.usage", "session.status_idle")
	})
}

// A database that is away for a while is waited for, as long as the lease lasts.
func TestADatabaseThatComesBackIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, scripted.Script{Turns: []scripted.Turn{{Text: "Hi.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 400}}}}})
		left := badWrites(p)
		p.run(p.engine())
		id := p.session(nil, "hello")
		if err := p.server.WaitStalled(p.ctx, 1); err != nil {
			t.Fatal(err)
		}
		left.Store(sameFailuresMax - 1)
		p.server.Release()
		if n := len(of(p.idle(id, api.StopEndTurn), api.EvSpanModelRequestStart)); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// Thousands of calls in one response made every write of the session slow, and with
// it every other tenant's.
func TestTooManyCallsOfOneResponseAreLeftOutAndTheModelIsTold(t *testing.T) {
	t.Parallel()
	calls := []scripted.Call{}
	for i := range callsMax + 44 {
		calls = append(calls, use("read", map[string]any{"file_path": fmt.Sprint("f", i)}))
	}
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: calls},
		{Expect: []scripted.Expect{{Contains: "all here", OK: true}}, Text: "Done."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	events := p.idle(id, api.StopRequiresAction)
	ids := last[*api.SessionStatusIdle](t, events).StopReason.EventIDs
	if len(ids) != callsMax {
		t.Fatalf("the session waits for %d calls", len(ids))
	}
	if got := last[*api.SessionError](t, events).Error; got.RetryStatus.Type != api.RetryRetrying || !strings.Contains(got.Message, "300 tool calls") {
		t.Errorf("the error is %+v", got)
	}
	var results []string
	for _, call := range ids {
		results = append(results, string(call))
		p.send(id, result(call, "all here"))
	}
	events = p.until(id, "the end", func(e []*api.Event) bool { return len(of(e, api.EvAgentMessage)) == 1 })
	if n := len(of(events, api.EvUserToolResult)); n != len(results) {
		t.Errorf("%d results", n)
	}
	requests := p.server.Requests()
	if body := string(requests[len(requests)-1].Body); !strings.Contains(body, "made 44 calls more than the 256") || strings.Contains(body, `"f256"`) {
		t.Error("the model was not told, or was shown calls without results")
	}
}

// Such a call used to be a failed model request, repeated until it was given up.
func TestACallWhoseInputIsNoObjectIsAnsweredAndTheTurnGoesOn(t *testing.T) {
	t.Parallel()
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{{Name: "bash", Raw: `["ls"]`}, {Name: "weather", Raw: `{"city":`}}},
		{Expect: []scripted.Expect{{Contains: "it is not a JSON object", Failed: true}, {Result: 1, Contains: "it is not valid JSON", Failed: true}}, Text: "Sorry."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	events := p.idle(id, api.StopEndTurn)
	wantTypes(t, events[3:], "span.model_request_start", "agent.tool_use", "agent.tool_use", "span.model_request_end",
		"agent.tool_result", "agent.tool_result", "span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	for _, e := range of(events, api.EvAgentToolUse) {
		if b := e.Body.(*api.AgentToolUse); b.EvaluatedPermission != api.PermissionDeny || b.Evaluation != nil {
			t.Errorf("%+v", b)
		}
	}
	checkLog(t, p, id)
}

// The endpoint refuses a conversation with half a surrogate pair in it, and every
// request that repeats it.
func TestHalfASurrogatePairReachesNeitherTheLogNorTheModel(t *testing.T) {
	t.Parallel()
	const half = `\ud83d`
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Calls: []scripted.Call{{Name: "read", Raw: `{"file_path":"` + half + `"}`}}},
		{Text: "Done."},
	}})
	p.run(p.engine())
	id := p.session(nil, "hello")
	call := last[*api.SessionStatusIdle](t, p.idle(id, api.StopRequiresAction)).StopReason.EventIDs[0]
	if input := string(last[*api.AgentToolUse](t, p.events(id)).Input); strings.Contains(input, half) {
		t.Errorf("the input in the log is %s", input)
	}
	// As a log of an earlier version has it: not through the door.
	p.send(id, []byte(`{"type":"user.tool_result","tool_use_id":"`+string(call)+`","content":[{"type":"text","text":"`+half+`"}]}`))
	p.idle(id, api.StopEndTurn)
	requests := p.server.Requests()
	if body := string(requests[len(requests)-1].Body); strings.Contains(body, half) || !strings.Contains(body, `\ufffd`) && !strings.Contains(body, "\ufffd") {
		t.Errorf("the model was sent %s", body)
	}
}
