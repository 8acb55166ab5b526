package sandboxtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
)

// Files of the host lie in the place of a box's own, and cannot be changed from there.
func (s suite) files(t *testing.T) {
	s.needIsolation(t)
	spec := s.spec(t)
	spec.Files = make(map[string]string)
	dir := t.TempDir()
	for i, target := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/of-the-box.pem", "/opt/deep/in/nowhere", sandbox.WorkPath + "/.config/given"} {
		source := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(source, []byte("file "+target), 0o644); err != nil {
			t.Fatal(err)
		}
		spec.Files[target] = source
	}
	_, client := s.dial(t, spec)
	for target, source := range spec.Files {
		if got := bash(t, client, "cat "+target); got != "file "+target {
			t.Errorf("%s holds %q", target, got)
		}
		for _, command := range []string{"echo x >" + target, "echo x >>" + target, "rm -f " + target, "mv " + target + " " + target + ".old", "chmod 777 " + target} {
			if text, failed := call(t, client, "bash", map[string]any{"command": command}); !failed {
				t.Errorf("%s: %s", command, text)
			}
		}
		if got, err := os.ReadFile(source); err != nil || string(got) != "file "+target {
			t.Errorf("on the host %s holds %q, %v", source, got, err)
		}
	}
	// What lies beside them is what was there.
	if got := bash(t, client, "ls /etc/ssl/certs | head -3; cat /etc/passwd"); !strings.Contains(got, "agent") {
		t.Errorf("beside them: %s", got)
	}
}

// A box follows its work folder to another name.
func (s suite) workFolderRenamed(t *testing.T) {
	s.needIsolation(t)
	spec := s.spec(t)
	outer := t.TempDir()
	if err := os.Chmod(outer, 0o755); err != nil {
		t.Fatal(err)
	}
	before, after := filepath.Join(outer, "pool"), filepath.Join(outer, "session")
	if err := os.Mkdir(before, 0o755); err != nil {
		t.Fatal(err)
	}
	spec.WorkDir = before
	box, client := s.dial(t, spec)
	bash(t, client, "echo one >one")
	if err := os.Rename(before, after); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(after, "given"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := bash(t, client, "cat one given; echo two >two; mkdir dir; echo three >dir/three; pwd"); got != "one\nfrom the host"+sandbox.WorkPath {
		t.Errorf("in the box: %q", got)
	}
	if text, failed := call(t, client, "write", map[string]any{"file_path": "four", "content": "four\n"}); failed {
		t.Error(text)
	}
	for name, want := range map[string]string{"one": "one\n", "two": "two\n", "dir/three": "three\n", "four": "four\n"} {
		if got, err := os.ReadFile(filepath.Join(after, name)); err != nil || string(got) != want {
			t.Errorf("on the host %s holds %q, %v", name, got, err)
		}
	}
	if _, err := os.Lstat(before); err == nil {
		t.Error("the old name is there again")
	}
	stop(t, box)
	if _, err := os.Lstat(filepath.Join(after, "two")); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// A device that nobody has described is refused by name, and a box that asks for none
// has none but those that every program counts on.
func (s suite) devices(t *testing.T) {
	spec := s.spec(t)
	spec.Devices = []string{"vendor.invalid/class=none"}
	box, err := s.driver.Start(t.Context(), spec)
	if err == nil {
		stop(t, box)
		t.Fatal("a box started with a device that does not exist")
	}
	if s.report.GPU && !strings.Contains(err.Error(), "vendor.invalid/class=none") {
		t.Errorf("%v, which does not name the device", err)
	}
	s.needIsolation(t)
	spec.Devices = nil
	_, client := s.dial(t, spec)
	harmless := map[string]bool{"core": true, "fd": true, "full": true, "mqueue": true, "null": true, "ptmx": true, "pts": true,
		"random": true, "shm": true, "stderr": true, "stdin": true, "stdout": true, "tty": true, "urandom": true, "zero": true, "console": true}
	if s.report.Isolation == sandbox.OwnKernel {
		// They are that kernel's own, and lead nowhere.
		for _, name := range []string{"char", "fuse", "net"} {
			harmless[name] = true
		}
	}
	for name := range strings.FieldsSeq(bash(t, client, "ls /dev")) {
		if !harmless[name] {
			t.Errorf("the box has /dev/%s", name)
		}
	}
}

// What a report says and what is asked of it fit together.
func (s suite) requirements(t *testing.T) {
	r := s.report
	if missing := r.Missing(sandbox.Requirements{}); len(missing) > 0 {
		t.Errorf("nothing is asked for, and missing: %q", missing)
	}
	has := sandbox.Requirements{Isolation: r.Isolation, Network: r.Network, Freeze: r.Freeze, Checkpoint: r.Checkpoint, GPU: r.GPU}
	for limit, held := range r.Limits {
		if held == sandbox.Hard {
			has.Limits = append(has.Limits, limit)
		}
	}
	if missing := r.Missing(has); len(missing) > 0 {
		t.Errorf("what it has is asked for, and missing: %q", missing)
	}
	if missing := r.Missing(sandbox.Requirements{Limits: []string{"no such limit"}}); len(missing) != 1 {
		t.Errorf("a limit that there is not is asked for, and missing: %q", missing)
	}
	for _, note := range r.Notes {
		if !strings.HasSuffix(note, ".") {
			t.Errorf("a note that is no sentence: %q", note)
		}
	}
}
