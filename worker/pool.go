package worker

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/audit"
)

// pool keeps boxes ready that belong to nobody yet: started, met, and frozen, each on
// a fresh work folder. A session that claims one has it in the time of a thaw.
type pool struct {
	of   *boxes
	kick chan struct{} // something changed; one in it at most

	mu    sync.Mutex
	size  int
	since time.Time // boxes from before are replaced
	ready []pooled
}

type pooled struct {
	*running
	since time.Time
}

func newPool(of *boxes, size int) *pool {
	return &pool{of: of, size: size, kick: make(chan struct{}, 1)}
}

// resize changes how many boxes are kept ready.
func (p *pool) resize(size int) {
	p.mu.Lock()
	p.size = size
	p.mu.Unlock()
	p.wake()
}

// renew replaces the boxes that were started until now.
func (p *pool) renew() {
	p.mu.Lock()
	p.since = time.Now()
	p.mu.Unlock()
	p.wake()
}

func (p *pool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// poolMaxAge is the part of its lifetime that a box may spend in the pool. Its owner
// is to have the rest.
const poolMaxAge = 4

// run keeps the pool filled until ctx ends, one box after the other so that sessions
// that wait for theirs come first. Then it stops what is in it.
func (p *pool) run(ctx context.Context) {
	retry := backoff{min: time.Second, max: time.Minute}
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	defer func() { p.discard(p.take(func(int, pooled) bool { return true })) }()
	for failed := 0; ; {
		size, oldest := p.wanted()
		p.discard(p.take(func(i int, r pooled) bool { return i >= size || r.lost() || r.since.Before(oldest) }))
		if p.count() < size {
			began := time.Now()
			r, err := p.make(ctx)
			if err == nil {
				failed = 0
				retry.reset()
				p.put(r, began)
				p.of.log.Debug("box ready", "box", r.id, "took", time.Since(began).Round(time.Millisecond))
				continue
			}
			if ctx.Err() != nil {
				return
			}
			p.of.metrics.boxes.WithLabelValues("failed").Inc()
			wait := retry.next()
			if failed++; failed == 1 || failed%10 == 0 {
				p.of.log.Error("box for the pool not started; trying again", "error", err, "failures", failed, "wait", wait)
			}
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-tick.C:
		}
	}
}

// make starts a box for the pool.
func (p *pool) make(ctx context.Context) (*running, error) {
	folder, err := p.of.data.freshFolder()
	if err != nil {
		return nil, err
	}
	r, err := p.of.starter.start(ctx, boxID("pool "+rand.Text()), "", folder, nil, p.of.log)
	if err != nil {
		_ = p.of.data.discard(folder)
		return nil, err
	}
	if _, err := r.freeze(ctx); err != nil {
		p.end(r)
		return nil, err
	}
	return r, nil
}

// claim gives a box of the pool to a session that has no work folder yet. It returns
// nil if there is none to give.
func (p *pool) claim(ctx context.Context, session string, log *slog.Logger) *running {
	for {
		first := p.take(func(i int, r pooled) bool { return i == 0 })
		if len(first) == 0 {
			return nil
		}
		p.wake()
		r := first[0].running
		err := p.hand(ctx, r, session)
		if err == nil {
			r.stderr.to(log)
			return r
		}
		log.Warn("box of the pool not used", "error", err)
		p.end(r)
		if ctx.Err() != nil || p.of.data.hasWork(session) {
			return nil
		}
	}
}

// hand makes a box the session's.
func (p *pool) hand(ctx context.Context, r *running, session string) error {
	if r.lost() {
		return fmt.Errorf("it is lost: %s", r.why().Cause)
	}
	if err := r.thaw(ctx); err != nil {
		return err
	}
	err := p.of.starter.record(audit.Record{Action: audit.PoolClaim, Session: session, Start: time.Now(), Attrs: map[string]string{"box": r.id}})
	if err != nil {
		return fmt.Errorf("the audit record cannot be written: %w", err)
	}
	// From here on the box is the session's, whatever happens to it: its folder
	// stays. A crash before this line leaves a folder that the next start removes.
	folder, err := p.of.data.claimFolder(r.folder, session)
	if err != nil {
		return err
	}
	r.folder = folder
	r.belongTo(session)
	return nil
}

// wanted returns how many boxes there should be, and the moment from which they count.
func (p *pool) wanted() (size int, oldest time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest = time.Now().Add(-p.of.starter.spec.Limits.Defaults().Lifetime / poolMaxAge)
	if oldest.Before(p.since) {
		oldest = p.since
	}
	return p.size, oldest
}

func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

func (p *pool) put(r *running, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = append(p.ready, pooled{r, since})
	p.of.metrics.pooled.Set(float64(len(p.ready)))
}

// take takes the boxes out of the pool that pick says, by their place and themselves.
func (p *pool) take(pick func(int, pooled) bool) (taken []pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.ready[:0]
	for i, r := range p.ready {
		if pick(i, r) {
			taken = append(taken, r)
		} else {
			left = append(left, r)
		}
	}
	clear(p.ready[len(left):])
	p.ready = left
	p.of.metrics.pooled.Set(float64(len(left)))
	return taken
}

func (p *pool) discard(all []pooled) {
	var ends sync.WaitGroup
	slots := make(chan struct{}, stopAtOnce)
	for _, r := range all {
		slots <- struct{}{}
		ends.Go(func() { p.end(r.running); <-slots })
	}
	ends.Wait()
}

// end stops a box that nobody has, and removes its folder.
func (p *pool) end(r *running) {
	r.end(p.of.log)
	if err := p.of.data.discard(r.folder); err != nil {
		p.of.log.Warn("work folder of a box of the pool not removed", "error", err)
	}
}
