// Package cgroup puts boxes into control groups of their own, on hosts with version 1
// and version 2 of them alike: it limits, freezes and kills there what a box runs, and
// reads what it uses.
//
// Which limits can be held depends on what the host has and lets us use; [Held] says
// it. It must not know what a box is made of. Start reading at [Find].
package cgroup

import (
	"bufio"
	"context"
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
	// in version 1, one for all in version 2 (key unified).
	dirs map[string]string
	held Held

	// Held while these directories come and go: they are there as long as there are
	// boxes.
	mu sync.Mutex
}

// Held says what can be done with the groups of this host. In version 1 each of it needs
// a hierarchy that is mounted and that we may make groups in, which root may. In
// version 2 each limit needs a controller that has been handed down to us, freezing
// nothing.
type Held struct {
	Memory, CPU, Processes bool // the limits that hold
	Freeze                 bool // what is in a group can be frozen
}

// Held says what can be done with these groups.
func (c *Groups) Held() Held { return c.held }

// The controllers, as version 1 names its hierarchies.
const (
	memory  = "memory"
	cpu     = "cpu"
	cpuacct = "cpuacct"
	pids    = "pids"
	freezer = "freezer"

	unified = "unified" // all of them, in version 2
)

var controllers = []string{memory, cpu, cpuacct, pids, freezer}

// period is the length in microseconds over which a box's CPU time is measured out.
const period = 100_000

// Find makes the groups, with the name given, that the boxes' will be in. It fails
// where the host does not let us, or limits on memory and CPU time would not hold.
func Find(name string) (*Groups, error) {
	c, err := FindSome(name)
	if err == nil && !(c.held.Memory && c.held.CPU) {
		err = fmt.Errorf("limits on memory and CPU time cannot both be held: we may use %+v", c.held)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// FindSome is Find for boxes that take the limits that can be held, if there are any,
// see [Groups.Held]. The others are then not set.
func FindSome(name string) (*Groups, error) {
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
				if slices.Contains(controllers, controller) {
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
	if hierarchies[memory] != "" || hierarchies[cpu] != "" || hierarchies[pids] != "" {
		return newVersion1(hierarchies, name)
	}
	root := hierarchies[unified]
	if root == "" {
		return nil, errors.New("no hierarchy with the memory, cpu or pids controller is mounted")
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
	if err := c.setUp(); err != nil {
		return nil, err
	}
	on, err := words(c.dirs[unified], "cgroup.subtree_control")
	c.tidy()
	if err != nil {
		return nil, err
	}
	c.held = Held{Memory: slices.Contains(on, memory), CPU: slices.Contains(on, cpu), Processes: slices.Contains(on, pids), Freeze: true}
	return c, nil
}

// newVersion1 uses the hierarchies in which we may make groups.
func newVersion1(hierarchies map[string]string, name string) (*Groups, error) {
	c := &Groups{dirs: make(map[string]string)}
	var errs []error
	for _, controller := range controllers {
		if hierarchies[controller] == "" {
			continue
		}
		dir := filepath.Join(hierarchies[controller], name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
			continue
		}
		c.dirs[controller] = dir
	}
	c.tidy()
	c.held = Held{Memory: c.dirs[memory] != "", CPU: c.dirs[cpu] != "", Processes: c.dirs[pids] != "", Freeze: c.dirs[freezer] != ""}
	if c.held == (Held{}) {
		return nil, errors.Join(errs...)
	}
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

// enable passes what there is of the memory, cpu and pids controllers on to the groups
// in dir.
func enable(dir string) error {
	there, err := words(dir, "cgroup.controllers")
	if err != nil {
		return err
	}
	on, err := words(dir, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	var missing []string
	for _, controller := range []string{memory, cpu, pids} {
		if slices.Contains(there, controller) && !slices.Contains(on, controller) {
			missing = append(missing, "+"+controller)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return write(dir, "cgroup.subtree_control", strings.Join(missing, " "))
}

func words(dir, file string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	return strings.Fields(string(data)), err
}

// write writes to a file. It does so itself, as [os.WriteFile] has the
// runtime find out whether it can wait for the file, which takes as long again.
func write(dir, file, value string) error {
	name := filepath.Join(dir, file)
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		if _, err := unix.Write(fd, []byte(value)); !errors.Is(err, unix.EINTR) {
			if err != nil {
				err = &fs.PathError{Op: "write", Path: name, Err: err}
			}
			return err
		}
	}
}

// writeIfThere writes to a file that not every kernel has.
func writeIfThere(dir, file, value string) error {
	if _, err := os.Lstat(filepath.Join(dir, file)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return write(dir, file, value)
}

// A Group is one box's control group.
type Group struct {
	dirs    map[string]string
	held    Held
	limited bool // in its number of processes
}

// Make makes the group of the box with this id, with its limits on memory and CPU time
// if they are held, and none for one that is 0. The number of processes is another
// matter, see [Group.LimitProcesses].
func (c *Groups) Make(id string, limits sandbox.Limits) (*Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.setUp(); err != nil {
		return nil, err
	}
	g := &Group{dirs: make(map[string]string), held: c.held}
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
	var errs []error
	if g.held.Memory && limits.MemoryBytes > 0 {
		errs = append(errs, g.limitMemory(strconv.FormatInt(limits.MemoryBytes, 10)))
	}
	if g.held.CPU && limits.CPUs > 0 {
		quota := strconv.FormatInt(max(1000, int64(limits.CPUs*period)), 10)
		if dir, ok := g.dirs[unified]; ok {
			errs = append(errs, write(dir, "cpu.max", fmt.Sprintf("%s %d", quota, period)))
		} else {
			errs = append(errs, write(g.dirs[cpu], "cpu.cfs_period_us", strconv.Itoa(period)),
				write(g.dirs[cpu], "cpu.cfs_quota_us", quota))
		}
	}
	return errors.Join(errs...)
}

func (g *Group) limitMemory(bytes string) error {
	if dir, ok := g.dirs[unified]; ok {
		// Swap would only make running out slow. Where there is none, there is no file.
		if err := writeIfThere(dir, "memory.swap.max", "0"); err != nil {
			return err
		}
		// All or nothing: gVisor does not outlive the loss of a process.
		return errors.Join(write(dir, "memory.max", bytes), write(dir, "memory.oom.group", "1"))
	}
	if err := write(g.dirs[memory], "memory.limit_in_bytes", bytes); err != nil {
		return err
	}
	return writeIfThere(g.dirs[memory], "memory.memsw.limit_in_bytes", bytes)
}

// SpareOthers has the kernel kill one process when the group is out of memory, and not
// all, as it does in version 2 unless told so. In version 1 it is always one.
func (g *Group) SpareOthers() error {
	if dir, ok := g.dirs[unified]; ok && g.held.Memory {
		return write(dir, "memory.oom.group", "0")
	}
	return nil
}

// LimitProcesses limits how many processes and threads there are in the group: all of
// them, those too that make the box, which a backend with many of its own does not
// want. It fails with [errors.ErrUnsupported] where the limit cannot be held.
func (g *Group) LimitProcesses(n int) error {
	if !g.held.Processes {
		return fmt.Errorf("limit the number of processes: %w", errors.ErrUnsupported)
	}
	if err := write(g.one(pids), "pids.max", strconv.Itoa(n)); err != nil {
		return err
	}
	g.limited = true
	return nil
}

// one returns the directory of a controller.
func (g *Group) one(controller string) string {
	if dir, ok := g.dirs[unified]; ok {
		return dir
	}
	return g.dirs[controller]
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
	for controller, dir := range g.dirs {
		if controller == unified {
			continue
		}
		// 0 is who writes it. For a number, the kernel would stop every fork, exec and exit
		// on the host, for as long as it takes to be sure of that.
		if err := write(to(dir), "tasks", "0"); err != nil {
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
func (g *Group) Killed() bool { return g.Kills() > 0 }

// Kills is how many processes the kernel has killed in the group for want of memory.
func (g *Group) Kills() int64 {
	if dir, ok := g.dirs[unified]; ok {
		return Counter(dir, "memory.events", "oom_kill ")
	}
	return Counter(g.dirs[memory], "memory.oom_control", "oom_kill ")
}

// LimitHits is how often the group ran into its limits.
func (g *Group) LimitHits() sandbox.LimitHits {
	hits := sandbox.LimitHits{Memory: -1, Processes: -1}
	if g.held.Memory {
		hits.Memory = int(g.Kills())
	}
	if g.limited {
		hits.Processes = int(Counter(g.one(pids), "pids.events", "max "))
	}
	return hits
}

// Stats reports what the box uses. What no controller counts is 0.
func (g *Group) Stats() sandbox.Stats {
	s := sandbox.Stats{Processes: int(Counter(g.one(pids), "pids.current", ""))}
	if dir, ok := g.dirs[unified]; ok {
		s.MemoryBytes = Counter(dir, "memory.current", "")
		s.CPUTime = time.Duration(Counter(dir, "cpu.stat", "usage_usec ")) * time.Microsecond
	} else {
		s.MemoryBytes = Counter(g.dirs[memory], "memory.usage_in_bytes", "")
		s.CPUTime = time.Duration(Counter(g.dirs[cpuacct], "cpuacct.usage", ""))
	}
	return s
}

// Counter reads a number from a file of lines "key number", or one that holds nothing
// else if there is no key. What cannot be read is 0.
func Counter(dir, file, key string) int64 {
	if dir == "" {
		return 0 // there is no such hierarchy
	}
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

// sweepMax bounds how long the killing in a sweep may take.
const sweepMax = 10 * time.Second

// sweepAtOnce is how many groups are removed at a time.
const sweepAtOnce = 8

// Sweep removes the groups of boxes that are not live, and kills what is in them.
func (c *Groups) Sweep(live func(id string) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), sweepMax)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.tidy()
	var errs []error
	left := make(map[string]bool)
	for _, parent := range c.dirs {
		entries, err := os.ReadDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, entry := range entries {
			if entry.IsDir() && !live(entry.Name()) {
				left[entry.Name()] = true
			}
		}
	}
	// Side by side, as most of it is waiting for the kernel.
	var wg sync.WaitGroup
	results, slots := make(chan error, len(left)), make(chan struct{}, sweepAtOnce)
	for id := range left {
		g := &Group{dirs: make(map[string]string), held: c.held}
		for controller, parent := range c.dirs {
			g.dirs[controller] = filepath.Join(parent, id)
		}
		slots <- struct{}{}
		wg.Go(func() {
			results <- errors.Join(g.Kill(ctx), g.remove())
			<-slots
		})
	}
	wg.Wait()
	close(results)
	for err := range results {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
