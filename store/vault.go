package store

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// PutVault writes a vault.
func (tx *Tx) PutVault(v *api.Vault) error {
	_, err := tx.exec(`INSERT INTO vaults (id, body, created_at, archived_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET body = excluded.body, archived_at = excluded.archived_at`,
		v.ID, encode(v), micros(v.CreatedAt), optMicros(v.ArchivedAt))
	return err
}

// Vault reads a vault.
func (tx *Tx) Vault(id api.VaultID) (*api.Vault, error) {
	return one(tx, scanBody[api.Vault], "SELECT body FROM vaults WHERE id = ?", id)
}

// LockVault reads a vault that the transaction is going to change, or the credentials
// of.
func (tx *Tx) LockVault(id api.VaultID) (*api.Vault, error) {
	return one(tx, scanBody[api.Vault], "SELECT body FROM vaults WHERE id = ?"+tx.d.forUpdate, id)
}

// PinVault reads a vault and keeps it from being deleted until the transaction ends.
func (tx *Tx) PinVault(id api.VaultID) (*api.Vault, error) {
	return one(tx, scanBody[api.Vault], "SELECT body FROM vaults WHERE id = ?"+tx.d.forShare, id)
}

// Vaults lists vaults by creation.
func (tx *Tx) Vaults(archived bool, win Window) ([]*api.Vault, error) {
	var w where
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanBody[api.Vault], "SELECT body FROM vaults"+w.String()+tail, w.args...)
}

// DeleteVault removes a vault with its credentials and their secrets.
func (tx *Tx) DeleteVault(id api.VaultID) error {
	if _, err := tx.exec("DELETE FROM secrets WHERE owner IN (SELECT id FROM credentials WHERE vault_id = ?)", id); err != nil {
		return err
	}
	if _, err := tx.exec("DELETE FROM credentials WHERE vault_id = ?", id); err != nil {
		return err
	}
	return must(tx.exec("DELETE FROM vaults WHERE id = ?", id))
}

// A Credential is a credential's row: the public object, and the state of its renewal.
type Credential struct {
	api.Credential

	// Version is raised by every change of the credential's secrets, so that a token that
	// was renewed from older ones is not written over newer ones.
	Version int64

	RefreshOwner string
	RefreshUntil time.Time // zero: nobody renews it

	RefreshedAt *time.Time // when it was renewed last; nil: never

	RefusedAt  *time.Time // when renewing was refused for good; nil: it was not, at this version
	RefusedWhy string
}

const credentialColumns = "body, version, refresh_owner, refresh_until, refreshed_at, refused_at, refused_why"

func scanCredential(row scanner) (*Credential, error) {
	var c Credential
	var body string
	var until int64
	var refreshed, refused sql.NullInt64
	if err := row.Scan(&body, &c.Version, &c.RefreshOwner, &until, &refreshed, &refused, &c.RefusedWhy); err != nil {
		return nil, err
	}
	if until != 0 {
		c.RefreshUntil = fromMicros(until)
	}
	c.RefreshedAt, c.RefusedAt = fromOptMicros(refreshed), fromOptMicros(refused)
	return &c, json.Unmarshal([]byte(body), &c.Credential)
}

// PutCredential writes a credential. Another one of its vault for the same target that
// is not archived is [ErrDuplicate].
func (tx *Tx) PutCredential(c *Credential) error {
	until := int64(0)
	if !c.RefreshUntil.IsZero() {
		until = micros(c.RefreshUntil)
	}
	_, err := tx.exec(`INSERT INTO credentials (id, vault_id, kind, target, body, version, created_at, archived_at,
		refresh_owner, refresh_until, refreshed_at, refused_at, refused_why) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET body = excluded.body, version = excluded.version, archived_at = excluded.archived_at,
		refresh_owner = excluded.refresh_owner, refresh_until = excluded.refresh_until,
		refreshed_at = excluded.refreshed_at, refused_at = excluded.refused_at, refused_why = excluded.refused_why`,
		c.ID, c.VaultID, c.Auth.Type, c.Auth.Target(), encode(&c.Credential), c.Version, micros(c.CreatedAt), optMicros(c.ArchivedAt),
		c.RefreshOwner, until, optMicros(c.RefreshedAt), optMicros(c.RefusedAt), c.RefusedWhy)
	return err
}

// Credential reads a credential of a vault.
func (tx *Tx) Credential(vault api.VaultID, id api.CredentialID) (*Credential, error) {
	return one(tx, scanCredential, "SELECT "+credentialColumns+" FROM credentials WHERE vault_id = ? AND id = ?", vault, id)
}

// LockCredential reads a credential of a vault that the transaction is going to change.
func (tx *Tx) LockCredential(vault api.VaultID, id api.CredentialID) (*Credential, error) {
	return one(tx, scanCredential, "SELECT "+credentialColumns+" FROM credentials WHERE vault_id = ? AND id = ?"+tx.d.forUpdate, vault, id)
}

// CredentialFor reads the credential of a vault for a target that is not archived.
func (tx *Tx) CredentialFor(vault api.VaultID, target string) (*Credential, error) {
	return one(tx, scanCredential, "SELECT "+credentialColumns+" FROM credentials WHERE vault_id = ? AND target = ? AND archived_at IS NULL", vault, target)
}

// LiveCredentials reads the credentials of a vault that are not archived, of one kind or
// with kind "" of all, in order of creation. There are at most [api.VaultCredentialsMax].
func (tx *Tx) LiveCredentials(vault api.VaultID, kind string) ([]*Credential, error) {
	return collect(tx, scanCredential, "SELECT "+credentialColumns+` FROM credentials
		WHERE vault_id = ? AND archived_at IS NULL AND (? = '' OR kind = ?) ORDER BY created_at, id`, vault, kind, kind)
}

// CountCredentials counts the credentials of a vault that are not archived.
func (tx *Tx) CountCredentials(vault api.VaultID) (int64, error) {
	return tx.count("SELECT count(*) FROM credentials WHERE vault_id = ? AND archived_at IS NULL", vault)
}

// Credentials lists the credentials of a vault by creation.
func (tx *Tx) Credentials(vault api.VaultID, archived bool, win Window) ([]*Credential, error) {
	var w where
	w.and("vault_id = ?", vault)
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanCredential, "SELECT "+credentialColumns+" FROM credentials"+w.String()+tail, w.args...)
}

// DeleteCredential removes a credential with its secrets.
func (tx *Tx) DeleteCredential(id api.CredentialID) error {
	if err := tx.DropSecrets(string(id)); err != nil {
		return err
	}
	return must(tx.exec("DELETE FROM credentials WHERE id = ?", id))
}

// ToldOf reports whether an error in a session's log names a credential.
func (tx *Tx) ToldOf(session api.SessionID, id api.CredentialID) (bool, error) {
	n, err := tx.count("SELECT count(*) FROM events WHERE session_id = ? AND type = ? AND body LIKE ?",
		session, api.EvSessionError, `%"credential_id":"`+string(id)+`"%`)
	return n > 0, err
}
