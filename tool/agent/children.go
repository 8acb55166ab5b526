package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

// children is the agent as the parent of every process in the box: what its shell
// leaves behind comes to it, to be reaped and, if need be, killed. A nil children
// does nothing.
type children struct {
	// Held for reading while a tool waits for a child of its own, which must not
	// be reaped from under it. (The shell is one too, but its status interests
	// nobody.)
	own  sync.RWMutex
	kick chan struct{} // asks for a round of reaping

	mu     sync.Mutex
	shells map[int]chan<- int // where the status of a person's shell is waited for, by its process
}

// adopt makes this process the parent of orphans below it, hides its memory and
// its descriptors from the other processes of its user, and reaps until ctx ends.
func adopt(ctx context.Context) (*children, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the parent of orphans: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("hide from other processes: %w", err)
	}
	c := &children{kick: make(chan struct{}, 1), shells: make(map[int]chan<- int)}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	go func() {
		defer signal.Stop(died)
		for {
			select {
			case <-died:
			case <-c.kick:
			case <-ctx.Done():
				return
			}
			c.reap()
		}
	}()
	return c, nil
}

func (c *children) reap() {
	if !c.own.TryLock() {
		return // the tool that holds it asks for another round
	}
	defer c.own.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if pid <= 0 && err != unix.EINTR {
			return
		}
		c.mu.Lock()
		if shell := c.shells[pid]; shell != nil && (status.Exited() || status.Signaled()) {
			shell <- exitCode(status)
			delete(c.shells, pid)
		}
		c.mu.Unlock()
	}
}

// exitCode is a status as shells word it.
func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// start starts a process that is a person's shell, and returns where its status will be.
func (c *children) start(begin func() (*os.Process, error)) (<-chan int, error) {
	status := make(chan int, 1)
	if c == nil {
		process, err := begin()
		if err != nil {
			return nil, err
		}
		go func() {
			state, err := process.Wait()
			if err != nil {
				status <- -1
				return
			}
			status <- exitCode(unix.WaitStatus(state.Sys().(syscall.WaitStatus)))
		}()
		return status, nil
	}
	// Not reaped before it is known.
	c.own.RLock()
	process, err := begin()
	if err == nil {
		c.mu.Lock()
		c.shells[process.Pid] = status
		c.mu.Unlock()
		err = process.Release()
	}
	c.own.RUnlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
	return status, err
}

// isShell reports whether a session is that of a person's shell.
func (c *children) isShell(session int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shells[session] != nil
}

// keep wraps a tool that waits for a child of its own.
func (c *children) keep(run runner) runner {
	if c == nil {
		return run
	}
	return func(ctx context.Context, call tool.Call) tool.Result {
		c.own.RLock()
		defer func() {
			c.own.RUnlock()
			select {
			case c.kick <- struct{}{}:
			default:
			}
		}()
		return run(ctx, call)
	}
}

// snapshot returns the processes there are.
func (c *children) snapshot() map[int]bool {
	if c == nil {
		return nil
	}
	pids := make(map[int]bool)
	for _, pid := range processes() {
		pids[pid] = true
	}
	return pids
}

// killSince kills every process that came from the shell since the snapshot,
// those that left its process group or session too. What an earlier command left
// running in a session of its own stays, with its own new processes.
func (c *children) killSince(before map[int]bool) {
	if c == nil {
		return
	}
	// A round may miss what a process forks while it lasts; who keeps forking that
	// fast is stopped by the box's limits.
	for range 20 {
		found := c.strays(before)
		for _, pid := range found {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
		}
		if len(found) == 0 {
			return
		}
	}
}

// strays returns the living processes that descend from this one through none of
// the processes in before, and are not in its session, as the agent's own helpers
// are, nor in that of a person's shell. (The shell and all it starts have left the
// agent's session and cannot return.)
func (c *children) strays(before map[int]bool) []int {
	self := os.Getpid()
	all := make(map[int]status)
	for _, pid := range processes() {
		if s, ok := statusOf(pid); ok {
			all[pid] = s
		}
	}
	var found []int
	for pid, s := range all {
		if s.session == all[self].session || s.zombie || c.isShell(s.session) {
			continue
		}
		at := pid
		for at != self && !before[at] && all[at].parent > 0 {
			at = all[at].parent
		}
		if at == self && pid != self {
			found = append(found, pid)
		}
	}
	return found
}

type status struct {
	parent, session int
	zombie          bool
}

func processes() []int {
	names, _ := filepath.Glob("/proc/[0-9]*")
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// statusOf reads /proc/pid/stat (proc_pid_stat(5)).
func statusOf(pid int) (status, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return status{}, false
	}
	// The name is in parentheses and may hold some itself.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 4 {
		return status{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	if err1 != nil || err2 != nil {
		return status{}, false
	}
	return status{parent, session, fields[0][0] == 'Z'}, true
}
