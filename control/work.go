package control

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// enqueue makes sure that a session has a live work item. deliveries
// is how often an item for the same calls was handed out before.
func (c *Control) enqueue(tx *store.Tx, s *store.Session, deliveries int) error {
	_, err := tx.LockLiveWork(s.ID)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return c.insertWork(tx, s, deliveries)
}

// opened makes sure that a session whose calls have just become runnable has a
// live work item, and starts the counts by which the session is told of trouble.
func (c *Control) opened(tx *store.Tx, s *store.Session) error {
	w, err := tx.LockLiveWork(s.ID)
	if errors.Is(err, store.ErrNotFound) {
		return c.insertWork(tx, s, 0)
	}
	if err != nil {
		return err
	}
	w.Deliveries, w.Warned = 0, false
	if w.State == api.WorkQueued {
		w.OfferedAt = tx.Now
	} else {
		w.Deliveries = 1 // the worker that has it
	}
	return tx.UpdateWork(w)
}

func (c *Control) insertWork(tx *store.Tx, s *store.Session, deliveries int) error {
	tx.Notify(topicWork(s.EnvironmentID))
	tx.Notify(topicCloud)
	return tx.InsertWork(&store.Work{
		Work: api.Work{
			ID: newID[api.WorkID](c, api.PrefixWork), EnvironmentID: s.EnvironmentID, State: api.WorkQueued,
			Data: api.WorkData{ID: s.ID}, Metadata: api.Metadata{}, CreatedAt: tx.Now,
		},
		Deliveries: deliveries, OfferedAt: tx.Now, TTL: c.cfg.LeaseTTL,
	})
}

// progress notes that a worker answered a call: the item does not count as
// undeliverable any more.
func (c *Control) progress(tx *store.Tx, s *store.Session) error {
	w, err := tx.LockLiveWork(s.ID)
	if errors.Is(err, store.ErrNotFound) {
		return c.enqueue(tx, s, 0)
	}
	if err != nil || w.Deliveries <= 1 {
		return err
	}
	w.Deliveries = 1
	return tx.UpdateWork(w)
}

// tokenGrace is how much longer than its lease a session token lives.
const tokenGrace = 10 * time.Minute

// PollWork hands the longest-waiting item of an environment to a worker, waiting
// up to req.Block for one. Nil means there is none.
func (c *Control) PollWork(ctx context.Context, p Principal, env api.EnvironmentID, req api.PollRequest) (*api.Work, error) {
	if err := c.checkPoll(ctx, p, env, &req); err != nil {
		return nil, err
	}
	c.seen.note(env, req.WorkerID, c.cfg.Clock())

	changed := newSignal()
	defer c.hub.subscribe(topicWork(env), changed)()
	timeout := time.NewTimer(req.Block)
	defer timeout.Stop()
	for last := false; ; {
		w, err := c.claim(ctx, p, env, req.ReclaimAfter)
		if err != nil || w != nil || last || req.Block == 0 {
			return w, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed.C:
		case <-timeout.C:
			last = true // one more look: an item may have become reclaimable by time alone
		}
	}
}

func (c *Control) checkPoll(ctx context.Context, p Principal, env api.EnvironmentID, req *api.PollRequest) error {
	if p.Kind == api.KeySession {
		return api.Forbidden("a session token cannot poll for work; use the environment key")
	}
	if err := p.works(env); err != nil {
		return err
	}
	if req.Block < 0 || req.Block > api.PollBlockMax {
		return api.Invalid("block_ms: must be 1 to %d", api.PollBlockMax.Milliseconds())
	}
	if len(req.WorkerID) > api.WorkerIDMax {
		return api.Invalid("Anthropic-Worker-ID: at most %d bytes", api.WorkerIDMax)
	}
	if req.ReclaimAfter == 0 {
		req.ReclaimAfter = api.PollReclaimDefault
	}
	if req.ReclaimAfter < 0 || req.ReclaimAfter > api.PollReclaimMaxValue {
		return api.Invalid("reclaim_older_than_ms: must be 1 to %d", api.PollReclaimMaxValue.Milliseconds())
	}
	return c.db.Read(ctx, func(tx *store.Tx) error {
		_, err := tx.Environment(env)
		return found(err, "environment", string(env))
	})
}

// claim takes the next item, if there is one, and mints its token. The common
// empty answer costs no write.
func (c *Control) claim(ctx context.Context, p Principal, env api.EnvironmentID, reclaim time.Duration) (*api.Work, error) {
	var any bool
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		any, err = tx.HasNextWork(env, tx.Now.Add(-reclaim))
		return err
	})
	if err != nil || !any {
		return nil, err
	}
	var out *api.Work
	err = c.write(ctx, func(tx *store.Tx) error {
		w, err := tx.LockNextWork(env, tx.Now.Add(-reclaim))
		if errors.Is(err, store.ErrNotFound) {
			return nil // somebody else was faster
		}
		if err != nil {
			return err
		}
		w.PolledAt = &tx.Now
		if err := tx.UpdateWork(w); err != nil {
			return err
		}
		// A token given to an earlier poller of this item ends here.
		if err := tx.DropWorkKeys(w.ID); err != nil {
			return err
		}
		secret, hash, hint := c.newSecret(api.KeySession)
		expires := tx.Now.Add(c.cfg.StartDeadline + tokenGrace)
		err = tx.InsertKey(&store.Key{
			Key: api.Key{
				ID: newID[api.KeyID](c, "stok_"), Type: api.KeySession, Hint: hint, EnvironmentID: env,
				CreatedAt: tx.Now, ExpiresAt: &expires,
			},
			Hash: hash, SessionID: w.Data.ID, WorkID: w.ID, Parent: p.KeyID,
		})
		if err != nil {
			return err
		}
		payload, err := json.Marshal(api.WorkSecret{SessionsToken: secret})
		if err != nil {
			return err
		}
		encoded := base64.RawURLEncoding.EncodeToString(payload)
		w.Secret = &encoded
		out = &w.Work
		return nil
	})
	return out, err
}

// onWork runs fn on a locked item, session first where needed, and returns the
// item as it is afterwards.
func (c *Control) onWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, fn func(*store.Tx, *store.Work) error) (*api.Work, error) {
	if err := p.works(env); err != nil {
		return nil, err
	}
	if p.Kind == api.KeySession && p.WorkID != id {
		return nil, api.NotFound("work item %s was not found", id)
	}
	var out *api.Work
	err := c.write(ctx, func(tx *store.Tx) error {
		w, err := tx.LockWork(env, id)
		if err != nil {
			return found(err, "work item", string(id))
		}
		if err := fn(tx, w); err != nil {
			return err
		}
		out = &w.Work
		return nil
	})
	return out, err
}

// AckWork takes an item out of the queue. Acknowledging again changes nothing.
func (c *Control) AckWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID) (*api.Work, error) {
	return c.onWork(ctx, p, env, id, func(tx *store.Tx, w *store.Work) error {
		switch w.State {
		case api.WorkQueued:
		case api.WorkStopped:
			return api.Conflict("work item %s is stopped", id)
		default:
			return nil
		}
		deadline := tx.Now.Add(c.cfg.StartDeadline)
		w.State, w.AcknowledgedAt, w.Deadline = api.WorkStarting, &tx.Now, &deadline
		w.Deliveries++
		return tx.UpdateWork(w)
	})
}

// HeartbeatWork extends the lease of an item for the worker that proves, by
// echoing the last answer, that nobody else has held it since.
func (c *Control) HeartbeatWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, req api.HeartbeatRequest) (*api.Heartbeat, error) {
	if req.DesiredTTL != 0 && (req.DesiredTTL < api.LeaseTTLMin || req.DesiredTTL > api.LeaseTTLMax) {
		req.DesiredTTL = min(max(req.DesiredTTL, api.LeaseTTLMin), api.LeaseTTLMax)
	}
	var beat *api.Heartbeat
	_, err := c.onWork(ctx, p, env, id, func(tx *store.Tx, w *store.Work) error {
		extended := false
		if w.State != api.WorkStopping && w.State != api.WorkStopped {
			if err := c.beat(tx, w, req); err != nil {
				return err
			}
			extended = true
		}
		beat = &api.Heartbeat{Type: "work_heartbeat", LeaseExtended: extended, State: w.State, TTLSeconds: int64(w.TTL / time.Second)}
		if w.Heartbeat != nil {
			beat.LastHeartbeat = *w.Heartbeat
		}
		return nil
	})
	return beat, err
}

func (c *Control) beat(tx *store.Tx, w *store.Work, req api.HeartbeatRequest) error {
	matches := w.Heartbeat == nil && req.Expected == api.HeartbeatNone || w.Heartbeat != nil && *w.Heartbeat == req.Expected
	if !matches || w.State == api.WorkQueued {
		return heartbeatConflict(w, req.Expected)
	}
	if req.DesiredTTL != 0 {
		w.TTL = req.DesiredTTL
	}
	// Time alone could give two beats the same value.
	value := tx.Now.Format(time.RFC3339Nano) + "/" + newID[string](c, "")
	deadline := tx.Now.Add(w.TTL)
	if w.StartedAt == nil {
		w.StartedAt = &tx.Now
	}
	w.State, w.Heartbeat, w.LatestHeartbeatAt, w.Deadline = api.WorkActive, &value, &tx.Now, &deadline
	if err := tx.ExtendWorkKeys(w.ID, deadline.Add(tokenGrace)); err != nil {
		return err
	}
	return tx.UpdateWork(w)
}

// heartbeatConflict is the 412 that tells a worker that it lost the lease.
func heartbeatConflict(w *store.Work, expected string) error {
	actual := "NULL"
	var last, updated any
	if w.Heartbeat != nil {
		actual, last = *w.Heartbeat, *w.Heartbeat
	}
	if w.LatestHeartbeatAt != nil {
		updated = *w.LatestHeartbeatAt
	}
	no := false
	return &api.Error{
		Status: http.StatusPreconditionFailed, Type: api.TypeInvalidRequest, Retry: &no,
		Message: fmt.Sprintf("Heartbeat precondition failed: expected %s, actual was %s", expected, actual),
		Details: map[string]any{
			"error_code": api.HeartbeatConflict, "error_visibility": "user_facing",
			"current_state": map[string]any{
				"state": w.State, "last_heartbeat": last, "lease_updated_at": updated,
				"lease_extended": false, "ttl_seconds": int64(w.TTL / time.Second),
			},
		},
	}
}

// StopWork ends an item: at once with Force, else by asking its worker at the
// next heartbeat. Stopping a stopped item changes nothing. If calls of the session
// are still open, the session is queued again.
func (c *Control) StopWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, req api.StopRequest) (*api.Work, error) {
	if err := p.works(env); err != nil {
		return nil, err
	}
	if p.Kind == api.KeySession && p.WorkID != id {
		return nil, api.NotFound("work item %s was not found", id)
	}
	// The session is locked before the item, here as everywhere.
	var session api.SessionID
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		w, err := tx.Work(env, id)
		if err == nil {
			session = w.Data.ID
		}
		return found(err, "work item", string(id))
	})
	if err != nil {
		return nil, err
	}
	var out *api.Work
	err = c.write(ctx, func(tx *store.Tx) error {
		s, err := tx.LockSession(session)
		if err != nil {
			return found(err, "session", string(session))
		}
		w, err := tx.LockWork(env, id)
		if err != nil {
			return found(err, "work item", string(id))
		}
		if req.Force || w.State == api.WorkQueued {
			err = c.stop(tx, s, w)
		} else {
			err = c.requestStop(tx, w)
		}
		out = &w.Work
		return err
	})
	return out, err
}

// requestStop asks an item's worker to stop. One that no worker has ends at once.
func (c *Control) requestStop(tx *store.Tx, w *store.Work) error {
	switch w.State {
	case api.WorkQueued:
		return c.ended(tx, w)
	case api.WorkStarting, api.WorkActive:
		deadline := tx.Now.Add(w.TTL)
		w.State, w.StopRequestedAt, w.Deadline = api.WorkStopping, &tx.Now, &deadline
		return tx.UpdateWork(w)
	}
	return nil
}

// stop ends an item, and queues the session again if calls are still open.
func (c *Control) stop(tx *store.Tx, s *store.Session, w *store.Work) error {
	if w.State == api.WorkStopped {
		return nil
	}
	if err := c.ended(tx, w); err != nil {
		return err
	}
	open, err := openCalls(tx, s)
	switch {
	case err != nil || s.Status == api.StatusTerminated || !open.forWorkers():
		return err
	case w.Deliveries >= c.cfg.DeliveriesMax && len(open.runnable) > 0:
		return c.undeliverable(tx, s, open, w.Deliveries)
	}
	return c.enqueue(tx, s, w.Deliveries)
}

func (c *Control) ended(tx *store.Tx, w *store.Work) error {
	w.State, w.StoppedAt, w.Deadline = api.WorkStopped, &tx.Now, nil
	if err := tx.DropWorkKeys(w.ID); err != nil {
		return err
	}
	return tx.UpdateWork(w)
}

// errorDraft is a session.error of ours.
func errorDraft(message, retry string) api.Draft {
	return api.Draft{Body: &api.SessionError{Error: api.TurnError{
		Type: api.ErrorUnknown, Message: message, RetryStatus: api.RetryStatus{Type: retry},
	}}}
}

// undeliverable tells a session that no worker manages to run its calls: each is
// answered with an error and the turn ends, visibly.
func (c *Control) undeliverable(tx *store.Tx, s *store.Session, open open, deliveries int) error {
	message := fmt.Sprintf("Workers of environment %s claimed this session %d times and stopped each time without a result. Look at the workers' logs, then send a message to try again.", s.EnvironmentID, deliveries)
	drafts := []api.Draft{errorDraft(message, api.RetryExhausted)}
	failed := true
	for _, id := range append(open.all, open.denied...) {
		drafts = append(drafts, api.Draft{Body: &api.AgentToolResult{
			ToolUseID: id, IsError: &failed, Content: api.Content{api.TextBlock("The tool could not be run: no worker of the environment managed to start it.")},
		}})
	}
	reason := api.StopReason{Type: api.StopRetriesExhausted}
	drafts = append(drafts,
		api.Draft{Body: &api.ThreadStatusIdle{SessionThreadID: s.ThreadID, AgentName: s.Agent.Name, StopReason: reason}},
		api.Draft{Body: &api.SessionUsage{}},
		api.Draft{Body: &api.SessionStatusIdle{StopReason: reason}})
	if _, err := c.append(tx, s, drafts); err != nil {
		return err
	}
	return tx.UpdateSession(s)
}

// GetWork returns an item, without its secret.
func (c *Control) GetWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID) (*api.Work, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Work
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		w, err := tx.Work(env, id)
		if err != nil {
			return found(err, "work item", string(id))
		}
		out = &w.Work
		return nil
	})
	return out, err
}

// UpdateWork changes an item's metadata.
func (c *Control) UpdateWork(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, in api.WorkUpdate) (*api.Work, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if in.Metadata == nil {
		return nil, api.Invalid("metadata: required")
	}
	return c.onWork(ctx, p, env, id, func(tx *store.Tx, w *store.Work) error {
		w.Metadata, _ = in.Metadata.Apply(w.Metadata)
		if err := w.Metadata.Check(); err != nil {
			return err
		}
		return tx.UpdateWork(w)
	})
}

// ListWork lists an environment's items, the newest first.
func (c *Control) ListWork(ctx context.Context, p Principal, env api.EnvironmentID, req api.PageRequest) (api.Page[*api.Work], error) {
	var page api.Page[*api.Work]
	if err := c.overview(p, env); err != nil {
		return page, err
	}
	win, err := window(req, api.Descending, api.ListPageDefault, api.WorkPageMax)
	if err != nil {
		return page, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		if _, err := tx.Environment(env); err != nil {
			return found(err, "environment", string(env))
		}
		rows, err := tx.WorkList(env, win)
		page = paged(rows, win,
			func(w *store.Work) (int64, string) { return w.CreatedAt.UnixMicro(), string(w.ID) },
			func(w *store.Work) *api.Work { return &w.Work })
		return err
	})
	return page, err
}

// overview refuses session tokens, which see their own item only.
func (c *Control) overview(p Principal, env api.EnvironmentID) error {
	if p.Kind == api.KeySession {
		return api.Forbidden("a session token cannot look at the queue; use the environment key")
	}
	return p.works(env)
}

// WorkStats counts an environment's queue.
func (c *Control) WorkStats(ctx context.Context, p Principal, env api.EnvironmentID) (*api.WorkStats, error) {
	if err := c.overview(p, env); err != nil {
		return nil, err
	}
	stats := &api.WorkStats{Type: "work_queue_stats", WorkersPolling: c.seen.count(env, c.cfg.Clock())}
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		if _, err := tx.Environment(env); err != nil {
			return found(err, "environment", string(env))
		}
		stats.Depth, stats.Pending, stats.OldestQueuedAt, err = tx.WorkCounts(env, tx.Now.Add(-api.PollReclaimDefault))
		return err
	})
	return stats, err
}

// pollers remembers which workers polled lately, in this process.
type pollers struct {
	mu   sync.Mutex
	seen map[api.EnvironmentID]map[string]time.Time
}

// pollersMax bounds the workers remembered per environment.
const pollersMax = 10_000

func newPollers() *pollers { return &pollers{seen: map[api.EnvironmentID]map[string]time.Time{}} }

func (p *pollers) note(env api.EnvironmentID, worker string, now time.Time) {
	if worker == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[env] == nil {
		p.seen[env] = map[string]time.Time{}
	}
	if len(p.seen[env]) >= pollersMax {
		p.forget(env, now)
	}
	if _, known := p.seen[env][worker]; known || len(p.seen[env]) < pollersMax {
		p.seen[env][worker] = now
	}
}

// forget drops the workers that have not polled lately. The caller holds mu.
func (p *pollers) forget(env api.EnvironmentID, now time.Time) {
	for worker, at := range p.seen[env] {
		if now.Sub(at) > api.WorkersPollingSpan {
			delete(p.seen[env], worker)
		}
	}
}

func (p *pollers) count(env api.EnvironmentID, now time.Time) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(env, now)
	return int64(len(p.seen[env]))
}
