package storetest

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newAgent(id api.AgentID, version int64, created time.Time) *api.Agent {
	return &api.Agent{
		AgentSpec: api.AgentSpec{
			Name: text, System: ptr(text), Model: api.ModelConfig{ID: "m", Speed: "standard"}, Multiagent: json.RawMessage("null"),
		},
		ID: id, Type: "agent", Version: version, Metadata: api.Metadata{text: text},
		CreatedAt: created, UpdatedAt: created,
	}
}

var agentTests = []test{
	{"TheNewestVersionAndEveryOlderOneAreKept", func(r *rig) {
		v1, v2 := newAgent("agent_1", 1, start), newAgent("agent_1", 2, start)
		v2.Name, v2.ArchivedAt = "second", ptr(at(time.Hour))
		other := newAgent("agent_2", 1, start)
		for _, a := range []*api.Agent{v1, other, v2} {
			r.write(func(tx *store.Tx) error { return tx.PutAgent(a) })
		}
		r.same("agent", v2, read(r, func(tx *store.Tx) (*api.Agent, error) { return tx.Agent("agent_1") }))
		r.same("version 1", v1, read(r, func(tx *store.Tx) (*api.Agent, error) { return tx.AgentVersion("agent_1", 1) }))
		r.same("version 2", v2, read(r, func(tx *store.Tx) (*api.Agent, error) { return tx.AgentVersion("agent_1", 2) }))
		r.write(func(tx *store.Tx) error {
			got, err := tx.LockAgent("agent_1")
			r.same("locked", v2, got)
			return err
		})
		versions := walk(r, api.Descending, 1,
			func(tx *store.Tx, win store.Window) ([]*api.Agent, error) { return tx.AgentVersions("agent_1", win) },
			func(a *api.Agent) (int64, string) { return a.Version, string(a.ID) })
		r.same("versions", []string{"agent_1", "agent_1"}, versions)

		// Archiving changes the newest version in place.
		v2.ArchivedAt = nil
		r.write(func(tx *store.Tx) error { return tx.PutAgent(v2) })
		r.same("version 2, changed", v2, read(r, func(tx *store.Tx) (*api.Agent, error) { return tx.AgentVersion("agent_1", 2) }))
	}},

	{"WhatIsNotThereIsErrNotFound", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.PutAgent(newAgent("agent_1", 1, start)) })
		for name, get := range map[string]func(*store.Tx) (*api.Agent, error){
			"agent":   func(tx *store.Tx) (*api.Agent, error) { return tx.Agent("agent_2") },
			"locked":  func(tx *store.Tx) (*api.Agent, error) { return tx.LockAgent("agent_2") },
			"version": func(tx *store.Tx) (*api.Agent, error) { return tx.AgentVersion("agent_1", 2) },
		} {
			err := r.fail(func(tx *store.Tx) error {
				_, err := get(tx)
				return err
			})
			if !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("%s: %v", name, err)
			}
		}
	}},

	{"ListsAreOrderedFilteredAndPagedWithoutLossOrRepeat", func(r *rig) {
		// Several were made at the same moment, and one is archived.
		made := []struct {
			id      api.AgentID
			created time.Duration
		}{{"agent_c", 0}, {"agent_a", 0}, {"agent_b", 0}, {"agent_e", 2 * time.Microsecond}, {"agent_d", time.Microsecond}, {"agent_z", time.Hour}}
		r.write(func(tx *store.Tx) error {
			for _, m := range made {
				a := newAgent(m.id, 1, at(m.created))
				if m.id == "agent_z" {
					a.ArchivedAt = ptr(start)
				}
				if err := tx.PutAgent(a); err != nil {
					return err
				}
			}
			return nil
		})
		list := func(created api.TimeRange, archived bool) func(*store.Tx, store.Window) ([]*api.Agent, error) {
			return func(tx *store.Tx, win store.Window) ([]*api.Agent, error) { return tx.Agents(created, archived, win) }
		}
		key := func(a *api.Agent) (int64, string) { return a.CreatedAt.UnixMicro(), string(a.ID) }
		up := []string{"agent_a", "agent_b", "agent_c", "agent_d", "agent_e"}
		down := []string{"agent_e", "agent_d", "agent_c", "agent_b", "agent_a"}
		for limit := 1; limit <= 7; limit++ {
			r.same("ascending", up, walk(r, api.Ascending, limit, list(api.TimeRange{}, false), key))
			r.same("descending", down, walk(r, api.Descending, limit, list(api.TimeRange{}, false), key))
		}
		r.same("with archived", append(up, "agent_z"), walk(r, api.Ascending, 2, list(api.TimeRange{}, true), key))

		d, e := at(time.Microsecond), at(2*time.Microsecond)
		for name, tc := range map[string]struct {
			created api.TimeRange
			want    []string
		}{
			"gt":            {api.TimeRange{GT: &d}, []string{"agent_e"}},
			"gte":           {api.TimeRange{GTE: &d}, []string{"agent_d", "agent_e"}},
			"lt":            {api.TimeRange{LT: &d}, []string{"agent_a", "agent_b", "agent_c"}},
			"lte":           {api.TimeRange{LTE: &d}, []string{"agent_a", "agent_b", "agent_c", "agent_d"}},
			"between":       {api.TimeRange{GTE: &d, LT: &e}, []string{"agent_d"}},
			"empty between": {api.TimeRange{GT: &d, LT: &e}, nil},
		} {
			r.same(name, tc.want, walk(r, api.Ascending, 2, list(tc.created, false), key))
		}
	}},
}
