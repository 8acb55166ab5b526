package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// space watches the disks that a worker writes to. Work is taken on only while there
// is room in reserve, and a box that fills the disk, or its work folder beyond its
// limit, is stopped. No kernel holds that limit: a box may exceed it by what it writes
// between two looks, and by what it closes to a worker that is not root.
type space struct {
	// Static.
	data, folders string
	reserve       int64 // bytes; 0 is for each disk to say
	folderMax     int64 // bytes of one work folder; 0 is any
	look          time.Duration

	mu   sync.Mutex
	size map[string]measure // of work folders, by path
}

// measure is what a work folder held when it was last looked at.
type measure struct {
	bytes int64
	at    time.Time
}

const (
	reserveDefault = 512 << 20 // bytes, or a twentieth of a small disk
	roomRetry      = 10 * time.Second

	lookEvery    = time.Second
	measureEvery = 5 * time.Second // a work folder that is in use
	lookEntries  = 20_000          // of a work folder that one look goes through; the next goes on
	entriesMax   = 1_000_000       // in one work folder
	depthMax     = 2_000           // folders within each other, in one
	overSlack    = 1 << 20         // bytes that a folder over its limit may grow by, to be tidied up
	culpritMin   = 32 << 20        // bytes written by a call from which it may have filled the disk
)

// free returns how much room a disk has and how much is to stay free.
func (s *space) free(dir string) (free, reserve int64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, 0, err
	}
	reserve = s.reserve
	if reserve == 0 {
		reserve = min(reserveDefault, int64(fs.Blocks)*fs.Bsize/20)
	}
	return int64(fs.Bavail) * fs.Bsize, reserve, nil
}

// low returns why no work may be taken on, or nil if there is room.
func (s *space) low() error {
	var errs []error
	for _, dir := range []string{s.data, s.folders} {
		free, reserve, err := s.free(dir)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("free space of %s: %w", dir, err))
		case free < reserve:
			errs = append(errs, fmt.Errorf("the disk of %s is nearly full: %d MiB are free, and %d MiB are kept in reserve; make room there", dir, free>>20, reserve>>20))
		}
	}
	if len(errs) == 2 && errs[0].Error() == errs[1].Error() {
		return errs[0]
	}
	return errors.Join(errs...)
}

// awaitRoom waits until there is room to take work on, and returns false if ctx ended
// first. Meanwhile the worker is not ready.
func (w *Worker) awaitRoom(ctx context.Context) bool {
	for said := false; ; {
		err := w.space.low()
		w.setCramped(err)
		if err == nil {
			if said {
				w.log.Info("there is room on the disk again")
			}
			return ctx.Err() == nil
		}
		if !said {
			w.log.Error("no work is taken on", "error", err)
			said = true
		}
		if !sleep(ctx, roomRetry) {
			return false
		}
	}
}

// watch looks after the disk while a call runs in a box, until the returned function
// is called.
func (s *space) watch(r *running, log *slog.Logger) (stop func()) {
	done := make(chan struct{})
	l := &look{space: s, folder: r.folder, began: time.Now()}
	go func() {
		defer l.close()
		tick := time.NewTicker(s.look)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-r.ended:
				return
			case <-tick.C:
			}
			if why := l.exceeded(); why != "" {
				log.Warn("box stopped for what it wrote", "folder", l.folder, "reason", why)
				r.condemn(sandbox.Exit{Cause: sandbox.CauseDisk, Detail: why}, log)
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// A look is how a box that has been writing to its folder since began is watched. It is
// for one goroutine, which closes it.
type look struct {
	space  *space
	folder string
	began  time.Time

	survey *survey // under way; nil if there is none
}

// exceeded says which limit the box breaks, or "". However large its folder is, it takes
// little time, and may tell after several times only.
func (l *look) exceeded() string {
	s := l.space
	free, reserve, err := s.free(s.folders)
	full := err == nil && free < reserve/2
	last, known := s.measured(l.folder)
	if l.survey == nil {
		if !full && (s.folderMax == 0 || known && time.Since(last.at) < measureEvery) {
			return ""
		}
		if l.survey, err = newSurvey(l.folder, l.began); err != nil {
			return "" // gone by now
		}
	}
	done, err := l.survey.step(lookEntries)
	bytes, written := l.survey.total, l.survey.written
	if done {
		l.close()
		s.note(l.folder, bytes)
	}
	switch {
	case err != nil:
		return "its work folder " + err.Error()
	case full && written >= culpritMin:
		// Only of one that wrote a good deal lately can it be said that it is the cause.
		return fmt.Sprintf("the worker's disk is nearly full, and %d MiB of it were written during this call", written>>20)
	case done && s.folderMax > 0 && bytes > max(s.folderMax, last.bytes+overSlack):
		// What is over its limit already may be tidied up.
		return fmt.Sprintf("its work folder holds %d MiB, and %d MiB are its limit", bytes>>20, s.folderMax>>20)
	}
	return ""
}

func (l *look) close() {
	if l.survey != nil {
		l.survey.close()
		l.survey = nil
	}
}

// measured is what a folder held when it was last looked at, if it was.
func (s *space) measured(folder string) (measure, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.size[folder]
	return m, ok
}

func (s *space) note(folder string, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size == nil {
		s.size = make(map[string]measure)
	}
	s.size[folder] = measure{bytes, time.Now()}
}

// forget drops what is known of a folder that is gone.
func (s *space) forget(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.size, folder)
}
