package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tunnel"
)

func TestRecordOfCalls(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" && r.URL.Path == "/fail" {
			w.WriteHeader(500)
		}
	})
	for arguments, input := range map[string]audit.InputMode{"none": audit.InputHash, "hash": audit.InputHash, "full": audit.InputText} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		record, err := audit.Open(path, audit.Options{Input: input})
		if err != nil {
			t.Fatal(err)
		}
		l := serve(t, s.URL, func(c *Config) {
			c.Audit.Arguments = arguments
			c.Routes["docs"].Tools.Deny = []string{"rm"}
		}, func(o *Options) { o.Audit = record })
		c := l.client(false)
		call := func(path, body string, head ...string) {
			get(t, c, "POST", "https://docs."+domain+path, body, append(head, "Content-Type", "application/json")...)
		}
		call("/", `{"jsonrpc":"2.0","id":"a1","method":"tools/call","params":{"name":"read","arguments":{"path":"/etc/motd"}}}`, "Mcp-Session-Id", "s3ss10n", "Authorization", "Bearer hunter2hunter2hunter2")
		call("/", `[{"jsonrpc":"2.0","id":1,"method":"prompts/list"},{"jsonrpc":"2.0","method":"notifications/initialized"}]`)
		call("/fail", `{"jsonrpc":"2.0","id":2,"method":"ping"}`)
		call("/", `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"rm","arguments":{}}}`)
		l.close()
		if err := record.Close(); err != nil {
			t.Fatal(err)
		}
		if sum, err := audit.VerifyFile(path); err != nil || sum.Problem != "" {
			t.Errorf("%+v, %v", sum, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
			var e struct {
				Action, Tool, Outcome, Actor string
				Session                      string `json:"session_id"`
				Call                         string `json:"call_id"`
				Attrs                        map[string]string
				InputMAC                     string `json:"input_mac"`
				Input                        string
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(e.Action, "mcp.") {
				continue
			}
			kinds = append(kinds, strings.TrimSpace(fmt.Sprint(e.Action, " ", e.Attrs["method"], " ", e.Tool, " ", e.Outcome, " ", e.Attrs["status"])))
			if e.Tool == "read" && e.Action == audit.MCPCall {
				if e.Call != "a1" || !strings.HasPrefix(e.Session, "mcp_") || e.Actor != "unproved" || (e.InputMAC != "") != (arguments != "none") || (e.Input != "") != (arguments == "full") {
					t.Errorf("%s: %s", arguments, line)
				}
			}
		}
		want := []string{
			"mcp.call tools/call read", "mcp.answer tools/call read ok 200",
			"mcp.call prompts/list", "mcp.call notifications/initialized", "mcp.answer prompts/list  ok 200", "mcp.answer notifications/initialized  ok 200",
			"mcp.call ping", "mcp.answer ping  error 500",
			"mcp.refused tools/call rm refused 200",
		}
		if got := strings.Join(kinds, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant:\n%s", arguments, got, strings.Join(want, "\n"))
		}
		for _, secret := range []string{"hunter2", "s3ss10n"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s is on record", secret)
			}
		}
	}
}

// A notebook is a recorder that keeps what it is given.
type notebook struct {
	mu  sync.Mutex
	all []audit.Record
}

func (n *notebook) AppendAll(records []audit.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, records...)
	return nil
}

func (n *notebook) Note(r audit.Record) error { return n.AppendAll([]audit.Record{r}) }

func (n *notebook) last() audit.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.all) == 0 {
		return audit.Record{}
	}
	return n.all[len(n.all)-1]
}

// What the gateway does not let through is on record with the reason, also where nothing of
// it was read; and a flood of it does not fill the record.
func TestRefusalsAreOnRecord(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {})
	notes := new(notebook)
	l := serve(t, s.URL, func(c *Config) {
		c.Routes["docs"].Limits = Limits{Rate: 0.001, Burst: 1, Body: 100}
		c.Routes["docs"].Tools.Deny = []string{"rm"}
	}, func(o *Options) { o.Audit = notes })
	c := l.client(false)
	post := func(body string) {
		get(t, c, "POST", "https://docs."+domain+"/", body, "Content-Type", "application/json")
	}
	post(read)
	for _, test := range []struct{ body, method, stage, status, reason string }{
		{read, "tools/call", "rate_limited", "429", "lets 0.001 calls a second through"},
		{strings.Repeat("x", 101), unread, "body_too_long", "413", "longer than the 100 bytes"},
		{`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"rm"}}`, "tools/call", "request_refused", "200", `tool "rm" may not be called`},
	} {
		post(test.body)
		r := notes.last()
		if r.Action != audit.MCPRefused || r.Outcome != "refused" || r.Attrs["method"] != test.method || r.Attrs["stage"] != test.stage || r.Attrs["status"] != test.status ||
			!strings.Contains(r.Attrs["reason"], test.reason) {
			t.Errorf("%.20s: on record is %+v", test.body, r)
		}
	}
	const flood = 2 * refusalsBurst
	for range flood {
		post(read)
	}
	l.g.refusals.SetBurst(flood)
	l.g.refusals.SetLimit(rate.Inf)
	post(read)
	lost := 0 // some are let through meanwhile, each with the count of those before it
	for _, r := range notes.all {
		if n, ok := r.Attrs["not_noted_before"]; ok {
			some, err := strconv.Atoi(n)
			if err != nil {
				t.Error(err)
			}
			lost += some
		}
	}
	if lost == 0 || len(notes.all)+lost != 2+3+flood+1 {
		t.Errorf("%d on record, and %d not", len(notes.all), lost)
	}
}

// A recorder that does not take anything.
type deaf struct{}

func (deaf) AppendAll([]audit.Record) error { return errors.New("the disk is full") }
func (deaf) Note(audit.Record) error        { return nil }

// Whoever calls learns later that the gateway stops: a request that is on its way by then
// is answered, also on a connection that was idle, or is new. What stays idle is closed.
func TestCallsOnTheirWayToAGatewayThatStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cas := writePair(t, dir, "tls", time.Now().Add(90*24*time.Hour), "*."+domain)
		g, err := New(Options{
			Load:   func() (*Config, error) { return config(dir, "http://127.0.0.1:1", nil), nil },
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		l := newQueue() // connections in memory
		// dial returns a connection and what comes on it until it ends.
		dial := func() (*tls.Conn, <-chan string) {
			near, far := net.Pipe()
			if !l.hand(far) {
				t.Fatal("the gateway takes no connection")
			}
			conn := tls.Client(near, &tls.Config{RootCAs: cas, ServerName: "nowhere." + domain})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 1)
			go func() {
				b, _ := io.ReadAll(conn)
				got <- string(b)
			}()
			synctest.Wait()
			return conn, got
		}
		// The route is none, so that the gateway itself answers.
		const call = "GET / HTTP/1.1\r\nHost: nowhere." + domain + "\r\n\r\n"
		answered := func(which, got string) {
			if !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "Connection: close\r\n") {
				t.Errorf("%s: %q", which, got)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- g.Serve(ctx, l) }()
		used, fromUsed := dial()
		_, fromIdle := dial()
		stop()
		synctest.Wait()
		if g.Ready(nil) == nil {
			t.Error("it is ready while it stops")
		}
		time.Sleep(leaveTime / 2)
		io.WriteString(used, call)
		answered("idle", <-fromUsed)
		late, fromLate := dial()
		io.WriteString(late, call)
		answered("new", <-fromLate)
		began := time.Now()
		if got := <-fromIdle; got != "" || time.Since(began) > 2*leaveTime {
			t.Errorf("the one that stays idle: %q after %s", got, time.Since(began))
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutARecordNothingIsCalled(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	l := serve(t, s.URL, nil, func(o *Options) { o.Audit = deaf{} })
	for _, body := range []string{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`, `{"jsonrpc":"2.0","method":"x"}`, "no JSON at all"} {
		res, _ := get(t, l.client(false), "POST", "https://docs."+domain+"/", body, "Content-Type", "application/json")
		if res.StatusCode != 503 || tunnel.ErrorFromHeader(res.Header) == nil {
			t.Errorf("%s: %d", body, res.StatusCode)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("%d calls came through", asked.Load())
	}
}

func TestCallersTokens(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Authorization")) })
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("correct-horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://issuer.test"
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}}
	keys := filepath.Join(dir, "keys.json")
	if b, err := json.Marshal(set); err != nil || os.WriteFile(keys, b, 0o600) != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	jwks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(500)
			return
		}
		json.NewEncoder(w).Encode(set)
	}))
	t.Cleanup(jwks.Close)
	sign := func(k *ecdsa.PrivateKey, claims map[string]any) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: "k1"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(claims)
		o, err := signer.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		token, _ := o.CompactSerialize()
		return token
	}
	claims := func(change func(map[string]any)) map[string]any {
		c := map[string]any{"iss": issuer, "aud": "https://docs", "sub": "user-1", "exp": time.Now().Add(time.Hour).Unix(), "scope": "mcp other", "tenant": "t1"}
		if change != nil {
			change(c)
		}
		return c
	}
	unsigned := "eyJhbGciOiJub25lIn0." + strings.Split(sign(key, claims(nil)), ".")[1] + "."
	for name, jwt := range map[string]JWT{
		"file":    {JWKSFile: keys},
		"address": {JWKS: jwks.URL},
	} {
		jwt.Issuer, jwt.Audience, jwt.Scopes, jwt.Claims = issuer, "https://docs", []string{"mcp"}, map[string]string{"tenant": "t1"}
		notes := new(notebook)
		l := serve(t, s.URL, func(c *Config) {
			c.Routes["docs"].Auth = Auth{TokenFiles: []string{file}, JWT: jwt, ResourceMetadata: "https://docs/.well-known/oauth-protected-resource"}
		}, func(o *Options) { o.Audit = notes })
		c := l.client(false)
		for token, want := range map[string]struct {
			status int
			why    string // in the log and on record
		}{
			"":                                   {401, "a bearer token is needed"},
			"Bearer correct-horse":               {status: 200},
			"bearer correct-horse":               {status: 200},
			"Bearer correct-hors":                {401, "it is no JWT, or not signed in a way that is taken here"},
			"Basic correct-horse":                {401, "holds no bearer token"},
			"Bearer ":                            {401, "holds no bearer token"},
			"Bearer " + sign(key, claims(nil)):   {status: 200},
			"Bearer " + sign(other, claims(nil)): {401, "its signature is by none of the issuer's keys"},
			"Bearer " + unsigned:                 {401, "it is no JWT, or not signed in a way that is taken here"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["iss"] = "https://evil.test" })):                 {401, "it is of another issuer"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["aud"] = "https://evil.test" })):                 {401, "it is for another audience"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() })):   {401, "it has expired, at 2"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["nbf"] = time.Now().Add(time.Hour).Unix() })):    {401, "it is not good yet"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["tenant"] = "evil.test" })):                      {401, "claim tenant is not what is asked for"},
			"Bearer " + sign(key, claims(func(c map[string]any) { delete(c, "sub") })):                               {401, "the token has no subject"},
			"Bearer " + sign(key, claims(func(c map[string]any) { c["scope"] = "mcpx" })):                            {403, "the token lacks a scope"},
			"Bearer " + sign(key, claims(func(c map[string]any) { delete(c, "scope"); c["scp"] = []string{"mcp"} })): {status: 200},
		} {
			head := []string{}
			if token != "" {
				head = []string{"Authorization", token}
			}
			res, body := get(t, c, "GET", "https://docs."+domain+"/", "", head...)
			if res.StatusCode != want.status {
				t.Errorf("%s: %.60s: %d, want %d", name, token, res.StatusCode, want.status)
			}
			if want.status == 200 && body != token {
				t.Errorf("%s: the server got %q", name, body)
			}
			challenge := res.Header.Get("WWW-Authenticate")
			if (want.status != 200) != strings.Contains(challenge, `resource_metadata="https://docs/.well-known/oauth-protected-resource"`) || want.status == 403 && !strings.Contains(challenge, `error="insufficient_scope"`) {
				t.Errorf("%s: %.60s: %q", name, token, challenge)
			}
			refused := tunnel.ErrorFromHeader(res.Header)
			if (want.status != 200) != (refused != nil && refused.Stage == tunnel.StageCallerRefused) {
				t.Errorf("%s: %.60s: %+v", name, token, refused)
			}
			if want.why == "" {
				continue
			}
			if !strings.Contains(l.logs.String(), want.why) {
				t.Errorf("%s: %.60s: the log does not say %q", name, token, want.why)
			}
			if r := notes.last(); r.Action != audit.MCPRefused || r.Outcome != "refused" || r.Attrs["stage"] != "caller_refused" || r.Attrs["status"] != strconv.Itoa(want.status) ||
				!strings.Contains(r.Attrs["reason"], want.why) {
				t.Errorf("%s: %.60s: on record is %+v", name, token, r)
			}
			if strings.Contains(body, want.why) && want.status == 401 && refused.Detail != "" && strings.HasPrefix(want.why, "it ") {
				t.Errorf("%s: whoever guesses is told %q", name, body)
			}
		}
		if res := l.raw("docs."+domain, "GET / HTTP/1.1\r\nHost: docs."+domain+"\r\nAuthorization: Bearer x\r\nAuthorization: Bearer correct-horse\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(res, "HTTP/1.1 400 ") {
			t.Errorf("two tokens: %q", res)
		}
		for _, secret := range []string{"correct-hors", "evil.test"} {
			if strings.Contains(l.logs.String(), secret) || strings.Contains(fmt.Sprint(notes.all), secret) {
				t.Errorf("%s of a token is in the log or on record", secret)
			}
		}
	}
	// Keys that cannot be had are nobody's fault who calls.
	down.Store(true)
	l := serve(t, s.URL, func(c *Config) {
		c.Routes["docs"].Auth = Auth{JWT: JWT{Issuer: issuer, Audience: "https://docs", JWKS: jwks.URL}}
	})
	if res, _ := get(t, l.client(false), "GET", "https://docs."+domain+"/", "", "Authorization", "Bearer "+sign(key, claims(nil))); res.StatusCode != 503 {
		t.Errorf("without keys: %d", res.StatusCode)
	}
	// Tokens of a file alone are the gateway's own affair.
	l = serve(t, s.URL, func(c *Config) { c.Routes["docs"].Auth = Auth{TokenFiles: []string{file}} })
	if _, body := get(t, l.client(false), "GET", "https://docs."+domain+"/", "", "Authorization", "Bearer correct-horse"); body != "" {
		t.Errorf("the server got %q", body)
	}
}

// serial is that of the certificate that the gateway shows.
func (l *lab) serial() string {
	l.t.Helper()
	conn, err := tls.Dial("tcp", l.addr, &tls.Config{InsecureSkipVerify: true, ServerName: "docs." + domain})
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	return tunnel.Fingerprint(conn.ConnectionState().PeerCertificates[0])
}

func TestCertificatesAreReadAnew(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {})
	l := serve(t, s.URL, nil)
	first := l.serial()
	look := func() { l.g.certs.look(time.Now()) }
	next := t.TempDir()
	writePair(t, next, "tls", time.Now().Add(20*24*time.Hour), "*."+domain)
	move := func(name string) {
		b, err := os.ReadFile(filepath.Join(next, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteSecret(filepath.Join(l.dir, name), b); err != nil {
			t.Fatal(err)
		}
	}
	open := l.dial("docs."+domain, "http/1.1")
	move("tls.crt")
	look()
	if l.serial() != first {
		t.Fatal("a certificate without its key was taken on")
	}
	if n := strings.Count(l.logs.String(), "stays the one that it was"); n != 1 {
		t.Errorf("said %d times", n)
	}
	look()
	if n := strings.Count(l.logs.String(), "stays the one that it was"); n != 1 {
		t.Errorf("said %d times", n)
	}
	move("tls.key")
	look()
	second := l.serial()
	if second == first {
		t.Fatal("the new pair is not in use")
	}
	if !strings.Contains(l.logs.String(), "the certificate expires soon") {
		t.Error("20 days before its expiry, nothing is said")
	}
	// Connections that are open go on.
	io.WriteString(open, "GET / HTTP/1.1\r\nHost: docs."+domain+"\r\nConnection: close\r\n\r\n")
	if b, _ := io.ReadAll(open); !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
		t.Errorf("%q", b)
	}
	// Damage changes nothing.
	for _, text := range []string{"", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := WriteSecret(filepath.Join(l.dir, "tls.crt"), []byte(text)); err != nil {
			t.Fatal(err)
		}
		look()
		if l.serial() != second {
			t.Errorf("after %q the certificate is another", text)
		}
	}
	os.Remove(filepath.Join(l.dir, "tls.crt"))
	look()
	if l.serial() != second {
		t.Error("without the file the certificate is another")
	}
}

// A secret that is mounted by Kubernetes: names are links to ..data/NAME, and ..data is
// swapped.
func TestCertificatesOfAKubernetesMount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, version := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		writePair(t, filepath.Join(dir, version), "tls", time.Now().Add(time.Hour), "*."+domain)
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/tls.crt", "tls.crt")
	link("..data/tls.key", "tls.key")
	c, err := newCertificates(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), slog.New(slog.DiscardHandler), newMetrics(nil))
	if err != nil {
		t.Fatal(err)
	}
	first := c.current()
	link("..2", "..new")
	if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if changed, err := c.reload(); !changed || err != nil || c.current() == first {
		t.Errorf("%v, %v", changed, err)
	}
	if changed, err := c.reload(); changed || err != nil {
		t.Errorf("once more: %v, %v", changed, err)
	}
}

func TestExpiryIsWarnedAboutOnceADegree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	expires := time.Now().Add(60 * 24 * time.Hour)
	writePair(t, dir, "tls", expires, "*."+domain)
	logs := new(syncBuffer)
	c, err := newCertificates(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), slog.New(slog.NewTextHandler(logs, nil)), newMetrics(nil))
	if err != nil {
		t.Fatal(err)
	}
	for days, want := range map[int]int{40: 0} {
		c.warn(expires.Add(-time.Duration(days) * 24 * time.Hour))
		if n := strings.Count(logs.String(), "expires soon"); n != want {
			t.Errorf("%d days before: %d warnings", days, n)
		}
	}
	for i, before := range []time.Duration{29 * 24 * time.Hour, 20 * 24 * time.Hour, 6 * 24 * time.Hour, 5 * 24 * time.Hour, 23 * time.Hour, time.Hour} {
		c.warn(expires.Add(-before))
		if n, want := strings.Count(logs.String(), "expires soon"), []int{1, 1, 2, 2, 3, 3}[i]; n != want {
			t.Errorf("%s before: %d warnings, want %d", before, n, want)
		}
	}
	if err := c.usable(expires.Add(time.Hour)); err == nil {
		t.Error("it is usable after its expiry")
	}
}

// Routes and certificates change under load, and no call fails.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	one := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "one") })
	two := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "two") })
	var to atomic.Value
	to.Store(one.URL)
	var broken atomic.Bool
	l := serve(t, one.URL, func(c *Config) {
		c.Routes["docs"].Upstream = to.Load().(string)
		if broken.Load() {
			c.Routes["docs"].Upstream = "nonsense"
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	var calls, twos atomic.Int64
	for i := range 4 {
		parts.Go(func() {
			c := l.client(i%2 == 0)
			for ctx.Err() == nil {
				res, err := c.Get("https://docs." + domain + "/")
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 {
					t.Errorf("%d %s %v", res.StatusCode, b, err)
					return
				}
				calls.Add(1)
				if string(b) == "two" {
					twos.Add(1)
				}
			}
		})
	}
	for i := range 20 {
		to.Store([]string{two.URL, one.URL}[i%2])
		broken.Store(i%5 == 4)
		if err := l.g.Reload(); (err != nil) != broken.Load() {
			t.Errorf("reload %d: %v", i, err)
		}
		for before := calls.Load(); calls.Load() < before+20 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	parts.Wait()
	if twos.Load() == 0 {
		t.Error("no call went to the second server")
	}
}

func TestFilesAreWatched(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Key")) })
	dir := t.TempDir()
	file, key := filepath.Join(dir, "gateway.yaml"), filepath.Join(dir, "key")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(key, "first")
	write(file, "x")
	l := serve(t, s.URL, func(c *Config) {
		c.Routes["docs"].Headers.Request.SetFiles = map[string]string{"X-Key": key}
	}, func(o *Options) { o.File = file })
	before := l.g.sums()
	write(key, "second")
	if after := l.g.sums(); after[key] == before[key] || after[file] != before[file] {
		t.Error("the change is not seen")
	}
	if err := l.g.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, l.client(false), "GET", "https://docs."+domain+"/", ""); body != "second" {
		t.Errorf("%q", body)
	}
}

func TestWhatCannotChangeUnderARunningGateway(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {})
	var later atomic.Bool
	l := serve(t, s.URL, func(c *Config) {
		if later.Load() {
			c.Listen, c.Replica = "127.0.0.1:1", "other"
		}
	})
	later.Store(true)
	if err := l.g.Reload(); err != nil {
		t.Fatal(err)
	}
	if l.g.Config().Listen != "" || !strings.Contains(l.logs.String(), "from the next start on") {
		t.Errorf("%q", l.g.Config().Listen)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {})
	l := serve(t, s.URL, nil)
	get(t, l.client(false), "GET", "https://docs."+domain+"/", "")
	var attached error
	h := httptest.NewServer(l.g.HealthHandler(func() error { return attached }, l.reg))
	t.Cleanup(h.Close)
	c := h.Client()
	if res, _ := get(t, c, "GET", h.URL+"/readyz", ""); res.StatusCode != 200 {
		t.Errorf("ready: %d", res.StatusCode)
	}
	attached = errors.New("attached to no edge yet")
	if res, body := get(t, c, "GET", h.URL+"/readyz", ""); res.StatusCode != 503 || !strings.Contains(body, "attached to no edge") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := get(t, c, "GET", h.URL+"/healthz", ""); res.StatusCode != 200 {
		t.Errorf("health: %d", res.StatusCode)
	}
	const counted = `bailey_gateway_calls_total{route="docs",status="2xx"} 1`
	_, body := get(t, c, "GET", h.URL+"/metrics", "")
	for limit := time.Now().Add(10 * time.Second); !strings.Contains(body, counted) && time.Now().Before(limit); {
		_, body = get(t, c, "GET", h.URL+"/metrics", "") // a call is counted once its answer has left
	}
	for _, want := range []string{counted, "bailey_gateway_certificate_expiry_timestamp_seconds 1.", `bailey_gateway_handshakes_total{outcome="ok"} 1`} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestAuthorityAndRenewal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	now := time.Now()
	ca, err := NewAuthority(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tunnel.CheckCA(ca.PEM, now); err != nil {
		t.Fatalf("the CA %v", err)
	}
	if err := ca.Write(at("ca.crt"), at("ca.key")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.key"} {
		if info, err := os.Stat(at(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	cfg := &Config{
		Tunnel: Tunnel{Domain: domain},
		TLS:    TLS{Cert: at("tls.crt"), Key: at("tls.key"), CACert: at("ca.crt"), CAKey: at("ca.key")},
		Routes: map[string]*Route{"docs": {Upstream: "http://10.0.0.1:80"}, "a.b": {Upstream: "http://10.0.0.1:80"}},
	}
	cfg.SetDefaults()
	month := 30 * 24 * time.Hour
	if renewed, err := cfg.Renew(month, now); !renewed || err != nil {
		t.Fatal(renewed, err)
	}
	pair, err := tls.LoadX509KeyPair(at("tls.crt"), at("tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"docs." + domain, "anything." + domain, "a.b." + domain} {
		if _, err := tunnel.VerifyLeaf([]*x509.Certificate{pair.Leaf}, []*x509.Certificate{ca.Cert}, host, now); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if renewed, err := cfg.Renew(month, now); renewed || err != nil {
		t.Error("renewed without need", err)
	}
	if renewed, err := cfg.Renew(month, now.Add(61*24*time.Hour)); !renewed || err != nil {
		t.Error("not renewed 29 days before its expiry", err)
	}
	if renewed, err := cfg.Renew(0, now); !renewed || err != nil {
		t.Error("not renewed when asked to", err)
	}
	cfg.Routes["c.d"] = &Route{Upstream: "http://10.0.0.1:80"}
	if renewed, err := cfg.Renew(month, now); !renewed || err != nil {
		t.Error("not renewed for a route's name", err)
	}
	other, err := NewAuthority(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Write(at("ca.crt"), at("ca.key")); err != nil {
		t.Fatal(err)
	}
	if renewed, err := cfg.Renew(month, now); !renewed || err != nil {
		t.Error("not renewed for another CA", err)
	}
	if err := ca.Write(at("x.crt"), at("ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Renew(0, now); err == nil || !strings.Contains(err.Error(), "is not the key of the CA") {
		t.Errorf("with another CA's key: %v", err)
	}
	cfg.TLS.CAKey = ""
	if _, err := cfg.Renew(0, now); err == nil {
		t.Error("renewed without the CA's key")
	}
}

// What check says of each hop that can fail.
func TestCheckNamesTheHopThatFails(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "guarded.") {
			w.WriteHeader(421)
		}
	})
	dir := t.TempDir()
	writePair(t, dir, "tls", time.Now().Add(90*24*time.Hour), "*."+domain)
	closed := "http://" + nobodyAt(t)
	loop := Settings{AllowedIPs: []string{"127.0.0.0/8"}}
	cfg := config(dir, s.URL, func(c *Config) {
		c.Routes["refused"] = &Route{Upstream: "http://127.0.0.1:80"}
		c.Routes["closed"] = &Route{Upstream: closed, Settings: loop}
		c.Routes["nowhere"] = &Route{Upstream: "http://nowhere.invalid:80", Settings: loop}
		c.Routes["guarded"] = &Route{Upstream: s.URL, Settings: loop}
		c.Routes["plain"] = &Route{Upstream: "https" + strings.TrimPrefix(s.URL, "http"), Settings: Settings{AllowedIPs: loop.AllowedIPs, UpstreamTLS: Trust{SystemCAs: true}}}
		c.Routes["program"] = &Route{Command: []string{os.Args[0]}, Process: ownUser(), Env: map[string]string{"GATEWAY_TEST_SERVER": "old"}}
		c.Routes["broken"] = &Route{Command: []string{"/nowhere/program"}, Process: ownUser()}
		c.Routes["creds"] = &Route{Upstream: "http://169.254.169.254:80"}
		c.Routes["files"] = &Route{Upstream: s.URL, Settings: Settings{AllowedIPs: loop.AllowedIPs, Auth: Auth{TokenFiles: []string{"/nowhere/token"}},
			Headers: Headers{Request: HeaderRules{SetFiles: map[string]string{"X-Key": "/nowhere/key"}}}}}
		c.Routes["astray"] = &Route{Command: []string{os.Args[0]}, Dir: "/nowhere", Process: ownUser()}
	})
	got := make(map[string]Finding)
	files := 0
	for _, f := range Check(t.Context(), cfg, CheckOptions{Now: time.Now()}) {
		got[f.Name] = f
		if f.Name == "route files: files" {
			files++
		}
	}
	if files != 2 {
		t.Errorf("%d files of a route are missing, of two", files)
	}
	for name, want := range map[string]struct {
		ok     bool
		detail string
		remedy string
	}{
		"settings":               {true, "11 routes", ""},
		"certificate":            {true, "expires", ""},
		"route docs: address":    {true, "127.0.0.1", ""},
		"route docs: server":     {true, "HTTP 200", ""},
		"route refused: address": {false, "IP validation failed: 127.0.0.1 is not a private address", "name this very address"},
		"route creds: address":   {false, "it is a metadata service address", "no MCP server is there"},
		"route files: files":     {false, "/nowhere/", "can be read by this user"},
		"route closed: server":   {false, "connection refused", "the server runs"},
		"route nowhere: address": {false, "nowhere.invalid", "look the name up"},
		"route guarded: server":  {true, "HTTP 421", "host: rewrite"},
		"route plain: server":    {false, "TLS with", "upstream-tls"},
		"route program":          {true, `"serverInfo"`, ""},
		"route broken":           {false, "/nowhere/program: no such file", "the program is there"},
		"route astray":           {false, "dir, where the program is to run: stat /nowhere: no such file", "its directory"},
	} {
		f := got[name]
		if f.OK != want.ok || !strings.Contains(f.Detail, want.detail) || !strings.Contains(f.Remedy, want.remedy) || !f.OK && f.Remedy == "" {
			t.Errorf("%s: %+v, want %+v", name, f, want)
		}
	}
	os.Remove(filepath.Join(dir, "tls.key"))
	for _, f := range Check(t.Context(), cfg, CheckOptions{Now: time.Now()}) {
		if f.Name == "certificate" && (f.OK || f.Remedy == "") {
			t.Errorf("%+v", f)
		}
	}
}

// All that is wrong with the settings is said at once, and what can be looked at is.
func TestCheckSaysAllThatIsWrong(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	writePair(t, dir, "tls", time.Now().Add(90*24*time.Hour), "*."+domain)
	cfg := config(dir, s.URL, func(c *Config) {
		c.Log = "loud"
		c.Routes["one"] = &Route{Upstream: "ftp://x"}
		c.Routes["a_b"] = &Route{Upstream: s.URL}
	})
	got, wrong := make(map[string]Finding), 0
	for _, f := range Check(t.Context(), cfg, CheckOptions{Now: time.Now()}) {
		got[f.Name] = f
		if f.Name == "settings" && !f.OK && f.Remedy != "" {
			wrong++
		}
	}
	if wrong != 3 || !got["certificate"].OK || !got["route docs: server"].OK || len(got) != 4 {
		t.Errorf("%d settings are wrong; %+v", wrong, got)
	}
}

// A certificate that everything here says is good is refused all the same where the tunnel
// does not know who signed it.
func TestCheckKnowsWhomTheTunnelTrusts(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	cfg := config(dir, s.URL, func(c *Config) {
		c.TLS.CACert, c.TLS.CAKey = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	})
	cfg.SetDefaults()
	now := time.Now()
	authority := func() *Authority {
		a, err := NewAuthority(domain, now)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	ours, other := authority(), authority()
	if err := ours.Write(cfg.TLS.CACert, cfg.TLS.CAKey); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Renew(0, now); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		cas    []*x509.Certificate
		signed *Authority
		keep   bool // the CA is here
		ok     bool
		detail string
		remedy string
	}{
		"not asked":       {nil, ours, true, true, "", ""},
		"registered":      {[]*x509.Certificate{other.Cert, ours.Cert}, ours, true, true, "the tunnel knows it", ""},
		"none":            {[]*x509.Certificate{}, ours, true, false, "the tunnel knows no CA", "bailey gateway init"},
		"another":         {[]*x509.Certificate{other.Cert}, ours, true, false, "the platform refuses the certificate for docs." + domain, "bailey gateway init"},
		"another, far":    {[]*x509.Certificate{other.Cert}, ours, false, false, "the platform refuses", "bailey tunnels certificates add"},
		"signed by other": {[]*x509.Certificate{ours.Cert}, other, false, false, "the platform refuses", "have the CA"},
	} {
		cert, key, err := test.signed.Issue(cfg.Names(), time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(WriteSecret(cfg.TLS.Key, key), WriteFile(cfg.TLS.Cert, cert, 0o644)); err != nil {
			t.Fatal(err)
		}
		looked := *cfg
		if !test.keep {
			looked.TLS.CACert, looked.TLS.CAKey = "", ""
		}
		var got Finding
		for _, f := range Check(t.Context(), &looked, CheckOptions{Now: now, CAs: test.cas}) {
			if f.Name == "certificate: CA" {
				got = f
			}
		}
		if test.cas == nil {
			if got.Name != "" {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if got.OK != test.ok || !strings.Contains(got.Detail, test.detail) || !strings.Contains(got.Remedy, test.remedy) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The names of metrics are those that are written down.
func TestMetricsAreWrittenDown(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/tunnels.md")
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(bailey_gateway_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		written = append(written, m[1])
	}
	var names nameList
	newMetrics(&names)
	slices.Sort(written)
	slices.Sort(names)
	if len(names) == 0 || !slices.Equal(written, names) {
		t.Errorf("written down are %v, and there are %v", written, names)
	}
}

// A nameList is a registry that keeps the names of what is registered.
type nameList []string

func (n *nameList) Register(c prometheus.Collector) error { n.MustRegister(c); return nil }
func (n *nameList) Unregister(prometheus.Collector) bool  { return false }

func (n *nameList) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		descriptions := make(chan *prometheus.Desc, 8)
		c.Describe(descriptions)
		close(descriptions)
		for d := range descriptions {
			_, rest, _ := strings.Cut(d.String(), `fqName: "`)
			name, _, _ := strings.Cut(rest, `"`)
			*n = append(*n, name)
		}
	}
}
