package worker

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A survey adds up what a work folder holds, some entries at a time. It goes from folder
// to folder by their names in each other, so that what is deep costs no more than what is
// wide; it follows no link and leaves neither the folder nor its file system, whatever is
// moved meanwhile. What is moved it may miss, or count twice; what cannot be read does
// not count.
type survey struct {
	since time.Time

	total   int64 // bytes of disk so far
	written int64 // those in files that were written since

	root    *os.File
	here    *os.File // the last of path
	path    []level  // from the folder itself to the one that is being read
	entries int
	buf     []byte
}

// A level is a folder that a survey is in.
type level struct {
	name     string // in the one above
	dev, ino uint64
	at       int64    // where in it reading goes on
	read     bool     // to its end
	inner    []string // the folders among what was read last, still to be entered
}

// surveyBuffer bounds what is read of a folder at a time, in bytes, and with that the names
// that a survey remembers on each level.
const surveyBuffer = 16 << 10

// newSurvey begins a survey of folder. The caller closes it.
func newSurvey(folder string, since time.Time) (*survey, error) {
	root, err := openFolder(unix.AT_FDCWD, folder)
	if err != nil {
		return nil, err
	}
	s := &survey{since: since, root: root, buf: make([]byte, surveyBuffer)}
	here, top, err := s.open(root, ".")
	if err != nil {
		s.close()
		return nil, err
	}
	s.here, s.path = here, []level{top}
	return s, nil
}

func (s *survey) close() {
	_ = s.root.Close()
	if s.here != nil {
		_ = s.here.Close()
	}
}

// step goes on for about n entries, and reports whether that was the last of them. An
// error says what is too much of the folder.
func (s *survey) step(n int) (done bool, err error) {
	for n > 0 {
		top := &s.path[len(s.path)-1]
		switch last := len(top.inner) - 1; {
		case last >= 0:
			name := top.inner[last]
			top.inner = top.inner[:last]
			if len(s.path) == depthMax {
				return false, fmt.Errorf("is nested more than %d folders deep", depthMax)
			}
			s.enter(name)
			n--
		case !top.read:
			found := s.read(top)
			if s.entries += found; s.entries > entriesMax {
				return false, fmt.Errorf("holds more than %d files", entriesMax)
			}
			n -= found + 1
		case len(s.path) == 1:
			return true, nil
		default:
			n -= s.leave()
		}
	}
	return false, nil
}

// read takes in the next of the entries of the folder that the survey is in.
func (s *survey) read(top *level) (found int) {
	top.read = true // unless there is more
	fd := int(s.here.Fd())
	if _, err := unix.Seek(fd, top.at, unix.SEEK_SET); err != nil {
		return 0
	}
	n, err := unix.ReadDirent(fd, s.buf)
	if err != nil || n <= 0 {
		return 0
	}
	if top.at, err = unix.Seek(fd, 0, unix.SEEK_CUR); err == nil {
		top.read = false
	}
	_, found, names := unix.ParseDirent(s.buf[:n], -1, nil)
	for _, name := range names {
		var stat unix.Stat_t
		if unix.Fstatat(fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue // gone by now
		}
		bytes := stat.Blocks * 512
		if stat.Mode&unix.S_IFMT != unix.S_IFDIR && stat.Nlink > 1 {
			bytes /= int64(stat.Nlink) // the others are in the folder, too
		}
		s.total += bytes
		if !time.Unix(stat.Ctim.Unix()).Before(s.since) {
			s.written += bytes
		}
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR && stat.Dev == top.dev {
			top.inner = append(top.inner, name)
		}
	}
	return found
}

// enter goes into a folder, if it still is one.
func (s *survey) enter(name string) {
	f, inner, err := s.open(s.here, name)
	if err != nil {
		return
	}
	if inner.dev != s.path[0].dev {
		_ = f.Close()
		return
	}
	s.move(f)
	s.path = append(s.path, inner)
}

// leave goes back to the folder above, and returns how many it opened for that.
func (s *survey) leave() (opened int) {
	s.path = s.path[:len(s.path)-1]
	if f, above, err := s.open(s.here, ".."); err == nil {
		if above.same(s.path[len(s.path)-1]) {
			s.move(f)
			return 1
		}
		_ = f.Close() // this one was moved, to where is nobody's business
	}
	// As far as the way down is what it was.
	f, _, err := s.open(s.root, ".")
	if err != nil {
		s.path = s.path[:1]
		s.path[0].read, s.path[0].inner = true, nil // which ends the survey
		return 1
	}
	for i := 1; i < len(s.path); i++ {
		next, inner, err := s.open(f, s.path[i].name)
		if err == nil && !inner.same(s.path[i]) {
			_ = next.Close()
		}
		if err != nil || !inner.same(s.path[i]) {
			s.path = s.path[:i]
			break
		}
		_ = f.Close()
		f = next
		opened++
	}
	s.move(f)
	return opened + 2
}

func (s *survey) move(to *os.File) {
	_ = s.here.Close()
	s.here = to
}

func (l level) same(m level) bool { return l.dev == m.dev && l.ino == m.ino }

// open opens a folder in another.
func (s *survey) open(in *os.File, name string) (*os.File, level, error) {
	f, err := openFolder(int(in.Fd()), name)
	if err != nil {
		return nil, level{}, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		_ = f.Close()
		return nil, level{}, err
	}
	return f, level{name: name, dev: stat.Dev, ino: stat.Ino}, nil
}

func openFolder(in int, name string) (*os.File, error) {
	fd, err := unix.Openat(in, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
