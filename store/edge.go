package store

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// An Edge is an edge's row: the public object and what its reports move.
type Edge struct {
	api.Edge            // Connectors is counted by the one who asks
	KeyID    api.KeyID  // it registered with; "" for one within the server
	Sequence int64      // of the last report that was counted
	Deadline *time.Time // of the next report; nil once it is silent or gone
}

const edgeColumns = "id, name, state, key_id, body, sequence, created_at, seen_at, deadline, gone_at"

func scanEdge(row scanner) (*Edge, error) {
	var e Edge
	var body []byte
	var id api.EdgeID
	var name string
	var state api.EdgeState
	var created, seen int64
	var deadline, gone sql.NullInt64
	if err := row.Scan(&id, &name, &state, &e.KeyID, &body, &e.Sequence, &created, &seen, &deadline, &gone); err != nil {
		return nil, err
	}
	err := json.Unmarshal(body, &e.Edge)
	e.ID, e.Name, e.State = id, name, state
	e.CreatedAt, e.LastSeenAt = fromMicros(created), fromMicros(seen)
	e.Deadline, e.GoneAt = fromOptMicros(deadline), fromOptMicros(gone)
	return &e, err
}

// InsertEdge adds an edge. A second one with the name that is not gone is
// ErrDuplicate.
func (tx *Tx) InsertEdge(e *Edge) error {
	_, err := tx.exec("INSERT INTO edges ("+edgeColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		e.ID, e.Name, e.State, e.KeyID, encode(e.Edge), e.Sequence, micros(e.CreatedAt), micros(e.LastSeenAt), optMicros(e.Deadline), optMicros(e.GoneAt))
	return err
}

// UpdateEdge writes back what changes of an edge that this transaction has locked.
func (tx *Tx) UpdateEdge(e *Edge) error {
	return must(tx.exec("UPDATE edges SET state = ?, sequence = ?, seen_at = ?, deadline = ?, gone_at = ? WHERE id = ?",
		e.State, e.Sequence, micros(e.LastSeenAt), optMicros(e.Deadline), optMicros(e.GoneAt), e.ID))
}

// LockEdge reads an edge that the transaction is going to change.
func (tx *Tx) LockEdge(id api.EdgeID) (*Edge, error) {
	return one(tx, scanEdge, "SELECT "+edgeColumns+" FROM edges WHERE id = ?"+tx.d.forUpdate, id)
}

// Edge reads an edge.
func (tx *Tx) Edge(id api.EdgeID) (*Edge, error) {
	return one(tx, scanEdge, "SELECT "+edgeColumns+" FROM edges WHERE id = ?", id)
}

// LockEdgeNamed reads the edge of a name that is not gone.
func (tx *Tx) LockEdgeNamed(name string) (*Edge, error) {
	return one(tx, scanEdge, "SELECT "+edgeColumns+" FROM edges WHERE name = ? AND gone_at IS NULL"+tx.d.forUpdate, name)
}

// LockEdgesOf reads the edges that have registered with a key and are not gone.
func (tx *Tx) LockEdgesOf(key api.KeyID) ([]*Edge, error) {
	return collect(tx, scanEdge, "SELECT "+edgeColumns+" FROM edges WHERE key_id = ? AND gone_at IS NULL ORDER BY id"+tx.d.forUpdate, key)
}

// Edges lists edges by creation, with those that are gone if asked for.
func (tx *Tx) Edges(gone bool, win Window) ([]*Edge, error) {
	var w where
	if !gone {
		w.and("gone_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanEdge, "SELECT "+edgeColumns+" FROM edges"+w.String()+tail, w.args...)
}

// CountEdges counts the edges that are not gone.
func (tx *Tx) CountEdges() (int64, error) {
	return tx.count("SELECT count(*) FROM edges WHERE gone_at IS NULL")
}

// ReachableEdges reads the edges that report in time, those that are not draining
// first, and of them the newest.
func (tx *Tx) ReachableEdges(limit int) ([]*Edge, error) {
	return collect(tx, scanEdge, "SELECT "+edgeColumns+` FROM edges WHERE deadline > ?
		ORDER BY CASE WHEN state = 'active' THEN 0 ELSE 1 END, created_at DESC, id LIMIT ?`, micros(tx.Now), limit)
}

// EdgesOfTunnel is ReachableEdges for those that a connector of a tunnel is attached
// to, and on which it is not about to be cut.
func (tx *Tx) EdgesOfTunnel(id api.TunnelID, limit int) ([]*Edge, error) {
	return collect(tx, scanEdge, "SELECT "+edgeColumns+` FROM edges WHERE deadline > ? AND id IN
			(SELECT edge_id FROM attachments WHERE tunnel_id = ? AND detached_at IS NULL AND cut IS NULL)
		ORDER BY CASE WHEN state = 'active' THEN 0 ELSE 1 END, created_at DESC, id LIMIT ?`, micros(tx.Now), id, limit)
}

// OverdueEdges finds edges whose report is overdue.
func (tx *Tx) OverdueEdges(limit int) ([]api.EdgeID, error) {
	return collect(tx, scanOne[api.EdgeID], "SELECT id FROM edges WHERE deadline <= ? ORDER BY deadline LIMIT ?", micros(tx.Now), limit)
}

// PruneEdges removes edges that have been gone since before t, a batch at a time.
func (tx *Tx) PruneEdges(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM edges WHERE id IN (SELECT id FROM edges WHERE gone_at < ? LIMIT ?)", micros(t), limit)
}

// PruneSilentEdges is PruneEdges for those that fell silent and did not come back.
func (tx *Tx) PruneSilentEdges(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM edges WHERE id IN (SELECT id FROM edges WHERE gone_at IS NULL AND deadline IS NULL AND seen_at < ? LIMIT ?)", micros(t), limit)
}

func scanOne[T any](row scanner) (v T, err error) { return v, row.Scan(&v) }

// -- authorities -------------------------------------------------------------------

const authorityColumns = "id, certificate, created_at, signs_from, expires_at, archived_at"

func scanAuthority(row scanner) (*api.Authority, error) {
	a := api.Authority{Type: "edge_authority"}
	var created, signs, expires int64
	var archived sql.NullInt64
	err := row.Scan(&a.ID, &a.Certificate, &created, &signs, &expires, &archived)
	a.CreatedAt, a.SignsFrom, a.ExpiresAt, a.ArchivedAt = fromMicros(created), fromMicros(signs), fromMicros(expires), fromOptMicros(archived)
	return &a, err
}

// InsertAuthority adds a CA. Its key is a [Secret] of its own.
func (tx *Tx) InsertAuthority(a *api.Authority) error {
	_, err := tx.exec("INSERT INTO edge_authorities ("+authorityColumns+") VALUES (?, ?, ?, ?, ?, ?)",
		a.ID, a.Certificate, micros(a.CreatedAt), micros(a.SignsFrom), micros(a.ExpiresAt), optMicros(a.ArchivedAt))
	return err
}

// Authorities reads the CAs that are trusted, the newest first.
func (tx *Tx) Authorities() ([]*api.Authority, error) {
	return collect(tx, scanAuthority, "SELECT "+authorityColumns+" FROM edge_authorities WHERE archived_at IS NULL AND expires_at > ? ORDER BY signs_from DESC, id", micros(tx.Now))
}

// ArchiveAuthority ends the trust in a CA.
func (tx *Tx) ArchiveAuthority(id api.AuthorityID) error {
	return must(tx.exec("UPDATE edge_authorities SET archived_at = ? WHERE id = ? AND archived_at IS NULL", micros(tx.Now), id))
}
