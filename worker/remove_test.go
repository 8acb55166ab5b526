package worker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRemoveTree(t *testing.T) {
	t.Parallel()
	mustDo := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		make func(dir, outside string)
	}{
		{"empty", func(string, string) {}},
		{"files and directories", func(dir, _ string) {
			mustDo(os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700))
			mustDo(os.WriteFile(filepath.Join(dir, "a/b/c/file"), nil, 0))
			mustDo(os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o400))
		}},
		{"directories that forbid it", func(dir, _ string) {
			mustDo(os.MkdirAll(filepath.Join(dir, "a/b"), 0o700))
			mustDo(os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o600))
			mustDo(os.Chmod(filepath.Join(dir, "a/b"), 0))
			mustDo(os.Chmod(filepath.Join(dir, "a"), 0o500))
			mustDo(os.Chmod(dir, 0))
		}},
		{"links", func(dir, outside string) {
			mustDo(os.Symlink(outside, filepath.Join(dir, "link")))
			mustDo(os.MkdirAll(filepath.Join(dir, "a"), 0o700))
			mustDo(os.Symlink(outside, filepath.Join(dir, "a/link")))
			mustDo(os.Symlink("nowhere", filepath.Join(dir, "a/dangling")))
		}},
		{"names of its own making", func(dir, _ string) {
			mustDo(os.MkdirAll(filepath.Join(dir, ".removed-1/.removed-2/.removed-1/x"), 0o700))
			mustDo(os.MkdirAll(filepath.Join(dir, ".removed-2/y/z"), 0o700))
		}},
		{"deeper than a path can be", func(dir, _ string) {
			at, err := os.OpenRoot(dir)
			mustDo(err)
			name := strings.Repeat("d", 200)
			for range 3000 {
				mustDo(at.Mkdir(name, 0o700))
				below, err := at.OpenRoot(name)
				mustDo(err)
				mustDo(at.Close())
				at = below
			}
			mustDo(at.Close())
		}},
		{"many", func(dir, _ string) {
			for i := range 2500 {
				mustDo(os.WriteFile(filepath.Join(dir, strings.Repeat("f", 1+i%200)+string(rune('a'+i%26))+strings.Repeat("g", i/200)), nil, 0o600))
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			outside := t.TempDir()
			mustDo(os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600))
			dir := filepath.Join(t.TempDir(), "tree")
			mustDo(os.Mkdir(dir, 0o700))
			tt.make(dir, outside)
			if err := removeTree(dir); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
			if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
				t.Error(err)
			}
		})
	}
	if err := removeTree(filepath.Join(t.TempDir(), "nothing")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}

// TestRemoveTreeIsNoLink: a link in the place of the folder is no folder.
func TestRemoveTreeIsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	target := filepath.Join(dir, "target")
	if err := errors.Join(os.Mkdir(target, 0o700), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(link); err == nil {
		t.Error("a link was taken for a folder")
	}
	if _, err := os.Stat(target); err != nil {
		t.Error(err)
	}
}
