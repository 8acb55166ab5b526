package worker

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// poll asks for work until ctx ends, and hands each offer that is not in hand
// already to serve, together with the place it is to leave. While all places are
// taken, or the disk is too full to take work on, it does not ask.
//
// It returns an error only if the very first answers are that the key is not
// accepted, which is a mistake that somebody made just now. Later, no answer of the
// plane ends it: the key may be rotated, the environment come back, the network mend.
func (w *Worker) poll(ctx context.Context, serve func(*offer, *place)) error {
	trouble := pollTrouble{log: w.log, retry: backoff{min: time.Second, max: time.Minute}}
	for answered := false; ; {
		if !w.awaitRoom(ctx) {
			return nil
		}
		at := w.places.take(ctx)
		if at == nil {
			return nil
		}
		began := time.Now()
		o, err := w.plane.poll(ctx, api.PollBlockMax)
		var wait time.Duration
		switch {
		case ctx.Err() != nil:
			// An offer that got lost on the way is made again: it was not acknowledged.
			at.leave()
			return nil
		case o != nil && w.places.closed():
			at.leave() // of a poll that was under way: the offer is made again, to others
		case unauthorized(err) && !answered && trouble.failed > 0:
			at.leave()
			return &KeyRefused{Environment: w.cfg.EnvironmentID, BaseURL: w.cfg.BaseURL, Err: err}
		case err != nil:
			at.leave()
			w.metrics.polls.WithLabelValues("error").Inc()
			wait = trouble.note(err)
			w.setReady(trouble.ready(err))
		case o == nil:
			at.leave()
			w.metrics.polls.WithLabelValues("empty").Inc()
			trouble.over()
			w.setReady(nil)
			// The plane holds an empty poll for nearly the whole block, so the next
			// one may follow at once. One that does not is spared.
			if time.Since(began) < api.PollBlockMax/2 {
				wait = jitter()
			}
		case !w.hold(o.id):
			// Delivery is at least once. The item is ours and being served.
			at.leave()
			w.metrics.polls.WithLabelValues("duplicate").Inc()
			w.log.Info("work offered that is in hand already", "work_id", o.id)
			trouble.over()
			w.setReady(nil)
			wait = jitter()
		default:
			w.metrics.polls.WithLabelValues("work").Inc()
			trouble.over()
			w.setReady(nil)
			serve(o, at)
		}
		answered = answered || err == nil
		if wait > 0 {
			sleep(ctx, wait)
		}
	}
}

// jitter is the wait after an answer that came too fast.
func jitter() time.Duration { return 500*time.Millisecond + rand.N(time.Second) }

// pollTrouble is a run of polls that failed.
type pollTrouble struct {
	log    *slog.Logger
	retry  backoff
	failed int
	status int       // of the last failure
	logged time.Time // when it was last said
}

const (
	troubleReport = 5 * time.Minute
	troubleReady  = 3 // failures in a row after which the worker is not ready
)

// note logs a failure, unless it is more of the same, and returns how long to wait.
func (t *pollTrouble) note(err error) time.Duration {
	t.failed++
	if status := statusOf(err); t.failed == 1 || status != t.status || time.Since(t.logged) > troubleReport {
		t.status, t.logged = status, time.Now()
		hint := "trying again"
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden:
			hint = "the environment key is not accepted; trying again, with the key read anew"
		case http.StatusNotFound:
			hint = "the environment or a queued session is not there; trying again (if that goes on, bailey worker --check looks at id and base URL)"
		}
		t.log.Warn("poll failed: "+hint, "error", err, "failures", t.failed)
	}
	return max(t.retry.next(), retryAfter(err))
}

// ready returns what Ready should say after err.
func (t *pollTrouble) ready(err error) error {
	if t.failed < troubleReady && !unauthorized(err) {
		return nil
	}
	return fmt.Errorf("cannot poll for work: %w", err)
}

func (t *pollTrouble) over() {
	if t.failed > 0 {
		t.log.Info("polling works again", "failures", t.failed)
	}
	t.failed = 0
	t.retry.reset()
}

// KeyRefused is the error of [Worker.Run] when the plane refuses the environment
// key from the start.
type KeyRefused struct {
	Environment, BaseURL string
	Err                  error
}

func (e *KeyRefused) Error() string {
	return fmt.Sprintf("%s does not accept the key for environment %s: it was revoked, or is another environment's; create a new one and give it to this worker (%v)",
		e.BaseURL, e.Environment, e.Err)
}

func (e *KeyRefused) Unwrap() error { return e.Err }
