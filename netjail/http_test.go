package netjail_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// opened is a box for one host whose TLS is opened, and its site.
func opened(t *testing.T, reply http.HandlerFunc) (*box, *site) {
	w := newWorld(t)
	s := &site{reply: reply}
	w.host("web.example", s)
	return openedBox(w), s
}

// openedBox is a box for web.example, whose TLS is opened.
func openedBox(w *world) *box {
	return w.box(netjail.Options{Policy: limited(
		egress.Rule{Name: "opened", Hosts: []string{"web.example"}, Protocol: egress.HTTPS},
		egress.Rule{Name: "clear", Hosts: []string{"web.example"}, Protocol: egress.HTTP},
	)})
}

func TestRequestsArriveAsTheyAreSent(t *testing.T) {
	t.Parallel()
	b, s := opened(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.WriteHeader(http.StatusTeapot)
		io.Copy(w, r.Body)
	})
	c := b.client()
	for _, scheme := range []string{"http", "https"} {
		r, body := b.fetch(c, "PUT", scheme+"://web.example/a%2Fb/../c;x=%41?q=a;b&%zz=1+2", "body", "X-One", "1", "X-One", "2", "User-Agent", "test")
		if r.StatusCode != http.StatusTeapot || body != "body" || len(r.Header["Set-Cookie"]) != 2 {
			t.Errorf("%d %v %q", r.StatusCode, r.Header, body)
		}
	}
	for _, r := range s.all() {
		if r.URI != "/a%2Fb/../c;x=%41?q=a;b&%zz=1+2" || r.Method != "PUT" || r.Body != "body" || len(r.Header["X-One"]) != 2 || r.Header.Get("User-Agent") != "test" || r.Header.Get("X-Forwarded-For") != "" {
			t.Errorf("arrived: %+v", r)
		}
	}
	if s.all()[1].Proto != "HTTP/2.0" {
		t.Errorf("the host was asked by %s", s.all()[1].Proto)
	}
}

func TestLargeBodiesArriveWhole(t *testing.T) {
	t.Parallel()
	b, _ := opened(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	much := make([]byte, 5<<20)
	rand.Read(much)
	for _, scheme := range []string{"http", "https"} {
		r, err := b.client().Post(scheme+"://web.example/", "", bytes.NewReader(much))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !bytes.Equal(got, much) {
			t.Errorf("%s: %d bytes came back, %v", scheme, len(got), err)
		}
	}
}

// A host may answer while it is asked, which the end of the body must not break off.
func TestAHostThatAnswersWhileItIsAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("web.example", addr)
	w.web(addr, 80, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		out.EnableFullDuplex()
		for lines := bufio.NewReader(r.Body); ; {
			line, err := lines.ReadString('\n')
			io.WriteString(w, line)
			out.Flush()
			if err != nil {
				return
			}
		}
	}))
	body, write := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	context.AfterFunc(ctx, func() { write.CloseWithError(ctx.Err()) })
	r, err := http.NewRequestWithContext(ctx, "POST", "http://web.example/", body)
	if err != nil {
		t.Fatal(err)
	}
	go io.WriteString(write, "one\n")
	resp, err := openedBox(w).client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "one\n" {
		t.Fatalf("%q, %v", line, err)
	}
	io.WriteString(write, "two\n")
	write.Close()
	if rest, err := io.ReadAll(lines); err != nil || string(rest) != "two\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestAHostThatBreaksOff(t *testing.T) {
	t.Parallel()
	b, _ := opened(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	c := b.client()
	if r, body := b.fetch(c, "GET", "https://web.example/", ""); r.StatusCode != http.StatusBadGateway {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	r, err := c.Get("https://web.example/late")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); err == nil {
		t.Errorf("a response that broke off seems whole: %q", body)
	}
}

func TestHTTP1WithoutKeepAliveAndHEAD(t *testing.T) {
	t.Parallel()
	b, _ := opened(t, nil)
	conn, err := b.reach("web.example", 80)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET / HTTP/1.0\r\nHost: web.example\r\n\r\n")
	if got, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(got), "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(string(got), "hello") {
		t.Errorf("%q, %v", got, err)
	}
	if r, body := b.fetch(b.client(), "HEAD", "https://web.example/", ""); r.StatusCode != 200 || r.ContentLength != 5 || body != "" {
		t.Errorf("HEAD: %d, length %d, %q", r.StatusCode, r.ContentLength, body)
	}
}

// upgrader is a host that takes connections over to a protocol that repeats what it is
// told.
func upgrader(w http.ResponseWriter, r *http.Request) {
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprintf(both, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", r.Header.Get("Upgrade"))
	fmt.Fprintf(both, "token %s, extensions %q\n", r.Header.Get("X-Token"), r.Header.Get("Sec-Websocket-Extensions"))
	both.Flush()
	io.Copy(conn, both)
}

func TestWebsockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("api.example", &site{reply: upgrader})
	b := credentialBox(w, everywhere)
	for _, upgrade := range []string{"websocket", "other"} {
		conn, err := b.reach("api.example", 443)
		if err != nil {
			t.Fatal(err)
		}
		client := tls.Client(conn, &tls.Config{ServerName: "api.example", RootCAs: b.trusts()})
		fmt.Fprintf(client, "GET / HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Token: %s\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", upgrade, b.env("TOKEN"))
		lines := bufio.NewReader(client)
		r, err := http.ReadResponse(lines, nil)
		if err != nil {
			t.Fatal(err)
		}
		if upgrade == "other" {
			if r.StatusCode == http.StatusSwitchingProtocols {
				t.Error("the connection went over to a protocol that nobody knows")
			}
			continue
		}
		if r.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("status %d: %v", r.StatusCode, b.jail.Denials())
		}
		// What the host says back is as long as it was, so that frames stay frames.
		if line, err := lines.ReadString('\n'); line != "token "+strings.Repeat("*", len(secret))+", extensions \"\"\n" {
			t.Errorf("heard %q, %v", line, err)
		}
		for range 3 {
			fmt.Fprint(client, "\x81\x02hi not HTTP at all\n")
			if line, err := lines.ReadString('\n'); line != "\x81\x02hi not HTTP at all\n" {
				t.Errorf("heard %q, %v", line, err)
			}
		}
		client.Close()
	}
}

func TestAPolicyChangeCutsRequests(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{true, false} {
		started := make(chan bool, 2)
		b, _ := opened(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "first part")
			w.(http.Flusher).Flush()
			started <- true
			<-r.Context().Done()
		})
		c := b.client()
		if !h2 {
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
			c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		r, err := c.Get("https://web.example/a")
		if err != nil {
			t.Fatal(err)
		}
		<-started
		// The connection stays allowed, and this request on it does not.
		if err := b.jail.SetPolicy(limited(egress.Rule{Hosts: []string{"web.example"}, Protocol: egress.HTTPS, Paths: []string{"/b"}})); err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("HTTP/2 %v: the response went on to its end: %q", h2, body)
		}
	}
}

func TestTheHostOfAnOpenedAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	cert := w.certificate(addr.String())
	s := new(site)
	w.web(addr, 443, &cert, s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{CIDRs: []string{addr.String()}, Ports: ports(443), Protocol: egress.HTTPS})})
	if r, body := b.fetch(b.client(), "GET", "https://"+addr.String()+"/", ""); r.StatusCode != 200 || s.all()[0].Host != addr.String() {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, body := b.fetch(b.client(), "GET", "https://"+addr.String()+"/", "", "Host", "other.example"); r.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}

func TestFilesAndEnvironment(t *testing.T) {
	t.Parallel()
	record := func(netjail.Decision) error { return nil }
	plain, err := netjail.New(netjail.Options{Record: record})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	files, err := plain.Files(t.TempDir(), []byte("base\n"))
	if err != nil || len(files) != 1 || len(plain.Env()) != 0 {
		t.Errorf("without an authority: %v, %v, %v", files, plain.Env(), err)
	}
	full, err := netjail.New(netjail.Options{Record: record, Authority: true, Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"a.example"}, Where: everywhere, Value: value(secret)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if files, err = full.Files(t.TempDir(), []byte("base")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{netjail.ResolvConfPath: "nameserver 198.18.0.1\n", netjail.BundlePath: "base\n-----BEGIN CERTIFICATE-----\n"} {
		if got := readFile(t, files[path]); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", path, got)
		}
	}
	if env := strings.Join(full.Env(), "\n"); !strings.Contains(env, "TOKEN="+netjail.PlaceholderPrefix) || !strings.Contains(env, "NODE_EXTRA_CA_CERTS="+netjail.BundlePath) {
		t.Errorf("environment:\n%s", env)
	}
	if _, err := full.Files("/nonexistent", nil); err == nil {
		t.Error("files were written nowhere")
	}
}

func TestAClosedRangeCutsWhatIsOpenedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	inner := netip.MustParseAddr("10.79.0.1")
	w.name("intra.example", inner)
	cert := w.certificate("intra.example")
	started := make(chan bool, 1)
	w.web(inner, 443, &cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		started <- true
		<-r.Context().Done()
	}))
	name := egress.Rule{Name: "name", Hosts: []string{"intra.example"}, Protocol: egress.HTTPS}
	b := w.box(netjail.Options{Policy: limited(name, egress.Rule{Name: "net", CIDRs: []string{"10.79.0.0/24"}, Ports: ports(443)})})
	r, err := b.client().Get("https://intra.example/")
	if err != nil {
		t.Fatal(err)
	}
	<-started
	if err := b.jail.SetPolicy(limited(name)); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); err == nil {
		t.Errorf("the response went on to its end: %q", body)
	}
	if r, body := b.fetch(b.client(), "GET", "https://intra.example/", ""); r.StatusCode != http.StatusForbidden || !strings.Contains(body, "private address") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}

func TestAHostThatChangesProtocolsUnasked(t *testing.T) {
	t.Parallel()
	b, _ := opened(t, upgrader)
	for _, scheme := range []string{"http", "https"} {
		c := b.client()
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
		if r, body := b.fetch(c, "GET", scheme+"://web.example/", ""); r.StatusCode != http.StatusBadGateway {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	}
}
