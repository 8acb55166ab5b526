package ns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// A box is its first process and what that has started.
type box struct {
	// Static once started.
	driver    *Driver
	host      *host
	spec      sandbox.Spec
	log       *slog.Logger
	root      *rootfs.Root
	users     uint32          // the first of its own; 0 without root
	mounts    []boxinit.Mount // of all that it sees
	group     *cgroup.Group   // nil where there is none
	line      boxinit.Line
	exitsSock *os.File
	exits     *sandbox.Exits // nil without a network
	stdio     *sandbox.Stdio
	process   *os.Process

	ended chan struct{} // closed when all of the box is gone
	met   chan struct{} // closed when nobody talks with the box any more, see start
	meet  sync.Once
	exit  sandbox.Exit // written before ended is closed

	freezing sync.Mutex // held while the box is frozen or thawed

	mu     sync.Mutex
	frozen bool          // or about to be
	unsure bool          // the last change of that failed
	cause  sandbox.Cause // why we ended the box, the first reason counting
	detail string
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
	held := b.host.held()
	if !held.Memory || !held.CPU || !held.Processes {
		return b.measure(most), nil
	}
	return b.group.Stats(), nil
}

// LimitHits implements [sandbox.LimitCounter].
func (b *box) LimitHits() sandbox.LimitHits {
	if b.group == nil {
		return sandbox.LimitHits{Memory: -1, Processes: -1}
	}
	return b.group.LimitHits()
}

// end kills the first process of the box, and the kernel with it all others.
func (b *box) end(cause sandbox.Cause, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" {
		return
	}
	b.cause, b.detail = cause, detail
	_ = b.process.Kill() // no error if it has ended
	if b.frozen {
		go b.melt()
	}
}

// finish says how the box ended, when it has, and removes what is left of it.
func (b *box) finish() {
	<-b.met // whoever talks with it may still have to hear its last words
	b.exit = b.explain()
	b.host.hold(b.process.Pid, false)
	if err := b.tearDown(); err != nil {
		b.log.Error("something of a box is left on the host", "error", err)
	}
	close(b.ended)
}

func (b *box) explain() sandbox.Exit {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" {
		return sandbox.Exit{Cause: b.cause, Detail: b.detail}
	}
	memory := sandbox.Exit{Cause: sandbox.CauseMemory, Detail: outOfMemory(b.spec.Limits)}
	short := b.host.held().Memory && b.group.Killed()
	for {
		word, more, _, err := b.line.Receive()
		if err != nil {
			break
		}
		if word != boxinit.Ended {
			continue
		}
		if len(more) != 4 {
			break
		}
		status := syscall.WaitStatus(binary.NativeEndian.Uint32([]byte(more)))
		switch {
		case !status.Signaled():
			return sandbox.Exit{Cause: sandbox.CauseExited, Code: status.ExitStatus(), Detail: b.stdio.LastLine()}
		case status.Signal() == syscall.SIGKILL && short:
			return memory
		}
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: fmt.Sprintf("its command was ended by the signal %q", status.Signal())}
	}
	if short {
		return memory
	}
	return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: "its first process was killed"}
}

func outOfMemory(limits sandbox.Limits) string {
	return fmt.Sprintf("it took more than its %d MiB of memory", limits.MemoryBytes>>20)
}

// tearDown removes what we made for the box. Its processes are gone.
func (b *box) tearDown() error {
	var errs []error
	for _, file := range []*os.File{b.line.File(), b.exitsSock} {
		file.Close() // a nil one, or one closed before, only says so
	}
	if b.exits != nil {
		errs = append(errs, b.exits.Close())
	}
	if b.group != nil {
		errs = append(errs, b.host.cgroups.Remove(b.group))
	}
	if b.root != nil && b.root != b.host.seen {
		errs = append(errs, b.root.Close())
	}
	if b.users != 0 {
		errs = append(errs, b.host.users.Give(b.users))
	}
	b.driver.claims.Give(b.spec.ID)
	return errors.Join(errs...)
}
