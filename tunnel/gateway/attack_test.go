package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/tunnel"
)

func TestAttackServerNameIsNotHost(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	l := serve(t, s.URL, func(c *Config) { c.Routes["files"] = &Route{Upstream: s.URL, Settings: c.Routes["docs"].Settings} })
	for _, named := range []string{"files." + domain, "evil.test", "127.0.0.1", "docs." + domain + ".evil.test", "docs." + domain + "@x", "DOCS_." + domain, "xn--docs." + domain} {
		got := l.raw("docs."+domain, "GET / HTTP/1.1\r\nHost: "+named+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 421 ") || !strings.Contains(got, "Bailey-Tunnel-Error: request_refused;") {
			t.Errorf("%s: %q", named, got)
		}
	}
	res, _ := get(t, l.client(true), "GET", "https://docs."+domain+"/", "", "Host", "files."+domain)
	if res.StatusCode != 421 {
		t.Errorf("HTTP/2: %d", res.StatusCode)
	}
	if asked.Load() != 0 {
		t.Errorf("%d calls came through", asked.Load())
	}
	// What is the same host, is.
	for _, named := range []string{"docs." + domain, "DOCS." + strings.ToUpper(domain), "docs." + domain + ".", "docs." + domain + ":443"} {
		if got := l.raw("docs."+domain, "GET / HTTP/1.1\r\nHost: "+named+"\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%s: %q", named, got)
		}
	}
}

func TestAttackNoServerName(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {})
	l := serve(t, s.URL, nil)
	for name, config := range map[string]*tls.Config{
		"none":                {InsecureSkipVerify: true},
		"TLS 1.2":             {InsecureSkipVerify: true, ServerName: "docs." + domain, MaxVersion: tls.VersionTLS12},
		"a name that is none": {InsecureSkipVerify: true, ServerName: "a_b." + domain},
	} {
		conn, err := tls.Dial("tcp", l.addr, config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells a client later
			conn.Close()
		}
		if err == nil {
			t.Errorf("%s: the handshake went well", name)
		}
	}
	// What speaks no TLS gets nothing.
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: docs."+domain+"\r\n\r\n")
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, _ := io.ReadAll(conn); strings.Contains(string(b), "HTTP/1.1 2") {
		t.Errorf("%q", b)
	}
	if !strings.Contains(l.logs.String(), "tls handshake failed") {
		t.Error("the log does not say so")
	}
}

// Requests that two programs could read as two different ones.
func TestAttackSmuggling(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	l := serve(t, s.URL, nil)
	const hidden = "GET /admin HTTP/1.1\r\nHost: docs." + domain + "\r\n\r\n"
	for name, text := range map[string]string{
		"CL.TE":                  "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE.CL":                  "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":            "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + hidden,
		"two equal lengths":      "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd" + hidden,
		"a list of lengths":      "Content-Length: 4, 4\r\n\r\nabcd" + hidden,
		"a signed length":        "Content-Length: +4\r\n\r\nabcd" + hidden,
		"a negative length":      "Content-Length: -1\r\n\r\n" + hidden,
		"a hexadecimal length":   "Content-Length: 0x4\r\n\r\nabcd" + hidden,
		"an empty length":        "Content-Length:\r\n\r\n" + hidden,
		"a huge length":          "Content-Length: 99999999999999999999\r\n\r\n",
		"two encodings":          "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"chunked twice":          "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"another encoding":       "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"gzip before":            "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"identity":               "Transfer-Encoding: identity\r\n\r\n",
		"a tab before the colon": "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
		"a space before":         "Content-Length : 4\r\n\r\nabcd",
		"a folded line":          "X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
		"a bare LF":              "X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a bare CR":              "X: a\rTransfer-Encoding: chunked\r\n\r\n",
		"a NUL":                  "X: a\x00b\r\n\r\n",
		"an empty line of LF":    "X: a\n\n" + hidden,
		"a line without a colon": "nonsense\r\n\r\n",
		"an empty name":          ": x\r\n\r\n",
		"two hosts":              "Host: evil.test\r\n\r\n",
		"a chunk with extension": "Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
		"a chunk without CR":     "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
		"a chunk that is longer": "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
		"a signed chunk":         "Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n",
		"a chunk of 0x":          "Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
		"a chunk that overflows": "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n",
		"a chunk with a space":   "Transfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
	} {
		before := asked.Load()
		got := l.raw("docs."+domain, "POST / HTTP/1.1\r\nHost: docs."+domain+"\r\n"+text)
		// One refusal, and nothing after it.
		if strings.Count(got, "HTTP/1.1 ") > 1 || strings.Contains(got, "HTTP/1.1 2") {
			t.Errorf("%s: %q", name, got)
		}
		if !strings.Contains(name, "chunk") && asked.Load() != before {
			t.Errorf("%s: it came through", name)
		}
	}
	for name, line := range map[string]string{
		"another host in the line": "GET http://evil.test/ HTTP/1.1",
		"CONNECT":                  "CONNECT evil.test:443 HTTP/1.1",
		"a star":                   "OPTIONS * HTTP/1.1",
		"two spaces":               "GET  / HTTP/1.1",
		"HTTP/1.0":                 "GET / HTTP/1.0",
		"HTTP/0.9":                 "GET /",
		"a tab":                    "GET\t/ HTTP/1.1",
		"a method":                 "GE T / HTTP/1.1",
		"a letter of another kind": "GET /ä HTTP/1.1",
	} {
		if got := l.raw("docs."+domain, line+"\r\nHost: docs."+domain+"\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s: %q", name, got)
		}
	}
	// Two calls at once are two.
	if got := l.raw("docs."+domain, hidden+"GET / HTTP/1.1\r\nHost: docs."+domain+"\r\nConnection: close\r\n\r\n"); strings.Count(got, "HTTP/1.1 200 ") != 2 {
		t.Errorf("%q", got)
	}
}

func TestAttackOversize(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			asked.Add(1)
		}
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		for _, inspected := range []bool{false, true} {
			l := serve(t, s.URL, func(c *Config) {
				c.Routes["docs"].Limits.Body = 1000
				if inspected {
					c.Routes["docs"].Tools.Deny = []string{"x"}
				}
			})
			before := asked.Load()
			res, _ := get(t, l.client(h2), "POST", "https://docs."+domain+"/", strings.Repeat("x", 1001))
			if e := tunnel.ErrorFromHeader(res.Header); res.StatusCode != 413 || e == nil || e.Stage != tunnel.StageBodyTooLong || !strings.Contains(e.Detail, "1000 bytes") {
				t.Errorf("length, inspected=%v: %d, %+v", inspected, res.StatusCode, e)
			}
			req, _ := http.NewRequest("POST", "https://docs."+domain+"/", io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))))
			if res, err := l.client(h2).Do(req); err != nil {
				t.Errorf("chunks: %v", err)
			} else if res.StatusCode != 413 {
				t.Errorf("chunks, inspected=%v: %d", inspected, res.StatusCode)
			}
			if asked.Load() != before {
				t.Errorf("inspected=%v: the server took it for whole", inspected)
			}
		}
		l := serve(t, s.URL, nil)
		if !h2 {
			for name, text := range map[string]string{
				"a long head":  "GET / HTTP/1.1\r\nHost: docs." + domain + "\r\nX: " + strings.Repeat("x", headMax) + "\r\n\r\n",
				"a long line":  "GET /" + strings.Repeat("x", headMax) + " HTTP/1.1\r\n",
				"many headers": "GET / HTTP/1.1\r\nHost: docs." + domain + "\r\n" + strings.Repeat("X: x\r\n", fieldsMax) + "\r\n",
			} {
				if got := l.raw("docs."+domain, text); strings.Contains(got, "HTTP/1.1 2") {
					t.Errorf("%s: %q", name, got)
				}
			}
		}
	})
}

// A name that leads to an allowed address when it is looked at, and to another when it is
// connected to.
func TestAttackRebinding(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	var looked atomic.Int64
	rebinding := resolver(func(name string) []netip.Addr {
		if looked.Add(1)%2 == 1 {
			return []netip.Addr{netip.MustParseAddr("10.255.255.1")} // allowed, and nobody is there
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	})
	l := serve(t, "http://mcp.inside.test:"+port, func(c *Config) {
		c.Routes["docs"].AllowedIPs = []string{"10.0.0.0/8"}
		c.Routes["docs"].Timeouts.Connect = settingsDuration(50 * time.Millisecond)
	}, func(o *Options) { o.Resolver = rebinding })
	for range 6 {
		res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", "")
		if res.StatusCode < 500 {
			t.Fatalf("it came through: %d", res.StatusCode)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("%d calls came through", asked.Load())
	}
	// Both kinds at once: only what is allowed is connected to.
	both := resolver(func(string) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("::ffff:127.0.0.1"), netip.MustParseAddr("127.0.0.1")}
	})
	l = serve(t, "http://mcp.inside.test:"+port, nil, func(o *Options) { o.Resolver = both })
	if res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); res.StatusCode != 200 {
		t.Errorf("status %d", res.StatusCode)
	}
}

type resolver func(name string) []netip.Addr

func (r resolver) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	return r(name), nil
}

func TestAddressRule(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		allowed []string
		addr    string
		want    bool
	}{
		{nil, "10.1.2.3", true},
		{nil, "172.31.0.1", true},
		{nil, "192.168.1.1", true},
		{nil, "::ffff:10.1.2.3", true},
		{nil, "100.64.0.1", false},
		{nil, "8.8.8.8", false},
		{nil, "127.0.0.1", false},
		{nil, "::1", false},
		{nil, "::ffff:127.0.0.1", false},
		{nil, "0.0.0.0", false},
		{nil, "0.1.2.3", false},
		{nil, "::", false},
		{nil, "169.254.169.254", false},
		{nil, "::ffff:169.254.169.254", false},
		{nil, "fd00::1", false},
		{nil, "fe80::1", false},
		{nil, "224.0.0.1", false},
		{nil, "255.255.255.255", false},
		{[]string{"0.0.0.0/0", "::/0"}, "8.8.8.8", true},
		{[]string{"0.0.0.0/0", "::/0"}, "10.0.0.1", true},
		{[]string{"0.0.0.0/0", "::/0"}, "fd00::1", true},
		{[]string{"0.0.0.0/0", "::/0"}, "2606:4700::1", true},
		{[]string{"0.0.0.0/0", "::/0"}, "127.0.0.1", false},
		{[]string{"0.0.0.0/0", "::/0"}, "::1", false},
		{[]string{"0.0.0.0/0", "::/0"}, "0.0.0.0", false},
		{[]string{"0.0.0.0/0", "::/0"}, "169.254.169.254", false},
		{[]string{"0.0.0.0/0", "::/0"}, "169.254.1.1", false},
		{[]string{"0.0.0.0/0", "::/0"}, "fe80::1", false},
		{[]string{"0.0.0.0/0", "::/0"}, "100.100.100.200", false},
		{[]string{"0.0.0.0/0", "::/0"}, "fd00:ec2::254", false},
		{[]string{"0.0.0.0/0", "::/0"}, "64:ff9b::7f00:1", false},
		{[]string{"0.0.0.0/0", "::/0"}, "2002:7f00:1::", false},
		{[]string{"127.0.0.0/8"}, "127.0.0.1", true},
		{[]string{"127.0.0.1"}, "127.0.0.2", false},
		{[]string{"0.0.0.0/8"}, "0.0.0.0", false},
		{[]string{"::1"}, "::1", true},
		{[]string{"::1"}, "127.0.0.1", false},
		{[]string{"169.254.0.0/16"}, "169.254.1.1", true},
		{[]string{"169.254.0.0/16"}, "169.254.169.254", false},
		{[]string{"169.254.0.0/16"}, "169.254.42.42", false},
		{[]string{"fc00::/7"}, "fd00:c1::a9fe:a9fe", false},
		{[]string{"169.254.169.254"}, "169.254.169.254", true},
		{[]string{"fd00:10::/32"}, "fd00:10::5", true},
		{[]string{"fd00:10::/32"}, "fd00:11::5", false},
		{[]string{"::ffff:10.0.0.1"}, "10.0.0.1", true},
	} {
		list := c.allowed
		if list == nil {
			list = defaultAllowed
		}
		rule, err := parseAllowed(list)
		if err != nil {
			t.Fatal(err)
		}
		rule.own = ownAt()
		verdict := rule.judge(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 80))
		if verdict.Allow != c.want {
			t.Errorf("%s with %v: %v %s", c.addr, c.allowed, verdict.Allow, verdict.Reason)
		}
		if !verdict.Allow && !strings.HasPrefix(verdict.Reason, "IP validation failed: ") {
			t.Errorf("%s: %q is not what mcp-proxy's users look for", c.addr, verdict.Reason)
		}
	}
	off := addressRule{off: true}
	if !off.judge(netip.MustParseAddrPort("169.254.169.254:80")).Allow {
		t.Error("any-ip is not any IP")
	}
	var _ egress.Resolver = resolver(nil)
}

// ownAt are addresses of a host's own.
func ownAt(addrs ...string) *ownAddresses {
	return &ownAddresses{list: func() (list []net.Addr, err error) {
		for _, a := range addrs {
			ip := net.ParseIP(a)
			list = append(list, &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip)/2, 8*len(ip))})
		}
		return list, nil
	}}
}

// A name that leads to what the gateway's host serves to its own network leads nowhere,
// unless the address is named: in the list, or by the route.
func TestAttackOwnAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		allowed []string
		named   string
		addr    string
		want    bool
	}{
		{defaultAllowed, "", "10.1.1.5", false},
		{defaultAllowed, "", "::ffff:10.1.1.5", false},
		{defaultAllowed, "", "10.1.1.6", true},
		{defaultAllowed, "10.1.1.5", "10.1.1.5", true},
		{defaultAllowed, "10.1.1.6", "10.1.1.5", false},
		{[]string{"10.1.1.4/31"}, "", "10.1.1.5", false},
		{[]string{"10.1.1.5"}, "", "10.1.1.5", true},
		{[]string{"10.0.0.0/8", "10.1.1.5/32"}, "", "10.1.1.5", true},
		{[]string{"0.0.0.0/0"}, "", "203.0.113.9", false},
		{[]string{"192.168.0.0/16"}, "10.1.1.5", "10.1.1.5", false},
		{[]string{"fd00::/8"}, "", "fd00::7", false},
		{[]string{"fd00::7"}, "", "fd00::7", true},
		{[]string{"127.0.0.0/8"}, "", "127.0.0.1", true},
	} {
		rule, err := parseAllowed(c.allowed)
		if err != nil {
			t.Fatal(err)
		}
		rule.own = ownAt("10.1.1.5", "203.0.113.9", "fd00::7", "127.0.0.1")
		if c.named != "" {
			rule.named = netip.MustParseAddr(c.named)
		}
		verdict := rule.judge(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 80))
		if verdict.Allow != c.want || !c.want && verdict.Rule == "" {
			t.Errorf("%s with %v: %+v", c.addr, c.allowed, verdict)
		}
	}
	// A host whose addresses cannot be told may have any.
	rule, _ := parseAllowed(defaultAllowed)
	rule.own = &ownAddresses{list: func() ([]net.Addr, error) { return nil, errors.New("no netlink") }}
	if v := rule.judge(netip.MustParseAddrPort("10.1.1.6:80")); v.Allow || v.Rule != string(ownUnknown) {
		t.Errorf("%+v", v)
	}
	// The list is that of the host.
	if list, err := net.InterfaceAddrs(); err != nil || len(list) == 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// A server that wants to be shown a certificate has not looked at the call.
func TestServerWantsACertificate(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the call was taken") }))
		s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: most}
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		ca := filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		trust := Trust{CA: ca, ServerName: "example.com"}
		l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].UpstreamTLS = trust })
		res, _ := get(t, l.client(false), "POST", "https://docs."+domain+"/", read)
		e := tunnel.ErrorFromHeader(res.Header)
		if e == nil || e.Stage != tunnel.StageUpstreamRefused || !strings.Contains(e.Detail, "to be shown a certificate, and none is set (upstream-tls: cert, key)") {
			t.Errorf("%s: %d, %+v", name, res.StatusCode, e)
		}
		cfg := config(l.dir, s.URL, func(c *Config) { c.Routes["docs"].UpstreamTLS = trust })
		found := Check(t.Context(), cfg, CheckOptions{Now: time.Now()})
		if f := found[len(found)-1]; f.OK || !strings.Contains(f.Detail, "to be shown a certificate") || !strings.Contains(f.Remedy, "cert and key") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// A caller that sends its head or its body a byte at a time or not at all, or does not
// take its answer, is cut off. Time is the sweeper's here.
func TestAttackSlowReadersAndWriters(t *testing.T) {
	t.Parallel()
	large := make([]byte, 64<<20)
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { w.Write(large) })
	for name, c := range map[string]struct {
		text string
		over time.Duration
	}{
		"head":   {"GET / HTTP/1.1\r\nHost:", headTime},
		"body":   {"POST / HTTP/1.1\r\nHost: docs." + domain + "\r\nContent-Length: 10\r\n\r\nx", stallTime},
		"answer": {"GET / HTTP/1.1\r\nHost: docs." + domain + "\r\n\r\n", stallTime},
		"idle":   {"", idleTime},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := serve(t, s.URL, nil)
			conn := l.dial("docs."+domain, "http/1.1")
			io.WriteString(conn, c.text)
			for !l.serving() {
				time.Sleep(time.Millisecond)
			}
			limit := time.Now().Add(20 * time.Second)
			for n := 1; l.serving(); n++ {
				// The deadline is set as of the last sweep, which may be one of these.
				l.g.sweeper.sweep(time.Now().Add(time.Duration(n) * (c.over + 2*time.Second)).UnixNano())
				time.Sleep(time.Millisecond)
				if time.Now().After(limit) {
					t.Fatal("it is still there")
				}
			}
			if n, _ := io.Copy(io.Discard, conn); n >= int64(len(large)) {
				t.Error("it got all")
			}
		})
	}
}

// serving reports whether there are connections of the platform's.
func (l *lab) serving() bool {
	families, err := l.reg.Gather()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "bailey_gateway_connections" {
			return f.GetMetric()[0].GetGauge().GetValue() > 0
		}
	}
	return false
}

func (g *Gateway) metricsActive(route string) int64 { return g.state.Load().routes[route].taken.Load() }

// What a caller may try so that a tool is called that may not be, or is seen in a list.
func TestAttackToolRules(t *testing.T) {
	t.Parallel()
	var got atomic.Value
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.Store(string(b))
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	})
	l := serve(t, s.URL, func(c *Config) {
		c.Routes["docs"].Tools = Tools{Allow: []string{"read_*", "rm_safe"}, Deny: []string{"read_secret"}}
	})
	c := l.client(false)
	call := func(body string, head ...string) (int, string) {
		got.Store("")
		if !slices.Contains(head, "Content-Type") {
			head = append(head, "Content-Type", "application/json")
		}
		res, answer := get(t, c, "POST", "https://docs."+domain+"/mcp", body, head...)
		return res.StatusCode, answer
	}
	const rm = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"rm","arguments":{}}}`
	for name, body := range map[string]string{
		"as it is":               rm,
		"denied before allowed":  strings.Replace(rm, `"rm"`, `"read_secret"`, 1),
		"a notification":         `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"rm"}}`,
		"escaped":                `{"jsonrpc":"2.0","id":7,"\u006dethod":"tools\/call","params":{"n\u0061me":"r\u006d"}}`,
		"in a batch":             `[{"jsonrpc":"2.0","id":6,"method":"ping"},` + rm + `]`,
		"a batch of one":         `[` + rm + `]`,
		"method twice":           `{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call","params":{"name":"rm"}}`,
		"method twice, reversed": `{"jsonrpc":"2.0","id":7,"method":"tools/call","method":"ping","params":{"name":"rm"}}`,
		"name twice":             `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_a","name":"rm"}}`,
		"params twice":           `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_a"},"params":{"name":"rm"}}`,
		"another case":           `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_a","Name":"rm"}}`,
		"another case of method": `{"jsonrpc":"2.0","id":7,"method":"ping","METHOD":"tools/call","params":{"name":"rm"}}`,
		"a letter that folds":    `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_a"},"param` + "\u017f" + `":{"name":"rm"}}`,
		"the name is no text":    `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":["rm"]}}`,
		"no name":                `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}`,
		"params in a list":       `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":["rm"]}`,
		"two texts":              `{"jsonrpc":"2.0","id":1,"method":"ping"}` + rm,
		"a line each":            `{"jsonrpc":"2.0","id":1,"method":"ping"}` + "\n" + rm,
		"a byte order mark":      "\ufeff" + rm,
		"UTF-16":                 string(utf16(rm)),
		"invalid UTF-8":          strings.Replace(rm, `"arguments":{}`, "\"x\":\"\xff\"", 1),
		"a trailing comma":       strings.Replace(rm, `{}}}`, `{}},}`, 1),
		"a comment":              "/* */" + rm,
		"in nested lists":        `[[` + rm + `]]`,
		"another version":        strings.Replace(rm, `"2.0"`, `"1.0"`, 1),
		"no version":             strings.Replace(rm, `"jsonrpc":"2.0",`, ``, 1),
		"a result besides":       strings.Replace(rm, `"id":7`, `"id":7,"result":{}`, 1),
		"a space after the name": strings.Replace(rm, `"rm"`, `"rm "`, 1),
		"a NUL in the name":      strings.Replace(rm, `"rm"`, `"rm\u0000_safe"`, 1),
		"another case of name":   strings.Replace(rm, `"rm"`, `"RM"`, 1),
		"the id is an object":    strings.Replace(rm, `"id":7`, `"id":{}`, 1),
		"a form":                 "method=tools/call&name=rm" + rm,
	} {
		for _, kind := range []string{"application/json", "text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=utf-16"} {
			status, answer := call(body, "Content-Type", kind)
			if sent := got.Load().(string); sent != "" {
				t.Errorf("%s as %q: it came through: %q", name, kind, sent)
			}
			if status == 200 && !strings.Contains(answer, `"error"`) || status >= 500 {
				t.Errorf("%s as %q: %d %s", name, kind, status, answer)
			}
		}
	}
	for name, head := range map[string][]string{
		"a header that lies":         {"Mcp-Method", "ping"},
		"a name that lies":           {"Mcp-Name", "rm"},
		"a name in base64 that lies": {"Mcp-Name", "=?base64?cm0=?="},
		"a header twice":             {"Mcp-Name", "read_a", "Mcp-Name", "rm"},
		"packed":                     {"Content-Encoding", "gzip"},
		"packed, it says later":      {"Content-Encoding", "identity", "Content-Encoding", "deflate"},
	} {
		status, answer := call(strings.Replace(rm, `"rm"`, `"read_a"`, 1), head...)
		if sent := got.Load().(string); sent != "" || status != 400 || !strings.Contains(answer, `"error"`) {
			t.Errorf("%s: %d %s, sent %q", name, status, answer, sent)
		}
	}
	if res, _ := get(t, c, "GET", "https://docs."+domain+"/mcp", "", "Mcp-Method", "tools/call", "Mcp-Name", "rm"); res.StatusCode != 400 {
		t.Errorf("headers without a message: %d", res.StatusCode)
	}
	// What may be called comes through as it was sent.
	for _, body := range []string{
		strings.Replace(rm, `"rm"`, `"read_a"`, 1),
		"  {\n \"jsonrpc\" : \"2.0\", \"id\":\"x\", \"method\":\"tools/call\", \"params\":{ \"name\":\"rm_safe\", \"arguments\":{\"name\":\"rm\",\"Name\":1}} } ",
		`[{"jsonrpc":"2.0","id":6,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/initialized"}]`,
		`{"jsonrpc":"2.0","id":9,"result":{"method":"tools/call"}}`,
	} {
		if status, answer := call(body); status != 200 || got.Load() != body {
			t.Errorf("%s: %d %s, sent %q", body, status, answer, got.Load())
		}
	}
	if status, _ := call(strings.Replace(rm, `"rm"`, `"read_ä"`, 1), "Mcp-Method", "tools/call", "Mcp-Name", "=?base64?cmVhZF/DpA==?="); status != 200 {
		t.Errorf("headers that say what the body says: %d", status)
	}
	if status, _ := call("grant_type=refresh_token&token=a.b-c", "Content-Type", "application/x-www-form-urlencoded"); status != 200 {
		t.Errorf("a form: %d", status)
	}
	// The refusal is the answer to the call, so that the session goes on.
	_, answer := call(rm)
	var e struct {
		ID    int
		Error struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal([]byte(answer), &e); err != nil || e.ID != 7 || e.Error.Code != codeInvalidParams || !strings.Contains(e.Error.Message, `"rm"`) {
		t.Errorf("%s: %v", answer, err)
	}
}

// What a server believes of a proxy is said by the gateway or by nobody.
func TestAttackWhatProxiesSay(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for name, values := range r.Header {
			if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "evil") }) {
				w.Header().Add("Believed", name)
			}
		}
		for name, values := range r.Trailer {
			if len(values) > 0 { // without one it is only announced
				w.Header().Add("Believed", name)
			}
		}
		w.Header().Set("X-Seen", r.Header.Get("X-User")+" "+r.Header.Get("X-Forwarded-Host")+" "+r.Header.Get("X-Forward"))
	})
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Headers.Request.Set = map[string]string{"X-User": "gateway"} })
	var head []string
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Client-Cert",
		"X-Forwarded-Tls-Client-Cert-Info", "X-Forwarded-Prefix", "X-Real-IP", "X-Client-IP", "True-Client-IP", "X-Original-URL", "X-Original-Method", "X-Rewrite-URL",
		"X-User", "X_User", "x_user", "X_Forwarded_For", "Mcp-Session_Id", "_",
	} {
		head = append(head, name, "evil")
	}
	head = append(head, "X-Forward", "passes")
	eachProtocol(t, func(t *testing.T, h2 bool) {
		res, _ := get(t, l.client(h2), "GET", "https://docs."+domain+"/", "", head...)
		if got := res.Header.Values("Believed"); len(got) != 0 {
			t.Errorf("the server believes %v", got)
		}
		if got, want := res.Header.Get("X-Seen"), "gateway docs."+domain+" passes"; got != want {
			t.Errorf("it saw %q, want %q", got, want)
		}
		req, err := http.NewRequest("POST", "https://docs."+domain+"/", io.MultiReader(strings.NewReader("x")))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Forwarded-User": {"evil"}, "X_user": {"evil"}}
		if res, err = l.client(h2).Do(req); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Values("Believed"); len(got) != 0 {
			t.Errorf("after the body the server believes %v", got)
		}
	})
}

// A body that a server would read in another charset is another message there.
func TestAttackCharset(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	const hidden = `{"jsonrpc":"2.0","id":1,"method":"tools+AC8-call","params":{"name":"rm"}}`
	for name, l := range map[string]*lab{
		"rules":  serve(t, s.URL, func(c *Config) { c.Routes["docs"].Tools.Allow = []string{"read"} }),
		"record": serve(t, s.URL, nil, func(o *Options) { o.Audit = deaf{} }),
		"stdio":  serve(t, "", stdioRoute("charset", nil)),
	} {
		for _, kinds := range [][]string{
			{"application/json; charset=utf-7"},
			{"application/json;charset=UTF-7"},
			{`application/json; charset="utf-7"`},
			{`application/json; charset="ut\f-8"`},
			{"application/json; charset=utf-8; charset=utf-7"},
			{"application/json; charset=utf-8; charset=utf-8"},
			{"application/json; charset=utf-7; charset*=us-ascii''utf-8"},
			{`application/json; charset*0="utf-"; charset*1=7`},
			{"application/json; charset =utf-7"},
			{"application/json; charset= utf-7"},
			{"application/json; charset"},
			{"application/json; charset="},
			{"application/json; charset=utf-16"},
			{"application/json; x=\"; charset=utf-7"},
			{"application/json; x=\"a\\\"; charset=utf-8; y=\"; charset=utf-7"},
			{"application/json, text/plain; charset=utf-7"},
			{"application/json charset=utf-7"},
			{"application"},
			{"application/json", "application/json; charset=utf-7"},
			{"application/json", "application/json"},
		} {
			head := []string{"Accept", "application/json, text/event-stream"}
			for _, kind := range kinds {
				head = append(head, "Content-Type", kind)
			}
			for _, h2 := range []bool{false, true} {
				if res, body := get(t, l.client(h2), "POST", "https://docs."+domain+"/mcp", hidden, head...); res.StatusCode != 415 {
					t.Errorf("%s, %q: %d %s", name, kinds, res.StatusCode, body)
				}
			}
		}
	}
	if asked.Load() != 0 {
		t.Errorf("%d calls came through", asked.Load())
	}
	// What says that it is UTF-8, or nothing, passes.
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Tools.Allow = []string{"read"} })
	for _, kind := range []string{"", "application/json", "application/json; charset=utf-8", `application/json;CHARSET="UTF-8";`, `text/plain ; x="; charset=utf-7" ;charset=utf-8`} {
		if res, body := get(t, l.client(false), "POST", "https://docs."+domain+"/mcp", strings.Replace(hidden, `"rm"`, `"read"`, 1), "Content-Type", kind); res.StatusCode != 200 {
			t.Errorf("%q: %d %s", kind, res.StatusCode, body)
		}
	}
}

func utf16(s string) (b []byte) {
	for _, c := range []byte(s) {
		b = append(b, c, 0)
	}
	return b
}

func TestListsShowOnlyWhatMayBeCalled(t *testing.T) {
	t.Parallel()
	const list = `{"jsonrpc":"2.0","id":1,"result":{"tools":[ {"name":"read","description":"a \"tools\" [x]"}, {"name":"rm"},{"description":"nameless"},{"name":"r\u006d"},{"name":"read","name":"rm"},{"Name":"rm","name":"read"}, {"name":"list"} ],"nextCursor":"c","x":{"tools":[{"name":"rm"}]}}}`
	const want = `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","description":"a \"tools\" [x]"},{"name":"list"}],"nextCursor":"c","x":{"tools":[{"name":"rm"}]}}}`
	var mode atomic.Value
	var encoding atomic.Value
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		encoding.Store(r.Header.Get("Accept-Encoding"))
		io.Copy(io.Discard, r.Body)
		switch mode.Load().(string) {
		case "json":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, list)
		case "batch":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "["+list+`,{"jsonrpc":"2.0","id":2,"result":{}}]`)
		case "packed":
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "\x1f\x8b")
		case "html":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "<html>")
		default: // a stream, in awkward pieces
			w.Header().Set("Content-Type", "text/event-stream")
			sep := mode.Load().(string)
			text := ": hello" + sep + sep + "id: 1" + sep + "event: message" + sep + "data: " + list + sep + sep + "data: " + list[:34] + sep + "data:" + list[34:] + sep + sep + "data: plain" + sep + sep
			for i := 0; i < len(text); i += 7 {
				io.WriteString(w, text[i:min(i+7, len(text))])
				w.(http.Flusher).Flush()
			}
		}
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		if h2 {
			t.Skip("the same code, and one server whose mode changes")
		}
		l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Tools.Deny = []string{"rm"} })
		ask := func(method, how string) (*http.Response, string) {
			mode.Store(how)
			return get(t, l.client(h2), method, "https://docs."+domain+"/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, "Accept-Encoding", "gzip")
		}
		if res, body := ask("POST", "json"); body != want || res.ContentLength != int64(len(want)) {
			t.Errorf("JSON: %s", body)
		}
		if encoding.Load() != "identity" {
			t.Errorf("asked with Accept-Encoding %v", encoding.Load())
		}
		if _, body := ask("POST", "batch"); body != "["+want+`,{"jsonrpc":"2.0","id":2,"result":{}}]` {
			t.Errorf("batch: %s", body)
		}
		for _, how := range []string{"packed", "html"} {
			if res, _ := ask("POST", how); res.StatusCode != 502 || tunnel.ErrorFromHeader(res.Header) == nil {
				t.Errorf("%s: %d", how, res.StatusCode)
			}
		}
		for _, sep := range []string{"\n", "\r\n", "\r"} {
			for _, method := range []string{"POST", "GET"} {
				_, body := ask(method, sep)
				if strings.Contains(body, `"rm"}`) && !strings.Contains(body, `"x":{"tools":[{"name":"rm"}]}`) || strings.Count(body, want) != 1 || strings.Contains(body, "nameless") || !strings.Contains(body, ": hello") || !strings.Contains(body, "data: plain") || !strings.Contains(body, "id: 1") {
					t.Errorf("%s, lines end with %q:\n%s", method, sep, body)
				}
			}
		}
	})
}

// What a client reads as a list of tools is filtered, however a server has written it, or
// is not passed on.
func TestAttackUnreadableLists(t *testing.T) {
	t.Parallel()
	const list = `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","description":"x"},{"name":"rm"}]}}`
	invalid := strings.Replace(list, `"x"`, "\"\xff\xc3\"", 1)
	rules := &toolRules{deny: []string{"rm"}}
	const filtered = `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read","description":"x"}]}}`
	for name, c := range map[string]struct{ stream, want string }{ // "" for an error
		"as it is":                       {"data: " + list + "\n\n", "data: " + filtered + "\n\n"},
		"a byte order mark":              {"\ufeffdata: " + list + "\n\n", "data: " + filtered + "\n\n"},
		"one, and no list":               {"\ufeffdata: x\n\n", "data: x\n\n"},
		"invalid UTF-8":                  {"data: " + invalid + "\n\n", "data: " + strings.Replace(filtered, `"x"`, "\"\ufffd\"", 1) + "\n\n"},
		"invalid UTF-8, and no list":     {"data: \xff\n\n", "data: \ufffd\n\n"},
		"invalid UTF-8 beside the data":  {": \xff\ndata: " + list + "\n\n", ": \ufffd\ndata: " + filtered + "\n\n"},
		"a byte order mark in the data":  {"data: \ufeff" + list + "\n\n", ""},
		"a mark before a second event":   {"data: x\n\n\ufeffdata: " + list + "\n\n", "data: x\n\n\ufeffdata: " + list + "\n\n"},
		"another space before":           {"data: \u00a0" + list + "\n\n", ""},
		"two texts":                      {"data: {}" + list + "\n\n", ""},
		"a trailing comma":               {"data: " + strings.Replace(list, "}]}}", "},]}}", 1) + "\n\n", ""},
		"a comment":                      {"data: " + strings.Replace(list, "{", "{/**/", 1) + "\n\n", ""},
		"a NUL":                          {"data: \x00" + list + "\n\n", ""},
		"a list that is no JSON":         {"data: [DONE]\n\n", ""},
		"a comment and an event of text": {": x\n\ndata: y\n\n", ": x\n\ndata: y\n\n"},
	} {
		for _, piece := range []int{1, 2, 1000} {
			var got []byte
			f := eventFilter{rules: rules}
			var err error
			for i := 0; i < len(c.stream) && err == nil; i += piece {
				err = f.add([]byte(c.stream[i:min(i+piece, len(c.stream))]), func(e []byte) error {
					got = append(got, e...)
					return nil
				})
			}
			if (err != nil) != (c.want == "") || string(got) != c.want {
				t.Errorf("%s, in pieces of %d: %q, %v", name, piece, got, err)
			}
		}
	}
	// Of an answer of JSON, whatever its status is.
	for status, body := range map[int]string{203: list, 200: list, 202: ""} {
		s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
		l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Tools.Deny = []string{"rm"} })
		res, got := get(t, l.client(false), "POST", "https://docs."+domain+"/", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		if want := strings.Replace(body, list, filtered, 1); res.StatusCode != status || got != want {
			t.Errorf("%d: %d %q", status, res.StatusCode, got)
		}
	}
}

// Tokens that are made up cost the issuer nothing, nor those who may call their rate; and
// they are looked at within the bound on calls.
func TestAttackMadeUpTokens(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var issuer, broken atomic.Int64
	jwks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			broken.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		issuer.Add(1)
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256"}}})
	}))
	t.Cleanup(jwks.Close)
	sign := func(id string) []string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		o, err := signer.Sign(fmt.Appendf(nil, `{"iss":"https://i.test","aud":"docs","sub":"u","exp":%d}`, time.Now().Add(time.Hour).Unix()))
		if err != nil {
			t.Fatal(err)
		}
		token, err := o.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return []string{"Authorization", "Bearer " + token}
	}
	held, hold := make(chan struct{}), make(chan struct{})
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			close(held)
			<-hold
		}
	})
	l := serve(t, s.URL, func(c *Config) {
		r := c.Routes["docs"]
		r.Auth.JWT = JWT{Issuer: "https://i.test", Audience: "docs", JWKS: jwks.URL}
		r.Limits = Limits{Calls: 1, Rate: 0.001, Burst: 2}
		c.Routes["broken"] = &Route{Upstream: s.URL, Settings: r.Settings}
		c.Routes["broken"].Auth.JWT.JWKS = jwks.URL + "/broken"
	})
	c := l.client(false)
	const host = "https://docs." + domain
	if res, _ := get(t, c, "POST", host+"/", read, sign("k1")...); res.StatusCode != 200 {
		t.Errorf("a good token: %d", res.StatusCode)
	}
	for i := range 20 {
		if res, _ := get(t, c, "POST", host+"/", read, sign(fmt.Sprint("made up ", i))...); res.StatusCode != 401 {
			t.Errorf("a key that is made up: %d", res.StatusCode)
		}
		if res, _ := get(t, c, "POST", "https://broken."+domain+"/", read, sign("k1")...); res.StatusCode != 503 {
			t.Errorf("without keys: %d", res.StatusCode)
		}
	}
	if issuer.Load() > 3 || broken.Load() > 3 { // once, on a machine that is not held up for long
		t.Errorf("the issuer was asked %d times, and the one that is broken %d times", issuer.Load(), broken.Load())
	}
	// left waits until the last call is over, which it is after its answer.
	left := func() {
		for l.g.metricsActive("docs") > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	left()
	done := make(chan int)
	go func() {
		res, _ := get(t, l.client(false), "POST", host+"/hold", read, sign("k1")...)
		done <- res.StatusCode
	}()
	<-held
	if res, _ := get(t, c, "POST", host+"/", read, sign("made up")...); res.StatusCode != 503 {
		t.Errorf("beside as many calls as there may be: %d", res.StatusCode)
	}
	close(hold)
	if status := <-done; status != 200 {
		t.Errorf("the second good call: %d", status)
	}
	left()
	if res, _ := get(t, c, "POST", host+"/", read, sign("k1")...); res.StatusCode != 429 {
		t.Errorf("one more than the rate: %d", res.StatusCode)
	}
}

// Connections are bounded, whatever they speak.
func TestAttackManyConnections(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cas := writePair(t, dir, "tls", time.Now().Add(90*24*time.Hour), "*."+domain)
	g, err := New(Options{
		Load:   func() (*Config, error) { return config(dir, "http://127.0.0.1:1", nil), nil },
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDoor(g)
	d.most = 2
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- d.serve(ctx, l, time.Second) }()
	// open opens a connection and reports whether it is served.
	open := func(protocol string) (*tls.Conn, bool) {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: cas, ServerName: "nowhere." + domain, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		if protocol == protocolH2 {
			io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		} else {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: nowhere."+domain+"\r\n\r\n")
		}
		_, err = conn.Read(make([]byte, 1))
		return conn, err == nil
	}
	for _, protocols := range [][3]string{{"h2", "h2", "h2"}, {"h2", "http/1.1", "h2"}, {"http/1.1", "h2", "http/1.1"}} {
		first, served1 := open(protocols[0])
		second, served2 := open(protocols[1])
		third, served3 := open(protocols[2])
		if !served1 || !served2 || served3 {
			t.Errorf("%v: %v %v %v", protocols, served1, served2, served3)
		}
		first.Close()
		second.Close()
		third.Close()
		for {
			d.mu.Lock()
			left := len(d.conns) + len(d.shared)
			d.mu.Unlock()
			if left == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// read is a call.
const read = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}}`

func TestRateAndPlaces(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-hold
		}
	})
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Limits = Limits{Rate: 0.001, Burst: 2} })
	post := func(body string) *http.Response {
		res, _ := get(t, l.client(false), "POST", "https://docs."+domain+"/", body)
		return res
	}
	// What MCP sends besides calls is not counted, neither before nor after there are too many.
	for _, uncounted := range []string{"", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, `{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","id":1,"method":"initialize"}`, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`} {
		for range 3 {
			if res := post(uncounted); res.StatusCode != 200 {
				t.Errorf("%q: %d", uncounted, res.StatusCode)
			}
		}
	}
	codes := ""
	for range 3 {
		codes += fmt.Sprint(post(read).StatusCode, " ")
	}
	if codes != "200 200 429 " {
		t.Errorf("rate: %s", codes)
	}
	res := post("[" + read + "]")
	if e := tunnel.ErrorFromHeader(res.Header); res.StatusCode != 429 || e == nil || e.Stage != tunnel.StageRateLimited || !strings.Contains(e.Detail, "limits.rate") || e.RetryAfter < time.Minute {
		t.Errorf("a batch: %d, %+v", res.StatusCode, e)
	}
	if res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); res.StatusCode != 200 {
		t.Errorf("a stream: %d", res.StatusCode)
	}
	if err := l.g.Reload(); err != nil {
		t.Fatal(err)
	}
	if res := post(read); res.StatusCode != 429 {
		t.Errorf("rate, after a reload: %d", res.StatusCode)
	}
	l = serve(t, s.URL, func(c *Config) { c.Routes["docs"].Limits = Limits{Calls: 1} })
	done := make(chan struct{})
	go func() {
		defer close(done)
		get(t, l.client(false), "GET", "https://docs."+domain+"/hold", "")
	}()
	for l.g.metricsActive("docs") == 0 {
		time.Sleep(time.Millisecond)
	}
	res, _ = get(t, l.client(true), "GET", "https://docs."+domain+"/", "")
	if e := tunnel.ErrorFromHeader(res.Header); res.StatusCode != 503 || e == nil || e.Stage != tunnel.StageOverloaded || res.Header.Get("Retry-After") == "" {
		t.Errorf("places: %d %v", res.StatusCode, res.Header)
	}
	if err := l.g.Reload(); err != nil {
		t.Fatal(err)
	}
	if res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); res.StatusCode != 503 {
		t.Errorf("places, after a reload: %d", res.StatusCode)
	}
	close(hold)
	<-done
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n"))
	f.Add([]byte("POST /x HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"))
	f.Add([]byte("POST /x HTTP/1.1\r\nHost: a.b\r\nContent-Length: 3\r\nConnection: close, x\r\n\r\nabcGET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		in := reader{from: &oneByte{text}}
		headText, err := in.headText(nil)
		if err != nil {
			return
		}
		headText = append([]byte(nil), headText...)
		var h head
		if h.parseRequest(headText) != nil {
			return
		}
		// What is taken here, the standard library takes, and for the same.
		std, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(text))))
		if err != nil {
			// It knows more about targets.
			if !strings.Contains(err.Error(), "invalid URI") && !strings.Contains(err.Error(), "parse ") && !strings.Contains(err.Error(), "malformed Host") && !strings.Contains(err.Error(), "invalid method") && !strings.Contains(err.Error(), "malformed MIME header") {
				t.Fatalf("%q: taken here, and not there: %v", text, err)
			}
			return
		}
		if std.Method != string(h.method) || std.RequestURI != string(h.target) {
			t.Fatalf("%q: %s %s here, %s %s there", text, h.method, h.target, std.Method, std.RequestURI)
		}
		var b body
		b.begin(&in, h.length, h.chunked)
		var got []byte
		for {
			p, err := b.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return // stricter than there
			}
			got = append(got, p...)
		}
		want, err := io.ReadAll(std.Body)
		if err != nil || string(want) != string(got) {
			t.Fatalf("%q: body %q here, %q there, %v", text, got, want, err)
		}
	})
}

type oneByte struct{ b []byte }

func (o *oneByte) Read(p []byte) (int, error) {
	if len(o.b) == 0 {
		return 0, io.EOF
	}
	p[0] = o.b[0]
	o.b = o.b[1:]
	return 1, nil
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"docs.a.test", "DOCS.a.test.", "a.test:443", "a_b", "1.2.3.4", "[::1]:80", "-a.b", "a..b", "a.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := canonicalHost(s)
		if err != nil {
			return
		}
		if again, err := canonicalHost(h); err != nil || again != h {
			t.Fatalf("%q is %q, and that %q, %v", s, h, again, err)
		}
		// One reader of names more, which agrees.
		if e, err := egress.ParseHost(h); err != nil && !strings.HasPrefix(h, "xn--") && !strings.Contains(h, ".xn--") && !strings.Contains(err.Error(), "ends in a number") {
			if h != e.Name() && !strings.Contains(h, "--") {
				t.Fatalf("%q: %v", h, err)
			}
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":[1,"]"]}}}`))
	f.Add([]byte(`[{"jsonrpc":"2.0","method":"ping"},{"jsonrpc":"2.0","id":"a\"b","result":{}}]`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","Name":"y"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		messages, _, err := parseMessages(body, nil)
		if err != nil {
			return
		}
		// Whoever decodes it finds the same method and name.
		for i, raw := range split(t, body) {
			var m struct {
				Method string
				Params json.RawMessage
			}
			if err := json.Unmarshal(raw, &m); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			if m.Method != messages[i].method {
				t.Fatalf("%q: method %q here, %q there", body, messages[i].method, m.Method)
			}
			if m.Method == methodToolsCall && m.Params != nil {
				var p struct{ Name string }
				if err := json.Unmarshal(m.Params, &p); err != nil || p.Name != messages[i].name {
					t.Fatalf("%q: name %q here, %q there, %v", body, messages[i].name, p.Name, err)
				}
			}
		}
	})
}

func split(t *testing.T, body []byte) (all []json.RawMessage) {
	if strings.HasPrefix(strings.TrimLeft(string(body), " \t\r\n"), "[") {
		if err := json.Unmarshal(body, &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	return []json.RawMessage{body}
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[{\"name\":\"rm\"},{\"name\":\"ls\"}]}}\n\n"), 3)
	f.Add([]byte(": x\r\rdata: [{\"result\":{\"tools\":[{\"name\":\"rm\"}]}}]\r\n\r\n"), 1)
	rules := &toolRules{deny: []string{"rm"}}
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		piece = max(piece, 1)
		pass := func(piece int) (out []byte, err error) {
			filter := eventFilter{rules: rules}
			for i := 0; i < len(text) && err == nil; i += piece {
				err = filter.add(text[i:min(i+piece, len(text))], func(e []byte) error {
					out = append(out, e...)
					return nil
				})
			}
			if err == nil {
				err = filter.finish(func(e []byte) error {
					out = append(out, e...)
					return nil
				})
			}
			return out, err
		}
		whole, err1 := pass(len(text) + 1)
		parts, err2 := pass(piece)
		if (err1 == nil) != (err2 == nil) || err1 == nil && string(whole) != string(parts) {
			t.Fatalf("%q: whole %q %v, in pieces of %d %q %v", text, whole, err1, piece, parts, err2)
		}
		if checkJSON(text) == nil {
			once, err := rules.filterMessages(text)
			if err != nil {
				return
			}
			if err := checkJSON(once); err != nil {
				t.Fatalf("%q became %q", text, once)
			}
			if again, err := rules.filterMessages(once); err != nil || string(again) != string(once) {
				t.Fatalf("%q: %q, and then %q %v", text, once, again, err)
			}
		}
	})
}

// Who asks for leave to send a body and is gone before it is given has had his place in the
// route for nothing, and must not keep it.
func TestAttackLeaveToNobody(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(http.ResponseWriter, *http.Request) {})
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Limits = Limits{Calls: 1} })
	for range 20 {
		conn := l.dial("docs."+domain, "http/1.1")
		for !l.serving() {
			time.Sleep(time.Millisecond)
		}
		if err := conn.NetConn().(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: docs."+domain+"\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
		conn.NetConn().Close()
		for l.serving() {
			time.Sleep(time.Millisecond)
		}
	}
	if n := l.g.metricsActive("docs"); n != 0 {
		t.Errorf("%d places are held by nobody", n)
	}
	if res, text := get(t, l.client(false), "POST", "https://docs."+domain+"/", "x"); res.StatusCode != 200 {
		t.Errorf("a call after that: %d %s", res.StatusCode, text)
	}
}

// What the file says of a head's fields holds for a trailer's as well: some programs take
// one for the other.
func TestAttackTrailers(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer.Clone()
		w.Header().Set("Trailer", "X-Kept, X-Inside")
		io.WriteString(w, "ok")
		http.NewResponseController(w).Flush()
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("X-Inside", "10.1.2.3")
	})
	l := serve(t, s.URL, func(c *Config) {
		c.Routes["docs"].Headers.Request = HeaderRules{Set: map[string]string{"X-User": "nobody"}, Remove: []string{"X-Admin"}}
		c.Routes["docs"].Headers.Response = HeaderRules{Remove: []string{"X-Inside"}}
	})
	for _, h2 := range []bool{false, true} {
		req, err := http.NewRequest("POST", "https://docs."+domain+"/", struct{ io.Reader }{strings.NewReader("x")})
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-User": {"root"}, "X-Admin": {"1"}, "X-Sum": {"7"}}
		res, err := l.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if sent := <-got; len(sent["X-User"])+len(sent["X-Admin"]) > 0 || sent.Get("X-Sum") != "7" {
			t.Errorf("HTTP/2 %v: the server got %v", h2, sent)
		}
		if res.Trailer.Get("X-Inside") != "" || res.Trailer.Get("X-Kept") != "yes" {
			t.Errorf("HTTP/2 %v: the caller got %v", h2, res.Trailer)
		}
	}
}

// That a caller has gone is noticed also where he has sent another call before.
func TestAttackPipelineAndGo(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			w.Header().Set("Content-Type", "text/event-stream")
			http.NewResponseController(w).Flush()
		}
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for _, path := range []string{"/", "/stream"} {
		l := serve(t, s.URL, nil)
		conn := l.dial("docs."+domain, "http/1.1")
		io.WriteString(conn, strings.Repeat("POST "+path+" HTTP/1.1\r\nHost: docs."+domain+"\r\nContent-Length: 1\r\n\r\nx", 3))
		for l.g.metricsActive("docs") == 0 {
			time.Sleep(time.Millisecond)
		}
		conn.NetConn().Close()
		limit := time.Now().Add(20 * time.Second)
		for l.g.metricsActive("docs") > 0 {
			if time.Now().After(limit) {
				t.Fatalf("%s: the call goes on", path)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// Bodies that have to be seen before they leave take no more memory together than is said.
func TestAttackManyLargeBodies(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].Tools = Tools{Deny: []string{"x"}} })
	const body = `{"jsonrpc":"2.0","method":"notifications/initialized"}`
	others := int64(heldMax - len(body) + 1)
	for _, h2 := range []bool{false, true} {
		c := l.client(h2)
		call := func() int {
			res, _ := get(t, c, "POST", "https://docs."+domain+"/", body, "Content-Type", "application/json")
			return res.StatusCode
		}
		l.g.held.Add(others)
		if status := call(); status != 503 {
			t.Errorf("HTTP/2 %v, without room: %d", h2, status)
		}
		l.g.held.Add(-others)
		if status := call(); status != 200 {
			t.Errorf("HTTP/2 %v, with room: %d", h2, status)
		}
		for l.g.metricsActive("docs") > 0 {
			time.Sleep(time.Millisecond)
		}
		if n := l.g.held.Load(); n != 0 {
			t.Errorf("HTTP/2 %v: %d bytes are held", h2, n)
		}
	}
}
