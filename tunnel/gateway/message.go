package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/bailey-platform/bailey/tunnel"
)

// Bounds of HTTP/1.1 as it is read here.
const (
	headMax   = 64 << 10 // bytes of a head, or of a trailer
	fieldsMax = 200      // of a head
)

// What is wrong with a message. A request that two programs could read as two different
// ones (RFC 9112 §11.2) is refused, whatever a lenient reader would make of it.
var (
	errLine      = errors.New("a line does not end as HTTP has it, with CR and LF")
	errHeadLong  = fmt.Errorf("the head is longer than %d bytes", headMax)
	errManyField = fmt.Errorf("the head has more than %d fields", fieldsMax)
	errRequest   = errors.New("the request line is not one of HTTP/1.1 for a path")
	errStatus    = errors.New("the status line is not one of HTTP/1")
	errField     = errors.New("a header field is malformed")
	errHost      = errors.New("there is no Host field, or more than one")
	errLength    = errors.New("the length of the body is told in two ways, or in an unclear one")
	errChunk     = errors.New("the body is not in proper chunks")
)

// A field is one header field, as it came. It is made by newField.
type field struct {
	name, value []byte
	kind        kind
}

func newField(name, value []byte) field { return field{name, value, kindOf(name)} }

// A kind is what a field's name means to a gateway.
type kind uint8

const (
	plain kind = iota // passed on and not looked at

	hopByHop  // for this connection only
	forwarded // in requests, what proxies say of callers and what they asked for, and servers believe of proxies
	unclear   // in requests, names that some programs take for others
	theirs    // what only the gateway may say to the platform

	connection
	contentLength
	transferEncoding
	trailer
	te
	host
	expect

	authorization
	contentType
	contentEncoding
	acceptEncoding
	location
	keepAlive
	sessionID
	mcpMethod
	mcpName
	protocolVersion
	lastEventID
	accept
)

// Names of fields that the gateway sends.
const (
	tunnelErrorField = "Bailey-Tunnel-Error" // see tunnel.Error
	sessionIDField   = "Mcp-Session-Id"
)

var kinds = map[string]kind{
	"connection": connection, "keep-alive": keepAlive, "proxy-connection": hopByHop, "proxy-authorization": hopByHop,
	"proxy-authenticate": hopByHop, "upgrade": hopByHop, "http2-settings": hopByHop,
	"transfer-encoding": transferEncoding, "content-length": contentLength, "trailer": trailer, "te": te,
	"host": host, "expect": expect,
	"forwarded": forwarded, "x-real-ip": forwarded, "x-client-ip": forwarded, "true-client-ip": forwarded, "x-rewrite-url": forwarded,
	"bailey-tunnel-error": theirs, "bailey-tunnel-replica": theirs, "alt-svc": theirs,
	"authorization": authorization, "content-type": contentType, "content-encoding": contentEncoding,
	"accept-encoding": acceptEncoding, "accept": accept, "location": location,
	"mcp-session-id": sessionID, "mcp-method": mcpMethod, "mcp-name": mcpName, "mcp-protocol-version": protocolVersion,
	"last-event-id": lastEventID,
}

// forwardedPrefixes begin the names of fields that are forwarded.
var forwardedPrefixes = [][]byte{[]byte("x-forwarded-"), []byte("x-original-")}

// kindOf looks a name up, whatever its case.
func kindOf(name []byte) kind {
	var lower [24]byte
	if len(name) <= len(lower) {
		for i, c := range name {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			lower[i] = c
		}
		if k, ok := kinds[string(lower[:len(name)])]; ok {
			return k
		}
	}
	for _, prefix := range forwardedPrefixes {
		if len(name) >= len(prefix) && bytes.EqualFold(name[:len(prefix)], prefix) {
			return forwarded
		}
	}
	// CGI, and WSGI and others after it, turn both - and _ into _.
	if bytes.IndexByte(name, '_') >= 0 {
		return unclear
	}
	return plain
}

// unknownLength is the length of a body that ends by itself: in chunks, or with the
// connection.
const unknownLength = -1

// A head is the head of a request or of a response. Its slices are those of the reader's
// buffer, and good until the next head is read.
type head struct {
	method, target []byte // of a request
	status         int    // of a response
	version10      bool   // HTTP/1.0, which only servers may still speak

	fields []field

	// How long the body is: a number, or unknownLength.
	length  int64
	chunked bool

	close bool // the connection ends after this message

	drop [][]byte // names that Connection lists: they are for this connection only
}

// get returns the value of the first field of a kind.
func (h *head) get(k kind) []byte {
	for _, f := range h.fields {
		if f.kind == k {
			return f.value
		}
	}
	return nil
}

// one returns the value of the only field of a kind; ok is false if there are several.
func (h *head) one(k kind) (value []byte, ok bool) {
	n := 0
	for _, f := range h.fields {
		if f.kind == k {
			value = f.value
			n++
		}
	}
	return value, n <= 1
}

// listed reports whether Connection lists a name.
func (h *head) listed(name []byte) bool {
	for _, d := range h.drop {
		if bytes.EqualFold(d, name) {
			return true
		}
	}
	return false
}

// parseRequest reads a head that ends with its empty line.
func (h *head) parseRequest(text []byte) error {
	line, rest, err := cutLine(text)
	if err != nil {
		return err
	}
	method, line, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(line, []byte{' '})
	if !ok || !ok2 || !isToken(method) || string(version) != "HTTP/1.1" || len(target) == 0 || target[0] != '/' || string(method) == "CONNECT" {
		return errRequest
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return errRequest
		}
	}
	*h = head{method: method, target: target, fields: h.fields[:0], drop: h.drop[:0]}
	if err := h.parseFields(rest); err != nil {
		return err
	}
	if value, ok := h.one(host); !ok || len(value) == 0 {
		return errHost
	}
	if h.length == unknownLength && !h.chunked {
		h.length = 0 // a request without either has no body
	}
	return nil
}

// parseResponse reads a head that ends with its empty line. Whether there is a body also
// depends on the request; see hasBody.
func (h *head) parseResponse(text []byte) error {
	line, rest, err := cutLine(text)
	if err != nil {
		return err
	}
	// HTTP/1.x NNN and a reason, which may be missing with its space.
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatus
	}
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return errStatus
		}
		status = 10*status + int(c-'0')
	}
	if status < 100 {
		return errStatus
	}
	*h = head{status: status, version10: line[7] == '0', fields: h.fields[:0], drop: h.drop[:0]}
	h.close = h.version10
	return h.parseFields(rest)
}

func (h *head) parseFields(text []byte) error {
	h.length = unknownLength
	lengths, encodings := 0, 0
	for {
		line, rest, err := cutLine(text)
		if err != nil {
			return err
		}
		text = rest
		if len(line) == 0 {
			break
		}
		if len(h.fields) == fieldsMax {
			return errManyField
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		h.fields = append(h.fields, f)
		switch f.kind {
		case contentLength:
			lengths++
			if h.length, err = parseLength(f.value); err != nil {
				return err
			}
		case transferEncoding:
			encodings++
			if !bytes.EqualFold(f.value, []byte("chunked")) {
				return errLength
			}
			h.chunked = true
		case connection:
			h.parseConnection(f.value)
		}
	}
	if lengths+encodings > 1 || encodings > 0 && h.version10 {
		return errLength
	}
	return nil
}

func (h *head) parseConnection(value []byte) {
	for option := range bytes.SplitSeq(value, []byte{','}) {
		option = bytes.Trim(option, " \t")
		switch {
		case len(option) == 0:
		case bytes.EqualFold(option, []byte("close")):
			h.close = true
		case bytes.EqualFold(option, []byte("keep-alive")):
			h.close = h.close && !h.version10
		default:
			h.drop = append(h.drop, option)
		}
	}
}

// hasBody reports whether a response to a request of this method has a body.
func (h *head) hasBody(method []byte) bool {
	return string(method) != "HEAD" && h.status >= 200 && h.status != 204 && h.status != 304
}

func parseField(line []byte) (field, error) {
	name, value, ok := bytes.Cut(line, []byte{':'})
	if !ok || !isToken(name) { // a token has no space: neither before the colon nor in front
		return field{}, errField
	}
	value = bytes.Trim(value, " \t")
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return field{}, errField
		}
	}
	return newField(name, value), nil
}

func parseLength(value []byte) (int64, error) {
	if len(value) == 0 || len(value) > 18 {
		return 0, errLength
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, errLength
		}
		n = 10*n + int64(c-'0')
	}
	return n, nil
}

// cutLine splits off a line that ends with CR and LF, and has neither within.
func cutLine(text []byte) (line, rest []byte, err error) {
	i := bytes.IndexByte(text, '\n')
	if i < 1 || text[i-1] != '\r' || bytes.IndexByte(text[:i-1], '\r') >= 0 || bytes.IndexByte(text[:i-1], 0) >= 0 {
		return nil, nil, errLine
	}
	return text[:i-1], text[i+1:], nil
}

// isToken reports whether s is a token of RFC 9110.
func isToken(s []byte) bool {
	for _, c := range s {
		if !tokenByte[c] {
			return false
		}
	}
	return len(s) > 0
}

var tokenByte = func() (is [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		is[c] = true
	}
	return is
}()

// A reader reads heads and bodies from a connection. It reads what there is, up to its
// buffer, and never waits for more than it was asked for. The buffer is small until a
// read fills it.
type reader struct {
	from io.Reader
	wait func() error // called before each read that may have to wait; nil for nothing
	buf  []byte
	r, w int  // what was read and not taken is buf[r:w]
	full bool // the last read left no room
}

// How large a reader's buffer is, and then becomes: as much as four frames of a tunnel
// hold.
const (
	bufSmall = 4 << 10
	bufLarge = 4 * tunnel.InnerMax
)

var largeBufs = sync.Pool{New: func() any { return new([bufLarge]byte) }}

// buffered returns what was read and not taken.
func (r *reader) buffered() []byte { return r.buf[r.r:r.w] }

// fill reads once. Heads that were read before are void then.
func (r *reader) fill() error {
	if r.r == r.w {
		r.r, r.w = 0, 0
		if r.full && len(r.buf) < bufLarge {
			r.buf = largeBufs.Get().(*[bufLarge]byte)[:]
		}
	}
	if r.w == len(r.buf) {
		if r.r > 0 {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		} else {
			size := min(max(2*len(r.buf), bufSmall), headMax+bufSmall)
			if size <= len(r.buf) {
				return errHeadLong
			}
			r.buf = append(make([]byte, 0, size), r.buf...)[:size]
		}
	}
	if r.wait != nil {
		if err := r.wait(); err != nil {
			return err
		}
	}
	n, err := r.from.Read(r.buf[r.w:])
	r.w += n
	r.full = r.w == len(r.buf)
	if n > 0 {
		return nil // an error that lasts comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// rest lets go of a buffer that is large, where nothing in it is left. What was read is
// void then.
func (r *reader) rest() {
	r.full = false
	if r.r != r.w || len(r.buf) <= bufSmall {
		return
	}
	if len(r.buf) == bufLarge {
		largeBufs.Put((*[bufLarge]byte)(r.buf))
	}
	r.buf, r.r, r.w = nil, 0, 0
}

// headText returns the bytes of the next head, its empty line included. They are good
// until the next read. began is called, unless nil, once the first byte is there.
func (r *reader) headText(began func()) ([]byte, error) {
	seen := 0
	for {
		b := r.buffered()
		if len(b) > 0 && began != nil {
			began()
			began = nil
		}
		// A head ends at the first empty line, be it ended properly or not.
		for {
			i := bytes.IndexByte(b[seen:], '\n')
			if i < 0 {
				break
			}
			end := seen + i
			if end > headMax {
				return nil, errHeadLong
			}
			if end > 0 && b[end-1] != '\r' || end == 0 {
				return nil, errLine
			}
			if end >= 3 && b[end-2] == '\n' {
				r.r += end + 1
				return b[:end+1], nil
			}
			if end == 1 {
				return nil, errLine // an empty line and no head
			}
			seen = end + 1
		}
		if len(b) > headMax {
			return nil, errHeadLong
		}
		if err := r.fill(); err != nil {
			if len(b) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// line returns the next line without its end, of at most limit bytes.
func (r *reader) line(limit int) ([]byte, error) {
	for {
		b := r.buffered()
		if i := bytes.IndexByte(b[:min(len(b), limit)], '\n'); i >= 0 {
			line, _, err := cutLine(b[:i+1])
			r.r += i + 1
			return line, err
		}
		if len(b) >= limit {
			return nil, errHeadLong
		}
		if err := r.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A body is the body of a message. It hands out what has arrived, as it arrives.
type body struct {
	in      *reader
	left    int64 // of the body, or of the chunk
	chunked bool
	toEnd   bool // until the connection ends
	begun   bool // of chunks: one was read
	done    bool
	trailer []field
}

// begin makes b the body of a message whose head was just read.
func (b *body) begin(in *reader, length int64, chunked bool) {
	*b = body{in: in, left: length, chunked: chunked, trailer: b.trailer[:0]}
	if chunked {
		b.left = 0
	} else if length == unknownLength {
		b.toEnd = true
	}
	b.done = !chunked && length == 0
}

// next returns the next bytes of the body, which are good until the next call: at least
// one, without waiting once there are any. The error is io.EOF at the end, and only
// there.
func (b *body) next() ([]byte, error) {
	if b.done {
		return nil, io.EOF
	}
	if b.chunked && b.left == 0 {
		if err := b.chunk(); err != nil {
			return nil, err
		}
	}
	for b.in.r == b.in.w {
		if err := b.in.fill(); err != nil {
			if b.toEnd && errors.Is(err, io.EOF) {
				b.done = true
				return nil, io.EOF
			}
			return nil, unexpected(err)
		}
	}
	p := b.in.buffered()
	if !b.toEnd {
		p = p[:min(int64(len(p)), b.left)]
		b.left -= int64(len(p))
		b.done = !b.chunked && b.left == 0
	}
	b.in.r += len(p)
	return p, nil
}

// chunkLineMax bounds the line before a chunk.
const chunkLineMax = 32

// chunk reads up to the data of the next chunk. After the last one it reads the trailer
// and returns io.EOF.
func (b *body) chunk() error {
	if b.begun {
		if line, err := b.in.line(2); err != nil || len(line) > 0 {
			return orElse(err, errChunk)
		}
	}
	b.begun = true
	line, err := b.in.line(chunkLineMax)
	if err != nil {
		return orElse(err, errChunk)
	}
	// No extensions: nobody uses them, and not everybody reads them alike.
	if len(line) == 0 || len(line) > 15 {
		return errChunk
	}
	size := int64(0)
	for _, c := range line {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return errChunk
		}
		size = size<<4 | int64(c)
	}
	if size > 0 {
		b.left = size
		return nil
	}
	if err := b.readTrailer(); err != nil {
		return err
	}
	b.done = true
	return io.EOF
}

func orElse(err, other error) error {
	if err == nil || errors.Is(err, errHeadLong) || errors.Is(err, errLine) {
		return other
	}
	return err
}

// waiting has f called before each read that may have to wait; nil for nothing.
func (b *body) waiting(f func() error) { b.in.wait = f }

// trailers are what comes after the body, once that has ended.
func (b *body) trailers() []field { return b.trailer }

func (b *body) readTrailer() error {
	total := 0
	for {
		line, err := b.in.line(headMax)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		if total += len(line); total > headMax || len(b.trailer) == fieldsMax {
			return errHeadLong
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		if f.kind != plain {
			continue // nothing that says how a message is to be read comes after it
		}
		b.trailer = append(b.trailer, newField(bytes.Clone(f.name), bytes.Clone(f.value)))
	}
}

// Writing.

func appendField(to []byte, name string, value []byte) []byte {
	to = append(to, name...)
	to = append(to, ": "...)
	to = append(to, value...)
	return append(to, "\r\n"...)
}

func (f field) append(to []byte) []byte {
	to = append(to, f.name...)
	to = append(to, ": "...)
	to = append(to, f.value...)
	return append(to, "\r\n"...)
}

// appendChunk appends a chunk with data, which is not empty.
func appendChunk(to, data []byte) []byte {
	to = strconv.AppendInt(to, int64(len(data)), 16)
	to = append(to, "\r\n"...)
	to = append(to, data...)
	return append(to, "\r\n"...)
}

// appendLastChunk ends a body in chunks.
func appendLastChunk(to []byte, trailer []field) []byte {
	to = append(to, "0\r\n"...)
	for _, f := range trailer {
		to = f.append(to)
	}
	return append(to, "\r\n"...)
}
