package worker

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// sweepEvery is how often the plane is asked which sessions are gone. It is asked
	// about a few at a time, as there may be thousands.
	sweepEvery = time.Hour
	sweepMax   = 500 // sessions a round
	sweepPause = 200 * time.Millisecond

	// sweepAge is for how long a folder must not have been touched; sweepAgain is the
	// wait before a session that is not there is asked for a second time.
	sweepAge   = time.Hour
	sweepAgain = 10 * time.Second
)

// sweepPool removes the folders of an earlier worker's pool, in which next to nothing
// is, and returns the rest of those that it left.
func (w *Worker) sweepPool(left []string) (rest []string) {
	for _, folder := range left {
		if !strings.HasPrefix(filepath.Base(folder), poolPrefix) {
			rest = append(rest, folder)
		} else if err := removeTree(folder); err != nil {
			w.log.Warn("folder of an earlier worker not removed", "folder", folder, "error", err)
		}
	}
	return rest
}

// sweepFolders removes what earlier workers left behind, and from then on, now and
// then, the work folders of sessions that were deleted while they were not served here.
func (w *Worker) sweepFolders(ctx context.Context, left []string) {
	for _, folder := range left {
		if ctx.Err() != nil {
			return // the next start finds it again
		}
		if err := removeTree(folder); err != nil {
			w.log.Warn("folder of an earlier worker not removed", "folder", folder, "error", err)
		}
	}
	for first := 0; ; {
		if !sleep(ctx, sweepEvery) {
			return
		}
		first = w.sweepDeleted(ctx, first)
	}
}

// sweepDeleted looks at some of the sessions that have a work folder, from the first-th
// on, and returns where to go on the next time.
func (w *Worker) sweepDeleted(ctx context.Context, first int) (next int) {
	sessions, err := w.data.sessions()
	if err != nil {
		w.log.Warn("work folders not looked through", "error", err)
		return 0
	}
	if first >= len(sessions) {
		first = 0
	}
	// "There is no such session" counts only from a plane that knows this environment:
	// with a wrong address or key, every session would be gone.
	if _, err := w.plane.stats(ctx); err != nil {
		return first
	}
	last := min(len(sessions), first+sweepMax)
	for _, session := range sessions[first:last] {
		if !sleep(ctx, sweepPause) {
			return first
		}
		if w.deleted(ctx, session) {
			w.log.Info("session was deleted; removing what is kept of it", "session_id", session)
			w.forget(session)
		}
	}
	return last
}

// deleted reports whether a session that is not served and was not lately is gone for good.
func (w *Worker) deleted(ctx context.Context, session string) bool {
	info, err := os.Lstat(w.data.workPath(session))
	if err != nil || time.Since(info.ModTime()) < sweepAge {
		return false
	}
	for range 2 {
		if w.boxes.serves(session) {
			return false
		}
		if _, err := w.plane.terminated(ctx, w.keys, session); !gone(err) {
			return false
		}
		if !sleep(ctx, sweepAgain) {
			return false
		}
	}
	return true
}

// forget removes everything that is kept of a session that was deleted.
func (w *Worker) forget(session string) {
	w.boxes.forget(session)
	w.space.forget(w.data.workPath(session))
	if err := w.data.forget(session); err != nil {
		w.log.Warn("work folder of a deleted session not removed", "session_id", session, "error", err)
	}
}
