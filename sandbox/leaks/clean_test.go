package leaks

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// left makes what a killed worker would leave of a box: control groups, and in them a
// process whose parent is gone. It returns the lock of the worker's driver.
func left(t *testing.T) (lock *os.File, tag string) {
	t.Helper()
	if !look().sure {
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

// A group of another program's, such as a unit of systemd that a worker runs in, is none of
// a driver's, whatever it is called.
func TestGroupsOfOthersAreNone(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, name := range []string{"bailey-worker.service/bailey-0123abcd/box", "bailey-worker/1", "bailey-0123abcde/box", "bailey-gateway.slice/x"} {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for at := dir; at != root; at = filepath.Dir(at) {
			if err := os.WriteFile(filepath.Join(at, "cgroup.procs"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	found, err := groupsBelow(root)
	if want := []string{filepath.Join(root, "bailey-worker.service/bailey-0123abcd/box")}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %q, want %q: %v", found, want, err)
	}
}

// Where somebody may be alive out of sight, nothing is removed.
func TestCleanProvesBeforeItRemoves(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), groupPrefix+"01234567", "box")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []proof{{}, {sure: true, living: map[string]bool{"01234567": true}}} {
		if err := p.removeGroup(dir); err != errUnproven {
			t.Errorf("%+v: %v", p, err)
		}
		if err := p.kill(os.Getpid(), "leaks", group{"01234567", "box"}); err != errUnproven {
			t.Errorf("%+v: %v", p, err)
		}
	}
	nobody := proof{sure: true}
	// It is in another group than the one that was found.
	if err := nobody.kill(os.Getpid(), filepath.Base(os.Args[0]), group{"01234567", "box"}); err != nil {
		t.Error(err)
	}
	if err := nobody.removeGroup(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("the group of a dead driver is left: %v", err)
	}
}

// A driver in another mount namespace is known by the path that its lock has there.
func TestLockOutOfReach(t *testing.T) {
	t.Parallel()
	if !look().sure {
		t.Skip("only root can be sure of who lives, and where it sees the host's processes")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/bin/bash", "-c", `mount -t tmpfs none "$1" && exec 9>"$1/lock" && echo && read`, "bash", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if lock := filepath.Join(dir, "lock"); !look().locks[lock] {
		t.Errorf("nobody has %s", lock)
	}
}

// Root that lacks a capability does not see what others have open.
func TestCleanIsUnsureWithoutCapabilities(t *testing.T) {
	t.Parallel()
	if os.Getenv("LEAKS_TEST_LOOK") != "" {
		if look().sure {
			t.Error("it is sure of processes that it cannot look into")
		}
		return
	}
	if !look().sure {
		t.Skip("only root can be sure of who lives, and where it sees the host's processes")
	}
	drop, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip(err)
	}
	other := exec.CommandContext(t.Context(), "/bin/sleep", "600")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	cmd := exec.CommandContext(t.Context(), drop, "--bounding-set=-sys_ptrace,-dac_override,-dac_read_search", "--inh-caps=-all",
		os.Args[0], "-test.run=^TestCleanIsUnsureWithoutCapabilities$")
	cmd.Env = append(os.Environ(), "LEAKS_TEST_LOOK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
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
	if err := (proof{}).removeContainer(socket, "docker", "aaa", root); err == nil || len(asked) > 0 {
		t.Errorf("of one who lives: %v", err)
	}
	lock.Close()
	if err := (proof{}).removeContainer(socket, "docker", "aaa", root); err != nil || <-asked != "DELETE /containers/aaa?force=1&v=1" {
		t.Error(err)
	}
	gone := filepath.Join(root, "gone")
	elsewhere := map[string]bool{filepath.Join(gone, "lock"): true, filepath.Join(root, "lock"): true}
	for _, dir := range []string{root, gone} {
		if err := (proof{sure: true, locks: elsewhere}).removeContainer(socket, "docker", "aaa", dir); err != errUnproven || len(asked) > 0 {
			t.Errorf("of one who lives in another mount namespace, by %s: %v", dir, err)
		}
	}
	if err := (proof{}).removeContainer(socket, "docker", "aaa", gone); err != errUnproven || len(asked) > 0 {
		t.Errorf("of one who may live in another mount namespace: %v", err)
	}
	if err := (proof{sure: true}).removeContainer(socket, "docker", "aaa", gone); err != nil || len(asked) != 1 {
		t.Errorf("of one whose directory is gone: %v", err)
	}
	_ = unix.Unlink(socket)
}
