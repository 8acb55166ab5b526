package landlock_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/landlock"
	"github.com/bailey-platform/bailey/sandbox/lockdown"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
	"github.com/bailey-platform/bailey/tool"
)

// The executables of these tests, built by TestMain.
var launcherPath, agentPath string

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54322

// binVar tells a test process the directory of the executables, built already.
const binVar = "LANDLOCK_TEST_BIN"

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
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("bailey-test-landlock-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not ours (%v)", dir, err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "./testdata/launcher", "../../tool/agent/boxagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, name := range []string{"", "launcher", "boxagent"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func need(t *testing.T) {
	t.Helper()
	if launcherPath == "" {
		t.Skip("the executables these tests run could not be built")
	}
	if version := lockdown.LandlockVersion(); version < lockdown.LandlockWhole {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this kernel's Landlock is of version %d", version)
		}
		t.Skipf("this kernel's Landlock is of version %d", version)
	}
}

// reachable returns a directory that the box's user can reach, if that is another than
// ours. Those of t.TempDir are within one that nobody else can.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bailey-landlock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open() *landlock.Driver { return landlock.New(landlock.Options{Launcher: launcherPath}) }

func TestContract(t *testing.T) {
	need(t)
	if os.Geteuid() == 0 {
		t.Skip("its work folders are out of reach for another user than root; TestContractAsOrdinaryUser does it")
	}
	t.Parallel()
	sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return open() }, agentPath)
}

func TestContractAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestContract") }

// asOrdinary runs a test of this package as an ordinary user.
func asOrdinary(t *testing.T, name string) {
	need(t)
	if os.Geteuid() != 0 {
		t.Skipf("%s does it already; this one is for root", name)
	}
	t.Parallel()
	dir, err := os.MkdirTemp("", "bailey-ordinary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
	cmd.Dir = dir
	// A TMPDIR would be one for boxes not to see, and they have their own.
	cmd.Env = append(os.Environ(), "GOTMPDIR="+dir, "HOME="+dir, binVar+"="+filepath.Dir(launcherPath))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || os.Getenv("CI") == "true" && bytes.Contains(out, []byte("--- SKIP: "+name+" ")) {
		t.Errorf("as user %d: %v", ordinary, err)
	}
}

// A worker that is root is told of a work folder that its boxes cannot reach.
func TestUnreachableWorkFolderIsNamed(t *testing.T) {
	need(t)
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user's boxes reach what the user does")
	}
	t.Parallel()
	box, err := open().Start(t.Context(), sandbox.Spec{ID: "unreachable", Command: []string{"/bin/true"}, WorkDir: t.TempDir()})
	if err == nil {
		_ = box.Stop(context.Background())
	}
	if err == nil || !strings.Contains(err.Error(), "chmod o+x") {
		t.Error(err)
	}

	// All of the way at once: a worker's directories are its own, one within another.
	outer := t.TempDir()
	inner := filepath.Join(outer, "worker", "env_1", "work")
	if err := os.MkdirAll(filepath.Join(inner, "sesn_1"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = open().Start(t.Context(), sandbox.Spec{ID: "unreachable-2", Command: []string{"/bin/true"}, WorkDir: filepath.Join(inner, "sesn_1")})
	if want := strings.Join([]string{outer + "/worker", outer + "/worker/env_1", inner}, " "); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want all of %s", err, want)
	}
}

// What cannot be had is refused rather than left out.
func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]sandbox.Spec{
		"an image":   {Image: "/"},
		"files":      {Files: map[string]string{"/etc/x": "/etc/passwd"}},
		"a network":  {Network: unattached{}},
		"a device":   {Devices: []string{"nvidia.com/gpu=all"}},
		"everything": {},
	} {
		spec.ID, spec.Command, spec.WorkDir = "refused", []string{"/no/such/program"}, t.TempDir()
		if box, err := open().Start(t.Context(), spec); err == nil {
			t.Errorf("%s: started", name)
			_ = box.Stop(context.Background())
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

type unattached struct{}

func (unattached) Attach(sandbox.Exits) error { return nil }

// What a box may not do on the host, a line each.
func TestAttacks(t *testing.T) {
	need(t)
	t.Parallel()
	outer, work := reachable(t), reachable(t)
	secret := filepath.Join(outer, "secret")
	if err := os.WriteFile(secret, []byte("a-host-secret"), 0o666); err != nil {
		t.Fatal(err)
	}
	// Landlock must be what keeps a box out, not the file's mode.
	for _, name := range []string{outer, secret} {
		if err := os.Chmod(name, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	local, err := net.Listen("unix", filepath.Join(outer, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	bystander := exec.Command("sleep", "1000")
	if os.Geteuid() == 0 {
		bystander.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: sandbox.User, Gid: sandbox.User}}
	}
	bystander.Env = []string{"SECRET=a-host-secret"}
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bystander.Process.Kill(); _ = bystander.Wait() }()
	pid := bystander.Process.Pid

	box, err := open().Start(t.Context(), sandbox.Spec{
		ID:      fmt.Sprintf("attacks-%d", os.Getpid()),
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   agentPath,
		WorkDir: work,
		Env:     []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + sandbox.HomePath},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Stop(context.Background())
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(t.Context(), stdin, stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	run := func(command string) (string, bool) {
		input, err := json.Marshal(map[string]string{"command": command})
		if err != nil {
			t.Fatal(err)
		}
		result, err := client.Call(t.Context(), tool.Call{Tool: "bash", Input: input, TimeoutMS: 30_000})
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return fmt.Sprintf("%s", result.Content), result.IsError
	}

	for _, command := range []string{
		// Files.
		"cat " + secret, "echo x >" + secret, "ls " + outer, "touch " + outer + "/new", "rm " + secret, "mv " + secret + " .",
		"ln " + secret + " hard", "ln -s " + secret + " soft && cat soft", "truncate -s 0 " + secret, "cat /proc/self/root" + secret,
		"cat /proc/self/cwd/../" + filepath.Base(outer) + "/secret", "ls /tmp", "echo x >/tmp/x", "echo x >/dev/shm/x", "ls /root", "ls /home",
		"ls /var", "ls /run", "ls /sys", "mkfifo " + outer + "/pipe", "mknod disk b 8 0", "dd if=/dev/vda count=1", "dd if=/dev/mem count=1",
		// Processes.
		fmt.Sprintf("kill -9 %d", pid), fmt.Sprintf("kill -0 %d", pid), fmt.Sprintf("cat /proc/%d/environ", pid), fmt.Sprintf("head -c1 /proc/%d/mem", pid),
		fmt.Sprintf("ls /proc/%d/root/", pid), fmt.Sprintf("readlink /proc/%d/exe", pid), fmt.Sprintf("renice 19 %d", pid),
		fmt.Sprintf("prlimit --pid %d --nofile=1:1", pid), fmt.Sprintf("taskset -p 1 %d", pid), fmt.Sprintf("ionice -c 3 -p %d", pid),
		"renice 19 -u $(id -u)", fmt.Sprintf("strace -p %d", pid), fmt.Sprintf("kill -9 %d", os.Getpid()),
		// Sockets.
		"exec 3<>/dev/tcp/" + strings.Replace(tcp.Addr().String(), ":", "/", 1), "echo x >/dev/udp/127.0.0.1/53",
		"curl -sS --unix-socket " + local.Addr().String() + " http://x/", "ping -c 1 127.0.0.1", "ip link",
		// The kernel.
		"mount -t tmpfs x .", "unshare -Ur id", "nsenter -t 1 -a id", "chroot . id", "ipcmk -M 4096", "setsid -w su -c id </dev/null",
		"keyctl show", "dmesg", "hostname x", "echo x >/proc/sys/kernel/hostname",
	} {
		if text, failed := run(command); !failed {
			t.Errorf("%s: %s", command, text)
		}
	}
	// What is about files, which Landlock does not mind.
	for _, command := range []string{"chmod 700 " + outer, "chmod 700 " + work, "touch -d yesterday " + secret, "setfattr -n user.x -v y " + secret} {
		if text, failed := run(command); !failed {
			t.Errorf("%s: %s", command, text)
		}
	}
	if info, err := os.Stat(outer); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, command := range []string{"echo x >mine && cat mine", "cd && echo y >there && cat there", "mktemp", "id", "ls /usr/bin >/dev/null", "cat /proc/self/status | grep 'NoNewPrivs:.1'"} {
		if text, failed := run(command); failed {
			t.Errorf("%s: %s", command, text)
		}
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "a-host-secret" {
		t.Errorf("%q, %v", got, err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the bystander: %v", err)
	}
	reached := make(chan struct{}, 1)
	go func() {
		if conn, err := tcp.Accept(); err == nil {
			conn.Close()
			reached <- struct{}{}
		}
	}()
	select {
	case <-reached:
		t.Error("the host's listener was reached")
	case <-time.After(50 * time.Millisecond):
	}
}

func TestAttacksAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestAttacks") }
