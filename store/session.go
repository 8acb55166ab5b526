package store

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Session is a session's row: the public object and the state of its turn.
// Status, times and usage are columns; Session's copies of them are filled from
// the columns on reading.
type Session struct {
	api.Session
	ThreadID api.ThreadID

	LastSeq int64
	Stop    *api.StopReason // of the newest idle event; nil before the first

	Tokens       api.Tokens
	Cost         api.Cost
	Unpriced     bool
	Active       time.Duration // in running status, without the current stretch
	RunningSince *time.Time    // start of the current stretch

	TurnEpoch int64
	TurnOwner string
	TurnUntil time.Time  // zero: nobody holds the turn
	WakeAt    *time.Time // when the loop is to look at the session
}

const sessionColumns = `id, thread_id, status, body, created_at, updated_at, archived_at, last_seq, stop,
	tokens, cost_nanos, unpriced, active_micros, running_since, turn_epoch, turn_owner, turn_until, wake_at`

func scanSession(row scanner) (*Session, error) {
	var s Session
	var id, status, body, tokens string
	var stop sql.NullString
	var created, updated, unpriced, active, until int64
	var archived, running, wake sql.NullInt64
	err := row.Scan(&id, &s.ThreadID, &status, &body, &created, &updated, &archived, &s.LastSeq, &stop,
		&tokens, &s.Cost, &unpriced, &active, &running, &s.TurnEpoch, &s.TurnOwner, &until, &wake)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(body), &s.Session); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(tokens), &s.Tokens); err != nil {
		return nil, err
	}
	if stop.Valid {
		s.Stop = new(api.StopReason)
		if err := json.Unmarshal([]byte(stop.String), s.Stop); err != nil {
			return nil, err
		}
	}
	s.Status = api.SessionStatus(status)
	s.CreatedAt, s.UpdatedAt, s.ArchivedAt = fromMicros(created), fromMicros(updated), fromOptMicros(archived)
	s.Unpriced = unpriced != 0
	s.Active = time.Duration(active) * time.Microsecond
	s.RunningSince, s.WakeAt = fromOptMicros(running), fromOptMicros(wake)
	if until != 0 {
		s.TurnUntil = fromMicros(until)
	}
	return &s, nil
}

func (s *Session) columns() []any {
	stop := sql.NullString{}
	if s.Stop != nil {
		stop = sql.NullString{String: encode(s.Stop), Valid: true}
	}
	until := int64(0)
	if !s.TurnUntil.IsZero() {
		until = micros(s.TurnUntil)
	}
	return []any{
		s.Status, encode(&s.Session), micros(s.UpdatedAt), optMicros(s.ArchivedAt), s.LastSeq, stop,
		encode(s.Tokens), s.Cost, flag(s.Unpriced), s.Active.Microseconds(), optMicros(s.RunningSince),
		s.TurnEpoch, s.TurnOwner, until, optMicros(s.WakeAt),
	}
}

// InsertSession adds a session.
func (tx *Tx) InsertSession(s *Session) error {
	args := append([]any{s.ID, s.ThreadID, s.Agent.ID, s.Agent.Version, s.EnvironmentID, micros(s.CreatedAt)}, s.columns()...)
	_, err := tx.exec(`INSERT INTO sessions (id, thread_id, agent_id, agent_version, environment_id, created_at,
		status, body, updated_at, archived_at, last_seq, stop, tokens, cost_nanos, unpriced, active_micros, running_since,
		turn_epoch, turn_owner, turn_until, wake_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, args...)
	return err
}

// UpdateSession writes back a session that this transaction has locked.
func (tx *Tx) UpdateSession(s *Session) error {
	return must(tx.exec(`UPDATE sessions SET status = ?, body = ?, updated_at = ?, archived_at = ?, last_seq = ?, stop = ?,
		tokens = ?, cost_nanos = ?, unpriced = ?, active_micros = ?, running_since = ?,
		turn_epoch = ?, turn_owner = ?, turn_until = ?, wake_at = ? WHERE id = ?`, append(s.columns(), s.ID)...))
}

// LockSession reads a session and keeps others from changing it, or adding to its
// events, until the transaction ends.
func (tx *Tx) LockSession(id api.SessionID) (*Session, error) {
	s, err := one(tx, scanSession, "SELECT "+sessionColumns+" FROM sessions WHERE id = ?"+tx.d.forUpdate, id)
	if err == nil && s.UpdatedAt.After(tx.Now) {
		// Another transaction, perhaps by another machine's clock, came first: the
		// times of a session's events do not go backwards.
		tx.Now = s.UpdatedAt
	}
	return s, err
}

// Session reads a session.
func (tx *Tx) Session(id api.SessionID) (*Session, error) {
	return one(tx, scanSession, "SELECT "+sessionColumns+" FROM sessions WHERE id = ?", id)
}

// DeleteSession removes a session with its events and work.
func (tx *Tx) DeleteSession(id api.SessionID) error {
	// Work before keys: the order in which heartbeats lock them.
	if _, err := tx.exec("DELETE FROM work WHERE session_id = ?", id); err != nil {
		return err
	}
	if _, err := tx.exec("DELETE FROM keys WHERE session_id = ?", id); err != nil {
		return err
	}
	return must(tx.exec("DELETE FROM sessions WHERE id = ?", id))
}

// Sessions lists sessions by creation.
func (tx *Tx) Sessions(f api.SessionFilter, win Window) ([]*Session, error) {
	var w where
	if f.AgentID != "" {
		w.and("agent_id = ?", f.AgentID)
		if f.AgentVersion != 0 {
			w.and("agent_version = ?", f.AgentVersion)
		}
	}
	if len(f.Statuses) > 0 {
		marks := ""
		var args []any
		for i, s := range f.Statuses {
			if i > 0 {
				marks += ", "
			}
			marks += "?"
			args = append(args, s)
		}
		w.and("status IN ("+marks+")", args...)
	}
	w.between("created_at", f.Created)
	if !f.IncludeArchived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanSession, "SELECT "+sessionColumns+" FROM sessions"+w.String()+tail, w.args...)
}

// A DueTurn is a session that the loop is to look at, and from when on it may.
type DueTurn struct {
	ID api.SessionID
	At time.Time // the later of its wake time and the end of a held lease
}

// DueTurns returns the sessions with a wake time, the earliest first.
func (tx *Tx) DueTurns(limit int) ([]DueTurn, error) {
	return collect(tx, func(row scanner) (DueTurn, error) {
		var d DueTurn
		var at int64
		err := row.Scan(&d.ID, &at)
		d.At = fromMicros(at)
		return d, err
	}, `SELECT id, CASE WHEN turn_until > wake_at THEN turn_until ELSE wake_at END AS at
		FROM sessions WHERE wake_at IS NOT NULL ORDER BY at LIMIT ?`, limit)
}

// FreeTurns ends every held lease. Only for a database that a single process
// owns, when it starts.
func (tx *Tx) FreeTurns() error {
	_, err := tx.exec("UPDATE sessions SET turn_until = 0 WHERE turn_until <> 0")
	return err
}
