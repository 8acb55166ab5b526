package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// A box is one running box.
type box struct {
	// Static once started.
	driver    *Driver
	host      *host
	spec      sandbox.Spec
	log       *slog.Logger
	dir       string        // the box's own on the host
	container string        // its name for gVisor
	group     *cgroup.Group // nil without control groups
	command   []string      // gVisor's command line but for the container's name
	root      *rootfs.Root
	stage     *stage.Stage
	entrance  *stage.Entrance
	stdio     *sandbox.Stdio
	starter   *os.Process // the gVisor process that is our child

	ended chan struct{} // closed when everything of the box is gone
	exit  sandbox.Exit  // written before ended is closed

	// still is held while the box is frozen, thawed or checkpointed.
	still  sync.Mutex
	frozen atomic.Bool

	mu     sync.Mutex
	exits  *sandbox.Exits // nil without a network
	down   bool           // torn down
	parts  []*process     // the kernel, and the opener of files
	cause  sandbox.Cause
	detail string // with cause: why we ended the box, the first reason counting
	memfd  string // where the guest's memory is seen, once found
}

// Stdio implements [sandbox.Box].
func (b *box) Stdio() (io.WriteCloser, io.Reader) { return b.stdio.Streams() }

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
		b.stdio.Close()
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
	}
	if b.group != nil {
		return b.group.Stats(), nil
	}
	return sandbox.Stats{MemoryBytes: b.memory(), CPUTime: b.cpuTime()}, nil
}

// LimitHits implements [sandbox.LimitCounter].
func (b *box) LimitHits() sandbox.LimitHits {
	if b.group == nil {
		return sandbox.LimitHits{Memory: -1, Processes: -1}
	}
	hits := b.group.LimitHits()
	hits.Ending = hits.Memory > 0 // see watch
	return hits
}

// killAfter is how long gVisor may take to wind up a box that was killed.
const killAfter = 3 * time.Second

// end kills the box, for the reason given unless there was one before. It does not
// wait.
func (b *box) end(cause sandbox.Cause, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" {
		return
	}
	b.cause, b.detail = cause, detail
	if len(b.parts) == 0 {
		_ = b.starter.Kill() // the others go with it
		return
	}
	// Their parent reaps them and then ends by itself.
	for _, p := range b.parts {
		p.kill()
	}
	time.AfterFunc(killAfter, func() { _ = b.starter.Kill() }) // no error if it has ended
}

// finish works out why the box ended and removes what is left of it.
func (b *box) finish(status *os.ProcessState) {
	deadline := time.Now().Add(killAfter)
	b.mu.Lock()
	parts := b.parts
	b.mu.Unlock()
	for _, p := range parts {
		p.kill()
		if err := p.wait(deadline); err != nil {
			b.log.Error("part of a box lives on", "error", err)
		}
	}
	exit := b.explain(status)
	if err := b.tearDown(); err != nil {
		b.log.Error("something of a box is left on the host", "error", err)
	}
	b.log.Debug("box ended", "cause", exit.Cause, "code", exit.Code, "detail", exit.Detail)
	b.exit = exit
	close(b.ended)

	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.parts {
		p.close()
	}
	b.parts = nil
}

// What gVisor ends with when it failed, rather than the command, and when the command
// or the kernel was killed.
const (
	failed = 128
	killed = 128 + int(syscall.SIGKILL)
)

func (b *box) explain(status *os.ProcessState) sandbox.Exit {
	b.mu.Lock()
	cause, detail := b.cause, b.detail
	b.mu.Unlock()
	if cause != "" {
		return sandbox.Exit{Cause: cause, Detail: detail}
	}
	if b.group != nil && b.group.Killed() {
		return sandbox.Exit{Cause: sandbox.CauseMemory, Detail: outOfMemory(b.spec.Limits)}
	}
	if complaint := b.entrance.Complaint(); complaint != "" {
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: b.scrub(complaint)}
	}
	complaint, _ := os.ReadFile(filepath.Join(b.dir, logFile))
	wait := status.Sys().(syscall.WaitStatus)
	switch {
	case wait.Signaled():
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: fmt.Sprintf("gVisor was killed by signal %q", wait.Signal())}
	case wait.ExitStatus() == killed:
		// gVisor does not say which it was.
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Code: killed, Detail: "its kernel or its command was killed"}
	case wait.ExitStatus() == failed && len(complaint) > 0:
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: b.scrub(message(complaint))}
	}
	return sandbox.Exit{Cause: sandbox.CauseExited, Code: wait.ExitStatus(), Detail: b.stdio.LastLine()}
}

func outOfMemory(limits sandbox.Limits) string {
	return fmt.Sprintf("the box used more than its %d MiB of memory", limits.MemoryBytes>>20)
}

// own makes the exits go with the box, unless it is gone already.
func (b *box) own(exits sandbox.Exits) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.down {
		b.exits = &exits
	}
	return !b.down
}

// tearDown removes what setUp made and gives the claim back. The box's processes are
// gone.
func (b *box) tearDown() error {
	var errs []error
	if b.entrance != nil {
		b.entrance.Close()
	}
	b.mu.Lock()
	if b.down = true; b.exits != nil {
		errs = append(errs, b.exits.Close())
	}
	b.mu.Unlock()
	if b.root != nil && b.root != b.host.programs {
		errs = append(errs, b.root.Close())
	}
	if b.group != nil {
		errs = append(errs, b.host.cgroups.Remove(b.group))
	}
	errs = append(errs, os.RemoveAll(b.dir))
	b.driver.claims.Give(b.spec.ID)
	return errors.Join(errs...)
}
