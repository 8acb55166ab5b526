package httpapi

import "context"

func (s *Server) listThreads(ctx context.Context, r *request) (any, error) {
	q := r.query()
	statuses, page := q.statuses(), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListThreads(ctx, r.who, r.session(), statuses, page)
}

func (s *Server) getThread(ctx context.Context, r *request) (any, error) {
	return s.control.GetThread(ctx, r.who, r.session(), r.thread())
}

func (s *Server) archiveThread(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveThread(ctx, r.who, r.session(), r.thread())
}
