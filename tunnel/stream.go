package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Stream is one end of a stream: a net.Conn over a connection to an edge. What is
// written to it goes into data frames, and all other frames stay within it. Like any
// net.Conn it may be used by several goroutines at once.
//
// While nothing is written it sends a ping each [KeepAlive], so that whatever is on the
// way (a proxy, an address translator) takes the connection for used: a stream may be
// silent for hours. A Read that hears nothing for [SilenceMax], not even a ping, fails; as
// it looks once each [KeepAlive], that may take up to two of these longer.
//
// Its errors are *[Error]s where the edge said what happened.
type Stream struct {
	// Static after construction.
	cfg    StreamConfig
	conn   Carrier
	socket *Socket // under conn; nil if there is none

	// Owned by whoever holds reading.
	reading sync.Mutex
	header  [FrameHeader]byte
	have    int // bytes of header that were read
	left    int // bytes of the current data frame that were not
	readErr error

	// Owned by whoever holds writing.
	writing sync.Mutex

	written  atomic.Int64 // bytes that callers tried to send
	wrote    atomic.Bool  // a frame, since the last tick
	heard    atomic.Bool  // a frame, since the last tick
	inRead   atomic.Bool
	draining atomic.Bool
	closed   atomic.Bool
	opened   atomic.Pointer[Opened]
	ending   atomic.Pointer[error] // what ended reading

	mu     sync.Mutex // guards what follows
	ticker *time.Timer
	silent time.Duration
	quiet  int   // ticks in a row before which nothing was heard
	failed error // why the connection was given up; nil while it was not
}

// A Carrier is what carries a stream: a TLS connection, or a stream of QUIC. A Read
// that a deadline ended can be repeated.
type Carrier interface {
	io.ReadWriteCloser
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// A StreamConfig says what a stream is to do beside. All of it is optional.
type StreamConfig struct {
	// OnDrain is called once when the edge says that it or the connector will leave. It
	// must not block.
	OnDrain func()

	// Opened is who got the stream, where this end knows. No frame says so then, nor that
	// the stream is refused: the other end is the connector's own, and not to be believed.
	Opened *Opened

	// Passed is shown the content of each data frame, or of a part of one, that was sent
	// or read. It must neither block nor keep it.
	Passed func(sent bool, data []byte)

	// Late is called when something could not be sent by its deadline. The stream stays as
	// it is unless Late does something about it. It must not block.
	Late func(err error)
}

// NewStream makes a stream of a connection on which whatever comes before a stream's
// data was said; only FrameOpened may be still to come. It owns conn from now on.
func NewStream(conn Carrier, cfg StreamConfig) *Stream {
	s := &Stream{cfg: cfg, conn: conn, socket: SocketOf(conn)}
	s.opened.Store(cfg.Opened)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ticker = time.AfterFunc(KeepAlive, s.tick)
	return s
}

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.readErr != nil {
		return 0, s.readErr
	}
	if s.left == 0 {
		s.inRead.Store(true)
		err := s.nextData()
		s.inRead.Store(false)
		if err != nil {
			if !isTimeout(err) {
				s.readErr = err
				s.ending.Store(&err)
			}
			return 0, err
		}
	}
	n, err := s.conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	if s.cfg.Passed != nil && n > 0 {
		s.cfg.Passed(false, p[:n])
	}
	if err != nil && !isTimeout(err) {
		err = s.broken(err)
		s.readErr = err
		s.ending.Store(&err)
	}
	if n > 0 {
		err = nil
	}
	return n, err
}

// nextData reads up to the payload of the next data frame that has one.
func (s *Stream) nextData() error {
	for {
		for s.have < FrameHeader {
			n, err := s.conn.Read(s.header[s.have:])
			s.have += n
			if err != nil && s.have < FrameHeader {
				if isTimeout(err) {
					return err
				}
				return s.broken(err)
			}
		}
		s.have = 0
		t, size, err := ParseHeader(s.header)
		if err != nil {
			return err
		}
		s.heard.Store(true)
		switch t {
		case FrameData:
			if size > 0 {
				s.left = size
				return nil
			}
		case FramePing:
		case FrameEnd:
			return io.EOF
		case FrameDrain:
			s.Drain()
		case FrameOpened, FrameRefused:
			if s.cfg.Opened != nil {
				return unexpected(t)
			}
			payload, err := s.message(size)
			if err != nil {
				return s.broken(err)
			}
			if t == FrameRefused {
				return ParseRefusal(payload)
			}
			opened, err := ParseOpened(payload)
			if err != nil {
				return err
			}
			s.opened.Store(&opened)
		default:
			return unexpected(t)
		}
	}
}

func unexpected(t FrameType) error {
	return Errorf(StageProtocol, "a frame of type %#x within a stream", byte(t))
}

// message reads a payload other than data. There are few, sent at once with their
// header, so a deadline in the middle of one ends the stream.
func (s *Stream) message(size int) ([]byte, error) {
	payload := make([]byte, size)
	_, err := io.ReadFull(s.conn, payload)
	return payload, err
}

// broken is what err of the connection means to the reader of the stream.
func (s *Stream) broken(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return s.failed
	case s.closed.Load():
		return net.ErrClosed
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return &Error{Stage: StageConnectorLost, Err: err}
}

// isTimeout reports whether err is a deadline of ours that has passed. That the other
// side did not answer the kernel, or QUIC, is a timeout too, and the end of the connection.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) && AsError(err) == nil }

// frames are buffers for one frame each.
var frames = sync.Pool{New: func() any { return new([FrameHeader + PayloadMax]byte) }}

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (n int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	s.written.Add(int64(len(p)))
	s.wrote.Store(true)
	if len(p) > PayloadMax {
		s.Gather()
		defer func() {
			if e := s.Flush(); err == nil && e != nil {
				n, err = 0, e
			}
		}()
	}
	buf := frames.Get().(*[FrameHeader + PayloadMax]byte)
	defer frames.Put(buf)
	for len(p) > 0 {
		part := p[:min(len(p), PayloadMax)]
		PutHeader(buf[:], FrameData, len(part))
		copy(buf[FrameHeader:], part)
		if _, err := s.conn.Write(buf[:FrameHeader+len(part)]); err != nil {
			return n, s.unwritten(err)
		}
		if s.cfg.Passed != nil {
			s.cfg.Passed(true, part)
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

// Gather has what is written wait for Flush, or until there is much of it, so that it
// leaves together. Each Write should be of at most PayloadMax bytes then.
func (s *Stream) Gather() {
	if s.socket != nil {
		s.socket.Gather()
	}
}

// Flush sends what was gathered, and ends the gathering.
func (s *Stream) Flush() error {
	if s.socket == nil {
		return nil
	}
	if err := s.socket.Flush(); err != nil {
		return s.unwritten(err)
	}
	return nil
}

func (s *Stream) unwritten(err error) error {
	if !isTimeout(err) {
		return s.broken(err)
	}
	if s.cfg.Late != nil {
		s.cfg.Late(err)
	}
	return err
}

// endTimeout is how long a Close waits for the other side to take the end frame.
const endTimeout = time.Second

// Close ends the stream, and its connection. The other end reads io.EOF if the way
// there is free.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return net.ErrClosed
	}
	s.mu.Lock()
	s.ticker.Stop()
	s.mu.Unlock()
	// A Write that is under way is cut short, and nothing is said on a broken connection.
	if err := s.Err(); (err == nil || err == io.EOF) && s.writing.TryLock() {
		s.conn.SetWriteDeadline(time.Now().Add(endTimeout))
		s.conn.Write(AppendFrame(nil, FrameEnd, nil))
		s.Flush() // what was gathered when somebody else closed the stream
		s.writing.Unlock()
	}
	return s.conn.Close()
}

// tick runs each KeepAlive.
func (s *Stream) tick() {
	if s.closed.Load() {
		return
	}
	if !s.wrote.Swap(false) && s.writing.TryLock() {
		if _, err := s.conn.Write(AppendFrame(nil, FramePing, nil)); err != nil {
			_ = s.unwritten(err) // it is the next Write's to find
		}
		s.writing.Unlock()
	}
	heard := s.heard.Swap(false)
	if silent := s.listened(heard); silent >= SilenceMax {
		s.Fail(Errorf(StageConnectorLost, "nothing was heard for %v", silent))
	}
}

// listened notes whether something was heard since the last tick, and returns for how
// long nothing was.
func (s *Stream) listened(heard bool) (silent time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet++; heard {
		s.quiet = 0
	}
	switch {
	case heard || !s.inRead.Load(): // who does not read cannot hear
		s.silent = 0
	default:
		s.silent += KeepAlive
	}
	if s.silent < SilenceMax && !s.closed.Load() && s.failed == nil {
		s.ticker.Reset(KeepAlive)
	}
	return s.silent
}

// Fail gives the stream's connection up, at once and without a farewell: whoever reads or
// writes here gets why, if nothing has failed before.
func (s *Stream) Fail(why *Error) {
	s.mu.Lock()
	if s.failed == nil {
		s.failed = why
	}
	s.ticker.Stop()
	s.mu.Unlock()
	if c, ok := s.conn.(interface{ NetConn() net.Conn }); ok {
		c.NetConn().Close()
	}
	s.conn.SetWriteDeadline(time.Unix(1, 0))
	s.conn.Close()
}

// Drain has the stream be one that nothing new should begin on, as if the edge had said
// so.
func (s *Stream) Drain() {
	if !s.draining.Swap(true) && s.cfg.OnDrain != nil {
		s.cfg.OnDrain()
	}
}

// Written is how many bytes were ever given to Write, whether or not they arrived.
// While it does not change, nothing has left.
func (s *Stream) Written() int64 { return s.written.Load() }

// Draining reports whether the edge has said that it or the connector will leave: what
// is under way may finish, and nothing new should begin on this stream.
func (s *Stream) Draining() bool { return s.draining.Load() }

// Stale reports whether nothing was heard for two to three [KeepAlive], within which
// the other side says at least that it is there. It is for who has a stream in reserve,
// and reads what has come before asking.
func (s *Stream) Stale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quiet >= 2 && !s.heard.Load()
}

// Opened is who got the stream, as the edge says; nil before something was read.
func (s *Stream) Opened() *Opened { return s.opened.Load() }

// Socket is what is under the stream's connection; nil if there is none.
func (s *Stream) Socket() *Socket { return s.socket }

// Err is what ended the reading of the stream; nil while nothing has. It lets a caller
// who got the error of a layer above look for the cause.
func (s *Stream) Err() error {
	if err := s.ending.Load(); err != nil {
		return *err
	}
	return nil
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr is the edge's address: who called is not known to this end of a stream.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error { return s.conn.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }
