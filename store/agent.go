package store

import (
	"encoding/json"

	"github.com/bailey-platform/bailey/api"
)

// PutAgent writes an agent's newest version, and keeps it among its versions.
func (tx *Tx) PutAgent(a *api.Agent) error {
	body := encode(a)
	_, err := tx.exec(`INSERT INTO agents (id, body, created_at, archived_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET body = excluded.body, archived_at = excluded.archived_at`,
		a.ID, body, micros(a.CreatedAt), optMicros(a.ArchivedAt))
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO agent_versions (agent_id, version, body) VALUES (?, ?, ?)
		ON CONFLICT (agent_id, version) DO UPDATE SET body = excluded.body`, a.ID, a.Version, body)
	return err
}

// LockAgent reads an agent that the transaction is going to change.
func (tx *Tx) LockAgent(id api.AgentID) (*api.Agent, error) {
	return one(tx, scanBody[api.Agent], "SELECT body FROM agents WHERE id = ?"+tx.d.forUpdate, id)
}

// Agent reads the newest version of an agent.
func (tx *Tx) Agent(id api.AgentID) (*api.Agent, error) {
	return one(tx, scanBody[api.Agent], "SELECT body FROM agents WHERE id = ?", id)
}

// AgentVersion reads one version.
func (tx *Tx) AgentVersion(id api.AgentID, version int64) (*api.Agent, error) {
	return one(tx, scanBody[api.Agent], "SELECT body FROM agent_versions WHERE agent_id = ? AND version = ?", id, version)
}

// Agents lists agents by creation.
func (tx *Tx) Agents(created api.TimeRange, archived bool, win Window) ([]*api.Agent, error) {
	var w where
	w.between("created_at", created)
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanBody[api.Agent], "SELECT body FROM agents"+w.String()+tail, w.args...)
}

// AgentVersions lists the versions of an agent.
func (tx *Tx) AgentVersions(id api.AgentID, win Window) ([]*api.Agent, error) {
	var w where
	w.and("agent_id = ?", id)
	tail := w.page("version", "agent_id", win)
	return collect(tx, scanBody[api.Agent], "SELECT body FROM agent_versions"+w.String()+tail, w.args...)
}

// scanBody reads a row that is one JSON document.
func scanBody[T any](row scanner) (*T, error) {
	var body []byte
	if err := row.Scan(&body); err != nil {
		return nil, err
	}
	v := new(T)
	return v, json.Unmarshal(body, v)
}
