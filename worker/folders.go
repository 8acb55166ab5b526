package worker

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// The names in the directory of work folders that are no session's.
const (
	poolPrefix = ".pool-" // belongs to a box of the pool
	gonePrefix = ".gone-" // is being removed
)

func (d *dataDir) workPath(session string) string {
	return filepath.Join(d.folders, fileName(session))
}

// hasWork reports whether a session has a work folder. What cannot be looked at counts
// as one.
func (d *dataDir) hasWork(session string) bool {
	_, err := os.Lstat(d.workPath(session))
	return !errors.Is(err, fs.ErrNotExist)
}

// checkWork says what is wrong with a session's work folder, if it has one.
func (d *dataDir) checkWork(session string) error {
	info, err := os.Lstat(d.workPath(session))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the work folder: %w", err)
	case !info.IsDir():
		return fmt.Errorf("the work folder %s is no directory", d.workPath(session))
	}
	return nil
}

// work returns a session's work folder, made if it is not there.
func (d *dataDir) work(session string) (string, error) {
	path := d.workPath(session)
	if d.hasWork(session) {
		return path, nil
	}
	return path, makeFolder(path)
}

// freshFolder makes a work folder that is no session's yet.
func (d *dataDir) freshFolder() (string, error) {
	path := filepath.Join(d.folders, poolPrefix+strings.ToLower(rand.Text()))
	return path, makeFolder(path)
}

func makeFolder(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	if os.Geteuid() == 0 {
		// What runs in a box is another user than we are.
		if err := os.Lchown(path, sandbox.User, sandbox.User); err != nil {
			return fmt.Errorf("make work folder: %w", err)
		}
	}
	return nil
}

// claimFolder makes a fresh folder the work folder of a session that has none.
func (d *dataDir) claimFolder(fresh, session string) (string, error) {
	if err := d.step("folder"); err != nil {
		return "", err
	}
	path := d.workPath(session)
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return "", fmt.Errorf("claim work folder: %w", err)
	}
	return path, nil
}

// forget removes all that is kept of a session that was deleted.
func (d *dataDir) forget(session string) error {
	err := d.discard(d.workPath(session))
	if gone := os.Remove(d.journalPath(session)); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// discard removes a work folder. It is out of the way first, so that a crash leaves
// nothing that could be taken for a session's.
func (d *dataDir) discard(path string) error {
	gone := filepath.Join(d.folders, gonePrefix+strings.ToLower(rand.Text()))
	err := os.Rename(path, gone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return removeTree(gone)
}

// leftFolders returns the folders that an earlier worker left behind: those of its
// pool, and those it was removing.
func (d *dataDir) leftFolders() ([]string, error) {
	entries, err := os.ReadDir(d.folders)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), poolPrefix) || strings.HasPrefix(e.Name(), gonePrefix) {
			left = append(left, filepath.Join(d.folders, e.Name()))
		}
	}
	return left, nil
}

// sessions returns the sessions that have a work folder here. One whose id is no plain
// name is left out.
func (d *dataDir) sessions() ([]string, error) {
	entries, err := os.ReadDir(d.folders)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && plainName.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
