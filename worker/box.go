package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// box is a session's box: started or taken from the pool when it is first needed,
// frozen while nothing uses it, and replaced by a new one after it was lost. The work
// folder outlives every one of them.
type box struct {
	// Static.
	of      *boxes
	session string

	lender atomic.Pointer[lender] // of the session's variables, as it is served now; nil for nobody

	// mu is held while a box is started, thawed or frozen, so that two calls never
	// start two.
	mu      sync.Mutex
	log     *slog.Logger
	now     *running // nil before the first and after a loss
	notice  string   // a loss the model has not been told of
	stopped bool
	users   atomic.Int32  // calls and shells under way; written under mu
	rest    *time.Timer   // looks whether the box can be frozen; nil while it is in use
	spent   time.Duration // CPU time at the last look; below 0 if there was none
}

// use returns the running box, starting one if there is none, and keeps it from
// being frozen until done is called.
func (b *box) use(ctx context.Context) (now *running, done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now, err = b.ensure(ctx); err != nil {
		return nil, nil, err
	}
	b.users.Add(1)
	b.stopResting()
	return now, sync.OnceFunc(b.done), nil
}

// ensure returns a running box that is not frozen. The caller holds mu.
func (b *box) ensure(ctx context.Context) (*running, error) {
	if b.stopped {
		return nil, errEnding
	}
	if b.now != nil && !b.now.lost() {
		err := b.now.thaw(ctx)
		if err == nil {
			return b.now, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		b.now.condemn(sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: err.Error()}, b.log)
	}
	if b.now != nil {
		b.notice = b.lose()
	}
	began := time.Now()
	variables, err := b.lender.Load().variables(ctx, b.variable)
	if err != nil {
		b.of.metrics.boxes.WithLabelValues("failed").Inc()
		b.log.Error("box not started", "error", err)
		return nil, err
	}
	now, how, err := b.of.provide(ctx, b.session, variables, b.log)
	if err != nil {
		b.of.metrics.boxes.WithLabelValues("failed").Inc()
		b.log.Error("box not started", "error", err)
		return nil, err
	}
	took := time.Since(began)
	b.of.metrics.boxes.WithLabelValues(how).Inc()
	b.of.metrics.boxStart.Observe(took.Seconds())
	b.log.Info("box "+how, "backend", b.of.starter.driver.Name(), "took", took.Round(100*time.Microsecond))
	b.now = now
	return now, nil
}

// done ends one use.
func (b *box) done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users.Add(-1) == 0 && b.now != nil {
		b.startResting()
	}
}

// startResting has the box looked at until it can be frozen. The caller holds mu.
func (b *box) startResting() {
	after := b.of.keep().FreezeAfter
	if after < 0 || b.stopped || b.rest != nil {
		return
	}
	if _, ok := b.now.box.(sandbox.Freezer); !ok {
		return
	}
	b.spent = -1
	b.rest = time.AfterFunc(after/2, b.look)
}

func (b *box) stopResting() {
	if b.rest != nil {
		b.rest.Stop()
		b.rest = nil
	}
}

// busyShare is the CPU time, as a part of the time that passed, from which what runs in
// the background of a box counts as work that must not be stopped.
const busyShare = 0.01

// look freezes a box that has been out of use for long enough and does nothing by
// itself: what a session left running in the background goes on between its calls.
func (b *box) look() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == nil || b.users.Load() > 0 || b.now == nil || b.now.lost() {
		return
	}
	every := b.of.keep().FreezeAfter / 2
	stats, err := b.now.box.Stats()
	before := b.spent
	b.spent = stats.CPUTime
	if err != nil || before < 0 || float64(b.spent-before) > busyShare*float64(every) {
		b.rest.Reset(every)
		return
	}
	b.rest = nil
	if _, err := b.now.freeze(context.Background()); err != nil {
		b.log.Warn("box not frozen", "error", err)
		return
	}
	b.log.Debug("box frozen")
}

// freezeNow freezes the box unless something uses it, and reports whether there is one
// to keep.
func (b *box) freezeNow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil || b.stopped || b.now.lost() {
		return false
	}
	if b.users.Load() > 0 {
		return true // a shell; it is frozen when that ends
	}
	b.stopResting()
	ok, err := b.now.freeze(context.Background())
	if err != nil {
		b.log.Warn("box not kept", "error", err)
	}
	return ok && err == nil
}

// inUse reports whether a call or a shell is under way.
//
// It waits for nothing: it is asked while all boxes are locked, which one that is
// being started or frozen must not hold up.
func (b *box) inUse() bool { return b.users.Load() > 0 }

// memory is what the box holds of the host's memory, in bytes.
func (b *box) memory() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return 0
	}
	stats, err := b.now.box.Stats()
	if err != nil {
		return 0
	}
	return stats.MemoryBytes
}

// adopt gives a kept box to whoever serves its session now.
func (b *box) adopt(log *slog.Logger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = log
	if b.now != nil {
		b.now.stderr.to(log)
	}
}

// takeNotice returns what happened to a box that was lost between two calls, for
// the first call that it makes a difference to.
func (b *box) takeNotice() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.notice
	b.notice = ""
	return n
}

// call runs a tool in the box that use returned. An error means that nothing
// ran; whatever happened to the box meanwhile is a result that says so.
func (b *box) call(ctx context.Context, now *running, id string, c tool.Call) (tool.Result, error) {
	now.forgetVisit()
	now.setCall(id)
	watched := b.of.space.watch(now, b.log)
	began := time.Now()
	result, err := now.client.Call(ctx, c)
	took := time.Since(began)
	watched()
	now.setCall("")
	if errors.Is(err, tool.ErrLost) {
		result, err = tool.ErrorResult(b.lostDuring(now)), nil
	}
	if err != nil {
		return result, err
	}
	if now.network != nil {
		result = redacted(result, now.network.Redact)
		if denied := denialText(now.network.Denials()); denied != "" {
			result.Content = append(result.Content, tool.Text(denied))
		}
	}
	return b.judge(now, id, c, took, result), nil
}

// lostDuring tells of the loss of a box in the middle of a call.
func (b *box) lostDuring(now *running) string {
	return b.lossOf(now) + " Whether the interrupted call had an effect is unknown."
}

// lossOf gives up a box that is lost, unless that was done already, and says what
// happened to it.
func (b *box) lossOf(now *running) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != now {
		return "The sandbox was stopped while the tool ran."
	}
	return b.lose()
}

// lose gives up the current box and says, for the model, what happened to it.
// The caller holds mu.
func (b *box) lose() string {
	r := b.now
	b.now = nil
	b.stopResting()
	_ = r.client.Close()
	exit := r.why()
	b.of.metrics.boxLost.WithLabelValues(string(exit.Cause)).Inc()
	b.log.Warn("box lost", "cause", exit.Cause, "code", exit.Code, "detail", exit.Detail)
	r.end(b.log)
	return lossText(exit, b.of.starter.spec.Limits.Defaults())
}

const useLessMemory = " Use less memory at a time: smaller inputs, fewer processes, streaming instead of loading."

// lossText tells the model what ended its box and what to do about it.
func lossText(e sandbox.Exit, l sandbox.Limits) string {
	var why, what string
	switch e.Cause {
	case sandbox.CauseMemory:
		why = fmt.Sprintf("it used more memory than its limit of %d MiB", l.MemoryBytes>>20)
		what = useLessMemory
	case sandbox.CauseTime:
		why = fmt.Sprintf("it ran longer than its limit of %s", l.Lifetime)
		what = " Split long work into steps that can be continued."
	case sandbox.CauseDisk:
		why = "it used more disk space than it may"
		what = " Delete what is no longer needed in " + sandbox.WorkPath + " before anything else, and write less at a time."
	case sandbox.CauseExited:
		why = fmt.Sprintf("its main process ended with status %d", e.Code)
	case sandbox.CauseStopped:
		why = "it was stopped from outside"
	default:
		why = "it failed"
	}
	if e.Detail != "" {
		why += " (" + e.Detail + ")"
	}
	return "The sandbox was lost: " + why + ". Files in " + sandbox.WorkPath +
		" are kept; running processes, shell variables and the current directory are gone." + what +
		" The next call gets a new sandbox."
}

// stop ends the box for good.
func (b *box) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	b.stopResting()
	if r := b.now; r != nil {
		b.now = nil
		r.end(b.log)
	}
}
