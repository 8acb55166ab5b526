package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newAccount(id api.ServiceAccountID, name string) *api.ServiceAccount {
	return &api.ServiceAccount{ID: id, Name: name, Recorded: api.Recorded{CreatedAt: start, UpdatedAt: start}}
}

func newIssuer(id api.IssuerID, name string) *api.FederationIssuer {
	return &api.FederationIssuer{ID: id, Name: name, JWKS: api.JWKS{Type: api.JWKSDiscovery}, Recorded: api.Recorded{CreatedAt: start, UpdatedAt: start}}
}

func newRule(id api.RuleID, name string, issuer api.IssuerID, account api.ServiceAccountID) *api.FederationRule {
	return &api.FederationRule{
		ID: id, Name: name, IssuerID: issuer, Target: api.FederationTarget{Type: "service_account", ID: account},
		Recorded: api.Recorded{CreatedAt: start, UpdatedAt: start},
	}
}

var federationTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		a := newAccount("svac_1", "deploy")
		a.Description = text
		i := newIssuer("fdis_1", "cluster")
		i.JWKS = api.JWKS{Type: api.JWKSInline, Keys: []json.RawMessage{json.RawMessage(`{"kty":"EC"}`)}}
		i.CheckJTI, i.MaxLifetime = true, 3600
		rule := newRule("fdrl_1", "pods", "fdis_1", "svac_1")
		rule.Match = api.FederationMatch{Audience: ptr(text), SubjectPrefix: ptr("a*"), Claims: map[string]string{text: text}}
		rule.WorkspaceIDs = []api.WorkspaceID{api.WorkspaceDefault}
		for range 2 { // written, and written again
			r.write(func(tx *store.Tx) error {
				return errors.Join(tx.PutServiceAccount(a), tx.PutIssuer(i), tx.PutRule(rule))
			})
			r.same("account", a, read(r, func(tx *store.Tx) (*api.ServiceAccount, error) { return tx.ServiceAccount("svac_1") }))
			r.same("issuer", i, read(r, func(tx *store.Tx) (*api.FederationIssuer, error) { return tx.Issuer("fdis_1") }))
			r.same("rule", rule, read(r, func(tx *store.Tx) (*api.FederationRule, error) { return tx.Rule("fdrl_1") }))
			a.Name, i.Name, rule.Name = "x", "y", "z"
		}
	}},

	{"ANameIsUniqueUntilItIsArchived", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(tx.PutServiceAccount(newAccount("svac_1", "a")), tx.PutIssuer(newIssuer("fdis_1", "a")),
				tx.PutRule(newRule("fdrl_1", "a", "fdis_1", "svac_1")))
		})
		for what, put := range map[string]func(*store.Tx) error{
			"account": func(tx *store.Tx) error { return tx.PutServiceAccount(newAccount("svac_2", "a")) },
			"issuer":  func(tx *store.Tx) error { return tx.PutIssuer(newIssuer("fdis_2", "a")) },
			"rule":    func(tx *store.Tx) error { return tx.PutRule(newRule("fdrl_2", "a", "fdis_1", "svac_1")) },
		} {
			if err := r.fail(put); !errors.Is(err, store.ErrDuplicate) {
				r.t.Errorf("another %s of the same name: %v", what, err)
			}
		}
		gone := newRule("fdrl_1", "a", "fdis_1", "svac_1")
		gone.ArchivedAt = ptr(start)
		r.write(func(tx *store.Tx) error { return tx.PutRule(gone) })
		r.write(func(tx *store.Tx) error { return tx.PutRule(newRule("fdrl_2", "a", "fdis_1", "svac_1")) })
		list := func(archived bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*api.FederationRule, error) { return tx.Rules(archived, win) },
				func(v *api.FederationRule) (int64, string) { return v.CreatedAt.UnixMicro(), string(v.ID) })
		}
		r.same("in use", []string{"fdrl_2"}, list(false))
		r.same("all", []string{"fdrl_2", "fdrl_1"}, list(true))
		for _, ends := range []struct {
			issuer  api.IssuerID
			account api.ServiceAccountID
			want    int
		}{{"fdis_1", "", 1}, {"", "svac_1", 1}, {"fdis_2", "", 0}, {"", "", 1}} {
			live := read(r, func(tx *store.Tx) ([]*api.FederationRule, error) { return tx.LiveRules(ends.issuer, ends.account) })
			if len(live) != ends.want {
				r.t.Errorf("%d rules of %+v", len(live), ends)
			}
		}
	}},

	{"AnAssertionIsSeenOnce", func(r *rig) {
		mark := func(issuer api.IssuerID, hash string, until time.Time) func(*store.Tx) error {
			return func(tx *store.Tx) error { return tx.MarkSeen(issuer, hash, until) }
		}
		r.write(mark("fdis_1", "a", at(time.Hour)))
		r.write(mark("fdis_2", "a", at(time.Hour)))
		if err := r.fail(mark("fdis_1", "a", at(time.Hour))); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("again: %v", err)
		}
		r.write(mark("fdis_1", "b", at(-time.Hour)))
		r.write(mark("fdis_1", "b", at(-time.Hour))) // it had expired and was forgotten
	}},

	{"AccessTokensGoWithTheirRuleOrTheirTime", func(r *rig) {
		token := func(id api.KeyID, rule api.RuleID, expires time.Time) *store.Key {
			return &store.Key{
				Key:  api.Key{ID: id, Type: api.KeyAccess, CreatedAt: start, ExpiresAt: &expires, Scopes: []api.KeyScope{api.ScopeWorkspace, api.ScopeTunnels}},
				Hash: string(id), RuleID: rule, AccountID: "svac_1",
			}
		}
		one := token("oatk_1", "fdrl_1", at(time.Hour))
		r.write(func(tx *store.Tx) error {
			return errors.Join(tx.InsertKey(one), tx.InsertKey(token("oatk_2", "fdrl_2", at(time.Hour))),
				tx.InsertKey(token("oatk_3", "fdrl_1", at(-time.Hour))), tx.InsertKey(newKey("envkey_1", "hash", "env_1")))
		})
		r.same("by hash", one, r.keyByHash("oatk_1"))
		left := func() (ids []string) {
			for _, hash := range []string{"oatk_1", "oatk_2", "oatk_3", "hash"} {
				if _, err := tryRead(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash(hash) }); err == nil {
					ids = append(ids, hash)
				}
			}
			return ids
		}
		r.write((*store.Tx).DropExpiredAccessTokens)
		r.same("in time", []string{"oatk_1", "oatk_2", "hash"}, left())
		if n := read(r, func(tx *store.Tx) (int64, error) { return tx.CountAccessTokens("fdrl_1") }); n != 1 {
			r.t.Errorf("%d tokens of the rule", n)
		}
		r.write(func(tx *store.Tx) error {
			gone, err := tx.DropAccessTokens("fdrl_1")
			r.same("dropped", []api.KeyID{"oatk_1"}, gone)
			return err
		})
		r.same("of the other rule", []string{"oatk_2", "hash"}, left())
	}},

	{"TheNewestExchangesOfEachRuleAreRemembered", func(r *rig) {
		const many = 510
		for i := range many {
			r.write(func(tx *store.Tx) error {
				return tx.InsertExchange(&api.FederationExchange{ID: api.ExchangeID(fmt.Sprintf("fdex_%03d", i)), RuleID: "fdrl_1", CreatedAt: tx.Now, Subject: text})
			})
		}
		r.write(func(tx *store.Tx) error {
			return tx.InsertExchange(&api.FederationExchange{ID: "fdex_x", RuleID: "fdrl_2", CreatedAt: start})
		})
		list := func(rule api.RuleID) []string {
			return walk(r, api.Descending, 100,
				func(tx *store.Tx, win store.Window) ([]*api.FederationExchange, error) {
					return tx.Exchanges(rule, win)
				},
				func(e *api.FederationExchange) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) })
		}
		if got := list("fdrl_1"); len(got) != 500 || got[0] != "fdex_509" || got[499] != "fdex_010" {
			r.t.Errorf("%d of the rule, %v", len(got), got[:3])
		}
		if got := list(""); len(got) != 501 {
			r.t.Errorf("%d in all", len(got))
		}
	}},
}
