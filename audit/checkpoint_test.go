package audit

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWithThePublicKeyAlone is an auditor's case: a copy of the file, the public key
// and perhaps checkpoints kept elsewhere.
func TestWithThePublicKeyAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{CheckpointEvery: time.Hour})
	appendCalls := func(from, to int) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := l.Append(call(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	appendCalls(1, 2)
	early, err := l.Checkpoint() // covers records 1 to 3
	if err != nil {
		t.Fatal(err)
	}
	appendCalls(3, 4)
	late, err := l.Checkpoint() // covers records 1 to 6
	if err != nil {
		t.Fatal(err)
	}
	appendCalls(5, 6) // not signed yet
	log := read(t, path)
	public, key := l.signer.public(), l.key
	other := open(t, filepath.Join(t.TempDir(), "other.jsonl"), Options{})
	strange, err := other.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}

	lines := bytes.SplitAfter(log, []byte("\n"))
	upTo := func(n int) []byte { return bytes.Join(lines[:n], nil) }
	// What somebody who has the MAC key, but not the signing key, can write: a line
	// replaced, and all after it chained and MACed anew.
	forge := func(b []byte, n int) []byte {
		c := chain{key: key, hash: zeroHash}
		for i, line := range bytes.SplitAfter(b, []byte("\n")) {
			if len(line) == 0 {
				break
			}
			e, problem := parseLine(line)
			if problem != "" {
				t.Fatal(problem)
			}
			from := bytes.Index(line, []byte(`Z",`)) + len(`Z",`)
			to := bytes.LastIndex(line, []byte(`,"prev":"`))
			fields := bytes.Clone(line[from:to])
			if i+1 == n {
				fields = bytes.Replace(fields, []byte("bash"), []byte("cash"), 1)
			}
			c.add(e.Time, e.Action, fields)
		}
		return c.buf
	}
	if again := forge(log, 0); !bytes.Equal(again, log) {
		t.Fatal("the forger does not write as the log does")
	}

	tests := []struct {
		name     string
		log      []byte
		held     []Checkpoint
		intact   bool
		complete bool
		proven   uint64
		problem  string
	}{
		{name: "all there", log: log, held: []Checkpoint{early, late}, intact: true, complete: true, proven: 6},
		{name: "no checkpoint held", log: log, intact: true, proven: 6, problem: "no checkpoint from elsewhere"},
		{name: "an edit before the first checkpoint", log: bytes.Replace(log, []byte("sevt_1"), []byte("sevt_9"), 1), held: []Checkpoint{late}, proven: 0, problem: "record 2 was changed"},
		{name: "forged with the MAC key before a checkpoint", log: forge(log, 2), held: []Checkpoint{late}, problem: "is a checkpoint that does not cover what is before it"},
		{name: "forged between the checkpoints", log: forge(log, 5), held: []Checkpoint{early}, proven: 3, problem: "is a checkpoint that does not cover what is before it"},
		{name: "forged after the last checkpoint", log: forge(log, 8), held: []Checkpoint{late}, intact: true, complete: true, proven: 6}, // which is why it says how far it is proven
		{name: "cut after the first checkpoint and forged on", log: forge(upTo(3), 2), held: []Checkpoint{late}, problem: "cut off, and nothing that is left is proven"},
		{name: "cut back to an old checkpoint", log: upTo(4), held: []Checkpoint{late}, intact: true, proven: 3, problem: "the end was cut off"},
		{name: "cut back to an old checkpoint, which is all that is known", log: upTo(4), held: []Checkpoint{early}, intact: true, complete: true, proven: 3},
		{name: "rewritten and signed by somebody else", log: read(t, other.path), held: nil, problem: "not signed with the public key"},
		{name: "a held checkpoint of another log", log: log, held: []Checkpoint{strange}, intact: true, proven: 6, problem: "not signed with this log's public key"},
		{name: "a held checkpoint with another hash", log: log, held: []Checkpoint{l.signer.checkpoint(late.Log, 4, early.Hash, start)}, proven: 3, problem: "history was rewritten"},
		{name: "covered by the held checkpoint only", log: upTo(3), held: []Checkpoint{early}, intact: true, complete: true, proven: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := Verify(bytes.NewReader(tt.log), Evidence{Public: public, Checkpoints: tt.held})
			if err != nil {
				t.Fatal(err)
			}
			if s.Intact != tt.intact || s.Complete != tt.complete || s.Proven != tt.proven || !strings.Contains(s.Problem, tt.problem) || (s.Problem == "") != (tt.problem == "") {
				t.Errorf("got %+v\nwant intact %v, complete %v, proven %d, problem …%s…", s, tt.intact, tt.complete, tt.proven, tt.problem)
			}
		})
	}
	if _, err := Verify(bytes.NewReader(log), Evidence{}); err == nil {
		t.Error("verified without any key")
	}
}

// A log with its head put back to an older state looks complete from beside it. A
// checkpoint from elsewhere says otherwise.
func TestRollbackOfLogAndHeadShowsWithACheckpointFromElsewhere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	if err := l.Append(call(1)); err != nil {
		t.Fatal(err)
	}
	log, head := read(t, path), read(t, headPath(path))
	if err := l.Append(call(2)); err != nil {
		t.Fatal(err)
	}
	held, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Verify(bytes.NewReader(log), Evidence{Key: &l.key, Head: head})
	if err != nil || !s.Complete {
		t.Fatalf("with what is beside it: %+v, %v", s, err)
	}
	s, err = Verify(bytes.NewReader(log), Evidence{Key: &l.key, Head: head, Checkpoints: []Checkpoint{held}})
	if err != nil || s.Complete || !strings.Contains(s.Problem, "cut off") {
		t.Errorf("with a checkpoint from elsewhere: %+v, %v", s, err)
	}
}

// The text that is signed is what the documentation says, so that others can check
// it without this program.
func TestCheckpointText(t *testing.T) {
	t.Parallel()
	path := written(t, 1)
	c, err := ReadCheckpoint(checkpointPath(path))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ReadPublicKey(publicPath(path))
	if err != nil {
		t.Fatal(err)
	}
	text := "bailey audit checkpoint 1\n" + c.Log + "\n2\n" + c.Hash + "\n" + c.Time.Format(time.RFC3339Nano)
	if !ed25519.Verify(ed25519.PublicKey(public), []byte(text), c.Signature) || !c.SignedBy(public) {
		t.Error("the signature does not sign the text")
	}
	for name, change := range map[string]func(*Checkpoint){
		"log": func(c *Checkpoint) { c.Log += "0" }, "count": func(c *Checkpoint) { c.Count++ },
		"hash": func(c *Checkpoint) { c.Hash = zeroHash }, "time": func(c *Checkpoint) { c.Time = c.Time.Add(1) },
		"signature": func(c *Checkpoint) { c.Signature = nil },
	} {
		changed := c
		if change(&changed); changed.SignedBy(public) {
			t.Errorf("a checkpoint with another %s is signed", name)
		}
	}
	for _, key := range []PublicKey{nil, public[:31]} {
		if c.SignedBy(key) {
			t.Errorf("signed by %x", []byte(key))
		}
	}
}

func TestCheckpointsByCountAndByTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		l, err := Open(path, Options{CheckpointRecords: 4, CheckpointEvery: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for i := range 6 { // with the first line: a checkpoint after the third and one open
			if err := l.Append(call(i)); err != nil {
				t.Fatal(err)
			}
		}
		if n := bytes.Count(read(t, path), []byte(logCheckpoint)); n != 1 {
			t.Errorf("%d checkpoints by count, want 1", n)
		}
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if n := bytes.Count(read(t, path), []byte(logCheckpoint)); n != 2 {
			t.Errorf("%d checkpoints after some time, want 2", n)
		}
		c, err := ReadCheckpoint(checkpointPath(path))
		if err != nil || c.Count != 8 {
			t.Errorf("the newest checkpoint's file: %+v, %v", c, err)
		}
		time.Sleep(time.Hour) // nothing new to sign
		if n := bytes.Count(read(t, path), []byte(logCheckpoint)); n != 2 {
			t.Errorf("%d checkpoints of a log that rests, want 2", n)
		}
	})
}

func TestAnotherSigningKeyIsRefused(t *testing.T) {
	t.Parallel()
	path, other := written(t, 1), written(t, 1)
	for _, file := range []func(string) string{signPath} {
		if err := os.Rename(file(other), file(path)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "not the one that this log was begun with") {
		t.Errorf("Open: %v", err)
	}
}
