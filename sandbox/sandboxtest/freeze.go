package sandboxtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// freezer returns a box as what can be frozen, if the backend says that its boxes can.
func (s suite) freezer(t *testing.T, box sandbox.Box) sandbox.Freezer {
	t.Helper()
	f, ok := box.(sandbox.Freezer)
	if !ok {
		t.Fatal("the report says that boxes can be frozen, and this one cannot")
	}
	return f
}

func (s suite) needFreeze(t *testing.T) {
	t.Helper()
	if !s.report.Freeze {
		t.Skip("the backend cannot freeze boxes here")
	}
}

// A frozen box does nothing, and goes on where it was.
func (s suite) freeze(t *testing.T) {
	s.needFreeze(t)
	spec := s.spec(t)
	box, client := s.dial(t, spec)
	freezer := s.freezer(t, box)
	bash(t, client, "kept=here; (n=0; while :; do n=$((n+1)); echo $n >count.new; mv count.new count; done) >/dev/null 2>&1 &")
	count := func() string {
		data, _ := os.ReadFile(filepath.Join(spec.WorkDir, "count"))
		return strings.TrimSpace(string(data))
	}
	changes := func(from string, how string) {
		t.Helper()
		for deadline := time.Now().Add(patience); count() == from; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing is counted %s", how)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	changes("", "at first")
	for range 3 {
		// Twice is no more than once.
		if err := errors.Join(freezer.Freeze(ctx), freezer.Freeze(ctx)); err != nil {
			t.Fatal(err)
		}
		before, stats := count(), cpuTime(t, box)
		time.Sleep(100 * time.Millisecond) // in which it would count, were it not frozen
		if after := count(); after != before {
			t.Errorf("frozen, it counted from %s to %s", before, after)
		}
		if used := cpuTime(t, box) - stats; used > 5*time.Millisecond {
			t.Errorf("frozen, it took %v of CPU time", used)
		}
		if err := errors.Join(freezer.Thaw(ctx), freezer.Thaw(ctx)); err != nil {
			t.Fatal(err)
		}
		changes(before, "after a thaw")
	}
	// What is asked of a frozen box is answered once it is thawed.
	if err := freezer.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		text, _ := call(t, client, "bash", map[string]any{"command": "echo $kept"})
		answer <- strings.TrimSpace(text)
	}()
	select {
	case text := <-answer:
		t.Errorf("frozen, it answered %q", text)
	case <-time.After(50 * time.Millisecond):
	}
	if err := freezer.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if text := <-answer; text != "here" {
		t.Errorf("the shell after all that: %q", text)
	}
}

func cpuTime(t *testing.T, box sandbox.Box) time.Duration {
	t.Helper()
	stats, err := box.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return stats.CPUTime
}

// Stop works on a frozen box, and nothing of it can be frozen afterwards.
func (s suite) stopWhenFrozen(t *testing.T) {
	s.needFreeze(t)
	for name, freeze := range map[string]func(ctx context.Context, f sandbox.Freezer) error{
		"frozen": func(ctx context.Context, f sandbox.Freezer) error { return f.Freeze(ctx) },
		"thawed": func(ctx context.Context, f sandbox.Freezer) error { return errors.Join(f.Freeze(ctx), f.Thaw(ctx)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box, client := s.dial(t, s.spec(t))
			bash(t, client, "setsid sleep 1000 & nohup sleep 1000 >/dev/null 2>&1 &")
			freezer := s.freezer(t, box)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := freeze(ctx, freezer); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			stop(t, box)
			if took := time.Since(begun); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			if exit := wait(t, box); exit.Cause != sandbox.CauseStopped {
				t.Errorf("exit %+v", exit)
			}
			if err := freezer.Freeze(ctx); err == nil {
				t.Error("a box that has ended was frozen")
			}
		})
	}
}

// The lifetime of a box that is frozen ends, too.
func (s suite) lifetimeWhenFrozen(t *testing.T) {
	s.needFreeze(t)
	s.needLimit(t, "lifetime")
	spec := s.spec(t)
	spec.Limits.Lifetime = 3 * time.Second
	box := s.start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.freezer(t, box).Freeze(ctx); err != nil && ctx.Err() == nil {
		// It may have ended by now, on a machine that is busy.
		t.Log(err)
	}
	if exit := wait(t, box); exit.Cause != sandbox.CauseTime {
		t.Errorf("exit %+v", exit)
	}
}

// A checkpoint goes on as often as wanted, each time where it was taken.
func (s suite) checkpoint(t *testing.T) {
	restorer, ok := s.driver.(sandbox.Restorer)
	if !s.report.Checkpoint {
		t.Skip("the backend takes no checkpoints here")
	}
	if !ok {
		t.Fatal("the report says that there are checkpoints, and the driver restores none")
	}
	// Each line is answered with how many there have been, which is in memory only, and
	// with what is in a file outside the work folder.
	const counter = `n=0; echo $RANDOM >/tmp/mark; while read line; do n=$((n+1)); echo "$n $line $(cat /tmp/mark)"; done`
	spec := s.spec(t)
	spec.Command = []string{"/bin/bash", "-c", counter}
	box := s.start(t, spec)
	talk := func(box sandbox.Box, out *bufio.Reader, line string) string {
		t.Helper()
		if _, err := fmt.Fprintln(stdin(box), line); err != nil {
			t.Fatal(err)
		}
		answer, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("%v; %+v", err, box.Wait())
		}
		return strings.TrimSpace(answer)
	}
	out := bufio.NewReader(stdout(box))
	first := talk(box, out, "a")
	mark := strings.TrimPrefix(first, "1 a ")
	if first == mark {
		t.Fatalf("answer %q", first)
	}
	checkpointer, ok := box.(sandbox.Checkpointer)
	if !ok {
		t.Fatal("the report says that there are checkpoints, and the box takes none")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	if err := checkpointer.Checkpoint(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if got := talk(box, out, "b"); got != "2 b "+mark {
		t.Errorf("the box itself goes on with %q", got)
	}
	for i := range 2 {
		clone := s.spec(t)
		clone.Command = spec.Command
		restored, err := restorer.Restore(ctx, clone, dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, restored) })
		if got := talk(restored, bufio.NewReader(stdout(restored)), "c"); got != "2 c "+mark {
			t.Errorf("clone %d goes on with %q", i, got)
		}
		if i == 0 {
			continue // and lives beside the next
		}
		stop(t, restored)
		if exit := wait(t, restored); exit.Cause != sandbox.CauseStopped {
			t.Errorf("exit %+v", exit)
		}
	}
	if got := talk(box, out, "d"); got != "3 d "+mark {
		t.Errorf("the box itself goes on with %q", got)
	}
	// A checkpoint that is none starts nothing, and is in nobody's way.
	clone := s.spec(t)
	clone.Command = spec.Command
	if box, err := restorer.Restore(ctx, clone, t.TempDir()); err == nil {
		stop(t, box)
		t.Error("an empty directory was restored")
	}
	if err := checkpointer.Checkpoint(ctx, filepath.Join(dir, "none")); err == nil {
		t.Error("a checkpoint in a directory that is not there")
	}
	clone.Command = []string{"/bin/sh", "-c", "exit 0"}
	stop(t, s.start(t, clone))
}
