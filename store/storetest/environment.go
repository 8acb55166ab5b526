package storetest

import (
	"errors"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

var environmentTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		e := &api.Environment{
			ID: "env_1", Type: "environment", Name: text, Description: ptr(text), Metadata: api.Metadata{text: text},
			Config: api.EnvironmentConfig{Type: api.EnvSelfHosted}, CreatedAt: start, UpdatedAt: start,
		}
		for range 2 { // written, and written again
			r.write(func(tx *store.Tx) error { return tx.PutEnvironment(e) })
			r.same("environment", e, read(r, func(tx *store.Tx) (*api.Environment, error) { return tx.Environment("env_1") }))
			r.write(func(tx *store.Tx) error {
				got, err := tx.LockEnvironment("env_1")
				r.same("locked", e, got)
				return err
			})
			e.Name, e.ArchivedAt = "changed", ptr(start)
		}
	}},

	{"ListsLeaveOutArchivedOnesUnlessAsked", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			archived := &api.Environment{ID: "env_b", CreatedAt: start, ArchivedAt: ptr(start)}
			return errors.Join(putEnv("env_c")(tx), tx.PutEnvironment(archived), putEnv("env_a")(tx))
		})
		list := func(archived bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*api.Environment, error) {
					return tx.Environments(archived, win)
				},
				func(e *api.Environment) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) })
		}
		r.same("in use", []string{"env_c", "env_a"}, list(false))
		r.same("all", []string{"env_c", "env_b", "env_a"}, list(true))
	}},

	{"DeletingOneRemovesItsKeysAndNothingElse", func(r *rig) {
		r.write(func(tx *store.Tx) error {
			return errors.Join(putEnv("env_1")(tx), putEnv("env_2")(tx),
				tx.InsertKey(newKey("envkey_1", "hash 1", "env_1")), tx.InsertKey(newKey("envkey_2", "hash 2", "env_2")))
		})
		r.write(func(tx *store.Tx) error { return tx.DeleteEnvironment("env_1") })
		if r.hasEnv("env_1") || !r.hasEnv("env_2") {
			r.t.Error("env_1 should be gone and env_2 stay")
		}
		if _, err := tryRead(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash("hash 1") }); !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("its key: %v", err)
		}
		read(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash("hash 2") })
		err := r.fail(func(tx *store.Tx) error { return tx.DeleteEnvironment("env_1") })
		if !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("deleting it again: %v", err)
		}
	}},

	{"OneWithSessionsCannotBeDeleted", func(r *rig) {
		s := r.session("sesn_1")
		env := s.EnvironmentID
		count := func() int64 {
			return read(r, func(tx *store.Tx) (int64, error) { return tx.SessionsIn(env) })
		}
		if n := count(); n != 1 {
			r.t.Errorf("%d sessions, want 1", n)
		}
		r.fail(func(tx *store.Tx) error { return tx.DeleteEnvironment(env) })
		r.fail(func(tx *store.Tx) error { return tx.InsertSession(newSession("sesn_2", "env_nowhere")) })
		r.write(func(tx *store.Tx) error { return tx.DeleteSession(s.ID) })
		if n := count(); n != 0 {
			r.t.Errorf("%d sessions, want 0", n)
		}
		r.write(func(tx *store.Tx) error { return tx.DeleteEnvironment(env) })
	}},

	{"CloudEnvironmentsWithWorkAreFound", func(r *rig) {
		cloud := api.EnvironmentConfig{Type: api.EnvCloud, Networking: &api.Networking{Type: api.NetworkUnrestricted}, Packages: &api.Packages{}}
		var items []*store.Work
		for id, config := range map[api.EnvironmentID]api.EnvironmentConfig{
			"env_a": cloud, "env_b": cloud, "env_c": {Type: api.EnvSelfHosted}, "env_idle": cloud,
		} {
			r.write(func(tx *store.Tx) error {
				e := &api.Environment{ID: id, Name: string(id), Config: config, CreatedAt: start, UpdatedAt: start}
				if id == "env_idle" {
					return tx.PutEnvironment(e)
				}
				s := newSession(api.SessionID("sesn_"+string(id)), id)
				w := newWork("work_"+string(id), s)
				items = append(items, w)
				return errors.Join(tx.PutEnvironment(e), tx.InsertSession(s), tx.InsertWork(w))
			})
		}
		found := func() (ids []api.EnvironmentID) {
			for _, e := range read(r, func(tx *store.Tx) ([]*api.Environment, error) { return tx.CloudEnvironments(10) }) {
				ids = append(ids, e.ID)
			}
			return ids
		}
		r.same("with work", []api.EnvironmentID{"env_a", "env_b"}, found())
		for _, w := range items {
			if w.EnvironmentID == "env_a" {
				w.State = api.WorkStopped
				r.update(w)
			}
		}
		r.same("after one was stopped", []api.EnvironmentID{"env_b"}, found())
	}},
}
