package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/messages"
	"github.com/bailey-platform/bailey/model"
)

// forward hands a request of the Messages API to the configured endpoint.
func (s *Server) forward(_ context.Context, r *request) (any, error) {
	if s.model == nil {
		return nil, api.NotFound("this server has no model endpoint configured")
	}
	if err := r.room(); err != nil {
		return nil, err
	}
	err := s.model.Forward(r.w, r.Request, r.URL.Path)
	if e, ok := errors.AsType[*model.Error](err); ok {
		if e.Begun {
			r.breakOff(e)
		}
		return nil, modelError(e)
	}
	return nil, err
}

// createMessage hands a request for a message to the configured endpoint, unless it names
// MCP servers: those are used from here.
func (s *Server) createMessage(ctx context.Context, r *request) (any, error) {
	if s.model == nil || s.messages == nil {
		return s.forward(ctx, r)
	}
	body, err := r.body()
	if err != nil {
		return nil, err
	}
	if !messages.Wants(body) {
		r.Body = io.NopCloser(bytes.NewReader(body))
		return s.forward(ctx, r)
	}
	begun, err := s.messages.Serve(r.w, r.Request, body, s.audit.calls(r))
	if err != nil && begun {
		r.breakOff(err)
	}
	if e, ok := errors.AsType[*model.Error](err); ok {
		return nil, modelError(e)
	}
	return nil, err
}

// breakOff ends a reply of which half is out: it must not look like a whole one.
func (r *request) breakOff(cause error) {
	r.rec.gone = r.Context().Err() != nil
	if !r.rec.gone {
		r.rec.cause = cause
	}
	panic(http.ErrAbortHandler)
}

// modelError says what went wrong between this server and the model endpoint. A
// refusal by the endpoint itself never comes here: it is passed on as it is.
func modelError(e *model.Error) *api.Error {
	out := &api.Error{Status: e.Status, Type: api.TypeAPI, Message: e.Message, RetryAfter: e.RetryAfter}
	switch e.Kind {
	case model.TooLong:
		out.Status, out.Type = http.StatusRequestEntityTooLarge, api.TypeRequestTooLarge
	case model.Overloaded:
		out.Status, out.Type = 529, api.TypeOverloaded
	case model.RateLimited:
		out.Status, out.Type = http.StatusTooManyRequests, api.TypeRateLimit
	case model.Billing:
		out.Status, out.Type = http.StatusPaymentRequired, api.TypeBilling
	case model.Unsupported:
		out.Status, out.Type = http.StatusNotFound, api.TypeNotFound
	case model.Auth:
		// Our credential is at fault, not the caller's.
		out.Status, out.Message = http.StatusBadGateway, "the model endpoint refused this server's credential"
	case model.Failed:
		if e.Status >= 400 && e.Status < 500 {
			out.Type = api.TypeInvalidRequest
		}
	}
	if out.Status < 400 {
		out.Status = http.StatusBadGateway
	}
	retry := e.Retryable
	out.Retry = &retry
	return out
}
