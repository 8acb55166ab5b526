package worker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory with everything in it. What is in it was made by a
// box: modes that forbid looking are changed, links are never followed, and a nesting
// however deep costs no more than two open directories, because what lies deep is
// moved to the top before it is removed.
func removeTree(path string) error {
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(path)
	top, err := openDir(parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	for moved := 0; ; {
		names, err := readNames(top)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}
		for _, name := range names {
			if moved, err = flatten(top, name, moved); err != nil {
				return fmt.Errorf("remove %s: %w", filepath.Join(path, name), err)
			}
		}
	}
	return os.NewSyscallError("rmdir", unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR))
}

// flatten removes one entry of top; the directories in it, unless they are empty, move
// to top. It returns how many were ever moved there, which is how they are named.
func flatten(top *os.File, name string, moved int) (int, error) {
	if removed, err := removeEntry(top, name); removed || err != nil {
		return moved, err
	}
	dir, err := openDir(top, name)
	if err != nil {
		return moved, err
	}
	defer dir.Close()
	for {
		names, err := readNames(dir)
		if err != nil {
			return moved, err
		}
		if len(names) == 0 {
			break
		}
		for _, inner := range names {
			removed, err := removeEntry(dir, inner)
			if err != nil {
				return moved, err
			}
			if removed {
				continue
			}
			// A directory can be moved by an ordinary user only if they may write to it.
			sub, err := openDir(dir, inner)
			if err != nil {
				return moved, err
			}
			_ = sub.Close()
			for {
				moved++
				err = unix.Renameat2(int(dir.Fd()), inner, int(top.Fd()), ".removed-"+strconv.Itoa(moved), unix.RENAME_NOREPLACE)
				if !errors.Is(err, unix.EEXIST) {
					break
				}
			}
			if err != nil {
				return moved, os.NewSyscallError("rename", err)
			}
		}
	}
	return moved, os.NewSyscallError("rmdir", unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR))
}

// removeEntry removes an entry of dir that is no directory, or an empty one.
func removeEntry(dir *os.File, name string) (removed bool, err error) {
	err = unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return false, os.NewSyscallError("unlink", err)
	}
	err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	return err == nil, nil
}

// openDir opens a directory in dir, itself and no link, and makes it one that we may
// read and change.
func openDir(dir *os.File, name string) (*os.File, error) {
	// Opened so, nothing has to be permitted by the directory itself.
	handle, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(handle)
	var info unix.Stat_t
	if err := unix.Fstat(handle, &info); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	self := "/proc/self/fd/" + strconv.Itoa(handle)
	if info.Mode&0o700 != 0o700 {
		if err := unix.Chmod(self, info.Mode&0o777|0o700); err != nil {
			return nil, &fs.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	return os.Open(self)
}

// readNames returns some of the names in a directory, from its start; none if it is empty.
func readNames(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(1000)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}
