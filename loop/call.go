package loop

import (
	"encoding/json"
	"slices"

	"github.com/bailey-platform/bailey/api"
)

// call is one use of a tool by the newest response.
type call struct {
	id         api.EventID
	ref        string // the model's own id of it
	name       string
	permission api.Permission
	judged     bool            // the permission came from a policy, not from the tool being unknown
	server     string          // of a tool of an MCP server, which the loop runs itself; else ""
	input      json.RawMessage // of a call that the loop runs
	spoilt     string          // what is wrong with its input, if that is why it is denied

	// Of a call that the loop runs: begun says that the log allows it to be run, so that
	// it may have been; ours that this turn runs it.
	begun, ours bool

	rejected bool // a client refused it, and perhaps said why
	reason   string

	result json.RawMessage // the tool_result block; nil while unanswered
}

// callNote is the private part of a tool use event.
type callNote struct {
	ToolUseID string `json:"tool_use_id"`
	Spoilt    string `json:"spoilt,omitempty"`
}

func (s *State) called(c call, private []byte) error {
	var note callNote
	if err := readNote(private, &note); err != nil {
		return err
	}
	c.ref, c.spoilt = note.ToolUseID, note.Spoilt
	if c.server != "" && c.permission == api.PermissionAllow {
		c.begun, c.ours = true, s.writing
	}
	s.calls = append(s.calls, c)
	return nil
}

func (s *State) confirm(b *api.UserToolConfirmation) {
	c := s.unanswered(b.ToolUseID)
	switch {
	case c == nil:
		return
	case b.Result != "deny" && c.server != "":
		c.begun, c.ours = true, s.writing
		return
	case b.Result != "deny":
		return // allowing releases the call to whoever runs it; its result is still to come
	}
	c.rejected = true
	if b.DenyMessage != nil {
		c.reason = *b.DenyMessage
	}
}

// answer records the first result of a call. Later ones, and those of unknown
// calls, have no effect.
func (s *State) answer(id api.EventID, content api.Content, isError *bool) {
	c := s.unanswered(id)
	if c == nil {
		return
	}
	c.result = resultBlock(c.ref, content, isError != nil && *isError)
	if len(s.pending()) == 0 {
		s.settleCalls()
		s.owed = true
	}
}

// loseCalls answers every call that is still open in the model's view only. It
// is the last resort of a turn that ended without results for them.
func (s *State) loseCalls() {
	for i := range s.calls {
		if s.calls[i].result == nil {
			s.calls[i].result = resultBlock(s.calls[i].ref, api.Content{api.TextBlock(textInterrupted)}, true)
		}
	}
	if len(s.calls) > 0 {
		s.settleCalls()
	}
}

// settleCalls moves the results into the conversation, in the order of the calls.
func (s *State) settleCalls() {
	blocks := make([]json.RawMessage, len(s.calls))
	for i, c := range s.calls {
		blocks[i] = c.result
	}
	s.push(item{kind: results, blocks: blocks})
	s.calls = nil
}

func (s *State) unanswered(id api.EventID) *call {
	i := slices.IndexFunc(s.calls, func(c call) bool { return c.id == id && c.result == nil })
	if i < 0 {
		return nil
	}
	return &s.calls[i]
}

// running returns the calls that this turn runs.
func (s *State) running() []*call {
	var calls []*call
	for i := range s.calls {
		if c := &s.calls[i]; c.ours && c.result == nil {
			calls = append(calls, c)
		}
	}
	return calls
}

// orphans returns the ids of the calls that a turn before this one began to run. Whoever
// begins one writes its result in the same turn: its process died, or lost the turn.
func (s *State) orphans() []api.EventID {
	var ids []api.EventID
	for _, c := range s.calls {
		if c.begun && !c.ours && c.result == nil {
			ids = append(ids, c.id)
		}
	}
	return ids
}

// adopt marks those of the calls that this turn has begun to run in an earlier write.
func (s *State) adopt(ours map[api.EventID]bool) {
	for i := range s.calls {
		s.calls[i].ours = s.calls[i].begun && ours[s.calls[i].id]
	}
}

// pending returns the ids of the unanswered calls.
func (s *State) pending() []api.EventID {
	var ids []api.EventID
	for _, c := range s.calls {
		if c.result == nil {
			ids = append(ids, c.id)
		}
	}
	return ids
}

// The texts of results that the loop writes itself. The first two are those of
// the public protocol.
const (
	textInterrupted = "Tool execution was interrupted before completion. Please retry."
	textDenied      = "Permission to use %s has been denied."
	textUnknown     = "There is no tool named %s in this session."
	textSpoilt      = "This call of %s was not run, because of its input: %s. Call the tool again with a JSON object that fits its schema."
	textRejected    = "The user rejected this call of %s; it was not run."
	textReason      = " The user said: "
	textMayHaveRun  = "The server was stopped while this call ran. Whether it had an effect is unknown, and it was not run again. Check the state before you repeat it."
	textCutShort    = "Tool execution was interrupted before completion. Whether it had an effect is unknown: check the state before you repeat it."
)
