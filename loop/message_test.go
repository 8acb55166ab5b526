package loop

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/model"
)

func TestCut(t *testing.T) {
	t.Parallel()
	if got := cut("short", 5); got != "short" {
		t.Errorf("cut changed a text that fits: %q", got)
	}
	if diff := cmp.Diff("aaaaaa\n\n[… 92 bytes left out here …]\n\nzz", cut("aaaaaa"+strings.Repeat("m", 92)+"zz", 8)); diff != "" {
		t.Error(diff)
	}
	for limit := range 40 {
		if got := cut(strings.Repeat("é世", 20), limit); !utf8.ValidString(got) {
			t.Errorf("limit %d cuts a character in two: %q", limit, got)
		}
	}
}

func TestResultBlockBounds(t *testing.T) {
	t.Parallel()
	content := api.Content{
		api.TextBlock(strings.Repeat("a", 300_000)), api.TextBlock(strings.Repeat("b", 100_000)),
		json.RawMessage(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}`),
	}
	got := resultBlock("toolu_1", content, false)
	if len(got) > resultCharsMax+1_000 {
		t.Errorf("the result has %d bytes", len(got))
	}
	for _, want := range []string{"225000 bytes left out", "75000 bytes left out", "image/png"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %q in the result", want)
		}
	}
}

func TestReplayable(t *testing.T) {
	t.Parallel()
	thinking := json.RawMessage(`{"type":"thinking","thinking":"hm","signature":"x"}`)
	text, blank := api.TextBlock("hi"), api.TextBlock(" \n")
	for _, tt := range []struct{ in, want []json.RawMessage }{
		{nil, nil},
		{[]json.RawMessage{thinking, text}, []json.RawMessage{thinking, text}},
		{[]json.RawMessage{thinking, blank}, nil},
		{[]json.RawMessage{text, blank, thinking, thinking}, []json.RawMessage{text}},
	} {
		if diff := cmp.Diff(fmt.Sprintf("%s", tt.want), fmt.Sprintf("%s", replayable(tt.in))); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSystemPrompt(t *testing.T) {
	t.Parallel()
	agent := testSession().Agent
	system := "You test."
	agent.System = &system
	got := systemPrompt(&agent, offers(&agent, nil))
	if diff := cmp.Diff(system+"\n\n"+environmentPrompt, got); diff != "" {
		t.Error(diff)
	}
	agent.Tools = agent.Tools[1:]
	if got := systemPrompt(&agent, offers(&agent, nil)); got != system {
		t.Errorf("without built-in tools the prompt is %q", got)
	}
	if len(environmentPrompt) > 500 {
		t.Errorf("the environment prompt has %d bytes; it is paid for in every request", len(environmentPrompt))
	}
}

func TestOffers(t *testing.T) {
	t.Parallel()
	var got []string
	for _, o := range offers(&testSession().Agent, nil) {
		got = append(got, fmt.Sprintf("%s %v %s", o.Name, o.custom, o.policy))
	}
	want := []string{"bash false auto", "read false always_allow", "write false always_ask", "edit false always_allow", "glob false always_allow", "weather true "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A server with more tools than there is room for: those that are left out are counted.
func TestTooManyOffers(t *testing.T) {
	t.Parallel()
	on, off := true, false
	agent := &api.SessionAgent{AgentSpec: api.AgentSpec{Tools: []api.AgentTool{{
		Type: api.ToolsetMCP, MCPServerName: "far", DefaultConfig: &api.ToolDefaults{Enabled: &on, PermissionPolicy: &api.PermissionPolicy{}},
		Configs: []api.ToolConfig{{Name: "t0", Enabled: &off, PermissionPolicy: &api.PermissionPolicy{}}},
	}}}}
	for n, want := range map[int]int{0: 0, 1: 0, offersMax + 1: 0, offersMax + 6: 5} {
		box := &toolbox{tools: map[string][]mcp.Tool{}}
		for i := range n {
			box.tools["far"] = append(box.tools["far"], mcp.Tool{Name: fmt.Sprint("t", i)})
		}
		if got := leftOut(agent, box); got != want || len(offers(agent, box)) > offersMax {
			t.Errorf("of %d tools %d are left out, and %d offered", n, got, len(offers(agent, box)))
		}
	}
}

// A summary must be possible of any conversation, however long.
func TestRecordBounds(t *testing.T) {
	t.Parallel()
	var items []item
	for i := range 100 {
		items = append(items,
			item{userInput, []json.RawMessage{api.TextBlock(fmt.Sprintf("question %d %s", i, strings.Repeat("q", 100_000)))}},
			item{response, []json.RawMessage{json.RawMessage(`{"type":"thinking","thinking":"secret"}`), api.TextBlock("answer"), json.RawMessage(`{"type":"tool_use","name":"bash","input":{}}`)}},
			item{results, []json.RawMessage{resultBlock("x", api.Content{api.TextBlock(strings.Repeat("r", 90_000))}, false)}})
	}
	got := record(items, 300_000) // of ten million
	if len(got) > 300_000+5*pieceBytes {
		t.Errorf("the record has %d bytes", len(got))
	}
	for _, want := range []string{"question 0 ", "question 99 ", "entries left out here", "Agent calls bash: {}"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the record", want)
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("the record shows thinking")
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	var got []string
	for n := 1; n <= 9; n++ {
		got = append(got, fmt.Sprint(backoff(n, 0), backoff(n, 1)))
	}
	want := []string{"500ms 1s", "1s 2s", "2s 4s", "4s 8s", "8s 16s", "16s 32s", "30s 1m0s", "30s 1m0s", "30s 1m0s"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestModelFailure(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		err  error
		want failure
	}{
		{&model.Error{Kind: model.Overloaded, Status: 529, Message: "Overloaded", Retryable: true},
			failure{failureError, api.ErrorModelOverloaded, "The model is overloaded (HTTP 529: Overloaded).", now.Add(2 * time.Second)}},
		{&model.Error{Kind: model.RateLimited, Status: 429, Message: "Slow down", Retryable: true, RetryAfter: 42 * time.Second},
			failure{failureError, api.ErrorModelRateLimited, "The model endpoint limits the rate of requests (HTTP 429: Slow down).", now.Add(42 * time.Second)}},
		{&model.Error{Kind: model.RateLimited, Status: 429, Message: "Tomorrow", Retryable: true, RetryAfter: 24 * time.Hour},
			failure{failureError, api.ErrorModelRateLimited, "The model endpoint limits the rate of requests (HTTP 429: Tomorrow).", now.Add(15 * time.Minute)}},
		{&model.Error{Kind: model.Interrupted, Message: "the connection broke", Retryable: true},
			failure{failureError, api.ErrorModelRequest, "The request to the model failed (the connection broke).", now.Add(2 * time.Second)}},
		{&model.Error{Kind: model.Failed, Status: 404, Message: "model: claude-x"},
			failure{failureError, api.ErrorModelRequest, "The model endpoint refused the request (HTTP 404: model: claude-x). Trying again will not help: check the agent's model and tools, and what was sent.", time.Time{}}},
		{&model.Error{Kind: model.Auth, Status: 401, Message: "invalid x-api-key"},
			failure{failureError, api.ErrorModelRequest, "The model endpoint refused this server's credential (HTTP 401: invalid x-api-key). Its operator has to correct the model key; then send a new message.", time.Time{}}},
		{&model.Error{Kind: model.Billing, Status: 400, Message: "No credit", Retryable: true},
			failure{failureError, api.ErrorBilling, "The model endpoint refused the request over billing (HTTP 400: No credit). Settle that with the provider, then send a new message.", time.Time{}}},
		{&model.Error{Kind: model.TooLong, Status: 400, Message: "prompt is too long"},
			failure{failureTooLong, api.ErrorModelRequest, "The conversation is too long for the model, also when summarized (HTTP 400: prompt is too long). Start a new session with less input.", time.Time{}}},
		{errors.New("a secret of the inside"),
			failure{failureError, api.ErrorUnknown, "The request to the model could not be made. The server's log says why.", time.Time{}}},
	} {
		if diff := cmp.Diff(&tt.want, modelFailure(tt.err, 2, now, 1)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.err, diff)
		}
	}
}

// What cannot be carried on is closed without the rules that failed on it.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	log := &memLog{}
	log.append(
		api.Draft{ID: "u1", Body: &api.UserMessage{}},
		api.Draft{Body: &api.SessionStatusRunning{}},
		api.Draft{ID: "s0", Body: &api.SpanModelRequestStart{}},
		api.Draft{ID: "c1", Body: &api.AgentToolUse{Name: "bash"}},
		api.Draft{ID: "c2", Body: &api.AgentCustomToolUse{Name: "weather"}},
		api.Draft{Body: &api.SpanModelRequestEnd{ModelRequestStartID: "s0"}},
		api.Draft{Body: &api.UserToolResult{ToolUseID: "c1"}},
		api.Draft{ID: "s1", Body: &api.SpanModelRequestStart{}},
		api.Draft{ID: "u2", Body: &api.UserMessage{}, Queued: true},
	)
	v := control.View{Session: testSession(), ThreadID: "sthr_1", Entries: log.entries}
	log.append(abandoned(v, api.Tokens{Input: 7})...)
	log.check(t)
	s := State{}
	for _, e := range log.entries {
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	s.Look(v.Session, "sthr_1", false)
	if step := s.Next(); step.Do != Rest {
		t.Errorf("an abandoned session does not rest: %s", showStep(step))
	}
	for _, c := range log.calls() {
		if c.result != 1 {
			t.Errorf("call %s has %d results", c.id, c.result)
		}
	}
	v.Session.Status = api.StatusTerminated
	if drafts := abandoned(v, api.Tokens{}); len(drafts) > 0 {
		t.Error("a terminated session was written to")
	}
}
