package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A lan is a network of hosts, each a network namespace of its own, joined by a bridge
// in one more. Nothing of it is in the network of who runs the tests, and it is gone
// when the test is.
type lan struct {
	t      testing.TB
	bridge *host
	cables int
}

// A host is a network namespace. Programs run in it, and this process listens and dials
// there.
type host struct {
	t    testing.TB
	name string
	ns   *os.File
}

// newLAN makes a network without hosts, or skips the test where that takes rights that
// it does not have.
func newLAN(t testing.TB) *lan {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("hosts of their own, as network namespaces, need root")
	}
	for _, tool := range []string{"ip", "nft", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "networks of hosts need %s: %v", tool, err)
		}
	}
	n := &lan{t: t}
	n.bridge = newHost(t, "bridge")
	n.bridge.run("ip", "link", "add", "br0", "type", "bridge")
	n.bridge.run("ip", "link", "set", "br0", "up")
	return n
}

func newHost(t testing.TB, name string) *host {
	t.Helper()
	h := &host{t: t, name: name}
	err := elsewhere(nil, func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		missing(t, "no network namespace can be made here: %v", err)
	}
	t.Cleanup(func() {
		leaving.Lock()
		defer leaving.Unlock()
		h.ns.Close()
	})
	h.run("ip", "link", "set", "lo", "up")
	return h
}

// leaving is held while a host's namespace is closed, and shared by who enters one: a
// connection that comes as a test ends may be dialled by a host that goes.
var leaving sync.RWMutex

// elsewhere runs f on a thread in the namespace, or one that f may move.
func elsewhere(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil && ns != nil {
			leaving.RLock()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			leaving.RUnlock()
		}
		if err == nil {
			err = f()
		}
		// A thread that cannot go home ends with this goroutine.
		if home != nil && unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
		done <- err
	}()
	return <-done
}

// run runs a program of the system on the host.
func (h *host) run(args ...string) { h.feed("", args...) }

func (h *host) feed(input string, args ...string) {
	h.t.Helper()
	var out []byte
	err := elsewhere(h.ns, func() (err error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		h.t.Fatalf("%s: %s: %v\n%s", h.name, strings.Join(args, " "), err, out)
	}
}

// command is a run of the binary on the host.
func (h *host) command(env []string, args ...string) *exec.Cmd {
	return h.within(command(env, args...))
}

// within has a command run on the host. The process that is started becomes it, so that
// it is signalled as any other.
func (h *host) within(cmd *exec.Cmd) *exec.Cmd {
	enter, err := exec.LookPath("nsenter")
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Args = append([]string{enter, fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), h.ns.Fd()), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = enter
	return cmd
}

func (h *host) listen(addr string) net.Listener {
	h.t.Helper()
	var l net.Listener
	err := elsewhere(h.ns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

func (h *host) dial(ctx context.Context, addr string) (conn net.Conn, err error) {
	err = elsewhere(h.ns, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// serve serves HTTP on the host until the test ends.
func (h *host) serve(addr string, handler http.Handler) {
	h.t.Helper()
	l := h.listen(addr)
	server := &http.Server{Handler: handler}
	go server.Serve(l)
	h.t.Cleanup(func() { server.Close() })
}

// filter replaces what the host lets in and out, in the words of nftables.
func (h *host) filter(in, out string) {
	h.t.Helper()
	chain := func(hook, rules string) string {
		return fmt.Sprintf("chain %s { type filter hook %s priority 0; policy accept; %s }\n", hook, hook, rules)
	}
	h.feed("table inet lab\ndelete table inet lab\ntable inet lab {\n"+chain("input", in)+chain("output", out)+"}\n", "nft", "-f", "-")
}

// host adds a host with an address and a cable to the bridge.
func (n *lan) host(name, addr string) *host {
	n.t.Helper()
	h := newHost(n.t, name)
	n.cables++
	far := fmt.Sprintf("port%d", n.cables)
	h.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", far, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.bridge.ns.Fd()))
	n.bridge.run("ip", "link", "set", far, "master", "br0", "up")
	h.run("ip", "addr", "add", addr, "dev", "eth0")
	h.run("ip", "link", "set", "eth0", "up")
	return h
}

// A wire is a cable that can be bad: this process carries the frames, and drops, delays
// and mixes them as it is told. It needs nothing of the kernel but TAP devices, which more
// have than have tc's netem.
type wire struct {
	mu    sync.Mutex // guards what follows
	cut   bool
	delay time.Duration // at most, of each frame: those that meet overtake each other

	mixed int // frames that were delayed
}

// wiredHost adds a host whose cable is a wire.
func (n *lan) wiredHost(name, addr string) (*host, *wire) {
	n.t.Helper()
	h, w := newHost(n.t, name), new(wire)
	n.cables++
	far := fmt.Sprintf("port%d", n.cables)
	a, b := h.tap("eth0"), n.bridge.tap(far)
	go w.carry(a, b)
	go w.carry(b, a)
	n.bridge.run("ip", "link", "set", far, "master", "br0", "up")
	h.run("ip", "addr", "add", addr, "dev", "eth0")
	h.run("ip", "link", "set", "eth0", "up")
	return h, w
}

func (h *host) tap(name string) *os.File {
	h.t.Helper()
	var f *os.File
	err := elsewhere(h.ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		missing(h.t, "a cable that can be cut needs /dev/net/tun: %v", err)
	}
	h.t.Cleanup(func() { f.Close() })
	return f
}

// carry carries frames one way until the devices are closed.
func (w *wire) carry(from, to *os.File) {
	frame := make([]byte, 64<<10)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		w.mu.Lock()
		cut, delay := w.cut, w.delay
		if delay > 0 {
			w.mixed++
		}
		w.mu.Unlock()
		switch {
		case cut:
		case delay > 0:
			late := append([]byte(nil), frame[:n]...)
			time.AfterFunc(rand.N(delay), func() { to.Write(late) })
		default:
			to.Write(frame[:n])
		}
	}
}

func (w *wire) delayed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mixed
}

func (w *wire) set(cut bool, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.delay = cut, delay
}

// outside makes a port of the host reachable in the network of the tests, on loopback
// and for this process's helpers alone, and returns its URL.
func (h *host) outside(addr string) (url string) {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				to, err := h.dial(context.Background(), addr)
				if err != nil {
					conn.Close()
					return
				}
				join(conn, to)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// join passes on what two connections say until both are done.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	half := func(from, to net.Conn) {
		_, err := io.Copy(to, from)
		if err != nil { // broken here, it is to be broken there
			to.Close()
			from.Close()
		} else if c, ok := to.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	}
	both.Go(func() { half(a, b) })
	both.Go(func() { half(b, a) })
	both.Wait()
	a.Close()
	b.Close()
}

// connectProxy serves HTTP CONNECT, and nothing else, on the host.
func (h *host) connectProxy(addr string) (seen func() []string) {
	l := h.listen(addr)
	var mu sync.Mutex
	var asked []string
	serve := func(conn net.Conn) error {
		defer conn.Close()
		in := bufio.NewReader(conn)
		req, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		if req.Method != http.MethodConnect {
			_, err := io.WriteString(conn, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
			return err
		}
		mu.Lock()
		asked = append(asked, req.RequestURI)
		mu.Unlock()
		to, err := h.dial(context.Background(), req.RequestURI)
		if err != nil {
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			return err
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil || in.Buffered() > 0 {
			to.Close()
			return errors.Join(err, errors.New("spoke before it was answered"))
		}
		join(conn, to)
		return nil
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), asked...)
	}
}

// ownResolver has a command that runs on a host ask name servers of its own: what
// stands in the file, which only it sees in the place of the system's.
func ownResolver(t testing.TB, cmd *exec.Cmd, file string) *exec.Cmd {
	t.Helper()
	sh, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	cmd.Args = append([]string{sh, "--mount", "sh", "-c", script, file, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = sh
	return cmd
}
