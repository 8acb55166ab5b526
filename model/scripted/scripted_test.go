package scripted_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/model/scripted"
)

// sdk returns the official client of a server: if that understands the fake,
// the fake is close enough to the real thing.
func sdk(t *testing.T, s *scripted.Server) anthropic.Client {
	t.Helper()
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	return anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(ts.URL), option.WithMaxRetries(0))
}

func ask(text string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model: "claude-opus-5-5", MaxTokens: 100,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	}
}

// tools offers tools by name.
func tools(names ...string) []anthropic.ToolUnionParam {
	var out []anthropic.ToolUnionParam
	for _, name := range names {
		out = append(out, anthropic.ToolUnionParam{OfTool: &anthropic.ToolParam{Name: name}})
	}
	return out
}

func TestStreamAndWholeMessageSayTheSame(t *testing.T) {
	t.Parallel()
	client := sdk(t, scripted.New(scripted.Options{PieceRunes: 3}, scripted.Script{Turns: []scripted.Turn{{
		Thinking: "Hm, größer?",
		Text:     "Let me see “that”.",
		Calls: []scripted.Call{
			{Name: "bash", Input: map[string]any{"command": "echo ü \"x\""}},
			{Name: "read", Input: map[string]any{"file_path": "a", "view_range": []int{1, 2}}},
		},
		Usage: &scripted.Usage{InputTokens: 7, OutputTokens: 9, CacheReadInputTokens: 5, CacheCreation5m: 3, CacheCreation1h: 2},
	}}}))

	whole, err := client.Messages.New(t.Context(), ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	var streamed anthropic.Message
	stream := client.Messages.NewStreaming(t.Context(), ask("hello"))
	for stream.Next() {
		if err := streamed.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}

	type summary struct {
		Text, Thinking, Name, Input string
	}
	summarize := func(m *anthropic.Message) (out []summary) {
		for _, b := range m.Content {
			out = append(out, summary{b.Text, b.Thinking, b.Name, string(b.Input)})
		}
		return out
	}
	want := []summary{
		{Thinking: "Hm, größer?"},
		{Text: "Let me see “that”."},
		{Name: "bash", Input: `{"command":"echo ü \"x\""}`},
		{Name: "read", Input: `{"file_path":"a","view_range":[1,2]}`},
	}
	if diff := cmp.Diff(want, summarize(whole)); diff != "" {
		t.Errorf("whole message (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, summarize(&streamed)); diff != "" {
		t.Errorf("streamed message (-want +got):\n%s", diff)
	}
	for _, m := range []*anthropic.Message{whole, &streamed} {
		if m.StopReason != "tool_use" || m.Usage.InputTokens != 7 || m.Usage.OutputTokens != 9 ||
			m.Usage.CacheCreationInputTokens != 5 || m.Usage.CacheCreation.Ephemeral1hInputTokens != 2 {
			t.Errorf("stop reason %s, usage %s", m.StopReason, m.Usage.RawJSON())
		}
	}
}

func TestTurnFollowsTheConversation(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{},
		scripted.Script{Name: "a", Marker: "[a]", Turns: []scripted.Turn{
			{Text: "a0"}, {On: "summarize", Text: "summary"}, {Text: "a1"},
		}},
		scripted.Script{Name: "b", Marker: "[b]", Turns: []scripted.Turn{{Text: "b0"}}, OpenEnd: true},
	)
	client := sdk(t, server)
	say := func(texts ...string) string {
		params := ask(texts[0])
		for i, text := range texts[1:] {
			block := anthropic.NewTextBlock(text)
			if i%2 == 0 {
				params.Messages = append(params.Messages, anthropic.NewAssistantMessage(block))
			} else {
				params.Messages = append(params.Messages, anthropic.NewUserMessage(block))
			}
		}
		m, err := client.Messages.New(t.Context(), params)
		if err != nil {
			return err.Error()
		}
		return m.Content[0].Text
	}
	tests := []struct {
		name  string
		texts []string
		want  string
	}{
		{"first", []string{"hi [a]"}, "a0"},
		{"again", []string{"hi [a]"}, "a0"},
		{"second", []string{"hi [a]", "x", "go on"}, "a1"},
		{"aside", []string{"hi [a]", "x", "please summarize"}, "summary"},
		{"over", []string{"hi [a]", "x", "y", "z", "u"}, `script \"a\" is over: it has no turn 2`},
		{"other script", []string{"hi [b]"}, "b0"},
		{"open end", []string{"hi [b]", "x", "more"}, "scripted stand-in"},
		{"no script", []string{"hi"}, "scripted stand-in"},
	}
	for _, test := range tests {
		if got := say(test.texts...); !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want it to contain %q", test.name, got, test.want)
		}
	}
	requests := server.Requests()
	if len(requests) != len(tests) || requests[2].Script != "a" || requests[2].Turn != 2 || requests[4].Status != 400 {
		t.Errorf("recorded %d requests; third is %s/%d", len(requests), requests[2].Script, requests[2].Turn)
	}
}

func TestRefusesWhatTheRealEndpointRefuses(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{Key: "secret"})
	const call = `{"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"bash","input":{}}]}`
	const result = `{"type":"tool_result","tool_use_id":"t1","content":"x"}`
	body := func(messages string) string {
		return `{"model":"m","max_tokens":1,"messages":[` + messages + `]}`
	}
	const user = `{"role":"user","content":"hi"}`
	tests := []struct{ name, body, want string }{
		{"sound", body(user), ""},
		{"sound pair", body(user + "," + call + `,{"role":"user","content":[` + result + `]}`), ""},
		{"results in two messages", body(user + "," + call + `,{"role":"user","content":[` + result + `]},{"role":"user","content":"and"}`), ""},
		{"not JSON", `{`, "not a JSON object"},
		{"unknown parameter", `{"model":"m","max_token":1}`, "max_token: no such parameter"},
		{"no model", `{"max_tokens":1,"messages":[` + user + `]}`, "model: is required"},
		{"no limit", `{"model":"m","messages":[` + user + `]}`, "max_tokens: must be at least 1"},
		{"no messages", body(""), "at least one"},
		{"assistant first", body(call), "first must have the role user"},
		{"prefill", body(user + `,{"role":"assistant","content":"x"}`), "no prefill"},
		{"empty text", body(`{"role":"user","content":[{"type":"text","text":" "}]}`), "messages.0.content.0.text: must not be empty"},
		{"empty content", body(`{"role":"user","content":[]}`), "must not be empty"},
		{"unanswered call", body(user + "," + call + "," + user), `tool_use "t1" has no tool_result`},
		{"answer without call", body(user + `,{"role":"assistant","content":"x"},{"role":"user","content":[` + result + `]}`), "which the message before did not call"},
		{"two answers", body(user + "," + call + `,{"role":"user","content":[` + result + "," + result + `]}`), "did not call"},
		{"tool twice", `{"model":"m","max_tokens":1,"messages":[` + user + `],"tools":[{"name":"a"},{"name":"a"}]}`, "a is there twice"},
		{"five breakpoints", body(`{"role":"user","content":[` + strings.Repeat(`{"type":"text","text":"x","cache_control":{}},`, 4) + `{"type":"text","text":"x","cache_control":{}}]}`), "at most 4"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(test.body))
			r.Header.Set("X-Api-Key", "secret")
			r.Header.Set("Anthropic-Version", "2026-10-21")
			w := httptest.NewRecorder()
			server.ServeHTTP(w, r)
			if test.want == "" {
				if w.Code != 200 {
					t.Errorf("status %d: %s", w.Code, w.Body)
				}
				return
			}
			var reply struct {
				Error struct{ Type, Message string }
			}
			if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil {
				t.Fatal(err)
			}
			if w.Code != 400 || reply.Error.Type != "invalid_request_error" || !strings.Contains(reply.Error.Message, test.want) {
				t.Errorf("status %d, %+v; want %q", w.Code, reply.Error, test.want)
			}
		})
	}

	r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(body(user)))
	r.Header.Set("Anthropic-Version", "2026-10-21")
	w := httptest.NewRecorder()
	server.ServeHTTP(w, r)
	if w.Code != 401 {
		t.Errorf("without the key: status %d, want 401", w.Code)
	}
}

func TestFaultsAreCountedPerConversation(t *testing.T) {
	t.Parallel()
	client := sdk(t, scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text:   "ok",
		Faults: []scripted.Fault{{Kind: scripted.FaultStatus, Status: 529, Times: 2}, {Kind: scripted.FaultStatus, Status: 429, RetryAfter: 3 * time.Second}},
	}}}))
	for _, conversation := range []string{"one", "two"} {
		var got []int
		for range 4 {
			_, err := client.Messages.New(t.Context(), ask(conversation))
			status := 200
			if e, ok := err.(*anthropic.Error); ok {
				status = e.StatusCode
			}
			got = append(got, status)
		}
		if diff := cmp.Diff([]int{529, 529, 429, 200}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", conversation, diff)
		}
	}
}

func TestStallGoesOnWhenReleased(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text: "at last", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 100}},
	}}})
	client := sdk(t, server)
	got := make(chan string)
	go func() {
		m, err := client.Messages.New(t.Context(), ask("hi"))
		if err != nil {
			got <- err.Error()
			return
		}
		got <- m.Content[0].Text
	}()
	if err := server.WaitStalled(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	server.Release()
	if text := <-got; text != "at last" {
		t.Errorf("got %q", text)
	}
}

func TestOtherOperations(t *testing.T) {
	t.Parallel()
	client := sdk(t, scripted.New(scripted.Options{Models: []string{"m1", "m2"}}))
	page, err := client.Models.List(t.Context(), anthropic.ModelListParams{})
	if err != nil || len(page.Data) != 2 || page.Data[1].ID != "m2" {
		t.Errorf("list: %v, %v", page, err)
	}
	info, err := client.Models.Get(t.Context(), "m1", anthropic.ModelGetParams{})
	if err != nil || info.ID != "m1" {
		t.Errorf("get: %v, %v", info, err)
	}
	count, err := client.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: "m1", Messages: ask("hi").Messages})
	if err != nil || count.InputTokens < 1 {
		t.Errorf("count: %v, %v", count, err)
	}
}

func TestListenerServesUntilTheEnd(t *testing.T) {
	t.Parallel()
	if _, err := scripted.New(scripted.Options{}).Listen("0.0.0.0:0"); err == nil {
		t.Error("listened on every network")
	}
	server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text: "x", Faults: []scripted.Fault{{Kind: scripted.FaultStall}},
	}}})
	l, err := server.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(l.URL), option.WithMaxRetries(0))
	failed := make(chan error)
	go func() {
		_, err := client.Messages.New(context.Background(), ask("hi"))
		failed <- err
	}()
	if err := server.WaitStalled(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("a stalled reply outlived the listener")
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const good = `
name: greet
marker: "[greet]"
turns:
- thinking: hm
  calls: [{name: bash, input: {command: "true", timeout_ms: 500}}]
  faults: [{kind: status, status: 429, retry_after: 2s, times: 2}]
- expect: [{ok: true, contains: hi}]
  text: done
  usage: {input_tokens: 3, cache_creation_5m: 4}
---
{"marker": "[json]", "open_end": true, "turns": [{"text": "hello"}]}
`
	scripts, err := scripted.Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := []scripted.Script{
		{Name: "greet", Marker: "[greet]", Turns: []scripted.Turn{
			{
				Thinking: "hm",
				Calls:    []scripted.Call{{Name: "bash", Input: map[string]any{"command": "true", "timeout_ms": 500}}},
				Faults:   []scripted.Fault{{Kind: "status", Status: 429, RetryAfter: 2 * time.Second, Times: 2}},
			},
			{
				Expect: []scripted.Expect{{OK: true, Contains: "hi"}}, Text: "done",
				Usage: &scripted.Usage{InputTokens: 3, CacheCreation5m: 4},
			},
		}},
		{Name: "document 2", Marker: "[json]", OpenEnd: true, Turns: []scripted.Turn{{Text: "hello"}}},
	}
	if diff := cmp.Diff(want, scripts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "no script"},
		{"no turns", "name: x", "has no turns"},
		{"unknown key", "turns: [{txt: hi}]", "txt"},
		{"silent turn", "turns: [{}]", "says nothing"},
		{"unknown fault", "turns: [{text: x, faults: [{kind: boom}]}]", "boom"},
		{"status out of range", "turns: [{text: x, faults: [{kind: status, status: 200}]}]", "400 to 599"},
		{"expects nothing", "turns: [{text: x, expect: [{result: 1}]}]", "expects nothing"},
		{"input that is no JSON", "turns: [{calls: [{name: x, input: {a: .nan}}]}]", "input of x"},
	} {
		if _, err := scripted.Parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("turns: [{text: hi, faults: [{kind: cut, after: 10}]}]"))
	f.Add([]byte("{\"turns\": [{\"calls\": [{\"name\": \"x\", \"input\": {\"a\": [1, null]}}]}]}\n---\nturns: [{stop: refusal}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		scripts, err := scripted.Parse(data)
		if err != nil {
			return
		}
		// What parses can be played.
		server := scripted.New(scripted.Options{}, scripts...)
		for _, stream := range []bool{false, true} {
			r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(
				fmt.Sprintf(`{"model":"m","max_tokens":1,"stream":%v,"messages":[{"role":"user","content":"hi"}]}`, stream)))
			r.Header.Set("Anthropic-Version", "x")
			ctx, cancel := context.WithCancel(r.Context())
			cancel() // no stall or delay may hold the fuzzer
			func() {
				defer func() {
					if p := recover(); p != nil && p != http.ErrAbortHandler {
						panic(p)
					}
				}()
				server.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
			}()
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"run ls"}],"tools":[{"name":"bash"}]}`)
	f.Add(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"text"}]}]}]}`)
	server := scripted.New(scripted.Options{}, scripted.Demo())
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(body))
		r.Header.Set("Anthropic-Version", "x")
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Errorf("status %d", w.Code)
		}
	})
}

// TestDemoPlays plays the demo with the simplest tools that can, in a real
// shell: the transcript must be true.
func TestDemoPlays(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("bash is needed to play the demo")
		}
		t.Skip("bash is not installed")
	}
	client := sdk(t, scripted.New(scripted.Options{}, scripted.Demo()))
	dir := t.TempDir()
	run := func(name string, raw json.RawMessage) (string, bool) {
		var in struct {
			Command   string
			FilePath  string `json:"file_path"`
			Content   string
			OldString string `json:"old_string"`
			NewString string `json:"new_string"`
		}
		if err := json.Unmarshal(raw, &in); err != nil {
			return err.Error(), true
		}
		path := filepath.Join(dir, filepath.Base(in.FilePath))
		switch name {
		case "write":
			return fmt.Sprintf("wrote %d bytes to %s", len(in.Content), in.FilePath), os.WriteFile(path, []byte(in.Content), 0o600) != nil
		case "read":
			text, err := os.ReadFile(path)
			return string(text), err != nil
		case "edit":
			text, err := os.ReadFile(path)
			if err != nil || strings.Count(string(text), in.OldString) != 1 {
				return "old_string not found", true
			}
			text = []byte(strings.Replace(string(text), in.OldString, in.NewString, 1))
			return "edited " + in.FilePath + " (1 replacement(s))", os.WriteFile(path, text, 0o600) != nil
		}
		cmd := exec.CommandContext(t.Context(), bash, "-c", in.Command)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return string(out) + "\n" + err.Error(), true
		}
		return string(out), false
	}

	params := ask(scripted.DemoPrompt)
	params.Tools = tools("bash", "read", "write", "edit")
	var names []string
	for {
		m, err := client.Messages.New(t.Context(), params)
		if err != nil {
			t.Fatalf("after %v: %v", names, err)
		}
		params.Messages = append(params.Messages, m.ToParam())
		if m.StopReason == "end_turn" {
			if text := m.Content[0].Text; !strings.Contains(text, "5050") {
				t.Errorf("answer: %s", text)
			}
			break
		}
		var results []anthropic.ContentBlockParamUnion
		for _, b := range m.Content {
			if b.Type == "tool_use" {
				names = append(names, b.Name)
				text, failed := run(b.Name, b.Input)
				results = append(results, anthropic.NewToolResultBlock(b.ID, text, failed))
			}
		}
		params.Messages = append(params.Messages, anthropic.NewUserMessage(results...))
	}
	if diff := cmp.Diff([]string{"write", "bash", "read", "edit", "bash"}, names); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}

	// The conversation goes on offline.
	params.Messages = append(params.Messages, anthropic.NewUserMessage(anthropic.NewTextBlock("run `bash sum.sh 3`")))
	m, err := client.Messages.New(t.Context(), params)
	if err != nil || m.StopReason != "tool_use" || string(m.Content[1].Input) != `{"command":"bash sum.sh 3"}` {
		t.Errorf("offline: %+v, %v", m, err)
	}
}

func TestDemoNoticesAWrongResult(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{}, scripted.Demo())
	body := fmt.Sprintf(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":%q},
		{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"write","input":{}}]},
		{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","is_error":true,"content":"disk full"}]}]}`, scripted.DemoPrompt)
	r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(body))
	r.Header.Set("Anthropic-Version", "x")
	w := httptest.NewRecorder()
	server.ServeHTTP(w, r)
	text, _ := io.ReadAll(w.Result().Body)
	if w.Code != 400 || !strings.Contains(string(text), "disk full") {
		t.Errorf("status %d: %s", w.Code, text)
	}
}
