package tunnel

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Socket is a connection under TLS that makes few system calls of many records: it
// reads as much as has arrived, and can gather what is written until it is told that
// there is no more for now. While nothing arrives and nothing is gathered it holds no
// buffer. It is what both ends and the edge put under their TLS.
//
// Like any net.Conn it may be used by several goroutines at once, but for [Socket.Ahead]
// and [Socket.Peek], which are for who reads.
type Socket struct {
	net.Conn
	raw syscall.RawConn // nil for a connection that cannot be read ahead

	// Owned by the reader.
	ahead    *[batchMax]byte // what was read and not taken; nil if nothing
	from, to int
	n        int // of the system call
	err      error
	fill     func(fd uintptr) bool
	noWait   bool // Read fails with errNothing instead of waiting

	mu       sync.Mutex // guards what follows
	gather   bool
	gathered *[batchMax]byte // what was written and not sent; nil if nothing
	size     int
}

// batchMax is how much is read or written at once: four records of TLS.
const batchMax = 68 << 10

var batches = sync.Pool{New: func() any { return new([batchMax]byte) }}

// NewSocket makes a Socket of a connection, which it owns from now on.
func NewSocket(conn net.Conn) *Socket {
	s := &Socket{Conn: conn}
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	s.fill = s.readSome
	return s
}

// readSome reads what has arrived, and reports false if nothing has: then it is called
// again once something does. It holds no buffer in between.
func (s *Socket) readSome(fd uintptr) bool {
	buf := batches.Get().(*[batchMax]byte)
	for {
		s.n, s.err = syscall.Read(int(fd), buf[:])
		if s.err != syscall.EINTR {
			break
		}
	}
	if s.n > 0 {
		s.ahead, s.from, s.to = buf, 0, s.n
		return true
	}
	batches.Put(buf)
	if s.err == syscall.EAGAIN && s.noWait {
		return true
	}
	return s.err != syscall.EAGAIN
}

// errNothing is what a Read that must not wait fails with: like a deadline that has
// passed, which TLS and streams can go on after.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string        { return "nothing has arrived" }
func (nothing) Timeout() bool        { return true }
func (nothing) Temporary() bool      { return true }
func (nothing) Is(target error) bool { return target == os.ErrDeadlineExceeded }
func (nothing) Unwrap() error        { return os.ErrDeadlineExceeded }

// Read implements net.Conn.
func (s *Socket) Read(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Read(p)
	}
	if s.ahead == nil && len(p) > 0 {
		if err := s.raw.Read(s.fill); err != nil {
			return 0, err
		}
		switch {
		case s.err == syscall.EAGAIN:
			return 0, errNothing
		case s.err != nil:
			return 0, &net.OpError{Op: "read", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("read", s.err)}
		case s.n == 0:
			return 0, io.EOF
		}
	}
	if s.ahead == nil {
		return 0, nil
	}
	n := copy(p, s.ahead[s.from:s.to])
	if s.from += n; s.from == s.to {
		batches.Put(s.ahead)
		s.ahead = nil
	}
	return n, nil
}

// Peek calls read, which reads from what is above the Socket and in which no Read waits:
// read fails with a timeout where one would. It is for who reads.
func (s *Socket) Peek(read func() error) error {
	if s.raw == nil {
		return errNothing // it cannot be known
	}
	s.noWait = true
	defer func() { s.noWait = false }()
	return read()
}

// Ahead reports whether a whole record of TLS was read and not taken yet: the next Read
// of the TLS connection will not wait.
func (s *Socket) Ahead() bool {
	const header = 5
	left := s.to - s.from
	if s.ahead == nil || left < header {
		return false
	}
	return left >= header+int(binary.BigEndian.Uint16(s.ahead[s.from+3:]))
}

// Gather has what is written wait for Flush, or until there is much of it.
func (s *Socket) Gather() {
	s.mu.Lock()
	s.gather = true
	s.mu.Unlock()
}

// Flush sends what was gathered, and ends the gathering.
func (s *Socket) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gather = false
	return s.send()
}

// send sends what was gathered. The caller holds mu.
func (s *Socket) send() error {
	if s.gathered == nil {
		return nil
	}
	_, err := s.Conn.Write(s.gathered[:s.size])
	batches.Put(s.gathered)
	s.gathered, s.size = nil, 0
	return err
}

// Write implements net.Conn. Of what is gathered it learns an error later.
func (s *Socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gather || s.size+len(p) > batchMax {
		if err := s.send(); err != nil {
			return 0, err
		}
	}
	if !s.gather || len(p) > batchMax {
		return s.Conn.Write(p)
	}
	if s.gathered == nil {
		s.gathered = batches.Get().(*[batchMax]byte)
	}
	s.size += copy(s.gathered[s.size:], p)
	return len(p), nil
}

// SocketOf is the Socket that a TLS connection was made of; nil for other carriers.
func SocketOf(conn Carrier) *Socket {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		s, _ := t.NetConn().(*Socket)
		return s
	}
	return nil
}
