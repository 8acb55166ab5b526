package httpapi

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

// The key operations exist twice: below an environment for its keys, and without
// one for API keys.

func (s *Server) createKey(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.KeyCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateKey(ctx, r.who, r.environment(), in)
}

func (s *Server) listKeys(ctx context.Context, r *request) (any, error) {
	q := r.query()
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListKeys(ctx, r.who, r.environment(), page)
}

func (s *Server) revokeKey(ctx context.Context, r *request) (any, error) {
	return s.control.RevokeKey(ctx, r.who, r.environment(), r.key())
}
