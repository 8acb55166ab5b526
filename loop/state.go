package loop

import (
	"fmt"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A State is what the log of a session adds up to, as far as the loop has to
// know. Entries are folded into it one by one in the order of the log, so a turn
// that is held only folds what is new. The zero State is that of an empty log.
//
// A State is not safe for concurrent use.
type State struct {
	seq int64 // of the newest entry folded

	// What the log does not say; see Look.
	mcp        *toolbox // the tools of MCP servers; nil until they were asked for
	writing    bool     // what is folded is being written by this turn
	session    *api.Session
	threadID   api.ThreadID
	overBudget bool

	// Where the session is.
	status  api.SessionStatus // by the status events; "" before the first
	shown   api.SessionStatus // to clients that ask: running as soon as there is input
	waiting []api.EventID     // calls named by the newest idle event, if that was requires_action
	paused  bool              // that was budget_reached, and the budget has not changed since

	queue []queued    // clients' events that no turn has taken, as they arrived
	owed  bool        // the model has been told something that it has not answered
	span  api.EventID // the start of the open model request; "" is none
	calls []call      // of the newest response, while one of them is unanswered

	items       []item // the conversation with the model; clones share it, so it only grows
	turnStart   int    // the items before it belong to turns that are over
	contextSize int64  // tokens of the newest request and its response
	compactAt   int64  // tokens from which on the conversation is summarized; 0 is the default
	tooLong     bool   // the conversation does not fit into the model
	compacted   bool   // it was compacted, and the model has not answered since

	// What goes wrong, and how often in a row.
	refusal   *api.StopDetails
	problem   *failure  // of the newest request, not yet told to the clients
	retryAt   time.Time // not to ask the model again before
	failures  int       // requests that failed
	aborts    int       // requests that a process left behind
	truncated int       // responses cut off at a limit before they made a call
	pauses    int       // responses that stopped in mid-turn
}

// queued is a client's event that waits to be taken.
type queued struct {
	id   api.EventID
	body api.EventBody
}

// Look sets what a State has to know besides the log: the session as it is now,
// its primary thread, and whether its budget is used up.
func (s *State) Look(session *api.Session, thread api.ThreadID, overBudget bool) {
	s.session, s.threadID, s.overBudget, s.shown = session, thread, overBudget, session.Status
}

// Apply folds the next entry of the log. Entries that were folded before are
// ignored, so it does no harm to give them again.
func (s *State) Apply(e api.Entry) error {
	if e.Seq <= s.seq {
		return nil
	}
	if err := s.fold(e); err != nil {
		return fmt.Errorf("entry %d: %w", e.Seq, err)
	}
	s.seq = e.Seq
	return nil
}

// clone returns a State that can be changed while s stays as it is.
func (s *State) clone() *State {
	c := *s
	c.queue = slices.Clone(s.queue)
	c.calls = slices.Clone(s.calls)
	c.items = slices.Clip(s.items)
	return &c
}

func (s *State) fold(e api.Entry) error {
	id := e.Event.ID
	if e.Queued {
		s.queue = append(s.queue, queued{id, e.Event.Body})
		return nil
	}
	switch b := e.Event.Body.(type) {
	case *api.UserMessage:
		s.dequeue(id)
		s.push(item{kind: userInput, blocks: nonBlank(b.Content)})
		s.owed = true
	case *api.SystemMessage:
		// Instructions are not a question: nothing is owed for them.
		s.dequeue(id)
		s.push(item{kind: systemInput, blocks: nonBlank(b.Content)})
	case *api.UserInterrupt:
		s.dequeue(id)
	case *api.UserToolConfirmation:
		s.dequeue(id)
		s.confirm(b)
	case *api.UserToolResult:
		s.answer(b.ToolUseID, b.Content, b.IsError)
	case *api.UserCustomToolResult:
		s.answer(b.CustomToolUseID, b.Content, b.IsError)
	case *api.AgentToolResult:
		s.answer(b.ToolUseID, b.Content, b.IsError)
	case *api.AgentMCPToolResult:
		s.answer(b.MCPToolUseID, b.Content, b.IsError)

	case *api.AgentToolUse:
		return s.called(call{id: id, name: b.Name, permission: b.EvaluatedPermission, judged: b.Evaluation != nil}, e.Private)
	case *api.AgentMCPToolUse:
		return s.called(call{id: id, name: b.Name, server: b.MCPServerName, input: b.Input, permission: b.EvaluatedPermission, judged: b.Evaluation != nil}, e.Private)
	case *api.AgentCustomToolUse:
		return s.called(call{id: id, name: b.Name, permission: api.PermissionAllow}, e.Private)
	case *api.AgentContextCompacted:
		return s.compact(e.Private)

	case *api.SpanModelRequestStart:
		s.span = id
	case *api.SpanModelRequestEnd:
		return s.endRequest(b.ModelUsage, e.Private)

	case *api.SessionError:
		s.problem = nil
	case *api.SessionUpdated:
		if b.Budget.Set {
			s.paused = false
		}
	case *api.SessionStatusRunning:
		s.setStatus(api.StatusRunning)
		s.waiting, s.paused = nil, false
	case *api.SessionStatusResched:
		s.setStatus(api.StatusRescheduling)
	case *api.SessionStatusTerminated:
		s.setStatus(api.StatusTerminated)
	case *api.ThreadStatusIdle:
		s.endTurn(b.StopReason)
	case *api.SessionStatusIdle:
		s.setStatus(api.StatusIdle)
		s.waiting = b.StopReason.EventIDs
		s.paused = b.StopReason.Type == api.StopBudgetReached
		s.endTurn(b.StopReason)
	}
	return nil
}

func (s *State) setStatus(status api.SessionStatus) { s.status, s.shown = status, status }

// endTurn forgets what concerned a turn, unless it goes on once the calls are
// answered or the budget is raised.
func (s *State) endTurn(reason api.StopReason) {
	if reason.Type == api.StopRequiresAction || reason.Type == api.StopBudgetReached {
		return
	}
	s.loseCalls()
	s.turnStart = len(s.items)
	s.owed, s.span, s.refusal, s.problem, s.retryAt = false, "", nil, nil, time.Time{}
	s.failures, s.aborts, s.truncated, s.pauses, s.compacted = 0, 0, 0, 0, false
}

// endRequest folds the outcome of a model request.
func (s *State) endRequest(used api.SpanUsage, private []byte) error {
	var note spanNote
	if err := readNote(private, &note); err != nil {
		return err
	}
	s.span = ""
	if f := note.Failure; f != nil {
		switch f.Kind {
		case failureAborted:
			s.aborts++
		case failureError:
			s.failures++
			s.problem, s.retryAt = f, f.RetryAt
		case failureTooLong:
			// Compaction is the cure; when it did not help, nothing will.
			if s.tooLong = true; note.Compaction || s.compacted {
				s.problem = f
			}
		}
		return nil
	}
	s.failures, s.aborts, s.retryAt = 0, 0, time.Time{}
	if note.Compaction {
		return nil
	}

	s.tooLong, s.compacted = false, false
	s.contextSize = used.InputTokens + used.CacheCreationInputTokens + used.CacheReadInputTokens + used.OutputTokens
	if note.Stop == stopRefusal {
		s.refuse(note.Refusal)
		return nil
	}
	if len(note.Content) > 0 {
		s.push(item{kind: response, blocks: note.Content})
	}
	if note.LeftOut > 0 {
		s.push(nudgeWith(fmt.Sprintf(textTooMany, note.LeftOut, callsMax)))
	}
	truncated, pauses := s.truncated+1, s.pauses+1
	s.owed, s.truncated, s.pauses = false, 0, 0
	switch {
	case len(s.calls) > 0:
		// Their results are the next thing to be said.
	case note.Stop == stopMaxTokens || note.Stop == stopContextFull:
		s.push(nudgeWith(textGoOn))
		s.owed, s.truncated = true, truncated
		s.tooLong = note.Stop == stopContextFull
	case note.Stop == stopPause:
		s.owed, s.pauses = true, pauses
	}
	return nil
}

// refuse folds a refusal. What users said since the last response is taken out of
// the conversation, as Anthropic advises for refusals: with it, every later
// request would be refused as well.
func (s *State) refuse(details *api.StopDetails) {
	s.refusal = details
	if s.refusal == nil {
		s.refusal = &api.StopDetails{Type: "refusal"}
	}
	s.owed = false
	keep := len(s.items)
	for keep > 0 && s.items[keep-1].isInput() {
		keep--
	}
	said := s.items[keep:]
	s.items = slices.Clip(s.items[:keep])
	for _, it := range said {
		if it.kind == systemInput {
			s.push(it)
		}
	}
}

func (s *State) push(it item) { s.items = append(s.items, it) }

func (s *State) dequeue(id api.EventID) {
	s.queue = slices.DeleteFunc(s.queue, func(q queued) bool { return q.id == id })
}

// queuedOf returns the ids of the waiting events for which ok holds.
func (s *State) queuedOf(ok func(api.EventBody) bool) []api.EventID {
	var ids []api.EventID
	for _, q := range s.queue {
		if ok(q.body) {
			ids = append(ids, q.id)
		}
	}
	return ids
}
