package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// of makes a record of a kind with all that it must carry, each value made by
// value.
func of(k Kind, value func(field string) string) Record {
	r := Record{Action: k.Action, Attrs: map[string]string{}}
	for _, name := range k.Must {
		switch name {
		case "actor":
			r.Actor = value(name)
		case "request_id":
			r.Request = value(name)
		case "environment_id":
			r.Environment = value(name)
		case "session_id":
			r.Session = value(name)
		case "call_id":
			r.Call = value(name)
		case "tool":
			r.Tool = value(name)
		case "outcome":
			r.Outcome = value(name)
		case "detail":
			r.Detail = value(name)
		case "input":
			r.Input = []byte(value(name))
		case "start":
			r.Start = start
		case "end":
			r.End = start
		default:
			r.Attrs[name] = value(name)
		}
	}
	return r
}

func TestEveryKindIsHeldToWhatItMustCarry(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	seen := map[string]bool{}
	for _, k := range Catalogue {
		if seen[k.Action] || k.Means == "" || strings.HasPrefix(k.Action, ownPrefix) != k.Own {
			t.Errorf("%s: twice, without a meaning, or not the log's own", k.Action)
		}
		seen[k.Action] = true
		whole := of(k, func(string) string { return "x" })
		if k.Own {
			if err := l.Append(whole); err == nil {
				t.Errorf("%s was taken from outside", k.Action)
			}
			continue
		}
		if err := l.Append(whole); err != nil {
			t.Errorf("%s: %v", k.Action, err)
		}
		for _, name := range k.Must {
			less := k
			less.Must = nil
			for _, n := range k.Must {
				if n != name {
					less.Must = append(less.Must, n)
				}
			}
			if err := l.Append(of(less, func(string) string { return "x" })); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s without %s: %v", k.Action, name, err)
			}
		}
	}
	for _, r := range []Record{
		{}, {Action: "tool.stop"}, {Action: PlaneStop, Attrs: map[string]string{"Bad Name": "x"}},
	} {
		if err := l.Append(r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
	if s, err := VerifyFile(path); err != nil || !s.Complete {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

// secrets are credentials in the shapes that they come in, each with the part that
// must not be found.
var secrets = []struct{ text, secret string }{
	{"sk-ant-api03-AbCdEfGhIjKlMnOpQrStUv", "AbCdEfGhIjKlMnOpQrStUv"},
	{"sk-ant-oat01-AbCdEfGhIjKlMnOpQrStUv", "AbCdEfGhIjKlMnOpQrStUv"},
	{"export K=sk-ant-req-AbCdEfGhIjKlMnOpQrStUv; x", "AbCdEfGhIjKlMnOpQrStUv"},
	{"sk-proj-0123456789abcdefghij", "0123456789abcdefghij"},
	{"ghp_0123456789abcdefghijABCDEFGHIJ012345", "0123456789abcdefghij"},
	{"github_pat_11AAAAAAA0123456789abcdef", "0123456789abcdef"},
	{"glpat-0123456789abcdefghij", "0123456789abcdefghij"},
	{"xoxb-012345678901-abcdefghij", "012345678901-abcdefghij"},
	{"AKIAABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"},
	{"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIiOiIxMjM0In0"},
	{"git clone https://user:h%40rdly-s3cret@example.com/x.git", "h%40rdly-s3cret"},
	{`psql "postgres://bailey:pa'ss&w<ord@db/x"`, "pa'ss&w<ord"},
	{"curl -H 'Authorization: Bearer abcdefgh12345678.xyz'", "abcdefgh12345678.xyz"},
	{"Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="},
	{`{"password":"correct-horse"}`, "correct-horse"},
	{`{"command":"curl -d '{\"client_secret\":\"correct-horse\"}' x"}`, "correct-horse"},
	{"DB_PASSWORD=correct-horse ./run", "correct-horse"},
	{"https://example.com/?access_token=correct-horse&x=1", "correct-horse"},
	{"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "b3BlbnNzaC1rZXk"},
}

// TestNoSecretIsRecorded puts every known shape of a credential into every field of
// every kind of record and looks for it in every file, and in what sinks get.
func TestNoSecretIsRecorded(t *testing.T) {
	t.Parallel()
	for i, s := range secrets {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			p := new(place)
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := open(t, path, Options{Input: InputText, Sinks: []SinkOptions{{Sink: p, Required: true}}})
			for _, k := range Catalogue {
				if k.Own {
					continue
				}
				r := of(k, func(string) string { return s.text })
				r.Actor, r.Session, r.Detail, r.Outcome = s.text, s.text, s.text, "failed: "+s.text
				r.Input, r.Output, r.Attrs["more"] = []byte(s.text), []byte(s.text), "x "+s.text
				r.Attrs["session_token"] = s.secret
				if err := l.Append(r); err != nil {
					t.Fatalf("%s: %v", k.Action, err)
				}
			}
			if err := l.Hold(s.text, Hold{ID: "h", Reason: s.text}); err != nil {
				t.Fatal(err)
			}
			if err := l.Release(s.text, "h", s.text); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(path + "*")
			for _, file := range files {
				look(t, file, read(t, file), s.secret)
			}
			for _, line := range p.lines {
				look(t, "a sink", line.JSON, s.secret)
			}
		})
	}
}

// look searches b for a secret, as it is and as JSON has it.
func look(t *testing.T, where string, b []byte, secret string) {
	t.Helper()
	quoted, _ := json.Marshal(secret)
	for _, s := range []string{secret, string(quoted[1 : len(quoted)-1])} {
		if i := bytes.Index(b, []byte(s)); i >= 0 {
			t.Errorf("%s holds %q: …%s…", where, s, b[max(0, i-80):min(len(b), i+80)])
			return
		}
	}
}

// What stands for a secret is the same wherever the same secret stood, and can be
// found by whoever has the key.
func TestEqualValuesCanBeFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	key := l.key
	for i, text := range []string{"one", "two", "one"} {
		if err := l.Append(with(call(i), func(r *Record) { r.Input, r.Detail = []byte(text), "password="+text+text })); err != nil {
			t.Fatal(err)
		}
	}
	var calls, masks []string
	for e := range entriesOf(t, path, Filter{Digest: key.Digest([]byte("one"))}) {
		calls, masks = append(calls, e.Call), append(masks, e.Detail)
	}
	if len(calls) != 2 || masks[0] != masks[1] || !strings.HasPrefix(masks[0], "password="+maskPrefix) {
		t.Errorf("found %v with %v", calls, masks)
	}
	if (Key{1}).Digest([]byte("one")) == key.Digest([]byte("one")) {
		t.Error("digests do not depend on the key")
	}
}

// What is no credential stays as it is.
func TestOrdinaryTextStays(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"agent_01AbCdEfGhIjKlMnOpQrStUv", "sesn_011CZkZcDefGhiJklMnoPqrs", "max_tokens: 4096", "https://example.com:8443/path",
		"a task-oriented desk-based risk-assessment", "the token was refused", "apikey_01AbCd", "Basic English", "secrets: none of your business"[:7],
	} {
		if got := (masker{Key{1}}).text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzMask(f *testing.F) {
	for _, s := range secrets {
		f.Add(s.text)
	}
	m := masker{Key{1}}
	f.Fuzz(func(t *testing.T, s string) {
		once := m.text(s)
		if twice := m.text(once); !strings.Contains(s, maskPrefix) && strings.Count(twice, maskPrefix) < strings.Count(once, maskPrefix) {
			t.Errorf("%q lost a mask: %q", once, twice)
		}
	})
}
