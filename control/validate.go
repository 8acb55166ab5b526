package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// ValidateCredential tries an mcp_oauth credential at its MCP server. If the server does
// not accept the access token, it is renewed where it can be, and tried again.
func (c *Control) ValidateCredential(ctx context.Context, p Principal, vaultID api.VaultID, id api.CredentialID) (*api.CredentialValidation, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if c.cfg.HTTP == nil {
		return nil, api.Invalid("this server makes no connections to MCP servers")
	}
	cred, secrets, err := c.openCredential(ctx, vaultID, id)
	if err != nil {
		return nil, err
	}
	out := &api.CredentialValidation{
		Type: "vault_credential_validation", CredentialID: id, VaultID: vaultID, Status: api.CredentialUnknown,
		HasRefreshToken: secrets[api.FieldRefreshToken] != "",
	}
	defer func() { out.ValidatedAt = c.cfg.Clock().UTC() }()
	if secrets[api.FieldAccessToken] == "" {
		out.Status = api.CredentialInvalid
		return out, nil
	}
	if err := c.probe(ctx, p, cred, secrets, out); err != nil {
		return nil, err
	}
	if out.MCPProbe == nil || out.MCPProbe.HTTPResponse == nil || out.MCPProbe.HTTPResponse.StatusCode != http.StatusUnauthorized {
		return out, nil
	}
	if !out.HasRefreshToken {
		out.Refresh = &api.RefreshAttempt{Status: api.RefreshNoToken}
		return out, nil
	}
	if err := c.renew(ctx, cred); err != nil {
		return out, notRenewed(out, err)
	}
	out.Refresh = &api.RefreshAttempt{Status: api.RefreshSucceeded}
	out.Status = api.CredentialUnknown
	if cred, secrets, err = c.openCredential(ctx, vaultID, id); err != nil {
		return out, nil //nolint:nilerr // it is gone, or its key is: the new token was not tried
	}
	return out, c.probe(ctx, p, cred, secrets, out)
}

// openCredential reads an mcp_oauth credential that is in use, with its secrets.
func (c *Control) openCredential(ctx context.Context, vaultID api.VaultID, id api.CredentialID) (*store.Credential, api.Secrets, error) {
	var cred *store.Credential
	var sealed []*store.Secret
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		if cred, err = tx.Credential(vaultID, id); err != nil {
			return found(err, "credential", string(id))
		}
		sealed, err = tx.Secrets(string(id))
		return err
	})
	switch {
	case err != nil:
		return nil, nil, err
	case cred.Auth.Type != api.AuthMCPOAuth:
		return nil, nil, api.Invalid("credential %s is of type %s; only mcp_oauth ones can be validated", id, cred.Auth.Type)
	case cred.ArchivedAt != nil:
		return nil, nil, api.Invalid("credential %s is archived", id)
	}
	secrets, err := c.unseal(ctx, sealed)
	return cred, secrets, err
}

// probe tries an access token, and says in out what came of it.
func (c *Control) probe(ctx context.Context, p Principal, cred *store.Credential, secrets api.Secrets, out *api.CredentialValidation) error {
	err := c.announce(audit.Record{
		Action: audit.CredentialUse, Actor: string(p.KeyID), Detail: "validation",
		Attrs: map[string]string{"credential": string(cred.ID), "vault": string(cred.VaultID), "host": hostOf(cred.Auth.MCPServerURL)},
	})
	if err != nil {
		return err
	}
	said, err := c.tryToken(ctx, cred.Auth.MCPServerURL, string(secrets[api.FieldAccessToken]))
	out.MCPProbe = nil
	failed, ok := errors.AsType[*mcp.Error](err)
	switch {
	case err == nil:
		out.Status = api.CredentialValid
		return nil
	case !ok:
		return err
	case said.Refused():
		out.Status = api.CredentialInvalid
	default:
		out.Status = api.CredentialUnknown
	}
	out.MCPProbe = &api.MCPProbe{Method: failed.Doing, HTTPResponse: publicResponse(said)}
	return nil
}

// tryTimeout bounds the whole of a try.
const tryTimeout = 30 * time.Second

// tryToken connects to an MCP server with a token, lists its tools and leaves. Errors are
// [*mcp.Error]s; said is what the server answered then, if it did.
func (c *Control) tryToken(ctx context.Context, serverURL, token string) (said *vault.Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	watch := vault.NewWatch(c.cfg.HTTP.Transport, token)
	client := *c.cfg.HTTP
	client.Transport, client.Timeout = watch, 0
	s, err := mcp.Connect(ctx, mcp.Server{
		Name: "of the credential", URL: serverURL, HTTP: &client, Logger: c.cfg.Logger,
		Authorization: func(context.Context, string) (string, error) { return "Bearer " + token, nil },
	})
	if err != nil {
		return watch.Kept(), err
	}
	defer s.Close()
	watch.Forget()
	_, err = s.Tools(ctx)
	return watch.Kept(), err
}

// notRenewed says in out why a token was not renewed. An error is none of the token
// endpoint's.
func notRenewed(out *api.CredentialValidation, err error) error {
	var said *vault.RefreshError
	switch {
	case errors.As(err, &said) && said.Response == nil:
		out.Refresh, out.Status = &api.RefreshAttempt{Status: api.RefreshConnectError}, api.CredentialUnknown
	case errors.As(err, &said):
		out.Refresh = &api.RefreshAttempt{Status: api.RefreshFailed, HTTPResponse: publicResponse(said.Response)}
		if !said.Final() {
			out.Status = api.CredentialUnknown
		}
	case api.AsError(err) != nil && api.AsError(err).Details["error_code"] == CodeCredentialRefused:
		out.Refresh = &api.RefreshAttempt{Status: api.RefreshFailed} // a little while ago
	default:
		return err
	}
	return nil
}

func publicResponse(r *vault.Response) *api.ProbeResponse {
	if r == nil {
		return nil
	}
	return &api.ProbeResponse{StatusCode: r.Status, ContentType: r.ContentType, Body: r.Body, BodyTruncated: r.Truncated}
}
