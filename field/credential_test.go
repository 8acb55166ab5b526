package field

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSecretSources(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"GOOD": "hunter2hunter2", "SHORT": "abc", "LINES": "hunter2\nhunter2"}[name]
		return v, ok
	}
	tests := []struct {
		name string
		from Source
		want string // the value
		err  string
	}{
		{"variable", Source{Env: "GOOD"}, "hunter2hunter2", ""},
		{"variable that is not set", Source{Env: "NONE"}, "", "the variable NONE is not set"},
		{"variable that is too short", Source{Env: "SHORT"}, "", "holds 3 bytes"},
		{"variable of several lines", Source{Env: "LINES"}, "", "more than one line"},
		{"file", Source{File: file("good", " hunter2hunter2\n")}, "hunter2hunter2", ""},
		{"file that is not there", Source{File: filepath.Join(dir, "none")}, "", "no such file"},
		{"file that is too long", Source{File: file("long", strings.Repeat("hunter2", 5000))}, "", "a credential has"},
		{"command", Source{Command: []string{"/bin/sh", "-c", "echo hunter2hunter2; echo noise >&2"}}, "hunter2hunter2", ""},
		{"command that fails", Source{Command: []string{"/bin/sh", "-c", "echo hunter2hunter2; exit 3"}}, "", "exit status 3"},
		{"command that is not there", Source{Command: []string{"/no/such"}}, "", "no such file"},
		{"command without an end of words", Source{Command: []string{"/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"}}, "", "a credential has"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &secret{from: tt.from, env: env, refresh: time.Minute}
			got, err := s.value(t.Context())
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("value %q, %v; want %q, …%s…", got, err, tt.want, tt.err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows it: %v", err)
			}
		})
	}
}

// TestSecretIsKeptForAWhile: not longer than it may be, unless its source fails.
func TestSecretIsKeptForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now, asked := "first-value", 0
		s := &secret{from: Source{Env: "A"}, refresh: time.Minute, env: func(string) (string, bool) {
			asked++
			return now, now != ""
		}}
		want := func(value string, times int) {
			t.Helper()
			if got, err := s.value(context.Background()); got != value || err != nil || asked != times {
				t.Errorf("value %q, %v, asked %d times; want %q after %d", got, err, asked, value, times)
			}
		}
		want("first-value", 1)
		now = "second-value"
		want("first-value", 1)
		time.Sleep(time.Minute)
		want("second-value", 2)
		now = ""
		time.Sleep(5 * time.Minute)
		want("second-value", 3)
		time.Sleep(staleMax)
		if got, err := s.value(context.Background()); err == nil {
			t.Errorf("a value that could not be renewed for long: %q", got)
		}
	})
}
