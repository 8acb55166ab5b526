package loop

import (
	"context"
	"errors"
	"fmt"
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
	for _, d := range box.problems {
		b := d.Body.(*api.SessionError)
		t.log.Warn("an MCP server cannot be used", "mcp_server", b.Error.MCPServerName, "error", b.Error.Message)
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

func (t *turn) land(o *outcome, l landing) {
	if cut := t.flights[l.id]; cut != nil {
		cut()
	}
	delete(t.flights, l.id)
	o.landed = append(o.landed, l)
	o.problems = append(o.problems, l.problems...)
}

// launch begins a call. A crash before the next write leaves it without a result.
func (t *turn) launch(ctx context.Context, c call) {
	flight, cut := context.WithCancel(ctx)
	t.flights[c.id] = cut
	session := t.now.session
	t.flying.Go(func() {
		l := t.call(flight, session, c)
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

// call runs one call.
func (t *turn) call(ctx context.Context, session *api.Session, c call) landing {
	began := time.Now()
	res, err := t.invoke(ctx, session, c)
	l := landing{id: c.id}
	t.e.metrics.called(res, err, time.Since(began))
	if err != nil {
		var e *mcp.Error
		errors.As(err, &e)
		switch {
		case e == nil:
			t.log.Error("a call of an MCP tool could not be made", "tool_use_id", c.id, "mcp_server", c.server, "error", err)
			l.draft = c.failed("The call could not be made: the server's log says why. It was not run.")
		case e.MayHaveRun:
			l.draft = c.failed(fmt.Sprintf("%s. Whether the call had an effect is unknown, and it was not repeated. Check the state before you repeat it.", e))
		default:
			l.draft = c.failed(fmt.Sprintf("%s. The call was not run.", e))
			l.problems = []api.Draft{t.e.mcpProblem(c.server, err)}
		}
		return l
	}
	l.draft = resultDraft(c, res)
	return l
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

// resultDraft is the result of a call as an event.
func resultDraft(c call, res mcp.Result) api.Draft {
	b := &api.AgentMCPToolResult{MCPToolUseID: c.id, Content: res.Content}
	if res.IsError {
		b.IsError = &res.IsError
	}
	return api.Draft{Body: b}
}
