package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// CreateEnvironment creates an environment.
func (c *Client) CreateEnvironment(ctx context.Context, in api.EnvironmentCreate) (*api.Environment, error) {
	out := new(api.Environment)
	return out, c.do(ctx, http.MethodPost, "/v1/environments", nil, in, out)
}

// GetEnvironment returns an environment.
func (c *Client) GetEnvironment(ctx context.Context, id api.EnvironmentID) (*api.Environment, error) {
	out := new(api.Environment)
	return out, c.do(ctx, http.MethodGet, path("/v1/environments/%s", id), nil, nil, out)
}

// UpdateEnvironment changes an environment.
func (c *Client) UpdateEnvironment(ctx context.Context, id api.EnvironmentID, in api.EnvironmentUpdate) (*api.Environment, error) {
	out := new(api.Environment)
	return out, c.do(ctx, http.MethodPost, path("/v1/environments/%s", id), nil, in, out)
}

// ArchiveEnvironment archives an environment, for good.
func (c *Client) ArchiveEnvironment(ctx context.Context, id api.EnvironmentID) (*api.Environment, error) {
	out := new(api.Environment)
	return out, c.do(ctx, http.MethodPost, path("/v1/environments/%s/archive", id), nil, nil, out)
}

// DeleteEnvironment deletes an environment.
func (c *Client) DeleteEnvironment(ctx context.Context, id api.EnvironmentID) error {
	return c.do(ctx, http.MethodDelete, path("/v1/environments/%s", id), nil, nil, nil)
}

// Environments lists environments, the newest first.
func (c *Client) Environments(ctx context.Context, o ListOptions) iter.Seq2[*api.Environment, error] {
	return list[*api.Environment](ctx, c, "/v1/environments", o.query())
}
