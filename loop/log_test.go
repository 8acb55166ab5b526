package loop

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
)

// A memLog is a session's log in memory, with the store's rules: a queued event
// that is taken moves to the end under a new number.
type memLog struct {
	entries []api.Entry
	seq     int64
	ids     int
}

func (l *memLog) newID() api.EventID {
	l.ids++
	return api.EventID(fmt.Sprintf("sevt_%d", l.ids))
}

func (l *memLog) append(drafts ...api.Draft) {
	for _, d := range drafts {
		if d.ID == "" {
			d.ID = l.newID()
		}
		if d.Body == nil {
			i := slices.IndexFunc(l.entries, func(e api.Entry) bool { return e.Queued && e.Event.ID == d.ID })
			d.Body = l.entries[i].Event.Body
			l.entries = slices.Delete(l.entries, i, i+1)
		}
		l.seq++
		l.entries = append(l.entries, api.Entry{Seq: l.seq, Event: api.Event{ID: d.ID, Body: d.Body}, Queued: d.Queued, Private: d.Private})
	}
}

// A memCall is a call and how often it was answered.
type memCall struct {
	id      api.EventID
	custom  bool
	mcp     bool
	ask     bool
	denied  bool
	verdict string
	result  int
}

func (l *memLog) calls() []memCall {
	var calls []memCall
	find := func(id api.EventID) *memCall {
		i := slices.IndexFunc(calls, func(c memCall) bool { return c.id == id })
		if i < 0 {
			return &memCall{}
		}
		return &calls[i]
	}
	for _, e := range l.entries {
		switch b := e.Event.Body.(type) {
		case *api.AgentToolUse:
			calls = append(calls, memCall{id: e.Event.ID, ask: b.EvaluatedPermission == api.PermissionAsk, denied: b.EvaluatedPermission == api.PermissionDeny})
		case *api.AgentMCPToolUse:
			calls = append(calls, memCall{id: e.Event.ID, mcp: true, ask: b.EvaluatedPermission == api.PermissionAsk, denied: b.EvaluatedPermission == api.PermissionDeny})
		case *api.AgentMCPToolResult:
			find(b.MCPToolUseID).result++
		case *api.AgentCustomToolUse:
			calls = append(calls, memCall{id: e.Event.ID, custom: true})
		case *api.UserToolResult:
			find(b.ToolUseID).result++
		case *api.UserCustomToolResult:
			find(b.CustomToolUseID).result++
		case *api.AgentToolResult:
			find(b.ToolUseID).result++
		case *api.UserToolConfirmation:
			find(b.ToolUseID).verdict = b.Result
		}
	}
	return calls
}

// waiting are the unanswered calls that the newest idle names.
func (l *memLog) waiting() []api.EventID {
	var ids []api.EventID
	for _, e := range l.entries {
		switch b := e.Event.Body.(type) {
		case *api.SessionStatusIdle:
			ids = slices.Clone(b.StopReason.EventIDs)
		case *api.SessionStatusRunning:
			ids = nil
		}
	}
	for _, c := range l.calls() {
		if c.result > 0 {
			ids = slices.DeleteFunc(ids, func(id api.EventID) bool { return id == c.id })
		}
	}
	return ids
}

// check verifies what every log must promise at any time.
func (l *memLog) check(t *testing.T) {
	t.Helper()
	span, last := api.EventID(""), api.EventType("")
	running := false
	seen := map[api.EventID]bool{}
	for _, e := range l.entries {
		if seen[e.Event.ID] {
			t.Errorf("%s is twice in the log", e.Event.ID)
		}
		seen[e.Event.ID] = true
		if e.Queued {
			continue
		}
		switch b := e.Event.Body.(type) {
		case *api.SpanModelRequestStart:
			if span != "" {
				t.Errorf("%s: a request begins while %s is open", e.Event.ID, span)
			}
			if !running {
				t.Errorf("%s: a request begins in a session that is not running", e.Event.ID)
			}
			span = e.Event.ID
		case *api.SpanModelRequestEnd:
			if b.ModelRequestStartID != span {
				t.Errorf("%s ends %s, but %q is open", e.Event.ID, b.ModelRequestStartID, span)
			}
			span = ""
		case *api.AgentMessage, *api.AgentThinking, *api.AgentToolUse, *api.AgentCustomToolUse, *api.AgentMCPToolUse, *api.AgentContextCompacted:
			if span == "" {
				t.Errorf("%s %s is outside of a request", e.Event.ID, e.Event.Type())
			}
		case *api.SessionStatusRunning:
			running = true
		case *api.SessionStatusResched:
			running = false
		case *api.SessionStatusIdle:
			running = false
			if last != api.EvSessionUsage {
				t.Errorf("%s: session.status_idle comes after %s, not session.usage", e.Event.ID, last)
			}
			if span != "" {
				t.Errorf("%s: idle during request %s", e.Event.ID, span)
			}
		case *api.SessionError:
			if b.Error.RetryStatus.Type == "" {
				t.Errorf("%s: session.error without a retry status", e.Event.ID)
			}
		}
		last = e.Event.Type()
	}
	for _, c := range l.calls() {
		if c.result > 1 {
			t.Errorf("call %s has %d results", c.id, c.result)
		}
	}
}

func (l *memLog) String() string {
	var out strings.Builder
	for _, e := range l.entries {
		queued := ""
		if e.Queued {
			queued = "?"
		}
		fmt.Fprintf(&out, "%3d %s%s\n", e.Seq, queued, showDraft(api.Draft{ID: e.Event.ID, Body: e.Event.Body, Private: e.Private}))
	}
	return out.String()
}
