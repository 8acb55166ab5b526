package rootfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// openNonblock keeps the opening of what turned out to be no file from waiting.
const openNonblock = unix.O_NONBLOCK

// A store is a directory with entries, each a directory that is made once, and whole
// or not there. Beside an entry NAME there is a file NAME.lock: who uses the entry
// holds a shared lock on it, and who makes or removes it an exclusive one. The kernel
// takes the lock from whoever dies.
type store struct{ dir string }

// keepUnused is how long an entry stays that nobody opens.
const keepUnused = 7 * 24 * time.Hour

func openStore(dir string) (store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return store{}, err
	}
	return store{dir}, os.MkdirAll(dir, 0o700)
}

// An entry is one that is in use.
type entry struct {
	dir  string
	lock *os.File
	once bool
}

// close ends the use of an entry.
func (e *entry) close() error {
	var err error
	if e.once {
		err = errors.Join(removeAll(e.dir), os.Remove(e.lock.Name()))
	}
	return errors.Join(err, e.lock.Close())
}

// get returns the entry of this name, which make makes if it is not there.
func (s store) get(ctx context.Context, name string, make func(ctx context.Context, dir string) error) (*entry, error) {
	e := &entry{dir: filepath.Join(s.dir, name)}
	err := e.open()
	if err != nil {
		return nil, err
	}
	for {
		if err = e.flock(ctx, unix.LOCK_SH); err != nil {
			break
		}
		if _, err = os.Lstat(e.dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		// The kernel lets go of the one lock before it gives the other, so in between
		// others may do what we are about to, or undo what we did.
		if err = e.flock(ctx, unix.LOCK_EX); err != nil {
			break
		}
		if _, err = os.Lstat(e.dir); errors.Is(err, fs.ErrNotExist) {
			err = s.fill(ctx, e.dir, make)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		e.lock.Close() // a nil one, if it could not be opened again, only says so
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(e.lock.Name(), now, now) // then it goes a little too soon
	return e, nil
}

// once makes an entry of which the name begins so and that nobody else uses. It goes
// when it is closed, or when we are no more.
func (s store) once(ctx context.Context, prefix string, make func(ctx context.Context, dir string) error) (*entry, error) {
	s.clean()
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	e, err := s.get(ctx, prefix+onceMark+hex.EncodeToString(id[:]), make)
	if err == nil {
		e.once = true
	}
	return e, err
}

// onceMark is in the names of entries that are used once.
const onceMark = "-once-"

// fill makes an entry. Its lock is held.
func (s store) fill(ctx context.Context, dir string, make func(ctx context.Context, dir string) error) error {
	s.clean()
	unfinished := dir + ".new" // left over if somebody was killed
	if err := removeAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		return err
	}
	err := os.Chmod(unfinished, 0o755) // whatever our umask is
	if err == nil {
		err = make(ctx, unfinished)
	}
	if err == nil {
		err = os.Rename(unfinished, dir)
	}
	if err != nil {
		return errors.Join(err, removeAll(unfinished))
	}
	return nil
}

// clean removes what nobody uses.
func (s store) clean() {
	locks, _ := filepath.Glob(filepath.Join(s.dir, "*.lock"))
	for _, name := range locks {
		once := strings.Contains(filepath.Base(name), onceMark)
		info, err := os.Stat(name)
		if err != nil || !once && time.Since(info.ModTime()) < keepUnused {
			continue
		}
		lock, err := os.OpenFile(name, os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			dir := strings.TrimSuffix(name, ".lock")
			e := entry{dir: dir, lock: lock}
			if e.named() && errors.Join(removeAll(dir), removeAll(dir+".new")) == nil {
				_ = os.Remove(name) // who waits for the lock sees it
			}
		}
		lock.Close()
	}
}

// open opens the file whose lock is the entry's, and makes it if need be.
func (e *entry) open() (err error) {
	e.lock, err = os.OpenFile(e.dir+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	return err
}

// named reports whether the file that is open still has its name. Who removes an entry
// removes that; another file may have it then, and others its lock.
func (e *entry) named() bool {
	ours, err := e.lock.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(e.dir + ".lock")
	return err == nil && os.SameFile(ours, named)
}

// flock takes the lock, waiting until it is free or ctx ends.
func (e *entry) flock(ctx context.Context, how int) error {
	for {
		err := unix.Flock(int(e.lock.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil && e.named():
			return nil
		case err == nil:
			e.lock.Close()
			if err := e.open(); err != nil {
				return err
			}
			continue
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return err
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// removeAll is os.RemoveAll for what may be closed to us who own it.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = os.Chmod(name, 0o700)
		}
		return err
	})
	return os.RemoveAll(dir)
}
