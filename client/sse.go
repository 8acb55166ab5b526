package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// frameMax bounds one frame, in bytes.
const frameMax = 64 << 20

var errFrameTooLarge = errors.New("client: a frame of the stream is too large")

// A frameReader reads the frames of a text/event-stream.
type frameReader struct {
	r *bufio.Reader
}

func newFrameReader(r io.Reader) *frameReader { return &frameReader{bufio.NewReader(r)} }

// next returns the next frame that has a name or data. A frame cut by the end of
// the stream is dropped, and the error is io.EOF.
func (f *frameReader) next() (*Frame, error) {
	var out Frame
	var data []byte
	for size := 0; ; {
		line, err := f.line(frameMax - size)
		if err != nil {
			return nil, err
		}
		size += len(line)
		if len(line) == 0 {
			if out.Name == "" && data == nil {
				out = Frame{}
				continue
			}
			out.Data = data
			return &out, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			out.Name = string(value)
		case "id":
			out.ID = string(value)
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		}
	}
}

// line returns the next line of at most limit bytes, without its end.
func (f *frameReader) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := f.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, errFrameTooLarge
		}
		if err == nil {
			return bytes.TrimRight(line, "\r\n"), nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}
