package worker

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Keep says what becomes of boxes that nothing uses. Zero fields have a default.
type Keep struct {
	// FreezeAfter is how long after its last call a box is frozen, if what it runs in
	// the background is idle too. At the end of its turn it is frozen at once.
	// Default 30 s; below 0 only then.
	FreezeAfter time.Duration

	// For is how long the box of a session that went away is kept, frozen, in case it
	// comes back. Default 30 min; below 0 it is not kept.
	For time.Duration

	// Max and MemoryBytes bound the boxes so kept; those that were left first go
	// first. Defaults 64, and a quarter of the host's memory.
	Max         int
	MemoryBytes int64
}

const (
	defaultFreezeAfter = 30 * time.Second
	defaultKeepFor     = 30 * time.Minute
	defaultKeepMax     = 64

	reapEvery = 15 * time.Second
)

func (k Keep) withDefaults() Keep {
	if k.FreezeAfter == 0 {
		k.FreezeAfter = defaultFreezeAfter
	}
	if k.For == 0 {
		k.For = defaultKeepFor
	}
	if k.Max == 0 {
		k.Max = defaultKeepMax
	}
	if k.MemoryBytes == 0 {
		var host unix.Sysinfo_t
		if unix.Sysinfo(&host) == nil {
			k.MemoryBytes = int64(host.Totalram) * int64(host.Unit) / 4
		}
	}
	return k
}

// boxes are the boxes of one worker: those of the sessions it serves, those of
// sessions that went away and may come back, and the pool.
type boxes struct {
	// Static.
	starter *starter
	data    *dataDir
	space   *space
	pool    *pool
	metrics *metrics
	log     *slog.Logger

	mu     sync.Mutex
	rules  Keep
	live   map[string]*box // of the sessions that are served, by session
	kept   map[string]kept // by session
	closed bool
}

// kept is the box of a session that is not served now.
type kept struct {
	box    *box
	since  time.Time
	memory int64 // bytes, when it was frozen
}

func newBoxes(w *Worker, starter *starter) *boxes {
	bs := &boxes{
		starter: starter, data: w.data, space: w.space, metrics: w.metrics, log: w.log,
		rules: w.cfg.Keep, live: make(map[string]*box), kept: make(map[string]kept),
	}
	bs.pool = newPool(bs, w.cfg.PoolSize)
	return bs
}

func (bs *boxes) keep() Keep {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	return bs.rules
}

// open returns the box of a session that is about to be served: the one that was
// kept for it, or one that is yet to be started. l lends it the session's variables; nil
// is nobody.
func (bs *boxes) open(session string, l *lender, log *slog.Logger) *box {
	b, was := bs.take(session, log)
	b.lend(l)
	if was {
		b.adopt(log) // which may wait for what goes on with the box
	}
	return b
}

// take finds or makes the box of a session, which is live from then on, and reports
// whether it was kept.
func (bs *boxes) take(session string, log *slog.Logger) (b *box, was bool) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	k, was := bs.kept[session]
	if b = k.box; was {
		delete(bs.kept, session)
		bs.metrics.kept.Set(float64(len(bs.kept)))
	} else {
		b = &box{of: bs, session: session, log: log}
	}
	bs.live[session] = b
	return b, was
}

// find returns the box of a session, served or not, or nil.
func (bs *boxes) find(session string) *box {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if b := bs.live[session]; b != nil {
		return b
	}
	return bs.kept[session].box
}

// serves reports whether a session is served here.
func (bs *boxes) serves(session string) bool {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	return bs.live[session] != nil
}

// release takes back the box of a session that is not served any more. again says
// that the session may come back, so that its box is worth keeping.
func (bs *boxes) release(b *box, again bool) {
	keep := again && bs.keep().For > 0 && b.freezeNow()
	memory := int64(0)
	if keep {
		memory = b.memory()
	}
	bs.mu.Lock()
	delete(bs.live, b.session)
	if keep = keep && !bs.closed; keep {
		bs.kept[b.session] = kept{b, time.Now(), memory}
	}
	over := bs.overdue(time.Now())
	bs.mu.Unlock()
	if !keep {
		over = append(over, b)
	}
	stopAll(over)
}

// forget stops the box of a session that will not come back.
func (bs *boxes) forget(session string) {
	bs.mu.Lock()
	k, ok := bs.kept[session]
	delete(bs.kept, session)
	bs.mu.Unlock()
	if ok {
		k.box.stop()
	}
}

// overdue takes the boxes out of kept that are to be kept no longer. The caller
// holds mu.
func (bs *boxes) overdue(now time.Time) (over []*box) {
	drop := func(session string, why string) {
		over = append(over, bs.kept[session].box)
		delete(bs.kept, session)
		bs.metrics.reaped.WithLabelValues(why).Inc()
	}
	count, memory := 0, int64(0)
	var oldest []string // the longest kept first
	for session, k := range bs.kept {
		switch {
		case k.box.inUse(): // somebody looks at it
		case now.Sub(k.since) >= bs.rules.For:
			drop(session, "age")
			continue
		default:
			oldest = append(oldest, session)
		}
		count++
		memory += k.memory
	}
	slices.SortFunc(oldest, func(a, b string) int { return bs.kept[a].since.Compare(bs.kept[b].since) })
	for _, session := range oldest {
		why := "count"
		if count <= max(0, bs.rules.Max) {
			if why = "memory"; bs.rules.MemoryBytes <= 0 || memory <= bs.rules.MemoryBytes {
				break
			}
		}
		count, memory = count-1, memory-bs.kept[session].memory
		drop(session, why)
	}
	bs.metrics.kept.Set(float64(len(bs.kept)))
	return over
}

// giveUp stops the box that was kept longest, and reports whether there was one that
// nobody uses.
func (bs *boxes) giveUp() bool {
	bs.mu.Lock()
	oldest := ""
	for session, k := range bs.kept {
		if !k.box.inUse() && (oldest == "" || k.since.Before(bs.kept[oldest].since)) {
			oldest = session
		}
	}
	k, ok := bs.kept[oldest]
	if ok {
		delete(bs.kept, oldest)
		bs.metrics.kept.Set(float64(len(bs.kept)))
		bs.metrics.reaped.WithLabelValues("room").Inc()
	}
	bs.mu.Unlock()
	if ok {
		k.box.stop()
	}
	return ok
}

// run keeps the pool filled and reaps kept boxes until ctx ends. Then it stops all
// boxes that no session has.
func (bs *boxes) run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { bs.pool.run(ctx) })
	parts.Go(func() {
		tick := time.NewTicker(reapEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				bs.mu.Lock()
				over := bs.overdue(now)
				bs.mu.Unlock()
				stopAll(over)
			}
		}
	})
	parts.Wait()
}

// close stops the boxes that are kept. Those released from then on are stopped too.
func (bs *boxes) close() {
	bs.mu.Lock()
	bs.closed = true
	var all []*box
	for session, k := range bs.kept {
		all = append(all, k.box)
		delete(bs.kept, session)
	}
	bs.metrics.kept.Set(0)
	bs.mu.Unlock()
	stopAll(all)
}

// stopAtOnce is how many boxes are stopped at a time.
const stopAtOnce = 16

func stopAll(all []*box) {
	var stops sync.WaitGroup
	slots := make(chan struct{}, stopAtOnce)
	for _, b := range all {
		slots <- struct{}{}
		stops.Go(func() { b.stop(); <-slots })
	}
	stops.Wait()
}

// provide starts a box for a session, or takes one from the pool, and says which.
// Only a session without a work folder can have one of the pool, as that comes with a
// folder, and only one without variables, as those are in a box's environment from its
// start.
func (bs *boxes) provide(ctx context.Context, session string, variables []Variable, log *slog.Logger) (r *running, how string, err error) {
	if len(variables) == 0 && !bs.data.hasWork(session) {
		if r := bs.pool.claim(ctx, session, log); r != nil {
			return r, "claimed", nil
		}
	}
	folder, err := bs.data.work(session)
	if err != nil {
		return nil, "", err
	}
	if r, err = bs.starter.start(ctx, boxID(session), session, folder, variables, log); err != nil {
		return nil, "", err
	}
	return r, "started", nil
}
