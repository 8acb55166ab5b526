package httpapi

import (
	"context"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// The operations of edges, and what a tunnel's owner sees of them. All are ours.

func (s *Server) registerEdge(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EdgeRegister](r)
	if err != nil {
		return nil, err
	}
	return s.control.RegisterEdge(ctx, r.who, in)
}

func (s *Server) listEdges(ctx context.Context, r *request) (any, error) {
	q := r.query()
	page, gone := q.page(), q.boolean("include_gone")
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListEdges(ctx, r.who, gone, page)
}

func (s *Server) leaveEdge(ctx context.Context, r *request) (any, error) {
	return s.control.LeaveEdge(ctx, r.who, r.edge())
}

func (s *Server) certifyEdge(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EdgeCertificateRequest](r)
	if err != nil {
		return nil, err
	}
	return s.control.CertifyEdge(ctx, r.who, r.edge(), in)
}

func (s *Server) attachTunnel(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.EdgeAttach](r)
	if err != nil {
		return nil, err
	}
	return s.control.AttachTunnel(ctx, r.who, r.edge(), in)
}

func (s *Server) detachTunnel(ctx context.Context, r *request) (any, error) {
	in, err := decodeOptional[api.EdgeDetach](r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.control.DetachTunnel(ctx, r.who, r.edge(), r.attachment(), in)
}

func (s *Server) reportEdge(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	in, err := decode[api.EdgeReport](r)
	if err != nil {
		return nil, err
	}
	return s.control.ReportEdge(ctx, r.who, r.edge(), in)
}

// edgeChanges answers an edge that waits for something to do.
func (s *Server) edgeChanges(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	q := r.query()
	block := q.milliseconds("block_ms", time.Millisecond, api.EdgeChangesMax)
	revision := q.text("edges_revision")
	if q.err != nil {
		return nil, q.err
	}
	ctx, end := s.untilStreamsEnd(ctx)
	defer end()
	changes, err := s.control.EdgeChanges(ctx, r.who, r.edge(), revision, block)
	return changes, s.stoppingOr(err)
}

func (s *Server) listAuthorities(ctx context.Context, r *request) (any, error) {
	all, err := s.control.ListAuthorities(ctx, r.who)
	return api.Page[*api.Authority]{Data: all}, err
}

func (s *Server) rotateAuthority(ctx context.Context, r *request) (any, error) {
	return s.control.RotateAuthority(ctx, r.who)
}

func (s *Server) archiveAuthority(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveAuthority(ctx, r.who, api.AuthorityID(r.PathValue("authority")))
}

func (s *Server) tunnelConnections(ctx context.Context, r *request) (any, error) {
	return s.control.TunnelStatus(ctx, r.who, api.TunnelID(r.PathValue("tunnel")))
}

func (s *Server) tunnelEdges(ctx context.Context, r *request) (any, error) {
	return s.control.TunnelEdges(ctx, r.who, api.TunnelID(r.PathValue("tunnel")))
}

func (s *Server) tunnelUsage(ctx context.Context, r *request) (any, error) {
	q := r.query()
	var from, to time.Time
	for name, t := range map[string]*time.Time{"starting_at": &from, "ending_at": &to} {
		if v := q.time(name); v != nil {
			*t = *v
		}
	}
	if q.err != nil {
		return nil, q.err
	}
	return s.control.TunnelUsage(ctx, r.who, api.TunnelID(r.PathValue("tunnel")), from, to)
}
