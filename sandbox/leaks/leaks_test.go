package leaks_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/leaks"
)

// find returns the leaks whose names contain text, as others may run boxes on this host.
func find(t *testing.T, text string, dirs ...string) []leaks.Leak {
	t.Helper()
	all, err := leaks.Find(dirs...)
	if err != nil {
		t.Fatal(err)
	}
	var found []leaks.Leak
	for _, l := range all {
		if strings.Contains(l.Name, text) {
			found = append(found, l)
		}
	}
	return found
}

func TestDirectoryOfABoxThatNobodyRuns(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	box := filepath.Join(data, "sandbox", "boxes", "one")
	if err := os.MkdirAll(box, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := find(t, data, data); len(got) != 1 || got[0].Kind != "directory" || got[0].Name != box {
		t.Errorf("found %v", got)
	}
	lock, err := os.Create(filepath.Join(data, "sandbox", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if got := find(t, data, data); len(got) != 0 {
		t.Errorf("a worker uses it, and %v was found", got)
	}
}

func TestControlGroupWithoutProcesses(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("bailey-%08x", rand.Uint32())
	var parent string
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Join(dir, "box"), 0o755); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
				parent = dir
				t.Cleanup(func() {
					os.Remove(filepath.Join(dir, "box"))
					os.Remove(dir)
				})
				continue // a box has one in each hierarchy, and counts once
			}
			os.Remove(filepath.Join(dir, "box"))
			os.Remove(dir)
		}
	}
	if parent == "" {
		t.Skip("no control groups can be made here (not root)")
	}
	if got := find(t, name); len(got) != 1 || got[0].Kind != "control group" {
		t.Errorf("found %v", got)
	}
}

// A directory without a place in it is no worker's.
func TestNothingInAnEmptyDirectory(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if got := find(t, data, data, filepath.Join(data, "none")); len(got) != 0 {
		t.Errorf("found %v", got)
	}
}
