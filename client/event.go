package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// Send sends events to a session, all of them or none, and returns them with
// their ids.
func (c *Client) Send(ctx context.Context, id api.SessionID, events ...api.EventBody) ([]*api.Event, error) {
	var in api.EventsRequest
	for _, body := range events {
		raw, err := ClientEvent(body)
		if err != nil {
			return nil, err
		}
		in.Events = append(in.Events, raw)
	}
	var out api.EventsResponse
	err := c.do(ctx, http.MethodPost, path("/v1/sessions/%s/events", id), nil, in, &out)
	return out.Data, err
}

// ClientEvent returns the JSON of an event as a client sends it, with its type and
// without an id. It also serves [api.SessionCreate.InitialEvents].
func ClientEvent(body api.EventBody) (json.RawMessage, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("client: encode a %s event: %w", body.EventType(), err)
	}
	head := fmt.Sprintf(`{"type":%q`, body.EventType())
	if len(data) > len("{}") {
		head += ","
	}
	return append([]byte(head), data[1:]...), nil
}

// EventOptions narrow the list of events.
type EventOptions struct {
	ListOptions
	Thread api.ThreadID // "" is the session
	Filter api.EventFilter
}

// Events lists the events of a session, the oldest first unless asked otherwise,
// as frames without an ID.
func (c *Client) Events(ctx context.Context, id api.SessionID, o EventOptions) iter.Seq2[*Frame, error] {
	q := o.query()
	for _, t := range o.Filter.Types {
		q.Add("types[]", string(t))
	}
	if o.Filter.Order != "" {
		q.Set("order", string(o.Filter.Order))
	}
	setTimes(q, "created_at", o.Filter.Processed)

	return func(yield func(*Frame, error) bool) {
		for raw, err := range list[json.RawMessage](ctx, c, threadPath(id, o.Thread)+"/events", q) {
			if err != nil {
				yield(nil, err)
				return
			}
			var head struct{ Type string }
			if err := json.Unmarshal(raw, &head); err != nil {
				yield(nil, fmt.Errorf("client: an event in the list: %w", err))
				return
			}
			if !yield(&Frame{Name: head.Type, Data: raw}, nil) {
				return
			}
		}
	}
}

func threadPath(id api.SessionID, thread api.ThreadID) string {
	if thread == "" {
		return path("/v1/sessions/%s", id)
	}
	return path("/v1/sessions/%s/threads/%s", id, thread)
}

// A Frame is one event of a list or a stream, or the preview of one. It is kept as
// it came, so that kinds this client does not know pass through.
type Frame struct {
	Name string          // the type of the event, or event_start and event_delta
	ID   string          // to resume a stream after; "" for previews and in lists
	Data json.RawMessage // the whole event
}

// Event decodes the event. It fails for previews and for types unknown to this
// client.
func (f *Frame) Event() (*api.Event, error) {
	e := new(api.Event)
	if err := json.Unmarshal(f.Data, e); err != nil {
		return nil, fmt.Errorf("client: decode a %s frame: %w", f.Name, err)
	}
	return e, nil
}
