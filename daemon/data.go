package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// openData makes the data directory if it is missing, and returns its real path: a
// link to it that is turned elsewhere while the server runs changes nothing. It
// refuses a directory in which anybody could put files.
func openData(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if target, linked := os.Readlink(dir); linked == nil {
			return "", fmt.Errorf("the data directory %s is a link to %s, which is no directory: make that first, or name another one with --data", dir, target)
		}
		return "", fmt.Errorf("make the data directory: %w", err)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("find the data directory: %w", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", fmt.Errorf("find the data directory: %w", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("look at the data directory: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case owner != uint32(os.Geteuid()) && owner != 0: // root can do as it likes anyway
		return "", fmt.Errorf("the data directory %s belongs to user %d, and this server runs as user %d: run it as its owner, or name another directory with --data", real, owner, os.Geteuid())
	case info.Mode().Perm()&0o002 != 0:
		return "", fmt.Errorf("the data directory %s can be written by everybody (mode %#o): chmod o-w it, or name another one with --data", real, info.Mode().Perm())
	}
	return real, nil
}
