package agentbin

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPath(t *testing.T) {
	t.Parallel()
	path, err := Path(filepath.Join(t.TempDir(), "bin"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if (path == self) == Embedded() {
		t.Errorf("%s, with the agent embedded: %t", path, Embedded())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o005 != 0o005 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestExtract(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := extract(dir, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	// Damaged by somebody, and closed to others.
	if err := os.WriteFile(first, []byte("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(first, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, err := extract(dir, []byte("one"))
		if err != nil || again != first {
			t.Fatalf("%s, %v, want %s", again, err, first)
		}
		data, err := os.ReadFile(again)
		if err != nil || string(data) != "one" {
			t.Errorf("it holds %q, %v", data, err)
		}
		if info, err := os.Stat(again); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", info, err)
		}
	}
	other, err := extract(dir, []byte("another version"))
	if err != nil || other == first {
		t.Errorf("%s, %v", other, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}
