package store

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Tunnel is a tunnel's row.
type Tunnel struct {
	api.Tunnel
	WorkspaceID api.WorkspaceID
}

const tunnelColumns = "workspace_id, body"

func scanTunnel(row scanner) (*Tunnel, error) {
	var t Tunnel
	var body []byte
	if err := row.Scan(&t.WorkspaceID, &body); err != nil {
		return nil, err
	}
	return &t, json.Unmarshal(body, &t.Tunnel)
}

// InsertTunnel adds a tunnel. A domain that any tunnel has ever had is [ErrDuplicate].
func (tx *Tx) InsertTunnel(t *Tunnel) error {
	_, err := tx.exec("INSERT INTO tunnels (id, workspace_id, domain, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?, ?)",
		t.ID, t.WorkspaceID, t.Domain, encode(&t.Tunnel), micros(t.CreatedAt), optMicros(t.ArchivedAt))
	return err
}

// Tunnel reads a tunnel.
func (tx *Tx) Tunnel(ws api.WorkspaceID, id api.TunnelID) (*Tunnel, error) {
	return one(tx, scanTunnel, "SELECT "+tunnelColumns+" FROM tunnels WHERE id = ? AND workspace_id = ?", id, ws)
}

// LockTunnel reads a tunnel that the transaction is going to change, or what belongs
// to it.
func (tx *Tx) LockTunnel(ws api.WorkspaceID, id api.TunnelID) (*Tunnel, error) {
	return one(tx, scanTunnel, "SELECT "+tunnelColumns+" FROM tunnels WHERE id = ? AND workspace_id = ?"+tx.d.forUpdate, id, ws)
}

// TunnelByDomain finds the tunnel that has, or had, a domain, in any workspace.
func (tx *Tx) TunnelByDomain(domain string) (*Tunnel, error) {
	return one(tx, scanTunnel, "SELECT "+tunnelColumns+" FROM tunnels WHERE domain = ?", domain)
}

// Tunnels lists the tunnels of a workspace by creation.
func (tx *Tx) Tunnels(ws api.WorkspaceID, archived bool, win Window) ([]*Tunnel, error) {
	var w where
	w.and("workspace_id = ?", ws)
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanTunnel, "SELECT "+tunnelColumns+" FROM tunnels"+w.String()+tail, w.args...)
}

// CountTunnels counts the tunnels of all workspaces that are not archived.
func (tx *Tx) CountTunnels() (int64, error) {
	return tx.count("SELECT count(*) FROM tunnels WHERE archived_at IS NULL")
}

// ArchiveTunnel writes a tunnel that was archived, ends its tokens and archives its
// certificates.
func (tx *Tx) ArchiveTunnel(t *Tunnel) error {
	if err := must(tx.exec("UPDATE tunnels SET body = ?, archived_at = ? WHERE id = ?", encode(&t.Tunnel), optMicros(t.ArchivedAt), t.ID)); err != nil {
		return err
	}
	if err := tx.EndTokens(t.ID, "", tx.Now); err != nil {
		return err
	}
	live, err := tx.LiveCertificates(t.ID)
	if err != nil {
		return err
	}
	for _, c := range live {
		c.ArchivedAt = t.ArchivedAt
		if err := tx.ArchiveCertificate(c); err != nil {
			return err
		}
	}
	return nil
}

// -- tokens ----------------------------------------------------------------------

// FieldToken is the field of the [Secret] with a token's text, which is kept for as long
// as the token is the current one of its slot. Its owner is the token's id.
const FieldToken = "tunnel_token"

// A TunnelToken is the row of a tunnel's token, without its text. Each slot has at most
// one that is not ended.
type TunnelToken struct {
	ID        api.TokenID
	TunnelID  api.TunnelID
	Slot      api.TokenSlot
	CreatedAt time.Time
	EndedAt   *time.Time // not good from then on
}

// Good reports whether connectors may attach with the token.
func (t *TunnelToken) Good(now time.Time) bool { return t.EndedAt == nil || t.EndedAt.After(now) }

const tokenColumns = "id, tunnel_id, slot, created_at, ended_at"

func scanToken(row scanner) (*TunnelToken, error) {
	var t TunnelToken
	var created int64
	var ended sql.NullInt64
	err := row.Scan(&t.ID, &t.TunnelID, &t.Slot, &created, &ended)
	t.CreatedAt, t.EndedAt = fromMicros(created), fromOptMicros(ended)
	return &t, err
}

// InsertToken adds a token. A slot that is taken is [ErrDuplicate].
func (tx *Tx) InsertToken(t *TunnelToken) error {
	_, err := tx.exec("INSERT INTO tunnel_tokens ("+tokenColumns+") VALUES (?, ?, ?, ?, ?)",
		t.ID, t.TunnelID, t.Slot, micros(t.CreatedAt), optMicros(t.EndedAt))
	return err
}

// Token finds a token by the hash that is its id.
func (tx *Tx) Token(id api.TokenID) (*TunnelToken, error) {
	return one(tx, scanToken, "SELECT "+tokenColumns+" FROM tunnel_tokens WHERE id = ?", id)
}

// CurrentToken reads the token that is in a slot and not ended.
func (tx *Tx) CurrentToken(id api.TunnelID, slot api.TokenSlot) (*TunnelToken, error) {
	return one(tx, scanToken, "SELECT "+tokenColumns+" FROM tunnel_tokens WHERE tunnel_id = ? AND slot = ? AND ended_at IS NULL", id, slot)
}

// GoodTokens reads the tokens that connectors may attach with, the oldest first.
func (tx *Tx) GoodTokens(id api.TunnelID) ([]*TunnelToken, error) {
	return collect(tx, scanToken, "SELECT "+tokenColumns+` FROM tunnel_tokens WHERE tunnel_id = ? AND (ended_at IS NULL OR ended_at > ?)
		ORDER BY created_at, id`, id, micros(tx.Now))
}

// EndTokens has every good token of a tunnel's slot, or with slot "" of all slots, end
// at a time, at the latest, and drops their texts.
func (tx *Tx) EndTokens(id api.TunnelID, slot api.TokenSlot, at time.Time) error {
	var w where
	w.and("tunnel_id = ?", id)
	if slot != "" {
		w.and("slot = ?", slot)
	}
	_, err := tx.exec("DELETE FROM secrets WHERE field = ? AND owner IN (SELECT id FROM tunnel_tokens"+w.String()+")",
		append([]any{FieldToken}, w.args...)...)
	if err != nil {
		return err
	}
	w.and("(ended_at IS NULL OR ended_at > ?)", micros(at))
	_, err = tx.exec("UPDATE tunnel_tokens SET ended_at = ?"+w.String(), append([]any{micros(at)}, w.args...)...)
	return err
}

// EndToken ends one token now, and drops its text.
func (tx *Tx) EndToken(id api.TokenID) error {
	if err := tx.DropSecret(string(id), FieldToken); err != nil {
		return err
	}
	return must(tx.exec("UPDATE tunnel_tokens SET ended_at = ? WHERE id = ?", micros(tx.Now), id))
}

// -- certificates ----------------------------------------------------------------

// A TunnelCertificate is the row of a CA certificate: the public part, and the
// certificate itself in PEM.
type TunnelCertificate struct {
	api.TunnelCertificate
	PEM string
}

const certificateColumns = "body, pem"

func scanCertificate(row scanner) (*TunnelCertificate, error) {
	var c TunnelCertificate
	var body []byte
	if err := row.Scan(&body, &c.PEM); err != nil {
		return nil, err
	}
	return &c, json.Unmarshal(body, &c.TunnelCertificate)
}

// InsertCertificate adds a certificate. One that is live on the tunnel is
// [ErrDuplicate].
func (tx *Tx) InsertCertificate(c *TunnelCertificate) error {
	_, err := tx.exec("INSERT INTO tunnel_certificates (id, tunnel_id, fingerprint, pem, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
		c.ID, c.TunnelID, c.Fingerprint, c.PEM, encode(&c.TunnelCertificate), micros(c.CreatedAt), optMicros(c.ArchivedAt))
	return err
}

// Certificate reads a certificate of a tunnel.
func (tx *Tx) Certificate(id api.TunnelID, cert api.CertificateID) (*TunnelCertificate, error) {
	return one(tx, scanCertificate, "SELECT "+certificateColumns+" FROM tunnel_certificates WHERE id = ? AND tunnel_id = ?", cert, id)
}

// LiveCertificates reads the certificates of a tunnel that are not archived, the
// oldest first.
func (tx *Tx) LiveCertificates(id api.TunnelID) ([]*TunnelCertificate, error) {
	return collect(tx, scanCertificate, "SELECT "+certificateColumns+` FROM tunnel_certificates WHERE tunnel_id = ? AND archived_at IS NULL
		ORDER BY created_at, id`, id)
}

// Certificates lists the certificates of a tunnel by creation.
func (tx *Tx) Certificates(id api.TunnelID, archived bool, win Window) ([]*TunnelCertificate, error) {
	var w where
	w.and("tunnel_id = ?", id)
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanCertificate, "SELECT "+certificateColumns+" FROM tunnel_certificates"+w.String()+tail, w.args...)
}

// ArchiveCertificate writes a certificate that was archived.
func (tx *Tx) ArchiveCertificate(c *TunnelCertificate) error {
	return must(tx.exec("UPDATE tunnel_certificates SET body = ?, archived_at = ? WHERE id = ?", encode(&c.TunnelCertificate), optMicros(c.ArchivedAt), c.ID))
}

// ArchivedCertificates reads the certificates that were archived at a time or after it,
// and are not on their tunnel again by now, the earliest first.
func (tx *Tx) ArchivedCertificates(since time.Time, limit int) ([]*TunnelCertificate, error) {
	return collect(tx, scanCertificate, "SELECT "+certificateColumns+" FROM tunnel_certificates WHERE archived_at >= ? "+
		"AND NOT EXISTS (SELECT 1 FROM tunnel_certificates AS again WHERE again.tunnel_id = tunnel_certificates.tunnel_id "+
		"AND again.fingerprint = tunnel_certificates.fingerprint AND again.archived_at IS NULL) ORDER BY archived_at, id LIMIT ?",
		micros(since), limit)
}
