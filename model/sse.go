package model

import (
	"bufio"
	"bytes"
	"io"
)

// Limits of a streamed reply. The largest honest event is a block that comes
// whole in its start event, such as a fetched document.
const (
	maxEventBytes  = 16 << 20  // one event of the stream
	maxStreamBytes = 256 << 20 // all of them, with pings and framing
)

// An eventReader splits a text/event-stream body into events. It reads what
// the Messages API writes, by the rules of the HTML standard except that a
// lone carriage return does not end a line.
type eventReader struct {
	r    *bufio.Reader
	left int64
	data []byte // reused by each event
	line []byte // reused by each line that does not fit r's buffer
}

func newEventReader(body io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(body, 32<<10), left: maxStreamBytes}
}

// next returns the data of the next event that has any, valid until the call
// after. The event's name is not looked at: the data repeats it as its type. At
// the end of the body it returns io.EOF, or io.ErrUnexpectedEOF inside an event.
func (r *eventReader) next() ([]byte, error) {
	r.data = r.data[:0]
	seen := false
	for {
		line, err := r.readLine()
		if err == io.EOF && (seen || len(line) > 0) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			if seen {
				return r.data, nil
			}
			continue
		}
		value, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue // event, id, retry, or a comment
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		if len(r.data)+len(value) >= maxEventBytes {
			return nil, tooBig("one event", maxEventBytes)
		}
		if seen {
			r.data = append(r.data, '\n')
		}
		r.data = append(r.data, value...)
		seen = true
	}
}

// readLine returns the next line without its end, valid until the call after.
func (r *eventReader) readLine() ([]byte, error) {
	r.line = r.line[:0]
	for {
		part, err := r.r.ReadSlice('\n')
		if r.left -= int64(len(part)); r.left < 0 {
			return nil, tooBig("the whole stream", maxStreamBytes)
		}
		if err == nil && len(r.line) == 0 {
			return trimEnd(part), nil // the common case: no copy
		}
		if len(r.line)+len(part) > maxEventBytes {
			return nil, tooBig("one line", maxEventBytes)
		}
		r.line = append(r.line, part...)
		switch err {
		case nil:
			return trimEnd(r.line), nil
		case bufio.ErrBufferFull:
		default:
			return r.line, err
		}
	}
}

func trimEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
}

// tooBig is not retryable: the next reply would be as big.
func tooBig(what string, limit int) *Error {
	e := garbage("%s of the reply exceeds the limit of %d MiB", what, limit>>20)
	e.Retryable = false
	return e
}
