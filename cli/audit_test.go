package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/audit"
)

// auditRecord makes an audit record of calls of two sessions.
func auditRecord(t *testing.T) (path string, log *audit.Log) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.jsonl")
	at := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	log, err := audit.Open(path, audit.Options{Clock: func() time.Time { at = at.Add(time.Minute); return at }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	for i := range 4 {
		r := audit.Record{
			Actor: "worker-1", Action: audit.ToolStart, Session: fmt.Sprintf("sesn_%d", i%2), Call: fmt.Sprint("sevt_", i),
			Tool: "bash", Input: []byte("input\n"), Start: at,
		}
		if err := log.Append(r); err != nil {
			t.Fatal(err)
		}
		r.Action, r.Input, r.End, r.Outcome = audit.ToolEnd, nil, at, []string{"ok", "error"}[i%2]
		if err := log.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	return path, log
}

func TestAuditShow(t *testing.T) {
	t.Parallel()
	path, log := auditRecord(t)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	input := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(input, []byte("input\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		want []string // numbers of the records
	}{
		"all":       {nil, []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}},
		"session":   {[]string{"--session", "sesn_1"}, []string{"4", "5", "8", "9"}},
		"outcome":   {[]string{"--outcome", "error"}, []string{"5", "9"}},
		"action":    {[]string{"--action", "tool.end,audit."}, []string{"1", "3", "5", "7", "9", "10"}},
		"time":      {[]string{"--since", "2026-11-21T09:03:00Z", "--until", "2026-11-21T09:05:00Z"}, []string{"3", "4"}},
		"last":      {[]string{"--last", "2"}, []string{"9", "10"}},
		"input":     {[]string{"--input", input}, []string{"2", "4", "6", "8"}},
		"last of 1": {[]string{"--call", "sevt_3", "--last", "1"}, []string{"9"}},
	} {
		var got []string
		out := ok(t, nil, append([]string{"audit", "show", path}, tt.args...)...)
		for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
			got = append(got, strings.Fields(line)[0])
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s\n%s", name, diff, out)
		}
	}
	out := ok(t, nil, "audit", "show", path, "--call", "sevt_1", "--wide")
	for _, want := range []string{"tool.start", "worker-1", "bash sesn_1 sevt_1", "error"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	var r testRun
	if code := r.run(t.Context(), "audit", "show", path, "--action", "nonsense"); code != 2 {
		t.Errorf("an action that is none: exit status %d", code)
	}
	if text := r.stderr.String(); !strings.Contains(text, "audit.hold, ") || !strings.Contains(text, "tool.start") {
		t.Errorf("the actions that there are are not said: %s", text)
	}
	if code := r.run(t.Context(), "audit", "show", path, "--since", "yesterday"); code != 2 {
		t.Errorf("a time that is none: exit status %d", code)
	}
}

func TestAuditExport(t *testing.T) {
	t.Parallel()
	path, log := auditRecord(t)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	out := ok(t, nil, "audit", "export", path, "--session", "sesn_0", "--action", "tool.end")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 {
		t.Fatalf("exported\n%s", out)
	}
	for _, line := range lines {
		var e audit.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Action != audit.ToolEnd || e.Session != "sesn_0" {
			t.Errorf("%s: %v", line, err)
		}
	}
	var r testRun
	if code := r.run(t.Context(), "audit", "export", path, "--to", "otlp+http://127.0.0.1:1"); code != 7 ||
		!strings.Contains(r.stderr.String(), "is what --to names running") || strings.Contains(r.stderr.String(), "bailey serve") {
		t.Errorf("nobody takes them: exit status %d: %s", code, &r.stderr)
	}
	copied := filepath.Join(t.TempDir(), "copy.jsonl")
	ok(t, nil, "audit", "export", path, "--to", "file:"+copied)
	if s := object[audit.Summary](t, nil, "audit", "verify", copied, "--key", path+".key", "--head", path+".head"); !s.Complete || s.Records != 10 {
		t.Errorf("the copy: %+v", s)
	}
	r = testRun{}
	if code := r.run(t.Context(), "audit", "export", path, "--to", "carrier-pigeon:"); code != 2 {
		t.Errorf("exit status %d", code)
	}
}

// An auditor has a copy of the record, the public key and a checkpoint from before.
func TestAuditVerifyWithThePublicKey(t *testing.T) {
	t.Parallel()
	path, log := auditRecord(t)
	elsewhere := t.TempDir()
	keep := func(name, text string) string {
		file := filepath.Join(elsewhere, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	public := keep("audit.pub", ok(t, nil, "audit", "keys", path, "--public"))
	held := keep("held.json", ok(t, nil, "audit", "checkpoint", path, "--sign"))
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := keep("copy.jsonl", string(data))
	verify := []string{"audit", "verify", copied, "--public-key", public, "--checkpoint", held}
	if out := ok(t, nil, verify...); !strings.Contains(out, "intact and complete") || !strings.Contains(out, "a checkpoint kept elsewhere") {
		t.Errorf("verify =\n%s", out)
	}
	keep("copy.jsonl", string(data[:strings.Index(string(data), `{"seq":9,`)]))
	var r testRun
	if code := r.run(t.Context(), verify...); code != 9 || !strings.Contains(r.stderr.String(), "was cut off") {
		t.Errorf("a record that was cut: exit status %d: %s", code, &r.stderr)
	}
	if code := r.run(t.Context(), "audit", "verify", copied); code != 1 || !strings.Contains(r.stderr.String(), "give --key or --public-key") {
		t.Errorf("without a key: exit status %d: %s", code, &r.stderr)
	}
}

// Holds work whether or not a process writes the record.
func TestAuditHoldAndRelease(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			t.Parallel()
			path, log := auditRecord(t)
			if !running {
				if err := log.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if out := ok(t, nil, "audit", "hold", path, "--id", "case-17", "--reason", "a letter", "--session", "sesn_1"); out != "held: case-17\n" {
				t.Errorf("hold: %q", out)
			}
			// A mistyped session was held as if it were one.
			var r testRun
			if code := r.run(t.Context(), "audit", "hold", path, "--id", "case-18", "--session", "sesn_1", "--session", "sesn_none"); code != 0 ||
				!strings.Contains(r.stderr.String(), "warning: nothing is on record of sesn_none so far") {
				t.Errorf("hold of a session that is not on record: exit status %d: %s", code, &r.stderr)
			}
			ok(t, nil, "audit", "release", path, "case-18")
			r = testRun{}
			if code := r.run(t.Context(), "audit", "hold", path, "--id", "case-17", "--reason", "a letter", "--session", "sesn_1"); code != 0 || r.stderr.Len() > 0 {
				t.Errorf("hold of one that is: exit status %d: %s", code, &r.stderr)
			}
			r = testRun{}
			if code := r.run(t.Context(), "audit", "release", path, "none-such"); code != 1 || !strings.Contains(r.stderr.String(), "there is no hold") {
				t.Errorf("release of none: exit status %d: %s", code, &r.stderr)
			}
			ok(t, nil, "audit", "release", path, "case-17", "--reason", "closed")
			for _, bad := range [][]string{{}, {"--all", "--session", "x"}, {"--session", "a b"}, {"--from", "then"}} {
				if code := r.run(t.Context(), append([]string{"audit", "hold", path}, bad...)...); code != 2 {
					t.Errorf("%v: exit status %d", bad, code)
				}
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			out := ok(t, nil, "audit", "show", path, "--action", "audit.hold,audit.release", "--wide")
			if !strings.Contains(out, "case-17 a letter sesn_1") || !strings.Contains(out, "closed") || strings.Count(out, fmt.Sprintf("uid %d", os.Getuid())) != 5 {
				t.Errorf("the record:\n%s", out)
			}
			if s := object[audit.Summary](t, nil, "audit", "verify", path); !s.Complete {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Keys are changed whether or not a process writes the record, and whoever has the first
// public key verifies all of it.
func TestAuditRotateKey(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			t.Parallel()
			path, log := auditRecord(t)
			first := filepath.Join(t.TempDir(), "first.pub")
			if err := os.WriteFile(first, []byte(ok(t, nil, "audit", "keys", path, "--public")), 0o600); err != nil {
				t.Fatal(err)
			}
			if !running {
				if err := log.Close(); err != nil {
					t.Fatal(err)
				}
			}
			out := ok(t, nil, "audit", "rotate-key", path, "--reason", "a new year")
			now := ok(t, nil, "audit", "keys", path)
			if id := strings.TrimSpace(out[strings.LastIndex(out, "is ")+3:]); !strings.Contains(now, id) {
				t.Errorf("%q, and the keys are\n%s", out, now)
			}
			held := filepath.Join(t.TempDir(), "held.json")
			if err := os.WriteFile(held, []byte(ok(t, nil, "audit", "checkpoint", path, "--sign")), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			for _, with := range [][]string{{}, {"--public-key", first, "--checkpoint", held}, {"--public-key", path + ".pub", "--checkpoint", held}} {
				if out := ok(t, nil, append([]string{"audit", "verify", path}, with...)...); !strings.Contains(out, "1 times, each time signed with the key before") || !strings.Contains(out, "intact and complete") {
					t.Errorf("verify %v:\n%s", with, out)
				}
			}
			if out := ok(t, nil, "audit", "show", path, "--action", "audit.rekey", "--wide"); !strings.Contains(out, "a new year") {
				t.Errorf("the record:\n%s", out)
			}
		})
	}
}
