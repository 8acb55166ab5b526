package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A sound session, an event or preview a line, as the stream brings it.
const soundSession = `
{"id":"sevt_01","type":"user.message","processed_at":null,"content":[{"type":"text","text":"x"}]}
{"id":"sevt_01","type":"user.message","processed_at":"2026-11-01T10:00:00Z","content":[{"type":"text","text":"x"}]}
{"id":"sevt_02","type":"session.status_running","processed_at":"2026-11-01T10:00:00Z"}
{"id":"sevt_03","type":"span.model_request_start","processed_at":"2026-11-01T10:00:00Z"}
{"type":"event_start","event":{"type":"agent.message","id":"sevt_04"}}
{"type":"event_delta","event_id":"sevt_04","delta":{"type":"content_delta","index":0,"content":{"type":"text","text":"I wi"}}}
{"id":"sevt_04","type":"agent.message","processed_at":"2026-11-01T10:00:01Z","content":[{"type":"text","text":"I will."}]}
{"id":"sevt_05","type":"agent.tool_use","processed_at":"2026-11-01T10:00:01Z","name":"bash","input":{"command":"env"},"evaluated_permission":"allow"}
{"id":"sevt_5a","type":"agent.mcp_tool_use","processed_at":"2026-11-01T10:00:01Z","name":"lookup_order","mcp_server_name":"orders","input":{},"evaluated_permission":"ask"}
{"id":"sevt_06","type":"span.model_request_end","processed_at":"2026-11-01T10:00:01Z","model_request_start_id":"sevt_03","is_error":false,"model_usage":{"input_tokens":5,"output_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0}}
{"id":"sevt_07","type":"user.tool_result","processed_at":"2026-11-01T10:00:02Z","tool_use_id":"sevt_05","content":[{"type":"text","text":"PATH=/bin\nHOME=/workspace"}]}
{"id":"sevt_5b","type":"user.tool_confirmation","processed_at":"2026-11-01T10:00:02Z","tool_use_id":"sevt_5a","result":"allow"}
{"id":"sevt_5c","type":"agent.mcp_tool_result","processed_at":"2026-11-01T10:00:02Z","mcp_tool_use_id":"sevt_5a","is_error":false,"content":[{"type":"text","text":"on its way"}]}
{"id":"sevt_08","type":"session.usage","processed_at":"2026-11-01T10:00:03Z","usage":{"input_tokens":5,"output_tokens":7,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"list_cost":null,"active_seconds":1},"budget":null}
{"id":"sevt_09","type":"session.status_idle","processed_at":"2026-11-01T10:00:03Z","stop_reason":{"type":"end_turn"},"stop_details":null}
`

// evidenceOf makes the evidence of a session that listed and streamed the same.
func evidenceOf(t *testing.T, text string) *evidence {
	t.Helper()
	v := &evidence{
		streamed:  frames(t, text),
		session:   &api.Session{Usage: api.Usage{Tokens: api.Tokens{Input: 5, Output: 7}}},
		alive:     traces{processes: map[int]process{1: {command: "box"}}},
		workerDir: t.TempDir(),
		secrets:   map[string]string{"a key": "sk-ant-api03-k"},
		desk:      &orderDesk{words: map[string]string{"tool": "lookup_order", "token": "demo-t0k3n"}},
	}
	v.desk.calls.Store(1)
	v.desk.wire.add("in", []byte("authorization: Bearer demo-T0K3N\r\n\r\n{\"name\":\"lookup_order\"}"))
	v.edge.see("tnl_1", true, bytes.Repeat([]byte{0x17, 0x03, 0x03}, 100))
	for _, f := range v.streamed {
		id, processed := identity(f)
		if id == "" || !processed {
			continue
		}
		e := new(api.Event)
		if err := json.Unmarshal(f.Data, e); err != nil {
			t.Fatal(err)
		}
		v.listed, v.events = append(v.listed, f.Data), append(v.events, e)
	}
	return v
}

// A check that finds nothing must have been able to find something.
func TestDemoChecksFindFaults(t *testing.T) {
	t.Parallel()
	without := func(id string) func(string) string {
		return func(s string) string {
			var out strings.Builder
			for line := range strings.Lines(s) {
				if !strings.Contains(line, `"id":"`+id+`"`) {
					out.WriteString(line)
				}
			}
			return out.String()
		}
	}
	replace := func(from, to string) func(string) string {
		return func(s string) string { return strings.ReplaceAll(s, from, to) }
	}
	for _, tt := range []struct {
		name   string
		look   func(*evidence) (string, error)
		change func(string) string
		spoil  func(*evidence)
		want   string // in the error; "" for none
	}{
		{"order", checkOrder, nil, nil, ""},
		{"an id twice", checkOrder, replace("sevt_02", "sevt_01"), nil, "seen before"},
		{"time goes back", checkOrder, replace("10:00:02Z", "09:00:02Z"), nil, "older than the one before"},
		{"request while idle", checkOrder, without("sevt_02"), nil, "not running"},
		{"answer outside a request", checkOrder, without("sevt_03"), nil, "outside of a model request"},
		{"end of another request", checkOrder, replace(`start_id":"sevt_03`, `start_id":"sevt_99`), nil, "does not end the request"},
		{"no usage before idle", checkOrder, without("sevt_08"), nil, "without a session.usage"},
		{"no rest", checkOrder, without("sevt_09"), nil, "did not come to rest"},

		{"answers", checkAnswers, nil, nil, ""},
		{"no answer", checkAnswers, without("sevt_07"), nil, "2 calls, 1 answers"},
		{"answer to nothing", checkAnswers, replace(`use_id":"sevt_05`, `use_id":"sevt_99`), nil, "nobody asked for"},
		{"two answers", checkAnswers, nil, func(v *evidence) { v.events = append(v.events, v.events[7]) }, "answered twice"},

		{"stream", checkStream, nil, nil, ""},
		{"not streamed", checkStream, nil, func(v *evidence) { v.streamed = v.streamed[:5] }, "events on the stream"},
		{"streamed otherwise", checkStream, nil, func(v *evidence) {
			v.listed[3] = json.RawMessage(strings.Replace(string(v.listed[3]), "I will", "I won't", 1))
		}, "differs"},
		{"streamed in another order", checkStream, nil, func(v *evidence) {
			v.listed[1], v.listed[2] = v.listed[2], v.listed[1]
		}, "differs"},

		{"previews", checkPreviews, nil, nil, ""},
		{"no prefix", checkPreviews, replace("I wi\"", "I wo\""), nil, "no beginning of it"},
		{"no previews", checkPreviews, replace("event_delta", "event_other"), nil, "nothing was shown live"},

		{"usage", checkUsage, nil, nil, ""},
		{"usage of the events", checkUsage, replace(`"output_tokens":7,"cache_read`, `"output_tokens":8,"cache_read`), nil, "session.usage says"},
		{"usage of the session", checkUsage, nil, func(v *evidence) { v.session.Usage.Tokens.Input++ }, "the session says"},

		{"key in an event", checkSecrets, replace("I will.", "sk-ant-api03-k"), nil, "a key is in event 4"},
		{"key in a process", checkSecrets, nil, func(v *evidence) {
			v.alive.processes[1] = process{environ: "A=1\x00B=sk-ant-api03-k"}
		}, "a key is in the environment or command line"},
		{"variable for a key", checkSecrets, replace("HOME=", "AWS_SECRET_KEY="), nil, "AWS_SECRET_KEY"},
		{"environment not seen", checkSecrets, replace(`"command":"env"`, `"command":"true"`), nil, "not asked for its environment"},

		{"allowed", checkAllowed, nil, nil, ""},
		{"not asked for", checkAllowed, replace(`permission":"ask"`, `permission":"allow"`), nil, `permission was "allow"`},
		{"not allowed", checkAllowed, without("sevt_5b"), nil, "nobody allowed"},
		{"not called", checkAllowed, nil, func(v *evidence) { v.desk.calls.Store(0) }, "called 0 times"},
		{"called before", checkAllowed, nil, func(v *evidence) { v.heardUnasked = 1 }, "before anybody"},
		{"call failed", checkAllowed, replace(`"is_error":false,"content":[{"type":"text","text":"on its way"}]`, `"is_error":true,"content":[]`), nil, "it failed"},

		{"ciphertext", checkCiphertext, nil, nil, ""},
		{"plaintext", checkCiphertext, nil, func(v *evidence) { v.edge.see("tnl_1", false, []byte("xx LOOKUP_ORDER")) }, "tool went through the edge in the clear"},
		{"in two pieces", checkCiphertext, nil, func(v *evidence) {
			v.edge.see("tnl_1", false, []byte("xx lookup"))
			v.edge.see("tnl_1", false, []byte("_order"))
		}, "tool went through the edge"},
		{"nothing to find", checkCiphertext, nil, func(v *evidence) { v.desk.words["result"] = "on its way" }, "the search proves nothing"},
		{"past the edge", checkCiphertext, nil, func(v *evidence) { v.edge = recording{} }, "took another way"},
		{"too much", checkCiphertext, nil, func(v *evidence) { v.edge.see("tnl_1", true, make([]byte, recordMax)) }, "more passed by than was kept"},

		{"gone", checkGone, nil, nil, ""},
		{"never seen", checkGone, nil, func(v *evidence) { v.alive = traces{} }, "nothing can be said"},
		{"a process is left", checkGone, nil, func(v *evidence) { v.after = v.alive }, "left behind: 1 processes"},
		{"a mount is left", checkGone, nil, func(v *evidence) { v.after.mounts = map[string]bool{"/x": true} }, "left behind"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := soundSession
			if tt.change != nil {
				text = tt.change(text)
			}
			v := evidenceOf(t, text)
			if tt.spoil != nil {
				tt.spoil(v)
			}
			detail, err := tt.look(v)
			switch {
			case tt.want == "" && (err != nil || detail == ""):
				t.Errorf("found %q, %v in a sound session", detail, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error = %v, want %q", err, tt.want)
			}
		})
	}
}

// Frames of a kind that this program does not know belong to nobody.
func TestIdentityOfForeignFrames(t *testing.T) {
	t.Parallel()
	for _, data := range []string{`[]`, `"x"`, `{`, `{"id":1}`} {
		if id, processed := identity(&client.Frame{Data: json.RawMessage(data)}); id != "" || processed {
			t.Errorf("identity(%s) = %q, %v", data, id, processed)
		}
	}
}
