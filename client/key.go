package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/bailey-platform/bailey/api"
)

// CreateKey creates a key of an environment, or with env "" an API key. Its Secret
// is shown only now.
func (c *Client) CreateKey(ctx context.Context, env api.EnvironmentID, in api.KeyCreate) (*api.Key, error) {
	out := new(api.Key)
	return out, c.do(ctx, http.MethodPost, keysPath(env), nil, in, out)
}

// Keys lists the keys of an environment, or with env "" API keys, the newest first.
func (c *Client) Keys(ctx context.Context, env api.EnvironmentID, o ListOptions) iter.Seq2[*api.Key, error] {
	return list[*api.Key](ctx, c, keysPath(env), o.query())
}

// RevokeKey ends a key at once.
func (c *Client) RevokeKey(ctx context.Context, env api.EnvironmentID, id api.KeyID) (*api.Key, error) {
	out := new(api.Key)
	return out, c.do(ctx, http.MethodPost, keysPath(env)+path("/%s/revoke", id), nil, nil, out)
}

func keysPath(env api.EnvironmentID) string {
	if env == "" {
		return "/v1/keys"
	}
	return path("/v1/environments/%s/keys", env)
}
