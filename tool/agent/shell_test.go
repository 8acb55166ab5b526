package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

// terminal is a shell and what it has shown so far.
type terminal struct {
	*tool.Shell
	t *testing.T

	mu      sync.Mutex
	shown   strings.Builder
	changed chan struct{}
	err     error // why there is no more
}

// open opens a shell and reads what it shows, unless unread.
func open(t *testing.T, c *tool.Client, unread bool) *terminal {
	t.Helper()
	s, err := c.Shell(t.Context(), tool.Terminal{Rows: 24, Cols: 80, Term: "dumb"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	term := &terminal{Shell: s, t: t, changed: make(chan struct{})}
	if !unread {
		go term.read()
	}
	return term
}

func (m *terminal) read() {
	buf := make([]byte, 1000)
	for {
		n, err := m.Read(buf)
		m.mu.Lock()
		m.shown.Write(buf[:n])
		m.err = err
		close(m.changed)
		m.changed = make(chan struct{})
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// sees waits until the terminal shows text.
func (m *terminal) sees(text string) {
	m.t.Helper()
	m.until(fmt.Sprintf("%q", text), func(shown string) bool { return strings.Contains(shown, text) })
}

// until waits until what the terminal shows is as it should be.
func (m *terminal) until(what string, holds func(shown string) bool) {
	m.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		m.mu.Lock()
		shown, err, changed := m.shown.String(), m.err, m.changed
		m.mu.Unlock()
		if holds(shown) {
			return
		}
		if err != nil {
			m.t.Fatalf("the terminal ended (%v) without %s:\n%.2000s", err, what, shown)
		}
		select {
		case <-changed:
		case <-timeout:
			m.t.Fatalf("the terminal does not show %s:\n%.2000s", what, shown)
		}
	}
}

func (m *terminal) types(text string) {
	m.t.Helper()
	if _, err := io.WriteString(m, text); err != nil {
		m.t.Fatal(err)
	}
}

func (m *terminal) ends() tool.ShellExit {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	exit, err := m.Wait(ctx)
	if err != nil {
		m.t.Fatalf("the shell does not end: %v", err)
	}
	return exit
}

// clients are an agent in this process and one in a process of its own.
func clients(t *testing.T, test func(t *testing.T, c *tool.Client, dir string)) {
	for name, begin := range map[string]func(*testing.T, string) *tool.Client{
		"in this process": start,
		"in its own":      func(t *testing.T, dir string) *tool.Client { c, _ := startProcess(t, dir); return c },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			test(t, begin(t, dir), dir)
		})
	}
}

func TestShell(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, false)
		m.types("echo in $PWD on $(tty) as $((6*7)) $TERM\n")
		m.sees("in " + dir + " on /dev/pts/")
		m.sees("as 42 dumb")
		// The work folder keeps nothing of what a person types.
		m.types("echo history=${HISTFILE-kept}.\n")
		m.sees("history=.")
		m.types("stty size\n")
		m.sees("24 80")
		if err := m.Resize(t.Context(), 50, 132); err != nil {
			t.Fatal(err)
		}
		m.types("stty size\n")
		m.sees("50 132")
		// Tools go on beside it.
		if got := textOf(t, call(t, c, "bash", `{"command":"echo beside"}`)); strings.TrimSpace(got) != "beside" {
			t.Errorf("bash beside a shell: %q", got)
		}
		m.types("exit 7\n")
		if exit := m.ends(); exit != (tool.ShellExit{Code: 7}) {
			t.Errorf("exit %+v, want 7", exit)
		}
		if _, err := io.WriteString(m, "x"); err == nil {
			t.Error("a shell that has ended takes input")
		}
	})
}

// TestShellInterrupts: keys mean to the program in the terminal what they should.
func TestShellInterrupts(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, false)
		m.types("PS1=prompt; PS1+='> '\n")
		m.sees("prompt> ")
		m.types("sh -c 'echo up$((1+1)); exec sleep 1000'\n")
		m.sees("up2")   // so it has the terminal
		m.types("\x03") // what is typed before it took effect is dropped, as in any terminal
		m.until("the prompt again", func(shown string) bool { return strings.HasSuffix(shown, "prompt> ") })
		m.types("echo and on$((1+1))\n")
		m.sees("and on2")
	})
}

// TestShellKilled: its end says by what.
func TestShellKilled(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, false)
		m.types("kill -9 $$\n")
		if exit := m.ends(); exit.Code != 128+9 {
			t.Errorf("exit %+v, want 137", exit)
		}
	})
}

// TestShellHangUp: closing a shell ends what runs in it, also what ignores that.
func TestShellHangUp(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, false)
		m.types("trap '' HUP; echo pid$$.; while :; do sleep 0.1; done\n")
		m.sees("\npid")
		m.Close()
		if exit := m.ends(); exit.Code != 128+9 {
			t.Errorf("exit %+v, want 137", exit)
		}
	})
}

// TestShellFlood: a terminal that nobody reads stalls the program that writes to it, and
// nothing else.
func TestShellFlood(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, true)
		m.types("yes flooooood\n")
		other := open(t, c, false)
		other.types("echo other$((1+1))\n")
		other.sees("other2")
		// A call is answered, and one is cancelled, at once.
		call(t, c, "bash", `{"command":"echo quick"}`)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			other.types("until [ -e began ]; do sleep 0.05; done; echo saw$((1+1))\n")
			other.sees("saw2")
		}()
		if _, err := c.Call(ctx, tool.Call{Tool: "bash", Input: []byte(`{"command":"touch began; sleep 1000"}`)}); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		// What was stalled goes on once it is read.
		go m.read()
		m.until("more than was under way", func(shown string) bool { return len(shown) > 2*tool.ShellWindow })
		m.types("\x03")
		m.until("a prompt", func(shown string) bool { return !strings.HasSuffix(shown, "\n") && !strings.HasSuffix(shown, "o") })
	})
}

// TestShellTypeAhead: what a program does not read is kept, to a bound, and the rest waits.
func TestShellTypeAhead(t *testing.T) {
	t.Parallel()
	clients(t, func(t *testing.T, c *tool.Client, dir string) {
		m := open(t, c, false)
		m.types("stty raw -echo; echo ready$((1+1)); sleep 1; wc -c < <(head -c 600000); stty sane; echo done$((1+1))\n")
		m.sees("ready2") // and not the line above, which the shell may still be showing
		m.types(strings.Repeat("x", 600_000))
		m.sees("\n600000")
		m.sees("done2")
	})
}

// TestShellsAtOnce: one too many is refused, and there is room again after one ends.
func TestShellsAtOnce(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir())
	var all []*terminal
	for range tool.ShellsMax {
		all = append(all, open(t, c, false))
	}
	extra := open(t, c, false)
	if exit := extra.ends(); !strings.Contains(exit.Error, "too many shells") {
		t.Errorf("exit %+v, want a refusal", exit)
	}
	all[0].types("exit\n")
	all[0].ends()
	again := open(t, c, false)
	again.types("echo again$((1+1))\n")
	again.sees("again2")
}

// TestShellSurvivesATimeout: what a person runs is not killed with
// what a tool left behind.
func TestShellSurvivesATimeout(t *testing.T) {
	t.Parallel()
	c, _ := startProcess(t, t.TempDir())
	m := open(t, c, false)
	m.types("echo up$((1+1))\n")
	m.sees("up2")
	done := make(chan struct{})
	go func() {
		defer close(done)
		call(t, c, "bash", `{"command":"sleep 1000","timeout_ms":1500}`)
	}()
	m.types("sleep 1001 & echo bg$!.\n")
	m.sees("\nbg")
	<-done
	m.types("jobs -r\n")
	m.sees("Running")
	m.sees("sleep 1001")
}

// TestShellEndsWithTheAgent: no shell outlives its agent.
func TestShellEndsWithTheAgent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := startProcess(t, dir)
	m := open(t, c, false)
	m.types("echo $$ > pid; echo written$((1+1))\n")
	m.sees("written2")
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c.Close()
	if _, err := m.Wait(t.Context()); !errors.Is(err, tool.ErrLost) {
		t.Errorf("Wait: %v, want ErrLost", err)
	}
	if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000); ready != 1 {
		t.Errorf("the shell %d lives on: %v", pid, err)
	}
}
