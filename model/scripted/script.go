// Package scripted is a fake model: an HTTP server that speaks the Messages
// API and plays a transcript instead of thinking. It exists for tests, for the
// demo, and for trying the platform without a key or a network. It never
// answers a question, and it says so when asked one.
//
// A [Script] is a list of [Turn]s. Which turn a request gets depends on the
// request alone, namely on how many assistant messages its conversation has so
// far; so a retry, or a restart of whoever asks, gets the same turn again, and
// conversations played at the same time do not disturb each other. A turn may
// state what it expects of the request; a request that disappoints it is
// refused with the reason. A turn may also go wrong in chosen ways ([Fault]).
//
// It checks requests about as strictly as the real endpoint, since a fake that
// accepts anything proves nothing. It knows nothing of the rest of this project.
//
// Start reading at [Script], then [New].
package scripted

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Script is what the model says in one kind of conversation.
type Script struct {
	// Name is for error messages.
	Name string `yaml:"name"`

	// Marker picks the conversations this script plays: those whose first user
	// message contains it. Of several scripts the first that fits plays; one
	// without a marker fits any conversation.
	Marker string `yaml:"marker"`

	Turns []Turn `yaml:"turns"`

	// OpenEnd makes conversations that go on after the last turn get the offline
	// answers (see [New]). Otherwise they are refused.
	OpenEnd bool `yaml:"open_end"`
}

// A Turn is one message of the model, in the order of its fields: thinking,
// text, tool calls.
type Turn struct {
	// On, if set, takes the turn out of the count: it answers any request whose
	// last user message contains the text. For what is not part of the straight
	// conversation, such as a request for a summary.
	On string `yaml:"on"`

	// Expect must hold for the request, or it is refused with status 400.
	Expect []Expect `yaml:"expect"`

	// Faults spoil requests for this turn, in order, before it is played.
	Faults []Fault `yaml:"faults"`

	Thinking string `yaml:"thinking"`
	Text     string `yaml:"text"`
	Calls    []Call `yaml:"calls"`

	// Stop is the stop reason; "" is tool_use if there are calls, else end_turn.
	Stop string `yaml:"stop"`

	// Category and Explanation are the details of a refusal.
	Category    string `yaml:"category"`
	Explanation string `yaml:"explanation"`

	// Usage is what the turn reports; nil reports an estimate from the sizes.
	Usage *Usage `yaml:"usage"`
}

// A Call asks for one tool.
type Call struct {
	Name  string         `yaml:"name"`
	Input map[string]any `yaml:"input"`

	// Raw is streamed as the input in place of Input, sound JSON or not.
	Raw string `yaml:"raw"`
}

// Usage is the token counts of one message.
type Usage struct {
	InputTokens          int64 `yaml:"input_tokens"`
	OutputTokens         int64 `yaml:"output_tokens"`
	CacheReadInputTokens int64 `yaml:"cache_read_input_tokens"`
	CacheCreation5m      int64 `yaml:"cache_creation_5m"`
	CacheCreation1h      int64 `yaml:"cache_creation_1h"`
}

// An Expect states what must hold of a request. Every field that is set must.
type Expect struct {
	// Result is which tool result of the last message Contains, Lacks, OK and
	// Failed look at: 0 is that of the first call of the turn before.
	Result   int    `yaml:"result"`
	Contains string `yaml:"contains"`
	Lacks    string `yaml:"lacks"`
	OK       bool   `yaml:"ok"`     // is_error is false or absent
	Failed   bool   `yaml:"failed"` // is_error is true

	User   string `yaml:"user"`   // the last message's own text contains this
	System string `yaml:"system"` // the system prompt contains this
	Tool   string `yaml:"tool"`   // a tool of this name is offered
}

// Kinds of [Fault].
const (
	FaultStatus  = "status"  // answer with an HTTP error
	FaultError   = "error"   // send an error event inside the stream
	FaultCut     = "cut"     // break the connection
	FaultEnd     = "end"     // end the reply too early, but politely
	FaultGarbage = "garbage" // send Garbage, then end the reply
	FaultStall   = "stall"   // stop sending until Server.Release, or the client leaves
	FaultSlow    = "slow"    // wait Delay before every event; the reply is whole
)

// A Fault is one way for a reply to go wrong. Which requests it spoils is
// counted for each conversation and turn.
type Fault struct {
	Kind string `yaml:"kind"`

	// Times is how many requests in a row are spoilt: 0 is one, -1 is all.
	Times int `yaml:"times"`

	// After is how many bytes of the sound reply are sent first. Not for status.
	After int `yaml:"after"`

	Status     int           `yaml:"status"`      // for status
	Type       string        `yaml:"type"`        // error type, for status and error
	Message    string        `yaml:"message"`     // for status and error
	RetryAfter time.Duration `yaml:"retry_after"` // for status; whole seconds
	Garbage    string        `yaml:"garbage"`     // for garbage
	Delay      time.Duration `yaml:"delay"`       // for slow
}

// Validate reports the first thing that cannot be played.
func (s *Script) Validate() error {
	if len(s.Turns) == 0 {
		return fmt.Errorf("script %q has no turns", s.Name)
	}
	for i := range s.Turns {
		if err := s.Turns[i].validate(); err != nil {
			return fmt.Errorf("script %q, turn %d: %w", s.Name, i, err)
		}
	}
	return nil
}

func (t *Turn) validate() error {
	if t.Thinking == "" && t.Text == "" && len(t.Calls) == 0 && t.Stop == "" {
		return errors.New("says nothing: give it thinking, text, calls or a stop reason")
	}
	for _, call := range t.Calls {
		if call.Name == "" {
			return errors.New("a call has no name")
		}
		if call.Raw != "" && call.Input != nil {
			return fmt.Errorf("call of %s has both input and raw", call.Name)
		}
		if _, err := json.Marshal(call.Input); err != nil {
			return fmt.Errorf("input of %s: %w", call.Name, err)
		}
	}
	for _, e := range t.Expect {
		if e == (Expect{Result: e.Result}) {
			return errors.New("an expectation expects nothing")
		}
		if e.OK && e.Failed || e.Result < 0 {
			return errors.New("an expectation cannot be met")
		}
	}
	for _, f := range t.Faults {
		if err := f.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fault) validate() error {
	kinds := []string{FaultStatus, FaultError, FaultCut, FaultEnd, FaultGarbage, FaultStall, FaultSlow}
	switch {
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("fault kind %q is not one of %v", f.Kind, kinds)
	case f.Times < -1 || f.After < 0 || f.Delay < 0 || f.RetryAfter < 0:
		return fmt.Errorf("fault %s has a negative number", f.Kind)
	case f.Kind == FaultStatus && (f.Status < 400 || f.Status > 599):
		return fmt.Errorf("fault status needs an HTTP status of 400 to 599, not %d", f.Status)
	case f.Kind == FaultError && f.Type == "":
		return errors.New("fault error needs an error type")
	case f.Kind == FaultGarbage && f.Garbage == "":
		return errors.New("fault garbage needs garbage")
	}
	return nil
}
