package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

// tick is a clock that moves one second a reading.
func tick() func() time.Time {
	now := start
	return func() time.Time {
		defer func() { now = now.Add(time.Second) }()
		return now
	}
}

func open(t *testing.T, path string, o Options) *Log {
	t.Helper()
	if o.Clock == nil {
		o.Clock = tick()
	}
	l, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func call(n int) Record {
	return Record{
		Actor: "w", Action: ToolStart, Session: "sesn_1", Call: fmt.Sprint("sevt_", n), Tool: "bash",
		Input: []byte(`{"command":"true"}`), Start: start,
	}
}

// with changes a record.
func with(r Record, change func(*Record)) Record {
	change(&r)
	return r
}

// written makes a closed log of its first line, n records and a checkpoint.
func written(t *testing.T, n int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	for i := range n {
		if err := l.Append(call(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Input: InputText})
	err := l.Append(Record{
		Actor: "host-1", Action: "tool.end", Session: "sesn_1", Call: "sevt_1", Tool: "bash",
		Input: []byte(`{"command":"true"}`), Start: start, End: start.Add(time.Second),
		Outcome: "ok", Output: []byte{}, Detail: "fine",
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(read(t, path), []byte("\n"))
	var got map[string]any
	if err := json.Unmarshal(lines[1], &got); err != nil {
		t.Fatal(err)
	}
	var genesis map[string]any
	if err := json.Unmarshal(lines[0], &genesis); err != nil {
		t.Fatal(err)
	}
	outputSum := l.key.Digest([]byte{})
	want := map[string]any{
		"seq": 2.0, "time": "2026-11-21T09:00:01Z",
		"actor": "host-1", "action": "tool.end", "session_id": "sesn_1", "call_id": "sevt_1", "tool": "bash",
		"input_mac": l.key.Digest([]byte(`{"command":"true"}`)), "input_bytes": 18.0, "input": `{"command":"true"}`,
		"start": "2026-11-21T09:00:00Z", "end": "2026-11-21T09:00:01Z", "outcome": "ok",
		"output_mac": outputSum, "output_bytes": 0.0,
		"detail": "fine", "prev": genesis["hash"], "hash": got["hash"], "mac": got["mac"],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, f := range []string{path, headPath(path), keyPath(path)} {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", filepath.Base(f), info.Mode())
		}
	}
}

func TestInputHashKeepsNoText(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{})
	if err := l.Append(with(call(1), func(r *Record) { r.Input, r.Output = []byte("a password"), []byte("another") })); err != nil {
		t.Fatal(err)
	}
	if b := read(t, path); bytes.Contains(b, []byte("password")) || bytes.Contains(b, []byte("another")) {
		t.Errorf("the log holds the text:\n%s", b)
	}
}

func TestLongInputIsCut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Input: InputText})
	// The worst case for JSON: every byte is escaped to six.
	if err := l.Append(with(call(1), func(r *Record) { r.Input = bytes.Repeat([]byte{1}, 2<<20) })); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(with(call(2), func(r *Record) { r.Detail = strings.Repeat("x", LineMax) })); !errors.Is(err, ErrTooLong) {
		t.Errorf("Append of an overlong record: %v, want ErrTooLong", err)
	}
	s, err := VerifyFile(path)
	if err != nil || !s.Complete || s.Records != 2 {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

func TestContinue(t *testing.T) {
	t.Parallel()
	path := written(t, 2)
	l := open(t, path, Options{})
	if _, err := Open(path, Options{}); err == nil {
		t.Error("a second Open of an open log succeeded")
	}
	if err := l.Append(call(3)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(call(4)); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close: %v, want ErrClosed", err)
	}
	s, err := VerifyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Summary{
		Intact: true, Complete: true, Records: 6, Segments: 1, FirstSeq: 1, LastSeq: 6, First: start, Last: s.Last, LastHash: s.LastHash,
		KeyID: l.key.ID(), PublicID: l.signer.public().ID(), Log: l.segment.Log, Proven: 6, Checkpoints: 2, EndBy: "head",
		ClockBack: 1, // the test's clock begins anew
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentAppends(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path, Options{Clock: time.Now})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				if err := l.Append(call(i*8 + j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s, err := VerifyFile(path); err != nil || !s.Complete || s.Records != 1+16*8 {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

// TestTampering alters a log of the genesis line and four records as somebody
// without the key could, and expects the first wrong line to be named.
func TestTampering(t *testing.T) {
	t.Parallel()
	path := written(t, 4)
	other := written(t, 4)
	key, err := ReadKey(keyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	log, headFile := read(t, path), read(t, headPath(path))
	early := func(n int) []byte { // the head as it was after line n
		line, _ := parseLine(bytes.SplitAfter(log, []byte("\n"))[n-1])
		b, at := head{Seq: uint64(n), Hash: line.Hash}.slot(key)
		return append(make([]byte, at), b...)
	}

	lines := func(edit func(l [][]byte) [][]byte) []byte {
		return bytes.Join(edit(bytes.SplitAfter(log, []byte("\n"))[:6]), nil)
	}
	tests := []struct {
		name      string
		log       []byte
		head      []byte
		badRecord uint64
		intact    bool
		complete  bool
		problem   string
	}{
		{name: "untouched", log: log, head: headFile, intact: true, complete: true},
		{name: "edit of a field", log: bytes.Replace(log, []byte("sevt_2"), []byte("sevt_9"), 1), head: headFile, badRecord: 3, problem: "was changed"},
		{name: "edit of white space", log: bytes.Replace(log, []byte(`"seq":4,`), []byte(`"seq":4, `), 1), head: headFile, badRecord: 4, problem: "was changed"},
		{name: "edit of the last line", log: bytes.Replace(log, []byte("sevt_4"), []byte("sevt_5"), 1), head: headFile, badRecord: 5, problem: "was changed"},
		{name: "edit of the hash", log: lines(func(l [][]byte) [][]byte {
			b := bytes.Clone(l[1])
			b[len(b)-50] ^= 1
			return [][]byte{l[0], b, l[2], l[3], l[4], l[5]}
		}), head: headFile, badRecord: 2, problem: "was changed"},
		{name: "deletion", log: lines(func(l [][]byte) [][]byte { return [][]byte{l[0], l[1], l[3], l[4], l[5]} }), head: headFile, badRecord: 3, problem: "lines were deleted"},
		{name: "deletion of the first line", log: lines(func(l [][]byte) [][]byte { return l[1:] }), head: headFile, badRecord: 1, problem: "beginning of its segment is missing"},
		{name: "reorder", log: lines(func(l [][]byte) [][]byte { return [][]byte{l[0], l[2], l[1], l[3], l[4], l[5]} }), head: headFile, badRecord: 2, problem: "deleted or moved"},
		{name: "repetition", log: lines(func(l [][]byte) [][]byte { return [][]byte{l[0], l[1], l[1], l[2]} }), head: headFile, badRecord: 3, problem: "belongs further up"},
		{name: "insertion of an empty line", log: lines(func(l [][]byte) [][]byte { return [][]byte{l[0], []byte("\n"), l[1]} }), head: headFile, badRecord: 2, problem: "is not a line"},
		{name: "insertion of a made-up line", log: lines(func(l [][]byte) [][]byte {
			return [][]byte{l[0], []byte(`{"seq":2,"action":"tool.start","prev":"","hash":"` + strings.Repeat("0", hashHex) + `","mac":"` + strings.Repeat("0", macHex) + "\"}\n")}
		}), head: headFile, badRecord: 2, problem: "was changed"},
		{name: "truncation at a line's end", log: lines(func(l [][]byte) [][]byte { return l[:5] }), head: headFile, badRecord: 6, intact: true, problem: "the end was cut off"},
		{name: "truncation to nothing", log: nil, head: headFile, badRecord: 1, intact: true, problem: "the end was cut off"},
		{name: "truncation inside a line", log: log[:len(log)-9], head: headFile, badRecord: 6, problem: "has no end"},
		{name: "missing newline at the end", log: log[:len(log)-1], head: headFile, badRecord: 6, problem: "has no end"},
		{name: "another log with its own key", log: read(t, other), head: headFile, badRecord: 1, problem: "was written with key"},
		{name: "a second log behind", log: append(bytes.Clone(log), lines(func(l [][]byte) [][]byte { return l[:1] })...), head: headFile, badRecord: 7, problem: "belongs further up"},
		{name: "no head", log: log, head: nil, intact: true, problem: "no head file"},
		{name: "empty head", log: log, head: []byte{}, intact: true, problem: "head file is damaged"},
		{name: "head edited", log: log, head: bytes.ReplaceAll(headFile, []byte(`"seq":6`), []byte(`"seq":3`)), intact: true, complete: true}, // the other slot is still good
		{name: "both slots of the head edited", log: log, head: bytes.ReplaceAll(headFile, []byte(`"mac":"`), []byte(`"mac":"0`)), intact: true, problem: "head file is damaged"},
		{name: "head of another log", log: log, head: read(t, headPath(other)), intact: true, problem: "another key"},
		{name: "log ahead of its head, as a crash leaves it", log: log, head: early(3), intact: true, complete: true},
		{name: "overlong line", log: bytes.Repeat([]byte("x"), LineMax+1), head: headFile, badRecord: 1, problem: "is longer"},
		{name: "binary rubbish", log: []byte("\x00\xff\n"), head: headFile, badRecord: 1, problem: "is not a line"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := Verify(bytes.NewReader(tt.log), Evidence{Key: &key, Head: tt.head})
			if err != nil {
				t.Fatal(err)
			}
			if s.Intact != tt.intact || s.Complete != tt.complete || s.BadRecord != tt.badRecord || !strings.Contains(s.Problem, tt.problem) || (s.Problem == "") != (tt.problem == "") {
				t.Errorf("got %+v\nwant intact %v, complete %v, line %d, problem …%s…", s, tt.intact, tt.complete, tt.badRecord, tt.problem)
			}
		})
	}
}

func TestWrongKey(t *testing.T) {
	t.Parallel()
	path := written(t, 1)
	s, err := Verify(bytes.NewReader(read(t, path)), Evidence{Key: &Key{1}, Head: read(t, headPath(path))})
	if err != nil || s.Intact || s.BadRecord != 1 || !strings.Contains(s.Problem, "was written with key") {
		t.Errorf("Verify with another key: %+v, %v", s, err)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		damage func(t *testing.T, path string)
		want   string
	}{
		{"edited", func(t *testing.T, p string) {
			write(t, p, bytes.Replace(read(t, p), []byte("sevt_1"), []byte("sevt_2"), 1))
		}, "record 2 was changed"},
		{"cut at a line's end", func(t *testing.T, p string) { b := read(t, p); write(t, p, b[:bytes.IndexByte(b, '\n')+1]) }, "cut off"},
		{"cut inside an acknowledged line", func(t *testing.T, p string) { b := read(t, p); write(t, p, b[:len(b)-1]) }, "cut off"},
		{"emptied", func(t *testing.T, p string) { write(t, p, nil) }, "cut off"},
		{"deleted", func(t *testing.T, p string) { os.Remove(p) }, "cut off"},
		{"without its head", func(t *testing.T, p string) { os.Remove(headPath(p)) }, "no head file"},
		{"without its key", func(t *testing.T, p string) { os.Remove(keyPath(p)) }, "is missing"},
		{"with a key others may read", func(t *testing.T, p string) { os.Chmod(keyPath(p), 0o644) }, "chmod 600"},
		{"with a broken key", func(t *testing.T, p string) { write(t, keyPath(p), []byte("secret")) }, "64 hexadecimal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := written(t, 2)
			tt.damage(t, path)
			_, err := Open(path, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open: %v, want …%s…", err, tt.want)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the error shows the key: %v", err)
			}
		})
	}
}

// TestCrash cuts the log where a crash during the last append could
// have, with the head as it was before, and expects the log to continue.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l := open(t, path, Options{})
	if err := l.Append(call(1)); err != nil {
		t.Fatal(err)
	}
	before, head := len(read(t, path)), read(t, headPath(path))
	if err := l.Append(call(2)); err != nil {
		t.Fatal(err)
	}
	whole := read(t, path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for n := before; n <= len(whole); n += crashStep(n, before, len(whole)) {
		write(t, path, whole[:n])
		write(t, headPath(path), head)
		l, err := Open(path, Options{Clock: tick()})
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if err := l.Append(call(3)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := VerifyFile(path)
		if err != nil || !s.Complete {
			t.Fatalf("cut at %d: %+v, %v", n, s, err)
		}
		torn := n > before && n < len(whole)
		if got := bytes.Contains(read(t, path), []byte(`"action":"audit.recovered"`)); got != torn {
			t.Fatalf("cut at %d: recovered record %v, want %v", n, got, torn)
		}
		if torn {
			if got := read(t, path+".torn-3"); !bytes.Equal(got, whole[before:n]) {
				t.Fatalf("cut at %d: kept %q", n, got)
			}
		}
	}
}

// crashStep looks at every byte where something begins or ends, and at some between.
func crashStep(n, from, to int) int {
	if n < from+3 || n >= to-3 {
		return 1
	}
	return min(31, to-3-n)
}

// TestCrashAtFirstStart leaves every prefix of the genesis line.
func TestCrashAtFirstStart(t *testing.T) {
	t.Parallel()
	path := written(t, 0)
	key, err := ReadKey(keyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	whole := read(t, path)
	for n := 0; n < len(whole); n += 61 {
		write(t, path, whole[:n])
		if err := createHead(headPath(path), key); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		l.Close()
		if s, err := VerifyFile(path); err != nil || !s.Complete {
			t.Fatalf("cut at %d: %+v, %v", n, s, err)
		}
	}
}

// faulty fails as told.
type faulty struct {
	file
	write, sync, truncate error
	partial               int // bytes written before a write fails
}

func (f *faulty) WriteAt(b []byte, at int64) (int, error) {
	if f.write != nil {
		n, _ := f.file.WriteAt(b[:f.partial], at)
		return n, f.write
	}
	return f.file.WriteAt(b, at)
}

func (f *faulty) Sync() error {
	if f.sync != nil {
		return f.sync
	}
	return f.file.Sync()
}

func (f *faulty) Truncate(n int64) error {
	if f.truncate != nil {
		return f.truncate
	}
	return f.file.Truncate(n)
}

func TestWriteFailure(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tests := []struct {
		name  string
		fault faulty
		final bool // no append works any more
	}{
		{"disk full", faulty{write: syscall.ENOSPC}, false},
		{"disk full after half a line", faulty{write: syscall.ENOSPC, partial: 50}, false},
		{"disk full and the half line stays", faulty{write: syscall.ENOSPC, partial: 50, truncate: broken}, true},
		{"sync fails once", faulty{sync: syscall.EIO}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := open(t, path, Options{})
			if err := l.Append(call(1)); err != nil {
				t.Fatal(err)
			}
			f := tt.fault
			f.file = l.file
			l.file = &f
			if err := l.Append(call(2)); err == nil {
				t.Fatal("Append succeeded on a failing file")
			}
			l.file = f.file
			err := l.Append(call(3))
			if (err != nil) != tt.final || (l.Err() != nil) != tt.final {
				t.Errorf("Append after the failure: %v, Err %v; want final %v", err, l.Err(), tt.final)
			}
			l.Close()
			if l, err = Open(path, Options{Clock: tick()}); err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Append(call(4)); err != nil {
				t.Fatal(err)
			}
			if s, err := VerifyFile(path); err != nil || !s.Complete {
				t.Errorf("VerifyFile: %+v, %v", s, err)
			}
		})
	}
}

// TestDiskFull fills a real file to its limit in a process of its own.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if path := os.Getenv("AUDIT_FULL"); path != "" {
		fillToLimit(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$")
	cmd.Env = append(os.Environ(), "AUDIT_FULL="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s, err := VerifyFile(path)
	if err != nil || !s.Complete || s.Records < 3 {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

// TestDiskFullOfItsOwn fills a small file system that only a process of its own
// sees, with the log on it or with a required copy on it.
func TestDiskFullOfItsOwn(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("AUDIT_TMPFS"); dir != "" {
		fillTmpfs(t, dir)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system takes root")
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFullOfItsOwn$", "-test.v")
	cmd.Env = append(os.Environ(), "AUDIT_TMPFS="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fillTmpfs(t *testing.T, dir string) {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=96k"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit.jsonl")
	l := open(t, path, Options{})
	fill(t, l, dir)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := VerifyFile(path)
	if err != nil || !s.Complete {
		t.Errorf("VerifyFile: %+v, %v", s, err)
	}
}

// fill appends until the disk under dir is full, wants refusals until there is room
// again, and records from then on.
func fill(t *testing.T, l *Log, dir string) {
	t.Helper()
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, bytes.Repeat([]byte{1}, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	taken := 0
	for ; err == nil && taken < 1000; taken++ {
		err = l.Append(call(taken))
	}
	if !errors.Is(err, syscall.ENOSPC) || taken < 10 {
		t.Fatalf("after %d records: %v", taken, err)
	}
	for range 50 {
		if l.Append(call(0)) == nil {
			t.Fatal("a record was taken on a full disk")
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(call(0)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func fillToLimit(t *testing.T, path string) {
	l := open(t, path, Options{})
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = 8 << 10
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = l.Append(call(i))
	}
	if err == nil {
		t.Fatal("the limit was never hit")
	}
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if err := l.Append(with(call(0), func(r *Record) { r.Detail = err.Error() })); err != nil {
		t.Fatal(err)
	}
}

func TestKeyStaysSecret(t *testing.T) {
	t.Parallel()
	k := Key{0xab, 0xcd}
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s", k, k, k, k)} {
		if strings.Contains(s, "abcd") || strings.Contains(s, "171") {
			t.Errorf("printed key: %s", s)
		}
	}
}

func FuzzVerify(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l, err := Open(path, Options{Clock: tick(), CheckpointRecords: 3, SegmentAge: 6 * time.Second})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 6 {
		if err := l.Append(call(i)); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Hold("a", Hold{ID: "h", Sessions: []string{"sesn_1"}}); err != nil {
		f.Fatal(err)
	}
	key, public := l.key, l.signer.public()
	held, err := l.Checkpoint()
	if err != nil {
		f.Fatal(err)
	}
	l.Close()
	segments, err := OpenSegments(path)
	if err != nil {
		f.Fatal(err)
	}
	log, err := io.ReadAll(segments)
	segments.Close()
	if err != nil {
		f.Fatal(err)
	}
	head, _ := os.ReadFile(headPath(path))
	f.Add(log, head, held.file())
	f.Add(log[:len(log)/2], head, held.file())
	f.Add(log[bytes.LastIndex(log, []byte(`"action":"audit.segment"`))-60:], head, []byte{})
	f.Add([]byte{}, []byte{}, []byte("{}"))
	f.Add([]byte("\n\n"), head[:10], held.file()[:20])
	f.Fuzz(func(t *testing.T, b, h, c []byte) {
		var checkpoints []Checkpoint
		if cp, err := ParseCheckpoint(c); err == nil {
			checkpoints = append(checkpoints, cp)
			if cp.SignedBy(public) && (cp.Count > held.Count || cp.Log != held.Log) {
				t.Errorf("forged checkpoint %+v", cp)
			}
		}
		for _, e := range []Evidence{{Key: &key, Head: h}, {Key: &key, Public: public, Checkpoints: checkpoints}, {Public: public, Checkpoints: checkpoints}} {
			s, err := Verify(bytes.NewReader(b), e)
			if err != nil {
				t.Fatal(err)
			}
			// Only the owner of a key can write a line, or sign for one, so whatever
			// is proven is a part of the log that the keys made.
			if s.Intact && s.Proven > 0 {
				proven := b
				if s.Proven < s.LastSeq {
					// A checkpoint's own line says no more than its signature.
					proven = b[:bytes.Index(b, fmt.Appendf(nil, `{"seq":%d,`, s.Proven+1))]
				}
				if len(s.Removed)+len(s.Missing) == 0 && !bytes.HasPrefix(log, proven) {
					t.Errorf("forged log verifies: %q", proven)
				}
			}
			if s.Complete && (s.Problem != "" || s.BadRecord != 0 || !s.Intact || len(s.Missing) > 0) || s.Intact && s.Proven == 0 && s.Records > 0 {
				t.Errorf("contradictory summary %+v", s)
			}
		}
		for range Entries(bytes.NewReader(b), Filter{}) {
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			l, err := Open(filepath.Join(b.TempDir(), "audit.jsonl"), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			b.SetParallelism(callers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Append(call(1)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	path := filepath.Join(b.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if err := l.Append(call(i)); err != nil {
			b.Fatal(err)
		}
	}
	l.Close()
	info, _ := os.Stat(path)
	b.SetBytes(info.Size())
	for b.Loop() {
		if s, err := VerifyFile(path); err != nil || !s.Complete {
			b.Fatal(s, err)
		}
	}
}
