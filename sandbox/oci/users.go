package oci

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
)

// Every box has a range of users of its own on the host, so that its processes are
// nobody's there, other boxes' included. The ranges are those of package ns: above what
// systemd hands out, and below where ids are negative numbers to some programs. No file
// has such an owner, as what a box writes is mounted with the ids mapped back.
const (
	rangeSize  = 1 << 16
	rangeFirst = 0x7000_0000
	rangesMax  = 0xff0
)

// rangesFile is where all backends and workers of a host agree on who has which range:
// whoever has locked the byte whose offset is the range's first user by rangeSize.
const rangesFile = "/run/bailey/users"

// users hands out the ranges of one driver, which keeps what it has once taken.
type users struct {
	launcher string

	mu   sync.Mutex
	file *os.File        // rangesFile; nil before the first use
	next int             // the range to try first
	ours [rangesMax]bool // those we have, which our locks do not keep from us
	free []*userRange
}

// A userRange is the users of one box at a time.
type userRange struct {
	first int      // on the host, of rangeSize
	space *os.File // a user namespace that maps 0 and what follows to them
}

// take hands out a range that no live box has.
func (u *users) take() (*userRange, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if last := len(u.free) - 1; last >= 0 {
		r := u.free[last]
		u.free = u.free[:last]
		return r, nil
	}
	first, err := u.claim()
	if err != nil {
		return nil, fmt.Errorf("claim users for a box: %w", err)
	}
	r := &userRange{first: first}
	if r.space, err = userNamespace(u.launcher, r.first); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return r, nil
}

// claim locks a range that nobody else has.
func (u *users) claim() (first int, err error) {
	if u.file == nil {
		if err := os.MkdirAll(filepath.Dir(rangesFile), 0o755); err != nil {
			return 0, err
		}
		if u.file, err = os.OpenFile(rangesFile, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return 0, err
		}
		u.next = rand.IntN(rangesMax)
	}
	for range rangesMax {
		i := u.next
		u.next = (i + 1) % rangesMax
		if u.ours[i] {
			continue
		}
		first := rangeFirst + i*rangeSize
		err := unix.FcntlFlock(u.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(first / rangeSize), Len: 1})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			u.ours[i] = err == nil
			return first, err
		}
	}
	return 0, fmt.Errorf("all those for %d boxes are taken", rangesMax)
}

// give takes a range back.
func (u *users) give(r *userRange) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.free = append(u.free, r)
}

// userNamespace makes a user namespace that nothing is in.
func userNamespace(launcher string, first int) (*os.File, error) {
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: rangeSize}}
	cmd := &exec.Cmd{
		Path: launcher,
		Args: []string{netns.LauncherName, cradle.RoleUsers},
		Env:  []string{},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: mapping, GidMappings: mapping,
			Pdeathsig: syscall.SIGKILL,
		},
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		stdin.Close()
		return nil, err
	}
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	err = errors.Join(err, stdin.Close(), cmd.Wait())
	if err != nil && space != nil {
		space.Close()
	}
	return space, err
}

// maps reports whether what is at these paths can be mounted with its owners
// mapped into the range. Not every file system can.
func (r *userRange) maps(paths []string) bool {
	for _, path := range paths {
		tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return false
		}
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE,
			&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(r.space.Fd())})
		unix.Close(tree)
		if err != nil {
			return false
		}
	}
	return true
}
