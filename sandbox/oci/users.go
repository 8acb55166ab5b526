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
	"github.com/bailey-platform/bailey/sandbox/users"
)

// roots are the users of one driver's boxes, which keeps what it has once taken: making
// a user namespace of them takes a while.
type roots struct {
	launcher string

	mu     sync.Mutex
	ranges *users.Ranges // nil before the first use
	free   []*userRange
}

// A userRange is the users of one box at a time.
type userRange struct {
	first int      // on the host, of [users.PerBox]
	space *os.File // a user namespace that maps 0 and what follows to them
}

// take hands out a range that no live box has.
func (u *roots) take() (*userRange, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if last := len(u.free) - 1; last >= 0 {
		r := u.free[last]
		u.free = u.free[:last]
		return r, nil
	}
	if u.ranges == nil {
		ranges, err := users.Open(users.Path, users.Default)
		if err != nil {
			return nil, fmt.Errorf("find users for boxes: %w", err)
		}
		u.ranges = ranges
	}
	first, err := u.ranges.Take()
	if err != nil {
		return nil, err
	}
	r := &userRange{first: int(first)}
	if r.space, err = userNamespace(u.launcher, r.first); err != nil {
		return nil, errors.Join(fmt.Errorf("make a user namespace: %w", err), u.ranges.Give(first))
	}
	return r, nil
}

// held is the file by whose locks the ranges are ours. There is one once a range was
// taken.
func (u *roots) held() *os.File {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ranges.File()
}

// give takes a range back.
func (u *roots) give(r *userRange) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.free = append(u.free, r)
}

// userNamespace makes a user namespace that nothing is in.
func userNamespace(launcher string, first int) (*os.File, error) {
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: users.PerBox}}
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
