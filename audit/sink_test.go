package audit

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A place is a second place in memory that fails as told.
type place struct {
	mu    sync.Mutex
	fail  error
	lines []Line
}

func (p *place) Name() string { return "place" }
func (p *place) Close() error { return nil }

func (p *place) Write(ctx context.Context, lines []Line) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail == nil {
		p.lines = append(p.lines, lines...)
	}
	return p.fail
}

func (p *place) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func (p *place) actions() (actions []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		actions = append(actions, l.Action)
	}
	return actions
}

// gapless fails if p has not every line up to the newest, once.
func (p *place) gapless(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, l := range p.lines {
		if l.Seq != uint64(i+1) {
			t.Fatalf("line %d of the sink is record %d", i+1, l.Seq)
		}
	}
}

func TestRequiredSinkThatTakesNothingRefusesRecords(t *testing.T) {
	t.Parallel()
	p := new(place)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Sinks: []SinkOptions{{Sink: p, Required: true}}})
	if err := l.Append(call(1)); err != nil {
		t.Fatal(err)
	}
	p.set(errors.New("full"))
	size := 0
	for range 5 {
		if err := l.Append(call(2)); err == nil || !strings.Contains(err.Error(), "place: full") {
			t.Fatalf("Append: %v", err)
		}
		if l.Err() == nil {
			t.Error("Err is nil")
		}
		now := len(read(t, path))
		if size != 0 && now != size {
			t.Error("the file fills up with records that are refused")
		}
		size = now
	}
	p.set(nil)
	if err := l.Append(call(3)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	p.gapless(t)
	want := []string{logSegment, ToolStart, ToolStart, logResumed, ToolStart, logCheckpoint}
	if diff := cmp.Diff(want, p.actions()); diff != "" {
		t.Error(diff)
	}
	if s, err := VerifyFile(path); err != nil || !s.Complete {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
	for e := range entriesOf(t, path, Filter{Actions: []string{logResumed}}) {
		if e.Attrs["refused"] != "5" {
			t.Errorf("%s refused, want 5", e.Attrs["refused"])
		}
	}
}

// entriesOf ranges over a log's records.
func entriesOf(t *testing.T, path string, f Filter) func(func(*Entry) bool) {
	return func(yield func(*Entry) bool) {
		log, err := OpenSegments(path)
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		for e, err := range Entries(log, f) {
			if err != nil {
				t.Fatal(err)
			}
			if !yield(e) {
				return
			}
		}
	}
}

func TestBestEffortSink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := new(place)
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		l, err := Open(path, Options{Sinks: []SinkOptions{{Sink: p, QueueMax: 4}}, CheckpointEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.set(errors.New("down"))
		for i := range 10 {
			if err := l.Append(call(i)); err != nil {
				t.Fatal(err)
			}
		}
		if l.Missed() != 6 {
			t.Errorf("%d missed, want 6", l.Missed())
		}
		p.set(nil)
		time.Sleep(time.Minute) // it tries again
		synctest.Wait()
		if err := l.Append(call(11)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		want := []string{logSegment, ToolStart, ToolStart, ToolStart, ToolStart, logDropped, ToolStart, logCheckpoint}
		if diff := cmp.Diff(want, p.actions()); diff != "" {
			t.Error(diff)
		}
		for e := range entriesOf(t, path, Filter{Actions: []string{logDropped}}) {
			if diff := cmp.Diff(map[string]string{"sink": "place", "records": "6", "first": "6", "last": "11"}, e.Attrs); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// What a sink did not take by the end is in the file's last words.
func TestBestEffortSinkThatIsDownAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := new(place)
		p.set(errors.New("down"))
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		l, err := Open(path, Options{Sinks: []SinkOptions{{Sink: p}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Append(call(1)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for e := range entriesOf(t, path, Filter{Actions: []string{logDropped}}) {
			n++
			if e.Attrs["records"] != "3" {
				t.Errorf("%s dropped, want 3", e.Attrs["records"])
			}
		}
		if s, err := VerifyFile(path); n != 1 || err != nil || !s.Complete || s.Proven != s.LastSeq {
			t.Errorf("%d said so; VerifyFile: %+v, %v", n, s, err)
		}
	})
}

// TestNote writes what nobody waits for, also after the disk was full.
func TestNote(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		l, err := Open(path, Options{CheckpointEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Note(call(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * notedDelay)
		broken := &faulty{file: l.file, write: errors.New("full")}
		l.commitMu.Lock()
		l.file = broken
		l.commitMu.Unlock()
		if err := l.Note(call(2)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * notedDelay)
		if err := l.Append(call(3)); err == nil {
			t.Error("Append succeeded on a full disk")
		}
		l.commitMu.Lock()
		broken.write = nil
		l.commitMu.Unlock()
		time.Sleep(2 * keepEvery)
		synctest.Wait()
		var calls []string
		for e := range entriesOf(t, path, Filter{}) {
			calls = append(calls, strings.TrimSpace(e.Action+" "+e.Call))
		}
		want := []string{"audit.segment", "tool.start sevt_1", "audit.resumed", "tool.start sevt_2"}
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Error(diff)
		}
		if l.Err() != nil {
			t.Errorf("Err = %v", l.Err())
		}
	})
}
