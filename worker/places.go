package worker

import (
	"context"
	"sync"
	"time"
)

// places bounds how many sessions are served at a time. A session with nothing to
// do keeps its place while nobody waits for one, and is asked to leave as soon as
// somebody does, the one that rests longest first.
type places struct {
	mu      sync.Mutex
	limit   int
	taken   map[*place]bool
	waiting int           // in take
	freed   chan struct{} // closed and replaced whenever a place may have become free
}

// A place is the right to serve one session.
type place struct {
	of *places

	// asked receives when the place is needed by somebody else. Only a session at
	// rest is asked; one that is busy again by then may ignore it.
	asked chan struct{}

	resting time.Time // since when its session has had nothing to do; guarded by of.mu
}

func newPlaces(limit int) *places {
	return &places{limit: limit, taken: make(map[*place]bool), freed: make(chan struct{})}
}

// take waits for a place and returns it, or nil if ctx ended first.
func (p *places) take(ctx context.Context) *place {
	p.mu.Lock()
	p.waiting++
	defer func() { p.waiting--; p.mu.Unlock() }()
	for len(p.taken) >= p.limit {
		p.ask()
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
		}
		p.mu.Lock()
		if ctx.Err() != nil {
			return nil
		}
	}
	got := &place{of: p, asked: make(chan struct{}, 1)}
	p.taken[got] = true
	return got
}

// ask asks the session that has rested longest to leave. The caller holds mu.
func (p *places) ask() {
	var longest *place
	for at := range p.taken {
		if !at.resting.IsZero() && (longest == nil || at.resting.Before(longest.resting)) {
			longest = at
		}
	}
	if longest != nil {
		select {
		case longest.asked <- struct{}{}:
		default: // it was asked already
		}
	}
}

// resize changes how many places there are. Those taken beyond it are not taken away.
func (p *places) resize(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	p.wake()
}

func (p *places) wake() {
	close(p.freed)
	p.freed = make(chan struct{})
}

// closed reports whether there is no place at all.
func (p *places) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit == 0
}

// leave gives the place back.
func (at *place) leave() {
	at.of.mu.Lock()
	defer at.of.mu.Unlock()
	delete(at.of.taken, at)
	at.of.wake()
}

// rest says that the session has had nothing to do since then, or with a zero time
// that it has.
func (at *place) rest(since time.Time) {
	at.of.mu.Lock()
	defer at.of.mu.Unlock()
	if since.Equal(at.resting) {
		return
	}
	at.resting = since
	if since.IsZero() {
		select {
		case <-at.asked: // it does not count any more
		default:
		}
	} else if at.of.waiting > 0 && len(at.of.taken) >= at.of.limit {
		at.of.ask()
	}
}
