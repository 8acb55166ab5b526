package httpapi

import (
	"context"
	"io"
	"strconv"

	"github.com/bailey-platform/bailey/api"
)

func (s *Server) sendEvents(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EventsRequest](r)
	if err != nil {
		return nil, err
	}
	return s.control.SendEvents(ctx, r.who, r.session(), in)
}

// listEvents answers the events of a session and of a thread.
func (s *Server) listEvents(ctx context.Context, r *request) (any, error) {
	q := r.query()
	f := api.EventFilter{Types: q.eventTypes(), Processed: q.timeRange("created_at"), Order: q.order()}
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListEvents(ctx, r.who, r.session(), r.thread(), f, page)
}

// eventOutput answers the whole text of a result of which the event shows a part.
func (s *Server) eventOutput(ctx context.Context, r *request) (any, error) {
	text, err := s.control.EventOutput(ctx, r.who, r.session(), api.EventID(r.PathValue("event")))
	if err != nil {
		return nil, err
	}
	h := r.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = io.WriteString(r.w, text) // a client that left does not need it
	return nil, nil
}

func (q *query) eventTypes() []api.EventType {
	var out []api.EventType
	for _, v := range q.list("types") {
		out = append(out, api.EventType(v))
	}
	return out
}
