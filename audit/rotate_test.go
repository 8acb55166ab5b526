package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// rotated is a log whose keys were changed twice, with the public keys that it had and a
// checkpoint from before each change.
func rotated(t *testing.T) (path string, public []PublicKey, held []Checkpoint) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Clock: tick()})
	for i := range 3 {
		if i > 0 {
			if err := l.RotateKeys("me", "a new year"); err != nil {
				t.Fatal(err)
			}
		}
		for n := range 3 {
			if err := l.Append(call(10*i + n)); err != nil {
				t.Fatal(err)
			}
		}
		c, err := l.Checkpoint()
		if err != nil {
			t.Fatal(err)
		}
		p, err := ReadPublicKey(publicPath(path))
		if err != nil {
			t.Fatal(err)
		}
		public, held = append(public, p), append(held, c)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path, public, held
}

func whole(t *testing.T, path string) []byte {
	t.Helper()
	log, err := OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var all bytes.Buffer
	if _, err := all.ReadFrom(log); err != nil {
		t.Fatal(err)
	}
	return all.Bytes()
}

func TestVerifierFollowsNewKeys(t *testing.T) {
	t.Parallel()
	path, public, held := rotated(t)
	key, older, err := ReadKeys(keyPath(path))
	if err != nil || len(older) != 2 {
		t.Fatalf("%d older keys, %v", len(older), err)
	}
	head := read(t, headPath(path))
	stranger, _, _ := rotated(t)
	other, err := ReadPublicKey(publicPath(stranger))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		e       Evidence
		problem string
	}{
		{"all keys", Evidence{Key: &key, Older: older, Head: head}, ""},
		{"the newest key, the others were destroyed", Evidence{Key: &key, Head: head}, ""},
		{"an older key alone", Evidence{Key: &older[0], Head: head}, "was written with key"},
		{"the first public key", Evidence{Public: public[0], Checkpoints: held[2:]}, ""},
		{"one in between", Evidence{Public: public[1], Checkpoints: held}, ""},
		{"the newest public key", Evidence{Public: public[2], Checkpoints: held}, ""},
		{"both", Evidence{Key: &key, Older: older, Public: public[0], Head: head, Checkpoints: held}, ""},
		{"another's public key", Evidence{Public: other, Checkpoints: held}, "not signed with the public key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := verdict(t, path, tt.e)
			if tt.problem != "" {
				if s.Intact || !strings.Contains(s.Problem, tt.problem) {
					t.Errorf("%+v", s)
				}
				return
			}
			if !s.Intact || !s.Complete || s.KeyChanges != 2 || s.Proven < s.LastSeq-1 {
				t.Errorf("%+v", s)
			}
			// And whatever is changed in it shows, whichever key wrote it.
			log := whole(t, path)
			for at := 0; at < len(log); at += 97 {
				end := at + bytes.IndexByte(log[at:], '\n')
				if end-at <= macHex+len(`"}`) {
					continue // a MAC proves a line to whoever has its key, and to nobody else
				}
				bad := bytes.Clone(log)
				bad[at] ^= 1
				if s, err := Verify(bytes.NewReader(bad), tt.e); err != nil || s.Intact && s.Complete {
					t.Fatalf("a change of byte %d does not show: %+v, %v", at, s, err)
				}
			}
		})
	}
	for _, path := range []string{keyPath(path), signPath(path), retiredPath(path, older[0].ID())} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if files, _ := filepath.Glob(path + "*.next"); len(files) > 0 {
		t.Errorf("left over: %v", files)
	}
}

// TestKeysThatNobodyAnnouncedAreRefused: whoever has the keys of the host now cannot have
// a log go on with keys that the one before did not sign.
func TestKeysThatNobodyAnnouncedAreRefused(t *testing.T) {
	t.Parallel()
	path := written(t, 3)
	_, public := evidence(t, path)
	for _, file := range []string{keyPath(path), signPath(path), publicPath(path)} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	key, err := openKey(keyPath(path), true)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := openSigner(signPath(path), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil {
		t.Error("the log was opened with other keys")
	}
	// By hand, then.
	v := newVerifier(public)
	if _, _, err := v.scan(bytes.NewReader(read(t, path))); err != nil {
		t.Fatal(err)
	}
	next := *v.seg
	next.Number, next.KeyID, next.PublicKey = 2, key.ID(), signer.public()
	forged := Rekey{Log: v.Log, From: v.signing, To: signer.public(), FromKeyID: v.seg.KeyID, ToKeyID: key.ID()}
	forged.Signature, forged.Accepted = signer.sign(forged.Text()), signer.sign(forged.Text())
	for name, rekeys := range map[string][]Rekey{"": nil, "with a change that the old key did not sign": {forged}} {
		next.Rekeys = rekeys
		c := chain{key: key, seq: v.LastSeq, hash: v.LastHash}
		if err := c.addOwn(v.Last, Fields{Action: logSegment, Segment: &next}); err != nil {
			t.Fatal(err)
		}
		s, err := Verify(bytes.NewReader(append(read(t, path), c.buf...)), public)
		if err != nil || s.Intact {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// TestCrashWhileKeysChange: whichever step was the last, the next start finishes it or has
// not begun it.
func TestCrashWhileKeysChange(t *testing.T) {
	t.Parallel()
	move := func(t *testing.T, from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		changed bool // whether it went on with new keys
		crash   func(t *testing.T, path string, l *Log)
	}{
		{"new keys are made", false, func(t *testing.T, path string, l *Log) {
			if _, err := openKey(nextPath(keyPath(path)), true); err != nil {
				t.Fatal(err)
			}
		}},
		{"they are announced", true, func(t *testing.T, path string, l *Log) {
			if err := os.Mkdir(path+".new", 0o700); err != nil { // in the way of the segment
				t.Fatal(err)
			}
			if err := l.RotateKeys("me", ""); err == nil {
				t.Fatal("the keys were changed")
			}
			if err := l.Append(call(50)); err != nil {
				t.Error(err)
			}
			if err := os.Remove(path + ".new"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a segment begins with them", true, func(t *testing.T, path string, l *Log) {
			old := l.key
			sign := read(t, signPath(path))
			if err := l.RotateKeys("me", ""); err != nil {
				t.Fatal(err)
			}
			move(t, keyPath(path), nextPath(keyPath(path)))
			move(t, retiredPath(path, old.ID()), keyPath(path))
			move(t, signPath(path), nextPath(signPath(path)))
			write(t, signPath(path), sign)
			if err := replaceHead(headPath(path), head{Seq: l.seq - 1, Hash: l.prev}, old); err != nil {
				t.Fatal(err)
			}
		}},
		{"the old key is moved", true, func(t *testing.T, path string, l *Log) {
			sign := read(t, signPath(path))
			if err := l.RotateKeys("me", ""); err != nil {
				t.Fatal(err)
			}
			move(t, keyPath(path), nextPath(keyPath(path)))
			move(t, signPath(path), nextPath(signPath(path)))
			write(t, signPath(path), sign)
		}},
		{"the new key is in its place", true, func(t *testing.T, path string, l *Log) {
			sign := read(t, signPath(path))
			if err := l.RotateKeys("me", ""); err != nil {
				t.Fatal(err)
			}
			move(t, signPath(path), nextPath(signPath(path)))
			write(t, signPath(path), sign)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := open(t, path, Options{Clock: tick()})
			if err := l.Append(call(1)); err != nil {
				t.Fatal(err)
			}
			first := l.key
			public, err := ReadPublicKey(publicPath(path))
			if err != nil {
				t.Fatal(err)
			}
			tt.crash(t, path, l)
			// As a crash would, it ends without a word.
			l.stop()
			l.parts.Wait()
			if err := l.closeFiles(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				l = open(t, path, Options{Clock: tick()})
				if changed := l.key.ID() != first.ID(); changed != tt.changed || changed != (len(l.rekeys) == 1) {
					t.Errorf("changed: %t, with %d changes on record", changed, len(l.rekeys))
				}
				if err := l.Append(call(2)); err != nil {
					t.Fatal(err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if s, err := VerifyFile(path); err != nil || !s.Complete {
				t.Errorf("%+v, %v", s, err)
			}
			c, err := ReadCheckpoint(checkpointPath(path))
			if err != nil {
				t.Fatal(err)
			}
			if s := verdict(t, path, Evidence{Public: public, Checkpoints: []Checkpoint{c}}); !s.Complete {
				t.Errorf("with the first public key: %+v", s)
			}
			if files, _ := filepath.Glob(path + "*.next"); len(files) > 0 {
				t.Errorf("left over: %v", files)
			}
		})
	}
}

// TestKeysChangeWhileRecordsAreWritten: values in each record are found with the key of
// its segment.
func TestKeysChangeWhileRecordsAreWritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 20 {
				if err := l.Append(with(call(1), func(r *Record) { r.Input = []byte("the value") })); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		if err := l.RotateKeys("me", ""); err != nil {
			t.Error(err)
		}
	}
	writers.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := VerifyFile(path)
	if err != nil || !s.Complete || s.KeyChanges != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	key, older, err := ReadKeys(keyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	var at *Key
	found := 0
	if _, err := eachLine(bytes.NewReader(whole(t, path)), func(line []byte) bool {
		e, problem := parseLine(line)
		if problem != "" {
			t.Fatal(problem)
		}
		if e.Segment != nil {
			at = keyOf(append(older, key), e.Segment.KeyID)
		}
		if e.InputMAC != "" {
			found++
			if e.InputMAC != at.Digest([]byte("the value")) {
				t.Errorf("record %d has the digest of another key", e.Seq)
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if found != 80 {
		t.Errorf("%d records", found)
	}
}
