package worker

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// TestDiskReserve: with too little room, no work is asked for, and readiness says why.
func TestDiskReserve(t *testing.T) {
	virtual(t, func(f *field) {
		w := f.start(func(c *Config) { c.DiskReserve = 1 << 60 })
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		time.Sleep(time.Minute)
		if n := f.plane.count("GET", "/poll"); n != 0 {
			t.Errorf("asked for work %d times", n)
		}
		if err := w.Ready(); err == nil || !strings.Contains(err.Error(), "nearly full") || !strings.Contains(err.Error(), "make room") {
			t.Errorf("Ready: %v", err)
		}
		w.stop()
		w = f.start(func(c *Config) { c.DiskReserve = 1 }) // somebody made room
		f.stopped("sesn_1")
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
	})
}

// TestWorkFolderLimit: a box that fills its work folder is stopped, the call says so, and
// the session can tidy up in the next one.
func TestWorkFolderLimit(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
			name := filepath.Join(f.dir, "work", "sesn_1", "big")
			switch {
			case strings.Contains(string(c.Input), "fill"):
				if err := os.WriteFile(name, make([]byte, 3<<20), 0o600); err != nil {
					t.Error(err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Hour):
					t.Error("nobody stopped it")
				}
			case strings.Contains(string(c.Input), "tidy"):
				time.Sleep(time.Minute) // over the limit all the while
				if err := os.Remove(name); err != nil {
					t.Error(err)
				}
			}
			return echo(ctx, b, c)
		}
		f.plane.session("sesn_1", []toolUse{{id: "c1", name: "bash", input: `{"command":"fill"}`}}, []toolUse{{id: "c2", name: "bash", input: `{"command":"tidy"}`}})
		f.start(func(c *Config) { c.FolderMax = 2 << 20; c.ToolTimeout = 2 * time.Hour })
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "more disk space than it may (its work folder holds 3 MiB, and 2 MiB are its limit)", true)
		f.wantResult("sesn_1", "c1", "Delete what is no longer needed", true)
		f.wantResult("sesn_1", "c2", "tidy", false)
		if n := len(f.driver.started()); n != 2 {
			t.Errorf("%d boxes, want 2", n)
		}
		for _, e := range f.entries() {
			if e.Action == "limit.hit" && e.Attrs["limit"] == "disk" && e.Session == "sesn_1" {
				return
			}
		}
		t.Error("the limit is not on record")
	})
}

// TestFullDiskHasACulprit: when the disk is nearly full, the box that filled it is
// stopped, and no other.
func TestFullDiskHasACulprit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &space{data: dir, folders: dir, reserve: 1 << 60}
	quiet, loud := filepath.Join(dir, "quiet"), filepath.Join(dir, "loud")
	began := time.Now().Add(-time.Second)
	for _, d := range []string{quiet, loud} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(loud, "big"), make([]byte, culpritMin), 0o600); err != nil {
		t.Fatal(err)
	}
	if why := s.exceeded(quiet, began); why != "" {
		t.Errorf("the quiet one: %s", why)
	}
	if why := s.exceeded(loud, began); !strings.Contains(why, "nearly full") {
		t.Errorf("the loud one: %q", why)
	}
	if why := s.exceeded(loud, time.Now().Add(time.Hour)); why != "" {
		t.Errorf("one that wrote long ago: %s", why)
	}
}

// TestUsageStaysWithin: what a box left in its folder cannot have the host looked at.
func TestUsageStaysWithin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, link := range []string{"/usr", "..", "/"} {
		if err := os.Symlink(link, filepath.Join(dir, "link"+strings.ReplaceAll(link, "/", "_"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	total, written, err := usage(dir, time.Now().Add(-time.Minute))
	if err != nil || total < 1<<20 || total > 2<<20 || written < 1<<20 {
		t.Errorf("usage %d, %d written, %v", total, written, err)
	}
}
