package gvisor_test

import (
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
	"github.com/bailey-platform/bailey/tool"
)

// The executables of these tests, built by TestMain. A test binary cannot be gVisor
// itself, as it may have the race detector in it.
var runtimePath, agentPath, launcherPath string

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54321

// Variables that tell a test process what to be.
const (
	binVar    = "GVISOR_TEST_BIN"    // the directory of the executables, built already
	workerVar = "GVISOR_TEST_WORKER" // a directory; be a worker with a box there
)

func TestMain(m *testing.M) {
	stage.RunIfRole() // where a test names no launcher
	dir, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build what the tests run:", err)
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
		os.Exit(m.Run()) // the tests that need it are skipped
	}
	runtimePath, agentPath, launcherPath = filepath.Join(dir, "runtime"), filepath.Join(dir, "boxagent"), filepath.Join(dir, "boxlauncher")
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
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("bailey-test-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not ours (%v)", dir, err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./testdata/runtime", "../../tool/agent/boxagent", "../launcher/boxlauncher")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, name := range []string{"", "runtime", "boxagent", "boxlauncher"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func needRuntime(t testing.TB) {
	if runtimePath == "" {
		t.Skip("the executables these tests run could not be built")
	}
}

func open(root string) *gvisor.Driver {
	return gvisor.New(gvisor.Options{Root: root, Runtime: runtimePath, Launcher: launcherPath})
}

func TestContract(t *testing.T) {
	needRuntime(t)
	t.Parallel()
	// Long enough that no socket's path would fit beneath it.
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	t.Run("suite", func(t *testing.T) {
		sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return open(root) }, agentPath)
	})
	nothingLeft(t, root)
}

// The same as an ordinary user, who has no right to anything.
func TestContractAsOrdinaryUser(t *testing.T) {
	needRuntime(t)
	if os.Geteuid() != 0 {
		t.Skip("TestContract does it already; this one is for root")
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", fmt.Sprintf("-test.short=%t", testing.Short()),
		"-test.run=^Test(Contract|FrozenBoxDoesNothing|Fork|Network|Image|HostileWorkFolder|MachineSeemsTheBoxs)$")
	asOrdinary(t, cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || os.Getenv("CI") == "true" && bytes.Contains(out, []byte("--- SKIP: TestContract ")) {
		t.Errorf("as user %d: %v", ordinary, err)
	}
}

// asOrdinary makes the command run as an ordinary user, with a directory for its
// temporary files.
func asOrdinary(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	// Not within t.TempDir, whose parent is closed to others.
	dir, err := os.MkdirTemp("", "bailey-ordinary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, binVar+"="+filepath.Dir(runtimePath))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
}

// nothingLeft checks that no box of the driver at root has left a trace.
func nothingLeft(t *testing.T, root string) {
	t.Helper()
	boxes, err := os.ReadDir(filepath.Join(root, "boxes"))
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(boxes) > 0 {
		t.Errorf("boxes left: %v, %v", boxes, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(root)) {
		t.Errorf("mounts left: %s, %v", mounts, err)
	}
	tag := gvisor.Tag(root)
	groups, err := filepath.Glob("/sys/fs/cgroup/*/*" + tag + "*")
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %v, %v", groups, err)
	}
	if procs := processes(tag); len(procs) > 0 {
		t.Errorf("processes left: %q", procs)
	}
}

// processes returns the command lines on which the tag appears.
func processes(tag string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && bytes.Contains(line, []byte(tag)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// worker starts a box, says so, and lives until it is killed.
func worker(root string) error {
	dir := filepath.Join(root, "work")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	box, err := open(filepath.Join(root, "state")).Start(context.Background(), spec("left-behind", dir))
	if err != nil {
		return err
	}
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(context.Background(), stdin, stdout)
	if err != nil {
		return err
	}
	if _, err := client.Call(context.Background(), tool.Call{Tool: "bash",
		Input: json.RawMessage(`{"command":"setsid sleep 1000 & nohup sleep 1000 & echo ok"}`)}); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func spec(id, dir string) sandbox.Spec {
	return sandbox.Spec{
		ID:      id,
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   agentPath,
		WorkDir: dir,
		Env:     []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + sandbox.HomePath},
	}
}

func TestBoxDiesWithAKilledWorkerAndIsSwept(t *testing.T) {
	needRuntime(t)
	for _, as := range []string{"root", "ordinary"} {
		t.Run(as, func(t *testing.T) {
			t.Parallel()
			if (as == "root") != (os.Geteuid() == 0) && as == "root" {
				t.Skip("needs root")
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			root := t.TempDir()
			cmd.Env = append(os.Environ(), binVar+"="+filepath.Dir(runtimePath))
			if as == "ordinary" && os.Geteuid() == 0 {
				asOrdinary(t, cmd)
				root = cmd.Dir
			}
			cmd.Env = append(cmd.Env, workerVar+"="+root)
			cmd.Stderr = os.Stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ready := make([]byte, 6)
			if _, err := io.ReadFull(stdout, ready); err != nil {
				t.Fatalf("the worker has no box: %v", err)
			}
			state := filepath.Join(root, "state")
			tag := gvisor.Tag(state)
			if len(processes(tag)) < 3 {
				t.Errorf("processes of the box: %q", processes(tag))
			}

			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for deadline := time.Now().Add(10 * time.Second); len(processes(tag)) > 0; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("processes live on: %q", processes(tag))
				}
			}

			if left, err := os.ReadDir(filepath.Join(state, "boxes")); err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if err := open(state).Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			nothingLeft(t, state)
		})
	}
}

// A driver's own boxes survive its sweep, and another driver is kept out.
func TestSweepSparesLiveBoxes(t *testing.T) {
	needRuntime(t)
	t.Parallel()
	root := t.TempDir()
	driver := open(root)
	box, err := driver.Start(t.Context(), spec("alive", t.TempDir()))
	if unavailable(t, err) {
		return
	}
	defer box.Stop(context.Background())
	client, err := tool.Dial(t.Context(), stdin(box), stdout(box))
	if err != nil {
		t.Fatal(err)
	}
	if err := driver.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := client.Call(t.Context(), tool.Call{Tool: "bash", Input: json.RawMessage(`{"command":"true"}`)}); err != nil {
		t.Errorf("the box after the sweep: %v", err)
	}
	if err := open(root).Sweep(t.Context()); err == nil {
		t.Error("a second driver uses the same directory")
	}
}

func unavailable(t testing.TB, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skip(err)
	return true
}

func stdin(box sandbox.Box) io.WriteCloser { w, _ := box.Stdio(); return w }
func stdout(box sandbox.Box) io.Reader     { _, r := box.Stdio(); return r }

// A box whose kernel is killed from outside ends, and does not claim that its
// command did.
func TestKilledKernelIsACrash(t *testing.T) {
	needRuntime(t)
	t.Parallel()
	root := t.TempDir()
	box, err := open(root).Start(t.Context(), spec("crash", t.TempDir()))
	if unavailable(t, err) {
		return
	}
	if _, err := tool.Dial(t.Context(), stdin(box), stdout(box)); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && bytes.HasPrefix(line, []byte("runsc-sandbox")) && bytes.Contains(line, []byte(gvisor.Tag(root))) {
			var pid int
			if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseCrashed {
		t.Errorf("exit %+v", exit)
	}
	nothingLeft(t, root)
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no >&2; exit 128\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for runtime, want := range map[string]string{
		"/bin/true":          "CGO_ENABLED=0", // which needs libraries
		"/no/such/runtime":   "no such file",
		script:               "the test box said",
		filepath.Dir(script): "permission denied",
	} {
		_, err := gvisor.New(gvisor.Options{Root: t.TempDir(), Runtime: runtime}).Check(t.Context())
		if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || !strings.Contains(u.Error(), want) {
			t.Errorf("%s: %v, want %q", runtime, err, want)
		}
	}
}
