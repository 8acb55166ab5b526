package control

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

// The plane has CAs of its own, which vouch for edges to those who dial them, and for
// the plane's dialers to edges. There is one, made at the first start; while it is
// being replaced there are two. All of them are trusted, one of them signs. Keys are
// sealed in the database, so that replicas share them.

// The lives of what the plane certifies.
const (
	authorityLife   = 5 * 365 * 24 * time.Hour
	authorityRenew  = authorityLife / 3 // what is left when the next one is made
	authoritiesMax  = 4
	edgeCertLife    = 7 * 24 * time.Hour
	dialerCertLife  = 24 * time.Hour
	authorityFresh  = 5 * time.Second // how old what a process knows of them may be
	authorityField  = "key"
	authorityName   = "Bailey edges"
	dialerName      = "bailey dialer"
	edgeNamesSuffix = ".edge.bailey.internal"

	// AuthorityHoldOff is how long a new CA is trusted before it signs, which is how
	// long edges and connectors have to learn of it.
	AuthorityHoldOff = 24 * time.Hour
)

// authorities are the CAs as this process knows them.
type authorities struct {
	mu     sync.Mutex
	opened map[api.AuthorityID]*tunnel.Authority
	known  *trust
	until  time.Time // when known is to be read again
}

// A trust is who is trusted at a time, and who signs.
type trust struct {
	signer   *tunnel.Authority
	pem      string // of all
	pool     *x509.CertPool
	revision string // changes with pem
}

// trust returns the CAs, making the first one if there is none.
func (c *Control) trust(ctx context.Context) (*trust, error) {
	a := &c.authorities
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := c.cfg.Clock(); a.known != nil && now.Before(a.until) {
		return a.known, nil
	}
	rows, err := c.readAuthorities(ctx)
	if err == nil && len(rows) == 0 {
		if err = c.makeAuthority(ctx, true); err == nil {
			rows, err = c.readAuthorities(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	known, err := c.open(ctx, rows)
	if err != nil {
		return nil, fmt.Errorf("open the edges' authority: %w", err)
	}
	a.known, a.until = known, c.cfg.Clock().Add(authorityFresh)
	return known, nil
}

func (c *Control) readAuthorities(ctx context.Context) (rows []*api.Authority, err error) {
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		rows, err = tx.Authorities()
		return err
	})
	return rows, err
}

// open puts a trust together of rows, the newest first. The caller holds mu.
func (c *Control) open(ctx context.Context, rows []*api.Authority) (*trust, error) {
	t := new(trust)
	var text strings.Builder
	signer := rows[len(rows)-1]
	for i := len(rows) - 1; i >= 0; i-- {
		text.WriteString(rows[i].Certificate)
		if !rows[i].SignsFrom.After(c.cfg.Clock()) {
			signer = rows[i]
		}
	}
	t.pem, t.pool = text.String(), x509.NewCertPool()
	t.pool.AppendCertsFromPEM([]byte(t.pem))
	sum := sha256.Sum256([]byte(t.pem))
	t.revision = hex.EncodeToString(sum[:8])
	opened := c.authorities.opened[signer.ID]
	if opened == nil {
		var sealed *store.Secret
		err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
			sealed, err = tx.Secret(string(signer.ID), authorityField)
			return err
		})
		if err != nil {
			return nil, err
		}
		secrets, err := c.unseal(ctx, []*store.Secret{sealed})
		if err != nil {
			return nil, err
		}
		if opened, err = tunnel.OpenAuthority([]byte(signer.Certificate), []byte(secrets[authorityField])); err != nil {
			return nil, fmt.Errorf("%s: %w", signer.ID, err)
		}
		c.authorities.opened = map[api.AuthorityID]*tunnel.Authority{signer.ID: opened}
	}
	t.signer = opened
	return t, nil
}

// makeAuthority adds a CA: the first one, which signs at once, or the next one.
func (c *Control) makeAuthority(ctx context.Context, first bool) error {
	now := c.cfg.Clock().UTC().Truncate(time.Microsecond)
	ca, err := tunnel.NewAuthority(authorityName, now, authorityLife)
	if err != nil {
		return err
	}
	key, err := ca.MarshalKey()
	if err != nil {
		return err
	}
	a := &api.Authority{
		ID: newID[api.AuthorityID](c, api.PrefixAuthority), Type: "edge_authority",
		Certificate: string(tunnel.EncodeCertificate(ca.Certificate)),
		CreatedAt:   now, SignsFrom: now, ExpiresAt: ca.Certificate.NotAfter,
	}
	if !first {
		a.SignsFrom = now.Add(AuthorityHoldOff)
	}
	sealed, err := c.seal(ctx, string(a.ID), api.Secrets{authorityField: api.Secret(key)})
	if err != nil {
		return err
	}
	return c.write(ctx, func(tx *store.Tx) error {
		if err := tx.Alone(); err != nil {
			return err
		}
		have, err := tx.Authorities()
		switch {
		case err != nil:
			return err
		case first && len(have) > 0, !first && len(have) > 0 && have[0].SignsFrom.After(tx.Now):
			return nil // another replica was first
		case len(have) >= authoritiesMax:
			return api.Conflict("there are %d authorities already; archive one that signs no more", len(have))
		}
		if err := c.announce(audit.Record{Action: audit.EdgeAuthority, Attrs: map[string]string{
			"authority_id": string(a.ID), "fingerprint": tunnel.Fingerprint(ca.Certificate), "signs_from": a.SignsFrom.Format(time.RFC3339),
		}}); err != nil {
			return err
		}
		if err := putSecrets(tx, sealed); err != nil {
			return err
		}
		return tx.InsertAuthority(a)
	})
}

// forget has the CAs read again.
func (a *authorities) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known = nil
}

// renewAuthority makes the next CA when the newest has not long to live.
func (c *Control) renewAuthority(ctx context.Context) error {
	rows, err := c.readAuthorities(ctx)
	if err != nil || len(rows) == 0 || rows[0].ExpiresAt.Sub(c.cfg.Clock()) > authorityRenew {
		return err
	}
	if err := c.makeAuthority(ctx, false); err != nil {
		return fmt.Errorf("make the edges' next authority: %w", err)
	}
	c.authorities.forget()
	return nil
}

// ListAuthorities lists the CAs that are trusted, the newest first.
func (c *Control) ListAuthorities(ctx context.Context, p Principal) ([]*api.Authority, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if _, err := c.trust(ctx); err != nil {
		return nil, err
	}
	rows, err := c.readAuthorities(ctx)
	for _, a := range rows {
		cert, err := tunnel.ParseCertificate([]byte(a.Certificate))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.ID, err)
		}
		a.Fingerprint = tunnel.Fingerprint(cert)
	}
	return rows, err
}

// RotateAuthority makes the next CA. It is trusted at once and signs after
// [AuthorityHoldOff]; those before it stay trusted until they are archived or expire.
func (c *Control) RotateAuthority(ctx context.Context, p Principal) (*api.Authority, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if _, err := c.trust(ctx); err != nil {
		return nil, err
	}
	if err := c.makeAuthority(ctx, false); err != nil {
		return nil, err
	}
	c.authorities.forget()
	all, err := c.ListAuthorities(ctx, p)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ArchiveAuthority ends the trust in a CA that signs no more. Edges and dialers whose
// certificates are of it are refused from then on, unless they have renewed them.
func (c *Control) ArchiveAuthority(ctx context.Context, p Principal, id api.AuthorityID) (*api.Authority, error) {
	all, err := c.ListAuthorities(ctx, p)
	if err != nil {
		return nil, err
	}
	var out *api.Authority
	for _, a := range all {
		if a.ID == id {
			out = a
		}
	}
	if out == nil {
		return nil, api.NotFound("authority %s was not found", id)
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		rows, err := tx.Authorities()
		if err != nil {
			return err
		}
		younger := false
		for _, a := range rows {
			younger = younger || a.ID != id && a.SignsFrom.After(out.SignsFrom) && !a.SignsFrom.After(tx.Now)
		}
		if !younger {
			return api.Conflict("authority %s is the one that signs, or will be; rotate, and archive it when the next one signs", id)
		}
		out.ArchivedAt = &tx.Now
		if err := tx.DropSecrets(string(id)); err != nil {
			return err
		}
		return found(tx.ArchiveAuthority(id), "authority", string(id))
	})
	c.authorities.forget()
	return out, err
}

// DialerCertificate makes a certificate with which this process dials edges, with a new
// key that is kept nowhere else. It is good for a day.
func (c *Control) DialerCertificate(ctx context.Context) (*tls.Certificate, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	return t.signer.ClientCertificate(dialerName, c.cfg.Clock(), dialerCertLife)
}

// edgeServerName is the name in the certificate that the plane makes for an edge. It
// is told by the edge's own name, so that it is the same after a restart and nobody
// chooses it.
func edgeServerName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:10]) + edgeNamesSuffix
}

// certify signs an edge's request for a certificate.
func (t *trust) certify(csr, name string, now time.Time) (api.EdgeCertificate, error) {
	out := api.EdgeCertificate{DialerCAs: t.pem, Revision: t.revision}
	if csr == "" {
		return out, nil
	}
	cert, err := t.signer.ServerCertificate([]byte(csr), name, now, edgeCertLife)
	if err != nil {
		return out, api.Invalid("csr_pem: %s", err)
	}
	renew := now.Add(cert.NotAfter.Sub(now) / 2).UTC().Truncate(time.Second)
	out.Certificate, out.RenewAt = string(tunnel.EncodeCertificate(cert)), &renew
	return out, nil
}
