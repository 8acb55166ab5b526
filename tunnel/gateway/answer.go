package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// An answerer takes the answer to one call, in the protocol that the call came in.
// Nothing is sent before flush, or before much has gathered.
type answerer interface {
	// begin takes the head. length is that of the body, or unknownLength; without a body
	// it is only told. The fields are not kept.
	begin(status int, fields []field, length int64, hasBody bool) error

	// write takes a part of the body. It is not kept.
	write(p []byte) error

	// flush sends what was taken.
	flush() error

	// end is the end of the answer. It flushes.
	end(trailer []field) error

	// begun reports whether begin was called.
	begun() bool
}

// A refusal is the gateway's own answer to a call, in place of the server's.
type refusal struct {
	// Why a call did not reach its server. It is told to the platform in a header of its
	// own, but for its cause, which is the operator's to know; and the status follows from
	// it unless one is set. Nil for what reads like a server's own answer, as that a message
	// is none of MCP's.
	provenance *tunnel.Error

	status int
	text   string // for the caller, without provenance

	// The refusal as a JSON-RPC error for each of these ids, which are JSON. A client takes
	// it for the answer to its call and goes on with its session.
	ids  [][]byte
	code int

	fields     []field
	retryAfter time.Duration
	err        error // for the log
}

// Codes of JSON-RPC errors (JSON-RPC 2.0 §5.1; MCP 2026-07-28 for the header's).
const (
	codeParse          = -32700
	codeInvalidRequest = -32600
	codeInvalidParams  = -32602
	codeInternal       = -32603
	codeHeaderMismatch = -32020
)

func (r *refusal) Error() string {
	switch {
	case r.provenance != nil:
		return r.provenance.Error()
	case r.err != nil:
		return r.text + ": " + r.err.Error()
	}
	return r.text
}

// reason is why, for the operator. It holds nothing of a token.
func (r *refusal) reason() string {
	if r.provenance == nil {
		return r.text
	}
	reason := r.provenance.Detail
	if err := r.provenance.Err; err != nil && err.Error() != reason {
		reason += ": " + err.Error()
	}
	return redacted(errors.New(reason))
}

// httpStatus is the status of the answer.
func (r *refusal) httpStatus() int {
	if r.status == 0 {
		return r.provenance.HTTPStatus()
	}
	return r.status
}

// misread is the refusal of what is no proper request.
func misread(err error) *refusal {
	return &refusal{provenance: tunnel.Errorf(tunnel.StageRequestRefused, "%v", err), status: http.StatusBadRequest}
}

// failed is the refusal of a call that did not reach its server, or was lost on the way.
func failed(stage tunnel.Stage, err error, format string, args ...any) *refusal {
	e := tunnel.Errorf(stage, format, args...)
	e.Err = err
	return &refusal{provenance: e}
}

// give writes the refusal as the whole answer.
func (r *refusal) give(to answerer, close bool) error {
	text := r.text
	fields := r.fields
	if p := r.provenance; p != nil {
		text = string(p.Stage)
		if p.Detail != "" {
			text += ": " + p.Detail
		}
		fields = append(fields, newField([]byte(tunnelErrorField), []byte(p.HeaderValue())))
		if r.retryAfter == 0 {
			r.retryAfter = p.RetryAfter
		}
	}
	if r.retryAfter > 0 {
		fields = append(fields, newField([]byte("Retry-After"), strconv.AppendInt(nil, int64((r.retryAfter+time.Second-1)/time.Second), 10)))
	}
	kind := "text/plain; charset=utf-8"
	content := []byte("bailey gateway: " + text + "\n")
	if r.ids != nil {
		kind, content = "application/json", rpcErrors(r.ids, r.code, "gateway: "+text)
	}
	fields = append(fields, newField([]byte("Content-Type"), []byte(kind)))
	if close {
		fields = append(fields, newField([]byte("Connection"), []byte("close")))
	}
	if err := to.begin(r.httpStatus(), fields, int64(len(content)), true); err != nil {
		return err
	}
	if err := to.write(content); err != nil {
		return err
	}
	return to.end(nil)
}
