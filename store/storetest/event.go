package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// append adds drafts to a session in a transaction of their own, as package
// control does.
func (r *rig) append(id api.SessionID, drafts ...api.Draft) (entries []api.Entry) {
	r.t.Helper()
	r.write(func(tx *store.Tx) (err error) {
		entries, err = appendLocked(tx, id, drafts)
		return err
	})
	return entries
}

func appendLocked(tx *store.Tx, id api.SessionID, drafts []api.Draft) ([]api.Entry, error) {
	s, err := tx.LockSession(id)
	if err != nil {
		return nil, err
	}
	entries, err := tx.Append(s, drafts)
	if err != nil {
		return nil, err
	}
	return entries, tx.UpdateSession(s)
}

// appendTo adds one event whose id nobody cares about.
func (r *rig) appendTo(id api.SessionID, body api.EventBody) {
	r.t.Helper()
	r.append(id, api.Draft{ID: "sevt_any", Body: body})
}

func (r *rig) entries(id api.SessionID, after int64) []api.Entry {
	r.t.Helper()
	return read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.Entries(id, after) })
}

func (r *rig) feed(id api.SessionID, after int64, limit int) []api.Entry {
	r.t.Helper()
	return read(r, func(tx *store.Tx) ([]api.Entry, error) {
		entries, _, err := tx.Feed(id, after, limit)
		return entries, err
	})
}

// places shows entries as "seq id", with a + on those that wait.
func places(entries []api.Entry) (out []string) {
	for _, e := range entries {
		s := fmt.Sprint(e.Seq, " ", e.Event.ID)
		if e.Queued {
			s += "+"
		}
		out = append(out, s)
	}
	return out
}

func says(s string) *api.UserMessage { return &api.UserMessage{Content: api.Content{api.TextBlock(s)}} }

var eventTests = []test{
	{"WhatWasAppendedIsReadAndNumberedFromOne", func(r *rig) {
		r.session("sesn_1")
		r.session("sesn_2") // numbers are a session's own
		yes := true
		drafts := []api.Draft{
			{ID: "sevt_1", Body: says(text)},
			{ID: "sevt_2", Body: &api.AgentToolUse{Name: text, Input: json.RawMessage(`{"a":"\u0000\ud83e\uddea"}`), EvaluatedPermission: api.PermissionAllow}, Private: json.RawMessage(`{"k": "\u0000"}`)},
			{ID: "sevt_3", Body: &api.UserToolResult{ToolUseID: "sevt_2", IsError: &yes, Content: api.Content{api.TextBlock("")}}},
			{ID: "sevt_4", Body: &api.SpanModelRequestEnd{ModelRequestStartID: "sevt_0", ModelUsage: api.SpanUsage{InputTokens: 1 << 60}}},
			{ID: "sevt_5", Body: &api.SessionStatusIdle{StopReason: api.StopReason{Type: api.StopEndTurn}}},
		}
		for _, id := range []api.SessionID{"sesn_1", "sesn_2"} {
			first := r.append(id, drafts[:2]...)
			second := r.append(id, drafts[2:]...)
			appended := slices.Concat(first, second)
			for i, e := range appended {
				want := api.Entry{Seq: int64(i + 1), Event: api.Event{ID: drafts[i].ID, Body: drafts[i].Body, ProcessedAt: e.Event.ProcessedAt}, Private: drafts[i].Private}
				r.same("appended", want, e)
				if e.Event.ProcessedAt == nil {
					r.t.Errorf("event %d has no processed_at", i)
				}
			}
			if first[0].Event.ProcessedAt.Equal(*second[0].Event.ProcessedAt) || !first[0].Event.ProcessedAt.Equal(*first[1].Event.ProcessedAt) {
				r.t.Error("events of one transaction have one time, of two transactions two")
			}
			r.same("entries", appended, r.entries(id, 0))
			r.same("entries after the second", appended[2:], r.entries(id, 2))
			r.same("entries after the last", []api.Entry(nil), r.entries(id, 5))
			// What only the plane may see is not read for clients.
			public := slices.Clone(appended)
			for i := range public {
				public[i].Private = nil
			}
			r.same("feed", public, r.feed(id, 0, 100))
			r.same("feed, a part", public[1:3], r.feed(id, 1, 2))
			r.same("one event", appended[3:4], read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.EventsByID(id, []api.EventID{"sevt_4"}) }))
			if n := r.getSession(id).LastSeq; n != 5 {
				r.t.Errorf("last sequence number %d, want 5", n)
			}
		}
		for _, ids := range [][]api.EventID{nil, {"sevt_9"}, {"sevt_9", ""}} {
			r.same("unknown events", []api.Entry(nil), read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.EventsByID("sesn_1", ids) }))
		}
		r.same("appending nothing", []api.Entry(nil), r.append("sesn_1"))
	}},

	{"AQueuedEventIsSeenWhenItArrivesAndAgainWhenItIsTaken", func(r *rig) {
		r.session("sesn_1")
		private := json.RawMessage(`{"p":1}`)
		r.append("sesn_1",
			api.Draft{ID: "sevt_a", Body: says("a"), Queued: true, Private: private},
			api.Draft{ID: "sevt_b", Body: says("b"), Queued: true})
		queued := func() int64 {
			return read(r, func(tx *store.Tx) (int64, error) { return tx.Queued("sesn_1") })
		}
		event := func(id api.EventID) api.Entry {
			found := read(r, func(tx *store.Tx) ([]api.Entry, error) {
				return tx.EventsByID("sesn_1", []api.EventID{id, "sevt_unknown"})
			})
			if len(found) != 1 {
				r.t.Fatalf("%s was found %d times", id, len(found))
			}
			return found[0]
		}
		if n := queued(); n != 2 {
			r.t.Errorf("%d queued, want 2", n)
		}
		if e := event("sevt_a"); !e.Queued || e.Event.ProcessedAt != nil {
			r.t.Errorf("while it waits: %+v", e)
		}
		taken := r.append("sesn_1", api.Draft{ID: "sevt_x", Body: &api.SessionStatusRunning{}}, api.Draft{ID: "sevt_a"})
		want := api.Entry{Seq: 4, Event: api.Event{ID: "sevt_a", Body: says("a"), ProcessedAt: taken[1].Event.ProcessedAt}, Private: private}
		r.same("taken", want, taken[1])
		r.same("the event itself", want, event("sevt_a"))
		if n := queued(); n != 1 {
			r.t.Errorf("%d queued, want 1", n)
		}
		r.same("entries", []string{"2 sevt_b+", "3 sevt_x", "4 sevt_a"}, places(r.entries("sesn_1", 0)))
		r.same("feed", []string{"1 sevt_a", "2 sevt_b+", "3 sevt_x", "4 sevt_a"}, places(r.feed("sesn_1", 0, 10)))
		if first := r.feed("sesn_1", 0, 1)[0]; first.Event.ProcessedAt != nil {
			r.t.Error("a follower sees the arrival of an event as processed")
		}
		for _, id := range []api.EventID{"sevt_a", "sevt_x", "sevt_unknown"} {
			err := r.fail(func(tx *store.Tx) error {
				_, err := appendLocked(tx, "sesn_1", []api.Draft{{ID: id}})
				return err
			})
			if !errors.Is(err, store.ErrNotFound) {
				r.t.Errorf("taking %s, which does not wait: %v", id, err)
			}
		}
	}},

	{"TheSameNumberTwiceIsErrDuplicate", func(r *rig) {
		s := r.session("sesn_1")
		r.appendTo("sesn_1", says("a"))
		err := r.fail(func(tx *store.Tx) error {
			_, err := tx.Append(s, []api.Draft{{ID: "sevt_2", Body: says("b")}}) // s was read before the first
			return err
		})
		if !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("error %v, want ErrDuplicate", err)
		}
	}},

	{"AThousandEventsAtOnce", func(r *rig) {
		r.session("sesn_1")
		var drafts []api.Draft
		for i := range api.EventsPerRequestMax {
			drafts = append(drafts, api.Draft{ID: eventID(i), Body: says(text), Queued: true})
		}
		r.append("sesn_1", drafts...)
		for i := range drafts {
			drafts[i] = api.Draft{ID: drafts[i].ID}
		}
		drafts = append(drafts, api.Draft{ID: "sevt_running", Body: &api.SessionStatusRunning{}})
		r.append("sesn_1", drafts...)
		entries := r.entries("sesn_1", 0)
		if len(entries) != len(drafts) || entries[0].Seq != 1001 || entries[1000].Seq != 2001 {
			r.t.Errorf("%d entries", len(entries))
		}
	}},

	// JSON may carry any bytes through here unread: a client's content block, a
	// model's answer. PostgreSQL takes no others than UTF-8.
	{"BytesThatAreNotUTF8AreReplacedAsJSONDoes", func(r *rig) {
		r.session("sesn_1")
		r.append("sesn_1", api.Draft{
			ID: "sevt_1", Body: &api.UserMessage{Content: api.Content{json.RawMessage("{\"type\":\"text\",\"text\":\"a\xffb\"}")}},
			Private: json.RawMessage("\"\xc3\x28\""),
		})
		e := r.entries("sesn_1", 0)[0]
		r.same("text", "a\ufffdb", e.Event.Body.(*api.UserMessage).Content.Text())
		r.same("private", "\"\ufffd(\"", string(e.Private))
	}},

	{"AnAnswerIsFoundByItsCall", func(r *rig) {
		r.session("sesn_1")
		r.append("sesn_1",
			api.Draft{ID: "sevt_1", Body: &api.UserToolConfirmation{ToolUseID: "call_1", Result: "allow"}},
			api.Draft{ID: "sevt_2", Body: &api.UserToolResult{ToolUseID: "call_2"}},
			api.Draft{ID: "sevt_3", Body: &api.UserToolResult{ToolUseID: "call_1"}},
			api.Draft{ID: "sevt_4", Body: &api.UserCustomToolResult{CustomToolUseID: "call_3"}},
			api.Draft{ID: "sevt_5", Body: &api.AgentToolResult{ToolUseID: "call_4"}},
			api.Draft{ID: "sevt_6", Body: says("call_1")})
		for _, tc := range []struct {
			calls []api.EventID
			want  []string
		}{
			{[]api.EventID{"call_1"}, []string{"1 sevt_1", "3 sevt_3"}},
			{[]api.EventID{"call_2"}, []string{"2 sevt_2"}},
			{[]api.EventID{"call_3"}, []string{"4 sevt_4"}},
			{[]api.EventID{"call_4"}, []string{"5 sevt_5"}},
			{[]api.EventID{"call_4", "call_1", "call_9"}, []string{"1 sevt_1", "3 sevt_3", "5 sevt_5"}},
			{[]api.EventID{"call_5"}, nil},
			{[]api.EventID{""}, nil},
			{nil, nil},
		} {
			got := read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.Answers("sesn_1", tc.calls) })
			r.same(fmt.Sprint(tc.calls), tc.want, places(got))
		}
	}},

	{"AThousandAnswersAreFoundAtOnce", func(r *rig) {
		r.session("sesn_1")
		var drafts []api.Draft
		var calls []api.EventID
		for i := range 1200 {
			call := api.EventID(fmt.Sprint("call_", i))
			calls = append(calls, call)
			drafts = append(drafts, api.Draft{ID: eventID(i), Body: &api.UserToolResult{ToolUseID: call}})
		}
		r.append("sesn_1", drafts...)
		got := read(r, func(tx *store.Tx) ([]api.Entry, error) { return tx.Answers("sesn_1", calls) })
		if len(got) != len(calls) || got[0].Seq != 1 || got[1199].Seq != 1200 {
			r.t.Errorf("%d answers", len(got))
		}
	}},

	{"ListsPutWhatWaitsLast", func(r *rig) {
		r.session("sesn_1")
		times := []time.Time{}
		stamp := func(entries []api.Entry) { times = append(times, *entries[len(entries)-1].Event.ProcessedAt) }
		r.append("sesn_1", api.Draft{ID: "sevt_q1", Body: says("1"), Queued: true}, api.Draft{ID: "sevt_q2", Body: says("2"), Queued: true},
			api.Draft{ID: "sevt_q3", Body: says("3"), Queued: true})
		stamp(r.append("sesn_1", api.Draft{ID: "sevt_x", Body: &api.SessionStatusRunning{}}))
		stamp(r.append("sesn_1", api.Draft{ID: "sevt_q2"}, api.Draft{ID: "sevt_y", Body: &api.AgentMessage{}}))
		stamp(r.append("sesn_1", api.Draft{ID: "sevt_z", Body: &api.SessionUsage{}}))

		all := []string{"sevt_x", "sevt_q2", "sevt_y", "sevt_z", "sevt_q1", "sevt_q3"}
		for name, tc := range map[string]struct {
			filter api.EventFilter
			want   []string
		}{
			"all":         {api.EventFilter{}, all},
			"one type":    {api.EventFilter{Types: []api.EventType{api.EvUserMessage}}, []string{"sevt_q2", "sevt_q1", "sevt_q3"}},
			"three types": {api.EventFilter{Types: []api.EventType{api.EvSessionUsage, api.EvAgentMessage, api.EvUserInterrupt}}, []string{"sevt_y", "sevt_z"}},
			"processed":   {api.EventFilter{Processed: api.TimeRange{GT: &times[0], LTE: &times[1]}}, []string{"sevt_q2", "sevt_y"}},
			"both":        {api.EventFilter{Types: []api.EventType{api.EvUserMessage}, Processed: api.TimeRange{LT: &times[2]}}, []string{"sevt_q2"}},
			"nothing":     {api.EventFilter{Processed: api.TimeRange{GT: &times[2]}}, nil},
		} {
			list := func(tx *store.Tx, win store.Window) ([]api.Entry, error) {
				entries, _, err := tx.Events("sesn_1", tc.filter, win)
				return entries, err
			}
			key := func(e api.Entry) (int64, string) { return store.ListKey(e), string(e.Event.ID) }
			down := slices.Clone(tc.want)
			slices.Reverse(down)
			for limit := 1; limit <= 7; limit++ {
				r.same(name, tc.want, walk(r, api.Ascending, limit, list, key))
				r.same(name+", descending", down, walk(r, api.Descending, limit, list, key))
			}
		}
	}},

	// The promise on which every stream and every turn rests: numbers have no gaps,
	// and a reader who has seen one has seen all below it.
	{"AReaderNeverSkipsAnEventWhileManyAppend", func(r *rig) {
		r.session("sesn_1")
		r.session("sesn_2") // its appends are in the way, too
		const writers, rounds = 12, 12
		var total atomic.Int64
		var g errgroup.Group
		for w := range writers {
			g.Go(func() error {
				for i := range rounds {
					id := api.SessionID("sesn_1")
					if w == 0 {
						id = "sesn_2"
					}
					drafts := make([]api.Draft, 1+(w+i)%3)
					for n := range drafts {
						drafts[n] = api.Draft{ID: api.EventID(fmt.Sprintf("sevt_%d_%d_%d", w, i, n)), Body: says("x")}
					}
					fails := (w+i)%5 == 0 // numbers of a failed transaction are used again
					err := r.db.Write(r.ctx, func(tx *store.Tx) error {
						if _, err := appendLocked(tx, id, drafts); err != nil {
							return err
						}
						if fails {
							return errTest
						}
						return nil
					})
					if fails != errors.Is(err, errTest) || !fails && err != nil {
						return fmt.Errorf("writer %d: %v", w, err)
					}
					if !fails && w != 0 {
						total.Add(int64(len(drafts)))
					}
				}
				return nil
			})
		}
		finished := make(chan error, 1)
		go func() { finished <- g.Wait() }()

		var cursor int64
		seen := map[api.EventID]bool{}
		next := func() {
			for _, e := range r.feed("sesn_1", cursor, 7) {
				if e.Seq != cursor+1 {
					r.t.Fatalf("after %d came %d", cursor, e.Seq)
				}
				if seen[e.Event.ID] {
					r.t.Fatalf("%s came twice", e.Event.ID)
				}
				cursor, seen[e.Event.ID] = e.Seq, true
			}
		}
		for running := true; running; next() {
			select {
			case err := <-finished:
				if err != nil {
					r.t.Fatal(err)
				}
				running = false
			default:
			}
		}
		for before := int64(-1); before != cursor; {
			before = cursor
			next()
		}
		if cursor != total.Load() || r.getSession("sesn_1").LastSeq != cursor {
			r.t.Errorf("read %d events of %d", cursor, total.Load())
		}
	}},
}
