package client

import (
	"context"
	"iter"
	"net/http"
	"strconv"

	"github.com/bailey-platform/bailey/api"
)

// CreateSession creates a session.
func (c *Client) CreateSession(ctx context.Context, in api.SessionCreate) (*api.Session, error) {
	out := new(api.Session)
	return out, c.do(ctx, http.MethodPost, "/v1/sessions", nil, in, out)
}

// GetSession returns a session.
func (c *Client) GetSession(ctx context.Context, id api.SessionID) (*api.Session, error) {
	out := new(api.Session)
	return out, c.do(ctx, http.MethodGet, path("/v1/sessions/%s", id), nil, nil, out)
}

// UpdateSession changes a session.
func (c *Client) UpdateSession(ctx context.Context, id api.SessionID, in api.SessionUpdate) (*api.Session, error) {
	out := new(api.Session)
	return out, c.do(ctx, http.MethodPost, path("/v1/sessions/%s", id), nil, in, out)
}

// ArchiveSession ends a session that is not running, for good.
func (c *Client) ArchiveSession(ctx context.Context, id api.SessionID) (*api.Session, error) {
	out := new(api.Session)
	return out, c.do(ctx, http.MethodPost, path("/v1/sessions/%s/archive", id), nil, nil, out)
}

// DeleteSession deletes a session that is not running, with its events.
func (c *Client) DeleteSession(ctx context.Context, id api.SessionID) error {
	return c.do(ctx, http.MethodDelete, path("/v1/sessions/%s", id), nil, nil, nil)
}

// Sessions lists sessions by time of creation. The filter's IncludeArchived and the
// options' are the same.
func (c *Client) Sessions(ctx context.Context, f api.SessionFilter, o ListOptions) iter.Seq2[*api.Session, error] {
	o.IncludeArchived = o.IncludeArchived || f.IncludeArchived
	q := o.query()
	for name, value := range map[string]string{
		"agent_id": string(f.AgentID), "deployment_id": f.DeploymentID,
		"memory_store_id": f.MemoryStoreID, "order": string(f.Order),
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.AgentVersion != 0 {
		q.Set("agent_version", strconv.FormatInt(f.AgentVersion, 10))
	}
	for _, s := range f.Statuses {
		q.Add("statuses[]", string(s))
	}
	setTimes(q, "created_at", f.Created)
	return list[*api.Session](ctx, c, "/v1/sessions", q)
}

// Threads lists the threads of a session.
func (c *Client) Threads(ctx context.Context, id api.SessionID, o ListOptions) iter.Seq2[*api.Thread, error] {
	return list[*api.Thread](ctx, c, path("/v1/sessions/%s/threads", id), o.query())
}
