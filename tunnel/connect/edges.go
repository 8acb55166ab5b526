package connect

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// An edge is a way to one that could be attached to; guarded by the connector's mutex.
// There are those of the configuration, which stay as they are, and those that edges have
// told of, which come and go. Several may lead to the same edge.
type edge struct {
	id         api.EdgeID // that is there, or was when it last answered; "" until it is known
	addrs      []tunnel.EdgeAddr
	next       int // of addrs, to try
	configured bool

	held     bool          // by a link, or by somebody who is trying
	avoid    time.Time     // until then others are better
	after    time.Time     // not before
	bound    time.Duration // of the next wait
	err      error         // the last one, if nothing went well after it
	failedAt time.Time

	udp udp // whether QUIC gets there
}

// The times between attempts at an edge: a random one up to a bound that doubles, and
// that begins anew after a link that lasted.
const (
	backoffMin = 500 * time.Millisecond
	backoffMax = 30 * time.Second
	stable     = 30 * time.Second
)

// refusedMin is waited at least after a refused token: trying soon would not help.
const refusedMin = 5 * time.Second

// drainAvoid is how long an edge that is about to stop is passed over.
const drainAvoid = time.Minute

// keepOne keeps one link up until ctx ends. Links live until life ends, or longer for
// the streams of those that drain.
func (c *Connector) keepOne(ctx, life context.Context) {
	for ctx.Err() == nil {
		e, to, wait := c.claim()
		if e == nil {
			c.wait(ctx, wait)
			continue
		}
		l, err := c.attach(ctx, e, to)
		if err != nil {
			c.release(e, err, false)
			continue
		}
		began := time.Now()
		err = l.run(ctx, life)
		c.release(e, err, time.Since(began) >= stable)
	}
}

// claim takes an edge that nobody holds: one that did not fail lately, if there is, with
// its address to try now. Without one it returns how long to wait.
func (c *Connector) claim() (*edge, tunnel.EdgeAddr, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wait := backoffMax
	var best *edge
	for _, i := range rand.Perm(len(c.edges)) {
		e := c.edges[i]
		switch {
		case e.held || c.taken(e, e.id):
		case e.after.After(now):
			wait = min(wait, e.after.Sub(now))
		case best == nil || e.rank(now).Before(best.rank(now)):
			best = e
		}
	}
	if best == nil {
		return nil, tunnel.EdgeAddr{}, wait
	}
	best.held = true
	return best, best.addrs[best.next%len(best.addrs)], 0
}

// taken reports whether somebody holds another way than e to an edge that is known. The
// caller holds mu.
func (c *Connector) taken(e *edge, id api.EdgeID) bool {
	return id != "" && slices.ContainsFunc(c.edges, func(x *edge) bool { return x != e && x.held && x.id == id })
}

// ways are e and all others to the same edge. The caller holds mu.
func (c *Connector) ways(e *edge) iter.Seq[*edge] {
	return func(yield func(*edge) bool) {
		for _, x := range c.edges {
			if (x == e || e.id != "" && x.id == e.id) && !yield(x) {
				return
			}
		}
	}
}

// rank orders edges: those to avoid last, and of the others those that failed longest
// ago first.
func (e *edge) rank(now time.Time) time.Time {
	if e.avoid.After(now) {
		return e.avoid
	}
	return e.failedAt
}

// release gives an edge back, after err. lasted says whether the link to it had held for
// a while.
func (c *Connector) release(e *edge, err error, lasted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.change()
	e.held = false
	now := time.Now()
	if errors.Is(err, errBetter) || errors.Is(err, context.Canceled) {
		return
	}
	if errors.Is(err, errDraining) {
		for x := range c.ways(e) {
			x.avoid = now.Add(drainAvoid)
		}
		return // another link, at once; what is under way on this one goes on
	}
	if lasted || e.bound == 0 {
		e.bound = backoffMin
	}
	pause := rand.N(e.bound)
	e.bound = min(2*e.bound, backoffMax)
	if te := tunnel.AsError(err); te != nil {
		pause = max(pause, te.RetryAfter)
		if te.Stage == tunnel.StageTokenRefused {
			pause = max(pause, refusedMin)
		}
	}
	c.log.Warn("not attached to an edge; trying again", "edge", e.addrs[e.next%len(e.addrs)].Addr, "after", pause.Round(time.Millisecond), "error", err)
	e.err, e.failedAt, e.after = err, now, now.Add(pause)
	e.next++
}

// learn takes in what an edge said of itself and of others. It reports false if another
// link to that same edge is there already, by another way.
func (c *Connector) learn(e *edge, a tunnel.Attached) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.EdgeID != "" {
		e.id = a.EdgeID
		if c.taken(e, e.id) {
			return false
		}
	}
	for x := range c.ways(e) {
		x.err, x.avoid = nil, time.Time{}
	}
	c.know(a)
	return true
}

// relearn takes in that the edges have changed.
func (c *Connector) relearn(a tunnel.Attached) {
	c.mu.Lock()
	c.know(a)
	c.mu.Unlock()
	c.tell(a)
}

// tell passes on which edges there are.
func (c *Connector) tell(a tunnel.Attached) {
	if c.cfg.Learned != nil && len(a.Edges) > 0 {
		c.cfg.Learned(a.Edges)
	}
}

// know takes in which edges there are. The caller holds mu.
func (c *Connector) know(a tunnel.Attached) {
	for _, named := range a.Edges {
		addrs, err := tunnel.EdgeAddrs(named)
		if err != nil || len(addrs) == 0 {
			c.log.Warn("the edge names another that cannot be used", "edge_id", named.EdgeID, "error", err)
			continue
		}
		known := false
		for _, e := range c.edges {
			switch {
			case e.configured && e.id == "" && slices.ContainsFunc(addrs, func(a tunnel.EdgeAddr) bool { return a.Addr == e.addrs[0].Addr }):
				e.id = named.EdgeID
			case !e.configured && e.id == named.EdgeID:
				e.addrs, known = addrs, true
			}
		}
		if !known {
			c.edges = append(c.edges, &edge{id: named.EdgeID, addrs: addrs})
		}
	}
	c.forget(a)
	c.change()
}

// forget drops the edges that an edge does not name any more. Those of the configuration
// stay: with them a connector begins anew when all others are gone, or where what edges say
// of themselves does not lead there from here.
func (c *Connector) forget(a tunnel.Attached) {
	if len(a.Edges) == 0 {
		return
	}
	c.edges = slices.DeleteFunc(c.edges, func(e *edge) bool {
		named := slices.ContainsFunc(a.Edges, func(n api.EdgeAddress) bool { return n.EdgeID == e.id })
		return !named && !e.configured && !e.held
	})
}

// wait returns when something changed, at the latest after d.
func (c *Connector) wait(ctx context.Context, d time.Duration) {
	c.mu.Lock()
	changed := c.changed
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (c *Connector) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
