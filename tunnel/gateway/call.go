package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// An exchange is one call and its answer. In order: admit decides by its head, read takes
// its body in if that has to be seen, judge decides by what is in it and puts it on
// record, depart sends it, pass sends what is left of it, answer passes the answer on, and
// finish says what it came to. Until depart nothing has left, and whatever goes wrong is
// the gateway's refusal; from then on nothing is sent again.
//
// Up to depart an exchange is its reader's, and from then on answer and finish may run
// beside pass.
type exchange struct {
	g      *Gateway
	route  *route
	host   string // as the connection was opened for
	req    head
	buf    []byte
	caller string // who calls, if that was proved
	bearer string // who says so: what is kept of the token
	began  time.Time

	headOnly bool  // no body is answered
	expects  bool  // the caller waits for leave to send the body
	slot     bool  // one of the route's is held
	held     int64 // bytes of the gateway's room for bodies that are taken

	whole    bool   // content is the whole body
	content  []byte // read before the call leaves
	seen     bool   // messages are what is in it
	messages []message
	batch    bool
	filter   bool // the answer may list tools
	records  []pending

	up       *upConn
	released bool // up is no longer this exchange's
	stdio    *ticket
	sentAll  atomic.Bool             // nothing of the body is left to send
	passed   chan struct{}           // 1: pass is done
	gotAll   atomic.Bool             // pass has read all of the body
	trouble  atomic.Pointer[refusal] // why the body could not be passed on

	status int
	stage  tunnel.Stage // of a refusal
	in     atomic.Int64 // bytes of body
	out    int64        // bytes of answer, its head included

	mu      sync.Mutex
	cut     func() // ends the call at the server; nil when there is nothing to end
	aborted bool
}

// reset makes ex one for a new call.
func (ex *exchange) reset(g *Gateway, host string) {
	ex.mu.Lock()
	ex.cut, ex.aborted = nil, false
	ex.mu.Unlock()
	ex.g, ex.route, ex.host, ex.caller, ex.bearer = g, nil, host, "", ""
	ex.headOnly, ex.expects, ex.slot, ex.whole, ex.seen, ex.batch, ex.filter = false, false, false, false, false, false, false
	ex.content, ex.messages, ex.records = ex.content[:0], ex.messages[:0], ex.records[:0]
	if cap(ex.content) > keepBody {
		ex.content = nil
	}
	ex.up, ex.released, ex.stdio = nil, false, nil
	ex.sentAll.Store(false)
	ex.gotAll.Store(false)
	ex.trouble.Store(nil)
	ex.in.Store(0)
	ex.status, ex.stage, ex.out = 0, "", 0
	if ex.passed == nil {
		ex.passed = make(chan struct{}, 1)
	}
	select {
	case <-ex.passed:
	default:
	}
	ex.began = time.Now()
}

// keepBody is how large a buffer for bodies a connection keeps between calls.
const keepBody = 256 << 10

// abort ends the call at the server, as its caller has gone.
func (ex *exchange) abort() {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.aborted = true
	if ex.cut != nil {
		ex.cut()
	}
}

// cutBy says how to end the call at the server. It reports whether the caller is still
// there.
func (ex *exchange) cutBy(cut func()) bool {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.cut = cut
	return !ex.aborted
}

// admit decides by the head alone.
func (ex *exchange) admit() *refusal {
	h := &ex.req
	ex.headOnly = string(h.method) == http.MethodHead
	named := h.get(host)
	if string(named) != ex.host {
		canonical, err := canonicalHost(string(named))
		if err != nil || canonical != ex.host {
			return &refusal{
				provenance: tunnel.Errorf(tunnel.StageRequestRefused, "the request is for %s, and its connection for %s", printable(named), ex.host),
				status:     http.StatusMisdirectedRequest,
			}
		}
	}
	ex.route = ex.g.state.Load().find(ex.host)
	r := ex.route
	if r == nil {
		return failed(tunnel.StageNoRoute, nil, "no route for host %s", ex.host)
	}
	if e := h.get(expect); e != nil {
		ex.expects = bytes.EqualFold(e, []byte("100-continue"))
	}
	if h.length > r.bodyMax {
		return r.tooLong()
	}
	if refused := ex.ofReplica(); refused != nil {
		return refused
	}
	// Who calls is found out within the bound on calls.
	if refused := r.enter(ex); refused != nil {
		return refused
	}
	if r.auth != nil {
		return r.auth.check(ex)
	}
	return nil
}

// ofReplica sees to it that a session is served by the gateway that began it, where that
// matters.
func (ex *exchange) ofReplica() *refusal {
	if !ex.route.sticky {
		return nil
	}
	id := ex.req.get(sessionID)
	if id == nil {
		return nil
	}
	replica, _, ok := bytes.Cut(id, []byte(tunnel.ReplicaEnd))
	if !ok || string(replica) == ex.g.replica {
		return nil
	}
	// Another replica may well have it, so this is no 404: that would end the session.
	refused := failed(tunnel.StageOtherReplica, nil, "the session is of replica %s", printable(replica))
	refused.fields = append(refused.fields, newField([]byte(tunnel.ReplicaHeader), bytes.Clone(replica)))
	refused.retryAfter = time.Second
	return refused
}

// ownSession is the id of a session without the replica's name.
func (ex *exchange) ownSession(id []byte) []byte {
	if !ex.route.sticky {
		return id
	}
	if _, own, ok := bytes.Cut(id, []byte(tunnel.ReplicaEnd)); ok {
		return own
	}
	return id
}

// A source is where the body of a call comes from.
type source interface {
	// next returns what has arrived, as body.next does.
	next() ([]byte, error)

	// waiting has f called before each read that may have to wait; nil for nothing.
	waiting(f func() error)

	// trailers are what comes after the body, once that has ended.
	trailers() []field
}

// read takes the whole body in, if somebody has to see it before it leaves.
func (ex *exchange) read(from source) *refusal {
	switch {
	case ex.req.length == 0 && !ex.req.chunked:
		ex.whole = true
		return nil
	case !ex.route.inspects():
		return nil
	}
	for {
		p, err := from.next()
		if errors.Is(err, io.EOF) {
			ex.whole = true
			ex.in.Store(int64(len(ex.content)))
			return nil
		}
		if err != nil {
			return misread(err)
		}
		if int64(len(ex.content)+len(p)) > ex.route.bodyMax {
			return ex.route.tooLong()
		}
		if refused := ex.hold(int64(len(p))); refused != nil {
			return refused
		}
		ex.content = append(ex.content, p...)
	}
}

// heldMax bounds the bodies that are held at a time, of all calls, in bytes: as many calls
// as there may be, each with a body as long as it may be, would be more than a machine has.
const heldMax = bodyLimit

// hold takes room for more of the body, until finish.
func (ex *exchange) hold(n int64) *refusal {
	if ex.g.held.Add(n) > heldMax {
		ex.g.held.Add(-n)
		refused := failed(tunnel.StageOverloaded, nil, "the bodies of the calls under way take %d bytes, which is the most", heldMax)
		refused.retryAfter = time.Second
		return refused
	}
	ex.held += n
	return nil
}

// judge decides by what is asked for, and puts it on record. What it lets pass may leave.
func (ex *exchange) judge() *refusal {
	r := ex.route
	if !r.inspects() {
		return nil
	}
	if refused := ex.look(); refused != nil {
		return refused
	}
	// The rate is that of the server's callers: what does not get there must not use it up.
	if refused := r.pace(ex.messages); refused != nil {
		return refused
	}
	ex.filter = r.tools != nil && (string(ex.req.method) == http.MethodGet || ex.lists())
	return ex.record()
}

// look reads what the body asks for.
func (ex *exchange) look() *refusal {
	h, r := &ex.req, ex.route
	strict := r.tools != nil || r.stdio != nil
	if len(ex.content) == 0 {
		if strict && (h.get(mcpMethod) != nil || h.get(mcpName) != nil) {
			return ex.invalid(codeHeaderMismatch, errors.New("Mcp-Method and Mcp-Name are for a message, and there is none"))
		}
		return nil
	}
	if err := checkContentType(h); err != nil {
		return &refusal{status: http.StatusUnsupportedMediaType, text: err.Error(), err: err}
	}
	var err error
	if e, ok := h.one(contentEncoding); !ok || e != nil && !bytes.EqualFold(e, []byte("identity")) {
		err = errors.New("a body in a Content-Encoding cannot be looked at here")
	} else {
		ex.messages, ex.batch, err = parseMessages(ex.content, ex.messages)
	}
	if err == nil {
		ex.seen = true
		if err := checkHeaders(h, ex.messages, ex.batch); err != nil {
			return ex.invalid(codeHeaderMismatch, err)
		}
		return ex.checkTools()
	}
	ex.messages = ex.messages[:0]
	if !strict || harmless(h, ex.content) {
		ex.messages = append(ex.messages, message{method: opaque})
		return nil
	}
	// Where tools are ruled on, what cannot be read is not let through: the server may
	// read it.
	if errors.Is(err, errNotJSON) {
		return ex.invalid(codeParse, err)
	}
	return ex.invalid(codeInvalidRequest, err)
}

// harmless reports whether a body that is no JSON-RPC cannot be read as such either: a
// form, as OAuth's endpoints take them.
func harmless(h *head, body []byte) bool {
	if h.get(mcpMethod) != nil || h.get(mcpName) != nil || h.get(contentEncoding) != nil {
		return false
	}
	value, ok := h.one(contentType)
	if !ok || mediaType(value) != "application/x-www-form-urlencoded" {
		return false
	}
	for _, c := range body {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"{}[]\`, c) >= 0 {
			return false
		}
	}
	return true
}

// invalid is the refusal of a body, as a server would word it.
func (ex *exchange) invalid(code int, err error) *refusal {
	ids := [][]byte{}
	for _, m := range ex.messages {
		if m.id != nil && m.method != "" {
			ids = append(ids, bytes.Clone(m.id))
		}
	}
	return &refusal{status: http.StatusBadRequest, text: err.Error(), ids: ids, code: code, err: err}
}

// checkTools refuses calls of tools that may not be called. In a batch with one of them
// nothing is done: its other half could be what makes the first harmful.
func (ex *exchange) checkTools() *refusal {
	for i := range ex.messages {
		m := &ex.messages[i]
		if m.method != methodToolsCall || ex.route.tools.allows(m.name) {
			continue
		}
		refused := ex.invalid(codeInvalidParams, errors.New("tool "+strconv.QuoteToASCII(shorten(m.name, 100))+" may not be called through this gateway"))
		refused.status = http.StatusOK
		if len(refused.ids) == 0 {
			refused.status = http.StatusAccepted // a notification has no answer
		}
		return refused
	}
	return nil
}

// lists reports whether tools are asked for.
func (ex *exchange) lists() bool {
	for i := range ex.messages {
		if ex.messages[i].method == methodToolsList {
			return true
		}
	}
	return false
}

// depart sends the call on its way: its head, and its body if that was taken in.
func (ex *exchange) depart(ctx context.Context) *refusal {
	if ex.route.stdio != nil {
		return ex.route.stdio.depart(ctx, ex)
	}
	u := ex.route.upstream
	ex.buf = ex.appendHead(ex.buf[:0])
	up, refused := u.get(ctx)
	if refused != nil {
		return refused
	}
	ex.up = up
	if !ex.cutBy(func() { _ = up.Conn.Close() }) {
		ex.drop()
		return callerGone()
	}
	if !ex.whole {
		return nil // pass sends the head along with what there is of the body
	}
	// From here on, an error says nothing about what arrived. The server may have closed
	// its side, and have said why: that is for answer to find.
	_ = up.send(ex.buf, ex.content)
	return nil
}

// callerGone is the refusal of a call that nobody waits for any more.
func callerGone() *refusal { return failed(tunnel.StageTimeout, nil, "the caller has gone") }

// appendHead appends the call's head as the server is to get it.
func (ex *exchange) appendHead(to []byte) []byte {
	h, r := &ex.req, ex.route
	to = append(to, h.method...)
	to = append(to, ' ')
	to = append(to, h.target...)
	to = append(to, " HTTP/1.1\r\n"...)
	if r.rewriteHost {
		to = appendField(to, "Host", []byte(r.upstream.authority))
	} else {
		to = append(append(append(to, "Host: "...), ex.host...), "\r\n"...)
	}
	trailers := false
	for _, f := range h.fields {
		switch f.kind {
		case hopByHop, forwarded, unclear, connection, keepAlive, contentLength, transferEncoding, host, theirs, expect:
			continue
		case te:
			trailers = trailers || bytes.Contains(bytes.ToLower(f.value), []byte("trailers"))
			continue
		case trailer:
			if !h.chunked {
				continue
			}
		case authorization:
			if r.auth != nil && !r.auth.forward {
				continue
			}
		case acceptEncoding:
			if ex.filter {
				continue
			}
		case sessionID:
			f.value = ex.ownSession(f.value)
		}
		if len(h.drop) > 0 && h.listed(f.name) || r.request.removes(f.name) {
			continue
		}
		to = f.append(to)
	}
	to = append(append(append(to, "X-Forwarded-Host: "...), ex.host...), "\r\nX-Forwarded-Proto: https\r\n"...)
	if trailers {
		to = append(to, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	if ex.filter {
		to = append(to, "Accept-Encoding: identity\r\n"...)
	}
	for _, f := range r.request.set {
		to = f.append(to)
	}
	switch {
	case ex.whole && (len(ex.content) > 0 || bodyExpected(h.method)):
		to = strconv.AppendInt(append(to, "Content-Length: "...), int64(len(ex.content)), 10)
		to = append(to, "\r\n"...)
	case ex.whole:
	case h.chunked:
		to = append(to, "Transfer-Encoding: chunked\r\n"...)
	default:
		to = strconv.AppendInt(append(to, "Content-Length: "...), h.length, 10)
		to = append(to, "\r\n"...)
	}
	return append(to, "\r\n"...)
}

// bodyExpected reports whether a request of this method is expected to say that it has no
// body.
func bodyExpected(method []byte) bool {
	return string(method) == http.MethodPost || string(method) == http.MethodPut || string(method) == http.MethodPatch
}

// pass sends the body on as it arrives, with the head before it, and calls alive before it
// waits for more. It returns false if what is left of it cannot be read, so that its
// connection is of no more use.
func (ex *exchange) pass(from source, alive func()) (readable bool) {
	defer func() { ex.passed <- struct{}{} }()
	up, chunked := ex.up, ex.req.chunked
	buf, failed := ex.buf, false
	flush := func() {
		if len(buf) > 0 && !failed {
			if up.send(buf, nil) != nil {
				failed = true // the server takes no more: it may have answered already
			}
		}
		buf = buf[:0]
	}
	from.waiting(func() error {
		flush()
		alive()
		return nil
	})
	defer from.waiting(nil)
	discarded := 0
	// A body of known length is known to be whole before the last of it leaves, which the
	// server may answer at once.
	for chunked || ex.in.Load() < ex.req.length {
		p, err := from.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// The server must not take a part for the whole.
			if isBadBody(err) {
				ex.trouble.Store(misread(err))
			}
			ex.abort()
			return false
		}
		if ex.in.Add(int64(len(p))) > ex.route.bodyMax {
			ex.trouble.Store(ex.route.tooLong())
			ex.abort()
			return false
		}
		if failed {
			if discarded += len(p); discarded > discardMax {
				ex.abort()
				return false
			}
			continue
		}
		if chunked {
			buf = appendChunk(buf, p)
		} else {
			buf = append(buf, p...)
		}
		if len(buf) >= outMax {
			flush()
		}
	}
	ex.gotAll.Store(true)
	if chunked {
		buf = appendLastChunk(buf, ex.route.request.keeps(from.trailers()))
	}
	flush()
	if cap(buf) <= 2*outMax {
		ex.buf = buf
	} else {
		ex.buf = nil
	}
	ex.sentAll.Store(!failed)
	return true
}

func isBadBody(err error) bool {
	return errors.Is(err, errChunk) || errors.Is(err, errField) || errors.Is(err, errHeadLong) || errors.Is(err, errLine)
}

// answer passes the server's answer on, or says why there is none. An error means that
// the answer is not whole.
func (ex *exchange) answer(to answerer) error {
	if ex.stdio != nil {
		return ex.stdio.answer(ex, to)
	}
	err := ex.relay(to)
	if err == nil {
		return nil
	}
	ex.drop()
	if to.begun() {
		ex.g.log.Debug("answer broken off", "host", ex.host, "error", err)
		ex.stage = tunnel.StageConnectorLost
		return err
	}
	refused := ex.trouble.Load()
	if refused == nil {
		refused = ex.relayFailed(err)
	}
	ex.refused(refused)
	if err := refused.give(to, !ex.sentAll.Load()); err != nil {
		return err
	}
	return nil
}

// relayFailed words why an answer could not be passed on.
func (ex *exchange) relayFailed(err error) *refusal {
	u := ex.route.upstream
	if refused, ok := errors.AsType[*refusalError](err); ok {
		return refused.refusal
	}
	if refused := u.refusedUs(err); refused != nil {
		return refused
	}
	switch {
	case ex.up.watch.late.Load() || ex.up.sends.late.Load():
		return failed(tunnel.StageUpstreamTimeout, err, "%s did not answer within %s", u.name, ex.route.response)
	case isEnd(err):
		return failed(tunnel.StageUpstreamProtocol, err, "%s closed the connection before it answered; the call is not sent again, as it may have been taken", u.name)
	}
	return failed(tunnel.StageUpstreamProtocol, err, "the answer of %s cannot be passed on: %s", u.name, plainly(err))
}

// refusalError carries a refusal as an error.
type refusalError struct{ refusal *refusal }

func (e *refusalError) Error() string { return e.refusal.Error() }

// relay reads the server's answer and passes it on.
func (ex *exchange) relay(to answerer) error {
	up, r := ex.up, ex.route
	up.in.wait = nil
	if err := up.readHead(r.response); err != nil {
		return err
	}
	h := &up.head
	hasBody := h.hasBody(ex.req.method)
	length := h.length
	if !hasBody && length == unknownLength || hasBody && h.chunked {
		length = unknownLength
	}
	fields, refused := ex.answerFields(h)
	if refused != nil {
		return &refusalError{refused}
	}
	ex.status = h.status
	keep := h.keepFor()
	if !hasBody {
		if err := to.begin(h.status, fields, length, false); err != nil {
			return err
		}
		// A server that says how long the body is that there cannot be may send it.
		ex.release(!h.close && !h.chunked && h.length <= 0, keep)
		return to.end(nil)
	}
	var b body
	b.begin(&up.in, h.length, h.chunked)
	if ex.filter && filterable(ex, h) {
		return ex.relayFiltered(to, &b, fields)
	}
	if err := to.begin(h.status, fields, length, true); err != nil {
		return err
	}
	stream := ex.leavable(h)
	defer stream.stop()
	up.in.wait = func() error {
		up.watch.set(r.idle)
		return to.flush()
	}
	for {
		p, err := b.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = to.write(p)
		}
		if err != nil {
			return stream.leave(to, err)
		}
	}
	reuse := !h.close && !b.toEnd
	up.in.wait = nil
	ex.release(reuse, keep)
	return to.end(r.answer.keeps(b.trailer))
}

// A leavable is an answer that need not come to its end before the gateway stops: a stream
// that was asked for with GET, which carries no call and which its reader asks for again,
// through another gateway if there is one.
type leavable struct {
	ex   *exchange
	stop func() bool
}

func (ex *exchange) leavable(h *head) leavable {
	if string(ex.req.method) != http.MethodGet || !isStream(h.get(contentType)) {
		return leavable{stop: func() bool { return true }}
	}
	return leavable{ex, context.AfterFunc(ex.g.leaving, func() { _ = ex.up.Conn.Close() })}
}

// leave is what becomes of the answer after an error.
func (l leavable) leave(to answerer, err error) error {
	if l.ex == nil || l.ex.g.leaving.Err() == nil {
		return err
	}
	l.ex.drop()
	return to.end(nil)
}

// leaving is closed when an answer that carries no call is to end.
func (ex *exchange) leaving() <-chan struct{} {
	if string(ex.req.method) != http.MethodGet {
		return nil
	}
	return ex.g.leaving.Done()
}

// release gives the connection to the server back, if it is fit for another call, and
// otherwise closes it.
func (ex *exchange) release(reuse bool, keep time.Duration) {
	up := ex.up
	ex.released = true
	ex.settle()
	ex.mu.Lock()
	reuse = reuse && !ex.aborted
	ex.cut = nil
	ex.mu.Unlock()
	up.watch.clear()
	if reuse && ex.sentAll.Load() && up.in.r == up.in.w && !up.watch.late.Load() && !up.sends.late.Load() {
		up.in.wait = nil
		up.of.put(up, keep)
		return
	}
	up.discard()
}

// drop closes the connection to the server, if release has not got it.
func (ex *exchange) drop() {
	ex.mu.Lock()
	ex.cut = nil
	ex.mu.Unlock()
	if up := ex.up; up != nil && !ex.released {
		ex.released = true
		up.discard()
	}
}

// settleTime is how long an answer that is whole waits for the last write of its request
// to be known as done.
const settleTime = time.Second

// settle waits for pass where the server has answered before pass has seen its last write
// return, which is a matter of which goroutine ran first.
func (ex *exchange) settle() {
	if ex.sentAll.Load() || !ex.gotAll.Load() {
		return
	}
	t := time.NewTimer(settleTime)
	defer t.Stop()
	select {
	case <-ex.passed:
	case <-t.C:
	}
}

// answerFields are the fields of the answer that are passed on.
func (ex *exchange) answerFields(h *head) ([]field, *refusal) {
	r := ex.route
	fields := ex.up.fields[:0]
	for _, f := range h.fields {
		switch f.kind {
		case hopByHop, connection, keepAlive, contentLength, transferEncoding, theirs:
			continue
		case trailer:
			if !h.chunked {
				continue
			}
		case sessionID:
			if r.sticky {
				f.value = append(append([]byte(ex.g.replica), tunnel.ReplicaEnd...), f.value...)
			}
		case location:
			if h.status >= 300 && h.status < 400 {
				to, ok := ex.redirect(f.value)
				if !ok {
					return nil, failed(tunnel.StageUpstreamProtocol, nil, "%s redirects to another host, where the gateway does not go", r.upstream.name)
				}
				f.value = to
			}
		}
		if len(h.drop) > 0 && h.listed(f.name) || r.answer.removes(f.name) {
			continue
		}
		fields = append(fields, f)
	}
	fields = append(fields, r.answer.set...)
	if r.sticky {
		fields = append(fields, ex.g.replicaField)
	}
	ex.up.fields = fields
	return fields, nil
}

// redirect decides on where an answer redirects to. A redirect within the host passes;
// one that names it passes without the name, as the server may think that it was asked
// over plain HTTP, or under its own name.
func (ex *exchange) redirect(to []byte) ([]byte, bool) {
	s := string(to)
	for _, c := range to {
		if c <= ' ' || c >= 0x7f || c == '\\' {
			return nil, false
		}
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok && !strings.ContainsAny(scheme, "/?#") {
		if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return nil, false
		}
		end := strings.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		authority, path := rest[:end], rest[end:]
		u := ex.route.upstream
		if strings.EqualFold(authority, u.authority) || strings.EqualFold(authority, u.host.JoinPort(u.port)) {
			return rooted(path), true
		}
		name, err := canonicalHost(authority)
		if err != nil || name != ex.host {
			return nil, false
		}
		if _, port, ok := strings.Cut(authority, ":"); ok && port != "443" && port != "80" {
			return nil, false
		}
		return rooted(path), true
	}
	if strings.HasPrefix(s, "//") {
		return nil, false
	}
	// A scheme without a host is no place within this one either.
	if i := strings.IndexAny(s, ":/?#"); i >= 0 && s[i] == ':' {
		return nil, false
	}
	return to, true
}

// rooted is a path from the root: "//x" would name a host.
func rooted(path string) []byte {
	if strings.HasPrefix(path, "//") {
		return []byte("/." + path)
	}
	if !strings.HasPrefix(path, "/") {
		return []byte("/" + path)
	}
	return []byte(path)
}

// filterable reports whether an answer may list tools: JSON or a stream for a message, a
// stream for one that is resumed.
func filterable(ex *exchange, h *head) bool {
	value := h.get(contentType)
	return isStream(value) || ex.lists() && h.status/100 == 2
}

func isStream(contentType []byte) bool { return mediaType(contentType) == "text/event-stream" }

// relayFiltered passes on an answer without the tools that may not be seen.
func (ex *exchange) relayFiltered(to answerer, b *body, fields []field) error {
	up, r := ex.up, ex.route
	h := &up.head
	if e := h.get(contentEncoding); e != nil && !bytes.EqualFold(e, []byte("identity")) {
		return &refusalError{failed(tunnel.StageUpstreamProtocol, nil, "%s lists its tools in a Content-Encoding that it was asked not to use", r.upstream.name)}
	}
	keep, reuse := h.keepFor(), !h.close && !b.toEnd
	if isStream(h.get(contentType)) {
		if err := to.begin(h.status, fields, unknownLength, true); err != nil {
			return err
		}
		up.in.wait = func() error {
			up.watch.set(r.idle)
			return to.flush()
		}
		stream := ex.leavable(h)
		defer stream.stop()
		filter := eventFilter{rules: r.tools}
		for {
			p, err := b.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				err = filter.add(p, to.write)
			}
			if err != nil {
				return stream.leave(to, err)
			}
		}
		up.in.wait = nil
		if err := filter.finish(to.write); err != nil {
			return err
		}
		ex.release(reuse, keep)
		return to.end(r.answer.keeps(b.trailer))
	}
	up.in.wait = func() error {
		up.watch.set(r.idle)
		return nil
	}
	var whole []byte
	for {
		p, err := b.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if whole = append(whole, p...); len(whole) > filterMax {
			return errFilterLong
		}
	}
	up.in.wait = nil
	if len(whole) > 0 {
		var err error
		if whole, err = r.tools.filterMessages(whole); err != nil {
			return err
		}
	}
	if err := to.begin(h.status, fields, int64(len(whole)), true); err != nil {
		return err
	}
	if err := to.write(whole); err != nil {
		return err
	}
	ex.release(reuse, keep)
	return to.end(nil)
}

// refused notes that the gateway answers itself, and why.
func (ex *exchange) refused(r *refusal) {
	ex.status = r.httpStatus()
	ex.stage = tunnel.StageRequestRefused
	if r.provenance != nil {
		ex.stage = r.provenance.Stage
	}
	ex.g.logRefusal(ex, r)
	ex.recordRefusal(r)
}

// finish says what the call came to, and lets go of what it held.
func (ex *exchange) finish() {
	ex.mu.Lock()
	ex.cut = nil
	ex.mu.Unlock()
	ex.recordEnd()
	ex.g.held.Add(-ex.held)
	ex.held = 0
	if ex.route != nil {
		ex.route.leave(ex)
	}
}

// printable is text of a caller's, fit to be shown.
func printable(b []byte) string { return strconv.QuoteToASCII(shorten(string(b), 100)) }

// shorten bounds text.
func shorten(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
