// Package users gives boxes users of the host that nobody else has: no system, no other
// box, of whatever backend and worker on the host.
//
// It must not know what a box is made of. Start reading at [Ranges.Take].
package users

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// PerBox is how many users and groups of the host a box is given, so that all
// those that programs and images use exist in it.
const PerBox = 1 << 16

// A Range is of users and groups of the host, by their numbers.
type Range struct {
	First uint32 // a multiple of [PerBox]
	Boxes uint32 // for how many boxes there are users
}

// Default are of a range that systemd leaves alone, above those of its own
// containers and below those that some programs take for negative.
var Default = Range{First: 0x7000_0000, Boxes: 0xff0}

func (u Range) validate() error {
	end := uint64(u.First) + uint64(u.Boxes)*PerBox
	switch {
	case u.First%PerBox != 0 || u.First == 0:
		return fmt.Errorf("users of boxes begin at %d: want a multiple of %d above 0", u.First, PerBox)
	case u.Boxes == 0 || end > 1<<31:
		return fmt.Errorf("users of boxes end at %d: want at least %d of them, and none above %d", end, PerBox, 1<<31)
	}
	return nil
}

// Path is where the drivers of a host, of all workers, agree on who has which
// users: whoever has locked the byte whose offset is that of the range.
const Path = "/run/bailey/users"

// Ranges gives out ranges of users. It is safe for concurrent use.
type Ranges struct {
	users Range
	file  *os.File // every first process of a box holds it open, and so our locks

	mu    sync.Mutex
	next  uint32
	taken map[uint32]bool // our own, which our locks do not stop us from locking again
}

// Open returns what gives out ranges of users, the zero Range meaning [Default], by the
// locks of the file at name, which is [Path] but in tests.
func Open(name string, users Range) (*Ranges, error) {
	users = cmp.Or(users, Default)
	if err := users.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// Beginning anywhere, and then going round, what a box had comes to another as late
	// as can be.
	return &Ranges{users: users, file: file, next: rand.N(users.Boxes), taken: make(map[uint32]bool)}, nil
}

// File is the file whose locks say what is taken. Who is to keep users for longer than
// this process lives holds it open.
func (r *Ranges) File() *os.File { return r.file }

// Close forgets what was taken, but for what others hold by the file.
func (r *Ranges) Close() { r.file.Close() }

// Take returns the first of [PerBox] users that nobody else has.
func (r *Ranges) Take() (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range r.users.Boxes {
		i := r.next
		r.next = (r.next + 1) % r.users.Boxes
		first := r.users.First + i*PerBox
		if r.taken[first] {
			continue
		}
		err := r.lock(first, unix.F_WRLCK)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			continue // another worker's
		}
		if err != nil {
			return 0, fmt.Errorf("claim users for a box: %w", err)
		}
		r.taken[first] = true
		return first, nil
	}
	return 0, fmt.Errorf("all users for %d boxes are taken", r.users.Boxes)
}

// Give gives a range back. No process of its users is left.
func (r *Ranges) Give(first uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.taken, first)
	return r.lock(first, unix.F_UNLCK)
}

func (r *Ranges) lock(first uint32, kind int16) error {
	return unix.FcntlFlock(r.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: int64(first / PerBox), Len: 1})
}
