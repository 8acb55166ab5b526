package audit

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
)

// A Filter picks records. Its zero value picks all; what is set must all apply.
type Filter struct {
	Session, Environment, Call, Request, Actor, Outcome string

	// Actions are those picked; one that ends in a dot picks all that begin so.
	Actions []string

	Since, Until time.Time // Since is in, Until is not

	// Digest picks records whose input or output has this digest; see [Key.Digest].
	Digest string
}

// Match reports whether f picks e.
func (f *Filter) Match(e *Entry) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(f.Session, e.Session) && is(f.Environment, e.Environment) && is(f.Call, e.Call) &&
		is(f.Request, e.Request) && is(f.Actor, e.Actor) && is(f.Outcome, e.Outcome) &&
		(f.Digest == "" || f.Digest == e.InputMAC || f.Digest == e.OutputMAC) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) && (f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(len(f.Actions) == 0 || slices.ContainsFunc(f.Actions, func(a string) bool {
			return a == e.Action || strings.HasSuffix(a, ".") && strings.HasPrefix(e.Action, a)
		}))
}

// Entries reads the lines of a log that f picks, in order. It checks each line's
// own hash and nothing else; [Verify] is for more. It ends at the first line that
// is none, with an error; a line that is still being written is not there yet.
func Entries(log io.Reader, f Filter) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		n, stopped := 0, false
		_, err := eachLine(log, func(line []byte) bool {
			n++
			e, problem := parseLine(line)
			if problem != "" {
				stopped = true
				yield(nil, fmt.Errorf("read audit log: line %d %s", n, problem))
				return false
			}
			if !f.Match(&e) {
				return true
			}
			e.Raw = bytes.Clone(line[:len(line)-1])
			stopped = !yield(&e, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(nil, fmt.Errorf("line %d: %w", n+1, err))
		}
	}
}
