package scripted

import (
	"encoding/json"
	"fmt"
	"strings"
)

// A reply is one message of the fake model, ready to be sent either way.
type reply struct {
	ID          string
	Model       string
	Content     []part
	Stop        string
	StopDetails map[string]any
	Usage       Usage
}

// A part is one content block. Its body is the text, the thinking, or the JSON
// of the input.
type part struct {
	kind string // "text", "thinking", "tool_use"
	body string
	id   string // of a tool_use
	name string
}

// render turns a turn into a reply to r.
func (t *Turn) render(r *request, newID func(prefix string) string) *reply {
	out := &reply{ID: newID("msg_"), Model: r.Model, Stop: t.Stop}
	if t.Thinking != "" {
		out.Content = append(out.Content, part{kind: "thinking", body: t.Thinking})
	}
	if t.Text != "" {
		out.Content = append(out.Content, part{kind: "text", body: t.Text})
	}
	for _, call := range t.Calls {
		input := call.Raw
		if input == "" {
			input = "{}"
			if call.Input != nil {
				input = string(mustJSON(call.Input))
			}
		}
		out.Content = append(out.Content, part{kind: "tool_use", body: input, id: newID("toolu_"), name: call.Name})
	}
	if out.Stop == "" {
		out.Stop = "end_turn"
		if len(t.Calls) > 0 {
			out.Stop = "tool_use"
		}
	}
	if out.Stop == "refusal" {
		out.StopDetails = map[string]any{"type": "refusal", "category": orNull(t.Category), "explanation": orNull(t.Explanation)}
	}
	if t.Usage != nil {
		out.Usage = *t.Usage
	} else {
		out.Usage = estimate(r, out)
	}
	return out
}

// estimate counts four bytes as a token.
func estimate(r *request, out *reply) Usage {
	u := Usage{InputTokens: int64(r.size/4 + 1), OutputTokens: 1}
	for _, p := range out.Content {
		u.OutputTokens += int64(len(p.body) / 4)
	}
	return u
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (u *Usage) wire(output int64) map[string]any {
	return map[string]any{
		"input_tokens":                u.InputTokens,
		"output_tokens":               output,
		"cache_read_input_tokens":     u.CacheReadInputTokens,
		"cache_creation_input_tokens": u.CacheCreation5m + u.CacheCreation1h,
		"cache_creation": map[string]any{
			"ephemeral_5m_input_tokens": u.CacheCreation5m,
			"ephemeral_1h_input_tokens": u.CacheCreation1h,
		},
		"service_tier": "standard",
	}
}

// signature stands for the seal of a thinking block.
const signature = "c2NyaXB0ZWQ="

// message is the reply to a request that does not stream.
func (out *reply) message() []byte {
	content := []any{}
	for _, p := range out.Content {
		switch p.kind {
		case "thinking":
			content = append(content, map[string]any{"type": p.kind, "thinking": p.body, "signature": signature})
		case "text":
			content = append(content, map[string]any{"type": p.kind, "text": p.body})
		case "tool_use":
			input := json.RawMessage(p.body)
			if !json.Valid(input) {
				input = mustJSON(p.body) // as broken as valid JSON allows
			}
			content = append(content, map[string]any{"type": p.kind, "id": p.id, "name": p.name, "input": input})
		}
	}
	var details any
	if out.StopDetails != nil {
		details = out.StopDetails
	}
	return mustJSON(map[string]any{
		"id": out.ID, "type": "message", "role": "assistant", "model": out.Model, "content": content,
		"stop_reason": out.Stop, "stop_sequence": nil, "stop_details": details, "usage": out.Usage.wire(out.Usage.OutputTokens),
	})
}

// events is the reply to a request that streams, one element an event.
func (out *reply) events(pieceRunes int) [][]byte {
	var events [][]byte
	add := func(name string, fields map[string]any) {
		fields["type"] = name
		events = append(events, fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, mustJSON(fields)))
	}
	add("message_start", map[string]any{"message": map[string]any{
		"id": out.ID, "type": "message", "role": "assistant", "model": out.Model, "content": []any{},
		"stop_reason": nil, "stop_sequence": nil, "stop_details": nil, "usage": out.Usage.wire(min(1, out.Usage.OutputTokens)),
	}})
	for i, p := range out.Content {
		delta := func(kind, field, value string) {
			add("content_block_delta", map[string]any{"index": i, "delta": map[string]any{"type": kind, field: value}})
		}
		start := map[string]any{"type": p.kind}
		kind, field := "", ""
		switch p.kind {
		case "thinking":
			start["thinking"], start["signature"] = "", ""
			kind, field = "thinking_delta", "thinking"
		case "text":
			start["text"] = ""
			kind, field = "text_delta", "text"
		case "tool_use":
			start["id"], start["name"], start["input"] = p.id, p.name, map[string]any{}
			kind, field = "input_json_delta", "partial_json"
		}
		add("content_block_start", map[string]any{"index": i, "content_block": start})
		if i == 0 {
			add("ping", map[string]any{})
		}
		if p.kind == "tool_use" {
			delta(kind, field, "") // the real endpoint begins inputs so
		}
		for _, piece := range pieces(p.body, pieceRunes) {
			delta(kind, field, piece)
		}
		if p.kind == "thinking" {
			delta("signature_delta", "signature", signature)
		}
		add("content_block_stop", map[string]any{"index": i})
	}
	var details any
	if out.StopDetails != nil {
		details = out.StopDetails
	}
	add("message_delta", map[string]any{
		"delta": map[string]any{"stop_reason": out.Stop, "stop_sequence": nil, "stop_details": details},
		"usage": out.Usage.wire(out.Usage.OutputTokens),
	})
	add("message_stop", map[string]any{})
	return events
}

// pieces cuts s after every n runes.
func pieces(s string, n int) []string {
	var out []string
	var b strings.Builder
	count := 0
	for _, r := range s {
		b.WriteRune(r)
		if count++; count == n {
			out = append(out, b.String())
			b.Reset()
			count = 0
		}
	}
	if b.Len() > 0 {
		out = append(out, b.String())
	}
	return out
}

// mustJSON encodes what was checked to be encodable.
func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("scripted: encode %T: %v", v, err))
	}
	return data
}
