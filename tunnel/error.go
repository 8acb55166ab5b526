package tunnel

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A Stage is how far a call came on its way through a tunnel before it failed.
type Stage string

// The stages, in the order of the way: at the plane, at an edge, between the edge and
// the gateway, at the gateway, at the server behind it.
const (
	StageNotActive        Stage = "tunnel_not_active" // it is archived, or has no live CA
	StageEdgeUnreachable  Stage = "edge_unreachable"  // no edge of the tunnel answered
	StageDraining         Stage = "edge_draining"     // the edge takes no new streams: ask another
	StageOverloaded       Stage = "overloaded"        // a limit of the edge's is reached
	StageNoConnector      Stage = "no_connector"      // nothing is attached to the tunnel
	StageTokenRefused     Stage = "token_refused"     // a connector's token is not, or no longer, good
	StageConnectorLost    Stage = "connector_lost"    // the connection broke under the call
	StageInnerTLS         Stage = "inner_tls"         // the gateway's certificate was refused, or its handshake failed
	StageNoRoute          Stage = "no_route"          // the gateway has no server of that name
	StageOtherReplica     Stage = "other_replica"     // another gateway of the tunnel has the session: [ReplicaHeader] says which
	StageRequestRefused   Stage = "request_refused"   // the gateway's own rules refuse the request
	StageCallerRefused    Stage = "caller_refused"    // the gateway asks who calls, and does not take the caller's token
	StageRateLimited      Stage = "rate_limited"      // more calls than the gateway lets through in a time
	StageBodyTooLong      Stage = "body_too_long"     // a longer request than the gateway lets through
	StageAddressRefused   Stage = "address_refused"   // the server's address is not an allowed one
	StageUpstreamRefused  Stage = "upstream_refused"  // the server could not be connected to
	StageUpstreamTimeout  Stage = "upstream_timeout"  // the server did not answer in time
	StageUpstreamStatus   Stage = "upstream_status"   // the server answered with an error of its own
	StageUpstreamProtocol Stage = "upstream_protocol" // the server's answer was no HTTP, or a redirect
	StageTimeout          Stage = "timeout"           // the call's own time was over
	StageProtocol         Stage = "protocol"          // an end does not speak as this package describes
)

// OfCall reports whether a gateway's answer of this stage is about the call and not about
// the way: one that the caller has to see as it is, with its status (400, 401, 403, 413 or 429),
// its challenge and its Retry-After.
func (s Stage) OfCall() bool {
	return s == StageCallerRefused || s == StageRateLimited || s == StageBodyTooLong
}

// An Error is a failure on the way through a tunnel. It says where, so that whoever
// sees it knows whose it is to mend. Neither field holds a secret or anything of what
// was sent.
type Error struct {
	Stage  Stage
	Tunnel string // its id; "" if not known
	Host   string // of the server that was called; "" if not known
	Detail string // one line for people
	Err    error  // the cause; nil if it is on another machine

	// RetryAfter is when it is worth trying again; 0 says nothing.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("tunnel")
	switch {
	case e.Host != "":
		b.WriteString(" to " + e.Host)
	case e.Tunnel != "":
		b.WriteString(" " + e.Tunnel)
	}
	b.WriteString(": " + string(e.Stage))
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Timeout makes an Error of a stage that waited in vain a net.Error's.
func (e *Error) Timeout() bool { return e.Stage == StageTimeout || e.Stage == StageUpstreamTimeout }

// HTTPStatus is the status for a caller that speaks HTTP: 502, 503 or 504 and never
// another, as MCP clients read 404 as the end of a session and other 4xx as their own
// mistake.
func (e *Error) HTTPStatus() int {
	switch e.Stage {
	case StageNotActive, StageEdgeUnreachable, StageDraining, StageOverloaded, StageNoConnector, StageOtherReplica:
		return http.StatusServiceUnavailable
	case StageUpstreamTimeout, StageTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// AsError returns the *Error in err's chain, or nil.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return nil
}

// ErrorHeader is the response header in which a gateway says that an answer is its own
// and why. It removes the header from what servers answer: only a gateway can set it.
const ErrorHeader = "Bailey-Tunnel-Error"

// The bounds of what is read of another machine's error.
const (
	stageMax      = 40
	detailMax     = 500
	retryAfterMax = 5 * time.Minute
)

// HeaderValue is e as the value of [ErrorHeader]: the stage, and the detail quoted.
func (e *Error) HeaderValue() string {
	v := string(e.Stage)
	if e.Detail != "" {
		v += "; detail=" + strconv.QuoteToASCII(oneLine(e.Detail))
	}
	return v
}

// SetHeader puts e into the head of a gateway's answer.
func (e *Error) SetHeader(h http.Header) {
	h.Set(ErrorHeader, e.HeaderValue())
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
}

// ErrorFromHeader reads what [Error.SetHeader] wrote, or returns nil if the answer is
// the server's own. What cannot be read counts as [StageProtocol].
func ErrorFromHeader(h http.Header) *Error {
	v := h.Get(ErrorHeader)
	if v == "" {
		return nil
	}
	stage, rest, _ := strings.Cut(v, ";")
	e := &Error{Stage: Stage(strings.TrimSpace(stage))}
	if !e.Stage.plausible() {
		return &Error{Stage: StageProtocol, Detail: "the gateway's " + ErrorHeader + " header cannot be read"}
	}
	if quoted, ok := strings.CutPrefix(strings.TrimSpace(rest), "detail="); ok {
		if detail, err := strconv.Unquote(quoted); err == nil {
			e.Detail = oneLine(detail)
		}
	}
	if seconds, err := strconv.Atoi(h.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = min(time.Duration(min(seconds, 3600))*time.Second, retryAfterMax)
	}
	return e
}

// plausible reports whether s has the form of a stage. New ones may be added: an old
// plane passes on what a newer gateway says.
func (s Stage) plausible() bool {
	if s == "" || len(s) > stageMax {
		return false
	}
	return !strings.ContainsFunc(string(s), func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') })
}

// oneLine makes text from another machine fit to be shown: one line, bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > detailMax {
		s = strings.ToValidUTF8(s[:detailMax], "") + "…"
	}
	return s
}

// Errorf makes an Error whose detail is formatted.
func Errorf(stage Stage, format string, args ...any) *Error {
	return &Error{Stage: stage, Detail: fmt.Sprintf(format, args...)}
}
