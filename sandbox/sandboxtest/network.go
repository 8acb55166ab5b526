package sandboxtest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// An outside is what a box's exits lead to. It answers every connection with the
// address that was meant, and every question with itself, or with the word that there
// is no such name.
type outside struct {
	refuse error // what Attach fails with

	attached chan sandbox.Exits // gets the exits, once
	closed   chan struct{}      // closed when the backend has closed both

	mu    sync.Mutex
	met   []netip.AddrPort
	asked int
}

func newOutside() *outside {
	return &outside{attached: make(chan sandbox.Exits, 1), closed: make(chan struct{})}
}

// Attach implements [sandbox.Network].
func (o *outside) Attach(e sandbox.Exits) error {
	o.attached <- e
	var served sync.WaitGroup
	served.Go(func() { o.serveTCP(e.TCP) })
	served.Go(func() { o.serveDNS(e.DNS) })
	go func() {
		served.Wait()
		close(o.closed)
	}()
	return o.refuse
}

func (o *outside) serveTCP(listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		to, err := sandbox.Destination(conn)
		o.mu.Lock() // before it is answered, as who asks looks there then
		o.met = append(o.met, to)
		o.mu.Unlock()
		if err != nil {
			fmt.Fprint(conn, err)
		} else {
			fmt.Fprint(conn, to)
		}
		conn.Close()
	}
}

func (o *outside) serveDNS(conn *net.UDPConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		o.mu.Lock()
		o.asked++
		o.mu.Unlock()
		answer := slices.Clone(buf[:n])
		if n >= 12 && !bytes.Equal(answer, []byte(question)) {
			answer[2], answer[3] = 0x81, 0x83 // an answer: there is no such name
		}
		_, _ = conn.WriteToUDPAddrPort(answer, from)
	}
}

func (o *outside) questions() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

// probe is what asks from within a box.
//
//go:embed probe.py
var probe string

// question is what the probe sends by UDP.
const question = "a question that is no DNS"

// needPython skips a test for want of what probes are written in.
func needPython(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err == nil && strings.HasPrefix(path, "/usr/bin/") {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("there is no /usr/bin/python3 to probe the box with")
	}
	t.Skip("there is no /usr/bin/python3 to probe the box with")
}

// ask has the probe try each line and returns what came of it.
func ask(t *testing.T, client *tool.Client, lines []string) map[string]string {
	t.Helper()
	out := bash(t, client, "python3 probe.py <<'END'\n"+strings.Join(lines, "\n")+"\nEND\n")
	got := strings.Split(out, "\n")
	if len(got) != len(lines) {
		t.Fatalf("%d answers to %d lines:\n%s", len(got), len(lines), out)
	}
	all := make(map[string]string)
	for i, line := range lines {
		all[line] = got[i]
	}
	return all
}

// probing returns a box with the probe in its work folder, and with a network.
func (s suite) probing(t *testing.T) (sandbox.Spec, *outside) {
	t.Helper()
	needPython(t)
	spec := s.spec(t)
	if err := os.WriteFile(filepath.Join(spec.WorkDir, "probe.py"), []byte(probe), 0o644); err != nil {
		t.Fatal(err)
	}
	o := newOutside()
	spec.Network = o
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 198.18.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec.Files = map[string]string{"/etc/resolv.conf": resolv}
	return spec, o
}

// Everything a box sends to the world arrives at its exits, or nowhere.
func (s suite) network(t *testing.T) {
	if !s.report.Network {
		spec := s.spec(t)
		spec.Network = newOutside()
		if box, err := s.driver.Start(t.Context(), spec); err == nil {
			stop(t, box)
			t.Error("the backend serves no networks, and starts a box with one")
		}
		return
	}
	// What only the host may reach.
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	name := fmt.Sprintf("bailey-test-%d-%d", os.Getpid(), boxes.Add(1))
	abstract, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()

	spec, out := s.probing(t)
	box, client := s.dial(t, spec)
	want := map[string][]string{
		// Any address and port, and what was meant is known.
		"tcp 192.0.2.7 443":      {"192.0.2.7:443"},
		"tcp 10.1.2.3 5432":      {"10.1.2.3:5432"},
		"tcp 169.254.169.254 80": {"169.254.169.254:80"},
		"tcp 198.18.0.1 22":      {"198.18.0.1:22"},
		"tcp 192.0.2.7 53":       {"192.0.2.7:53"},
		// Where the host has no IPv6, the box has none.
		"tcp 2001:db8::1 443":        {"[2001:db8::1]:443", "refused", "unreachable"},
		"tcp fd00:ec2::254 80":       {"[fd00:ec2::254]:80", "refused", "unreachable"},
		"tcp ::ffff:192.0.2.8 8080":  {"192.0.2.8:8080", "refused", "unreachable"},
		"udp 198.18.0.1 53":          {"answered"},
		"udp 192.0.2.7 53":           {"answered"},
		"udp 192.0.2.7 443":          {"refused"}, // QUIC, which is to give up at once
		"udp 192.0.2.7 123":          {"refused"},
		"udp 2001:db8::1 443":        {"refused", "unreachable"},
		"icmp 192.0.2.7":             {"refused", "nothing", "unreachable"},
		"raw 192.0.2.7":              {"refused"},
		"packet":                     {"refused"},
		"vsock 2":                    {"refused", "unreachable", "nothing"},
		"multicast 224.0.0.251 5353": {"refused", "nothing", "unreachable"},
		// The box's loopback is its own, and nobody is there.
		fmt.Sprintf("tcp 127.0.0.1 %d", tcp.Addr().(*net.TCPAddr).Port):      {"refused"},
		fmt.Sprintf("udp 127.0.0.1 %d", udp.LocalAddr().(*net.UDPAddr).Port): {"refused"},
		"tcp ::1 80":       {"refused", "unreachable"},
		"abstract " + name: {"refused"},
		"itself":           {"itself"},
	}
	// The host's own addresses are no different from others.
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if ip, ok := addr.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			want[fmt.Sprintf("tcp %s 22", ip.IP)] = []string{ip.IP.String() + ":22"}
		}
	}
	lines := make([]string, 0, len(want))
	for line := range want {
		lines = append(lines, line)
	}
	for line, got := range ask(t, client, lines) {
		if !slices.Contains(want[line], got) {
			t.Errorf("%s: %q, want one of %q", line, got, want[line])
		}
	}
	before := out.questions()
	if text, failed := call(t, client, "bash", map[string]any{"command": "getent hosts some.name.test"}); !failed {
		t.Errorf("a name that does not exist: %s", text)
	}
	if out.questions() == before {
		t.Error("the box's own resolver does not ask")
	}

	stop(t, box)
	s.closes(t, out)
}

// closes waits until the backend has closed a box's exits.
func (s suite) closes(t *testing.T, o *outside) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-o.closed:
	case <-ctx.Done():
		t.Error("the exits of a box that has ended are still open")
	}
}

// The exits go with the box also when nobody stops it.
func (s suite) exitsClose(t *testing.T) {
	s.needNetwork(t)
	spec := s.spec(t)
	out := newOutside()
	spec.Network = out
	spec.Command = []string{"/bin/sh", "-c", "read line; exit 3"}
	box := s.start(t, spec)
	select {
	case <-out.closed:
		t.Error("the exits were closed before the box ended")
	default:
	}
	stdin(box).Close()
	if exit := wait(t, box); exit.Cause != sandbox.CauseExited || exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	s.closes(t, out)
}

func (s suite) needNetwork(t *testing.T) {
	t.Helper()
	if !s.report.Network {
		t.Skip("the backend serves no networks")
	}
}

// A box whose network nobody takes does not start.
func (s suite) attachFails(t *testing.T) {
	s.needNetwork(t)
	spec := s.spec(t)
	spec.Command = []string{"/bin/sh", "-c", "echo ran >ran"}
	out := newOutside()
	out.refuse = errors.New("no network today")
	spec.Network = out
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	box, err := s.driver.Start(ctx, spec)
	if err == nil {
		stop(t, box)
		t.Fatal("started")
	}
	if !errors.Is(err, out.refuse) {
		t.Errorf("%v, which does not wrap what Attach said", err)
	}
	s.closes(t, out)
	if _, err := os.Lstat(filepath.Join(spec.WorkDir, "ran")); err == nil {
		t.Error("the command ran")
	}
	// Nothing of it is in the way of another.
	spec.Network = nil
	stop(t, s.start(t, spec))
}

// Boxes with networks know nothing of each other, and each has exits of its own.
func (s suite) networksAreApart(t *testing.T) {
	s.needNetwork(t)
	first, firstOut := s.probing(t)
	second, secondOut := s.probing(t)
	_, one := s.dial(t, first)
	_, two := s.dial(t, second)
	if got := ask(t, one, []string{"tcp 192.0.2.1 1"}); got["tcp 192.0.2.1 1"] != "192.0.2.1:1" {
		t.Errorf("%v", got)
	}
	if got := ask(t, two, []string{"tcp 192.0.2.2 2"}); got["tcp 192.0.2.2 2"] != "192.0.2.2:2" {
		t.Errorf("%v", got)
	}
	for name, c := range map[string]struct {
		out  *outside
		want string
	}{"first": {firstOut, "[192.0.2.1:1]"}, "second": {secondOut, "[192.0.2.2:2]"}} {
		c.out.mu.Lock()
		if got := fmt.Sprint(c.out.met); got != c.want {
			t.Errorf("at the exits of the %s box arrived %s, want %s", name, got, c.want)
		}
		c.out.mu.Unlock()
	}
}
