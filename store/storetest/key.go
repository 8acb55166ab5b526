package storetest

import (
	"errors"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newKey(id api.KeyID, hash string, env api.EnvironmentID) *store.Key {
	return &store.Key{
		Key:  api.Key{ID: id, Type: api.KeyEnvironment, Name: string(id), EnvironmentID: env, Hint: "abcd", CreatedAt: start},
		Hash: hash,
	}
}

func (r *rig) keyByHash(hash string) *store.Key {
	r.t.Helper()
	return read(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash(hash) })
}

var keyTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		bare := newKey("envkey_1", "hash 1", "env_1")
		full := &store.Key{
			Key: api.Key{
				ID: "stok_1", Type: api.KeySession, Name: `naïve "' 🧪 $1 ?`, EnvironmentID: "env_1", Hint: "wxyz", CreatedAt: start,
				ExpiresAt: ptr(at(time.Hour)), LastUsedAt: ptr(at(time.Microsecond)), RevokedAt: ptr(at(-time.Hour)),
			},
			Hash: "hash 2", SessionID: "sesn_1", WorkID: "work_1",
		}
		for _, k := range []*store.Key{bare, full} {
			r.write(func(tx *store.Tx) error { return tx.InsertKey(k) })
			r.same("by hash", k, r.keyByHash(k.Hash))
			r.same("by owner", k, read(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyOf(k.Type, "env_1", k.ID) }))
		}
	}},

	{"IdsAndSecretsAreUnique", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.InsertKey(newKey("envkey_1", "hash 1", "env_1")) })
		for _, k := range []*store.Key{newKey("envkey_1", "hash 2", "env_1"), newKey("envkey_2", "hash 1", "env_2")} {
			if err := r.fail(func(tx *store.Tx) error { return tx.InsertKey(k) }); !errors.Is(err, store.ErrDuplicate) {
				r.t.Errorf("%s with %s: %v, want ErrDuplicate", k.ID, k.Hash, err)
			}
		}
	}},

	{"AKeyIsFoundOnlyAmongItsOwnersKeys", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.InsertKey(newKey("envkey_1", "hash 1", "env_1")) })
		for name, find := range map[string]func(*store.Tx) (*store.Key, error){
			"other environment": func(tx *store.Tx) (*store.Key, error) { return tx.KeyOf(api.KeyEnvironment, "env_2", "envkey_1") },
			"other kind":        func(tx *store.Tx) (*store.Key, error) { return tx.KeyOf(api.KeyAPI, "env_1", "envkey_1") },
			"other id":          func(tx *store.Tx) (*store.Key, error) { return tx.KeyOf(api.KeyEnvironment, "env_1", "envkey_2") },
			"other secret":      func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash("hash 2") },
		} {
			if _, err := tryRead(r, find); !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("%s: %v, want ErrNotFound", name, err)
			}
		}
	}},

	{"ListsAndCounts", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			api1 := newKey("apikey_1", "hash 4", "")
			api1.Type = api.KeyAPI
			return errors.Join(tx.InsertKey(newKey("envkey_b", "hash 1", "env_1")), tx.InsertKey(newKey("envkey_a", "hash 2", "env_1")),
				tx.InsertKey(newKey("envkey_c", "hash 3", "env_2")), tx.InsertKey(api1))
		})
		list := walk(r, api.Descending, 1,
			func(tx *store.Tx, win store.Window) ([]*store.Key, error) {
				return tx.Keys(api.KeyEnvironment, "env_1", win)
			},
			func(k *store.Key) (int64, string) { return k.CreatedAt.UnixMicro(), string(k.ID) })
		r.same("keys of env_1", []string{"envkey_b", "envkey_a"}, list)
		for kind, want := range map[api.KeyKind]int64{api.KeyAPI: 1, api.KeyEnvironment: 3, api.KeySession: 0} {
			if n := read(r, func(tx *store.Tx) (int64, error) { return tx.CountKeys(kind) }); n != want {
				r.t.Errorf("%d of kind %s, want %d", n, kind, want)
			}
		}
	}},

	{"UseAndRevocationAreNoted", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.InsertKey(newKey("envkey_1", "hash 1", "env_1")) })
		var used, revoked time.Time
		r.write(func(tx *store.Tx) error { used = tx.Now; return tx.TouchKey("envkey_1") })
		r.write(func(tx *store.Tx) error { revoked = tx.Now; return tx.RevokeKey("envkey_1") })
		k := r.keyByHash("hash 1")
		r.same("last used", &used, k.LastUsedAt)
		r.same("revoked", &revoked, k.RevokedAt)
		if err := r.fail(func(tx *store.Tx) error { return tx.RevokeKey("envkey_2") }); !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("revoking what is not there: %v", err)
		}
		r.write(func(tx *store.Tx) error { return tx.TouchKey("envkey_2") }) // deleted meanwhile: nobody's worry
	}},

	{"TokensLiveAndDieWithTheirWorkItem", func(r *rig) {
		token := func(id, hash, work string, expires time.Time) *store.Key {
			k := newKey(api.KeyID(id), hash, "env_1")
			k.Type, k.WorkID, k.ExpiresAt = api.KeySession, api.WorkID(work), &expires
			return k
		}
		r.write(func(tx *store.Tx) error {
			return errors.Join(
				tx.InsertKey(token("stok_1", "hash 1", "work_1", at(time.Minute))),
				tx.InsertKey(token("stok_2", "hash 2", "work_2", at(time.Minute))),
				tx.InsertKey(token("stok_3", "hash 3", "work_3", at(time.Minute))),
				tx.InsertKey(newKey("envkey_1", "hash 4", "env_1")))
		})
		r.write(func(tx *store.Tx) error { return tx.ExtendWorkKeys("work_1", at(time.Hour)) })
		r.same("extended", ptr(at(time.Hour)), r.keyByHash("hash 1").ExpiresAt)
		r.same("left alone", ptr(at(time.Minute)), r.keyByHash("hash 2").ExpiresAt)

		r.write(func(tx *store.Tx) error { return tx.DropWorkKeys("work_2") })
		for hash, kept := range map[string]bool{"hash 1": true, "hash 2": false, "hash 3": true, "hash 4": true} {
			_, err := tryRead(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash(hash) })
			if kept != (err == nil) {
				r.t.Errorf("%s: %v; kept should be %v", hash, err, kept)
			}
		}
	}},
}
