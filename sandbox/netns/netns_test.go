package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// patience bounds every wait. It is far more than any takes.
const patience = 30 * time.Second

// thread runs f on a thread of its own that ends with it.
func thread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// original returns where a connection was meant to go.
func original(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	v4 := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	var addr netip.AddrPort
	err = control(raw, func(fd uintptr) error {
		if v4 {
			a, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
			if err == nil {
				addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Multiaddr[4:8])), binary.BigEndian.Uint16(a.Multiaddr[2:]))
			}
			return err
		}
		a, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST)
		if err == nil {
			addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), a.Addr.Port<<8|a.Addr.Port>>8)
		}
		return err
	})
	return addr, err
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
			addr, err := original(conn)
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

// ask connects or sends to an address and returns the answer.
func ask(network, addr string) string {
	begun := time.Now()
	conn, err := net.DialTimeout(network, addr, 2*time.Second)
	if err == nil {
		defer conn.Close()
		err = conn.SetDeadline(time.Now().Add(2 * time.Second))
	}
	if err == nil && !strings.HasPrefix(network, "tcp") {
		_, err = conn.Write([]byte("question"))
	}
	buf := make([]byte, 512)
	n := 0
	if err == nil {
		n, err = conn.Read(buf)
	}
	switch {
	case err == nil && n > 0:
		return string(buf[:n])
	case errors.Is(err, syscall.ECONNREFUSED) && time.Since(begun) < time.Second:
		return "refused"
	}
	return fmt.Sprint(err)
}

func TestJailQuick(t *testing.T) {
	thread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		begun := time.Now()
		e, err := Jail()
		if err != nil {
			t.Error(err)
			return
		}
		t.Log(time.Since(begun))
		serve(t, e)
		for _, a := range []string{"tcp 1.2.3.4:443", "tcp [2001:db8::1]:443", "tcp 127.0.0.1:99", "tcp [::1]:99", "tcp 169.254.169.254:80", "tcp 127.0.0.1:61080", "tcp [::1]:61080",
			"udp 1.2.3.4:53", "udp 127.0.0.53:53", "udp [2001:db8::1]:53", "udp [::1]:53", "udp 1.2.3.4:443", "udp [2001:db8::1]:443", "ip4:icmp 1.2.3.4", "ip6:ipv6-icmp 2001:db8::1", "udp 127.0.0.1:77",
			"udp 255.255.255.255:67", "udp 224.0.0.1:99", "tcp 0.0.0.0:80", "udp 0.0.0.0:53"} {
			n, addr, _ := strings.Cut(a, " ")
			t.Log(a, ask(n, addr))
		}
	})
	_ = os.Args
}

func TestPairQuick(t *testing.T) {
	begun := time.Now()
	box, e, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(time.Since(begun))
	serve(t, e)
	thread(func() {
		if err := unix.Setns(int(box.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		for _, a := range []string{"tcp 1.2.3.4:443", "tcp [2001:db8::1]:443", "tcp 127.0.0.1:99", "tcp [::1]:99", "tcp 169.254.169.254:80", "tcp 127.0.0.1:61080", "tcp [::1]:61080", "tcp 192.0.0.1:61080",
			"udp 1.2.3.4:53", "udp 127.0.0.53:53", "udp [2001:db8::1]:53", "udp [::1]:53", "udp 1.2.3.4:443", "udp [2001:db8::1]:443", "ip4:icmp 1.2.3.4", "ip6:ipv6-icmp 2001:db8::1", "ip4:icmp 192.0.0.1", "udp 127.0.0.1:77",
			"udp 255.255.255.255:67", "udp 224.0.0.1:99"} {
			n, addr, _ := strings.Cut(a, " ")
			t.Log(a, ask(n, addr))
		}
	})
}
