package boxinit

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// script starts what plays the command, says its number, and becomes the reaper when it
// is told to. (Descriptor 3 is what the command waits for, 4 the line.)
const script = `sh -c "$1" <&3 4>&- & echo $!; true & read go; exec "$2"`

// writeReaper writes what cannot be run while anybody has it open for writing, as a child
// has that another test starts meanwhile.
func writeReaper(path string, data []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, 0o100)
}

func TestReaper(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		command string
		want    syscall.WaitStatus
	}{
		"success":  {"read go", 0},
		"failure":  {"read go; exit 7", 7 << 8},
		"a signal": {"read go; kill -9 $$", syscall.WaitStatus(syscall.SIGKILL)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "reaper")
			cmd := exec.Command("/bin/sh", "-c", script, "sh", c.command, path)
			become, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			number, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			theirEnd, end, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer end.Close()
			line, theirLine, err := Lines()
			if err != nil {
				t.Fatal(err)
			}
			defer line.File().Close()
			cmd.ExtraFiles = []*os.File{theirEnd, theirLine}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			theirEnd.Close()
			theirLine.Close()

			var command int
			if _, err := fmt.Fscan(number, &command); err != nil {
				t.Fatal(err)
			}
			if err := writeReaper(path, reaperFile(command, 4)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(become)
			if word, _, _, err := line.Receive(); err != nil || word != Running {
				t.Fatalf("it says %q, %v", word, err)
			}
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); err != nil || string(name) != "reaper\n" {
				t.Errorf("the process is %q, %v", name, err)
			}
			fmt.Fprintln(end)
			word, more, _, err := line.Receive()
			if err != nil || word != Ended || len(more) != 4 {
				t.Fatalf("it says %q %q, %v", word, more, err)
			}
			if got := syscall.WaitStatus(binary.NativeEndian.Uint32([]byte(more))); got != c.want {
				t.Errorf("the status is %#x, want %#x", got, c.want)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// With no command to wait for, it must not seem to have ended.
func TestReaperOfNobody(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "reaper")
	line, theirs, err := Lines()
	if err != nil {
		t.Fatal(err)
	}
	defer line.File().Close()
	if err := writeReaper(path, reaperFile(1, 3)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Run()
	theirs.Close()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("it ends with %d, %v", code, err)
	}
	if word, _, _, err := line.Receive(); err != nil || word != Running {
		t.Errorf("it says %q, %v", word, err)
	}
	if word, _, _, err := line.Receive(); err == nil {
		t.Errorf("it says %q", word)
	}
}
