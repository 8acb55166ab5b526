package control

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

// CreateTunnel makes a tunnel with a domain that no tunnel has ever had, and its token.
// It refuses calls until a CA certificate is registered on it.
func (c *Control) CreateTunnel(ctx context.Context, p Principal, in api.TunnelCreate) (*api.Tunnel, error) {
	if err := p.manages(); err != nil {
		return nil, err
	}
	if err := in.Check(); err != nil {
		return nil, err
	}
	t := &store.Tunnel{
		Tunnel:      api.Tunnel{ID: newID[api.TunnelID](c, api.PrefixTunnel), Type: "tunnel", DisplayName: in.DisplayName},
		WorkspaceID: api.WorkspaceDefault,
	}
	token, sealed, err := c.newToken(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		if err := tx.Alone(); err != nil {
			return err
		}
		if n, err := tx.CountTunnels(); err != nil {
			return err
		} else if n >= int64(c.cfg.TunnelsMax) {
			return api.Conflict("Organization already has the maximum of %d non-archived Tunnels", c.cfg.TunnelsMax)
		}
		if t.Domain, err = c.newDomain(tx); err != nil {
			return err
		}
		t.CreatedAt = tx.Now
		if err := tx.InsertTunnel(t); err != nil {
			return err
		}
		if err := putToken(tx, t.ID, api.TokenPrimary, token, sealed); err != nil {
			return err
		}
		return c.announceTunnel(p, audit.TunnelCreate, t.ID, "domain", t.Domain)
	})
	return publicTunnel(t, err)
}

// publicTunnel is what the API shows of a tunnel.
func publicTunnel(t *store.Tunnel, err error) (*api.Tunnel, error) {
	if err != nil {
		return nil, err
	}
	return &t.Tunnel, nil
}

const (
	domainLabelLen = 8
	domainAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	domainTries    = 10
)

// newDomain makes a domain that no tunnel has or had.
func (c *Control) newDomain(tx *store.Tx) (string, error) {
	for range domainTries {
		domain := c.randomLabel() + "." + c.cfg.TunnelDomain
		if _, err := tx.TunnelByDomain(domain); !errors.Is(err, store.ErrNotFound) {
			if err != nil {
				return "", err
			}
			continue // somebody's
		}
		return domain, nil
	}
	return "", errors.New("no domain was found that is free") // one of 36^8 is, unless the randomness is none
}

func (c *Control) randomLabel() string {
	label := make([]byte, 0, domainLabelLen)
	var b [1]byte
	for len(label) < domainLabelLen {
		if _, err := io.ReadFull(c.cfg.Rand, b[:]); err != nil {
			panic("control: no randomness: " + err.Error())
		}
		const even = 256 - 256%len(domainAlphabet) // beyond it some letters would be likelier
		if int(b[0]) < even {
			label = append(label, domainAlphabet[int(b[0])%len(domainAlphabet)])
		}
	}
	return string(label)
}

// managed runs fn with a tunnel that the principal may manage.
func (c *Control) managed(ctx context.Context, p Principal, id api.TunnelID, fn func(*store.Tx, *store.Tunnel) error) error {
	if err := p.manages(); err != nil {
		return err
	}
	return c.db.Read(ctx, func(tx *store.Tx) error {
		t, err := tx.Tunnel(api.WorkspaceDefault, id)
		if err != nil {
			return found(err, "tunnel", string(id))
		}
		return fn(tx, t)
	})
}

// changeTunnel runs fn with a tunnel that the principal may manage and that stays as it
// is until the transaction ends.
func (c *Control) changeTunnel(ctx context.Context, p Principal, id api.TunnelID, fn func(*store.Tx, *store.Tunnel) error) error {
	if err := p.manages(); err != nil {
		return err
	}
	return c.write(ctx, func(tx *store.Tx) error {
		t, err := tx.LockTunnel(api.WorkspaceDefault, id)
		if err != nil {
			return found(err, "tunnel", string(id))
		}
		return fn(tx, t)
	})
}

// live refuses what cannot be done with an archived tunnel.
func live(t *store.Tunnel) error {
	if t.ArchivedAt != nil {
		return api.Conflict("tunnel %s is archived", t.ID)
	}
	return nil
}

// announceTunnel records what is about to be done to a tunnel. pairs are names and values
// of attributes; empty values are left out.
func (c *Control) announceTunnel(p Principal, action string, id api.TunnelID, pairs ...string) error {
	attrs := map[string]string{"tunnel_id": string(id)}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			attrs[pairs[i]] = pairs[i+1]
		}
	}
	return c.announce(audit.Record{Action: action, Actor: p.Actor(), Attrs: attrs})
}

// GetTunnel returns a tunnel.
func (c *Control) GetTunnel(ctx context.Context, p Principal, id api.TunnelID) (*api.Tunnel, error) {
	var out *store.Tunnel
	err := c.managed(ctx, p, id, func(_ *store.Tx, t *store.Tunnel) error {
		out = t
		return nil
	})
	return publicTunnel(out, err)
}

// ListTunnels lists tunnels, the newest first.
func (c *Control) ListTunnels(ctx context.Context, p Principal, archived bool, req api.PageRequest) (page api.Page[*api.Tunnel], err error) {
	if err := p.manages(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.TunnelPageMax,
		func(tx *store.Tx, win store.Window) ([]*store.Tunnel, error) {
			return tx.Tunnels(api.WorkspaceDefault, archived, win)
		},
		func(t *store.Tunnel) (int64, string) { return t.CreatedAt.UnixMicro(), string(t.ID) },
		func(t *store.Tunnel) *api.Tunnel { return &t.Tunnel })
}

// ArchiveTunnel ends a tunnel for good: with it its tokens and certificates, and the
// connections of its connectors. Its domain is never used again. Archiving again changes
// nothing.
func (c *Control) ArchiveTunnel(ctx context.Context, p Principal, id api.TunnelID) (*api.Tunnel, error) {
	var out *store.Tunnel
	err := c.changeTunnel(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		out = t
		if t.ArchivedAt != nil {
			return nil
		}
		t.ArchivedAt = &tx.Now
		if err := tx.ArchiveTunnel(t); err != nil {
			return err
		}
		if err := c.cutTunnel(tx, t.ID); err != nil {
			return err
		}
		tx.Notify(topicTrust)
		return c.announceTunnel(p, audit.TunnelArchive, t.ID, "domain", t.Domain)
	})
	return publicTunnel(out, err)
}

// -- tokens ----------------------------------------------------------------------

// newToken makes a token of a tunnel, and seals its text.
func (c *Control) newToken(ctx context.Context, id api.TunnelID) (tunnel.Token, []*store.Secret, error) {
	account := strings.ReplaceAll(api.OrganizationDefault, "-", "")
	token := tunnel.NewToken(account, id)
	sealed, err := c.seal(ctx, string(token.ID()), api.Secrets{store.FieldToken: api.Secret(token.Text())})
	return token, sealed, err
}

// putToken makes a token the current one of its slot, which must be free.
func putToken(tx *store.Tx, id api.TunnelID, slot api.TokenSlot, token tunnel.Token, sealed []*store.Secret) error {
	err := tx.InsertToken(&store.TunnelToken{ID: token.ID(), TunnelID: id, Slot: slot, CreatedAt: tx.Now})
	if err != nil {
		return err
	}
	return putSecrets(tx, sealed)
}

// RevealToken returns the tunnel's current token.
func (c *Control) RevealToken(ctx context.Context, p Principal, id api.TunnelID) (*api.TunnelToken, error) {
	var current *store.TunnelToken
	var sealed *store.Secret
	out := &api.TunnelToken{Type: "tunnel_token"}
	err := c.managed(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) (err error) {
		if err := live(t); err != nil {
			return err
		}
		if current, err = tx.CurrentToken(id, api.TokenPrimary); err != nil {
			return err
		}
		if out.Overlap, err = overlap(tx, id); err != nil {
			return err
		}
		sealed, err = tx.Secret(string(current.ID), store.FieldToken)
		return err
	})
	if err != nil {
		return nil, err
	}
	text, err := c.unseal(ctx, []*store.Secret{sealed})
	if err != nil {
		return nil, err
	}
	if err := c.announceTunnel(p, audit.TunnelTokenReveal, id, "token_id", string(current.ID)); err != nil {
		return nil, err
	}
	out.ID, out.Token = current.ID, string(text[store.FieldToken])
	return out, nil
}

// overlap finds the rotated token that is still good.
func overlap(tx *store.Tx, id api.TunnelID) (*api.TokenOverlap, error) {
	good, err := tx.GoodTokens(id)
	for _, t := range good {
		if t.Slot == api.TokenPrimary && t.EndedAt != nil {
			return &api.TokenOverlap{ID: t.ID, Until: *t.EndedAt}, err
		}
	}
	return nil, err
}

// RotateToken gives the tunnel another token. Connectors cannot attach with the one
// there was any more, at once or after the overlap that was asked for; those that are
// attached stay so. Of several rotations only the last one's old token is good.
func (c *Control) RotateToken(ctx context.Context, p Principal, id api.TunnelID, in api.TokenRotate) (*api.TunnelToken, error) {
	if err := p.manages(); err != nil {
		return nil, err
	}
	if err := in.Check(); err != nil {
		return nil, err
	}
	token, sealed, err := c.newToken(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &api.TunnelToken{ID: token.ID(), Type: "tunnel_token", Token: token.Text()}
	err = c.changeTunnel(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		if err := live(t); err != nil {
			return err
		}
		old, err := tx.CurrentToken(id, api.TokenPrimary)
		if err != nil {
			return err
		}
		if earlier, err := overlap(tx, id); err != nil {
			return err
		} else if earlier != nil {
			if err := tx.EndToken(earlier.ID); err != nil {
				return err
			}
		}
		until := tx.Now.Add(time.Duration(in.OverlapSeconds) * time.Second)
		if err := tx.EndTokens(id, api.TokenPrimary, until); err != nil {
			return err
		}
		if err := putToken(tx, id, api.TokenPrimary, token, sealed); err != nil {
			return err
		}
		attrs := []string{"token_id", string(token.ID()), "old_token_id", string(old.ID)}
		if in.Reason != nil {
			attrs = append(attrs, "reason", *in.Reason)
		}
		if in.OverlapSeconds > 0 {
			out.Overlap = &api.TokenOverlap{ID: old.ID, Until: until}
			attrs = append(attrs, "old_token_until", until.Format(time.RFC3339))
		}
		return c.announceTunnel(p, audit.TunnelTokenRotate, id, attrs...)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// CreateSecondToken gives the tunnel a token beside its own, for connectors of another
// kind or place, which can be taken back without the others noticing. There is one at a
// time, and it is shown only now.
func (c *Control) CreateSecondToken(ctx context.Context, p Principal, id api.TunnelID, in api.TokenCreate) (*api.TunnelToken, error) {
	if err := p.manages(); err != nil {
		return nil, err
	}
	if err := in.Check(); err != nil {
		return nil, err
	}
	// It is not revealed again, so its hash is all that is kept.
	token := tunnel.NewToken(strings.ReplaceAll(api.OrganizationDefault, "-", ""), id)
	err := c.changeTunnel(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		if err := live(t); err != nil {
			return err
		}
		err := putToken(tx, id, api.TokenSecond, token, nil)
		if errors.Is(err, store.ErrDuplicate) {
			return api.Conflict("tunnel %s has a second token already; revoke it first", id)
		}
		if err != nil {
			return err
		}
		attrs := []string{"token_id", string(token.ID())}
		if in.Reason != nil {
			attrs = append(attrs, "reason", *in.Reason)
		}
		return c.announceTunnel(p, audit.TunnelTokenCreate, id, attrs...)
	})
	if err != nil {
		return nil, err
	}
	return &api.TunnelToken{ID: token.ID(), Type: "tunnel_token", Token: token.Text()}, nil
}

// ListTokens lists the tokens that connectors may attach to a tunnel with, the oldest
// first, without their texts. There are at most three.
func (c *Control) ListTokens(ctx context.Context, p Principal, id api.TunnelID) (api.Page[*api.TunnelTokenInfo], error) {
	page := api.Page[*api.TunnelTokenInfo]{Data: []*api.TunnelTokenInfo{}}
	err := c.managed(ctx, p, id, func(tx *store.Tx, _ *store.Tunnel) error {
		good, err := tx.GoodTokens(id)
		for _, t := range good {
			page.Data = append(page.Data, tokenInfo(t))
		}
		return err
	})
	return page, err
}

func tokenInfo(t *store.TunnelToken) *api.TunnelTokenInfo {
	return &api.TunnelTokenInfo{ID: t.ID, Type: "tunnel_token_info", TunnelID: t.TunnelID, Slot: t.Slot, CreatedAt: t.CreatedAt, EndsAt: t.EndedAt}
}

// RevokeToken ends a second token, or the overlap of a rotated one, at once. Connectors
// that are attached stay so. Revoking again changes nothing.
func (c *Control) RevokeToken(ctx context.Context, p Principal, id api.TunnelID, token api.TokenID) (*api.TunnelTokenInfo, error) {
	var out *api.TunnelTokenInfo
	err := c.changeTunnel(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		tok, err := tx.Token(token)
		if err == nil && tok.TunnelID != id {
			err = store.ErrNotFound
		}
		if err != nil {
			return found(err, "token", string(token))
		}
		out = tokenInfo(tok)
		if !tok.Good(tx.Now) {
			return nil
		}
		if tok.Slot == api.TokenPrimary && tok.EndedAt == nil {
			return api.Conflict("token %s is the tunnel's own; rotate it", token)
		}
		out.EndsAt = &tx.Now
		if err := tx.EndToken(token); err != nil {
			return err
		}
		return c.announceTunnel(p, audit.TunnelTokenRevoke, id, "token_id", string(token))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// -- certificates ----------------------------------------------------------------

// AddCertificate registers a CA certificate on a tunnel: its gateways may answer with
// certificates that the CA has signed.
func (c *Control) AddCertificate(ctx context.Context, p Principal, id api.TunnelID, in api.CertificateCreate) (*api.TunnelCertificate, error) {
	var out *store.TunnelCertificate
	err := c.changeTunnel(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		if err := live(t); err != nil {
			return err
		}
		ca, err := tunnel.CheckCA([]byte(in.CACertificatePEM), tx.Now)
		if err != nil {
			return api.Invalid("ca_certificate_pem: %s", err)
		}
		present, err := tx.LiveCertificates(id)
		if err != nil {
			return err
		}
		fingerprint := tunnel.Fingerprint(ca)
		for _, have := range present {
			if have.Fingerprint == fingerprint {
				return api.Conflict("ca_certificate_pem: the certificate is registered on the tunnel already, as %s", have.ID)
			}
		}
		if len(present) >= api.CertificatesMax {
			return api.Conflict("tunnel %s already has the maximum of %d non-archived certificates; archive one first", id, api.CertificatesMax)
		}
		expires := ca.NotAfter.UTC()
		out = &store.TunnelCertificate{
			TunnelCertificate: api.TunnelCertificate{
				ID: newID[api.CertificateID](c, api.PrefixCertificate), Type: "tunnel_certificate", TunnelID: id,
				Fingerprint: fingerprint, CreatedAt: tx.Now, ExpiresAt: &expires,
			},
			PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})),
		}
		if err := tx.InsertCertificate(out); err != nil {
			return err
		}
		return c.announceTunnel(p, audit.TunnelCertificateAdd, id, "certificate_id", string(out.ID), "fingerprint", fingerprint)
	})
	if err != nil {
		return nil, err
	}
	return &out.TunnelCertificate, nil
}

// GetCertificate returns a certificate of a tunnel.
func (c *Control) GetCertificate(ctx context.Context, p Principal, id api.TunnelID, cert api.CertificateID) (*api.TunnelCertificate, error) {
	var out *store.TunnelCertificate
	err := c.managed(ctx, p, id, func(tx *store.Tx, _ *store.Tunnel) (err error) {
		out, err = tx.Certificate(id, cert)
		return found(err, "certificate", string(cert))
	})
	if err != nil {
		return nil, err
	}
	return &out.TunnelCertificate, nil
}

// ListCertificates lists the certificates of a tunnel, the newest first.
func (c *Control) ListCertificates(ctx context.Context, p Principal, id api.TunnelID, archived bool, req api.PageRequest) (page api.Page[*api.TunnelCertificate], err error) {
	if err := p.manages(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.TunnelPageMax,
		func(tx *store.Tx, win store.Window) ([]*store.TunnelCertificate, error) {
			if _, err := tx.Tunnel(api.WorkspaceDefault, id); err != nil {
				return nil, found(err, "tunnel", string(id))
			}
			return tx.Certificates(id, archived, win)
		},
		func(v *store.TunnelCertificate) (int64, string) { return v.CreatedAt.UnixMicro(), string(v.ID) },
		func(v *store.TunnelCertificate) *api.TunnelCertificate { return &v.TunnelCertificate })
}

// ArchiveCertificate ends the trust in a CA: no gateway can answer with what it has
// signed, and connections to those that did are cut. Archiving again changes nothing.
func (c *Control) ArchiveCertificate(ctx context.Context, p Principal, id api.TunnelID, cert api.CertificateID) (*api.TunnelCertificate, error) {
	var out *store.TunnelCertificate
	err := c.changeTunnel(ctx, p, id, func(tx *store.Tx, _ *store.Tunnel) (err error) {
		out, err = tx.Certificate(id, cert)
		if err != nil || out.ArchivedAt != nil {
			return found(err, "certificate", string(cert))
		}
		out.ArchivedAt = &tx.Now
		if err := tx.ArchiveCertificate(out); err != nil {
			return err
		}
		tx.Notify(topicTrust)
		return c.announceTunnel(p, audit.TunnelCertificateArchive, id, "certificate_id", string(cert), "fingerprint", out.Fingerprint)
	})
	if err != nil {
		return nil, err
	}
	return &out.TunnelCertificate, nil
}

// -- for the data path -----------------------------------------------------------

// TunnelByHost finds the tunnel that a private MCP server of a workspace is reached
// through, and the CAs that its gateways are trusted by. Its error is a [*tunnel.Error]:
// a tunnel of another workspace is one that there is not.
func (c *Control) TunnelByHost(ctx context.Context, ws api.WorkspaceID, host string) (*api.Tunnel, []*x509.Certificate, error) {
	notActive := func(format string, args ...any) error {
		return &tunnel.Error{Stage: tunnel.StageNotActive, Host: host, Detail: api.Invalid(format, args...).Message}
	}
	_, domain, ok := tunnel.SplitHost(host, c.cfg.TunnelDomain)
	if !ok {
		return nil, nil, notActive("the host is not of a tunnel of this server, whose domains end in %s", c.cfg.TunnelDomain)
	}
	var t *store.Tunnel
	var certs []*store.TunnelCertificate
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		if t, err = tx.TunnelByDomain(domain); err != nil {
			return err
		}
		certs, err = tx.LiveCertificates(t.ID)
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && t.WorkspaceID != ws:
		return nil, nil, notActive("no tunnel has the domain %s", domain)
	case err != nil:
		return nil, nil, &tunnel.Error{Stage: tunnel.StageNotActive, Host: host, Detail: "the plane cannot look the tunnel up", Err: err}
	case t.ArchivedAt != nil:
		return nil, nil, notActive("the tunnel was archived at %s", t.ArchivedAt.Format(time.RFC3339))
	case len(certs) == 0:
		return nil, nil, notActive("the tunnel has no CA certificate: register one with bailey tunnels certificates add")
	}
	cas, err := parseCAs(certs)
	if err != nil {
		return nil, nil, &tunnel.Error{Stage: tunnel.StageNotActive, Tunnel: string(t.ID), Host: host, Detail: "a CA certificate of the tunnel cannot be read", Err: err}
	}
	return &t.Tunnel, cas, nil
}

func parseCAs(certs []*store.TunnelCertificate) (cas []*x509.Certificate, err error) {
	for _, cert := range certs {
		block, _ := pem.Decode([]byte(cert.PEM))
		if block == nil {
			return nil, errors.New("certificate " + string(cert.ID) + " is not PEM")
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		cas = append(cas, ca)
	}
	return cas, nil
}

// TrustChanged receives when a CA certificate may have been archived, alone or with its
// tunnel. It is a hint, and for one receiver.
func (c *Control) TrustChanged() <-chan struct{} { return c.hub.trust.C }

const archivedMax = 1000

// Distrusted lists the CA certificates that were archived at a time or after it and are
// not registered again, the earliest first, so that connections built on them can be cut.
// Of a list of more than a thousand, the rest is had by asking from the last one on.
func (c *Control) Distrusted(ctx context.Context, since time.Time) (out []*api.TunnelCertificate, err error) {
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.ArchivedCertificates(since, archivedMax)
		for _, r := range rows {
			out = append(out, &r.TunnelCertificate)
		}
		return err
	})
	return out, err
}
