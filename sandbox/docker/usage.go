package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
)

// usage is where the kernel tells what a container uses: files, so that they can be
// looked at more often than a daemon would like to be asked.
type usage struct{ memory, cpu, pids string } // directories; "" where we do not see any

// usageOf finds where that is for a process.
func usageOf(pid int) usage {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return usage{}
	}
	return findUsage("/sys/fs/cgroup", string(data))
}

// findUsage finds the directories under root, where the host has its control groups, by
// what /proc/…/cgroup says of a process.
func findUsage(root, groups string) usage {
	var u usage
	dir := func(controller, group string) string {
		name := filepath.Join(root, controller, group)
		// The root itself is everybody's.
		if info, err := os.Stat(name); err != nil || !info.IsDir() || filepath.Clean(group) == "/" {
			return ""
		}
		return name
	}
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" && u.memory == "" {
			if all := dir("", parts[2]); all != "" {
				u = usage{all, all, all}
			}
		}
		for _, controller := range strings.Split(parts[1], ",") {
			switch controller {
			case "memory":
				u.memory = dir(parts[1], parts[2])
			case "cpuacct":
				u.cpu = dir(parts[1], parts[2])
			case "pids":
				u.pids = dir(parts[1], parts[2])
			}
		}
	}
	return u
}

// killed reports whether the kernel has killed something for want of memory.
func (u usage) killed() bool {
	return u.memory != "" &&
		cgroup.Counter(u.memory, "memory.events", "oom_kill ")+cgroup.Counter(u.memory, "memory.oom_control", "oom_kill ") > 0
}

// stats is what is used now. What is not there, in the one version of control groups
// or in the other, counts as 0.
func (u usage) stats() sandbox.Stats {
	return sandbox.Stats{
		MemoryBytes: cgroup.Counter(u.memory, "memory.current", "") + cgroup.Counter(u.memory, "memory.usage_in_bytes", ""),
		CPUTime: time.Duration(cgroup.Counter(u.cpu, "cpu.stat", "usage_usec "))*time.Microsecond +
			time.Duration(cgroup.Counter(u.cpu, "cpuacct.usage", "")),
		Processes: int(cgroup.Counter(u.pids, "pids.current", "")),
	}
}
