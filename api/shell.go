package api

import "time"

// A Shell is a person's live shell in the box of a session. Shells are an extension:
// a worker that knows nothing of them is never told of one.
type Shell struct {
	ID        ShellID   `json:"id"`
	Type      string    `json:"type"` // "shell"
	SessionID SessionID `json:"session_id"`
	OpenedBy  KeyID     `json:"opened_by"`
	CreatedAt time.Time `json:"created_at"`
	ShellSize
}

// A ShellSize is the size of a terminal.
type ShellSize struct {
	Columns int `json:"columns"`
	Rows    int `json:"rows"`
}

// ShellSizeMax bounds both sides of a terminal, in characters.
const ShellSizeMax = 1000

// Check refuses what is no size of a terminal.
func (s ShellSize) Check() error {
	if s.Columns < 1 || s.Columns > ShellSizeMax {
		return Invalid("columns: must be 1 to %d", ShellSizeMax)
	}
	if s.Rows < 1 || s.Rows > ShellSizeMax {
		return Invalid("rows: must be 1 to %d", ShellSizeMax)
	}
	return nil
}

// A ShellFrame is one message between a person's terminal and a box, either way: bytes
// of the terminal, or a note about it. On the wire the one is a binary WebSocket
// message and the other a text message.
type ShellFrame struct {
	Data []byte // at most ShellDataMax bytes
	Note *ShellNote
}

// ShellDataMax bounds the terminal's bytes in one frame.
const ShellDataMax = 32 << 10

// A ShellNote is what is said besides the bytes of the terminal.
type ShellNote struct {
	Type   string     `json:"type"`
	Size   *ShellSize `json:"size,omitempty"`
	Code   int        `json:"code,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// The types of a [ShellNote].
const (
	ShellResize = "resize" // from the person: the terminal has another size
	ShellExit   = "exit"   // from the box, the last frame: how the shell ended
)

// ShellCodeNone is the code of a shell that did not end by itself; the reason says
// why it ended.
const ShellCodeNone = -1

// ShellProtocol is the WebSocket subprotocol of frames.
const ShellProtocol = "bailey-shell-1"

// ShellPollMax is how long a worker may wait for a shell to serve.
const ShellPollMax = 30 * time.Second
