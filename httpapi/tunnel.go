package httpapi

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

func (s *Server) createTunnel(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.TunnelCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateTunnel(ctx, r.who, in)
}

func (s *Server) listTunnels(ctx context.Context, r *request) (any, error) {
	q := r.query()
	archived, page := q.boolean("include_archived"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListTunnels(ctx, r.who, archived, page)
}

func (s *Server) getTunnel(ctx context.Context, r *request) (any, error) {
	return s.control.GetTunnel(ctx, r.who, r.tunnel())
}

func (s *Server) archiveTunnel(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveTunnel(ctx, r.who, r.tunnel())
}

func (s *Server) revealToken(ctx context.Context, r *request) (any, error) {
	return s.control.RevealToken(ctx, r.who, r.tunnel())
}

func (s *Server) rotateToken(ctx context.Context, r *request) (any, error) {
	in, err := decodeOptional[api.TokenRotate](r)
	if err != nil {
		return nil, err
	}
	return s.control.RotateToken(ctx, r.who, r.tunnel(), in)
}

func (s *Server) createToken(ctx context.Context, r *request) (any, error) {
	in, err := decodeOptional[api.TokenCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateSecondToken(ctx, r.who, r.tunnel(), in)
}

func (s *Server) listTokens(ctx context.Context, r *request) (any, error) {
	return s.control.ListTokens(ctx, r.who, r.tunnel())
}

func (s *Server) revokeToken(ctx context.Context, r *request) (any, error) {
	return s.control.RevokeToken(ctx, r.who, r.tunnel(), r.token())
}

func (s *Server) addCertificate(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.CertificateCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.AddCertificate(ctx, r.who, r.tunnel(), in)
}

func (s *Server) listCertificates(ctx context.Context, r *request) (any, error) {
	q := r.query()
	archived, page := q.boolean("include_archived"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListCertificates(ctx, r.who, r.tunnel(), archived, page)
}

func (s *Server) getCertificate(ctx context.Context, r *request) (any, error) {
	return s.control.GetCertificate(ctx, r.who, r.tunnel(), r.certificate())
}

func (s *Server) archiveCertificate(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveCertificate(ctx, r.who, r.tunnel(), r.certificate())
}
