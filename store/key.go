package store

import (
	"database/sql"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Key is a credential's row: the public part, whom it is bound to, and the
// SHA-256 of its secret in hex.
type Key struct {
	api.Key
	Hash      string
	SessionID api.SessionID
	WorkID    api.WorkID
	Parent    api.KeyID // of a session token: the key it was polled with

	// Of an access token: the rule it was given out by, and to whom.
	RuleID    api.RuleID
	AccountID api.ServiceAccountID
}

const keyColumns = "id, kind, hash, name, hint, environment_id, session_id, work_id, parent, created_at, expires_at, last_used_at, revoked_at, shell, scopes, rule_id, account_id"

func scanKey(row scanner) (*Key, error) {
	var k Key
	var created, shell int64
	var expires, used, revoked sql.NullInt64
	var scopes string
	err := row.Scan(&k.ID, &k.Type, &k.Hash, &k.Name, &k.Hint, &k.EnvironmentID, &k.SessionID, &k.WorkID, &k.Parent, &created, &expires, &used, &revoked, &shell, &scopes, &k.RuleID, &k.AccountID)
	k.CreatedAt, k.Shell = fromMicros(created), shell != 0
	k.ExpiresAt, k.LastUsedAt, k.RevokedAt = fromOptMicros(expires), fromOptMicros(used), fromOptMicros(revoked)
	for s := range strings.FieldsSeq(scopes) {
		k.Scopes = append(k.Scopes, api.KeyScope(s))
	}
	return &k, err
}

// InsertKey adds a credential.
func (tx *Tx) InsertKey(k *Key) error {
	var scopes []string
	for _, s := range k.Scopes {
		scopes = append(scopes, string(s))
	}
	_, err := tx.exec("INSERT INTO keys ("+keyColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		k.ID, k.Type, k.Hash, k.Name, k.Hint, k.EnvironmentID, k.SessionID, k.WorkID, k.Parent,
		micros(k.CreatedAt), optMicros(k.ExpiresAt), optMicros(k.LastUsedAt), optMicros(k.RevokedAt), flag(k.Shell),
		strings.Join(scopes, " "), k.RuleID, k.AccountID)
	return err
}

// KeyByHash finds a credential by the hash of its secret.
func (tx *Tx) KeyByHash(hash string) (*Key, error) {
	return one(tx, scanKey, "SELECT "+keyColumns+" FROM keys WHERE hash = ?", hash)
}

// KeyOf finds a credential by id among those of a kind and an environment.
func (tx *Tx) KeyOf(kind api.KeyKind, env api.EnvironmentID, id api.KeyID) (*Key, error) {
	return one(tx, scanKey, "SELECT "+keyColumns+" FROM keys WHERE kind = ? AND environment_id = ? AND id = ?", kind, env, id)
}

// Keys lists the credentials of a kind and an environment by creation.
func (tx *Tx) Keys(kind api.KeyKind, env api.EnvironmentID, win Window) ([]*Key, error) {
	var w where
	w.and("kind = ?", kind)
	w.and("environment_id = ?", env)
	tail := w.page("created_at", "id", win)
	return collect(tx, scanKey, "SELECT "+keyColumns+" FROM keys"+w.String()+tail, w.args...)
}

// ServerKeys lists the API keys and edge keys by creation.
func (tx *Tx) ServerKeys(win Window) ([]*Key, error) {
	var w where
	w.and("kind IN (?, ?)", api.KeyAPI, api.KeyEdge)
	tail := w.page("created_at", "id", win)
	return collect(tx, scanKey, "SELECT "+keyColumns+" FROM keys"+w.String()+tail, w.args...)
}

// Key finds a credential by id.
func (tx *Tx) Key(id api.KeyID) (*Key, error) {
	return one(tx, scanKey, "SELECT "+keyColumns+" FROM keys WHERE id = ?", id)
}

// CountOtherKeys counts the API keys, but for one, that are good for the workspace,
// never expire and are not revoked.
func (tx *Tx) CountOtherKeys(but api.KeyID) (int64, error) {
	return tx.count("SELECT count(*) FROM keys WHERE kind = ? AND scopes LIKE ? AND id <> ? AND revoked_at IS NULL AND expires_at IS NULL",
		api.KeyAPI, string(api.ScopeWorkspace)+"%", but)
}

// DropAccessTokens removes the access tokens that a rule has given out, and returns
// them.
func (tx *Tx) DropAccessTokens(rule api.RuleID) ([]api.KeyID, error) {
	return collect(tx, scanOne[api.KeyID], "DELETE FROM keys WHERE rule_id = ? RETURNING id", rule)
}

// CountAccessTokens counts the access tokens that a rule has given out and that have
// not expired.
func (tx *Tx) CountAccessTokens(rule api.RuleID) (int64, error) {
	return tx.count("SELECT count(*) FROM keys WHERE rule_id = ? AND expires_at > ?", rule, micros(tx.Now))
}

// DropExpiredAccessTokens removes the access tokens that have expired.
func (tx *Tx) DropExpiredAccessTokens() error {
	_, err := tx.exec("DELETE FROM keys WHERE rule_id <> '' AND expires_at <= ?", micros(tx.Now))
	return err
}

// CountKeys counts the credentials of a kind.
func (tx *Tx) CountKeys(kind api.KeyKind) (int64, error) {
	return tx.count("SELECT count(*) FROM keys WHERE kind = ?", kind)
}

// RevokeKey marks a credential as revoked.
func (tx *Tx) RevokeKey(id api.KeyID) error {
	return must(tx.exec("UPDATE keys SET revoked_at = ? WHERE id = ?", micros(tx.Now), id))
}

// TouchKey notes that a credential was used.
func (tx *Tx) TouchKey(id api.KeyID) error {
	_, err := tx.exec("UPDATE keys SET last_used_at = ? WHERE id = ?", micros(tx.Now), id)
	return err
}

// DropWorkKeys removes the tokens given out for a work item.
func (tx *Tx) DropWorkKeys(id api.WorkID) error {
	_, err := tx.exec("DELETE FROM keys WHERE work_id = ?", id)
	return err
}

// ExtendWorkKeys moves the expiry of the tokens given out for a work item.
func (tx *Tx) ExtendWorkKeys(id api.WorkID, expires time.Time) error {
	_, err := tx.exec("UPDATE keys SET expires_at = ? WHERE work_id = ?", micros(expires), id)
	return err
}
