package loop

import (
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// spanNote is the private part of span.model_request_end: how the request ended.
type spanNote struct {
	// Content is the response as it goes back to the model, thinking included.
	Content []json.RawMessage `json:"content,omitempty"`
	Stop    string            `json:"stop,omitempty"`
	Refusal *api.StopDetails  `json:"refusal,omitempty"`

	// LeftOut is how many calls of the response were too many to be run. They are not in
	// Content.
	LeftOut int `json:"left_out,omitempty"`

	// Compaction marks a request for a summary instead of the next response.
	Compaction bool `json:"compaction,omitempty"`

	// Failure is set when there is no response.
	Failure *failure `json:"failure,omitempty"`
}

// A failure is why a model request has no response.
type failure struct {
	Kind    failureKind `json:"kind"`
	Type    string      `json:"type,omitempty"` // of the session.error
	Message string      `json:"message,omitempty"`
	RetryAt time.Time   `json:"retry_at,omitzero"` // zero: trying again cannot help
}

type failureKind string

const (
	failureError       failureKind = "error"       // the endpoint failed or refused
	failureTooLong     failureKind = "too_long"    // the conversation does not fit
	failureInterrupted failureKind = "interrupted" // a client interrupted it
	failureStopped     failureKind = "stopped"     // this process was told to stop
	failureAborted     failureKind = "aborted"     // its process died, or lost the turn
)

// The stop reasons of the Messages API that mean something here. Every other
// ends the turn, unless calls are pending.
const (
	stopMaxTokens   = "max_tokens"
	stopContextFull = "model_context_window_exceeded"
	stopPause       = "pause_turn"
	stopRefusal     = "refusal"
)

// summaryNote is the private part of agent.thread_context_compacted.
type summaryNote struct {
	Summary string `json:"summary"`
}

// readNote reads a private part; none is an empty one.
func readNote(private []byte, note any) error {
	if len(private) == 0 {
		return nil
	}
	return json.Unmarshal(private, note)
}

func writeNote(note any) json.RawMessage {
	b, err := json.Marshal(note)
	if err != nil {
		// Only a RawMessage could fail, and those of a response were parsed before.
		panic("loop: a note that does not encode: " + err.Error())
	}
	return b
}
