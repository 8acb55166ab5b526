package ns_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
)

// The executables of these tests, built by TestMain. A test binary starts boxes too
// slowly, and not at all with the race detector in it.
var launcherPath, agentPath string

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54321

// binVar tells a test process the directory of the executables, built already.
const binVar = "NS_TEST_BIN"

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
