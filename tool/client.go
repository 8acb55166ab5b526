package tool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// ErrLost is in the chain of every error of a [Client] that can serve no more
// calls: its agent is gone, does not answer, or talks garbage. The box is of no
// further use and should be stopped. Whether the calls under way had an effect
// is unknown.
var ErrLost = errors.New("the agent in the box is lost")

// grace is how long past its deadline or its cancellation a call may take to be
// answered. It covers the agent's own clean-up on a busy host.
const grace = 15 * time.Second

// A Client calls the tools of one agent. Its methods may be called by several
// goroutines, and calls run side by side as far as the agent lets them.
type Client struct {
	// Static after Dial.
	stdin  io.WriteCloser
	tools  []string
	shells bool // the agent can open shells

	frames chan []byte   // to write; unbuffered, taken by the writer only
	gone   chan struct{} // closed when the client is lost; never sent on

	mu      sync.Mutex
	seq     uint64                 // of the last call
	pending map[uint64]chan Result // calls sent and unanswered, each with room for one result
	open    map[uint64]*Shell      // shells that have not ended
	err     error                  // why gone is closed
}

// Dial meets the agent at the other end of stdin and stdout, and returns once it
// has said hello. It owns stdin from then on, also when it fails. Its reader
// goroutine ends when stdout does, which stopping the box sees to.
func Dial(ctx context.Context, stdin io.WriteCloser, stdout io.Reader) (*Client, error) {
	c := &Client{
		stdin:   stdin,
		frames:  make(chan []byte),
		gone:    make(chan struct{}),
		pending: make(map[uint64]chan Result),
		open:    make(map[uint64]*Shell),
	}
	greeted := make(chan Hello, 1)
	go c.read(stdout, greeted)
	select {
	case hello := <-greeted:
		c.tools, c.shells = hello.Tools, hello.Shells
		go c.write()
		return c, nil
	case <-c.gone:
		return nil, c.lost()
	case <-ctx.Done():
		c.lose(fmt.Errorf("no hello: %w", context.Cause(ctx)))
		return nil, c.lost()
	}
}

// Tools returns the names of the tools the agent says it has.
func (c *Client) Tools() []string { return append([]string(nil), c.tools...) }

// Done is closed when the client is lost or closed.
func (c *Client) Done() <-chan struct{} { return c.gone }

// Close ends the conversation; the agent sees the end of its input and exits.
// Calls under way, and later ones, fail with [ErrLost].
func (c *Client) Close() error {
	c.lose(errors.New("closed"))
	return nil
}

// Call runs a tool and returns its result, checked and written anew, so that it
// may be posted as it is. Whatever the tool itself did wrong is a result.
//
// When ctx ends the call is cancelled and Call still returns its result, which
// then says so. Call returns an error in two cases only: ctx ended before the
// call was sent, and then nothing ran and the error is that of ctx; or the agent
// is lost, see [ErrLost].
func (c *Client) Call(ctx context.Context, call Call) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	answer := make(chan Result, 1)
	seq := c.begin(answer)
	defer c.end(seq)

	frame, err := EncodeFrame(Request{Seq: seq, Call: &call})
	if err != nil {
		// An input that fits no frame is the model's doing; the agent is well.
		return ErrorResult(fmt.Sprintf("%s: invalid input: %v", call.Tool, err)), nil
	}
	select {
	case c.frames <- frame:
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-c.gone:
		return Result{}, c.lost()
	}

	overdue := time.NewTimer(call.Timeout() + grace)
	defer overdue.Stop()
	cancelled := ctx.Done()
	for {
		select {
		case result := <-answer:
			return result, nil
		case <-cancelled:
			cancelled = nil
			overdue.Reset(grace)
			go c.cancel(seq)
		case <-overdue.C:
			c.lose(fmt.Errorf("no answer to a call of %q in time", call.Tool))
			return Result{}, c.lost()
		case <-c.gone:
			return Result{}, c.lost()
		}
	}
}

// cancel asks the agent to give up a call. It waits for the writer, so it is not
// run by the goroutine that watches the call's clock.
func (c *Client) cancel(seq uint64) {
	frame, err := EncodeFrame(Request{Seq: seq, Cancel: true})
	if err != nil {
		return
	}
	select {
	case c.frames <- frame:
	case <-c.gone:
	}
}

func (c *Client) begin(answer chan Result) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	c.pending[c.seq] = answer
	return c.seq
}

func (c *Client) end(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, seq)
}

// lose ends the client for the reason given, the first one counting.
func (c *Client) lose(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrLost, reason)
	close(c.gone)
	// In its own goroutine: closing may wait for a write that is stuck in it.
	go c.stdin.Close()
}

func (c *Client) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// write is the one writer of stdin.
func (c *Client) write() {
	for {
		select {
		case frame := <-c.frames:
			if _, err := c.stdin.Write(frame); err != nil {
				c.lose(err)
				return
			}
		case <-c.gone:
			return
		}
	}
}

// An untrusted reply is one whose parts are yet to be looked at.
type untrusted struct {
	Seq    uint64          `json:"seq"`
	Hello  json.RawMessage `json:"hello"`
	Result json.RawMessage `json:"result"`
	Data   []byte          `json:"data"`
	Credit int             `json:"credit"`
	Exit   *ShellExit      `json:"exit"`
}

// read is the one reader of stdout.
func (c *Client) read(stdout io.Reader, greeted chan<- Hello) {
	var first untrusted
	if err := ReadFrame(stdout, &first); err != nil {
		c.lose(ended(err))
		return
	}
	hello, err := first.greeting()
	if err != nil {
		c.lose(err)
		return
	}
	greeted <- hello
	for {
		var reply untrusted
		if err := ReadFrame(stdout, &reply); err != nil {
			c.lose(ended(err))
			return
		}
		if err := c.take(reply); err != nil {
			c.lose(err)
			return
		}
	}
}

// take hands a result to the call that waits for it, and the rest to its shell.
func (c *Client) take(reply untrusted) error {
	c.mu.Lock()
	shell := c.open[reply.Seq]
	if shell != nil && reply.Exit != nil {
		delete(c.open, reply.Seq)
	}
	c.mu.Unlock()
	if shell != nil {
		return shell.take(reply)
	}
	if reply.Result == nil {
		return fmt.Errorf("%w: reply %d without a result", ErrFrame, reply.Seq)
	}
	result, err := decodeResult(reply.Result)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.pending[reply.Seq]
	if !ok {
		return fmt.Errorf("%w: reply to call %d, which is not under way", ErrFrame, reply.Seq)
	}
	delete(c.pending, reply.Seq)
	answer <- result
	return nil
}

// What a hello may hold.
const (
	helloMax    = 16 << 10 // bytes
	toolsMax    = 64
	toolNameMax = 64 // bytes, of a-z, 0-9 and _
)

// greeting returns the hello of an agent that says it as it should.
func (r untrusted) greeting() (Hello, error) {
	if r.Seq != 0 || r.Hello == nil || len(r.Hello) > helloMax {
		return Hello{}, fmt.Errorf("%w: the first frame is not a hello", ErrFrame)
	}
	var h Hello
	if err := decode(r.Hello, &h); err != nil {
		return Hello{}, err
	}
	switch {
	case h.Version != WireVersion:
		return Hello{}, fmt.Errorf("the agent speaks version %d, this worker %d", h.Version, WireVersion)
	case len(h.Tools) > toolsMax:
		return Hello{}, fmt.Errorf("%w: hello with %d tools", ErrFrame, len(h.Tools))
	}
	for _, name := range h.Tools {
		if name == "" || len(name) > toolNameMax || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return Hello{}, fmt.Errorf("%w: hello with a tool named %.70q", ErrFrame, name)
		}
	}
	return h, nil
}

// ended words the end of the agent's output, which io.EOF does not.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it ended")
	}
	return err
}
