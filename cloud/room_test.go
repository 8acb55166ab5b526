package cloud

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// rooms is a room with what waits for it.
type rooms struct {
	*testing.T
	*room
	got chan api.EnvironmentID // whose turn it was
}

func inRoom(t *testing.T, most int, f func(*rooms)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { f(&rooms{t, newRoom(most), make(chan api.EnvironmentID, 100)}) })
}

// hold takes places that are free.
func (r *rooms) hold(of api.EnvironmentID, n int) {
	r.Helper()
	for range n {
		if err := r.take(r.Context(), of); err != nil {
			r.Fatal(err)
		}
	}
}

// wait has n boxes of an environment wait, and returns once they do.
func (r *rooms) wait(of api.EnvironmentID, n int) {
	for range n {
		go func() {
			if r.take(r.Context(), of) == nil {
				r.got <- of
			}
		}()
	}
	synctest.Wait()
}

func (r *rooms) next() api.EnvironmentID {
	synctest.Wait()
	select {
	case of := <-r.got:
		return of
	default:
		return ""
	}
}

// TestOneEnvironmentDoesNotHoldAllTheRoom: what becomes free goes to who has least,
// however many of others came first.
func TestOneEnvironmentDoesNotHoldAllTheRoom(t *testing.T) {
	inRoom(t, 4, func(r *rooms) {
		r.hold("greedy", 4)
		r.wait("greedy", 10)
		r.wait("modest", 1)
		r.wait("other", 2)
		for i, want := range []api.EnvironmentID{"modest", "other", "greedy", "greedy"} {
			r.give("greedy")
			if got := r.next(); got != want {
				r.Errorf("place %d went to %q, want %s", i, got, want)
			}
			if r.next() != "" {
				r.Error("one place was given twice")
			}
		}
		time.Sleep(roomWait)
		synctest.Wait()
		if len(r.waiting) != 0 || r.total != 4 {
			r.Errorf("%d wait and %d have a place after so long", len(r.waiting), r.total)
		}
	})
}

// TestAKeptBoxGivesWay: to a session that waits, and as many as wait; first those of who
// has most.
func TestAKeptBoxGivesWay(t *testing.T) {
	inRoom(t, 4, func(r *rooms) {
		gave := map[api.EnvironmentID]int{}
		kept := map[api.EnvironmentID]int{"small": 1, "big": 2}
		var mu sync.Mutex // of both: several may give way at once
		one := func(of api.EnvironmentID) bool {
			mu.Lock()
			defer mu.Unlock()
			if kept[of] == 0 {
				return false
			}
			kept[of]--
			gave[of]++
			return true
		}
		for _, of := range []api.EnvironmentID{"small", "big"} {
			r.giver(of, func() bool {
				if !one(of) {
					return false
				}
				time.Sleep(3 * time.Second) // it takes a while
				r.give(of)
				return true
			})
		}
		r.hold("small", 1)
		r.hold("big", 3)
		r.wait("new", 1)
		time.Sleep(4 * time.Second)
		if r.next() != "new" || gave["big"] != 1 || gave["small"] != 0 {
			r.Errorf("gave way: %v", gave)
		}
		time.Sleep(time.Minute)
		if gave["big"] != 1 || gave["small"] != 0 {
			r.Errorf("gave way for nobody: %v", gave)
		}
		// One of its own, if it has as many as others have.
		r.wait("big", 1)
		time.Sleep(4 * time.Second)
		if r.next() != "big" || gave["big"] != 2 || gave["small"] != 0 {
			r.Errorf("gave way: %v", gave)
		}
		// What is kept only later gives way as well.
		r.wait("new", 2)
		time.Sleep(10 * time.Second)
		mu.Lock()
		kept["big"]++
		mu.Unlock()
		time.Sleep(5 * time.Second)
		first, second := r.next(), r.next()
		if first == "" || second == "" || gave["small"] != 1 {
			r.Errorf("begun: %q and %q; gave way: %v", first, second, gave)
		}
	})
}

func TestWhoeverLeavesTakesNoRoom(t *testing.T) {
	inRoom(t, 1, func(r *rooms) {
		r.hold("a", 1)
		ctx, cancel := context.WithCancel(r.Context())
		left := make(chan error)
		go func() { left <- r.take(ctx, "b") }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			r.Error(err)
		}
		began := time.Now()
		if err := r.take(r.Context(), "b"); !errors.Is(err, errNoRoom) || time.Since(began) != roomWait {
			r.Errorf("%v after %s", err, time.Since(began))
		}
		r.give("a")
		r.hold("c", 1)
		if r.total != 1 || r.held["c"] != 1 || len(r.held) != 1 {
			r.Errorf("held %v of %d", r.held, r.total)
		}
	})
}
