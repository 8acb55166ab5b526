package e2e

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A watch follows a session from its first event and keeps all that comes. It
// finds its way back to a plane that was restarted.
type watch struct {
	t  testing.TB
	p  *plane
	id api.SessionID

	next int // where until looks next; owned by the test

	mu      sync.Mutex
	events  []*api.Event
	err     error // why no more come
	changed chan struct{}
}

// watch begins to follow a session; the end of the test ends it.
func (p *plane) watch(t testing.TB, id api.SessionID) *watch {
	t.Helper()
	w := &watch{t: t, p: p, id: id, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for frame, err := range p.client.Follow(ctx, id, client.FollowOptions{After: client.FromStart}) {
			w.note(frame, err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			for _, ev := range w.all() {
				line, _ := json.Marshal(ev)
				t.Logf("%s: %.600s", id, line)
			}
		}
	})
	return w
}

func (w *watch) note(frame *client.Frame, err error) {
	var ev *api.Event
	if err == nil {
		ev, err = frame.Event()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.err = err
	} else {
		w.events = append(w.events, ev)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// all returns what came so far, queued events and their later selves included.
func (w *watch) all() []*api.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.events[:len(w.events):len(w.events)]
}

// until waits for the first event that is right, after those that earlier calls
// of until have passed.
func (w *watch) until(what string, right func(*api.Event) bool) *api.Event {
	w.t.Helper()
	ctx := within(w.t)
	for {
		w.mu.Lock()
		events, err, changed := w.events, w.err, w.changed
		w.mu.Unlock()
		for w.next < len(events) {
			ev := events[w.next]
			w.next++
			if right(ev) {
				return ev
			}
		}
		if err != nil {
			w.t.Fatalf("following %s for %s: %v", w.id, what, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatalf("%s: no %s after %d events", w.id, what, len(events))
		}
	}
}

// untilType waits for an event of a type.
func (w *watch) untilType(typ api.EventType) *api.Event {
	w.t.Helper()
	return w.until(string(typ), func(ev *api.Event) bool { return ev.Type() == typ })
}

// untilIdle waits until the session rests for a reason.
func (w *watch) untilIdle(reason string) *api.SessionStatusIdle {
	w.t.Helper()
	var idle *api.SessionStatusIdle
	w.until("idle "+reason, func(ev *api.Event) bool {
		b, ok := ev.Body.(*api.SessionStatusIdle)
		if ok && b.StopReason.Type == reason {
			idle = b
			return true
		}
		// A session that ends otherwise will not come to this rest.
		if ok && b.StopReason.Type != api.StopRequiresAction {
			w.t.Fatalf("%s is idle because of %s, not %s", w.id, b.StopReason.Type, reason)
		}
		return false
	})
	return idle
}

// finished waits for end_turn and checks the whole session.
func (w *watch) finished() []*api.Event {
	w.t.Helper()
	w.untilIdle(api.StopEndTurn)
	return w.check()
}

// check reads a resting session anew and checks all that must hold of any session.
// It returns the events as listed.
func (w *watch) check() []*api.Event {
	w.t.Helper()
	t, events := w.t, w.p.events(w.t, w.id)
	checkEvents(t, events)

	// The stream showed the same events: each once, or twice if it was queued.
	streamed := map[api.EventID]*api.Event{}
	for _, ev := range w.all() {
		if old := streamed[ev.ID]; old != nil && (old.ProcessedAt != nil || ev.ProcessedAt == nil) {
			t.Errorf("the stream repeats %s %s", ev.Type(), ev.ID)
		}
		streamed[ev.ID] = ev
	}
	for _, ev := range events {
		if diff := cmp.Diff(ev, streamed[ev.ID]); diff != "" {
			t.Errorf("the list and the stream differ in %s %s (-list +stream):\n%s", ev.Type(), ev.ID, diff)
		}
		delete(streamed, ev.ID)
	}
	for id, ev := range streamed {
		t.Errorf("the stream showed %s %s, which is not in the list", ev.Type(), id)
	}

	s, err := w.p.client.GetSession(within(t), w.id)
	if err != nil {
		t.Fatal(err)
	}
	if s.Status != api.StatusIdle {
		t.Errorf("the session is %s", s.Status)
	}
	return events
}

// events lists a session's events.
func (p *plane) events(t testing.TB, id api.SessionID) []*api.Event {
	t.Helper()
	var events []*api.Event
	// Small pages, so that the cursor is used.
	for frame, err := range p.client.Events(within(t), id, client.EventOptions{ListOptions: client.ListOptions{PageSize: 7}}) {
		if err != nil {
			t.Fatal(err)
		}
		ev, err := frame.Event()
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, ev)
	}
	return events
}

// checkEvents checks what holds of the history of every session that rests.
func checkEvents(t testing.TB, events []*api.Event) {
	t.Helper()
	seen := map[api.EventID]bool{}
	results := map[api.EventID]int{} // by call
	spans := map[api.EventID]int{}   // ends by start
	for i, ev := range events {
		if seen[ev.ID] {
			t.Errorf("%s %s is listed twice", ev.Type(), ev.ID)
		}
		seen[ev.ID] = true
		if ev.ProcessedAt == nil {
			t.Errorf("%s %s is not processed, though the session rests", ev.Type(), ev.ID)
		} else if i > 0 && events[i-1].ProcessedAt != nil && ev.ProcessedAt.Before(*events[i-1].ProcessedAt) {
			t.Errorf("%s %s is older than the event before it", ev.Type(), ev.ID)
		}
		answer := func(call api.EventID) {
			if n, ok := results[call]; !ok {
				t.Errorf("%s %s answers %s, which is no call before it", ev.Type(), ev.ID, call)
			} else {
				results[call] = n + 1
			}
		}
		switch b := ev.Body.(type) {
		case *api.AgentToolUse, *api.AgentCustomToolUse:
			results[ev.ID] = 0
		case *api.UserToolResult:
			answer(b.ToolUseID)
		case *api.UserCustomToolResult:
			answer(b.CustomToolUseID)
		case *api.AgentToolResult:
			answer(b.ToolUseID)
		case *api.SpanModelRequestStart:
			spans[ev.ID] = 0
		case *api.SpanModelRequestEnd:
			spans[b.ModelRequestStartID]++
		case *api.SessionStatusIdle:
			if i < 2 || events[i-1].Type() != api.EvSessionUsage || events[i-2].Type() != api.EvThreadStatusIdle {
				t.Errorf("%s %s does not follow thread_status_idle and usage", ev.Type(), ev.ID)
			}
		}
	}
	for id, n := range results {
		if n != 1 {
			t.Errorf("call %s has %d results", id, n)
		}
	}
	for id, n := range spans {
		if n != 1 {
			t.Errorf("model request %s has %d ends", id, n)
		}
	}
	if n := len(events); n == 0 || events[n-1].Type() != api.EvSessionStatusIdle {
		t.Error("the last event is not session.status_idle")
	}
}

// outcome is what a session came to: what the agent said, and the results of its
// calls in order.
type outcome struct {
	said    []string
	results []result
}

type result struct {
	text   string
	failed bool
}

func outcomeOf(events []*api.Event) outcome {
	var o outcome
	add := func(c api.Content, failed *bool) {
		o.results = append(o.results, result{c.Text(), failed != nil && *failed})
	}
	for _, ev := range events {
		switch b := ev.Body.(type) {
		case *api.AgentMessage:
			o.said = append(o.said, b.Content.Text())
		case *api.UserToolResult:
			add(b.Content, b.IsError)
		case *api.UserCustomToolResult:
			add(b.Content, b.IsError)
		case *api.AgentToolResult:
			add(b.Content, b.IsError)
		}
	}
	return o
}
