package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

// previewable are the events that event_deltas[] may ask for.
var previewable = []api.EventType{api.EvAgentMessage, api.EvAgentThinking}

// pingFrame keeps a silent stream open. Clients skip it.
var pingFrame = []byte("event: ping\ndata: {\"type\": \"ping\"}\n\n")

// streamEvents answers the stream of a session and of a thread. The follower is
// registered before the header goes out, so a client that has seen the header and
// then lists the events misses nothing.
func (s *Server) streamEvents(ctx context.Context, r *request) (any, error) {
	o, err := r.followOptions()
	if err != nil {
		return nil, err
	}
	if s.streams.Add(1) > s.streamsMax {
		s.streams.Add(-1)
		return nil, api.Overloaded(5*time.Second, "%d event streams are open on this server, which is its limit; try again shortly", s.streamsMax)
	}
	defer s.streams.Add(-1)
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	f, err := s.control.Follow(ctx, r.who, r.session(), r.thread(), o)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	r.rec.stream = true
	r.rec.outcome, err = s.stream(ctx, r, f)
	s.metrics.ended.WithLabelValues(r.rec.outcome).Inc()
	return nil, err
}

func (r *request) followOptions() (control.FollowOptions, error) {
	q := r.query()
	var o control.FollowOptions
	for _, v := range q.list("event_deltas") {
		t := api.EventType(v)
		if !slices.Contains(previewable, t) {
			q.fail("event_deltas: must be agent.message or agent.thinking")
			break
		}
		if !slices.Contains(o.Previews, t) {
			o.Previews = append(o.Previews, t)
		}
	}
	if q.err != nil {
		return o, q.err
	}
	if id := r.Header.Get("Last-Event-Id"); id != "" {
		if err := api.CheckID("Last-Event-ID", id); err != nil {
			return o, err
		}
		o.LastEventID = id
	}
	return o, nil
}

// The reasons a stream ends.
const (
	endClient   = "client"   // the client closed it
	endSlow     = "slow"     // the client stopped reading, and was cut off
	endSession  = "session"  // the session was deleted
	endShutdown = "shutdown" // this server is stopping
	endCut      = "cut"      // control cut it off; the error says why
	endError    = "error"    // something broke
)

// stream copies f to the client until either ends. It waits in one place, without
// a goroutine or a buffer of its own, so an idle stream costs little more than its
// connection.
func (s *Server) stream(ctx context.Context, r *request, f *control.Follower) (reason string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()

	h := r.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx would collect frames otherwise
	r.w.WriteHeader(http.StatusOK)
	// The first ping says where the stream begins, so that one which is cut before
	// its first event can be resumed too.
	opening := appendFrame(nil, control.Frame{Name: "ping", ID: f.Cursor(), Data: []byte(`{"type": "ping"}`)})
	if _, err := r.w.Write(opening); err != nil {
		return writeEnd(err), nil
	}
	for {
		if err := r.w.FlushError(); err != nil {
			return writeEnd(err), nil
		}
		batch, err := s.nextBatch(ctx, f)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return endSession, nil
		case s.ending.Err() != nil:
			return endShutdown, nil
		case ctx.Err() != nil:
			return endClient, nil
		default:
			s.writeError(r, err)
			if api.AsError(err) != nil {
				return endCut, err
			}
			return endError, err
		}
		if _, err := r.w.Write(batch); err != nil {
			return writeEnd(err), nil
		}
	}
}

// writeEnd is the reason of a stream that cannot be written to any more.
func writeEnd(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return endSlow
	}
	return endClient
}

// nextBatch waits for frames and returns all that are there as one piece, or a
// ping when there is none for too long.
func (s *Server) nextBatch(ctx context.Context, f *control.Follower) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, s.pingEvery)
	defer cancel()
	frames, err := f.Next(wait)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return pingFrame, nil
		}
		return nil, err
	}
	var batch []byte
	for _, fr := range frames {
		batch = appendFrame(batch, fr)
	}
	return batch, nil
}

// appendFrame adds the wire form of one frame. Its data is one line of JSON.
func appendFrame(b []byte, f control.Frame) []byte {
	b = append(b, "event: "...)
	b = append(b, f.Name...)
	if f.ID != "" {
		b = append(b, "\nid: "...)
		b = append(b, f.ID...)
	}
	b = append(b, "\ndata: "...)
	b = append(b, f.Data...)
	return append(b, "\n\n"...)
}

// writeError tells the client why its stream ends, as far as it still listens.
func (s *Server) writeError(r *request, err error) {
	data, merr := json.Marshal(public(err).Body(r.rec.id))
	if merr != nil {
		panic("httpapi: an error body always encodes: " + merr.Error())
	}
	if _, err := r.w.Write(appendFrame(nil, control.Frame{Name: "error", Data: data})); err == nil {
		_ = r.w.FlushError()
	}
}
