package docker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frame is one of a container's output.
func frame(kind byte, content string) string {
	header := make([]byte, headerSize)
	header[0] = kind
	binary.BigEndian.PutUint32(header[4:], uint32(len(content)))
	return string(header) + content
}

func TestSplit(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long", 100_000)
	for name, c := range map[string]struct {
		stream, out, errs string
		fails             bool
	}{
		"nothing":           {},
		"both":              {stream: frame(1, "one ") + frame(2, "two") + frame(1, "three"), out: "one three", errs: "two"},
		"an empty frame":    {stream: frame(1, "") + frame(1, "x"), out: "x"},
		"a long one":        {stream: frame(1, long) + frame(2, long), out: long, errs: long},
		"another kind":      {stream: frame(1, "x") + frame(3, "y"), out: "x", fails: true},
		"half a header":     {stream: frame(1, "x") + "\x01\x00", out: "x", fails: true},
		"half a frame":      {stream: frame(1, "whole")[:10], out: "wh", fails: true},
		"no multiplexing":   {stream: "plain text of a terminal", fails: true},
		"a header and gone": {stream: frame(2, "x")[:8], fails: true},
	} {
		for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.HalfReader, iotest.OneByteReader, iotest.DataErrReader} {
			var out, errs bytes.Buffer
			err := split(wrap(strings.NewReader(c.stream)), &out, &errs)
			if (err != nil) != c.fails || out.String() != c.out || errs.String() != c.errs {
				t.Errorf("%s: %.20q, %.20q, %v", name, out.String(), errs.String(), err)
			}
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte(frame(1, "out") + frame(2, "err")))
	f.Add([]byte(frame(1, "whole")[:9]))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var out, errs bytes.Buffer
		err := split(bytes.NewReader(stream), &out, &errs)
		if out.Len()+errs.Len() > len(stream) {
			t.Errorf("%d bytes of %d", out.Len()+errs.Len(), len(stream))
		}
		if err == nil && len(stream) > 0 && out.Len()+errs.Len()+headerSize > len(stream) {
			t.Error("a frame without a header")
		}
		if err != nil && errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	})
}
