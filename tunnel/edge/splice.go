package edge

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// A splice passes on what a dialer and a gateway say to each other. It looks at the
// headers of frames and never at what is in them.
type splice struct {
	dialer  *tls.Conn
	gateway tunnel.Carrier
	stall   time.Duration

	once sync.Once
}

// cutMax bounds how long a cut waits to say why.
const cutMax = 200 * time.Millisecond

// splice runs until one end has had enough, or broke, or the stream is cut. The opened
// frame goes to the dialer first.
func (e *Edge) splice(a *attachment, dialer *tls.Conn, gateway tunnel.Carrier, opened []byte) {
	s := &splice{dialer: dialer, gateway: gateway, stall: e.cfg.Limits.Stall}
	a.opened.Add(1)
	a.open.Add(1)
	defer a.open.Add(-1)
	a.mu.Lock()
	cut := a.ended
	a.splices[s] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.splices, s)
		a.mu.Unlock()
	}()
	if cut {
		s.cut(&tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "the gateway left", RetryAfter: retryAfter})
		return
	}

	var down sync.WaitGroup
	down.Go(func() {
		err := s.first(opened)
		if err == nil {
			err = pump(dialer, gateway, &a.fromGateway, s.stall)
		}
		s.end(err)
	})
	s.end(pump(gateway, dialer, &a.toGateway, s.stall))
	down.Wait()
}

func (s *splice) first(opened []byte) error {
	s.dialer.SetWriteDeadline(time.Now().Add(s.stall))
	_, err := s.dialer.Write(opened)
	return err
}

// errEnded is how a stream ends that an end has closed; it was told to the other.
var errEnded = errors.New("closed")

// A receiverError is a failure to send.
type receiverError struct{ error }

func (e receiverError) Unwrap() error { return e.error }

// end closes both connections. The first of the two directions to end says why, to
// the dialer: the gateway's end has nobody to tell.
func (s *splice) end(why error) {
	s.once.Do(func() {
		if why != nil && !errors.Is(why, errEnded) {
			s.tell(why)
		}
		// Closing may wait to say farewell to an end that takes nothing.
		s.gateway.Close()
		s.dialer.Close()
	})
}

func (s *splice) tell(why error) {
	e := tunnel.AsError(why)
	if e == nil {
		e = &tunnel.Error{Stage: tunnel.StageConnectorLost, Detail: "the connection to the gateway broke"}
		if _, sending := errors.AsType[receiverError](why); sending && isTimeout(why) {
			e.Detail = "the other end took nothing for too long"
		}
	}
	s.dialer.SetWriteDeadline(time.Now().Add(cutMax))
	s.dialer.Write(refused(e))
}

// cut ends the stream at once.
func (s *splice) cut(why *tunnel.Error) {
	s.once.Do(func() {
		s.tell(why)
		abandon(s.gateway)
		abandon(s.dialer)
	})
}

// sayDrain tells the dialer to start nothing new here.
func (s *splice) sayDrain() {
	// A frame is one record, and records do not mix: this may come from any goroutine.
	// A dialer that takes nothing has other troubles.
	go s.dialer.Write(tunnel.AppendFrame(nil, tunnel.FrameDrain, nil))
}

// buffers hold one frame each. They are held while a frame is under way, and not while
// a stream is silent.
var buffers = sync.Pool{New: func() any { return new([tunnel.FrameHeader + tunnel.PayloadMax]byte) }}

// pump passes frames from src to dst until src ends the stream or a side fails. It
// keeps dst from thinking the connection dead, and notices when src is.
func pump(dst, src tunnel.Carrier, count *atomic.Int64, stall time.Duration) error {
	in := &source{conn: src, dst: dst, from: tunnel.SocketOf(src), to: tunnel.SocketOf(dst), stall: stall}
	in.wait()
	for {
		var h [tunnel.FrameHeader]byte
		if err := in.read(h[:]); err != nil {
			return err
		}
		t, size, err := tunnel.ParseHeader(h)
		if err != nil {
			return err
		}
		in.heard = true
		switch t {
		case tunnel.FrameData:
			if err := in.pass(h, size, count); err != nil {
				return err
			}
		case tunnel.FramePing:
		case tunnel.FrameDrain:
			if err := in.write(h[:]); err != nil {
				return err
			}
		case tunnel.FrameEnd:
			in.write(h[:])
			return errEnded
		default:
			return tunnel.Errorf(tunnel.StageProtocol, "a frame of type %#x within a stream", byte(t))
		}
	}
}

// A source is where a pump reads. It is owned by one goroutine.
type source struct {
	conn, dst tunnel.Carrier
	from, to  *tunnel.Socket // under them; nil over QUIC
	stall     time.Duration

	gathering bool // what was written last has not left

	heard  bool          // a frame came in since the last tick
	sent   bool          // one went out since the last tick
	silent time.Duration // how long nothing has come in
	until  time.Time     // the write deadline
}

// pass hands on a data frame as it is.
func (s *source) pass(h [tunnel.FrameHeader]byte, size int, count *atomic.Int64) error {
	buf := buffers.Get().(*[tunnel.FrameHeader + tunnel.PayloadMax]byte)
	defer buffers.Put(buf)
	frame := buf[:tunnel.FrameHeader+size]
	copy(frame, h[:])
	if err := s.read(frame[tunnel.FrameHeader:]); err != nil {
		return err
	}
	if err := s.write(frame); err != nil {
		return err
	}
	count.Add(int64(size))
	return nil
}

// read fills b, however long that takes while src gives signs of life.
func (s *source) read(b []byte) error {
	for len(b) > 0 {
		n, err := s.conn.Read(b)
		if b = b[n:]; n > 0 || err == nil {
			continue
		}
		if !isTimeout(err) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := s.tick(); err != nil {
			return err
		}
	}
	return nil
}

// tick runs each KeepAlive while nothing is read.
func (s *source) tick() error {
	if s.heard {
		s.silent = 0
	} else if s.silent += tunnel.KeepAlive; s.silent >= tunnel.SilenceMax {
		return tunnel.Errorf(tunnel.StageConnectorLost, "nothing was heard for %v", s.silent)
	}
	s.heard = false
	if !s.sent {
		if err := s.write(tunnel.AppendFrame(nil, tunnel.FramePing, nil)); err != nil {
			return err
		}
	}
	s.sent = false
	s.wait()
	return nil
}

func (s *source) wait() { s.conn.SetReadDeadline(time.Now().Add(tunnel.KeepAlive)) }

// write sends a frame. A receiver that does not take one within the time is cut: what
// it does not take waits at the sender, not here.
func (s *source) write(frame []byte) error {
	if now := time.Now(); s.until.Sub(now) < s.stall*3/4 {
		s.until = now.Add(s.stall)
		s.dst.SetWriteDeadline(s.until)
	}
	s.sent = true
	// Frames that came together go together.
	more := s.to != nil && s.from != nil && s.from.Ahead()
	if more {
		s.to.Gather()
	}
	_, err := s.dst.Write(frame)
	if err == nil && s.gathering && !more {
		err = s.to.Flush()
	}
	s.gathering = more
	if err != nil {
		return receiverError{err}
	}
	return nil
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
