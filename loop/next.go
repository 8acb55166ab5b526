package loop

import (
	"fmt"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Step is what is to happen next in a session.
type Step struct {
	Do Action

	// Drafts are the events to be written, in this order. Those with an id and no
	// body take the queued event of that id; the others have no id yet. With
	// [CallModel] and [Compact] they end with the start of the request, which is
	// written before the model is asked.
	Drafts []api.Draft

	// NotBefore is when the model may be asked; zero is at once.
	NotBefore time.Time
}

// An Action is the kind of a [Step].
type Action string

const (
	Rest      Action = "rest"       // nothing, until something arrives
	Append    Action = "append"     // write, and ask for the next step
	CallModel Action = "call_model" // write, ask the model, write what it says
	Compact   Action = "compact"    // the same, for a summary of the conversation
	Equip     Action = "equip"      // write, ask the MCP servers for their tools
	RunCalls  Action = "run_calls"  // write, run calls of MCP tools, write their results
)

// The bounds of what may go wrong in a row before a turn is given up.
const (
	failuresMax  = 8
	abortsMax    = 5
	truncatedMax = 3
	pausesMax    = 10
)

// Next returns what is to happen next. It changes nothing and depends on nothing
// but s. Once its drafts are in the log the answer is another one: it never asks
// for the same twice.
func (s *State) Next() Step {
	interrupts := s.queuedOf(isInterrupt)
	pending := s.pending()
	switch {
	case s.terminated():
		return Step{Do: Rest}

	case s.span != "":
		// Whoever sends a request writes its end in the same turn. That it is open
		// here means that its process died, or lost the turn.
		return write(s.endFailed(&failure{Kind: failureAborted}, false))

	case len(s.orphans()) > 0:
		return write(s.failCalls(s.orphans(), textMayHaveRun, textMayHaveRun)...)

	case len(interrupts) > 0:
		step := write(take(interrupts)...)
		if s.open() {
			step.add(s.failCalls(pending, textInterrupted, textCutShort)...)
			step.add(s.goIdle(api.StopEndTurn)...)
		}
		return step

	case s.problem != nil:
		if s.problem.RetryAt.IsZero() || s.failures >= failuresMax {
			return s.giveUp(s.problem.Type, s.problem.Message)
		}
		return write(s.reschedule()...)
	case s.aborts >= abortsMax:
		return s.giveUp(api.ErrorUnknown, fmt.Sprintf("The server was stopped in the middle of %d model requests in a row. Send a new message to try again.", s.aborts))
	case s.truncated >= truncatedMax:
		return s.giveUp(api.ErrorModelRequest, fmt.Sprintf("The model reached its output limit %d times in a row. Ask for a shorter answer, or for one part at a time.", s.truncated))
	case s.pauses >= pausesMax:
		return s.giveUp(api.ErrorModelRequest, fmt.Sprintf("The model paused %d times in a row without an answer. Send a new message to try again.", s.pauses))
	}

	if confirmations := s.queuedOf(isConfirmation); len(confirmations) > 0 {
		step := write(take(confirmations)...)
		if s.releases() {
			// That it was taken is what says that the call was begun.
			step.Do = RunCalls
			step.add(s.startRunning()...)
		}
		return step
	}
	if drafts := s.refuseCalls(); len(drafts) > 0 {
		return write(drafts...)
	}
	if len(s.running()) > 0 {
		return Step{Do: RunCalls}
	}
	if len(pending) > 0 {
		if s.status == api.StatusIdle && slices.Equal(s.waiting, pending) {
			return Step{Do: Rest}
		}
		return write(s.goIdle(api.StopRequiresAction, pending...)...)
	}
	if s.refusal != nil {
		return write(s.goIdle(api.StopRefusal)...)
	}
	if s.owed || len(s.queuedOf(isMessage)) > 0 {
		return s.request()
	}
	if instructions := s.queuedOf(isInput); len(instructions) > 0 {
		return write(take(instructions)...) // they count from the next request on
	}
	if s.shown == api.StatusRunning || s.shown == api.StatusRescheduling {
		return write(s.goIdle(api.StopEndTurn)...)
	}
	return Step{Do: Rest}
}

// request is the step towards the next answer of the model.
func (s *State) request() Step {
	switch {
	case s.paused:
		return Step{Do: Rest}
	case s.overBudget:
		return write(s.goIdle(api.StopBudgetReached)...)
	}
	step := Step{Do: CallModel, NotBefore: s.retryAt}
	switch {
	case s.wantsCompaction():
		step.Do = Compact // the queue waits: what is in it comes after the summary
	case s.tooLong:
		return s.giveUp(api.ErrorModelRequest, "The conversation is too long for the model, and nothing in it can be summarized away. Start a new session with less input.")
	default:
		step.add(take(s.queuedOf(isInput))...)
	}
	step.add(s.startRunning()...)
	if len(s.session.Agent.MCPServers) > 0 && s.mcp == nil {
		step.Do = Equip // first
		return step
	}
	step.add(api.Draft{Body: &api.SpanModelRequestStart{}})
	return step
}

// startRunning is the beginning of work, unless the session is at work.
func (s *State) startRunning() []api.Draft {
	if s.status == api.StatusRunning {
		return nil
	}
	return []api.Draft{
		{Body: &api.SessionStatusRunning{}},
		{Body: &api.ThreadStatusRunning{SessionThreadID: s.threadID, AgentName: s.session.Agent.Name}},
	}
}

// releases reports whether one of the waiting confirmations allows a call that the loop
// runs itself.
func (s *State) releases() bool {
	for _, q := range s.queue {
		if b, ok := q.body.(*api.UserToolConfirmation); ok && b.Result != "deny" {
			if c := s.unanswered(b.ToolUseID); c != nil && c.server != "" && !c.begun {
				return true
			}
		}
	}
	return false
}

// giveUp ends the turn with an error. What is queued is flushed: it was written
// in the hope of an answer that will not come.
func (s *State) giveUp(kind, message string) Step {
	step := write(errorDraft(kind, message, api.RetryExhausted))
	step.add(s.failCalls(s.pending(), textInterrupted, textCutShort)...)
	step.add(take(s.queuedOf(func(api.EventBody) bool { return true }))...)
	step.add(s.goIdle(api.StopRetriesExhausted)...)
	return step
}

// reschedule tells the clients about a failure that will be tried again.
func (s *State) reschedule() []api.Draft {
	return []api.Draft{
		errorDraft(s.problem.Type, s.problem.Message, api.RetryRetrying),
		{Body: &api.SessionStatusResched{}},
		{Body: &api.ThreadStatusResched{SessionThreadID: s.threadID, AgentName: s.session.Agent.Name}},
	}
}

// goIdle is the end of a turn, or its wait for the given calls.
func (s *State) goIdle(reason string, calls ...api.EventID) []api.Draft {
	thread := api.StopReason{Type: reason, EventIDs: calls}
	session := thread
	if reason == api.StopEndTurn && s.overBudget {
		// The thread is done, but the session can do no more.
		session.Type = api.StopBudgetReached
	}
	var details *api.StopDetails
	if reason == api.StopRefusal {
		details = s.refusal
	}
	return []api.Draft{
		{Body: &api.ThreadStatusIdle{SessionThreadID: s.threadID, AgentName: s.session.Agent.Name, StopReason: thread, StopDetails: details}},
		{Body: &api.SessionUsage{}}, // control fills it with what this write makes of it
		{Body: &api.SessionStatusIdle{StopReason: session, StopDetails: details}},
	}
}

// endFailed is the end of the open request, without a response. compaction says
// that it was to be a summary.
func (s *State) endFailed(f *failure, compaction bool) api.Draft {
	return api.Draft{
		Body:    &api.SpanModelRequestEnd{ModelRequestStartID: s.span, IsError: true},
		Private: writeNote(spanNote{Failure: f, Compaction: compaction}),
	}
}

// refuseCalls answers the calls that must not run.
func (s *State) refuseCalls() []api.Draft {
	var drafts []api.Draft
	for _, c := range s.calls {
		if c.result != nil {
			continue
		}
		switch {
		case c.spoilt != "":
			drafts = append(drafts, c.failed(fmt.Sprintf(textSpoilt, c.name, c.spoilt)))
		case c.permission == api.PermissionDeny && !c.judged:
			drafts = append(drafts, c.failed(fmt.Sprintf(textUnknown, c.name)))
		case c.permission == api.PermissionDeny:
			drafts = append(drafts, c.failed(fmt.Sprintf(textDenied, c.name)))
		case c.rejected:
			text := fmt.Sprintf(textRejected, c.name)
			if c.reason != "" {
				text += textReason + c.reason
			}
			drafts = append(drafts, c.failed(text))
		}
	}
	return drafts
}

// failCalls answers calls in a few words: begun is said of those that may have run here.
func (s *State) failCalls(ids []api.EventID, text, begun string) []api.Draft {
	var drafts []api.Draft
	for _, id := range ids {
		switch c := s.unanswered(id); {
		case c == nil:
		case c.begun:
			drafts = append(drafts, c.failed(begun))
		default:
			drafts = append(drafts, c.failed(text))
		}
	}
	return drafts
}

// failed is the result of a call that came to nothing.
func (c *call) failed(text string) api.Draft {
	return failedCall(c.id, c.server != "", text)
}

func failedCall(id api.EventID, mcp bool, text string) api.Draft {
	yes, content := true, api.Content{api.TextBlock(text)}
	if mcp {
		return api.Draft{Body: &api.AgentMCPToolResult{MCPToolUseID: id, Content: content, IsError: &yes}}
	}
	return api.Draft{Body: &api.AgentToolResult{ToolUseID: id, Content: content, IsError: &yes}}
}

func errorDraft(kind, message, retry string) api.Draft {
	return api.Draft{Body: &api.SessionError{Error: api.TurnError{
		Type: kind, Message: message, RetryStatus: api.RetryStatus{Type: retry},
	}}}
}

func write(drafts ...api.Draft) Step { return Step{Do: Append, Drafts: drafts} }

func (s *Step) add(drafts ...api.Draft) { s.Drafts = append(s.Drafts, drafts...) }

// take makes the drafts that take queued events.
func take(ids []api.EventID) []api.Draft {
	drafts := make([]api.Draft, len(ids))
	for i, id := range ids {
		drafts[i].ID = id
	}
	return drafts
}

func (s *State) terminated() bool {
	return s.status == api.StatusTerminated || s.shown == api.StatusTerminated
}

// open reports whether a turn is under way, if only waiting.
func (s *State) open() bool {
	if s.paused {
		return false // an interrupt does not touch a session that waits for budget
	}
	return s.status == api.StatusRunning || s.status == api.StatusRescheduling || len(s.calls) > 0 || s.owed
}

func isInterrupt(b api.EventBody) bool    { return b.EventType() == api.EvUserInterrupt }
func isConfirmation(b api.EventBody) bool { return b.EventType() == api.EvUserToolConfirmation }
func isMessage(b api.EventBody) bool      { return b.EventType() == api.EvUserMessage }
func isInput(b api.EventBody) bool        { return isMessage(b) || b.EventType() == api.EvSystemMessage }
