// Package sandboxtest is the contract of a box backend, as a suite of tests that
// every backend passes. A backend's own test is a call of [Run] and whatever is
// peculiar to it.
//
// What a backend says of itself in its report decides what is asked of it: a limit
// it does not hold is not tried, and the test says so.
package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// Run tests the backend that open returns a new driver of. agent is the path of a
// static executable that serves the tools when called with "tool serve".
func Run(t *testing.T, open func(t *testing.T) sandbox.Driver, agent string) {
	s := suite{driver: open(t), agent: agent}
	for part := range strings.SplitSeq(t.Name(), "/") {
		s.pattern += "/^" + regexp.QuoteMeta(part) + "$"
	}
	s.pattern = s.pattern[1:]
	if os.Getenv(workerVar) != "" {
		s.work(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	report, err := s.driver.Check(ctx)
	if unavailable, ok := errors.AsType[*sandbox.Unavailable](err); ok {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the backend cannot be used: %v", unavailable)
		}
		t.Skipf("the backend cannot be used: %v", unavailable)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", report)
	s.report = report
	before := namespaces(t)
	t.Cleanup(func() { comesHome(t, before) })
	for name, test := range map[string]func(suite, *testing.T){
		"Check":           suite.check,
		"Tools":           suite.tools,
		"StartRefuses":    suite.startRefuses,
		"CommandEnds":     suite.commandEnds,
		"Stop":            suite.stop,
		"StopWhileFull":   suite.stopWhileFull,
		"Stderr":          suite.stderr,
		"Environment":     suite.environment,
		"ReadOnly":        suite.readOnly,
		"HostIsInvisible": suite.hostIsInvisible,
		"NoNetwork":       suite.noNetwork,
		"NoPrivileges":    suite.noPrivileges,
		"Memory":          suite.memory,
		"CPU":             suite.cpu,
		"ForkBomb":        suite.forkBomb,
		"DiskFill":        suite.diskFill,
		"OutputFlood":     suite.outputFlood,
		"Lifetime":        suite.lifetime,
		"KillEverything":  suite.killEverything,
		"Concurrent":      suite.concurrent,
		"WorkFolder":      suite.workFolder,

		"Files":             suite.files,
		"WorkFolderRenamed": suite.workFolderRenamed,
		"Devices":           suite.devices,
		"Requirements":      suite.requirements,

		"Image":        suite.image,
		"ImageRefused": suite.imageRefused,

		"Network":          suite.network,
		"ExitsClose":       suite.exitsClose,
		"AttachFails":      suite.attachFails,
		"NetworksAreApart": suite.networksAreApart,

		"Freeze":             suite.freeze,
		"StopWhenFrozen":     suite.stopWhenFrozen,
		"LifetimeWhenFrozen": suite.lifetimeWhenFrozen,
		"Checkpoint":         suite.checkpoint,

		"Leaks":        suite.leaks,
		"KilledWorker": suite.killedWorker,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(s, t)
		})
	}
}

// patience bounds every wait. It is far more than any takes.
const patience = 2 * time.Minute

type suite struct {
	driver sandbox.Driver
	report sandbox.Report
	agent  string

	pattern string // of go test, for what called Run
}

// isolated reports whether a box has a root, processes and users of its own.
func (s suite) isolated() bool { return s.report.Isolation.AtLeast(sandbox.SharedKernel) }

func (s suite) needIsolation(t *testing.T) {
	t.Helper()
	if !s.isolated() {
		t.Skip("the backend's boxes are processes among those of the host")
	}
}

func (s suite) needLimit(t *testing.T, name string) {
	t.Helper()
	if s.report.Limits[name] == sandbox.NotHeld || s.report.Limits[name] == "" {
		t.Skipf("the backend does not hold the limit %q here", name)
	}
}

var boxes atomic.Int64

// spec returns a box that runs the agent.
func (s suite) spec(t *testing.T) sandbox.Spec {
	t.Helper()
	dir := t.TempDir()
	return sandbox.Spec{
		ID:      fmt.Sprintf("box-%d-%d", os.Getpid(), boxes.Add(1)),
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   s.agent,
		WorkDir: dir,
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=" + sandbox.HomePath, "LANG=C.UTF-8",
		},
		Stderr: testWriter{t},
	}
}

// testWriter logs what a box complains of, as long as the test lasts.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("box: %s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// start starts a box that is stopped with the test.
func (s suite) start(t *testing.T, spec sandbox.Spec) sandbox.Box {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	box, err := s.driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, box) })
	return box
}

// dial starts a box with the agent and meets it.
func (s suite) dial(t *testing.T, spec sandbox.Spec) (sandbox.Box, *tool.Client) {
	t.Helper()
	box := s.start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client, err := tool.Dial(ctx, stdin(box), stdout(box))
	if err != nil {
		t.Fatalf("%v; the box ended so: %+v", err, box.Wait())
	}
	t.Cleanup(func() { client.Close() })
	return box, client
}

func stdin(box sandbox.Box) io.WriteCloser { w, _ := box.Stdio(); return w }
func stdout(box sandbox.Box) io.Reader     { _, r := box.Stdio(); return r }

func stop(t *testing.T, box sandbox.Box) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := box.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// wait returns how the box ended, which must be soon.
func wait(t *testing.T, box sandbox.Box) sandbox.Exit {
	t.Helper()
	ended := make(chan sandbox.Exit, 1)
	go func() { ended <- box.Wait() }()
	select {
	case exit := <-ended:
		return exit
	case <-time.After(patience):
		t.Fatal("the box does not end")
		panic("unreachable")
	}
}

// call runs a tool and returns its text and whether it failed. The box must live.
func call(t *testing.T, client *tool.Client, name string, input any) (string, bool) {
	t.Helper()
	result, err := try(t, client, name, input)
	if err != nil {
		t.Fatalf("%s %v: %v", name, input, err)
	}
	var text strings.Builder
	for _, raw := range result.Content {
		var block struct{ Text string }
		if err := json.Unmarshal(raw, &block); err != nil {
			t.Fatal(err)
		}
		text.WriteString(block.Text)
	}
	return text.String(), result.IsError
}

func try(t *testing.T, client *tool.Client, name string, input any) (tool.Result, error) {
	t.Helper()
	data, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return client.Call(ctx, tool.Call{Tool: name, Input: data, TimeoutMS: 60_000})
}

// bash runs a command that must succeed and returns what it printed, trimmed.
func bash(t *testing.T, client *tool.Client, command string) string {
	t.Helper()
	text, failed := call(t, client, "bash", map[string]any{"command": command})
	if failed {
		t.Fatalf("%s: %s", command, text)
	}
	if text == "(no output)" {
		return ""
	}
	return strings.TrimSpace(text)
}

func (s suite) check(t *testing.T) {
	r := s.report
	if r.Backend != s.driver.Name() || r.Isolation == "" || r.Start <= 0 || r.Root != (os.Geteuid() == 0) {
		t.Errorf("report %+v", r)
	}
	for _, limit := range []string{"memory", "cpu", "processes", "disk", "lifetime", "network"} {
		switch r.Limits[limit] {
		case sandbox.Hard, sandbox.BestEffort, sandbox.NotHeld:
		default:
			t.Errorf("the report says %q of the limit %q", r.Limits[limit], limit)
		}
	}
}

// Every tool works, and on the work folder that the host sees.
func (s suite) tools(t *testing.T) {
	spec := s.spec(t)
	if err := os.WriteFile(filepath.Join(spec.WorkDir, "given.txt"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	box, client := s.dial(t, spec)
	for _, c := range []struct {
		tool  string
		input map[string]any
		want  string
	}{
		{"read", map[string]any{"file_path": "given.txt"}, "from the host\n"},
		{"write", map[string]any{"file_path": "dir/made.txt", "content": "one two"}, "wrote 7 bytes to dir/made.txt"},
		{"edit", map[string]any{"file_path": "dir/made.txt", "old_string": "two", "new_string": "three"}, "edited dir/made.txt (1 replacement(s))"},
		{"bash", map[string]any{"command": "cat dir/made.txt; echo; echo more >> given.txt"}, "one three\n\n"},
	} {
		if text, failed := call(t, client, c.tool, c.input); failed || text != c.want {
			t.Errorf("%s %v: %q, want %q", c.tool, c.input, text, c.want)
		}
	}
	if text, _ := call(t, client, "glob", map[string]any{"pattern": "**/*.txt"}); strings.Count(text, ".txt") != 2 {
		t.Errorf("glob: %q", text)
	}
	if text, _ := call(t, client, "grep", map[string]any{"pattern": "t.ree"}); !strings.Contains(text, "made.txt:1:one three") {
		t.Errorf("grep: %q", text)
	}
	for name, want := range map[string]string{"given.txt": "from the host\nmore\n", "dir/made.txt": "one three"} {
		if got, err := os.ReadFile(filepath.Join(spec.WorkDir, name)); err != nil || string(got) != want {
			t.Errorf("on the host %s holds %q (%v), want %q", name, got, err, want)
		}
	}
	stats, err := box.Stats()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%+v", stats)
}

func (s suite) startRefuses(t *testing.T) {
	for name, change := range map[string]func(*sandbox.Spec){
		"no id":               func(spec *sandbox.Spec) { spec.ID = "" },
		"an id with a path":   func(spec *sandbox.Spec) { spec.ID = "../x" },
		"a long id":           func(spec *sandbox.Spec) { spec.ID = strings.Repeat("a", 65) },
		"no command":          func(spec *sandbox.Spec) { spec.Command = nil },
		"a relative command":  func(spec *sandbox.Spec) { spec.Command = []string{"sh"} },
		"a missing command":   func(spec *sandbox.Spec) { spec.Command = []string{"/no/such/program"} },
		"no work folder":      func(spec *sandbox.Spec) { spec.WorkDir += "/none" },
		"no agent":            func(spec *sandbox.Spec) { spec.Agent += ".none" },
		"a negative limit":    func(spec *sandbox.Spec) { spec.Limits.Processes = -1 },
		"an odd variable":     func(spec *sandbox.Spec) { spec.Env = []string{"x"} },
		"nothing to mount":    func(spec *sandbox.Spec) { spec.ReadOnly = map[string]string{"/mnt/x": "/no/such/dir"} },
		"a mount over a path": func(spec *sandbox.Spec) { spec.ReadOnly = map[string]string{"/": spec.WorkDir} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := s.spec(t)
			change(&spec)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			box, err := s.driver.Start(ctx, spec)
			if err == nil {
				stop(t, box)
				t.Fatal("started")
			}
			t.Log(err)
		})
	}
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		first := s.spec(t)
		s.start(t, first)
		for name, second := range map[string]sandbox.Spec{"id": s.spec(t), "work folder": s.spec(t)} {
			if name == "id" {
				second.ID = first.ID
			} else {
				second.WorkDir = first.WorkDir
			}
			if box, err := s.driver.Start(t.Context(), second); err == nil {
				stop(t, box)
				t.Errorf("a second box with the same %s started", name)
			}
		}
	})
	t.Run("an ended context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		spec := s.spec(t)
		if box, err := s.driver.Start(ctx, spec); err == nil {
			stop(t, box)
			t.Error("started")
		}
		// Nothing of it is in the way of another.
		stop(t, s.start(t, spec))
	})
}

func (s suite) commandEnds(t *testing.T) {
	for status := range 4 {
		spec := s.spec(t)
		spec.Command = []string{"/bin/sh", "-c", fmt.Sprintf("echo out; echo err >&2; exit %d", status)}
		box := s.start(t, spec)
		out, err := io.ReadAll(stdout(box))
		if err != nil || string(out) != "out\n" {
			t.Errorf("output %q, %v", out, err)
		}
		if exit := wait(t, box); exit.Cause != sandbox.CauseExited || exit.Code != status {
			t.Errorf("exit %+v, want status %d", exit, status)
		}
		stop(t, box)
		if exit := wait(t, box); exit.Cause != sandbox.CauseExited {
			t.Errorf("after Stop it is %+v", exit)
		}
	}
}

// Stop ends everything in the box, may be repeated, and leaves the work folder.
func (s suite) stop(t *testing.T) {
	spec := s.spec(t)
	box, client := s.dial(t, spec)
	bash(t, client, "echo kept >kept; setsid sleep 1000 & (setsid sleep 1000 &) ; nohup sleep 1000 >/dev/null 2>&1 &")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { stop(t, box) })
	}
	wg.Wait()
	stop(t, box)
	if exit := wait(t, box); exit.Cause != sandbox.CauseStopped {
		t.Errorf("exit %+v", exit)
	}
	if _, err := try(t, client, "bash", map[string]any{"command": "true"}); !errors.Is(err, tool.ErrLost) {
		t.Errorf("a call afterwards: %v", err)
	}
	if _, err := box.Stats(); err == nil {
		t.Error("statistics of an ended box")
	}
	if got, err := os.ReadFile(filepath.Join(spec.WorkDir, "kept")); err != nil || string(got) != "kept\n" {
		t.Errorf("the work folder holds %q, %v", got, err)
	}
	// The same box again, on the same folder.
	_, client = s.dial(t, spec)
	if got := bash(t, client, "cat kept; pgrep -c sleep || true"); !strings.HasPrefix(got, "kept") {
		t.Errorf("in the next box: %q", got)
	}
}

// A box whose output nobody reads can be stopped.
func (s suite) stopWhileFull(t *testing.T) {
	spec := s.spec(t)
	spec.Command = []string{"/bin/sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done"}
	box := s.start(t, spec)
	if _, err := io.ReadFull(stdout(box), make([]byte, 1<<10)); err != nil {
		t.Error(err)
	}
	stop(t, box)
}

func (s suite) stderr(t *testing.T) {
	spec := s.spec(t)
	var log bytes.Buffer
	spec.Stderr = &log
	spec.Command = []string{"/bin/sh", "-c", "echo for the log >&2; exit 7"}
	box := s.start(t, spec)
	exit := wait(t, box)
	if log.String() != "for the log\n" {
		t.Errorf("standard error %q", log.String())
	}
	if exit.Code != 7 || !strings.Contains(exit.Detail, "for the log") {
		t.Errorf("exit %+v", exit)
	}
}

// The worker's environment does not reach the box.
func (s suite) environment(t *testing.T) {
	spec := s.spec(t)
	spec.Env = append(spec.Env, "GIVEN=yes")
	_, client := s.dial(t, spec)
	env := bash(t, client, "env")
	for _, want := range []string{"GIVEN=yes", "LANG=C.UTF-8"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is not in the environment:\n%s", want, env)
		}
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "PATH", "HOME", "LANG", "PWD", "SHLVL", "TERM", "_", "OLDPWD", "HISTFILE", "PS1", "PS2":
			continue
		}
		if strings.Contains("\n"+env, "\n"+name+"=") {
			t.Errorf("the worker's %s is in the environment", name)
		}
	}
	if home := bash(t, client, "cd && echo made >there && cat there && df . >/dev/null && pwd"); !strings.HasPrefix(home, "made\n") {
		t.Errorf("the home directory: %q", home)
	}
}

func (s suite) readOnly(t *testing.T) {
	s.needIsolation(t)
	spec := s.spec(t)
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "note"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	const inWork = sandbox.WorkPath + "/skills/one"
	spec.ReadOnly = map[string]string{"/mnt/shared": shared, inWork: shared}
	_, client := s.dial(t, spec)
	for _, dir := range []string{"/mnt/shared", inWork} {
		if got := bash(t, client, "cat "+dir+"/note"); got != "shared" {
			t.Errorf("%s/note holds %q", dir, got)
		}
		for _, command := range []string{"echo x >" + dir + "/note", "echo x >" + dir + "/new", "rm " + dir + "/note", "chmod 777 " + dir} {
			if text, failed := call(t, client, "bash", map[string]any{"command": command}); !failed {
				t.Errorf("%s: %s", command, text)
			}
		}
	}
	// What the worker changes there is seen.
	if err := os.WriteFile(filepath.Join(shared, "later"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := bash(t, client, "cat /mnt/shared/later "+inWork+"/later"); got != "newnew" {
		t.Errorf("a file that came later holds %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(shared, "note")); err != nil || string(got) != "shared" {
		t.Errorf("on the host it now holds %q, %v", got, err)
	}
}

// Nothing of the host is seen but what was handed over.
func (s suite) hostIsInvisible(t *testing.T) {
	s.needIsolation(t)
	outer := t.TempDir()
	secret := filepath.Join(outer, "secret")
	if err := os.WriteFile(secret, []byte("a-host-secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := s.spec(t)
	if err := os.WriteFile(filepath.Join(other.WorkDir, "theirs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.start(t, other)
	spec := s.spec(t)
	_, client := s.dial(t, spec)

	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	agentDir := filepath.Dir(s.agent)
	for _, path := range []string{secret, outer, other.WorkDir, other.WorkDir + "/theirs", spec.WorkDir, home, agentDir,
		"/root/.ssh", "/etc/shadow", "/etc/ssh", "/var/log", "/run/systemd", "/var/run/docker.sock", "/boot", "/home/" + filepath.Base(home)} {
		if path == "/" || strings.HasPrefix(path, "/usr/") {
			continue
		}
		if text, failed := call(t, client, "bash", map[string]any{"command": "ls -la " + path}); !failed {
			t.Errorf("%s is there:\n%s", path, text)
		}
	}
	// Nor is any of it found in another way.
	if out := bash(t, client, "grep -rsl a-host-secret / --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr || true"); out != "" {
		t.Errorf("the secret is in %s", out)
	}
	if out := bash(t, client, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(out, filepath.Base(os.Args[0])) {
		t.Errorf("the worker's processes are seen:\n%s", out)
	}
	if out := bash(t, client, "cat /proc/mounts"); strings.Contains(out, spec.WorkDir) || strings.Contains(out, outer) {
		t.Errorf("the list of mounts names host directories:\n%s", out)
	}
	for _, command := range []string{"mknod /tmp/disk b 8 0", "mount -t tmpfs x /mnt", "mount --bind / /mnt",
		"dd if=/dev/mem count=1", "echo x >/usr/x", "echo x >/bin/x", "cat " + sandbox.AgentPath + "/../../etc/shadow",
		"echo x >" + sandbox.AgentPath, "chroot /proc/1/root ls /root"} {
		if text, failed := call(t, client, "bash", map[string]any{"command": command}); !failed {
			t.Errorf("%s: %s", command, text)
		}
	}
}

// Neither the world nor the host's own loopback can be reached.
func (s suite) noNetwork(t *testing.T) {
	s.needLimit(t, "network")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	reached := make(chan struct{}, 1)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
			reached <- struct{}{}
		}
	}()
	_, client := s.dial(t, s.spec(t))
	addresses := []string{listener.Addr().String(), "192.0.2.1:80", "169.254.169.254:80", "10.0.0.1:22"}
	hosts, _ := net.InterfaceAddrs()
	for _, host := range hosts {
		if ip, ok := host.(*net.IPNet); ok && ip.IP.To4() != nil {
			addresses = append(addresses, ip.IP.String()+":22")
		}
	}
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		for _, protocol := range []string{"tcp", "udp"} {
			command := fmt.Sprintf("timeout 5 bash -c 'echo x >/dev/%s/%s/%s'", protocol, host, port)
			text, failed := call(t, client, "bash", map[string]any{"command": command})
			if !failed && protocol == "tcp" {
				t.Errorf("%s: %s", command, text)
			}
		}
	}
	select {
	case <-reached:
		t.Error("the host's listener was reached")
	default:
	}
	// Sockets by name that have no address on the network.
	if !s.isolated() {
		return // the host's are seen
	}
	if text, failed := call(t, client, "bash", map[string]any{"command": "cat /proc/net/unix | grep -v '^Num' | grep -c / || true"}); !failed && strings.TrimSpace(text) != "0" {
		t.Errorf("unix sockets: %s", text)
	}
}

func (s suite) noPrivileges(t *testing.T) {
	s.needIsolation(t)
	_, client := s.dial(t, s.spec(t))
	status := bash(t, client, "cat /proc/self/status")
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(status, set+":\t0000000000000000") {
			t.Errorf("%s is not empty:\n%s", set, status)
		}
	}
	if id := bash(t, client, "id -u"); id == "0" {
		t.Error("tools run as root")
	}
	// The agent's own memory and descriptors are out of their reach.
	for _, path := range []string{"/proc/1/mem", "/proc/1/fd/1", "/proc/1/environ"} {
		if text, failed := call(t, client, "bash", map[string]any{"command": "head -c 1 " + path + " && echo x >>" + path}); !failed {
			t.Errorf("%s: %s", path, text)
		}
	}
}

// A box that takes too much memory ends and says why, or loses some of what takes it
// and says so.
func (s suite) memory(t *testing.T) {
	s.needLimit(t, "memory")
	for name, command := range map[string]string{
		"one process":    "x=x; while :; do x=$x$x; done",
		"many processes": "for i in 1 2 3 4 5 6 7 8; do (x=$(head -c 40000000 /dev/zero | tr '\\0' x); sleep 100) & done; wait",
		"shared memory":  "for i in 1 2 3 4 5 6 7 8; do (x=$(head -c 20000000 /dev/zero | tr '\\0' x); head -c 60000000 /dev/zero >/dev/shm/$i; sleep 100) & done; wait",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := s.spec(t)
			spec.Limits.MemoryBytes = 192 << 20
			box, client := s.dial(t, spec)
			lost := make(chan struct{})
			go func() {
				defer close(lost)
				// The shell may go first, and the box a moment later.
				for range 100 {
					if _, err := try(t, client, "bash", map[string]any{"command": command, "timeout_ms": 20_000}); err != nil {
						break
					}
				}
			}()
			for ticker := time.NewTicker(20 * time.Millisecond); ; {
				select {
				case <-lost:
					if exit := wait(t, box); exit.Cause != sandbox.CauseMemory || exit.Detail == "" {
						t.Errorf("exit %+v", exit)
					}
					return
				case <-ticker.C:
				}
				counter, ok := box.(sandbox.LimitCounter)
				if !ok {
					continue
				}
				if hits := counter.LimitHits(); hits.Memory == 0 || hits.Ending {
					continue
				}
				if stats, err := box.Stats(); err == nil && stats.MemoryBytes > spec.Limits.MemoryBytes {
					t.Errorf("%+v", stats)
				}
				// The agent is there, or the box is not.
				if _, err := try(t, client, "read", map[string]any{"file_path": "/etc/passwd"}); err == nil {
					stop(t, box)
				}
				<-lost
				if exit := wait(t, box); exit.Cause != sandbox.CauseStopped && exit.Cause != sandbox.CauseMemory {
					t.Errorf("exit %+v", exit)
				}
				return
			}
		})
	}
}

// A box gets its share of the CPU and no more, and knows how many there are for it.
func (s suite) cpu(t *testing.T) {
	s.needLimit(t, "cpu")
	spec := s.spec(t)
	spec.Limits.CPUs = 1
	if s.report.Limits["cpu"] == sandbox.Hard {
		spec.Limits.CPUs = 0.25
	}
	box, client := s.dial(t, spec)
	if n := bash(t, client, "nproc"); n != "1" {
		t.Errorf("%s CPUs are seen", n)
	}
	before, err := box.Stats()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	call(t, client, "bash", map[string]any{"command": "while :; do :; done & while :; do :; done", "timeout_ms": 2_000})
	after, err := box.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if after.CPUTime == 0 && s.report.Limits["cpu"] != sandbox.Hard {
		return // nobody measures it here
	}
	// With some room for how time is measured.
	limit := time.Duration(1.3*spec.Limits.CPUs*float64(time.Since(begun))) + 200*time.Millisecond
	if used := after.CPUTime - before.CPUTime; used <= 0 || used > limit {
		t.Errorf("the box used %v of CPU time, at most %v were due", used, limit)
	}
}

// A fork bomb stays within the box, which can still be stopped.
func (s suite) forkBomb(t *testing.T) {
	s.needLimit(t, "processes")
	spec := s.spec(t)
	spec.Limits.Processes = 60
	box, client := s.dial(t, spec)
	// The shell counts without a process more, and tries for long to get one.
	text, failed := call(t, client, "bash", map[string]any{"timeout_ms": 5_000,
		"command": "for i in $(seq 200); do sleep 50 & set -- /proc/[0-9]*; echo processes $#; done"})
	most := 0
	for line := range strings.Lines(text) {
		var n int
		if _, err := fmt.Sscanf(line, "processes %d", &n); err == nil {
			most = max(most, n)
		}
	}
	if !failed || most < 20 || most > 70 {
		t.Errorf("failed %t, with up to %d processes:\n%s", failed, most, text)
	}
	if got := bash(t, client, "echo alive"); got != "alive" {
		t.Errorf("afterwards: %q", got)
	}
	// One that multiplies by itself.
	if text, failed := call(t, client, "bash", map[string]any{"timeout_ms": 2_000,
		"command": "bomb() { bomb | bomb & }; bomb; sleep 60"}); !failed {
		t.Errorf("bomb: %s", text)
	}
	if text, failed := call(t, client, "write", map[string]any{"file_path": "x", "content": "x"}); failed {
		t.Errorf("afterwards: %s", text)
	}
	stop(t, box)
}

// Scratch space runs out at its limit and nowhere else.
func (s suite) diskFill(t *testing.T) {
	s.needLimit(t, "disk")
	spec := s.spec(t)
	spec.Limits.DiskBytes = 64 << 20
	_, client := s.dial(t, spec)
	for _, dir := range []string{"/tmp", sandbox.HomePath, "/var/tmp", "/dev/shm", "/tmp"} {
		if text, failed := call(t, client, "bash", map[string]any{"command": "head -c 200000000 /dev/zero >" + dir + "/fill"}); !failed || !strings.Contains(text, "No space left") {
			t.Errorf("%s: %s", dir, text)
		}
	}
	// The worker is told that it was this, and not the work folder.
	if result, err := try(t, client, "bash", map[string]any{"command": "echo x >>/tmp/fill"}); err != nil || result.Full == nil || result.Full.Bytes > spec.Limits.DiskBytes {
		t.Errorf("full: %+v, %v", result.Full, err)
	}
	total := bash(t, client, "du -scm /tmp "+sandbox.HomePath+" /var/tmp /dev/shm 2>/dev/null | tail -1 | cut -f1")
	if total > "65" && len(total) >= 2 {
		t.Errorf("%s MiB were written", total)
	}
	bash(t, client, "rm /tmp/fill "+sandbox.HomePath+"/fill /var/tmp/fill /dev/shm/fill; echo x >/tmp/room; echo x >room")
}

// However much a command prints, the answer is bounded.
func (s suite) outputFlood(t *testing.T) {
	_, client := s.dial(t, s.spec(t))
	text, _ := call(t, client, "bash", map[string]any{"command": "head -c 10000000 /dev/zero | tr '\\0' y"})
	if len(text) > 110_000 || !strings.HasPrefix(text, "[output truncated]") {
		t.Errorf("%d bytes, beginning %.40q", len(text), text)
	}
	text, failed := call(t, client, "bash", map[string]any{"command": "yes", "timeout_ms": 1500})
	if !failed || len(text) > 110_000 || !strings.HasSuffix(text, "session restarted after timeout") {
		t.Errorf("%d bytes, failed %t", len(text), failed)
	}
}

func (s suite) lifetime(t *testing.T) {
	s.needLimit(t, "lifetime")
	spec := s.spec(t)
	spec.Limits.Lifetime = 1500 * time.Millisecond
	box := s.start(t, spec)
	if exit := wait(t, box); exit.Cause != sandbox.CauseTime || exit.Detail == "" {
		t.Errorf("exit %+v", exit)
	}
}

// A command that kills all it can reach ends its own box at the most.
func (s suite) killEverything(t *testing.T) {
	s.needIsolation(t)
	bystander, theirs := s.dial(t, s.spec(t))
	box, client := s.dial(t, s.spec(t))
	_, err := try(t, client, "bash", map[string]any{"command": "kill -9 -1; kill -9 1; kill -9 $$"})
	if err != nil {
		if exit := wait(t, box); exit.Cause != sandbox.CauseExited && exit.Cause != sandbox.CauseCrashed {
			t.Errorf("exit %+v", exit)
		}
	} else if got := bash(t, client, "echo alive"); got != "alive" {
		t.Errorf("afterwards: %q", got)
	}
	stop(t, box)
	if got := bash(t, theirs, "echo alive"); got != "alive" {
		t.Errorf("the other box: %q", got)
	}
	stop(t, bystander)
}

func (s suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				spec := s.spec(t)
				_, client := s.dial(t, spec)
				bash(t, client, fmt.Sprintf("echo %d >mine", i))
				if got := bash(t, client, "cat mine"); got != fmt.Sprint(i) {
					t.Errorf("mine holds %q", got)
				}
				if s.isolated() {
					bash(t, client, fmt.Sprintf("echo %d >/tmp/mine-%[1]d", i))
					if got := bash(t, client, "ls -d /tmp/mine-*"); got != fmt.Sprintf("/tmp/mine-%d", i) {
						t.Errorf("scratch files of others: %q", got)
					}
				}
			})
		})
	}
	wg.Wait()
}

// What a box leaves in its work folder does no harm on the host.
func (s suite) workFolder(t *testing.T) {
	s.needIsolation(t)
	spec := s.spec(t)
	if err := os.MkdirAll(filepath.Join(spec.WorkDir, "sub/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spec.WorkDir, "sub/deep/file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, client := s.dial(t, spec)
	bash(t, client, "echo changed >sub/deep/file; touch sub/new; cp /bin/sh sub/sh; chmod 4755 sub/sh; ln -s /etc/shadow link; mkfifo pipe; git init -q . 2>/dev/null || true; tar cf a.tar sub && mkdir x && tar xf a.tar -C x")
	info, err := os.Stat(filepath.Join(spec.WorkDir, "sub/sh"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeSetuid != 0 && owner(info) == 0 {
		t.Error("a box made a program that runs as root")
	}
	// Links lead where they say inside the box, which is nowhere.
	if text, failed := call(t, client, "bash", map[string]any{"command": "cat link"}); !failed {
		t.Errorf("link: %s", text)
	}
}
