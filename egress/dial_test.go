package egress

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A book is a resolver that knows some names, and counts.
type book struct {
	names map[string][]netip.Addr
	asked atomic.Int64
}

func (b *book) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	b.asked.Add(1)
	if addrs, ok := b.names[name]; ok {
		return addrs, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, Server: "192.0.2.53:53", IsNotFound: true}
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

// echo is a host that says one line to whoever connects.
func echo(t *testing.T) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var served atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Add(1)
			io.WriteString(conn, "hello\n")
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), &served
}

func TestDialGoesToAllowedAddressesOnly(t *testing.T) {
	t.Parallel()
	at, served := echo(t)
	resolver := &book{names: map[string][]netip.Addr{
		"one.example.":   addrs("127.0.0.1"),
		"mixed.example.": addrs("127.0.0.9", "127.0.0.1"),
		"bad.example.":   addrs("127.0.0.9", "::ffff:127.0.0.9"),
		"empty.example.": nil,
	}}
	d := &Dialer{Resolver: resolver}
	judge := func(to netip.AddrPort) Verdict {
		return Verdict{Allow: to == at, Rule: "test", Reason: "not the address that the test allows"}
	}
	dial := func(name string) error {
		conn, to, err := d.Dial(t.Context(), host(t, name), at.Port(), judge)
		if err == nil {
			defer conn.Close()
			if to != at {
				t.Errorf("%s: it says it has dialled %v", name, to)
			}
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
				t.Errorf("%s: read %q, %v", name, line, err)
			}
		}
		return err
	}
	for _, name := range []string{"one.example", "mixed.example", "127.0.0.1", "one.example"} {
		if err := dial(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := resolver.asked.Load(); n != 2 {
		t.Errorf("two names were looked up %d times", n)
	}
	before := served.Load()
	var refused *Refused
	for _, name := range []string{"bad.example", "127.0.0.9"} {
		if err := dial(name); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if err := dial("empty.example"); err == nil || errors.As(err, &refused) {
		t.Errorf("a name without addresses: %v", err)
	}
	if err := dial("nobody.example"); err == nil || strings.Contains(err.Error(), "192.0.2.53") {
		t.Errorf("a name that there is not: %v; it must not tell the host's name server", err)
	}
	if served.Load() != before {
		t.Error("somebody was connected to all the same")
	}
}

// Between the look-up and the connection nothing can change the address: the verdict on
// the second look is that on the address which the kernel is given.
func TestDialAsksAgainAboutTheAddressTheKernelGets(t *testing.T) {
	t.Parallel()
	at, served := echo(t)
	asked := 0
	_, _, err := new(Dialer).Dial(t.Context(), host(t, "127.0.0.1"), at.Port(), func(to netip.AddrPort) Verdict {
		asked++
		return Verdict{Allow: asked == 1, Reason: "changed its mind"}
	})
	var refused *Refused
	if !errors.As(err, &refused) || asked != 2 || served.Load() != 0 {
		t.Errorf("err %v, asked %d times, served %d", err, asked, served.Load())
	}
}

func TestDialHasATimeout(t *testing.T) {
	t.Parallel()
	stuck := resolverFunc(func(ctx context.Context) ([]netip.Addr, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	d := &Dialer{Resolver: stuck, Timeout: time.Millisecond}
	if _, _, err := d.Dial(t.Context(), host(t, "slow.example"), 1, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}

type resolverFunc func(context.Context) ([]netip.Addr, error)

func (f resolverFunc) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	return f(ctx)
}

func TestProxies(t *testing.T) {
	t.Parallel()
	at, _ := echo(t)
	resolver := &book{names: map[string][]netip.Addr{"one.example.": addrs("127.0.0.1")}}
	any := func(netip.AddrPort) Verdict { return Verdict{Allow: true} }
	for scheme, want := range map[string]string{
		"http":    at.String(),
		"httph":   fmt.Sprintf("one.example:%d", at.Port()),
		"socks5":  at.String(),
		"socks5h": fmt.Sprintf("one.example:%d", at.Port()),
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			addr, asked := fakeProxy(t, at)
			p, err := ParseProxy(scheme + "://user:pass@" + addr)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(p.String(), "pass") {
				t.Errorf("%s tells the password", p)
			}
			conn, _, err := (&Dialer{Resolver: resolver, Proxy: p}).Dial(t.Context(), host(t, "one.example"), at.Port(), any)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
				t.Errorf("read %q, %v", line, err)
			}
			if got := <-asked; got != "user:pass "+want {
				t.Errorf("the proxy was asked for %q, want %q", got, want)
			}
			// What the rules refuse, the proxy is not asked for.
			if scheme == "http" || scheme == "socks5" {
				_, _, err = (&Dialer{Resolver: resolver, Proxy: p}).Dial(t.Context(), host(t, "one.example"), at.Port(), func(netip.AddrPort) Verdict { return Verdict{Reason: "no"} })
				var refused *Refused
				if !errors.As(err, &refused) {
					t.Errorf("err = %v", err)
				}
			}
		})
	}
}

// fakeProxy speaks both kinds on one port, to one host.
func fakeProxy(t *testing.T, to netip.AddrPort) (addr string, asked chan string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked = make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		if first, err := r.Peek(1); err != nil {
			return
		} else if first[0] == 5 {
			asked <- socks5(r, conn)
		} else {
			req, err := http.ReadRequest(r)
			if err != nil || req.Method != http.MethodConnect {
				return
			}
			auth, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Header.Get("Proxy-Authorization"), "Basic "))
			asked <- string(auth) + " " + req.Host
			io.WriteString(conn, "HTTP/1.1 200 Fine\r\nVia: test\r\n\r\n")
		}
		upstream, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		defer upstream.Close()
		io.Copy(conn, upstream)
	}()
	return l.Addr().String(), asked
}

func socks5(r *bufio.Reader, w io.Writer) string {
	read := func(n int) []byte {
		b := make([]byte, n)
		io.ReadFull(r, b)
		return b
	}
	read(int(read(2)[1]))
	w.Write([]byte{5, 2})
	read(1)
	user := read(int(read(1)[0]))
	password := read(int(read(1)[0]))
	w.Write([]byte{1, 0})
	target := ""
	switch read(4)[3] {
	case 1:
		target = netip.AddrFrom4([4]byte(read(4))).String()
	case 3:
		target = string(read(int(read(1)[0])))
	}
	port := read(2)
	w.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return fmt.Sprintf("%s:%s %s:%d", user, password, target, int(port[0])<<8|int(port[1]))
}

func TestParseProxyRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "proxy:3128", "https://p:1", "socks4://p:1", "http://p", "http://p:1/x", "http://p:1?x", "http://u:secret@p\x00:1"} {
		if p, err := ParseProxy(s); err == nil {
			t.Errorf("ParseProxy(%q) = %v", s, p)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}
