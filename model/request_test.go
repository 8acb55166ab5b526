package model_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/model"
)

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	breakpoint := map[string]any{"type": "ephemeral"}
	user := func(blocks ...string) model.Message {
		m := model.Message{Role: "user"}
		for _, b := range blocks {
			m.Content = append(m.Content, raw(b))
		}
		return m
	}
	const hi = `{"type":"text","text":"hi"}`
	tests := []struct {
		name   string
		adjust func(*model.Config)
		req    model.Request
		want   map[string]any // of the body; the rest is the same in all
		beta   string
	}{
		{
			name: "everything",
			req: model.Request{
				Model: "claude-opus-4-8", Effort: "high", Speed: "fast", InferenceGeo: "eu", System: "be <brief>", MaxTokens: 7,
				Messages: []model.Message{user(hi)},
				Tools: []model.Tool{
					{Name: "bash", Description: "runs", InputSchema: raw(`{"type":"object"}`)},
					{Raw: raw(`{"type":"web_search_20250305","name":"web_search"}`)},
				},
			},
			want: map[string]any{
				"model": "claude-opus-4-8", "max_tokens": 7.0, "stream": true, "speed": "fast", "inference_geo": "eu",
				"output_config": map[string]any{"effort": "high"}, "thinking": map[string]any{"type": "adaptive"},
				"system": []any{map[string]any{"type": "text", "text": "be <brief>", "cache_control": breakpoint}},
				"tools": []any{
					map[string]any{"name": "bash", "description": "runs", "input_schema": map[string]any{"type": "object"}},
					map[string]any{"type": "web_search_20250305", "name": "web_search"},
				},
				"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hi", "cache_control": breakpoint}}}},
			},
			beta: "fast-mode-2026-02-01",
		},
		{
			name: "nothing asked for, nothing sent",
			req:  model.Request{Model: "qwen3", Speed: "standard", Messages: []model.Message{user(hi)}},
			want: map[string]any{
				"model": "qwen3", "max_tokens": 32000.0, "stream": true,
				"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hi", "cache_control": breakpoint}}}},
			},
		},
		{
			name:   "thinking may be asked of any model",
			adjust: func(c *model.Config) { c.Thinking = model.ThinkingAdaptive },
			req:    model.Request{Model: "claude-opus-5-5", Messages: []model.Message{user(hi)}},
			want: map[string]any{
				"model": "claude-opus-5-5", "max_tokens": 32000.0, "stream": true, "thinking": map[string]any{"type": "adaptive"},
				"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hi", "cache_control": breakpoint}}}},
			},
		},
		{
			name: "breakpoint on the tools when there is no system",
			req: model.Request{Model: "m", Messages: []model.Message{user(hi)},
				Tools: []model.Tool{{Name: "a", InputSchema: raw(`{}`)}, {Raw: raw(" { } ")}}},
			want: map[string]any{
				"model": "m", "max_tokens": 32000.0, "stream": true,
				"tools":    []any{map[string]any{"name": "a", "input_schema": map[string]any{}}, map[string]any{"cache_control": breakpoint}},
				"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hi", "cache_control": breakpoint}}}},
			},
		},
		{
			name:   "what came goes back, but for empty text and breakpoints where they may not be",
			adjust: func(c *model.Config) { c.Thinking, c.MaxOutputTokens = model.ThinkingDisabled, 5 },
			req: model.Request{Model: "claude-opus-5", Messages: []model.Message{
				user(hi),
				{Role: "assistant", Content: []json.RawMessage{
					raw(`{"type":"thinking","thinking":"","signature":"s"}`), raw(`{"type":"text","text":"\n"}`), raw(`{"type":"hologram","x":[1]}`),
				}},
				user(`{"type":"text","text":"go"}`, `{"type":"text","text":"mine","cache_control":{"type":"ephemeral","ttl":"1h"}}`, `{"type":"thinking","thinking":"x"}`),
			}},
			want: map[string]any{
				"model": "claude-opus-5", "max_tokens": 5.0, "stream": true, "thinking": map[string]any{"type": "disabled"},
				"messages": []any{
					map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hi"}}},
					map[string]any{"role": "assistant", "content": []any{
						map[string]any{"type": "thinking", "thinking": "", "signature": "s"}, map[string]any{"type": "hologram", "x": []any{1.0}},
					}},
					map[string]any{"role": "user", "content": []any{
						map[string]any{"type": "text", "text": "go"},
						map[string]any{"type": "text", "text": "mine", "cache_control": map[string]any{"type": "ephemeral", "ttl": "1h"}},
						map[string]any{"type": "thinking", "thinking": "x"},
					}},
				},
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			rec := &recorder{reply: sound()}
			var adjust []func(*model.Config)
			if test.adjust != nil {
				adjust = append(adjust, test.adjust)
			}
			before, _ := json.Marshal(test.req)
			res, err := newClient(t, rec, adjust...).Stream(t.Context(), test.req, nil)
			checkHi(t, res, err)
			if diff := cmp.Diff(test.want, rec.body); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := rec.header.Get("Anthropic-Beta"); got != test.beta {
				t.Errorf("beta %q, want %q", got, test.beta)
			}
			if rec.header.Get("Anthropic-Version") != "2026-10-21" || rec.path != "/v1/messages" {
				t.Errorf("version %s, path %s", rec.header.Get("Anthropic-Version"), rec.path)
			}
			if after, _ := json.Marshal(test.req); string(before) != string(after) {
				t.Error("the request was changed")
			}
		})
	}
}

func TestRequestThatIsTooBigIsNotSent(t *testing.T) {
	t.Parallel()
	rec := &recorder{reply: sound()}
	req := hello()
	req.System = strings.Repeat("x", 32<<20)
	_, err := newClient(t, rec).Stream(t.Context(), req, nil)
	if e := modelError(t, err); e.Kind != model.TooLong || rec.path != "" {
		t.Errorf("got %+v, sent to %q", e, rec.path)
	}
}

func TestRequestThatIsNoJSONIsNotSent(t *testing.T) {
	t.Parallel()
	req := hello()
	req.Messages[0].Content = append(req.Messages[0].Content, raw(`{"type":`))
	if _, err := newClient(t, sound()).Stream(t.Context(), req, nil); err == nil {
		t.Error("no error")
	}
}
