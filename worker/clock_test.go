package worker

import (
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

// TestTheClockIsMovedAnHour: forward or back, while a call runs, a box is kept and a
// person has a shell open; and once more between a worker that was killed and the next.
// Nothing is lost, nothing is given up early, and no call is run twice.
//
// Virtual time is what passes. A clock that is moved shows where times are written down:
// in what the plane says, in the audit record, and in the times of files.
func TestTheClockIsMovedAnHour(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			freezing(t, func(f *field) { f.movesItsClock(by) })
		})
	}
}

func (f *field) movesItsClock(by time.Duration) {
	t := f.T
	var ahead atomic.Int64
	move := func(by time.Duration) {
		ahead.Store(int64(by))
		f.plane.mu.Lock()
		f.plane.ahead = by
		f.plane.mu.Unlock()
		// What was written until now is as much older, or younger, by the new clock.
		err := filepath.WalkDir(f.dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil // a temporary file, gone by now
			}
			at := time.Now().Add(-by)
			if err := os.Chtimes(path, at, at); err != nil && !os.IsNotExist(err) {
				return err
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	release := make(chan struct{})
	f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
		if strings.Contains(string(c.Input), "slow") {
			select {
			case <-release:
			case <-ctx.Done():
				return tool.ErrorResult("cut short: " + ctx.Err().Error())
			}
		}
		return echo(ctx, b, c)
	}
	// start runs a worker that can be killed, with a record that keeps the moved time.
	start := func() (w *started, kill func()) {
		record, err := audit.Open(filepath.Join(f.dir, "audit.jsonl"), audit.Options{
			Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		})
		if err != nil {
			t.Fatal(err)
		}
		d := &doom{}
		c := f.config()
		c.Audit, c.Shell.Allow, c.ToolTimeout = record, true, 3*time.Hour
		c.HTTPClient = &http.Client{Transport: doomed{d, f.plane}}
		worker, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		worker.step = d.step
		w = f.run(worker)
		d.kill = w.cancel
		t.Cleanup(func() { record.Close() })
		return w, func() {
			d.mu.Lock()
			d.n = d.seen + 1
			d.mu.Unlock()
			w.cancel()
			w.stop()
			if err := record.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	slow := func(id string) toolUse { return toolUse{id: id, name: "bash", input: `{"command":"slow ` + id + `"}`} }

	w, kill := start()
	f.plane.session("sesn_kept", []toolUse{bash("k1")})
	f.stopped("sesn_kept")
	f.plane.session("sesn_busy", []toolUse{slow("b1")})
	f.plane.until("b1 runs", func() bool { return len(f.driver.ran()) == 2 })
	p := opens(t, f.Context(), w, "sesn_kept")
	synctest.Wait()

	same := func(when string) {
		t.Helper()
		synctest.Wait()
		if n := len(f.driver.started()); n != 2 || f.driver.live() != 2 {
			t.Errorf("%s: %d boxes were started, and %d live; want the two from the beginning", when, n, f.driver.live())
		}
		if state := f.plane.state("sesn_busy"); state != "active" {
			t.Errorf("%s: the item of the call that runs is %s", when, state)
		}
		select {
		case <-p.done:
			t.Errorf("%s: the shell has ended: %v", when, p.err)
		default:
		}
	}
	for _, to := range []time.Duration{by, 0, by} {
		move(to)
		time.Sleep(7 * time.Minute)
		same("moved to " + to.String())
		if _, err := p.in.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	f.answered("sesn_busy", "b1")
	f.wantResult("sesn_busy", "b1", "slow b1", false)
	p.in.Close()
	<-p.done
	f.next("sesn_kept", bash("k2"))
	f.answered("sesn_kept", "k2")
	if n := len(f.driver.started()); n != 2 {
		t.Errorf("the kept box was given up: %d boxes", n)
	}

	// A call is running when the worker is killed, and the clock is moved before the next
	// begins.
	f.stopped("sesn_busy")
	f.driver.setRun(hang)
	f.next("sesn_busy", slow("b2"))
	f.plane.until("b2 runs", func() bool { return len(f.driver.ran()) == 4 })
	kill()
	move(0)
	f.driver.setRun(echo)
	w, _ = start()
	f.answered("sesn_busy", "b2")
	f.wantResult("sesn_busy", "b2", "", true) // it may have run, and is not run again
	f.next("sesn_busy", bash("b3"))
	f.answered("sesn_busy", "b3")
	f.wantResult("sesn_busy", "b3", `"b3"`, false)
	w.stop()
	ran := map[string]int{}
	for _, call := range f.driver.ran() {
		if ran[call]++; ran[call] > 1 {
			t.Errorf("%s was run %d times", call, ran[call])
		}
	}
	if len(ran) != 5 {
		t.Errorf("ran: %v", ran)
	}
	for _, session := range []string{"sesn_kept", "sesn_busy"} {
		if _, err := os.Stat(filepath.Join(f.dir, "work", session)); err != nil {
			t.Errorf("a work folder is gone: %v", err)
		}
	}
	sum, err := audit.VerifyFile(filepath.Join(f.dir, "audit.jsonl"))
	if err != nil || !sum.Complete || sum.ClockBack == 0 {
		t.Errorf("audit record: %+v, %v", sum, err)
	}
}
