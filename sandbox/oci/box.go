package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// A box is one running box.
type box struct {
	// Static once started.
	driver  *Driver
	host    *host
	spec    sandbox.Spec
	log     *slog.Logger
	root    *rootfs.Root
	devices cdi.Devices
	users   *userRange    // nil unless we are root
	group   *cgroup.Group // nil without control groups
	stdio   *sandbox.Stdio
	cmd     *exec.Cmd // the cradle

	// Owned by start, until the command runs.
	requests *os.File // to the cradle
	sock     *os.File // where exits come

	ended chan struct{} // closed when everything of the box is gone
	exit  sandbox.Exit  // written before ended is closed

	still sync.Mutex // held while the box is frozen or thawed

	mu     sync.Mutex
	exits  *sandbox.Exits // of a box with a network
	cause  sandbox.Cause
	detail string // with cause: why we ended the box, the first reason counting
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
		return sandbox.Stats{}, errEnded
	default:
	}
	if b.group == nil {
		return sandbox.Stats{}, nil
	}
	return b.group.Stats(), nil
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

// end kills the box, for the reason given unless there was one before. It does not
// wait.
func (b *box) end(cause sandbox.Cause, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" {
		return
	}
	b.cause, b.detail = cause, detail
	_ = b.cmd.Process.Kill() // everything goes with the cradle, or has gone
	if b.group != nil {
		// The frozen do not die everywhere.
		go func() { _ = b.thaw(context.Background()) }() // it may be gone by then
	}
}

// Freeze implements [sandbox.Freezer].
func (b *box) Freeze(ctx context.Context) error {
	if b.group == nil {
		return fmt.Errorf("freeze box %s: %w", b.spec.ID, errors.ErrUnsupported)
	}
	b.still.Lock()
	defer b.still.Unlock()
	if b.ending() {
		return errEnded
	}
	return b.group.Freeze(ctx)
}

// Thaw implements [sandbox.Freezer].
func (b *box) Thaw(ctx context.Context) error {
	if b.group == nil {
		return fmt.Errorf("thaw box %s: %w", b.spec.ID, errors.ErrUnsupported)
	}
	if b.ending() {
		return errEnded
	}
	return b.thaw(ctx)
}

func (b *box) thaw(ctx context.Context) error {
	b.still.Lock()
	defer b.still.Unlock()
	return b.group.Thaw(ctx)
}

var errEnded = errors.New("the box has ended")

// ending reports whether the box has ended, or is about to.
func (b *box) ending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
		return true
	default:
		return b.cause != ""
	}
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
			if b.group.Killed() {
				b.end(sandbox.CauseMemory, outOfMemory(b.spec.Limits))
				return
			}
		case <-b.ended:
			return
		}
	}
}

func outOfMemory(limits sandbox.Limits) string {
	return fmt.Sprintf("the box used more than its %d MiB of memory", limits.MemoryBytes>>20)
}

// keepExits has the exits closed with the box.
func (b *box) keepExits(exits sandbox.Exits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
		_ = exits.Close()
	default:
		b.exits = &exits
	}
}

// closeControl closes what is needed only until the command runs.
func (b *box) closeControl() {
	for _, file := range []*os.File{b.requests, b.sock} {
		if file != nil {
			file.Close()
		}
	}
}

// finish works out why the box ended, its cradle and all in it being gone, and removes
// what is left of it. status is that of its command, if that ended by itself.
func (b *box) finish(status *int) {
	exit := b.explain(status)
	if err := b.tearDown(); err != nil {
		b.log.Error("something of a box is left on the host", "error", err)
	}
	b.log.Debug("box ended", "cause", exit.Cause, "code", exit.Code, "detail", exit.Detail)
	b.exit = exit
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ended)
	if b.exits != nil {
		_ = b.exits.Close()
	}
}

func (b *box) explain(status *int) sandbox.Exit {
	b.mu.Lock()
	cause, detail := b.cause, b.detail
	b.mu.Unlock()
	switch {
	case cause != "":
		return sandbox.Exit{Cause: cause, Detail: detail}
	case b.group != nil && b.group.Killed():
		return sandbox.Exit{Cause: sandbox.CauseMemory, Detail: outOfMemory(b.spec.Limits)}
	case status == nil:
		return sandbox.Exit{Cause: sandbox.CauseCrashed,
			Detail: fmt.Sprintf("the process it lived in ended before it (%v)", b.cmd.ProcessState)}
	}
	return sandbox.Exit{Cause: sandbox.CauseExited, Code: *status, Detail: b.stdio.LastLine()}
}

// tearDown removes what setUp made and gives the claim back. The box's processes are
// gone.
func (b *box) tearDown() error {
	err := b.root.Close()
	if b.group != nil {
		err = errors.Join(err, b.host.cgroups.Remove(b.group))
	}
	if b.users != nil {
		b.host.users.give(b.users)
	}
	b.driver.claims.Give(b.spec.ID)
	return err
}
