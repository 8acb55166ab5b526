package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"sync"

	"github.com/bailey-platform/bailey/tunnel"
)

// An http1 makes requests on one inner connection, one after the other, on the
// goroutine of who asks: a request is one write and a wait for the answer. net/http's
// own client has two goroutines a connection for that, which costs a call two hand-offs
// more, and looks at whether the other end has closed an idle connection when it comes
// to it: this one looks before each request, so that none is sent into the void and
// then neither known to be lost nor to have arrived.
//
// How requests are written and answers read is net/http's.
type http1 struct {
	conn   *tls.Conn
	socket *tunnel.Socket // below; nil if it cannot be asked
	in     *bufio.Reader  // nil while idle
	head   headLimit
}

// The bounds of an answer's head, and of a request's body that is sent before the answer
// is looked for.
const (
	headMax   = 1 << 20
	inlineMax = 64 << 10
	interims  = 8 // 1xx answers to one request
)

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}
)

// newHTTP1 speaks HTTP/1.1 on an inner connection, with socket somewhere below it.
func newHTTP1(inner *tls.Conn, socket *tunnel.Socket) *http1 {
	h := &http1{conn: inner, socket: socket}
	h.head.r = inner
	return h
}

// quiet reports whether an idle connection can be used.
func (h *http1) quiet() bool { return tunnel.Quiet(h.conn, h.socket) }

// An exchange is a request under way.
type exchange struct {
	req  *http.Request
	stop func() bool // calling it off; false if it was
	sent chan error  // of a body that is sent aside; nil of others
}

// sentAll reports whether the request was sent to its end.
func (x *exchange) sentAll() bool {
	if x.sent == nil {
		return true
	}
	select {
	case err := <-x.sent:
		return err == nil
	default:
		return false
	}
}

// roundTrip sends a request and returns the answer, whose body is to be read to its end
// before the next. Should the request's context end, the connection is closed.
func (h *http1) roundTrip(req *http.Request) (*http.Response, *exchange, error) {
	ctx := req.Context()
	x := &exchange{req: req}
	x.stop = context.AfterFunc(ctx, func() {
		h.close()
		if req.Body != nil {
			req.Body.Close() // whoever reads it may be waiting
		}
	})
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength > 0 && req.ContentLength <= inlineMax {
		if err := h.write(req); err != nil {
			x.stop()
			return nil, nil, err
		}
	} else {
		x.sent = make(chan error, 1)
		go func() { x.sent <- h.write(req) }()
	}
	res, err := h.read(req)
	if err == nil {
		err = ctx.Err() // the server may have answered because it saw the end coming
	}
	if err != nil {
		x.stop()
		return nil, nil, err
	}
	return res, x, nil
}

func (h *http1) write(req *http.Request) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(h.conn)
	defer func() {
		w.Reset(nil)
		writers.Put(w)
	}()
	if err := req.Write(w); err != nil {
		return err
	}
	return w.Flush()
}

func (h *http1) read(req *http.Request) (*http.Response, error) {
	h.in = readers.Get().(*bufio.Reader)
	h.in.Reset(&h.head)
	for range interims {
		h.head.left = headMax
		res, err := http.ReadResponse(h.in, req)
		if err != nil {
			return nil, err
		}
		switch {
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, tunnel.Errorf(tunnel.StageProtocol, "the server wants another protocol")
		case res.StatusCode >= 200:
			h.head.left = -1
			return res, nil
		}
	}
	return nil, tunnel.Errorf(tunnel.StageProtocol, "the server answers with one interim answer after the other")
}

// rest lets go of what an idle connection needs not. It reports false if there is
// something that nobody has asked for.
func (h *http1) rest() bool {
	if h.in.Buffered() > 0 {
		return false
	}
	h.in.Reset(nil)
	readers.Put(h.in)
	h.in = nil
	return true
}

func (h *http1) close() { h.conn.Close() }

// A headLimit reads until an answer's head is too long. A negative limit is none.
type headLimit struct {
	r    io.Reader
	left int
}

func (l *headLimit) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, tunnel.Errorf(tunnel.StageProtocol, "the head of the server's answer is longer than %d bytes", headMax)
	}
	n, err := l.r.Read(p)
	if l.left > 0 {
		l.left = max(0, l.left-n)
	}
	return n, err
}
