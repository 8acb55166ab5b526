package oci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/oci"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
	"github.com/bailey-platform/bailey/sandbox/users"
	"github.com/bailey-platform/bailey/tool"
)

// The executables of these tests, built by TestMain: a cradle with the race detector
// in it would take its time, and more memory than a box has.
var launcherPath, agentPath string

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54321

// Variables that tell a test process what to be.
const (
	binVar    = "OCI_TEST_BIN"    // the directory of the executables, built already
	workerVar = "OCI_TEST_WORKER" // a directory; be a worker with a box there
)

// patience bounds every wait. It is far more than any takes.
const patience = time.Minute

func TestMain(m *testing.M) {
	dir, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build what the tests run:", err)
		os.Exit(1)
	}
	launcherPath, agentPath = filepath.Join(dir, "boxlauncher"), filepath.Join(dir, "boxagent")
	if root := os.Getenv(workerVar); root != "" {
		if err := worker(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// build builds the executables into a directory that is kept for the next time.
func build() (string, error) {
	if dir := os.Getenv(binVar); dir != "" {
		return dir, nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("bailey-oci-test-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not ours (%v)", dir, err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "../launcher/boxlauncher", "../../tool/agent/boxagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, name := range []string{"", "boxlauncher", "boxagent"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// engine finds a runtime on this host.
func engine(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

func open(t testing.TB, name, root string) *oci.Driver {
	t.Helper()
	return openWith(t, name, root)
}

// openWith is open for a host whose devices are described in the directories.
func openWith(t testing.TB, name, root string, deviceDirs ...string) *oci.Driver {
	t.Helper()
	// Debian's runc has its defects mended under the old version.
	return oci.New(oci.Options{Engine: engine(t, name), AllowOld: true, DeviceDirs: deviceDirs, Root: root, Launcher: launcherPath})
}

// engines are the runtimes that the tests are run with.
var engines = []string{"crun", "runc"}

func TestContract(t *testing.T) {
	for _, name := range engines {
		t.Run(name, func(t *testing.T) {
			if name == "runc" && os.Geteuid() != 0 {
				t.Skip("an ordinary user cannot use runc, see TestRuncIsNotForOrdinaryUsers")
			}
			t.Parallel()
			root := t.TempDir()
			t.Run("suite", func(t *testing.T) {
				sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return open(t, name, root) }, agentPath)
			})
			nothingLeft(t, root)
		})
	}
}

// The same as an ordinary user, who has no right to anything.
func TestContractAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestContract does it already; this one is for root")
	}
	t.Parallel()
	engine(t, "crun")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^(TestContract|TestNetwork|TestRuncIsNotForOrdinaryUsers)$", "-test.v")
	asOrdinary(t, cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || os.Getenv("CI") == "true" && bytes.Contains(out, []byte("--- SKIP: TestContract/crun (")) {
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
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, binVar+"="+filepath.Dir(launcherPath))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
}

// nothingLeft checks that no box of the driver at root has left a trace.
func nothingLeft(t *testing.T, root string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(root)) {
		t.Errorf("mounts left: %s, %v", mounts, err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/*" + oci.Tag(root) + "*")
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %v, %v", groups, err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Error(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name != "lock" && name != "images" {
			t.Errorf("left in the driver's directory: %s", name)
		}
	}
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

// start starts a box that is stopped with the test, and meets its agent.
func start(t testing.TB, driver sandbox.Driver, spec sandbox.Spec) (sandbox.Box, *tool.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	box, err := driver.Start(ctx, spec)
	if err != nil {
		if u, ok := errors.AsType[*sandbox.Unavailable](err); ok && os.Getenv("CI") != "true" {
			t.Skip(u)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(ctx, stdin, stdout)
	if err != nil {
		t.Fatalf("%v; the box ended so: %+v", err, box.Wait())
	}
	t.Cleanup(func() { client.Close() })
	return box, client
}

// bash runs a command and returns what it printed.
func bash(t testing.TB, client *tool.Client, command string) string {
	t.Helper()
	input, err := json.Marshal(map[string]string{"command": command})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	result, err := client.Call(ctx, tool.Call{Tool: "bash", Input: input})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, raw := range result.Content {
		var block struct{ Text string }
		if err := json.Unmarshal(raw, &block); err != nil {
			t.Fatal(err)
		}
		text.WriteString(block.Text)
	}
	return strings.TrimSpace(text.String())
}

func TestRuncIsNotForOrdinaryUsers(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("for an ordinary user; see TestContractAsOrdinaryUser")
	}
	t.Parallel()
	_, err := open(t, "runc", t.TempDir()).Check(t.Context())
	if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || !strings.Contains(u.Error(), "crun") {
		t.Error(err)
	}
}

// exits is a network that says where everything was meant to go.
type exits struct{ attached chan sandbox.Exits }

func (e exits) Attach(x sandbox.Exits) error {
	go func() {
		for {
			conn, err := x.TCP.AcceptTCP()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, meant(conn))
			conn.Close()
		}
	}()
	e.attached <- x
	return nil
}

// meant returns the address that a connection was to go to.
func meant(conn *net.TCPConn) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var text string
	_ = raw.Control(func(fd uintptr) {
		// A sockaddr_in, which has the size of what this reads.
		addr, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			text = err.Error()
			return
		}
		text = net.IP(addr.Multiaddr[4:8]).String()
	})
	return text
}

func TestNetwork(t *testing.T) {
	for _, name := range engines {
		t.Run(name, func(t *testing.T) {
			if name == "runc" && os.Geteuid() != 0 {
				t.Skip("an ordinary user cannot use runc")
			}
			t.Parallel()
			network := exits{make(chan sandbox.Exits, 1)}
			s := spec("net", t.TempDir())
			s.Network = network
			box, client := start(t, open(t, name, t.TempDir()), s)
			x := <-network.attached
			for command, want := range map[string]string{
				"cat </dev/tcp/192.0.2.7/5432":                                 "192.0.2.7",
				"cat </dev/tcp/169.254.169.254/80":                             "169.254.169.254",
				"(cat </dev/tcp/127.0.0.1/9) 2>&1 | grep -o refused | head -1": "refused",
				"grep -c eth /proc/net/dev || true":                            "0",
			} {
				if got := bash(t, client, command); got != want {
					t.Errorf("%s: %q, want %q", command, got, want)
				}
			}
			if err := box.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := x.TCP.Accept(); err == nil {
				t.Error("the exits outlive the box")
			}
		})
	}
}

type refusing struct{}

func (refusing) Attach(sandbox.Exits) error { return errors.New("nobody serves it") }

func TestNoCommandRunsBeforeItsNetworkIsServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := t.TempDir()
	s := spec("refused", dir)
	s.Network = refusing{}
	s.Command = []string{"/bin/sh", "-c", "echo ran >ran"}
	box, err := open(t, "crun", root).Start(t.Context(), s)
	if err == nil {
		_ = box.Stop(context.Background())
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "nobody serves it") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("the command ran")
	}
	nothingLeft(t, root)
}

// What a box sees of its users is its own; on the host they are nobody's.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			driver := open(t, name, t.TempDir())
			one, two := t.TempDir(), t.TempDir()
			_, client := start(t, driver, spec("one", one))
			_, other := start(t, driver, spec("two", two))
			seen := func(client *tool.Client) string {
				return bash(t, client, `set -- $(cat /proc/self/uid_map); echo $1 $3; id -u; id -g; stat -c %U:%G /usr /home/agent /workspace`)
			}
			const want = "0 65536\n61000\n61000\nroot:root\nagent:agent\nagent:agent"
			if got := seen(client); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			const first = `set -- $(cat /proc/self/uid_map); echo $2`
			if a, b := bash(t, client, first), bash(t, other, first); a == b || a == "0" {
				t.Errorf("the users of two boxes begin at %s and %s", a, b)
			}
			bash(t, client, "echo x >mine")
			info, err := os.Stat(filepath.Join(one, "mine"))
			if err != nil {
				t.Fatal(err)
			}
			if owner := info.Sys().(*syscall.Stat_t).Uid; owner != sandbox.User {
				t.Errorf("on the host its files belong to %d", owner)
			}
		})
	}
}

func TestSystemCalls(t *testing.T) {
	t.Parallel()
	for _, name := range engines {
		t.Run(name, func(t *testing.T) {
			if name == "runc" && os.Geteuid() != 0 {
				t.Skip("an ordinary user cannot use runc")
			}
			t.Parallel()
			_, client := start(t, open(t, name, t.TempDir()), spec("calls", t.TempDir()))
			if got := bash(t, client, "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -s '\\t\\n' '  '"); got != "NoNewPrivs: 1 Seccomp: 2" {
				t.Errorf("status %q", got)
			}
			for _, command := range []string{"unshare -U true", "unshare -n true", "strace true", "nsenter -t 1 -m true", "chroot / true"} {
				if got := bash(t, client, command+" && echo done || true"); strings.HasSuffix(got, "done") {
					t.Errorf("%s succeeds: %s", command, got)
				}
			}
			if got := bash(t, client, `python3 -c '
import socket
for f in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_PACKET, socket.AF_ALG, socket.AF_VSOCK):
    try: socket.socket(f, socket.SOCK_DGRAM).close(); print("yes", end=" ")
    except OSError as e: print(e.errno, end=" ")
'`); !strings.HasPrefix(got, "yes yes yes") || strings.Count(got, "yes") != 3 {
				t.Errorf("sockets: %s", got)
			}
		})
	}
}

// hostPrograms are directories that put the host's programs into an empty image.
var hostPrograms = map[string]string{"/usr/bin": "/usr/bin", "/usr/lib": "/usr/lib", "/usr/lib64": "/usr/lib64"}

// emptyImage makes an image without programs, but with places for the host's.
func emptyImage(t *testing.T) string {
	t.Helper()
	image := t.TempDir()
	for name, target := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := os.MkdirAll(filepath.Join(image, target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(image, "bin/bash"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestFilesTakeThePlaceOfTheImages(t *testing.T) {
	t.Parallel()
	image := emptyImage(t)
	for _, dir := range []string{"etc", "tmp", "run"} {
		if err := os.Mkdir(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As in images of systems that make it when they run, and one that means to lead out.
	if err := os.Symlink("../run/resolve/resolv.conf", filepath.Join(image, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../etc", filepath.Join(image, "out")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("given"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec("files", t.TempDir())
	s.Image = image
	s.ReadOnly = map[string]string{"/usr": "/usr"}
	s.Files = map[string]string{"/etc/resolv.conf": file, "/out/given": file, "/new/dir/file": file, "/workspace/sub/file": file}
	box, err := open(t, "crun", t.TempDir()).Start(t.Context(), s)
	if err == nil {
		_ = box.Stop(context.Background())
		t.Error("a mount over /usr is allowed")
	}
	s.ReadOnly = hostPrograms
	_, client := start(t, open(t, "crun", t.TempDir()), s)
	if got := bash(t, client, "cat /etc/resolv.conf /etc/given /new/dir/file sub/file; echo; (echo x >/etc/resolv.conf) 2>&1 | grep -o Read-only; ls -A /run"); got !=
		"givengivengivengiven\nRead-only" {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat("/etc/given"); err == nil {
		t.Error("a link led out of the image")
	}
	// An image is what it was.
	if entries, err := os.ReadDir(filepath.Join(image, "etc")); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// An image's own ideas of the kernel's directories have led runtimes astray.
func TestLinksForTheKernelsDirectoriesLeadNowhere(t *testing.T) {
	t.Parallel()
	image := emptyImage(t)
	for _, name := range []string{"dev", "proc", "sys"} {
		if err := os.Symlink("/tmp", filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := spec("links", t.TempDir())
	s.Image, s.ReadOnly = image, hostPrograms
	_, client := start(t, open(t, "crun", t.TempDir()), s)
	if got := bash(t, client, "for d in dev proc sys tmp; do test -L /$d || test -e /tmp/null -o -e /tmp/self || echo own; done"); got != "own\nown\nown\nown" {
		t.Errorf("%q", got)
	}
}

// worker starts a box, says so, and lives until it is killed.
// A box that outlives its killed worker for a while, such as a frozen one, keeps its
// users: they must be nobody else's.
func TestUsersAreHeldByTheBoxItself(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	_, client := start(t, open(t, "crun", t.TempDir()), spec("held", t.TempDir()))
	first := bash(t, client, `set -- $(cat /proc/self/uid_map); echo $2`)
	cradles := 0
	for _, pid := range children(os.Getpid()) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
		if !bytes.Contains(line, []byte("\x00"+cradle.RoleBox+"\x00")) || !slices.ContainsFunc(children(pid), func(pid int) bool {
			users, _ := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
			return slices.Contains(strings.Fields(string(users)), first)
		}) {
			continue
		}
		cradles++
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if !slices.ContainsFunc(fds, func(fd string) bool {
			target, _ := os.Readlink(fd)
			return target == users.Path
		}) {
			t.Errorf("the cradle %d does not hold the lock on its users", pid)
		}
	}
	if cradles != 1 {
		t.Errorf("%d boxes have the users from %s on", cradles, first)
	}
}

func worker(root string) error {
	dir := filepath.Join(root, "work")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path, err := exec.LookPath("crun")
	if err != nil {
		return err
	}
	driver := oci.New(oci.Options{Engine: path, Root: filepath.Join(root, "state"), Launcher: launcherPath})
	box, err := driver.Start(context.Background(), spec("left-behind", dir))
	if err != nil {
		return err
	}
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(context.Background(), stdin, stdout)
	if err != nil {
		return err
	}
	if _, err := client.Call(context.Background(), tool.Call{Tool: "bash",
		Input: json.RawMessage(`{"command":"setsid sleep 98765 & nohup sleep 98765 & echo ok"}`)}); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

// children returns the processes whose parent a process is, and theirs.
func children(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(data)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				all = append(append(all, child), children(child)...)
			}
		}
	}
	return all
}

func TestBoxDiesWithAKilledWorkerAndIsSwept(t *testing.T) {
	engine(t, "crun")
	for _, as := range []string{"root", "ordinary"} {
		t.Run(as, func(t *testing.T) {
			t.Parallel()
			if as == "root" && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			root := t.TempDir()
			cmd.Env = append(os.Environ(), binVar+"="+filepath.Dir(launcherPath))
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
			if _, err := io.ReadFull(stdout, make([]byte, 6)); err != nil {
				t.Fatalf("the worker has no box: %v", err)
			}
			box := children(cmd.Process.Pid)
			if len(box) < 4 { // the cradle, the agent, and what was left running
				t.Errorf("processes of the box: %v", box)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for _, pid := range box {
				for deadline := time.Now().Add(patience); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("process %d lives on", pid)
					}
				}
			}
			state := filepath.Join(root, "state")
			if err := open(t, "crun", state).Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			nothingLeft(t, state)
		})
	}
}

// A driver's own boxes survive its sweep, and another driver is kept out.
func TestSweepSparesLiveBoxes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	driver := open(t, "crun", root)
	_, client := start(t, driver, spec("alive", t.TempDir()))
	if err := driver.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if got := bash(t, client, "echo alive"); got != "alive" {
		t.Errorf("the box after the sweep: %q", got)
	}
	if err := open(t, "crun", root).Sweep(t.Context()); err == nil {
		t.Error("a second driver uses the same directory")
	}
}

// A work folder may be renamed under a running box.
func TestRenamedWorkFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old, renamed := filepath.Join(dir, "pool"), filepath.Join(dir, "session")
	if err := os.Mkdir(old, 0o755); err != nil {
		t.Fatal(err)
	}
	_, client := start(t, open(t, "crun", t.TempDir()), spec("renamed", old))
	if err := os.Rename(old, renamed); err != nil {
		t.Fatal(err)
	}
	bash(t, client, "echo x >file")
	if _, err := os.Stat(filepath.Join(renamed, "file")); err != nil {
		t.Error(err)
	}
}

// A box that shuts its work folder does not keep the next one out.
func TestClosedWorkFolder(t *testing.T) {
	t.Parallel()
	driver := open(t, "crun", t.TempDir())
	s := spec("closed", t.TempDir())
	box, client := start(t, driver, s)
	bash(t, client, "echo x >file; chmod 0 .")
	if err := box.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, client = start(t, driver, s)
	if got := bash(t, client, "cat file"); got != "x" {
		t.Errorf("%q", got)
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := func(name, body string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct{ engine, want string }{
		"nothing":   {"", "absolute path"},
		"relative":  {"crun", "absolute path"},
		"missing":   {"/no/such/runtime", "no such file"},
		"directory": {dir, "want an executable"},
		"failing":   {"/bin/false", "ask /bin/false for its version"},
		"gVisor":    {script("crun", "echo runsc version release-20260901.0\n"), `"gvisor"`},
		"Kata":      {script("kata", "echo 'kata-runtime  : 3.2.0'\n"), "io.containerd.kata.v2"},
		"old":       {script("runc", "echo runc version 1.1.11\n"), "CVE-2024-21626"},
		"mute":      {script("mute", "echo runc version 1.4.3; test $1 = --version\n"), "status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			driver := oci.New(oci.Options{Engine: c.engine, Root: t.TempDir(), Launcher: launcherPath})
			_, err := driver.Check(t.Context())
			if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || !strings.Contains(u.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// BenchmarkBox measures what a session waits for: a box that answers, and one
// command in it.
func BenchmarkBox(b *testing.B) {
	for _, name := range engines {
		b.Run(name+"/start", func(b *testing.B) {
			driver := open(b, name, b.TempDir())
			for b.Loop() {
				box, err := driver.Start(b.Context(), spec("bench", b.TempDir()))
				if err != nil {
					b.Fatal(err)
				}
				stdin, stdout := box.Stdio()
				if _, err := tool.Dial(b.Context(), stdin, stdout); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := box.Stop(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(name+"/call", func(b *testing.B) {
			_, client := start(b, open(b, name, b.TempDir()), spec("bench", b.TempDir()))
			for _, command := range []string{"true", "/bin/true"} {
				b.Run(strings.ReplaceAll(command, "/", "_"), func(b *testing.B) {
					for b.Loop() {
						bash(b, client, command)
					}
				})
			}
		})
	}
}
