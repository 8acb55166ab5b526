package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// filterMax bounds an answer that is looked through, or one event of a stream, in bytes.
const filterMax = 16 << 20

var errFilterLong = fmt.Errorf("an answer in which tools are listed is longer than %d bytes", filterMax)

// filterMessages returns a body of JSON without the tools that may not be seen, or the
// body itself if there are none. What is no list of tools stays as it is, byte for byte.
func (r *toolRules) filterMessages(body []byte) ([]byte, error) {
	if err := checkJSON(body); err != nil {
		return nil, errors.New("an answer in which tools are listed is no JSON")
	}
	i := skipSpace(body, 0)
	switch body[i] {
	case '{':
		return r.filterMessage(body, body[i:])
	case '[':
		out, last := []byte(nil), 0
		err := elements(body[i:], func(at int, element []byte) error {
			if element[0] != '{' {
				return nil
			}
			filtered, err := r.filterMessage(element, element)
			if err != nil || len(filtered) == len(element) {
				return err
			}
			out = append(append(out, body[last:i+at]...), filtered...)
			last = i + at + len(element)
			return nil
		})
		if err != nil || last == 0 {
			return body, err
		}
		return append(out, body[last:]...), nil
	}
	return body, nil
}

// filterMessage filters one message, object, within whole.
func (r *toolRules) filterMessage(whole, object []byte) ([]byte, error) {
	var result, tools []byte
	if err := pick(object, []string{"result"}, []*[]byte{&result}); err != nil {
		return nil, fmt.Errorf("an answer of the server: %w", err)
	}
	if result == nil || result[0] != '{' {
		return whole, nil
	}
	if err := pick(result, []string{"tools"}, []*[]byte{&tools}); err != nil {
		return nil, fmt.Errorf("an answer of the server: %w", err)
	}
	if tools == nil || tools[0] != '[' {
		return whole, nil
	}
	kept := []byte{'['}
	dropped := false
	err := elements(tools, func(_ int, tool []byte) error {
		if !r.shows(tool) {
			dropped = true
			return nil
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		kept = append(kept, tool...)
		return nil
	})
	if err != nil || !dropped {
		return whole, err
	}
	at := offset(whole, tools)
	out := append([]byte(nil), whole[:at]...)
	out = append(append(out, kept...), ']')
	return append(out, whole[at+len(tools):]...), nil
}

// shows reports whether a tool of a list may be seen.
func (r *toolRules) shows(tool []byte) bool {
	if tool[0] != '{' {
		return false
	}
	var name []byte
	if pick(tool, []string{"name"}, []*[]byte{&name}) != nil {
		return false
	}
	s, ok := asString(name)
	return ok && r.allows(s)
}

// offset is where part begins in whole. Both are slices of one array up to its end.
func offset(whole, part []byte) int { return cap(whole) - cap(part) }

// An eventFilter filters a stream of server-sent events. It hands out each event as soon
// as it is whole.
type eventFilter struct {
	rules *toolRules
	buf   []byte
	seen  int  // bytes of buf that hold no end of an event
	begun bool // it is known whether the stream begins with a byte order mark
}

// byteOrderMark may begin a stream of events, and is no part of the first.
var byteOrderMark = []byte("\ufeff")

// add takes the next bytes of the stream and calls emit with each event that is whole.
func (f *eventFilter) add(p []byte, emit func([]byte) error) error {
	f.buf = append(f.buf, p...)
	if !f.begun {
		if len(f.buf) < len(byteOrderMark) && bytes.HasPrefix(byteOrderMark, f.buf) {
			return nil
		}
		f.begun, f.buf = true, bytes.TrimPrefix(f.buf, byteOrderMark)
	}
	rest := f.buf // moved once, however many events there are
	for {
		end := eventEnd(rest, f.seen)
		if end < 0 {
			break
		}
		if err := f.take(rest[:end], emit); err != nil {
			return err
		}
		rest, f.seen = rest[end:], 0
	}
	if len(rest) < len(f.buf) {
		f.buf = append(f.buf[:0], rest...)
	}
	f.seen = max(len(f.buf)-3, 0)
	if len(f.buf) > filterMax {
		return errFilterLong
	}
	return nil
}

func (f *eventFilter) take(event []byte, emit func([]byte) error) error {
	filtered, err := f.event(event)
	if err != nil {
		return err
	}
	return emit(filtered)
}

// finish is called when the stream has ended, where a last CR is the end of a line for
// certain. An event without its end is none, and is not passed on either.
func (f *eventFilter) finish(emit func([]byte) error) error {
	if n := len(f.buf); n > 0 && f.buf[n-1] == '\r' && eventEnd(append(f.buf, '\n'), 0) == n+1 {
		return f.take(f.buf, emit)
	}
	return nil
}

// eventEnd is the index after the first empty line, or -1. Lines end with LF, CR LF or
// CR. A CR at the very end may be half of a CR LF, which cannot be told yet.
func eventEnd(b []byte, from int) int {
	for i := from; i < len(b); i++ {
		n := lineEnd(b, i)
		switch {
		case n == 0:
			continue
		case n < 0:
			return -1
		case i == 0:
			return n // an empty line, and no event
		case i+n < len(b):
			if m := lineEnd(b, i+n); m > 0 {
				return i + n + m
			} else if m < 0 {
				return -1
			}
		}
		i += n - 1
	}
	return -1
}

// lineEnd is the length of the end of a line at b[i]: 0 if there is none, -1 if it cannot
// be told yet.
func lineEnd(b []byte, i int) int {
	switch b[i] {
	case '\n':
		return 1
	case '\r':
		if i+1 == len(b) {
			return -1
		}
		if b[i+1] == '\n' {
			return 2
		}
		return 1
	}
	return 0
}

var errEvent = errors.New("an event of the server begins like a message and is no JSON")

// event filters one event.
func (f *eventFilter) event(event []byte) ([]byte, error) {
	// A stream is UTF-8, and whoever reads it puts U+FFFD for what is none.
	if !utf8.Valid(event) {
		event = bytes.ToValidUTF8(event, []byte("\ufffd"))
	}
	data, lines := eventData(event)
	if !likeMessage(data) {
		return event, nil
	}
	// What cannot be read here might be read by a client that takes more for JSON.
	if checkJSON(data) != nil {
		return nil, errEvent
	}
	filtered, err := f.rules.filterMessages(data)
	if err != nil {
		return nil, err
	}
	if len(filtered) == len(data) {
		return event, nil
	}
	var out []byte
	told := false
	for _, line := range lines {
		if !isData(line) {
			out = append(append(out, line...), '\n')
		} else if !told {
			told = true
			for part := range bytes.SplitSeq(filtered, []byte{'\n'}) {
				out = append(append(append(out, "data: "...), part...), '\n')
			}
		}
	}
	return append(out, '\n'), nil
}

// likeMessage reports whether a client could read data as a message, be it careless about
// what comes before.
func likeMessage(data []byte) bool {
	data = bytes.TrimLeftFunc(data, func(r rune) bool { return r == '\ufeff' || unicode.IsSpace(r) || unicode.IsControl(r) })
	return len(data) > 0 && (data[0] == '{' || data[0] == '[')
}

// eventData returns the data of an event, and its lines without their ends.
func eventData(event []byte) (data []byte, lines [][]byte) {
	n := 0
	for i := 0; i < len(event); {
		j := i
		for j < len(event) && event[j] != '\n' && event[j] != '\r' {
			j++
		}
		line := event[i:j]
		if i = j + 1; j < len(event) && event[j] == '\r' && i < len(event) && event[i] == '\n' {
			i++
		}
		if len(line) == 0 {
			continue
		}
		lines = append(lines, line)
		if isData(line) {
			value := bytes.TrimPrefix(bytes.TrimPrefix(line, []byte("data")), []byte(":"))
			if n++; n > 1 {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(value, []byte(" "))...)
		}
	}
	return data, lines
}

func isData(line []byte) bool {
	return bytes.Equal(line, []byte("data")) || bytes.HasPrefix(line, []byte("data:"))
}
