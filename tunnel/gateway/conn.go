package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// A conn1 is one connection of the platform's that speaks HTTP/1.1. One goroutine takes
// calls in, passes them on and answers them, one after the other. What takes longer gets
// help: while an answer is waited for, somebody has to read on, to learn that the caller
// has gone; and a body that is not kept is passed on while the answer may come already.
// A call that is answered at once costs no second goroutine.
type conn1 struct {
	// Static.
	g      *Gateway
	ctx    context.Context // ends with the connection
	tls    *tls.Conn
	under  net.Conn
	gather gatherer    // under, if it can
	server string      // as the TLS handshake named it
	reads  *watch      // of a head, or of a body
	writes *watch      // of an answer
	idle   *watch      // of the time between calls
	notice *time.Timer // begins to read on, once an answer takes long
	helped chan error  // why whoever helped can read no more, or nil once there is more to read

	// Of the goroutine that serves, or, from the time that help begins until helped says
	// that it is over, the helper's.
	in   reader
	body body

	// Of the goroutine that serves.
	helping bool
	head    []byte // the bytes of the call's head
	ex      exchange
	out     []byte // taken and not sent
	sent    bool   // begin was called for this call
	h       struct {
		chunked bool
		left    int64 // of a body of known length
		close   bool
	}

	closing atomic.Bool // the next answer is the last
	over    atomic.Bool // nothing is read or answered any more
	busy    atomic.Bool // from the first byte of a call to the last of its answer
}

// outMax is how much of an answer gathers before it is sent although more has arrived.
const outMax = 64 << 10

// copyMax is how much of an answer that has come at once is copied to go with what is
// before it, instead of by itself.
const copyMax = 16 << 10

// Bounds of a connection of the platform's.
const (
	headTime  = 20 * time.Second // from the first byte of a head to its last
	stallTime = 2 * time.Minute  // for a body, or for an answer to be taken, without a byte
	idleTime  = 6 * time.Hour    // between calls; the platform lets go of connections much earlier
	leaveTime = 2 * time.Second  // for the platform to learn that the gateway leaves, and for calls on their way
)

// noticeTime is how soon it is noticed that a caller has gone: late enough that most
// calls, also on a busy machine, are answered without help.
const noticeTime = 25 * time.Millisecond

// serve serves calls until the connection ends.
func (c *conn1) serve() {
	c.in.from = c.tls
	c.helped = make(chan error, 1)
	c.notice = time.AfterFunc(time.Hour, c.readOn)
	c.notice.Stop()
	for c.take() {
	}
	c.abort()
	if c.helping {
		<-c.helped
	}
}

// readOn waits for the next call, or for the caller to go, in which case the call at hand
// is ended. Where the next call is there already, nothing would be left to notice that by:
// it is not taken, as HTTP allows, and the connection ends with the answer at hand.
func (c *conn1) readOn() {
	if len(c.in.buffered()) == 0 {
		err := c.in.fill()
		if err != nil {
			c.ex.abort()
		}
		c.helped <- err
		return
	}
	c.closing.Store(true)
	c.helped <- errEarly
	for n := 0; n <= discardMax; n += len(c.in.buffered()) {
		c.in.r = c.in.w
		if c.in.fill() != nil {
			break
		}
	}
	c.ex.abort()
}

var errEarly = errors.New("another call came before the answer to the one at hand")

// abort ends the connection without ceremony.
func (c *conn1) abort() {
	c.over.Store(true)
	_ = c.under.Close()
}

// drain ends the connection after the call that is under way on it, or else the next one:
// that may be on its way while the platform does not know yet that the gateway leaves. One
// that does not come is not waited for.
func (c *conn1) drain() {
	c.closing.Store(true)
	c.idle.set(leaveTime)
}

// take takes in one call and answers it. It returns false when the connection is to end.
func (c *conn1) take() bool {
	if c.helping {
		err := <-c.helped
		c.helping = false
		if err != nil {
			return false
		}
	}
	text, err := c.in.headText(func() {
		c.busy.Store(true)
		c.reads.set(headTime)
	})
	if err != nil && !isBadHead(err) {
		return false
	}
	c.reads.clear()
	c.sent, c.out, c.h.close = false, c.out[:0], false
	ex := &c.ex
	ex.reset(c.g, c.server)
	c.head = append(c.head[:0], text...)
	if err == nil {
		err = ex.req.parseRequest(c.head)
	}
	if err != nil {
		// Where this request ends cannot be known, so the connection ends with it.
		_ = misread(err).give(c, true)
		return false
	}
	c.h.close = ex.req.close
	c.body.begin(&c.in, ex.req.length, ex.req.chunked)
	if !c.route(ex) || c.over.Load() {
		return false
	}
	if !c.helping {
		c.in.rest()
	}
	c.idle.set(idleTime)
	c.busy.Store(false)
	if c.closing.Load() { // drain came after the answer had begun
		c.idle.set(leaveTime)
	}
	return true
}

func isBadHead(err error) bool {
	return errors.Is(err, errLine) || errors.Is(err, errHeadLong)
}

// route passes a call on and answers it. It returns false when the connection is to end.
func (c *conn1) route(ex *exchange) bool {
	if r := ex.admit(); r != nil {
		return c.refuse(ex, r)
	}
	if ex.expects && !c.body.done {
		if err := c.send([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return c.refuse(ex, callerGone())
		}
		ex.expects = false
	}
	c.reads.set(stallTime)
	if r := ex.read(&c.body); r != nil {
		return c.refuse(ex, r)
	}
	if r := ex.judge(); r != nil {
		return c.refuse(ex, r)
	}
	if r := ex.depart(c.ctx); r != nil {
		return c.refuse(ex, r)
	}
	if ex.whole || c.body.done {
		ex.sentAll.Store(true)
		c.reads.clear()
		c.notice.Reset(noticeTime)
		again := c.respond(ex)
		c.helping = !c.notice.Stop()
		return again
	}
	c.helping = true
	go func() {
		readable := ex.pass(&c.body, func() { c.reads.set(stallTime) })
		c.reads.clear()
		if !readable {
			c.helped <- errBodyLost
			return
		}
		c.readOn()
	}()
	return c.respond(ex)
}

var errBodyLost = errors.New("the rest of the body cannot be read")

// refuse answers a call in place of its server.
func (c *conn1) refuse(ex *exchange, r *refusal) bool {
	ex.refused(r)
	whole := c.discard(ex)
	err := r.give(c, !whole || c.closing.Load())
	ex.finish()
	return whole && err == nil && !c.h.close
}

// discardMax is how much of a refused call's body is read past, in bytes, to keep the
// connection.
const discardMax = 256 << 10

// discard reads past what is left of a call's body. It returns false if that is too much.
func (c *conn1) discard(ex *exchange) bool {
	if c.body.done {
		return true
	}
	if ex.expects {
		return false // whoever waits for leave to send may send nothing, or all of it
	}
	c.reads.set(headTime)
	defer c.reads.clear()
	for n := 0; n <= discardMax; {
		p, err := c.body.next()
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		n += len(p)
	}
	return false
}

// respond passes on the answer to a call. It returns false when the connection is to
// end: the caller was told so, or did not get all of it. One that was answered before its
// body was passed on to the end keeps its connection, as it was told; take waits for what
// is left.
func (c *conn1) respond(ex *exchange) bool {
	err := ex.answer(c)
	ex.finish()
	return err == nil && !c.h.close
}

// idled ends the connection if no call is under way. One that is has deadlines of its
// own.
func (c *conn1) idled() {
	switch {
	case !c.busy.Load():
		c.abort()
	case c.closing.Load():
		c.idle.set(leaveTime)
	default:
		c.idle.set(idleTime)
	}
}

// The answerer of HTTP/1.1.

func (c *conn1) begun() bool { return c.sent }

func (c *conn1) begin(status int, fields []field, length int64, hasBody bool) error {
	c.sent = true
	out := append(c.out[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, "\r\n"...)
	for _, f := range fields {
		if f.kind == connection {
			c.h.close = c.h.close || bytes.EqualFold(f.value, []byte("close"))
			continue
		}
		out = f.append(out)
	}
	if c.closing.Load() {
		c.h.close = true
	}
	if c.h.close {
		out = append(out, "Connection: close\r\n"...)
	}
	c.h.chunked = hasBody && length == unknownLength
	switch {
	case c.h.chunked:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case length >= 0 && status != http.StatusNoContent:
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, length, 10)
		out = append(out, "\r\n"...)
	}
	c.h.left = 0
	if hasBody && !c.h.chunked {
		c.h.left = length
	}
	c.out = append(out, "\r\n"...)
	return nil
}

func (c *conn1) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if c.h.chunked {
		c.out = appendChunk(c.out, p)
	} else {
		if c.h.left -= int64(len(p)); c.h.left < 0 {
			return errLength
		}
		if len(p) >= copyMax {
			// Worth no copy.
			if err := c.flush(); err != nil {
				return err
			}
			return c.send(p)
		}
		c.out = append(c.out, p...)
	}
	if len(c.out) >= outMax {
		return c.flush()
	}
	return nil
}

func (c *conn1) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.send(c.out)
	if c.out = c.out[:0]; cap(c.out) > 2*outMax {
		c.out = nil
	}
	return err
}

func (c *conn1) send(p []byte) error {
	c.writes.set(stallTime)
	err := c.put(p)
	c.writes.clear()
	c.ex.out += int64(len(p))
	return err
}

func (c *conn1) end(trailer []field) error {
	if c.h.chunked {
		c.out = appendLastChunk(c.out, trailer)
	} else if c.h.left > 0 {
		return io.ErrUnexpectedEOF
	}
	return c.flush()
}

// put writes p. TLS writes a record at a time; the records of one large write leave
// together where the connection below knows how, and each is as long as one frame of the
// tunnel holds.
func (c *conn1) put(p []byte) error {
	if len(p) <= tunnel.InnerMax {
		_, err := c.tls.Write(p)
		return err
	}
	if c.gather != nil {
		c.gather.Gather()
	}
	var err error
	for len(p) > 0 && err == nil {
		var n int
		n, err = c.tls.Write(p[:min(len(p), tunnel.InnerMax)])
		p = p[n:]
	}
	if c.gather != nil {
		if failed := c.gather.Flush(); err == nil {
			err = failed
		}
	}
	return err
}

// A gatherer is a connection that can send at once what was written to it in parts, as a
// [tunnel.Stream] can.
type gatherer interface {
	Gather()
	Flush() error
}
