package worker

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// lease keeps one work item ours while its session is served. It alone sends
// heartbeats: each names the answer to the one before, and the plane refuses a
// beat that does not fit, which is how two workers never hold one item.
type lease struct {
	plane *plane
	cred  credential
	data  *dataDir
	log   *slog.Logger

	// Owned by run, then by part.
	item item

	// proven is closed once a beat was accepted: the item is ours.
	proven     chan struct{}
	provenOnce sync.Once

	mu    sync.Mutex
	until time.Time // when it can no longer be ours unless another beat succeeds
}

const (
	beatMin    = time.Second
	beatMax    = 30 * time.Second
	ttlAssumed = 30 * time.Second // until the plane names one
	authBlips  = 3                // refusals of the credential in a row that may be a rotation
)

// leaseEnd says why a lease ended.
type leaseEnd string

const (
	leaseReleased leaseEnd = "released"      // we ended it
	leaseStopped  leaseEnd = "stopped"       // the plane asked us to stop
	leaseTaken    leaseEnd = "taken over"    // another worker or the queue has it
	leaseRefused  leaseEnd = "refused"       // the plane no longer knows it, or us
	leaseExpired  leaseEnd = "presumed lost" // no beat got through for a whole lease
)

// lost reports whether the item may be somebody else's now, so that we must not
// stop it.
func (e leaseEnd) lost() bool { return e == leaseTaken || e == leaseExpired }

func newLease(w *Worker, it item, cred credential, log *slog.Logger) *lease {
	return &lease{
		plane: w.plane, cred: cred, data: w.data, log: log, item: it,
		until: time.Now().Add(ttlAssumed), proven: make(chan struct{}),
	}
}

// prove waits until a beat is accepted, and reports false if one of the contexts
// ends first.
func (l *lease) prove(ctx, soft context.Context) bool {
	select {
	case <-l.proven:
		return true
	case <-ctx.Done():
	case <-soft.Done():
	}
	return false
}

// isProven reports whether a beat was ever accepted.
func (l *lease) isProven() bool {
	select {
	case <-l.proven:
		return true
	default:
		return false
	}
}

// validUntil returns when the lease can no longer be ours.
func (l *lease) validUntil() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until
}

// run beats at once and then every half lease, until ctx ends or the lease does.
func (l *lease) run(ctx context.Context) leaseEnd {
	interval := beatMax
	retry := backoff{min: 500 * time.Millisecond, max: beatMax}
	refused := 0
	for {
		sent := time.Now()
		// An attempt that outlived the lease would answer for a lease that is gone.
		timeout := max(beatMin, min(interval, time.Until(l.validUntil())))
		b, err := l.plane.heartbeat(ctx, l.cred, l.item.ID, l.expected(), 0, timeout)
		wait := interval
		switch status := statusOf(err); {
		case err == nil:
			retry.reset()
			refused = 0
			if b.ttl > 0 {
				interval = max(beatMin, min(b.ttl/2, beatMax))
			}
			if !b.extended || b.state == api.WorkStopping || b.state == api.WorkStopped {
				l.log.Info("the plane asks to stop", "state", b.state, "extended", b.extended)
				return leaseStopped
			}
			l.held(b, sent)
			wait = interval
		case status == http.StatusPreconditionFailed:
			l.log.Warn("lease lost: another worker or the queue has the item", "error", err)
			return leaseTaken
		case ctx.Err() != nil:
			return leaseReleased
		case final(err), unauthorized(err) && refused >= authBlips:
			l.log.Error("heartbeat refused for good", "error", err)
			return leaseRefused
		default:
			if unauthorized(err) {
				refused++
			}
			left := time.Until(l.validUntil())
			if left <= 0 {
				l.log.Error("lease presumed lost: no heartbeat got through in time", "error", err)
				return leaseExpired
			}
			wait = min(max(retry.next(), retryAfter(err)), interval, left)
			l.log.Warn("heartbeat failed; trying again", "error", err, "wait", wait)
		}
		if !sleep(ctx, wait) {
			return leaseReleased
		}
	}
}

// part ends the lease without stopping the item, so that another worker takes it
// over with whatever is unfinished: a last beat asks for the shortest lease. It
// may be called once run has returned.
func (l *lease) part(ctx context.Context) error {
	sent := time.Now()
	b, err := l.plane.heartbeat(ctx, l.cred, l.item.ID, l.expected(), api.LeaseTTLMin, callTimeout)
	if err == nil {
		l.held(b, sent)
	}
	return err
}

// held notes a beat that the plane accepted.
func (l *lease) held(b beat, sent time.Time) {
	ttl := b.ttl
	if ttl == 0 {
		ttl = ttlAssumed
	}
	l.mu.Lock()
	// Counted from when it was sent: the plane's lease does not begin earlier.
	l.until = sent.Add(max(ttl, beatMin))
	l.mu.Unlock()
	l.provenOnce.Do(func() { close(l.proven) })
	l.item.LastHeartbeat, l.item.Beaten = b.last, true
	if err := l.data.saveItem(l.item, false); err != nil {
		// Only a restart would miss it: its beat is refused and the item offered anew.
		l.log.Warn("heartbeat not written down", "error", err)
	}
}

func (l *lease) expected() string {
	if !l.item.Beaten {
		return api.HeartbeatNone
	}
	return l.item.LastHeartbeat
}

// errLeaseEnded is the cause of a session's context once its lease has ended.
var errLeaseEnded = errors.New("the work item's lease ended")
