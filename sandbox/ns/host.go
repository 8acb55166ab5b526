package ns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
)

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

// isFirstOf reports whether a process is the first of a box of the driver with this tag:
// it says so on its command line, as anything might, and is the first of a namespace.
func isFirstOf(pid int, tag string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})
	if len(args) < 3 || string(args[0]) != netns.LauncherName || string(args[1]) != boxinit.Role || string(args[2]) != tag {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if numbers, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			list := bytes.Fields(numbers) // in each namespace, from ours inwards
			return len(list) > 1 && string(list[len(list)-1]) == "1"
		}
	}
	return false
}

// pause waits a moment for something that gives no signal.
func pause(ctx context.Context) error {
	timer := time.NewTimer(2 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// confined puts the calling thread, and what it starts, on as many CPUs as the limit
// fills, and returns how many those are.
func confined(cpus float64) (int, error) {
	err := cgroup.Confine(cpus)
	var set unix.CPUSet
	err = errors.Join(err, unix.SchedGetaffinity(0, &set))
	return set.Count(), err
}
