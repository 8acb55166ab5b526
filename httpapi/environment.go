package httpapi

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

func (s *Server) createEnvironment(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EnvironmentCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateEnvironment(ctx, r.who, in)
}

func (s *Server) getEnvironment(ctx context.Context, r *request) (any, error) {
	return s.control.GetEnvironment(ctx, r.who, r.environment())
}

func (s *Server) updateEnvironment(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EnvironmentUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateEnvironment(ctx, r.who, r.environment(), in)
}

func (s *Server) archiveEnvironment(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveEnvironment(ctx, r.who, r.environment())
}

func (s *Server) deleteEnvironment(ctx context.Context, r *request) (any, error) {
	return s.control.DeleteEnvironment(ctx, r.who, r.environment())
}

func (s *Server) listEnvironments(ctx context.Context, r *request) (any, error) {
	q := r.query()
	archived, page := q.boolean("include_archived"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListEnvironments(ctx, r.who, archived, page)
}
