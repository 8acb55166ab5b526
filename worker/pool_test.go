package worker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
)

// folders returns the names of work folders, of sessions and of the pool.
func (f *field) folders() (sessions, pooled []string) {
	sessions = []string{}
	for _, name := range f.left("work") {
		if strings.HasPrefix(name, ".") {
			pooled = append(pooled, name)
		} else {
			sessions = append(sessions, name)
		}
	}
	return sessions, pooled
}

// TestPool: a session's first box is one that was ready, with a folder that becomes the
// session's, and the pool fills up again.
func TestPool(t *testing.T) {
	freezing(t, func(f *field) {
		w := f.start(func(c *Config) { c.PoolSize = 2 })
		synctest.Wait()
		ready := f.driver.started()
		if len(ready) != 2 {
			t.Fatalf("%d boxes are ready, want 2", len(ready))
		}
		for _, b := range ready {
			if frozen, _ := b.isFrozen(); !frozen {
				t.Error("a box of the pool is not frozen")
			}
		}
		// What is in the folder now is what the session finds: it is the same folder.
		if err := os.WriteFile(filepath.Join(ready[0].spec.WorkDir, "mark"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.answered("sesn_1", "c1")
		synctest.Wait()
		if frozen, _ := ready[0].isFrozen(); frozen || len(f.driver.started()) != 3 {
			t.Errorf("claimed box frozen: %v; %d boxes in all, want 3", frozen, len(f.driver.started()))
		}
		if _, err := os.Stat(filepath.Join(f.dir, "work", "sesn_1", "mark")); err != nil {
			t.Error(err)
		}
		sessions, pooled := f.folders()
		if diff := cmp.Diff([]string{"sesn_1"}, sessions); diff != "" || len(pooled) != 2 {
			t.Errorf("folders: %s, %d in the pool", diff, len(pooled))
		}
		f.stopped("sesn_1")
		w.stop()
		if sessions, pooled := f.folders(); len(sessions) != 1 || len(pooled) != 0 {
			t.Errorf("folders left: %v and %v", sessions, pooled)
		}
	})
}

// TestPoolIsForNewSessions: a session that has a folder gets a box on that.
func TestPoolIsForNewSessions(t *testing.T) {
	freezing(t, func(f *field) {
		write(f, "work/sesn_1/old", "")
		f.start(func(c *Config) { c.PoolSize = 1 })
		synctest.Wait()
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.answered("sesn_1", "c1")
		boxes := f.driver.started()
		if len(boxes) != 2 || boxes[1].spec.WorkDir != filepath.Join(f.dir, "work", "sesn_1") {
			t.Errorf("%d boxes, the last on %s", len(boxes), boxes[len(boxes)-1].spec.WorkDir)
		}
	})
}

// TestPoolLive: its size changes under way, and it can be started anew.
func TestPoolLive(t *testing.T) {
	freezing(t, func(f *field) {
		w := f.start(func(c *Config) { c.PoolSize = 1 })
		live := func() int { synctest.Wait(); return f.driver.live() }
		if n := live(); n != 1 {
			t.Errorf("%d boxes, want 1", n)
		}
		w.Apply(Live{PoolSize: 4})
		if n := live(); n != 4 {
			t.Errorf("%d boxes, want 4", n)
		}
		w.Apply(Live{PoolSize: 2})
		if n := live(); n != 2 {
			t.Errorf("%d boxes, want 2", n)
		}
		before := f.driver.started()
		time.Sleep(time.Second)
		w.RenewPool()
		if n := live(); n != 2 {
			t.Errorf("%d boxes, want 2", n)
		}
		for _, b := range before {
			if !b.over() {
				t.Error("a box from before is still there")
			}
		}
		w.Apply(Live{})
		if n := live(); n != 0 {
			t.Errorf("%d boxes, want none", n)
		}
	})
}

// TestPoolRenewsItself: a box that was lost, or has waited for a good part of its life,
// is replaced.
func TestPoolRenewsItself(t *testing.T) {
	freezing(t, func(f *field) {
		f.start(func(c *Config) { c.PoolSize = 1; c.Limits.Lifetime = 4 * time.Hour })
		synctest.Wait()
		f.driver.started()[0].kill(sandbox.Exit{Cause: sandbox.CauseCrashed})
		time.Sleep(time.Minute)
		if n := len(f.driver.started()); n != 2 {
			t.Fatalf("%d boxes were started, want another for the one that was lost", n)
		}
		time.Sleep(time.Hour)
		if n := len(f.driver.started()); n != 3 || f.driver.live() != 1 {
			t.Errorf("%d boxes were started and %d live, want 3 and 1", n, f.driver.live())
		}
	})
}

// TestPoolStartsFail: the pool does not hammer a host that cannot start boxes, and
// sessions try for themselves.
func TestPoolStartsFail(t *testing.T) {
	freezing(t, func(f *field) {
		f.driver.startErr = errors.New("no space left")
		f.start(func(c *Config) { c.PoolSize = 3 })
		time.Sleep(10 * time.Minute)
		if sessions, pooled := f.folders(); len(sessions)+len(pooled) > 0 {
			t.Errorf("folders left: %v %v", sessions, pooled)
		}
		fills := 0
		for _, r := range f.actions() {
			if r == "pool.fill" {
				fills++
			}
		}
		if fills < 5 || fills > 25 {
			t.Errorf("%d attempts in 10 min, want about one a minute", fills)
		}
		f.driver.mu.Lock()
		f.driver.startErr = nil
		f.driver.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if n := f.driver.live(); n != 3 {
			t.Errorf("%d boxes are ready, want 3", n)
		}
	})
}

// TestPoolBoxNotUsable: a box that is lost, or cannot be thawed, is no session's.
func TestPoolBoxNotUsable(t *testing.T) {
	freezing(t, func(f *field) {
		f.start(func(c *Config) { c.PoolSize = 2 })
		synctest.Wait()
		boxes := f.driver.started()
		boxes[0].kill(sandbox.Exit{Cause: sandbox.CauseCrashed})
		boxes[1].mu.Lock()
		boxes[1].thawErr = errors.New("stuck")
		boxes[1].mu.Unlock()
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.answered("sesn_1", "c1")
		f.wantResult("sesn_1", "c1", `"c1"`, false)
		if !boxes[1].over() {
			t.Error("a box that cannot be thawed lives on")
		}
	})
}

// TestPoolSweptAtStart: what a killed worker left of its pool is removed, links in it not
// followed.
func TestPoolSweptAtStart(t *testing.T) {
	freezing(t, func(f *field) {
		outside := t.TempDir()
		if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		write(f, "work/.pool-old/file", "x")
		write(f, "work/.gone-old/deep/er/file", "x")
		if err := os.Symlink(outside, filepath.Join(f.dir, "work/.gone-old/link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(f.dir, "work/.gone-old/deep"), 0); err != nil {
			t.Fatal(err)
		}
		f.start()
		synctest.Wait()
		if _, pooled := f.folders(); len(pooled) != 0 {
			t.Errorf("left: %v", pooled)
		}
		if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
			t.Error(err)
		}
	})
}
