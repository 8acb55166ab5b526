package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// CreateServiceAccount makes a service account.
func (c *Client) CreateServiceAccount(ctx context.Context, in api.ServiceAccountCreate) (*api.ServiceAccount, error) {
	out := new(api.ServiceAccount)
	return out, c.do(ctx, http.MethodPost, "/v1/organizations/service_accounts", nil, in, out)
}

// GetServiceAccount returns a service account.
func (c *Client) GetServiceAccount(ctx context.Context, id api.ServiceAccountID) (*api.ServiceAccount, error) {
	out := new(api.ServiceAccount)
	return out, c.do(ctx, http.MethodGet, path("/v1/organizations/service_accounts/%s", id), nil, nil, out)
}

// ServiceAccounts lists service accounts, the newest first.
func (c *Client) ServiceAccounts(ctx context.Context, o ListOptions) iter.Seq2[*api.ServiceAccount, error] {
	return list[*api.ServiceAccount](ctx, c, "/v1/organizations/service_accounts", o.query())
}

// ArchiveServiceAccount ends a service account, and its access tokens.
func (c *Client) ArchiveServiceAccount(ctx context.Context, id api.ServiceAccountID) (*api.ServiceAccount, error) {
	out := new(api.ServiceAccount)
	return out, c.do(ctx, http.MethodPost, path("/v1/organizations/service_accounts/%s/archive", id), nil, nil, out)
}

// CreateIssuer registers an issuer of workloads' identities.
func (c *Client) CreateIssuer(ctx context.Context, in api.FederationIssuerCreate) (*api.FederationIssuer, error) {
	out := new(api.FederationIssuer)
	return out, c.do(ctx, http.MethodPost, "/v1/organizations/federation_issuers", nil, in, out)
}

// GetIssuer returns an issuer.
func (c *Client) GetIssuer(ctx context.Context, id api.IssuerID) (*api.FederationIssuer, error) {
	out := new(api.FederationIssuer)
	return out, c.do(ctx, http.MethodGet, path("/v1/organizations/federation_issuers/%s", id), nil, nil, out)
}

// Issuers lists issuers, the newest first.
func (c *Client) Issuers(ctx context.Context, o ListOptions) iter.Seq2[*api.FederationIssuer, error] {
	return list[*api.FederationIssuer](ctx, c, "/v1/organizations/federation_issuers", o.query())
}

// ArchiveIssuer ends the trust in an issuer, and what its rules have given out.
func (c *Client) ArchiveIssuer(ctx context.Context, id api.IssuerID) (*api.FederationIssuer, error) {
	out := new(api.FederationIssuer)
	return out, c.do(ctx, http.MethodPost, path("/v1/organizations/federation_issuers/%s/archive", id), nil, nil, out)
}

// CreateRule makes a rule.
func (c *Client) CreateRule(ctx context.Context, in api.FederationRuleCreate) (*api.FederationRule, error) {
	out := new(api.FederationRule)
	return out, c.do(ctx, http.MethodPost, "/v1/organizations/federation_rules", nil, in, out)
}

// GetRule returns a rule.
func (c *Client) GetRule(ctx context.Context, id api.RuleID) (*api.FederationRule, error) {
	out := new(api.FederationRule)
	return out, c.do(ctx, http.MethodGet, path("/v1/organizations/federation_rules/%s", id), nil, nil, out)
}

// Rules lists rules, the newest first.
func (c *Client) Rules(ctx context.Context, o ListOptions) iter.Seq2[*api.FederationRule, error] {
	return list[*api.FederationRule](ctx, c, "/v1/organizations/federation_rules", o.query())
}

// UpdateRule changes a rule.
func (c *Client) UpdateRule(ctx context.Context, id api.RuleID, in api.FederationRuleUpdate) (*api.FederationRule, error) {
	out := new(api.FederationRule)
	return out, c.do(ctx, http.MethodPost, path("/v1/organizations/federation_rules/%s", id), nil, in, out)
}

// ArchiveRule ends a rule, and what it has given out.
func (c *Client) ArchiveRule(ctx context.Context, id api.RuleID) (*api.FederationRule, error) {
	out := new(api.FederationRule)
	return out, c.do(ctx, http.MethodPost, path("/v1/organizations/federation_rules/%s/archive", id), nil, nil, out)
}

// Exchanges lists attempts to exchange an identity, of one rule or with rule "" of all,
// the newest first.
func (c *Client) Exchanges(ctx context.Context, rule api.RuleID, o ListOptions) iter.Seq2[*api.FederationExchange, error] {
	q := o.query()
	if rule != "" {
		q.Set("federation_rule_id", string(rule))
	}
	return list[*api.FederationExchange](ctx, c, "/v1/organizations/federation_exchanges", q)
}
