package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
)

const (
	sweepEvery = time.Second
	sweepBatch = 100
)

// Run does the background duties of the rules until ctx ends: it offers lapsed
// work again, tells sessions whose work nobody claims, and passes on the
// notifications of other processes. Several replicas may run it side by side.
func (c *Control) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return c.db.Run(ctx) })
	g.Go(func() error {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				if err := c.Sweep(ctx); err != nil && ctx.Err() == nil {
					c.cfg.Logger.Error("the sweep of the work queue failed; trying again", "error", err)
				}
			}
		}
	})
	return g.Wait()
}

// Sweep does what is due now, once.
func (c *Control) Sweep(ctx context.Context) error {
	var lapsed, unclaimed []store.WorkRef
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		if lapsed, err = tx.LapsedWork(sweepBatch); err != nil {
			return err
		}
		unclaimed, err = tx.UnclaimedWork(tx.Now.Add(-c.cfg.UnclaimedAfter), sweepBatch)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.prune(ctx); err != nil {
		return err
	}
	err = c.sweepEdges(ctx)
	for _, ref := range lapsed {
		err = errors.Join(err, c.onLapsed(ctx, ref, c.lapse))
	}
	for _, ref := range unclaimed {
		err = errors.Join(err, c.onLapsed(ctx, ref, c.warnUnclaimed))
	}
	return err
}

// stoppedKept is how long an item can be looked up after it was stopped.
const stoppedKept = 7 * 24 * time.Hour

// prune removes old items, now and then.
func (c *Control) prune(ctx context.Context) error {
	now := c.cfg.Clock()
	if now.Sub(c.pruned) < time.Hour {
		return nil
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		_, err := tx.PruneWork(tx.Now.Add(-stoppedKept), 10*sweepBatch)
		return err
	})
	if err == nil {
		err = errors.Join(c.pruneEdges(ctx), c.renewAuthority(ctx))
	}
	if err == nil {
		c.pruned = now
	}
	return err
}

// onLapsed runs fn on an item and its session, both locked in that order. One that
// is gone by now is nobody's worry.
func (c *Control) onLapsed(ctx context.Context, ref store.WorkRef, fn func(*store.Tx, *store.Session, *store.Work) error) error {
	err := c.write(ctx, func(tx *store.Tx) error {
		s, err := tx.LockSession(ref.SessionID)
		if err != nil {
			return err
		}
		w, err := tx.LockWork(ref.EnvironmentID, ref.ID)
		if err != nil {
			return err
		}
		return fn(tx, s, w)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("work item %s: %w", ref.ID, err)
	}
	return nil
}

// lapse handles an item whose heartbeat is overdue: its worker is gone.
func (c *Control) lapse(tx *store.Tx, s *store.Session, w *store.Work) error {
	if w.Deadline == nil || w.Deadline.After(tx.Now) {
		return nil // it beat meanwhile
	}
	c.cfg.Logger.Warn("a worker's lease has lapsed", "work_id", w.ID, "session_id", s.ID, "state", w.State, "deliveries", w.Deliveries)
	if err := c.announce(audit.Record{
		Action: audit.WorkLapsed, Environment: string(w.EnvironmentID), Session: string(s.ID),
		Attrs: map[string]string{"work_id": string(w.ID), "state": string(w.State), "deliveries": strconv.Itoa(w.Deliveries)},
	}); err != nil {
		return err
	}
	open, err := openCalls(tx, s)
	switch {
	case err != nil:
		return err
	case w.State == api.WorkStopping || !open.forWorkers():
		// It was to end anyway, or there is nothing for a worker to do; the next call
		// makes a new item.
		return c.stop(tx, s, w)
	case w.Deliveries >= c.cfg.DeliveriesMax && len(open.runnable) > 0:
		return c.stop(tx, s, w)
	}
	w.State, w.OfferedAt = api.WorkQueued, tx.Now
	w.PolledAt, w.AcknowledgedAt, w.StartedAt, w.Heartbeat, w.LatestHeartbeatAt, w.Deadline = nil, nil, nil, nil, nil, nil
	if err := tx.DropWorkKeys(w.ID); err != nil {
		return err
	}
	tx.Notify(topicWork(w.EnvironmentID))
	return tx.UpdateWork(w)
}

// warnUnclaimed tells a session, once an item, that it waits for a worker. A
// session that has nothing for a worker to do is left in peace.
func (c *Control) warnUnclaimed(tx *store.Tx, s *store.Session, w *store.Work) error {
	if w.State != api.WorkQueued || w.Warned {
		return nil
	}
	w.Warned = true // also when there is nothing to say: calls that open later start anew
	if err := tx.UpdateWork(w); err != nil {
		return err
	}
	open, err := openCalls(tx, s)
	if err != nil || len(open.runnable) == 0 {
		return err
	}
	env, err := tx.Environment(w.EnvironmentID)
	if err != nil {
		return err
	}
	message := fmt.Sprintf("No worker has claimed this session for %s. Start one with `bailey worker --environment-id %s`, or look at why the running ones do not poll.", c.cfg.UnclaimedAfter, s.EnvironmentID)
	if env.Config.Type == api.EnvCloud {
		message = fmt.Sprintf("The server has not begun to run this session's tools for %s. It may have as many sessions as it can take, or no usable sandbox any more; its log says which.", c.cfg.UnclaimedAfter)
	}
	_, err = c.append(tx, s, []api.Draft{errorDraft(message, api.RetryRetrying)})
	if err != nil {
		return err
	}
	return tx.UpdateSession(s)
}
