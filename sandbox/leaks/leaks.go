// Package leaks looks for what boxes have left behind on a host: processes without a
// worker, control groups without processes, mounts, network cards, containers, and
// directories of boxes that nobody runs. On a host where workers were killed, at whatever moment, it
// must find nothing once the next worker on the same data directory has started.
//
// It knows the names that backends give to things, and none of the backends. Start
// reading at [Find]; what it finds stays, unless [Clean] is asked to remove it.
package leaks

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// A Leak is one thing that is left of a box.
type Leak struct {
	Kind   string `json:"kind"` // "process", "control group", "mount", "network card", "container", "directory"
	Name   string `json:"name"`
	Remedy string `json:"remedy"`        // a command or a sentence
	Box    string `json:"box,omitempty"` // which it is left of, if it says so

	// Driver is what the driver that made the box calls itself, or if that cannot be known
	// the directory it had. A killed worker's leaks have it in common.
	Driver string `json:"driver,omitempty"`

	remove func(proof) error // nil where only the next worker can know what to do
}

func (l Leak) String() string { return l.Kind + " " + l.Name }

// programs begin the names that parts of boxes run under: gVisor, the launcher, and the
// agent in a box.
var programs = []string{"runsc", "bailey-launcher", "boxlauncher", "boxagent"}

// groupPrefix begins the names of the control groups of each driver, with a tag after
// it; the groups of its boxes are within.
const groupPrefix = "bailey-"

// Find looks for leaks on this host, and in the data directories of workers. What a
// living worker uses is none.
func Find(dataDirs ...string) ([]Leak, error) {
	var found []Leak
	var errs []error
	for _, look := range []func() ([]Leak, error){processes, controlGroups, mounts, networkCards, containers} {
		leaks, err := look()
		found = append(found, leaks...)
		errs = append(errs, err)
	}
	for _, dir := range dataDirs {
		leaks, err := directories(dir)
		found = append(found, leaks...)
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// processes finds parts of boxes that have outlived the worker which started them: such
// a one has become a child of the first process of its namespace, or of a reaper.
func processes() ([]Leak, error) {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	part := make(map[int]string)
	for _, name := range names {
		line, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		first, _, _ := bytes.Cut(line, []byte{0})
		program := filepath.Base(string(first))
		if !slices.ContainsFunc(programs, func(p string) bool { return strings.HasPrefix(program, p) }) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil {
			part[pid] = program
		}
	}
	var found []Leak
	for pid, program := range part {
		parent, subreaper := parentOf(pid)
		if _, within := part[parent]; within || parent == 0 {
			continue // the outermost one is what counts; 0 ended, or is of another namespace
		}
		if parent == 1 || subreaper {
			group := boxGroup(pid)
			found = append(found, Leak{Kind: "process", Name: fmt.Sprintf("%d (%s)", pid, program), Remedy: fmt.Sprintf("kill -9 %d", pid),
				Box: group.box, Driver: group.tag, remove: func(p proof) error { return p.kill(pid, program, group) }})
		}
	}
	return found, nil
}

// parentOf returns a process's parent, and whether that is a session's manager that takes
// in orphans.
func parentOf(pid int) (parent int, manager bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name is in parentheses and may hold some itself, see proc_pid_stat(5).
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 2 {
		return 0, false
	}
	parent, _ = strconv.Atoi(fields[1])
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	return parent, strings.TrimSpace(string(name)) == "systemd"
}

// controlGroups finds groups of boxes with no process in them. A box has one in each
// hierarchy, and is one leak.
func controlGroups() ([]Leak, error) {
	all, err := allGroups()
	var found []Leak
	at := make(map[string]int) // of a box's leak in found
	for _, name := range all {
		box := filepath.Join(filepath.Base(filepath.Dir(name)), filepath.Base(name))
		i, ok := at[box]
		if !ok {
			i = len(found)
			at[box] = i
			found = append(found, Leak{Kind: "control group", Name: box, Remedy: "rmdir",
				Box: filepath.Base(name), Driver: strings.TrimPrefix(filepath.Base(filepath.Dir(name)), groupPrefix)})
		}
		found[i].Remedy += " " + name
		before := found[i].remove
		found[i].remove = func(p proof) error {
			if before != nil {
				if err := before(p); err != nil {
					return err
				}
			}
			return p.removeGroup(name)
		}
	}
	slices.SortFunc(found, func(a, b Leak) int { return strings.Compare(a.Name, b.Name) })
	return found, err
}

// allGroups returns the groups of boxes with no process in them, of all hierarchies.
func allGroups() ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var found []string
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		leaks, err := groupsBelow(fields[4])
		if err != nil {
			return found, err
		}
		found = append(found, leaks...)
	}
	return found, lines.Err()
}

// groupsBelow looks in a hierarchy of control groups. Boxes' groups may be in a group that
// was handed to their worker, so all of it is looked through.
func groupsBelow(root string) (found []string, err error) {
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // groups come and go
		}
		if tag, ok := strings.CutPrefix(filepath.Base(filepath.Dir(name)), groupPrefix); !ok || !isTag(tag) {
			return nil
		}
		procs, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
		if err == nil && len(bytes.TrimSpace(procs)) == 0 && empty(name) {
			found = append(found, name)
		}
		return fs.SkipDir
	})
	return found, err
}

// empty reports whether no group within a group has processes.
func empty(group string) bool {
	none := true
	_ = filepath.WalkDir(group, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		procs, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
		if err == nil && len(bytes.TrimSpace(procs)) > 0 {
			none = false
			return fs.SkipAll
		}
		return nil
	})
	return none
}

// mounts finds mounts of boxes in our mount namespace: they are all to be in others.
func mounts() ([]Leak, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []Leak
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		at := fields[4]
		if strings.Contains(at, "/sandbox/boxes/") || strings.Contains(at, "null-netns") && strings.Contains(at, "/boxes/") {
			root, box, _ := strings.Cut(at, "/boxes/")
			box, _, _ = strings.Cut(box, "/")
			found = append(found, Leak{Kind: "mount", Name: at, Remedy: "umount " + at, Box: box, Driver: driverIn(root)})
		}
	}
	return found, nil
}

// networkCards finds ends of cables to boxes in our network namespace.
func networkCards() ([]Leak, error) {
	cards, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var found []Leak
	for _, card := range cards {
		if card.Name == "box0" {
			found = append(found, Leak{Kind: "network card", Name: card.Name, Remedy: "ip link delete " + card.Name})
		}
	}
	return found, nil
}

// driverIn is the driver whose directory it is.
func driverIn(root string) string {
	if tag, err := tagOf(filepath.Join(root, "lock")); err == nil {
		return tag
	}
	return root
}

// directories finds directories of boxes in a worker's data directory, if no worker uses
// it. There may be one sandbox in it, or one for each backend.
func directories(data string) ([]Leak, error) {
	var found []Leak
	for _, pattern := range []string{"sandbox", "sandbox/*"} {
		dirs, err := filepath.Glob(filepath.Join(data, pattern))
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			if sandbox.Locked(filepath.Join(dir, "lock")) {
				continue
			}
			boxes, err := os.ReadDir(filepath.Join(dir, "boxes"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return found, err
			}
			for _, box := range boxes {
				name := filepath.Join(dir, "boxes", box.Name())
				found = append(found, Leak{Kind: "directory", Name: name, Remedy: "start a worker on " + data + ", which removes it", Box: box.Name(), Driver: driverIn(dir)})
			}
		}
	}
	return found, nil
}
