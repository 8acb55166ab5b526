// Package tool is the built-in tools as seen from outside a box: what the model
// is told about them ([Definitions]), the frames spoken with the agent that runs
// them inside the box, and the caller's end of that conversation ([Client]).
//
// It knows nothing of sessions, permissions or how a box is made, and it does
// not link the tools themselves: those are in tool/agent, the box's end.
//
// Start reading at [Request].
package tool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// The conversation with the agent in a box: frames on its standard input and
// output, each a 4-byte big-endian length and that many bytes of JSON. Calls are
// multiplexed by Seq; the agent answers each exactly once, in any order.
//
//	worker → agent   {"seq":1,"call":{"tool":"bash","input":{…},"timeout_ms":120000}}
//	worker → agent   {"seq":1,"cancel":true}
//	agent  → worker  {"seq":0,"hello":{"version":1,"tools":["bash",…]}}   once, first
//	agent  → worker  {"seq":1,"result":{"content":[…],"is_error":false}}
//
// A shell for a person is opened by the same kind of frame, and has its bytes sent both
// ways until its exit. Each end says how many it has taken in (credit), so that no more
// than [ShellWindow] of them are ever under way:
//
//	worker → agent   {"seq":2,"shell":{"rows":24,"cols":80,"term":"xterm"}}
//	agent  ↔ worker  {"seq":2,"data":"bHMK"}   {"seq":2,"credit":65536}
//	worker → agent   {"seq":2,"resize":{"rows":50,"cols":132}}   {"seq":2,"cancel":true}
//	agent  → worker  {"seq":2,"exit":{"code":0}}
//
// The worker trusts nothing the agent says: it bounds every frame and time, and
// a broken frame ends that one box.
const (
	// FrameMax bounds one frame in bytes. It holds the largest PDF that `read`
	// returns (20 MiB, base64) with room for its envelope.
	FrameMax = 32 << 20

	// WireVersion is raised on any incompatible change of the frames.
	WireVersion = 1

	// TimeoutDefault is how long a call may take if it does not say.
	TimeoutDefault = 120 * time.Second
)

// A Request is one frame from the worker to the agent: a call, a shell to open, the
// wish to end what the same Seq began, or, for an open shell, what is typed, the
// terminal's new size, and how many bytes of output were taken in. Seq is above 0, and
// what it begins is begun once.
type Request struct {
	Seq    uint64    `json:"seq"`
	Call   *Call     `json:"call,omitempty"`
	Shell  *Terminal `json:"shell,omitempty"`
	Cancel bool      `json:"cancel,omitempty"`
	Data   []byte    `json:"data,omitempty"`
	Resize *Terminal `json:"resize,omitempty"`
	Credit int       `json:"credit,omitempty"`
}

// A Reply is one frame from the agent to the worker: the hello (Seq 0), the result of
// the call of the same Seq, or, for an open shell, output, how many bytes of input were
// taken in, and its end.
type Reply struct {
	Seq    uint64     `json:"seq"`
	Hello  *Hello     `json:"hello,omitempty"`
	Result *Result    `json:"result,omitempty"`
	Data   []byte     `json:"data,omitempty"`
	Credit int        `json:"credit,omitempty"`
	Exit   *ShellExit `json:"exit,omitempty"`
}

// A Hello is the agent's first frame: it is ready and has these tools.
type Hello struct {
	Version int      `json:"version"`
	Tools   []string `json:"tools"`
	Shells  bool     `json:"shells,omitempty"` // it can open shells
}

// A Call asks for one run of a built-in tool.
type Call struct {
	Tool  string          `json:"tool"`
	Input json.RawMessage `json:"input"`

	// TimeoutMS is when the call is cancelled, counted from its arrival at the
	// agent and so including the wait for an earlier call; 0 means
	// [TimeoutDefault]. A bash call may ask for less in its input, never for more.
	TimeoutMS int64 `json:"timeout_ms"`
}

// Timeout is TimeoutMS as a duration, with its default.
func (c Call) Timeout() time.Duration {
	// Longer than a day is a mistake, and would overflow before long.
	const max = 24 * time.Hour
	switch d := time.Duration(c.TimeoutMS) * time.Millisecond; {
	case c.TimeoutMS <= 0:
		return TimeoutDefault
	case c.TimeoutMS > max.Milliseconds():
		return max
	default:
		return d
	}
}

// A Result is what a tool call came to, in the content blocks of a
// user.tool_result event (text, image, document). A failed tool is a result,
// never a Go error.
type Result struct {
	Content []json.RawMessage `json:"content"`
	IsError bool              `json:"is_error"`

	// What the agent knows of limits that the call ran into, for the worker.
	TimedOut bool  `json:"timed_out,omitempty"` // it was ended as its time was up
	Full     *Full `json:"full,omitempty"`      // it found no space left, and this place has none
}

// Full is one of [ScratchPlaces] that is full.
type Full struct {
	Place string `json:"place"`
	Bytes int64  `json:"bytes"` // of its file system, in use or not
}

// ScratchPlaces are where a box may have file systems of its own, which go with it.
var ScratchPlaces = []string{"/", "/tmp", "/var/tmp", "/home/agent", "/dev/shm"}

// ErrFrame is in the chain of every error that a malformed frame causes.
var ErrFrame = errors.New("malformed frame")

// ReadFrame reads one frame into v. It returns io.EOF only between frames, and
// holds no more memory than what has arrived, whatever length is announced.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: the stream ended in a frame's length", ErrFrame)
		}
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > FrameMax {
		return fmt.Errorf("%w: %d bytes announced, want 1 to %d", ErrFrame, size, FrameMax)
	}
	var body bytes.Buffer
	if n, err := io.CopyN(&body, r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: the stream ended after %d of %d bytes", ErrFrame, n, size)
		}
		return err
	}
	return decode(body.Bytes(), v)
}

// decode decodes a part of a frame.
func decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

// ErrFrameSize is returned by [EncodeFrame] for a value too large for a frame.
var ErrFrameSize = fmt.Errorf("frame larger than %d bytes", FrameMax)

// EncodeFrame returns v as one frame, to be written whole.
func EncodeFrame(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > FrameMax {
		return nil, ErrFrameSize
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	return append(frame, body...), nil
}
