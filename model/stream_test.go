package model_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/model/scripted"
)

const testKey = "sk-test-0123456789"

// newClient returns a client of a handler.
func newClient(t testing.TB, h http.Handler, adjust ...func(*model.Config)) *model.Client {
	t.Helper()
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	cfg := model.Config{BaseURL: ts.URL, Key: testKey, HTTPClient: ts.Client()}
	for _, f := range adjust {
		f(&cfg)
	}
	client, err := model.New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

func hello() model.Request {
	return model.Request{
		Model:    "claude-opus-5-5",
		Messages: []model.Message{{Role: "user", Content: []json.RawMessage{raw(`{"type":"text","text":"hello"}`)}}},
	}
}

// canonical makes raw blocks comparable.
func canonical(t *testing.T, blocks []json.RawMessage) []any {
	t.Helper()
	var out []any
	for _, b := range blocks {
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("block %s: %v", b, err)
		}
		out = append(out, v)
	}
	return out
}

func TestStreamPutsTheMessageTogether(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{Key: testKey, PieceRunes: 4}, scripted.Script{Turns: []scripted.Turn{{
		Thinking: "Hm <b>",
		Text:     "Größer & besser",
		Calls:    []scripted.Call{{Name: "bash", Input: map[string]any{"command": "true"}}, {Name: "noop"}},
		Usage:    &scripted.Usage{InputTokens: 7, OutputTokens: 9, CacheReadInputTokens: 5, CacheCreation5m: 3, CacheCreation1h: 2},
	}}})
	var deltas []model.Delta
	got, err := newClient(t, server).Stream(t.Context(), hello(), func(d model.Delta) { deltas = append(deltas, d) })
	if err != nil {
		t.Fatal(err)
	}

	var ids []string
	for _, b := range got.Content[2:] {
		var call struct{ ID string }
		if json.Unmarshal(b, &call) != nil || call.ID == "" {
			t.Fatalf("call without id: %s", b)
		}
		ids = append(ids, call.ID)
	}
	want := []any{
		map[string]any{"type": "thinking", "thinking": "Hm <b>", "signature": "c2NyaXB0ZWQ="},
		map[string]any{"type": "text", "text": "Größer & besser"},
		map[string]any{"type": "tool_use", "id": ids[0], "name": "bash", "input": map[string]any{"command": "true"}},
		map[string]any{"type": "tool_use", "id": ids[1], "name": "noop", "input": map[string]any{}},
	}
	if diff := cmp.Diff(want, canonical(t, got.Content)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	if strings.Contains(string(got.Content[0]), `\u003c`) {
		t.Errorf("HTML escapes grew in the block: %s", got.Content[0])
	}
	if diff := cmp.Diff(model.Usage{InputTokens: 7, OutputTokens: 9, CacheReadInputTokens: 5, CacheCreation5m: 3, CacheCreation1h: 2}, got.Usage); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	if got.StopReason != "tool_use" || got.Model != "claude-opus-5-5" || got.ID == "" {
		t.Errorf("response %+v", got)
	}
	wantDeltas := []model.Delta{
		{Kind: model.ThinkingStart, Index: 0},
		{Kind: model.TextStart, Index: 1},
		{Kind: model.Text, Index: 1, Text: "Größ"},
		{Kind: model.Text, Index: 1, Text: "er &"},
		{Kind: model.Text, Index: 1, Text: " bes"},
		{Kind: model.Text, Index: 1, Text: "ser"},
	}
	if diff := cmp.Diff(wantDeltas, deltas); diff != "" {
		t.Errorf("deltas (-want +got):\n%s", diff)
	}
}

func TestRefusalHasItsDetails(t *testing.T) {
	t.Parallel()
	server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{Stop: "refusal", Category: "bio", Explanation: "no"}}})
	got, err := newClient(t, server).Stream(t.Context(), hello(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&model.StopDetails{Category: "bio", Explanation: "no"}, got.StopDetails); diff != "" || got.StopReason != "refusal" {
		t.Errorf("stop %s (-want +got):\n%s", got.StopReason, diff)
	}
}

func TestScriptedFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault scripted.Fault
		turn  scripted.Turn // "" plays a text
		want  model.Error
	}{
		{
			name:  "overloaded",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 529, Message: "busy", RetryAfter: 7 * time.Second},
			want:  model.Error{Kind: model.Overloaded, Status: 529, Type: "overloaded_error", Message: "busy", RetryAfter: 7 * time.Second, Retryable: true},
		},
		{
			name:  "rate limit",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 429, Message: "slow down"},
			want:  model.Error{Kind: model.RateLimited, Status: 429, Type: "rate_limit_error", Message: "slow down", Retryable: true},
		},
		{
			name:  "server error",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 500, Message: "oops"},
			want:  model.Error{Kind: model.Failed, Status: 500, Type: "api_error", Message: "oops", Retryable: true},
		},
		{
			name:  "bad request",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 400, Message: "no such thing"},
			want:  model.Error{Kind: model.Failed, Status: 400, Type: "invalid_request_error", Message: "no such thing"},
		},
		{
			name:  "no credit",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 400, Message: "Your credit balance is too low to access the API."},
			want:  model.Error{Kind: model.Billing, Status: 400, Type: "invalid_request_error", Message: "Your credit balance is too low to access the API."},
		},
		{
			name:  "payment required",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 402, Message: "pay"},
			want:  model.Error{Kind: model.Billing, Status: 402, Type: "billing_error", Message: "pay"},
		},
		{
			name:  "wrong key, quoted back",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 401, Message: "bad key " + testKey + "\r\nreally"},
			want:  model.Error{Kind: model.Auth, Status: 401, Type: "authentication_error", Message: "bad key [key] really"},
		},
		{
			name:  "forbidden",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 403, Message: "not yours"},
			want:  model.Error{Kind: model.Auth, Status: 403, Type: "permission_error", Message: "not yours"},
		},
		{
			name:  "prompt too long",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 400, Message: "prompt is too long: 210000 tokens > 200000 maximum"},
			want:  model.Error{Kind: model.TooLong, Status: 400, Type: "invalid_request_error", Message: "prompt is too long: 210000 tokens > 200000 maximum"},
		},
		{
			name:  "body too large",
			fault: scripted.Fault{Kind: scripted.FaultStatus, Status: 413, Message: "too big"},
			want:  model.Error{Kind: model.TooLong, Status: 413, Type: "request_too_large", Message: "too big"},
		},
		{
			name:  "overloaded in the middle",
			fault: scripted.Fault{Kind: scripted.FaultError, After: 700, Type: "overloaded_error", Message: "busy"},
			want:  model.Error{Kind: model.Garbage, Status: 200, Retryable: true}, // inside an event, so no sound JSON
		},
		{
			name:  "overloaded at once",
			fault: scripted.Fault{Kind: scripted.FaultError, Type: "overloaded_error", Message: "busy"},
			want:  model.Error{Kind: model.Overloaded, Status: 200, Type: "overloaded_error", Message: "busy", Retryable: true},
		},
		{
			name:  "cut before the first event",
			fault: scripted.Fault{Kind: scripted.FaultCut},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
		{
			name:  "cut in the middle",
			fault: scripted.Fault{Kind: scripted.FaultCut, After: 900},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
		{
			name:  "ended before the first event",
			fault: scripted.Fault{Kind: scripted.FaultEnd},
			want:  model.Error{Kind: model.Interrupted, Status: 200, Retryable: true},
		},
		{
			name:  "ended inside an event",
			fault: scripted.Fault{Kind: scripted.FaultEnd, After: 900},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
		{
			name:  "garbage",
			fault: scripted.Fault{Kind: scripted.FaultGarbage, Garbage: "data: {\"type\":\n\n"},
			want:  model.Error{Kind: model.Garbage, Status: 200, Retryable: true},
		},
		{
			name:  "a web page",
			fault: scripted.Fault{Kind: scripted.FaultGarbage, Garbage: "<html>\x00\xff"},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
		{
			name:  "stalled",
			fault: scripted.Fault{Kind: scripted.FaultStall, After: 900},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
		{
			name:  "never began",
			fault: scripted.Fault{Kind: scripted.FaultStall},
			want:  model.Error{Kind: model.Interrupted, Retryable: true},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			turn := scripted.Turn{Text: strings.Repeat("words and ", 20)}
			if test.fault.Kind != "" {
				turn.Faults = []scripted.Fault{test.fault}
			}
			server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{turn}})
			client := newClient(t, server, func(c *model.Config) {
				c.IdleTimeout, c.FirstByteTimeout = 50*time.Millisecond, 100*time.Millisecond
				if test.fault.Kind != scripted.FaultStall {
					c.IdleTimeout, c.FirstByteTimeout = 0, 0
				}
			})
			_, err := client.Stream(t.Context(), hello(), nil)
			got := modelError(t, err)
			if got.Message == "" || strings.Contains(err.Error(), testKey) {
				t.Errorf("message %q", err)
			}
			if test.want.Message == "" {
				got.Message = ""
			}
			got.RequestID = ""
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}

			// The fault is over, so another try succeeds.
			if test.fault.Kind != "" {
				if _, err := newClient(t, server).Stream(t.Context(), hello(), nil); err != nil {
					t.Errorf("second try: %v", err)
				}
			}
		})
	}
}

// modelError returns a copy of the *model.Error in err.
func modelError(t *testing.T, err error) *model.Error {
	t.Helper()
	var e *model.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v (%T), want a *model.Error", err, err)
	}
	c := *e
	return &c
}

// sse serves events, each given as its data, then ends the reply.
func sse(events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Request-Id", "req_1")
		for _, e := range events {
			fmt.Fprintf(w, "event: x\ndata: %s\n\n", e)
		}
	}
}

// The events of a small sound message, for tests to break.
const (
	start    = `{"type":"message_start","message":{"id":"m","model":"x","usage":{"input_tokens":3,"output_tokens":1}}}`
	text0    = `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`
	word0    = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}`
	tool0    = `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}`
	half0    = `{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}`
	stop0    = `{"type":"content_block_stop","index":0}`
	endTurn  = `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_details":null},"usage":{"output_tokens":5}}`
	maxToken = `{"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"output_tokens":5}}`
	stop     = `{"type":"message_stop"}`
)

func TestStreamsThatBreakTheOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		events  []string
		message string
	}{
		{"no message_start", []string{text0, word0, stop0, endTurn, stop}, "began with content_block_start"},
		{"message_stop alone", []string{stop}, "began with message_stop"},
		{"two message_starts", []string{start, start}, "repeated or empty"},
		{"empty message_start", []string{`{"type":"message_start"}`}, "repeated or empty"},
		{"block out of order", []string{start, strings.Replace(text0, `"index":0`, `"index":1`, 1)}, "block 1 began where block 0 was due"},
		{"block without type", []string{start, `{"type":"content_block_start","index":0,"content_block":{}}`}, "has no type"},
		{"block that is a list", []string{start, `{"type":"content_block_start","index":0,"content_block":[]}`}, "has no type"},
		{"delta for no block", []string{start, word0}, "which is not open"},
		{"delta for a closed block", []string{start, text0, stop0, word0}, "which is not open"},
		{"negative index", []string{start, text0, `{"type":"content_block_stop","index":-1}`}, "which is not open"},
		{"text for a tool", []string{start, tool0, word0}, "text_delta came for content block 0, a tool_use"},
		{"input for a text", []string{start, text0, half0}, "input_json_delta came for content block 0, a text"},
		{"open block at the end", []string{start, text0, endTurn, stop}, "ended inside content block 0"},
		{"no stop reason", []string{start, text0, stop0, stop}, "without a stop reason"},
		{"event that is a list", []string{start, `[]`}, "not sound JSON"},
		{"event cut short", []string{start, `{"type":"content_block_start"`}, "not sound JSON"},
		{"event of wrong types", []string{start, `{"type":"content_block_stop","index":"0"}`}, "not sound JSON"},
		{"broken input, called at the endpoint", []string{start, strings.Replace(tool0, "tool_use", "server_tool_use", 1), half0, stop0, endTurn, stop}, "not a JSON object"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := newClient(t, sse(test.events...)).Stream(t.Context(), hello(), nil)
			e := modelError(t, err)
			if e.Kind != model.Garbage || !e.Retryable || e.RequestID != "req_1" || !strings.Contains(e.Message, test.message) {
				t.Errorf("got %+v, want garbage: …%s…", e, test.message)
			}
		})
	}
}

// A call whose input was no object used to be asked of the model again, and again,
// until the session gave up.
func TestInputThatIsNoObjectIsACallThatCannotRun(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 300) + strings.Repeat("]", 300)
	for _, test := range []struct{ name, input, problem string }{
		{"cut short", `{"command": "ls`, "it is not valid JSON"},
		{"a list", `[1]`, "it is not a JSON object"},
		{"a text", `"ls"`, "it is not a JSON object"},
		{"null", `null`, "it is not a JSON object"},
		{"two objects", `{}{}`, "it is not valid JSON"},
		{"deep", `{"a":` + deep + `}`, "it is nested more than 200 levels deep"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
				Text: "Now.", Calls: []scripted.Call{{Name: "read", Raw: `{}`}, {Name: "bash", Raw: test.input}},
			}}})
			res, err := newClient(t, server).Stream(t.Context(), hello(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[int]string{2: test.problem}, res.Spoilt); diff != "" {
				t.Errorf("spoilt (-want +got):\n%s", diff)
			}
			var call struct {
				Name  string            `json:"name"`
				Input map[string]string `json:"input"`
			}
			if err := json.Unmarshal(res.Content[2], &call); err != nil || call.Name != "bash" || call.Input["INVALID_JSON"] != test.input {
				t.Errorf("%v: %s", err, res.Content[2])
			}
		})
	}
}

func TestRepliesThatNoRetryCanMend(t *testing.T) {
	t.Parallel()
	usage := func(counts string) string {
		return strings.Replace(endTurn, `"output_tokens":5`, counts, 1)
	}
	for _, test := range []struct{ name, event, message string }{
		{"negative tokens", usage(`"output_tokens":-1`), "counts -1 tokens"},
		{"more tokens than can be", usage(`"input_tokens":1000000000001`), "counts 1000000000001 tokens"},
		{"negative cache", usage(`"cache_creation":{"ephemeral_1h_input_tokens":-5}`), "counts -5 tokens"},
		{"a huge sum of cache", usage(`"cache_creation_input_tokens":9223372036854775807`), "counts 9223372036854775807 tokens"},
		{"nested too deep", `{"type":"content_block_delta","index":0,"delta":{"type":"x","a":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}}`, "nested more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := newClient(t, sse(start, text0, word0, test.event, stop0, endTurn, stop)).Stream(t.Context(), hello(), nil)
			if e := modelError(t, err); e.Kind != model.Garbage || e.Retryable || !strings.Contains(e.Message, test.message) {
				t.Errorf("got %+v, want final garbage: …%s…", e, test.message)
			}
		})
	}
}

func TestStreamsThatAreUnusualButSound(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		events []string
		want   []any
	}{
		{"no content", []string{start, endTurn, stop}, nil},
		{"unknown events", []string{`{"type":"hello","index":"a"}`, start, `{"type":"ping"}`, `{"type":"progress","delta":7}`, endTurn, stop}, nil},
		{"text after the end", []string{start, text0, word0, stop0, endTurn, stop, word0, `{`, start},
			[]any{map[string]any{"type": "text", "text": "hi"}}},
		{"call cut off by max_tokens", []string{start, tool0, half0, stop0, maxToken, stop}, nil},
		{"call without input", []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"x"}}`, stop0, endTurn, stop},
			[]any{map[string]any{"type": "tool_use", "id": "t", "name": "x", "input": map[string]any{}}}},
		{"text in the start event", []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"oh "}}`, word0, stop0, endTurn, stop},
			[]any{map[string]any{"type": "text", "text": "oh hi"}}},
		{"block of a type from the future", []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"hologram","text":{"x":1},"data":[1]}}`, stop0, endTurn, stop},
			[]any{map[string]any{"type": "hologram", "text": map[string]any{"x": 1.0}, "data": []any{1.0}}}},
		{"delta that carries whole fields", []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"compaction","content":null}}`,
			`{"type":"content_block_delta","index":0,"delta":{"type":"compaction_delta","content":"short","encrypted_content":"e"}}`, stop0, endTurn, stop},
			[]any{map[string]any{"type": "compaction", "content": "short", "encrypted_content": "e"}}},
		{"citations", []string{start, text0, word0, `{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{"type":"char_location","n":1}}}`, stop0, endTurn, stop},
			[]any{map[string]any{"type": "text", "text": "hi", "citations": []any{map[string]any{"type": "char_location", "n": 1.0}}}}},
		{"redacted thinking", []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"redacted_thinking","data":"abc"}}`, stop0, endTurn, stop},
			[]any{map[string]any{"type": "redacted_thinking", "data": "abc"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := newClient(t, sse(test.events...)).Stream(t.Context(), hello(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, canonical(t, got.Content)); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			if got.Usage.InputTokens != 3 || got.Usage.OutputTokens != 5 {
				t.Errorf("usage %+v", got.Usage)
			}
		})
	}
}

func TestEndlessReplies(t *testing.T) {
	t.Parallel()
	forever := func(w io.Writer, s string) {
		for {
			if _, err := io.WriteString(w, s); err != nil {
				return
			}
		}
	}
	big := strings.Repeat("x", 1<<20)
	tests := []struct {
		name string
		h    http.HandlerFunc
		want string
	}{
		{"a line without end", func(w http.ResponseWriter, r *http.Request) { forever(w, "data: "+big) }, "one line of the reply exceeds the limit of 16 MiB"},
		{"an event without end", func(w http.ResponseWriter, r *http.Request) { forever(w, "data: "+big+"\n") }, "one event of the reply exceeds the limit of 16 MiB"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				test.h(w, r)
			}))
			_, err := client.Stream(t.Context(), hello(), nil)
			e := modelError(t, err)
			if e.Kind != model.Garbage || e.Retryable || e.Message != test.want {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestRepliesThatAreNoStream(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		h    http.HandlerFunc
		want model.Error
	}{
		{"JSON", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
		}, model.Error{Kind: model.Garbage, Status: 200, Retryable: true}},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/steal", http.StatusTemporaryRedirect)
		}, model.Error{Kind: model.Failed, Status: 307}},
		{"a proxy's page", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(502)
			io.WriteString(w, "<html>secret internals</html>")
		}, model.Error{Kind: model.Failed, Status: 502, Retryable: true}},
		{"no retry wanted", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Should-Retry", "false")
			w.Header().Set("Retry-After", "1e300")
			w.WriteHeader(503)
		}, model.Error{Kind: model.Failed, Status: 503, RetryAfter: 24 * time.Hour}},
		{"retry wanted", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Should-Retry", "true")
			w.Header().Set("Retry-After-Ms", "1500")
			w.WriteHeader(400)
		}, model.Error{Kind: model.Failed, Status: 400, RetryAfter: 1500 * time.Millisecond, Retryable: true}},
		{"spend limit as 429", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(429)
			io.WriteString(w, `{"error":{"type":"rate_limit_error","message":"limit","details":{"error_code":"contract_spend_limit_reached"}}}`)
		}, model.Error{Kind: model.Billing, Status: 429, Type: "rate_limit_error"}},
		{"vLLM's context error", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			io.WriteString(w, `{"error":{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","code":400}}`)
		}, model.Error{Kind: model.TooLong, Status: 400, Type: "BadRequestError"}},
		{"error that is a list", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(529)
			io.WriteString(w, "[1]")
		}, model.Error{Kind: model.Overloaded, Status: 529, Retryable: true}},
		{"error of wrong types", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			io.WriteString(w, `{"error":{"type":7,"message":["x"],"details":3},"detail":[{"msg":"y"}]}`)
		}, model.Error{Kind: model.Failed, Status: 400}},
		{"error cut short", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(429)
			io.WriteString(w, `{"error":`)
		}, model.Error{Kind: model.RateLimited, Status: 429, Retryable: true}},
		{"endless error", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		}, model.Error{Kind: model.Failed, Status: 500, Retryable: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := newClient(t, test.h).Stream(t.Context(), hello(), nil)
			got := modelError(t, err)
			if strings.Contains(got.Message, "internals") {
				t.Errorf("a web page reached the message: %s", got.Message)
			}
			got.Message = ""
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	ts := httptest.NewServer(nil)
	ts.Close()
	client, err := model.New(t.Context(), model.Config{BaseURL: ts.URL, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Stream(t.Context(), hello(), nil)
	e := modelError(t, err)
	if e.Kind != model.Interrupted || !e.Retryable || !strings.Contains(e.Message, "connection refused") {
		t.Errorf("got %+v", e)
	}
}

func TestCancelReturnsPromptly(t *testing.T) {
	t.Parallel()
	for _, after := range []int{0, 900} {
		server := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
			Text: strings.Repeat("words and ", 20), Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: after}},
		}}})
		client := newClient(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := client.Stream(ctx, hello(), nil)
			ended <- err
		}()
		if err := server.WaitStalled(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		var e *model.Error
		if err := <-ended; !errors.Is(err, context.Canceled) || errors.As(err, &e) {
			t.Errorf("after %d bytes: got %v, want context.Canceled", after, err)
		}
	}
}

func TestConnectionIsUsedAgain(t *testing.T) {
	t.Parallel()
	addresses := map[string]bool{}
	server := scripted.New(scripted.Options{})
	client := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addresses[r.RemoteAddr] = true // requests come one after another
		server.ServeHTTP(w, r)
	}))
	for range 5 {
		if _, err := client.Stream(t.Context(), hello(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(addresses) != 1 {
		t.Errorf("5 requests took %d connections", len(addresses))
	}
}

func FuzzStream(f *testing.F) {
	join := func(events ...string) []byte { return []byte("data: " + strings.Join(events, "\n\ndata: ") + "\n\n") }
	f.Add(join(start, text0, word0, stop0, endTurn, stop))
	f.Add(join(start, tool0, half0, stop0, maxToken, stop))
	f.Add(join(`{"type":"error","error":{"type":"overloaded_error","message":"x"}}`))
	f.Add(join(`{"type":"error","error":{"type":"","message":"\u0000"}}`))
	f.Add([]byte(": comment\r\nevent: x\r\ndata:{\"type\":\r\ndata: \"ping\"}\r\n\r\n"))
	f.Add([]byte("\xef\xbb\xbfdata\ndata:\n\n"))
	var body []byte // the fuzz engine runs one input at a time in a process
	client, err := model.New(context.Background(), model.Config{Key: testKey, HTTPClient: &http.Client{
		Transport: inProcess(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Write(body)
		}),
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		body = data
		got, err := client.Stream(t.Context(), hello(), nil)
		if err != nil {
			if e := modelError(t, err); e.Kind == "" || e.Message == "" || len(e.Message) > 2_000 {
				t.Errorf("poor error %+v", e)
			}
			return
		}
		if got.StopReason == "" {
			t.Error("no stop reason")
		}
		for _, b := range got.Content {
			var block struct {
				Type  string
				Input json.RawMessage
			}
			if err := json.Unmarshal(b, &block); err != nil || block.Type == "" {
				t.Errorf("block %s: %v", b, err)
			}
			if strings.HasSuffix(block.Type, "tool_use") && (len(block.Input) == 0 || block.Input[0] != '{') {
				t.Errorf("call with input %s", block.Input)
			}
		}
		// What came can be sent back.
		again := hello()
		again.Messages = append(again.Messages, model.Message{Role: "assistant", Content: got.Content}, again.Messages[0])
		body = nil
		if _, err := client.Stream(t.Context(), again, nil); modelError(t, err).Kind != model.Interrupted {
			t.Errorf("sending it back: %v", err)
		}
	})
}

// inProcess carries requests to a handler without a network, which a fuzzer
// would wear out.
type inProcess http.HandlerFunc

func (h inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	r = r.Clone(r.Context())
	r.Host = r.URL.Host // as a server sees it
	h(w, r)
	return w.Result(), nil
}

// The two benchmarks differ by what Stream does beyond reading the bytes.
func benchmarkServer(b *testing.B) *httptest.Server {
	ts := httptest.NewServer(scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text: strings.Repeat("some words of an answer ", 400), Calls: []scripted.Call{{Name: "bash", Input: map[string]any{"command": "true"}}},
	}}}))
	b.Cleanup(ts.Close)
	return ts
}

func BenchmarkStream(b *testing.B) {
	client, err := model.New(b.Context(), model.Config{BaseURL: benchmarkServer(b).URL, Key: testKey})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Stream(b.Context(), hello(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRawRead(b *testing.B) {
	ts := benchmarkServer(b)
	const body = `{"model":"claude-opus-5-5","max_tokens":32000,"stream":true,"messages":[{"role":"user","content":"hello"}]}`
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), "POST", ts.URL+"/v1/messages", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Anthropic-Version", "2026-10-21")
		res, err := ts.Client().Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			b.Fatal(res.Status, err)
		}
		res.Body.Close()
	}
}
