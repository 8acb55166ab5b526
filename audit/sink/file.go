package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/audit"
)

// A file is a copy of the log: the same lines, all segments in one.
type file struct {
	name, path string

	f    *os.File // nil until it is first used
	size int64    // up to the end of the last whole line
	seq  uint64   // of that line
	hash string
}

func (s *file) Name() string { return s.name }

// Last opens the file, making it if it is not there. A torn last line, as a crash
// leaves it, counts for nothing and is written over.
func (s *file) Last() (uint64, string, error) {
	if s.f != nil {
		return s.seq, s.hash, nil
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, "", err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return 0, "", fmt.Errorf("%s %w", s.path, audit.ErrInUse)
	}
	if err := s.findEnd(f); err != nil {
		_ = f.Close()
		return 0, "", fmt.Errorf("%s is not a copy of an audit log: %w", s.path, err)
	}
	s.f = f
	return s.seq, s.hash, nil
}

func (s *file) check(context.Context) error {
	err := unix.Access(s.path, unix.R_OK|unix.W_OK)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(s.path)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return &os.PathError{Op: "make a file in", Path: dir, Err: err}
		}
		return nil
	} else if err != nil {
		return &os.PathError{Op: "write", Path: s.path, Err: err}
	}
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := new(file).findEnd(f); err != nil {
		return fmt.Errorf("%s is not a copy of an audit log: %w", s.path, err)
	}
	return nil
}

func (s *file) findEnd(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	tail := make([]byte, min(info.Size(), 2*audit.LineMax))
	from := info.Size() - int64(len(tail))
	if _, err := f.ReadAt(tail, from); err != nil && err != io.EOF {
		return err
	}
	end := bytes.LastIndexByte(tail, '\n')
	if end < 0 {
		if from > 0 {
			return errors.New("its last line is too long")
		}
		return f.Truncate(0)
	}
	s.size = from + int64(end) + 1
	for e, err := range audit.Entries(bytes.NewReader(tail[bytes.LastIndexByte(tail[:end], '\n')+1:end+1]), audit.Filter{}) {
		if err != nil {
			return err
		}
		s.seq, s.hash = e.Seq, e.Hash
	}
	return f.Truncate(s.size)
}

// Write returns once the lines are on disk.
func (s *file) Write(_ context.Context, lines []audit.Line) error {
	if _, _, err := s.Last(); err != nil {
		return err
	}
	var buf []byte
	seq, hash := s.seq, s.hash
	for _, l := range lines {
		if l.Seq <= seq {
			continue // written before, and then something else failed
		}
		buf = append(append(buf, l.JSON...), '\n')
		seq, hash = l.Seq, l.Hash
	}
	_, err := s.f.WriteAt(buf, s.size)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// What is there now is not known; the next write begins at the end of the
		// last line that is.
		return errors.Join(err, s.f.Truncate(s.size))
	}
	s.size, s.seq, s.hash = s.size+int64(len(buf)), seq, hash
	return nil
}

func (s *file) Close() error {
	if s.f == nil {
		return nil
	}
	_ = syscall.Flock(int(s.f.Fd()), syscall.LOCK_UN) // also for a child just forked
	return s.f.Close()
}

// A stream gets the lines as they are.
type stream struct {
	name string
	to   io.Writer
}

func (s stream) Name() string { return s.name }

func (s stream) Write(_ context.Context, lines []audit.Line) error {
	var buf []byte
	for _, l := range lines {
		buf = append(append(buf, l.JSON...), '\n')
	}
	_, err := s.to.Write(buf)
	return err
}

func (s stream) Close() error { return nil }
