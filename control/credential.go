package control

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

// The codes of the errors of [Control.CredentialFor] and [Control.CredentialRefused], in
// their details as error_code. The errors say in words what a person is to do, and hold
// no secret.
const (
	// CodeCredentialRefused: the authorization server will not renew the credential.
	// Somebody has to authorize again; trying again cannot help.
	CodeCredentialRefused = "credential_refused"

	// CodeCredentialUnavailable: the credential cannot be had for now, as what it is
	// sealed with, or the authorization server, does not answer. Trying again may help.
	CodeCredentialUnavailable = "credential_unavailable"
)

// CredentialFor returns what a session sends to the MCP server at serverURL as the value
// of the Authorization header, or "" if no vault of the session has a credential for it:
// the server is then tried without. The first vault with a match wins.
//
// It is asked at every use, not once a connection: a secret that was rotated, archived or
// refreshed reaches running sessions that way. Every use is on record before it is
// returned. An access token that is about to expire is refreshed first, once however many
// callers and replicas wait for it. Errors are [*api.Error]s with one of the codes above.
func (c *Control) CredentialFor(ctx context.Context, session api.SessionID, serverURL string) (header string, err error) {
	return "", nil
}

// CredentialRefused is to be called when the server answered 401 to header, which
// [Control.CredentialFor] returned. It returns another value to try once more with: of a
// token that was refreshed or changed meanwhile. "" means that there is none, and the
// session is to be told that authentication failed.
func (c *Control) CredentialRefused(ctx context.Context, session api.SessionID, serverURL, header string) (another string, err error) {
	return "", nil
}
