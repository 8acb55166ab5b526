package model

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// maxErrorBytes bounds what is read of the body of an error reply.
const maxErrorBytes = 1 << 20

// What a call was doing when it failed, for the error text.
const (
	doingSend = "send request"
	doingRead = "read reply"
)

// A call is one exchange with the endpoint, and the watch over its silence.
type call struct {
	client *Client
	caller context.Context
	ctx    context.Context // ends with the caller's, or when a limit passes
	cancel context.CancelCauseFunc

	// The timers end ctx. first runs from the start to the first byte of the
	// reply's body; idle is armed during each later read.
	total, first, idle *time.Timer
}

// watch starts the clocks of a call. The caller must end it.
func (c *Client) watch(ctx context.Context) *call {
	k := &call{client: c, caller: ctx}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	after := func(d time.Duration, cause error) *time.Timer {
		return time.AfterFunc(d, func() { k.cancel(cause) })
	}
	k.total = after(c.cfg.Timeout, errTotal)
	k.first = after(c.cfg.FirstByteTimeout, errFirstByte)
	k.idle = after(c.cfg.Timeout, errIdle)
	k.idle.Stop()
	return k
}

// end stops the clocks and whatever is still under way.
func (k *call) end() {
	k.total.Stop()
	k.first.Stop()
	k.idle.Stop()
	k.cancel(context.Canceled)
}

// send makes the request. A reply of any status is returned with its body
// unread, and the caller closes it; the error is for no reply at all.
func (k *call) send(method, path string, body []byte, options ...option.RequestOption) (*http.Response, error) {
	var payload any
	if body != nil {
		payload = body
	}
	var res *http.Response
	options = append(options, option.WithMiddleware(k.watchReply))
	err := k.client.sdk.Execute(k.ctx, method, path, payload, &res, options...)
	if err == nil {
		return res, nil
	}
	// The SDK reports an error status as an error of its own, and its trouble with
	// the body as another; the caller has the reply, and reads it from there.
	if res != nil && res.StatusCode >= 400 && k.ctx.Err() == nil {
		return res, nil
	}
	if res != nil {
		res.Body.Close()
	}
	return nil, k.client.transportError(k.caller, k.ctx, doingSend, err)
}

// watchReply wraps the reply's body, next to the wire, so that every byte
// counts as a sign of life, and so that nobody reads an endless error.
func (k *call) watchReply(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	res, err := next(req)
	if err != nil || res == nil {
		return res, err
	}
	body := &watchedBody{ReadCloser: res.Body, call: k}
	res.Body = body
	if res.StatusCode >= 400 {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(body, maxErrorBytes), body}
	}
	return res, nil
}

// drain reads the few bytes that follow the last event, so that an HTTP/1
// connection can be used again. It gives up soon: the message is complete.
func (k *call) drain(r io.Reader) {
	const soon = 50 * time.Millisecond
	timer := time.AfterFunc(soon, func() { k.cancel(context.Canceled) })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, r, 4<<10)
}

// A watchedBody ends its call when a read waits too long. Like any body it is
// read by one goroutine at a time.
type watchedBody struct {
	io.ReadCloser
	call  *call
	begun bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.begun {
		b.call.idle.Reset(b.call.client.cfg.IdleTimeout)
		defer b.call.idle.Stop()
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 && !b.begun {
		b.begun = true
		b.call.first.Stop()
	}
	return n, err
}
