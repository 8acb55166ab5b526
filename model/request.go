package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// maxRequestBytes bounds an encoded request, as the Messages API does (32 MB).
const maxRequestBytes = 32 << 20

// A Request asks for one message. The raw JSON in it is sent as it is, so that
// whatever a model once sent (thinking signatures, citations, blocks of types
// this code has never heard of) goes back unharmed.
type Request struct {
	Model        string // Claude API model id
	Effort       string // "low" … "max"; "" sends none
	Speed        string // "fast"; "" and "standard" send none
	InferenceGeo string // "us", "global"; "" sends none
	System       string
	Messages     []Message
	Tools        []Tool
	MaxTokens    int // 0: Config.MaxOutputTokens
}

// A Message is one turn of the conversation.
type Message struct {
	Role    string            `json:"role"` // "user", "assistant" or "system"
	Content []json.RawMessage `json:"content"`
}

// A Tool is offered to the model. Raw, if set, is sent instead of the other
// fields: the definition of a tool that runs at the endpoint.
type Tool struct {
	Name        string
	Description string
	InputSchema json.RawMessage
	Raw         json.RawMessage
}

// MarshalJSON writes the tool as the Messages API has it.
func (t Tool) MarshalJSON() ([]byte, error) {
	if t.Raw != nil {
		return t.Raw, nil
	}
	return json.Marshal(struct {
		Name        string          `json:"name"`
		Description string          `json:"description,omitempty"`
		InputSchema json.RawMessage `json:"input_schema"`
	}{t.Name, t.Description, t.InputSchema})
}

// wireRequest is the body of POST /v1/messages.
type wireRequest struct {
	Model        string            `json:"model"`
	MaxTokens    int               `json:"max_tokens"`
	Stream       bool              `json:"stream"`
	Thinking     *thinking         `json:"thinking,omitempty"`
	OutputConfig *outputConfig     `json:"output_config,omitempty"`
	Speed        string            `json:"speed,omitempty"`
	InferenceGeo string            `json:"inference_geo,omitempty"`
	Tools        []json.RawMessage `json:"tools,omitempty"`
	System       []json.RawMessage `json:"system,omitempty"`
	Messages     []Message         `json:"messages"`
}

type thinking struct {
	Type string `json:"type"`
}

type outputConfig struct {
	Effort string `json:"effort"`
}

// fastModeBeta is the beta some models require before they accept a speed.
const fastModeBeta = "fast-mode-2026-02-01"

// encode returns the body of a streaming request, and the betas it needs. It
// never changes what req points to.
func (c *Client) encode(req Request) (body []byte, betas []string, err error) {
	if size := req.size(); size > maxRequestBytes {
		return nil, nil, requestTooBig(size) // before the work of encoding it
	}
	w := wireRequest{
		MaxTokens:    req.MaxTokens,
		Stream:       true,
		Thinking:     c.thinking(req.Model),
		InferenceGeo: req.InferenceGeo,
	}
	if w.Model, err = c.cfg.modelID(req.Model); err != nil {
		return nil, nil, &Error{Kind: Failed, Message: err.Error()}
	}
	if w.MaxTokens == 0 {
		w.MaxTokens = c.cfg.MaxOutputTokens
	}
	if req.Effort != "" {
		w.OutputConfig = &outputConfig{Effort: req.Effort}
	}
	if req.Speed == "fast" {
		w.Speed = req.Speed
		betas = append(betas, fastModeBeta)
	}
	if req.System != "" {
		w.System = []json.RawMessage{textBlock(req.System)}
	}
	for _, tool := range req.Tools {
		raw, err := tool.MarshalJSON()
		if err != nil {
			return nil, nil, fmt.Errorf("model: encode tool %s: %w", tool.Name, err)
		}
		w.Tools = append(w.Tools, raw)
	}
	for _, m := range req.Messages {
		w.Messages = append(w.Messages, Message{Role: m.Role, Content: withoutEmptyText(m.Content)})
	}
	w.markCacheBreakpoints()

	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(w); err != nil {
		return nil, nil, fmt.Errorf("model: encode request: %w", err)
	}
	if buf.Len() > maxRequestBytes {
		return nil, nil, requestTooBig(buf.Len())
	}
	return buf.Bytes(), betas, nil
}

// size is the least the encoded request can have.
func (r *Request) size() int {
	size := len(r.System)
	for _, tool := range r.Tools {
		size += len(tool.Description) + len(tool.InputSchema) + len(tool.Raw)
	}
	for _, m := range r.Messages {
		for _, block := range m.Content {
			size += len(block)
		}
	}
	return size
}

func requestTooBig(size int) *Error {
	return &Error{Kind: TooLong, Message: fmt.Sprintf("the request has %d bytes or more; the limit is %d", size, maxRequestBytes)}
}

// adaptiveModels are the models that think only when asked to, as their
// overview pages say (November 2026). Earlier ones do not know adaptive
// thinking; from Claude 5 on it is the default, and needs no asking.
var adaptiveModels = map[string]bool{
	"claude-opus-4-6":   true,
	"claude-sonnet-4-6": true,
	"claude-opus-4-7":   true,
	"claude-opus-4-8":   true,
}

func (c *Client) thinking(model string) *thinking {
	switch c.cfg.Thinking {
	case ThinkingAdaptive:
		return &thinking{Type: "adaptive"}
	case ThinkingDisabled:
		return &thinking{Type: "disabled"}
	case ThinkingAuto:
		if adaptiveModels[model] {
			return &thinking{Type: "adaptive"}
		}
	}
	return nil
}

// markCacheBreakpoints is the one place that decides what the endpoint's prompt
// cache keeps: everything up to the end of the fixed part (tools and system,
// the same for every session of an agent), and everything up to the end of the
// conversation (read again by the next request of the session). The API allows
// four breakpoints; these are two.
func (w *wireRequest) markCacheBreakpoints() {
	switch {
	case len(w.System) > 0:
		markLast(w.System)
	case len(w.Tools) > 0:
		markLast(w.Tools)
	}
	if n := len(w.Messages); n > 0 {
		markLast(w.Messages[n-1].Content)
	}
}

// markLast puts a breakpoint on the last block that may carry one. Thinking
// blocks may not.
func markLast(blocks []json.RawMessage) {
	for i := len(blocks) - 1; i >= 0; i-- {
		var block struct {
			Type         string          `json:"type"`
			CacheControl json.RawMessage `json:"cache_control"`
		}
		if json.Unmarshal(blocks[i], &block) != nil {
			return // not an object: Encode, or the endpoint, will say so
		}
		if block.Type == "thinking" || block.Type == "redacted_thinking" {
			continue
		}
		if block.CacheControl == nil {
			blocks[i] = withField(blocks[i], `"cache_control":{"type":"ephemeral"}`)
		}
		return
	}
}

// withField returns a copy of a JSON object with one more field in front.
func withField(object json.RawMessage, field string) json.RawMessage {
	rest := bytes.TrimLeft(bytes.TrimSpace(object)[1:], " \t\r\n")
	out := make([]byte, 0, len(field)+len(rest)+2)
	out = append(out, '{')
	out = append(out, field...)
	if rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, rest...)
}

// withoutEmptyText copies content without text blocks that say nothing: models
// send them now and then, and every endpoint refuses to read them back.
func withoutEmptyText(content []json.RawMessage) []json.RawMessage {
	kept := make([]json.RawMessage, 0, len(content))
	for _, raw := range content {
		// Only a short block can be an empty one; the others are not parsed.
		if len(raw) <= 256 {
			var block struct{ Type, Text string }
			if json.Unmarshal(raw, &block) == nil && block.Type == "text" && strings.TrimSpace(block.Text) == "" {
				continue
			}
		}
		kept = append(kept, raw)
	}
	return kept
}

// textBlock returns a text content block.
func textBlock(text string) json.RawMessage {
	raw, _ := json.Marshal(struct { // a struct of strings always encodes
		Type string `json:"type"`
		Text string `json:"text"`
	}{"text", text})
	return raw
}
