package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// messageMax bounds the text of an error, in bytes: some messages quote what the
// client sent.
const messageMax = 2000

// statusClientGone is what the record says when the client left before its answer.
// Nobody sees it on the wire.
const statusClientGone = 499

// public returns what the caller is told about err. Everything that is not an
// [*api.Error] is ours, and its text stays here.
func public(err error) *api.Error {
	e := api.AsError(err)
	if e == nil {
		return &api.Error{Status: http.StatusInternalServerError, Type: api.TypeAPI, Message: "internal server error"}
	}
	if len(e.Message) > messageMax {
		short := *e
		short.Message = strings.ToValidUTF8(e.Message[:messageMax], "") + "…"
		e = &short
	}
	return e
}

// fail ends a request with err. It is the only writer of errors.
func (s *Server) fail(w *response, rec *record, err error) {
	if errors.Is(err, context.Canceled) && rec.ctx.Err() != nil {
		rec.gone = true
		return
	}
	e := public(err)
	rec.public = e
	if api.AsError(err) == nil {
		rec.cause = err
	}
	if w.began() {
		return
	}
	h := w.Header()
	if e.Retry != nil {
		h.Set("X-Should-Retry", strconv.FormatBool(*e.Retry))
	}
	if e.RetryAfter > 0 {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	if err := w.json(e.Status, e.Body(rec.id)); err != nil {
		panic("httpapi: an error body always encodes: " + err.Error())
	}
}
