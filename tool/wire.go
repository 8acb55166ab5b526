package tool

import "encoding/json"

// The conversation with the agent in a box: frames on its standard input and
// output, each a 4-byte big-endian length and that many bytes of JSON. Calls are
// multiplexed by Seq; the agent answers each exactly once, in any order.
//
//	worker → agent   {"seq":1,"call":{"tool":"bash","input":{…},"timeout_ms":120000}}
//	worker → agent   {"seq":1,"cancel":true}
//	agent  → worker  {"seq":0,"hello":{"version":1,"tools":["bash",…]}}   once, first
//	agent  → worker  {"seq":1,"result":{"content":[…],"is_error":false}}
//
// The worker trusts nothing the agent says: it bounds every frame and time, and
// a broken frame ends that one box.
const (
	// FrameMax bounds one frame in bytes. It holds the largest PDF that `read`
	// returns (20 MiB, base64) with room for its envelope.
	FrameMax = 32 << 20

	// WireVersion is raised on any incompatible change of the frames.
	WireVersion = 1
)

type request struct {
	Seq    uint64 `json:"seq"`
	Call   *Call  `json:"call,omitempty"`
	Cancel bool   `json:"cancel,omitempty"`
}

type reply struct {
	Seq    uint64  `json:"seq"`
	Hello  *hello  `json:"hello,omitempty"`
	Result *Result `json:"result,omitempty"`
}

type hello struct {
	Version int      `json:"version"`
	Tools   []string `json:"tools"`
}

// A Call asks for one run of a built-in tool.
type Call struct {
	Tool      string          `json:"tool"`
	Input     json.RawMessage `json:"input"`
	TimeoutMS int64           `json:"timeout_ms"` // the call is cancelled after this; 0 means 120 000
}

// A Result is what a tool call came to, in the content blocks of a
// user.tool_result event (text, image, document). A failed tool is a result,
// never a Go error.
type Result struct {
	Content []json.RawMessage `json:"content"`
	IsError bool              `json:"is_error"`
}
