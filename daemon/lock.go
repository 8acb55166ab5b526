package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A lock is a file held with flock, which the kernel lets go when the process
// ends, however it ends. The file itself stays: removing it would let a third
// process lock a new file of the same name.
type lock struct{ file *os.File }

// ErrInUse is the error of a data directory or database that another server has.
var ErrInUse = errors.New("is in use by another bailey server")

func acquireLock(path string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return &lock{f}, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrInUse
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func (l *lock) release() { l.file.Close() }

// locks takes what no other server may have: the data directory, and the SQLite
// file, wherever it lies. A PostgreSQL database is shared on purpose.
func (c *Config) locks() (held []*lock, err error) {
	defer func() {
		if err != nil {
			for _, l := range held {
				l.release()
			}
			held = nil
		}
	}()
	paths := []string{filepath.Join(c.Data, "lock")}
	if db, ok := strings.CutPrefix(c.Database(), "sqlite:"); ok {
		// By the file's real name: two servers may call the same file differently.
		if dir, err := filepath.EvalSymlinks(filepath.Dir(db)); err == nil {
			db = filepath.Join(dir, filepath.Base(db))
		}
		if real, err := filepath.EvalSymlinks(db); err == nil {
			db = real
		}
		paths = append(paths, db+".lock")
	}
	for _, path := range paths {
		l, err := acquireLock(path)
		if errors.Is(err, ErrInUse) {
			return held, fmt.Errorf("%s %w; stop that one, or give this one a --data directory and database of its own",
				strings.TrimSuffix(strings.TrimSuffix(path, "lock"), "."), ErrInUse)
		} else if err != nil {
			return held, err
		}
		held = append(held, l)
	}
	return held, nil
}
