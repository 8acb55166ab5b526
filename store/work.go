package store

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Work is a work item's row: the public object and its lease.
type Work struct {
	api.Work
	Deliveries int        // how often it was acknowledged
	Warned     bool       // the session was told that nobody claims it
	OfferedAt  time.Time  // when it was last put up for claiming
	PolledAt   *time.Time // last handed to a poller
	Heartbeat  *string    // the last heartbeat's opaque value
	TTL        time.Duration
	Deadline   *time.Time // of the first, or the next, heartbeat
}

const workColumns = `id, environment_id, session_id, state, metadata, deliveries, warned, created_at, offered_at, polled_at,
	acknowledged_at, started_at, heartbeat, heartbeat_at, ttl_micros, deadline, stop_requested_at, stopped_at`

func scanWork(row scanner) (*Work, error) {
	w := Work{Work: api.Work{Type: "work"}}
	w.Data.Type = "session"
	var metadata []byte
	var warned, created, offered, ttl int64
	var polled, acked, started, beat, deadline, stopReq, stopped sql.NullInt64
	err := row.Scan(&w.ID, &w.EnvironmentID, &w.Data.ID, &w.State, &metadata, &w.Deliveries, &warned, &created, &offered, &polled,
		&acked, &started, &w.Heartbeat, &beat, &ttl, &deadline, &stopReq, &stopped)
	if err != nil {
		return nil, err
	}
	w.Warned = warned != 0
	w.CreatedAt, w.OfferedAt = fromMicros(created), fromMicros(offered)
	w.PolledAt, w.AcknowledgedAt, w.StartedAt = fromOptMicros(polled), fromOptMicros(acked), fromOptMicros(started)
	w.LatestHeartbeatAt, w.Deadline = fromOptMicros(beat), fromOptMicros(deadline)
	w.StopRequestedAt, w.StoppedAt = fromOptMicros(stopReq), fromOptMicros(stopped)
	w.TTL = time.Duration(ttl) * time.Microsecond
	return &w, json.Unmarshal(metadata, &w.Metadata)
}

func (w *Work) columns() []any {
	heartbeat := sql.NullString{}
	if w.Heartbeat != nil {
		heartbeat = sql.NullString{String: *w.Heartbeat, Valid: true}
	}
	return []any{
		w.State, encode(w.Metadata), w.Deliveries, flag(w.Warned), micros(w.OfferedAt), optMicros(w.PolledAt),
		optMicros(w.AcknowledgedAt), optMicros(w.StartedAt), heartbeat, optMicros(w.LatestHeartbeatAt),
		w.TTL.Microseconds(), optMicros(w.Deadline), optMicros(w.StopRequestedAt), optMicros(w.StoppedAt),
	}
}

// InsertWork adds a work item. A second one that is not stopped for the same
// session is ErrDuplicate.
func (tx *Tx) InsertWork(w *Work) error {
	args := append([]any{w.ID, w.EnvironmentID, w.Data.ID, micros(w.CreatedAt)}, w.columns()...)
	_, err := tx.exec(`INSERT INTO work (id, environment_id, session_id, created_at, state, metadata, deliveries, warned, offered_at, polled_at,
		acknowledged_at, started_at, heartbeat, heartbeat_at, ttl_micros, deadline, stop_requested_at, stopped_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, args...)
	return err
}

// UpdateWork writes back a work item that this transaction has locked.
func (tx *Tx) UpdateWork(w *Work) error {
	return must(tx.exec(`UPDATE work SET state = ?, metadata = ?, deliveries = ?, warned = ?, offered_at = ?, polled_at = ?,
		acknowledged_at = ?, started_at = ?, heartbeat = ?, heartbeat_at = ?, ttl_micros = ?, deadline = ?,
		stop_requested_at = ?, stopped_at = ? WHERE id = ?`, append(w.columns(), w.ID)...))
}

// Work reads a work item of an environment.
func (tx *Tx) Work(env api.EnvironmentID, id api.WorkID) (*Work, error) {
	return one(tx, scanWork, "SELECT "+workColumns+" FROM work WHERE environment_id = ? AND id = ?", env, id)
}

// LockWork reads a work item that the transaction is going to change. A
// transaction that also needs the session locks that first.
func (tx *Tx) LockWork(env api.EnvironmentID, id api.WorkID) (*Work, error) {
	return one(tx, scanWork, "SELECT "+workColumns+" FROM work WHERE environment_id = ? AND id = ?"+tx.d.forUpdate, env, id)
}

// LockLiveWork reads the work item of a session that is not stopped.
func (tx *Tx) LockLiveWork(session api.SessionID) (*Work, error) {
	return one(tx, scanWork, "SELECT "+workColumns+" FROM work WHERE session_id = ? AND state <> 'stopped'"+tx.d.forUpdate, session)
}

// LiveWork is LockLiveWork without a lock.
func (tx *Tx) LiveWork(session api.SessionID) (*Work, error) {
	return one(tx, scanWork, "SELECT "+workColumns+" FROM work WHERE session_id = ? AND state <> 'stopped'", session)
}

// LockNextWork reads the longest-offered item of an environment that is queued
// and not in the hands of a poller since reclaim.
func (tx *Tx) LockNextWork(env api.EnvironmentID, reclaim time.Time) (*Work, error) {
	return one(tx, scanWork, "SELECT "+workColumns+` FROM work WHERE environment_id = ? AND state = 'queued'
		AND (polled_at IS NULL OR polled_at <= ?) ORDER BY offered_at, id LIMIT 1`+tx.d.skip, env, micros(reclaim))
}

// HasNextWork reports whether LockNextWork would find an item, without a lock.
func (tx *Tx) HasNextWork(env api.EnvironmentID, reclaim time.Time) (bool, error) {
	n, err := tx.count(`SELECT count(*) FROM (SELECT 1 FROM work WHERE environment_id = ? AND state = 'queued'
		AND (polled_at IS NULL OR polled_at <= ?) LIMIT 1) AS next`, env, micros(reclaim))
	return n > 0, err
}

// WorkList lists an environment's items, the newest first.
func (tx *Tx) WorkList(env api.EnvironmentID, win Window) ([]*Work, error) {
	var w where
	w.and("environment_id = ?", env)
	tail := w.page("created_at", "id", win)
	return collect(tx, scanWork, "SELECT "+workColumns+" FROM work"+w.String()+tail, w.args...)
}

// WorkCounts counts an environment's queue: items free to claim, items in the
// hands of a poller since reclaim, and the oldest of both.
func (tx *Tx) WorkCounts(env api.EnvironmentID, reclaim time.Time) (free, polled int64, oldest *time.Time, err error) {
	var first sql.NullInt64
	err = tx.row(`SELECT coalesce(sum(CASE WHEN polled_at IS NULL OR polled_at <= ? THEN 1 ELSE 0 END), 0), count(*), min(offered_at)
		FROM work WHERE environment_id = ? AND state = 'queued'`, micros(reclaim), env).Scan(&free, &polled, &first)
	return free, polled - free, fromOptMicros(first), tx.classify(err)
}

// PruneWork removes items that were stopped before t, a batch at a time.
func (tx *Tx) PruneWork(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM work WHERE id IN (SELECT id FROM work WHERE state = 'stopped' AND stopped_at < ? LIMIT ?)", micros(t), limit)
}

// A WorkRef names a work item and what it belongs to.
type WorkRef struct {
	ID            api.WorkID
	EnvironmentID api.EnvironmentID
	SessionID     api.SessionID
}

func scanWorkRef(row scanner) (WorkRef, error) {
	var r WorkRef
	err := row.Scan(&r.ID, &r.EnvironmentID, &r.SessionID)
	return r, err
}

// LapsedWork finds items whose heartbeat is overdue.
func (tx *Tx) LapsedWork(limit int) ([]WorkRef, error) {
	return collect(tx, scanWorkRef, "SELECT id, environment_id, session_id FROM work WHERE deadline <= ? ORDER BY deadline LIMIT ?", micros(tx.Now), limit)
}

// UnclaimedWork finds items that have been queued since before and whose session
// was not told.
func (tx *Tx) UnclaimedWork(before time.Time, limit int) ([]WorkRef, error) {
	return collect(tx, scanWorkRef, `SELECT id, environment_id, session_id FROM work
		WHERE state = 'queued' AND warned = 0 AND offered_at <= ? ORDER BY offered_at LIMIT ?`, micros(before), limit)
}
