// Package audit keeps an append-only record of what was done, in which any
// later edit, deletion, reordering or truncation shows, and which somebody who
// trusts nothing but a public key can check.
//
// A log is a chain of JSON lines, cut into segments, each a file:
//
//	audit.jsonl             the segment being written
//	audit.jsonl.00000001…   the closed segments before it, in order
//	audit.jsonl.head        the number and hash of the last line, for the key's owner
//	audit.jsonl.checkpoint  the newest signed checkpoint: copy it elsewhere
//	audit.jsonl.pub         the public key of the checkpoints: give it to auditors
//	audit.jsonl.sign        its private half, 0600
//	audit.jsonl.key         the secret of the MACs, 0600
//	audit.jsonl.key.<id>    one that the log had before, if its keys were changed
//	audit.jsonl.lock        held by the process that writes
//
// # The line
//
//	{"seq":2,"time":"…","actor":"…","action":"tool.start",…,"prev":"<hash>","hash":"<hash>","mac":"<mac>"}
//
// hash is SHA-256 over the line's bytes before `,"hash":`; prev is the hash of the
// line before it, zeros for the first; mac is HMAC-SHA-256 over the hash, keyed by
// the key file. As the hash is over bytes and not over fields, nothing depends on
// how JSON is written again. Times are those of the host that writes.
//
// Each segment begins with a line of action "audit.segment", which names the log,
// the format and the keys and repeats the holds and removals in force, so that a
// segment explains itself when those before it are gone. Every so many records
// or seconds, and at the end, a line of action "audit.checkpoint" signs the
// count and the hash of all lines before it with Ed25519.
//
// # What it proves, and what not
//
//   - Whoever has no key cannot alter, drop, move or add a line without
//     [Verify] naming the first that is wrong; nor cut off the end, unless they
//     also put back an older head file. With the key each line proves itself.
//   - Whoever has only the public key proves every line up to the last
//     checkpoint. The lines after it are chained but not signed yet.
//   - Whoever has the MAC key (a verifier it was given to) can write lines that
//     verify with that key after the last checkpoint, and none before it.
//   - Whoever has both secrets (root on this host) can write anything. What
//     binds them is what has left the host: a checkpoint held elsewhere, or a
//     second sink. History up to that checkpoint can then neither be changed nor
//     cut without showing.
//   - Times are this host's. A checkpoint that was received elsewhere bounds
//     them from above; lines whose time goes backwards are counted.
//   - The chain says nothing about what was never recorded. That everything is
//     recorded first is the business of those who call [Log.Append] and take its
//     error for a refusal.
//
// # What it keeps
//
// Only actions of the [Catalogue], each with what it must carry. Inputs and
// outputs are kept as keyed digests: equal values can be found by whoever has the
// key, others cannot guess at them, and without the key they say nothing, which is
// how a value is erased. Text that looks like a credential is replaced likewise.
//
// This package knows nothing of sessions, sandboxes or HTTP and imports only the
// standard library, so that what verifies is small; package audit/sink has the
// second places. Start reading at [Log.Append], then [Verify].
package audit

import (
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

// attrsMax bounds how many attributes a record has.
const attrsMax = 32

// Errors of [Log.Append].
var (
	ErrTooLong = errors.New("audit record is longer than a line may be")
	ErrClosed  = errors.New("audit log is closed")
	ErrInUse   = errors.New("is in use by another process")
)

// InputMode says how much of a record's input the log keeps.
type InputMode string

const (
	// InputHash keeps a keyed digest of the input: enough for the key's owner to
	// prove later what it was, without holding what it may contain. The default.
	InputHash InputMode = "hash"

	// InputText keeps the text as well, cut after 128 KiB and without what looks
	// like a credential. Tool inputs may hold personal data; the file is then as
	// sensitive as they are.
	InputText InputMode = "text"
)

// A Record is one thing that was done, is about to be done, or was refused.
// Fields that do not apply stay zero and are left out of the line. What each
// action must carry is in the [Catalogue].
type Record struct {
	Actor       string // who did it: a key's id, a worker's id, a user of the host
	Action      string // one of the catalogue's
	Request     string // id of the API request it belongs to
	Environment string // id of the environment
	Session     string // id of the session
	Call        string // id of the tool call
	Tool        string // name of the tool

	// Attrs are what else the action carries, by names of lower-case letters,
	// digits and underscores; at most 32.
	Attrs map[string]string

	// Input is what was asked for. A keyed digest of it is kept, and its text as
	// the log's [InputMode] says. Nil means there was none.
	Input []byte

	Start, End time.Time // when the thing itself began and ended
	Outcome    string    // what it came to: "ok", "error", "refused", "interrupted", …

	// Output is what came back; a keyed digest and its size are kept, never its
	// text. Nil means there was none.
	Output []byte

	Detail string // a sentence for a person
}

// Fields is what stands in a line between its time and prev.
type Fields struct {
	Actor       string            `json:"actor,omitempty"`
	Action      string            `json:"action"`
	Request     string            `json:"request_id,omitempty"`
	Environment string            `json:"environment_id,omitempty"`
	Session     string            `json:"session_id,omitempty"`
	Call        string            `json:"call_id,omitempty"`
	Tool        string            `json:"tool,omitempty"`
	Attrs       map[string]string `json:"attrs,omitempty"` // encoded in order of names
	InputMAC    string            `json:"input_mac,omitempty"`
	InputBytes  *int              `json:"input_bytes,omitempty"`
	Input       string            `json:"input,omitempty"`
	InputCut    bool              `json:"input_cut,omitempty"`
	Start       *time.Time        `json:"start,omitempty"`
	End         *time.Time        `json:"end,omitempty"`
	Outcome     string            `json:"outcome,omitempty"`
	OutputMAC   string            `json:"output_mac,omitempty"`
	OutputBytes *int              `json:"output_bytes,omitempty"`
	Detail      string            `json:"detail,omitempty"`

	// The log's own lines.
	Segment    *Segment    `json:"segment,omitempty"`
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
	Hold       *Hold       `json:"hold,omitempty"`
	Removed    *Removed    `json:"removed,omitempty"`
	Rekey      *Rekey      `json:"rekey,omitempty"`
}

// encode turns r into the inside of its JSON object, without the braces.
func (r Record) encode(k Key, mode InputMode) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	mask := masker{k}
	f := Fields{
		Actor:       mask.text(r.Actor),
		Action:      r.Action,
		Request:     mask.text(r.Request),
		Environment: mask.text(r.Environment),
		Session:     mask.text(r.Session),
		Call:        mask.text(r.Call),
		Tool:        mask.text(r.Tool),
		Outcome:     mask.text(r.Outcome),
		Detail:      mask.text(r.Detail),
	}
	if len(r.Attrs) > 0 {
		f.Attrs = make(map[string]string, len(r.Attrs))
		for name, value := range r.Attrs {
			f.Attrs[name] = mask.named(name, value)
		}
	}
	if r.Input != nil {
		f.InputMAC, f.InputBytes = k.digest(r.Input)
		if mode == InputText {
			// Masked before it is cut: half a credential is not recognised as one.
			text := string(r.Input)
			if head, long := cut(text, 4*inputTextMax); long {
				text = head
			}
			f.Input, f.InputCut = cut(mask.text(text), inputTextMax)
			f.InputCut = f.InputCut || len(text) < len(r.Input)
		}
	}
	if r.Output != nil {
		f.OutputMAC, f.OutputBytes = k.digest(r.Output)
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

// check holds r to the catalogue.
func (r *Record) check() error {
	kind, ok := catalogue[r.Action]
	if !ok || kind.Own {
		return fmt.Errorf("audit action %q is not in the catalogue", r.Action)
	}
	for _, name := range kind.Must {
		if !r.carries(name) {
			return fmt.Errorf("audit record of action %s has no %s", r.Action, name)
		}
	}
	if len(r.Attrs) > attrsMax {
		return fmt.Errorf("audit record of action %s has %d attributes, limit %d", r.Action, len(r.Attrs), attrsMax)
	}
	for name := range r.Attrs {
		if !attrName(name) {
			return fmt.Errorf("audit record of action %s: %q is not the name of an attribute", r.Action, name)
		}
	}
	return nil
}

// carries reports whether r has what the catalogue calls name.
func (r *Record) carries(name string) bool {
	switch name {
	case "actor":
		return r.Actor != ""
	case "request_id":
		return r.Request != ""
	case "environment_id":
		return r.Environment != ""
	case "session_id":
		return r.Session != ""
	case "call_id":
		return r.Call != ""
	case "tool":
		return r.Tool != ""
	case "outcome":
		return r.Outcome != ""
	case "detail":
		return r.Detail != ""
	case "input":
		return r.Input != nil
	case "start":
		return !r.Start.IsZero()
	case "end":
		return !r.End.IsZero()
	}
	return r.Attrs[name] != ""
}

func attrName(name string) bool {
	return name != "" && len(name) <= 40 && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_'
	})
}

func (f Fields) encode() ([]byte, error) {
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

// catalogue is [Catalogue] by action.
var catalogue = func() map[string]Kind {
	m := make(map[string]Kind, len(Catalogue))
	for _, k := range Catalogue {
		m[k.Action] = k
	}
	return m
}()
