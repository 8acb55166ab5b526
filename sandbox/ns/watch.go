package ns

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
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
			// Looking closely takes long, so only when it could be too much.
			limit := b.spec.Limits.MemoryBytes
			if b.measure(most).MemoryBytes > limit && b.measure(exact).MemoryBytes > limit {
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

// measure adds up what the box's processes take, their memory as seen by the function
// given, and its files in memory.
func (b *box) measure(memory func(dir string) int64) sandbox.Stats {
	var s sandbox.Stats
	root := b.process.Pid
	for list := []int{root}; len(list) > 0; list = list[1:] {
		pid := list[0]
		list = append(list, children(pid)...)
		dir := fmt.Sprintf("/proc/%d", pid)
		s.Processes++
		s.MemoryBytes += memory(dir)
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

// most is what a process has of memory at the most: what it shares with others counts
// in full, and so do files in memory that it has mapped.
func most(dir string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0 // it has ended
	}
	var kB int64
	for line := range bytes.Lines(data) {
		switch key, rest, _ := bytes.Cut(line, []byte(":")); string(key) {
		case "RssAnon", "RssShmem", "VmSwap", "HugetlbPages":
			kB += number(rest)
		}
	}
	return kB << 10
}

// exact is what a process has of memory, with its part of what it shares with others,
// but for files, which those in memory are counted as; see proc_pid_smaps(5).
func exact(dir string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, "smaps"))
	if err != nil {
		return most(dir) // it may have ended; it is not to hide
	}
	var kB int64
	file := false
	for line := range bytes.Lines(data) {
		key, rest, _ := bytes.Cut(line, []byte(":"))
		switch string(key) {
		case "Pss":
			if !file {
				kB += number(rest)
			}
		case "Anonymous": // what the process has changed of a file, for itself
			if file {
				kB += number(rest)
			}
		case "SwapPss", "Private_Hugetlb", "Shared_Hugetlb":
			kB += number(rest)
		default:
			if fields := bytes.Fields(line); len(fields) >= 5 && bytes.IndexByte(fields[0], '-') > 0 { // a mapping begins
				file = len(fields) > 5 && fields[5][0] == '/' && !shared(string(fields[5]))
			}
		}
	}
	return kB << 10
}

// shared reports whether what is mapped by this name is memory that is in no file
// system.
func shared(name string) bool {
	return name == "/dev/zero" || strings.HasPrefix(name, "/SYSV") || strings.HasPrefix(name, "/memfd:")
}

// number is the first in a line.
func number(line []byte) int64 {
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
	return n
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
