package sandbox

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Stdio is the standard streams of a process that a backend starts on the host.
type Stdio struct {
	ours   []*os.File // input to write, output and errors to read
	theirs []*os.File

	drained chan struct{} // closed when errors have ended

	mu   sync.Mutex
	tail []byte // of errors
}

// tailMax is how many bytes of the end of its standard error are kept to explain a
// box's end.
const tailMax = 2 << 10

// NewStdio makes the streams of cmd, which is to be started next. Pipes they are, as
// what writes to a file may do so from an offset of its own.
func NewStdio(cmd *exec.Cmd) (*Stdio, error) {
	s := &Stdio{drained: make(chan struct{})}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			s.Close()
			return nil, errors.Join(err, closeAll(s.theirs))
		}
		if i == 0 {
			r, w = w, r
		}
		s.ours, s.theirs = append(s.ours, r), append(s.theirs, w)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.theirs[0], s.theirs[1], s.theirs[2]
	return s, nil
}

// Started is called once the command was started, whether or not that succeeded.
// From then on what it writes to its standard error goes to w, unless that is nil.
func (s *Stdio) Started(w io.Writer) {
	_ = closeAll(s.theirs)
	go func() {
		defer close(s.drained)
		s.drain(w)
	}()
}

func (s *Stdio) drain(w io.Writer) {
	buf := make([]byte, 4<<10)
	for {
		n, err := s.ours[2].Read(buf)
		if n > 0 && w != nil {
			_, _ = w.Write(buf[:n]) // a box does not stop for a log that cannot be written
		}
		s.mu.Lock()
		s.tail = append(s.tail, buf[:n]...)
		if over := len(s.tail) - tailMax; over > 0 {
			s.tail = append(s.tail[:0], s.tail[over:]...)
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Streams returns our ends of standard input and output.
func (s *Stdio) Streams() (stdin io.WriteCloser, stdout io.Reader) { return s.ours[0], s.ours[1] }

// LastLine waits, for a second at most, until nothing can be written to standard
// error any more and returns the last line of it that is not empty.
func (s *Stdio) LastLine() string {
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	select {
	case <-s.drained:
	case <-patience.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(s.tail), []byte("\n"))
	return strings.ToValidUTF8(string(lines[len(lines)-1]), "?")
}

// Close closes our ends.
func (s *Stdio) Close() { _ = closeAll(s.ours) }

func closeAll(files []*os.File) error {
	var errs []error
	for _, file := range files {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
