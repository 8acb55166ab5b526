package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
)

func settingsDuration(d time.Duration) settings.Duration { return settings.Duration(d) }

// Both protocols that the platform may speak.
func eachProtocol(t *testing.T, do func(t *testing.T, h2 bool)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			t.Parallel()
			do(t, h2)
		})
	}
}

func TestACallIsPassedOnAsItIs(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %s %s %v %q", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Forwarded-Proto"), r.TransferEncoding, r.Header["X-Twice"]))
		w.Header().Set("Connection-Named", r.Header.Get("X-Dropped"))
		w.Write(body)
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		for _, body := range []string{"", "hello", strings.Repeat("large ", 100_000)} {
			res, got := get(t, l.client(h2), "POST", "https://docs."+domain+"/a%2Fb?c=%20d", body, "X-Twice", "1", "X-Twice", "2", "X-Forwarded-For", "9.9.9.9")
			if res.StatusCode != 200 || got != body {
				t.Errorf("status %d, %d bytes of %d", res.StatusCode, len(got), len(body))
			}
			want := `POST /a%2Fb?c=%20d docs.` + domain + ` docs.` + domain + ` https [] ["1" "2"]`
			if seen := res.Header.Get("X-Seen"); seen != want {
				t.Errorf("the server saw %s, want %s", seen, want)
			}
		}
	})
}

func TestEveryEventIsFlushedAsItComes(t *testing.T) {
	t.Parallel()
	next, left := make(chan string), make(chan struct{}, 1)
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-next:
				fmt.Fprintf(w, "data: %s\n\n", e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				left <- struct{}{}
				return
			}
		}
	})
	for _, filtered := range []bool{false, true} {
		for _, h2 := range []bool{false, true} {
			l := serve(t, s.URL, func(c *Config) {
				if filtered {
					c.Routes["docs"].Tools.Deny = []string{"x"}
				}
			})
			res, err := l.client(h2).Get("https://docs." + domain + "/mcp")
			if err != nil {
				t.Fatal(err) // the head comes before any event
			}
			in := bufio.NewReader(res.Body)
			for i := range 3 {
				next <- fmt.Sprint(i)
				line, err := in.ReadString('\n')
				if want := fmt.Sprintf("data: %d\n", i); line != want || err != nil {
					t.Fatalf("filtered=%v h2=%v: read %q, %v, want %q", filtered, h2, line, err, want)
				}
				in.ReadString('\n')
			}
			res.Body.Close()
			<-left
		}
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-After, Bailey-Tunnel-Error")
		io.WriteString(w, "body")
		w.(http.Flusher).Flush()
		w.Header().Set("X-After", "seen "+r.Trailer.Get("X-Sum"))
		w.Header().Set("Bailey-Tunnel-Error", "no_route")
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		req, _ := http.NewRequest("POST", "https://docs."+domain+"/", io.MultiReader(strings.NewReader("some body")))
		req.Trailer = http.Header{"X-Sum": {"42"}}
		res, err := l.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if string(b) != "body" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		if got := res.Trailer.Get("X-After"); got != "seen 42" || res.Trailer.Get("Bailey-Tunnel-Error") != "" {
			t.Errorf("trailers %v", res.Trailer)
		}
	})
}

func TestOnlyTheGatewaySaysWhyACallFailed(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Bailey-Tunnel-Error", `no_route; detail="a lie"`)
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("X-Seen", r.Header.Get("X-Named")+r.Header.Get("Proxy-Authorization")+r.Header.Get("Upgrade"))
		w.WriteHeader(http.StatusTeapot)
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		head := []string{"Proxy-Authorization", "Basic eDp5"}
		if !h2 {
			head = append(head, "Connection", "X-Named", "X-Named", "1", "Upgrade", "websocket")
		}
		res, _ := get(t, l.client(h2), "GET", "https://docs."+domain+"/", "", head...)
		if res.StatusCode != http.StatusTeapot {
			t.Errorf("status %d", res.StatusCode)
		}
		for _, name := range []string{"Bailey-Tunnel-Error", "Alt-Svc", "X-Hop", "X-Seen"} {
			if v := res.Header.Get(name); v != "" {
				t.Errorf("%s: %s came through", name, v)
			}
		}
	})
}

func TestAnswersWithoutABody(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "12345")
		}
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		c := l.client(h2)
		for range 2 { // on one connection
			for path, want := range map[string]int{"/204": 204, "/304": 304} {
				if res, body := get(t, c, "GET", "https://docs."+domain+path, ""); res.StatusCode != want || body != "" {
					t.Errorf("%s: %d %q", path, res.StatusCode, body)
				}
			}
			if res, body := get(t, c, "HEAD", "https://docs."+domain+"/", ""); res.ContentLength != 12345 || body != "" {
				t.Errorf("HEAD: length %d", res.ContentLength)
			}
		}
	})
}

func TestCompressionIsLeftAlone(t *testing.T) {
	t.Parallel()
	const packed = "\x1f\x8b not really"
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("X-Accept", r.Header.Get("Accept-Encoding"))
		io.WriteString(w, packed)
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		res, body := get(t, l.client(h2), "GET", "https://docs."+domain+"/", "", "Accept-Encoding", "gzip, br")
		if body != packed || res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("X-Accept") != "gzip, br" {
			t.Errorf("%q %v", body, res.Header)
		}
	})
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	var to atomic.Value
	to.Store("")
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Location", to.Load().(string))
		w.WriteHeader(307)
	})
	l := serve(t, s.URL, nil)
	c := l.client(false)
	for location, want := range map[string]string{
		"/mcp/":                                  "/mcp/",
		"mcp/":                                   "mcp/",
		"?a=http://x":                            "?a=http://x",
		"http://docs." + domain + "/mcp/?q=1":    "/mcp/?q=1", // the server thinks that it was asked over plain HTTP
		"https://DOCS." + domain + ".:443/x":     "/x",
		"https://docs." + domain:                 "/",
		s.URL + "/own":                           "/own",
		"http://docs." + domain + "//evil.test/": "/.//evil.test/",
		// Elsewhere.
		"http://169.254.169.254/latest/meta-data/": "",
		"https://evil.test/":                       "",
		"//evil.test/":                             "",
		"/\\evil.test":                             "",
		"https://docs." + domain + "@evil.test/":   "",
		"https://docs." + domain + ":8443/":        "",
		"https://docs." + domain + ".evil.test/":   "",
		"file:///etc/passwd":                       "",
		"javascript:alert(1)":                      "",
	} {
		to.Store(location)
		before := asked.Load()
		res, _ := get(t, c, "POST", "https://docs."+domain+"/mcp", "x")
		if asked.Load() != before+1 {
			t.Fatalf("%s: the server was asked %d times", location, asked.Load()-before)
		}
		if want == "" {
			if e := tunnel.ErrorFromHeader(res.Header); res.StatusCode != 502 || e == nil || e.Stage != tunnel.StageUpstreamProtocol || res.Header.Get("Location") != "" {
				t.Errorf("%s: %d %v", location, res.StatusCode, res.Header)
			}
		} else if got := res.Header.Get("Location"); res.StatusCode != 307 || got != want {
			t.Errorf("%s: %d to %q, want %q", location, res.StatusCode, got, want)
		}
	}
}

func TestACallersLeavingReachesTheServer(t *testing.T) {
	t.Parallel()
	started, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		started <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	for _, h2 := range []bool{false, true} {
		l := serve(t, s.URL, nil)
		ctx, leave := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", "https://docs."+domain+"/", strings.NewReader("{}"))
		done := make(chan error, 1)
		go func() {
			_, err := l.client(h2).Do(req)
			done <- err
		}()
		<-started
		leave()
		<-done
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatalf("h2=%v: the server was not told", h2)
		}
	}
}

// A call whose bytes have left is never sent again, however harmless it looks, and the
// caller is told.
func TestNothingIsSentTwice(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := rawServer(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for n := 0; ; n++ {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if n == 1 { // the second on a connection that was kept
				asked.Add(1)
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		for _, method := range []string{"GET", "POST"} {
			l := serve(t, s, nil)
			c := l.client(h2)
			if res, _ := get(t, c, "GET", "https://docs."+domain+"/", ""); res.StatusCode != 200 {
				t.Fatalf("status %d", res.StatusCode)
			}
			before := asked.Load()
			res, _ := get(t, c, method, "https://docs."+domain+"/", "", "Idempotency-Key", "1")
			if e := tunnel.ErrorFromHeader(res.Header); res.StatusCode != 502 || e == nil {
				t.Errorf("%s: %d %v", method, res.StatusCode, res.Header)
			}
			if asked.Load() == before {
				t.Errorf("%s: not asked on the kept connection", method)
			}
		}
	})
}

// A connection that the server has closed meanwhile is seen to be closed, before a call
// is lost on it.
func TestAConnectionThatTheServerClosedIsNotUsed(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{}, 8)
	s := rawServer(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		conn.Close()
		closed <- struct{}{}
	})
	l := serve(t, s, nil)
	c := l.client(false)
	for range 5 {
		if res, body := get(t, c, "POST", "https://docs."+domain+"/", "x"); res.StatusCode != 200 || body != "ok" {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		<-closed
	}
}

func TestAnAnswerBeforeTheBodyIsSent(t *testing.T) {
	t.Parallel()
	s := rawServer(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			line, err := in.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
		}
		io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		io.Copy(io.Discard, in) // so that the answer is not lost to a reset
	})
	l := serve(t, s, nil)
	conn := l.dial("docs."+domain, "http/1.1")
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: docs."+domain+"\r\nContent-Length: 1000000\r\n\r\nfirst")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 413 {
		t.Fatalf("%v, %v", res, err)
	}
}

func TestLeaveToSendIsGiven(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q", b, r.Header.Get("Expect"))
	})
	l := serve(t, s.URL, nil)
	conn := l.dial("docs."+domain, "http/1.1")
	in := bufio.NewReader(conn)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: docs."+domain+"\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	in.ReadString('\n')
	io.WriteString(conn, "hello")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != `hello ""` {
		t.Errorf("%s", b)
	}
}

func TestAnAnswerThatEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	s := rawServer(t, func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.0 200 Fine\r\n\r\nall of it")
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s, nil)
		c := l.client(h2)
		for range 2 {
			if res, body := get(t, c, "GET", "https://docs."+domain+"/", ""); res.StatusCode != 200 || body != "all of it" {
				t.Errorf("%d %q", res.StatusCode, body)
			}
		}
	})
}

func TestAnAnswerThatIsCutIsNotPassedOnAsWhole(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		s := rawServer(t, func(conn net.Conn) {
			http.ReadRequest(bufio.NewReader(conn))
			io.WriteString(conn, answer)
		})
		for _, h2 := range []bool{false, true} {
			l := serve(t, s, nil)
			res, err := l.client(h2).Get("https://docs." + domain + "/")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%s h2=%v: %q passed as whole", name, h2, b)
			}
			res.Body.Close()
		}
	}
}

func TestWhatGoesWrongAtTheServer(t *testing.T) {
	t.Parallel()
	nobody := "http://" + nobodyAt(t)
	garbage := rawServer(t, func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "SSH-2.0-OpenSSH\r\n\r\n")
	})
	gone := rawServer(t, func(conn net.Conn) { http.ReadRequest(bufio.NewReader(conn)) })
	twoLengths := rawServer(t, func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	})
	switching := rawServer(t, func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 101 Switching\r\n\r\n")
	})
	for name, c := range map[string]struct {
		upstream string
		stage    tunnel.Stage
	}{
		"nobody listens":   {nobody, tunnel.StageUpstreamRefused},
		"no HTTP":          {garbage, tunnel.StageUpstreamProtocol},
		"it hangs up":      {gone, tunnel.StageUpstreamProtocol},
		"two lengths":      {twoLengths, tunnel.StageUpstreamProtocol},
		"another protocol": {switching, tunnel.StageUpstreamProtocol},
		"no such name":     {"http://nowhere.invalid:80", tunnel.StageUpstreamRefused},
		"metadata":         {"http://169.254.169.254:80", tunnel.StageAddressRefused},
	} {
		for _, h2 := range []bool{false, true} {
			l := serve(t, c.upstream, nil)
			res, body := get(t, l.client(h2), "POST", "https://docs."+domain+"/", "{}")
			if e := tunnel.ErrorFromHeader(res.Header); e == nil || e.Stage != c.stage || res.StatusCode != 502 {
				t.Errorf("%s: %d %s %v", name, res.StatusCode, body, res.Header)
			}
		}
	}
	l := serve(t, nobody, nil)
	if res, _ := get(t, l.client(false), "GET", "https://other."+domain+"/", ""); res.StatusCode != 502 || tunnel.ErrorFromHeader(res.Header).Stage != tunnel.StageNoRoute {
		t.Errorf("no route: %d %v", res.StatusCode, res.Header)
	}
	if !strings.Contains(l.logs.String(), "no route for host") {
		t.Error("the log has no line that mcp-proxy's users look for")
	}
}

// A call of which nothing is heard for half an hour, and one whose stream is silent for as
// long, go on; what a route's time is over for ends, and the caller is told.
func TestLongSilence(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/stream" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		}
		begun <- struct{}{}
		select {
		case <-finish:
			io.WriteString(w, "at last")
		case <-r.Context().Done():
		}
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		if h2 {
			t.Skip("the same waiting, and one server")
		}
		l := serve(t, s.URL, nil)
		c := l.client(h2)
		for _, path := range []string{"/", "/stream"} {
			for _, d := range []time.Duration{31 * time.Minute, 59 * time.Minute, 13 * time.Hour} {
				l.g.sweeper.sweep(time.Now().UnixNano()) // bounds count from its clock
				answer, headed := make(chan string, 1), make(chan struct{}, 1)
				go func() {
					res, err := c.Post("https://docs."+domain+path, "text/plain", strings.NewReader("x"))
					if err != nil {
						answer <- err.Error()
						return
					}
					defer res.Body.Close()
					headed <- struct{}{}
					b, err := io.ReadAll(res.Body)
					answer <- fmt.Sprint(res.StatusCode, " ", string(b), " ", err)
				}()
				for _, begins := range []chan struct{}{begun, headed} {
					if begins == headed && path != "/stream" {
						break
					}
					select {
					case <-begins:
					case got := <-answer:
						t.Fatalf("%s does not begin: %s", path, got)
					}
				}
				got := ""
				l.settle(time.Hour)
				if d < time.Hour {
					l.g.sweeper.sweep(time.Now().Add(d).UnixNano())
					select {
					case finish <- struct{}{}:
						got = <-answer
					case got = <-answer:
					}
					if got != "200 at last <nil>" {
						t.Errorf("%s after %s: %s", path, d, got)
					}
					continue
				}
				l.g.sweeper.sweep(time.Now().Add(d).UnixNano())
				got = <-answer
				if path == "/" && !strings.HasPrefix(got, "504 bailey gateway: upstream_timeout") || path != "/" && !strings.Contains(got, "unexpected EOF") {
					t.Errorf("%s after %s: %s", path, d, got)
				}
			}
		}
	})
}

// settle waits until the one call under way waits for its server: two bounds stand then,
// that of the answer and that of an idle caller, and none is of less than d. Others are
// of what was just sent, which its receiver has a moment before they are taken back.
func (l *lab) settle(d time.Duration) {
	l.t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stand, short := 0, false
		l.g.sweeper.mu.Lock()
		for w := range l.g.sweeper.watches {
			if at := w.deadline.Load(); at != 0 {
				stand, short = stand+1, short || at < time.Now().Add(d).UnixNano()
			}
		}
		l.g.sweeper.mu.Unlock()
		if stand == 2 && !short {
			return
		}
		if time.Now().After(until) {
			l.t.Fatalf("%d bounds stand; one of less than %s: %v", stand, d, short)
		}
	}
}

func TestHeaderRulesAndHostModes(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", fmt.Sprintf("%s|%s|%s|%s", r.Host, r.Header.Get("X-Key"), r.Header.Get("Cookie"), r.Header.Get("X-Forwarded-Host")))
		w.Header().Set("Server", "secret")
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := serve(t, s.URL, func(c *Config) {
		r := c.Routes["docs"]
		r.Host = "rewrite"
		r.Headers = Headers{
			Request:  HeaderRules{Remove: []string{"cookie"}, SetFiles: map[string]string{"X-Key": filepath.Join(dir, "key")}},
			Response: HeaderRules{Remove: []string{"server"}, Set: map[string]string{"X-Frame": "no"}},
		}
	})
	res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", "", "Cookie", "a=b", "X-Key", "mine")
	want := strings.TrimPrefix(s.URL, "http://") + "|s3cret||docs." + domain
	if res.Header.Get("X-Seen") != want || res.Header.Get("Server") != "" || res.Header.Get("X-Frame") != "no" {
		t.Errorf("%v, want %s", res.Header, want)
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })}
	go s.Serve(listener)
	t.Cleanup(func() { s.Close() })
	l := serve(t, "unix:"+path, nil)
	for range 3 {
		if _, body := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); body != "docs."+domain {
			t.Errorf("%q", body)
		}
	}
}

func TestUpstreamTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pool := writePair(t, dir, "server", time.Now().Add(time.Hour), "inside.test")
	clientDir := t.TempDir()
	clients := writePair(t, clientDir, "client", time.Now().Add(time.Hour), "gateway.test")
	_ = pool
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, len(r.TLS.PeerCertificates))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, ClientCAs: clients}
	s.StartTLS()
	t.Cleanup(s.Close)
	trust := Trust{CA: filepath.Join(dir, "ca.crt"), ServerName: "inside.test", Cert: filepath.Join(clientDir, "client.crt"), Key: filepath.Join(clientDir, "client.key")}
	l := serve(t, s.URL, func(c *Config) { c.Routes["docs"].UpstreamTLS = trust })
	for range 2 {
		if _, body := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); body != "1" {
			t.Errorf("%q", body)
		}
	}
	wrong := trust
	wrong.CA = filepath.Join(clientDir, "ca.crt")
	l = serve(t, s.URL, func(c *Config) { c.Routes["docs"].UpstreamTLS = wrong })
	res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", "")
	if e := tunnel.ErrorFromHeader(res.Header); e == nil || e.Stage != tunnel.StageUpstreamRefused || !strings.Contains(e.Detail, "TLS with") {
		t.Errorf("%v", res.Header)
	}
}

// What a server says beyond its answer is nobody's: it must not be taken for the answer to
// the next call on the connection, whose caller may be another.
func TestAnAnswerIsOfItsOwnCall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writePair(t, dir, "server", time.Now().Add(time.Hour), "inside.test")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	const stray = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers"
	for _, secure := range []bool{false, true} {
		for what, c := range map[string]struct{ method, head, after string }{
			"HEAD":                    {"HEAD", "200 OK\r\n", stray},
			"HEAD with a length":      {"HEAD", "200 OK\r\nContent-Length: 45\r\n", stray},
			"no content":              {"GET", "204 No Content\r\n", stray},
			"no content, in chunks":   {"GET", "204 No Content\r\nTransfer-Encoding: chunked\r\n", stray},
			"not modified":            {"GET", "304 Not Modified\r\n", stray},
			"more than its length":    {"GET", "200 OK\r\nContent-Length: 1\r\n", "x" + stray},
			"more than its last part": {"GET", "200 OK\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + stray},
		} {
			// Everything leaves at once, in a record of its own for the head.
			server := rawServer(t, func(conn net.Conn) {
				socket := tunnel.NewSocket(conn)
				conn = socket
				if secure {
					conn = tls.Server(socket, &tls.Config{Certificates: []tls.Certificate{pair}})
				}
				for in := bufio.NewReader(conn); ; {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					socket.Gather()
					if req.URL.Path == "/own" {
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown")
					} else {
						io.WriteString(conn, "HTTP/1.1 "+c.head+"\r\n")
						io.WriteString(conn, c.after)
					}
					socket.Flush()
				}
			})
			if secure {
				server = strings.Replace(server, "http:", "https:", 1)
			}
			l := serve(t, server, func(cfg *Config) {
				cfg.Routes["docs"].UpstreamTLS = Trust{CA: filepath.Join(dir, "ca.crt"), ServerName: "inside.test"}
			})
			client := l.client(false)
			get(t, client, c.method, "https://docs."+domain+"/", "")
			if _, body := get(t, client, "GET", "https://docs."+domain+"/own", ""); body != "own" {
				t.Errorf("%s, TLS %v: the next caller got %q", what, secure, body)
			}
		}
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}, 2), make(chan struct{})
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		begun <- struct{}{}
		<-finish
		io.WriteString(w, "done")
	})
	for _, h2 := range []bool{false, true} {
		l := serve(t, s.URL, nil)
		c := l.client(h2)
		stream, err := c.Get("https://docs." + domain + "/stream")
		if err != nil {
			t.Fatal(err)
		}
		idle := l.dial("docs."+domain, "http/1.1")
		answer := make(chan string, 1)
		go func() {
			res, err := c.Post("https://docs."+domain+"/", "text/plain", strings.NewReader("x"))
			if err != nil {
				answer <- err.Error()
				return
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			answer <- string(b)
		}()
		<-begun
		l.stop()
		// A stream that carries no call ends in order, and so does an idle connection.
		if _, err := io.ReadAll(stream.Body); err != nil {
			t.Errorf("h2=%v: the stream: %v", h2, err)
		}
		if _, err := idle.Read(make([]byte, 1)); err == nil {
			t.Errorf("h2=%v: the idle connection is still there", h2)
		}
		if err := l.g.Ready(nil); err == nil {
			t.Error("ready while it stops")
		}
		select {
		case <-l.done:
			t.Fatalf("h2=%v: it stopped under a call", h2)
		default:
		}
		finish <- struct{}{}
		if got := <-answer; got != "done" {
			t.Errorf("h2=%v: the call under way: %s", h2, got)
		}
	}
}

// rawServer serves each connection by hand, and returns its address as an upstream.
func rawServer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var parts sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		parts.Wait()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			parts.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				serve(conn)
			})
		}
	}()
	return "http://" + l.Addr().String()
}

func BenchmarkCall(b *testing.B) {
	page := []byte(strings.Repeat("x", 1024))
	s := upstreamServer(b, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(page)
	})
	const message = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"path":"/etc/motd"}}}`
	for name, c := range map[string]struct {
		h2     bool
		body   string
		change func(*Config)
	}{
		"http1":       {},
		"http2":       {h2: true},
		"http1/rules": {body: message, change: func(c *Config) { c.Routes["docs"].Tools.Deny = []string{"rm"} }},
	} {
		b.Run(name, func(b *testing.B) {
			l := serve(b, s.URL, c.change)
			client := l.client(c.h2)
			b.ReportAllocs()
			for b.Loop() {
				res, err := client.Post("https://docs."+domain+"/", "application/json", strings.NewReader(c.body))
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}

// BenchmarkBytes is one large answer.
func BenchmarkBytes(b *testing.B) {
	page := make([]byte, 64<<20)
	s := upstreamServer(b, func(w http.ResponseWriter, r *http.Request) { w.Write(page) })
	l := serve(b, s.URL, nil)
	c := l.client(false)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		res, err := c.Get("https://docs." + domain + "/")
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != int64(len(page)) || err != nil {
			b.Fatal(n, err)
		}
		res.Body.Close()
	}
}
