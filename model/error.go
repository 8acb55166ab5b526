package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/oauth2"
)

// Kind sorts failures by what the caller should do about them.
type Kind string

const (
	Overloaded  Kind = "overloaded"   // the endpoint has no capacity now
	RateLimited Kind = "rate_limited" // this key asks too often
	Failed      Kind = "failed"       // the endpoint could not, or would not, do it
	Billing     Kind = "billing"      // no credit, or a spend limit is reached
	Auth        Kind = "auth"         // the credential is missing, wrong or not allowed
	TooLong     Kind = "too_long"     // the request exceeds the context or the body limit
	Interrupted Kind = "interrupted"  // the reply was cut, stalled, or never began
	Garbage     Kind = "garbage"      // the reply is not a sound message
	Unsupported Kind = "unsupported"  // this endpoint does not have the operation
)

// NotSetUp is the Type of an error of whoever stands in for an endpoint that nobody has
// set up. Its message says what to do.
const NotSetUp = "model_not_set_up"

// maxMessageLen bounds Error.Message, in bytes.
const maxMessageLen = 2_000

// An Error is any failure of the endpoint, or of the way to it. A call ended by
// its own context is not one: that error wraps ctx.Err().
type Error struct {
	Kind Kind

	// Status is the HTTP status of the reply; 0 if none came, 200 for a failure
	// inside a stream.
	Status int

	// Type is the endpoint's own error type ("overloaded_error"), if it named one.
	Type string

	// Message is one line for a person, at most 2,000 bytes. It holds no key.
	Message string

	// RequestID is the endpoint's id of the request, if it gave one.
	RequestID string

	// RetryAfter is the wait the endpoint asks for; 0 if it asks for none. At
	// most one day.
	RetryAfter time.Duration

	// Retryable says that the same request may succeed later.
	Retryable bool

	// Begun says that [Client.Forward] had already written part of the reply, so
	// nothing sensible can be written any more.
	Begun bool
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("model: ")
	b.WriteString(strings.ReplaceAll(string(e.Kind), "_", " "))
	if e.Status != 0 && e.Status != http.StatusOK {
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	}
	b.WriteString(": ")
	b.WriteString(e.Message)
	return b.String()
}

// Causes of a call that this package cancelled itself.
var (
	errFirstByte = errors.New("no reply within the limit")
	errIdle      = errors.New("the reply stopped arriving")
	errTotal     = errors.New("the call took longer than the limit")
)

// transportError explains why no whole reply came. caller is the context the
// call was made with, inner the one this package derived from it.
func (c *Client) transportError(caller, inner context.Context, doing string, err error) error {
	if caller.Err() != nil {
		return fmt.Errorf("model: %s: %w", doing, caller.Err())
	}
	e := &Error{Kind: Interrupted, Retryable: true}
	switch cause := context.Cause(inner); cause {
	case errFirstByte:
		e.Message = fmt.Sprintf("%s sent no reply within %s", c.host, c.cfg.FirstByteTimeout)
		return e
	case errIdle:
		e.Message = fmt.Sprintf("%s sent nothing for %s", c.host, c.cfg.IdleTimeout)
		return e
	case errTotal:
		e.Message = fmt.Sprintf("the call to %s took longer than %s", c.host, c.cfg.Timeout)
		return e
	}

	var token *oauth2.RetrieveError
	var viaURL *url.Error
	switch {
	case errors.As(err, &token):
		// Its text quotes the token endpoint's whole reply.
		e.Kind, e.Message = Auth, "the identity provider refused to issue a token for "+c.host
		e.Retryable = token.Response != nil && token.Response.StatusCode >= 500
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		e.Message = c.host + " closed the connection"
	case errors.As(err, &viaURL):
		// Only the cause: the text of a url.Error quotes the whole URL.
		e.Message = c.clean(fmt.Sprintf("cannot reach %s: %v", c.host, viaURL.Err))
	case doing == doingSend:
		// What failed before anything was sent: credentials, signing, model ids.
		e.Kind, e.Message = Auth, c.clean(fmt.Sprintf("cannot make a request to %s: %v", c.host, err))
	default:
		e.Message = c.clean(fmt.Sprintf("the reply from %s broke off: %v", c.host, err))
	}
	return e
}

// statusError turns an error reply into an Error. body may be cut short.
func (c *Client) statusError(res *http.Response, body []byte) *Error {
	if res.StatusCode < 400 {
		return &Error{Kind: Failed, Status: res.StatusCode,
			Message: fmt.Sprintf("%s answered HTTP %d, which is neither a reply nor an error (redirects are not followed)", c.host, res.StatusCode)}
	}
	reply := parseErrorBody(body)
	if reply.Type == "" {
		// Bedrock names the exception in a header.
		reply.Type, _, _ = strings.Cut(res.Header.Get("X-Amzn-Errortype"), ":")
	}
	e := c.classify(res.StatusCode, reply)
	e.RequestID = requestID(res.Header)
	e.RetryAfter = retryAfter(res.Header, time.Now())
	switch res.Header.Get("X-Should-Retry") {
	case "true":
		e.Retryable = true
	case "false":
		e.Retryable = false
	}
	return e
}

// An errorReply is what the known error bodies have in common.
type errorReply struct {
	Type, Code, Message string
}

// parseErrorBody reads the error envelopes in use: {"error":{type,message,
// details:{error_code}}} of the Messages API, OpenAI's kin of it with a code,
// and the bare {"message"} or {"detail"} of gateways. Anything else gives
// nothing, so that no HTML page ends up in a session.
func parseErrorBody(body []byte) errorReply {
	var envelope struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
		Type    string          `json:"__type"`
	}
	// A field of an unexpected type still leaves the others filled in.
	_ = json.Unmarshal(body, &envelope)

	var inner struct {
		Type    string          `json:"type"`
		Message string          `json:"message"`
		Code    json.RawMessage `json:"code"`
		Details struct {
			Code string `json:"error_code"`
		} `json:"details"`
	}
	_ = json.Unmarshal(envelope.Error, &inner)
	reply := errorReply{Type: inner.Type, Code: inner.Details.Code, Message: inner.Message}
	if reply.Code == "" {
		_ = json.Unmarshal(inner.Code, &reply.Code)
	}
	if reply.Message == "" {
		_ = json.Unmarshal(envelope.Error, &reply.Message) // {"error":"text"}
	}
	if reply.Message == "" {
		reply.Message = envelope.Message
	}
	if reply.Message == "" {
		_ = json.Unmarshal(envelope.Detail, &reply.Message)
	}
	if reply.Type == "" {
		reply.Type = envelope.Type
	}
	return reply
}

// billingCodes are the error codes that mean money although their status or
// type says otherwise: no wait within a session's life cures them.
var billingCodes = map[string]bool{
	"contract_spend_limit_reached":            true,
	"enforced_spend_limit_reached":            true,
	"linked_organization_billing_unavailable": true,
	"linked_organization_spend_limit_reached": true,
	"user_profile_billing_not_authorized":     true,
	"user_profile_not_billable":               true,
}

// tooLongPhrases recognize a prompt over the context window, which is a plain
// 400 everywhere: Anthropic, Bedrock, vLLM.
var tooLongPhrases = []string{
	"prompt is too long", "input is too long", "exceed context limit", "maximum context length", "context window",
}

// classify decides what an error means from its status, type and code; the
// text is consulted only where nothing else tells the cases apart.
func (c *Client) classify(status int, reply errorReply) *Error {
	e := &Error{Kind: Failed, Status: status, Type: c.clean(reply.Type), Message: c.clean(reply.Message)}
	if strings.TrimSpace(e.Message) == "" {
		e.Message = strings.TrimSpace(fmt.Sprintf("%s reported an error without a text (HTTP %d) %s", c.host, status, e.Type))
	}
	kind := strings.ToLower(reply.Type)
	text := strings.ToLower(reply.Message)
	has := func(s string, parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(s, part) {
				return true
			}
		}
		return false
	}
	switch {
	case kind == "billing_error" || status == http.StatusPaymentRequired || billingCodes[reply.Code],
		kind == "invalid_request_error" && has(text, "credit balance is too low"):
		e.Kind = Billing
	case kind == "overloaded_error" || status == 529 || has(kind, "serviceunavailable", "modelnotready"):
		e.Kind, e.Retryable = Overloaded, true
	case kind == "rate_limit_error" || status == http.StatusTooManyRequests || has(kind, "throttling"):
		e.Kind, e.Retryable = RateLimited, true
	case kind == "authentication_error" || kind == "permission_error" || has(kind, "accessdenied", "unrecognizedclient"),
		status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.Kind = Auth
	case kind == "request_too_large" || status == http.StatusRequestEntityTooLarge,
		status < 500 && has(text, tooLongPhrases...):
		e.Kind = TooLong
	case kind == "api_error" || kind == "timeout_error" || has(kind, "internalserver", "modelstreamerror", "modeltimeout"),
		status >= 500, status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusTooEarly:
		e.Retryable = true
	}
	return e
}

// garbage reports a reply that is not a sound message. The model may well do
// better when asked again.
func garbage(format string, args ...any) *Error {
	return &Error{Kind: Garbage, Status: http.StatusOK, Retryable: true, Message: fmt.Sprintf(format, args...)}
}

// clean makes foreign text fit to show: one bounded line without the key.
func (c *Client) clean(text string) string {
	text = c.blankKey(text)
	if len(text) > maxMessageLen {
		text = text[:maxMessageLen-len("…")] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

// blankKey guards against an endpoint that quotes the key it was sent. A key
// too short to be one is not looked for: it would blank out ordinary words.
func (c *Client) blankKey(text string) string {
	if len(c.cfg.Key) < 8 {
		return text
	}
	return strings.ReplaceAll(text, c.cfg.Key, "[key]")
}

// retryAfterMax bounds what an endpoint may ask for.
const retryAfterMax = 24 * time.Hour

// retryAfter reads Retry-After-Ms, else Retry-After in seconds or as a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	wait := time.Duration(0)
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil {
		wait = durationOf(ms, time.Millisecond)
	} else if s, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil {
		wait = durationOf(s, time.Second)
	} else if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), retryAfterMax)
}

// durationOf avoids the overflow of a huge, and the trap of a NaN, number.
func durationOf(n float64, unit time.Duration) time.Duration {
	if !(n > 0) {
		return 0
	}
	if n > float64(retryAfterMax/unit) {
		return retryAfterMax
	}
	return time.Duration(n * float64(unit))
}

func requestID(h http.Header) string {
	for _, name := range []string{"Request-Id", "X-Amzn-Requestid", "X-Request-Id"} {
		if id := h.Get(name); id != "" && len(id) <= 200 {
			return id
		}
	}
	return ""
}
