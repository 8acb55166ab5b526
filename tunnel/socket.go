package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Socket is a connection under TLS that makes few system calls of many records: it can
// gather what is written until it is told that there is no more for now, and tells who
// reads whether there is more to come. While nothing is gathered it holds no buffer. It
// is what both ends and the edge put under their TLS.
//
// Like any net.Conn it may be used by several goroutines at once, but for [Socket.Hurry]
// and [Socket.More], which are for who reads.
type Socket struct {
	net.Conn
	raw syscall.RawConn // nil for a connection that cannot be asked what has arrived

	// Owned by the reader.
	hurry bool // Read fails with errNothing instead of waiting
	got   int  // bytes that the last Read brought
	into  []byte
	n     int // of the system call
	err   error
	now   func(fd uintptr) bool // readNow, made once

	mu       sync.Mutex // guards what follows
	gather   bool
	gathered *[batchMax]byte // what was written and not sent; nil if nothing
	size     int
}

// batchMax is how much is written at once: four records of TLS.
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
	s.now = s.readNow
	return s
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
func (s *Socket) Read(p []byte) (n int, err error) {
	if s.hurry {
		n, err = s.readHurried(p)
	} else {
		n, err = s.Conn.Read(p)
	}
	s.got = n
	return n, err
}

// readHurried reads what has arrived.
func (s *Socket) readHurried(p []byte) (int, error) {
	if s.raw == nil {
		return 0, errNothing // it cannot be known
	}
	s.into = p
	err := s.raw.Read(s.now)
	s.into = nil
	switch {
	case err != nil:
		return 0, err
	case s.err == syscall.EAGAIN:
		return 0, errNothing
	case s.err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("read", s.err)}
	case s.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return s.n, nil
}

// readNow is called with the connection's descriptor. It reports that it need not be
// called again.
func (s *Socket) readNow(fd uintptr) bool {
	for {
		s.n, s.err = syscall.Read(int(fd), s.into)
		if s.err != syscall.EINTR {
			return true
		}
	}
}

// Hurry has Reads fail with a timeout where they would wait, until it is called again
// with false.
func (s *Socket) Hurry(on bool) { s.hurry = on }

// More reports whether the last Read brought more than a record of TLS 1.3 that has size
// bytes in it: what is beside them can be read without waiting, or was on its way.
func (s *Socket) More(size int) bool { return s.got > size+recordOverhead }

// recordOverhead is how much longer a record of TLS 1.3 is than what is in it: by its
// header, its type and its tag.
const recordOverhead = 5 + 1 + 16

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
