package worker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
)

// session serves one session under one lease: it follows the events, decides
// which calls may run, runs them one after the other and posts their results.
type session struct {
	// Static after construction.
	id      string
	plane   *plane
	cred    credential
	lease   *lease
	place   *place
	journal *journal
	record  func(audit.Record) error
	box     *box
	log     *slog.Logger
	metrics *metrics

	toolTimeout  time.Duration
	maxIdle      time.Duration // below 0: never
	drainTimeout time.Duration

	// requeued says that the plane queues a session again as soon as there is
	// something for a worker to do, whatever it was that it waited for.
	requeued bool

	// broken is why this session cannot be served, or nil. Its calls are then
	// answered with it, so that the model sees what happened and ends its turn.
	broken error

	// Owned by run.
	connected bool
	order     []*call          // calls to run, in the order they were asked for
	open      map[string]*call // all calls that are held, waiting or running, by id
	taken     int              // calls so far, to keep them in order
	doubtful  bool             // calls taken now may have run although the journal does not know
	running   *call            // the one that runs now, or nil
	answered  map[string]bool  // calls nothing is to be done for any more
	verdicts  map[string]string
	cutoff    time.Time         // calls processed up to here were interrupted
	dead      map[string]bool   // threads that ended
	foreign   map[string]bool   // names of tools that are not ours, logged once
	outputs   map[string]string // files that a call may read, by the event whose output they are to hold
	fresh     bool              // nothing has happened in the session yet
	turnOver  bool              // as far as the events seen tell
	waitsFor  []string          // the calls that the newest idle names, while nothing but answers came after it
	left      map[string]bool   // calls of ours that were not taken on
	idleSince time.Time         // since when there is nothing to do; zero while there is
	restSince time.Time         // the same, or only others have something to do
}

// openMax bounds the calls kept at a time. Those beyond it stay open at the
// plane and are taken up at the next connection.
const openMax = 4096

// outcome says how serving a session ended.
type outcome string

const (
	outcomeIdle       outcome = "idle"       // there was nothing to do for it for MaxIdle, or its place was needed
	outcomeTerminated outcome = "terminated" // it takes nothing any more
	outcomeDeleted    outcome = "deleted"
	outcomeGone       outcome = "gone"    // the plane does not know it, or not for us
	outcomeFailed     outcome = "failed"  // it cannot be followed any more
	outcomeDrained    outcome = "drained" // the worker shuts down; nothing is left to do for it
	outcomeHanded     outcome = "handed"  // the worker shuts down; another is to carry on
	outcomeLost       outcome = "lost"    // the lease ended, or the time to shut down did
)

// run serves the session until it ends in one of the ways above. soft ending
// means: finish what runs, begin nothing new. ctx ending means: stop.
func (s *session) run(ctx, soft context.Context) (end outcome) {
	ctx, cancel := context.WithCancel(ctx)
	feed := make(chan news)
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		s.feed(ctx, feed)
	}()
	finished := make(chan *call)
	defer func() {
		cancel()
		if end != outcomeIdle {
			s.box.stop() // whatever runs in it now has nobody to answer to
		}
		if s.running != nil {
			<-finished
		}
		<-fed
	}()

	draining := soft.Done()
	var drainEnd <-chan time.Time
	idle := time.NewTimer(time.Hour)
	defer idle.Stop()
	for {
		if drainEnd == nil {
			s.dispatch(ctx, finished)
		} else if s.running == nil {
			return s.handOver()
		}
		s.armIdle(idle)
		select {
		case n := <-feed:
			if end := s.hear(n); end != "" {
				return end
			}
		case c := <-finished:
			s.running = nil
			s.finish(c)
		case <-idle.C:
			select {
			case n := <-feed: // just in time, perhaps
				if end := s.hear(n); end != "" {
					return end
				}
			default:
				s.log.Info("session idle; leaving it", "after", s.maxIdle)
				return outcomeIdle
			}
		case <-s.place.asked:
			if quiet, yields := s.quiet(); quiet || yields {
				s.log.Info("session idle; leaving it, as its place is needed")
				return outcomeIdle
			}
		case <-draining:
			draining = nil
			// Leaves time to say what was interrupted before the hard end.
			t := time.NewTimer(s.drainTimeout - min(drainReserve, s.drainTimeout/2))
			defer t.Stop()
			drainEnd = t.C
		case <-drainEnd:
			drainEnd = make(chan time.Time) // once
			if s.running != nil {
				s.running.stopTool(errShutdown)
			}
		case <-ctx.Done():
			return outcomeLost
		}
	}
}

// hear takes in what the feed says, and returns how that ends the session, or "".
func (s *session) hear(n news) outcome {
	switch n.kind {
	case newsHistory:
		s.connected = true
		return s.reconcile(n.history)
	case newsEvent:
		return s.route(n.event)
	case newsCut:
		s.connected = false
		return ""
	default:
		if gone(n.err) {
			return outcomeGone
		}
		s.log.Error("session cannot be followed", "error", n.err)
		return outcomeFailed
	}
}

// drainReserve is the part of the drain time kept for posting results, if there
// is that much.
const drainReserve = 5 * time.Second

// handOver says how a worker that shuts down leaves the session.
func (s *session) handOver() outcome {
	if s.connected && s.turnOver && len(s.open) == 0 {
		return outcomeDrained
	}
	// Stopping the item now would leave the session without anybody to take its
	// next call: not every plane queues an item for that.
	return outcomeHanded
}

// armIdle sets the timer for the moment the session has been idle long enough.
func (s *session) armIdle(t *time.Timer) {
	// The countdown begins when the last call is done with, not before.
	quiet, yields := s.quiet()
	s.idleSince = since(quiet, s.idleSince)
	s.restSince = since(quiet || yields, s.restSince)
	s.place.rest(s.restSince)
	if left := s.idleLeft(); left < noIdle {
		t.Reset(max(0, left))
	} else {
		t.Stop()
	}
}

// since returns the moment from which something has been so without a break, or zero.
func since(so bool, from time.Time) time.Time {
	switch {
	case !so:
		return time.Time{}
	case from.IsZero():
		return time.Now()
	}
	return from
}

// quiet reports whether there is nothing to do for the session: its turn is over, or
// has not begun, or it waits for a person and is queued again once they have decided.
// A session that waits for the result of somebody else's tool yields: it is left only
// if its place is needed, as the plane offers it to the next worker at once.
func (s *session) quiet() (quiet, yields bool) {
	switch {
	case !s.connected || s.running != nil || len(s.order) > 0:
		return false, false
	case s.turnOver || s.fresh:
		return len(s.open) == 0, false
	case !s.requeued:
		return false, false
	}
	held, foreign := false, false
	for _, id := range s.waitsFor {
		switch c := s.open[id]; {
		case s.left[id]:
			return false, false // it is ours to run, at the next connection
		case c != nil:
			held = true
		case !s.answered[id]:
			foreign = true
		}
	}
	// With every answer in, the turn goes on.
	return held && !foreign, foreign
}

const noIdle = 1 << 62

func (s *session) idleLeft() time.Duration {
	if s.idleSince.IsZero() || s.maxIdle < 0 {
		return noIdle
	}
	return s.maxIdle - time.Since(s.idleSince)
}

// reconcile takes the whole history in place of whatever was known, and takes
// up every call in it that is ours to answer and not in hand already.
func (s *session) reconcile(history []event) outcome {
	s.answered = make(map[string]bool)
	s.verdicts = make(map[string]string)
	s.dead = make(map[string]bool)
	s.left = make(map[string]bool)
	s.turnOver, s.fresh, s.waitsFor = false, true, nil
	for _, ev := range history {
		if end := ev.ends(); end != "" {
			return end
		}
		s.noteOutput(ev)
		if !ev.neutral() {
			s.turn(ev)
		}
		// Everything that decides about calls first: an interrupt may be listed
		// before calls that it covers, and a verdict after its call.
		if ev.Type != api.EvAgentToolUse {
			s.learn(ev)
		}
	}
	s.settleOpen()
	unanswered := false
	for _, ev := range history {
		if ev.Type == api.EvAgentToolUse {
			s.take(ev)
			if _, open := s.open[ev.ID]; !open && !s.answered[ev.ID] {
				unanswered = true
			}
		}
	}
	if s.journal != nil {
		for _, id := range s.journal.unsettled() {
			if s.answered[id] && s.open[id] == nil {
				s.settle(id) // the plane has it; only the word of that was lost
			}
		}
	}
	s.doubtful = false // calls asked for from here on are known to the journal
	if unanswered {
		// Somebody else owes the session a result, so its turn is not over
		// whatever the last event says.
		s.turnOver = false
	}
	return ""
}

// route takes one live event.
func (s *session) route(ev event) outcome {
	if end := ev.ends(); end != "" {
		return end
	}
	if !ev.neutral() {
		s.turn(ev)
		s.idleSince, s.restSince = time.Time{}, time.Time{}
	}
	s.noteOutput(ev)
	if ev.Type == api.EvAgentToolUse {
		s.take(ev)
		return ""
	}
	s.learn(ev)
	s.settleOpen()
	return ""
}

// turn takes in what an event says of the session's turn.
func (s *session) turn(ev event) {
	s.turnOver, s.fresh = ev.endsTurn(), false
	if !ev.answers() { // which leaves the others to be waited for
		s.waitsFor = ev.WaitsFor
	}
}

// dispatch starts the next call if none runs.
func (s *session) dispatch(ctx context.Context, finished chan<- *call) {
	if s.running != nil || len(s.order) == 0 {
		return
	}
	c := s.order[0]
	s.order = s.order[1:]
	s.running = c
	c.outputs = s.outputsFor(c.event)
	c.begin(ctx)
	go func() {
		c.end = s.perform(c)
		finished <- c
	}()
}

// finish notes what became of a call that ran.
func (s *session) finish(c *call) {
	c.cancel(nil)
	delete(s.open, c.event.ID)
	if c.end != postedNot {
		s.answered[c.event.ID] = true
	}
	// A result that was not delivered leaves the call open at the plane; the next
	// connection finds it there, and the journal has its result.
}

// drop takes a call off the list of what is to be done.
func (s *session) drop(c *call) {
	delete(s.open, c.event.ID)
	s.order = slices.DeleteFunc(s.order, func(o *call) bool { return o == c })
}

// Why a call was cut short, as causes of its context.
var (
	errInterrupted = errors.New("interrupted by the user, or its thread ended")
	errShutdown    = errors.New("the worker shut down")
)
