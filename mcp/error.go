package mcp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
)

// A Kind sorts failures by what can be done about them.
type Kind string

const (
	Connection     Kind = "connection"     // the server cannot be reached, or breaks off, or breaks the protocol
	Authentication Kind = "authentication" // it refuses the credential, or asks for one that is not there
	Timeout        Kind = "timeout"        // it did not answer in time
	TooLarge       Kind = "too_large"      // it sent more than it may
	Canceled       Kind = "canceled"       // the caller's context ended
)

// What was being done, as errors say it.
const (
	doingConnect = "initialize"
	doingList    = "tools/list"
	doingCall    = "tools/call"
)

// An Error is any failure of a server, or of the way to it. A tool that fails is none: its
// [Result] says so.
type Error struct {
	Server string // its name
	Kind   Kind
	Doing  string // the request of the protocol that failed
	Status int    // of the HTTP answer, if it was an error's

	// MayHaveRun is set on the error of a call whose request may have reached the server,
	// so that the tool may have had its effect.
	MayHaveRun bool

	Message string // in one line for a person, without credentials; at most 1,000 bytes
	Err     error  // what is behind it; the provenance of a tunnel's failure, for one
}

func (e *Error) Error() string {
	return fmt.Sprintf("MCP server '%s' %s failed: %s", e.Server, e.Doing, e.Message)
}

func (e *Error) Unwrap() error { return e.Err }

const messageBytesMax = 1000

// explain says what a failure was. The SDK's own errors say little: the trace knows more.
func (t *trace) explain(ctx context.Context, err error) *Error {
	e := &Error{Kind: Connection, Status: t.failedStatus(), Err: err}
	failure := t.failure()
	var via *url.Error
	var withheld *credentialError
	switch {
	case context.Cause(ctx) == errTimeout:
		e.Kind, e.Message = Timeout, "no answer in time"
	case ctx.Err() != nil:
		e.Kind, e.Message, e.Err = Canceled, "it was given up", ctx.Err()
	case errors.Is(failure, errTooLarge):
		e.Kind, e.Message = TooLarge, failure.Error()
	case failure != nil && errors.As(failure, &withheld):
		e.Kind, e.Message, e.Err = withheld.kind(), withheld.Error(), failure
	case t.provenance != "" && e.Status != 0:
		e.Message = fmt.Sprintf("%s (HTTP %d)", clean(t.provenance), e.Status)
		if t.denied() {
			e.Kind = Authentication
		}
	case t.denied():
		e.Kind, e.Message = Authentication, fmt.Sprintf("the server refuses the credential, or needs one (HTTP %d)", e.Status)
	case e.Status >= 500:
		e.Message = fmt.Sprintf("upstream server error (HTTP %d)", e.Status)
	case e.Status == http.StatusForbidden:
		e.Message = "the server answered HTTP 403 Forbidden (if it guards against DNS rebinding, it has to be told of the host of this URL, or a gateway in front of it to send the server's own: host: rewrite)"
	case e.Status != 0:
		e.Message = strings.TrimSpace(fmt.Sprintf("the server answered HTTP %d %s", e.Status, http.StatusText(e.Status)))
	case refusalIn(err) != nil:
		e.Message = said(refusalIn(err))
	case errors.As(failure, &via):
		e.Message, e.Err = via.Err.Error(), failure // without the URL, which may hold a secret
	case failure != nil:
		e.Message, e.Err = failure.Error(), failure
	case errors.As(err, &via):
		e.Message = via.Err.Error()
	case errors.Is(err, sdk.ErrConnectionClosed):
		e.Message = "the connection ended without an answer"
	default:
		e.Message = err.Error()
	}
	if e.Status != 0 && t.says != "" && t.provenance == "" {
		e.Message += ": " + clean(t.says)
	}
	return e
}

// refusalIn is the protocol's own error in what the SDK returned, or nil.
func refusalIn(err error) *jsonrpc.Error {
	var refusal *jsonrpc.Error
	if errors.As(err, &refusal) && refusal.Code != codeRejected {
		return refusal
	}
	return nil
}

// codeRejected is that of an error by which the SDK marks failures of the transport.
const codeRejected = -32005

func said(refusal *jsonrpc.Error) string {
	return fmt.Sprintf("%s (%d)", clean(refusal.Message), refusal.Code)
}

// A credentialError is why there is no credential. What a person may be told of it is an
// [*api.Error]'s message; the rest is for logs.
type credentialError struct{ err error }

func (e *credentialError) Error() string {
	var public *api.Error
	if errors.As(e.err, &public) {
		return public.Message
	}
	return "its credential cannot be had; the server's log says why"
}

func (e *credentialError) Unwrap() error { return e.err }

// kind is Authentication only where trying again cannot help.
func (e *credentialError) kind() Kind {
	var public *api.Error
	if errors.As(e.err, &public) && public.Retry != nil && !*public.Retry {
		return Authentication
	}
	return Connection
}

var errTooLarge = errors.New("the server sent more than it may")

// clean makes foreign text fit to show: one bounded line.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if len(text) > messageBytesMax {
		text = strings.ToValidUTF8(text[:messageBytesMax-len("…")], "") + "…"
	}
	return strings.TrimSpace(text)
}
