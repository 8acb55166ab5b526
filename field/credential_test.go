package field

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
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
		{"file that is a pipe", Source{File: filepath.Join(dir, "pipe")}, "", "is no regular file"},
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

// TestASecretThatFailsIsNotAskedForEachTime: a box cannot have a command run as often as
// it makes requests.
func TestASecretThatFailsIsNotAskedForEachTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := &secret{from: Source{Env: "A"}, refresh: time.Minute, env: func(string) (string, bool) {
			asked++
			return "", false
		}}
		for range 100 {
			if got, err := s.value(t.Context()); err == nil || got != "" {
				t.Fatalf("value %q, %v", got, err)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(retryAfter)
		if _, err := s.value(t.Context()); err == nil || asked != 2 {
			t.Errorf("after a while: %v, asked %d times", err, asked)
		}
	})
}

// TestWhatIsAtHand: no command runs before its value is used.
func TestWhatIsAtHand(t *testing.T) {
	t.Parallel()
	bound, _ := bind([]Credential{
		{Name: "FILE", From: Source{File: "/x"}}, {Name: "VARIABLE", From: Source{Env: "X"}}, {Name: "COMMAND", From: Source{Command: []string{"x"}}},
	}, nil)
	for _, c := range bound {
		if c.AtHand != (c.Name != "COMMAND") {
			t.Errorf("%s: at hand %t", c.Name, c.AtHand)
		}
	}
}

// TestASlowSecretHoldsNobodyUp: whoever asks for it can leave, and it is fetched once for
// all who stay.
func TestASlowSecretHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := &secret{from: Source{Env: "A"}, refresh: time.Minute, env: func(string) (string, bool) {
			asked++
			time.Sleep(10 * time.Second)
			return "hunter2hunter2", true
		}}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got := make(chan string)
		for range 3 {
			go func() {
				value, err := s.value(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- value
			}()
		}
		if _, err := s.value(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("whoever leaves got %v after %s", err, time.Since(began))
		}
		for range 3 {
			if value := <-got; value != "hunter2hunter2" {
				t.Errorf("value %q", value)
			}
		}
		if asked != 1 || time.Since(began) != 10*time.Second {
			t.Errorf("asked %d times, %s", asked, time.Since(began))
		}
	})
}
