package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
)

// Every box has a range of users of its own on the host, so that its processes are
// nobody's there, other boxes' included. The ranges are above those that systemd hands
// out to services and below where ids are negative numbers to some programs; no file
// has such an owner, as what a box writes is mounted with the ids mapped back.
const (
	rangeSize  = 1 << 16
	rangeFirst = 0x7000_0000
	rangesMax  = 0x0fff
)

// users hands out the ranges of one driver.
type users struct {
	launcher string

	mu     sync.Mutex
	ranges []*userRange // all that there are
	free   []*userRange
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
	if len(u.ranges) == rangesMax {
		return nil, fmt.Errorf("%d boxes are running, and there are no users for more", rangesMax)
	}
	r := &userRange{first: rangeFirst + len(u.ranges)*rangeSize}
	var err error
	if r.space, err = userNamespace(u.launcher, r.first); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	u.ranges = append(u.ranges, r)
	return r, nil
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
