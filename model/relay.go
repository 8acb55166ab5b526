package model

import (
	"encoding/json"
	"io"
	"maps"
	"mime"
	"net/http"
)

// Relay makes one streaming request with a body in the form of the Messages API, as
// [Client.Forward] does with that of r, whose headers it goes by. body is a JSON object;
// its field stream is set here. Every event of the reply is given to each, as JSON and in
// order, valid until each returns; an error of it ends the call and is returned. In the end
// the whole message is returned.
//
// The error is an [*Error], also for an error reply of the endpoint, or wraps the error of
// r.Context(). Events may have been given out before it.
func (c *Client) Relay(r *http.Request, body map[string]json.RawMessage, each func(event []byte) error) (*Response, error) {
	encoded, err := c.relayBody(body)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	call := c.watch(ctx)
	defer call.end()
	r = r.Clone(ctx)
	r.Header.Set("Accept", "text/event-stream")
	res, err := call.send(http.MethodPost, "v1/messages", encoded, c.forwardOptions(r)...)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body) // bounded by maxErrorBytes; half a body still says something
		return nil, c.statusError(res, text)
	}
	if media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); media != "text/event-stream" {
		return nil, garbage("%s answered with %s instead of a stream", c.host, excerpt([]byte(media)))
	}
	events := newEventReader(res.Body)
	var m message
	for {
		data, err := events.next()
		if err != nil {
			return nil, c.streamError(ctx, call, res, &m, err)
		}
		done, err := m.apply(data, func(Delta) {})
		if err != nil {
			return nil, c.streamError(ctx, call, res, &m, err)
		}
		if err := each(data); err != nil {
			return nil, err
		}
		if done {
			call.drain(events.r)
			return &m.response, nil
		}
		if ctx.Err() != nil { // a fast stream would otherwise outrun it
			return nil, c.transportError(ctx, call.ctx, doingRead, ctx.Err())
		}
	}
}

func (c *Client) relayBody(body map[string]json.RawMessage) ([]byte, error) {
	var id string
	_ = json.Unmarshal(body["model"], &id) // the endpoint says that there is none
	id, err := c.cfg.modelID(id)
	if err != nil {
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: err.Error()}
	}
	out := maps.Clone(body)
	out["model"], out["stream"] = quote(id), json.RawMessage("true")
	encoded, err := json.Marshal(out)
	if err != nil {
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: "the request body is not sound JSON"}
	}
	if len(encoded) > maxRequestBytes {
		return nil, requestTooBig(len(encoded))
	}
	return encoded, nil
}
