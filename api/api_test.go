package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNewIDKeepsAllEntropy(t *testing.T) {
	t.Parallel()
	seen := map[SessionID]bool{}
	for i := range 256 {
		for _, at := range []int{0, 15} {
			var e Entropy
			e[at] = byte(i)
			id := NewID[SessionID](PrefixSession, e)
			if len(id) != len(PrefixSession)+22 || CheckID("id", string(id)) != nil {
				t.Fatalf("id %q", id)
			}
			seen[id] = true
		}
	}
	if len(seen) != 511 { // the two all-zero ones are equal
		t.Errorf("%d distinct ids of 511 entropies", len(seen))
	}
}

func TestEventRoundTrip(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 1, 2, 3, 4000, time.UTC)
	yes, why := true, "cyber"
	for want, ev := range map[string]Event{
		`{"id":"sevt_1","type":"user.message","processed_at":null,"content":[{"type":"text","text":"a"}]}`: {
			ID: "sevt_1", Body: &UserMessage{Content{TextBlock("a")}}},
		`{"id":"sevt_2","type":"session.status_idle","processed_at":"2026-11-21T01:02:03.000004Z","stop_reason":{"type":"end_turn"},"stop_details":null}`: {
			ID: "sevt_2", ProcessedAt: &now, Body: &SessionStatusIdle{StopReason: StopReason{Type: StopEndTurn}}},
		`{"id":"sevt_3","type":"session.status_running","processed_at":null}`: {ID: "sevt_3", Body: &SessionStatusRunning{}},
		`{"id":"sevt_4","type":"agent.tool_use","processed_at":null,"name":"bash","input":{"command":"ls"},"evaluated_permission":"ask","evaluation":{"type":"auto","evaluated_permission":{"type":"ask","reason_code":"indeterminate"}}}`: {
			ID: "sevt_4", Body: &AgentToolUse{Name: "bash", Input: json.RawMessage(`{"command":"ls"}`), EvaluatedPermission: PermissionAsk,
				Evaluation: &Evaluation{Auto, &Verdict{PermissionAsk, "indeterminate"}}}},
		`{"id":"sevt_5","type":"user.tool_result","processed_at":null,"tool_use_id":"sevt_4","is_error":true}`: {
			ID: "sevt_5", Body: &UserToolResult{ToolUseID: "sevt_4", IsError: &yes}},
		`{"id":"sevt_6","type":"session.status_idle","processed_at":null,"stop_reason":{"type":"refusal"},"stop_details":{"type":"refusal","category":"cyber","explanation":null}}`: {
			ID: "sevt_6", Body: &SessionStatusIdle{StopReason{Type: StopRefusal}, &StopDetails{Type: StopRefusal, Category: &why}}},
		`{"id":"sevt_7","type":"session.updated","processed_at":null,"budget":null}`: {
			ID: "sevt_7", Body: &SessionUpdated{Budget: Opt[Budget]{Set: true, Null: true}}},
	} {
		got, err := json.Marshal(ev)
		if err != nil || string(got) != want {
			t.Errorf("encoded %s\n     want %s (%v)", got, want, err)
		}
		var back Event
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(ev, back); d != "" {
			t.Errorf("%s: read back (-want +got):\n%s", ev.Type(), d)
		}
	}
}

func TestEveryEventTypeHasABodyOfThatType(t *testing.T) {
	t.Parallel()
	for _, typ := range []EventType{
		EvUserMessage, EvUserInterrupt, EvUserToolConfirmation, EvUserToolResult, EvUserCustomToolResult, EvSystemMessage,
		EvAgentMessage, EvAgentThinking, EvAgentToolUse, EvAgentToolResult, EvAgentCustomToolUse, EvAgentContextCompacted,
		EvSessionStatusRunning, EvSessionStatusIdle, EvSessionStatusResched, EvSessionStatusTerminated, EvSessionUpdated,
		EvSessionUsage, EvSessionError, EvSessionDeleted, EvThreadStatusRunning, EvThreadStatusIdle, EvThreadStatusResched,
		EvThreadStatusTerminated, EvSpanModelRequestStart, EvSpanModelRequestEnd,
	} {
		if body := newBody(typ); body == nil || body.EventType() != typ {
			t.Errorf("the body of %s is %T", typ, body)
		}
	}
}

func TestParseClientEvent(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, err string }{
		{`{"type":"user.message","content":[{"type":"text","text":"hi"}]}`, ""},
		{`{"type":"user.message","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}]}`, ""},
		{`{"type":"user.message","content":[]}`, "content: at least one block"},
		{`{"type":"user.message","content":"hi"}`, "content: wrong type"},
		{`{"type":"user.message","content":[{"type":"redacted"}]}`, `content.0.type: "redacted" is not allowed here`},
		{`{"type":"user.message","content":[{"type":"search_result"}]}`, "not allowed here"},
		{`{"type":"user.message","content":[{"type":"image","source":{"type":"file","file_id":"file_1"}}]}`, "files are not supported"},
		{`{"type":"user.message","content":[{"type":"text","text":"hi"}],"extra":1}`, "extra: extra inputs are not permitted"},
		{`{"type":"user.interrupt"}`, ""},
		{`{"type":"user.interrupt","session_thread_id":"a b"}`, "not an identifier"},
		{`{"type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"allow"}`, ""},
		{`{"type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"maybe"}`, "result: must be"},
		{`{"type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"allow","deny_message":"x"}`, "deny_message: only"},
		{`{"type":"user.tool_result","tool_use_id":"sevt_1"}`, ""},
		{`{"type":"user.tool_result"}`, "tool_use_id: must be 1 to 128"},
		{`{"type":"user.custom_tool_result","custom_tool_use_id":"sevt_1","is_error":true}`, ""},
		{`{"type":"user.define_outcome"}`, "not supported by this server yet"},
		{`{"type":"agent.message","content":[]}`, "not an event that a client can send"},
		{`{"type":"system.message","content":[{"type":"image","source":{}}]}`, "not allowed here"},
		{`{}`, "type: required"},
		{`null`, "must be an object"},
		{`[]`, "must be an object"},
		{`{"type":7}`, "type: required"},
	} {
		_, err := ParseClientEvent(json.RawMessage(tc.in))
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("%s: refused: %v", tc.in, err)
		case tc.err != "" && (AsError(err) == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: error %v, want one with %q", tc.in, err, tc.err)
		}
	}
}

func TestDecodeStrict(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		``:                              "empty",
		`{`:                             "middle of a value",
		`{"name":"a"} x`:                "more than one",
		strings.Repeat("[", 300):        "nested more than 200 levels",
		`{"nmae":"a"}`:                  "nmae: extra inputs",
		`{"name":7}`:                    "name: wrong type: got a JSON number",
		`[]`:                            "must be a JSON object, not a JSON array",
		`{"name":"a",}`:                 "not valid JSON",
		"{\"name\":\"a\xff\"}":          "",
		`{"tools":[{"type":"nope"}]}`:   `unknown type "nope"`,
		`{"model":{"id":"m","nope":1}}`: "nope: extra inputs",
	} {
		var a AgentCreate
		err := DecodeStrict([]byte(in), &a)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		if e := AsError(err); e == nil || e.Status != 400 || !strings.Contains(e.Message, want) {
			t.Errorf("%q: %v, want a 400 with %q", in, err, want)
		}
	}
}

func TestAgentResolve(t *testing.T) {
	t.Parallel()
	var a AgentCreate
	in := `{"name":"n","model":"claude-x","tools":[{"type":"agent_toolset_20260401","default_config":{"enabled":false},
		"configs":[{"name":"bash","enabled":true,"permission_policy":{"type":"always_ask"}}]},
		{"type":"custom","name":"weather","description":"d","input_schema":{"type":"object","properties":{"city":{"type":"string"}}}}]}`
	if err := DecodeStrict([]byte(in), &a); err != nil {
		t.Fatal(err)
	}
	spec := AgentSpec{Name: a.Name, Model: *a.Model, Tools: a.Tools}
	if err := spec.Resolve(); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(spec)
	want := `{"name":"n","description":null,"model":{"id":"claude-x","effort":{"type":"high"},"speed":"standard"},"system":null,` +
		`"tools":[{"type":"agent_toolset_20260401","default_config":{"enabled":false,"permission_policy":{"type":"always_allow"}},` +
		`"configs":[{"type":"bash","name":"bash","enabled":true,"permission_policy":{"type":"always_ask"}}]},` +
		`{"type":"custom","name":"weather","description":"d","input_schema":{"type":"object","properties":{"city":{"type":"string"}}}}],` +
		`"mcp_servers":[],"skills":[],"multiagent":null,"execution_identity":{"type":"service_account"}}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error("resolved (-want +got):\n" + d)
	}
	for name, want := range map[string]bool{"bash": true, "read": false} {
		if enabled, _ := spec.Tools[0].Setting(name); enabled != want {
			t.Errorf("%s enabled: %v", name, enabled)
		}
	}
}

func TestAgentRules(t *testing.T) {
	t.Parallel()
	custom := func(name, schema string) string {
		return `{"type":"custom","name":"` + name + `","description":"d","input_schema":` + schema + `}`
	}
	object := `{"type":"object"}`
	for tools, want := range map[string]string{
		custom("ok_1", object):                                   "",
		custom("bash", object):                                   "name of a built-in tool",
		custom("mcp__x", object):                                 "reserved",
		custom("ant__x", object):                                 "reserved",
		custom("a b", object):                                    "must match",
		custom("x", `{"type":"string"}`):                         `type: must be "object"`,
		custom("x", `{"type":"object","oneOf":[]}`):              "oneOf is not allowed",
		custom("x", `{"type":"object","properties":{"a b":{}}}`): "must match",
		custom("x", `{"type":"object","properties":{"a":{"items":{"$ref":"#"}}}}`): "$ref is not allowed",
		custom("x", `null`):                                                                             "must be a JSON Schema object",
		custom("x", object) + "," + custom("x", object):                                                 "a second entry",
		`{"type":"agent_toolset_20260401"},{"type":"agent_toolset_20260401"}`:                           "a second entry",
		`{"type":"agent_toolset_20260401","configs":[{"name":"nope"}]}`:                                 "unknown tool",
		`{"type":"agent_toolset_20260401","configs":[{"name":"bash","type":"read"}]}`:                   "equal to name",
		`{"type":"agent_toolset_20260401","default_config":{"permission_policy":{"type":"sometimes"}}}`: "permission_policy.type",
		`{"type":"mcp_toolset","mcp_server_name":"docs"}`:                                               "no server named",
	} {
		spec := AgentSpec{Name: "n", Model: ModelConfig{ID: "m"}}
		err := json.Unmarshal([]byte("["+tools+"]"), &spec.Tools)
		if err == nil {
			err = spec.Resolve()
		}
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: refused: %v", tools, err)
		case want != "" && (AsError(err) == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v, want one with %q", tools, err, want)
		}
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for amount, ok := range map[string]bool{
		"1": true, "2500": true, "0": false, "-1": false, "007": false, "1.5": false, "": false, "1e3": false, "99999999999999999999": false,
	} {
		b := Budget{"limit", Money{amount, "USD"}}
		if (b.Check() == nil) != ok {
			t.Errorf("amount %q: %v", amount, b.Check())
		}
	}
	if got := Cost(1_875_000_000).Money(); got != (Money{"188", "USD"}) {
		t.Errorf("187.5 cents round to %v", got)
	}
	b := Budget{"limit", Money{"25", "USD"}}
	if b.Limit() != 250_000_000 {
		t.Errorf("25 cents are %d", b.Limit())
	}
}

func TestCursor(t *testing.T) {
	t.Parallel()
	c := Cursor{Order: Descending, Key: 42, ID: "x"}
	if back, err := DecodeCursor(c.Encode(), Descending); err != nil || back != c {
		t.Errorf("%v, %v", back, err)
	}
	for _, s := range []string{"", "page_", "page_!!", "nope", c.Encode() + "x", "page_" + strings.Repeat("A", 2000)} {
		if _, err := DecodeCursor(s, Descending); AsError(err) == nil {
			t.Errorf("cursor %q: %v", s, err)
		}
	}
	if _, err := DecodeCursor(c.Encode(), Ascending); AsError(err) == nil {
		t.Error("a cursor of another order was accepted")
	}
}

func TestOptTellsAbsentNullAndValue(t *testing.T) {
	t.Parallel()
	var u AgentUpdate
	if err := DecodeStrict([]byte(`{"system":null,"name":"n"}`), &u); err != nil {
		t.Fatal(err)
	}
	if !u.System.Set || !u.System.Null || u.Name.Value != "n" || u.Description.Set {
		t.Errorf("%+v", u)
	}
}

func FuzzParseClientEvent(f *testing.F) {
	f.Add([]byte(`{"type":"user.message","content":[{"type":"text","text":"hi"}]}`))
	f.Add([]byte(`{"type":"user.tool_result","tool_use_id":"x","content":[{"type":"document","source":{"type":"text","data":"a"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := ParseClientEvent(data)
		if err != nil {
			return
		}
		// What was accepted can be stored and read back.
		raw, err := json.Marshal(Event{ID: "sevt_1", Body: body})
		if err != nil {
			t.Fatal(err)
		}
		var ev Event
		if err := json.Unmarshal(raw, &ev); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	})
}

func FuzzAgentCreate(f *testing.F) {
	f.Add([]byte(`{"name":"n","model":"m","tools":[{"type":"agent_toolset_20260401","configs":[{"name":"bash"}]}]}`))
	f.Add([]byte(`{"name":"n","model":{"id":"m","effort":"low"},"mcp_servers":[{"type":"url","name":"a","url":"https://x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var in AgentCreate
		if err := DecodeStrict(data, &in); err != nil || in.Model == nil {
			return
		}
		spec := AgentSpec{Name: in.Name, Model: *in.Model, System: in.System, Tools: in.Tools, MCPServers: in.MCPServers}
		if spec.Resolve() != nil {
			return
		}
		first, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var back AgentSpec
		if err := json.Unmarshal(first, &back); err != nil {
			t.Fatal(err)
		}
		// A resolved agent resolves to itself.
		if err := back.Resolve(); err != nil {
			t.Fatalf("%s: %v", first, err)
		}
		second, _ := json.Marshal(back)
		if string(first) != string(second) {
			t.Fatalf("%s\n%s", first, second)
		}
	})
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(Cursor{Order: Ascending, Key: 1, ID: "a"}.Encode())
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := DecodeCursor(s, Ascending); err == nil && c.Order != Ascending {
			t.Fatal(c)
		}
	})
}

func TestSoundText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"plain \u00e9"`:               `"plain \u00e9"`,
		`"\ud83d\ude00"`:               `"\ud83d\ude00"`,
		`"\uD83D\uDE00 \ud83d"`:        `"\uD83D\uDE00 \ufffd"`,
		`"\ud83d"`:                     `"\ufffd"`,
		`"\ude00\ud83d"`:               `"\ufffd\ufffd"`,
		`"\ud83d\ud83d\ude00"`:         `"\ufffd\ud83d\ude00"`,
		`"\\ud83d"`:                    `"\\ud83d"`, // a backslash, and then letters
		`"\\\ud83d"`:                   `"\\\ufffd"`,
		`{"a\udc00":["\udbff\u0041"]}`: `{"a\ufffd":["\ufffd\u0041"]}`,
		`"\ud8`:                        `"\ud8`, // cut short
		`"\ud83x"`:                     `"\ud83x"`,
	} {
		if got := string(SoundText([]byte(in))); got != want {
			t.Errorf("SoundText(%s) = %s, want %s", in, got, want)
		}
	}
}

func FuzzSoundText(f *testing.F) {
	f.Add([]byte(`{"a":"\ud83d\ude00\ud83d"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := SoundText(in)
		var before, after any
		if json.Unmarshal(in, &before) != nil {
			return
		}
		if err := json.Unmarshal(out, &after); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the meaning changed (-before +after):\n%s", diff)
		}
	})
}
