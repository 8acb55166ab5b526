package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/bailey-platform/bailey/api"
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
			// Half a reply must not look like a whole one.
			r.rec.gone = r.Context().Err() != nil
			if !r.rec.gone {
				r.rec.cause = e
			}
			panic(http.ErrAbortHandler)
		}
		return nil, modelError(e)
	}
	return nil, err
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
