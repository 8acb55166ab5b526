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
}
