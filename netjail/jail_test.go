package netjail_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

func TestAnyProtocolToAnAllowedHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("db.example", addr)
	w.serve(addr, 5432, greeter("postgres"))
	w.serve(addr, 22, greeter("ssh"))
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Name: "database", Hosts: []string{"db.example"}, Ports: ports(5432)})})
	b.jail.SetCall("sesn_1", "call_1")

	if line, err := b.hears("db.example", 5432); line != "postgres\n" {
		t.Errorf("heard %q, %v", line, err)
	}
	conn, err := b.reach("db.example", 22)
	refused(t, "a port that no rule allows", conn, err)
	b.denied("db.example:22 is blocked by the network policy: db.example is allowed, but not on port 22")

	until(t, "the connection's end is recorded", func() bool { return len(b.recorded(netjail.ActionEnd)) == 1 })
	connects := b.recorded(netjail.ActionConnect)
	if len(connects) != 2 {
		t.Fatalf("decisions: %+v", connects)
	}
	yes, no := connects[0], connects[1]
	if !yes.Allow || yes.Rule != "database" || yes.Host != "db.example" || yes.Port != 5432 || yes.Session != "sesn_1" || yes.Call != "call_1" || yes.Box != "box1" || len(yes.Policy) != 64 {
		t.Errorf("decision %+v", yes)
	}
	if no.Allow || no.Rule != egress.DefaultRule || no.Target() != "db.example:22" {
		t.Errorf("decision %+v", no)
	}
	if end := b.recorded(netjail.ActionEnd)[0]; end.Received != 9 || end.Host != "db.example" {
		t.Errorf("end %+v", end)
	}
	if names := b.recorded(netjail.ActionDNS); len(names) != 1 || names[0].Host != "db.example" || !names[0].Allow {
		t.Errorf("names: %+v", names)
	}
	s := b.jail.Stats()
	if s.Connections != 2 || s.Denied != 1 || s.Received != 9 || s.Queries != 2 {
		t.Errorf("stats %+v", s)
	}
}

func TestWhatIsSaidArrivesWholeAndHalfClosesAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("count.example", addr)
	// It answers with how much it was told, once it is told no more.
	w.serve(addr, 9000, func(conn *net.TCPConn) {
		n, _ := io.Copy(io.Discard, conn)
		fmt.Fprint(conn, n)
	})
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"count.example"}, Ports: ports(9000)})})
	conn, err := b.reach("count.example", 9000)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const much = 8 << 20
	if _, err := conn.Write(make([]byte, much)); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != fmt.Sprint(much) {
		t.Errorf("it was told %s bytes, %v", got, err)
	}
	until(t, "the end is recorded", func() bool { return len(b.recorded(netjail.ActionEnd)) == 1 })
	if end := b.recorded(netjail.ActionEnd)[0]; end.Sent != much {
		t.Errorf("end %+v", end)
	}
}

func TestAResetByTheHostIsAResetInTheBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("rude.example", addr)
	w.serve(addr, 9000, func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 1))
		conn.SetLinger(0)
		conn.Close()
	})
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"rude.example"}, Ports: ports(9000, 9001)})})
	conn, err := b.reach("rude.example", 9000)
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("x"))
	refused(t, "a connection that the host resets", conn, nil)

	conn, err = b.reach("rude.example", 9001)
	refused(t, "a port where nobody listens", conn, err)
	b.denied("rude.example:9001 is allowed by the network policy, but could not be reached: connect: connection refused")
	b.endings("broken off: ", "not reached: connect: connection refused")
}

func TestNameServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example", "b.example"}})})
	first, err := b.resolve("a.example")
	if err != nil || !netjail.FakeRange.Contains(first) {
		t.Fatalf("a.example is %v, %v", first, err)
	}
	second, _ := b.resolve("b.example")
	again, _ := b.resolve("A.Example")
	if second == first || again != first {
		t.Errorf("a.example is %v and then %v, b.example is %v", first, again, second)
	}
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeMX, dnsmessage.TypeTXT, dnsmessage.TypeSRV, dnsmessage.TypeALL, 64, 65} {
		m, err := b.ask("198.18.0.1:53", question("a.example", kind))
		if err != nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 || m.ID != 7 || !m.Response {
			t.Errorf("type %d: %+v, %v", kind, m, err)
		}
	}
	// Whichever server is asked, it is this one that answers.
	for _, server := range []string{"8.8.8.8:53", "[2001:4860:4860::8888]:53", "198.18.0.9:53"} {
		if m, err := b.ask(server, question("a.example", dnsmessage.TypeA)); err != nil || len(m.Answers) != 1 {
			t.Errorf("%s: %v, %v", server, m, err)
		}
		if m, err := b.ask(server, question("denied.example", dnsmessage.TypeA)); err != nil || m.RCode != dnsmessage.RCodeRefused {
			t.Errorf("%s: %v, %v", server, m, err)
		}
	}
	if asked := w.lookedUp(); len(asked) != 0 {
		t.Errorf("names were looked up before anybody connected: %v", asked)
	}
	// Names are on record in one form, allowed or not.
	for _, d := range b.recorded(netjail.ActionDNS) {
		if want := map[bool]string{true: ".example", false: "denied.example"}[d.Allow]; !strings.HasSuffix(d.Host, want) {
			t.Errorf("decision %+v", d)
		}
	}
}

func TestNameServerByTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}})})
	for _, server := range []string{"198.18.0.1:53", "8.8.8.8:53"} {
		conn, err := b.dial(server)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			q := question("a.example", dnsmessage.TypeA)
			conn.Write(append([]byte{0, byte(len(q))}, q...))
			head := make([]byte, 2)
			if _, err := io.ReadFull(conn, head); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, int(head[0])<<8|int(head[1]))
			var m dnsmessage.Message
			if _, err := io.ReadFull(conn, answer); err != nil || m.Unpack(answer) != nil || len(m.Answers) != 1 {
				t.Errorf("answer %x, %v", answer, err)
			}
		}
		conn.Close()
	}
}

func TestTheNameServerSurvivesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}})})
	good := question("a.example", dnsmessage.TypeA)
	b.inside(func() {
		conn, err := net.Dial("udp", "198.18.0.1:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for n := range good {
			conn.Write(good[:n])
		}
		conn.Write(nil)
		conn.Write(append(good[:len(good):len(good)], make([]byte, 3000)...))
		response := append([]byte(nil), good...)
		response[2] |= 0x80
		conn.Write(response)
	})
	opcode := append([]byte(nil), good...)
	opcode[2] |= 5 << 3
	if m, err := b.ask("198.18.0.1:53", opcode); err != nil || m.RCode != dnsmessage.RCodeNotImplemented {
		t.Errorf("an update: %v, %v", m, err)
	}
	if _, err := b.resolve("a.example"); err != nil {
		t.Error(err)
	}
}

func TestNamesAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"**.example"}}), Limits: netjail.Limits{Names: 3}})
	for i := range 3 {
		if _, err := b.resolve(fmt.Sprintf("n%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.resolve("n3.example"); !errors.Is(err, errRefusedName) {
		t.Errorf("a name too many: %v", err)
	}
	if _, err := b.resolve("n1.example"); err != nil {
		t.Errorf("a name that it has: %v", err)
	}
	b.denied("as many names as it may")
	if d := b.recorded(netjail.ActionLimit); len(d) != 1 || d[0].Rule != "names" {
		t.Errorf("limits: %+v", d)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}}), Limits: netjail.Limits{Queries: 1}})
	q := question("a.example", dnsmessage.TypeA)
	b.inside(func() {
		conn, err := net.Dial("udp", "198.18.0.1:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for range 50 {
			conn.Write(q)
		}
	})
	until(t, "the limit is recorded", func() bool { return len(b.recorded(netjail.ActionLimit)) == 1 })
	if n := b.jail.Stats().Queries; n > 10 {
		t.Errorf("%d questions were answered", n)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("a.example", addr)
	w.serve(addr, 9000, greeter("a"))
	b := w.box(netjail.Options{
		Policy: limited(egress.Rule{Hosts: []string{"a.example"}, Ports: ports(9000)}),
		Limits: netjail.Limits{Connections: 2},
	})
	open := func() *net.TCPConn {
		conn, err := b.reach("a.example", 9000)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	one, two := open(), open()
	defer two.Close()
	for _, conn := range []*net.TCPConn{one, two} {
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "a\n" {
			t.Fatalf("heard %q, %v", line, err)
		}
	}
	conn, err := b.reach("a.example", 9000)
	refused(t, "a connection too many", conn, err)
	b.denied("2 connections open")
	one.Close()
	until(t, "there is room again", func() bool { return b.jail.Stats().Open < 2 })
	if line, err := b.hears("a.example", 9000); line != "a\n" {
		t.Errorf("heard %q, %v", line, err)
	}
}

func TestIdleAndOldConnectionsAreCut(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]netjail.Limits{
		"idle":  {Idle: 200 * time.Millisecond},
		"total": {Total: 200 * time.Millisecond, Idle: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			addr := w.address()
			w.name("a.example", addr)
			w.serve(addr, 9000, greeter("a"))
			b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}, Ports: ports(9000)}), Limits: limits})
			conn, err := b.reach("a.example", 9000)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.ReadAll(conn); !isReset(err) {
				t.Errorf("err = %v, want a reset", err)
			}
			b.denied("was cut")
			if d := b.recorded(netjail.ActionLimit); len(d) != 1 || d[0].Rule != name {
				t.Errorf("limits: %+v", d)
			}
			b.endings(map[string]string{"idle": "cut for saying nothing", "total": "cut for its age"}[name])
		})
	}
}

func TestAPolicyChangeCutsWhatItForbids(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	for _, name := range []string{"keep.example", "lose.example"} {
		w.name(name, addr)
	}
	w.serve(addr, 9000, greeter("a"))
	both := limited(egress.Rule{Hosts: []string{"keep.example"}, Ports: ports(9000)}, egress.Rule{Hosts: []string{"lose.example"}, Ports: ports(9000)})
	b := w.box(netjail.Options{Policy: both})
	var conns []*net.TCPConn
	for _, name := range []string{"keep.example", "lose.example"} {
		conn, err := b.reach(name, 9000)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if err := b.jail.SetPolicy(limited(egress.Rule{Hosts: []string{"keep.example"}, Ports: ports(9000)})); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conns[1]); !isReset(err) {
		t.Errorf("the connection that lost its permission: %v", err)
	}
	b.endings("cut by a change of policy")
	conns[0].Write([]byte("still there"))
	if _, err := io.ReadFull(conns[0], make([]byte, 11)); err != nil {
		t.Errorf("the connection that kept it: %v", err)
	}
	if _, err := b.resolve("lose.example"); !errors.Is(err, errRefusedName) {
		t.Errorf("the name is still answered: %v", err)
	}
	if err := b.jail.SetPolicy(egress.Policy{Mode: "nonsense"}); err == nil {
		t.Error("a policy that is none was set")
	}
	if err := b.jail.SetPolicy(both); err != nil {
		t.Error(err)
	}
	if line, err := b.hears("lose.example", 9000); line != "a\n" {
		t.Errorf("heard %q, %v after it was allowed again", line, err)
	}
	changes := b.recorded(netjail.ActionPolicy)
	if len(changes) != 2 || changes[0].Policy == changes[1].Policy {
		t.Errorf("changes: %+v", changes)
	}
}

func TestWhatCannotBeRecordedDoesNotHappen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	addr := w.host("a.example", s)
	w.serve(addr, 9000, greeter("a"))
	b := w.box(netjail.Options{
		Policy: limited(egress.Rule{Hosts: []string{"a.example"}, Ports: ports(80, 443), Methods: []string{"GET"}},
			egress.Rule{Name: "tcp", Hosts: []string{"a.example"}, Ports: ports(9000), Protocol: egress.TCP}),
		Limits: netjail.Limits{},
	})
	fake, err := b.resolve("a.example")
	if err != nil {
		t.Fatal(err)
	}
	b.refuseRecords(errors.New("disk full"))
	for _, port := range []uint16{80, 9000} {
		conn, err := b.dial(netip.AddrPortFrom(fake, port).String())
		if err == nil && port == 80 {
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}
		refused(t, fmt.Sprint("port ", port), conn, err)
	}
	if err := b.jail.SetPolicy(egress.Policy{Mode: egress.Unrestricted}); err == nil {
		t.Error("a policy was changed without a record")
	}
	b.jail.SetCall("sesn_1", "call_2")
	if m, err := b.ask("198.18.0.1:53", question("a.example", dnsmessage.TypeA)); err != nil || m.RCode == dnsmessage.RCodeSuccess {
		t.Errorf("a name was answered: %v, %v", m, err)
	}
	if asked, requests := w.lookedUp(), s.all(); len(asked) != 0 || len(requests) != 0 {
		t.Errorf("looked up %v, asked %v", asked, requests)
	}
	b.denied("could not be recorded")
	b.refuseRecords(nil)
	if line, err := b.hears("a.example", 9000); line != "a\n" {
		t.Errorf("heard %q, %v when there is room again", line, err)
	}
}

func TestTheLossOfTheJailIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}})})
	if err := b.jail.Attach(b.exits); err == nil {
		t.Error("it was attached twice")
	}
	select {
	case <-b.jail.Done():
		t.Fatal("it is done before its end")
	default:
	}
	b.exits.TCP.Close() // as when the box has ended
	select {
	case <-b.jail.Done():
	case <-time.After(patience):
		t.Fatal("it serves on with half its exits")
	}
	if err := b.jail.Err(); err != nil {
		t.Errorf("Err = %v", err)
	}
}

func TestAPanicLosesTheJailAndNothingElse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dns, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	jail, err := netjail.New(netjail.Options{
		Record:   func(netjail.Decision) error { return nil },
		Original: func(*net.TCPConn) (netip.AddrPort, error) { panic("a bug") },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := jail.Attach(exits(l, dns)); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-jail.Done()
	if err := jail.Err(); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("Err = %v", err)
	}
	jail.Close()
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("a.example", addr)
	w.serve(addr, 9000, greeter("a"))
	w.host("web.example", new(site))
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}, Ports: ports(9000)},
		egress.Rule{Hosts: []string{"web.example"}, Protocol: egress.HTTPS})})
	conn, err := b.reach("a.example", 9000)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := b.client()
	if r, _ := b.fetch(c, "GET", "https://web.example/", ""); r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
	if err := b.jail.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !isReset(err) {
		t.Errorf("a connection outlived the jail: %v", err)
	}
	if s := b.jail.Stats(); s.Open != 0 {
		t.Errorf("stats %+v", s)
	}
	unused, err := netjail.New(netjail.Options{Record: func(netjail.Decision) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unused.Close(), unused.Close()); err != nil {
		t.Error(err)
	}
	<-unused.Done()
	if err := unused.Attach(b.exits); err == nil {
		t.Error("a closed jail was attached")
	}
}

func TestTLSIsPassedOnUnopened(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("a.example", s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"a.example"}})})
	if len(b.env("SSL_CERT_FILE")) > 0 {
		t.Error("an authority was made that nothing needs")
	}
	conn, err := b.reach("a.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	client := tls.Client(conn, &tls.Config{ServerName: "a.example", RootCAs: w.roots})
	if err := client.Handshake(); err != nil {
		t.Fatalf("the host's own certificate does not arrive: %v", err)
	}
	client.Close()
}

func TestABoxWithANetworkCard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	addr := w.host("web.example", s)
	w.serve(addr, 5432, greeter("postgres"))
	b := w.pairedBox(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"web.example"}, Ports: ports(80, 443, 5432)})})
	if line, err := b.hears("web.example", 5432); line != "postgres\n" {
		t.Errorf("heard %q, %v", line, err)
	}
	if r, body := b.fetch(b.client(), "GET", "http://web.example/", ""); r.StatusCode != 200 || body != "hello" {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	for _, addr := range []string{"169.254.169.254:80", "8.8.8.8:443", "[2606:4700::1]:443", "[fd00:ec2::254]:80"} {
		conn, err := b.dial(addr)
		refused(t, addr, conn, err)
	}
	b.denied("[fd00:ec2::254]:80 is blocked")
	if m, err := b.ask("8.8.8.8:53", question("denied.example", dnsmessage.TypeA)); err != nil || m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("%v, %v", m, err)
	}
}

// TestAChangeOfProxyReachesRunningBoxes: and what was connected past it is cut.
func TestAChangeOfProxyReachesRunningBoxes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr, proxy := w.address(), w.address()
	w.name("db.example", addr)
	w.serve(addr, 9000, greeter("direct"))
	w.serve(proxy, 3128, func(conn *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
			greeter("by proxy")(conn)
		}
	})
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"db.example"}, Ports: ports(9000)})})
	conn, err := b.reach("db.example", 9000)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	by, err := egress.ParseProxy("http://" + netip.AddrPortFrom(proxy, 3128).String())
	if err != nil {
		t.Fatal(err)
	}
	b.jail.SetDialer(&egress.Dialer{Resolver: w, Proxy: by})
	if _, err := io.ReadAll(conn); !isReset(err) {
		t.Errorf("the connection past the proxy: %v, want a reset", err)
	}
	b.endings("cut by a change of proxy")
	if line, err := b.hears("db.example", 9000); line != "by proxy\n" {
		t.Errorf("heard %q, %v", line, err)
	}
}

// TestAJailThatMayNotGoOn is lost, and its box with it.
func TestAJailThatMayNotGoOn(t *testing.T) {
	t.Parallel()
	for name, attached := range map[string]bool{"attached": true, "not yet attached": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j, err := netjail.New(netjail.Options{Box: "box1", Record: func(netjail.Decision) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			if attached {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				dns, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				e := exits(l, dns)
				defer e.Close()
				if err := j.Attach(e); err != nil {
					t.Fatal(err)
				}
			}
			j.Fail(errors.New("no room"))
			<-j.Done()
			if err := j.Err(); err == nil || !strings.Contains(err.Error(), "no room") {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}
