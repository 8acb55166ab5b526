package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A story is a session as a stream brings it: a line of JSON an event.
const story = `
{"id":"sevt_1","type":"user.message","processed_at":null,"content":[{"type":"text","text":"Say it in two lines,\nplease."}]}
{"id":"sevt_1","type":"user.message","processed_at":"2026-11-01T10:00:00.000Z","content":[{"type":"text","text":"Say it in two lines,\nplease."}]}
{"id":"sevt_2","type":"session.status_running","processed_at":"2026-11-01T10:00:00.000Z"}
{"id":"sevt_3","type":"session.thread_status_running","processed_at":"2026-11-01T10:00:00.000Z","session_thread_id":"sthr_1","agent_name":"a"}
{"id":"sevt_4","type":"span.model_request_start","processed_at":"2026-11-01T10:00:00.010Z"}
{"type":"event_start","event":{"type":"agent.message","id":"sevt_6"}}
{"type":"event_delta","event_id":"sevt_6","delta":{"type":"content_delta","index":0,"content":{"type":"text","text":"I will "}}}
{"type":"event_delta","event_id":"sevt_6","delta":{"type":"content_delta","index":0,"content":{"type":"text","text":"write\nit"}}}
{"type":"event_start","event":{"type":"agent.thinking","id":"sevt_5"}}
{"type":"event_start","event":{"type":"agent.message","id":"sevt_6b"}}
{"type":"event_delta","event_id":"sevt_6b","delta":{"type":"content_delta","index":0,"content":{"type":"text","text":"Now the "}}}
{"id":"sevt_5","type":"agent.thinking","processed_at":"2026-11-01T10:00:00.300Z"}
{"id":"sevt_6b","type":"agent.message","processed_at":"2026-11-01T10:00:00.310Z","content":[{"type":"text","text":"Now the rest."}]}
{"id":"sevt_7","type":"agent.tool_use","processed_at":"2026-11-01T10:00:00.320Z","name":"write","input":{"file_path":"a.sh","content":"1\n2\n3\n4\n5\n6\n7\n8\n9\n"},"evaluated_permission":"allow"}
{"id":"sevt_8","type":"agent.tool_use","processed_at":"2026-11-01T10:00:00.320Z","name":"bash","input":{"command":"bash a.sh\necho done"},"evaluated_permission":"allow"}
{"id":"sevt_9","type":"agent.tool_use","processed_at":"2026-11-01T10:00:00.320Z","name":"edit","input":{"file_path":"a.sh","old_string":"1","new_string":"0"},"evaluated_permission":"ask"}
{"id":"sevt_10","type":"agent.custom_tool_use","processed_at":"2026-11-01T10:00:00.320Z","name":"weather","input":{"city":"Oslo"}}
{"id":"sevt_11","type":"span.model_request_end","processed_at":"2026-11-01T10:00:00.330Z","model_request_start_id":"sevt_4","is_error":false,"model_usage":{"input_tokens":1200,"output_tokens":34,"cache_creation_input_tokens":1,"cache_read_input_tokens":2}}
{"id":"sevt_12","type":"session.status_idle","processed_at":"2026-11-01T10:00:00.340Z","stop_reason":{"type":"requires_action","event_ids":["sevt_7","sevt_8","sevt_9","sevt_10"]},"stop_details":null}
{"id":"sevt_13","type":"user.tool_result","processed_at":"2026-11-01T10:00:00.400Z","tool_use_id":"sevt_7","content":[{"type":"text","text":"Wrote a.sh"}]}
{"id":"sevt_14","type":"user.tool_result","processed_at":"2026-11-01T10:00:01.820Z","tool_use_id":"sevt_8","content":[{"type":"text","text":"one\n\ttwo \u001b[31mred\u001b[0m"},{"type":"text","text":"[three]"}],"is_error":true}
{"id":"sevt_15","type":"user.tool_confirmation","processed_at":"2026-11-01T10:00:05.000Z","tool_use_id":"sevt_9","result":"deny","deny_message":"not that"}
{"id":"sevt_16","type":"agent.tool_result","processed_at":"2026-11-01T10:00:05.010Z","tool_use_id":"sevt_9","content":[{"type":"text","text":"refused"}],"is_error":true}
{"id":"sevt_17","type":"user.custom_tool_result","processed_at":"2026-11-01T10:01:06.000Z","custom_tool_use_id":"sevt_10","content":[{"type":"image","source":{"type":"url","url":"http://x"}}]}
{"id":"sevt_18","type":"session.error","processed_at":"2026-11-01T10:01:07.000Z","error":{"type":"model_overloaded_error","message":"busy","retry_status":{"type":"retrying"}}}
{"id":"sevt_19","type":"session.status_rescheduled","processed_at":"2026-11-01T10:01:07.000Z"}
{"id":"sevt_20","type":"something.new","processed_at":"2026-11-01T10:01:07.000Z"}
{"id":"sevt_21","type":"user.interrupt","processed_at":"2026-11-01T10:01:08.000Z"}
{"id":"sevt_22","type":"agent.message","processed_at":"2026-11-01T10:01:09.000Z","content":[{"type":"text","text":"Done."}]}
{"id":"sevt_23","type":"session.usage","processed_at":"2026-11-01T10:01:09.000Z","usage":{"input_tokens":1234567,"output_tokens":89,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"list_cost":{"amount":"7","currency":"USD"},"active_seconds":1},"budget":null}
{"id":"sevt_24","type":"session.status_idle","processed_at":"2026-11-01T10:01:09.000Z","stop_reason":{"type":"end_turn"},"stop_details":null}
`

func frames(t *testing.T, text string) []*client.Frame {
	t.Helper()
	var out []*client.Frame
	for line := range strings.Lines(strings.TrimSpace(text)) {
		var head struct{ Type string }
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, &client.Frame{Name: head.Type, Data: json.RawMessage(line)})
	}
	return out
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name         string
		colour, live bool
	}{
		{"plain", false, false},
		{"terminal", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			line := newTimeline(&out, style{on: tt.colour}, tt.live)
			line.width = 60
			line.self = "sesn_1"
			for _, f := range frames(t, story) {
				line.frame(f)
			}
			got := out.String()
			if strings.Contains(got, "\x1b[31mred") {
				t.Error("a tool's escape codes reached the terminal")
			}
			golden(t, "timeline-"+tt.name+".txt", strings.ReplaceAll(got, "\x1b", "␛"))
		})
	}
}

func TestTurnEnd(t *testing.T) {
	t.Parallel()
	const (
		running = `{"id":"sevt_%d","type":"session.status_running","processed_at":"2026-11-01T10:00:00Z"}`
		rest    = `{"id":"sevt_%d","type":"session.status_idle","processed_at":"2026-11-01T10:00:00Z","stop_reason":{"type":"end_turn"}}`
		waiting = `{"id":"sevt_%d","type":"session.status_idle","processed_at":"2026-11-01T10:00:00Z","stop_reason":{"type":"requires_action"}}`
		queued  = `{"id":"sevt_%d","type":"user.message","processed_at":null,"content":[]}`
		taken   = `{"id":"sevt_%d","type":"user.message","processed_at":"2026-11-01T10:00:00Z","content":[]}`
	)
	type step struct {
		event string
		id    int
	}
	for _, tt := range []struct {
		name  string
		end   turnEnd
		steps []step
		want  int // index of the step that ends it; -1 for none
	}{
		{"the first rest", turnEnd{}, []step{{running, 1}, {waiting, 2}, {running, 3}, {rest, 4}}, 3},
		{"waiting is no rest", turnEnd{}, []step{{running, 1}, {waiting, 2}}, -1},
		{"a message of its own", turnEnd{mark: "sevt_9", fresh: true},
			[]step{{rest, 1}, {queued, 9}, {taken, 9}, {running, 2}, {rest, 3}}, 4},
		{"a message sent while running", turnEnd{mark: "sevt_9", fresh: true},
			[]step{{running, 1}, {queued, 9}, {waiting, 2}, {running, 3}, {taken, 9}, {rest, 4}}, 5},
		{"earlier turns are history", turnEnd{mark: "sevt_5"},
			[]step{{running, 1}, {rest, 2}, {running, 3}, {taken, 5}, {rest, 6}}, 4},
		{"at rest already", turnEnd{mark: "sevt_2"}, []step{{running, 1}, {rest, 2}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := -1
			for i, s := range tt.steps {
				if tt.end.reached(frames(t, fmt.Sprintf(s.event, s.id))[0]) && got < 0 {
					got = i
				}
			}
			if got != tt.want {
				t.Errorf("ended at step %d, want %d", got, tt.want)
			}
		})
	}
	end := turnEnd{mark: "sevt_9"}
	if !end.reached(&client.Frame{Name: string(api.EvSessionDeleted), Data: json.RawMessage(`{}`)}) {
		t.Error("a deleted session did not end it")
	}
}

func FuzzTimeline(f *testing.F) {
	for line := range strings.Lines(strings.TrimSpace(story)) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, data string) {
		var head struct{ Type string }
		if json.Unmarshal([]byte(data), &head) != nil {
			return
		}
		var out strings.Builder
		line := newTimeline(&out, style{}, true)
		for range 2 {
			line.frame(&client.Frame{Name: head.Type, Data: json.RawMessage(data)})
		}
		if strings.ContainsAny(out.String(), "\x1b\r\x07\u009b\u202e") {
			t.Errorf("control characters in %q", out.String())
		}
	})
}
