package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Hold keeps records from being removed, whatever their age: all segments that
// hold a record of one of its sessions, overlap its time, or are named. A hold
// that names nothing holds everything.
type Hold struct {
	ID       string    `json:"id"`
	Reason   string    `json:"reason,omitempty"`
	Sessions []string  `json:"sessions,omitempty"`
	From     time.Time `json:"from,omitzero"`
	To       time.Time `json:"to,omitzero"`
	Segments []int     `json:"segments,omitempty"`
}

// The limits of holds: all of them fit into one line.
const (
	holdsMax      = 100
	holdItemsMax  = 50
	holdReasonMax = 500
	holdIDMax     = 100
	removedMax    = 500 // stretches of removed segments between held ones
)

// Check refuses a hold that cannot be meant.
func (h *Hold) Check() error {
	switch {
	case !plain(h.ID, "._-"):
		return fmt.Errorf("hold id %.40q: must be letters, digits, dots, dashes and underscores, at most %d", h.ID, holdIDMax)
	case len(h.Reason) > holdReasonMax:
		return fmt.Errorf("hold reason: at most %d bytes", holdReasonMax)
	case len(h.Sessions) > holdItemsMax || len(h.Segments) > holdItemsMax:
		return fmt.Errorf("a hold has at most %d sessions and %d segments", holdItemsMax, holdItemsMax)
	case !h.From.IsZero() && !h.To.IsZero() && !h.From.Before(h.To):
		return errors.New("a hold's time ends before it begins")
	}
	for _, s := range h.Sessions {
		if !plain(s, "_-") {
			return fmt.Errorf("session id %.40q: must be letters, digits, dashes and underscores, at most %d", s, holdIDMax)
		}
	}
	return nil
}

func plain(s, also string) bool {
	return s != "" && len(s) <= holdIDMax && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(also, c)
	})
}

// covers reports whether h holds a segment. It reads the segment for a session.
func (h *Hold) covers(s closedSegment) (bool, error) {
	timed := !h.From.IsZero() || !h.To.IsZero()
	if !timed && len(h.Sessions) == 0 && len(h.Segments) == 0 {
		return true, nil
	}
	if slices.Contains(h.Segments, s.number) {
		return true, nil
	}
	if timed && (h.From.IsZero() || !s.to.Before(h.From)) && (h.To.IsZero() || s.from.Before(h.To)) {
		return true, nil
	}
	if len(h.Sessions) == 0 {
		return false, nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	held := false
	_, err = eachLine(f, func(line []byte) bool {
		// Wherever it stands, be it in an attribute or an input that was kept.
		held = slices.ContainsFunc(h.Sessions, func(id string) bool { return bytes.Contains(line, []byte(id)) })
		return !held
	})
	return held, err
}

// withHold and withoutHold copy, as segments keep what was in force.
func withHold(holds []Hold, h Hold) []Hold { return append(withoutHold(holds, h.ID), h) }

func withoutHold(holds []Hold, id string) []Hold {
	return slices.DeleteFunc(slices.Clone(holds), func(h Hold) bool { return h.ID == id })
}

// Hold places a hold, or replaces the one with the same id.
func (l *Log) Hold(actor string, h Hold) error {
	if err := h.Check(); err != nil {
		return err
	}
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	holds := withHold(l.holds, h)
	if len(holds) > holdsMax {
		return fmt.Errorf("an audit log has at most %d holds: release one first", holdsMax)
	}
	return l.rule(Fields{Actor: actor, Action: logHold, Hold: &h}, holds)
}

// Release lifts a hold.
func (l *Log) Release(actor, id, reason string) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	holds := withoutHold(l.holds, id)
	if len(holds) == len(l.holds) {
		return fmt.Errorf("there is no hold %q", id)
	}
	return l.rule(Fields{Actor: actor, Action: logRelease, Detail: reason, Hold: &Hold{ID: id}}, holds)
}

// rule records a change of the holds and makes it. The caller holds commitMu.
func (l *Log) rule(f Fields, holds []Hold) error {
	if l.failed != nil {
		return l.failed
	}
	mask := masker{l.key}
	f.Actor, f.Detail, f.Hold.Reason = mask.text(f.Actor), mask.text(f.Detail), mask.text(f.Hold.Reason)
	c := l.chain()
	if err := c.addOwn(l.Clock(), f); err != nil {
		return err
	}
	if err := l.store(c); err != nil {
		return err
	}
	l.holds = holds
	l.holding++
	return l.settle()
}

// removeOld removes the segments that are old enough and not held.
func (l *Log) removeOld() {
	l.commitMu.Lock()
	closed, holds, holding, failed := l.closed, l.holds, l.holding, l.failed
	before := l.Clock().Add(-l.Retain)
	l.commitMu.Unlock()
	if failed != nil {
		return
	}
	for _, s := range closed {
		if !s.to.Before(before) {
			return
		}
		// Read without the lock: a closed segment does not change.
		held, err := isHeld(s, holds)
		if err == nil && !held {
			err = l.remove(s, holding)
		}
		if err != nil {
			l.Logger.Error("old audit segment not removed", "segment", s.number, "error", err)
			return
		}
	}
}

func isHeld(s closedSegment, holds []Hold) (bool, error) {
	for _, h := range holds {
		if held, err := h.covers(s); held || err != nil {
			return held, err
		}
	}
	return false, nil
}

// remove removes a segment once the log says so, unless the holds changed.
func (l *Log) remove(s closedSegment, holding int) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	switch {
	case l.failed != nil:
		return l.failed
	case l.holding != holding:
		return nil // looked at again next time
	case len(l.removed) >= removedMax:
		return fmt.Errorf("there are %d gaps between held segments, which is the limit: release a hold", removedMax)
	}
	r := Removed{
		Log: l.segment.Log, FirstSegment: s.number, LastSegment: s.number, First: s.first, Last: s.last,
		Prev: s.prev, Hash: s.hash, From: s.from.UTC(), To: s.to.UTC(), Bytes: s.bytes, Rule: "older than " + l.Retain.String(),
	}
	r.Signature = l.signer.sign(r.Text())
	c := l.chain()
	if err := c.addOwn(l.Clock(), Fields{Action: logRemoved, Removed: &r}); err != nil {
		return err
	}
	if err := l.store(c); err != nil {
		return err
	}
	if err := l.settle(); err != nil {
		return err // the removal is on record, and finished at the next start
	}
	// A crash here leaves a segment that the log says is removed: the next start
	// finishes it.
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.Logger.Info("old audit segment removed", "segment", s.number, "records", s.last-s.first+1, "to", s.to)
	l.closed = slices.DeleteFunc(slices.Clone(l.closed), func(c closedSegment) bool { return c.number == s.number })
	l.removed = l.resign(mergeRemoved(l.removed, r))
	return syncDir(filepath.Dir(l.path))
}

// mergeRemoved adds removals to a list, joining what follows from each other.
func mergeRemoved(list []Removed, more ...Removed) []Removed {
	all := slices.SortedFunc(slices.Values(slices.Concat(list, more)), func(a, b Removed) int {
		if a.First != b.First {
			return int(int64(a.First) - int64(b.First))
		}
		return int(int64(b.Last) - int64(a.Last))
	})
	var out []Removed
	for _, r := range all {
		n := len(out)
		switch {
		case n > 0 && r.Last <= out[n-1].Last:
			continue // part of it
		case n > 0:
			if joined, ok := out[n-1].join(r); ok {
				joined.Signature = nil
				out[n-1] = joined
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// resign signs what mergeRemoved joined.
func (l *Log) resign(list []Removed) []Removed {
	for i := range list {
		if list[i].Signature == nil {
			list[i].Signature = l.signer.sign(list[i].Text())
		}
	}
	return list
}

// finishRemovals removes the segments that a crash left although the log says
// that they are removed.
func (l *Log) finishRemovals() error {
	l.removed = l.resign(l.removed)
	for _, s := range slices.Clone(l.closed) {
		gone := slices.ContainsFunc(l.removed, func(r Removed) bool {
			return r.First <= s.first && s.last <= r.Last && r.FirstSegment <= s.number && s.number <= r.LastSegment
		})
		if !gone {
			continue
		}
		if err := os.Remove(s.path); err != nil {
			return fmt.Errorf("remove old audit segment: %w", err)
		}
		l.closed = slices.DeleteFunc(slices.Clone(l.closed), func(c closedSegment) bool { return c.number == s.number })
	}
	return nil
}
