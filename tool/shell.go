package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A Terminal is the size and kind of a terminal.
type Terminal struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
	Term string `json:"term,omitempty"` // what TERM says; only where a shell is opened
}

// A ShellExit says how a shell in a terminal ended.
type ShellExit struct {
	Code  int    `json:"code"`            // its status; 128 and the signal's number if one ended it
	Error string `json:"error,omitempty"` // why there was none to begin with
}

// What passes between a shell and whoever uses it is bounded both ways: each end sends
// at most so much that the other has not taken in, so that a flood of output stalls the
// program that makes it, and nothing else.
const (
	ShellWindow = 256 << 10 // bytes under way
	ShellChunk  = 32 << 10  // bytes in a frame
	ShellsMax   = 8         // shells of one agent at a time
)

// ErrNoShell is the error of [Client.Shell] for an agent that cannot open one.
var ErrNoShell = errors.New("the agent in the box has no shells")

// A Shell is a shell in a terminal in a box. One goroutine may read while another
// writes; the other methods may be called by any.
type Shell struct {
	client *Client
	seq    uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	output  []byte        // that nobody has read
	taken   int           // bytes read that the agent was not told of
	credit  int           // bytes that may be sent
	exit    *ShellExit    // once it has ended
	closed  bool          // by us
}

// Shell opens a shell in a terminal. The caller closes it.
func (c *Client) Shell(ctx context.Context, t Terminal) (*Shell, error) {
	if !c.shells {
		return nil, ErrNoShell
	}
	s := &Shell{client: c, changed: make(chan struct{}), credit: ShellWindow}
	c.mu.Lock()
	c.seq++
	s.seq = c.seq
	c.open[s.seq] = s
	c.mu.Unlock()
	if err := s.send(ctx, Request{Seq: s.seq, Shell: &t}); err != nil {
		c.mu.Lock()
		delete(c.open, s.seq)
		c.mu.Unlock()
		return nil, err
	}
	return s, nil
}

// send gives the writer a frame. ctx counts until it is taken.
func (s *Shell) send(ctx context.Context, r Request) error {
	frame, err := EncodeFrame(r)
	if err != nil {
		return err
	}
	select {
	case s.client.frames <- frame:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.client.gone:
		return s.client.lost()
	}
}

// Read reads what the terminal shows. It returns io.EOF when the shell has ended and all
// was read.
func (s *Shell) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		n := copy(p, s.output)
		s.output = s.output[n:]
		s.taken += n
		credit := 0
		if s.taken >= ShellWindow/4 && s.exit == nil {
			credit, s.taken = s.taken, 0
		}
		exit, closed, changed := s.exit, s.closed, s.changed
		s.mu.Unlock()
		if credit > 0 {
			if err := s.send(context.Background(), Request{Seq: s.seq, Credit: credit}); err != nil && n == 0 {
				return 0, err
			}
		}
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case closed:
			return 0, io.ErrClosedPipe
		case exit != nil:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-s.client.gone:
			return 0, s.client.lost()
		}
	}
}

// Write types into the terminal. It waits for as long as the program there does not
// take in what was typed before.
func (s *Shell) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		s.mu.Lock()
		n := min(len(p), s.credit, ShellChunk)
		s.credit -= n
		exit, closed, changed := s.exit, s.closed, s.changed
		s.mu.Unlock()
		if exit != nil || closed {
			return written, io.ErrClosedPipe
		}
		if n == 0 {
			select {
			case <-changed:
				continue
			case <-s.client.gone:
				return written, s.client.lost()
			}
		}
		if err := s.send(context.Background(), Request{Seq: s.seq, Data: p[:n]}); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// Resize changes the size of the terminal.
func (s *Shell) Resize(ctx context.Context, rows, cols uint16) error {
	return s.send(ctx, Request{Seq: s.seq, Resize: &Terminal{Rows: rows, Cols: cols}})
}

// Wait waits for the shell's end and says how it ended. What was not read by then can
// still be.
func (s *Shell) Wait(ctx context.Context) (ShellExit, error) {
	for {
		s.mu.Lock()
		exit, changed := s.exit, s.changed
		s.mu.Unlock()
		if exit != nil {
			return *exit, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ShellExit{}, ctx.Err()
		case <-s.client.gone:
			return ShellExit{}, s.client.lost()
		}
	}
}

// Close hangs up: the shell and what runs in its foreground are told to end, and after a
// moment are killed. It does not wait for that.
func (s *Shell) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.exit != nil {
		s.closed = true
		return nil
	}
	s.closed = true
	s.output = nil
	s.tell()
	go s.hangUp()
	return nil
}

// hangUp has the agent end the shell. One that does not is lost, as it is with a call.
func (s *Shell) hangUp() {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := s.send(ctx, Request{Seq: s.seq, Cancel: true})
	if err == nil {
		_, err = s.Wait(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		s.client.lose(errors.New("a shell was not closed in time"))
	}
}

// tell wakes whoever waits for a change. The caller holds mu.
func (s *Shell) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// take takes in what the agent says of the shell.
func (s *Shell) take(r untrusted) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tell()
	switch {
	case r.Exit != nil:
		if len(r.Exit.Error) > shellErrorMax {
			return fmt.Errorf("%w: the end of a shell takes %d bytes to explain", ErrFrame, len(r.Exit.Error))
		}
		s.exit = r.Exit
	case len(r.Data) > 0:
		if len(s.output)+s.taken+len(r.Data) > ShellWindow && !s.closed {
			return fmt.Errorf("%w: more output of a shell than was asked for", ErrFrame)
		}
		if !s.closed {
			s.output = append(s.output, r.Data...)
		}
	case r.Credit > 0:
		if s.credit += r.Credit; s.credit > ShellWindow {
			return fmt.Errorf("%w: a shell takes more than it was sent", ErrFrame)
		}
	default:
		return fmt.Errorf("%w: reply %d says nothing of its shell", ErrFrame, r.Seq)
	}
	return nil
}

const shellErrorMax = 4 << 10
