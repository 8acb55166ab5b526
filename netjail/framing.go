package netjail

import (
	"errors"
	"net"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"
)

// headMax bounds the head of a request, in bytes.
const headMax = 64 << 10

// A framing follows a stream of HTTP/1 requests and refuses what two programs could read
// as different requests (RFC 9112 §11.2). It reads nothing else into them: what it lets
// pass is parsed by the standard library, judged, and written anew for the server. So a
// request that is hidden in another would have to get past this, past that parser, and
// past that writer.
type framing struct {
	step step
	line []byte // the line that is being read, without its end
	head int    // bytes of the head, or trailer, so far
	left uint64 // bytes of body, or chunk, still to come

	// Of the head that is being read.
	first     bool // the next line is the request line
	version10 bool
	hosts     int
	lengths   int
	length    uint64
	encodings int
}

// A step is what comes next in the stream.
type step int

const (
	inHead step = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	inRaw // anything: the connection is no longer HTTP/1
)

var (
	errBareLine     = errors.New("a line of the request does not end as HTTP has it")
	errHeadTooLong  = errors.New("the head of the request is too long")
	errRequestLine  = errors.New("the request line is not one of HTTP/1.1")
	errProxyRequest = errors.New("the request is for a proxy, and none is needed: connect to the host itself")
	errHeader       = errors.New("a header of the request is malformed")
	errHosts        = errors.New("the request has no Host header, or several")
	errLength       = errors.New("the request says in two ways, or in an unclear one, how long it is")
	errChunk        = errors.New("the request's body is not in proper chunks")
)

func newFraming() *framing { return &framing{first: true} }

// follow takes the next bytes of the stream, and returns how many of them may be passed
// on. With an error the rest may not, and nothing after it; no request is complete in
// what was passed on since the last good one.
func (f *framing) follow(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch f.step {
		case inRaw:
			return len(b), nil
		case inBody, inChunk:
			n := min(f.left, uint64(len(b)-i))
			i += int(n)
			if f.left -= n; f.left == 0 {
				if f.step == inBody {
					f.next()
				} else {
					f.step = inChunkEnd
				}
			}
		default:
			if err := f.byte(b[i]); err != nil {
				return i, err
			}
			i++
		}
	}
	return len(b), nil
}

// byte takes a byte of a line.
func (f *framing) byte(c byte) error {
	if f.head++; f.head > headMax {
		return errHeadTooLong
	}
	ended := len(f.line) > 0 && f.line[len(f.line)-1] == '\r'
	switch {
	case c == '\n' && ended:
		line := string(f.line[:len(f.line)-1])
		f.line = f.line[:0]
		return f.take(line)
	case c == '\n' || ended || c == 0:
		return errBareLine
	}
	f.line = append(f.line, c)
	return nil
}

func (f *framing) take(line string) error {
	switch f.step {
	case inHead:
		if f.first {
			f.first = false
			return f.requestLine(line)
		}
		if line == "" {
			return f.endHead()
		}
		return f.header(line)
	case inChunkSize:
		return f.chunkSize(line)
	case inChunkEnd:
		if line != "" {
			return errChunk
		}
		f.step, f.head = inChunkSize, 0
		return nil
	default: // inTrailer
		if line == "" {
			f.next()
			return nil
		}
		name, _, err := splitHeader(line)
		if err != nil {
			return err
		}
		switch name {
		case "host", "content-length", "transfer-encoding", "trailer", "connection":
			return errHeader
		}
		return nil
	}
}

func (f *framing) requestLine(line string) error {
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !httpguts.ValidHeaderFieldName(method) || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return errRequestLine
	}
	if strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return errRequestLine
	}
	if method == "CONNECT" || !strings.HasPrefix(target, "/") {
		return errProxyRequest
	}
	f.version10 = version == "HTTP/1.0"
	return nil
}

func (f *framing) header(line string) error {
	name, value, err := splitHeader(line)
	if err != nil {
		return err
	}
	switch name {
	case "host":
		f.hosts++
	case "content-length":
		f.lengths++
		if value == "" || len(value) > 18 || strings.Trim(value, "0123456789") != "" {
			return errLength
		}
		f.length = 0
		for _, digit := range value {
			f.length = 10*f.length + uint64(digit-'0')
		}
	case "transfer-encoding":
		f.encodings++
		if !strings.EqualFold(value, "chunked") {
			return errLength
		}
	}
	return nil
}

// splitHeader returns a header's name in lower case and its value.
func splitHeader(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !httpguts.ValidHeaderFieldName(name) { // a token has no space: not before the colon, and not in front
		return "", "", errHeader
	}
	value = strings.Trim(value, " \t")
	if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		return "", "", errHeader
	}
	return strings.ToLower(name), value, nil
}

func (f *framing) endHead() error {
	switch {
	case f.hosts != 1:
		return errHosts
	case f.lengths+f.encodings > 1, f.encodings > 0 && f.version10:
		return errLength
	case f.encodings > 0:
		f.step, f.head = inChunkSize, 0
	case f.length > 0:
		f.step, f.left = inBody, f.length
	default:
		f.next()
	}
	return nil
}

func (f *framing) chunkSize(line string) error {
	// No extensions: nobody uses them, and not everybody reads them alike.
	if line == "" || len(line) > 15 || strings.Trim(line, "0123456789abcdefABCDEF") != "" {
		return errChunk
	}
	f.left = 0
	for _, digit := range strings.ToLower(line) {
		f.left = 16*f.left + uint64(strings.IndexRune("0123456789abcdef", digit))
	}
	f.head = 0
	if f.step = inChunk; f.left == 0 {
		f.step = inTrailer
	}
	return nil
}

// next begins another request.
func (f *framing) next() { *f = framing{first: true, line: f.line[:0]} }

// A framed is a connection that carries HTTP/1 requests, none of which are ambiguous.
type framed struct {
	net.Conn
	guest   *guest
	framing *framing
	refused error // what was wrong; nothing is read after it

	// raw is set when the connection was upgraded to another protocol.
	raw atomic.Bool
}

func (c *framed) Read(p []byte) (int, error) {
	if c.refused != nil {
		return 0, c.refused
	}
	n, err := c.Conn.Read(p)
	if err != nil {
		c.guest.distrusted(err)
	}
	if c.raw.Load() {
		return n, err
	}
	good, wrong := c.framing.follow(p[:n])
	if wrong != nil {
		c.refused = wrong
		c.guest.refuseRequest(wrong)
		return good, wrong
	}
	return n, err
}
