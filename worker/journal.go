package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// callState is how far a call got. Each state is on disk before the step that
// follows it is taken, so that a restarted worker knows what may have happened:
//
//	(none)    nothing ran; the call may be run
//	started   it may have run, in part or whole; it is never run again
//	finished  this is its result, which the plane may or may not have
//	settled   the plane has the result, or wants none
type callState string

const (
	callNew      callState = ""
	callStarted  callState = "started"
	callFinished callState = "finished"
	callSettled  callState = "settled"
)

// journal is the record of one session's calls: JSON lines, the last one about
// a call counting. It is safe for concurrent use.
type journal struct {
	path string
	step func(string) error

	// suspect says that the journal replaced a damaged one, so that any call asked
	// for before it was opened may have run.
	suspect bool

	mu     sync.Mutex
	file   *os.File
	calls  map[string]entry
	size   int64 // bytes of the file
	packed int64 // bytes of the file when it was last rewritten
	failed error // set once it is unknown what is on disk; never cleared
}

// entry is one line.
type entry struct {
	Call  string    `json:"call"`
	State callState `json:"state"`

	// Event is the result to post, byte for byte. Only when finished.
	Event json.RawMessage `json:"event,omitempty"`
}

const (
	// compactAt is the size from which a journal is rewritten when it has doubled.
	compactAt = 16 << 20

	// settledMax bounds the settled calls kept in mind. An older one that the
	// plane asked for again would be run again, but the plane has its result.
	settledMax = 10_000

	// journalKeep is how long the journal of a session that never came back stays.
	journalKeep = 30 * 24 * time.Hour
)

func (d *dataDir) journalPath(session string) string {
	return filepath.Join(d.path, "calls", fileName(session)+".jsonl")
}

// openJournal opens a session's journal, making it if there is none.
func (d *dataDir) openJournal(session string) (*journal, error) {
	j := &journal{
		path:  d.journalPath(session),
		step:  d.step,
		calls: make(map[string]entry),
	}
	b, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read call journal: %w", err)
	}
	good, damaged := j.load(b)
	if damaged {
		// Not a torn end but something else: keep it for a person to look at, and
		// take it that every call so far may have run.
		if err := os.Rename(j.path, j.damagedPath()); err != nil {
			return nil, fmt.Errorf("keep damaged call journal: %w", err)
		}
		clear(j.calls)
		good = 0
	}
	if _, err := os.Stat(j.damagedPath()); err == nil {
		j.suspect = true
	}
	if err := j.open(good); err != nil {
		return nil, fmt.Errorf("open call journal: %w", err)
	}
	return j, nil
}

// open opens the file and cuts it to its good part.
func (j *journal) open(size int64) error {
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), syncDir(filepath.Dir(j.path))); err != nil {
		_ = f.Close()
		return err
	}
	j.file, j.size = f, size
	return nil
}

// load reads lines into j and returns the length of the good part. What follows
// the last newline was torn by a crash before it counted; a bad line above that
// is damage.
func (j *journal) load(b []byte) (good int64, damaged bool) {
	for len(b) > 0 {
		line, rest, ended := bytes.Cut(b, []byte("\n"))
		if !ended {
			break
		}
		var e entry
		if json.Unmarshal(line, &e) != nil || !e.valid() {
			return 0, true
		}
		j.note(e)
		good += int64(len(line)) + 1
		b = rest
	}
	return good, false
}

func (e entry) valid() bool {
	switch e.State {
	case callStarted, callSettled:
		return e.Call != ""
	case callFinished:
		return e.Call != "" && len(e.Event) > 0
	}
	return false
}

// note takes e as the latest word on its call.
func (j *journal) note(e entry) {
	if _, known := j.calls[e.Call]; !known && len(j.calls) >= settledMax {
		for id, old := range j.calls { // any settled one will do
			if old.State == callSettled {
				delete(j.calls, id)
				break
			}
		}
	}
	j.calls[e.Call] = e
}

func (j *journal) damagedPath() string { return j.path + ".damaged" }

// call returns how far a call got, and its result once it is finished.
func (j *journal) call(id string) (callState, json.RawMessage) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.calls[id]
	return e.State, e.Event
}

// unsettled returns the calls for which something may still have to be done.
func (j *journal) unsettled() (ids []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, e := range j.calls {
		if e.State != callSettled {
			ids = append(ids, id)
		}
	}
	return ids
}

// started says that a call is about to run. Durable on return.
func (j *journal) started(id string) error {
	return j.append(entry{Call: id, State: callStarted}, true)
}

// finished keeps a call's result. Durable on return.
func (j *journal) finished(id string, event json.RawMessage) error {
	return j.append(entry{Call: id, State: callFinished, Event: event}, true)
}

// settled says that nothing more is to be done for a call. It is not synced: if
// it is lost, the same result is posted again, which is harmless.
func (j *journal) settled(id string) error {
	return j.append(entry{Call: id, State: callSettled}, false)
}

func (j *journal) append(e entry, durable bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.step("call " + string(e.State)); err != nil {
		return err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if j.failed != nil {
		return j.failed
	}
	if _, err := j.file.WriteAt(b, j.size); err != nil {
		// Nothing may stand behind half a line. With that cut off, the journal
		// works again once the disk does.
		j.failed = j.file.Truncate(j.size)
		return fmt.Errorf("write call journal: %w", err)
	}
	if durable {
		if err := j.file.Sync(); err != nil {
			// The kernel may have dropped the pages: a later sync proves nothing.
			j.failed = fmt.Errorf("sync call journal: %w", err)
			return j.failed
		}
	}
	j.size += int64(len(b))
	j.note(e)
	if j.size > max(compactAt, 2*j.packed) {
		return j.compact()
	}
	return nil
}

// compact rewrites the file with what still counts. A crash leaves the old file
// or the new one, which say the same.
func (j *journal) compact() error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, e := range j.calls {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	if err := replaceFile(j.path, buf.Bytes(), true); err != nil {
		return fmt.Errorf("compact call journal: %w", err)
	}
	old := j.file
	if err := j.open(int64(buf.Len())); err != nil {
		return fmt.Errorf("compact call journal: %w", err)
	}
	_ = old.Close()
	j.packed = j.size
	return nil
}

// close closes the journal, and removes it if nothing in it is needed any more:
// every call is settled, or over says that the session itself has ended.
func (j *journal) close(over bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.file.Close()
	if !over {
		for _, e := range j.calls {
			if e.State != callSettled {
				return err
			}
		}
	}
	if j.suspect {
		err = errors.Join(err, os.Rename(j.damagedPath(), j.path+".examined"))
	}
	return errors.Join(err, os.Remove(j.path))
}

// sweepJournals removes the journals of sessions that did not come back.
func (d *dataDir) sweepJournals(now time.Time) error {
	dir := filepath.Join(d.path, "calls")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > journalKeep {
			err = os.Remove(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
		}
	}
	return nil
}
