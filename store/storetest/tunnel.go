package storetest

import (
	"errors"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newTunnel(id api.TunnelID, domain string) *store.Tunnel {
	return &store.Tunnel{
		Tunnel:      api.Tunnel{ID: id, Type: "tunnel", Domain: domain, CreatedAt: start},
		WorkspaceID: api.WorkspaceDefault,
	}
}

func newToken(id api.TokenID, of api.TunnelID, slot api.TokenSlot) *store.TunnelToken {
	return &store.TunnelToken{ID: id, TunnelID: of, Slot: slot, CreatedAt: start}
}

func newCertificate(id api.CertificateID, of api.TunnelID, fingerprint string) *store.TunnelCertificate {
	return &store.TunnelCertificate{
		TunnelCertificate: api.TunnelCertificate{ID: id, Type: "tunnel_certificate", TunnelID: of, Fingerprint: fingerprint, CreatedAt: start},
		PEM:               "PEM of " + fingerprint,
	}
}

func putTunnel(id api.TunnelID) func(*store.Tx) error {
	return func(tx *store.Tx) error { return tx.InsertTunnel(newTunnel(id, string(id)+".example")) }
}

func (r *rig) goodTokens(of api.TunnelID) (ids []api.TokenID) {
	r.t.Helper()
	for _, t := range read(r, func(tx *store.Tx) ([]*store.TunnelToken, error) { return tx.GoodTokens(of) }) {
		ids = append(ids, t.ID)
	}
	return ids
}

func (r *rig) hasSecret(owner string) bool {
	r.t.Helper()
	_, err := tryRead(r, func(tx *store.Tx) (*store.Secret, error) { return tx.Secret(owner, store.FieldToken) })
	return err == nil
}

var tunnelTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		tn := newTunnel("tnl_1", "a1.example")
		tn.DisplayName, tn.WorkspaceID = ptr(text), "wrkspc_2"
		r.write(func(tx *store.Tx) error { return tx.InsertTunnel(tn) })
		for name, find := range map[string]func(*store.Tx) (*store.Tunnel, error){
			"by id":     func(tx *store.Tx) (*store.Tunnel, error) { return tx.Tunnel("wrkspc_2", "tnl_1") },
			"by domain": func(tx *store.Tx) (*store.Tunnel, error) { return tx.TunnelByDomain("a1.example") },
		} {
			r.same(name, tn, read(r, find))
		}
		if _, err := tryRead(r, func(tx *store.Tx) (*store.Tunnel, error) { return tx.Tunnel("wrkspc_1", "tnl_1") }); !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("seen from another workspace: %v", err)
		}
		c := newCertificate("tcrt_1", "tnl_1", "ff")
		c.ExpiresAt = ptr(at(time.Hour))
		r.write(func(tx *store.Tx) error { return tx.InsertCertificate(c) })
		r.same("certificate", c, read(r, func(tx *store.Tx) (*store.TunnelCertificate, error) { return tx.Certificate("tnl_1", "tcrt_1") }))
		tok := newToken("ttkn_1", "tnl_1", api.TokenPrimary)
		tok.EndedAt = ptr(at(time.Hour))
		r.write(func(tx *store.Tx) error { return tx.InsertToken(tok) })
		r.same("token", tok, read(r, func(tx *store.Tx) (*store.TunnelToken, error) { return tx.Token("ttkn_1") }))
	}},

	{"ADomainIsNeverGivenOutTwice", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.InsertTunnel(newTunnel("tnl_1", "a1.example")) })
		r.write(func(tx *store.Tx) error {
			tn, err := tx.LockTunnel(api.WorkspaceDefault, "tnl_1")
			if err != nil {
				return err
			}
			tn.ArchivedAt = &tx.Now
			return tx.ArchiveTunnel(tn)
		})
		if err := r.fail(func(tx *store.Tx) error { return tx.InsertTunnel(newTunnel("tnl_2", "a1.example")) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("the domain of an archived tunnel again: %v", err)
		}
	}},

	{"ListsLeaveOutArchivedOnesUnlessAsked", func(r *rig) {
		gone := newTunnel("tnl_b", "b.example")
		gone.ArchivedAt = ptr(start)
		other := newTunnel("tnl_d", "d.example")
		other.WorkspaceID = "wrkspc_2"
		r.write(func(tx *store.Tx) error {
			return errors.Join(putTunnel("tnl_a")(tx), tx.InsertTunnel(gone), putTunnel("tnl_c")(tx), tx.InsertTunnel(other))
		})
		list := func(archived bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*store.Tunnel, error) {
					return tx.Tunnels(api.WorkspaceDefault, archived, win)
				},
				func(t *store.Tunnel) (int64, string) { return t.CreatedAt.UnixMicro(), string(t.ID) })
		}
		r.same("in use", []string{"tnl_c", "tnl_a"}, list(false))
		r.same("all", []string{"tnl_c", "tnl_b", "tnl_a"}, list(true))
		if n := read(r, (*store.Tx).CountTunnels); n != 3 {
			r.t.Errorf("%d tunnels, want 3 of both workspaces", n)
		}
	}},

	{"ASlotHasOneCurrentToken", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(putTunnel("tnl_1")(tx), putTunnel("tnl_2")(tx),
				tx.InsertToken(newToken("ttkn_1", "tnl_1", api.TokenPrimary)),
				tx.InsertToken(newToken("ttkn_2", "tnl_1", api.TokenSecond)),
				tx.InsertToken(newToken("ttkn_3", "tnl_2", api.TokenPrimary)),
				tx.PutSecret(&store.Secret{Owner: "ttkn_1", Field: store.FieldToken}),
				tx.PutSecret(&store.Secret{Owner: "ttkn_3", Field: store.FieldToken}))
		})
		if err := r.fail(func(tx *store.Tx) error { return tx.InsertToken(newToken("ttkn_4", "tnl_1", api.TokenPrimary)) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("a second one in the slot: %v", err)
		}
		// A rotation: the old one is good for an hour, and its text is gone.
		r.write(func(tx *store.Tx) error {
			return errors.Join(tx.EndTokens("tnl_1", api.TokenPrimary, at(time.Hour)),
				tx.InsertToken(newToken("ttkn_4", "tnl_1", api.TokenPrimary)))
		})
		r.same("good", []api.TokenID{"ttkn_1", "ttkn_2", "ttkn_4"}, r.goodTokens("tnl_1"))
		current := read(r, func(tx *store.Tx) (*store.TunnelToken, error) { return tx.CurrentToken("tnl_1", api.TokenPrimary) })
		if current.ID != "ttkn_4" || r.hasSecret("ttkn_1") || !r.hasSecret("ttkn_3") {
			r.t.Errorf("current is %s", current.ID)
		}
		// Another one right after it ends the first now, and does not give it more time.
		r.write(func(tx *store.Tx) error { return tx.EndTokens("tnl_1", api.TokenPrimary, tx.Now) })
		r.write(func(tx *store.Tx) error { return tx.EndTokens("tnl_1", api.TokenPrimary, at(2*time.Hour)) })
		r.same("good", []api.TokenID{"ttkn_2"}, r.goodTokens("tnl_1"))
		r.same("of another tunnel", []api.TokenID{"ttkn_3"}, r.goodTokens("tnl_2"))
	}},

	{"ArchivingEndsTokensAndCertificates", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(putTunnel("tnl_1")(tx), putTunnel("tnl_2")(tx),
				tx.InsertToken(newToken("ttkn_1", "tnl_1", api.TokenPrimary)),
				tx.InsertToken(newToken("ttkn_2", "tnl_1", api.TokenSecond)),
				tx.InsertToken(newToken("ttkn_3", "tnl_2", api.TokenPrimary)),
				tx.InsertCertificate(newCertificate("tcrt_1", "tnl_1", "f1")),
				tx.InsertCertificate(newCertificate("tcrt_2", "tnl_1", "f2")),
				tx.InsertCertificate(newCertificate("tcrt_3", "tnl_2", "f1")),
				tx.PutSecret(&store.Secret{Owner: "ttkn_1", Field: store.FieldToken}),
				tx.PutSecret(&store.Secret{Owner: "ttkn_2", Field: store.FieldToken}))
		})
		var when time.Time
		r.write(func(tx *store.Tx) error {
			tn, err := tx.LockTunnel(api.WorkspaceDefault, "tnl_1")
			if err != nil {
				return err
			}
			when = tx.Now
			tn.ArchivedAt = &when
			return tx.ArchiveTunnel(tn)
		})
		r.same("tokens", []api.TokenID(nil), r.goodTokens("tnl_1"))
		r.same("of another tunnel", []api.TokenID{"ttkn_3"}, r.goodTokens("tnl_2"))
		if r.hasSecret("ttkn_1") || r.hasSecret("ttkn_2") {
			r.t.Error("texts of tokens are still there")
		}
		for _, id := range []api.CertificateID{"tcrt_1", "tcrt_2"} {
			c := read(r, func(tx *store.Tx) (*store.TunnelCertificate, error) { return tx.Certificate("tnl_1", id) })
			r.same(string(id), &when, c.ArchivedAt)
		}
		if live := read(r, func(tx *store.Tx) ([]*store.TunnelCertificate, error) { return tx.LiveCertificates("tnl_2") }); len(live) != 1 {
			r.t.Errorf("%d certificates of the other tunnel", len(live))
		}
	}},

	{"ACertificateIsLiveOnce", func(r *rig) {
		first := newCertificate("tcrt_1", "tnl_1", "f1")
		r.write(func(tx *store.Tx) error {
			return errors.Join(putTunnel("tnl_1")(tx), tx.InsertCertificate(first))
		})
		again := newCertificate("tcrt_2", "tnl_1", "f1")
		if err := r.fail(func(tx *store.Tx) error { return tx.InsertCertificate(again) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("again: %v", err)
		}
		first.ArchivedAt = ptr(start)
		r.write(func(tx *store.Tx) error { return tx.ArchiveCertificate(first) })
		r.write(func(tx *store.Tx) error { return tx.InsertCertificate(again) })
		list := func(archived bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*store.TunnelCertificate, error) {
					return tx.Certificates("tnl_1", archived, win)
				},
				func(c *store.TunnelCertificate) (int64, string) { return c.CreatedAt.UnixMicro(), string(c.ID) })
		}
		r.same("live", []string{"tcrt_2"}, list(false))
		r.same("all", []string{"tcrt_2", "tcrt_1"}, list(true))
	}},
}
