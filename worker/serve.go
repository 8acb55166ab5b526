package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/audit"
)

const (
	// ackFor is how long an acknowledgement is tried. After about as long the
	// plane offers the item to somebody else.
	ackFor = 5 * time.Second

	// stopFor bounds telling the plane that we are done with an item.
	stopFor = 10 * time.Second
)

// claim takes on an item that was offered and serves it to its end.
func (w *Worker) claim(ctx, hard context.Context, o *offer, at *place) {
	log := w.log.With("work_id", o.id, "session_id", o.session)
	it := item{ID: o.id, Env: w.cfg.EnvironmentID, Session: o.session}
	cred := &itemCredential{keys: w.keys, token: o.token}

	// Written down before it is acknowledged: a crash between the two leaves a
	// note of an item that is offered to somebody else, which does no harm; the
	// other way round would leave an item that nobody knows of.
	if err := w.data.saveItem(it, true); err != nil {
		log.Error("work not taken on: it cannot be written down", "error", err)
		w.setUnfit(err)
		sleep(ctx, jitter())
		return
	}
	w.setUnfit(nil)
	if err := w.ack(hard, o.id); err != nil {
		log.Warn("work not acknowledged", "error", err)
		switch status := statusOf(err); {
		case status == 0 || status >= 500:
			// It may have been. The first heartbeat tells.
			w.serve(ctx, hard, it, at, cred, claimDoubtful, log)
			return
		case status == http.StatusNotFound, status == http.StatusConflict, status == http.StatusPreconditionFailed:
			// Gone, or somebody else's.
		case final(err):
			// It would be offered for ever.
			w.stop(hard, cred, o.id, log)
		}
		w.dropItem(o.id, log)
		w.metrics.items.WithLabelValues("not acknowledged").Inc()
		sleep(ctx, jitter())
		return
	}
	if o.kind != "session" || o.session == "" {
		// A health check is answered by being stopped; anything newer is not for us.
		log.Info("work of another kind; stopping it", "kind", o.kind)
		w.stop(hard, cred, o.id, log)
		w.dropItem(o.id, log)
		w.metrics.items.WithLabelValues("other kind").Inc()
		return
	}
	log.Info("work claimed", "token", o.token != "")
	w.serve(ctx, hard, it, at, cred, claimSure, log)
}

// ack acknowledges an item, trying again while the plane may not have heard.
func (w *Worker) ack(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, ackFor)
	defer cancel()
	retry := backoff{min: 100 * time.Millisecond, max: time.Second}
	for {
		err := w.plane.ack(ctx, id)
		if err == nil || final(err) || statusOf(err) == http.StatusConflict {
			return err
		}
		if !sleep(ctx, retry.next()) {
			return err
		}
	}
}

// resume carries on with an item that this worker held before it was restarted.
// Its token is not kept on disk; the environment key does as well.
func (w *Worker) resume(ctx, hard context.Context, it item, at *place) {
	log := w.log.With("work_id", it.ID, "session_id", it.Session)
	w.serve(ctx, hard, it, at, &itemCredential{keys: w.keys}, claimDoubtful, log)
}

// Whether an item is known to be ours before its first heartbeat.
const (
	claimSure     = true
	claimDoubtful = false
)

// serve holds an item's lease while its session is served, and says afterwards
// what is to become of the item.
func (w *Worker) serve(soft, hard context.Context, it item, at *place, cred credential, sure bool, log *slog.Logger) {
	w.metrics.sessions.Inc()
	defer w.metrics.sessions.Dec()

	ctx, cancel := context.WithCancelCause(hard)
	defer cancel(nil)
	w.note(audit.Record{Action: audit.LeaseTaken, Session: it.Session, Attrs: map[string]string{"work_id": it.ID}}, log)
	l := newLease(w, it, cred, log)
	leased := make(chan leaseEnd, 1)
	go func() {
		end := l.run(ctx)
		cancel(errLeaseEnded)
		leased <- end
	}()

	end := outcomeLost
	if sure || l.prove(ctx, soft) {
		end = w.session(ctx, soft, it, at, l, cred, log)
	}
	cancel(nil)
	lost := <-leased
	w.metrics.leases.WithLabelValues(string(lost)).Inc()
	w.metrics.items.WithLabelValues(string(end)).Inc()
	log.Info("work left", "end", end, "lease", lost)
	action := audit.LeaseReleased
	if lost.lost() {
		action = audit.LeaseLost
	}
	w.note(audit.Record{
		Action: action, Session: it.Session, Outcome: string(end), Detail: string(lost), Attrs: map[string]string{"work_id": it.ID},
	}, log)

	switch {
	case lost.lost():
		// Somebody else's by now.
	case lost == leaseRefused && !sure && !l.isProven():
		// It was not ours, or is not any more.
	case lost == leaseReleased && (end == outcomeHanded || end == outcomeLost):
		// Shutting down in the middle of something. The note stays: if this worker
		// is back before another took the item, it carries on itself.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(hard), stopFor)
		defer cancel()
		if err := l.part(ctx); err != nil {
			log.Warn("lease not shortened; it lapses by itself", "error", err)
		}
		return
	default:
		w.stop(hard, cred, it.ID, log)
	}
	w.dropItem(it.ID, log)
}

// session waits until no other item of the same session is served here, and then
// serves it.
func (w *Worker) session(ctx, soft context.Context, it item, at *place, l *lease, cred credential, log *slog.Logger) outcome {
	// The plane has at most one live item a session, but the one before may still
	// be tidying up here.
	id := it.Session
	leave := w.enter(ctx, soft, id)
	if leave == nil {
		if ctx.Err() != nil {
			return outcomeLost
		}
		return outcomeHanded
	}
	defer leave()

	terminated, err := w.lookUp(ctx, soft, cred, id, log)
	switch {
	case ctx.Err() != nil:
		return outcomeLost
	case err != nil && soft.Err() != nil:
		return outcomeHanded
	case gone(err):
		w.boxes.forget(id)
		return outcomeGone
	case terminated:
		log.Info("the session has ended already")
		w.boxes.forget(id)
		return outcomeTerminated
	}

	s := &session{
		id: id, plane: w.plane, cred: cred, lease: l, place: at, record: w.record,
		box: w.boxes.open(id, w.newLender(cred, it.ID), log), log: log, metrics: w.metrics,
		toolTimeout: w.cfg.ToolTimeout, maxIdle: w.cfg.MaxIdle, drainTimeout: w.cfg.DrainTimeout,
		requeued: requeues(w.cfg.BaseURL),
		open:     make(map[string]*call), answered: make(map[string]bool), verdicts: make(map[string]string),
		dead: make(map[string]bool), foreign: make(map[string]bool),
	}
	var eager sync.WaitGroup // and the line
	if s.broken = w.setUp(s, err); s.broken != nil {
		log.Error("session cannot be served; its calls are answered with the reason", "error", s.broken)
		s.maxIdle = 0
	} else if w.cfg.EagerBox {
		eager.Go(func() {
			if _, done, err := s.box.use(ctx); err == nil { // what goes wrong is said on the first call
				done()
			}
		})
	}

	lines, hangUp := context.WithCancel(ctx)
	eager.Go(func() { w.lines(lines, soft, it.ID, id, cred, log) })
	end := s.run(ctx, soft)
	hangUp()
	eager.Wait()
	// Only a session that rests may come back to the state its box is in.
	w.boxes.release(s.box, end == outcomeIdle)
	if s.journal != nil {
		over := end == outcomeTerminated || end == outcomeDeleted || end == outcomeGone
		if err := s.journal.close(over); err != nil {
			log.Warn("call journal not closed", "error", err)
		}
	}
	if end == outcomeDeleted {
		w.forget(id)
	}
	return end
}

// setUp gives s what it needs of this host. found is what looking the session up
// came to.
func (w *Worker) setUp(s *session, found error) error {
	if found != nil {
		return fmt.Errorf("the session cannot be read: %w", found)
	}
	err := w.data.checkWork(s.id)
	if err != nil {
		return err
	}
	if s.journal, err = w.data.openJournal(s.id); err != nil {
		return err
	}
	if s.journal.suspect {
		s.log.Error("the journal of this session's calls was damaged; calls asked for so far are reported as interrupted")
		s.doubtful = true
	}
	return nil
}

// requeues reports whether the plane at an address queues a session again as soon as
// a worker is needed, also where it was a person's answer that it waited for. Ours
// does. Anthropic's is only known to do so for a new message, so there an item is kept
// while a call waits for a person.
func requeues(baseURL string) bool {
	u, err := url.Parse(baseURL)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return host != "anthropic.com" && !strings.HasSuffix(host, ".anthropic.com")
}

// lookUp asks whether a session has ended, until it gets an answer that counts or
// one of the contexts ends.
func (w *Worker) lookUp(ctx, soft context.Context, cred credential, id string, log *slog.Logger) (terminated bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(soft, cancel)()
	retry := backoff{min: reconnectMin, max: reconnectMax}
	for refused := 0; ; {
		terminated, err = w.plane.terminated(ctx, cred, id)
		if unauthorized(err) || gone(err) {
			refused++
		}
		if err == nil || final(err) && !gone(err) || refused > authBlips {
			return terminated, err
		}
		log.Warn("session not read; trying again", "error", err)
		if !sleep(ctx, max(retry.next(), retryAfter(err))) {
			return false, err
		}
	}
}

// stop tells the plane that we are done with an item. It is tried for a while
// even when the worker is ending; if it fails the lease lapses.
func (w *Worker) stop(hard context.Context, cred credential, id string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(hard), stopFor)
	defer cancel()
	retry := backoff{min: 200 * time.Millisecond, max: 2 * time.Second}
	for {
		err := w.plane.stop(ctx, cred, id)
		if err == nil || statusOf(err) == http.StatusConflict {
			return
		}
		if final(err) || !sleep(ctx, retry.next()) {
			log.Warn("work not stopped", "error", err)
			return
		}
	}
}

func (w *Worker) dropItem(id string, log *slog.Logger) {
	if err := w.data.dropItem(id); err != nil {
		log.Warn("note of a work item not removed", "error", err)
	}
}
