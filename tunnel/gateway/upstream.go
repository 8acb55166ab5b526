package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/tunnel"
)

// An upstream is a server that speaks HTTP/1.1, with the connections to it that are not
// in use. It is safe for concurrent use.
type upstream struct {
	// Static.
	name      string // scheme://host:port, or unix:path, for people
	authority string // of the Host field, when it is rewritten
	host      egress.Host
	port      uint16
	unix      string
	tls       *tls.Config // nil for plain HTTP
	rule      addressRule
	dialer    *egress.Dialer
	connect   time.Duration // the longest that connecting may take
	sweeper   *sweeper

	mu     sync.Mutex
	idle   []*upConn // the one used last is the last
	closed bool
}

// Bounds of connections that are kept.
const (
	idleConnsMax = 256              // of one upstream
	idleConnTime = 55 * time.Second // less than what servers commonly allow
)

// An upConn is a connection to an upstream. One exchange has it at a time.
type upConn struct {
	net.Conn
	of    *upstream
	quiet func() bool // reports whether nothing has come that was not read
	watch *watch      // of an answer, or of the time between exchanges
	sends *watch      // of a request, which may still be under way while it is answered
	in    reader
	head  head

	text   []byte  // of the head
	fields []field // of it, those that are passed on
}

// get returns a connection: one that is kept and alive, or a new one.
func (u *upstream) get(ctx context.Context) (*upConn, *refusal) {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			return u.dial(ctx)
		}
		c := u.idle[n-1]
		u.idle[n-1] = nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if c.watch.clear() && c.quiet() {
			return c, nil
		}
		c.discard()
	}
}

// quietly is how to tell of a connection without TLS whether the server has neither closed
// it nor said anything unasked: what is written to a connection that it has closed is lost,
// and cannot be sent again, as nobody knows how much of it arrived; and what it has said
// would be taken for the answer to the next call.
func quietly(conn net.Conn) func() bool {
	var raw syscall.RawConn
	if s, ok := conn.(syscall.Conn); ok {
		raw, _ = s.SyscallConn()
	}
	if raw == nil {
		return func() bool { return true } // it cannot be looked at
	}
	nothing := false
	peek := func(fd uintptr) bool {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		nothing = errors.Is(err, syscall.EAGAIN)
		return true
	}
	return func() bool { return raw.Read(peek) == nil && nothing }
}

func (u *upstream) dial(ctx context.Context) (*upConn, *refusal) {
	ctx, cancel := context.WithTimeout(ctx, u.connect)
	defer cancel()
	conn, err := u.dialRaw(ctx)
	if err != nil {
		return nil, u.dialFailed(err)
	}
	c := &upConn{Conn: conn, of: u}
	if u.tls == nil {
		c.quiet = quietly(conn)
	} else {
		// TLS reads ahead: what has come may be in it, or in a record of its own kind.
		below := tunnel.NewSocket(conn)
		over := tls.Client(below, u.tls)
		c.quiet = func() bool { return tunnel.Quiet(over, below) }
		if err := over.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, u.handshakeFailed(err)
		}
		c.Conn = over
	}
	c.in.from = c.Conn
	c.watch = u.sweeper.watch(func() { _ = conn.Close() })
	c.sends = u.sweeper.watch(func() { _ = conn.Close() })
	return c, nil
}

func (u *upstream) dialRaw(ctx context.Context) (net.Conn, error) {
	if u.unix != "" {
		return new(net.Dialer).DialContext(ctx, "unix", u.unix)
	}
	conn, _, err := u.dialer.Dial(ctx, u.host, u.port, u.rule.judge)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (u *upstream) dialFailed(err error) *refusal {
	if refused, ok := errors.AsType[*egress.Refused](err); ok {
		return failed(tunnel.StageAddressRefused, err, "%s", refused.Verdict.Reason)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return failed(tunnel.StageUpstreamTimeout, err, "%s could not be connected to within %s", u.name, u.connect)
	}
	return failed(tunnel.StageUpstreamRefused, err, "%s could not be connected to: %s", u.name, plainly(err))
}

func (u *upstream) handshakeFailed(err error) *refusal {
	if refused := u.refusedUs(err); refused != nil {
		return refused
	}
	text := plainly(err)
	if isAlert(err) && len(u.tls.Certificates) == 0 {
		text += "; it may want to be shown a certificate, and none is set (upstream-tls: cert, key)"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		text = "its certificate is signed by an authority that is not trusted here (upstream tls: ca_file, include_system_cas)"
	}
	return failed(tunnel.StageUpstreamRefused, err, "TLS with %s failed: %s", u.name, text)
}

// refusedUs is the refusal of a call that a server did not look at, as it did not take whom
// it was shown, or nil. By TLS 1.3 a server says so when the client has begun to speak.
func (u *upstream) refusedUs(err error) *refusal {
	if u.tls == nil || !isAlert(err) || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "access denied") {
		return nil
	}
	if len(u.tls.Certificates) == 0 {
		return failed(tunnel.StageUpstreamRefused, err, "TLS with %s failed: it wants to be shown a certificate, and none is set (upstream-tls: cert, key): %s", u.name, plainly(err))
	}
	return failed(tunnel.StageUpstreamRefused, err, "TLS with %s failed: it does not take the certificate that it is shown (upstream-tls: cert, key): %s", u.name, plainly(err))
}

// isAlert reports whether err is what the other end of a TLS connection has said.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// plainly is an error without the address and operation that Go puts before it.
func plainly(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		err = op.Err
	}
	text := strings.TrimPrefix(err.Error(), "tls: ")
	return strings.TrimPrefix(text, "connect: ")
}

// put keeps a connection for the next exchange, for as long as the server said or a
// while.
func (u *upstream) put(c *upConn, d time.Duration) {
	c.in.rest()
	u.mu.Lock()
	full := u.closed || len(u.idle) >= idleConnsMax
	if !full {
		u.idle = append(u.idle, c)
		c.watch.set(d)
	}
	u.mu.Unlock()
	if full {
		c.discard()
	}
}

// discard closes a connection that is not to be used again.
func (c *upConn) discard() {
	c.watch.drop()
	c.sends.drop()
	_ = c.Conn.Close()
}

// tidy forgets the connections that were idle for too long. The sweeper has closed them.
func (u *upstream) tidy() {
	u.mu.Lock()
	var late []*upConn
	kept := u.idle[:0]
	for _, c := range u.idle {
		if c.watch.late.Load() {
			late = append(late, c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(u.idle[len(kept):])
	u.idle = kept
	u.mu.Unlock()
	for _, c := range late {
		c.discard()
	}
}

// close lets go of all connections that are not in use, and keeps none from now on.
func (u *upstream) close() {
	u.mu.Lock()
	idle := u.idle
	u.idle, u.closed = nil, true
	u.mu.Unlock()
	for _, c := range idle {
		c.discard()
	}
}

// upSendTime is how long the server may take nothing of a request.
const upSendTime = 2 * time.Minute

// send writes all of a request that is there: its head, and what there is of its body.
func (c *upConn) send(head, body []byte) error {
	c.sends.set(upSendTime)
	defer c.sends.clear()
	if len(body) > 0 && len(head)+len(body) <= 2*copyMax {
		head = append(head, body...)
		body = nil
	}
	if _, err := c.Write(head); err != nil || len(body) == 0 {
		return err
	}
	_, err := c.Write(body)
	return err
}

// readHead reads the head of the answer, past what servers say before it.
func (c *upConn) readHead(wait time.Duration) error {
	for n := 0; ; n++ {
		c.watch.set(wait)
		text, err := c.in.headText(nil)
		c.watch.clear()
		if err != nil {
			return err
		}
		c.text = append(c.text[:0], text...)
		if err := c.head.parseResponse(c.text); err != nil {
			return err
		}
		if c.head.status >= 200 {
			return nil
		}
		if c.head.status == http.StatusSwitchingProtocols || n == 8 {
			return errStatus // it was not asked to, or does not come to the point
		}
	}
}

// keepFor is how long the connection may be kept: what a server says, less a little for
// the way there.
func (h *head) keepFor() time.Duration {
	for option := range strings.SplitSeq(string(h.get(keepAlive)), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(option), "=")
		if s, err := strconv.Atoi(value); err == nil && strings.EqualFold(name, "timeout") && s >= 0 {
			return max(min(time.Duration(s)*time.Second-2*time.Second, idleConnTime), time.Nanosecond)
		}
	}
	return idleConnTime
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
