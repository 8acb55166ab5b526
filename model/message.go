package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// The bounds of what one message may hold.
const (
	maxMessageBytes = 32 << 20          // of content, put together
	maxDepth        = 200               // of JSON in JSON; what is kept of it is nested a little deeper
	maxTokens       = 1_000_000_000_000 // of one count: more is a mistake, and would spoil every sum
)

// A message puts the events of one stream together. Its methods return *Error
// of kind Garbage for a stream that breaks the order the Messages API
// documents: message_start, then blocks (start, deltas, stop), message_delta,
// message_stop. Events of unknown types are skipped, since new ones may be added
// at any time.
type message struct {
	started  bool
	response Response
	blocks   []block
	size     int
}

// A block is one content block under way. Pieces are collected and joined once.
type block struct {
	raw       json.RawMessage // as the start event had it, plus replaced fields
	kind      string
	open      bool
	text      strings.Builder
	thinking  strings.Builder
	signature strings.Builder
	input     strings.Builder
	citations []json.RawMessage
	changed   bool
}

// An event is any event of the stream: the fields of all types at once.
type event struct {
	Type    string `json:"type"`
	Index   int    `json:"index"`
	Message *struct {
		ID    string    `json:"id"`
		Model string    `json:"model"`
		Usage wireUsage `json:"usage"`
	} `json:"message"`
	ContentBlock json.RawMessage `json:"content_block"`
	Delta        delta           `json:"delta"`
	Usage        wireUsage       `json:"usage"`
	Error        *struct {
		Type    string `json:"type"`
		Message string `json:"message"`
		Details struct {
			Code string `json:"error_code"`
		} `json:"details"`
	} `json:"error"`
}

type delta struct {
	Type        string          `json:"type"`
	Text        string          `json:"text"`
	Thinking    string          `json:"thinking"`
	Signature   string          `json:"signature"`
	PartialJSON string          `json:"partial_json"`
	Citation    json.RawMessage `json:"citation"`

	StopReason  string       `json:"stop_reason"`
	StopDetails *StopDetails `json:"stop_details"`
}

// wireUsage has pointers because each event repeats only some of the counts.
type wireUsage struct {
	InputTokens              *int64 `json:"input_tokens"`
	OutputTokens             *int64 `json:"output_tokens"`
	CacheReadInputTokens     *int64 `json:"cache_read_input_tokens"`
	CacheCreationInputTokens *int64 `json:"cache_creation_input_tokens"`
	CacheCreation            *struct {
		Ephemeral5m int64 `json:"ephemeral_5m_input_tokens"`
		Ephemeral1h int64 `json:"ephemeral_1h_input_tokens"`
	} `json:"cache_creation"`
	Speed string `json:"speed"`
}

// knownEvents are the event types with a meaning here. A ping has none.
var knownEvents = map[string]bool{
	"message_start":       true,
	"content_block_start": true,
	"content_block_delta": true,
	"content_block_stop":  true,
	"message_delta":       true,
	"message_stop":        true,
	"error":               true,
}

// apply takes one event and reports whether it was the last one. It returns an
// *errorEvent for an error the endpoint sends inside the stream.
func (m *message) apply(data []byte, onDelta func(Delta)) (done bool, err error) {
	if depthOf(data) > maxDepth {
		return false, &Error{Kind: Garbage, Status: http.StatusOK, Message: fmt.Sprintf("an event of the reply is nested more than %d levels deep", maxDepth)}
	}
	var ev event
	if err := json.Unmarshal(data, &ev); err != nil {
		if _, ok := err.(*json.UnmarshalTypeError); ok && ev.Type != "" && !knownEvents[ev.Type] {
			return false, nil
		}
		return false, garbage("an event of the stream is not sound JSON: %s", excerpt(data))
	}
	if !m.started && knownEvents[ev.Type] && ev.Type != "message_start" && ev.Type != "error" {
		return false, garbage("the stream began with %s instead of message_start", ev.Type)
	}
	switch ev.Type {
	case "message_start":
		return false, m.start(&ev)
	case "content_block_start":
		return false, m.blockStart(&ev, onDelta)
	case "content_block_delta":
		return false, m.blockDelta(&ev, data, onDelta)
	case "content_block_stop":
		return false, m.blockStop(&ev)
	case "message_delta":
		if ev.Delta.StopReason != "" {
			m.response.StopReason = ev.Delta.StopReason
			m.response.StopDetails = ev.Delta.StopDetails
		}
		return false, m.count(&ev.Usage)
	case "message_stop":
		return true, m.finish()
	case "error":
		reply := errorReply{Type: "api_error"}
		if ev.Error != nil {
			reply = errorReply{Type: ev.Error.Type, Code: ev.Error.Details.Code, Message: ev.Error.Message}
		}
		return false, &errorEvent{reply}
	}
	return false, nil // ping, or a type from the future
}

// An errorEvent is an error the endpoint reported in the middle of a stream.
type errorEvent struct{ reply errorReply }

func (e *errorEvent) Error() string { return e.reply.Message }

func (m *message) start(ev *event) error {
	if m.started || ev.Message == nil {
		return garbage("the stream has a message_start that is repeated or empty")
	}
	m.started = true
	m.response.ID, m.response.Model = ev.Message.ID, ev.Message.Model
	return m.count(&ev.Message.Usage)
}

func (m *message) blockStart(ev *event, onDelta func(Delta)) error {
	if ev.Index != len(m.blocks) {
		return garbage("content block %d began where block %d was due", ev.Index, len(m.blocks))
	}
	var head struct {
		Type      string            `json:"type"`
		Text      string            `json:"text"`
		Thinking  string            `json:"thinking"`
		Signature string            `json:"signature"`
		Citations []json.RawMessage `json:"citations"`
	}
	err := json.Unmarshal(ev.ContentBlock, &head)
	if _, ok := err.(*json.UnmarshalTypeError); ok {
		err = nil // a block of another type may use these names otherwise
	}
	if err != nil || head.Type == "" {
		return garbage("content block %d has no type", ev.Index)
	}
	if err := m.grow(len(ev.ContentBlock)); err != nil {
		return err
	}
	m.blocks = append(m.blocks, block{raw: ev.ContentBlock, kind: head.Type, open: true, citations: head.Citations})
	b := &m.blocks[ev.Index]
	b.text.WriteString(head.Text)
	b.thinking.WriteString(head.Thinking)
	b.signature.WriteString(head.Signature)
	switch head.Type {
	case "text":
		onDelta(Delta{Kind: TextStart, Index: ev.Index})
		if head.Text != "" {
			onDelta(Delta{Kind: Text, Index: ev.Index, Text: head.Text})
		}
	case "thinking", "redacted_thinking":
		onDelta(Delta{Kind: ThinkingStart, Index: ev.Index})
	}
	return nil
}

func (m *message) blockDelta(ev *event, data []byte, onDelta func(Delta)) error {
	b, err := m.openBlock(ev)
	if err != nil {
		return err
	}
	d := &ev.Delta
	if err := m.grow(len(d.Text) + len(d.Thinking) + len(d.Signature) + len(d.PartialJSON) + len(d.Citation)); err != nil {
		return err
	}
	wrong := func() error { return garbage("a %s came for content block %d, a %s", d.Type, ev.Index, b.kind) }
	b.changed = true
	switch d.Type {
	case "text_delta":
		if b.kind != "text" {
			return wrong()
		}
		b.text.WriteString(d.Text)
		onDelta(Delta{Kind: Text, Index: ev.Index, Text: d.Text})
	case "citations_delta":
		if b.kind != "text" {
			return wrong()
		}
		b.citations = append(b.citations, d.Citation)
	case "thinking_delta":
		if b.kind != "thinking" {
			return wrong()
		}
		b.thinking.WriteString(d.Thinking)
	case "signature_delta":
		if b.kind != "thinking" {
			return wrong()
		}
		b.signature.WriteString(d.Signature)
	case "input_json_delta":
		if !b.isCall() {
			return wrong()
		}
		b.input.WriteString(d.PartialJSON)
	default:
		return m.replaceFields(b, data)
	}
	return nil
}

// replaceFields handles the deltas that carry a block's fields whole, as
// compaction_delta does; a type nobody knows yet is best read the same way.
func (m *message) replaceFields(b *block, data []byte) error {
	var ev struct {
		Delta map[string]json.RawMessage `json:"delta"`
	}
	if json.Unmarshal(data, &ev) != nil {
		return garbage("a delta of the stream is not an object: %s", excerpt(data))
	}
	delete(ev.Delta, "type")
	raw, err := withFields(b.raw, ev.Delta)
	if err != nil {
		return err
	}
	if err := m.grow(max(0, len(raw)-len(b.raw))); err != nil {
		return err
	}
	b.raw = raw
	return nil
}

func (m *message) blockStop(ev *event) error {
	b, err := m.openBlock(ev)
	if err != nil {
		return err
	}
	b.open = false
	return nil
}

func (m *message) openBlock(ev *event) (*block, error) {
	if ev.Index < 0 || ev.Index >= len(m.blocks) || !m.blocks[ev.Index].open {
		return nil, garbage("a %s came for content block %d, which is not open", ev.Type, ev.Index)
	}
	return &m.blocks[ev.Index], nil
}

// grow counts content against the limit.
func (m *message) grow(n int) error {
	// The constant pays for the bookkeeping of a block that is all but empty.
	if m.size += n + 64; m.size > maxMessageBytes {
		return tooBig("the content", maxMessageBytes)
	}
	return nil
}

// count takes over the counts an event mentions: each is a total so far. A count
// that cannot be is refused: what a session has cost follows from it.
func (m *message) count(u *wireUsage) error {
	usage := &m.response.Usage
	var wrong error
	set := func(to, from *int64) {
		switch {
		case from == nil:
		case *from < 0 || *from > maxTokens:
			wrong = &Error{Kind: Garbage, Status: http.StatusOK, Message: fmt.Sprintf("the reply counts %d tokens, which cannot be", *from)}
		default:
			*to = *from
		}
	}
	set(&usage.InputTokens, u.InputTokens)
	set(&usage.OutputTokens, u.OutputTokens)
	set(&usage.CacheReadInputTokens, u.CacheReadInputTokens)
	if u.CacheCreation != nil {
		set(&usage.CacheCreation5m, &u.CacheCreation.Ephemeral5m)
		set(&usage.CacheCreation1h, &u.CacheCreation.Ephemeral1h)
	}
	var all int64
	set(&all, u.CacheCreationInputTokens)
	// The sum without its parts can only have changed by the default, 5 minutes.
	if u.CacheCreationInputTokens != nil && all >= usage.CacheCreation1h {
		usage.CacheCreation5m = all - usage.CacheCreation1h
	}
	if u.Speed != "" {
		m.response.Speed = u.Speed
	}
	return wrong
}

// finish checks the whole and builds Response.Content.
func (m *message) finish() error {
	if m.response.StopReason == "" {
		return garbage("the message ended without a stop reason")
	}
	for i := range m.blocks {
		b := &m.blocks[i]
		if b.open {
			return garbage("the message ended inside content block %d", i)
		}
		raw, err := b.join()
		if err != nil {
			return err
		}
		if raw == nil {
			// Cut off on purpose, which only happens to the last block of a message
			// that was stopped early.
			if i == len(m.blocks)-1 && m.response.StopReason != "tool_use" && m.response.StopReason != "end_turn" {
				break
			}
			if raw, err = m.spoilt(i); err != nil {
				return err
			}
		}
		m.response.Content = append(m.response.Content, raw)
	}
	return nil
}

// The name under which the input of a call appears that is not an object, and how
// much of it, in bytes. It is the form the Messages API's documentation recommends
// for sending such a call back.
const (
	spoiltName = "INVALID_JSON"
	spoiltMax  = 4000
)

// spoilt returns a call whose input is not an object with one in its place, and
// notes what was wrong. What runs at the endpoint should not have got this far.
func (m *message) spoilt(index int) (json.RawMessage, error) {
	b := &m.blocks[index]
	input := b.input.String()
	if input == "" {
		var head struct {
			Input json.RawMessage `json:"input"`
		}
		_ = json.Unmarshal(b.raw, &head) // it has been read before
		input = string(head.Input)
	}
	if b.kind != "tool_use" {
		return nil, garbage("the input of the %s in content block %d is not a JSON object", b.kind, index)
	}
	problem := "it is not a JSON object"
	switch {
	case !json.Valid([]byte(input)):
		problem = "it is not valid JSON"
	case depthOf([]byte(input)) > maxDepth:
		problem = fmt.Sprintf("it is nested more than %d levels deep", maxDepth)
	}
	if len(input) > spoiltMax {
		input = strings.ToValidUTF8(input[:spoiltMax], "") + "…"
	}
	if m.response.Spoilt == nil {
		m.response.Spoilt = map[int]string{}
	}
	m.response.Spoilt[len(m.response.Content)] = problem
	return withFields(b.raw, map[string]json.RawMessage{"input": fmt.Appendf(nil, `{%q:%s}`, spoiltName, quote(input))})
}

// isCall reports whether the block is a call of a tool, wherever that runs.
func (b *block) isCall() bool { return strings.HasSuffix(b.kind, "tool_use") }

// join returns the finished block, or nil for a call whose input is broken.
func (b *block) join() (json.RawMessage, error) {
	if !b.changed && !b.isCall() {
		return b.raw, nil
	}
	fields := map[string]json.RawMessage{}
	put := func(name string, s *strings.Builder) {
		if s.Len() > 0 {
			fields[name] = quote(s.String())
		}
	}
	switch {
	case b.isCall():
		if b.input.Len() > 0 {
			fields["input"] = json.RawMessage(b.input.String())
			if !isObject(fields["input"]) {
				return nil, nil
			}
			break
		}
		var head struct {
			Input json.RawMessage `json:"input"`
		}
		if json.Unmarshal(b.raw, &head) != nil || head.Input != nil && !isObject(head.Input) {
			return nil, nil
		}
		if head.Input == nil {
			fields["input"] = json.RawMessage("{}")
		}
	case b.kind == "text":
		put("text", &b.text)
		if len(b.citations) > 0 {
			citations, err := json.Marshal(b.citations)
			if err != nil {
				return nil, garbage("a citation is not sound JSON")
			}
			fields["citations"] = citations
		}
	case b.kind == "thinking":
		put("thinking", &b.thinking)
		put("signature", &b.signature)
	}
	return withFields(b.raw, fields)
}

// withFields returns object with fields set, in a stable order: what is stored
// and sent again must stay the same, byte for byte, for the prompt cache.
func withFields(object json.RawMessage, fields map[string]json.RawMessage) (json.RawMessage, error) {
	if len(fields) == 0 {
		return object, nil
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(object, &all); err != nil {
		return nil, garbage("a content block is not an object: %s", excerpt(object))
	}
	for name, value := range fields {
		if value != nil {
			all[name] = value
		}
	}
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(all); err != nil {
		return nil, garbage("a content block is not sound JSON: %s", excerpt(object))
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// isObject reports whether raw is an object that can be kept, and read again as a
// part of something else.
func isObject(raw json.RawMessage) bool {
	return depthOf(raw) <= maxDepth && json.Valid(raw) && bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{"))
}

// depthOf is how deep JSON is nested, of which it need not be a sound piece.
func depthOf(data []byte) (deepest int) {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// quote returns s as a JSON string without HTML escapes.
func quote(s string) json.RawMessage {
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // a string always encodes
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// excerpt quotes the start of foreign bytes for a message.
func excerpt(data []byte) string {
	const most = 80
	if len(data) > most {
		return string(quote(string(data[:most]))) + "…"
	}
	return string(quote(string(data)))
}
