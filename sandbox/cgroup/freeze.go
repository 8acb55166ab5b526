package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Freeze stops everything in the group where it is, and returns when it has stopped.
// If ctx ends before, everything runs on. It fails with [errors.ErrUnsupported] where
// there is no freezing. It must not be called while Thaw or Kill is.
func (g *Group) Freeze(ctx context.Context) error {
	if !g.held.Freeze {
		return fmt.Errorf("freeze a box: %w", errors.ErrUnsupported)
	}
	if err := g.freeze(ctx, true); err != nil {
		return errors.Join(fmt.Errorf("freeze a box: %w", err), g.freeze(context.WithoutCancel(ctx), false))
	}
	return nil
}

// Thaw sets going what Freeze has stopped. It is the inverse of it in every way.
func (g *Group) Thaw(ctx context.Context) error {
	if !g.held.Freeze {
		return fmt.Errorf("thaw a box: %w", errors.ErrUnsupported)
	}
	if err := g.freeze(ctx, false); err != nil {
		return fmt.Errorf("thaw a box: %w", err)
	}
	return nil
}

// freeze asks for the one state or the other until it is reached.
func (g *Group) freeze(ctx context.Context, frozen bool) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		// Asked for each time anew, as version 1 gives up on what does not freeze at
		// first.
		if done, err := g.tryFreeze(frozen); done || err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// tryFreeze asks for a state and reports whether it is reached.
func (g *Group) tryFreeze(frozen bool) (bool, error) {
	if dir, ok := g.dirs[unified]; ok {
		var value int64
		if frozen {
			value = 1
		}
		if err := write(dir, "cgroup.freeze", strconv.FormatInt(value, 10)); err != nil {
			return false, err
		}
		return Counter(dir, "cgroup.events", "frozen ") == value, nil
	}
	value := "THAWED"
	if frozen {
		value = "FROZEN"
	}
	if err := write(g.dirs[freezer], "freezer.state", value); err != nil {
		return false, err
	}
	state, err := words(g.dirs[freezer], "freezer.state")
	return len(state) == 1 && state[0] == value, err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Kill kills everything in the group, frozen or not, and returns when there is nothing
// left in it.
func (g *Group) Kill(ctx context.Context) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		// Again and again, as without a freezer there may be more by the time that all
		// are killed.
		left, err := g.killAll()
		if err != nil {
			return fmt.Errorf("kill a box: %w", err)
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("kill a box, of which %d processes are left: %w", left, err)
		}
	}
}

// killAll kills all that is in the group now and reports how many that were.
func (g *Group) killAll() (int, error) {
	list, err := g.processes()
	if err != nil || len(list) == 0 {
		return 0, err
	}
	if dir, ok := g.dirs[unified]; ok {
		// Since Linux 5.14. It works on what is frozen, too.
		if _, err := os.Lstat(filepath.Join(dir, "cgroup.kill")); err == nil {
			return len(list), write(dir, "cgroup.kill", "1")
		}
	}
	if g.held.Freeze {
		// So that nobody is born in the meantime. What does not freeze at once is no
		// reason to wait: we come again.
		stopping, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_ = g.freeze(stopping, true)
		cancel()
		if list, err = g.processes(); err != nil {
			return 0, err
		}
	}
	if err := g.killListed(list); err != nil || !g.held.Freeze {
		return len(list), err
	}
	// In version 1 the frozen do not die before they are thawed.
	thawing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return len(list), g.freeze(thawing, false)
}

// killBatch is how many processes are held on to at a time while they are killed.
const killBatch = 64

// killListed kills those of the processes that are still in the group. By the time that
// a list is read, what had a number in it may be gone and another process have that.
func (g *Group) killListed(list []int) error {
	for batch := range slices.Chunk(list, killBatch) {
		held := make(map[int]int) // by number, what the number cannot change under
		for _, pid := range batch {
			// Below 1 are no processes, but groups of them, ours for one.
			if pid < 1 {
				continue
			}
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				held[pid] = fd
			}
		}
		there, err := g.processes()
		for pid, fd := range held {
			if err == nil && slices.Contains(there, pid) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may be gone by now
			}
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// processes returns those of the group that we can see.
func (g *Group) processes() ([]int, error) {
	for _, controller := range []string{unified, freezer, pids, memory, cpu, cpuacct} {
		dir, ok := g.dirs[controller]
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil, nil // the group is gone
		}
		if err != nil {
			return nil, err
		}
		var list []int
		for line := range strings.Lines(string(data)) {
			// 0 is one in a namespace that we do not see.
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				list = append(list, pid)
			}
		}
		return list, nil
	}
	return nil, nil
}
