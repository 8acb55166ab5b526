package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
)

// A session's loop runs in turns. A turn is a lease on the session: whoever
// claims it raises the session's epoch, every write of the turn names that epoch,
// and a write whose epoch is not the newest is refused ([ErrFenced]). So a holder
// that was stopped for longer than its lease cannot disturb its successor.
//
// What a turn writes is computed inside the transaction that writes it, from all
// that was committed before it: nothing can arrive unseen in between. A crash
// between two writes leaves the session due, and the next claim goes on from the
// stored events.

// ErrFenced says that a turn is over: somebody newer holds it, or the session is
// archived or gone.
var ErrFenced = errors.New("control: the turn is held by somebody newer")

// DueTurns lists sessions whose loop has something to do now, and says when to
// look again at the latest.
func (c *Control) DueTurns(ctx context.Context, limit int) (ids []api.SessionID, next time.Time, err error) {
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		due, err := tx.DueTurns(limit)
		next = tx.Now.Add(dueHorizon)
		for _, d := range due {
			if d.At.After(tx.Now) {
				next = earlier(next, d.At)
				break
			}
			ids = append(ids, d.ID)
		}
		return err
	})
	return ids, next, err
}

// dueHorizon is how long the loop may sleep without a notification: the safety
// net for one that was lost.
const dueHorizon = 5 * time.Second

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// A View is all that a turn may look at. It is valid, and must not be changed,
// until the function it was given to returns.
type View struct {
	Session  *api.Session
	ThreadID api.ThreadID

	// Entries is the whole log in sequence order, queued events at the place of
	// their arrival.
	Entries []api.Entry

	// Reread says that Entries is not what the turn was shown ahead, and more: some of
	// that has moved.
	Reread bool

	// Cost is the exact list cost so far; meaningful while Priced.
	Cost   api.Cost
	Priced bool

	// Price is the list cost of tokens; ok is false for a model without a price.
	Price func(model string, t api.Tokens) (cost api.Cost, ok bool)

	// Now is the time of the transaction.
	Now time.Time
}

// A Batch is what one transaction of a turn writes. The session's status, usage,
// running time and work item follow from the events in it.
type Batch struct {
	// Append goes to the log in this order. A SessionUsage body is filled with the
	// exact figures after Tokens.
	Append []api.Draft

	Tokens api.Tokens // used by Model since the last batch
	Model  string

	Release bool      // the turn ends with this write
	WakeAt  time.Time // with Release: look again then; zero: when something arrives
}

// A Turn is a held lease, owned by one goroutine.
type Turn struct {
	c           *Control
	id          api.SessionID
	epoch       int64
	entries     []api.Entry
	lastSeq     int64
	reread      bool
	span        api.EventID // the newest model request begun
	interrupted *signal
	cancel      func()
}

// ClaimTurn takes the lease of a due session and writes the first batch in the
// same transaction. It returns nil when the session is not due any more, when
// somebody else holds it, and when the batch released it at once.
//
// The log may be long, and while the batch is computed nobody else can write. So ahead,
// if it is not nil, is called before that with the log as far as it was read by then.
// If the first View says Reread, that was for nothing: the log is another by now.
func (c *Control) ClaimTurn(ctx context.Context, id api.SessionID, owner string, ahead func([]api.Entry), decide func(View) (Batch, error)) (*Turn, error) {
	t := &Turn{c: c, id: id, interrupted: newSignal()}
	// Subscribed before the log is read, so that no interrupt falls in between.
	t.cancel = c.hub.subscribe(topicInterrupt(id), t.interrupted)
	held, err := t.claim(ctx, owner, ahead, decide)
	if err != nil || !held {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Turn) claim(ctx context.Context, owner string, ahead func([]api.Entry), decide func(View) (Batch, error)) (held bool, err error) {
	// The long log is read before the lock; only what came since is read under it.
	seenEpoch := int64(-1)
	err = t.c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(t.id)
		if err != nil {
			return err
		}
		if s.TurnOwner != "" {
			return nil // whoever holds the turn may still take queued events
		}
		seenEpoch = s.TurnEpoch
		return t.read(tx, s)
	})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil // deleted
	}
	if err == nil {
		if ahead != nil && len(t.entries) > 0 {
			ahead(t.entries)
		}
		err = t.c.write(ctx, func(tx *store.Tx) error {
			s, err := tx.LockSession(t.id)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if s.WakeAt == nil || s.WakeAt.After(tx.Now) || s.TurnUntil.After(tx.Now) {
				return nil
			}
			if s.TurnEpoch != seenEpoch {
				// Another turn has taken queued events since.
				t.entries, t.lastSeq, t.reread = nil, 0, true
			}
			if err := t.read(tx, s); err != nil {
				return err
			}
			s.TurnEpoch++
			s.TurnOwner = owner
			t.epoch = s.TurnEpoch
			held, err = t.write(tx, s, decide)
			return err
		})
	}
	return held && err == nil, err
}

// Commit computes a batch from the log as it is now and writes it. After ErrFenced,
// or once a batch has released the turn, the turn must not be used any more.
func (t *Turn) Commit(ctx context.Context, decide func(View) (Batch, error)) error {
	err := t.c.write(ctx, func(tx *store.Tx) error {
		s, err := t.lock(tx)
		if err != nil {
			return err
		}
		if err := t.read(tx, s); err != nil {
			return err
		}
		_, err = t.write(tx, s, decide)
		return err
	})
	if err != nil {
		// The write may have happened and only its reply been lost; what this turn
		// remembers of the log can be wrong from here on.
		t.entries, t.lastSeq = nil, 0
	}
	return err
}

// Renew extends the lease. Call it a few times per lease while the turn waits for
// something slow.
func (t *Turn) Renew(ctx context.Context) error {
	return t.c.write(ctx, func(tx *store.Tx) error {
		s, err := t.lock(tx)
		if err != nil {
			return err
		}
		// The table is the truth: the notification of an interrupt may have been lost.
		waits, err := tx.Waiting(t.id, api.EvUserInterrupt)
		if waits {
			t.interrupted.fire()
		}
		if err != nil {
			return err
		}
		s.TurnUntil = tx.Now.Add(t.c.cfg.TurnTTL)
		return tx.UpdateSession(s)
	})
}

// Check says whether an interrupt really waits, after Interrupted has hinted at
// it: the hint may be of one that the turn has taken already. ErrFenced says that
// the turn is over.
func (t *Turn) Check(ctx context.Context) (interrupted bool, err error) {
	err = t.c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(t.id)
		if errors.Is(err, store.ErrNotFound) || err == nil && s.TurnEpoch != t.epoch {
			return ErrFenced
		}
		if err != nil {
			return err
		}
		interrupted, err = tx.Waiting(t.id, api.EvUserInterrupt)
		return err
	})
	return interrupted, err
}

func (t *Turn) lock(tx *store.Tx) (*store.Session, error) {
	s, err := tx.LockSession(t.id)
	if errors.Is(err, store.ErrNotFound) || err == nil && s.TurnEpoch != t.epoch {
		return nil, ErrFenced
	}
	return s, err
}

// Close lets go of what the turn holds in this process. The lease itself ends by a
// batch with Release, or by time.
func (t *Turn) Close() { t.cancel() }

// Interrupted receives when a client may have interrupted the session, or it was
// archived or deleted, while the turn is held. It is a hint: see Check.
func (t *Turn) Interrupted() <-chan struct{} { return t.interrupted.C }

// Previewed reports whether anybody watches the making of events.
func (t *Turn) Previewed() bool { return t.c.hub.previewed(t.id) }

// PreviewStart shows followers that an event is being made.
func (t *Turn) PreviewStart(typ api.EventType, id api.EventID) {
	t.c.hub.preview(t.id, preview{typ, id, t.span, true, api.PreviewStart{Type: "event_start", Event: api.PreviewEvent{Type: typ, ID: id}}})
}

// PreviewText shows followers more text of an agent.message. It never blocks.
func (t *Turn) PreviewText(id api.EventID, index int, text string) {
	t.c.hub.preview(t.id, preview{api.EvAgentMessage, id, t.span, false, api.PreviewDelta{
		Type: "event_delta", EventID: id,
		Delta: api.ContentDelta{Type: "content_delta", Index: index, Content: api.TextBlock(text)},
	}})
}

// read brings the turn's copy of the log up to date. New rows of others are only
// ever added at the end: taking queued events is the turn's own doing.
func (t *Turn) read(tx *store.Tx, s *store.Session) error {
	if s.LastSeq == t.lastSeq {
		return nil
	}
	more, err := tx.Entries(t.id, t.lastSeq)
	if err != nil {
		return err
	}
	t.entries, t.lastSeq = append(t.entries, more...), s.LastSeq
	return nil
}

// write lets decide compute a batch and writes it under the lease.
func (t *Turn) write(tx *store.Tx, s *store.Session, decide func(View) (Batch, error)) (held bool, err error) {
	b, err := decide(View{
		Session: public(s, tx.Now), ThreadID: s.ThreadID, Entries: t.entries, Reread: t.reread,
		Cost: s.Cost, Priced: !s.Unpriced, Price: t.c.price, Now: tx.Now,
	})
	if err != nil {
		return false, err
	}
	s.Tokens = s.Tokens.Add(b.Tokens)
	if b.Tokens != (api.Tokens{}) {
		cost, ok := t.c.price(b.Model, b.Tokens)
		s.Cost += cost
		s.Unpriced = s.Unpriced || !ok
	}
	if b.Release {
		s.TurnUntil, s.TurnOwner, s.WakeAt = time.Time{}, "", nil
		if !b.WakeAt.IsZero() {
			s.WakeAt = &b.WakeAt
			tx.Notify(topicTurns)
		}
	} else {
		s.TurnUntil = tx.Now.Add(t.c.cfg.TurnTTL)
		s.WakeAt = &tx.Now // if this process dies, the session is due when the lease ends
	}
	entries, err := t.c.append(tx, s, b.Append)
	if err != nil {
		return false, err
	}
	if err := tx.UpdateSession(s); err != nil {
		return false, err
	}
	t.remember(b.Append, entries, s.LastSeq)
	return !b.Release, nil
}

// remember adds what the turn wrote to its copy of the log.
func (t *Turn) remember(drafts []api.Draft, entries []api.Entry, lastSeq int64) {
	for _, d := range drafts {
		if _, ok := d.Body.(*api.SpanModelRequestStart); ok {
			t.span = d.ID
		}
		if d.Body == nil { // taken: it has moved to the end
			t.entries = slices.DeleteFunc(t.entries, func(e api.Entry) bool { return e.Queued && e.Event.ID == d.ID })
		}
	}
	t.entries, t.lastSeq = append(t.entries, entries...), lastSeq
}

// append writes events of the plane to a locked session's log and moves the
// session to where they say it is. The caller writes the session back.
func (c *Control) append(tx *store.Tx, s *store.Session, drafts []api.Draft) ([]api.Entry, error) {
	if len(drafts) == 0 {
		return nil, nil
	}
	calls := false
	for i := range drafts {
		d := &drafts[i]
		if d.ID == "" {
			d.ID = c.NewEventID()
		}
		switch b := d.Body.(type) {
		case *api.SessionStatusRunning:
			setStatus(s, api.StatusRunning, tx.Now)
			s.Stop = nil
		case *api.SessionStatusIdle:
			setStatus(s, api.StatusIdle, tx.Now)
			s.Stop = &b.StopReason
		case *api.SessionStatusResched:
			setStatus(s, api.StatusRescheduling, tx.Now)
		case *api.SessionStatusTerminated:
			if err := c.announce(audit.Record{
				Action: audit.SessionStopped, Environment: string(s.EnvironmentID), Session: string(s.ID), Detail: "the session is terminated",
			}); err != nil {
				return nil, err
			}
			setStatus(s, api.StatusTerminated, tx.Now)
		case *api.SessionUsage:
			d.Body = &api.SessionUsage{Usage: usage(s, tx.Now), Budget: s.Budget}
		case *api.AgentToolUse:
			calls = calls || b.EvaluatedPermission != api.PermissionDeny
		case *api.AgentCustomToolUse:
			calls = true
		}
	}
	s.UpdatedAt = tx.Now
	tx.Notify(topicSession(s.ID))
	entries, err := tx.Append(s, drafts)
	if err != nil {
		return nil, fmt.Errorf("append events to %s: %w", s.ID, err)
	}
	if calls {
		return entries, c.opened(tx, s)
	}
	return entries, nil
}
