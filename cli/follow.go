package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A followRequest says what of a session to show.
type followRequest struct {
	session api.SessionID
	json    bool        // a line of JSON an event, instead of a timeline
	onlyNew bool        // leave out what happened before
	since   api.EventID // leave out what stands before this event
	until   *turnEnd    // where to end; nil for never
}

// timeline returns a timeline of a session on standard output.
func (p *Program) timeline(id api.SessionID) *timeline {
	t := newTimeline(p.Stdout, p.styleOf(p.Stdout), isTerminal(p.Stdout))
	t.self = id
	return t
}

// livePreviews are what a timeline can show while it is made.
var livePreviews = []api.EventType{api.EvAgentMessage, api.EvAgentThinking}

// follow shows a session until it is deleted, its turn is done if that is asked
// for, or ctx ends, which is how a person ends it and no error.
func (p *Program) follow(ctx context.Context, cl *client.Client, r followRequest) error {
	o := client.FollowOptions{After: client.FromStart}
	if r.onlyNew {
		o.After = ""
	}
	t := p.timeline(r.session)
	if !r.json && t.live {
		o.Previews = livePreviews
	}
	shown := r.since == ""
	for f, err := range cl.Follow(ctx, r.session, o) {
		if err != nil {
			if ctx.Err() != nil && r.until == nil {
				return nil
			}
			return err
		}
		if !shown {
			id, _ := identity(f)
			shown = id == r.since
		}
		if shown && r.json {
			if err := printLine(p.Stdout, f.Data); err != nil {
				return err
			}
		} else if shown {
			t.frame(f)
		}
		if r.until != nil && r.until.reached(f) {
			return r.until.failure()
		}
	}
	return nil
}

func printLine(w io.Writer, data json.RawMessage) error {
	var line bytes.Buffer
	if err := json.Compact(&line, data); err != nil {
		return fmt.Errorf("an event from the server: %w", err)
	}
	line.WriteByte('\n')
	_, err := w.Write(cleanJSON(line.Bytes()))
	return err
}

// frame prints an event or a preview. What this program does not know is left out.
func (t *timeline) frame(f *client.Frame) {
	switch f.Name {
	case "event_start":
		var p api.PreviewStart
		if json.Unmarshal(f.Data, &p) == nil {
			t.previewStart(p.Event)
		}
	case "event_delta":
		var p api.PreviewDelta
		if json.Unmarshal(f.Data, &p) == nil {
			t.previewText(p.EventID, api.Content{p.Delta.Content}.Text())
		}
	default:
		if e, err := f.Event(); err == nil {
			t.event(e)
		}
	}
}

// A turnEnd watches a stream for the rest that follows an event. Waiting for a
// worker, a client or a person is no rest.
type turnEnd struct {
	mark  api.EventID // "" is before everything
	fresh bool        // only a rest that begins after the mark counts

	past    bool // the mark has gone by
	resting bool
	reason  string // why it rests
}

// failure is not nil when the turn ended for want of an answer.
func (e *turnEnd) failure() error {
	if e.reason == api.StopRetriesExhausted {
		return &turnFailed{e.reason}
	}
	return nil
}

// reached reports whether the session rests after f.
func (e *turnEnd) reached(f *client.Frame) bool {
	switch api.EventType(f.Name) {
	case api.EvSessionStatusTerminated, api.EvSessionDeleted:
		return true
	case api.EvSessionStatusRunning, api.EvSessionStatusResched:
		e.resting = false
	case api.EvSessionStatusIdle:
		if ev, err := f.Event(); err == nil {
			if idle, ok := ev.Body.(*api.SessionStatusIdle); ok {
				e.reason = idle.StopReason.Type
				e.resting = e.reason != api.StopRequiresAction
			}
		}
	}
	if !e.past && e.mark != "" {
		// A queued event does not count until a turn has taken it.
		if id, processed := identity(f); id == e.mark && processed {
			e.past = true
			e.resting = e.resting && !e.fresh
		}
	}
	return e.resting && (e.past || e.mark == "")
}

// identity returns an event's id, and whether it is processed; "" for a preview.
func identity(f *client.Frame) (id api.EventID, processed bool) {
	var head struct {
		ID          api.EventID `json:"id"`
		ProcessedAt *string     `json:"processed_at"`
	}
	if json.Unmarshal(f.Data, &head) != nil {
		return "", false
	}
	return head.ID, head.ProcessedAt != nil
}

// newest returns the id of a session's newest event, "" if it has none.
func newest(ctx context.Context, cl *client.Client, id api.SessionID) (api.EventID, error) {
	o := client.EventOptions{ListOptions: client.ListOptions{PageSize: 1}, Filter: api.EventFilter{Order: api.Descending}}
	for f, err := range cl.Events(ctx, id, o) {
		if err != nil {
			return "", err
		}
		last, _ := identity(f)
		return last, nil
	}
	return "", nil
}
