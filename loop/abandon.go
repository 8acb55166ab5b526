package loop

import (
	"context"
	"slices"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

// abandon ends a turn that cannot be carried on, for a mistake in the rules of this
// package or for a write that the database does not take. It uses none of those
// rules, and writes as little as it can.
func (t *turn) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.e.cfg.TurnTTL)
	defer cancel()
	decide := func(v control.View) (control.Batch, error) {
		return control.Batch{Append: abandoned(v, t.unpaid), Tokens: t.unpaid, Model: v.Session.Agent.Model.ID, Release: true}, nil
	}
	if t.held != nil {
		return t.held.Commit(ctx, decide)
	}
	_, err := t.e.cfg.Control.ClaimTurn(ctx, t.id, t.e.cfg.Owner, nil, decide)
	return err
}

// abandoned closes whatever is open in a log. used is what the open request took.
func abandoned(v control.View, used api.Tokens) []api.Draft {
	var span api.EventID
	var queue, calls []api.EventID
	mcp := map[api.EventID]bool{}
	for _, e := range v.Entries {
		id := e.Event.ID
		if e.Queued {
			queue = append(queue, id)
			continue
		}
		answered := id
		switch b := e.Event.Body.(type) {
		case *api.SpanModelRequestStart:
			span = id
		case *api.SpanModelRequestEnd:
			span = ""
		case *api.AgentToolUse, *api.AgentCustomToolUse:
			calls = append(calls, id)
			continue
		case *api.AgentMCPToolUse:
			calls, mcp[id] = append(calls, id), true
			continue
		case *api.UserToolResult:
			answered = b.ToolUseID
		case *api.UserCustomToolResult:
			answered = b.CustomToolUseID
		case *api.AgentToolResult:
			answered = b.ToolUseID
		case *api.AgentMCPToolResult:
			answered = b.MCPToolUseID
		}
		calls = slices.DeleteFunc(calls, func(c api.EventID) bool { return c == answered })
	}
	if v.Session.Status == api.StatusTerminated {
		return nil
	}

	var drafts []api.Draft
	if span != "" {
		drafts = append(drafts, api.Draft{Body: &api.SpanModelRequestEnd{ModelRequestStartID: span, IsError: true, ModelUsage: used.Span()}})
	}
	drafts = append(drafts, errorDraft(api.ErrorUnknown, "The turn could not be carried on; the server's log says why. Send a new message to try again.", api.RetryExhausted))
	for _, id := range calls {
		text := textInterrupted
		if mcp[id] {
			text = textCutShort
		}
		drafts = append(drafts, failedCall(id, mcp[id], text))
	}
	drafts = append(drafts, take(queue)...)
	reason := api.StopReason{Type: api.StopRetriesExhausted}
	return append(drafts,
		api.Draft{Body: &api.ThreadStatusIdle{SessionThreadID: v.ThreadID, AgentName: v.Session.Agent.Name, StopReason: reason}},
		api.Draft{Body: &api.SessionUsage{}},
		api.Draft{Body: &api.SessionStatusIdle{StopReason: reason}})
}
