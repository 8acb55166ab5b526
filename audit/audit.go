// Package audit keeps an append-only record of what was done, in which any
// later edit, deletion, reordering or truncation shows.
//
// A log is a file of JSON lines. Each line names its place in the order, the
// hash of the line before it and its own hash; a small head file beside it
// names the last line, so that a log cut short at a line's end shows too.
//
//	audit.jsonl       the lines
//	audit.jsonl.head  the number and hash of the last line, signed
//	audit.jsonl.key   the secret of the hashes, made at the first start, 0600
//
// # The line
//
//	{"seq":2,"time":"…","actor":"…","action":"tool.start",…,"prev":"<64 hex>","hash":"<64 hex>"}
//
// hash is HMAC-SHA-256 over the line's bytes before `,"hash":`, keyed by the
// key file; prev is the hash of the line before it, zeros for the first. As the
// hash is over bytes and not over fields, nothing depends on how JSON is
// written again. The first line is the genesis record: it carries the format's
// number and the key's id, and its prev leaves room for a file that continues
// another.
//
// # What it proves, and what not
//
// Whoever lacks the key cannot alter a line, drop one, change the order or add
// one without [Verify] naming the first line that is wrong; nor cut off the
// end, unless they also put back an older head file. Whoever has the key (root
// on this host, or a verifier it was given to) can write a false record that
// verifies: a keyed chain is evidence against outsiders, not against the host
// itself. Copying the head file to another machine now and then narrows that to
// what happened since the last copy. The chain says nothing about what was
// never recorded.
//
// This package knows nothing of sessions, sandboxes or HTTP and imports only
// the standard library. Start reading at [Log.Append], then [Verify].
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// LineMax bounds one line of a log in bytes, its newline included. A record
// that needs more is refused with [ErrTooLong]; a longer line is damage.
const LineMax = 1 << 20

// inputTextMax bounds the input text kept in a line. JSON escapes a byte to at
// most six, so a line with the longest text still fits LineMax.
const inputTextMax = 128 << 10

// Errors of [Log.Append]. An error that is none of these comes from the file
// system; the record is then not in the log.
var (
	ErrTooLong = errors.New("audit record is longer than a line may be")
	ErrClosed  = errors.New("audit log is closed")
)

// InputMode says how much of a record's input the log keeps.
type InputMode string

const (
	// InputHash keeps the SHA-256 of the input: enough to prove later what it
	// was, without holding what it may contain. The default.
	InputHash InputMode = "hash"

	// InputText keeps the text as well, cut after 128 KiB. Tool inputs may hold
	// personal data and secrets; the file is then as sensitive as they are.
	InputText InputMode = "text"
)

// A Record is one thing that was done. Fields that do not apply stay zero and
// are left out of the line.
type Record struct {
	Actor   string // who did it: a worker's id, a user, a key's id
	Action  string // what was done: "tool.start", "tool.end"; required
	Session string // id of the session it belongs to
	Call    string // id of the tool call
	Tool    string // name of the tool

	// Input is what was asked for. Its hash is kept, and its text as the log's
	// [InputMode] says. Nil means there was none.
	Input []byte

	Start, End time.Time // when the thing itself began and ended
	Outcome    string    // what it came to: "ok", "error", "interrupted"

	// Output is what came back; its hash and size are kept, never its text. Nil
	// means there was none.
	Output []byte

	Detail string // a sentence for a person
}

// fields is a Record as it stands in a line, between time and prev.
type fields struct {
	Format      int        `json:"format,omitempty"` // genesis only
	KeyID       string     `json:"key_id,omitempty"` // genesis only
	Actor       string     `json:"actor,omitempty"`
	Action      string     `json:"action"`
	Session     string     `json:"session_id,omitempty"`
	Call        string     `json:"call_id,omitempty"`
	Tool        string     `json:"tool,omitempty"`
	InputSHA256 string     `json:"input_sha256,omitempty"`
	InputBytes  *int       `json:"input_bytes,omitempty"`
	Input       string     `json:"input,omitempty"`
	InputCut    bool       `json:"input_cut,omitempty"`
	Start       *time.Time `json:"start,omitempty"`
	End         *time.Time `json:"end,omitempty"`
	Outcome     string     `json:"outcome,omitempty"`
	OutputSHA   string     `json:"output_sha256,omitempty"`
	OutputBytes *int       `json:"output_bytes,omitempty"`
	Detail      string     `json:"detail,omitempty"`
}

// The actions this package writes itself.
const (
	actionGenesis   = "genesis"
	actionRecovered = "recovered"
)

const format = 1

// encode turns r into the inside of its JSON object, without the braces.
func (r Record) encode(mode InputMode) ([]byte, error) {
	f := fields{
		Actor:   r.Actor,
		Action:  r.Action,
		Session: r.Session,
		Call:    r.Call,
		Tool:    r.Tool,
		Outcome: r.Outcome,
		Detail:  r.Detail,
	}
	if r.Action == "" {
		return nil, errors.New("audit record has no action")
	}
	if r.Input != nil {
		f.InputSHA256, f.InputBytes = digest(r.Input)
		if mode == InputText {
			f.Input, f.InputCut = cut(string(r.Input), inputTextMax)
		}
	}
	if r.Output != nil {
		f.OutputSHA, f.OutputBytes = digest(r.Output)
	}
	if !r.Start.IsZero() {
		t := r.Start.UTC()
		f.Start = &t
	}
	if !r.End.IsZero() {
		t := r.End.UTC()
		f.End = &t
	}
	return f.encode()
}

func (f fields) encode() ([]byte, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode audit record: %w", err)
	}
	b = b[1 : len(b)-1]
	if len(b) > LineMax-lineFrame {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLong, len(b), LineMax-lineFrame)
	}
	return b, nil
}

func digest(b []byte) (sum string, size *int) {
	h := sha256.Sum256(b)
	n := len(b)
	return hex.EncodeToString(h[:]), &n
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) (string, bool) {
	if len(s) <= n {
		return s, false
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]), true
}
