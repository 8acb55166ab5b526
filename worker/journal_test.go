package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openTestDir(t *testing.T) *dataDir {
	t.Helper()
	d, err := openDataDir(t.TempDir(), t.TempDir(), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func openTestJournal(t *testing.T, d *dataDir) *journal {
	t.Helper()
	j, err := d.openJournal("sesn_1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.file.Close() })
	return j
}

func TestJournal(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	j := openTestJournal(t, d)
	event := json.RawMessage(`{"type":"user.tool_result","content":[{"text":"\u003cé\u003e"}]}`)
	for _, err := range []error{
		j.started("c1"), j.started("c2"), j.finished("c2", event), j.started("c3"), j.finished("c3", event), j.settled("c3"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(j *journal) {
		t.Helper()
		for call, want := range map[string]callState{"c0": callNew, "c1": callStarted, "c2": callFinished, "c3": callSettled} {
			if got, _ := j.call(call); got != want {
				t.Errorf("%s is %q, want %q", call, got, want)
			}
		}
		if _, got := j.call("c2"); !bytes.Equal(got, event) {
			t.Errorf("event %s, want the same bytes as %s", got, event)
		}
	}
	check(j)
	check(openTestJournal(t, d))
	if err := j.compact(); err != nil {
		t.Fatal(err)
	}
	check(j)
	if err := j.started("c4"); err != nil {
		t.Fatal(err)
	}
	again := openTestJournal(t, d)
	check(again)
	if got, _ := again.call("c4"); got != callStarted {
		t.Errorf("c4 is %q after compaction", got)
	}
	if err := again.close(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(again.path); err != nil {
		t.Errorf("a journal with open calls was removed: %v", err)
	}
}

func TestJournalIsRemovedOnceSettled(t *testing.T) {
	t.Parallel()
	for _, over := range []bool{false, true} {
		d := openTestDir(t)
		j := openTestJournal(t, d)
		if err := errors.Join(j.started("c1"), j.settled("c1")); err != nil {
			t.Fatal(err)
		}
		if over {
			if err := j.started("c2"); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.close(over); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(j.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("over %v: the journal is still there: %v", over, err)
		}
	}
}

// TestJournalTorn cuts the last line at every byte.
func TestJournalTorn(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	j := openTestJournal(t, d)
	if err := j.started("c1"); err != nil {
		t.Fatal(err)
	}
	before := j.size
	if err := j.finished("c1", json.RawMessage(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	for n := before; n <= int64(len(whole)); n++ {
		if err := os.WriteFile(j.path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j := openTestJournal(t, d)
		want := callStarted
		if n == int64(len(whole)) {
			want = callFinished
		}
		if got, _ := j.call("c1"); got != want || j.suspect {
			t.Fatalf("cut at %d: c1 is %q, suspect %v; want %q", n, got, j.suspect, want)
		}
		if err := j.started("c2"); err != nil {
			t.Fatal(err)
		}
		if got, _ := openTestJournal(t, d).call("c2"); got != callStarted {
			t.Fatalf("cut at %d: c2 is %q after a new line", n, got)
		}
	}
}

// TestJournalDamaged: a journal that makes no sense puts every call in doubt.
func TestJournalDamaged(t *testing.T) {
	virtual(t, func(f *field) {
		write(f, "calls/sesn_1.jsonl", "{\"call\":\"c0\",\"state\":\"started\"}\nrubbish\n{}\n")
		f.plane.session("sesn_1", []toolUse{bash("c1")}, []toolUse{bash("c2")})
		w := f.start()
		f.stopped("sesn_1")
		w.stop()
		f.wantResult("sesn_1", "c1", "was not run again", true)
		f.wantResult("sesn_1", "c2", "c2", false)
		if diff := cmp.Diff([]string{"sesn_1.jsonl.examined"}, f.left("calls")); diff != "" {
			t.Error(diff)
		}
	})
}

// TestJournalWriteFails writes to a file that takes nothing.
func TestJournalWriteFails(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	j := openTestJournal(t, d)
	if err := j.started("c1"); err != nil {
		t.Fatal(err)
	}
	good := j.file
	bad, err := os.Open(j.path) // read-only
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	j.file = bad
	if err := j.started("c2"); !errors.Is(err, syscall.EBADF) && !errors.Is(err, os.ErrPermission) {
		t.Errorf("started on a read-only file: %v", err)
	}
	// The failed line could not be cut off either, so nothing may follow it.
	j.file = good
	if err := j.started("c3"); err == nil {
		t.Error("a journal in an unknown state took a line")
	}
	if got, _ := j.call("c2"); got != callNew {
		t.Errorf("c2 is %q although its line was not written", got)
	}
}

func TestJournalIsBounded(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	j := openTestJournal(t, d)
	big := json.RawMessage(`"` + strings.Repeat("x", 4<<20) + `"`)
	for i := range 20 {
		id := fmt.Sprint("c", i)
		if err := errors.Join(j.started(id), j.finished(id, big), j.settled(id)); err != nil {
			t.Fatal(err)
		}
	}
	if j.size > compactAt+8<<20 {
		t.Errorf("journal of %d bytes", j.size)
	}
	for i := range settledMax + 100 {
		j.note(entry{Call: fmt.Sprint("s", i), State: callSettled})
	}
	if len(j.calls) > settledMax {
		t.Errorf("%d calls in mind", len(j.calls))
	}
}

func TestSweepJournals(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	j := openTestJournal(t, d)
	if err := j.started("c1"); err != nil {
		t.Fatal(err)
	}
	if err := d.sweepJournals(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(j.path); err != nil {
		t.Error("a fresh journal was removed")
	}
	if err := d.sweepJournals(time.Now().Add(journalKeep + time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(j.path); err == nil {
		t.Error("an old journal was kept")
	}
}

func TestItems(t *testing.T) {
	t.Parallel()
	d := openTestDir(t)
	a := item{ID: "work_1", Env: "env_1", Session: "sesn_1"}
	b := item{ID: "../x", Env: "env_1", Session: "sesn_2", LastHeartbeat: "t", Beaten: true}
	other := item{ID: "work_3", Env: "env_2", Session: "sesn_3"}
	for _, it := range []item{a, b, other} {
		if err := d.saveItem(it, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"torn.json", "work_9.json.new"} {
		if err := os.WriteFile(filepath.Join(d.path, "items", name), []byte(`{"work_`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.items("env_1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]item{b, a}, got); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(d.dropItem("../x"), d.dropItem("../x"), d.dropItem("work_1")); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.items("env_1"); len(got) != 0 {
		t.Errorf("items left: %v", got)
	}
	if entries, _ := os.ReadDir(filepath.Join(d.path, "items")); len(entries) != 1 {
		t.Errorf("%d files left, want that of the other environment", len(entries))
	}
}
