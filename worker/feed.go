package worker

import (
	"context"
	"fmt"
	"time"
)

// news is what feed tells a session, in order.
type news struct {
	kind    newsKind
	history []event // newsHistory: all events so far, the oldest first
	event   event   // newsEvent
	err     error   // newsEnd
}

type newsKind int

const (
	newsHistory newsKind = iota // connected; events from here on follow without a gap
	newsEvent
	newsCut // disconnected; nothing is known until the next newsHistory
	newsEnd // there will be no more, for the reason in err
)

const (
	reconnectMin = 500 * time.Millisecond
	reconnectMax = 10 * time.Second
	streamProven = 5 * time.Second // a stream that lasted this long was a good one
	historyMax   = 1_000_000       // events of one session's history
)

// feed follows a session until ctx ends or the plane says there is nothing to
// follow. On each connection it opens the stream first and reads the history
// second, so that an event is in one of the two whatever the timing; where they
// overlap the session sees an event twice.
func (s *session) feed(ctx context.Context, out chan<- news) {
	tell := func(n news) bool {
		select {
		case out <- n:
			return true
		case <-ctx.Done():
			return false
		}
	}
	retry := backoff{min: reconnectMin, max: reconnectMax}
	refused := 0
	for {
		connected, err := s.follow(ctx, tell)
		if ctx.Err() != nil {
			return
		}
		// A plane may be behind itself for a moment, or a key in rotation.
		if unauthorized(err) || gone(err) {
			refused++
		} else {
			refused = 0
		}
		if final(err) && !gone(err) || refused > authBlips {
			tell(news{kind: newsEnd, err: err})
			return
		}
		if !tell(news{kind: newsCut}) {
			return
		}
		if connected > streamProven {
			retry.reset()
		}
		wait := max(retry.next(), retryAfter(err))
		s.log.Info("event stream ended; connecting again", "error", err, "wait", wait)
		s.metrics.reconnects.Inc()
		if !sleep(ctx, wait) {
			return
		}
	}
}

// follow makes one connection and reads it to its end. It returns how long the
// live stream lasted.
func (s *session) follow(ctx context.Context, tell func(news) bool) (connected time.Duration, err error) {
	stream, err := s.plane.stream(ctx, s.cred, s.id)
	if err != nil {
		return 0, err
	}
	defer stream.close()
	// A history that cannot be read whole is no history: acting on a part of it
	// could run a call that the rest says was answered.
	history, err := s.history(ctx)
	if err != nil {
		return 0, err
	}
	if !tell(news{kind: newsHistory, history: history}) {
		return 0, ctx.Err()
	}
	began := time.Now()
	for {
		name, data, err := stream.next()
		if err != nil {
			return time.Since(began), err
		}
		switch name {
		case "ping":
			continue
		case "error":
			return time.Since(began), fmt.Errorf("the plane ended the stream: %.300s", data)
		}
		ev, err := decodeEvent(data)
		if err != nil {
			s.log.Warn("event ignored", "error", err)
			continue
		}
		if !tell(news{kind: newsEvent, event: ev}) {
			return time.Since(began), ctx.Err()
		}
	}
}

// history reads all events so far.
func (s *session) history(ctx context.Context) ([]event, error) {
	var events []event
	cursor := ""
	for {
		page, next, err := s.plane.history(ctx, s.cred, s.id, cursor)
		if err != nil {
			return nil, err
		}
		for _, raw := range page {
			ev, err := decodeEvent(raw)
			if err != nil {
				s.log.Warn("event ignored", "error", err)
				continue
			}
			events = append(events, ev)
		}
		if len(events) > historyMax {
			return nil, fmt.Errorf("read events: the history is longer than %d events", historyMax)
		}
		if next == "" {
			return forgetAnswered(events), nil
		}
		if next == cursor {
			return nil, fmt.Errorf("read events: the plane repeats a page")
		}
		cursor = next
	}
}

// forgetAnswered drops the inputs of calls that have their result, which in a
// long session is nearly all there is.
func forgetAnswered(events []event) []event {
	answered := make(map[string]bool)
	for _, ev := range events {
		if ev.answers() {
			answered[ev.ToolUseID] = true
		}
	}
	for i := range events {
		if answered[events[i].ID] {
			events[i].Input = nil
		}
	}
	return events
}
