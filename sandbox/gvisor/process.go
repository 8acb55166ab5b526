package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one that may not be our child, held so that its id cannot come to
// mean another.
type process struct {
	pid int
	fd  int // a pidfd
}

// hold opens the process with this id.
func hold(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return &process{pid, fd}, nil
}

// kill kills the process. One that has ended is no error.
func (p *process) kill() { _ = p.signal(unix.SIGKILL) }

func (p *process) signal(sig unix.Signal) error { return unix.PidfdSendSignal(p.fd, sig, nil, 0) }

// wait waits until the process has ended, at most until the time given.
func (p *process) wait(until time.Time) error {
	for {
		left := time.Until(until)
		if left <= 0 {
			return fmt.Errorf("process %d does not end", p.pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

func (p *process) close() { unix.Close(p.fd) }

// pids returns the processes of the host that we can see.
func pids() []int {
	names, _ := filepath.Glob("/proc/[0-9]*")
	list := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// containerOf returns the name of the box that the process is a part of: gVisor
// puts it last on the command lines of all its processes.
func containerOf(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})
	if len(args) < 2 || !strings.HasPrefix(filepath.Base(string(args[0])), runtimeName) {
		return ""
	}
	return string(args[len(args)-1])
}

// statOf returns what /proc says of a process from its state on (proc_pid_stat(5),
// field 3), or nothing if it is gone.
func statOf(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// Its name before that is in parentheses, and may hold some itself.
	line := string(data)
	return strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
}

// pause waits a moment for something that gives no signal.
func pause(ctx context.Context, moment time.Duration) error {
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
