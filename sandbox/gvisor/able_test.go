package gvisor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/tool"
)

// What follows is tried as root and as an ordinary user, see
// TestContractAsOrdinaryUser.

// A session is a box with an agent.
type session struct {
	t   testing.TB
	box sandbox.Box
	*tool.Client
}

func start(t testing.TB, driver *gvisor.Driver, s sandbox.Spec) session {
	t.Helper()
	s.Stderr = logWriter{t}
	box, err := driver.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return meet(t, box)
}

func meet(t testing.TB, box sandbox.Box) session {
	t.Helper()
	t.Cleanup(func() {
		if err := box.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := tool.Dial(ctx, stdin(box), stdout(box))
	if err != nil {
		t.Fatalf("%v; %+v", err, box.Wait())
	}
	return session{t, box, client}
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("box: %s", strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// try runs a command and returns what it said and whether it failed.
func (s session) try(command string) (string, bool) {
	s.t.Helper()
	input, err := json.Marshal(map[string]any{"command": command})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	result, err := s.Call(ctx, tool.Call{Tool: "bash", Input: input, TimeoutMS: 30_000})
	if err != nil {
		s.t.Fatalf("%s: %v", command, err)
	}
	var text strings.Builder
	for _, raw := range result.Content {
		var block struct{ Text string }
		if err := json.Unmarshal(raw, &block); err != nil {
			s.t.Fatal(err)
		}
		text.WriteString(block.Text)
	}
	return strings.TrimSpace(text.String()), result.IsError
}

// run runs a command that must succeed.
func (s session) run(command string) string {
	s.t.Helper()
	text, failed := s.try(command)
	if failed {
		s.t.Fatalf("%s: %s", command, text)
	}
	if text == "(no output)" {
		return ""
	}
	return text
}

// newDriver returns a driver of its own for a test, or skips it where there can be no
// boxes.
func newDriver(t testing.TB) *gvisor.Driver {
	t.Helper()
	needRuntime(t)
	return open(t.TempDir())
}

func TestFrozenBoxDoesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, newDriver(t), spec("frozen", t.TempDir()))
	s.run("(while :; do :; done) & (while :; do echo $((n++)) >count; done) & (while :; do /bin/true; done) &")
	freezer, ok := s.box.(sandbox.Freezer)
	if !ok {
		t.Fatal("it is no Freezer")
	}
	used := func() time.Duration {
		stats, err := s.box.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return stats.CPUTime
	}
	for i := range 5 {
		for range 2 {
			begun := time.Now()
			if err := freezer.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("frozen in %v", time.Since(begun))
		}
		before := used()
		time.Sleep(200 * time.Millisecond)
		if after := used(); after-before > 10*time.Millisecond {
			t.Errorf("%d: it used %v of CPU time", i, after-before)
		}
		for range 2 {
			if err := freezer.Thaw(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		s.run("true")
		t.Logf("thawed, and answered in %v", time.Since(begun))
	}
	before := used()
	time.Sleep(200 * time.Millisecond)
	if after := used(); after-before < 20*time.Millisecond {
		t.Errorf("thawed it used only %v of CPU time", after-before)
	}

	// A frozen one can be stopped.
	if err := freezer.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := s.box.Stop(ctx); err != nil {
		t.Error(err)
	}
	if exit := s.box.Wait(); exit.Cause != sandbox.CauseStopped {
		t.Errorf("exit %+v", exit)
	}
	if freezer.Freeze(t.Context()) == nil || freezer.Thaw(t.Context()) == nil {
		t.Error("an ended box can be frozen and thawed")
	}
}

func TestFork(t *testing.T) {
	t.Parallel()
	t.Run("with a network", func(t *testing.T) {
		t.Parallel()
		fork(t, true)
	})
	t.Run("without one at first", func(t *testing.T) {
		t.Parallel()
		fork(t, false)
	})
}

func fork(t *testing.T, network bool) {
	driver := newDriver(t)
	root, image := t.TempDir(), t.TempDir()
	folder := func(name string) string {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	sp := spec("original", folder("original"))
	if network {
		sp.Network = new(exits)
	}
	original := start(t, driver, sp)
	if network {
		// A connection does not go with it, and is not in the way.
		original.run(fmt.Sprintf("exec 5<>/dev/tcp/192.0.2.1/%d", keptOpen))
	}
	original.run("shell=remembered; echo scratch >/tmp/scratch; cd /tmp; sleep 1000 & echo $RANDOM")
	checkpointer, ok := original.box.(sandbox.Checkpointer)
	if !ok {
		t.Fatal("it is no Checkpointer")
	}
	begun := time.Now()
	if err := checkpointer.Checkpoint(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	t.Logf("checkpoint took %v", time.Since(begun))
	if err := checkpointer.Checkpoint(t.Context(), image); err == nil {
		t.Error("a second checkpoint in the same place")
	}
	entries, err := os.ReadDir(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others can read %s: %v, %v", entry.Name(), info.Mode(), err)
		}
		t.Logf("%s %d bytes", entry.Name(), info.Size())
	}
	// It goes on.
	original.run("echo more >>/tmp/scratch")

	var wg sync.WaitGroup
	var mu sync.Mutex
	random := make(map[string]bool)
	for i := range 3 {
		s := spec(fmt.Sprint("clone-", i), folder(fmt.Sprint("clone-", i)))
		s.Stderr = logWriter{t}
		s.Network = new(exits)
		wg.Go(func() {
			begun := time.Now()
			box, err := driver.Restore(t.Context(), s, image)
			if err != nil {
				t.Error(err)
				return
			}
			defer box.Stop(context.Background())
			// The agent has said hello already, in another life.
			hello, err := tool.EncodeFrame(tool.Reply{Hello: &tool.Hello{Version: tool.WireVersion, Tools: original.Tools()}})
			if err != nil {
				t.Error(err)
				return
			}
			client, err := tool.Dial(t.Context(), stdin(box), io.MultiReader(bytes.NewReader(hello), stdout(box)))
			if err != nil {
				t.Error(err)
				return
			}
			clone := session{t, box, client}
			if got := clone.run("echo $shell $(pwd); cat /tmp/scratch; pgrep -c sleep"); got != "remembered /tmp\nscratch\n1" {
				t.Errorf("a clone says %q", got)
			}
			t.Logf("restored and answered in %v", time.Since(begun))
			if got := clone.run("exec 3<>/dev/tcp/192.0.2.7/80 && cat <&3; exec 3>&-"); got != "192.0.2.7:80 <nil>" {
				t.Errorf("a clone's network says %q", got)
			}
			clone.run(fmt.Sprintf("echo %d >/workspace/mine; echo %d >/tmp/mine", i, i))
			secret := clone.run("head -c 16 /dev/urandom | od -An -tx1; head -c 16 /proc/sys/kernel/random/uuid")
			mu.Lock()
			defer mu.Unlock()
			if random[secret] {
				t.Error("two clones got the same from /dev/urandom")
			}
			random[secret] = true
		})
	}
	wg.Wait()
	for i := range 3 {
		if got, err := os.ReadFile(filepath.Join(root, fmt.Sprint("clone-", i), "mine")); string(got) != fmt.Sprintln(i) {
			t.Errorf("clone %d wrote %q, %v", i, got, err)
		}
	}
	if got := original.run("cat /tmp/scratch"); got != "scratch\nmore" {
		t.Errorf("the original has %q", got)
	}
}

// keptOpen is a port to which connections are not closed.
const keptOpen = 1

// exits serves the ways out of a box: every connection is told where it was meant to
// go, every question is its own answer.
type exits struct {
	sandbox.Exits
	err error
}

func (e *exits) Attach(now sandbox.Exits) error {
	if e.err != nil {
		return e.err
	}
	e.Exits = now
	go func() {
		for {
			conn, err := now.TCP.AcceptTCP()
			if err != nil {
				return
			}
			addr, err := original(conn)
			fmt.Fprintln(conn, addr, err)
			if addr.Port() != keptOpen {
				conn.Close()
			}
		}
	}()
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := now.DNS.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = now.DNS.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return nil
}

// original returns where a connection was meant to go.
func original(conn *net.TCPConn) (addr netip.AddrPort, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return addr, err
	}
	v4 := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	controlErr := raw.Control(func(fd uintptr) {
		if v4 {
			var a *unix.IPv6Mreq
			if a, err = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST); err == nil {
				addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Multiaddr[4:8])), binary.BigEndian.Uint16(a.Multiaddr[2:]))
			}
			return
		}
		var a *unix.IPv6MTUInfo
		if a, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST); err == nil {
			addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), a.Addr.Port<<8|a.Addr.Port>>8)
		}
	})
	return addr, errors.Join(controlErr, err)
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	driver := newDriver(t)
	if _, err := driver.Start(t.Context(), func() sandbox.Spec {
		s := spec("refused", t.TempDir())
		s.Network = &exits{err: errors.New("no room")}
		return s
	}()); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("a network that cannot be attached: %v", err)
	}

	network := new(exits)
	sp := spec("network", t.TempDir())
	sp.Network = network
	s := start(t, driver, sp)
	for _, address := range []string{"198.18.0.7:443", "169.254.169.254:80", "10.0.0.1:22", "[2001:db8::1]:5432"} {
		host, port, _ := net.SplitHostPort(address)
		if got := s.run(fmt.Sprintf("exec 3<>/dev/tcp/%s/%s && cat <&3; exec 3>&-", host, port)); got != address+" <nil>" {
			t.Errorf("%s: %q", address, got)
		}
	}
	ask := func(host string, port int) (string, bool) {
		return s.try(fmt.Sprintf("exec 3<>/dev/udp/%s/%d && echo question >&3 && timeout 1 head -n 1 <&3", host, port))
	}
	for _, host := range []string{"198.18.0.1", "8.8.8.8", "2001:db8::53"} {
		if got, failed := ask(host, 53); failed || got != "question" {
			t.Errorf("a question to %s: %q", host, got)
		}
	}
	for _, port := range []int{443, 123, 5353} {
		if got, failed := ask("198.18.0.1", port); !failed {
			t.Errorf("UDP port %d: %q", port, got)
		}
	}
	// Its own loopback stays its own.
	if got, failed := s.try("exec 3<>/dev/tcp/127.0.0.1/80"); !failed {
		t.Errorf("its loopback: %q", got)
	}
	for _, program := range []string{
		"socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
		"socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)",
	} {
		if got, failed := s.try("python3 -c 'import socket; " + program + "'"); !failed {
			t.Errorf("%s: %q", program, got)
		}
	}
	// The exits are open as long as the box lives, and no longer.
	if err := s.box.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := network.TCP.SetDeadline(time.Now()); err == nil {
		t.Error("the exits of an ended box are open")
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	driver := newDriver(t)
	image := t.TempDir()
	for _, dir := range []string{"etc", "made", "bin", "lib", "lib64", "usr"} {
		if err := os.Mkdir(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(image, 0o755); err != nil {
		t.Fatal(err)
	}
	// What is here of the host, so that something runs.
	copyProgram(t, "/bin/bash", image)
	if err := os.WriteFile(filepath.Join(image, "etc/mark"), []byte("of the image"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/at/all", filepath.Join(image, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(t.TempDir(), "given")
	if err := os.WriteFile(given, []byte("nameserver 198.18.0.1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := driver.Prepare(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	sp := spec("image", t.TempDir())
	sp.Image = image
	sp.Files = map[string]string{
		"/etc/resolv.conf": given, "/etc/not/there/yet": given, "/run/given": given, "/workspace/.given": given,
	}
	s := start(t, driver, sp)
	for name, want := range map[string]string{
		"/etc/mark": "of the image", "/etc/resolv.conf": "nameserver 198.18.0.1", "/etc/not/there/yet": "nameserver 198.18.0.1",
		"/run/given": "nameserver 198.18.0.1", "/workspace/.given": "nameserver 198.18.0.1",
	} {
		if got := s.run("echo $(<" + name + ")"); !strings.HasSuffix(got, want) { // it has no stty, so there is an echo
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if got, failed := s.try("echo x >" + name); !failed && name != "/etc/mark" {
			t.Errorf("%s was written to: %s", name, got)
		}
	}
	s.run("echo x >/tmp/x; echo x >~/x; echo x >/workspace/x; echo x >/var/tmp/x")
	var left []string
	if err := filepath.WalkDir(image, func(name string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(image, name); strings.Count(rel, "/") < 2 && !strings.HasPrefix(rel, "lib") && !strings.HasPrefix(rel, "usr/") {
			left = append(left, rel)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if got := strings.Join(left, " "); got != ". bin bin/bash etc etc/mark etc/resolv.conf made usr" {
		t.Errorf("the image has %s", got)
	}
}

// copyProgram copies a program and its libraries to where they are on the host.
func copyProgram(t *testing.T, program, to string) {
	t.Helper()
	files := []string{program}
	for _, pattern := range []string{"/lib/*/libc.so.6", "/lib/*/libtinfo.so.6", "/lib64/ld-linux-*", "/lib/ld-linux-*"} {
		found, _ := filepath.Glob(pattern)
		files = append(files, found...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(to, file)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// What an attacker did to keep the next box from starting.
func TestHostileWorkFolder(t *testing.T) {
	t.Parallel()
	driver := newDriver(t)
	// Reached by a link, as data directories are.
	real, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "skill"), []byte("skilled"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string]string{
		"closed":             "chmod 000 /workspace",
		"deep":               `python3 -c 'import os; [(os.mkdir("d"*200), os.chdir("d"*200)) for _ in range(60)]'`,
		"links":              "ln -s /etc/passwd link; ln -s / root; ln -s ../../../../../../../../ up",
		"a file in the way":  "echo x >skills",
		"a link in the way":  "ln -s /usr skills",
		"closed in the way":  "mkdir -p skills; chmod 000 skills",
		"sockets and fifos":  "mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")' || true",
		"odd names":          `touch $'\n' $'\xff' -- '-rf' '*'`,
		"a mount's own name": "mkdir -p skills/one && echo x >skills/one/x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := filepath.Join(link, strings.ReplaceAll(name, " ", "-"))
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			id := strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "")
			first := start(t, driver, spec(id, folder))
			if got, failed := first.try(command); failed {
				t.Fatal(got)
			}
			if err := first.box.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			sp := spec(id, folder)
			sp.ReadOnly = map[string]string{"/workspace/skills/one": shared}
			second := start(t, driver, sp)
			if got := second.run("cat skills/one/skill; echo x >it-works; ls >/dev/null"); got != "skilled" {
				t.Errorf("%q", got)
			}
			second.run("chmod -R u+rwx . 2>/dev/null; rm -rf [a-z]* 2>/dev/null; true")
		})
	}
}

// The box's memory is all that there seems to be.
func TestMachineSeemsTheBoxs(t *testing.T) {
	t.Parallel()
	sp := spec("machine", t.TempDir())
	sp.Limits.MemoryBytes = 300 << 20
	sp.Limits.CPUs = 1
	s := start(t, newDriver(t), sp)
	if got := s.run("grep MemTotal /proc/meminfo | tr -s ' '; nproc; grep -c ^processor /proc/cpuinfo"); got != "MemTotal: 307200 kB\n1\n1" {
		t.Errorf("%q", got)
	}
}
