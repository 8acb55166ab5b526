package worker

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// stream reads server-sent events. It keeps no more than one event in memory and
// gives up on one larger than eventMax.
type stream struct {
	body io.ReadCloser
	r    *bufio.Reader
	done func() // called once the stream is of no more use
}

func newStream(body io.ReadCloser, done func()) *stream {
	return &stream{body: body, r: bufio.NewReaderSize(body, 64<<10), done: done}
}

var errEventTooLarge = fmt.Errorf("stream: an event is larger than %d bytes", eventMax)

// next returns the name and data of the next event. Comments, retry hints, ids
// and events without data are passed over. The data is the caller's.
func (s *stream) next() (name string, data []byte, err error) {
	size := 0
	for first := true; ; first = false {
		line, err := s.line(&size)
		if err != nil {
			return "", nil, err
		}
		if first {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		if len(line) == 0 {
			if data == nil {
				name, size = "", 0
				continue
			}
			return name, bytes.TrimSuffix(data, []byte("\n")), nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data":
			data = append(append(data, value...), '\n')
		}
	}
}

// line returns the next line without its end, adding its length to size.
func (s *stream) line(size *int) ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		if *size += len(part); *size > eventMax {
			return nil, errEventTooLarge
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF // half an event is no event
		default:
			return nil, err
		}
	}
}

func (s *stream) close() {
	s.done()
	_ = s.body.Close()
}
