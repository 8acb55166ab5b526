package ns

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
)

// watchInterval is how often the memory of a box is looked at that has no control
// group.
const watchInterval = 50 * time.Millisecond

// watch ends the box when it runs out of memory.
func (b *box) watch() {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if b.measure().MemoryBytes > b.spec.Limits.MemoryBytes {
				b.end(sandbox.CauseMemory, outOfMemory(b.spec.Limits))
				return
			}
		case <-b.ended:
			return
		}
	}
}

// ticks is how many there are to a second in /proc (it has been 100 on every Linux
// for decades).
const ticks = 100

// measure adds up what the box's processes take, and its files in memory.
func (b *box) measure() sandbox.Stats {
	var s sandbox.Stats
	root := b.process.Pid
	for list := []int{root}; len(list) > 0; list = list[1:] {
		pid := list[0]
		list = append(list, children(pid)...)
		dir := fmt.Sprintf("/proc/%d", pid)
		s.Processes++
		s.MemoryBytes += cgroup.Counter(dir, "status", "RssAnon:") << 10 // kB
		s.CPUTime += time.Duration(ticksOf(dir)) * time.Second / ticks
	}
	for _, place := range []string{"/", "/dev/shm"} {
		var fs unix.Statfs_t
		if unix.Statfs(fmt.Sprintf("/proc/%d/root%s", root, place), &fs) == nil {
			s.MemoryBytes += int64(fs.Blocks-fs.Bfree) * fs.Bsize
		}
	}
	return s
}

// children are the processes that a process is the parent of.
func children(pid int) []int {
	var list []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		data, _ := os.ReadFile(file) // it may have ended
		for _, field := range bytes.Fields(data) {
			if child, err := strconv.Atoi(string(field)); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}

// ticksOf is the CPU time of a process and of its children that have ended, see
// proc_pid_stat(5).
func ticksOf(dir string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0
	}
	// The name is in parentheses and may hold some itself.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 15 {
		return 0
	}
	var spent int64
	for _, field := range fields[11:15] {
		n, _ := strconv.ParseInt(string(field), 10, 64)
		spent += n
	}
	return spent
}
