package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
)

// A box is one running box.
type box struct {
	// Static once started.
	driver   *Driver
	daemon   *daemon
	spec     sandbox.Spec
	log      *slog.Logger
	id       string                       // of the container
	conn     client.ContainerAttachResult // its streams
	stdout   *os.File
	output   *os.File // what comes out of stdout
	usage    usage
	exits    *sandbox.Exits // nil without a network
	lifetime *time.Timer

	ended chan struct{} // closed when everything of the box is gone
	exit  sandbox.Exit  // written before ended is closed

	mu     sync.Mutex
	cause  sandbox.Cause
	detail string // with cause: why we ended the box, the first reason counting
}

// removeMax bounds how long it may take a daemon to end and remove a container, when
// nobody waits for it.
const removeMax = time.Minute

// Stdio implements [sandbox.Box].
func (b *box) Stdio() (io.WriteCloser, io.Reader) { return stdin{b}, b.stdout }

// stdin is the standard input of a box.
type stdin struct{ box *box }

func (s stdin) Write(p []byte) (int, error) { return s.box.conn.Conn.Write(p) }
func (s stdin) Close() error                { return s.box.conn.CloseWrite() }

// Wait implements [sandbox.Box].
func (b *box) Wait() sandbox.Exit {
	<-b.ended
	return b.exit
}

// Stop implements [sandbox.Box].
func (b *box) Stop(ctx context.Context) error {
	b.end(sandbox.CauseStopped, "")
	select {
	case <-b.ended:
		// What nobody has read is lost now.
		b.stdout.Close()
		b.conn.Close()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop box %s: %w", b.spec.ID, context.Cause(ctx))
	}
}

// Stats implements [sandbox.Box].
func (b *box) Stats() (sandbox.Stats, error) {
	select {
	case <-b.ended:
		return sandbox.Stats{}, errors.New("the box has ended")
	default:
		return b.usage.stats(), nil
	}
}

// Freeze implements [sandbox.Freezer].
func (b *box) Freeze(ctx context.Context) error {
	return patiently(ctx, func() error {
		_, err := b.daemon.client.ContainerPause(ctx, b.id, client.ContainerPauseOptions{})
		return b.already(ctx, err, container.StatePaused)
	})
}

// Thaw implements [sandbox.Freezer].
func (b *box) Thaw(ctx context.Context) error {
	return patiently(ctx, func() error {
		_, err := b.daemon.client.ContainerUnpause(ctx, b.id, client.ContainerUnpauseOptions{})
		return b.already(ctx, err, container.StateRunning)
	})
}

// patiently tries something again for a moment: on a busy machine podman finds its
// runtime, or what it wrote down itself, not where it expects it to be.
func patiently(ctx context.Context, try func() error) error {
	const tries = 5
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == tries || ctx.Err() != nil || errdefs.IsNotFound(err) || client.IsErrConnectionFailed(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(n) * 100 * time.Millisecond):
		}
	}
}

// already makes nothing of an error if the box is in the state that was asked for.
func (b *box) already(ctx context.Context, err error, state container.ContainerState) error {
	if err == nil {
		return nil
	}
	got, unknown := b.daemon.client.ContainerInspect(ctx, b.id, client.ContainerInspectOptions{})
	if unknown == nil && got.Container.State != nil && got.Container.State.Status == state {
		return nil
	}
	return err
}

// end ends the box, for the reason given unless there was one before. It does not
// wait.
func (b *box) end(cause sandbox.Cause, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" {
		return
	}
	b.cause, b.detail = cause, detail
	// A daemon does not see a container end whose output nobody takes.
	b.output.Close()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), removeMax)
		defer cancel()
		if err := b.kill(ctx); err != nil {
			b.log.Error("a box cannot be killed; its input is closed instead", "error", err)
			b.conn.Close()
		}
	}()
}

// kill kills all that is in the box. If that has ended, it is no error.
func (b *box) kill(ctx context.Context) error {
	_, err := b.daemon.client.ContainerKill(ctx, b.id, client.ContainerKillOptions{Signal: "KILL"})
	if err == nil || errdefs.IsNotFound(err) || b.hasEnded(ctx) {
		return nil
	}
	// Some do not kill what is frozen.
	if b.Thaw(ctx) == nil {
		_, err = b.daemon.client.ContainerKill(ctx, b.id, client.ContainerKillOptions{Signal: "KILL"})
	}
	if b.hasEnded(ctx) {
		return nil
	}
	return err
}

// hasEnded reports whether the daemon says that nothing runs in the box any more.
func (b *box) hasEnded(ctx context.Context) bool {
	got, err := b.daemon.client.ContainerInspect(ctx, b.id, client.ContainerInspectOptions{})
	return errdefs.IsNotFound(err) || err == nil && got.Container.State != nil && !got.Container.State.Running
}

// untilClosed writes to a file, and nowhere once that is closed.
type untilClosed struct{ file *os.File }

func (u untilClosed) Write(p []byte) (int, error) {
	_, _ = u.file.Write(p)
	return len(p), nil
}

// lastWords is how long the output of a box may take to come once it has ended.
const lastWords = time.Second

// run passes on what the box says, and sees it to its end.
func (b *box) run() {
	complaints := &tail{to: b.spec.Stderr}
	passed := make(chan error, 1)
	go func() {
		err := split(b.conn.Reader, untilClosed{b.output}, complaints)
		b.output.Close()
		b.endIfKilled() // while its control group is still there to say so
		passed <- err
	}()
	state, err := b.await(passed)
	select {
	case passed <- <-passed:
	case <-time.After(lastWords): // somebody does not read
	}
	b.finish(state, err, complaints.lastLine())
}

// await waits until the box has ended, and returns how.
func (b *box) await(passed chan error) (*container.State, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	waiting := b.daemon.client.ContainerWait(ctx, b.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	inspect := func() (*container.State, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		got, err := b.daemon.client.ContainerInspect(ctx, b.id, client.ContainerInspectOptions{})
		if err != nil {
			return nil, err
		}
		if got.Container.State == nil {
			return nil, errors.New("it has no state")
		}
		return got.Container.State, nil
	}
	// Its output mostly ends a little before it does, and some daemons are slow to say so.
	look := passed
	for pause := time.Millisecond; ; {
		select {
		case <-waiting.Result:
			return inspect()
		case err := <-waiting.Error:
			return nil, err
		case err := <-look:
			passed <- err
			look = nil
		case <-time.After(pause):
			if look != nil {
				continue
			}
			if state, err := inspect(); err == nil && !state.Running {
				return state, nil
			}
			pause = min(2*pause, time.Second)
		}
	}
}

// tailMax is how many bytes of the end of its standard error are kept to explain a
// box's end.
const tailMax = 2 << 10

// A tail passes on what is written to it, and keeps the end. That it cannot be passed
// on does not show: a box does not stop for a log.
type tail struct {
	to io.Writer // nil discards

	mu  sync.Mutex
	end []byte
}

func (t *tail) Write(p []byte) (int, error) {
	if t.to != nil {
		_, _ = t.to.Write(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if over := len(t.end) - tailMax; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(p), nil
}

func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.end), []byte("\n"))
	return strings.ToValidUTF8(string(lines[len(lines)-1]), "?")
}

// watchEvery is how often it is looked whether the kernel has killed something of a
// box for want of memory.
const watchEvery = 200 * time.Millisecond

// watch ends the box when it has run out of memory: the kernel picks what to kill, and
// what is left may hang.
func (b *box) watch() {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if b.endIfKilled() {
				return
			}
		case <-b.ended:
			return
		}
	}
}

// endIfKilled ends the box if the kernel has killed something of it for want of memory,
// and reports whether that is so.
func (b *box) endIfKilled() bool {
	killed := b.usage.killed()
	if killed {
		b.end(sandbox.CauseMemory, outOfMemory(b.spec.Limits))
	}
	return killed
}

func outOfMemory(limits sandbox.Limits) string {
	return fmt.Sprintf("the box used more than its %d MiB of memory", limits.MemoryBytes>>20)
}

// finish works out why the box ended, which is in this state or not to be asked for any
// more, and removes what is left of it.
func (b *box) finish(state *container.State, err error, complaint string) {
	ctx, cancel := context.WithTimeout(context.Background(), removeMax)
	defer cancel()
	exit := b.explain(state, err, complaint)
	if err := b.daemon.remove(ctx, b.id); err != nil {
		b.log.Error("something of a box is left at the daemon", "error", err)
	}
	b.log.Debug("box ended", "cause", exit.Cause, "code", exit.Code, "detail", exit.Detail)
	b.exit = exit
	b.lifetime.Stop()
	b.release()
}

// release gives back what we hold of the box, which is gone, but for what it said.
func (b *box) release() {
	if b.exits != nil {
		_ = b.exits.Close()
	}
	b.driver.claims.Give(b.spec.ID)
	close(b.ended)
}

func (b *box) explain(state *container.State, err error, complaint string) sandbox.Exit {
	b.mu.Lock()
	cause, detail := b.cause, b.detail
	b.mu.Unlock()
	switch {
	case cause != "":
		return sandbox.Exit{Cause: cause, Detail: detail}
	case errdefs.IsNotFound(err):
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: "somebody else removed its container"}
	case err != nil:
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: fmt.Sprintf("the daemon does not say how it ended: %v", err)}
	case state.OOMKilled:
		return sandbox.Exit{Cause: sandbox.CauseMemory, Detail: outOfMemory(b.spec.Limits)}
	case state.Error != "":
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: state.Error}
	}
	return sandbox.Exit{Cause: sandbox.CauseExited, Code: state.ExitCode, Detail: complaint}
}
