package storetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

var vaultTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		v := &api.Vault{ID: "vlt_1", Type: "vault", DisplayName: text, Metadata: api.Metadata{text: text}, CreatedAt: start, UpdatedAt: start}
		c := newCredential("vcrd_1", "vlt_1", "https://h")
		c.DisplayName, c.Version = ptr(text), 3
		for range 2 { // written, and written again
			r.write(func(tx *store.Tx) error { return errors.Join(tx.PutVault(v), tx.PutCredential(c)) })
			r.same("vault", v, read(r, func(tx *store.Tx) (*api.Vault, error) { return tx.Vault("vlt_1") }))
			r.same("credential", c, read(r, func(tx *store.Tx) (*store.Credential, error) { return tx.Credential("vlt_1", "vcrd_1") }))
			r.write(func(tx *store.Tx) error {
				locked, err := tx.LockVault("vlt_1")
				r.same("locked vault", v, locked)
				pinned, err2 := tx.PinVault("vlt_1")
				r.same("pinned vault", v, pinned)
				cred, err3 := tx.LockCredential("vlt_1", "vcrd_1")
				r.same("locked credential", c, cred)
				return errors.Join(err, err2, err3)
			})
			v.DisplayName, v.ArchivedAt = "changed", ptr(start)
			c.ArchivedAt, c.Version, c.RefreshOwner, c.RefreshUntil = ptr(start), 4, "me", at(time.Minute)
			c.RefreshedAt, c.RefusedAt, c.RefusedWhy = ptr(at(time.Second)), ptr(at(time.Hour)), "because"
		}
		for name, err := range map[string]error{
			"another vault's": r.fail(func(tx *store.Tx) error { _, err := tx.Credential("vlt_2", "vcrd_1"); return err }),
			"no vault":        r.fail(func(tx *store.Tx) error { _, err := tx.LockVault("vlt_2"); return err }),
		} {
			if !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("%s: %v", name, err)
			}
		}
	}},

	{"ATargetIsOnesAloneUntilThatIsArchived", func(r *rig) {
		first, second := newCredential("vcrd_1", "vlt_1", "https://h"), newCredential("vcrd_2", "vlt_1", "https://h")
		other := newCredential("vcrd_3", "vlt_2", "https://h")
		r.write(func(tx *store.Tx) error {
			return errors.Join(putVault("vlt_1")(tx), putVault("vlt_2")(tx), tx.PutCredential(first), tx.PutCredential(other))
		})
		if err := r.fail(func(tx *store.Tx) error { return tx.PutCredential(second) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("a second one: %v", err)
		}
		find := func() api.CredentialID {
			c, err := tryRead(r, func(tx *store.Tx) (*store.Credential, error) { return tx.CredentialFor("vlt_1", "url https://h") })
			if errors.Is(err, store.ErrNotFound) {
				return ""
			}
			if err != nil {
				r.t.Fatal(err)
			}
			return c.ID
		}
		r.same("found", api.CredentialID("vcrd_1"), find())
		first.ArchivedAt = ptr(start)
		r.write(func(tx *store.Tx) error { return tx.PutCredential(first) })
		r.same("found when it is archived", api.CredentialID(""), find())
		r.write(func(tx *store.Tx) error { return tx.PutCredential(second) })
		r.same("found at last", api.CredentialID("vcrd_2"), find())
	}},

	{"ListsLeaveOutArchivedOnesUnlessAsked", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			err := putVault("vlt_a")(tx)
			for i := range 5 {
				c := newCredential(api.CredentialID(fmt.Sprintf("vcrd_%d", i)), "vlt_a", fmt.Sprintf("https://h/%d", i))
				if i == 4 {
					c.Auth = api.CredentialAuth{Type: api.AuthEnvironmentVariable, SecretName: "A", Networking: &api.CredentialNetworking{Type: "unrestricted"}}
				}
				if i == 2 {
					c.ArchivedAt = ptr(start)
				}
				err = errors.Join(err, tx.PutCredential(c))
			}
			archived := &api.Vault{ID: "vlt_b", CreatedAt: start, ArchivedAt: ptr(start)}
			return errors.Join(err, tx.PutVault(archived), putVault("vlt_c")(tx))
		})
		vaults := func(archived bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*api.Vault, error) { return tx.Vaults(archived, win) },
				func(v *api.Vault) (int64, string) { return v.CreatedAt.UnixMicro(), string(v.ID) })
		}
		r.same("vaults in use", []string{"vlt_c", "vlt_a"}, vaults(false))
		r.same("all vaults", []string{"vlt_c", "vlt_b", "vlt_a"}, vaults(true))
		credentials := func(archived bool) []string {
			return walk(r, api.Descending, 2,
				func(tx *store.Tx, win store.Window) ([]*store.Credential, error) {
					return tx.Credentials("vlt_a", archived, win)
				},
				func(c *store.Credential) (int64, string) { return c.CreatedAt.UnixMicro(), string(c.ID) })
		}
		r.same("credentials in use", []string{"vcrd_4", "vcrd_3", "vcrd_1", "vcrd_0"}, credentials(false))
		r.same("all credentials", []string{"vcrd_4", "vcrd_3", "vcrd_2", "vcrd_1", "vcrd_0"}, credentials(true))
		live := func(kind string) (ids []api.CredentialID) {
			for _, c := range read(r, func(tx *store.Tx) ([]*store.Credential, error) { return tx.LiveCredentials("vlt_a", kind) }) {
				ids = append(ids, c.ID)
			}
			return ids
		}
		r.same("of one kind", []api.CredentialID{"vcrd_4"}, live(api.AuthEnvironmentVariable))
		r.same("of all kinds", []api.CredentialID{"vcrd_0", "vcrd_1", "vcrd_3", "vcrd_4"}, live(""))
		r.same("counted", int64(4), read(r, func(tx *store.Tx) (int64, error) { return tx.CountCredentials("vlt_a") }))
	}},

	{"DeletingRemovesSecretsToo", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(putVault("vlt_1")(tx), putVault("vlt_2")(tx),
				tx.PutCredential(newCredential("vcrd_1", "vlt_1", "https://h/1")), tx.PutCredential(newCredential("vcrd_2", "vlt_1", "https://h/2")),
				tx.PutCredential(newCredential("vcrd_3", "vlt_2", "https://h/3")),
				putSecret("vcrd_1", "a", "k")(tx), putSecret("vcrd_2", "a", "k")(tx), putSecret("vcrd_3", "a", "k")(tx), putSecret("ttkn_1", "a", "k")(tx))
		})
		left := func() (owners []string) {
			for _, s := range read(r, func(tx *store.Tx) ([]*store.Secret, error) { return tx.SecretsNotUnder("", "", "", 10) }) {
				owners = append(owners, s.Owner)
			}
			return owners
		}
		r.write(func(tx *store.Tx) error { return tx.DeleteCredential("vcrd_2") })
		r.same("without a credential", []string{"ttkn_1", "vcrd_1", "vcrd_3"}, left())
		r.write(func(tx *store.Tx) error { return tx.DeleteVault("vlt_1") })
		r.same("without a vault", []string{"ttkn_1", "vcrd_3"}, left())
		for _, err := range []error{
			r.fail(func(tx *store.Tx) error { return tx.DeleteVault("vlt_1") }),
			r.fail(func(tx *store.Tx) error { return tx.DeleteCredential("vcrd_1") }),
		} {
			if !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("deleting again: %v", err)
			}
		}
	}},

	{"SecretsMoveFromKeyToKey", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(putSecret("b", "1", "old")(tx), putSecret("a", "1", "old")(tx), putSecret("a", "2", "old")(tx), putSecret("c", "1", "new")(tx))
		})
		var order []string
		owner, field := "", ""
		for range 10 {
			batch := read(r, func(tx *store.Tx) ([]*store.Secret, error) { return tx.SecretsNotUnder("new", owner, field, 1) })
			if len(batch) == 0 {
				break
			}
			owner, field = batch[0].Owner, batch[0].Field
			order = append(order, owner+field)
		}
		r.same("to be moved", []string{"a1", "a2", "b1"}, order)

		was := read(r, func(tx *store.Tx) (*store.Secret, error) { return tx.Secret("a", "1") })
		next := &store.Secret{Owner: "a", Field: "1", KeyID: "new", Sealed: "moved"}
		for i, want := range []bool{true, false} { // it is another by the second time
			r.write(func(tx *store.Tx) error {
				done, err := tx.ResealSecret(was, next)
				r.same(fmt.Sprint("moved ", i), want, done)
				return err
			})
		}
		r.same("secrets", []*store.Secret{next, {Owner: "a", Field: "2", KeyID: "old", Sealed: "sealed"}},
			read(r, func(tx *store.Tx) ([]*store.Secret, error) { return tx.Secrets("a") }))
		r.same("keys", map[string]int64{"old": 2, "new": 2}, read(r, (*store.Tx).SecretKeys))
		r.write(func(tx *store.Tx) error {
			return errors.Join(tx.DropSecret("a", "2"), tx.DropSecret("a", "none"), tx.DropSecrets("b"), tx.DropSecrets("none"))
		})
		r.same("keys at last", map[string]int64{"new": 2}, read(r, (*store.Tx).SecretKeys))
	}},

	{"WhatASessionWasToldOfIsFound", func(r *rig) {
		s := r.session("sesn_1")
		r.write(func(tx *store.Tx) error {
			_, err := tx.Append(s, []api.Draft{{ID: "sevt_1", Body: &api.SessionError{Error: api.TurnError{
				Type: api.ErrorCredentialHost, Message: text, CredentialID: "vcrd_1", VaultID: "vlt_1", RetryStatus: api.RetryStatus{Type: api.RetryRetrying},
			}}}})
			return err
		})
		for id, want := range map[api.CredentialID]bool{"vcrd_1": true, "vcrd_2": false, "vcrd_": false} {
			r.same(string(id), want, read(r, func(tx *store.Tx) (bool, error) { return tx.ToldOf("sesn_1", id) }))
		}
		r.same("in another session", false, read(r, func(tx *store.Tx) (bool, error) { return tx.ToldOf("sesn_2", "vcrd_1") }))
	}},
}

func putVault(id api.VaultID) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		return tx.PutVault(&api.Vault{ID: id, Type: "vault", DisplayName: string(id), CreatedAt: start, UpdatedAt: start})
	}
}

func putSecret(owner, field, key string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		return tx.PutSecret(&store.Secret{Owner: owner, Field: field, KeyID: key, Sealed: "sealed"})
	}
}

// newCredential is one of a vault for a server. Those of one test differ in their id.
func newCredential(id api.CredentialID, vault api.VaultID, url string) *store.Credential {
	return &store.Credential{Version: 1, Credential: api.Credential{
		ID: id, Type: "vault_credential", VaultID: vault, CreatedAt: start, UpdatedAt: start, Metadata: api.Metadata{},
		Auth: api.CredentialAuth{Type: api.AuthStaticBearer, MCPServerURL: url},
	}}
}
