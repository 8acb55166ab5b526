package edge

import (
	"crypto/tls"
	"errors"
	"io"
	"os"
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
	over := a.enter(s)
	defer a.exit(s)
	if over != nil {
		s.cut(over)
		return
	}

	var down sync.WaitGroup
	down.Go(func() {
		err := s.first(opened)
		if err == nil {
			err = pump(dialer, gateway, &a.fromGateway, s.stall, e.tapOf(a, false))
		}
		s.end(err)
	})
	s.end(pump(gateway, dialer, &a.toGateway, s.stall, e.tapOf(a, true)))
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
	if socket := tunnel.SocketOf(s.dialer); socket != nil {
		socket.Flush()
	}
}

func (e *Edge) tapOf(a *attachment, toGateway bool) func([]byte) {
	if e.cfg.Tap == nil {
		return nil
	}
	return func(data []byte) { e.cfg.Tap(a.tunnel, toGateway, data) }
}

// cut implements stream.
func (s *splice) cut(why *tunnel.Error) {
	s.once.Do(func() {
		s.tell(why)
		abandon(s.gateway)
		abandon(s.dialer)
	})
}

// sayDrain implements stream.
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
func pump(dst, src tunnel.Carrier, count *atomic.Int64, stall time.Duration, tap func([]byte)) error {
	p := &flow{src: src, dst: dst, ahead: tunnel.SocketOf(src), out: tunnel.SocketOf(dst), stall: stall}
	defer p.flush()
	p.wait()
	for {
		var h [tunnel.FrameHeader]byte
		if err := p.read(h[:]); err != nil {
			return err
		}
		t, size, err := tunnel.ParseHeader(h)
		if err != nil {
			return err
		}
		p.heard = true
		switch t {
		case tunnel.FrameData:
			if err := p.pass(h, size, count, tap); err != nil {
				return err
			}
		case tunnel.FramePing:
		case tunnel.FrameDrain:
			if err := p.write(h[:]); err != nil {
				return err
			}
		case tunnel.FrameEnd:
			p.write(h[:])
			return errEnded
		default:
			return tunnel.Errorf(tunnel.StageProtocol, "a frame of type %#x within a stream", byte(t))
		}
	}
}

// A flow is one direction of a stream. It is owned by one goroutine.
type flow struct {
	src, dst tunnel.Carrier
	ahead    *tunnel.Socket // under src; nil over QUIC
	out      *tunnel.Socket // under dst; nil over QUIC
	stall    time.Duration

	gathering bool          // what was written last has not left, and ahead is in a hurry
	heard     bool          // a frame came in since the last tick
	sent      bool          // one went out since the last tick
	silent    time.Duration // how long nothing has come in
	until     time.Time     // the write deadline
}

// pass hands on a data frame as it is.
func (p *flow) pass(h [tunnel.FrameHeader]byte, size int, count *atomic.Int64, tap func([]byte)) error {
	buf := buffers.Get().(*[tunnel.FrameHeader + tunnel.PayloadMax]byte)
	defer buffers.Put(buf)
	frame := buf[:tunnel.FrameHeader+size]
	copy(frame, h[:])
	if err := p.read(frame[tunnel.FrameHeader:]); err != nil {
		return err
	}
	if tap != nil {
		tap(frame[tunnel.FrameHeader:])
	}
	if err := p.write(frame); err != nil {
		return err
	}
	count.Add(int64(size))
	return nil
}

// read fills b, however long that takes while src gives signs of life. Before it waits,
// what was gathered leaves.
func (p *flow) read(b []byte) error {
	for len(b) > 0 {
		n, err := p.src.Read(b)
		b = b[n:]
		switch {
		case n > 0 || err == nil:
			continue
		case !isTimeout(err):
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		case p.gathering:
			err = p.flush()
		default:
			err = p.tick()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tick runs each KeepAlive.
func (p *flow) tick() error {
	if p.heard {
		p.silent = 0
	} else if p.silent += tunnel.KeepAlive; p.silent >= tunnel.SilenceMax {
		return tunnel.Errorf(tunnel.StageConnectorLost, "nothing was heard for %v", p.silent)
	}
	p.heard = false
	if !p.sent {
		if err := p.write(tunnel.AppendFrame(nil, tunnel.FramePing, nil)); err != nil {
			return err
		}
	}
	p.sent = false
	p.wait()
	return nil
}

func (p *flow) wait() { p.src.SetReadDeadline(time.Now().Add(tunnel.KeepAlive)) }

// write sends a frame, or has it wait for the next if that has come already: frames
// that come together go together. A receiver that does not take them within the time
// is cut: what it does not take waits at the sender, not here.
func (p *flow) write(frame []byte) error {
	if now := time.Now(); p.until.Sub(now) < p.stall*3/4 {
		p.until = now.Add(p.stall)
		p.dst.SetWriteDeadline(p.until)
	}
	p.sent = true
	if !p.gathering && p.out != nil && p.ahead != nil && p.ahead.More(len(frame)) {
		p.gathering = true
		p.out.Gather()
		p.ahead.Hurry(true)
	}
	if _, err := p.dst.Write(frame); err != nil {
		return receiverError{err}
	}
	return nil
}

// flush sends what was gathered.
func (p *flow) flush() error {
	if !p.gathering {
		return nil
	}
	p.gathering = false
	p.ahead.Hurry(false)
	if err := p.out.Flush(); err != nil {
		return receiverError{err}
	}
	return nil
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
