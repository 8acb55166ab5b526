package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// CreateVault creates a vault.
func (c *Client) CreateVault(ctx context.Context, in api.VaultCreate) (*api.Vault, error) {
	out := new(api.Vault)
	return out, c.do(ctx, http.MethodPost, "/v1/vaults", nil, in, out)
}

// GetVault returns a vault.
func (c *Client) GetVault(ctx context.Context, id api.VaultID) (*api.Vault, error) {
	out := new(api.Vault)
	return out, c.do(ctx, http.MethodGet, path("/v1/vaults/%s", id), nil, nil, out)
}

// UpdateVault changes a vault.
func (c *Client) UpdateVault(ctx context.Context, id api.VaultID, in api.VaultUpdate) (*api.Vault, error) {
	out := new(api.Vault)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s", id), nil, in, out)
}

// ArchiveVault archives a vault and its credentials, for good.
func (c *Client) ArchiveVault(ctx context.Context, id api.VaultID) (*api.Vault, error) {
	out := new(api.Vault)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/archive", id), nil, nil, out)
}

// DeleteVault deletes a vault and its credentials.
func (c *Client) DeleteVault(ctx context.Context, id api.VaultID) error {
	return c.do(ctx, http.MethodDelete, path("/v1/vaults/%s", id), nil, nil, nil)
}

// Vaults lists vaults, the newest first.
func (c *Client) Vaults(ctx context.Context, o ListOptions) iter.Seq2[*api.Vault, error] {
	return list[*api.Vault](ctx, c, "/v1/vaults", o.query())
}

// CreateCredential puts a credential into a vault. Its secrets are never given back.
func (c *Client) CreateCredential(ctx context.Context, vault api.VaultID, in api.CredentialCreate) (*api.Credential, error) {
	out := new(api.Credential)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/credentials", vault), nil, in, out)
}

// GetCredential returns a credential, without its secrets.
func (c *Client) GetCredential(ctx context.Context, vault api.VaultID, id api.CredentialID) (*api.Credential, error) {
	out := new(api.Credential)
	return out, c.do(ctx, http.MethodGet, path("/v1/vaults/%s/credentials/%s", vault, id), nil, nil, out)
}

// UpdateCredential changes a credential, and its secrets.
func (c *Client) UpdateCredential(ctx context.Context, vault api.VaultID, id api.CredentialID, in api.CredentialUpdate) (*api.Credential, error) {
	out := new(api.Credential)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/credentials/%s", vault, id), nil, in, out)
}

// ArchiveCredential archives a credential, for good; its secrets are removed.
func (c *Client) ArchiveCredential(ctx context.Context, vault api.VaultID, id api.CredentialID) (*api.Credential, error) {
	out := new(api.Credential)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/credentials/%s/archive", vault, id), nil, nil, out)
}

// DeleteCredential deletes a credential.
func (c *Client) DeleteCredential(ctx context.Context, vault api.VaultID, id api.CredentialID) error {
	return c.do(ctx, http.MethodDelete, path("/v1/vaults/%s/credentials/%s", vault, id), nil, nil, nil)
}

// Credentials lists the credentials of a vault, the newest first.
func (c *Client) Credentials(ctx context.Context, vault api.VaultID, o ListOptions) iter.Seq2[*api.Credential, error] {
	return list[*api.Credential](ctx, c, path("/v1/vaults/%s/credentials", vault), o.query())
}

// ValidateCredential tries an mcp_oauth credential at its MCP server.
func (c *Client) ValidateCredential(ctx context.Context, vault api.VaultID, id api.CredentialID) (*api.CredentialValidation, error) {
	out := new(api.CredentialValidation)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/credentials/%s/mcp_oauth_validate", vault, id), nil, nil, out)
}

// OAuthRequest has the server make one request of an authorization, at a host behind a
// tunnel. It is not made twice.
func (c *Client) OAuthRequest(ctx context.Context, vault api.VaultID, in api.OAuthRequest) (*api.OAuthAnswer, error) {
	out := new(api.OAuthAnswer)
	return out, c.do(ctx, http.MethodPost, path("/v1/vaults/%s/credentials/oauth_request", vault), nil, in, out)
}

// VaultKeys lists the keys that the server's secrets are sealed with, the current one
// first.
func (c *Client) VaultKeys(ctx context.Context) (*api.VaultKeys, error) {
	out := new(api.VaultKeys)
	return out, c.do(ctx, http.MethodGet, "/v1/vault_keys", nil, nil, out)
}

// RotateVaultKey moves the server's secrets to a new key: as many as one request moves. The
// rest is moved by asking again with RewrapOnly and the answer's NextPage.
func (c *Client) RotateVaultKey(ctx context.Context, in api.VaultKeyRotate) (*api.VaultKeyRotation, error) {
	out := new(api.VaultKeyRotation)
	return out, c.do(ctx, http.MethodPost, "/v1/vault_keys/rotate", nil, in, out)
}
