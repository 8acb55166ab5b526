package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// newH2 is the server of the connections that speak HTTP/2. The library reads and writes
// them; a call is the same as on any other connection.
func (g *Gateway) newH2() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(g.serveH2),
		ReadHeaderTimeout: headTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    headMax,
		ErrorLog:          quiet(g.log),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: h2StreamsMax, MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 1 << 20,
			WriteByteTimeout: stallTime, SendPingTimeout: time.Minute,
		},
		BaseContext: func(net.Listener) context.Context { return g.ctx() },
	}
}

// A queue is the listener at which a server gets connections that were accepted
// elsewhere.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

// hand gives the server a connection. It returns false if it takes no more.
func (q *queue) hand(conn net.Conn) bool {
	select {
	case q.conns <- conn:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.UnixAddr{} }

// serveH2 serves one call.
func (g *Gateway) serveH2(w http.ResponseWriter, r *http.Request) {
	server := ""
	if r.TLS != nil {
		server, _ = canonicalHost(r.TLS.ServerName) // without one, no Host is right
	}
	ex := new(exchange)
	ex.reset(g, server)
	to := &answer2{w: w, flusher: http.NewResponseController(w), ex: ex}
	from := &body2{r: r, control: to.flusher}
	refused := ex.fromRequest(r)
	if refused == nil {
		refused = ex.admit()
	}
	if refused == nil {
		refused = ex.read(from)
	}
	if refused == nil {
		refused = ex.judge()
	}
	if refused == nil {
		refused = ex.depart(r.Context())
	}
	if refused != nil {
		ex.refused(refused)
		_ = refused.give(to, false)
		ex.finish()
		return
	}
	stop := context.AfterFunc(r.Context(), ex.abort)
	defer stop()
	if ex.whole {
		ex.sentAll.Store(true)
	} else {
		done := make(chan struct{})
		defer func() { <-done }()
		defer r.Body.Close() // ends pass, if the answer came first
		go func() {
			defer close(done)
			ex.pass(from, func() {})
		}()
	}
	err := ex.answer(to)
	ex.finish()
	if err != nil {
		panic(http.ErrAbortHandler) // how the library is told that an answer is not whole
	}
}

// fromRequest takes a request as the library read it. It has refused what HTTP/2 calls
// malformed.
func (ex *exchange) fromRequest(r *http.Request) *refusal {
	h := &ex.req
	*h = head{method: []byte(r.Method), length: r.ContentLength, fields: h.fields[:0]}
	h.target = []byte(r.RequestURI)
	if len(h.target) == 0 || h.target[0] != '/' || !isToken(h.method) || r.Method == http.MethodConnect {
		return misread(errRequest)
	}
	for _, b := range h.target {
		if b <= ' ' || b >= 0x7f {
			return misread(errRequest)
		}
	}
	h.chunked = r.ContentLength < 0
	h.fields = append(h.fields, newField([]byte("Host"), []byte(r.Host)))
	for name, values := range r.Header {
		for _, value := range values {
			f := newField([]byte(name), []byte(value))
			switch f.kind {
			case host, transferEncoding:
				return misread(errField)
			case contentLength:
				continue // the library holds the body to it
			}
			if len(h.fields) == fieldsMax {
				return misread(errManyField)
			}
			h.fields = append(h.fields, f)
		}
	}
	return nil
}

// A body2 is the body of a request in HTTP/2.
type body2 struct {
	r       *http.Request
	control *http.ResponseController
	buf     []byte
	wait    func() error
}

func (b *body2) waiting(f func() error) { b.wait = f }

func (b *body2) next() ([]byte, error) {
	if b.buf == nil {
		b.buf = make([]byte, 2*copyMax)
	}
	for {
		if b.wait != nil {
			if err := b.wait(); err != nil {
				return nil, err
			}
		}
		if err := b.control.SetReadDeadline(time.Now().Add(stallTime)); err != nil {
			return nil, err
		}
		n, err := b.r.Body.Read(b.buf)
		if n > 0 {
			return b.buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (b *body2) trailers() (trailer []field) {
	for name, values := range b.r.Trailer {
		for _, value := range values {
			if f := newField([]byte(name), []byte(value)); f.kind == plain {
				trailer = append(trailer, f)
			}
		}
	}
	return trailer
}

// An answer2 is the answerer of HTTP/2.
type answer2 struct {
	w       http.ResponseWriter
	flusher *http.ResponseController
	ex      *exchange
	begun2  bool
	pending bool // something was written and not flushed
	left    int64
}

func (a *answer2) begun() bool { return a.begun2 }

func (a *answer2) begin(status int, fields []field, length int64, hasBody bool) error {
	a.begun2, a.pending = true, true
	header := a.w.Header()
	for _, f := range fields {
		if f.kind != connection {
			name := http.CanonicalHeaderKey(string(f.name))
			header[name] = append(header[name], string(f.value))
		}
	}
	if length >= 0 && status != http.StatusNoContent {
		header["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	if header["Date"] == nil {
		header["Date"] = nil // the server's own, or none
	}
	a.left = -1
	if hasBody && length >= 0 {
		a.left = length
	}
	a.w.WriteHeader(status)
	return nil
}

func (a *answer2) write(p []byte) error {
	if a.left >= 0 {
		if a.left -= int64(len(p)); a.left < 0 {
			return errLength
		}
	}
	a.pending = true
	a.ex.out += int64(len(p))
	_, err := a.w.Write(p)
	return err
}

func (a *answer2) flush() error {
	if !a.pending {
		return nil
	}
	a.pending = false
	return a.flusher.Flush()
}

func (a *answer2) end(trailer []field) error {
	if a.left > 0 {
		return io.ErrUnexpectedEOF
	}
	for _, f := range trailer {
		a.w.Header().Add(http.TrailerPrefix+string(f.name), string(f.value))
	}
	return nil // what is left is sent with the end of the stream
}
