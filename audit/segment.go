package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Segment is what the first line of each segment says.
type Segment struct {
	Format    int       `json:"format"`
	Log       string    `json:"log_id"`
	Number    int       `json:"number"` // from 1
	KeyID     string    `json:"key_id"`
	PublicKey PublicKey `json:"public_key"`

	// What was in force when it began, from all segments before it.
	Holds   []Hold    `json:"holds,omitempty"`
	Removed []Removed `json:"removed,omitempty"`
	Rekeys  []Rekey   `json:"rekeys,omitempty"` // every change of keys, up to these
}

// A closedSegment is one that is not written any more.
type closedSegment struct {
	path        string
	number      int
	first, last uint64
	prev, hash  string // of the line before its first, and of its last
	from, to    time.Time
	bytes       int64
}

// segmentDigits is how many digits the name of a closed segment ends in.
const segmentDigits = 8

func segmentPath(path string, number int) string {
	return fmt.Sprintf("%s.%0*d", path, segmentDigits, number)
}

// closedPaths lists the closed segments of the log at path, in order.
func closedPaths(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var paths []string
	for _, e := range entries { // sorted by name, and so by number
		digits, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if _, err := strconv.ParseUint(digits, 10, 31); ok && err == nil && len(digits) == segmentDigits {
			paths = append(paths, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return paths, nil
}

// OpenSegments opens the log at path for reading, all its segments as one stream
// of lines. The log may be written meanwhile.
func OpenSegments(path string) (io.ReadCloser, error) {
	all := new(segmentReader)
	// The newest first: should it be closed before the others are listed, it is
	// among them and known by its file.
	newest, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		newest, err = os.Open(path) // between two segments there is none for a moment
	}
	switch {
	case err == nil:
		all.files = append(all.files, newest)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	paths, lerr := closedPaths(path)
	if lerr != nil || newest == nil && len(paths) == 0 {
		return nil, errors.Join(fmt.Errorf("read audit log: %w", errors.Join(lerr, err)), all.Close())
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // retention was faster
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read audit log: %w", err), all.Close())
		}
		if newest != nil && sameFile(f, newest) {
			_ = f.Close()
			continue
		}
		all.files, all.readers = append(all.files, f), append(all.readers, f)
	}
	if newest != nil {
		all.readers = append(all.readers, newest)
	}
	all.Reader = io.MultiReader(all.readers...)
	return all, nil
}

func sameFile(a, b *os.File) bool {
	ai, aerr := a.Stat()
	bi, berr := b.Stat()
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

type segmentReader struct {
	io.Reader
	files   []*os.File
	readers []io.Reader
}

func (r *segmentReader) Close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// inspect reads the first and the last line of a closed segment.
func inspect(path string, keys []Key) (closedSegment, error) {
	s := closedSegment{path: path}
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	s.bytes = info.Size()
	head := make([]byte, min(s.bytes, LineMax))
	tail := make([]byte, len(head))
	if _, err := f.ReadAt(head, 0); err != nil {
		return s, err
	}
	if _, err := f.ReadAt(tail, s.bytes-int64(len(tail))); err != nil {
		return s, err
	}
	damaged := errors.New("does not begin and end as a segment does: it was changed")
	end := bytes.IndexByte(head, '\n')
	if end < 0 || tail[len(tail)-1] != '\n' {
		return s, damaged
	}
	begin, problem1 := parseLine(head[:end+1])
	last, problem2 := parseLine(tail[bytes.LastIndexByte(tail[:len(tail)-1], '\n')+1:])
	if problem1 != "" || problem2 != "" || begin.Segment == nil {
		return s, damaged
	}
	// The key of one from before a change of keys may have been destroyed since.
	if key := keyOf(keys, begin.Segment.KeyID); key != nil && (!begin.by(*key) || !last.by(*key)) {
		return s, damaged
	}
	s.number = begin.Segment.Number
	s.first, s.prev, s.from = begin.Seq, begin.Prev, begin.Time
	s.last, s.hash, s.to = last.Seq, last.Hash, last.Time
	return s, nil
}

// inspectAll reads the ends of all closed segments.
func inspectAll(path string, keys []Key) ([]closedSegment, error) {
	paths, err := closedPaths(path)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	var all []closedSegment
	for _, p := range paths {
		s, err := inspect(p, keys)
		if err != nil {
			return nil, fmt.Errorf("audit segment %s: %w", p, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// join checks that closed segments follow from each other up to the record
// before first, whose hash is prev, or that v knows of the removal of what is
// missing. It returns what is wrong.
func (v *verifier) join(closed []closedSegment, first uint64, prev string) (problem string) {
	last, hash := uint64(0), zeroHash
	for _, s := range append(slices.Clip(closed), closedSegment{first: first, prev: prev}) {
		switch {
		case s.first <= last:
			return fmt.Sprintf("segment %d begins with record %d, which belongs further up", s.number, s.first)
		case s.first == last+1 && s.prev != hash:
			return fmt.Sprintf("record %d does not follow from the segment before it", s.first)
		case s.first > last+1 && !v.covered(gap{Range{last + 1, s.first - 1}, hash, s.prev}):
			return fmt.Sprintf("records %d to %d are missing, and the log does not say that it removed them", last+1, s.first-1)
		}
		last, hash = s.last, s.hash
	}
	return ""
}

// begin makes the file of a segment, with its first line, and puts it in the
// place of the one being written, which is renamed to old. With an error nothing
// has changed, unless l.failed says otherwise. The caller holds commitMu.
func (l *Log) begin(next Segment, old string, now time.Time) error {
	c := l.chain()
	if err := c.addOwn(now, Fields{Action: logSegment, Segment: &next}); err != nil {
		return err
	}
	tmp := l.path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("begin audit segment: %w", err)
	}
	_, err = f.Write(c.buf)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && old != "" {
		err = os.Rename(l.path, old)
	}
	// A crash here leaves no file of the usual name: the next start begins the
	// segment again.
	if err == nil {
		if err = os.Rename(tmp, l.path); err != nil && old != "" {
			if back := os.Rename(old, l.path); back != nil {
				l.failed = fmt.Errorf("audit log %s was left between two segments: %w", l.path, back)
			}
		}
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(tmp)
		return fmt.Errorf("begin audit segment: %w", err)
	}
	if err := syncDir(filepath.Dir(l.path)); err != nil {
		l.failed = fmt.Errorf("begin audit segment: %w", err)
		return l.failed
	}
	if l.file != nil {
		_ = l.file.Close() // synced after every write
	}
	l.file, l.size, l.segment = f, 0, next
	l.began, l.first, l.prev = c.lines[0].Time, c.lines[0].Seq, l.hash
	return l.advance(c)
}

// rotate closes the segment being written, signed to its end, and begins
// another. The caller holds commitMu.
func (l *Log) rotate(now time.Time) error {
	if err := l.sign(now); err != nil {
		return err
	}
	return l.turnOver(now)
}

// turnOver is rotate once all is signed.
func (l *Log) turnOver(now time.Time) error {
	done := closedSegment{
		path: segmentPath(l.path, l.segment.Number), number: l.segment.Number,
		first: l.first, prev: l.prev, last: l.seq, hash: l.hash, from: l.began, to: l.last, bytes: l.size,
	}
	if err := l.begin(l.next(), done.path, now); err != nil {
		return err
	}
	l.closed = append(l.closed, done)
	return nil
}

// next is what the next segment says of itself.
func (l *Log) next() Segment {
	s := l.segment
	s.Number++
	s.KeyID, s.PublicKey = l.key.ID(), l.signer.public()
	s.Holds, s.Removed, s.Rekeys = l.holds, l.removed, l.rekeys
	return s
}
