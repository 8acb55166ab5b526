package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// The values of events.queue.
const (
	queueFinal = 0 // what happened
	queueWaits = 1 // a client's event that no turn has taken
	queueTaken = 2 // the same after a turn took it: a final row with the same id follows
)

const (
	eventColumns  = "seq, id, type, queue, processed_at, body, private"
	publicColumns = "seq, id, type, queue, processed_at, body, NULL" // what clients may see, and nothing to carry along
)

func scanEntry(row scanner) (api.Entry, error) {
	e, _, err := scanSized(row)
	return e, err
}

// scanSized also returns how many bytes the event's body has.
func scanSized(row scanner) (api.Entry, int, error) {
	var e api.Entry
	var typ api.EventType
	var body []byte
	var queue int
	var processed sql.NullInt64
	var private sql.NullString
	if err := row.Scan(&e.Seq, &e.Event.ID, &typ, &queue, &processed, &body, &private); err != nil {
		return e, 0, err
	}
	var err error
	if e.Event.Body, err = api.DecodeBody(typ, body); err != nil {
		e.Event.Body = unreadable(typ)
	}
	e.Event.ProcessedAt = fromOptMicros(processed)
	e.Queued = queue == queueWaits
	if private.Valid {
		e.Private = json.RawMessage(private.String)
	}
	return e, len(body), nil
}

// unreadable stands for an event whose row cannot be decoded. One such row must not
// take the rest of its session's log away from everybody.
func unreadable(typ api.EventType) *api.SessionError {
	return &api.SessionError{Error: api.TurnError{
		Type:        api.ErrorUnknown,
		Message:     fmt.Sprintf("This event, of type %s, is kept in a form that the server cannot read. The others of the session are not affected.", typ),
		RetryStatus: api.RetryStatus{Type: api.RetryExhausted},
	}}
}

// pageBytes bounds the bodies of a page of events, but for its first event.
const pageBytes = 8 << 20

// entriesUpTo reads entries until the page is full by size; more says that it
// ended early.
func (tx *Tx) entriesUpTo(query string, args ...any) (out []api.Entry, more bool, err error) {
	rows, err := tx.query(query, args...)
	if err != nil {
		return nil, false, tx.classify(err)
	}
	defer rows.Close()
	for total := 0; rows.Next(); {
		e, size, err := scanSized(rows)
		if err != nil {
			return nil, false, err
		}
		if total += size; total > pageBytes && len(out) > 0 {
			return out, true, nil
		}
		out = append(out, e)
	}
	return out, false, tx.classify(rows.Err())
}

// ref is the tool call that an event answers, if it answers one.
func ref(body api.EventBody) sql.NullString {
	id := api.Answers(body)
	return sql.NullString{String: string(id), Valid: id != ""}
}

// Append adds drafts to the log of a session that this transaction has locked,
// numbering them from s.LastSeq, which it moves on. Taking an event that is not
// queued is ErrNotFound.
func (tx *Tx) Append(s *Session, drafts []api.Draft) ([]api.Entry, error) {
	var all []api.Entry
	for part := range slices.Chunk(drafts, appendMax) {
		entries, err := tx.appendPart(s, part)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// appendMax bounds the events of one statement: the engines bound its arguments.
const appendMax = 500

func (tx *Tx) appendPart(s *Session, drafts []api.Draft) ([]api.Entry, error) {
	entries := make([]api.Entry, len(drafts))
	args := make([]any, 0, 9*len(drafts))
	for i, d := range drafts {
		if d.Body == nil {
			queued, err := tx.take(s.ID, d.ID)
			if err != nil {
				return nil, err
			}
			d.Body, d.Private = queued.Event.Body, queued.Private
		}
		s.LastSeq++
		e := api.Entry{Seq: s.LastSeq, Event: api.Event{ID: d.ID, Body: d.Body}, Queued: d.Queued, Private: d.Private}
		queue := queueWaits
		if !d.Queued {
			now := tx.Now
			e.Event.ProcessedAt = &now
			queue = queueFinal
		}
		entries[i] = e
		args = append(args, s.ID, e.Seq, d.ID, d.Body.EventType(), ref(d.Body), queue, optMicros(e.Event.ProcessedAt),
			encode(d.Body), sql.NullString{String: utf8Text(d.Private), Valid: d.Private != nil})
	}
	values := strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?)", len(drafts))[2:]
	_, err := tx.exec("INSERT INTO events (session_id, seq, id, type, ref, queue, processed_at, body, private) VALUES "+values, args...)
	return entries, err
}

// take marks a queued event as taken.
func (tx *Tx) take(session api.SessionID, id api.EventID) (api.Entry, error) {
	e, err := one(tx, scanEntry, "SELECT "+eventColumns+" FROM events WHERE session_id = ? AND id = ? AND queue = ?", session, id, queueWaits)
	if err != nil {
		return e, err
	}
	return e, must(tx.exec("UPDATE events SET queue = ? WHERE session_id = ? AND seq = ?", queueTaken, session, e.Seq))
}

// Entries reads a session's log after a sequence number: what happened, and what
// waits, each at its own place; not the waiting rows that were taken.
func (tx *Tx) Entries(id api.SessionID, after int64) ([]api.Entry, error) {
	return collect(tx, scanEntry, "SELECT "+eventColumns+" FROM events WHERE session_id = ? AND seq > ? AND queue <> ? ORDER BY seq",
		id, after, queueTaken)
}

// Feed reads everything that was committed after a sequence number, as a
// follower saw it: a client's event appears when it arrives and again, with the
// same id, when a turn has taken it. more says that there may be more than these.
func (tx *Tx) Feed(id api.SessionID, after int64, limit int) (entries []api.Entry, more bool, err error) {
	entries, more, err = tx.entriesUpTo("SELECT "+publicColumns+" FROM events WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?", id, after, limit)
	return entries, more || len(entries) == limit, err
}

// EventsByID reads those of a session's events that have one of the ids, in the
// order of the log. A client's event that was taken appears once, as taken.
func (tx *Tx) EventsByID(session api.SessionID, ids []api.EventID) ([]api.Entry, error) {
	return tx.eventsAmong("id", session, ids, " AND queue <> 2")
}

// Answers reads the events that refer to one of a session's tool calls, in the order
// of the log.
func (tx *Tx) Answers(session api.SessionID, calls []api.EventID) ([]api.Entry, error) {
	return tx.eventsAmong("ref", session, calls, "")
}

// eventsAmong reads the events whose column has one of the values.
func (tx *Tx) eventsAmong(column string, session api.SessionID, values []api.EventID, also string) ([]api.Entry, error) {
	var all []api.Entry
	for part := range slices.Chunk(values, appendMax) {
		// As few different queries as there are powers of two: each is compiled, and
		// kept. A value that is given twice changes nothing.
		marks := 1 << bits.Len(uint(len(part)-1))
		args := []any{session}
		for i := range marks {
			args = append(args, string(part[min(i, len(part)-1)]))
		}
		entries, err := collect(tx, scanEntry, "SELECT "+eventColumns+" FROM events WHERE session_id = ? AND "+column+
			" IN (?"+strings.Repeat(", ?", marks-1)+")"+also+" ORDER BY seq", args...)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// queuedLast sorts events that still wait behind all that happened.
const queuedLast = int64(1) << 62

// ListKey is the sort key of an entry in Events.
func ListKey(e api.Entry) int64 {
	if e.Queued {
		return e.Seq + queuedLast
	}
	return e.Seq
}

// Events lists a session's events in the order of their processing; those that
// still wait come last. The cursor's key is what ListKey returns. more says that
// the page was ended before the window, for its size.
func (tx *Tx) Events(id api.SessionID, f api.EventFilter, win Window) (entries []api.Entry, more bool, err error) {
	// Each part is a range of an index; together they would have to be sorted.
	parts := []int{queueFinal, queueWaits}
	if win.Order == api.Descending {
		parts = []int{queueWaits, queueFinal}
	}
	for _, queue := range parts {
		part, more, err := tx.eventsOf(id, queue, f, win, win.Limit-len(entries))
		entries = append(entries, part...)
		if err != nil || more || len(entries) == win.Limit {
			return entries, more, err
		}
	}
	return entries, false, nil
}

// eventsOf lists the events that wait, or those that do not.
func (tx *Tx) eventsOf(id api.SessionID, queue int, f api.EventFilter, win Window, limit int) ([]api.Entry, bool, error) {
	var w where
	w.and("session_id = ?", id)
	cmp, dir := ">", " ASC"
	if win.Order == api.Descending {
		cmp, dir = "<", " DESC"
	}
	if queue == queueWaits {
		w.and("queue = 1") // a literal, or SQLite would not use the index of waiting events
	} else {
		w.and("queue = 0")
	}
	if c := win.After; c != nil {
		at := c.Key
		if queue == queueWaits {
			at -= queuedLast // what happened lies before every waiting event
		}
		w.and("seq "+cmp+" ?", at)
	}
	if len(f.Types) > 0 {
		var args []any
		for _, t := range f.Types {
			args = append(args, t)
		}
		w.and("type IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
	}
	w.between("processed_at", f.Processed)
	return tx.entriesUpTo("SELECT "+publicColumns+" FROM events"+w.String()+" ORDER BY seq"+dir+" LIMIT ?", append(w.args, limit)...)
}

// Queued counts a session's waiting events.
func (tx *Tx) Queued(id api.SessionID) (int64, error) {
	return tx.count("SELECT count(*) FROM events WHERE session_id = ? AND queue = 1", id)
}

// Waiting reports whether an event of a type waits.
func (tx *Tx) Waiting(id api.SessionID, typ api.EventType) (bool, error) {
	n, err := tx.count("SELECT count(*) FROM events WHERE session_id = ? AND queue = 1 AND type = ?", id, typ)
	return n > 0, err
}
