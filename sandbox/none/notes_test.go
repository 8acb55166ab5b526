package none_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/none"
)

// TestSweep: what a box left running when its worker was killed is ended at the next
// start, and a box that ended in order leaves nothing to sweep.
func TestSweep(t *testing.T) {
	t.Parallel()
	state, work := t.TempDir(), t.TempDir()
	begin := func() *none.Driver {
		d := none.New(nil)
		d.Remember(state)
		return d
	}
	box, err := begin().Start(t.Context(), sandbox.Spec{
		ID: "left", Agent: self(t), WorkDir: work,
		// It leaves the box's session, as a server that was started in the background may.
		Command: []string{"/bin/sh", "-c", "setsid sleep 1000 & echo $! > pid; exec cat"},
	})
	if err != nil {
		t.Fatal(err)
	}
	stdin, stdout := box.Stdio()
	if _, err := stdin.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil { // so the pid is written
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(work, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	// Another worker on the same directory: the first one counts as killed.
	if err := begin().Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Errorf("process %d lives on: %v", pid, err)
	}
	if err := box.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if notes, err := os.ReadDir(filepath.Join(state, "boxes")); err != nil || len(notes) != 0 {
		t.Errorf("notes left: %v, %v", notes, err)
	}
	if err := begin().Sweep(t.Context()); err != nil {
		t.Errorf("with nothing to do: %v", err)
	}
	if err := none.New(nil).Sweep(t.Context()); err != nil {
		t.Errorf("without notes: %v", err)
	}
}
