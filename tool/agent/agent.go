// Package agent is the box's end of the tools: it runs inside the box, as the
// process the box was started for, and serves the calls that come in as frames
// on its standard input (package tool has both). What the model reads of a tool is,
// word for word, what the official worker would have sent (a test asks both), but that
// `read` also shows images and PDF files, and that a command bash cannot parse fails at
// once. The tools are not those of the official SDK, as every box starts this program,
// and that would make it three times as large.
//
// It holds no secret and decides nothing: who may call what was settled outside.
//
// Start reading at [Serve].
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// A Server says how an agent serves.
type Server struct {
	// Workdir is where the tools work: the shell starts in it, and the file tools
	// reach nothing outside it and AllowedRoots. It must exist.
	Workdir string

	AllowedRoots  []string // directories outside Workdir the file tools may reach
	ReadOnlyRoots []string // directories write and edit refuse to change

	// Adopt makes the agent parent to every process its tools leave behind: it
	// reaps them, and kills those of a command that was cut short even if they
	// detached themselves from it. It changes the whole process, so it is for an
	// agent that has one to itself, as it has in a box.
	Adopt bool

	Logger *slog.Logger // nil discards
}

const (
	// filesMax is how many file tools run at a time. The shell runs beside them,
	// one command after the other.
	filesMax = 4

	// callsMax bounds the calls under way, those that wait for their turn included.
	callsMax = 64

	// settle is how long a tool may go on after its call was cut short before the
	// call is answered without it. It is less than the caller's patience.
	settle = 5 * time.Second
)

// Serve says hello on out and serves the calls that arrive on in until that ends
// or ctx does; then every call under way is cancelled, the shell and what runs in
// it is killed, and Serve returns. It returns an error if in was not well formed
// or out failed. A read of in that is under way when ctx ends is left behind.
func Serve(ctx context.Context, s Server, in io.Reader, out io.Writer) error {
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &agent{
		log:     s.Logger,
		out:     out,
		tools:   make(map[string]served),
		fail:    cancel,
		calls:   make(map[uint64]context.CancelFunc),
		shells:  make(map[uint64]*shell),
		workdir: s.Workdir,
		slots:   make(chan struct{}, callsMax),
	}
	var children *children
	if s.Adopt {
		var err error
		// Until the end, as what is told to end then has to be reaped.
		reaping, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		if children, err = adopt(reaping); err != nil {
			return err
		}
	}
	a.children = children
	files := places{workdir: s.Workdir, allowed: s.AllowedRoots, readOnly: s.ReadOnlyRoots}
	commands := &bash{workdir: s.Workdir, children: children}
	defer commands.close()

	turn, turns := make(chan struct{}, 1), make(chan struct{}, filesMax)
	hello := tool.Hello{Version: tool.WireVersion, Shells: true}
	for _, t := range []struct {
		name string
		served
	}{
		{"bash", served{commands.run, turn}},
		{"read", served{files.reader(), turns}},
		{"write", served{plain(files.write), turns}},
		{"edit", served{plain(files.edit), turns}},
		{"glob", served{plain(files.glob), turns}},
		{"grep", served{children.keep(plain(files.grep)), turns}},
	} {
		a.tools[t.name] = t.served
		hello.Tools = append(hello.Tools, t.name)
	}
	a.send(tool.Reply{Hello: &hello})

	ended := make(chan error, 1)
	go func() { ended <- a.receive(ctx, in) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	cancel(nil)
	a.wait()
	return err
}

// A runner runs one tool call. A failure of the tool is a result.
type runner func(ctx context.Context, call tool.Call) tool.Result

// served is a tool with the channel whose capacity is how many of its calls, and
// those of the tools it shares the channel with, run at a time.
type served struct {
	run  runner
	turn chan struct{}
}

// An agent is what the goroutines of one Serve share.
type agent struct {
	// Static once serving.
	log      *slog.Logger
	tools    map[string]served
	fail     context.CancelCauseFunc // ends Serve with an error
	workdir  string
	children *children // nil if they are not ours to look after

	slots chan struct{} // one in it for each call under way
	group sync.WaitGroup

	outMu sync.Mutex
	out   io.Writer

	mu     sync.Mutex
	calls  map[uint64]context.CancelFunc // under way, by Seq
	shells map[uint64]*shell             // open, by Seq
}

// receive reads frames until they end. It never waits for a call.
func (a *agent) receive(ctx context.Context, in io.Reader) error {
	for {
		var req tool.Request
		switch err := tool.ReadFrame(in, &req); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		a.mu.Lock()
		cancel, shell := a.calls[req.Seq], a.shells[req.Seq]
		a.mu.Unlock()
		switch {
		case req.Shell != nil:
			if err := a.openShell(ctx, req.Seq, *req.Shell); err != nil {
				return err
			}
		case shell != nil:
			if err := shell.heard(req); err != nil {
				return err
			}
		case req.Cancel:
			if cancel != nil {
				cancel()
			}
		case req.Resize != nil, len(req.Data) > 0, req.Credit > 0:
			// For a shell that has ended, which is news that is still on its way.
		case req.Call != nil:
			if err := a.begin(ctx, req.Seq, *req.Call); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: request %d asks for nothing", tool.ErrFrame, req.Seq)
		}
	}
}

// begin starts a call in a goroutine of its own.
func (a *agent) begin(ctx context.Context, seq uint64, call tool.Call) error {
	ctx, cancel := context.WithTimeout(ctx, call.Timeout())
	a.mu.Lock()
	_, twice := a.calls[seq]
	if !twice {
		a.calls[seq] = cancel
	}
	a.mu.Unlock()
	if twice {
		cancel()
		return fmt.Errorf("%w: call %d begun twice", tool.ErrFrame, seq)
	}
	answer := func(result tool.Result) {
		cancel()
		a.mu.Lock()
		delete(a.calls, seq)
		a.mu.Unlock()
		a.send(tool.Reply{Seq: seq, Result: &result})
	}
	select {
	case a.slots <- struct{}{}:
	default:
		answer(tool.ErrorResult(fmt.Sprintf("%s: too many calls at once, at most %d", call.Tool, callsMax)))
		return nil
	}
	a.group.Go(func() {
		defer func() { <-a.slots }()
		a.serve(ctx, call, answer)
	})
	return nil
}

// serve runs a call and answers it, at the latest a moment after ctx ends. It
// returns when the tool has, which may be later.
func (a *agent) serve(ctx context.Context, call tool.Call, answer func(tool.Result)) {
	t, ok := a.tools[call.Tool]
	if !ok {
		answer(tool.ErrorResult(fmt.Sprintf("unknown tool %q", call.Tool)))
		return
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		answer(cut(ctx, call))
		return
	}
	done := make(chan tool.Result, 1)
	go func() {
		defer func() { <-t.turn }()
		done <- a.recovered(ctx, t.run, call)
	}()
	select {
	case result := <-done:
		answer(result)
		return
	case <-ctx.Done():
	}
	// Most tools notice; what they say then is better than what can be said here.
	patience := time.NewTimer(settle)
	defer patience.Stop()
	select {
	case result := <-done:
		answer(result)
	case <-patience.C:
		answer(cut(ctx, call))
		<-done
	}
}

// recovered runs a tool and turns a panic into an error result.
func (a *agent) recovered(ctx context.Context, run runner, call tool.Call) (result tool.Result) {
	defer func() {
		if v := recover(); v != nil {
			a.log.Error("tool panicked", "tool", call.Tool, "panic", v, "stack", string(debug.Stack()))
			result = tool.ErrorResult(fmt.Sprintf("%s: internal error: %v", call.Tool, v))
		}
	}()
	result = run(ctx, call)
	result.Full = full(result)
	return result
}

// cut is the result of a call whose context ended, in the official worker's words
// where it has any.
func cut(ctx context.Context, call tool.Call) tool.Result {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		result := tool.ErrorResult(fmt.Sprintf("tool %q timed out after %s", call.Tool, call.Timeout()))
		result.TimedOut = true
		return result
	}
	return tool.ErrorResult(fmt.Sprintf("tool %q was cancelled", call.Tool))
}

// send writes a reply. Nothing that is said inside the box may end the agent, so
// a reply that is too large goes out as an error result.
func (a *agent) send(reply tool.Reply) {
	frame, err := tool.EncodeFrame(reply)
	if err != nil {
		result := tool.ErrorResult(fmt.Sprintf("result cannot be sent: %v", err))
		frame, _ = tool.EncodeFrame(tool.Reply{Seq: reply.Seq, Result: &result})
	}
	a.outMu.Lock()
	defer a.outMu.Unlock()
	if _, err := a.out.Write(frame); err != nil {
		a.fail(fmt.Errorf("write: %w", err))
	}
}

// wait gives the calls under way a moment to clean up.
func (a *agent) wait() {
	gone := make(chan struct{})
	go func() {
		a.group.Wait()
		close(gone)
	}()
	patience := time.NewTimer(settle)
	defer patience.Stop()
	select {
	case <-gone:
	case <-patience.C:
		a.log.Warn("calls still under way at the end")
	}
}

func textResult(text string) tool.Result {
	return tool.Result{Content: []json.RawMessage{tool.Text(text)}}
}
