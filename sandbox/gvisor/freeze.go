package gvisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// freezeMax bounds how long it may take to freeze or thaw a box, which is a matter of
// milliseconds. One for which it does not suffice is ended, as nobody knows what state
// it is in.
const freezeMax = 5 * time.Second

var errEnded = errors.New("the box has ended")

// Freeze implements [sandbox.Freezer]: the box's kernel takes the programs off the CPU,
// and then it is stopped itself, beside the opener of files, by a signal. That works for
// every user. (The freezer of control groups, and signals to the processes that the
// programs run in, now and then stop one that the kernel is just about to trace, and
// it is lost for good.)
func (b *box) Freeze(ctx context.Context) error {
	b.still.Lock()
	defer b.still.Unlock()
	return b.freeze(ctx)
}

// Thaw implements [sandbox.Freezer].
func (b *box) Thaw(ctx context.Context) error {
	b.still.Lock()
	defer b.still.Unlock()
	return b.thaw(ctx)
}

// freeze is Freeze for who holds b.still.
func (b *box) freeze(ctx context.Context) error {
	kernel, opener, err := b.living(ctx)
	if err != nil || b.frozen.Load() {
		return err
	}
	err = b.whole(func(ctx context.Context) error {
		if err := b.tell(ctx, tellPause, nil); err != nil {
			return err
		}
		return errors.Join(kernel.signal(unix.SIGSTOP), opener.signal(unix.SIGSTOP), kernel.awaitStop(ctx))
	})
	if err != nil {
		return fmt.Errorf("freeze box %s: %w", b.spec.ID, err)
	}
	b.frozen.Store(true)
	return nil
}

// thaw is Thaw for who holds b.still.
func (b *box) thaw(ctx context.Context) error {
	kernel, opener, err := b.living(ctx)
	if err != nil || !b.frozen.Load() {
		return err
	}
	err = b.whole(func(ctx context.Context) error {
		if err := errors.Join(opener.signal(unix.SIGCONT), kernel.signal(unix.SIGCONT)); err != nil {
			return err
		}
		return b.tell(ctx, tellResume, nil)
	})
	if err != nil {
		return fmt.Errorf("thaw box %s: %w", b.spec.ID, err)
	}
	b.frozen.Store(false)
	return nil
}

// living returns the box's processes, unless it was ended, or has, or ctx has.
func (b *box) living(ctx context.Context) (kernel, opener *process, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != "" || len(b.parts) != 2 {
		return nil, nil, errEnded
	}
	return b.parts[0], b.parts[1], ctx.Err()
}

// whole does something to the box that must not be left half done.
func (b *box) whole(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), freezeMax)
	defer cancel()
	err := f(ctx)
	if err == nil {
		return nil
	}
	if _, _, ended := b.living(ctx); ended != nil {
		return errEnded
	}
	b.end(sandbox.CauseCrashed, "it could not be frozen or thawed")
	return err
}

// awaitStop waits until the process has stopped.
func (p *process) awaitStop(ctx context.Context) error {
	for {
		fields := statOf(p.pid)
		if len(fields) == 0 || fields[0] == "Z" {
			return errEnded
		}
		if fields[0] == "T" || fields[0] == "t" {
			return nil
		}
		if err := pause(ctx, 50*time.Microsecond); err != nil {
			return fmt.Errorf("process %d does not stop: %w", p.pid, err)
		}
	}
}
