package ns

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// freezable is a box with a control group to be frozen by. There is no other way that
// the box does not notice: its programs see each other stopped by signals.
type freezable struct{ *box }

// freezeMax bounds how long a box may take to be frozen or thawed. It takes
// milliseconds.
const freezeMax = 5 * time.Second

// Freeze implements [sandbox.Freezer].
func (b freezable) Freeze(ctx context.Context) error { return b.freeze(ctx, true) }

// Thaw implements [sandbox.Freezer].
func (b freezable) Thaw(ctx context.Context) error { return b.freeze(ctx, false) }

func (b *box) freeze(ctx context.Context, frozen bool) error {
	b.freezing.Lock()
	defer b.freezing.Unlock()
	b.mu.Lock()
	ending, same := b.cause != "", b.frozen == frozen && !b.unsure
	if !ending && frozen {
		b.frozen = true // from here on, who ends the box has it thawed
	}
	b.mu.Unlock()
	switch {
	case ending:
		return errors.New("the box has ended")
	case same:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeMax)
	defer cancel()
	change := b.group.Thaw
	if frozen {
		change = b.group.Freeze
	}
	err := change(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unsure = err != nil; b.unsure {
		return fmt.Errorf("box %s: %w", b.spec.ID, err)
	}
	b.frozen = frozen
	return nil
}

// melt thaws a box that has been killed: in version 1 of control groups the frozen do
// not die before.
func (b *box) melt() {
	b.freezing.Lock()
	defer b.freezing.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), freezeMax)
	defer cancel()
	if err := b.group.Thaw(ctx); err != nil {
		select {
		case <-b.ended: // it needed no thawing
		default:
			b.log.Error("a box that was stopped is frozen still", "error", err)
		}
	}
}
