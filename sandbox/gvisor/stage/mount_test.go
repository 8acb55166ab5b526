package stage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A root's own links are followed within it, and nowhere else.
func TestStubsStayWithinTheRoot(t *testing.T) {
	t.Chdir(t.TempDir())
	outside := t.TempDir()
	for _, dir := range []string{upperDir, "low/etc/inner", "low/var/real", "lower/opt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod("low/etc/inner", 0o777); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"low/run": "var/real", "low/up": "../../../../../..", "low/out": outside, "low/abs": "/etc", "low/loop": "loop",
		"low/var/back": "../etc/inner/..", "lower/etc": "opt",
	} {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("low/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := room{lower: []string{"low", "lower"}}
	for path, want := range map[string]string{
		"/":                "upper",
		"/etc":             "upper/etc",
		"/etc/inner/new":   "upper/etc/inner/new",
		"/run/x":           "upper/var/real/x",
		"/abs/inner":       "upper/etc/inner",
		"/var/back/new":    "upper/etc/new",
		"/up/etc":          "upper/etc",
		"/out/x":           "upper" + outside + "/x",
		"/opt/../../../..": "upper",
		"/opt":             "upper/opt",
	} {
		got, err := r.directory(path)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", path, got, err, want)
		}
		if info, err := os.Lstat(want); err != nil || !info.IsDir() {
			t.Errorf("%s: %v, %v", want, info, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there are %v, %v", left, err)
	}
	if info, err := os.Stat("upper/etc/inner"); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for path, want := range map[string]error{"/loop/x": syscall.ELOOP, "/file/x": syscall.ENOTDIR} {
		if got, err := r.directory(path); !errors.Is(err, want) {
			t.Errorf("%s: %s, %v, want %v", path, got, err, want)
		}
	}
	// What is there already stays.
	s := Stage{Stubs: []string{"/etc/resolv.conf", "/run/made/here"}}
	if err := s.furnish(r.lower); err != nil {
		t.Fatal(err)
	}
	var files []string
	if err := filepath.WalkDir(upperDir, func(name string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(files, " "); got != "upper/etc/resolv.conf upper/var/real/made/here" {
		t.Errorf("made %s", got)
	}
}
