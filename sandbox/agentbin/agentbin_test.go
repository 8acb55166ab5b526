package agentbin

import (
	"os"
	"path/filepath"
	"strings"
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
	if (path == self) != (agent == "") {
		t.Errorf("%s, with an agent of %d bytes carried along", path, len(agent))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o005 != 0o005 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestLauncher(t *testing.T) {
	t.Parallel()
	path, err := Launcher(filepath.Join(t.TempDir(), "bin"))
	if err != nil {
		t.Fatal(err)
	}
	if (path == "") != (launcher == "") {
		t.Errorf("%q, with a launcher of %d bytes carried along", path, len(launcher))
	}
}

func TestEngine(t *testing.T) {
	t.Parallel()
	path, err := Engine(filepath.Join(t.TempDir(), "bin"))
	if err != nil {
		t.Fatal(err)
	}
	if (path == "") != (engine == "") {
		t.Errorf("%q, with an engine of %d bytes carried along", path, len(engine))
	}
}

func TestExtract(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// More than is compared at a time.
	program := strings.Repeat("one", 1<<20)
	first, err := extract(dir, "p", program)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []string{program, "", "two", program[:len(program)-1], program + "x", "X" + program[1:]} {
		// And closed to others.
		if err := os.WriteFile(first, []byte(damage), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(first, 0o700); err != nil {
			t.Fatal(err)
		}
		again, err := extract(dir, "p", program)
		if err != nil || again != first {
			t.Fatalf("%s, %v, want %s", again, err, first)
		}
		if data, err := os.ReadFile(again); err != nil || string(data) != program {
			t.Errorf("%.20q was left as it was, %v", damage, err)
		}
		if info, err := os.Stat(again); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", info, err)
		}
	}
	if _, err := extract(dir, "q", program); err != nil {
		t.Error(err)
	}
	next, err := extract(dir, "p", "another version")
	if err != nil || next == first {
		t.Errorf("%s, %v", next, err)
	}
	// The old version is gone, the other program is not.
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}
