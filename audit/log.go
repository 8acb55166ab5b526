package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Options tune a [Log]. The zero value works.
type Options struct {
	Logger *slog.Logger     // told of recoveries; nil discards
	Clock  func() time.Time // the time of each record; nil means time.Now
	Input  InputMode        // how much of inputs to keep; empty means InputHash
}

// A Log appends records to one file. It is safe for concurrent use. One process
// has a log open at a time; a second [Open] of the same file fails.
type Log struct {
	// Static after Open.
	path  string
	key   Key
	clock func() time.Time
	input InputMode

	// Guarded by mu.
	mu      sync.Mutex
	waiting []*entry // records that nobody has taken to the file yet

	// Guarded by commitMu, which is held while the file is written.
	commitMu sync.Mutex
	file     file
	head     *os.File
	seq      uint64 // of the last line that is on disk
	hash     string // of that line
	size     int64  // bytes of the file up to its end
	failed   error  // set once the file can no longer be trusted; never cleared
}

// file is what a Log needs of its file; tests put a failing one in its place.
type file interface {
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// entry is one Append under way.
type entry struct {
	fields []byte
	done   bool  // guarded by Log.commitMu
	err    error // valid once done
}

// Damaged is the error of [Open] for a log that does not verify. The log is
// left as it is: what to do about evidence of tampering is for a person to say.
type Damaged struct {
	Path    string
	Summary Summary
}

func (e *Damaged) Error() string {
	return fmt.Sprintf("audit log %s does not verify: %s; move %[1]s, %[1]s.head and %[1]s.key aside to keep them and begin a new log", e.Path, e.Summary.Problem)
}

// Open opens the log at path, making it with its head and key files (0600) if
// there is none. An existing log is verified whole and then continued; if it
// was damaged, the error is a [*Damaged]. The one exception is a last line torn
// by a crash: it was never acknowledged, so it is moved to path.torn-N and the
// log continues with a record of action "recovered" that says so.
func Open(path string, o Options) (_ *Log, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	switch o.Input {
	case "":
		o.Input = InputHash
	case InputHash, InputText:
	default:
		return nil, fmt.Errorf("audit input mode %q is neither %q nor %q", o.Input, InputHash, InputText)
	}

	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("audit log %s is in use by another process: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	key, err := openKey(keyPath(path), info.Size() == 0)
	if err != nil {
		return nil, err
	}
	end, err := scan(f, key)
	if err != nil {
		return nil, err
	}

	// A crash during the very first start may leave any part of the three
	// files; as long as no line was finished, the rest is simply made anew.
	headData, err := os.ReadFile(headPath(path))
	if errors.Is(err, os.ErrNotExist) && info.Size() == 0 {
		if err = createHead(headPath(path), key); err == nil {
			headData, err = os.ReadFile(headPath(path))
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("audit head: %w", err)
	}
	if end.Intact {
		end.checkHead(headData, key)
	}
	if !end.Complete {
		return nil, &Damaged{Path: path, Summary: end.Summary}
	}

	l := &Log{
		path: path, key: key, clock: o.Clock, input: o.Input,
		file: f, seq: uint64(end.Records), hash: end.LastHash, size: end.size,
	}
	if l.head, err = os.OpenFile(headPath(path), os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("open audit head: %w", err)
	}
	defer func() {
		if err != nil {
			_ = l.head.Close()
		}
	}()

	if len(end.torn) > 0 {
		aside := path + ".torn-" + strconv.Itoa(end.Records+1)
		// Kept before it is cut, so that a crash between the two loses nothing.
		if err := writeNew(aside, end.torn); err != nil {
			return nil, fmt.Errorf("keep torn audit line: %w", err)
		}
		if err := f.Truncate(end.size); err != nil {
			return nil, fmt.Errorf("cut torn audit line: %w", err)
		}
		o.Logger.Warn("audit log ended in a torn line; kept it aside",
			"path", path, "line", end.Records+1, "bytes", len(end.torn), "kept", aside)
	}
	if l.seq == 0 {
		if err := l.appendFields(fields{Action: actionGenesis, Format: format, KeyID: key.ID()}); err != nil {
			return nil, fmt.Errorf("begin audit log: %w", err)
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("begin audit log: %w", err)
		}
	}
	if len(end.torn) > 0 {
		sum, n := digest(end.torn)
		err := l.appendFields(fields{
			Action: actionRecovered, OutputSHA: sum, OutputBytes: n,
			Detail: fmt.Sprintf("the log ended in a line torn by a crash; its bytes were moved to %s.torn-%d", filepath.Base(path), end.Records+1),
		})
		if err != nil {
			return nil, fmt.Errorf("continue audit log: %w", err)
		}
	}
	return l, nil
}

// Append writes r and returns once it is on disk. Calls that come while another
// is being written share one write and one sync. On error the record is not in
// the log, and the log may be tried again: a full disk that has room again is
// fine. Only a sync that failed is final, because what is on disk is then
// unknown; every later Append fails with that error until the log is opened anew.
func (l *Log) Append(r Record) error {
	b, err := r.encode(l.input)
	if err != nil {
		return err
	}
	return l.append(b)
}

func (l *Log) appendFields(f fields) error {
	b, err := f.encode()
	if err != nil {
		return err
	}
	return l.append(b)
}

func (l *Log) append(fields []byte) error {
	e := &entry{fields: fields}
	l.mu.Lock()
	l.waiting = append(l.waiting, e)
	l.mu.Unlock()

	// Whoever gets the lock first writes for everybody who waits for it.
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if !e.done {
		l.commit()
	}
	return e.err
}

// commit writes all waiting records. The caller holds commitMu.
func (l *Log) commit() {
	l.mu.Lock()
	batch := l.waiting
	l.waiting = nil
	l.mu.Unlock()

	err := l.failed
	if err == nil {
		err = l.write(batch)
	}
	for _, e := range batch {
		e.done, e.err = true, err
	}
}

func (l *Log) write(batch []*entry) error {
	var buf []byte
	seq, hash := l.seq, l.hash
	for _, e := range batch {
		seq++
		start := len(buf)
		buf = append(buf, `{"seq":`...)
		buf = strconv.AppendUint(buf, seq, 10)
		buf = append(buf, `,"time":"`...)
		buf = l.clock().UTC().AppendFormat(buf, time.RFC3339Nano)
		buf = append(buf, `",`...)
		buf = append(buf, e.fields...)
		buf = append(buf, `,"prev":"`...)
		buf = append(buf, hash...)
		buf = append(buf, '"')
		hash = hex.EncodeToString(l.key.mac("line", buf[start:]))
		buf = append(buf, hashField...)
		buf = append(buf, hash...)
		buf = append(buf, "\"}\n"...)
	}
	if _, err := l.file.WriteAt(buf, l.size); err != nil {
		// Part of it may be there; what follows must not stand behind half a line.
		if terr := l.file.Truncate(l.size); terr != nil {
			l.failed = fmt.Errorf("audit log %s cannot be cut back after a failed write: %w", l.path, terr)
		}
		return fmt.Errorf("write audit log: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		// The kernel may have dropped the pages and forgotten the error: a
		// second sync that succeeds would prove nothing.
		l.failed = fmt.Errorf("sync audit log: %w", err)
		return l.failed
	}
	// A crash here leaves the head one commit behind the log, which is accepted.
	if err := writeHead(l.head, head{Seq: seq, Hash: hash}, l.key); err != nil {
		l.failed = fmt.Errorf("write audit head: %w", err)
		return l.failed
	}
	l.seq, l.hash = seq, hash
	l.size += int64(len(buf))
	return nil
}

// Err returns why the log takes no more records, or nil if it does.
func (l *Log) Err() error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	return l.failed
}

// Close waits for appends under way and closes the files. Later appends fail
// with [ErrClosed].
func (l *Log) Close() error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if errors.Is(l.failed, ErrClosed) {
		return nil
	}
	err := l.head.Sync()
	l.failed = ErrClosed
	return errors.Join(err, l.head.Close(), l.file.Close())
}
