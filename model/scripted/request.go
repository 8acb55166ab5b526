package scripted

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A request is the body of POST /v1/messages, as far as the fake looks at it.
type request struct {
	Model     string    `json:"model"`
	MaxTokens *int      `json:"max_tokens"`
	Stream    bool      `json:"stream"`
	System    content   `json:"system"`
	Messages  []message `json:"messages"`
	Tools     []block   `json:"tools"`

	size int // of the body in bytes
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a list of blocks; a bare string is one text block.
type content []block

func (c *content) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		*c = content{{Type: "text", Text: text}}
		return nil
	}
	return json.Unmarshal(data, (*[]block)(c))
}

type block struct {
	Type         string          `json:"type"`
	Name         string          `json:"name"`
	Text         string          `json:"text"`
	ID           string          `json:"id"`
	Input        json.RawMessage `json:"input"`
	ToolUseID    string          `json:"tool_use_id"`
	Content      content         `json:"content"`
	IsError      bool            `json:"is_error"`
	CacheControl json.RawMessage `json:"cache_control"`
}

// knownFields are the parameters the endpoint takes; it refuses others.
var knownFields = map[string]bool{
	"model": true, "max_tokens": true, "stream": true, "system": true, "messages": true, "tools": true,
	"tool_choice": true, "thinking": true, "output_config": true, "speed": true, "inference_geo": true,
	"metadata": true, "service_tier": true, "stop_sequences": true, "cache_control": true, "container": true,
	"context_management": true, "diagnostics": true, "mcp_servers": true, "output_format": true,
	"temperature": true, "top_p": true, "top_k": true,
}

// decode reads and checks a request. The error is for the client to read.
func decode(body []byte, counting bool) (*request, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("the body is not a JSON object: %w", err)
	}
	for name := range fields {
		if !knownFields[name] {
			return nil, fmt.Errorf("%s: no such parameter", name)
		}
	}
	r := &request{size: len(body)}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("the body does not have the right form: %w", err)
	}
	switch {
	case r.Model == "":
		return nil, errors.New("model: is required")
	case !counting && (r.MaxTokens == nil || *r.MaxTokens < 1):
		return nil, errors.New("max_tokens: must be at least 1")
	case len(r.Messages) == 0:
		return nil, errors.New("messages: at least one is required")
	case r.Messages[0].Role != "user":
		return nil, errors.New("messages: the first must have the role user")
	case !counting && r.Messages[len(r.Messages)-1].Role == "assistant":
		return nil, errors.New("messages: the last must not be the assistant's (no prefill)")
	}
	if err := r.checkTools(); err != nil {
		return nil, err
	}
	if err := r.checkContent(); err != nil {
		return nil, err
	}
	return r, r.checkPairs()
}

func (r *request) checkTools() error {
	seen := map[string]bool{}
	for i, tool := range r.Tools {
		if tool.Name == "" {
			return fmt.Errorf("tools.%d.name: is required", i)
		}
		if seen[tool.Name] {
			return fmt.Errorf("tools.%d.name: %s is there twice", i, tool.Name)
		}
		seen[tool.Name] = true
	}
	return nil
}

func (r *request) checkContent() error {
	breakpoints := 0
	for _, b := range append(append([]block{}, r.Tools...), r.System...) {
		if b.CacheControl != nil {
			breakpoints++
		}
	}
	for i, m := range r.Messages {
		if m.Role != "user" && m.Role != "assistant" && m.Role != "system" {
			return fmt.Errorf("messages.%d.role: %q is not a role", i, m.Role)
		}
		if len(m.Content) == 0 {
			return fmt.Errorf("messages.%d.content: must not be empty", i)
		}
		for j, b := range m.Content {
			at := fmt.Sprintf("messages.%d.content.%d", i, j)
			switch {
			case b.Type == "":
				return fmt.Errorf("%s.type: is required", at)
			case b.Type == "text" && strings.TrimSpace(b.Text) == "":
				return fmt.Errorf("%s.text: must not be empty", at)
			case b.Type == "tool_use" && (b.ID == "" || b.Name == "" || !bytes.HasPrefix(b.Input, []byte("{"))):
				return fmt.Errorf("%s: a tool_use needs an id, a name and an object as input", at)
			case b.Type == "tool_use" && m.Role != "assistant", b.Type == "tool_result" && m.Role != "user":
				return fmt.Errorf("%s: %s does not belong in a message of the %s", at, b.Type, m.Role)
			case b.Type == "thinking" && b.CacheControl != nil:
				return fmt.Errorf("%s: thinking cannot have cache_control", at)
			}
			if b.CacheControl != nil {
				breakpoints++
			}
		}
	}
	if breakpoints > 4 {
		return fmt.Errorf("cache_control: at most 4 breakpoints, there are %d", breakpoints)
	}
	return nil
}

// checkPairs holds the rule that every call is answered once, in the message
// right after it, and nothing else is.
func (r *request) checkPairs() error {
	open := map[string]bool{}
	for i, m := range r.Messages {
		for j, b := range m.Content {
			if b.Type != "tool_result" {
				continue
			}
			if !open[b.ToolUseID] {
				return fmt.Errorf("messages.%d.content.%d: tool_result for %q, which the message before did not call", i, j, b.ToolUseID)
			}
			delete(open, b.ToolUseID)
		}
		// A run of messages of one role counts as one message.
		if i+1 < len(r.Messages) && r.Messages[i+1].Role == m.Role && m.Role == "user" {
			continue
		}
		if m.Role != "assistant" {
			for id := range open {
				return fmt.Errorf("messages.%d: tool_use %q has no tool_result right after it", i, id)
			}
			continue
		}
		for _, b := range m.Content {
			if b.Type == "tool_use" {
				open[b.ID] = true
			}
		}
	}
	return nil
}

// turn is how many messages the model has said so far.
func (r *request) turn() int {
	n := 0
	for _, m := range r.Messages {
		if m.Role == "assistant" {
			n++
		}
	}
	return n
}

// firstText is the text of the first user message.
func (r *request) firstText() string { return r.Messages[0].Content.text() }

// last returns the blocks said to the model since it last spoke.
func (r *request) last() content {
	var blocks content
	for i := len(r.Messages) - 1; i >= 0 && r.Messages[i].Role != "assistant"; i-- {
		blocks = append(append(content{}, r.Messages[i].Content...), blocks...)
	}
	return blocks
}

// results returns the tool results of the last message, in the order in which
// the model made the calls.
func (r *request) results() []block {
	byID := map[string]block{}
	for _, b := range r.last() {
		if b.Type == "tool_result" {
			byID[b.ToolUseID] = b
		}
	}
	var results []block
	for i := len(r.Messages) - 1; i >= 0; i-- {
		if r.Messages[i].Role != "assistant" {
			continue
		}
		for _, b := range r.Messages[i].Content {
			if result, ok := byID[b.ID]; ok && b.Type == "tool_use" {
				results = append(results, result)
			}
		}
		break
	}
	return results
}

// offers reports whether the request offers a tool.
func (r *request) offers(tool string) bool {
	for _, t := range r.Tools {
		if t.Name == tool {
			return true
		}
	}
	return false
}

// conversation identifies the conversation of a request, as well as a request
// can: by how it began.
func (r *request) conversation() string {
	h := sha256.New()
	_, _ = io.WriteString(h, r.System.text()+"\x00"+r.firstText()) // a hash never fails
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// text joins the text blocks.
func (c content) text() string {
	var parts []string
	for _, b := range c {
		if b.Type == "text" {
			parts = append(parts, b.Text)
		}
	}
	return strings.Join(parts, "\n")
}

// check reports why a request disappoints an expectation, or "".
func (e *Expect) check(r *request) string {
	if e.User != "" && !strings.Contains(r.last().text(), e.User) {
		return fmt.Sprintf("the last message should contain %q, but is %s", e.User, shorten(r.last().text()))
	}
	if e.System != "" && !strings.Contains(r.System.text(), e.System) {
		return fmt.Sprintf("the system prompt should contain %q, but is %s", e.System, shorten(r.System.text()))
	}
	if e.Tool != "" && !r.offers(e.Tool) {
		return fmt.Sprintf("the tool %s should be offered", e.Tool)
	}
	if e.Contains == "" && e.Lacks == "" && !e.OK && !e.Failed {
		return ""
	}
	results := r.results()
	if e.Result >= len(results) {
		return fmt.Sprintf("tool result %d should be there, but there are %d", e.Result, len(results))
	}
	result := results[e.Result]
	text := result.Content.text()
	switch {
	case e.OK && result.IsError:
		return fmt.Sprintf("tool result %d should be no error, but is %s", e.Result, shorten(text))
	case e.Failed && !result.IsError:
		return fmt.Sprintf("tool result %d should be an error, but is %s", e.Result, shorten(text))
	case !strings.Contains(text, e.Contains):
		return fmt.Sprintf("tool result %d should contain %q, but is %s", e.Result, e.Contains, shorten(text))
	case e.Lacks != "" && strings.Contains(text, e.Lacks):
		return fmt.Sprintf("tool result %d should not contain %q, but is %s", e.Result, e.Lacks, shorten(text))
	}
	return ""
}

// shorten quotes the start of a text.
func shorten(s string) string {
	const most = 300
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
