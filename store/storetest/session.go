package storetest

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func (r *rig) getSession(id api.SessionID) *store.Session {
	r.t.Helper()
	return read(r, func(tx *store.Tx) (*store.Session, error) { return tx.Session(id) })
}

var sessionTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		r.environment("env_1")
		bare := newSession("sesn_1", "env_1")
		full := newSession("sesn_2", "env_1")
		full.Title, full.Metadata = ptr(text), api.Metadata{text: text}
		full.Resources, full.VaultIDs = []json.RawMessage{}, []api.VaultID{}
		full.Budget = &api.Budget{Type: "limit", MaxListCost: api.Money{Amount: "100", Currency: "USD"}}
		full.ArchivedAt = ptr(at(time.Hour))
		full.Stop = &api.StopReason{Type: api.StopRequiresAction, EventIDs: []api.EventID{"sevt_1", "sevt_2"}}
		full.Tokens = api.Tokens{Input: 1, Output: 2, CacheRead: 3, CacheCreate5m: 4, CacheCreate1h: 1 << 60}
		full.Cost, full.Unpriced = 1<<62+1, true
		full.Active, full.RunningSince = 90*time.Minute+time.Microsecond, ptr(at(time.Second))
		full.TurnEpoch, full.TurnOwner, full.TurnUntil = 1<<40, text[:5], at(time.Minute)
		full.WakeAt = ptr(at(-time.Minute))
		for _, s := range []*store.Session{bare, full} {
			r.write(func(tx *store.Tx) error { return tx.InsertSession(s) })
			r.same("inserted", s, r.getSession(s.ID))
			r.write(func(tx *store.Tx) error {
				got, err := tx.LockSession(s.ID)
				r.same("locked", s, got)
				return err
			})
		}
		// Everything but identity and creation can change, both ways.
		wasBare := *bare
		*bare, *full = *full, *bare
		bare.ID, bare.ThreadID, full.ID, full.ThreadID = "sesn_1", wasBare.ThreadID, "sesn_2", bare.ThreadID
		for _, s := range []*store.Session{bare, full} {
			s.Status, s.UpdatedAt, s.LastSeq = api.StatusRunning, at(time.Hour), 7
			r.write(func(tx *store.Tx) error { return tx.UpdateSession(s) })
			r.same("updated", s, r.getSession(s.ID))
		}
	}},

	{"WhatIsNotThereIsErrNotFoundAndWhatIsThereErrDuplicate", func(r *rig) {
		s := r.session("sesn_1")
		for name, fn := range map[string]func(*store.Tx) error{
			"read":   func(tx *store.Tx) error { _, err := tx.Session("sesn_2"); return err },
			"lock":   func(tx *store.Tx) error { _, err := tx.LockSession("sesn_2"); return err },
			"update": func(tx *store.Tx) error { return tx.UpdateSession(newSession("sesn_2", s.EnvironmentID)) },
			"delete": func(tx *store.Tx) error { return tx.DeleteSession("sesn_2") },
		} {
			if err := r.fail(fn); !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("%s: %v, want ErrNotFound", name, err)
			}
		}
		if err := r.fail(func(tx *store.Tx) error { return tx.InsertSession(s) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("insert: %v, want ErrDuplicate", err)
		}
	}},

	{"DeletingOneRemovesItsEventsWorkAndTokens", func(r *rig) {
		s, other := r.session("sesn_1"), r.session("sesn_2")
		for _, s := range []*store.Session{s, other} {
			r.appendTo(s.ID, &api.UserMessage{})
			r.write(func(tx *store.Tx) error {
				k := newKey(api.KeyID("stok_"+s.ID), string(s.ID), s.EnvironmentID)
				k.SessionID = s.ID
				return errors.Join(tx.InsertWork(newWork("work_"+string(s.ID), s)), tx.InsertKey(k))
			})
		}
		r.write(func(tx *store.Tx) error { return tx.DeleteSession(s.ID) })
		r.same("events left", 0, len(read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.Entries(s.ID, 0) })))
		r.same("events of the other", 1, len(read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.Entries(other.ID, 0) })))
		for _, tc := range []struct {
			s    *store.Session
			gone bool
		}{{s, true}, {other, false}} {
			_, work := tryRead(r, func(tx *store.Tx) (*store.Work, error) {
				return tx.Work(tc.s.EnvironmentID, api.WorkID("work_"+tc.s.ID))
			})
			_, key := tryRead(r, func(tx *store.Tx) (*store.Key, error) { return tx.KeyByHash(string(tc.s.ID)) })
			if gone := errors.Is(work, store.ErrNotFound) && errors.Is(key, store.ErrNotFound); gone != tc.gone {
				r.t.Errorf("%s: work %v, token %v; gone should be %v", tc.s.ID, work, key, tc.gone)
			}
		}
	}},

	{"ListsAreOrderedFilteredAndPagedWithoutLossOrRepeat", func(r *rig) {
		r.environment("env_1")
		r.write(func(tx *store.Tx) error {
			for i, s := range []struct {
				id       api.SessionID
				agent    api.AgentID
				version  int64
				status   api.SessionStatus
				archived bool
			}{
				{"sesn_b", "agent_1", 1, api.StatusIdle, false},
				{"sesn_a", "agent_1", 2, api.StatusRunning, false},
				{"sesn_c", "agent_2", 1, api.StatusRescheduling, false},
				{"sesn_d", "agent_1", 1, api.StatusTerminated, true},
			} {
				row := newSession(s.id, "env_1")
				row.Agent.ID, row.Agent.Version, row.Status = s.agent, s.version, s.status
				if i > 1 {
					row.CreatedAt = at(time.Duration(i) * time.Microsecond)
				}
				if s.archived {
					row.ArchivedAt = ptr(start)
				}
				if err := tx.InsertSession(row); err != nil {
					return err
				}
			}
			return nil
		})
		for name, tc := range map[string]struct {
			filter api.SessionFilter
			want   []string
		}{
			"not archived": {api.SessionFilter{}, []string{"sesn_a", "sesn_b", "sesn_c"}},
			"all":          {api.SessionFilter{IncludeArchived: true}, []string{"sesn_a", "sesn_b", "sesn_c", "sesn_d"}},
			"of an agent":  {api.SessionFilter{AgentID: "agent_1"}, []string{"sesn_a", "sesn_b"}},
			"of a version": {api.SessionFilter{AgentID: "agent_1", AgentVersion: 1, IncludeArchived: true}, []string{"sesn_b", "sesn_d"}},
			"two statuses": {api.SessionFilter{Statuses: []api.SessionStatus{api.StatusIdle, api.StatusRescheduling}}, []string{"sesn_b", "sesn_c"}},
			"created":      {api.SessionFilter{Created: api.TimeRange{GT: ptr(start)}, IncludeArchived: true}, []string{"sesn_c", "sesn_d"}},
		} {
			list := func(tx *store.Tx, win store.Window) ([]*store.Session, error) { return tx.Sessions(tc.filter, win) }
			key := func(s *store.Session) (int64, string) { return s.CreatedAt.UnixMicro(), string(s.ID) }
			for limit := 1; limit <= 3; limit++ {
				r.same(name, tc.want, walk(r, api.Ascending, limit, list, key))
				down := walk(r, api.Descending, limit, list, key)
				if len(down) != len(tc.want) || down[0] != tc.want[len(tc.want)-1] {
					r.t.Errorf("%s, descending: %v", name, down)
				}
			}
		}
	}},

	{"DueTurnsComeEarliestFirstAndNotBeforeALeaseEnds", func(r *rig) {
		r.environment("env_1")
		r.write(func(tx *store.Tx) error {
			for _, s := range []struct {
				id          api.SessionID
				wake, lease time.Duration // zero: none
			}{
				{"sesn_asleep", 0, time.Second},
				{"sesn_held", time.Second, 4 * time.Second},
				{"sesn_lapsed", 3 * time.Second, time.Second},
				{"sesn_free", 2 * time.Second, 0},
			} {
				row := newSession(s.id, "env_1")
				if s.wake != 0 {
					row.WakeAt = ptr(at(s.wake))
				}
				if s.lease != 0 {
					row.TurnOwner, row.TurnUntil = "somebody", at(s.lease)
				}
				if err := tx.InsertSession(row); err != nil {
					return err
				}
			}
			return nil
		})
		due := func(limit int) []store.DueTurn {
			return read(r, func(tx *store.Tx) ([]store.DueTurn, error) { return tx.DueTurns(limit) })
		}
		want := []store.DueTurn{
			{ID: "sesn_free", At: at(2 * time.Second)},
			{ID: "sesn_lapsed", At: at(3 * time.Second)},
			{ID: "sesn_held", At: at(4 * time.Second)},
		}
		r.same("due", want, due(10))
		r.same("the first two", want[:2], due(2))

		// A process that owns its database frees what its earlier self held.
		r.write((*store.Tx).FreeTurns)
		want = []store.DueTurn{{ID: "sesn_held", At: at(time.Second)}, want[0], want[1]}
		r.same("due after a restart", want, due(10))
	}},
}
