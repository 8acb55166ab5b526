// Package cgroup puts boxes into control groups of their own, on hosts with version 1
// and version 2 of them alike, and reads there what a box uses.
//
// It must not know what a box is made of. Start reading at [Find].
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// Groups are the control groups of all boxes of one driver: each box gets one under
// them. It is safe for concurrent use.
type Groups struct {
	// dirs are the directories that hold the boxes' groups: one for each controller
	// in version 1 (keys "memory", "cpu", "cpuacct"), one for all in version 2 (key
	// unified).
	dirs map[string]string

	// Held while these directories come and go: they are there as long as there are
	// boxes.
	mu sync.Mutex
}

const unified = "unified"

// period is the length in microseconds over which a box's CPU time is measured out.
const period = 100_000

// Find makes the groups, with the name given, that the boxes' will be in. It
// fails where the host does not let us.
func Find(name string) (*Groups, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	hierarchies, err := parseMounts(mounts)
	if err != nil {
		return nil, err
	}
	return newGroups(hierarchies, ownGroup(string(own)), name)
}

// parseMounts finds the hierarchies in /proc/self/mountinfo (proc_pid_mountinfo(5)).
func parseMounts(mountinfo io.Reader) (map[string]string, error) {
	hierarchies := make(map[string]string)
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			hierarchies[unified] = head[4]
		case "cgroup":
			for _, controller := range strings.Split(tail[2], ",") {
				if controller == "memory" || controller == "cpu" || controller == "cpuacct" {
					hierarchies[controller] = head[4]
				}
			}
		}
	}
	return hierarchies, lines.Err()
}

// ownGroup finds our group of version 2 in /proc/self/cgroup.
func ownGroup(self string) string {
	for line := range strings.Lines(self) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return group
		}
	}
	return "/"
}

func newGroups(hierarchies map[string]string, own, name string) (*Groups, error) {
	if hierarchies["memory"] != "" && hierarchies["cpu"] != "" {
		c := &Groups{dirs: make(map[string]string)}
		for _, controller := range []string{"memory", "cpu", "cpuacct"} {
			if hierarchies[controller] == "" {
				continue
			}
			c.dirs[controller] = filepath.Join(hierarchies[controller], name)
		}
		return c.tried()
	}
	root := hierarchies[unified]
	if root == "" {
		return nil, errors.New("no hierarchy with the memory and cpu controllers is mounted")
	}
	// Ours if it was handed to us (systemd's Delegate=), else one of our own at the
	// top.
	parent, err := delegated(filepath.Join(root, own))
	if err != nil {
		if err := enable(root); err != nil {
			return nil, err
		}
		parent = root
	}
	c := &Groups{dirs: map[string]string{unified: filepath.Join(parent, name)}}
	return c.tried()
}

// tried returns c if we may make groups there.
func (c *Groups) tried() (*Groups, error) {
	if err := c.setUp(); err != nil {
		return nil, err
	}
	c.tidy()
	return c, nil
}

// setUp makes the directories that hold the boxes' groups.
func (c *Groups) setUp() error {
	for controller, dir := range c.dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if controller == unified {
			if err := enable(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidy removes those directories if they hold none.
func (c *Groups) tidy() {
	for _, dir := range c.dirs {
		_ = os.Remove(dir)
	}
}

// workerGroup is the group we step down into, as one with processes of its own
// cannot have its controllers passed on to groups in it.
const workerGroup = "bailey-worker"

// delegated makes the group at dir, which we are in, ready to hold others. It leaves
// alone one that is shared with processes that are not ours.
func delegated(dir string) (string, error) {
	if filepath.Base(dir) == workerGroup {
		return filepath.Dir(dir), nil // we have been here
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return "", err
	}
	pid := strconv.Itoa(os.Getpid())
	if strings.TrimSpace(string(procs)) != pid {
		return "", fmt.Errorf("%s is shared with other processes", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, workerGroup), 0o755); err != nil {
		return "", err
	}
	if err := write(dir, workerGroup+"/cgroup.procs", pid); err != nil {
		return "", err
	}
	return dir, enable(dir)
}

// enable passes the memory and cpu controllers on to the groups in dir.
func enable(dir string) error {
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	has := strings.Fields(string(on))
	if slices.Contains(has, "memory") && slices.Contains(has, "cpu") {
		return nil
	}
	return write(dir, "cgroup.subtree_control", "+memory +cpu")
}

func write(dir, file, value string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644)
}

// A Group is one box's control group.
type Group struct{ dirs map[string]string }

// Make makes the group of the box with this id, with its limits.
func (c *Groups) Make(id string, limits sandbox.Limits) (*Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.setUp(); err != nil {
		return nil, err
	}
	g := &Group{dirs: make(map[string]string)}
	for controller, parent := range c.dirs {
		dir := filepath.Join(parent, id)
		// Two controllers may share a hierarchy, and so the directory.
		if err := os.Mkdir(dir, 0o755); err != nil && !slices.Contains(slices.Collect(maps.Values(g.dirs)), dir) {
			return nil, errors.Join(err, g.remove())
		}
		g.dirs[controller] = dir
	}
	if err := g.limit(limits); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func (g *Group) limit(limits sandbox.Limits) error {
	memory := strconv.FormatInt(limits.MemoryBytes, 10)
	quota := strconv.FormatInt(max(1000, int64(limits.CPUs*period)), 10)
	if dir, ok := g.dirs[unified]; ok {
		// Swap would only make running out slow. Where there is none, there is no file.
		if err := write(dir, "memory.swap.max", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return errors.Join(
			write(dir, "memory.max", memory),
			// All or nothing: gVisor does not outlive the loss of a process.
			write(dir, "memory.oom.group", "1"),
			write(dir, "cpu.max", fmt.Sprintf("%s %d", quota, period)),
		)
	}
	if err := write(g.dirs["memory"], "memory.limit_in_bytes", memory); err != nil {
		return err
	}
	if err := write(g.dirs["memory"], "memory.memsw.limit_in_bytes", memory); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(
		write(g.dirs["cpu"], "cpu.cfs_period_us", strconv.Itoa(period)),
		write(g.dirs["cpu"], "cpu.cfs_quota_us", quota),
	)
}

// Enter puts the calling thread into the group, so that what it starts is born
// there. A thread cannot be moved alone in version 2, where the kernel is told the
// group when it starts the process, see [Group.Open].
func (g *Group) Enter() error { return g.move(func(dir string) string { return dir }) }

// Leave takes the thread out again, to the top of the hierarchy, which limits nothing.
// (Where it was may have no name that we can see.)
func (g *Group) Leave() error {
	return g.move(func(dir string) string { return filepath.Dir(filepath.Dir(dir)) })
}

func (g *Group) move(to func(string) string) error {
	tid := strconv.Itoa(unix.Gettid())
	for controller, dir := range g.dirs {
		if controller == unified {
			continue
		}
		if err := write(to(dir), "tasks", tid); err != nil {
			return err
		}
	}
	return nil
}

// Open returns the directory for the kernel to start a process in, or nil in
// version 1.
func (g *Group) Open() (*os.File, error) {
	dir, ok := g.dirs[unified]
	if !ok {
		return nil, nil
	}
	return os.Open(dir)
}

// Killed reports whether the kernel has killed something in the group for want of
// memory.
func (g *Group) Killed() bool {
	if dir, ok := g.dirs[unified]; ok {
		return Counter(dir, "memory.events", "oom_kill ") > 0
	}
	return Counter(g.dirs["memory"], "memory.oom_control", "oom_kill ") > 0
}

// Stats reports what the box uses.
func (g *Group) Stats() sandbox.Stats {
	if dir, ok := g.dirs[unified]; ok {
		return sandbox.Stats{
			MemoryBytes: Counter(dir, "memory.current", ""),
			CPUTime:     time.Duration(Counter(dir, "cpu.stat", "usage_usec ")) * time.Microsecond,
		}
	}
	return sandbox.Stats{
		MemoryBytes: Counter(g.dirs["memory"], "memory.usage_in_bytes", ""),
		CPUTime:     time.Duration(Counter(g.dirs["cpuacct"], "cpuacct.usage", "")),
	}
}

// Counter reads a number from a file of lines "key number", or one that holds nothing
// else if there is no key. What cannot be read is 0.
func Counter(dir, file, key string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, key)
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				return n
			}
		}
	}
	return 0
}

// Remove removes a box's group. Its processes are gone, though the kernel may take
// a moment more to see it.
func (c *Groups) Remove(g *Group) error {
	err := g.remove()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tidy()
	return err
}

func (g *Group) remove() error {
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, removeGroup(dir))
	}
	return errors.Join(errs...)
}

func removeGroup(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// Sweep removes the groups of boxes that are not live.
func (c *Groups) Sweep(live func(id string) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.tidy()
	var errs []error
	for _, parent := range c.dirs {
		entries, err := os.ReadDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, entry := range entries {
			if entry.IsDir() && !live(entry.Name()) {
				errs = append(errs, removeGroup(filepath.Join(parent, entry.Name())))
			}
		}
	}
	return errors.Join(errs...)
}
