package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model"
)

// A turn is one session's while this process holds it: claim and first write, then
// a model request and the next write, until a write gives it back. It is owned by
// one goroutine.
type turn struct {
	e    *Engine
	id   api.SessionID
	log  *slog.Logger
	held *control.Turn // nil before the claim

	// Of MCP servers.
	asked   bool                   // a person has said something, who is to be told if one is still away
	box     *toolbox               // their tools; nil until they were asked
	begun   map[api.EventID]bool   // calls that the newest write, or one before, began
	flights map[api.EventID]func() // those under way, each with what cuts it short
	landed  chan landing           // what came of them
	room    chan struct{}          // for those that are made at the same time
	flying  sync.WaitGroup

	base State  // as the log says
	now  *State // base, and what the newest write added to it
	then Action // what comes after that write

	broken error // why the turn cannot be carried on

	unpaid api.Tokens // used by a request whose outcome is not written yet
}

// An outcome is what came of the model request whose start is span, or of calls.
type outcome struct {
	span   api.EventID
	used   api.Tokens
	drafts []api.Draft

	landed   []landing
	problems []api.Draft // that clients are told of
}

// run takes a due session as far as it goes. Every failure is dealt with here:
// those of the database by trying later, since the session stays due; our own by
// ending the turn visibly.
func (e *Engine) run(ctx context.Context, id api.SessionID) {
	t := &turn{
		e: e, id: id, log: e.log.With("session_id", id), base: e.empty(),
		begun: map[api.EventID]bool{}, flights: map[api.EventID]func(){}, landed: make(chan landing),
		room: make(chan struct{}, callsOnce),
	}
	err := t.guarded(ctx)
	t.ground()
	if t.held != nil {
		defer t.held.Close()
	}
	switch {
	case err == nil, errors.Is(err, control.ErrFenced):
		return
	case t.broken != nil:
		t.log.Error("a turn cannot be carried on; ending it", "error", t.broken)
		if err = t.abandon(ctx); err == nil {
			return
		}
	}
	t.log.Error("a turn stopped; it is taken up again when its lease ends", "error", err)
	sleep(ctx, retryDelay)
}

// guarded is play with panics turned into errors.
func (t *turn) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.broken = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			err = t.broken
		}
	}()
	return t.play(ctx)
}

func (t *turn) play(ctx context.Context) error {
	err := t.insist(ctx, func(ctx context.Context) (err error) {
		t.held, err = t.e.cfg.Control.ClaimTurn(ctx, t.id, t.e.cfg.Owner, t.ahead, t.decide(outcome{}))
		return err
	})
	if err != nil || t.held == nil {
		return err
	}
	t.e.metrics.turns.Inc()
	defer t.e.metrics.turns.Dec()
	for t.then != Rest {
		// A crash from here to the next write leaves the request, or the calls, open in
		// the log. The next claim reports a request as aborted and makes it again; a call
		// it reports as one that may have run.
		o, err := t.act(ctx)
		if err != nil {
			return err
		}
		if err := t.commit(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// act does what the newest write has announced.
func (t *turn) act(ctx context.Context) (outcome, error) {
	switch t.then {
	case RunCalls:
		return t.runCalls(ctx)
	case Equip:
		return t.equip(ctx)
	}
	return t.ask(ctx)
}

// commit writes an outcome. A response is dear, so a failing database gets as
// long as the lease lasts.
func (t *turn) commit(ctx context.Context, o outcome) error {
	// A cut-off turn still has to say how its request ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.e.cfg.TurnTTL)
	defer cancel()
	t.unpaid = o.used
	err := t.insist(ctx, func(ctx context.Context) error { return t.held.Commit(ctx, t.decide(o)) })
	if err == nil {
		t.unpaid = api.Tokens{}
		t.cutShort()
	}
	return err
}

// sameFailuresMax is how often a write may fail, while the database answers
// otherwise, before it is held to be at fault itself.
const sameFailuresMax = 6

// insist repeats a write until it succeeds or is known not to. A database that is
// away, or full, is waited for until ctx ends. A write that fails again and again
// while the database is well would do so for ever: the turn is then broken.
func (t *turn) insist(ctx context.Context, write func(context.Context) error) error {
	failures := 0
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := write(ctx)
		if err == nil || errors.Is(err, control.ErrFenced) || t.broken != nil || ctx.Err() != nil {
			return err
		}
		if failures++; t.e.cfg.Control.Full(err) || t.e.cfg.Control.Ready(ctx) != nil {
			failures = 0
		}
		if failures == sameFailuresMax {
			t.broken = fmt.Errorf("a write failed %d times: %w", failures, err)
			return t.broken
		}
		t.log.Warn("writing to a session failed; trying again", "error", err)
		if !sleep(ctx, wait) {
			return err
		}
	}
}

// decide computes the next write from the log as it is. It may run more than once
// for one outcome: when a write failed, and also when it did not and only its
// reply was lost. It runs inside of the database's write, so nothing in it may be
// slow.
func (t *turn) decide(o outcome) func(control.View) (control.Batch, error) {
	return func(v control.View) (b control.Batch, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			if err != nil {
				t.broken = err
			}
		}()
		t.hear()
		if v.Reread && t.held == nil {
			t.base = t.e.empty()
		}
		last := t.now
		if err := t.fold(v); err != nil {
			return b, err
		}
		if last != nil && last.span != "" && last.span != o.span && last.span == t.base.span {
			return b, nil // the write before did happen, and began the next request
		}
		var first []api.Draft
		if o.span != "" && o.span == t.base.span {
			first, b.Tokens, b.Model = o.drafts, o.used, v.Session.Agent.Model.ID
		}
		for _, l := range o.landed {
			if t.base.unanswered(l.id) != nil { // nobody interrupted it, and the write before did not happen
				first = append(first, l.draft)
			}
		}
		for _, d := range o.problems {
			if !logged(v, d.ID) { // by the write before, whose reply was lost
				first = append(first, d)
			}
		}
		s := t.base.clone()
		s.adopt(t.begun)
		s.Look(v.Session, v.ThreadID, overBudget(v, b))
		s.mcp = t.tools(v.Session, s)
		p, err := s.settle(first, v.Now, t.e.stop.Load(), t.e.cfg.Control.NewEventID)
		if err != nil {
			return b, err
		}
		t.now, t.then = s, p.then
		for _, c := range s.running() {
			t.begun[c.id] = true
		}
		b.Append, b.Release, b.WakeAt = p.drafts, p.then == Rest, p.wakeAt
		return b, nil
	}
}

// logged reports whether one of the newest events of a log has an id.
func logged(v control.View, id api.EventID) bool {
	newest := v.Entries[max(0, len(v.Entries)-4*callsMax):]
	return slices.ContainsFunc(newest, func(e api.Entry) bool { return e.Event.ID == id })
}

// hear forgets an interrupt that was announced before the log is read: it is in
// the log.
func (t *turn) hear() {
	if t.held == nil {
		return
	}
	select {
	case <-t.held.Interrupted():
	default:
	}
}

// empty is the state of an empty log.
func (e *Engine) empty() State { return State{compactAt: e.cfg.CompactTokens} }

// ahead folds a log before the database's write begins. What is wrong with it shows
// when the write does the same.
func (t *turn) ahead(entries []api.Entry) {
	t.base = t.e.empty()
	if err := t.fold(control.View{Entries: entries}); err != nil {
		t.base = t.e.empty()
	}
}

// fold brings the base up to date with the log.
func (t *turn) fold(v control.View) error {
	at := sort.Search(len(v.Entries), func(i int) bool { return v.Entries[i].Seq > t.base.seq })
	for _, e := range v.Entries[at:] {
		if err := t.base.Apply(e); err != nil {
			return err
		}
	}
	return nil
}

// overBudget reports whether the session can ask the model no more once b is
// written.
func overBudget(v control.View, b control.Batch) bool {
	if v.Session.Budget == nil {
		return false
	}
	cost, priced := v.Cost, v.Priced
	if b.Tokens != (api.Tokens{}) {
		more, ok := v.Price(b.Model, b.Tokens)
		cost, priced = cost+more, priced && ok
	}
	return !priced || cost >= v.Session.Budget.Limit()
}

var errInterrupted = errors.New("loop: interrupted by a client")

// ask makes the model request that the newest write began. The error is
// ErrFenced when the turn was lost meanwhile.
func (t *turn) ask(ctx context.Context) (outcome, error) {
	o := outcome{span: t.now.span}
	compaction := t.then == Compact
	var show previews
	var req model.Request
	if compaction {
		req = t.now.summaryRequest()
	} else {
		req = t.now.modelRequest()
		show.start(t.held, t.e.cfg.Control.NewEventID)
	}

	call, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(call, cancel)
	}()
	began := time.Now()
	res, err := t.e.cfg.Model.Stream(call, req, show.delta)
	cause := context.Cause(call)
	cancel(nil)
	<-watched
	t.e.metrics.asked(res, err, cause, time.Since(began))

	switch {
	case err == nil && compaction:
		o.used = tokens(res.Usage)
		o.drafts = t.now.summarized(res, time.Now())
	case err == nil:
		o.used = tokens(res.Usage)
		o.drafts = t.now.respond(res, show.shown)
	case errors.Is(cause, control.ErrFenced):
		return o, cause
	case errors.Is(cause, errInterrupted):
		o.fail(t.now.endFailed(&failure{Kind: failureInterrupted}, compaction))
	case ctx.Err() != nil:
		o.fail(t.now.endFailed(&failure{Kind: failureStopped}, compaction))
	default:
		t.log.Warn("a model request failed", "error", err, "model", req.Model)
		f := modelFailure(err, t.now.failures+1, time.Now(), rand.Float64())
		o.fail(t.now.endFailed(f, compaction))
	}
	return o, nil
}

func (o *outcome) fail(end api.Draft) { o.drafts = []api.Draft{end} }

// watch keeps the lease while a request is under way, and cancels the request
// when a client interrupts it or the lease is lost. It returns when ctx ends.
func (t *turn) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(t.e.cfg.TurnTTL / 3)
	defer tick.Stop()
	until := time.Now().Add(t.e.cfg.TurnTTL)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.held.Interrupted():
			yes, err := t.held.Check(ctx)
			switch {
			case errors.Is(err, control.ErrFenced):
				cancel(control.ErrFenced)
				return
			case yes || err != nil: // when in doubt, stop: it can be asked again
				cancel(errInterrupted)
				return
			}
			continue
		case <-tick.C:
		}
		began := time.Now()
		err := t.held.Renew(ctx)
		switch {
		case err == nil:
			until = began.Add(t.e.cfg.TurnTTL)
		case errors.Is(err, control.ErrFenced) || time.Now().After(until):
			cancel(control.ErrFenced) // or it will be any moment
			return
		default:
			t.log.Warn("renewing a turn failed; trying again", "error", err)
		}
	}
}

// sleep reports whether it slept all of d before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
