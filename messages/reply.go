package messages

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// A reply makes one message of several answers of the model and the results between them,
// and writes it: event by event to a client that streams, whole to another.
type reply struct {
	w   http.ResponseWriter
	req *request

	begun  bool // something is out
	opened bool // the message has begun, as far as the client is concerned

	shift int // of the indexes of blocks of the answer under way
	next  int // index of the next block

	start   map[string]json.RawMessage // the message, as the first answer began it
	content []content
	usage   map[string]any  // of all answers, with the one under way as far as it is known
	past    map[string]any  // of those that are over
	delta   json.RawMessage // of the newest message_delta
}

// content is a block under way, for a client that does not stream.
type content struct {
	raw   json.RawMessage
	input strings.Builder
	parts map[string]*strings.Builder
	more  map[string][]json.RawMessage
}

func newReply(w http.ResponseWriter, req *request) *reply {
	return &reply{w: w, req: req, past: map[string]any{}}
}

// event takes an event of the model's answer under way.
func (p *reply) event(data []byte) error {
	var ev struct {
		Type         string                     `json:"type"`
		Index        int                        `json:"index"`
		Message      map[string]json.RawMessage `json:"message"`
		ContentBlock json.RawMessage            `json:"content_block"`
		Delta        json.RawMessage            `json:"delta"`
		Usage        json.RawMessage            `json:"usage"`
	}
	if err := json.Unmarshal(data, &ev); err != nil {
		return nil // of a type from the future; nobody can shift its indexes
	}
	switch ev.Type {
	case "message_start":
		p.shift = p.next
		p.count(ev.Message["usage"])
		if p.opened {
			return nil
		}
		p.opened, p.start = true, ev.Message
		if err := p.send(ev.Type, map[string]any{"message": ev.Message}); err != nil {
			return err
		}
		return p.listings()
	case "content_block_start":
		p.next = max(p.next, p.shift+ev.Index+1)
		return p.blockStart(p.shift+ev.Index, p.translate(ev.ContentBlock))
	case "content_block_delta":
		return p.blockDelta(p.shift+ev.Index, ev.Delta)
	case "content_block_stop":
		return p.send(ev.Type, map[string]any{"index": p.shift + ev.Index})
	case "message_delta":
		p.delta = ev.Delta
		p.count(ev.Usage)
		return nil // the client's comes at the end
	case "message_stop":
		p.past = maps.Clone(p.usage)
		return nil
	case "ping":
		p.ping()
	}
	return nil
}

// translate makes the call of a server's tool what the client knows it as.
func (p *reply) translate(raw json.RawMessage) json.RawMessage {
	var b struct {
		Type, ID, Name string
		Input          json.RawMessage
	}
	if json.Unmarshal(raw, &b) != nil || b.Type != "tool_use" {
		return raw
	}
	tool, ok := p.req.tools[b.Name]
	if !ok {
		return raw
	}
	if len(b.Input) == 0 {
		b.Input = json.RawMessage("{}")
	}
	c := call{ref: b.ID}
	return object("mcp_tool_use", "id", c.id(), "name", tool.bare, "server_name", tool.server, "input", b.Input)
}

// object is a block of a type with the given fields.
func object(kind string, pairs ...any) json.RawMessage {
	fields := map[string]any{"type": kind}
	for i := 0; i < len(pairs); i += 2 {
		fields[pairs[i].(string)] = pairs[i+1]
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		panic("messages: a block of sound parts always encodes: " + err.Error())
	}
	return raw
}

// listings tells a client that knows of them which tools the servers listed.
func (p *reply) listings() error {
	if !p.req.listings {
		return nil
	}
	for _, l := range p.req.listed {
		if err := p.whole(l); err != nil {
			return err
		}
	}
	return nil
}

// result adds the result of a call.
func (p *reply) result(c call, res result) error {
	text := []json.RawMessage{object("text", "text", res.text, "citations", nil)}
	return p.whole(object("mcp_tool_result", "tool_use_id", c.id(), "is_error", res.isError, "content", text))
}

// whole adds a block that is there as a whole.
func (p *reply) whole(block json.RawMessage) error {
	at := p.next
	p.next++
	p.shift = p.next
	if err := p.blockStart(at, block); err != nil {
		return err
	}
	return p.send("content_block_stop", map[string]any{"index": at})
}

func (p *reply) blockStart(at int, block json.RawMessage) error {
	if !p.req.stream {
		for len(p.content) <= at {
			p.content = append(p.content, content{})
		}
		p.content[at] = content{raw: block, parts: map[string]*strings.Builder{}, more: map[string][]json.RawMessage{}}
	}
	return p.send("content_block_start", map[string]any{"index": at, "content_block": block})
}

func (p *reply) blockDelta(at int, delta json.RawMessage) error {
	if !p.req.stream && at < len(p.content) {
		p.content[at].add(delta)
	}
	return p.send("content_block_delta", map[string]any{"index": at, "delta": delta})
}

// add puts a piece of a block to the rest.
func (c *content) add(delta json.RawMessage) {
	var d map[string]json.RawMessage
	if json.Unmarshal(delta, &d) != nil {
		return
	}
	for name, raw := range d {
		var text string
		if name == "type" {
			continue
		}
		if name == "partial_json" && json.Unmarshal(raw, &text) == nil {
			c.input.WriteString(text)
			continue
		}
		if name == "citation" {
			c.more["citations"] = append(c.more["citations"], raw)
			continue
		}
		if json.Unmarshal(raw, &text) == nil {
			if c.parts[name] == nil {
				c.parts[name] = new(strings.Builder)
			}
			c.parts[name].WriteString(text)
			continue
		}
		c.raw = withField(c.raw, name, raw)
	}
}

// block is the block once all of it has come.
func (c *content) block() json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(c.raw, &fields) != nil {
		return c.raw
	}
	for name, text := range c.parts {
		var begun string
		_ = json.Unmarshal(fields[name], &begun) // "" if it did not begin with any
		fields[name], _ = json.Marshal(begun + text.String())
	}
	for name, list := range c.more {
		fields[name], _ = json.Marshal(list)
	}
	if input := c.input.String(); json.Valid([]byte(input)) {
		fields["input"] = json.RawMessage(input)
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return c.raw
	}
	return raw
}

// count takes over what the answer under way has used so far, on top of those before it.
func (p *reply) count(raw json.RawMessage) {
	var now map[string]any
	if json.Unmarshal(raw, &now) != nil || now == nil {
		return
	}
	if p.usage == nil {
		p.usage = map[string]any{}
	}
	for name, v := range sum(p.past, now) {
		p.usage[name] = v
	}
}

// sum adds the numbers of two objects; what is no number is that of b.
func sum(a, b map[string]any) map[string]any {
	out := maps.Clone(b)
	for name, v := range b {
		switch v := v.(type) {
		case float64:
			if before, ok := a[name].(float64); ok {
				out[name] = before + v
			}
		case map[string]any:
			before, _ := a[name].(map[string]any)
			out[name] = sum(before, v)
		case nil:
			if a[name] != nil {
				out[name] = a[name]
			}
		}
	}
	return out
}

// end ends the message.
func (p *reply) end(stop string) error {
	delta := withField(p.delta, "stop_reason", quoted(stop))
	if p.req.stream {
		if err := p.send("message_delta", map[string]any{"delta": delta, "usage": p.usage}); err != nil {
			return err
		}
		return p.send("message_stop", nil)
	}
	message := maps.Clone(p.start)
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(delta, &fields) // made above
	maps.Copy(message, fields)
	blocks := make([]json.RawMessage, len(p.content))
	for i := range p.content {
		blocks[i] = p.content[i].block()
	}
	var err error
	if message["content"], err = json.Marshal(blocks); err == nil {
		message["usage"], err = json.Marshal(p.usage)
	}
	if err != nil {
		return fmt.Errorf("messages: encode the reply: %w", err)
	}
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("messages: encode the reply: %w", err)
	}
	p.w.Header().Set("Content-Type", "application/json")
	p.begun = true
	_, _ = p.w.Write(data) // a client that left does not need it
	return nil
}

func quoted(text string) json.RawMessage {
	raw, err := json.Marshal(text)
	if err != nil {
		panic("messages: a text always encodes: " + err.Error())
	}
	return raw
}

// fail ends a stream in the middle.
func (p *reply) fail(e *model.Error) error {
	kind := e.Type
	if kind == "" {
		kind = string(api.TypeAPI)
	}
	return p.send("error", map[string]any{"error": map[string]any{"type": kind, "message": e.Message}})
}

// ping shows that the connection is alive. Who writes events otherwise is not at work
// meanwhile.
func (p *reply) ping() { _ = p.send("ping", nil) }

// send writes an event, if the client streams.
func (p *reply) send(kind string, fields map[string]any) error {
	if !p.req.stream {
		return nil
	}
	if fields == nil {
		fields = map[string]any{}
	}
	fields["type"] = kind
	data, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("messages: encode %s: %w", kind, err)
	}
	if !p.begun {
		h := p.w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		p.begun = true
	}
	if _, err := fmt.Fprintf(p.w, "event: %s\ndata: %s\n\n", kind, data); err != nil {
		return fmt.Errorf("messages: the client went away: %w", err)
	}
	_ = http.NewResponseController(p.w).Flush() // a writer that cannot flush is still correct, only slower
	return nil
}
