package cli

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// traces are what boxes have on this host: processes, mounts, control groups.
type traces struct {
	processes map[int]process
	mounts    map[string]bool
	cgroups   map[string]bool
}

type process struct{ command, environ string }

// tracesOf finds the processes that descend from this one or name dir on their
// command line, the mounts beneath dir, and the control groups of Bailey's that hold
// one of those processes, with the ones above them. Other boxes on this host are none
// of ours. What cannot be read is left out: a process may end while it is looked at.
func tracesOf(dir string) traces {
	t := traces{map[int]process{}, map[string]bool{}, map[string]bool{}}
	parents, commands := map[int]int{}, map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, ok := parentOf(pid); ok {
			parents[pid] = parent
			command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			commands[pid] = string(command)
		}
	}
	self := os.Getpid()
	for pid := range parents {
		if pid != self && (descends(pid, self, parents) || strings.Contains(commands[pid], dir)) {
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			t.processes[pid] = process{commands[pid], string(environ)}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir) {
			t.mounts[fields[4]] = true
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || !strings.Contains(path, "/bailey-") {
			return nil
		}
		pids, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(pids)) {
			if n, err := strconv.Atoi(pid); err == nil && t.processes[n] != (process{}) {
				for ; strings.Contains(path, "/bailey-"); path = filepath.Dir(path) {
					t.cgroups[path] = true
				}
				break
			}
		}
		return nil
	})
	return t
}

// left returns t with the control groups of u that are still there: an empty one
// cannot be told from anybody else's.
func (t traces) left(u traces) traces {
	for path := range u.cgroups {
		if _, err := os.Stat(path); err == nil {
			t.cgroups[path] = true
		}
	}
	return t
}

// parentOf returns the parent of a process that is not a zombie.
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name in parentheses may hold anything, more of them included. After it come
	// state and parent.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil
}

func descends(pid, ancestor int, parents map[int]int) bool {
	for range len(parents) { // a bound: pids may be reused while we look
		parent, ok := parents[pid]
		if !ok || parent == 0 {
			return false
		}
		if parent == ancestor {
			return true
		}
		pid = parent
	}
	return false
}

// without returns what of t is not in u.
func (t traces) without(u traces) traces {
	return traces{minus(t.processes, u.processes), minus(t.mounts, u.mounts), minus(t.cgroups, u.cgroups)}
}

func minus[K comparable, V any](a, b map[K]V) map[K]V {
	out := map[K]V{}
	for k, v := range a {
		if _, ok := b[k]; !ok {
			out[k] = v
		}
	}
	return out
}

// or returns t, or u if t is empty.
func (t traces) or(u traces) traces {
	if t.empty() {
		return u
	}
	return t
}

func (t traces) empty() bool { return len(t.processes)+len(t.mounts)+len(t.cgroups) == 0 }

func (t traces) String() string {
	return fmt.Sprintf("%d processes, %d mounts, %d control groups", len(t.processes), len(t.mounts), len(t.cgroups))
}
