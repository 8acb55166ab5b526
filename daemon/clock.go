package daemon

import (
	"context"
	"fmt"
	"time"
)

// The replicas of a server trust each other's clocks: a lease ends when its time has
// passed, by whoever's clock. What they have in common is the database, so each compares
// its own clock with that one's.
const (
	clockSkewMax    = 2 * time.Second // far below the shortest lease
	clockCheckEvery = time.Minute
)

// checkClock refuses a clock that is off.
func (d *Daemon) checkClock(ctx context.Context) error {
	skew, err := d.control.ClockSkew(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("ask the database for the time: %w", err)
	case skew.Abs() <= clockSkewMax:
		return nil
	}
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	return fmt.Errorf("this host's clock is %s %s the database server's, and at most %s is safe, as leases of sessions are kept by the clock: synchronise both (chrony, systemd-timesyncd)",
		skew.Abs().Round(time.Millisecond), direction, clockSkewMax)
}

// watchClock says when a clock goes off later. It does not end the server: what it has
// begun is better finished.
func (d *Daemon) watchClock(ctx context.Context) error {
	tick := time.NewTicker(clockCheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := d.checkClock(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("the clock cannot be trusted", "error", err)
		}
	}
}
