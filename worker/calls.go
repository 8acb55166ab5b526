package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

// call is one agent.tool_use that is ours to answer.
type call struct {
	event event
	n     int  // the place in which it was asked for
	held  bool // waits for a confirmation

	outputs map[string]string // files to be made before it, by the event they are of

	// doubtful says that it may have run although the journal does not know.
	doubtful bool

	// Set when it begins.
	ctx      context.Context // ends when no result is wanted any more
	cancel   context.CancelCauseFunc
	toolCtx  context.Context // ends, besides, when the tool is to stop and say so
	stopTool context.CancelCauseFunc

	end posted // set when it is done
}

// unwanted reports whether the plane takes no result for the call any more.
func (c *call) unwanted() bool { return errors.Is(context.Cause(c.ctx), errInterrupted) }

func (c *call) begin(ctx context.Context) {
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.toolCtx, c.stopTool = context.WithCancelCause(c.ctx)
}

// learn takes in an event that decides about calls.
func (s *session) learn(ev event) {
	switch {
	case ev.answers():
		s.answered[ev.ToolUseID] = true
	case ev.Type == api.EvUserToolConfirmation:
		s.verdicts[ev.ToolUseID] = ev.Verdict
	case ev.Type == api.EvUserInterrupt:
		// One that is still queued, or meant for one thread, covers no call yet.
		if ev.Thread == "" && ev.ProcessedAt.After(s.cutoff) {
			s.cutoff = ev.ProcessedAt
		}
	case ev.Type == api.EvThreadStatusTerminated:
		s.dead[ev.Thread] = true
	}
}

// invalid reports whether an interrupt or the end of its thread covers a call.
// The plane takes no result for it.
func (s *session) invalid(ev event) bool {
	if s.dead[ev.Thread] {
		return true
	}
	return !s.cutoff.IsZero() && !ev.ProcessedAt.IsZero() && !ev.ProcessedAt.After(s.cutoff)
}

// take decides about a call that was asked for.
func (s *session) take(ev event) {
	if s.answered[ev.ID] || s.open[ev.ID] != nil {
		return
	}
	if !slices.Contains(ownTools, ev.Name) {
		// The plane's own tools, or another client's. Answering would take the
		// call from its owner.
		if !s.foreign[ev.Name] {
			s.foreign[ev.Name] = true
			s.log.Info("tool is not run here; leaving its calls to whoever runs it", "tool", ev.Name)
		}
		return
	}
	if s.invalid(ev) {
		s.answered[ev.ID] = true
		return
	}
	s.taken++
	c := &call{event: ev, n: s.taken, doubtful: s.doubtful}
	switch s.gate(ev) {
	case gateRun:
	case gateHold:
		c.held = true
	case gateDrop:
		s.noteDenied(ev)
		s.metrics.calls.WithLabelValues(ev.Name, "denied").Inc()
		s.answered[ev.ID] = true
		return
	}
	if len(s.open) >= openMax {
		s.log.Warn("too many open calls; leaving one for later", "tool_use_id", ev.ID, "limit", openMax)
		s.left[ev.ID] = true
		return
	}
	s.open[ev.ID] = c
	if c.held {
		s.log.Info("tool call waits for a confirmation", "tool", ev.Name, "tool_use_id", ev.ID)
		return
	}
	s.order = append(s.order, c)
}

// ownTools are the tools of agent_toolset_20260401 that run in an environment.
// The rest of the set (web_search, web_fetch) is the plane's.
var ownTools = func() (names []string) {
	for _, d := range tool.Definitions() {
		names = append(names, d.Name)
	}
	return names
}()

type gate int

const (
	gateRun gate = iota
	gateHold
	gateDrop
)

// gate decides by the permission the plane evaluated, and the user's verdict if
// there is one. Nothing but an explicit allow opens it.
func (s *session) gate(ev event) gate {
	verdict, decided := s.verdicts[ev.ID]
	switch {
	case ev.Permission == string(api.PermissionDeny):
		return gateDrop
	case decided && verdict == string(api.PermissionAllow):
		return gateRun
	case decided:
		return gateDrop
	case ev.Permission == "" || ev.Permission == string(api.PermissionAllow):
		return gateRun
	default:
		return gateHold // ask, or something newer than this code
	}
}

// noteDenied says that a call was denied, by policy or by a person. Nothing is done
// about it, so that there is nothing to refuse.
func (s *session) noteDenied(ev event) {
	s.log.Info("tool call denied", "tool", ev.Name, "tool_use_id", ev.ID)
	err := s.record(audit.Record{Action: audit.ToolDenied, Session: s.id, Call: ev.ID, Tool: ev.Name, Input: ev.Input})
	if err != nil {
		s.log.Error("audit record not written", "action", audit.ToolDenied, "error", err)
	}
}

// settleOpen goes through the calls in hand after something was learnt.
func (s *session) settleOpen() {
	inOrder := slices.SortedFunc(maps.Values(s.open), func(a, b *call) int { return a.n - b.n })
	for _, c := range inOrder {
		id := c.event.ID
		switch {
		case s.invalid(c.event):
			s.answered[id] = true
			if c == s.running {
				c.cancel(errInterrupted) // finish takes it off
				continue
			}
			s.log.Info("tool call interrupted before it ran", "tool", c.event.Name, "tool_use_id", id)
			s.drop(c)
		case s.answered[id] && c != s.running:
			s.drop(c) // by somebody else, or in a history that was behind
		case c.held:
			switch s.gate(c.event) {
			case gateRun:
				c.held = false
				s.order = append(s.order, c)
			case gateDrop:
				s.noteDenied(c.event)
				s.answered[id] = true
				s.drop(c)
			}
		}
	}
}

// perform answers one call: it runs the tool unless that was done or begun
// before, and posts the result. Each step is on disk before the next is taken.
func (s *session) perform(c *call) posted {
	id := c.event.ID
	if s.broken != nil {
		// Nothing was run and nothing will be, so there is nothing to journal.
		return s.post(c.ctx, id, resultEvent(id, tool.ErrorResult(
			"The worker that runs this session's tools could not be set up, so nothing was run: "+s.broken.Error())))
	}
	state, event := s.journal.call(id)
	switch state {
	case callFinished:
		s.log.Info("posting the result of an earlier run", "tool_use_id", id)
	case callSettled:
		// Posted, as far as we know, but asked for again: its event is not kept.
		// Running it a second time is the one thing that must not happen.
		event = resultEvent(id, tool.ErrorResult("The result of this call was delivered before. It was not run again."))
	default:
		event = s.execute(c, state == callStarted || c.doubtful)
		if event == nil {
			if !c.unwanted() {
				return postedNot // left as it was, for whoever serves the session next
			}
			s.settle(id)
			return postedFinal
		}
		if err := s.journal.finished(id, event); err != nil {
			// The result is still worth more than none. If we crash before it is
			// posted, the call is reported as interrupted.
			s.log.Error("result not journaled", "tool_use_id", id, "error", err)
		}
	}
	// A crash here is what the journal is for: the same bytes are posted again.
	end := s.post(c.ctx, id, event)
	if end == postedNot && c.unwanted() {
		end = postedFinal
	}
	if end != postedNot {
		s.settle(id)
	}
	return end
}

func (s *session) settle(id string) {
	if err := s.journal.settled(id); err != nil {
		s.log.Warn("call not settled in the journal", "tool_use_id", id, "error", err)
	}
}

// execute runs a call's tool and returns the event to post. It returns nil if no
// result is wanted any more, or if the session ended before anything was run.
// begun says that an earlier run of the call was cut off; then nothing is run.
func (s *session) execute(c *call, begun bool) json.RawMessage {
	ev := c.event
	log := s.log.With("tool", ev.Name, "tool_use_id", ev.ID)
	rec := audit.Record{
		Action: audit.ToolStart, Session: s.id, Call: ev.ID, Tool: ev.Name,
		Input: ev.Input, Start: time.Now(),
	}
	done := run{outcome: runInterrupted}
	if begun {
		log.Warn("call was cut off by a crash; not run again")
		done.result = tool.ErrorResult("The worker was interrupted while this call ran. Whether it had an effect is unknown, and it was not run again. Check the state before you repeat it.")
	} else {
		if err := s.record(rec); err != nil {
			log.Error("call refused: audit record not written", "error", err)
			s.metrics.calls.WithLabelValues(ev.Name, string(runRefused)).Inc()
			// Where it could be written, if another sink was what failed, it is not to look as
			// if the call had been run and its end been lost.
			rec.Action, rec.End, rec.Outcome, rec.Detail = audit.ToolEnd, time.Now(), string(runRefused), "nothing was run: the audit record could not be written"
			if err := s.record(rec); err != nil {
				log.Error("audit record not written", "action", rec.Action, "error", err)
			}
			return resultEvent(ev.ID, tool.ErrorResult("The audit record cannot be written, so nothing was run. The operator of this environment has to see to it."))
		}
		done = s.runTool(c)
	}

	rec.Action, rec.End, rec.Outcome = audit.ToolEnd, time.Now(), string(done.outcome)
	rec.Output = contentOf(done.result)
	took := rec.End.Sub(rec.Start)
	s.metrics.calls.WithLabelValues(ev.Name, string(done.outcome)).Inc()
	s.metrics.callTime.WithLabelValues(ev.Name).Observe(took.Seconds())
	log.Info("tool call done", "outcome", done.outcome, "took", took.Round(time.Millisecond))
	err := s.record(rec)
	switch {
	case c.unwanted(), done.outcome == runNot:
		return nil
	case err != nil:
		// What is not on record does not leave, the output included.
		log.Error("result withheld: audit record not written", "error", err)
		return resultEvent(ev.ID, tool.ErrorResult("The tool ran, but the audit record of it cannot be written, so its output is withheld. The operator of this environment has to see to it."))
	}
	return resultEvent(ev.ID, done.result)
}

// run is what running a tool came to.
type run struct {
	result  tool.Result
	outcome runOutcome
}

// runOutcome is the outcome of an audit record.
type runOutcome string

const (
	runOK          runOutcome = "ok"
	runError       runOutcome = "error"       // the tool says so
	runRefused     runOutcome = "refused"     // by us; nothing was run
	runInterrupted runOutcome = "interrupted" // it may have run in part
	runNot         runOutcome = "not run"     // the session ended first
)

func refused(text string) run { return run{tool.ErrorResult(text), runRefused} }

// runTool runs a call's tool in the box.
func (s *session) runTool(c *call) run {
	now, done, err := s.box.use(c.toolCtx)
	if err == nil {
		defer done()
	}
	switch {
	case c.toolCtx.Err() != nil:
		return run{outcome: runNot}
	case err != nil:
		return refused("The sandbox for this session could not be started, so nothing was run: " + err.Error())
	case !slices.Contains(now.client.Tools(), c.event.Name):
		return refused(fmt.Sprintf("The sandbox has no tool named %q.", c.event.Name))
	}
	// A crash before this line is in the journal means that the call is run after
	// the restart; a crash after it means that it is not.
	if err := s.journal.started(c.event.ID); err != nil {
		s.log.Error("call refused: journal not written", "tool_use_id", c.event.ID, "error", err)
		return refused("The worker's journal of calls cannot be written, so nothing was run. The operator of this environment has to see to it.")
	}
	s.makeOutputs(c.toolCtx, now, c)
	result, err := s.box.call(c.toolCtx, now, c.event.ID, tool.Call{
		Tool: c.event.Name, Input: c.event.Input, TimeoutMS: s.toolTimeout.Milliseconds(),
	})
	if err != nil || c.toolCtx.Err() != nil {
		why := "the worker lost its claim on the session"
		if errors.Is(context.Cause(c.toolCtx), errShutdown) {
			why = "the worker shut down"
		}
		return run{tool.ErrorResult("The call was interrupted because " + why +
			". Whether it had an effect is unknown. Check the state before you repeat it."), runInterrupted}
	}
	if c.event.Name == "bash" { // the other tools have no state to lose
		if notice := s.box.takeNotice(); notice != "" {
			result.Content = append([]json.RawMessage{tool.Text("[" + notice + "]")}, result.Content...)
		}
	}
	if result.IsError {
		return run{result, runError}
	}
	return run{result, runOK}
}

// contentOf returns a result's content as one array, which is what the audit
// record hashes.
func contentOf(r tool.Result) []byte {
	b, err := json.Marshal(r.Content)
	if err != nil {
		return []byte{}
	}
	return b
}
