package netjail_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

func value(s string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return s, nil }
}

const secret = `s3cr3t/va+lue"with=odd&characters`

var everywhere = netjail.Where{Header: true, Body: true, Query: true}

// credentialBox is a box with a credential TOKEN for api.example, and other.example
// beside it.
func credentialBox(w *world, where netjail.Where) *box {
	return w.box(netjail.Options{
		Policy: limited(
			egress.Rule{Name: "api", Hosts: []string{"api.example"}},
			egress.Rule{Name: "other", Hosts: []string{"other.example"}, Protocol: egress.HTTPS},
			egress.Rule{Name: "other in the clear", Hosts: []string{"other.example"}, Protocol: egress.HTTP},
		),
		Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"api.example"}, Where: where, Value: value(secret)}},
	})
}

func TestCredentialIsPutInWhereItBelongs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	b := credentialBox(w, everywhere)
	b.jail.SetCall("sesn_1", "call_1")
	ph := b.env("TOKEN")
	if !strings.HasPrefix(ph, netjail.PlaceholderPrefix) || strings.Contains(strings.Join(b.jail.Env(), " "), secret) {
		t.Fatalf("environment %v", b.jail.Env())
	}
	c := b.client()
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	b.fetch(c, "GET", "https://api.example/x?key="+ph+"&b=1", "",
		"Authorization", "Bearer "+ph, "X-Api-Key", ph, "Proxied", basic("user:"+ph), "Cookie", "a=b; session="+ph, "X-Two", ph+","+ph)
	b.fetch(c, "POST", "https://api.example/json", `{"token":"`+ph+`"}`, "Content-Type", "application/json; charset=utf-8")
	b.fetch(c, "POST", "https://api.example/form", "token="+ph+"&x=y", "Content-Type", "application/x-www-form-urlencoded")
	b.fetch(c, "POST", "https://api.example/text", "token "+ph, "Content-Type", "text/plain")
	got := s.all()
	if len(got) != 4 {
		t.Fatalf("%d requests arrived", len(got))
	}
	first := got[0]
	if want := "/x?key=" + url.QueryEscape(secret) + "&b=1"; first.URI != want {
		t.Errorf("URI %s, want %s", first.URI, want)
	}
	for name, want := range map[string]string{
		"Authorization": "Bearer " + secret, "X-Api-Key": secret, "Proxied": basic("user:" + secret), "Cookie": "a=b; session=" + secret, "X-Two": secret + "," + secret,
	} {
		if first.Header.Get(name) != want {
			t.Errorf("%s: %s, want %s", name, first.Header.Get(name), want)
		}
	}
	for i, want := range []string{`{"token":"s3cr3t/va+lue\"with=odd&characters"}`, "token=" + url.QueryEscape(secret) + "&x=y", "token " + secret} {
		if got[i+1].Body != want {
			t.Errorf("body %s, want %s", got[i+1].Body, want)
		}
		if length := got[i+1].Header.Get("Content-Length"); got[i+1].Proto == "HTTP/1.1" && length != fmt.Sprint(len(want)) {
			t.Errorf("Content-Length %s", length)
		}
	}
	uses := b.recorded(netjail.ActionCredential)
	if len(uses) != 4 || !uses[0].Allow || uses[0].Credential != "TOKEN" || uses[0].Host != "api.example" || uses[0].Call != "call_1" {
		t.Errorf("uses %+v", uses)
	}
	for _, d := range append(uses, b.recorded(netjail.ActionRequest)...) {
		if text := fmt.Sprintf("%+v", d); strings.Contains(text, secret) || strings.Contains(text, "s3cr3t") {
			t.Errorf("the secret is on record: %s", text)
		}
	}
	if n := b.jail.Stats().Credentials; n != 4 {
		t.Errorf("%d uses", n)
	}
}

func TestCredentialStaysAPlaceholderWhereItIsNotAllowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	b := credentialBox(w, netjail.Where{Header: true})
	ph := b.env("TOKEN")
	c := b.client()
	b.fetch(c, "POST", "https://api.example/path/"+ph+"?q="+ph, "body "+ph, "A", ph, "X-"+ph, "name")
	got := s.all()
	if len(got) != 1 {
		t.Fatalf("%d requests arrived: %v", len(got), b.jail.Denials())
	}
	if r := got[0]; r.URI != "/path/"+ph+"?q="+ph || r.Body != "body "+ph || r.Header.Get("A") != secret || r.Header.Get("X-"+ph) != "name" {
		t.Errorf("request %+v", r)
	}
	b.denied("is not put into this part of a request")

	b = credentialBox(w, netjail.Where{Body: true})
	ph = b.env("TOKEN")
	b.fetch(b.client(), "POST", "https://api.example/", ph, "A", ph, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(ph)))
	if r := s.all()[1]; r.Body != secret || r.Header.Get("A") != ph || strings.Contains(r.Header.Get("Authorization"), base64.StdEncoding.EncodeToString([]byte(secret))) {
		t.Errorf("request %+v", r)
	}
}

func TestBypassPlaceholderReplayedToAnotherHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	api := new(site)
	w.host("other.example", s)
	w.host("api.example", api)
	b := credentialBox(w, everywhere)
	b.jail.SetCall("sesn_1", "call_1")
	ph := b.env("TOKEN")
	c := b.client()
	for what, f := range map[string]func() (*http.Response, string){
		"a header": func() (*http.Response, string) {
			return b.fetch(c, "GET", "https://other.example/", "", "Authorization", "Bearer "+ph)
		},
		"Basic": func() (*http.Response, string) {
			return b.fetch(c, "GET", "https://other.example/", "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("u:"+ph)))
		},
		"the query": func() (*http.Response, string) { return b.fetch(c, "GET", "https://other.example/?q="+ph, "") },
		"the path":  func() (*http.Response, string) { return b.fetch(c, "GET", "https://other.example/"+ph, "") },
		"in the clear": func() (*http.Response, string) {
			return b.fetch(c, "GET", "http://other.example/", "", "Authorization", ph)
		},
		"in the clear to its host": func() (*http.Response, string) {
			return b.fetch(c, "GET", "http://api.example/", "", "Authorization", ph)
		},
	} {
		r, body := f()
		if r.StatusCode != http.StatusForbidden || !strings.Contains(body, "TOKEN is a credential that may not be sent to") {
			t.Errorf("%s: %d %s", what, r.StatusCode, body)
		}
	}
	if n := len(b.recorded(netjail.ActionCredential)); n != 6 {
		t.Errorf("%d decisions on credentials", n)
	}
	// A body is not looked into for it, and not changed either.
	b.fetch(c, "POST", "https://other.example/", "body "+ph)
	if got := s.all(); len(got) != 1 || got[0].Body != "body "+ph {
		t.Errorf("arrived: %+v", got)
	}
	if len(api.all()) != 0 {
		t.Errorf("arrived in the clear: %+v", api.all())
	}
}

func TestBypassPlaceholderOfAnotherBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	one, two := credentialBox(w, everywhere), credentialBox(w, everywhere)
	ph := one.env("TOKEN")
	if ph == two.env("TOKEN") {
		t.Fatal("two boxes have the same placeholder")
	}
	if r, body := two.fetch(two.client(), "GET", "https://api.example/", "", "Authorization", ph); r.StatusCode != http.StatusForbidden {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	// Text that only looks like one is nobody's.
	if r, _ := two.fetch(two.client(), "GET", "https://api.example/", "", "A", netjail.PlaceholderPrefix+"…", "B", netjail.PlaceholderPrefix+strings.Repeat("9", 26)); r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
}

// A value that is at hand is recognised although the box never used it; one that is not is
// not asked for.
func TestValuesAtHandAreRecognisedFromTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	header := netjail.Where{Header: true}
	hosts := []string{"api.example"}
	list := []netjail.Credential{
		{Name: "FILE", Hosts: hosts, Where: header, AtHand: true, Value: value("of-a-file")},
		{Name: "GONE", Hosts: hosts, Where: header, AtHand: true, Value: func(context.Context) (string, error) {
			return "", errors.New("no such file")
		}},
		{Name: "SHORT", Hosts: hosts, Where: header, AtHand: true, Value: value("text")},
		{Name: "COMMAND", Hosts: hosts, Where: header, Value: func(context.Context) (string, error) {
			t.Error("a value was asked for that is not at hand")
			return "of-a-command", nil
		}},
	}
	b := w.box(netjail.Options{Credentials: list})
	text := "of-a-file, of-another, of-a-command, text"
	if got, want := string(b.jail.Redact([]byte(text))), b.env("FILE")+", of-another, of-a-command, text"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	list[0].Value = value("of-another")
	if err := b.jail.SetCredentials(list); err != nil {
		t.Fatal(err)
	}
	if got, want := string(b.jail.Redact([]byte(text))), b.env("FILE")+", "+b.env("FILE")+", of-a-command, text"; got != want {
		t.Errorf("after a change %q, want %q", got, want)
	}
}

// A redirect takes the box elsewhere with what it has: the placeholder.
func TestBypassRedirectWithCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stolen := new(site)
	w.host("other.example", stolen)
	s := &site{reply: func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://other.example/?echo="+url.QueryEscape(r.Header.Get("X-Token")), http.StatusTemporaryRedirect)
	}}
	w.host("api.example", s)
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	c := b.client()
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		r.Header = via[0].Header // as careless clients do
		return nil
	}
	r, body := b.fetch(c, "GET", "https://api.example/", "", "X-Token", ph)
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if got := s.all(); len(got) != 1 || got[0].Header.Get("X-Token") != secret {
		t.Errorf("its host got %+v", got)
	}
	if got := stolen.all(); len(got) != 0 {
		t.Errorf("the other got %+v", got)
	}
	if strings.Contains(r.Request.URL.String(), "s3cr3t") {
		t.Errorf("the box was sent to %s", r.Request.URL)
	}
	// Without the placeholder in its way it arrives, with nothing of the secret.
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		r.URL.RawQuery = ""
		r.Header.Del("X-Token")
		return nil
	}
	b.fetch(c, "GET", "https://api.example/", "", "X-Token", ph)
	if got := stolen.all(); len(got) != 1 || strings.Contains(fmt.Sprint(got), "s3cr3t") {
		t.Errorf("the other got %+v", got)
	}
}

// A host that says the secret back, in every way it may.
func TestBypassSecretsEchoedByTheHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ways := map[string]func(string) string{
		"as it is":            func(s string) string { return s },
		"twice":               func(s string) string { return s + s },
		"in base64":           func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"in base64 for a URL": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"in Basic":            func(s string) string { return base64.StdEncoding.EncodeToString([]byte("user:" + s)) },
		"in base64 with 1":    func(s string) string { return base64.StdEncoding.EncodeToString([]byte("x" + s + "y")) },
		"in base64 with 2":    func(s string) string { return base64.StdEncoding.EncodeToString([]byte("xx" + s + "yyy")) },
		"for a query":         url.QueryEscape,
		"for a path":          url.PathEscape,
		"in JSON":             func(s string) string { return strings.ReplaceAll(s, `"`, `\"`) },
		"in JSON of PHP":      func(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, `"`, `\"`), "/", `\/`) },
		"in hexadecimal":      func(s string) string { return hex.EncodeToString([]byte(s)) },
	}
	reply := func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("X-Token")
		text := ways[r.URL.Query().Get("way")](token)
		if utf8 := strings.ContainsAny(text, "\r\n"); !utf8 {
			w.Header().Set("X-Echo", text)
		}
		w.Header().Set("Trailer", "X-Late")
		switch r.URL.Path {
		case "/whole":
			body := "before " + text + " after"
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			io.WriteString(w, body)
		case "/large":
			body := strings.Repeat("filler ", 200_000) + text + strings.Repeat(" filler", 10)
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			io.WriteString(w, body)
		case "/pieces": // byte by byte, each on its own
			for _, c := range []byte("before " + text + " after") {
				w.Write([]byte{c})
				w.(http.Flusher).Flush()
			}
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			io.WriteString(z, "before "+text+" after")
			z.Close()
		case "/error":
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, "bad token "+text)
		case "/early":
			w.Header().Set("Link", "<"+text+">")
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "x")
		}
		w.Header().Set("X-Late", text)
	}
	w.host("api.example", &site{reply: reply})
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	c := b.client()
	for way, encode := range ways {
		for _, path := range []string{"/whole", "/large", "/pieces", "/gzip", "/error", "/early"} {
			r, body := b.fetch(c, "GET", "https://api.example"+path+"?way="+url.QueryEscape(way), "", "X-Token", ph)
			all := body + fmt.Sprint(r.Header, r.Trailer)
			for _, leak := range []string{encode(secret), secret, "va+lue", base64.StdEncoding.EncodeToString([]byte(secret))[:20], hex.EncodeToString([]byte(secret))[:20]} {
				if strings.Contains(all, leak) {
					t.Errorf("%s, %s: %q came back", path, way, leak)
				}
			}
			if path == "/whole" && way == "as it is" && (body != "before "+ph+" after" || r.Header.Get("X-Echo") != ph || r.Trailer.Get("X-Late") != ph) {
				t.Errorf("%s: %q %v %v", path, body, r.Header, r.Trailer)
			}
			if path == "/large" && r.ContentLength != int64(len(body)) {
				t.Errorf("Content-Length %d of %d bytes", r.ContentLength, len(body))
			}
		}
	}
	text := []byte("a tool says " + secret + " and " + base64.StdEncoding.EncodeToString([]byte(secret)))
	if clean := b.jail.Redact(text); bytes.Contains(clean, []byte("s3cr3t")) || string(clean) != "a tool says "+ph+" and "+ph {
		t.Errorf("redacted: %s", clean)
	}
}

func TestAResponseThatCannotBeReadIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := &site{reply: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, "who knows")
	}}
	w.host("api.example", s)
	b := credentialBox(w, everywhere)
	r, body := b.fetch(b.client(), "GET", "https://api.example/", "", "Accept-Encoding", "br, gzip", "Range", "bytes=0-3", "A", b.env("TOKEN"))
	if r.StatusCode != http.StatusBadGateway || !strings.Contains(body, "encoded") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if h := s.all()[0].Header; h.Get("Accept-Encoding") != "identity" || h.Get("Range") != "" {
		t.Errorf("the host was asked with %v", h)
	}
}

func TestAStreamOfEventsArrivesAsItIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	step := make(chan bool)
	s := &site{reply: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d %s\n\n", i, r.Header.Get("X-Token"))
			w.(http.Flusher).Flush()
			<-step
		}
	}}
	w.host("api.example", s)
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	r, err := http.NewRequest("GET", "https://api.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Token", ph)
	resp, err := b.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := lines.ReadString('\n')
		if want := fmt.Sprintf("data: %d %s\n", i, ph); line != want || err != nil {
			t.Errorf("event %q, %v; want %q", line, err, want)
		}
		lines.ReadString('\n')
		step <- true
	}
}

func TestABodyIsPassedOnAsItIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	heard := make(chan string)
	addr := w.address()
	w.name("api.example", addr)
	cert := w.certificate("api.example")
	w.web(addr, 443, &cert, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := bufio.NewReader(r.Body)
		for {
			line, err := body.ReadString('\n')
			if err != nil {
				close(heard)
				return
			}
			heard <- line
		}
	}))
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	body, write := io.Pipe()
	r, err := http.NewRequest("POST", "https://api.example/", body)
	if err != nil {
		t.Fatal(err)
	}
	c := b.client()
	var done sync.WaitGroup
	done.Go(func() {
		resp, err := c.Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	})
	for i := range 3 {
		fmt.Fprintf(write, "%d %s", i, ph[:7])
		fmt.Fprintf(write, "%s\n", ph[7:])
		if line := <-heard; line != fmt.Sprintf("%d %s\n", i, secret) {
			t.Errorf("heard %q", line)
		}
	}
	write.Close()
	if line, ok := <-heard; ok {
		t.Errorf("heard %q", line)
	}
	done.Wait()
	if n := len(b.recorded(netjail.ActionCredential)); n != 1 {
		t.Errorf("%d uses are on record for one request", n)
	}
}

func TestExpectContinueAndTrailers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("api.example", addr)
	cert := w.certificate("api.example")
	w.web(addr, 443, &cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", body, r.Trailer.Get("X-Sum"))
	}))
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"api.example"}, Protocol: egress.HTTPS})})
	c := b.client()
	c.Transport.(*http.Transport).ExpectContinueTimeout = 10 * time.Second
	for _, h2 := range []bool{true, false} {
		if !h2 {
			c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
			c.CloseIdleConnections()
		}
		r, err := http.NewRequest("POST", "https://api.example/yes", io.NopCloser(strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Expect", "100-continue")
		r.Trailer = http.Header{"X-Sum": {"42"}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != "body 42" {
			t.Errorf("HTTP/2 %v: %q", h2, got)
		}
		if resp, _ := b.fetch(c, "POST", "https://api.example/no", "body", "Expect", "100-continue"); resp.StatusCode != http.StatusExpectationFailed {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

func TestCredentialWithoutAValue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	for name, v := range map[string]func(context.Context) (string, error){
		"fails":         func(context.Context) (string, error) { return "", errors.New("vault at 10.0.0.5 says no") },
		"too short":     value("12345"),
		"too long":      value(strings.Repeat("x", netjail.ValueMax+1)),
		"with new line": value("secret\r\nX-Evil: 1"),
	} {
		b := w.box(netjail.Options{
			Policy:      limited(egress.Rule{Hosts: []string{"api.example"}}),
			Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"api.example"}, Where: netjail.Where{Header: true}, Value: v}},
		})
		r, body := b.fetch(b.client(), "GET", "https://api.example/", "", "A", b.env("TOKEN"))
		if r.StatusCode != http.StatusBadGateway || strings.Contains(body, "10.0.0.5") {
			t.Errorf("%s: %d %s", name, r.StatusCode, body)
		}
	}
	if got := s.all(); len(got) != 0 {
		t.Errorf("arrived: %+v", got)
	}
}

func TestCredentialUseIsRefusedWithoutARecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	asked := false
	b := w.box(netjail.Options{
		Policy: limited(egress.Rule{Hosts: []string{"api.example"}}),
		Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"api.example"}, Where: netjail.Where{Header: true},
			Value: func(context.Context) (string, error) { asked = true; return secret, nil }}},
	})
	c := b.client()
	b.fetch(c, "GET", "https://api.example/", "")
	b.refuseRecords(errors.New("disk full"))
	r, body := b.fetch(c, "GET", "https://api.example/", "", "A", b.env("TOKEN"))
	if r.StatusCode != http.StatusForbidden || asked || len(s.all()) != 1 {
		t.Errorf("%d %s; asked for the value: %v", r.StatusCode, body, asked)
	}
}

func TestCredentialsRotateAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := &site{reply: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "first-value second-value") }}
	w.host("api.example", s)
	current := "first-value"
	token := netjail.Credential{Name: "TOKEN", Hosts: []string{"api.example"}, Where: netjail.Where{Header: true},
		Value: func(context.Context) (string, error) { return current, nil }}
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"api.example"}}), Credentials: []netjail.Credential{token}})
	ph := b.env("TOKEN")
	c := b.client()
	if _, body := b.fetch(c, "GET", "https://api.example/", "", "A", ph); body != ph+" second-value" {
		t.Errorf("body %s", body)
	}
	current = "second-value"
	if _, body := b.fetch(c, "GET", "https://api.example/", "", "A", ph); body != ph+" "+ph {
		t.Errorf("body %s", body)
	}
	if got := s.all(); got[0].Header.Get("A") != "first-value" || got[1].Header.Get("A") != "second-value" {
		t.Errorf("arrived: %+v", got)
	}
	if err := b.jail.SetCredentials(nil); err != nil {
		t.Fatal(err)
	}
	if len(b.env("TOKEN")) != 0 {
		t.Error("it is still in the environment")
	}
	c.CloseIdleConnections()
	// TLS is not opened any more, so the box sees the host's own certificate.
	if _, err := c.Get("https://api.example/"); err == nil {
		t.Error("TLS is still opened")
	}
	if err := b.jail.SetCredentials([]netjail.Credential{token}); err != nil || b.env("TOKEN") != ph {
		t.Errorf("again: %v, %s", err, b.env("TOKEN"))
	}
}

func TestSetCredentialsCutsWhatIsUnopened(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("api.example", addr)
	w.serve(addr, 443, greeter("not even TLS"))
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted}, Authority: true, Limits: netjail.Limits{Greeting: 50 * time.Millisecond}})
	conn, err := b.reach("api.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 13)); err != nil {
		t.Fatal(err)
	}
	if err := b.jail.SetCredentials([]netjail.Credential{{Name: "T", Hosts: []string{"api.example"}, Where: everywhere, Value: value(secret)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !isReset(err) {
		t.Errorf("it goes on: %v", err)
	}
	// What is no TLS has nothing to open, if the policy allows it.
	if line, err := b.hears("api.example", 443); line != "not even TLS\n" {
		t.Errorf("heard %q, %v", line, err)
	}
}

func TestWithoutAnAuthorityTLSCannotBeOpenedLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box(netjail.Options{})
	if err := b.jail.SetPolicy(limited(egress.Rule{Hosts: []string{"a.example"}, Protocol: egress.HTTPS})); !errors.Is(err, netjail.ErrNoAuthority) {
		t.Errorf("SetPolicy: %v", err)
	}
	if err := b.jail.SetCredentials([]netjail.Credential{{}}); !errors.Is(err, netjail.ErrNoAuthority) {
		t.Errorf("SetCredentials: %v", err)
	}
	if err := b.jail.SetPolicy(limited(egress.Rule{Hosts: []string{"a.example"}})); err != nil {
		t.Errorf("SetPolicy: %v", err)
	}
}

func TestCredentialsAreChecked(t *testing.T) {
	t.Parallel()
	good := netjail.Credential{Name: "T", Hosts: []string{"a.example"}, Where: everywhere, Value: value(secret)}
	with := func(change func(*netjail.Credential)) []netjail.Credential {
		c := good
		change(&c)
		return []netjail.Credential{c}
	}
	for want, list := range map[string][]netjail.Credential{
		"as that of a variable": with(func(c *netjail.Credential) { c.Name = "1=2" }),
		"needs hosts":           with(func(c *netjail.Credential) { c.Hosts = nil }),
		"under ports":           with(func(c *netjail.Credential) { c.Hosts = []string{"a.example:1"} }),
		"needs a place":         with(func(c *netjail.Credential) { c.Where = netjail.Where{} }),
		"no value":              with(func(c *netjail.Credential) { c.Value = nil }),
		"two of this name":      {good, good},
		"are the most":          make([]netjail.Credential, netjail.CredentialsMax+1),
	} {
		_, err := netjail.New(netjail.Options{Credentials: list, Record: func(netjail.Decision) error { return nil }})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if _, err := netjail.New(netjail.Options{}); err == nil {
		t.Error("a jail without a record")
	}
}

func TestCredentialInUnrestrictedMode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	w.host("other.example", new(site))
	b := w.box(netjail.Options{Policy: egress.Policy{Mode: egress.Unrestricted},
		Credentials: []netjail.Credential{{Name: "T", Hosts: []string{"api.example"}, Where: everywhere, Value: value(secret)}}})
	c := b.client()
	if r, _ := b.fetch(c, "GET", "https://api.example/", "", "A", b.env("T")); r.StatusCode != 200 || s.all()[0].Header.Get("A") != secret {
		t.Errorf("status %d, %+v", r.StatusCode, s.all())
	}
	if _, err := c.Get("https://other.example/"); err == nil {
		t.Error("TLS is opened for a host that nothing asks that for")
	}
}

// A credential for anywhere goes wherever the policy lets the box go, and nowhere else.
func TestCredentialForAnywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	for _, host := range []string{"api.example", "other.example", "closed.example"} {
		w.host(host, s)
	}
	b := w.box(netjail.Options{
		Policy: limited(
			egress.Rule{Name: "api", Hosts: []string{"api.example", "other.example"}},
			egress.Rule{Name: "in the clear", Hosts: []string{"other.example"}, Protocol: egress.HTTP},
		),
		Credentials: []netjail.Credential{{Name: "TOKEN", Anywhere: true, Where: netjail.Where{Header: true}, Value: value(secret)}},
	})
	ph := b.env("TOKEN")
	c := b.client()
	b.fetch(c, "GET", "https://api.example/", "", "Authorization", "Bearer "+ph)
	b.fetch(c, "GET", "https://other.example/", "", "Authorization", "Bearer "+ph)
	got := s.all()
	if len(got) != 2 || got[0].Header.Get("Authorization") != "Bearer "+secret || got[1].Header.Get("Authorization") != "Bearer "+secret {
		t.Fatalf("%d requests arrived: %+v", len(got), got)
	}
	for _, url := range []string{"https://closed.example/", "http://other.example/"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+ph)
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				t.Errorf("%s answered", url)
			}
		}
	}
	for _, r := range s.all()[2:] {
		t.Errorf("%s %s arrived with %q", r.Method, r.URI, r.Header.Get("Authorization"))
	}
}

// TestManyBodiesDoNotFillTheWorker: a box that sends bodies for credentials to be put
// into, and does not end them, has the worker hold few of them.
func TestManyBodiesDoNotFillTheWorker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("api.example", addr)
	cert := w.certificate("api.example")
	const count, size = 10, 1 << 20
	arrived, lengths := make(chan bool, count), make(chan int64, count)
	w.web(addr, 443, &cert, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- true
		n, _ := io.Copy(io.Discard, r.Body)
		lengths <- n
	}))
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	c := b.client()
	var done sync.WaitGroup
	finish := make(chan struct{})
	for range count {
		body, write := io.Pipe()
		r, err := http.NewRequest("POST", "https://api.example/", body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = size
		done.Go(func() {
			resp, err := c.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
		done.Go(func() {
			defer write.Close()
			io.WriteString(write, ph+strings.Repeat("x", size-len(ph)-1))
			<-finish
			io.WriteString(write, "x")
		})
	}
	// There is room for some, and the others are passed on as they come.
	for range count - 8 {
		select {
		case <-arrived:
		case <-time.After(patience):
			t.Fatal("all of them are held")
		}
	}
	close(finish)
	done.Wait()
	for range count {
		if n := <-lengths; n != int64(size-len(ph)+len(secret)) {
			t.Errorf("%d bytes arrived", n)
		}
	}
}

// TestAHeadFullOfPlaceholdersIsRefused: it would be hundreds of times as long with the
// values.
func TestAHeadFullOfPlaceholdersIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := new(site)
	w.host("api.example", s)
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"api.example"}}), Credentials: []netjail.Credential{
		{Name: "TOKEN", Hosts: []string{"api.example"}, Where: everywhere, Value: value(strings.Repeat("v", netjail.ValueMax))},
	}})
	r, body := b.fetch(b.client(), "GET", "https://api.example/?q="+strings.Repeat(b.env("TOKEN"), 500), "")
	if r.StatusCode != http.StatusRequestHeaderFieldsTooLarge || !strings.Contains(body, "256 KiB") || len(s.all()) > 0 {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}

func TestRequestsOfABoxAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hold := make(chan struct{})
	arrived := make(chan bool)
	w.host("api.example", &site{reply: func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			arrived <- true
			<-hold
		}
	}})
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"api.example"}, Protocol: egress.HTTPS}), Limits: netjail.Limits{Requests: 2}})
	c := b.client()
	var done sync.WaitGroup
	for range 2 {
		done.Go(func() { b.fetch(c, "GET", "https://api.example/held", "") })
		<-arrived
	}
	if r, body := b.fetch(c, "GET", "https://api.example/", ""); r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "2 requests under way") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	b.denied("2 requests under way")
	close(hold)
	done.Wait()
	if r, _ := b.fetch(c, "GET", "https://api.example/", ""); r.StatusCode != 200 {
		t.Errorf("afterwards: %d", r.StatusCode)
	}
}

// TestASecretIsTakenOutAfterItsCredentialIsGone: what a request was sent with does not
// come back in its response, whatever the credentials are by then.
func TestASecretIsTakenOutAfterItsCredentialIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	arrived, answer := make(chan bool), make(chan bool)
	w.host("api.example", &site{reply: func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("A")
		if r.URL.Path == "/slow" {
			arrived <- true
			<-answer
			w.Header().Set("X-Echo", token)
		}
		io.WriteString(w, "it was "+token)
	}})
	var mu sync.Mutex
	current := "value-number-00"
	token := netjail.Credential{Name: "TOKEN", Hosts: []string{"api.example"}, Where: netjail.Where{Header: true},
		Value: func(context.Context) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return current, nil
		}}
	b := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"api.example"}, Protocol: egress.HTTPS}), Credentials: []netjail.Credential{token}})
	ph := b.env("TOKEN")
	c := b.client()
	var slow sync.WaitGroup
	slow.Go(func() {
		r, body := b.fetch(c, "GET", "https://api.example/slow", "", "A", ph)
		if body != "it was "+ph || r.Header.Get("X-Echo") != ph {
			t.Errorf("the box got %q, %v", body, r.Header)
		}
	})
	<-arrived
	for i := range 10 { // it rotates
		mu.Lock()
		current = fmt.Sprintf("value-number-%02d", i+1)
		mu.Unlock()
		b.fetch(c, "GET", "https://api.example/", "", "A", ph)
	}
	if err := b.jail.SetCredentials(nil); err != nil {
		t.Fatal(err)
	}
	answer <- true
	slow.Wait()
}

// TestASecretSentAfterTheResponseBeganIsTakenOut: a host may answer while it is asked.
func TestASecretSentAfterTheResponseBeganIsTakenOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := w.address()
	w.name("api.example", addr)
	cert := w.certificate("api.example")
	w.web(addr, 443, &cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		out.EnableFullDuplex()
		io.WriteString(w, "go on\n")
		out.Flush()
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	}))
	b := credentialBox(w, everywhere)
	ph := b.env("TOKEN")
	body, write := io.Pipe()
	r, err := http.NewRequest("POST", "https://api.example/", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "go on\n" {
		t.Fatalf("%q, %v", line, err)
	}
	io.WriteString(write, "the secret is "+ph)
	write.Close()
	if rest, err := io.ReadAll(lines); err != nil || string(rest) != "the secret is "+ph {
		t.Errorf("the box got %q, %v", rest, err)
	}
}
