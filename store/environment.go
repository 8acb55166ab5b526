package store

import "github.com/bailey-platform/bailey/api"

// PutEnvironment writes an environment.
func (tx *Tx) PutEnvironment(e *api.Environment) error {
	_, err := tx.exec(`INSERT INTO environments (id, kind, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET body = excluded.body, archived_at = excluded.archived_at`,
		e.ID, e.Config.Type, encode(e), micros(e.CreatedAt), optMicros(e.ArchivedAt))
	return err
}

// LockEnvironment reads an environment that the transaction is going to change.
func (tx *Tx) LockEnvironment(id api.EnvironmentID) (*api.Environment, error) {
	return one(tx, scanBody[api.Environment], "SELECT body FROM environments WHERE id = ?"+tx.d.forUpdate, id)
}

// Environment reads an environment.
func (tx *Tx) Environment(id api.EnvironmentID) (*api.Environment, error) {
	return one(tx, scanBody[api.Environment], "SELECT body FROM environments WHERE id = ?", id)
}

// PinEnvironment reads an environment and keeps it from being deleted until the
// transaction ends.
func (tx *Tx) PinEnvironment(id api.EnvironmentID) (*api.Environment, error) {
	return one(tx, scanBody[api.Environment], "SELECT body FROM environments WHERE id = ?"+tx.d.forShare, id)
}

// Environments lists environments by creation.
func (tx *Tx) Environments(archived bool, win Window) ([]*api.Environment, error) {
	var w where
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanBody[api.Environment], "SELECT body FROM environments"+w.String()+tail, w.args...)
}

// DeleteEnvironment removes an environment and its keys. No session may refer to
// it.
func (tx *Tx) DeleteEnvironment(id api.EnvironmentID) error {
	if _, err := tx.exec("DELETE FROM keys WHERE environment_id = ?", id); err != nil {
		return err
	}
	return must(tx.exec("DELETE FROM environments WHERE id = ?", id))
}

// SessionsIn counts the sessions of an environment.
func (tx *Tx) SessionsIn(id api.EnvironmentID) (int64, error) {
	return tx.count("SELECT count(*) FROM sessions WHERE environment_id = ?", id)
}

// CloudEnvironments reads the cloud environments that have work which is not done.
func (tx *Tx) CloudEnvironments(limit int) ([]*api.Environment, error) {
	return collect(tx, scanBody[api.Environment], `SELECT body FROM environments WHERE kind = 'cloud'
		AND EXISTS (SELECT 1 FROM work WHERE work.environment_id = environments.id AND work.state <> 'stopped') ORDER BY id LIMIT ?`, limit)
}
