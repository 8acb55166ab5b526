package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/mcp"
)

// The loop runs the calls of MCP tools itself. That a call is begun is in the log before:
// the event of an allowed call says it, and for one that a person had to allow, that a
// turn took the confirmation. Its result is written in the same turn. So a call found
// begun and without a result was left behind by a process that died or lost its turn: it
// may have run, is answered so, and is never run again.

// tools returns the toolbox of the turn, or nil if servers have to be asked for it.
func (t *turn) tools(session *api.Session, s *State) *toolbox {
	if t.box == nil && len(session.Agent.MCPServers) > 0 {
		t.asked = t.asked || len(s.queuedOf(isMessage)) > 0
		t.box = t.e.pool.peek(session, t.asked)
	}
	return t.box
}

// equip asks the session's MCP servers for their tools. Servers that cannot be used are
// told of in the log; the session goes on without them.
func (t *turn) equip(ctx context.Context) (outcome, error) {
	asking, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(asking, cancel)
	}()
	box := t.e.pool.fill(asking, t.now.session, t.asked)
	cause := context.Cause(asking)
	cancel(nil)
	<-watched
	switch {
	case errors.Is(cause, control.ErrFenced):
		return outcome{}, cause
	case cause != nil:
		return outcome{}, nil // interrupted, or told to stop: the next write sees to it
	}
	t.box = box
	if n := leftOut(&t.now.session.Agent, box); n > 0 {
		d := errorDraft(api.ErrorUnknown, fmt.Sprintf("%d tools of MCP servers are not offered to the model, as it is offered %d at most. Disable some by the configs of their toolsets.", n, offersMax), api.RetryRetrying)
		d.ID = t.e.cfg.Control.NewEventID()
		box.problems = append(box.problems, d)
	}
	for _, d := range box.problems {
		b := d.Body.(*api.SessionError)
		t.log.Warn("MCP servers cannot be used as they should", "mcp_server", b.Error.MCPServerName, "error", b.Error.Message)
	}
	return outcome{problems: box.problems}, nil
}

// A landing is what came of a call: its result, as it is to be written.
type landing struct {
	id       api.EventID
	draft    api.Draft
	problems []api.Draft
}

// runCalls begins the calls that the newest write allows, and returns when one of all that
// are under way is over, or when it is time to look at the log and renew the lease.
func (t *turn) runCalls(ctx context.Context) (outcome, error) {
	for _, c := range t.now.running() {
		if t.flights[c.id] == nil {
			t.launch(ctx, *c)
		}
	}
	var o outcome
	tick := time.NewTimer(t.e.cfg.TurnTTL / 3)
	defer tick.Stop()
	select {
	case l := <-t.landed:
		t.land(&o, l)
	case <-t.held.Interrupted():
	case <-tick.C:
	case <-ctx.Done():
		// The grace is over. What is under way may have had its effect.
		for _, c := range t.now.running() {
			t.land(&o, landing{id: c.id, draft: c.failed(textMayHaveRun)})
		}
	}
	for more := true; more; { // that came at the same time
		select {
		case l := <-t.landed:
			t.land(&o, l)
		default:
			more = false
		}
	}
	return o, nil
}

// land takes what came of a call, once: the call may have been given up just as it ended.
func (t *turn) land(o *outcome, l landing) {
	cut := t.flights[l.id]
	if cut == nil {
		return
	}
	cut()
	delete(t.flights, l.id)
	o.landed = append(o.landed, l)
	o.problems = append(o.problems, l.problems...)
}

// callsOnce bounds the calls of a session that are under way at the same time, and with
// them what their results take.
const callsOnce = 16

// launch begins a call, or has it wait for its turn. A crash before the next write leaves
// it without a result.
func (t *turn) launch(ctx context.Context, c call) {
	flight, cut := context.WithCancel(ctx)
	t.flights[c.id] = cut
	session := t.now.session
	t.flying.Go(func() {
		select {
		case t.room <- struct{}{}:
		case <-flight.Done():
			return
		}
		l := t.call(flight, session, c)
		<-t.room
		select {
		case t.landed <- l:
		case <-flight.Done():
		}
	})
}

// cutShort ends the calls whose results are in the log already.
func (t *turn) cutShort() {
	for id, cut := range t.flights {
		if t.now.unanswered(id) == nil {
			cut()
			delete(t.flights, id)
		}
	}
}

// ground ends all calls, whose results nobody is going to write any more.
func (t *turn) ground() {
	for _, cut := range t.flights {
		cut()
	}
	t.flying.Wait()
}

// call runs one call, on record.
func (t *turn) call(ctx context.Context, session *api.Session, c call) landing {
	rec := control.MCPCall{Session: session.ID, ID: c.id, Server: c.server, Tool: c.name, Input: c.input, Start: time.Now()}
	if err := t.e.cfg.Control.BeginMCPCall(rec); err != nil {
		t.log.Error("a call of an MCP tool was refused: the audit record was not written", "tool_use_id", c.id, "error", err)
		return landing{id: c.id, draft: c.failed("The audit record cannot be written, so nothing was run. The operator of this server has to see to it.")}
	}
	res, err := t.invoke(ctx, session, c)
	end := time.Now()
	t.e.metrics.called(res, err, end.Sub(rec.Start))
	l, outcome := t.landing(c, res, err)
	output, _ := json.Marshal(res.Content) // blocks of JSON
	if err := t.e.cfg.Control.EndMCPCall(rec, end, outcome, output); err != nil {
		// What is not on record does not go on, the output included.
		t.log.Error("the result of an MCP tool was withheld: the audit record was not written", "tool_use_id", c.id, "error", err)
		return landing{id: c.id, draft: c.failed("The tool ran, but the audit record of it cannot be written, so its output is withheld. The operator of this server has to see to it.")}
	}
	return l
}

// landing is what came of a call, and the outcome for its record.
func (t *turn) landing(c call, res mcp.Result, err error) (l landing, outcome string) {
	l.id = c.id
	var e *mcp.Error
	switch {
	case err == nil && res.IsError:
		l.draft, outcome = resultDraft(c, res), "error"
	case err == nil:
		l.draft, outcome = resultDraft(c, res), "ok"
	case !errors.As(err, &e):
		t.log.Error("a call of an MCP tool could not be made", "tool_use_id", c.id, "mcp_server", c.server, "error", err)
		l.draft, outcome = c.failed("The call could not be made: the server's log says why. It was not run."), "refused"
	case e.MayHaveRun:
		l.draft = c.failed(fmt.Sprintf("%s. Whether the call had an effect is unknown, and it was not repeated. Check the state before you repeat it.", e))
		outcome = "interrupted"
	default:
		l.draft, outcome = c.failed(fmt.Sprintf("%s. The call was not run.", e)), "refused"
		l.problems = []api.Draft{t.e.mcpProblem(c.server, err)}
	}
	return l, outcome
}

func (t *turn) invoke(ctx context.Context, session *api.Session, c call) (mcp.Result, error) {
	for _, server := range session.Agent.MCPServers {
		if server.Name != c.server {
			continue
		}
		l := t.e.pool.take(session, server)
		defer t.e.pool.give(l)
		conn, err := t.e.pool.connected(ctx, l, session.EnvironmentID)
		if err != nil {
			return mcp.Result{}, err
		}
		return conn.Call(ctx, c.name, c.input)
	}
	// The session was updated while the call waited for a person.
	return mcp.Failed(fmt.Sprintf("The MCP server %s is no longer one of this session. The call was not run.", c.server)), nil
}

// outputMax bounds what is kept of the text of a result that is too long for the model, in
// bytes.
const outputMax = 4 << 20

// outputFile is where a worker puts that text, relative to a box's working directory.
const outputFile = ".bailey/mcp/%s.txt"

// resultDraft is the result of a call as an event. Of a text that is too long for the model
// the event has the beginning and the end; the whole is kept with it, and reaches the box
// as a file when a call of a built-in tool names it.
func resultDraft(c call, res mcp.Result) api.Draft {
	b := &api.AgentMCPToolResult{MCPToolUseID: c.id, Content: res.Content}
	if res.IsError {
		b.IsError = &res.IsError
	}
	whole := res.Content.Text()
	if len(whole) <= resultCharsMax {
		return api.Draft{Body: b}
	}
	b.OutputFile = fmt.Sprintf(outputFile, c.id)
	said := fmt.Sprintf("(The output has %d bytes, too many to be shown as a whole. This is its beginning and its end; the whole is in the file %s.)", len(whole), b.OutputFile)
	if len(whole) > outputMax {
		whole = strings.ToValidUTF8(whole[:outputMax], "")
		said = fmt.Sprintf("(The output is too long to be shown as a whole. This is its beginning and its end; the first %d MiB are in the file %s.)", outputMax>>20, b.OutputFile)
	}
	b.Content = api.Content{api.TextBlock(said), api.TextBlock(cut(res.Content.Text(), previewMax))}
	for _, raw := range res.Content {
		if blockType(raw) != api.BlockText {
			b.Content = append(b.Content, raw)
		}
	}
	return api.Draft{Body: b, Private: writeNote(control.OutputNote{Output: whole})}
}

// previewMax is how much of a text that is too long is shown all the same, in bytes.
const previewMax = 10_000
