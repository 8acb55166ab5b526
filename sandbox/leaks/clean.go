package leaks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// Clean removes what of the leaks on this host belongs to nobody, and only that: containers of a
// driver whose lock is free, and processes and control groups of one whose lock no process
// has open. The second only root can be sure of, and where it sees all processes of the
// host and their files. What it leaves is no error. Directories and mounts it leaves to the
// worker, or to the driver's own sweep, which know what is in them.
func Clean() error {
	// Twice, as a control group is a leak only once what was in it is gone.
	var errs []error
	for range 2 {
		found, err := Find()
		errs = append(errs, err, clean(found))
	}
	return errors.Join(errs...)
}

func clean(found []Leak) error {
	p := look()
	var errs []error
	for _, l := range found {
		if l.remove == nil {
			continue
		}
		if err := l.remove(p); err != nil && !errors.Is(err, errUnproven) {
			errs = append(errs, fmt.Errorf("%s: %w", l, err))
		}
	}
	return errors.Join(errs...)
}

// errUnproven is the error of removing what may be somebody's.
var errUnproven = errors.New("it is not certain that nobody uses it")

// A proof is what is known of who is alive.
type proof struct {
	sure   bool            // there are no others
	living map[string]bool // the tags of drivers whose lock some process has open

	// The paths of those locks, as the processes know them: in another mount namespace they
	// may lead elsewhere, or nowhere, from here.
	locks map[string]bool
}

// look looks at the files that all processes of the host have open.
func look() proof {
	if os.Geteuid() != 0 || !initialNamespace("pid", 0xEFFFFFFC) || !initialNamespace("user", 0xEFFFFFFD) {
		return proof{}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return proof{}
	}
	p := proof{sure: true, living: make(map[string]bool), locks: make(map[string]bool)}
	for _, process := range processes {
		// Root is kept from some where it lacks a capability. Any but the host's first may be
		// a driver.
		if err := p.add(filepath.Join(process, "fd")); err != nil && process != "/proc/1" {
			return proof{}
		}
	}
	return p
}

// add notes the locks among the files that a process has open.
func (p proof) add(dir string) error {
	open, err := os.ReadDir(dir)
	if ended(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range open {
		name := filepath.Join(dir, entry.Name())
		target, err := os.Readlink(name)
		if ended(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(filepath.Base(target), "lock") {
			continue
		}
		tag, err := tagOf(name)
		if ended(err) {
			continue
		}
		if err != nil {
			return err
		}
		p.living[tag], p.locks[target] = true, true
	}
	return nil
}

// ended reports whether err is that a process has ended, or has closed a file.
func ended(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// tagOf is what a driver whose lock is this file calls itself.
func tagOf(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0) // whatever it is, nothing happens to it
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	return sandbox.Tag(file)
}

// initialNamespace reports whether we are in the host's own namespace of a kind, which
// has the same number everywhere.
func initialNamespace(kind string, number uint32) bool {
	target, err := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && target == fmt.Sprintf("%s:[%d]", kind, number)
}

// dead reports whether it is certain that the driver with this tag is no more.
func (p proof) dead(tag string) bool { return isTag(tag) && p.sure && !p.living[tag] }

// isTag reports whether it is what [sandbox.Tag] makes: other programs, units of systemd
// among them, may have names that begin as our control groups do.
func isTag(s string) bool { return len(s) == 8 && strings.Trim(s, "0123456789abcdef") == "" }

// A group is the control group of a box.
type group struct{ tag, box string }

// boxGroup says which box's control group a process is in, if it is in any.
func boxGroup(pid int) group {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return group{}
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		for i, part := range parts[:len(parts)-1] {
			if tag, ok := strings.CutPrefix(part, groupPrefix); ok && isTag(tag) && i > 0 {
				return group{tag, parts[i+1]}
			}
		}
	}
	return group{}
}

// endMax is how long a process may take to end that was killed, and a group to be empty.
const endMax = 5 * time.Second

// kill kills a process that is in a group of a dead driver's, if it is still that.
func (p proof) kill(pid int, program string, was group) error {
	if !p.dead(was.tag) {
		return errUnproven
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || boxGroup(pid) != was || !strings.Contains(string(line), program) {
		return nil // another process has the number by now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	// What version 1 has frozen does not die; there may be no such file.
	_ = os.WriteFile(filepath.Join("/sys/fs/cgroup/freezer", groupPrefix+was.tag, was.box, "freezer.state"), []byte("THAWED"), 0)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(endMax.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return fmt.Errorf("it was killed, and is still there after %v", endMax)
		default:
			return err
		}
	}
}

// removeGroup removes the group of a dead driver's box, with those in it, and that of the
// driver if it was the last. The kernel lets no group go that has a process.
func (p proof) removeGroup(dir string) error {
	tag := strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), groupPrefix)
	if !p.dead(tag) {
		return errUnproven
	}
	for deadline := time.Now().Add(endMax); ; time.Sleep(10 * time.Millisecond) {
		err := rmdirs(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(filepath.Dir(dir)) // there may be others in it
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// rmdirs removes a directory and those in it. Files of control groups go with them.
func rmdirs(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(name string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Backward(dirs) {
		if err := unix.Rmdir(name); err != nil {
			return err
		}
	}
	return nil
}
