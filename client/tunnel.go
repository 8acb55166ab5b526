package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// CreateTunnel makes a tunnel. It is not to be repeated blindly: every call makes one.
func (c *Client) CreateTunnel(ctx context.Context, in api.TunnelCreate) (*api.Tunnel, error) {
	out := new(api.Tunnel)
	return out, c.do(ctx, http.MethodPost, "/v1/tunnels", nil, in, out)
}

// GetTunnel returns a tunnel.
func (c *Client) GetTunnel(ctx context.Context, id api.TunnelID) (*api.Tunnel, error) {
	out := new(api.Tunnel)
	return out, c.do(ctx, http.MethodGet, path("/v1/tunnels/%s", id), nil, nil, out)
}

// Tunnels lists tunnels, the newest first.
func (c *Client) Tunnels(ctx context.Context, o ListOptions) iter.Seq2[*api.Tunnel, error] {
	return list[*api.Tunnel](ctx, c, "/v1/tunnels", o.query())
}

// ArchiveTunnel ends a tunnel, for good.
func (c *Client) ArchiveTunnel(ctx context.Context, id api.TunnelID) (*api.Tunnel, error) {
	out := new(api.Tunnel)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/archive", id), nil, nil, out)
}

// RevealToken returns a tunnel's current token.
func (c *Client) RevealToken(ctx context.Context, id api.TunnelID) (*api.TunnelToken, error) {
	out := new(api.TunnelToken)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/reveal_token", id), nil, nil, out)
}

// RotateToken gives a tunnel another token.
func (c *Client) RotateToken(ctx context.Context, id api.TunnelID, in api.TokenRotate) (*api.TunnelToken, error) {
	out := new(api.TunnelToken)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/rotate_token", id), nil, in, out)
}

// CreateSecondToken gives a tunnel a second token. Its text is shown only now.
func (c *Client) CreateSecondToken(ctx context.Context, id api.TunnelID, in api.TokenCreate) (*api.TunnelToken, error) {
	out := new(api.TunnelToken)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/tokens", id), nil, in, out)
}

// TunnelTokens lists the tokens that connectors may attach with, without their texts.
func (c *Client) TunnelTokens(ctx context.Context, id api.TunnelID) iter.Seq2[*api.TunnelTokenInfo, error] {
	return list[*api.TunnelTokenInfo](ctx, c, path("/v1/tunnels/%s/tokens", id), ListOptions{}.query())
}

// RevokeTunnelToken ends a second token, or the overlap of a rotated one.
func (c *Client) RevokeTunnelToken(ctx context.Context, id api.TunnelID, token api.TokenID) (*api.TunnelTokenInfo, error) {
	out := new(api.TunnelTokenInfo)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/tokens/%s/revoke", id, token), nil, nil, out)
}

// AddCertificate registers a CA certificate, in PEM, on a tunnel.
func (c *Client) AddCertificate(ctx context.Context, id api.TunnelID, caPEM string) (*api.TunnelCertificate, error) {
	out := new(api.TunnelCertificate)
	in := api.CertificateCreate{CACertificatePEM: caPEM}
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/certificates", id), nil, in, out)
}

// GetCertificate returns a certificate of a tunnel.
func (c *Client) GetCertificate(ctx context.Context, id api.TunnelID, cert api.CertificateID) (*api.TunnelCertificate, error) {
	out := new(api.TunnelCertificate)
	return out, c.do(ctx, http.MethodGet, path("/v1/tunnels/%s/certificates/%s", id, cert), nil, nil, out)
}

// Certificates lists the certificates of a tunnel, the newest first.
func (c *Client) Certificates(ctx context.Context, id api.TunnelID, o ListOptions) iter.Seq2[*api.TunnelCertificate, error] {
	return list[*api.TunnelCertificate](ctx, c, path("/v1/tunnels/%s/certificates", id), o.query())
}

// ArchiveCertificate ends a tunnel's trust in a CA.
func (c *Client) ArchiveCertificate(ctx context.Context, id api.TunnelID, cert api.CertificateID) (*api.TunnelCertificate, error) {
	out := new(api.TunnelCertificate)
	return out, c.do(ctx, http.MethodPost, path("/v1/tunnels/%s/certificates/%s/archive", id, cert), nil, nil, out)
}
