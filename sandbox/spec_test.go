package sandbox_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	good := func() sandbox.Spec {
		return sandbox.Spec{
			ID: "a-1", Command: []string{"/bin/true"}, WorkDir: dir, Agent: file,
			ReadOnly: map[string]string{"/mnt/x": dir, sandbox.WorkPath + "/skills": dir},
			Env:      []string{"A=", "B=c=d"},
		}
	}
	if err := good().Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*sandbox.Spec){
		"no id":                func(s *sandbox.Spec) { s.ID = "" },
		"an upper-case id":     func(s *sandbox.Spec) { s.ID = "A" },
		"a long id":            func(s *sandbox.Spec) { s.ID = strings.Repeat("a", 65) },
		"no command":           func(s *sandbox.Spec) { s.Command = nil },
		"a relative command":   func(s *sandbox.Spec) { s.Command[0] = "true" },
		"no folder":            func(s *sandbox.Spec) { s.WorkDir = "" },
		"a relative folder":    func(s *sandbox.Spec) { s.WorkDir = "." },
		"a file for a folder":  func(s *sandbox.Spec) { s.WorkDir = file },
		"a missing agent":      func(s *sandbox.Spec) { s.Agent = file + "x" },
		"a directory as agent": func(s *sandbox.Spec) { s.Agent = dir },
		"a negative limit":     func(s *sandbox.Spec) { s.Limits.Lifetime = -time.Second },
		"a mount over the top": func(s *sandbox.Spec) { s.ReadOnly["/"] = dir },
		"a mount over work":    func(s *sandbox.Spec) { s.ReadOnly[sandbox.WorkPath] = dir },
		"an unclean mount":     func(s *sandbox.Spec) { s.ReadOnly["/mnt/../etc"] = dir },
		"a mounted file":       func(s *sandbox.Spec) { s.ReadOnly["/mnt/y"] = file },
		"a variable of no =":   func(s *sandbox.Spec) { s.Env = append(s.Env, "C") },
		"a variable of no key": func(s *sandbox.Spec) { s.Env = append(s.Env, "=c") },
		"a variable with NUL":  func(s *sandbox.Spec) { s.Env = append(s.Env, "C=\x00") },
	} {
		s := good()
		spoil(&s)
		if s.Validate() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestClaims(t *testing.T) {
	t.Parallel()
	var c sandbox.Claims
	one := sandbox.Spec{ID: "one", WorkDir: "/a"}
	if err := c.Take(one); err != nil {
		t.Fatal(err)
	}
	for _, other := range []sandbox.Spec{one, {ID: "one", WorkDir: "/b"}, {ID: "two", WorkDir: "/a/"}} {
		if c.Take(other) == nil {
			t.Errorf("%+v is free", other)
		}
	}
	if !c.Holds("one") || c.Holds("two") {
		t.Error("who holds what is wrong")
	}
	c.Give("one")
	if err := c.Take(sandbox.Spec{ID: "two", WorkDir: "/a"}); err != nil {
		t.Error(err)
	}
}

func TestStdio(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `read x; echo "got $x"; seq 2000 >&2; printf 'last words\n\n' >&2`)
	s, err := sandbox.NewStdio(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s.Started(&log)
	stdin, stdout := s.Streams()
	if _, err := io.WriteString(stdin, "it\n"); err != nil {
		t.Error(err)
	}
	out, err := io.ReadAll(stdout)
	if diff := cmp.Diff("got it\n", string(out)); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if line := s.LastLine(); line != "last words" {
		t.Errorf("last line %q", line)
	}
	if !strings.HasPrefix(log.String(), "1\n2\n") || !strings.HasSuffix(log.String(), "2000\nlast words\n\n") {
		t.Errorf("%d bytes of errors", log.Len())
	}
}
