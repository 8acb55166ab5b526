package model

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// Stream asks for one message and returns it whole. While it arrives, onDelta
// (if not nil) is called for each piece, in order, from this goroutine; it must
// not block for long, since nothing is read meanwhile.
//
// It makes one attempt. The error is an [*Error], or wraps ctx.Err() if ctx
// ended first. Deltas may have been delivered before an error; they are then
// void. A message counts as arrived at its message_stop event; whatever the
// endpoint sends after that is ignored.
func (c *Client) Stream(ctx context.Context, req Request, onDelta func(Delta)) (*Response, error) {
	if onDelta == nil {
		onDelta = func(Delta) {}
	}
	body, betas, err := c.encode(req)
	if err != nil {
		return nil, err
	}
	options := []option.RequestOption{option.WithHeader("Accept", "text/event-stream")}
	for _, beta := range betas {
		options = append(options, option.WithHeaderAdd("anthropic-beta", beta))
	}

	call := c.watch(ctx)
	defer call.end()
	res, err := call.send(http.MethodPost, "v1/messages", body, options...)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body) // bounded by maxErrorBytes; half a body still says something
		if ctx.Err() != nil {
			return nil, c.transportError(ctx, call.ctx, doingRead, ctx.Err())
		}
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
		done, err := m.apply(data, onDelta)
		if err != nil {
			return nil, c.streamError(ctx, call, res, &m, err)
		}
		if done {
			call.drain(events.r)
			if m.response.Model == "" {
				m.response.Model = req.Model
			}
			return &m.response, nil
		}
		if ctx.Err() != nil { // a fast stream would otherwise outrun it
			return nil, c.transportError(ctx, call.ctx, doingRead, ctx.Err())
		}
	}
}

// streamError explains a stream that ended before its message did.
func (c *Client) streamError(ctx context.Context, call *call, res *http.Response, m *message, err error) error {
	var e *Error
	var reported *errorEvent
	switch {
	case errors.As(err, &e):
		e.Message = c.clean(e.Message)
	case errors.As(err, &reported):
		e = c.classify(http.StatusOK, reported.reply)
	case err == io.EOF && !m.started:
		e = &Error{Kind: Interrupted, Status: http.StatusOK, Retryable: true, Message: c.host + " ended the stream before a message began"}
	case err == io.EOF:
		e = &Error{Kind: Interrupted, Status: http.StatusOK, Retryable: true, Message: c.host + " ended the stream in the middle of a message"}
	default:
		return c.transportError(ctx, call.ctx, doingRead, err)
	}
	e.RequestID = requestID(res.Header)
	return e
}
