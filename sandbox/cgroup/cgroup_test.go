package cgroup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
)

// tree writes files, or links where the content begins with "-> ".
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list returns what is in dir, directories without a word on what they hold.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			found[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		found[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCgroupHierarchies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mountinfo string
		want      map[string]string
	}{
		"version 1": {
			mountinfo: `25 31 0:22 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
26 31 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 31 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 31 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
			want: map[string]string{
				"memory": "/sys/fs/cgroup/memory", "cpu": "/sys/fs/cgroup/cpu,cpuacct",
				"cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "unified": "/sys/fs/cgroup/unified",
			},
		},
		"version 2": {
			mountinfo: "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			want:      map[string]string{"unified": "/sys/fs/cgroup"},
		},
		"nothing": {mountinfo: "21 1 8:1 / / rw - ext4 /dev/sda1 rw\nbroken\n - \n", want: map[string]string{}},
	} {
		got, err := parseMounts(strings.NewReader(c.mountinfo))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for self, want := range map[string]string{
		"0::/user.slice/x.scope\n":       "/user.slice/x.scope",
		"3:cpu:/a\n2:memory:/b\n0::/c\n": "/c",
		"3:cpu:/a\n":                     "/",
		"":                               "/",
		"1:name=systemd:/odd:name\n0::/with:co\n": "/with:co",
	} {
		if got := ownGroup(self); got != want {
			t.Errorf("%q: %q, want %q", self, got, want)
		}
	}
}

// Version 2, in a directory that stands in for its file system.
func TestCgroupVersion2(t *testing.T) {
	t.Parallel()
	pid := fmt.Sprint(os.Getpid())
	limits := sandbox.Limits{MemoryBytes: 100 << 20, CPUs: 1.5}
	for name, c := range map[string]struct {
		own    string
		files  map[string]string
		parent string // of the boxes' groups
		moved  bool   // whether we step down
	}{
		"handed to us": {
			own: "/system.slice/bailey.service",
			files: map[string]string{
				"system.slice/bailey.service/procs":           pid + "\n",
				"system.slice/bailey.service/subtree_control": "\n",
			},
			parent: "system.slice/bailey.service", moved: true,
		},
		"handed to us, again": {
			own: "/system.slice/bailey.service/bailey-worker",
			files: map[string]string{
				"system.slice/bailey.service/subtree_control": "cpu memory pids\n",
			},
			parent: "system.slice/bailey.service",
		},
		"shared with others": {
			own: "/user.slice",
			files: map[string]string{
				"user.slice/procs": pid + "\n1\n",
				"subtree_control":  "cpuset cpu io memory pids\n",
			},
			parent: ".",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			tree(t, root, c.files)
			parent := filepath.Join(root, c.parent)
			// The kernel makes the files of a new group.
			tree(t, parent, map[string]string{"bailey-test/subtree_control": ""})
			groups, err := newGroups(map[string]string{unified: root}, c.own, "bailey-test")
			if err != nil {
				t.Fatal(err)
			}
			g, err := groups.Make("box-1", limits)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(parent, "bailey-test/box-1")
			if diff := cmp.Diff(map[string]string{unified: dir}, g.dirs); diff != "" {
				t.Error(diff)
			}
			got := list(t, root)
			for file, want := range map[string]string{
				"bailey-test/subtree_control":        "+memory +cpu",
				"bailey-test/box-1/memory.max":       "104857600",
				"bailey-test/box-1/memory.swap.max":  "0",
				"bailey-test/box-1/memory.oom.group": "1",
				"bailey-test/box-1/cpu.max":          "150000 100000",
			} {
				if got[filepath.Join(c.parent, file)] != want {
					t.Errorf("%s holds %q, want %q", file, got[filepath.Join(c.parent, file)], want)
				}
			}
			if moved := got[filepath.Join(c.parent, workerGroup, "procs")] == pid; moved != c.moved {
				t.Errorf("stepped down: %t", moved)
			}

			if g.Killed() {
				t.Error("killed already")
			}
			tree(t, dir, map[string]string{
				"memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 1\n", "memory.current": "4096\n",
				"cpu.stat": "usage_usec 2500\nuser_usec 1\n",
			})
			if !g.Killed() {
				t.Error("the kill is not seen")
			}
			if diff := cmp.Diff(sandbox.Stats{MemoryBytes: 4096, CPUTime: 2500 * time.Microsecond}, g.Stats()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNoCgroupsWhereNoneCanBeMade(t *testing.T) {
	t.Parallel()
	for name, hierarchies := range map[string]map[string]string{
		"none mounted":   {},
		"not all of v1":  {"memory": t.TempDir()},
		"no controllers": {unified: t.TempDir()},
		"not to be made": {"memory": "/proc/no/such", "cpu": "/proc/no/such"},
	} {
		if c, err := newGroups(hierarchies, "/", "bailey-test"); err == nil || c != nil {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}
