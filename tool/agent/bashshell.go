package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A bashShell is bash in a terminal of its own, which it takes commands from.
type bashShell struct {
	terminal terminal
	process  *os.Process
	ended    chan struct{} // closed when nothing has the terminal open any more

	heard chan struct{} // of capacity 1: there is more in out

	mu  sync.Mutex
	out []byte // the end of what was said since the last command began
	all bool   // or all of it
}

// startBash starts a shell in a directory. It does not wait for it.
func startBash(dir string) (*bashShell, error) {
	ours, theirs, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	// Bash's own line editing would have to be told to leave commands as they are.
	cmd := exec.Command("/bin/bash", "--noprofile", "--norc", "--noediting")
	cmd.Dir = dir
	cmd.Env = append(environment(), "PS1=", "PS2=", "TERM=dumb", "HISTFILE=")
	if err = ours.makeRaw(); err == nil {
		err = start(cmd, theirs)
	}
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start bash: %w", err)
	}
	s := &bashShell{terminal: ours, process: cmd.Process, ended: make(chan struct{}), heard: make(chan struct{}, 1)}
	go s.listen()
	if _, err := s.terminal.WriteString("set +m +H\n"); err != nil { // neither news of jobs nor of what ! stands for
		s.end()
		return nil, fmt.Errorf("set up bash: %w", err)
	}
	return s, nil
}

// listen takes in what is said, until nothing has the terminal open any more.
func (s *bashShell) listen() {
	defer close(s.ended)
	buf := make([]byte, 8<<10)
	for {
		n, err := s.terminal.Read(buf)
		s.mu.Lock()
		s.out = append(s.out, buf[:n]...)
		if over := len(s.out) - outputMax; over > outputMax { // seldom, as the rest has to be moved
			s.out = append(s.out[:0], s.out[over:]...)
			s.all = false
		}
		s.mu.Unlock()
		select {
		case s.heard <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// past is a time at which whatever waits has waited for long enough.
var past = time.Unix(1, 0)

var errBashEnded = errors.New("bash session terminated")

// run runs a command and returns what it said and its exit status. When ctx ends before
// the command, it returns what that has said so far and the reason; the shell is of no
// further use then, nor after any other error.
func (s *bashShell) run(ctx context.Context, command string) (string, int, error) {
	// Nothing that a command says by itself is taken for its end. And not in one piece, as
	// what is typed could be shown, too.
	mark := rand.Text()
	typed := fmt.Sprintf("{ %s\n} </dev/null 2>&1\nprintf '\\n%%s%%s%%d\\n' %s %s $?\n", command, mark[:10], mark[10:])

	s.mu.Lock()
	s.out, s.all = s.out[:0], true
	s.mu.Unlock()
	// It takes in no more than it reads, which may be nothing.
	stop := context.AfterFunc(ctx, func() { _ = s.terminal.SetWriteDeadline(past) })
	defer stop()
	if _, err := s.terminal.WriteString(typed); err != nil && ctx.Err() == nil {
		return "", 0, fmt.Errorf("write to the shell: %w", err)
	}
	end := []byte("\n" + mark)
	for {
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.ended:
			err = errBashEnded
		case <-s.heard:
		}
		s.mu.Lock()
		said, status, found := parse(s.out, end)
		if found || err != nil {
			whole := s.all && len(said) <= outputMax
			text := readable(said[max(0, len(said)-outputMax):], whole)
			s.mu.Unlock()
			if found {
				return text, status, nil
			}
			return text, 0, err
		}
		s.mu.Unlock()
	}
}

// parse finds the end of a command's output, and its status.
func parse(out, end []byte) (said []byte, status int, found bool) {
	// It is the last line, but for what jobs in the background say.
	at := bytes.LastIndex(out, end)
	if at < 0 {
		return out, 0, false
	}
	digits, _, complete := bytes.Cut(out[at+len(end):], []byte("\n"))
	if !complete {
		return out, 0, false
	}
	status, err := strconv.Atoi(string(digits))
	if err != nil {
		status = -1
	}
	return out[:at+1], status, true
}

// end ends the shell with all that is in its process group.
func (s *bashShell) end() {
	_ = s.terminal.Close()
	_ = unix.Kill(-s.process.Pid, unix.SIGKILL) // it may be gone
	_ = s.process.Kill()
	_, _ = s.process.Wait() // unless it was reaped with the other orphans
	<-s.ended
}
