package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// What a process of the tests is to be, in the variable actVar.
const (
	actVar    = "NETNS_TEST"
	actBox    = "box"    // what runs in a box: asks what it is told to
	actJail   = "jail"   // the same, after it made a jail of its network
	actWorker = "worker" // has a box in a pair, and lives until it is killed
)

// ordinary is the id of the user that tests run as when they are to be nobody.
const ordinary = 54321

// patience bounds every wait. It is far more than any takes.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	RunIfRole()
	act := os.Getenv(actVar)
	var err error
	switch act {
	case "":
		os.Exit(m.Run())
	case actJail:
		runtime.LockOSThread()
		sock := os.NewFile(3, "exits")
		var e sandbox.Exits
		if e, err = Jail(); err == nil {
			err = errors.Join(Send(sock, e), sock.Close(), e.Close())
		}
		if err == nil {
			err = answer()
		}
	case actBox:
		err = answer()
	case actWorker:
		err = work()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, act, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// answer says for each line of standard input what came of it: a network and an
// address to ask, or a question about this process.
func answer() error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var out string
		switch network, addr, _ := strings.Cut(in.Text(), " "); network {
		case "interfaces":
			list, err := net.Interfaces()
			if err != nil {
				return err
			}
			for _, i := range list {
				if i.Flags&net.FlagUp != 0 {
					out += i.Name + " "
				}
			}
		case "descriptors":
			out = inherited()
		case "listen":
			listener, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(conn, "the box itself")
					conn.Close()
				}
			}()
			out = "listening"
		default:
			out = ask(network, addr)
		}
		fmt.Println(strings.TrimSpace(out))
	}
	return in.Err()
}

// inherited lists the descriptors of this process that are not to be closed on exec,
// as those are which Go opens.
func inherited() string {
	var out []string
	for fd := range 64 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			out = append(out, fmt.Sprint(fd))
		}
	}
	return strings.Join(out, " ")
}

// ask connects or sends to an address and returns the answer.
func ask(network, addr string) string {
	begun := time.Now()
	limit := patience
	if strings.HasPrefix(network, "ip") || strings.HasPrefix(addr, "224.") || strings.HasPrefix(addr, "255.") {
		limit = 200 * time.Millisecond // there is nobody to refuse
	}
	conn, err := net.DialTimeout(network, addr, limit)
	if err == nil {
		defer conn.Close()
		err = conn.SetDeadline(time.Now().Add(limit))
	}
	if err == nil && !strings.HasPrefix(network, "tcp") {
		echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
		if strings.HasPrefix(network, "ip6") {
			echo[0] = 128
		}
		_, err = conn.Write(echo)
	}
	buf := make([]byte, 512)
	n := 0
	if err == nil {
		n, err = conn.Read(buf)
	}
	switch {
	case err == nil && strings.HasPrefix(network, "udp"):
		return "answered"
	case err == nil:
		return string(buf[:n])
	case errors.Is(err, os.ErrDeadlineExceeded) && limit < patience:
		return "nothing"
	case (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM)) && time.Since(begun) < time.Second:
		return "refused"
	case errors.Is(err, unix.ECONNRESET):
		return "reset"
	}
	return fmt.Sprint(err)
}

// serve answers every connection with where it was meant to go, and every question
// with itself.
func serve(t *testing.T, e sandbox.Exits) {
	t.Helper()
	t.Cleanup(func() { e.Close() })
	go func() {
		for {
			conn, err := e.TCP.AcceptTCP()
			if err != nil {
				return
			}
			addr, err := sandbox.Destination(conn)
			if err != nil {
				fmt.Fprint(conn, err)
			} else {
				fmt.Fprint(conn, addr)
			}
			conn.Close()
		}
	}()
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := e.DNS.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = e.DNS.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// A box is a process of the test within a network of its own.
type box struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// start starts this program as what act says, after change has had its way.
func start(t *testing.T, act string, change func(cmd *exec.Cmd)) *box {
	t.Helper()
	cmd := exec.Command(Self)
	cmd.Env = append(os.Environ(), actVar+"="+act)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	change(cmd)
	if err := cmd.Start(); err != nil {
		unavailable(t, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("%s: %s", act, &stderr)
		}
	})
	return &box{t, cmd, in, bufio.NewReader(out)}
}

// unavailable skips the test where the kernel lets us make no namespaces.
func unavailable(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("we may make no namespaces here:", err)
	}
	t.Fatal(err)
}

// ask returns what the box says to a line.
func (b *box) ask(line string) string {
	b.t.Helper()
	if _, err := fmt.Fprintln(b.in, line); err != nil {
		b.t.Fatal(err)
	}
	out, err := b.out.ReadString('\n')
	if err != nil {
		b.t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(out)
}

// unshared has the command start in a network namespace of its own.
func unshared(cmd *exec.Cmd) {
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
}

// The ways to make a box's network, each with its exits served.
var ways = map[string]func(t *testing.T) (*box, sandbox.Exits){
	"jail": func(t *testing.T) (*box, sandbox.Exits) {
		ours, theirs, err := Socket()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		defer theirs.Close()
		b := start(t, actJail, func(cmd *exec.Cmd) {
			unshared(cmd)
			cmd.ExtraFiles = []*os.File{theirs}
		})
		theirs.Close()
		e, err := Receive(ours)
		if err != nil {
			t.Fatal(err)
		}
		return b, e
	},
	"join": func(t *testing.T) (*box, sandbox.Exits) {
		b := start(t, actBox, unshared)
		e, err := Join(t.Context(), b.cmd.Process.Pid, "")
		if err != nil {
			t.Fatal(err)
		}
		return b, e
	},
	"wrap": func(t *testing.T) (*box, sandbox.Exits) {
		var exits func(context.Context) (sandbox.Exits, error)
		b := start(t, actBox, func(cmd *exec.Cmd) {
			var err error
			if exits, err = Wrap(cmd, ""); err != nil {
				t.Fatal(err)
			}
		})
		e, err := exits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return b, e
	},
}

func TestOnlyTheExitsLeadOut(t *testing.T) {
	t.Parallel()
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for way, open := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			b, e := open(t)
			serve(t, e)
			for line, want := range map[string]string{
				"tcp 192.0.2.7:443":         "192.0.2.7:443",
				"tcp 10.1.2.3:5432":         "10.1.2.3:5432",
				"tcp 169.254.169.254:80":    "169.254.169.254:80",
				"tcp [2001:db8::1]:443":     "[2001:db8::1]:443",
				"tcp [fd00:ec2::254]:80":    "[fd00:ec2::254]:80",
				"tcp [::ffff:192.0.2.7]:80": "192.0.2.7:80",

				// Its own loopback is its own.
				"tcp 127.0.0.1:4": "refused",
				"tcp 127.9.9.9:4": "refused",
				"tcp 0.0.0.0:4":   "refused",
				"tcp [::1]:4":     "refused",
				"udp 127.0.0.1:4": "refused",
				"udp [::1]:4":     "refused",

				// And the exits cannot be had without saying where to.
				"tcp 127.0.0.1:61080": "refused",
				"tcp [::1]:61080":     "refused",

				"udp 198.18.0.1:53":    "answered",
				"udp 192.0.2.7:53":     "answered",
				"udp [2001:db8::1]:53": "answered",

				"udp 192.0.2.7:443":     "refused", // QUIC
				"udp [2001:db8::1]:443": "refused",
				"udp 198.18.0.1:123":    "refused",
			} {
				if got := b.ask(line); got != want {
					t.Errorf("%s: %q, want %q", line, got, want)
				}
			}
			// What has no answer that it could be refused by.
			for _, line := range []string{"udp 224.0.0.251:5353", "udp 255.255.255.255:67",
				"ip4:icmp 192.0.2.7", "ip6:ipv6-icmp 2001:db8::1", "ip4:132 192.0.2.7"} {
				if got := b.ask(line); got != "refused" && got != "nothing" && !strings.Contains(got, "unreachable") {
					t.Errorf("%s: %q", line, got)
				}
			}
			// Programs in the box can talk to each other.
			if got := b.ask("listen 127.0.0.1:4001"); got != "listening" {
				t.Error(got)
			}
			if got := b.ask("tcp 127.0.0.1:4001"); got != "the box itself" {
				t.Errorf("a server in the box: %q", got)
			}
			if got, want := b.ask("descriptors"), inherited(); got != want {
				t.Errorf("the box has the descriptors %s, want %s", got, want)
			}
		})
	}
	t.Cleanup(func() {
		after, err := net.Interfaces()
		if diff := cmp.Diff(before, after); err != nil || diff != "" {
			t.Errorf("the host's interfaces: %s, %v", diff, err)
		}
	})
}

// With nobody there to take what a box sends, it goes nowhere.
func TestClosedExitsRefuse(t *testing.T) {
	t.Parallel()
	for way, open := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			b, e := open(t)
			serve(t, e)
			if got := b.ask("tcp 192.0.2.7:80"); got != "192.0.2.7:80" {
				t.Error(got)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if way == "wrap" {
				// The namespace at the other end of the cable is gone, and so the cable.
				for deadline := time.Now().Add(patience); b.ask("interfaces") != "lo"; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("interfaces: %s", b.ask("interfaces"))
					}
				}
			}
			for _, line := range []string{"tcp 192.0.2.7:80", "udp 192.0.2.7:53", "tcp [2001:db8::1]:80"} {
				// Reset is what the system takes while the listener is on its way out.
				if got := b.ask(line); got != "refused" && got != "reset" && !strings.Contains(got, "unreachable") {
					t.Errorf("%s: %q", line, got)
				}
			}
		})
	}
}

// The same as an ordinary user, who has no right to anything.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests do it already; this one is for root")
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), Self, "-test.v", "-test.run", "^Test(Only|Closed|Wrap|Join|KilledWorker)")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp", "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || os.Getenv("CI") == "true" && bytes.Contains(out, []byte("--- SKIP")) {
		t.Errorf("as user %d: %v", ordinary, err)
	}
}

func TestPair(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	netBox, e, err := Pair()
	if err != nil {
		unavailable(t, err)
	}
	defer netBox.Close()
	serve(t, e)
	err = apart(func() error {
		if err := unix.Setns(int(netBox.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if got := ask("tcp", "192.0.2.7:80"); got != "192.0.2.7:80" {
			t.Error(got)
		}
		if _, err := Jail(); err == nil || !strings.Contains(err.Error(), "eth0 is up") {
			t.Errorf("a jail of a namespace that is in use: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWrapSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change                         func(cmd *exec.Cmd) *exec.Cmd
		launcher                       string
		wantWrap, wantStart, wantExits string
		wantStderr                     string
	}{
		"no launcher":             {launcher: "/no/such/launcher", wantStart: "no such file", wantExits: "without a word"},
		"a launcher that is none": {launcher: "/bin/true", wantExits: "without a word"},
		"itself by another": {launcher: "/bin/true", wantWrap: "by the time",
			change: func(cmd *exec.Cmd) *exec.Cmd { cmd.Path = Self; return cmd }},
		"no program": {wantStderr: "no such file",
			change: func(cmd *exec.Cmd) *exec.Cmd { cmd.Path = "/no/such/program"; return cmd }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("/bin/true")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if c.change != nil {
				cmd = c.change(cmd)
			}
			exits, err := Wrap(cmd, c.launcher)
			if !says(err, c.wantWrap) {
				t.Fatalf("wrap: %v, want %q", err, c.wantWrap)
			}
			if err != nil {
				return
			}
			err = cmd.Start()
			if errors.Is(err, unix.EPERM) {
				unavailable(t, err)
			}
			if !says(err, c.wantStart) {
				t.Errorf("start: %v, want %q", err, c.wantStart)
			}
			e, exitsErr := exits(t.Context())
			if !says(exitsErr, c.wantExits) {
				t.Errorf("exits: %v, want %q", exitsErr, c.wantExits)
			}
			if exitsErr == nil {
				e.Close()
			}
			if err == nil {
				_ = cmd.Wait() // with the status of a failure
			}
			if !strings.Contains(stderr.String(), c.wantStderr) {
				t.Errorf("standard error %q, want %q", &stderr, c.wantStderr)
			}
		})
	}
}

func says(err error, want string) bool {
	if want == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), want)
}

func TestJoinSparesOurOwnNetwork(t *testing.T) {
	t.Parallel()
	if _, err := Join(t.Context(), os.Getpid(), ""); err == nil || !strings.Contains(err.Error(), "our own") {
		t.Errorf("our own network: %v", err)
	}
	if _, err := joinAs(t.Context(), os.Getpid(), ""); err == nil || !strings.Contains(err.Error(), "our own") {
		t.Errorf("our own network, by another process: %v", err)
	}
	if _, err := Join(t.Context(), 1<<30, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody's network: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := start(t, actBox, unshared)
	if _, err := joinAs(ctx, b.cmd.Process.Pid, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("with no time left: %v", err)
	}
}

// work has a box in a pair, says its process, and does nothing more.
func work() error {
	runtime.LockOSThread()
	cmd := exec.Command(Self)
	cmd.Env = append(os.Environ(), actVar+"="+actBox)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Held open, so that only the signal can end it.
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	exits, err := Wrap(cmd, "")
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	e, err := exits(context.Background())
	if err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	_, err = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(in)
	return errors.Join(err, e.Close())
}

func TestKilledWorkerTakesItsBoxWithIt(t *testing.T) {
	t.Parallel()
	w := start(t, actWorker, func(*exec.Cmd) {})
	line, err := w.out.ReadString('\n')
	if err != nil {
		if os.Geteuid() != 0 && os.Getenv("CI") != "true" {
			t.Skip("the worker has no box")
		}
		t.Fatal("the worker has no box")
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Errorf("the box lives on: %d, %v", n, err)
		}
		return
	}
}

func TestSendReceive(t *testing.T) {
	t.Parallel()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	dns, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	sent := sandbox.Exits{TCP: tcp, DNS: dns}
	t.Cleanup(func() { sent.Close() })
	for name, c := range map[string]struct {
		send func(theirs *os.File) error
		want string
	}{
		"exits":        {func(theirs *os.File) error { return Send(theirs, sent) }, ""},
		"an error":     {func(theirs *os.File) error { return SendError(theirs, errors.New("no such luck")) }, "no such luck"},
		"a long error": {func(theirs *os.File) error { return SendError(theirs, errors.New(strings.Repeat("x", 10<<10))) }, "xxx"},
		"nothing":      {func(*os.File) error { return nil }, "without a word"},
		"one too few":  {func(theirs *os.File) error { return send(theirs, []byte{0}, unix.UnixRights(0)) }, "\x00"},
		"other files":  {func(theirs *os.File) error { return send(theirs, []byte{0}, unix.UnixRights(0, 1)) }, "socket"},
		"many":         {func(theirs *os.File) error { return send(theirs, []byte{0}, unix.UnixRights(0, 1, 2, 0, 1, 2)) }, "socket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs, err := Socket()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			if err := errors.Join(c.send(theirs), theirs.Close()); err != nil {
				t.Fatal(err)
			}
			got, err := Receive(ours)
			if !says(err, c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if err != nil {
				return
			}
			defer got.Close()
			if got.TCP.Addr().String() != tcp.Addr().String() || got.DNS.LocalAddr().String() != dns.LocalAddr().String() {
				t.Errorf("got %v and %v", got.TCP.Addr(), got.DNS.LocalAddr())
			}
			// They are still usable at our end: a deadline works.
			if err := tcp.SetDeadline(time.Unix(1, 0)); err != nil {
				t.Error(err)
			}
			if _, err := tcp.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	ours, theirs, err := Socket()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := ours.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := Receive(ours); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
}

// BenchmarkJail measures what the start of a box waits for: the namespace itself is
// the kernel's, and most of its time.
func BenchmarkJail(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for b.Loop() {
		b.StopTimer()
		err := apart(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			b.StartTimer()
			e, err := Jail()
			b.StopTimer()
			return errors.Join(err, e.Close())
		})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkPair(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for b.Loop() {
		netBox, e, err := Pair()
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		netBox.Close()
		e.Close()
		b.StartTimer()
	}
}
