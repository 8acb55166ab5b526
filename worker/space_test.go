package worker

import (
	"context"
	"fmt"
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
	exceeded := func(folder string, began time.Time) string {
		l := &look{space: s, folder: folder, began: began}
		defer l.close()
		return l.exceeded()
	}
	if why := exceeded(quiet, began); why != "" {
		t.Errorf("the quiet one: %s", why)
	}
	if why := exceeded(loud, began); !strings.Contains(why, "nearly full") {
		t.Errorf("the loud one: %q", why)
	}
	if why := exceeded(loud, time.Now().Add(time.Hour)); why != "" {
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
	for i := range 19 { // more names of the same file
		if err := os.Link(filepath.Join(dir, "file"), filepath.Join(dir, fmt.Sprint("name", i))); err != nil {
			t.Fatal(err)
		}
	}
	s, err := newSurvey(dir, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	done, err := s.step(100)
	if !done || err != nil || s.total < 1<<20*9/10 || s.total > 2<<20 || s.written < 1<<20*9/10 || s.entries != 4+19 {
		t.Errorf("usage %d, %d written, %d entries, %v", s.total, s.written, s.entries, err)
	}
}

// chain makes folders within each other, with a file in the deepest.
func chain(t *testing.T, dir string, depth, size int) {
	t.Helper()
	at, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := at.Mkdir("d", 0o700); err != nil {
			t.Fatal(err)
		}
		inner, err := at.OpenRoot("d")
		if err != nil {
			t.Fatal(err)
		}
		at.Close()
		at = inner
	}
	defer at.Close()
	if err := at.WriteFile("file", make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestADeepFolderIsSurveyedInSteps: as many as it has entries, and not their square; and
// one that nobody needs so deep is refused.
func TestADeepFolderIsSurveyedInSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const depth = depthMax - 2
	chain(t, dir, depth, 1<<20)
	s, err := newSurvey(dir, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	steps := 0
	for done := false; !done; steps++ {
		if done, err = s.step(100); err != nil {
			t.Fatal(err)
		}
	}
	// Each is opened, read, read to its end and left.
	if s.entries != depth+1 || s.written < 1<<20 || steps > 5*depth/100+1 {
		t.Errorf("%d entries, %d bytes written, in %d steps", s.entries, s.written, steps)
	}
	deeper := t.TempDir()
	chain(t, deeper, depthMax+1, 1)
	l := &look{space: &space{folders: deeper, reserve: 1, folderMax: 1 << 40}, folder: deeper, began: time.Now()}
	defer l.close()
	if why := l.exceeded(); !strings.Contains(why, "more than 2000 folders deep") {
		t.Errorf("a folder that is too deep: %q", why)
	}
}

// TestAWideFolderIsSurveyedInLooks: none of them goes through all of it.
func TestAWideFolderIsSurveyedInLooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 60 {
		sub := filepath.Join(dir, fmt.Sprint("sub", i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		for k := range 30 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("a file with quite a long name so that several reads are needed ", k)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := newSurvey(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for looks := 1; ; looks++ {
		before := s.entries
		done, err := s.step(100)
		if err != nil || s.entries-before > 100+surveyBuffer/24 {
			t.Fatalf("%d entries in one look, %v", s.entries-before, err)
		}
		if done {
			if s.entries != 60*31 {
				t.Errorf("%d entries in %d looks", s.entries, looks)
			}
			return
		}
	}
}

// TestASurveyStaysWithinWhatIsMoved: folders that are moved while it is in them do not
// lead it out.
func TestASurveyStaysWithinWhatIsMoved(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	dir := filepath.Join(outside, "folder")
	if err := os.WriteFile(filepath.Join(outside, "not its own"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	chain(t, dir, 20, 1<<20)
	s, err := newSurvey(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for len(s.path) < 15 {
		if done, err := s.step(1); done || err != nil {
			t.Fatal(done, err)
		}
	}
	// What it is in is now just below the folder; and what was above is no folder any more.
	if err := os.Rename(filepath.Join(dir, strings.Repeat("d/", 12)), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "d/d/d/d/d/d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "d/d/d/d/d/d")); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		done, err := s.step(1)
		if err != nil || n > 1000 {
			t.Fatal(n, err)
		}
		if done {
			break
		}
	}
	if s.total > 6<<20 {
		t.Errorf("it found %d bytes", s.total)
	}
}
