package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

var errTest = errors.New("an error of the test")

func putEnv(id string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		return tx.PutEnvironment(&api.Environment{ID: api.EnvironmentID(id), CreatedAt: start})
	}
}

func (r *rig) hasEnv(id string) bool {
	r.t.Helper()
	_, err := tryRead(r, func(tx *store.Tx) (*api.Environment, error) { return tx.Environment(api.EnvironmentID(id)) })
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		r.t.Fatal(err)
	}
	return err == nil
}

var txTests = []test{
	{"AnErrorTakesEverythingBack", func(r *rig) {
		err := r.fail(func(tx *store.Tx) error {
			tx.Notify("never")
			return errors.Join(putEnv("env_1")(tx), errTest)
		})
		if !errors.Is(err, errTest) {
			r.t.Errorf("the caller's error became %v", err)
		}
		if r.hasEnv("env_1") {
			r.t.Error("what a failed transaction wrote is there")
		}
		r.same("notifications", []string(nil), r.told())
	}},

	{"AFailedStatementTakesEverythingBack", func(r *rig) {
		r.session("sesn_1")
		err := r.fail(func(tx *store.Tx) error {
			if err := putEnv("env_1")(tx); err != nil {
				return err
			}
			return tx.InsertSession(newSession("sesn_1", "env_1"))
		})
		if !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("error %v, want ErrDuplicate", err)
		}
		if r.hasEnv("env_1") {
			r.t.Error("what a failed transaction wrote is there")
		}
	}},

	{"APanicNeitherCommitsNorStopsOthers", func(r *rig) {
		r.open(store.Options{})
		func() {
			defer func() { _ = recover() }()
			err := r.db.Write(r.ctx, func(tx *store.Tx) error {
				if err := putEnv("env_1")(tx); err != nil {
					return err
				}
				panic("of the test")
			})
			if err == nil {
				r.t.Error("a transaction that panicked was committed")
			}
		}()
		if r.hasEnv("env_1") {
			r.t.Error("what it wrote is there")
		}
		r.write(putEnv("env_2"))
	}},

	{"EveryTransactionHasOneTimeInWholeMicroseconds", func(r *rig) {
		odd := time.Date(2026, 2, 3, 4, 5, 6, 7_008_009, time.FixedZone("elsewhere", 3600))
		r.open(store.Options{Clock: func() time.Time { return odd }})
		want := time.Date(2026, 2, 3, 3, 5, 6, 7_008_000, time.UTC)
		r.write(func(tx *store.Tx) error {
			r.same("of a write", want, tx.Now)
			return nil
		})
		now := read(r, func(tx *store.Tx) (time.Time, error) { return tx.Now, nil })
		if now != want {
			r.t.Errorf("of a read: %v, want %v", now, want)
		}
	}},

	{"ALostCommitLeavesNothing", func(r *rig) {
		lose := false // not the migrations
		r.open(store.Options{BeforeCommit: func() error {
			if lose {
				return errTest
			}
			return nil
		}})
		lose = true
		err := r.fail(func(tx *store.Tx) error {
			tx.Notify("never")
			return putEnv("env_1")(tx)
		})
		if !errors.Is(err, errTest) {
			r.t.Errorf("error %v, want the hook's", err)
		}
		if r.hasEnv("env_1") {
			r.t.Error("the lost commit is there")
		}
		r.same("notifications", []string(nil), r.told())
		lose = false
		r.write(putEnv("env_1"))
	}},

	{"ALostReplyIsAnErrorOfACommitThatHappened", func(r *rig) {
		var reply error // of the migrations
		r.open(store.Options{AfterCommit: func() error { return reply }})
		reply = errTest
		err := r.fail(func(tx *store.Tx) error {
			tx.Notify("topic")
			return putEnv("env_1")(tx)
		})
		if !errors.Is(err, errTest) {
			r.t.Errorf("error %v, want the hook's", err)
		}
		if !r.hasEnv("env_1") {
			r.t.Error("the commit did not happen")
		}
		r.same("notifications", []string{"topic"}, r.told())
	}},

	{"NotificationsFollowTheCommitOnceATopic", func(r *rig) {
		r.open(store.Options{})
		r.write(func(tx *store.Tx) error {
			for _, topic := range []string{"b", "a", "b", "work env_1"} {
				tx.Notify(topic)
			}
			r.same("before the commit", []string(nil), r.told())
			return nil
		})
		r.same("after the commit", []string{"b", "a", "work env_1"}, r.told())
	}},

	{"ReadsCannotWrite", func(r *rig) {
		r.open(store.Options{})
		if err := r.db.Read(r.ctx, putEnv("env_1")); err == nil {
			r.t.Error("a read-only transaction accepted a row")
		}
		if r.hasEnv("env_1") {
			r.t.Error("the row is there")
		}
	}},

	// A turn reads the session and then its events. If an event came in between,
	// its sequence number would be above the session's and be read a second time.
	{"AReadSeesOneMomentHoweverLongItTakes", func(r *rig) {
		s := r.session("sesn_1")
		err := r.db.Read(r.ctx, func(tx *store.Tx) error {
			before, err := tx.Session(s.ID)
			if err != nil {
				return err
			}
			r.appendTo(s.ID, &api.UserMessage{})
			entries, err := tx.Entries(s.ID, 0)
			if err != nil {
				return err
			}
			if int64(len(entries)) != before.LastSeq {
				r.t.Errorf("the session has %d events, and then %d", before.LastSeq, len(entries))
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}},

	{"AnEndedContextStartsNothing", func(r *rig) {
		r.open(store.Options{})
		ctx, cancel := context.WithCancel(r.ctx)
		cancel()
		if err := r.db.Write(ctx, putEnv("env_1")); !errors.Is(err, context.Canceled) {
			r.t.Errorf("write: %v", err)
		}
		if err := r.db.Read(ctx, func(*store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			r.t.Errorf("read: %v", err)
		}
		if r.hasEnv("env_1") {
			r.t.Error("the row is there")
		}
	}},

	// Writes may share a connection and a commit. What ends one of them must not
	// be felt by the others.
	{"AWriteThatIsCutShortHarmsNoOther", func(r *rig) {
		r.open(store.Options{})
		const writers, rounds = 12, 15
		var mu sync.Mutex
		promised := map[string]bool{}
		var g errgroup.Group
		for w := range writers {
			g.Go(func() error {
				for i := range rounds {
					id := fmt.Sprintf("env_%d_%d", w, i)
					ctx, cancel := context.WithCancel(r.ctx)
					err := r.db.Write(ctx, func(tx *store.Tx) error {
						if w%3 == 0 {
							go cancel() // somewhere in the statements that follow
						}
						for n := range 5 {
							if err := putEnv(fmt.Sprint(id, "_", n))(tx); err != nil {
								return err
							}
						}
						if w%3 == 1 {
							return errTest
						}
						return nil
					})
					cancel()
					switch {
					case w%3 == 0 && err != nil:
						continue // cut short before its commit, or during it
					case w%3 == 1 && errors.Is(err, errTest):
					case w%3 == 1 || err != nil:
						return fmt.Errorf("writer %d: %w", w, err)
					}
					mu.Lock()
					promised[id] = err == nil
					mu.Unlock()
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			r.t.Fatal(err)
		}
		all := read(r, func(tx *store.Tx) ([]*api.Environment, error) {
			return tx.Environments(false, store.Window{Limit: 1e6, Order: api.Ascending})
		})
		rows := map[string]int{}
		for _, e := range all {
			rows[string(e.ID[:len(e.ID)-2])]++
		}
		for id, committed := range promised {
			want := 0
			if committed {
				want = 5
			}
			if rows[id] != want {
				r.t.Errorf("%s has %d rows, want %d", id, rows[id], want)
			}
		}
		for id, n := range rows {
			if n != 5 {
				r.t.Errorf("%s has %d rows of 5: a transaction was torn", id, n)
			}
		}
	}},
}
