package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
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

// renewBefore is how long before its end an access token is renewed.
const renewBefore = time.Minute

// CredentialFor returns what a session sends to the MCP server at serverURL as the value
// of the Authorization header, or "" if no vault of the session has a credential for it:
// the server is then tried without. The first vault with a match wins.
//
// It is asked at every use, not once a connection: a secret that was rotated, archived or
// refreshed reaches running sessions that way. Every use is on record before it is
// returned. An access token that is about to expire is refreshed first, once however many
// callers and replicas wait for it. Errors have an [*api.Error] with one of the codes above
// in their chain, or are of the database or the audit record.
func (c *Control) CredentialFor(ctx context.Context, session api.SessionID, serverURL string) (header string, err error) {
	cred, secrets, err := c.matching(ctx, session, serverURL)
	if err != nil || cred == nil {
		return "", err
	}
	now := c.cfg.Clock()
	if ends := cred.Auth.ExpiresAt; ends != nil && cred.Auth.Refresh != nil && now.After(ends.Add(-renewBefore)) {
		err := c.renew(ctx, cred)
		switch {
		case err == nil:
			// What it is now is read again; it may be another credential by now, or none.
			if cred, secrets, err = c.matching(ctx, session, serverURL); err != nil || cred == nil {
				return "", err
			}
		case now.After(*ends) || ctx.Err() != nil:
			return "", err
		default:
			c.cfg.Logger.Warn("an access token could not be renewed yet", "credential_id", cred.ID, "error", err)
		}
	}
	return c.use(session, cred, secrets)
}

// CredentialRefused is to be called when the server answered 401 to header, which
// [Control.CredentialFor] returned. It returns another value to try once more with: of a
// token that was refreshed or changed meanwhile. "" means that there is none, and the
// session is to be told that authentication failed. Errors are as those of CredentialFor.
func (c *Control) CredentialRefused(ctx context.Context, session api.SessionID, serverURL, header string) (another string, err error) {
	cred, secrets, err := c.matching(ctx, session, serverURL)
	switch {
	case err != nil || cred == nil:
		return "", err
	case bearer(secrets) != header:
		return c.use(session, cred, secrets)
	case cred.Auth.Refresh == nil:
		return "", nil
	case cred.RefreshedAt != nil && c.cfg.Clock().Sub(*cred.RefreshedAt) < renewBefore:
		return "", nil // it is as new as can be: the server wants something else
	}
	if err := c.renew(ctx, cred); err != nil {
		return "", err
	}
	if cred, secrets, err = c.matching(ctx, session, serverURL); err != nil || cred == nil {
		return "", err
	}
	return c.use(session, cred, secrets)
}

// matching finds the credential of a session for a server, with its secrets. Nil means
// that there is none.
func (c *Control) matching(ctx context.Context, session api.SessionID, serverURL string) (*store.Credential, api.Secrets, error) {
	target := (&api.CredentialAuth{Type: api.AuthStaticBearer, MCPServerURL: serverURL}).Target()
	var cred *store.Credential
	var sealed []*store.Secret
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(session)
		if err != nil {
			return found(err, "session", string(session))
		}
		for _, vault := range s.VaultIDs {
			if cred, err = tx.CredentialFor(vault, target); err == nil {
				sealed, err = tx.Secrets(string(cred.ID))
			}
			if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			cred = nil
		}
		return nil
	})
	if err != nil || cred == nil {
		return nil, nil, err
	}
	secrets, err := c.unseal(ctx, sealed)
	return cred, secrets, err
}

// bearer is the header that a credential of an MCP server makes.
func bearer(secrets api.Secrets) string {
	token := secrets[api.FieldToken] + secrets[api.FieldAccessToken] // it has one of them
	return "Bearer " + string(token)
}

// use records that a credential is about to be used, and returns its header.
func (c *Control) use(session api.SessionID, cred *store.Credential, secrets api.Secrets) (string, error) {
	err := c.announce(audit.Record{
		Action: audit.CredentialUse, Actor: ownActor, Session: string(session),
		Attrs: map[string]string{"credential": string(cred.ID), "vault": string(cred.VaultID), "host": hostOf(cred.Auth.MCPServerURL)},
	})
	if err != nil {
		return "", fmt.Errorf("the audit record cannot be written: %w", err)
	}
	return bearer(secrets), nil
}

// ownActor is who acts where the server does so by itself, in the audit record.
const ownActor = "this process"

func hostOf(serverURL string) string {
	u, err := url.Parse(serverURL)
	if err != nil {
		return ""
	}
	return u.Host
}

// refused is the error for a credential that cannot be renewed.
func refused(cred *store.Credential, why string) *api.Error {
	no := false
	return &api.Error{
		Status: http.StatusUnauthorized, Type: api.TypeAuthentication, Retry: &no,
		Message: fmt.Sprintf("credential %s for %s cannot be renewed: %s; authorize again and update it", cred.ID, cred.Auth.MCPServerURL, why),
		Details: map[string]any{"error_code": CodeCredentialRefused, "error_visibility": "user_facing"},
	}
}

// unavailable is the error for a credential that cannot be renewed for now.
func unavailable(cred *store.Credential, why string) *api.Error {
	return &api.Error{
		Status: http.StatusServiceUnavailable, Type: api.TypeAPI, RetryAfter: renewPause,
		Message: fmt.Sprintf("credential %s for %s cannot be renewed for now: %s", cred.ID, cred.Auth.MCPServerURL, why),
		Details: map[string]any{"error_code": CodeCredentialUnavailable, "error_visibility": "user_facing"},
	}
}
