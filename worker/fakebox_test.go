package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// fakeDriver makes boxes that are goroutines. What a call does is up to run.
type fakeDriver struct {
	t *testing.T

	mu sync.Mutex

	// run answers a call. ctx ends when the call is cancelled or the box ends.
	run func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result

	startErr error
	freezes  bool // boxes can be frozen
	counts   bool // boxes count the limits they run into
	boxes    []*fakeBox
	calls    []string // "tool input" of each call that reached a box
}

func (d *fakeDriver) Name() string { return "fake" }

func (d *fakeDriver) Check(context.Context) (sandbox.Report, error) {
	return sandbox.Report{Backend: "fake", Version: "1", Isolation: sandbox.NoIsolation}, d.startErr
}

func (d *fakeDriver) Prepare(context.Context, string) error { return nil }

func (d *fakeDriver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.startErr != nil {
		return nil, d.startErr
	}
	if info, err := os.Stat(spec.WorkDir); err != nil || !info.IsDir() {
		d.t.Errorf("work folder of a box: %v", err)
	}
	for _, b := range d.boxes {
		if b.spec.WorkDir == spec.WorkDir && !b.over() {
			d.t.Errorf("two live boxes use %s", spec.WorkDir)
		}
		if b.spec.ID == spec.ID {
			d.t.Errorf("box id %s used twice", spec.ID)
		}
	}
	b := &fakeBox{driver: d, spec: spec, ended: make(chan struct{})}
	if spec.Network != nil {
		if err := spec.Network.Attach(sandbox.Exits{}); err != nil {
			return nil, err
		}
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.inR, b.inW = io.Pipe()
	b.outR, b.outW = io.Pipe()
	go b.serve()
	d.boxes = append(d.boxes, b)
	switch {
	case d.freezes:
		return freezer{b}, nil
	case d.counts:
		return counter{b}, nil
	}
	return b, nil
}

// freezer is a fakeBox that can be frozen.
type freezer struct{ *fakeBox }

func (f freezer) Freeze(context.Context) error { return f.turn(true) }
func (f freezer) Thaw(context.Context) error   { return f.turn(false) }

func (b *fakeBox) turn(frozen bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !frozen && b.thawErr != nil {
		return b.thawErr
	}
	if b.frozen != frozen {
		b.turns++
	}
	b.frozen = frozen
	return nil
}

// isFrozen reports whether the box is frozen, and how often it was frozen or thawed.
func (b *fakeBox) isFrozen() (frozen bool, turns int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.frozen, b.turns
}

// uses sets what the box uses of the host from here on.
func (b *fakeBox) uses(stats func() sandbox.Stats) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats = stats
}

// counter is a fakeBox that counts the limits it runs into.
type counter struct{ *fakeBox }

func (c counter) LimitHits() sandbox.LimitHits {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits
}

// hit changes the counts.
func (b *fakeBox) hit(add func(*sandbox.LimitHits)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.hits)
}

// setRun changes run under way.
func (d *fakeDriver) setRun(run func(context.Context, *fakeBox, tool.Call) tool.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.run = run
}

// started returns the boxes so far.
func (d *fakeDriver) started() []*fakeBox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*fakeBox{}, d.boxes...)
}

// ran returns the calls that reached a box.
func (d *fakeDriver) ran() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.calls...)
}

func (d *fakeDriver) live() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.boxes {
		if !b.over() {
			n++
		}
	}
	return n
}

type fakeBox struct {
	driver *fakeDriver
	spec   sandbox.Spec
	ctx    context.Context
	cancel context.CancelFunc

	inR  *io.PipeReader
	inW  *io.PipeWriter
	outR *io.PipeReader
	outW *io.PipeWriter

	once  sync.Once
	exit  sandbox.Exit
	ended chan struct{}

	mu      sync.Mutex
	frozen  bool
	turns   int
	thawErr error
	stats   func() sandbox.Stats
	hits    sandbox.LimitHits
}

func (b *fakeBox) Stdio() (io.WriteCloser, io.Reader) { return b.inW, b.outR }
func (b *fakeBox) Wait() sandbox.Exit                 { <-b.ended; return b.exit }

func (b *fakeBox) Stats() (sandbox.Stats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stats == nil {
		return sandbox.Stats{}, nil
	}
	return b.stats(), nil
}

func (b *fakeBox) Stop(context.Context) error {
	b.kill(sandbox.Exit{Cause: sandbox.CauseStopped})
	return nil
}

func (b *fakeBox) over() bool {
	select {
	case <-b.ended:
		return true
	default:
		return false
	}
}

// kill ends the box as something other than its own program would.
func (b *fakeBox) kill(e sandbox.Exit) {
	b.once.Do(func() {
		b.exit = e
		b.cancel()
		_ = b.inR.CloseWithError(io.ErrClosedPipe)
		_ = b.outW.Close()
		close(b.ended)
	})
}

func (b *fakeBox) serve() {
	defer b.kill(sandbox.Exit{Cause: sandbox.CauseExited})
	var mu sync.Mutex
	send := func(r tool.Reply) {
		frame, err := tool.EncodeFrame(r)
		if err != nil {
			b.driver.t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = b.outW.Write(frame)
	}
	send(tool.Reply{Hello: &tool.Hello{Version: tool.WireVersion, Tools: []string{"bash", "read", "write", "edit", "glob"}, Shells: true}})
	shells := map[uint64]bool{}
	cancels := map[uint64]context.CancelFunc{}
	var calls sync.WaitGroup
	defer calls.Wait()
	defer b.cancel()
	for {
		var r tool.Request
		if err := tool.ReadFrame(b.inR, &r); err != nil {
			return
		}
		if frozen, _ := b.isFrozen(); frozen {
			b.driver.t.Errorf("frame %+v for a frozen box", r)
		}
		switch {
		case r.Shell != nil:
			shells[r.Seq] = true
			send(tool.Reply{Seq: r.Seq, Data: []byte("$ ")})
			continue
		case shells[r.Seq] && (r.Cancel || string(r.Data) == "exit\n"):
			delete(shells, r.Seq)
			send(tool.Reply{Seq: r.Seq, Exit: &tool.ShellExit{Code: 5}})
			continue
		case shells[r.Seq] && len(r.Data) > 0:
			send(tool.Reply{Seq: r.Seq, Credit: len(r.Data)})
			send(tool.Reply{Seq: r.Seq, Data: r.Data}) // as a terminal does
			continue
		case r.Call == nil && !r.Cancel:
			continue
		case r.Cancel:
			if c := cancels[r.Seq]; c != nil {
				c()
			}
			continue
		}
		ctx, cancel := context.WithCancel(b.ctx)
		cancels[r.Seq] = cancel
		b.driver.mu.Lock()
		b.driver.calls = append(b.driver.calls, r.Call.Tool+" "+string(r.Call.Input))
		run := b.driver.run
		b.driver.mu.Unlock()
		calls.Go(func() {
			defer cancel()
			result := run(ctx, b, *r.Call)
			send(tool.Reply{Seq: r.Seq, Result: &result})
		})
	}
}

// echo answers with the tool's name and input.
func echo(_ context.Context, _ *fakeBox, c tool.Call) tool.Result {
	return text(fmt.Sprintf("%s %s", c.Tool, c.Input))
}

func text(s string) tool.Result {
	return tool.Result{Content: []json.RawMessage{tool.Text(s)}}
}

// hang waits until it is cancelled.
func hang(ctx context.Context, _ *fakeBox, _ tool.Call) tool.Result {
	<-ctx.Done()
	return tool.ErrorResult("cancelled")
}
