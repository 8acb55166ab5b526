package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

const (
	// hangUpFor is how long what runs in a terminal has, once that is hung up, before
	// it is killed.
	hangUpFor = 2 * time.Second

	// drainFor is how long output of a shell that has ended is waited for, as
	// something that it left behind may keep the terminal open.
	drainFor = 500 * time.Millisecond
)

// A shell is a person's shell in a terminal.
type shell struct {
	agent *agent
	seq   uint64
	ended chan struct{} // closed when its process has ended

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	master  *terminal     // nil until it is open
	pid     int
	size    *tool.Terminal // asked for before it was open
	input   []byte         // typed, and not yet in the terminal
	typed   int            // bytes of input that were not acknowledged, those in input included
	credit  int            // bytes of output that may be sent
	hung    bool           // hung up, or ended
}

// openShell begins a shell in a goroutine of its own.
func (a *agent) openShell(ctx context.Context, seq uint64, t tool.Terminal) error {
	s := &shell{agent: a, seq: seq, changed: make(chan struct{}), ended: make(chan struct{}), credit: tool.ShellWindow}
	a.mu.Lock()
	_, call := a.calls[seq]
	twice := call || a.shells[seq] != nil
	full := len(a.shells) >= tool.ShellsMax
	if !twice && !full {
		a.shells[seq] = s
	}
	a.mu.Unlock()
	if twice {
		return fmt.Errorf("%w: %d begun twice", tool.ErrFrame, seq)
	}
	a.group.Go(func() {
		exit := tool.ShellExit{Code: -1, Error: fmt.Sprintf("too many shells at once, at most %d", tool.ShellsMax)}
		if !full {
			exit = s.serve(ctx, t)
			a.mu.Lock()
			delete(a.shells, seq)
			a.mu.Unlock()
		}
		a.send(tool.Reply{Seq: seq, Exit: &exit})
	})
	return nil
}

// serve runs the shell to its end.
func (s *shell) serve(ctx context.Context, t tool.Terminal) tool.ShellExit {
	status, err := s.start(t)
	if err != nil {
		return tool.ShellExit{Code: -1, Error: "no shell in a terminal can be opened in this box: " + err.Error()}
	}
	defer s.master.Close()
	stop := context.AfterFunc(ctx, s.hangUp)
	defer stop()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.show()
	}()
	typing := make(chan struct{})
	go func() {
		defer close(typing)
		s.enter()
	}()
	code := <-status
	close(s.ended)
	patience := time.NewTimer(drainFor)
	defer patience.Stop()
	select {
	case <-drained:
	case <-patience.C:
	}
	s.end()
	<-typing
	<-drained
	return tool.ShellExit{Code: code}
}

// start starts bash in a new terminal, and returns where its status will be.
func (s *shell) start(t tool.Terminal) (<-chan int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hung {
		return nil, fmt.Errorf("it was hung up")
	}
	if s.size != nil {
		t.Rows, t.Cols = s.size.Rows, s.size.Cols
	}
	if t.Term == "" {
		t.Term = "xterm-256color"
	}
	cmd := exec.Command("/bin/bash", "-i")
	cmd.Dir = s.agent.workdir
	// What a person types is not left in the work folder, which is HOME, for tools to read.
	cmd.Env = append(os.Environ(), "TERM="+t.Term, "SHELL=/bin/bash", "HISTFILE=")
	ours, theirs, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	return s.agent.children.start(func() (*os.Process, error) {
		if err = ours.resize(t); err == nil {
			err = start(cmd, theirs)
		}
		if err != nil {
			ours.Close()
			return nil, err
		}
		s.master, s.pid = &ours, cmd.Process.Pid
		return cmd.Process, nil
	})
}

// show sends what the terminal shows, as far as the other end takes it in.
func (s *shell) show() {
	buf := make([]byte, tool.ShellChunk)
	for {
		room := s.await(func() int { return s.credit })
		if room == 0 {
			return
		}
		n, err := s.master.Read(buf[:min(room, len(buf))])
		if n > 0 {
			s.mu.Lock()
			s.credit -= n
			s.mu.Unlock()
			s.agent.send(tool.Reply{Seq: s.seq, Data: buf[:n]})
		}
		if err != nil {
			return // nobody has the terminal open any more
		}
	}
}

// enter types what was sent into the terminal, and says when it is there.
func (s *shell) enter() {
	for s.await(func() int { return len(s.input) }) > 0 {
		s.mu.Lock()
		chunk := s.input[:min(len(s.input), tool.ShellChunk)]
		s.input = s.input[len(chunk):]
		s.mu.Unlock()
		if _, err := s.master.Write(chunk); err != nil {
			return
		}
		s.mu.Lock()
		s.typed -= len(chunk)
		s.mu.Unlock()
		s.agent.send(tool.Reply{Seq: s.seq, Credit: len(chunk)})
	}
}

// await waits until count is above 0 and returns it, or 0 once the shell is hung up.
// count is called with mu held.
func (s *shell) await(count func() int) int {
	for {
		s.mu.Lock()
		n, hung, changed := count(), s.hung, s.changed
		s.mu.Unlock()
		switch {
		case hung:
			return 0
		case n > 0:
			return n
		}
		<-changed
	}
}

// tell wakes whoever waits for a change. The caller holds mu.
func (s *shell) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// heard takes in a frame about the shell. It never waits for it.
func (s *shell) heard(r tool.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tell()
	switch {
	case r.Cancel:
		go s.hangUp()
	case len(r.Data) > 0:
		if s.typed += len(r.Data); s.typed > tool.ShellWindow {
			return fmt.Errorf("%w: more typed into a shell than was asked for", tool.ErrFrame)
		}
		s.input = append(s.input, r.Data...)
	case r.Credit > 0:
		if s.credit += r.Credit; s.credit > tool.ShellWindow {
			return fmt.Errorf("%w: more output of a shell taken than was sent", tool.ErrFrame)
		}
	case r.Resize != nil:
		s.size = r.Resize
		if s.master != nil && !s.hung {
			_ = s.master.resize(*r.Resize) // of no terminal, if it has ended
		}
	}
	return nil
}

// end closes the terminal; what has it open is sent SIGHUP by the kernel.
func (s *shell) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hung = true; s.master != nil {
		_ = s.master.Close()
	}
	s.tell()
}

// hangUp ends the shell, and kills it if it stays.
func (s *shell) hangUp() {
	s.end()
	s.mu.Lock()
	pid := s.pid
	s.mu.Unlock()
	if pid == 0 {
		return
	}
	_ = unix.Kill(-pid, unix.SIGHUP) // it may be gone already
	patience := time.NewTimer(hangUpFor)
	defer patience.Stop()
	select {
	case <-s.ended:
	case <-patience.C:
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}
