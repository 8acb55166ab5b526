// Package workfolder makes the work folder of a session ready for its next box, whatever
// the last one has done to it: closed it, nested it deeper than a path can be, put links
// where something is to be mounted.
//
// It must not know what a box is made of. Start reading at [Ready].
package workfolder

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// Ready makes a work folder one that a box can start in, whatever an earlier box
// has left there, and gives it to the box's user if we are root. No link in it is
// followed, and no error names where it is on the host.
func Ready(spec sandbox.Spec, root bool) error {
	dir, err := openDir(unix.AT_FDCWD, spec.WorkDir)
	if errors.Is(err, unix.EACCES) {
		// Closed to its owner, by a box.
		if err := os.Chmod(spec.WorkDir, 0o700); err != nil {
			return fmt.Errorf("open the work folder: %w", errors.Unwrap(err))
		}
		dir, err = openDir(unix.AT_FDCWD, spec.WorkDir)
	}
	if err != nil {
		return fmt.Errorf("open the work folder: %w", err)
	}
	defer dir.Close()
	if err := openUp(dir); err != nil {
		return fmt.Errorf("open the work folder to its owner: %w", err)
	}
	if err := clearMounts(dir, spec); err != nil {
		return err
	}
	if !root {
		return nil
	}
	return give(dir)
}

// Give makes the box's user the owner of a directory, and of what root owns below it.
func Give(path string) error {
	dir, err := openDir(unix.AT_FDCWD, path)
	if err != nil {
		return fmt.Errorf("open a directory to be given to the box's user: %w", err)
	}
	defer dir.Close()
	return give(dir)
}

func give(dir *os.File) error {
	if err := unix.Fchown(int(dir.Fd()), sandbox.User, sandbox.User); err != nil {
		return fmt.Errorf("give the work folder to the box's user: %w", err)
	}
	if err := giveAll(dir); err != nil {
		return fmt.Errorf("give what is in the work folder to the box's user: %w", err)
	}
	return nil
}

// openDir opens a directory, which must not be a link.
func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "directory"), nil
}

// giveAll makes the box's user the owner of what root owns below a directory. However
// deep that goes, one directory is open at a time, and none is found by its path, which
// may be longer than a path can be.
func giveAll(top *os.File) error {
	dir, err := openDir(int(top.Fd()), ".")
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	type level struct {
		id   fileID   // of the directory itself
		left []string // directories in it, still to be visited
	}
	enter := func() (level, error) {
		var l level
		var err error
		if l.id, err = identify(dir); err != nil {
			return l, err
		}
		l.left, err = giveEntries(dir)
		return l, err
	}
	first, err := enter()
	if err != nil {
		return err
	}
	for stack := []level{first}; ; {
		here := &stack[len(stack)-1]
		name := ".."
		if n := len(here.left); n > 0 {
			name, here.left = here.left[n-1], here.left[:n-1]
		} else if stack = stack[:len(stack)-1]; len(stack) == 0 {
			return nil
		}
		next, err := openDir(int(dir.Fd()), name)
		if err != nil {
			return err
		}
		dir.Close()
		dir = next
		if name != ".." {
			l, err := enter()
			if err != nil {
				return err
			}
			stack = append(stack, l)
			continue
		}
		// Nobody is there to move things about, but that would lead out of the folder.
		if id, err := identify(dir); err != nil || id != stack[len(stack)-1].id {
			return errors.Join(errors.New("it changes while it is looked through"), err)
		}
	}
}

// A fileID tells a file from every other.
type fileID struct{ dev, ino uint64 }

func identify(file *os.File) (fileID, error) {
	var stat unix.Stat_t
	err := unix.Fstat(int(file.Fd()), &stat)
	return fileID{uint64(stat.Dev), stat.Ino}, err
}

// giveEntries gives what root owns in a directory, and returns the names of the
// directories there.
func giveEntries(dir *os.File) (dirs []string, err error) {
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			var stat unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, err
			}
			if stat.Uid == 0 {
				if err := unix.Fchownat(int(dir.Fd()), name, sandbox.User, sandbox.User, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return nil, err
				}
			}
			if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, name)
			}
		}
		if err == io.EOF {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// clearMounts sees to it that directories lead to where something is to be mounted in
// the work folder. What else a box has put in their place is removed; it would not be
// seen anyway.
func clearMounts(folder *os.File, spec sandbox.Spec) error {
	for _, target := range slices.Sorted(maps.Keys(spec.ReadOnly)) {
		if inside, ok := strings.CutPrefix(target, sandbox.WorkPath+"/"); ok {
			if err := clearWay(folder, strings.Split(inside, "/")); err != nil {
				return fmt.Errorf("make way for %s: %w", target, err)
			}
		}
	}
	for _, target := range slices.Sorted(maps.Keys(spec.Files)) {
		if inside, ok := strings.CutPrefix(target, sandbox.WorkPath+"/"); ok {
			steps := strings.Split(inside, "/")
			if err := clearWay(folder, steps[:len(steps)-1]); err != nil {
				return fmt.Errorf("make way for %s: %w", target, err)
			}
		}
	}
	return nil
}

// clearWay makes each step a directory within the one before, and open to its owner.
func clearWay(folder *os.File, steps []string) error {
	at, err := openDir(int(folder.Fd()), ".")
	if err != nil {
		return err
	}
	defer func() { at.Close() }()
	for _, step := range steps {
		fd := int(at.Fd())
		next, err := openDir(fd, step)
		switch {
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			if err := unix.Unlinkat(fd, step, 0); err != nil {
				return err
			}
			fallthrough
		case errors.Is(err, unix.ENOENT):
			if err := unix.Mkdirat(fd, step, 0o755); err != nil {
				return err
			}
			next, err = openDir(fd, step)
		case errors.Is(err, unix.EACCES):
			if err := unix.Fchmodat(fd, step, 0o700, 0); err != nil {
				return err
			}
			next, err = openDir(fd, step)
		}
		if err != nil {
			return err
		}
		at.Close()
		at = next
		if err := openUp(at); err != nil {
			return err
		}
	}
	return nil
}

// openUp lets a directory's owner do everything with it.
func openUp(dir *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil || stat.Mode&0o700 == 0o700 {
		return err
	}
	return unix.Fchmod(int(dir.Fd()), stat.Mode&0o7777|0o700)
}
