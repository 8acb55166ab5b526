package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
)

func TestRemedies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if diff := cmp.Diff([]string{"run as root"}, namespaceRemedies(dir, false)); diff != "" {
		t.Error(diff)
	}
	tree(t, dir, map[string]string{
		"user/max_user_namespaces": "0\n", "kernel/unprivileged_userns_clone": "0\n",
		"kernel/apparmor_restrict_unprivileged_userns": "1\n",
	})
	if diff := cmp.Diff([]string{"sysctl user.max_user_namespaces=10000"}, namespaceRemedies(dir, true)); diff != "" {
		t.Error(diff)
	}
	got := strings.Join(namespaceRemedies(dir, false), "; ")
	for _, want := range []string{"user.max_user_namespaces=", "unprivileged_userns_clone=1", "apparmor_restrict_unprivileged_userns=0", "run as root"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not name %s", got, want)
		}
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]string{
		`{"msg":"first","level":"error"}` + "\n" + `{"msg":"last","level":"error"}` + "\n": "last",
		"plain words\n": "plain words",
		"\xff\n":        "?",
		"":              "",
	} {
		if got := message([]byte(log)); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
}

func TestMapped(t *testing.T) {
	t.Parallel()
	for ids, want := range map[string]bool{
		"         0          0 4294967295\n":  true,
		"0 1000 1\n":                          false,
		"0 1000 1\n1 100000 65535\n":          true,
		fmt.Sprintf("%d 5 1\n", sandbox.User): true,
		fmt.Sprintf("0 5 %d\n", sandbox.User): false,
		"":                                    false, "x y z\n": false,
	} {
		if got := mapped(ids, sandbox.User); got != want {
			t.Errorf("%q: %t", ids, got)
		}
	}
}

// tree writes files, or links where the content begins with "-> ".
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
