package leaks

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// left makes what a killed worker would leave of a box: control groups, and in them a
// process whose parent is gone. It returns the lock of the worker's driver.
func left(t *testing.T) (lock *os.File, tag string) {
	t.Helper()
	if os.Geteuid() != 0 || livingTags() == nil {
		t.Skip("only root can be sure of who lives, and where it sees the host's processes")
	}
	lock, err := sandbox.Lock(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if tag, err = sandbox.Tag(lock); err != nil {
		t.Fatal(err)
	}
	// An orphan, which says its number before it is one.
	out, err := exec.CommandContext(t.Context(), "/bin/bash", "-c", "(exec -a runsc-test sleep 600 >/dev/null 2>&1 & echo $!)").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("/bin/kill", "-9", pid).Run() })
	made := 0
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, groupPrefix+tag, "box")
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // not a hierarchy
		}
		if os.MkdirAll(filepath.Join(dir, "inner"), 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			_ = rmdirs(dir)
			_ = os.Remove(filepath.Dir(dir))
		})
		if os.WriteFile(filepath.Join(dir, "inner", "cgroup.procs"), []byte(pid), 0) == nil {
			made++
		}
	}
	if made == 0 {
		t.Skip("there are no control groups that we may use")
	}
	return lock, tag
}

// of are the leaks of one driver, as others may run boxes on this host.
func of(t *testing.T, tag string) []Leak {
	t.Helper()
	found, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(l Leak) bool {
		pid, _, _ := strings.Cut(l.Name, " ")
		data, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		return !strings.Contains(l.Name, tag) && !strings.Contains(string(data), tag)
	})
}

func TestCleanRemovesWhatIsLeftOfTheDead(t *testing.T) {
	t.Parallel()
	lock, tag := left(t)
	found := of(t, tag)
	if len(found) != 1 || found[0].Kind != "process" || found[0].Box != "box" {
		t.Fatalf("found %v", found)
	}
	// The driver lives: this process has its lock.
	if err := clean(found); err != nil {
		t.Error(err)
	}
	if again := of(t, tag); len(again) != 1 || again[0].String() != found[0].String() {
		t.Fatalf("found %v of a living driver, which was %v before", again, found)
	}
	lock.Close()
	for range 2 { // the group is left by the process
		if err := clean(of(t, tag)); err != nil {
			t.Error(err)
		}
	}
	if rest := of(t, tag); len(rest) != 0 {
		t.Errorf("left: %v", rest)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + groupPrefix + tag, "/sys/fs/cgroup/" + groupPrefix + tag} {
		if groups, _ := filepath.Glob(pattern); len(groups) > 0 {
			t.Errorf("left: %v", groups)
		}
	}
}

// Where somebody may be alive out of sight, nothing is removed.
func TestCleanProvesBeforeItRemoves(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), groupPrefix+"0123", "box")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []proof{{}, {living: map[string]bool{"0123": true}}} {
		if err := p.removeGroup(dir); err != errUnproven {
			t.Errorf("%+v: %v", p, err)
		}
		if err := p.kill(os.Getpid(), "leaks", group{"0123", "box"}); err != errUnproven {
			t.Errorf("%+v: %v", p, err)
		}
	}
	nobody := proof{living: map[string]bool{}}
	// It is in another group than the one that was found.
	if err := nobody.kill(os.Getpid(), filepath.Base(os.Args[0]), group{"0123", "box"}); err != nil {
		t.Error(err)
	}
	if err := nobody.removeGroup(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("the group of a dead driver is left: %v", err)
	}
}

func TestCleanRemovesContainersOfTheDead(t *testing.T) {
	t.Parallel()
	root, socket := t.TempDir(), filepath.Join(t.TempDir(), "d.sock")
	lock, err := sandbox.Lock(filepath.Join(root, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 4)
	daemon := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.String() })}
	go daemon.Serve(l)
	defer daemon.Close()
	if err := removeContainer(socket, "docker", "aaa", root); err == nil || len(asked) > 0 {
		t.Errorf("of one who lives: %v", err)
	}
	lock.Close()
	if err := removeContainer(socket, "docker", "aaa", root); err != nil || <-asked != "DELETE /containers/aaa?force=1&v=1" {
		t.Error(err)
	}
	if err := removeContainer(socket, "docker", "aaa", filepath.Join(root, "gone")); err != nil || len(asked) != 1 {
		t.Errorf("of one whose directory is gone: %v", err)
	}
	_ = unix.Unlink(socket)
}
