package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// FromStart as [FollowOptions.After] replays a session from its first event.
const FromStart = "0"

const (
	// silenceMax is how long a stream may say nothing; the server pings every 15 s.
	silenceMax = time.Minute
	// reconnectFor is how long to look for a server that went away.
	reconnectFor = 5 * time.Minute
)

// FollowOptions of [Client.Follow].
type FollowOptions struct {
	Thread   api.ThreadID    // "" is the session
	Previews []api.EventType // whose making is to be shown: agent.message, agent.thinking

	// After is the ID of a frame to go on after. "" starts now; a Bailey server says
	// at once where that is, so such a stream can be resumed too. [FromStart] replays
	// everything.
	After string
}

// Follow yields the events of a session as they are committed, each exactly once
// and in order, until the session is deleted, ctx ends or the caller stops. When
// the connection breaks it comes back and resumes after the last frame; previews
// that fall into the gap are lost, events are not.
//
// The one error it can yield is its last: an [*Error] that trying again cannot
// mend, a server that stayed away for five minutes or was never there, or the
// cause of ctx.
func (c *Client) Follow(ctx context.Context, id api.SessionID, o FollowOptions) iter.Seq2[*Frame, error] {
	return func(yield func(*Frame, error) bool) {
		f := &follow{c: c, path: streamPath(id, o.Thread), query: url.Values{}, after: o.After, yield: yield}
		for _, t := range o.Previews {
			f.query.Add("event_deltas[]", string(t))
		}
		if err := f.run(ctx); err != nil && !errors.Is(err, errStopped) {
			yield(nil, err)
		}
	}
}

func streamPath(id api.SessionID, thread api.ThreadID) string {
	if thread == "" {
		return path("/v1/sessions/%s/events/stream", id)
	}
	return threadPath(id, thread) + "/stream"
}

// errStopped says that the caller has left its loop.
var errStopped = errors.New("stopped")

// A follow is one run of [Client.Follow].
type follow struct {
	c     *Client
	path  string
	query url.Values
	yield func(*Frame, error) bool

	after     string // the last frame's ID
	connected bool   // at least once
	heard     bool   // a frame or a ping, on the newest connection
}

// run connects until the stream has ended for good; nil is its proper end.
func (f *follow) run(ctx context.Context) error {
	failures, lost := 0, time.Now()
	for {
		err := f.connect(ctx)
		switch {
		case err == nil || errors.Is(err, errStopped):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !mendable(err):
			return err
		}
		if f.heard {
			failures, lost = 0, time.Now()
		}
		failures++
		if !f.connected && failures == attemptsMax || time.Since(lost) > reconnectFor {
			return err
		}
		if err := sleep(ctx, pause(failures, err)); err != nil {
			return err
		}
	}
}

// mendable reports whether connecting again may help.
func mendable(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return !ok || e.transient()
}

// connect follows one connection to its end. It returns nil only when there is
// nothing more to come.
func (f *follow) connect(ctx context.Context) error {
	f.heard = false
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(silenceMax, func() { cancel(errors.New("client: the stream fell silent")) })
	defer silence.Stop()

	req, err := f.c.request(ctx, http.MethodGet, f.path, f.query, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	if f.after != "" {
		req.Header.Set("Last-Event-Id", f.after)
	}
	res, err := f.c.http.Do(req)
	if err != nil {
		return transportError(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return answerError(res, data)
	}
	f.connected = true

	frames := newFrameReader(res.Body)
	for {
		frame, err := frames.next()
		if err != nil {
			// Even a clean end only says that this connection is over.
			return transportError(ctx, err)
		}
		f.heard = true
		silence.Reset(silenceMax)
		if frame.ID != "" {
			f.after = frame.ID
		}
		switch frame.Name {
		case "", "ping":
			continue
		case "error":
			return streamError(res, frame.Data)
		}
		if !f.yield(frame, nil) {
			return errStopped
		}
		if frame.Name == string(api.EvSessionDeleted) {
			return nil
		}
	}
}

// streamError is the error that ended a stream, which came with status 200.
func streamError(res *http.Response, data json.RawMessage) error {
	err := answerError(res, data)
	if e := api.AsError(err); e != nil {
		switch e.Type {
		case api.TypeOverloaded, api.TypeAPI, api.TypeTimeout, api.TypeRateLimit:
			yes := true
			e.Retry = &yes
		}
	}
	return err
}
