package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

const (
	bodyMax     = 32 << 20 // bytes
	bodyTimeout = 2 * time.Minute

	// The bodies that are held at a time, in bytes. Small ones have a share of their
	// own, so that a few large ones do not keep everybody else waiting.
	bodySmall      = 256 << 10
	bodiesSmallMax = 64 << 20
	bodiesLargeMax = 512 << 20
	bodiesWait     = 10 * time.Second // for others to be done with theirs
)

// A request is an authenticated request on a known route. Its path parameters are
// well-formed identifiers.
type request struct {
	*http.Request
	s   *Server
	w   *response
	who control.Principal
	rec *record

	give func() // gives the room of the body back; nil while none is taken
	read []byte // the body, once it was read; nil before
}

// room waits until there is room for the body, which is kept until release.
func (r *request) room() error {
	if r.give != nil || r.ContentLength == 0 {
		return nil
	}
	size := r.ContentLength
	if size < 0 || size > bodyMax {
		size = bodyMax
	}
	bodies := r.s.largeBodies
	if size <= bodySmall {
		bodies = r.s.smallBodies
	}
	ctx, cancel := context.WithTimeout(r.Context(), bodiesWait)
	defer cancel()
	if err := bodies.Acquire(ctx, size); err != nil {
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		return api.Overloaded(5*time.Second, "this server holds as many large requests as it can; try again shortly")
	}
	r.give = func() { bodies.Release(size) }
	return nil
}

// release gives the body's room back. Its handler is done with it.
func (r *request) release() {
	if r.give != nil {
		r.give()
	}
}

func (r *request) query() *query { return parseQuery(r.URL.RawQuery) }

func (r *request) agent() api.AgentID { return api.AgentID(r.PathValue("agent")) }
func (r *request) environment() api.EnvironmentID {
	return api.EnvironmentID(r.PathValue("environment"))
}
func (r *request) work() api.WorkID       { return api.WorkID(r.PathValue("work")) }
func (r *request) session() api.SessionID { return api.SessionID(r.PathValue("session")) }
func (r *request) thread() api.ThreadID   { return api.ThreadID(r.PathValue("thread")) }
func (r *request) key() api.KeyID         { return api.KeyID(r.PathValue("key")) }
func (r *request) edge() api.EdgeID       { return api.EdgeID(r.PathValue("edge")) }
func (r *request) attachment() api.AttachmentID {
	return api.AttachmentID(r.PathValue("attachment"))
}
func (r *request) tunnel() api.TunnelID { return api.TunnelID(r.PathValue("tunnel")) }
func (r *request) token() api.TokenID   { return api.TokenID(r.PathValue("token")) }
func (r *request) certificate() api.CertificateID {
	return api.CertificateID(r.PathValue("certificate"))
}
func (r *request) issuer() api.IssuerID { return api.IssuerID(r.PathValue("issuer")) }
func (r *request) rule() api.RuleID     { return api.RuleID(r.PathValue("rule")) }
func (r *request) account() api.ServiceAccountID {
	return api.ServiceAccountID(r.PathValue("account"))
}
func (r *request) shell() api.ShellID { return api.ShellID(r.PathValue("shell")) }
func (r *request) vault() api.VaultID { return api.VaultID(r.PathValue("vault")) }
func (r *request) credential() api.CredentialID {
	return api.CredentialID(r.PathValue("credential"))
}

// body reads the whole body, which may be empty.
func (r *request) body() ([]byte, error) {
	if r.read != nil {
		return r.read, nil
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, api.Invalid("content-encoding: compressed bodies are not accepted")
	}
	if err := r.room(); err != nil {
		return nil, err
	}
	// A body that trickles in must not hold the connection for ever. Errors mean
	// a connection without deadlines, as in tests.
	rc := http.NewResponseController(r.w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()

	data, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, bodyMax))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, api.TooLarge("the body exceeds %d bytes", bodyMax)
		}
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
		return nil, api.Invalid("the body could not be read to its end")
	}
	r.read = data
	return data, nil
}

// decode reads the body as one JSON object of a known shape.
func decode[T any](r *request) (T, error) {
	var v T
	data, err := r.body()
	if err == nil {
		err = api.DecodeStrict(data, &v)
	}
	return v, err
}

// decodeOptional is decode for a body that may be left out.
func decodeOptional[T any](r *request) (T, error) {
	var v T
	data, err := r.body()
	if err == nil && len(data) > 0 {
		err = api.DecodeStrict(data, &v)
	}
	return v, err
}
