package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// sweepEvery is how often deadlines are looked at, and so how exactly they are kept.
const sweepEvery = 500 * time.Millisecond

// A sweeper cuts what takes too long. Deadlines of connections move with every read and
// write of a call; a timer for each would cost more than the call's own work, while a
// deadline that is looked at twice a second costs a store.
type sweeper struct {
	clock atomic.Int64 // nanoseconds, as of the last sweep

	mu      sync.Mutex
	watches map[*watch]struct{}
}

// A watch is one deadline. It is set by whoever is about to wait and cleared by the
// same; cut is called, once for each time that it is set, from the sweeper's goroutine.
type watch struct {
	deadline atomic.Int64 // 0 for none, or passed
	late     atomic.Bool  // cut was called, or is about to be
	cut      func()
	of       *sweeper
}

// passed is a deadline that the sweeper has found to be over.
const passed = -1

func newSweeper() *sweeper {
	s := &sweeper{watches: make(map[*watch]struct{})}
	s.clock.Store(time.Now().UnixNano())
	return s
}

// run sweeps until ctx ends.
func (s *sweeper) run(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			s.sweep(now.UnixNano())
		}
	}
}

func (s *sweeper) sweep(now int64) {
	s.clock.Store(now)
	var late []*watch
	s.mu.Lock()
	for w := range s.watches {
		// Who clears or moves it at this moment is either before the sweep or behind it.
		if d := w.deadline.Load(); d > 0 && d < now && w.deadline.CompareAndSwap(d, passed) {
			w.late.Store(true)
			late = append(late, w)
		}
	}
	s.mu.Unlock()
	for _, w := range late {
		w.cut()
	}
}

// watch makes a watch without a deadline. It has to be dropped.
func (s *sweeper) watch(cut func()) *watch {
	w := &watch{cut: cut, of: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches[w] = struct{}{}
	return w
}

func (w *watch) drop() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.watches, w)
}

// set gives it d from now on, and one sweep more; 0 or less means for ever.
func (w *watch) set(d time.Duration) {
	if d <= 0 {
		w.deadline.Store(0)
		return
	}
	w.deadline.Store(w.of.clock.Load() + int64(d+sweepEvery))
}

// clear takes the deadline away. It reports whether there was one that had not passed. If
// it had, cut was called or is about to be, and late says so from now on.
func (w *watch) clear() bool {
	d := w.deadline.Swap(0)
	if d == passed {
		w.late.Store(true)
	}
	return d > 0
}
