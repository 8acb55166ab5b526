package httpapi

import (
	"context"
	"math"

	"github.com/bailey-platform/bailey/api"
)

func (s *Server) createSession(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.SessionCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateSession(ctx, r.who, in)
}

func (s *Server) getSession(ctx context.Context, r *request) (any, error) {
	return s.control.GetSession(ctx, r.who, r.session())
}

func (s *Server) updateSession(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.SessionUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateSession(ctx, r.who, r.session(), in)
}

func (s *Server) archiveSession(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveSession(ctx, r.who, r.session())
}

func (s *Server) deleteSession(ctx context.Context, r *request) (any, error) {
	return s.control.DeleteSession(ctx, r.who, r.session())
}

func (s *Server) listSessions(ctx context.Context, r *request) (any, error) {
	q := r.query()
	f := api.SessionFilter{
		AgentID:         api.AgentID(q.id("agent_id")),
		AgentVersion:    q.integer("agent_version", 1, math.MaxInt64),
		DeploymentID:    q.id("deployment_id"),
		MemoryStoreID:   q.id("memory_store_id"),
		Statuses:        q.statuses(),
		Created:         q.timeRange("created_at"),
		IncludeArchived: q.boolean("include_archived"),
		Order:           q.order(),
	}
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListSessions(ctx, r.who, f, page)
}
