package model

import "encoding/json"

// DeltaKind says what a [Delta] reports.
type DeltaKind int

const (
	TextStart     DeltaKind = iota // a text block began
	Text                           // a piece of its text came
	ThinkingStart                  // a thinking block began; its text is not shown
)

// A Delta is a preview of the message while it streams. Previews are worth
// showing and nothing else: only a [Response] is the message.
type Delta struct {
	Kind  DeltaKind
	Index int // of the block in the message
	Text  string
}

// A Response is one whole message of the model.
type Response struct {
	ID    string
	Model string // as the endpoint names it

	// Content is the blocks as the endpoint sent them, put together. Every
	// tool_use block in it has an object as input: when the message was cut off
	// (stop reasons max_tokens, model_context_window_exceeded, refusal, …) inside
	// the input of its last call, that call is left out, since it can neither be
	// run nor sent back.
	Content []json.RawMessage

	// Spoilt says, by the place in Content, what is wrong with the input that the
	// model wrote for a call: it is no JSON object, or one that is nested too deep.
	// Such a call must not be run; its input in Content quotes what there was.
	Spoilt map[int]string

	// StopReason is "end_turn", "tool_use", "max_tokens", "refusal", … as in the
	// Messages API; never empty.
	StopReason string

	// StopDetails says more about a refusal; else nil.
	StopDetails *StopDetails

	Usage Usage

	// Speed is the mode the request was served in, if the endpoint says so.
	Speed string
}

// StopDetails is why a model refused. Category ("cyber", "bio", …) and
// Explanation may each be empty.
type StopDetails struct {
	Category    string `json:"category"`
	Explanation string `json:"explanation"`
}

// Usage counts the tokens of one request. The three kinds of input do not
// overlap: their sum is the whole prompt.
type Usage struct {
	InputTokens          int64 // neither read from nor written to the cache
	OutputTokens         int64
	CacheReadInputTokens int64
	CacheCreation5m      int64
	CacheCreation1h      int64
}
