package rootfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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

// list returns what is in dir, directories without a word on what they hold.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			found[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		found[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestOnlyWhatIsNamedOfTheHostIsSeen(t *testing.T) {
	t.Parallel()
	host, dir := t.TempDir(), filepath.Join(t.TempDir(), "seen")
	tree(t, host, map[string]string{
		"bin":                        "-> usr/bin",
		"usr/bin/sh":                 "#!",
		"lib/real":                   "a directory of its own",
		"root/.ssh/id":               "secret",
		"home/me/notes":              "secret",
		"var/log/auth":               "secret",
		"etc/shadow":                 "secret",
		"etc/passwd":                 "the host's",
		"etc/gitconfig":              "token",
		"etc/ld.so.cache":            "cache",
		"etc/localtime":              "-> /usr/share/zoneinfo/UTC",
		"etc/ssl/certs/ca.crt":       "certificate",
		"etc/ssl/certs/hash.0":       "-> ca.crt",
		"etc/ssl/private/key":        "secret",
		"etc/java-17/security/x":     "java",
		"etc/alternatives/awk":       "-> /usr/bin/mawk",
		"etc/fonts/closed/y":         "for some",
		"etc/python3.11/private.cfg": "for some",
	})
	if err := os.Chmod(filepath.Join(host, "etc/fonts/closed"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(host, "etc/python3.11/private.cfg"), 0o640); err != nil {
		t.Fatal(err)
	}
	// What an earlier worker left there is gone.
	tree(t, dir, map[string]string{"etc/stale": "x"})

	seen, err := SeeHost(dir, host)
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, dir)
	for _, made := range []string{"passwd", "group", "hosts", "hostname", "nsswitch.conf"} {
		if content := got["etc/"+made]; content == "" || strings.Contains(content, "the host's") {
			t.Errorf("etc/%s holds %q", made, content)
		}
		delete(got, "etc/"+made)
	}
	if diff := cmp.Diff(map[string]string{
		"etc/ld.so.cache":        "cache",
		"etc/localtime":          "-> /usr/share/zoneinfo/UTC",
		"etc/ssl/certs/ca.crt":   "certificate",
		"etc/ssl/certs/hash.0":   "-> ca.crt",
		"etc/java-17/security/x": "java",
		"etc/alternatives/awk":   "-> /usr/bin/mawk",
	}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"bin": "usr/bin"}, seen.Links); diff != "" {
		t.Error(diff)
	}
	var mounts []string
	for _, m := range seen.Mounts {
		mounts = append(mounts, m.Source+" "+m.Target)
	}
	if diff := cmp.Diff([]string{dir + "/etc /etc", host + "/usr /usr", host + "/lib /lib"}, mounts); diff != "" {
		t.Error(diff)
	}

	root := filepath.Join(t.TempDir(), "root")
	if err := seen.MakeRoot(root, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"bin": "-> usr/bin"}, list(t, root)); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(filepath.Join(root, "tmp")); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&fs.ModeSticky == 0 {
		t.Errorf("tmp: %v, %v", info, err)
	}
}

func TestReadableWhateverTheUmask(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree(t, dir, map[string]string{"a/b/file": "", "a/link": "-> /nowhere"})
	for name, mode := range map[string]fs.FileMode{"a/b/file": 0o600, "a/b": 0o700, "a": 0o700} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := readable(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"a/b/file": 0o644, "a/b": 0o755, "a": 0o755} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info, err, want)
		}
	}
}
