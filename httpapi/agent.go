package httpapi

import (
	"context"
	"math"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

func (s *Server) createAgent(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.AgentCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateAgent(ctx, r.who, in)
}

func (s *Server) getAgent(ctx context.Context, r *request) (any, error) {
	q := r.query()
	version := q.integer("version", 1, math.MaxInt64)
	if q.err != nil {
		return nil, q.err
	}
	return s.control.GetAgent(ctx, r.who, r.agent(), version)
}

func (s *Server) updateAgent(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.AgentUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateAgent(ctx, r.who, r.agent(), in)
}

func (s *Server) archiveAgent(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveAgent(ctx, r.who, r.agent())
}

func (s *Server) listAgents(ctx context.Context, r *request) (any, error) {
	q := r.query()
	f := control.AgentFilter{Created: q.timeRange("created_at"), IncludeArchived: q.boolean("include_archived")}
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListAgents(ctx, r.who, f, page)
}

func (s *Server) listAgentVersions(ctx context.Context, r *request) (any, error) {
	q := r.query()
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListAgentVersions(ctx, r.who, r.agent(), page)
}
