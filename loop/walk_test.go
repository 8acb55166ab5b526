package loop

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

var walks = flag.Int("walks", 40, "random histories to try in TestRandomWalks")

// TestRandomWalks drives sessions at random: clients that send everything they
// may at any time, a model that says anything, failures, budgets, and crashes
// that lose a write or only its reply. After every write the log must keep its
// promises, and once everybody behaves every session must come to rest.
func TestRandomWalks(t *testing.T) {
	t.Parallel()
	for seed := range *walks {
		w := newWalk(t, uint64(seed))
		for range 80 {
			w.step()
		}
		w.finish()
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, w.log)
		}
	}
}

// FuzzWalk is the same with histories chosen by the fuzzer.
func FuzzWalk(f *testing.F) {
	f.Add(uint64(1), 50)
	f.Fuzz(func(t *testing.T, seed uint64, steps int) {
		w := newWalk(t, seed)
		for range min(max(steps, 0), 300) {
			w.step()
		}
		w.finish()
	})
}

// A walk is one session, its clients and its model.
type walk struct {
	t   *testing.T
	rnd *rand.Rand
	log *memLog
	now time.Time

	session *api.Session
	over    bool
	wake    time.Time // zero: not due

	box   *toolbox             // of the turn
	begun map[api.EventID]bool // calls that the turn runs
	ran   map[api.EventID]int  // how often a call was run

	base State  // folded from the log as it grew, like that of a held turn
	held *State // a request is under way; nil otherwise
	then Action
	late bool // no failures any more
	sent int
	refs int
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), log: &memLog{}, session: testSession(), now: time.Unix(1_800_000_000, 0)}
	w.session.Status = api.StatusIdle
	w.ran = map[api.EventID]int{}
	withMCP(&w.session.Agent)
	w.base.compactAt = 400
	return w
}

func (w *walk) step() {
	switch n := w.rnd.IntN(20); {
	case n < 5:
		w.client()
	case n == 5:
		w.over = !w.over
		w.log.append(api.Draft{Body: &api.SessionUpdated{Budget: api.Opt[api.Budget]{Set: true, Null: !w.over}}})
		w.wake = w.now
	case n == 6:
		w.held = nil // the process dies
	case n == 7:
		w.now = w.now.Add(time.Duration(w.rnd.IntN(100)) * time.Second)
	default:
		w.engine()
	}
}

// client sends something that control would accept.
func (w *walk) client() {
	w.sent++
	say := func(body api.EventBody) {
		w.log.append(api.Draft{Body: body, Queued: true})
		w.wake = w.now
	}
	text := api.Content{api.TextBlock(fmt.Sprintf("message %d", w.sent))}
	open := w.log.waiting()
	switch n := w.rnd.IntN(10); {
	case n < 3 && len(open) == 0 && !w.over:
		if w.rnd.IntN(8) == 0 {
			text = api.Content{api.TextBlock(" ")}
		}
		say(&api.UserMessage{Content: text})
		w.session.Status = api.StatusRunning
	case n == 3 && len(open) == 0 && !w.over:
		say(&api.SystemMessage{Content: text})
		w.session.Status = api.StatusRunning
	case n == 4:
		say(&api.UserInterrupt{})
	case len(w.log.calls()) > 0:
		calls := w.log.calls()
		w.answer(calls[w.rnd.IntN(len(calls))])
	}
}

// answer confirms or answers a call, if that is due.
func (w *walk) answer(c memCall) {
	switch {
	case c.result != 0 || c.denied || c.verdict == "deny":
		return
	case c.mcp && (!c.ask || c.verdict != ""):
		return // the loop's
	case c.ask && c.verdict == "":
		verdict := "allow"
		if w.rnd.IntN(3) == 0 {
			verdict = "deny"
		}
		w.log.append(api.Draft{Body: &api.UserToolConfirmation{ToolUseID: c.id, Result: verdict}, Queued: c.mcp || w.rnd.IntN(2) == 0})
	case c.custom:
		w.log.append(api.Draft{Body: &api.UserCustomToolResult{CustomToolUseID: c.id, Content: api.Content{api.TextBlock("sunny")}}})
	default:
		w.log.append(api.Draft{Body: &api.UserToolResult{ToolUseID: c.id, Content: api.Content{api.TextBlock(strings.Repeat("out ", w.rnd.IntN(40)))}}})
	}
	w.wake = w.now
}

// engine makes the next write of the turn, or claims it.
func (w *walk) engine() {
	if w.held != nil {
		held, then := w.held, w.then
		w.held = nil
		span := held.span
		switch then {
		case Compact:
			checkConversation(w.t, held.summaryRequest().Messages)
		case CallModel:
			checkConversation(w.t, held.messages())
		case Equip:
			w.box = farTools
			w.write(func(*State) []api.Draft { return nil })
			return
		case RunCalls:
			w.write(func(s *State) []api.Draft { return w.runCalls(held, s) })
			return
		}
		first := func(s *State) []api.Draft {
			if s.span != span {
				w.t.Errorf("the open request is %q, not %q", s.span, span)
			}
			return w.outcome(s, then)
		}
		w.write(first)
		return
	}
	if w.wake.IsZero() || w.wake.After(w.now) {
		return
	}
	w.base = State{compactAt: w.base.compactAt} // a new claim reads the log anew
	w.box, w.begun = nil, map[api.EventID]bool{}
	w.write(func(*State) []api.Draft { return nil })
}

func (w *walk) write(first func(*State) []api.Draft) {
	for _, e := range w.log.entries {
		if err := w.base.Apply(e); err != nil {
			w.t.Fatal(err)
		}
	}
	session := *w.session
	w.base.Look(&session, "sthr_1", w.over)
	drafts := first(&w.base)
	w.base.mcp = w.box
	w.base.adopt(w.begun)
	s := w.base.clone()
	before := w.base.Next()
	p, err := s.settle(drafts, w.now, false, w.log.newID)
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := cmp.Diff(showStep(before), showStep(w.base.Next())); diff != "" {
		w.t.Errorf("settling a clone changed the original:\n%s", diff)
	}
	for _, c := range s.running() {
		w.begun[c.id] = true
	}
	if !w.late && w.rnd.IntN(10) == 0 {
		w.wake = w.now // the write is lost, and its process with it
		return
	}
	w.log.append(p.drafts...)
	w.log.check(w.t)
	for _, d := range p.drafts {
		switch d.Body.(type) {
		case *api.SessionStatusIdle:
			w.session.Status = api.StatusIdle
		case *api.SessionStatusRunning:
			w.session.Status = api.StatusRunning
		case *api.SessionStatusResched:
			w.session.Status = api.StatusRescheduling
		}
	}

	// What was folded from drafts must be what the log gives back.
	again := State{compactAt: w.base.compactAt}
	for _, e := range w.log.entries {
		if err := again.Apply(e); err != nil {
			w.t.Fatal(err)
		}
	}
	session = *w.session
	again.Look(&session, "sthr_1", w.over)
	again.mcp = w.box
	again.adopt(w.begun)
	if diff := cmp.Diff(showStep(s.Next()), showStep(again.Next())); diff != "" {
		w.t.Errorf("the log says another next step than the turn (-turn +log):\n%s", diff)
	}
	if diff := cmp.Diff(s.messages(), again.messages()); diff != "" {
		w.t.Errorf("the log says another conversation than the turn (-turn +log):\n%s", diff)
	}

	w.wake = p.wakeAt
	if p.then != Rest {
		w.wake = w.now
		if w.late || w.rnd.IntN(10) > 0 { // else the process dies before it sends the request
			w.held, w.then = s, p.then
		}
	}
}

// runCalls runs some of the calls that the newest write has begun.
func (w *walk) runCalls(held, now *State) []api.Draft {
	var drafts []api.Draft
	for _, c := range held.running() {
		if w.ran[c.id] == 0 {
			w.ran[c.id]++ // it is under way from here on
		}
		if now.unanswered(c.id) == nil || !w.late && w.rnd.IntN(3) == 0 {
			continue // interrupted meanwhile, or not yet done
		}
		drafts = append(drafts, api.Draft{Body: &api.AgentMCPToolResult{MCPToolUseID: c.id, Content: api.Content{api.TextBlock("far away")}}})
	}
	return drafts
}

// outcome is what comes of a model request.
func (w *walk) outcome(s *State, then Action) []api.Draft {
	if !w.late && w.rnd.IntN(4) == 0 {
		failures := []*failure{
			{Kind: failureInterrupted}, {Kind: failureStopped},
			{Kind: failureTooLong, Type: api.ErrorModelRequest, Message: "Too long."},
			{Kind: failureError, Type: api.ErrorModelOverloaded, Message: "Busy.", RetryAt: w.now.Add(time.Duration(w.rnd.IntN(50)) * time.Second)},
			{Kind: failureError, Type: api.ErrorBilling, Message: "No credit."},
		}
		return []api.Draft{s.endFailed(failures[w.rnd.IntN(len(failures))], then == Compact)}
	}
	if then == Compact {
		res := &model.Response{StopReason: "end_turn", Content: []json.RawMessage{api.TextBlock("Much was said.")}}
		if !w.late && w.rnd.IntN(5) == 0 {
			res.Content = nil
		}
		return s.summarized(res, w.now)
	}
	return s.respond(w.response(), previewed{})
}

func (w *walk) response() *model.Response {
	res := &model.Response{StopReason: "end_turn", Usage: model.Usage{InputTokens: int64(w.rnd.IntN(300)), OutputTokens: int64(w.rnd.IntN(200))}}
	if w.late {
		res.Content = []json.RawMessage{api.TextBlock("Done.")}
		return res
	}
	for range w.rnd.IntN(4) {
		w.refs++
		call := func(name string) json.RawMessage {
			return json.RawMessage(fmt.Sprintf(`{"type":"tool_use","id":"toolu_%d","name":%q,"input":{"command":"ls","file_path":"a"}}`, w.refs, name))
		}
		blocks := []json.RawMessage{
			api.TextBlock("I think so."), api.TextBlock(""), api.TextBlock("\n"),
			json.RawMessage(`{"type":"thinking","thinking":"hm","signature":"x"}`),
			call("bash"), call("write"), call("read"), call("grep"), call("weather"), call("teleport"),
			call("mcp__far__look"), call("mcp__far__push"), call("mcp__far__nothing"),
		}
		res.Content = append(res.Content, blocks[w.rnd.IntN(len(blocks))])
	}
	if slices.ContainsFunc(res.Content, func(b json.RawMessage) bool { return blockType(b) == "tool_use" }) {
		res.StopReason = "tool_use"
	}
	if w.rnd.IntN(3) == 0 {
		stops := []string{stopMaxTokens, stopPause, stopRefusal, stopContextFull, "stop_sequence", "something_new"}
		res.StopReason = stops[w.rnd.IntN(len(stops))]
	}
	return res
}

// finish lets everybody behave until nothing is left to do.
func (w *walk) finish() {
	w.late = true
	if w.over {
		w.over = false
		w.log.append(api.Draft{Body: &api.SessionUpdated{Budget: api.Opt[api.Budget]{Set: true, Null: true}}})
	}
	if w.held == nil {
		w.wake = w.now
	}
	for range 200 {
		w.now = w.now.Add(time.Minute)
		w.engine()
		for _, c := range w.log.calls() {
			w.answer(c)
		}
		if w.held == nil && w.wake.IsZero() {
			break
		}
	}
	if w.held != nil || !w.wake.IsZero() {
		w.t.Errorf("the session does not come to rest: next is %s", showStep(w.base.Next()))
	}
	if w.session.Status != api.StatusIdle {
		w.t.Errorf("the session rests as %s", w.session.Status)
	}
	for _, e := range w.log.entries {
		if e.Queued {
			w.t.Errorf("%s is still queued", e.Event.ID)
		}
	}
	for _, c := range w.log.calls() {
		if c.result != 1 {
			w.t.Errorf("call %s has %d results", c.id, c.result)
		}
	}
}

func showStep(s Step) string {
	var out strings.Builder
	fmt.Fprintln(&out, s.Do, s.NotBefore.Unix())
	for _, d := range s.Drafts {
		fmt.Fprintln(&out, showDraft(d))
	}
	return out.String()
}

// checkConversation applies the rules that the Messages API has for a
// conversation.
func checkConversation(t *testing.T, messages []model.Message) {
	t.Helper()
	if len(messages) == 0 || messages[0].Role != "user" {
		t.Errorf("the conversation does not begin with the user")
	}
	var open []string // calls of the message before
	for i, m := range messages {
		prev := ""
		if i > 0 {
			prev = messages[i-1].Role
		}
		switch {
		case len(m.Content) == 0:
			t.Errorf("message %d is empty", i)
		case m.Role == "system" && (prev != "user" || i+1 < len(messages) && messages[i+1].Role != "assistant"):
			t.Errorf("message %d: a system message between %q and something else than assistant", i, prev)
		case m.Role == "user" && prev != "" && prev != "assistant", m.Role == "assistant" && prev != "user" && prev != "system":
			t.Errorf("message %d: %s after %q", i, m.Role, prev)
		}
		var calls []string
		for j, raw := range m.Content {
			var b struct {
				Type, Text, ID string
				ToolUseID      string `json:"tool_use_id"`
			}
			if err := json.Unmarshal(raw, &b); err != nil {
				t.Errorf("message %d: %v", i, err)
			}
			switch {
			case b.Type == "text" && strings.TrimSpace(b.Text) == "":
				t.Errorf("message %d has an empty text", i)
			case b.Type == "tool_use":
				calls = append(calls, b.ID)
			case b.Type == "tool_result" && (m.Role != "user" || j >= len(open) || open[j] != b.ToolUseID):
				t.Errorf("message %d: result %d is of %s, the calls are %v", i, j, b.ToolUseID, open)
			case b.Type != "tool_result" && m.Role == "user" && j < len(open):
				t.Errorf("message %d: block %d should be a result of %v", i, j, open)
			}
		}
		if n := len(m.Content); m.Role == "user" && n < len(open) {
			t.Errorf("message %d has %d blocks for calls %v", i, n, open)
		}
		if m.Role == "assistant" && isThinking(m.Content[len(m.Content)-1]) {
			t.Errorf("message %d ends with thinking", i)
		}
		open = calls
	}
	if len(open) > 0 {
		t.Errorf("the last calls %v have no results", open)
	}
}
