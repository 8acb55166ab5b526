package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// TestScripts plays testdata/script. Each file is a story of requests against a
// fresh server on SQLite, one block each:
//
//	POST /v1/agents            the request; default headers and an API key are added
//	as $worker                 send this as Authorization: Bearer instead
//	Anthropic-Beta:            a header; without a value it is left out
//	{"name": "x"}              the body
//	-> 200                     the status
//	X-Should-Retry: false      a header of the answer
//	{"id": "*"}                a part of its JSON (see [within])
//	save agent = id            keeps a field, later $agent
//
// TURN $session followed by events, one a line, writes them as the agent loop
// would.
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f := newFixture(t, Config{})
			s := &script{fixture: f, vars: map[string]string{"admin": f.key}}
			for n, block := range blocks(string(text)) {
				s.play(t, fmt.Sprintf("%s: block %d, line %d", file, n+1, block.line), block.lines)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// A fixture is a server over a real control on SQLite.
type fixture struct {
	control *control.Control
	server  *Server
	url     string
	key     string // of an admin
}

func newFixture(tb testing.TB, cfg Config) *fixture {
	tb.Helper()
	dir := tb.TempDir()
	keys, err := vault.New(vault.Options{Key: "file:" + filepath.Join(dir, "vault.key")})
	if err != nil {
		tb.Fatal(err)
	}
	ctl, err := control.New(tb.Context(), "sqlite:"+filepath.Join(dir, "test.db"), store.Options{}, control.Config{Vault: keys, Issuers: plainIssuers})
	if err != nil {
		tb.Fatal(err)
	}
	key, ok, err := ctl.Bootstrap(tb.Context(), func(string) error { return nil })
	if err != nil || !ok {
		tb.Fatalf("bootstrap: %v, %v", ok, err)
	}
	cfg.Control = ctl
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(tb.Output(), nil))
	}
	s := New(cfg)
	hs := httptest.NewUnstartedServer(s)
	hs.Config.RegisterOnShutdown(s.EndStreams)
	hs.Start()
	tb.Cleanup(func() {
		s.EndStreams()
		hs.Close()
		if err := ctl.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &fixture{control: ctl, server: s, url: hs.URL, key: key.Secret}
}

// request returns a request with the headers of an ordinary client.
func (f *fixture) request(tb testing.TB, method, target, body string) *http.Request {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, f.url+target, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("X-Api-Key", f.key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Anthropic-Beta", betaAgents+","+betaTunnels)
	return req
}

type block struct {
	line  int
	lines []string
}

func blocks(text string) []block {
	var out []block
	open := false
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " ")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			open = false
		case !open:
			out = append(out, block{n + 1, []string{line}})
			open = true
		default:
			b := &out[len(out)-1]
			b.lines = append(b.lines, line)
		}
	}
	return out
}

type script struct {
	*fixture
	vars map[string]string
}

var (
	varRE    = regexp.MustCompile(`\$[a-z_]+`)
	headerRE = regexp.MustCompile(`^([A-Z][A-Za-z-]*):(?: (.*))?$`)
)

func (s *script) expand(t *testing.T, line string) string {
	return varRE.ReplaceAllStringFunc(line, func(name string) string {
		v, ok := s.vars[name[1:]]
		if !ok {
			t.Fatalf("%s is not saved yet", name)
		}
		return v
	})
}

func (s *script) play(t *testing.T, where string, lines []string) {
	t.Helper()
	for i := range lines {
		if !strings.HasPrefix(lines[i], "save ") {
			lines[i] = s.expand(t, lines[i])
		}
	}
	method, target, _ := strings.Cut(lines[0], " ")
	if method == "TURN" {
		s.turn(t, api.SessionID(target), lines[1:])
		return
	}
	arrow := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "-> ") })
	if arrow < 0 {
		t.Fatalf("%s: no -> line", where)
	}
	req := s.request(t, method, target, "")
	var body strings.Builder
	for _, line := range lines[1:arrow] {
		if as, ok := strings.CutPrefix(line, "as "); ok {
			req.Header.Del("X-Api-Key")
			if as != "nobody" {
				req.Header.Set("Authorization", "Bearer "+as)
			}
		} else if m := headerRE.FindStringSubmatch(line); m != nil && m[2] == "" {
			req.Header.Del(m[1])
		} else if m != nil {
			req.Header.Add(m[1], m[2])
			if m[1] == "Anthropic-Version" {
				req.Header.Set(m[1], m[2])
			}
		} else {
			body.WriteString(line + "\n")
		}
	}
	req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body.String())), int64(body.Len())

	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s\n%s\ngot %s\n%s", where, lines[0], fmt.Sprintf(format, args...), res.Status, data)
	}
	if want := strings.TrimPrefix(lines[arrow], "-> "); want != strconv.Itoa(res.StatusCode) {
		fail("want status %s", want)
		return
	}
	s.checkAlways(t, res, data, fail)

	var got any
	if err := json.Unmarshal(data, &got); err != nil {
		fail("the answer is not JSON: %v", err)
		return
	}
	var fragment strings.Builder
	for _, line := range lines[arrow+1:] {
		if save, ok := strings.CutPrefix(line, "save "); ok {
			name, field, _ := strings.Cut(save, " = ")
			v, err := lookup(got, field)
			if err != nil {
				fail("%v", err)
				return
			}
			s.vars[name] = fmt.Sprint(v)
		} else if m := headerRE.FindStringSubmatch(line); m != nil {
			if h := res.Header.Get(m[1]); h != m[2] {
				fail("want %s: %q, got %q", m[1], m[2], h)
			}
		} else {
			fragment.WriteString(line + "\n")
		}
	}
	if fragment.Len() == 0 {
		return
	}
	var want any
	if err := json.Unmarshal([]byte(fragment.String()), &want); err != nil {
		t.Fatalf("%s: the expectation is not JSON: %v", where, err)
	}
	if err := within(want, got, "answer"); err != nil {
		fail("%v", err)
	}
}

// checkAlways checks what holds for every answer.
func (s *script) checkAlways(t *testing.T, res *http.Response, data []byte, fail func(string, ...any)) {
	t.Helper()
	id := res.Header.Get("Request-Id")
	if !strings.HasPrefix(id, api.PrefixRequest) {
		fail("request-id is %q", id)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/json" {
		fail("content-type is %q", ct)
	}
	if res.StatusCode == http.StatusOK {
		return
	}
	var body api.ErrorBody
	if err := json.Unmarshal(data, &body); err != nil || body.Type != "error" || body.Error.Type == "" || body.Error.Message == "" {
		fail("not an error envelope: %v", err)
	}
	if string(body.RequestID) != id {
		fail("the envelope names request %q", body.RequestID)
	}
}

// turn writes events as one turn of the loop. {"take": "ID"} takes a queued one.
func (s *script) turn(t *testing.T, id api.SessionID, lines []string) {
	t.Helper()
	batch := control.Batch{Release: true}
	for _, line := range lines {
		var head struct {
			Type api.EventType
			Take api.EventID
		}
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatalf("TURN: %v in %s", err, line)
		}
		if head.Take != "" {
			batch.Append = append(batch.Append, api.Draft{ID: head.Take})
			continue
		}
		body, err := api.DecodeBody(head.Type, []byte(line))
		if err != nil {
			t.Fatal(err)
		}
		batch.Append = append(batch.Append, api.Draft{Body: body})
	}
	s.write(t, id, batch)
}

// write commits a batch as the loop would, which needs the session to be due.
func (f *fixture) write(tb testing.TB, id api.SessionID, batch control.Batch) {
	tb.Helper()
	ran := false
	_, err := f.control.ClaimTurn(context.WithoutCancel(tb.Context()), id, "test", nil, func(control.View) (control.Batch, error) {
		ran = true
		return batch, nil
	})
	if err != nil || !ran {
		tb.Fatalf("the turn of %s: ran %v, %v", id, ran, err)
	}
}

// within reports how got differs from the part of it that want shows. Objects may
// have more fields; lists must have the same length. "*" is anything but null, and
// "~text" a string that contains text.
func within(want, got any, at string) error {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: want an object, got %v", at, got)
		}
		for k, v := range w {
			gv, ok := g[k]
			if !ok {
				return fmt.Errorf("%s.%s is missing", at, k)
			}
			if err := within(v, gv, at+"."+k); err != nil {
				return err
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Errorf("%s: want a list of %d, got %v", at, len(w), got)
		}
		for i := range w {
			if err := within(w[i], g[i], fmt.Sprintf("%s.%d", at, i)); err != nil {
				return err
			}
		}
	case string:
		text, _ := got.(string)
		part, contains := strings.CutPrefix(w, "~")
		if w == "*" && got != nil || contains && strings.Contains(text, part) || text == w && got != nil {
			return nil
		}
		return fmt.Errorf("%s: want %q, got %v", at, w, got)
	default:
		if want != got {
			return fmt.Errorf("%s: want %v, got %v", at, want, got)
		}
	}
	return nil
}

// lookup returns the field at a dotted path.
func lookup(v any, path string) (any, error) {
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(x) {
				return nil, fmt.Errorf("no element %s in %v", name, x)
			}
			v = x[i]
		}
	}
	if v == nil {
		return nil, fmt.Errorf("the answer has no %s", path)
	}
	return v, nil
}
