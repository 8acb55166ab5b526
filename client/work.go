package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// Work lists the work items of an environment, the newest first.
func (c *Client) Work(ctx context.Context, env api.EnvironmentID, o ListOptions) iter.Seq2[*api.Work, error] {
	return list[*api.Work](ctx, c, path("/v1/environments/%s/work", env), o.query())
}

// WorkStats counts the queue of an environment.
func (c *Client) WorkStats(ctx context.Context, env api.EnvironmentID) (*api.WorkStats, error) {
	out := new(api.WorkStats)
	return out, c.do(ctx, http.MethodGet, path("/v1/environments/%s/work/stats", env), nil, nil, out)
}
