package boxinit

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A Line is one end of the socket between a driver and the process that becomes a box.
// In turn, the driver sends the mounts and the word to go, and the box that it runs, or
// what went wrong, and at last how the command ended.
type Line struct{ file *os.File }

// A Word is what a message on a line says.
type Word byte

// What is said on a line.
const (
	Mounts  Word = 'm' // by the driver, with the mounts, if it makes them
	Go      Word = 'g' // by the driver: everything around the box is ready
	Running Word = 'r' // by the box: so is everything in it, and the command runs
	Failed  Word = 'f' // by the box, with the reason in words
	Ended   Word = 'e' // by the box, with the wait status of the command in four bytes
)

// MountsMax is how many mounts can be sent. The kernel passes no more descriptors at
// once (SCM_MAX_FD).
const MountsMax = 253

// wordsMax bounds the words of a message, in bytes.
const wordsMax = 4 << 10

// Lines returns the two ends of a line: ours obeys deadlines, theirs is for the process
// that is to become a box. The caller closes both.
func Lines() (ours Line, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return Line{}, nil, err
	}
	return Line{os.NewFile(uintptr(pair[0]), "line to a box")}, os.NewFile(uintptr(pair[1]), "line to the driver"), nil
}

// File returns the socket, for deadlines and closing.
func (l Line) File() *os.File { return l.file }

// Send sends a word, with more words to it, cut short if there are too many, and
// descriptors.
func (l Line) Send(word Word, more string, fds ...int) error {
	data := append([]byte{byte(word)}, more[:min(len(more), wordsMax-1)]...)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	conn, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Write(func(fd uintptr) bool {
		inner = unix.Sendmsg(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(inner, unix.EAGAIN) && !errors.Is(inner, unix.EINTR)
	})
	return errors.Join(err, inner)
}

// Receive waits for the next message. It returns io.EOF when the other end is closed.
// The caller closes the descriptors.
func (l Line) Receive() (word Word, more string, fds []int, err error) {
	conn, err := l.file.SyscallConn()
	if err != nil {
		return 0, "", nil, err
	}
	data, rights := make([]byte, wordsMax), make([]byte, unix.CmsgSpace(4*MountsMax))
	var n, oob int
	var inner error
	err = conn.Read(func(fd uintptr) bool {
		n, oob, _, _, inner = unix.Recvmsg(int(fd), data, rights, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(inner, unix.EAGAIN) && !errors.Is(inner, unix.EINTR)
	})
	if errors.Is(inner, unix.ECONNRESET) {
		inner = io.EOF
	}
	if err := errors.Join(err, inner); err != nil {
		return 0, "", nil, err
	}
	if n == 0 {
		return 0, "", nil, io.EOF
	}
	if oob > 0 {
		messages, err := unix.ParseSocketControlMessage(rights[:oob])
		if err != nil || len(messages) != 1 {
			return 0, "", nil, fmt.Errorf("%d messages with descriptors at once: %w", len(messages), err)
		}
		if fds, err = unix.ParseUnixRights(&messages[0]); err != nil {
			return 0, "", nil, err
		}
	}
	return Word(data[0]), string(data[1:n]), fds, nil
}
