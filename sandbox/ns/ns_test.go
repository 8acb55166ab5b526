package ns_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
)

// The executables of these tests, built by TestMain. A test binary starts boxes too
// slowly, and not at all with the race detector in it.
var launcherPath, agentPath string

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54321

// Variables that tell a test process what to be.
const (
	binVar    = "NS_TEST_BIN"    // the directory of the executables, built already
	workerVar = "NS_TEST_WORKER" // a directory; be a worker with boxes there
)

func TestMain(m *testing.M) {
	dir, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build what the tests run:", err)
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
		os.Exit(m.Run()) // the tests that need it are skipped
	}
	launcherPath, agentPath = filepath.Join(dir, "launcher"), filepath.Join(dir, "boxagent")
	if root := os.Getenv(workerVar); root != "" {
		if err := worker(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// build builds the executables into a directory that is kept for the next time, as
// linking them takes seconds.
func build() (string, error) {
	if dir := os.Getenv(binVar); dir != "" {
		return dir, nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("bailey-test-ns-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not ours (%v)", dir, err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./testdata/launcher", "./testdata/attacker", "../../tool/agent/boxagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, name := range []string{"", "launcher", "attacker", "boxagent"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func needLauncher(t testing.TB) {
	if launcherPath == "" {
		t.Skip("the executables these tests run could not be built")
	}
}

func open(root string) *ns.Driver {
	return ns.New(ns.Options{Root: root, Launcher: launcherPath})
}

func TestContract(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	root := t.TempDir()
	t.Run("suite", func(t *testing.T) {
		sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return open(root) }, agentPath)
	})
	nothingLeft(t, root)
}

// The same as an ordinary user, who has no right to anything.
func TestContractAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestContract") }

// asOrdinary runs a test of this package as an ordinary user.
func asOrdinary(t *testing.T, name string) {
	needLauncher(t)
	if os.Geteuid() != 0 {
		t.Skipf("%s does it already; this one is for root", name)
	}
	t.Parallel()
	// Not within t.TempDir, whose parent is closed to others.
	dir, err := os.MkdirTemp("", "bailey-ordinary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+name+"$", "-test.v",
		fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, binVar+"="+filepath.Dir(launcherPath))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || os.Getenv("CI") == "true" && bytes.Contains(out, []byte("--- SKIP: "+name+" ")) {
		t.Errorf("as user %d: %v", ordinary, err)
	}
}

// worker starts a box that runs and, where there can be one, one that is frozen; says
// so, and lives until it is killed.
func worker(root string) error {
	d := open(filepath.Join(root, "state"))
	for _, id := range []string{"running", "frozen"} {
		dir := filepath.Join(root, id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		box, err := d.Start(context.Background(), sandbox.Spec{
			ID: id, WorkDir: dir, Network: attached{},
			Command: []string{"/bin/sh", "-c", "setsid sleep 1000 & echo up; exec sleep 1000"},
		})
		if err != nil {
			return err
		}
		_, stdout := box.Stdio()
		if _, err := io.ReadFull(stdout, make([]byte, 3)); err != nil {
			return err
		}
		if freezer, ok := box.(sandbox.Freezer); ok && id == "frozen" {
			if err := freezer.Freeze(context.Background()); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	select {}
}

// A worker that is killed leaves nothing that the next does not remove before its first
// box, frozen or not.
func TestKilledWorkerLeavesNothing(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	root := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVar+"="+root, binVar+"="+filepath.Dir(launcherPath))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed it is

	d := open(filepath.Join(root, "state"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := d.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, filepath.Join(root, "state"))
	// And the boxes' names are free.
	box, err := d.Start(ctx, sandbox.Spec{ID: "frozen", WorkDir: filepath.Join(root, "frozen"), Command: []string{"/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(ctx); err != nil { // does no harm to the living
		t.Error(err)
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseExited || exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	if err := box.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// What only says that it is a box's first process, as any program can, is not killed,
// nor is a box of a worker whose directory has the same name elsewhere.
func TestSweepSparesWhoOnlyLooksLikeABox(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, boxinit.Role), []byte("echo up; read x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(filepath.Join(dir, "state"))
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours := ns.Tag(filepath.Join(dir, "state"))
	for _, c := range []struct {
		name, tag  string
		namespaces uintptr
		killed     bool
	}{
		{"like a box", ours, 0, false},
		{"the first process of another's", "01234567", unix.CLONE_NEWUSER | unix.CLONE_NEWPID, false},
		{"the first process of ours", ours, unix.CLONE_NEWUSER | unix.CLONE_NEWPID, true},
	} {
		cmd := &exec.Cmd{Path: "/bin/sh", Args: []string{netns.LauncherName, boxinit.Role, c.tag}, Dir: dir, Stderr: os.Stderr,
			SysProcAttr: &syscall.SysProcAttr{Cloneflags: c.namespaces}}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, 3)); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		// Those that are killed are waited for, and only we can.
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		if err := d.Sweep(t.Context()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		stdin.Close()
		<-done
		if killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled(); killed != c.killed {
			t.Errorf("%s: killed is %t", c.name, killed)
		}
	}
}

// A device is there for who is offered it, and in what its description says.
func TestDevices(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("library", "of the device")
	write("test.json", fmt.Sprintf(`{"cdiVersion":"0.6.0","kind":"example.com/thing","devices":[
		{"name":"good","containerEdits":{"deviceNodes":[{"path":"/dev/things/zero","hostPath":"/dev/zero"}],"env":["THING=good"],
			"mounts":[{"hostPath":%q,"containerPath":"/opt/things/library"}]}},
		{"name":"closed","containerEdits":{"deviceNodes":[{"path":"/dev/things/mem","hostPath":"/dev/console"}]}},
		{"name":"elsewhere","containerEdits":{"deviceNodes":[{"path":"/etc/zero","hostPath":"/dev/zero"}]}},
		{"name":"over","containerEdits":{"mounts":[{"hostPath":%q,"containerPath":"/proc/self"}]}}]}`, filepath.Join(dir, "library"), dir))
	d := ns.New(ns.Options{Root: t.TempDir(), Launcher: launcherPath, DeviceDirs: []string{dir}})
	for name, want := range map[string]string{"closed": "every user", "elsewhere": "not in /dev", "over": "cannot appear", "none": "there is none"} {
		spec := benchSpec(t)
		spec.Devices = []string{"example.com/thing=" + name}
		if box, err := d.Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = box.Stop(context.Background())
			}
		}
	}
	_, run := attacked(t, d, func(spec *sandbox.Spec) { spec.Devices = []string{"example.com/thing=good"} })
	if text := must(t, run, "head -c 3 /dev/things/zero | od -An -tx1; cat /opt/things/library; echo; echo $THING"); strings.Join(strings.Fields(text), " ") != "00 00 00 of the device good" {
		t.Error(text)
	}
	refused(t, run, "echo x >/opt/things/library", "echo x >/dev/things/new")
}

// Where the kernel counts, a box that lives on tells which limits it has run into.
func TestLimitsThatWereMetAreCounted(t *testing.T) {
	needLauncher(t)
	if os.Geteuid() != 0 {
		t.Skip("counting needs control groups")
	}
	t.Parallel()
	d := open(t.TempDir())
	report, err := d.Check(t.Context())
	if err != nil || report.Limits["memory"] != sandbox.Hard || report.Limits["processes"] != sandbox.Hard {
		t.Skipf("limits are not held here: %v, %v", report.Limits, err)
	}
	box, run := attacked(t, d, func(spec *sandbox.Spec) { spec.Limits.MemoryBytes, spec.Limits.Processes = 192<<20, 60 })
	counter := box.(sandbox.LimitCounter)
	if hits := counter.LimitHits(); hits != (sandbox.LimitHits{}) {
		t.Errorf("at first: %+v", hits)
	}
	if text, failed := run("x=x; while :; do x=$x$x; done"); !failed {
		t.Error(text)
	}
	// It is one process after the other that the kernel ends, if one does not do.
	if hits := counter.LimitHits(); hits.Memory < 1 || hits.Processes != 0 || hits.Ending {
		t.Errorf("out of memory: %+v", hits)
	}
	run("seq 100 | xargs -P 100 -I {} sleep 1")
	if hits := counter.LimitHits(); hits.Processes < 1 || hits.Ending {
		t.Errorf("out of processes: %+v", hits)
	}
}

// nothingLeft checks that no box of the driver at root has left a trace.
func nothingLeft(t *testing.T, root string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(root)) {
		t.Errorf("mounts left: %s, %v", mounts, err)
	}
	tag := ns.Tag(root)
	groups, err := filepath.Glob("/sys/fs/cgroup/*/*" + tag + "*")
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %v, %v", groups, err)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), tag) {
			t.Errorf("%s is left: %q", file, line)
		}
	}
}

// By the time that a box runs, nobody in it has a right or can gain one, its first process
// included, which had many.
func TestNoRightsAreLeft(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	d := open(t.TempDir())
	box, client, err := boot(d, benchSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	defer box.Stop(context.Background())
	defer client.Close()
	all := ns.Processes(d)
	if len(all) < 2 {
		t.Fatalf("the box has the processes %d", all)
	}
	for _, pid := range all {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"NoNewPrivs:\t1", "Seccomp:\t2"}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			want = append(want, set+":\t0000000000000000")
		}
		if pid == all[0] {
			want = append(want, "Name:\tinit", "Threads:\t1")
		}
		for _, line := range want {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("no %q in\n%s", line, status)
			}
		}
	}
}
