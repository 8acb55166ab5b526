package loop

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// The bounds of the wait before the model is asked again.
const (
	backoffFirst  = time.Second
	backoffMax    = time.Minute
	retryAfterMax = 15 * time.Minute // of what the endpoint may ask for
)

// backoff is how long to wait after a number of failures in a row, from 1: one
// second, then twice as long each time, up to a minute; of that, between half and
// all. jitter is from 0 to 1.
func backoff(failures int, jitter float64) time.Duration {
	wait := backoffMax
	if shift := failures - 1; shift < 6 {
		wait = min(backoffFirst<<shift, backoffMax)
	}
	return wait/2 + time.Duration(jitter*float64(wait/2))
}

// retryAt is in whole milliseconds, which a database keeps: a session must not be
// woken a moment before it may go on.
func retryAt(now time.Time, wait time.Duration) time.Time {
	return now.Add(wait).Truncate(time.Millisecond)
}

// modelFailure says what a failed request means for the session. failures is how
// many there were in a row, with this one.
func modelFailure(err error, failures int, now time.Time, jitter float64) *failure {
	var e *model.Error
	if !errors.As(err, &e) {
		// Package model reports every failure of the endpoint as its own; anything
		// else is a mistake of ours and would only be repeated.
		return &failure{Kind: failureError, Type: api.ErrorUnknown, Message: "The request to the model could not be made. The server's log says why."}
	}
	f := &failure{Kind: failureError, Type: api.ErrorModelRequest, Message: explain(e)}
	switch e.Kind {
	case model.Overloaded:
		f.Type = api.ErrorModelOverloaded
	case model.RateLimited:
		f.Type = api.ErrorModelRateLimited
	case model.Billing:
		f.Type = api.ErrorBilling
		return f
	case model.TooLong:
		f.Kind = failureTooLong
		return f
	}
	if e.Retryable {
		f.RetryAt = retryAt(now, max(backoff(failures, jitter), min(e.RetryAfter, retryAfterMax)))
	}
	return f
}

// explain tells the client what happened and, where trying again is no use, what
// to do.
func explain(e *model.Error) string {
	what := e.Message
	if e.Type == model.NotSetUp && what != "" {
		return strings.ToUpper(what[:1]) + what[1:] + ". Then send a new message."
	}
	if e.Status >= 400 {
		what = fmt.Sprintf("HTTP %d: %s", e.Status, e.Message)
	}
	switch e.Kind {
	case model.Overloaded:
		return fmt.Sprintf("The model is overloaded (%s).", what)
	case model.RateLimited:
		return fmt.Sprintf("The model endpoint limits the rate of requests (%s).", what)
	case model.Billing:
		return fmt.Sprintf("The model endpoint refused the request over billing (%s). Settle that with the provider, then send a new message.", what)
	case model.Auth:
		return fmt.Sprintf("The model endpoint refused this server's credential (%s). Its operator has to correct the model key; then send a new message.", what)
	case model.TooLong:
		return fmt.Sprintf("The conversation is too long for the model, also when summarized (%s). Start a new session with less input.", what)
	}
	if e.Retryable {
		return fmt.Sprintf("The request to the model failed (%s).", what)
	}
	if e.Kind == model.Garbage {
		return fmt.Sprintf("The model endpoint's reply cannot be used (%s). Its operator has to look into it; then send a new message.", what)
	}
	return fmt.Sprintf("The model endpoint refused the request (%s). Trying again will not help: check the agent's model and tools, and what was sent.", what)
}
