package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
)

// How often a box's memory is looked at. With a control group it is the kernel that
// holds the limit, and all there is to see is that it did.
const (
	watchGroup = 200 * time.Millisecond
	watchAlone = 50 * time.Millisecond
)

// watch ends the box when it runs out of memory.
func (b *box) watch() {
	interval := watchAlone
	over := func() bool { return b.memory() > b.spec.Limits.MemoryBytes }
	if b.group != nil {
		// The kernel picks what to kill, and what is left of the box may hang.
		interval, over = watchGroup, b.group.Killed
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if !b.frozen.Load() && over() {
				b.end(sandbox.CauseMemory, outOfMemory(b.spec.Limits))
				return
			}
		case <-b.ended:
			return
		}
	}
}

// guestMemory is the name of the file in memory that holds what the programs in a
// box have written, to their memory and to scratch files.
const guestMemory = "/memfd:runsc-memory"

// memory returns how many bytes of memory the box takes: the guest's, which several
// of its processes map, counted once, and gVisor's own.
func (b *box) memory() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.parts) == 0 {
		return 0
	}
	var total int64
	for _, p := range b.parts {
		total += cgroup.Counter(fmt.Sprintf("/proc/%d", p.pid), "status", "RssAnon:") // kB
	}
	total <<= 10
	if b.memfd == "" {
		b.memfd = guestFile(b.parts[0].pid)
	}
	var stat syscall.Stat_t
	if b.memfd != "" && syscall.Stat(b.memfd, &stat) == nil {
		total += stat.Blocks * 512
	}
	return total
}

// guestFile finds the guest's memory among the descriptors of the kernel process.
func guestFile(pid int) string {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, name := range names {
		if target, err := os.Readlink(name); err == nil && strings.HasPrefix(target, guestMemory) {
			return name
		}
	}
	return ""
}

// ticks is how many there are to a second in /proc (it has been 100 on every Linux
// for decades).
const ticks = 100

// cpuTime returns the time spent by the box's parts and by what they have started,
// which is where programs run.
func (b *box) cpuTime() time.Duration {
	b.mu.Lock()
	parts := b.parts
	b.mu.Unlock()
	parents, spent := make(map[int]int), make(map[int]int64)
	for _, pid := range pids() {
		fields := statOf(pid)
		if len(fields) < 15 {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
		for _, field := range fields[11:15] { // its own and its dead children's
			n, _ := strconv.ParseInt(field, 10, 64)
			spent[pid] += n
		}
	}
	ours := func(pid int) bool {
		return slices.ContainsFunc(parts, func(p *process) bool { return p.pid == pid })
	}
	var total int64
	for pid := range parents {
		at := pid
		for at > 1 && !ours(at) {
			at = parents[at]
		}
		if at > 1 {
			total += spent[pid]
		}
	}
	return time.Duration(total) * time.Second / ticks
}
