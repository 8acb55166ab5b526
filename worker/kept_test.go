package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// freezing is virtual with boxes that can be frozen.
func freezing(t *testing.T, f func(f *field)) {
	virtual(t, func(fd *field) {
		fd.driver.freezes = true
		f(fd)
	})
}

// next gives a session another turn, with an item if it has none that lives.
func (f *field) next(session string, calls ...toolUse) {
	f.plane.mu.Lock()
	defer f.plane.mu.Unlock()
	s := f.plane.sessions[session]
	s.script = [][]toolUse{calls}
	f.plane.step(s)
	if it := f.plane.item(session); it.state == "stopped" {
		f.plane.queue(fmt.Sprint("work_", session, "_", len(f.plane.items)), "session", session)
	}
}

// answered waits until a call is.
func (f *field) answered(session, call string) {
	f.Helper()
	f.plane.until(call+" answered", func() bool { return f.plane.sessions[session].calls[call].result != nil })
}

// TestBoxKept: a session that sleeps and comes back finds its box as it left it.
func TestBoxKept(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start()
		f.stopped("sesn_1")
		synctest.Wait()
		b := f.driver.started()[0]
		if frozen, _ := b.isFrozen(); !frozen || b.over() {
			t.Fatalf("the box of a session at rest: frozen %v, ended %v", frozen, b.over())
		}
		time.Sleep(10 * time.Minute)
		f.next("sesn_1", bash("c2"))
		f.answered("sesn_1", "c2")
		if n := len(f.driver.started()); n != 1 {
			t.Errorf("%d boxes, want the one that was kept", n)
		}
		f.wantResult("sesn_1", "c2", `"c2"`, false)
		f.stopped("sesn_1")
		// It is kept for so long, and no longer.
		time.Sleep(defaultKeepFor - time.Minute)
		if b.over() {
			t.Error("the box was given up early")
		}
		time.Sleep(2 * time.Minute)
		if !b.over() {
			t.Error("the box is still there")
		}
		f.next("sesn_1", bash("c3"))
		f.answered("sesn_1", "c3")
		if n := len(f.driver.started()); n != 2 {
			t.Errorf("%d boxes, want a new one", n)
		}
		w.stop()
	})
}

// TestBoxNotKept lists sessions whose box has no future.
func TestBoxNotKept(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Config)
		end  func(f *field)
	}{
		{"terminated", nil, func(f *field) { f.plane.say("sesn_1", "session.status_terminated", nil) }},
		{"deleted", nil, func(f *field) { f.plane.say("sesn_1", "session.deleted", nil) }},
		{"the operator keeps none", func(c *Config) { c.Keep.For = -1 }, func(f *field) {}},
		{"the operator keeps none, by count", func(c *Config) { c.Keep.Max = -1 }, func(f *field) {}},
		{"boxes cannot be frozen", func(c *Config) { c.Driver.(*fakeDriver).freezes = false }, func(f *field) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			freezing(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				f.start(func(c *Config) {
					if tt.edit != nil {
						tt.edit(c)
					}
				})
				f.answered("sesn_1", "c1")
				tt.end(f)
				f.stopped("sesn_1")
				synctest.Wait()
				if n := f.driver.live(); n != 0 {
					t.Errorf("%d boxes are left", n)
				}
			})
		})
	}
}

// TestKeptLimits: the longest kept go first.
func TestKeptLimits(t *testing.T) {
	tests := []struct {
		name string
		keep Keep
		want []bool // whether each box is still there
	}{
		{"by count", Keep{Max: 2}, []bool{false, false, true, true}},
		{"by memory", Keep{MemoryBytes: 300 << 20}, []bool{false, true, true, true}},
		{"by neither", Keep{}, []bool{true, true, true, true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			freezing(t, func(f *field) {
				f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
					b.uses(func() sandbox.Stats { return sandbox.Stats{MemoryBytes: 100 << 20} })
					return echo(ctx, b, c)
				}
				f.start(func(c *Config) { c.Keep = tt.keep })
				for i := range tt.want {
					id := fmt.Sprint("sesn_", i)
					f.plane.session(id, []toolUse{bash("c" + id)})
					f.stopped(id)
				}
				synctest.Wait()
				var got []bool
				for _, b := range f.driver.started() {
					got = append(got, !b.over())
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestKeptBoxIsGivenUp: the one kept longest, when its room is needed, and none that
// somebody uses.
func TestKeptBoxIsGivenUp(t *testing.T) {
	freezing(t, func(f *field) {
		w := f.start(allow)
		for _, id := range []string{"sesn_1", "sesn_2", "sesn_3"} {
			f.plane.session(id, []toolUse{bash("c" + id)})
			f.stopped(id)
		}
		synctest.Wait()
		p := opens(f.T, f.Context(), w, "sesn_1")
		synctest.Wait()
		var over []bool
		for _, want := range []bool{true, true, false} {
			if got := w.GiveUpKept(); got != want {
				t.Errorf("given up: %t, want %t", got, want)
			}
		}
		for _, b := range f.driver.started() {
			over = append(over, b.over())
		}
		if diff := cmp.Diff([]bool{false, true, true}, over); diff != "" {
			t.Error(diff)
		}
		p.in.Close()
		<-p.done
	})
}

// TestFrozenBetweenCalls: a box that does nothing while the model thinks is frozen, one
// that works in the background is not.
func TestFrozenBetweenCalls(t *testing.T) {
	freezing(t, func(f *field) {
		var busy atomic.Bool
		f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
			began := time.Now()
			b.uses(func() sandbox.Stats {
				if busy.Load() {
					return sandbox.Stats{CPUTime: time.Since(began) / 2}
				}
				return sandbox.Stats{}
			})
			return echo(ctx, b, c)
		}
		// A call of somebody else's keeps the turn open.
		f.plane.session("sesn_1", []toolUse{bash("c1"), {id: "x", name: "web_search"}})
		f.start(func(c *Config) { c.Keep.FreezeAfter = 10 * time.Second })
		f.answered("sesn_1", "c1")
		b := f.driver.started()[0]
		time.Sleep(9 * time.Second)
		if frozen, _ := b.isFrozen(); frozen {
			t.Error("frozen early")
		}
		time.Sleep(2 * time.Second)
		if frozen, _ := b.isFrozen(); !frozen {
			t.Error("not frozen while it did nothing")
		}
		busy.Store(true)
		f.plane.mu.Lock()
		f.plane.ask(f.plane.sessions["sesn_1"], bash("c2"))
		f.plane.mu.Unlock()
		f.answered("sesn_1", "c2")
		time.Sleep(5 * time.Minute)
		if frozen, _ := b.isFrozen(); frozen {
			t.Error("frozen while it worked in the background")
		}
		busy.Store(false)
		time.Sleep(time.Minute)
		if frozen, _ := b.isFrozen(); !frozen {
			t.Error("not frozen when that was over")
		}
	})
}

// TestThawFails: a box that cannot be set going again is lost like any other.
func TestThawFails(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		synctest.Wait()
		b := f.driver.started()[0]
		b.mu.Lock()
		b.thawErr = errors.New("the freezer is stuck")
		b.mu.Unlock()
		f.next("sesn_1", bash("c2"))
		f.answered("sesn_1", "c2")
		f.wantResult("sesn_1", "c2", "The sandbox was lost: it failed (thaw box: the freezer is stuck)", false)
		if !b.over() || len(f.driver.started()) != 2 {
			t.Errorf("box ended: %v; %d boxes", b.over(), len(f.driver.started()))
		}
	})
}

// TestKeptBoxLost: what ended a kept box is told when it is missed.
func TestKeptBoxLost(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.driver.started()[0].kill(sandbox.Exit{Cause: sandbox.CauseMemory})
		f.next("sesn_1", bash("c2"))
		f.answered("sesn_1", "c2")
		f.wantResult("sesn_1", "c2", "more memory than its limit", false)
	})
}

// TestNothingHeldForWaiting: a session that waits for a person, or for its first
// message, gives its item back, and carries on in its box once it has something to do.
func TestNothingHeldForWaiting(t *testing.T) {
	t.Run("for a person", func(t *testing.T) {
		freezing(t, func(f *field) {
			f.plane.session("sesn_1", []toolUse{bash("c1")}, []toolUse{{id: "c2", name: "bash", input: `{"command":"c2"}`, permission: "ask"}})
			f.start()
			f.stopped("sesn_1")
			if _, _, ok := f.plane.result("sesn_1", "c2"); ok {
				t.Error("a call that waits for a person was answered")
			}
			time.Sleep(5 * time.Minute)
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "c2", "result": "allow"})
			f.plane.mu.Lock()
			f.plane.queue("work_2", "session", "sesn_1")
			f.plane.mu.Unlock()
			f.answered("sesn_1", "c2")
			f.wantResult("sesn_1", "c2", `"c2"`, false)
			if n := len(f.driver.started()); n != 1 {
				t.Errorf("%d boxes, want the one that was kept", n)
			}
		})
	})
	t.Run("for its first message", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.plane.mu.Lock()
			f.plane.sessions["sesn_1"] = &fakeSession{id: "sesn_1", status: "idle", calls: make(map[string]*fakeCall), cut: make(chan struct{})}
			f.plane.queue("work_1", "session", "sesn_1")
			f.plane.mu.Unlock()
			f.start()
			f.stopped("sesn_1")
		})
	})
	t.Run("for the model", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.plane.session("sesn_1")
			f.plane.say("sesn_1", "user.message", nil)
			f.start()
			time.Sleep(10 * time.Minute)
			if state := f.plane.state("sesn_1"); state != "active" {
				t.Errorf("the item of a session whose turn goes on is %s", state)
			}
		})
	})
	t.Run("with a plane that is not known to queue it again", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.plane.session("sesn_1", []toolUse{{id: "c1", name: "bash", permission: "ask"}})
			f.start(func(c *Config) { c.BaseURL = "https://api.anthropic.com/" })
			time.Sleep(10 * time.Minute)
			if state := f.plane.state("sesn_1"); state != "active" {
				t.Errorf("the item is %s", state)
			}
		})
	})
	t.Run("with a call beside it that runs", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
				time.Sleep(5 * time.Minute)
				return echo(ctx, b, c)
			}
			f.plane.session("sesn_1", []toolUse{{id: "c1", name: "bash", permission: "ask"}, bash("c2")})
			f.start(func(c *Config) { c.ToolTimeout = time.Hour })
			began := time.Now()
			f.stopped("sesn_1")
			f.wantResult("sesn_1", "c2", `"c2"`, false)
			if took := time.Since(began); took != 6*time.Minute {
				t.Errorf("left after %s, want a minute after the call's end", took)
			}
		})
	})
}

func TestRequeues(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"https://api.anthropic.com/": false, "https://API.Anthropic.com": false, "https://anthropic.com/": false,
		"https://bailey.example.org/": true, "http://127.0.0.1:8484": true, "https://notanthropic.com": true, "::": false,
	} {
		if got := requeues(url); got != want {
			t.Errorf("requeues(%q) = %v", url, got)
		}
	}
}

// TestPlaceNeeded: sessions at rest keep their places until somebody needs one.
func TestPlaceNeeded(t *testing.T) {
	t.Run("the one that rests longest leaves", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.start(func(c *Config) { c.MaxSessions = 3; c.MaxIdle = -1 })
			for i := range 3 {
				id := fmt.Sprint("sesn_", i)
				f.plane.session(id, []toolUse{bash("c" + id)})
				f.answered(id, "c"+id)
				time.Sleep(time.Second)
			}
			states := func() (all []string) {
				synctest.Wait()
				for i := range 3 {
					all = append(all, f.plane.state(fmt.Sprint("sesn_", i)))
				}
				return all
			}
			// The third took the last place, so one is freed to ask for work with.
			if diff := cmp.Diff([]string{"stopped", "active", "active"}, states()); diff != "" {
				t.Error(diff)
			}
			f.plane.session("sesn_new", []toolUse{bash("c1")})
			f.answered("sesn_new", "c1")
			time.Sleep(time.Hour)
			if diff := cmp.Diff([]string{"stopped", "stopped", "active"}, states()); diff != "" {
				t.Error(diff)
			}
		})
	})
	t.Run("one that waits for others' results, too", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.start(func(c *Config) { c.MaxSessions = 1 })
			f.plane.session("sesn_1", []toolUse{{id: "x", name: "bash", kind: "agent.custom_tool_use"}})
			time.Sleep(time.Minute)
			f.plane.session("sesn_2", []toolUse{bash("c1")})
			f.answered("sesn_2", "c1")
		})
	})
	t.Run("one that works does not", func(t *testing.T) {
		virtual(t, func(f *field) {
			f.driver.run = hang
			f.start(func(c *Config) { c.MaxSessions = 1; c.ToolTimeout = time.Hour })
			f.plane.session("sesn_1", []toolUse{bash("c1")})
			time.Sleep(time.Second)
			f.plane.session("sesn_2", []toolUse{bash("c2")})
			time.Sleep(30 * time.Minute)
			if state := f.plane.state("sesn_1"); state != "active" {
				t.Errorf("the item of a session that works is %s", state)
			}
		})
	})
}

// TestMaxSessionsLive: more places are there at once, fewer as sessions leave.
func TestMaxSessionsLive(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = hang
		w := f.start(func(c *Config) { c.MaxSessions = 1; c.ToolTimeout = 24 * time.Hour })
		for i := range 3 {
			f.plane.session(fmt.Sprint("sesn_", i), []toolUse{bash(fmt.Sprint("c", i))})
		}
		time.Sleep(time.Minute)
		if n := len(f.driver.ran()); n != 1 {
			t.Errorf("%d calls run with one place", n)
		}
		w.Apply(Live{MaxSessions: 2})
		time.Sleep(time.Minute)
		if n := len(f.driver.ran()); n != 2 {
			t.Errorf("%d calls run with two places", n)
		}
		w.Apply(Live{MaxSessions: 1})
		f.plane.interrupt("sesn_0")
		f.plane.interrupt("sesn_1")
		time.Sleep(10 * time.Minute)
		if n := len(f.driver.ran()); n != 3 {
			t.Errorf("%d calls ran, want the third too", n)
		}
	})
}

// TestRetired: no more sessions are claimed, not even by a poll that is under way, and
// those that are there are served to their end. It is no state for ever.
func TestRetired(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = hang
		w := f.start(func(c *Config) { c.PoolSize = 1; c.ToolTimeout = 24 * time.Hour })
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		time.Sleep(time.Minute + 300*time.Millisecond)
		w.Apply(Live{Retired: true, PoolSize: 1})
		f.plane.session("sesn_2", []toolUse{bash("c2")})
		time.Sleep(10 * time.Minute)
		if ran := f.driver.ran(); len(ran) != 1 {
			t.Errorf("%d calls ran, want that of the session which was there", len(ran))
		}
		if err := w.Ready(); err != nil {
			t.Error(err)
		}
		f.plane.interrupt("sesn_1")
		f.stopped("sesn_1")
		time.Sleep(10 * time.Minute)
		if n := f.driver.live(); n != 0 {
			t.Errorf("%d boxes are kept, for nobody", n)
		}
		w.Apply(Live{})
		time.Sleep(10 * time.Minute)
		if ran := f.driver.ran(); len(ran) != 2 {
			t.Errorf("%d calls ran, want that of the session which waited, too", len(ran))
		}
	})
}

func TestLossTextOfDisk(t *testing.T) {
	t.Parallel()
	got := lossText(sandbox.Exit{Cause: sandbox.CauseDisk, Detail: "its work folder holds 3 MiB"}, sandbox.Limits{}.Defaults())
	for _, want := range []string{"more disk space than it may (its work folder holds 3 MiB)", "Delete what is no longer needed"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}
