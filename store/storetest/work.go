package storetest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newWork(id string, s *store.Session) *store.Work {
	return &store.Work{
		Work: api.Work{
			ID: api.WorkID(id), Type: "work", EnvironmentID: s.EnvironmentID, State: api.WorkQueued, Metadata: api.Metadata{},
			Data: api.WorkData{Type: "session", ID: s.ID}, CreatedAt: start,
		},
		OfferedAt: start, TTL: time.Minute,
	}
}

// queue adds n sessions with a queued item each to one environment. Each is
// offered a second after the one before.
func (r *rig) queue(n int) (env api.EnvironmentID, items []*store.Work) {
	r.t.Helper()
	env = "env_queue"
	r.environment(env)
	r.write(func(tx *store.Tx) error {
		for i := range n {
			s := newSession(api.SessionID(fmt.Sprintf("sesn_%03d", i)), env)
			w := newWork(fmt.Sprintf("work_%03d", n-i), s) // ids do not decide
			w.OfferedAt = at(time.Duration(i) * time.Second)
			items = append(items, w)
			if err := errors.Join(tx.InsertSession(s), tx.InsertWork(w)); err != nil {
				return err
			}
		}
		return nil
	})
	return env, items
}

func (r *rig) getWork(w *store.Work) *store.Work {
	r.t.Helper()
	return read(r, func(tx *store.Tx) (*store.Work, error) { return tx.Work(w.EnvironmentID, w.ID) })
}

func (r *rig) update(w *store.Work) {
	r.t.Helper()
	r.write(func(tx *store.Tx) error { return tx.UpdateWork(w) })
}

var workTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		w := newWork("work_1", r.session("sesn_1"))
		r.write(func(tx *store.Tx) error { return tx.InsertWork(w) })
		r.same("inserted", w, r.getWork(w))
		w.State, w.Metadata = api.WorkActive, api.Metadata{text: text}
		w.Deliveries, w.Warned = 3, true
		w.OfferedAt, w.PolledAt, w.AcknowledgedAt = at(1*time.Microsecond), ptr(at(2*time.Microsecond)), ptr(at(3*time.Microsecond))
		w.StartedAt, w.LatestHeartbeatAt, w.Deadline = ptr(at(4*time.Microsecond)), ptr(at(5*time.Microsecond)), ptr(at(6*time.Microsecond))
		w.StopRequestedAt, w.StoppedAt = ptr(at(7*time.Microsecond)), ptr(at(8*time.Microsecond))
		w.Heartbeat, w.TTL = ptr("beat/1"), 90*time.Second+time.Microsecond
		r.update(w)
		r.same("updated", w, r.getWork(w))
		for name, lock := range map[string]func(*store.Tx) (*store.Work, error){
			"by id":      func(tx *store.Tx) (*store.Work, error) { return tx.LockWork(w.EnvironmentID, w.ID) },
			"by session": func(tx *store.Tx) (*store.Work, error) { return tx.LockLiveWork("sesn_1") },
		} {
			r.write(func(tx *store.Tx) error {
				got, err := lock(tx)
				r.same("locked "+name, w, got)
				return err
			})
		}
	}},

	{"WhatIsNotThereIsErrNotFound", func(r *rig) {
		w := newWork("work_1", r.session("sesn_1"))
		r.write(func(tx *store.Tx) error { return tx.InsertWork(w) })
		stranger := newWork("work_2", &store.Session{})
		for name, fn := range map[string]func(*store.Tx) error{
			"read":              func(tx *store.Tx) error { _, err := tx.Work(w.EnvironmentID, "work_2"); return err },
			"other environment": func(tx *store.Tx) error { _, err := tx.LockWork("env_2", w.ID); return err },
			"live":              func(tx *store.Tx) error { _, err := tx.LockLiveWork("sesn_2"); return err },
			"next":              func(tx *store.Tx) error { _, err := tx.LockNextWork("env_2", tx.Now); return err },
			"update":            func(tx *store.Tx) error { return tx.UpdateWork(stranger) },
		} {
			if err := r.fail(fn); !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("%s: %v, want ErrNotFound", name, err)
			}
		}
	}},

	{"ASessionHasOneItemThatIsNotStopped", func(r *rig) {
		s := r.session("sesn_1")
		first, second := newWork("work_1", s), newWork("work_2", s)
		r.write(func(tx *store.Tx) error { return tx.InsertWork(first) })
		for _, state := range []api.WorkState{api.WorkQueued, api.WorkStarting, api.WorkActive, api.WorkStopping} {
			first.State = state
			r.update(first)
			if err := r.fail(func(tx *store.Tx) error { return tx.InsertWork(second) }); !errors.Is(err, store.ErrDuplicate) {
				r.t.Errorf("beside one that is %s: %v, want ErrDuplicate", state, err)
			}
		}
		first.State = api.WorkStopped
		r.update(first)
		r.fail(func(tx *store.Tx) error {
			_, err := tx.LockLiveWork(s.ID)
			return err
		})
		r.write(func(tx *store.Tx) error { return tx.InsertWork(second) })
		r.write(func(tx *store.Tx) error {
			live, err := tx.LockLiveWork(s.ID)
			if err == nil && live.ID != second.ID {
				r.t.Errorf("the live item is %s", live.ID)
			}
			return err
		})
	}},

	{"TheLongestWaitingItemIsNext", func(r *rig) {
		env, items := r.queue(4)
		reclaim := at(time.Hour)
		next := func() string {
			var got *store.Work
			err := r.db.Write(r.ctx, func(tx *store.Tx) (err error) {
				got, err = tx.LockNextWork(env, reclaim)
				return err
			})
			has := read(r, func(tx *store.Tx) (bool, error) { return tx.HasNextWork(env, reclaim) })
			if has != (err == nil) {
				r.t.Errorf("HasNextWork is %v and LockNextWork ends with %v", has, err)
			}
			if errors.Is(err, store.ErrNotFound) {
				return ""
			}
			if err != nil {
				r.t.Fatal(err)
			}
			return string(got.ID)
		}
		r.same("the first", string(items[0].ID), next())
		items[0].State = api.WorkStarting // acknowledged
		r.update(items[0])
		r.same("then the second", string(items[1].ID), next())
		items[1].PolledAt = ptr(reclaim.Add(time.Microsecond)) // in somebody's hands
		r.update(items[1])
		r.same("then the third", string(items[2].ID), next())
		reclaim = reclaim.Add(time.Microsecond)
		r.same("an item that was polled long ago", string(items[1].ID), next())
		items[1].OfferedAt = at(time.Hour) // offered again, behind the others
		r.update(items[1])
		r.same("one that was offered again is last", string(items[2].ID), next())
		for _, w := range items {
			w.State = api.WorkStopped
			r.update(w)
		}
		r.same("nothing", "", next())
	}},

	{"EveryItemIsHandedOutOnceToManyClaimers", func(r *rig) {
		const claimers, n = 8, 40
		env, items := r.queue(n)
		var mu sync.Mutex
		taken := map[api.WorkID]int{}
		var g errgroup.Group
		for range claimers {
			g.Go(func() error {
				for {
					var got *store.Work
					err := r.db.Write(r.ctx, func(tx *store.Tx) (err error) {
						if got, err = tx.LockNextWork(env, start); err != nil {
							return err
						}
						got.PolledAt = &tx.Now
						return tx.UpdateWork(got)
					})
					if errors.Is(err, store.ErrNotFound) {
						// Those that others hold at this moment are skipped. They are theirs.
						return nil
					}
					if err != nil {
						return err
					}
					mu.Lock()
					taken[got.ID]++
					mu.Unlock()
				}
			})
		}
		if err := g.Wait(); err != nil {
			r.t.Fatal(err)
		}
		for _, w := range items {
			if taken[w.ID] != 1 {
				r.t.Errorf("%s was handed out %d times", w.ID, taken[w.ID])
			}
		}
	}},

	{"ListsAndCounts", func(r *rig) {
		env, items := r.queue(4)
		items[0].State = api.WorkActive
		items[1].PolledAt = ptr(at(time.Minute))
		items[2].PolledAt = ptr(at(time.Second))
		for _, w := range items {
			r.update(w)
		}
		list := walk(r, api.Descending, 3,
			func(tx *store.Tx, win store.Window) ([]*store.Work, error) { return tx.WorkList(env, win) },
			func(w *store.Work) (int64, string) { return w.CreatedAt.UnixMicro(), string(w.ID) })
		r.same("list", []string{"work_004", "work_003", "work_002", "work_001"}, list)

		for _, tc := range []struct {
			env          api.EnvironmentID
			free, polled int64
			oldest       *time.Time
		}{{env, 2, 1, &items[1].OfferedAt}, {"env_2", 0, 0, nil}} {
			err := r.db.Read(r.ctx, func(tx *store.Tx) error {
				free, polled, oldest, err := tx.WorkCounts(tc.env, at(30*time.Second))
				if free != tc.free || polled != tc.polled {
					r.t.Errorf("%s: %d free and %d polled, want %d and %d", tc.env, free, polled, tc.free, tc.polled)
				}
				r.same("oldest", tc.oldest, oldest)
				return err
			})
			if err != nil {
				r.t.Error(err)
			}
		}
	}},

	{"OverdueItemsAreFound", func(r *rig) {
		_, items := r.queue(4)
		now := r.now
		for i, w := range items {
			w.State = api.WorkActive
			w.Deadline = ptr(now.Add(time.Duration(-i) * time.Second)) // the last is the most overdue
		}
		items[1].Deadline = nil
		items[0].Deadline = ptr(now.Add(time.Hour))
		for _, w := range items {
			r.update(w)
		}
		lapsed := func(limit int) []store.WorkRef {
			return read(r, func(tx *store.Tx) ([]store.WorkRef, error) { return tx.LapsedWork(limit) })
		}
		want := []store.WorkRef{ref(items[3]), ref(items[2])}
		r.same("overdue", want, lapsed(10))
		r.same("the most overdue", want[:1], lapsed(1))
	}},

	{"UnclaimedItemsAreFoundUntilTheirSessionWasTold", func(r *rig) {
		_, items := r.queue(5)
		items[1].Warned = true
		items[2].State = api.WorkStarting
		r.update(items[1])
		r.update(items[2])
		unclaimed := func(before time.Time, limit int) []store.WorkRef {
			return read(r, func(tx *store.Tx) ([]store.WorkRef, error) { return tx.UnclaimedWork(before, limit) })
		}
		r.same("all", []store.WorkRef{ref(items[0]), ref(items[3]), ref(items[4])}, unclaimed(at(time.Hour), 10))
		r.same("old ones", []store.WorkRef{ref(items[0]), ref(items[3])}, unclaimed(items[3].OfferedAt, 10))
		r.same("the oldest", []store.WorkRef{ref(items[0])}, unclaimed(at(time.Hour), 1))
	}},
}

func ref(w *store.Work) store.WorkRef {
	return store.WorkRef{ID: w.ID, EnvironmentID: w.EnvironmentID, SessionID: w.Data.ID}
}
