package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/docker"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
	"github.com/bailey-platform/bailey/tool"
)

// Variables that tell a test process what to be.
const (
	workerVar = "DOCKER_TEST_WORKER" // a worker with a box: kind, socket, image, directories
	sharedVar = "DOCKER_TEST_SHARED" // one that uses what another has made, in this directory
)

// patience bounds every wait. It is far more than any takes.
const patience = time.Minute

// shared is what all tests of a run use, made when the first wants it: executables, an
// image, and a daemon of each kind.
var shared struct {
	dir string // of all of it

	executables, image func() (string, error)
	daemons            map[docker.Kind]func() (*daemon, error)

	mu   sync.Mutex
	stop []func()
}

func TestMain(m *testing.M) {
	if args := os.Getenv(workerVar); args != "" {
		if err := worker(strings.Split(args, " ")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if shared.dir = os.Getenv(sharedVar); shared.dir != "" {
		made := func(name string) func() (string, error) {
			return func() (string, error) { return filepath.Join(shared.dir, name), nil }
		}
		listening := func(socket string) func() (*daemon, error) {
			return func() (*daemon, error) { return &daemon{"unix://" + filepath.Join(shared.dir, socket)}, nil }
		}
		shared.executables, shared.image = made("bin"), made("image")
		shared.daemons = map[docker.Kind]func() (*daemon, error){docker.Docker: listening("d/d.sock"), docker.Podman: listening("p/p.sock")}
		return m.Run()
	}
	// Short, as sockets are made in it.
	dir, err := os.MkdirTemp("", "bd")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		unmount(dir)
		os.RemoveAll(dir)
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared.dir = dir
	if err := os.Setenv(sharedVar, dir); err != nil { // for those that tests start
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared.executables = sync.OnceValues(build)
	shared.image = sync.OnceValues(makeImage)
	shared.daemons = map[docker.Kind]func() (*daemon, error){
		docker.Docker: sync.OnceValues(startDocker),
		docker.Podman: sync.OnceValues(startPodman),
	}
	defer func() {
		for i := len(shared.stop) - 1; i >= 0; i-- {
			shared.stop[i]()
		}
	}()
	return m.Run()
}

// unmount removes the mounts that daemons have left in a directory.
func unmount(dir string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines) // the latest first
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
}

// build builds what boxes run.
func build() (string, error) {
	dir := filepath.Join(shared.dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "../launcher/boxlauncher", "../../tool/agent/boxagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
}

// makeImage makes a directory with a few of the host's programs.
func makeImage() (string, error) {
	dir := filepath.Join(shared.dir, "image")
	for _, name := range []string{"usr/bin", "usr/lib", "usr/lib64", "etc", "tmp", "root/.ssh"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "root"), 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/bash\nagent:x:61000:61000::/home/agent:/bin/bash\n"), 0o644); err != nil {
		return "", err
	}
	programs := strings.Fields(`bash cat chmod chroot cp cut date dd df du echo env false find getent grep head id ln ls mkdir mkfifo mknod
		mount mv nohup nproc pgrep python3 rm sed seq setsid sh sleep sort stat stty tail tar tee timeout touch tr true uname unshare wc yes`)
	for _, name := range programs {
		path, err := exec.LookPath("/usr/bin/" + name) // rather than what a developer has in front of it
		if err != nil {
			path, err = exec.LookPath(name)
		}
		if err != nil {
			return "", err
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return "", fmt.Errorf("ldd %s: %w", path, err)
		}
		if err := copyFile(path, filepath.Join(dir, "usr/bin", name)); err != nil {
			return "", err
		}
		for _, field := range strings.Fields(string(out)) {
			if !filepath.IsAbs(field) {
				continue
			}
			target := filepath.Join(dir, field)
			if _, err := os.Lstat(target); err == nil {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return "", err
			}
			if err := copyFile(field, target); err != nil {
				return "", err
			}
		}
	}
	// For the probes of the network.
	libraries, err := filepath.Glob("/usr/lib/python3.*")
	if err != nil {
		return "", err
	}
	for _, library := range libraries {
		if err := os.CopyFS(filepath.Join(dir, library), withoutTests{os.DirFS(library)}); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// withoutTests is a Python library without what nobody here uses.
type withoutTests struct{ fs.FS }

func (w withoutTests) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(w.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return slices.Contains([]string{"test", "idlelib", "lib2to3", "pydoc_data", "__pycache__", "dist-packages", "ensurepip", "distutils"}, e.Name()) ||
			strings.HasPrefix(e.Name(), "config-") || e.Type()&fs.ModeSymlink != 0
	}), err
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// A daemon is one that these tests have started.
type daemon struct{ host string }

// spawn starts a process that is ended with the run of the tests, and waits until it
// listens at the socket.
func spawn(socket string, env []string, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(shared.dir, filepath.Base(name)+".log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), env...)
	cmd.Dir = shared.dir // podman's boxes leave a file where it was started when they run out of memory
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	log.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	shared.mu.Lock()
	shared.stop = append(shared.stop, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	shared.mu.Unlock()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s ended: %s", name, said)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen: %w", name, err)
		}
	}
}

func startDocker() (*daemon, error) {
	dir := filepath.Join(shared.dir, "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "containerd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
`, dir+"/croot", dir+"/cstate", dir+"/c.sock"), 0o644); err != nil {
		return nil, err
	}
	if err := spawn(dir+"/c.sock", nil, "containerd", "--config", config); err != nil {
		return nil, err
	}
	err := spawn(dir+"/d.sock", nil, "dockerd", "--host", "unix://"+dir+"/d.sock", "--containerd", dir+"/c.sock",
		"--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none")
	return &daemon{"unix://" + dir + "/d.sock"}, err
}

func startPodman() (*daemon, error) {
	dir := filepath.Join(shared.dir, "p")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = %q
static_dir = %q
volume_path = %q
`, dir+"/tmp", dir+"/static", dir+"/volumes"), 0o644); err != nil {
		return nil, err
	}
	err := spawn(dir+"/p.sock", []string{"CONTAINERS_CONF=" + config}, "podman", "--root", dir+"/root", "--runroot", dir+"/run",
		"system", "service", "--time=0", "unix://"+dir+"/p.sock")
	return &daemon{"unix://" + dir + "/p.sock"}, err
}

// kinds are those of the daemons that the tests are run with.
var kinds = []docker.Kind{docker.Docker, docker.Podman}

// need returns what a test needs of the shared things, or skips it.
func need[T any](t testing.TB, make func() (T, error)) T {
	t.Helper()
	got, err := make()
	if err != nil {
		if os.Getenv("CI") == "true" || !errors.Is(err, exec.ErrNotFound) {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return got
}

func options(t testing.TB, kind docker.Kind, root string) docker.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as a daemon is started")
	}
	return docker.Options{
		Kind: kind, Host: need(t, shared.daemons[kind]).host, Image: need(t, shared.image), Root: root,
		Launcher: filepath.Join(need(t, shared.executables), "boxlauncher"),
	}
}

func agentPath(t testing.TB) string { return filepath.Join(need(t, shared.executables), "boxagent") }

func TestContract(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			o := options(t, kind, t.TempDir())
			sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return docker.New(o) }, agentPath(t))
		})
	}
}

func spec(t testing.TB, id string) sandbox.Spec {
	return sandbox.Spec{
		ID:      id,
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   agentPath(t),
		WorkDir: t.TempDir(),
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

type refusing struct{}

func (refusing) Attach(sandbox.Exits) error { return errors.New("nobody serves it") }

func TestNoCommandRunsBeforeItsNetworkIsServed(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			o := options(t, kind, t.TempDir())
			s := spec(t, "refused")
			s.Network = refusing{}
			s.Command = []string{"/bin/sh", "-c", "echo ran >ran"}
			box, err := docker.New(o).Start(t.Context(), s)
			if err == nil {
				_ = box.Stop(context.Background())
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), "nobody serves it") {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(s.WorkDir, "ran")); err == nil {
				t.Error("the command ran")
			}
			nothingLeft(t, o)
		})
	}
}

// A daemon's own filter lets the first two of these through, among other calls.
func TestCallsAreFiltered(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			_, client := start(t, docker.New(options(t, kind, t.TempDir())), spec(t, "filtered"))
			// vsock, netfilter's netlink and packets; and routes, which are asked for by the like.
			const script = `
import socket
for family, kind, protocol in ((40, 1, 0), (16, 3, 12), (17, 3, 0)):
    try:
        socket.socket(family, kind, protocol)
        print("family", family, "protocol", protocol, "is allowed")
    except OSError:
        pass
socket.socket(16, 3, 0)
print("routes")
`
			if got := bash(t, client, "python3 -c '"+script+"'"); got != "routes" {
				t.Error(got)
			}
		})
	}
}

// nothingLeft checks that no container of a driver is left.
func nothingLeft(t *testing.T, o docker.Options) {
	t.Helper()
	if left := containers(t, o); len(left) > 0 {
		t.Errorf("left at the daemon: %v", left)
	}
}

// containers are the names of those that a driver has at its daemon.
func containers(t *testing.T, o docker.Options) []string {
	t.Helper()
	c, err := client.New(client.WithHost(o.Host))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var list client.ContainerListResult
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		list, err = c.ContainerList(t.Context(), client.ContainerListOptions{
			All: true, Filters: make(client.Filters).Add("label", "io.bailey.driver="+docker.Tag(o.Root))})
		if err == nil {
			break
		}
		if time.Now().After(deadline) { // podman fails while one of them is ending
			t.Fatal(err)
		}
	}
	var names []string
	for _, found := range list.Items {
		names = append(names, fmt.Sprint(found.Names, found.State))
	}
	return names
}

// worker starts a box, says so, and lives until it is killed.
func worker(args []string) error {
	o := docker.Options{Kind: docker.Kind(args[0]), Host: args[1], Image: args[2], Root: filepath.Join(args[3], "state"), Launcher: args[4] + "/boxlauncher"}
	s := sandbox.Spec{
		ID:      "left-behind",
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   args[4] + "/boxagent",
		WorkDir: filepath.Join(args[3], "work"),
	}
	if err := os.Mkdir(s.WorkDir, 0o755); err != nil {
		return err
	}
	box, err := docker.New(o).Start(context.Background(), s)
	if err != nil {
		return err
	}
	stdin, stdout := box.Stdio()
	if _, err := tool.Dial(context.Background(), stdin, stdout); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func TestBoxEndsWithAKilledWorkerAndIsSwept(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			o := options(t, kind, filepath.Join(root, "state"))
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), workerVar+"="+strings.Join([]string{string(kind), o.Host, o.Image, root, filepath.Dir(agentPath(t))}, " "))
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
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
				left := containers(t, o)
				if len(left) == 1 && !strings.Contains(left[0], "running") {
					break // its input has ended, and so has its agent
				}
				if time.Now().After(deadline) {
					t.Fatalf("after the worker: %v", left)
				}
			}
			driver := docker.New(o)
			_, client := start(t, driver, spec(t, "alive"))
			if err := driver.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if left := containers(t, o); len(left) != 1 || !strings.Contains(left[0], "alive") {
				t.Errorf("after the sweep: %v", left)
			}
			if got := bash(t, client, "echo alive"); got != "alive" {
				t.Errorf("the box after the sweep: %q", got)
			}
			if err := docker.New(o).Sweep(t.Context()); err == nil {
				t.Error("a second driver uses the same directory")
			}
		})
	}
}

func TestContainerRemovedByAnotherIsACrash(t *testing.T) {
	t.Parallel()
	o := options(t, docker.Docker, t.TempDir())
	box, _ := start(t, docker.New(o), spec(t, "removed"))
	c, err := client.New(client.WithHost(o.Host))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ContainerRemove(t.Context(), "bailey-"+docker.Tag(o.Root)+"-removed", client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseCrashed && exit.Code != 137 {
		t.Errorf("%+v", exit)
	}
}

func TestImages(t *testing.T) {
	t.Parallel()
	o := options(t, docker.Docker, t.TempDir())
	c, err := client.New(client.WithHost(o.Host))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	driver := docker.New(o)
	if err := driver.Prepare(t.Context(), o.Image); err != nil {
		t.Fatal(err)
	}
	list, err := c.ImageList(t.Context(), client.ImageListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	imported := 0
	name := ""
	for _, i := range list.Items {
		for _, tag := range i.RepoTags {
			if strings.HasPrefix(tag, "localhost/bailey-box:") {
				imported++
				name = tag
			}
		}
	}
	// Of the tests of the contract there may be others.
	if imported == 0 {
		t.Fatalf("%+v", list.Items)
	}
	// By the name that the daemon has for it, and by one that it does not have.
	if err := driver.Prepare(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := driver.Prepare(t.Context(), "no-such-image:1"); err == nil || !strings.Contains(err.Error(), "docker pull no-such-image:1") {
		t.Error(err)
	}
	o.Image, o.Root = "", t.TempDir()
	err = docker.New(o).Prepare(t.Context(), "")
	if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || !strings.Contains(u.Error(), "name an image") {
		t.Error(err)
	}
}

// Images that were imported for a test, or by a worker which has another one now, stayed
// at the daemon for ever.
func TestImagesThatNobodyUsesGo(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			o := options(t, kind, t.TempDir())
			c, err := client.New(client.WithHost(o.Host))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			imported := func(o docker.Options) int {
				t.Helper()
				list, err := c.ImageList(t.Context(), client.ImageListOptions{Filters: make(client.Filters).Add("label", "io.bailey.driver="+docker.Tag(o.Root))})
				if err != nil {
					t.Fatal(err)
				}
				return len(list.Items)
			}
			image := func(content string) string { // that no other driver has
				dir := t.TempDir()
				if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.WriteFile(filepath.Join(dir, "bin", "bash"), []byte(content), 0o755)); err != nil {
					t.Fatal(err)
				}
				return dir
			}

			// For a test.
			driver := docker.New(o)
			if err := driver.Prepare(t.Context(), image("test")); err != nil {
				t.Fatal(err)
			}
			if n := imported(o); n != 1 {
				t.Fatalf("%d images are imported", n)
			}
			if err := driver.Discard(t.Context()); err != nil {
				t.Error(err)
			}
			if n := imported(o); n != 0 {
				t.Errorf("%d images are left of a test", n)
			}

			// By one that lives, one that is stopped, one that was stopped long ago, and one
			// whose directory is gone.
			roots := make(map[string]docker.Options)
			for _, name := range []string{"lives", "stopped", "old", "gone"} {
				o := o
				o.Root = filepath.Join(t.TempDir(), name+" root")
				roots[name] = o
				user := docker.New(o)
				if err := user.Prepare(t.Context(), image(name)); err != nil {
					t.Fatal(err)
				}
				if name == "lives" {
					defer runtime.KeepAlive(user) // and with it the lock
					continue
				}
				// As the process that held it, which is no more.
				lock := filepath.Join(o.Root, "lock")
				if err := errors.Join(os.Remove(lock), os.WriteFile(lock, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			old := time.Now().Add(-30 * 24 * time.Hour)
			for _, name := range []string{"lives", "old"} {
				if err := os.Chtimes(filepath.Join(roots[name].Root, "lock"), old, old); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.RemoveAll(roots["gone"].Root); err != nil {
				t.Fatal(err)
			}
			if err := driver.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			for name, want := range map[string]int{"lives": 1, "stopped": 1, "old": 0, "gone": 0} {
				if n := imported(roots[name]); n != want {
					t.Errorf("%s: %d images are left, want %d", name, n, want)
				}
			}
		})
	}
}

// BenchmarkBox measures what a session waits for: a box that answers, and one
// command in it.
func BenchmarkBox(b *testing.B) {
	for _, kind := range kinds {
		b.Run(string(kind)+"/start", func(b *testing.B) {
			driver := docker.New(options(b, kind, b.TempDir()))
			if err := driver.Prepare(b.Context(), ""); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				box, err := driver.Start(b.Context(), spec(b, "bench"))
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
		b.Run(string(kind)+"/call", func(b *testing.B) {
			_, client := start(b, docker.New(options(b, kind, b.TempDir())), spec(b, "bench"))
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

// proxy stands between a driver and a daemon until it is stopped.
func proxy(t *testing.T, host string) (through string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	stop = sync.OnceFunc(func() {
		listener.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			conn.Close()
		}
	})
	t.Cleanup(stop)
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", strings.TrimPrefix(host, "unix://"))
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, near, far)
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].(*net.UnixConn).CloseWrite()
				}()
			}
		}
	}()
	return "unix://" + listener.Addr().String(), stop
}

// When the daemon goes away, so does what we know of a box, and nobody hangs.
func TestDaemonGoesAway(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			o := options(t, kind, t.TempDir())
			direct := o.Host
			var stop func()
			o.Host, stop = proxy(t, direct)
			box, agent := start(t, docker.New(o), spec(t, "cut-off"))
			if got := bash(t, agent, "echo there"); got != "there" {
				t.Error(got)
			}
			stop()
			if exit := box.Wait(); exit.Cause != sandbox.CauseCrashed || exit.Detail == "" {
				t.Errorf("%+v", exit)
			}
			if err := box.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if freezer, ok := box.(sandbox.Freezer); !ok || freezer.Freeze(t.Context()) == nil {
				t.Error("frozen by nobody")
			}
			// The agent has ended for want of input, and what is left is for a sweep.
			o.Host = direct
			c, err := client.New(client.WithHost(o.Host))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// Podman may need more than one attempt at a container that is just ending.
			for n := 0; ; n++ {
				_, err := c.ContainerRemove(t.Context(), "bailey-"+docker.Tag(o.Root)+"-cut-off", client.ContainerRemoveOptions{Force: true})
				if err == nil {
					break
				}
				if n == 20 {
					t.Fatal(err)
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
}
