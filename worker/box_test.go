package worker

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

func TestBoxIsLazy(t *testing.T) {
	for _, eager := range []bool{false, true} {
		t.Run(map[bool]string{false: "lazy", true: "eager"}[eager], func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.session("sesn_1")
				f.start(func(c *Config) { c.EagerBox = eager })
				time.Sleep(10 * time.Second)
				if got := len(f.driver.started()) == 1; got != eager {
					t.Errorf("box started: %v, want %v", got, eager)
				}
			})
		})
	}
}

func TestBoxSpec(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) {
			c.AgentArgs = []string{"tool", "serve"}
			c.BoxEnv = []string{"TZ=Europe/Berlin"}
			c.Limits = sandbox.Limits{Processes: 7}
		})
		f.stopped("sesn_1")
		spec := f.driver.started()[0].spec
		if got := strings.Join(spec.Command, " "); got != sandbox.AgentPath+" tool serve" {
			t.Errorf("command %q", got)
		}
		if spec.Agent != "/bin/true" || spec.Limits.Processes != 7 {
			t.Errorf("spec %+v", spec)
		}
		env := strings.Join(spec.Env, "\n")
		if !strings.Contains(env, "TZ=Europe/Berlin") || !strings.Contains(env, "HOME=/workspace") || strings.Contains(env, "ANTHROPIC") {
			t.Errorf("environment\n%s", env)
		}
	})
}

// TestBoxLost ends a box in every way, during a call and between two.
func TestBoxLost(t *testing.T) {
	tests := []struct {
		exit sandbox.Exit
		want []string
	}{
		{sandbox.Exit{Cause: sandbox.CauseMemory}, []string{"more memory than its limit of 2048 MiB", "Use less memory"}},
		{sandbox.Exit{Cause: sandbox.CauseTime}, []string{"ran longer than its limit of 24h", "Split long work"}},
		{sandbox.Exit{Cause: sandbox.CauseExited, Code: 137}, []string{"ended with status 137"}},
		{sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: "sentry panic"}, []string{"it failed (sentry panic)"}},
		{sandbox.Exit{Cause: sandbox.CauseStopped}, []string{"stopped from outside"}},
	}
	for _, tt := range tests {
		t.Run(string(tt.exit.Cause), func(t *testing.T) {
			virtual(t, func(f *field) {
				f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
					switch {
					case strings.Contains(string(c.Input), "die now"):
						b.kill(tt.exit)
						<-ctx.Done()
					case strings.Contains(string(c.Input), "die later"):
						defer time.AfterFunc(time.Second, func() { b.kill(tt.exit) })
					case strings.Contains(string(c.Input), "wait"):
						time.Sleep(5 * time.Second)
					}
					return echo(ctx, b, c)
				}
				f.plane.session("sesn_1",
					[]toolUse{{id: "c1", name: "bash", input: `{"command":"die now"}`}, bash("c2")},
					[]toolUse{{id: "c3", name: "bash", input: `{"command":"die later"}`}})
				w := f.start(func(c *Config) { c.MaxIdle = -1 })
				time.Sleep(10 * time.Second)
				f.plane.mu.Lock()
				s := f.plane.sessions["sesn_1"]
				s.script = [][]toolUse{{{id: "c4", name: "read"}, bash("c5"), bash("c6")}}
				f.plane.step(s)
				f.plane.mu.Unlock()
				time.Sleep(10 * time.Second)
				for _, want := range append(tt.want, "Files in /workspace are kept", "effect is unknown") {
					f.wantResult("sesn_1", "c1", want, true)
				}
				f.wantResult("sesn_1", "c2", "c2", false)
				// The loss nobody saw is told with the next use of the shell, once.
				f.wantResult("sesn_1", "c3", "die later", false)
				text, _, _ := f.plane.result("sesn_1", "c4")
				if strings.Contains(text, "lost") {
					t.Errorf("read says %q", text)
				}
				text, _, _ = f.plane.result("sesn_1", "c6")
				if strings.Contains(text, "lost") {
					t.Errorf("the loss is told twice: %q", text)
				}
				if len(f.driver.started()) != 3 {
					t.Errorf("%d boxes, want 3", len(f.driver.started()))
				}
				for _, want := range tt.want {
					f.wantResult("sesn_1", "c5", want, false)
				}
				w.stop()
			})
		})
	}
}

// TestBoxHangs: an agent that neither answers nor ends costs its box.
func TestBoxHangs(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
			if strings.Contains(string(c.Input), "c1") {
				<-b.ctx.Done() // deaf to cancellation
			}
			return echo(ctx, b, c)
		}
		f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")})
		began := time.Now()
		f.start(func(c *Config) { c.ToolTimeout = 10 * time.Second })
		f.plane.until("answered", func() bool { return f.plane.sessions["sesn_1"].calls["c2"].result != nil })
		if took := time.Since(began); took > time.Minute {
			t.Errorf("took %s", took)
		}
		f.wantResult("sesn_1", "c1", "agent stopped answering", true)
		f.wantResult("sesn_1", "c2", "c2", false)
	})
}

// TestBoxNotStarted: each call says why, and the next one tries again.
func TestBoxNotStarted(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.startErr = &sandbox.Unavailable{Backend: "fake", Cause: "no KVM", Remedy: []string{"modprobe kvm"}}
		s := f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) { c.MaxIdle = -1 })
		time.Sleep(time.Second)
		f.wantResult("sesn_1", "c1", "could not be started, so nothing was run", true)
		f.wantResult("sesn_1", "c1", "no KVM", true)
		f.driver.mu.Lock()
		f.driver.startErr = nil
		f.driver.mu.Unlock()
		f.plane.mu.Lock()
		s.script = [][]toolUse{{bash("c2")}}
		f.plane.step(s)
		f.plane.mu.Unlock()
		time.Sleep(time.Second)
		f.wantResult("sesn_1", "c2", "c2", false)
		want := "tool.end bash c1 refused"
		if got := f.records(); len(got) != 4 || got[1] != want {
			t.Errorf("records %q, want %q second", got, want)
		}
	})
}

func TestToolTimeoutReachesTheBox(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = func(ctx context.Context, _ *fakeBox, c tool.Call) tool.Result {
			return text(c.Timeout().String())
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) { c.ToolTimeout = time.Hour })
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "1h0m0s", false)
	})
}

// TestDrain ends the worker in the middle of things.
func TestDrain(t *testing.T) {
	takes := func(d time.Duration) func(context.Context, *fakeBox, tool.Call) tool.Result {
		return func(ctx context.Context, _ *fakeBox, c tool.Call) tool.Result {
			select {
			case <-ctx.Done():
				return tool.ErrorResult("cancelled")
			case <-time.After(d):
				return text("finished")
			}
		}
	}
	tests := []struct {
		name    string
		run     func(context.Context, *fakeBox, tool.Call) tool.Result
		script  [][]toolUse
		fault   func(f *field)
		took    time.Duration // until Run returned
		results map[string]string
		stop    bool // the item is stopped, not left to another worker
	}{
		{name: "nothing to do", took: 0, stop: true},
		{name: "a call that ends in time", run: takes(10 * time.Second), script: [][]toolUse{{bash("c1")}, {bash("c2")}},
			took: 9 * time.Second, results: map[string]string{"c1": "finished", "c2": ""}},
		{name: "the calls after it are left", run: takes(10 * time.Second), script: [][]toolUse{{bash("c1"), bash("c2")}},
			took: 9 * time.Second, results: map[string]string{"c1": "finished", "c2": ""}},
		{name: "a call that takes too long", run: takes(time.Hour), script: [][]toolUse{{bash("c1")}, {bash("c2")}},
			took: 25 * time.Second, results: map[string]string{"c1": "because the worker shut down", "c2": ""}},
		{name: "a call that does not stop", run: func(_ context.Context, b *fakeBox, c tool.Call) tool.Result {
			<-b.ctx.Done()
			return text("")
		}, script: [][]toolUse{{bash("c1")}}, took: 30 * time.Second, results: map[string]string{"c1": ""}},
		{name: "the plane is down", run: takes(10 * time.Second), script: [][]toolUse{{bash("c1")}}, fault: func(f *field) {
			f.plane.down(true)
		}, took: 29 * time.Second, results: map[string]string{"c1": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				if tt.run != nil {
					f.driver.run = tt.run
				}
				f.plane.session("sesn_1", tt.script...)
				w := f.start()
				time.Sleep(time.Second)
				if tt.fault != nil {
					tt.fault(f)
				}
				began := time.Now()
				w.stop()
				if took := time.Since(began); took < tt.took || took > tt.took+2*time.Second {
					t.Errorf("Run took %s to end, want %s", took, tt.took)
				}
				for call, want := range tt.results {
					if got, _, ok := f.plane.result("sesn_1", call); ok != (want != "") || !strings.Contains(got, want) {
						t.Errorf("result of %s: %q, want %q", call, got, want)
					}
				}
				if got := f.plane.state("sesn_1") == "stopped"; got != tt.stop {
					t.Errorf("item stopped: %v, want %v", got, tt.stop)
				}

				// Another worker, or this one, takes over and finishes, soon.
				f.plane.down(false)
				ran := len(f.driver.ran())
				f.driver.setRun(echo)
				began = time.Now()
				f.start()
				f.stopped("sesn_1")
				open := 0
				for call, want := range tt.results {
					if want == "" {
						open++
					}
					if _, _, ok := f.plane.result("sesn_1", call); !ok {
						t.Errorf("%s was never answered", call)
					}
				}
				if n := len(f.driver.ran()) - ran; n > open {
					t.Errorf("%d calls were run again", n)
				}
				if took := time.Since(began); !tt.stop && took > 2*time.Minute {
					t.Errorf("taken over and finished after %s", took)
				}
			})
		})
	}
}

// down makes every request fail.
func (p *fakePlane) down(down bool) {
	if down {
		p.setFault(failConnect)
	} else {
		p.setFault(nil)
	}
}

// TestDrainHandsOver: a second worker with its own data directory carries on
// with the calls that were not begun.
func TestDrainHandsOver(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = func(ctx context.Context, _ *fakeBox, c tool.Call) tool.Result {
			time.Sleep(5 * time.Second)
			return echo(ctx, nil, c)
		}
		f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")})
		w := f.start()
		time.Sleep(time.Second)
		w.stop()
		left := time.Now()
		f.dir = t.TempDir()
		f.start()
		f.plane.until("answered", func() bool { return f.plane.sessions["sesn_1"].calls["c2"].result != nil })
		if took := time.Since(left); took > 20*time.Second {
			t.Errorf("handed over after %s", took)
		}
		if n := len(f.driver.ran()); n != 2 {
			t.Errorf("%d calls ran, want 2", n)
		}
	})
}

func TestLossText(t *testing.T) {
	t.Parallel()
	got := lossText(sandbox.Exit{Cause: "new cause"}, sandbox.Limits{}.Defaults())
	if !strings.HasPrefix(got, "The sandbox was lost: it failed. Files") {
		t.Errorf("lossText = %q", got)
	}
}

func TestStderrIsBounded(t *testing.T) {
	t.Parallel()
	l := &stderrLog{log: discard, left: stderrMax}
	for range 10_000 {
		if n, err := l.Write([]byte(strings.Repeat("x", 1000))); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(l.part) > stderrMax+1000 {
		t.Errorf("%d bytes are kept", len(l.part))
	}
}
