package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/bailey-platform/bailey/api"
)

// CreateAgent creates an agent.
func (c *Client) CreateAgent(ctx context.Context, in api.AgentCreate) (*api.Agent, error) {
	out := new(api.Agent)
	return out, c.do(ctx, http.MethodPost, "/v1/agents", nil, in, out)
}

// GetAgent returns a version of an agent; 0 is the newest.
func (c *Client) GetAgent(ctx context.Context, id api.AgentID, version int64) (*api.Agent, error) {
	query := url.Values{}
	if version != 0 {
		query.Set("version", strconv.FormatInt(version, 10))
	}
	out := new(api.Agent)
	return out, c.do(ctx, http.MethodGet, path("/v1/agents/%s", id), query, nil, out)
}

// UpdateAgent changes an agent, which makes a new version of it.
func (c *Client) UpdateAgent(ctx context.Context, id api.AgentID, in api.AgentUpdate) (*api.Agent, error) {
	out := new(api.Agent)
	return out, c.do(ctx, http.MethodPost, path("/v1/agents/%s", id), nil, in, out)
}

// ArchiveAgent archives an agent, for good.
func (c *Client) ArchiveAgent(ctx context.Context, id api.AgentID) (*api.Agent, error) {
	out := new(api.Agent)
	return out, c.do(ctx, http.MethodPost, path("/v1/agents/%s/archive", id), nil, nil, out)
}

// Agents lists agents, the newest first.
func (c *Client) Agents(ctx context.Context, o ListOptions) iter.Seq2[*api.Agent, error] {
	return list[*api.Agent](ctx, c, "/v1/agents", o.query())
}

// AgentVersions lists the versions of an agent, the newest first.
func (c *Client) AgentVersions(ctx context.Context, id api.AgentID, o ListOptions) iter.Seq2[*api.Agent, error] {
	return list[*api.Agent](ctx, c, path("/v1/agents/%s/versions", id), o.query())
}
