package docker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What a stream of a container's output is made of: frames, each with a header of
// eight bytes, the first of which says what it is, and the last four, the highest
// first, how long. See the API's description of attaching to a container.
const (
	headerSize = 8

	frameOut = 1
	frameErr = 2
)

// split reads frames and writes what they hold to out and errs, until the stream ends.
// It fails if the stream does not end between two frames, or a writer does.
func split(stream io.Reader, out, errs io.Writer) error {
	var header [headerSize]byte
	buf := make([]byte, 32<<10)
	for {
		if _, err := io.ReadFull(stream, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a container's output: %w", err)
		}
		var to io.Writer
		switch header[0] {
		case frameOut:
			to = out
		case frameErr:
			to = errs
		default:
			return fmt.Errorf("read a container's output: a frame of kind %d", header[0])
		}
		for left := int(binary.BigEndian.Uint32(header[4:])); left > 0; {
			n, err := stream.Read(buf[:min(left, len(buf))])
			if n > 0 {
				left -= n
				if _, err := to.Write(buf[:n]); err != nil {
					return err
				}
			}
			if err != nil && left > 0 {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("read a container's output: %w", err)
			}
		}
	}
}
