package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	Logger *slog.Logger     // told of recoveries, removals and sinks in trouble; nil discards
	Clock  func() time.Time // the time of each record; nil means time.Now
	Input  InputMode        // how much of inputs to keep; empty means InputHash

	// A checkpoint is signed after so many records, default 1000, and so long after
	// a record that none covers yet, default 30 s.
	CheckpointRecords int
	CheckpointEvery   time.Duration

	// A segment is closed once it is so large, default 64 MiB, or so old, default
	// 7 days. A closed segment can be removed, one being written never.
	SegmentBytes int64
	SegmentAge   time.Duration

	// Retain is how old all records of a segment must be before it is removed. 0
	// keeps everything.
	Retain time.Duration

	// Sinks are second places for every line. Close closes them; so does Open if it
	// fails.
	Sinks []SinkOptions
}

const (
	defaultCheckpointRecords = 1000
	defaultCheckpointEvery   = 30 * time.Second
	defaultSegmentBytes      = 64 << 20
	defaultSegmentAge        = 7 * 24 * time.Hour
)

func (o *Options) setDefaults() error {
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
		return fmt.Errorf("audit input mode %q is neither %q nor %q", o.Input, InputHash, InputText)
	}
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = defaultCheckpointRecords
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = defaultCheckpointEvery
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.SegmentAge == 0 {
		o.SegmentAge = defaultSegmentAge
	}
	return nil
}

// notedDelay is how long a record that nobody waits for waits for one that somebody
// waits for, to be written with it: it then costs no sync of its own.
const notedDelay = 20 * time.Millisecond

// notedMax bounds the records that wait without anybody waiting for them.
const notedMax = 10_000

// A Log appends records. It is safe for concurrent use. One process has a log
// open at a time; a second [Open] of the same path fails. A goroutine of its own
// signs, closes and removes segments when their time has come, and each
// best-effort sink has one; [Log.Close] returns when they are gone.
type Log struct {
	// Static after Open.
	Options
	path  string
	lock  *os.File
	sinks []*outlet
	kick  chan struct{} // 1: there are noted records to write
	ctx   context.Context
	stop  context.CancelFunc
	parts sync.WaitGroup

	// keyMu is held for reading from when a record is encoded with key until it is
	// waiting. key, signer and rekeys change under keyMu and commitMu.
	keyMu  sync.RWMutex
	key    Key
	signer signer
	rekeys []Rekey

	// Guarded by mu.
	mu      sync.Mutex
	waiting []*entry // records that nobody has taken to the file yet

	// Guarded by commitMu, which is held while the file is written.
	commitMu sync.Mutex
	file     file
	head     *os.File
	segment  Segment // the one being written
	began    time.Time
	first    uint64 // its first line
	prev     string // the hash before that
	seq      uint64 // of the last line that is on disk
	hash     string // of that line
	last     time.Time
	size     int64 // bytes of the file up to its end
	failed   error // set once the file can no longer be trusted; never cleared
	closed   []closedSegment
	holds    []Hold
	holding  int // how often holds has changed
	removed  []Removed

	unsigned int       // lines since the last checkpoint
	signedAt time.Time // when that was written, or the log opened
	newest   *Checkpoint
	copied   bool // newest is in its file

	trouble error     // why the last commit failed; nil after one that did not
	refused int       // records refused since trouble began
	since   time.Time // when it began
}

// file is what a Log needs of its file; tests put a failing one in its place.
type file interface {
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// entry is one record on its way.
type entry struct {
	action string
	fields []byte
	noted  bool  // nobody waits for it
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
	return fmt.Sprintf("audit log %s does not verify: %s; move all files whose names begin with %[1]s aside to keep them and begin a new log", e.Path, e.Summary.Problem)
}

// Open opens the log at path, making it with the files beside it (0600) if there
// is none. The newest segment of an existing log is verified whole, the others at
// their ends, and the log is then continued; if it was damaged, the error is a
// [*Damaged]. The one exception is a last line torn by a crash: it was never
// acknowledged, so it is moved to path.torn-N and the log continues with a record
// that says so.
func Open(path string, o Options) (_ *Log, err error) {
	l := &Log{
		Options: o, path: path,
		kick: make(chan struct{}, 1), signedAt: time.Now(),
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	for _, s := range o.Sinks {
		l.sinks = append(l.sinks, newOutlet(s))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeFiles())
		}
	}()
	if err := l.setDefaults(); err != nil {
		return nil, err
	}
	if err := l.openFiles(); err != nil {
		return nil, err
	}
	if err := l.catchUp(); err != nil {
		return nil, err
	}
	l.parts.Go(l.keep)
	for _, s := range l.sinks {
		if !s.Required {
			l.parts.Go(func() { s.run(l.ctx, l.Logger) })
		}
	}
	return l, nil
}

func (l *Log) openFiles() (err error) {
	path := l.path
	if l.lock, err = os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	if err := syscall.Flock(int(l.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("audit log %s %w", path, ErrInUse)
	}
	closed, err := closedPaths(path)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open audit log: %w", err)
	}
	fresh := len(closed) == 0 && (info == nil || info.Size() == 0)
	if err := l.recoverKeys(); err != nil {
		return err
	}
	if l.key, err = openKey(keyPath(path), fresh); err != nil {
		return err
	}
	if l.signer, err = openSigner(signPath(path), fresh); err != nil {
		return err
	}
	_, older, err := ReadKeys(keyPath(path))
	if err != nil {
		return err
	}
	if l.closed, err = inspectAll(path, append(older, l.key)); err != nil {
		return err
	}
	v, torn, err := l.scanNewest()
	if err != nil {
		return err
	}

	// A crash during the very first start may leave any part of the files; as long
	// as no line was finished, the rest is simply made anew.
	headData, err := os.ReadFile(headPath(path))
	if errors.Is(err, fs.ErrNotExist) && fresh {
		if err = createHead(headPath(path), l.key); err == nil {
			headData, err = os.ReadFile(headPath(path))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit head: %w", err)
	}
	if v.e.Head = headData; v.Intact && v.settleKeys() {
		v.checkEnd()
	}
	if v.Complete {
		older := l.closed
		if v.Records > 0 && len(older) > 0 && older[len(older)-1].number == v.seg.Number {
			older = older[:len(older)-1] // that is the one that was scanned
		}
		if v.Records > 0 {
			if v.Problem = v.join(older, v.FirstSeq, v.firstPrev); v.Problem != "" {
				v.Complete = false
			}
		}
	}
	if !v.Complete {
		return &Damaged{Path: path, Summary: v.Summary}
	}
	if l.head, err = os.OpenFile(headPath(path), os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("open audit head: %w", err)
	}
	return l.resume(v, torn)
}

// scanNewest verifies the newest segment that has a line, and returns what was
// torn off behind the last line of the log.
func (l *Log) scanNewest() (v *verifier, torn []byte, err error) {
	scan := func(path string) (*verifier, error) {
		v := newVerifier(Evidence{Key: &l.key})
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return v, nil
		} else if err != nil {
			return nil, fmt.Errorf("open audit log: %w", err)
		}
		defer f.Close()
		torn, v.size, err = v.scan(f)
		return v, err
	}
	if v, err = scan(l.path); err != nil || v.Records > 0 || !v.Intact || len(l.closed) == 0 {
		return v, torn, err
	}
	// A crash between two segments: the older one is finished, the newer one not
	// begun.
	behind := torn
	v, err = scan(l.closed[len(l.closed)-1].path)
	return v, behind, err
}

// resume takes over what v found and makes the log ready to be written.
func (l *Log) resume(v *verifier, torn []byte) error {
	l.seq, l.hash, l.last = v.LastSeq, v.LastHash, v.Last
	l.holds, l.removed, l.unsigned = v.holds, mergeRemoved(nil, v.removed...), v.unsigned
	l.rekeys = v.rekeys
	if len(torn) > 0 {
		aside := l.path + ".torn-" + strconv.FormatUint(l.seq+1, 10)
		// Kept before it is cut, so that a crash between the two loses nothing.
		if err := writeNew(aside, torn, 0o600); err != nil {
			return fmt.Errorf("keep torn audit line: %w", err)
		}
		l.Logger.Warn("audit log ended in a torn line; kept it aside",
			"path", l.path, "record", l.seq+1, "bytes", len(torn), "kept", aside)
	}
	betweenSegments := v.Records > 0 && len(l.closed) > 0 && l.closed[len(l.closed)-1].number == v.seg.Number
	switch {
	case v.Records == 0:
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		first := Segment{Format: format, Log: hex.EncodeToString(id[:]), Number: 1, KeyID: l.key.ID(), PublicKey: l.signer.public()}
		if err := l.begin(first, "", l.Clock()); err != nil {
			return err
		}
	case betweenSegments:
		l.segment = *v.seg
		if err := l.begin(l.next(), "", l.Clock()); err != nil {
			return err
		}
	default:
		f, err := os.OpenFile(l.path, os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("open audit log: %w", err)
		}
		l.file, l.size, l.segment = f, v.size, *v.seg
		l.began, l.first, l.prev = v.segBegan, v.FirstSeq, v.firstPrev
		if len(torn) > 0 {
			if err := f.Truncate(v.size); err != nil {
				return fmt.Errorf("cut torn audit line: %w", err)
			}
		}
	}
	if !l.signer.public().equal(l.segment.PublicKey) {
		return fmt.Errorf("audit key %s is not the one that this log was begun with: put that one back, or move the log aside to begin a new one", signPath(l.path))
	}
	if err := writeNew(publicPath(l.path), l.signer.public().PEM(), 0o644); err != nil {
		return fmt.Errorf("write audit public key: %w", err)
	}
	if len(torn) > 0 {
		sum, n := l.key.digest(torn)
		c := l.chain()
		if err := c.addOwn(l.Clock(), Fields{
			Action: logRecovered, OutputMAC: sum, OutputBytes: n,
			Detail: fmt.Sprintf("the log ended in a line torn by a crash; its bytes were moved to %s.torn-%d", filepath.Base(l.path), l.seq+1),
		}); err != nil {
			return err
		}
		if err := l.store(c); err != nil {
			return fmt.Errorf("continue audit log: %w", err)
		}
	}
	if err := l.finishRotation(v.announced); err != nil {
		return err
	}
	return l.finishRemovals()
}

// Append writes r and returns once it is on disk and every required sink has
// taken it: only then may what r announces be done. Calls that come while
// another is being written share one write and one sync.
//
// An error means a refusal: do nothing. The record is then not in the log, or
// the log says that it was refused. The log may be tried again: a full disk that
// has room again is fine. Only a sync that failed is final, because what is on
// disk is then unknown; every later Append fails with that error until the log is
// opened anew.
func (l *Log) Append(r Record) error { return l.AppendAll([]Record{r}) }

// AppendAll is Append for records that belong together: all are written or none.
func (l *Log) AppendAll(records []Record) error {
	entries, _, err := l.enqueue(records, false)
	if err != nil || len(entries) == 0 {
		return err
	}
	return l.await(entries[0])
}

// Note writes a record that nothing depends on, as what came of something that
// was announced before, and does not wait for it: it is on disk about 20 ms later. While the log cannot be written
// up to 10,000 such records wait; more wait like those of Append. The error is
// about r itself, or that the log is closed.
func (l *Log) Note(r Record) error {
	entries, room, err := l.enqueue([]Record{r}, true)
	if err != nil {
		return err
	}
	if !room {
		return l.await(entries[0])
	}
	select {
	case l.kick <- struct{}{}:
	default: // somebody is on the way
	}
	return nil
}

// enqueue hands records to the next commit. It reports whether there is room for records
// that nobody waits for.
func (l *Log) enqueue(records []Record, noted bool) (entries []*entry, room bool, err error) {
	l.keyMu.RLock()
	defer l.keyMu.RUnlock()
	for _, r := range records {
		b, err := r.encode(l.key, l.Input)
		if err != nil {
			return nil, false, err
		}
		entries = append(entries, &entry{action: r.Action, fields: b, noted: noted})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, entries...)
	return entries, len(l.waiting) <= notedMax, nil
}

// await returns once e is written or refused. Whoever gets the lock first writes
// for everybody who waits for it.
func (l *Log) await(e *entry) error {
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

	stored, err := l.write(batch)
	var again []*entry
	for _, e := range batch {
		if err != nil && !stored && e.noted && l.failed == nil && len(again) < notedMax {
			again = append(again, e)
			continue
		}
		e.done, e.err = true, err
		if err != nil {
			l.refused++
		}
	}
	if err != nil && l.trouble == nil {
		l.since = time.Now()
		l.Logger.Error("the audit record cannot be written; what depends on it is refused", "error", err)
	}
	l.trouble = err
	if again != nil {
		l.mu.Lock()
		l.waiting = append(again, l.waiting...)
		l.mu.Unlock()
	}
}

// write writes a batch, with what the log itself has to say before it. stored
// says that the batch is in the file, although a required sink does not have it.
func (l *Log) write(batch []*entry) (stored bool, err error) {
	if l.failed != nil {
		return false, l.failed
	}
	// A required sink that does not take what it is owed takes nothing more; the
	// file must not fill up with refused records meanwhile.
	if err := l.settle(); err != nil {
		return false, err
	}
	now := l.Clock() // one time for the whole batch: it is written at once
	if l.size >= l.SegmentBytes || now.Sub(l.began) >= l.SegmentAge {
		if err := l.rotate(now); err != nil {
			return false, err
		}
	}
	c := l.chain()
	if err := l.confess(&c, now); err != nil {
		return false, err
	}
	for _, e := range batch {
		c.add(now, e.action, e.fields)
	}
	if len(c.lines) == 0 {
		return true, nil
	}
	if l.unsigned+len(c.lines) >= l.CheckpointRecords {
		if err := l.addCheckpoint(&c, now); err != nil {
			return false, err
		}
	}
	if err := l.store(c); err != nil {
		return false, err
	}
	return true, l.settle()
}

// confess adds what was refused or dropped since the log last said so.
func (l *Log) confess(c *chain, now time.Time) error {
	if l.refused > 0 {
		err := c.addOwn(now, Fields{Action: logResumed, Detail: "records were refused, and what depended on them was not done",
			Attrs: map[string]string{"refused": strconv.Itoa(l.refused), "since": l.since.UTC().Format(time.RFC3339Nano)}})
		if err != nil {
			return err
		}
	}
	for _, s := range l.sinks {
		if d := s.drops(); d.count > 0 {
			err := c.addOwn(now, Fields{Action: logDropped, Attrs: map[string]string{
				"sink": s.Sink.Name(), "records": strconv.Itoa(d.count),
				"first": strconv.FormatUint(d.first, 10), "last": strconv.FormatUint(d.last, 10),
			}})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// chain continues the log after its last line.
func (l *Log) chain() chain { return chain{key: l.key, seq: l.seq, hash: l.hash} }

// store writes the lines of c. The caller holds commitMu.
func (l *Log) store(c chain) error {
	if _, err := l.file.WriteAt(c.buf, l.size); err != nil {
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
	return l.advance(c)
}

// advance takes note that the lines of c are on disk.
func (l *Log) advance(c chain) error {
	// A crash here leaves the head one commit behind the log, which is accepted.
	if err := writeHead(l.head, head{Seq: c.seq, Hash: c.hash}, l.key); err != nil {
		l.failed = fmt.Errorf("write audit head: %w", err)
		return l.failed
	}
	l.seq, l.hash, l.last = c.seq, c.hash, c.lines[len(c.lines)-1].Time
	l.size += int64(len(c.buf))
	for _, line := range c.lines {
		l.unsigned++
		switch line.Action {
		case logCheckpoint:
			l.unsigned, l.signedAt = 0, time.Now()
			l.newest, l.copied = c.signed, false
		case logResumed:
			l.refused = 0
		case logDropped:
			for _, s := range l.sinks {
				s.confessed()
			}
		}
	}
	for _, s := range l.sinks {
		s.offer(c.lines)
	}
	return nil
}

// addCheckpoint signs everything up to the last line of c.
func (l *Log) addCheckpoint(c *chain, now time.Time) error {
	cp := l.signer.checkpoint(l.segment.Log, c.seq, c.hash, now)
	c.signed = &cp
	return c.addOwn(now, Fields{Action: logCheckpoint, Checkpoint: &cp})
}

// sign signs what is not signed yet, for the required sinks too. The caller holds
// commitMu.
func (l *Log) sign(now time.Time) error {
	if l.unsigned == 0 {
		return nil
	}
	c := l.chain()
	if err := l.addCheckpoint(&c, now); err != nil {
		return err
	}
	if err := l.store(c); err != nil {
		return err
	}
	return l.settle()
}

// Checkpoint signs what is not signed yet and returns the newest checkpoint.
func (l *Log) Checkpoint() (Checkpoint, error) {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if l.failed != nil {
		return Checkpoint{}, l.failed
	}
	if err := l.sign(l.Clock()); err != nil {
		return Checkpoint{}, err
	}
	l.copyCheckpoint()
	if l.newest == nil {
		return ReadCheckpoint(checkpointPath(l.path)) // signed before this start
	}
	return *l.newest, nil
}

// copyCheckpoint keeps the newest checkpoint in its file. It is a convenience,
// and in the log as well, so that a failure changes nothing.
func (l *Log) copyCheckpoint() {
	if l.newest == nil || l.copied {
		return
	}
	path := checkpointPath(l.path)
	err := os.WriteFile(path+".new", l.newest.file(), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		l.Logger.Warn("the newest audit checkpoint is in the log only", "error", err)
	}
	l.copied = true
}

// keepEvery is how often the log looks whether something is due.
const keepEvery = time.Second

// retainEvery is how often it looks for segments that are old enough to remove.
const retainEvery = time.Hour

// keep does what is due by time.
func (l *Log) keep() {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	var retained time.Time
	var noted <-chan time.Time
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.kick:
			if noted == nil {
				noted = time.After(notedDelay)
			}
		case <-noted:
			noted = nil
			l.commitMu.Lock()
			l.commit()
			l.commitMu.Unlock()
		case <-tick.C:
			l.keepOnce()
			if l.Retain > 0 && time.Since(retained) >= retainEvery {
				retained = time.Now()
				l.removeOld()
			}
		}
	}
}

func (l *Log) keepOnce() {
	l.takeRequests()
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if l.failed != nil {
		return
	}
	if l.trouble != nil {
		l.commit() // finds out whether there is room again, and writes what was noted
	}
	if l.trouble == nil && l.unsigned > 0 && time.Since(l.signedAt) >= l.CheckpointEvery {
		if err := l.sign(l.Clock()); err != nil {
			l.Logger.Warn("audit checkpoint not written; trying again", "error", err)
		}
	}
	l.copyCheckpoint()
}

// Err returns why the log took no record when it was last asked to, or nil if it
// did.
func (l *Log) Err() error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	return errors.Join(l.failed, l.trouble)
}

// Missed is how many lines the best-effort sinks did not get since the log was
// opened.
func (l *Log) Missed() (n int) {
	for _, s := range l.sinks {
		n += s.missedEver()
	}
	return n
}

// Close waits for records under way, signs the end of the log, gives best-effort
// sinks a few seconds to take the rest, and closes the files. Later appends fail
// with [ErrClosed].
func (l *Log) Close() error {
	l.commitMu.Lock()
	if errors.Is(l.failed, ErrClosed) {
		l.commitMu.Unlock()
		return nil
	}
	var err error
	if l.failed == nil {
		l.commit() // what was noted
	}
	if l.failed == nil {
		err = l.sign(l.Clock())
		l.copyCheckpoint()
	}
	l.stop()
	l.commitMu.Unlock()
	l.parts.Wait()

	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if l.failed == nil {
		// What a sink did not take in time is said in the file, at least.
		c, now := l.chain(), l.Clock()
		if cerr := l.confess(&c, now); cerr == nil && len(c.lines) > 0 {
			err = errors.Join(err, l.addCheckpoint(&c, now), l.store(c), l.settle())
		}
		l.copyCheckpoint()
	}
	l.failed = ErrClosed
	return errors.Join(err, l.closeFiles())
}

func (l *Log) closeFiles() error {
	var errs []error
	l.stop()
	for _, s := range l.sinks {
		errs = append(errs, s.Sink.Close())
	}
	if l.head != nil {
		errs = append(errs, l.head.Sync(), l.head.Close())
	}
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	if l.lock != nil {
		// Closing alone would leave the lock with a child that was forked and has not
		// executed its program yet.
		_ = syscall.Flock(int(l.lock.Fd()), syscall.LOCK_UN)
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}
