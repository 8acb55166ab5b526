package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// In two mount namespaces one path can be two workers' directories.
func TestWorkersWithTheSamePathHaveTheirOwnTags(t *testing.T) {
	t.Parallel()
	tags := make(map[string]string)
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		lock, err := Lock(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		// A rename leads to the same path.
		if err := os.Rename(lock.Name(), filepath.Join(dir, "lock-of-"+name)); err != nil {
			t.Fatal(err)
		}
		again, err := os.Open(filepath.Join(dir, "lock-of-"+name))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		tag, err := Tag(lock)
		if err != nil || len(tag) != 8 {
			t.Errorf("%q, %v", tag, err)
		}
		if same, err := Tag(again); err != nil || same != tag {
			t.Errorf("%q, %v, want %q", same, err, tag)
		}
		if other := tags[tag]; other != "" {
			t.Errorf("%s and %s both have the tag %s", name, other, tag)
		}
		tags[tag] = name
	}
}

// What a number meant when it was read is asked again when it can change no more.
func TestKillSparesWhatIsNotMeant(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if Kill(cmd.Process.Pid, func() bool { return false }) || Kill(0, func() bool { return true }) || Kill(-1, func() bool { return true }) {
		t.Error("something was killed that was not meant")
	}
	select {
	case err := <-ended:
		t.Fatal(err)
	default:
	}
	if !Kill(cmd.Process.Pid, func() bool { return true }) {
		t.Error("not killed")
	}
	<-ended
	if Kill(cmd.Process.Pid, func() bool { return true }) {
		t.Error("what has ended was killed")
	}
}
