package control

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// SendEvents accepts events from a client or a worker, all or none. Messages and
// interrupts wait for a turn; answers to tool calls are processed on receipt. A
// second, equal answer to a call is accepted and changes nothing.
func (c *Control) SendEvents(ctx context.Context, p Principal, id api.SessionID, in api.EventsRequest) (api.EventsResponse, error) {
	out := api.EventsResponse{Data: []*api.Event{}}
	bodies, err := parseEvents(p, in)
	if err != nil {
		return out, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.LockSession, p, id)
		if err != nil {
			return err
		}
		if s.Status == api.StatusTerminated {
			return api.Invalid("session %s is terminated and accepts no events", id)
		}
		in := intake{c: c, tx: tx, s: s}
		for i, body := range bodies {
			ev, err := in.accept(body)
			if err != nil {
				return nested(err, "events.%d", i)
			}
			out.Data = append(out.Data, ev)
		}
		return in.finish()
	})
	return out, err
}

func parseEvents(p Principal, in api.EventsRequest) ([]api.EventBody, error) {
	if len(in.Events) == 0 || len(in.Events) > api.EventsPerRequestMax {
		return nil, api.Invalid("events: 1 to %d events are required", api.EventsPerRequestMax)
	}
	var bodies []api.EventBody
	for i, raw := range in.Events {
		body, err := api.ParseClientEvent(raw)
		if err != nil {
			return nil, nested(err, "events.%d", i)
		}
		// A worker answers calls. It must not speak for the user, least of all
		// approve its own calls.
		if !isResult(body) && p.Kind != api.KeyAPI {
			return nil, api.Forbidden("events.%d: %s can only send tool results", i, kindName(p.Kind))
		}
		if _, ok := body.(*api.SystemMessage); ok {
			if err := systemMessagePlace(bodies, i == len(in.Events)-1); err != nil {
				return nil, nested(err, "events.%d", i)
			}
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

func systemMessagePlace(before []api.EventBody, last bool) error {
	if !last {
		return api.Invalid("system.message: at most one, and it must be the last event of the request")
	}
	if len(before) == 0 {
		return nil
	}
	prev := before[len(before)-1]
	if _, ok := prev.(*api.UserMessage); ok || isResult(prev) {
		return nil
	}
	return api.Invalid("system.message: must directly follow a user.message or a tool result")
}

// midConversationModels are the models that take a system message in the middle
// of a conversation, by prefix.
var midConversationModels = []string{
	"claude-opus-4-8", "claude-opus-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-fable-5", "claude-mythos-5",
}

// An intake accepts the events of one request, in order, under the session's
// lock.
type intake struct {
	c  *Control
	tx *store.Tx
	s  *store.Session

	queued int64 // events that wait, once counted is set

	added, wakes, counted, interrupt, message, allowed, answered bool

	runs bool // a call that the plane runs was allowed
}

func (in *intake) accept(body api.EventBody) (*api.Event, error) {
	if err := in.checkBudget(body); err != nil {
		return nil, err
	}
	switch b := body.(type) {
	case *api.UserMessage:
		if err := in.checkFree("user.message"); err != nil {
			return nil, err
		}
		in.message = true
		return in.queue(b)
	case *api.SystemMessage:
		if !slices.ContainsFunc(midConversationModels, func(m string) bool { return strings.HasPrefix(in.s.Agent.Model.ID, m) }) {
			return nil, api.InvalidCode("model_does_not_support_mid_conversation_system",
				"model %s does not take system messages in the middle of a conversation", in.s.Agent.Model.ID)
		}
		if !in.answered {
			if err := in.checkFree("system.message"); err != nil {
				return nil, err
			}
		}
		return in.queue(b)
	case *api.UserInterrupt:
		if b.SessionThreadID != nil && *b.SessionThreadID != in.s.ThreadID {
			return nil, api.Invalid("session_thread_id: session %s has no thread %s", in.s.ID, *b.SessionThreadID)
		}
		if in.s.Status == api.StatusIdle && in.s.Stop != nil && in.s.Stop.Type == api.StopBudgetReached {
			return &api.Event{ID: in.c.NewEventID(), Body: b}, nil // accepted, without effect, and not listed
		}
		in.interrupt = true
		return in.queue(b)
	case *api.UserToolConfirmation:
		return in.confirm(b)
	case *api.UserToolResult:
		return in.answer(b.ToolUseID, b)
	case *api.UserCustomToolResult:
		return in.answer(b.CustomToolUseID, b)
	}
	return nil, api.Invalid("type: not an event that a client can send")
}

// isResult reports whether an event is the result of a call.
func isResult(body api.EventBody) bool {
	switch body.(type) {
	case *api.UserToolResult, *api.UserCustomToolResult:
		return true
	}
	return false
}

// settles reports whether an event only settles what is open.
func settles(body api.EventBody) bool {
	switch body.(type) {
	case *api.UserToolConfirmation, *api.UserInterrupt:
		return true
	}
	return isResult(body)
}

func (in *intake) atBudget() bool {
	return in.s.Budget != nil && (in.s.Unpriced || in.s.Cost >= in.s.Budget.Limit())
}

func (in *intake) checkBudget(body api.EventBody) error {
	if settles(body) || !in.atBudget() {
		return nil
	}
	return api.Invalid("session %s has reached its budget: only user.tool_confirmation, user.tool_result, user.custom_tool_result and user.interrupt are accepted; raise or remove the budget first", in.s.ID)
}

// checkFree refuses new input while the session waits for answers.
func (in *intake) checkFree(typ string) error {
	open, err := openCalls(in.tx, in.s)
	if err != nil || len(open.all) == 0 {
		return err
	}
	return api.Invalid("%s: the session waits for %s; answer with user.tool_confirmation, user.custom_tool_result or user.tool_result, or send user.interrupt", typ, joinIDs(open.all))
}

func joinIDs(ids []api.EventID) string {
	var b strings.Builder
	for i, id := range ids {
		if i == 10 { // enough to find them
			b.WriteString(", …")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(id))
	}
	return b.String()
}

// open are the calls that a session waits for.
type open struct {
	all      []api.EventID
	denied   []api.EventID // by a person, and not settled by a turn yet; not in all
	runnable []api.EventID // of these, what a worker can run now: it is allowed
	custom   int           // how many may be run by a worker or by any other client
}

// forWorkers reports whether a worker could answer any of them.
func (o open) forWorkers() bool { return len(o.runnable) > 0 || o.custom > 0 }

// openCalls are the calls that the session's newest idle waits for and that
// nobody has answered since. An allowed call is still open: its result is
// missing.
func openCalls(tx *store.Tx, s *store.Session) (o open, err error) {
	if s.Stop == nil || s.Stop.Type != api.StopRequiresAction {
		return o, nil
	}
	calls, err := readCalls(tx, s, s.Stop.EventIDs)
	if err != nil {
		return o, err
	}
	for _, id := range s.Stop.EventIDs {
		call := calls[id]
		if call == nil {
			return o, fmt.Errorf("session %s waits for %s, which is not in its log", s.ID, id)
		}
		if call.result != nil {
			continue
		}
		if call.verdict == "deny" {
			o.denied = append(o.denied, id)
			continue
		}
		o.all = append(o.all, id)
		switch use := call.use.Event.Body.(type) {
		case *api.AgentCustomToolUse:
			o.custom++
		case *api.AgentToolUse:
			if use.EvaluatedPermission == api.PermissionAllow || call.verdict == "allow" {
				o.runnable = append(o.runnable, id)
			}
		}
	}
	return o, nil
}

// A call is a tool call and what was said of it so far.
type call struct {
	use     api.Entry
	result  *api.Entry // user.tool_result, user.custom_tool_result or agent.tool_result
	confirm *api.Entry
	verdict string // of confirm: "", "allow" or "deny"
}

// readCalls reads the calls with these ids, as far as there are any, however many
// there are with two queries.
func readCalls(tx *store.Tx, s *store.Session, ids []api.EventID) (map[api.EventID]*call, error) {
	uses, err := tx.EventsByID(s.ID, ids)
	if err != nil {
		return nil, err
	}
	answers, err := tx.Answers(s.ID, ids)
	if err != nil {
		return nil, err
	}
	calls := map[api.EventID]*call{}
	for _, e := range uses {
		calls[e.Event.ID] = &call{use: e}
	}
	for _, e := range answers {
		c := calls[api.Answers(e.Event.Body)]
		switch b, confirms := e.Event.Body.(*api.UserToolConfirmation); {
		case c == nil:
		case confirms:
			c.confirm, c.verdict = &e, b.Result
		case c.result == nil:
			c.result = &e
		}
	}
	return calls, nil
}

// readCall is readCalls for one; its use has no body if there is no such event.
func readCall(tx *store.Tx, s *store.Session, id api.EventID) (call, error) {
	calls, err := readCalls(tx, s, []api.EventID{id})
	if err != nil || calls[id] == nil {
		return call{}, err
	}
	return *calls[id], nil
}

func (in *intake) queue(body api.EventBody) (*api.Event, error) {
	if !in.counted {
		n, err := in.tx.Queued(in.s.ID)
		if err != nil {
			return nil, err
		}
		in.queued, in.counted = n, true
	}
	if in.queued >= int64(in.c.cfg.QueueMax) {
		e := api.Overloaded(0, "session %s has %d events waiting, which is the limit; wait until they are processed", in.s.ID, in.queued)
		e.Status, e.Type = http.StatusTooManyRequests, api.TypeRateLimit
		return nil, e
	}
	in.queued++
	in.wakes = true
	return in.append(api.Draft{ID: in.c.NewEventID(), Body: body, Queued: true})
}

func (in *intake) append(d api.Draft) (*api.Event, error) {
	entries, err := in.tx.Append(in.s, []api.Draft{d})
	if err != nil {
		return nil, err
	}
	in.added = true
	return &entries[0].Event, nil
}

func noSuchCall(field string, id api.EventID) error {
	e := api.Invalid("%s: %s is not a tool call of this session that can be answered so", field, id)
	no := false
	e.Retry = &no
	return e
}

func (in *intake) confirm(b *api.UserToolConfirmation) (*api.Event, error) {
	call, err := readCall(in.tx, in.s, b.ToolUseID)
	if err != nil {
		return nil, err
	}
	var permission api.Permission
	ours := false
	switch use := call.use.Event.Body.(type) {
	case *api.AgentToolUse:
		permission = use.EvaluatedPermission
	case *api.AgentMCPToolUse:
		permission, ours = use.EvaluatedPermission, true
	default:
		return nil, noSuchCall("tool_use_id", b.ToolUseID)
	}
	switch {
	case permission != api.PermissionAsk:
		return nil, api.Invalid("tool_use_id: %s needs no confirmation: its evaluated permission is %q", b.ToolUseID, permission)
	case call.confirm != nil && call.verdict == b.Result:
		return &call.confirm.Event, nil
	case call.confirm != nil:
		return nil, api.Invalid("tool_use_id: %s was already confirmed with %q", b.ToolUseID, call.verdict)
	case call.result != nil:
		return nil, api.Invalid("tool_use_id: %s was already settled", b.ToolUseID)
	}
	if ours {
		// The turn that takes it runs the call: that it was taken is on record before.
		in.runs = in.runs || b.Result == "allow"
		return in.queue(b)
	}
	// Only a denial gives the loop something to do; an allowed call waits for its
	// result as before.
	in.wakes = in.wakes || b.Result == "deny"
	in.allowed = in.allowed || b.Result == "allow"
	return in.append(api.Draft{ID: in.c.NewEventID(), Body: b})
}

// answer accepts the result of a call.
func (in *intake) answer(id api.EventID, body api.EventBody) (*api.Event, error) {
	field := "tool_use_id"
	call, err := readCall(in.tx, in.s, id)
	if err != nil {
		return nil, err
	}
	var permission api.Permission
	switch use := call.use.Event.Body.(type) {
	case *api.AgentToolUse:
		permission = use.EvaluatedPermission
		if _, ok := body.(*api.UserToolResult); !ok {
			return nil, noSuchCall("custom_tool_use_id", id)
		}
	case *api.AgentCustomToolUse:
		permission = api.PermissionAllow
		if _, ok := body.(*api.UserCustomToolResult); !ok {
			return nil, noSuchCall(field, id)
		}
	default:
		return nil, noSuchCall(field, id)
	}
	if call.result != nil {
		if _, ours := call.result.Event.Body.(*api.AgentToolResult); ours {
			return nil, noSuchCall(field, id) // interrupted or denied meanwhile
		}
		in.answered = true
		return &call.result.Event, nil
	}
	switch {
	case permission == api.PermissionDeny || call.verdict == "deny":
		return nil, noSuchCall(field, id)
	case permission == api.PermissionAsk && call.verdict != "allow":
		return nil, api.Invalid("%s: %s waits for a user.tool_confirmation and must not have been run", field, id)
	}
	in.wakes, in.answered = true, true
	return in.append(api.Draft{ID: in.c.NewEventID(), Body: body})
}

// finish writes the session back once all events are accepted.
func (in *intake) finish() error {
	if !in.added {
		return nil
	}
	tx, s := in.tx, in.s
	s.UpdatedAt = tx.Now
	tx.Notify(topicSession(s.ID))
	if in.interrupt || in.runs {
		tx.Notify(topicInterrupt(s.ID)) // a hint to look, to a turn that runs other calls
	}
	if in.wakes {
		wake(tx, s)
		open, err := openCalls(tx, s)
		if err != nil {
			return err
		}
		// Whoever asks for the session's status from now on must not take it for
		// finished, although the turn has yet to begin.
		if s.Status == api.StatusIdle && (in.message || in.runs || len(open.all) == 0 && !in.interrupt) {
			setStatus(s, api.StatusRunning, tx.Now)
		}
	}
	if err := tx.UpdateSession(s); err != nil {
		return err
	}
	switch {
	case in.allowed:
		return in.c.opened(tx, s)
	case in.answered:
		return in.c.progress(tx, s)
	}
	return in.c.enqueue(tx, s, 0)
}

// ListEvents lists a session's events in the order of their processing; events
// that still wait come last.
func (c *Control) ListEvents(ctx context.Context, p Principal, id api.SessionID, thread api.ThreadID, f api.EventFilter, req api.PageRequest) (api.Page[*api.Event], error) {
	var page api.Page[*api.Event]
	if f.Order == "" {
		f.Order = api.Ascending
	}
	for _, t := range f.Types {
		if !api.KnownEventType(t) {
			return page, api.Invalid("types: %q is not a type of event of this server", t)
		}
	}
	win, err := window(req, f.Order, api.EventsPageDefault, api.EventsPageMax)
	if err != nil {
		return page, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, id)
		if err != nil {
			return err
		}
		if thread != "" && thread != s.ThreadID {
			return api.NotFound("thread %s was not found", thread)
		}
		rows, more, err := tx.Events(id, f, win)
		if len(rows) == win.Limit {
			rows, more = rows[:win.Limit-1], true
		}
		page = pagedUpTo(rows, more, win,
			func(e api.Entry) (int64, string) { return store.ListKey(e), string(e.Event.ID) },
			func(e api.Entry) *api.Event { return &e.Event })
		return err
	})
	return page, err
}
