package loop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// An item is one contribution to the conversation with the model. Its blocks are
// shared and never changed.
type item struct {
	kind   itemKind
	blocks []json.RawMessage
}

type itemKind uint8

const (
	userInput   itemKind = iota
	systemInput          // instructions given during the conversation
	response             // what the model said
	results              // of the calls of the response before it
	nudge                // what we have to say of the response before it
	summary              // what stands for everything before it
)

// isInput reports whether the item came from a client, results aside.
func (it item) isInput() bool { return it.kind == userInput || it.kind == systemInput }

// messages returns the conversation in the form that the Messages API accepts:
// user and assistant by turns, beginning with user; the results of a response's
// calls directly after it, before other input; and between two responses at most
// one system message, after the user's, for that is the only place where the API
// takes one.
func (s *State) messages() []model.Message {
	var out []model.Message
	var answers, input, system []json.RawMessage
	flush := func() {
		if said := slices.Concat(answers, input); len(said) > 0 {
			out = append(out, model.Message{Role: "user", Content: said})
			if len(system) > 0 {
				out = append(out, model.Message{Role: "system", Content: system})
				system = nil
			}
		}
		answers, input = nil, nil
	}
	for _, it := range s.items {
		switch it.kind {
		case results:
			answers = append(answers, it.blocks...)
		case userInput, summary, nudge:
			input = append(input, it.blocks...)
		case systemInput:
			system = append(system, it.blocks...)
		case response:
			flush()
			if n := len(out); n > 0 && out[n-1].Role == "assistant" {
				// A paused turn goes on in the same message.
				out[n-1].Content = slices.Concat(out[n-1].Content, it.blocks)
				continue
			}
			out = append(out, model.Message{Role: "assistant", Content: it.blocks})
		}
	}
	flush()
	return out
}

// nudgeWith is an item of our own words.
func nudgeWith(text string) item {
	return item{kind: nudge, blocks: []json.RawMessage{api.TextBlock(text)}}
}

const textGoOn = "Your response was cut off at the output limit; what came of it is above. " +
	"Go on from exactly where it stopped, without repeating anything. If you were about to call a tool with a large input, use several smaller calls."

const textTooMany = "Your response made %d calls more than the %d that one response may make. Those beyond were not run; make them again in later responses, if they are still needed."

// Texts that stand for what has none.
const (
	textNoOutput = "(no output)"
	textNothing  = "(empty message)"
)

// resultCharsMax bounds the text of one tool result, as the hosted service does.
const resultCharsMax = 100_000

// resultBlock makes the tool_result of a call.
func resultBlock(ref string, content api.Content, isError bool) json.RawMessage {
	size := 0
	for _, raw := range content {
		size += len(raw)
	}
	total := 0
	if size > resultCharsMax { // else no text needs to be looked at
		for _, raw := range content {
			total += len(textOf(raw))
		}
	}
	blocks := make([]json.RawMessage, 0, len(content))
	for _, raw := range content {
		switch {
		case isBlank(raw):
		case isError && blockType(raw) != api.BlockText:
			// The API takes nothing but text in a failed result.
			blocks = append(blocks, api.TextBlock(fmt.Sprintf("(%s left out of this failed result)", blockType(raw))))
		case total > resultCharsMax && blockType(raw) == api.BlockText:
			text := textOf(raw)
			blocks = append(blocks, api.TextBlock(cut(text, resultCharsMax*len(text)/total)))
		default:
			blocks = append(blocks, api.SoundText(raw))
		}
	}
	if len(blocks) == 0 {
		blocks = append(blocks, api.TextBlock(textNoOutput))
	}

	// By hand, because there may be megabytes of blocks, which are sound JSON.
	id, _ := json.Marshal(ref) // a string always encodes
	out := make([]byte, 0, size+len(id)+200)
	out = append(append(out, `{"type":"tool_result","tool_use_id":`...), id...)
	out = append(out, `,"content":[`...)
	for i, raw := range blocks {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, raw...)
	}
	out = append(out, ']')
	if isError {
		out = append(out, `,"is_error":true`...)
	}
	return append(out, '}')
}

// cut shortens text to about limit bytes, keeping its beginning and, where
// commands usually say how they ended, its end.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	head, tail := limit*3/4, len(text)-limit/4
	for head > 0 && !utf8.RuneStart(text[head]) {
		head--
	}
	for tail < len(text) && !utf8.RuneStart(text[tail]) {
		tail++
	}
	return fmt.Sprintf("%s\n\n[… %d bytes left out here …]\n\n%s", text[:head], tail-head, text[tail:])
}

// nonBlank returns content without empty texts, which the API refuses, and never
// nothing.
func nonBlank(content api.Content) []json.RawMessage {
	kept := make([]json.RawMessage, 0, len(content))
	for _, raw := range content {
		if !isBlank(raw) {
			kept = append(kept, api.SoundText(raw)) // as a log of an earlier version may need it
		}
	}
	if len(kept) == 0 {
		kept = append(kept, api.TextBlock(textNothing))
	}
	return kept
}

// replayable returns what of a response can be sent back: no empty texts, and
// nothing after the last block that is not thinking.
func replayable(content []json.RawMessage) []json.RawMessage {
	var kept []json.RawMessage
	for _, raw := range content {
		if !isBlank(raw) {
			kept = append(kept, raw)
		}
	}
	for n := len(kept); n > 0 && isThinking(kept[n-1]); n-- {
		kept = kept[:n-1]
	}
	return kept
}

// isBlank reports whether a block is a text of nothing but white space.
func isBlank(raw json.RawMessage) bool {
	// Long ones are not looked at: who sends 256 spaces means them.
	return len(raw) <= 256 && blockType(raw) == api.BlockText && strings.TrimSpace(textOf(raw)) == ""
}

func isThinking(raw json.RawMessage) bool {
	t := blockType(raw)
	return t == "thinking" || t == "redacted_thinking"
}

func blockType(raw json.RawMessage) string {
	var b struct{ Type string }
	_ = json.Unmarshal(raw, &b) // content was checked when it came in
	return b.Type
}

func textOf(raw json.RawMessage) string {
	var b struct{ Type, Text string }
	if json.Unmarshal(raw, &b) != nil || b.Type != api.BlockText {
		return ""
	}
	return b.Text
}
