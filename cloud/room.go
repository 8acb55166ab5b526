package cloud

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A room bounds the boxes of all environments together. While somebody waits for it, what
// becomes free goes to whoever has least, and boxes that are kept idle give way, those of
// whoever has most first: so nobody holds all of it against the others for longer than
// the calls that are under way.
type room struct {
	max int

	mu      sync.Mutex
	total   int
	held    map[api.EnvironmentID]int
	waiting []*waiter // the longest first
	leaving int       // boxes that were asked to give way and have not gone yet

	// givers stop one of the boxes that an environment keeps idle, and report whether
	// there was one.
	givers map[api.EnvironmentID]func() bool
}

type waiter struct {
	of  api.EnvironmentID
	has chan struct{} // closed when it has its place
}

func newRoom(most int) *room {
	return &room{max: most, held: make(map[api.EnvironmentID]int), givers: make(map[api.EnvironmentID]func() bool)}
}

// errNoRoom is why a box is not started.
var errNoRoom = errors.New("this server has as many boxes as it can; try again when other sessions are done, or ask its operator for more (cloud-boxes)")

const (
	roomWait  = 30 * time.Second // how long a box waits for another one to end
	roomRetry = time.Second      // between two looks for one that could give way
)

// take waits for a place for a box of an environment, which gives it back.
func (r *room) take(ctx context.Context, of api.EnvironmentID) error {
	w := &waiter{of, make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, w)
	r.hand()
	r.mu.Unlock()
	late := time.NewTimer(roomWait)
	defer late.Stop()
	retry := time.NewTicker(roomRetry)
	defer retry.Stop()
	for {
		select {
		case <-w.has: // which comes first, if it has come
			return nil
		default:
		}
		r.makeRoom()
		select {
		case <-w.has:
			return nil
		case <-retry.C:
			continue
		case <-late.C:
			if r.forgo(w) {
				return errNoRoom
			}
		case <-ctx.Done():
			if r.forgo(w) {
				return ctx.Err()
			}
		}
		return nil // it came at the last moment
	}
}

// give gives a place back.
func (r *room) give(of api.EnvironmentID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.held[of]--; r.held[of] == 0 {
		delete(r.held, of)
	}
	r.hand()
}

// hand hands out the places that are free. The caller holds mu.
func (r *room) hand() {
	for r.total < r.max && len(r.waiting) > 0 {
		least := 0
		for i, w := range r.waiting {
			if r.held[w.of] < r.held[r.waiting[least].of] {
				least = i
			}
		}
		w := r.waiting[least]
		r.waiting = slices.Delete(r.waiting, least, least+1)
		r.total++
		r.held[w.of]++
		close(w.has)
	}
}

// forgo ends the wait of w, and reports false if it has its place.
func (r *room) forgo(w *waiter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.waiting, w)
	if i >= 0 {
		r.waiting = slices.Delete(r.waiting, i, i+1)
	}
	return i >= 0
}

// makeRoom has kept boxes give way for those who wait, without waiting for that.
func (r *room) makeRoom() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.leaving < len(r.waiting) {
		r.leaving++
		var givers []func() bool
		for _, of := range r.byHeld() {
			if give := r.givers[of]; give != nil {
				givers = append(givers, give)
			}
		}
		go func() {
			for _, give := range givers {
				if give() {
					break
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.leaving--
		}()
	}
}

// byHeld are the environments with boxes, those with most first. The caller holds mu.
func (r *room) byHeld() []api.EnvironmentID {
	var all []api.EnvironmentID
	for of := range r.held {
		all = append(all, of)
	}
	slices.SortFunc(all, func(a, b api.EnvironmentID) int { return r.held[b] - r.held[a] })
	return all
}

// giver says how a box of an environment gives way, until forget is called.
func (r *room) giver(of api.EnvironmentID, give func() bool) (forget func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.givers[of] = give
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.givers, of)
	}
}
