package audit

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A dial is a clock that is set by hand.
type dial struct{ now time.Time }

func (d *dial) read() time.Time { return d.now }

// segmented makes a closed log whose segments have three records each besides
// their first line and their checkpoint, one hour a segment.
func segmented(t *testing.T, segments int) (path string, clock *dial) {
	t.Helper()
	path, clock = filepath.Join(t.TempDir(), "audit.jsonl"), &dial{start}
	l := open(t, path, Options{Clock: clock.read, SegmentAge: time.Hour})
	for i := range segments {
		clock.now = start.Add(time.Duration(i) * 61 * time.Minute)
		for j := range 3 {
			r := call(3*i + j)
			r.Session = fmt.Sprint("sesn_", i)
			if err := l.Append(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path, clock
}

func verdict(t *testing.T, path string, e Evidence) Summary {
	t.Helper()
	log, err := OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s, err := Verify(log, e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func evidence(t *testing.T, path string) (withKey, withPublic Evidence) {
	t.Helper()
	key, err := ReadKey(keyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ReadPublicKey(publicPath(path))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadCheckpoint(checkpointPath(path))
	if err != nil {
		t.Fatal(err)
	}
	return Evidence{Key: &key, Head: read(t, headPath(path))}, Evidence{Public: public, Checkpoints: []Checkpoint{c}}
}

func TestSegmentsContinueTheChain(t *testing.T) {
	t.Parallel()
	path, _ := segmented(t, 4)
	closed, err := closedPaths(path)
	if err != nil || len(closed) != 3 {
		t.Fatalf("closed segments %v, %v", closed, err)
	}
	withKey, withPublic := evidence(t, path)
	for name, e := range map[string]Evidence{"key": withKey, "public key": withPublic} {
		s := verdict(t, path, e)
		if !s.Intact || !s.Complete || s.Segments != 4 || s.Checkpoints < 4 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// It is one log wherever its files are put together.
	var whole []byte
	for _, p := range append(closed, path) {
		whole = append(whole, read(t, p)...)
	}
	if s, err := Verify(bytes.NewReader(whole), withKey); err != nil || !s.Complete {
		t.Errorf("put together: %+v, %v", s, err)
	}
	l := open(t, path, Options{})
	if err := l.Append(call(99)); err != nil {
		t.Fatal(err)
	}
}

func TestMissingSegment(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"the first": 0, "one in the middle": 1, "the last closed one": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := segmented(t, 4)
			withKey, withPublic := evidence(t, path)
			closed, _ := closedPaths(path)
			if err := os.Remove(closed[n]); err != nil {
				t.Fatal(err)
			}
			for _, e := range []Evidence{withKey, withPublic} {
				s := verdict(t, path, e)
				if !s.Intact || s.Complete || len(s.Missing) != 1 || !strings.Contains(s.Problem, "are missing") {
					t.Errorf("%+v", s)
				}
			}
			if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "are missing") {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

// TestCrashBetweenSegments leaves what a crash leaves between the two renames.
func TestCrashBetweenSegments(t *testing.T) {
	t.Parallel()
	path, clock := segmented(t, 2)
	if err := os.Rename(path, segmentPath(path, 2)); err != nil {
		t.Fatal(err)
	}
	write(t, path+".new", []byte(`{"seq":`))
	l := open(t, path, Options{Clock: clock.read})
	if err := l.Append(call(9)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := VerifyFile(path); err != nil || !s.Complete || s.Segments != 3 {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		hold    *Hold
		missing []Range // what is removed
		left    []int   // closed segments
	}{
		{name: "no hold", missing: []Range{{1, 15}}, left: []int{4}},
		{name: "hold of a session", hold: &Hold{ID: "h", Sessions: []string{"sesn_1"}}, missing: []Range{{1, 5}, {11, 15}}, left: []int{2, 4}},
		{name: "hold of a time", hold: &Hold{ID: "h", From: start, To: start.Add(time.Minute)}, missing: []Range{{6, 15}}, left: []int{1, 4}},
		{name: "hold of a segment", hold: &Hold{ID: "h", Segments: []int{3}}, missing: []Range{{1, 10}}, left: []int{3, 4}},
		{name: "hold of everything", hold: &Hold{ID: "h"}, left: []int{1, 2, 3, 4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path, clock := segmented(t, 5)
			before, _ := OpenSegments(path)
			archive, err := io.ReadAll(before)
			before.Close()
			if err != nil {
				t.Fatal(err)
			}
			l := open(t, path, Options{Clock: clock.read, Retain: time.Hour})
			if tt.hold != nil {
				if err := l.Hold("somebody", *tt.hold); err != nil {
					t.Fatal(err)
				}
			}
			l.removeOld()
			l.removeOld() // again: nothing more
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			var left []int
			for _, s := range l.closed {
				left = append(left, s.number)
			}
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Errorf("segments left: %s", diff)
			}
			withKey, withPublic := evidence(t, path)
			for _, e := range []Evidence{withKey, withPublic} {
				s := verdict(t, path, e)
				if !s.Intact || !s.Complete {
					t.Errorf("%+v", s)
				}
				if diff := cmp.Diff(tt.missing, s.Removed); diff != "" {
					t.Errorf("removed: %s", diff)
				}
			}

			// The removals outlive the segment that they are recorded in.
			l = open(t, path, Options{Clock: clock.read, SegmentAge: time.Nanosecond})
			for range 3 {
				clock.now = clock.now.Add(time.Minute)
				if err := l.Append(call(50)); err != nil {
					t.Fatal(err)
				}
			}
			l.Close()
			if s := verdict(t, path, withKey); !s.Complete {
				t.Errorf("after more segments: %+v", s)
			}
			newest := verifyOnly(t, path, withPublic.Public)
			if !newest.covered(gap{Range{1, 5}, zeroHash, ""}) && tt.hold == nil {
				t.Error("the newest segment does not know of the removal")
			}

			// An archive of what was removed, with what came after, is one log.
			after, _ := OpenSegments(path)
			defer after.Close()
			rest, _ := io.ReadAll(after)
			head := archive[:bytes.LastIndex(archive, []byte(`{"seq":21,`))]
			whole := append(bytes.Clone(head), rest[bytes.Index(rest, []byte(`{"seq":21,`)):]...)
			if s, err := Verify(bytes.NewReader(whole), withKey); err != nil || !s.Complete || s.Removed != nil {
				t.Errorf("archive and log: %+v, %v", s, err)
			}
		})
	}
}

// verifyOnly goes through the newest segment.
func verifyOnly(t *testing.T, path string, public PublicKey) *verifier {
	t.Helper()
	v := newVerifier(Evidence{Public: public})
	if _, _, err := v.scan(bytes.NewReader(read(t, path))); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestHoldsAreKept places a hold and looks for it after many segments and a
// restart.
func TestHoldsAreKept(t *testing.T) {
	t.Parallel()
	path, clock := segmented(t, 2)
	l := open(t, path, Options{Clock: clock.read, SegmentAge: time.Nanosecond})
	for _, h := range []Hold{{ID: "a", Reason: "sk-ant-api03-0123456789abcdef"}, {ID: "b", Segments: []int{1}}, {ID: "b", Segments: []int{2}}} {
		if err := l.Hold("somebody", h); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Release("somebody", "a", "over"); err != nil {
		t.Fatal(err)
	}
	if err := l.Release("somebody", "a", "over"); err == nil {
		t.Error("released twice")
	}
	for _, bad := range []Hold{{ID: ""}, {ID: "../x"}, {ID: "c", Sessions: []string{"a b"}}, {ID: "c", From: start, To: start}} {
		if err := l.Hold("somebody", bad); err == nil {
			t.Errorf("hold %+v was accepted", bad)
		}
	}
	for range 3 {
		clock.now = clock.now.Add(time.Minute)
		if err := l.Append(call(1)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	l = open(t, path, Options{Clock: clock.read})
	if diff := cmp.Diff([]Hold{{ID: "b", Segments: []int{2}}}, l.holds); diff != "" {
		t.Error(diff)
	}
	log, _ := OpenSegments(path)
	defer log.Close()
	if all, _ := io.ReadAll(log); bytes.Contains(all, []byte("0123456789abcdef")) {
		t.Error("the reason shows a key")
	}
}

// TestCrashDuringRemoval leaves a segment that the log says is removed.
func TestCrashDuringRemoval(t *testing.T) {
	t.Parallel()
	path, clock := segmented(t, 3)
	first := read(t, segmentPath(path, 1))
	l := open(t, path, Options{Clock: clock.read, Retain: time.Hour})
	l.removeOld()
	l.Close()
	write(t, segmentPath(path, 1), first)
	if s, err := VerifyFile(path); err != nil || !s.Complete {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
	open(t, path, Options{Clock: clock.read})
	if _, err := os.Stat(segmentPath(path, 1)); err == nil {
		t.Error("the segment is still there")
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	ask := func(r Request) string {
		t.Helper()
		file, err := Ask(path, r)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := ask(Request{Actor: "uid 7", Hold: &Hold{ID: "h"}})
	bad := ask(Request{Actor: "uid 7", Release: "none such"})
	l.takeRequests()
	if _, err := os.Stat(good); err == nil {
		t.Error("the request is still there")
	}
	if b := read(t, bad+".refused"); !strings.Contains(string(b), "no hold") {
		t.Errorf("refusal: %s", b)
	}
	if len(l.holds) != 1 {
		t.Errorf("holds: %+v", l.holds)
	}
	ask(Request{Actor: "uid 7", Release: "h"})
	l.takeRequests()
	ask(Request{Sign: true})
	write(t, path+".request-rubbish", []byte("{"))
	l.takeRequests()
	if len(l.holds) != 0 || l.unsigned != 0 {
		t.Errorf("holds %v, %d unsigned", l.holds, l.unsigned)
	}
}

// TestVerifyWhileSegmentsAreClosed reads a log that is written and cut into segments
// meanwhile. It must never look as if one were missing.
func TestVerifyWhileSegmentsAreClosed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Clock: time.Now, SegmentBytes: 2000})
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; err == nil && i < 300; i++ {
			err = l.Append(call(i))
		}
		done <- err
	}()
	for n := 0; ; n++ {
		s, err := VerifyFile(path)
		// The last line may be half written when it is read.
		if err != nil || len(s.Missing) > 0 || !s.Complete && !strings.Contains(s.Problem, "has no end") {
			t.Fatalf("%+v, %v", s, err)
		}
		select {
		case err := <-done:
			if err != nil || n == 0 {
				t.Fatalf("verified %d times; %v", n, err)
			}
			return
		default:
		}
	}
}
