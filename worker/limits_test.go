package worker

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// limitsMet are the limits of a call's box that are on record, by call.
func (f *field) limitsMet() (all []string) {
	for _, e := range f.entries() {
		if e.Action == audit.LimitHit {
			all = append(all, e.Call+" "+e.Attrs["limit"])
		}
	}
	return all
}

// TestCallThatMetALimitOfALivingBox: the box goes on, and the call says which limit it was.
func TestCallThatMetALimitOfALivingBox(t *testing.T) {
	const forkFails = "bash: fork: retry: Resource temporarily unavailable\n"
	tests := []struct {
		name    string
		counts  bool
		run     func(*fakeBox) tool.Result
		want    string
		isError bool
		record  []string
	}{
		{
			name: "a process was killed for memory", counts: true,
			run: func(b *fakeBox) tool.Result {
				b.hit(func(h *sandbox.LimitHits) { h.Memory++ })
				return tool.ErrorResult("\nexit code: 137")
			},
			want: "\nexit code: 137\n[The sandbox ran out of memory, of which all its processes and scratch files together may take 256 MiB: " +
				"the kernel ended the largest process (SIGKILL, status 137; in all 1). Use less memory at a time: smaller inputs, fewer processes, streaming instead of loading.]",
			isError: true, record: []string{"c1 memory"},
		},
		{
			name: "in the background", counts: true,
			run: func(b *fakeBox) tool.Result {
				b.hit(func(h *sandbox.LimitHits) { h.Memory += 2 })
				return text("done")
			},
			want: "done\n[The sandbox ran out of memory, of which", record: []string{"c1 memory"},
		},
		{
			name: "killed for another reason", counts: true,
			run:  func(*fakeBox) tool.Result { return tool.ErrorResult("\nexit code: 137") },
			want: "\nexit code: 137", isError: true,
		},
		{
			name: "killed where nobody counts, and the box lives",
			run:  func(*fakeBox) tool.Result { return tool.ErrorResult("\nexit code: 137") },
			want: "\nexit code: 137", isError: true,
		},
		{
			name: "processes, counted", counts: true,
			run: func(b *fakeBox) tool.Result {
				b.hit(func(h *sandbox.LimitHits) { h.Processes += 900 })
				return tool.ErrorResult("begun\n" + strings.Repeat(forkFails, 500) + "half\n" + forkFails + "\nexit code: 254")
			},
			want: "begun\n" + strings.Repeat(forkFails, 3) + "[498 more such lines are left out]\nhalf\n\nexit code: 254\n" +
				"[Processes could not be started: the sandbox may have 128 processes and threads at a time, and had as many. " +
				`Start fewer, and wait for them to end; a bash call with {"restart": true} ends what the shell has started.]`,
			isError: true, record: []string{"c1 processes"},
		},
		{
			name: "processes, until the shell is restarted", counts: true,
			run: func(b *fakeBox) tool.Result {
				b.hit(func(h *sandbox.LimitHits) { h.Processes += 9 })
				return text("bash session restarted")
			},
			want: "bash session restarted", record: []string{"c1 processes"},
		},
		{
			name: "processes, as the output says",
			run:  func(*fakeBox) tool.Result { return text("RuntimeError: can't start new thread\n") },
			want: "RuntimeError: can't start new thread\n\n[Processes could not be started:", record: []string{"c1 processes"},
		},
		{
			name: "a call's time",
			run: func(*fakeBox) tool.Result {
				time.Sleep(20 * time.Second)
				r := tool.ErrorResult("half\n[timed out]\nsession restarted after timeout")
				r.TimedOut = true
				return r
			},
			want: "half\n[timed out]\nsession restarted after timeout\n" +
				"[The call was ended after 20s, which is as long as one may take here (sessions.tool-timeout). " +
				"Run what takes longer in the background, with its output in a file that later calls look at: COMMAND >out.log 2>&1 &]",
			isError: true, record: []string{"c1 time"},
		},
		{
			name: "less time, as the model wished",
			run: func(*fakeBox) tool.Result {
				time.Sleep(time.Second)
				r := tool.ErrorResult("\n[timed out]\nsession restarted after timeout")
				r.TimedOut = true
				return r
			},
			want: "\n[timed out]\nsession restarted after timeout\n" +
				"[The command was ended by its timeout_ms, which is 120000 if it names none; up to 20000 is possible here. " +
				"Run what takes longer in the background, with its output in a file that later calls look at: COMMAND >out.log 2>&1 &]",
			isError: true,
		},
		{
			name: "scratch space",
			run: func(*fakeBox) tool.Result {
				r := tool.ErrorResult("dd: No space left on device\nexit code: 1")
				r.Full = &tool.Full{Place: "/tmp", Bytes: 64 << 20}
				return r
			},
			want: "dd: No space left on device\nexit code: 1\n[The scratch space at /tmp is full: the sandbox has 64 MiB there. " +
				"Remove what is no longer needed, or write to /workspace, which is no part of it.]",
			isError: true, record: []string{"c1 disk"},
		},
		{
			name: "a disk that is none of the box's",
			run: func(*fakeBox) tool.Result {
				r := tool.ErrorResult("dd: No space left on device\nexit code: 1")
				r.Full = &tool.Full{Place: "/", Bytes: 64 << 40}
				return r
			},
			want: "dd: No space left on device\nexit code: 1", isError: true,
		},
		{
			name: "an old log that is shown where they are counted", counts: true,
			run:  func(*fakeBox) tool.Result { return text(strings.Repeat(forkFails, 5)) },
			want: strings.Repeat(forkFails, 5),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.driver.counts = tt.counts
				f.driver.run = func(_ context.Context, b *fakeBox, c tool.Call) tool.Result {
					if strings.Contains(string(c.Input), "c1") {
						return tt.run(b)
					}
					return text("innocent")
				}
				f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")})
				f.start(func(c *Config) {
					c.Limits = sandbox.Limits{MemoryBytes: 256 << 20, Processes: 128}
					c.ToolTimeout = 20 * time.Second
				})
				f.stopped("sesn_1")
				got, isError, _ := f.plane.result("sesn_1", "c1")
				if !strings.HasPrefix(got, tt.want) || isError != tt.isError || tt.record == nil && got != tt.want {
					t.Errorf("error %v: %s", isError, cmp.Diff(tt.want, got))
				}
				if got, _, _ := f.plane.result("sesn_1", "c2"); got != "innocent" {
					t.Errorf("the next call says %q", got)
				}
				if diff := cmp.Diff(tt.record, f.limitsMet()); diff != "" {
					t.Error(diff)
				}
				if n := len(f.driver.started()); n != 1 {
					t.Errorf("%d boxes", n)
				}
			})
		})
	}
}

// TestCallThatEndsItsBoxAMomentLater: what it used of memory is news for that call, not
// for the next.
func TestCallThatEndsItsBoxAMomentLater(t *testing.T) {
	for name, counts := range map[string]bool{"counted": true, "by its status": false} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.driver.counts = counts
				f.driver.run = func(_ context.Context, b *fakeBox, c tool.Call) tool.Result {
					if !strings.Contains(string(c.Input), "c1") {
						return text("innocent")
					}
					time.AfterFunc(200*time.Millisecond, func() { b.kill(sandbox.Exit{Cause: sandbox.CauseMemory}) })
					if counts {
						b.hit(func(h *sandbox.LimitHits) { h.Memory, h.Ending = 1, true })
						return text("done")
					}
					return tool.ErrorResult("\nexit code: 137")
				}
				f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")})
				f.start()
				f.stopped("sesn_1")
				f.wantResult("sesn_1", "c1", "[The sandbox was lost: it used more memory than its limit of 2048 MiB. Files in /workspace are kept", true)
				if got, _, _ := f.plane.result("sesn_1", "c2"); got != "innocent" {
					t.Errorf("the next call says %q", got)
				}
				if diff := cmp.Diff([]string{" memory"}, f.limitsMet()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}
