package httpapi

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

func (s *Server) createVault(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.VaultCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateVault(ctx, r.who, in)
}

func (s *Server) getVault(ctx context.Context, r *request) (any, error) {
	return s.control.GetVault(ctx, r.who, r.vault())
}

func (s *Server) updateVault(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.VaultUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateVault(ctx, r.who, r.vault(), in)
}

func (s *Server) archiveVault(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveVault(ctx, r.who, r.vault())
}

func (s *Server) deleteVault(ctx context.Context, r *request) (any, error) {
	return s.control.DeleteVault(ctx, r.who, r.vault())
}

func (s *Server) listVaults(ctx context.Context, r *request) (any, error) {
	q := r.query()
	archived, page := q.boolean("include_archived"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListVaults(ctx, r.who, archived, page)
}

func (s *Server) createCredential(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.CredentialCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateCredential(ctx, r.who, r.vault(), in)
}

func (s *Server) getCredential(ctx context.Context, r *request) (any, error) {
	return s.control.GetCredential(ctx, r.who, r.vault(), r.credential())
}

func (s *Server) updateCredential(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.CredentialUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateCredential(ctx, r.who, r.vault(), r.credential(), in)
}

func (s *Server) archiveCredential(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveCredential(ctx, r.who, r.vault(), r.credential())
}

func (s *Server) deleteCredential(ctx context.Context, r *request) (any, error) {
	return s.control.DeleteCredential(ctx, r.who, r.vault(), r.credential())
}

func (s *Server) listCredentials(ctx context.Context, r *request) (any, error) {
	q := r.query()
	archived, page := q.boolean("include_archived"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListCredentials(ctx, r.who, r.vault(), archived, page)
}

func (s *Server) validateCredential(ctx context.Context, r *request) (any, error) {
	return s.control.ValidateCredential(ctx, r.who, r.vault(), r.credential())
}

func (s *Server) oauthRequest(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.OAuthRequest](r)
	if err != nil {
		return nil, err
	}
	return s.control.OAuthRequest(ctx, r.who, r.vault(), in)
}

func (s *Server) listVaultKeys(ctx context.Context, r *request) (any, error) {
	return s.control.VaultKeys(ctx, r.who)
}

func (s *Server) rotateVaultKey(ctx context.Context, r *request) (any, error) {
	in, err := decodeOptional[api.VaultKeyRotate](r)
	if err != nil {
		return nil, err
	}
	return s.control.RotateVaultKey(ctx, r.who, in)
}

// listVariables tells a worker which variables the box of its session is to have.
func (s *Server) listVariables(ctx context.Context, r *request) (any, error) {
	return s.control.SessionVariables(ctx, r.who, r.environment(), r.work())
}

// handOutVariable gives a worker the value of one. The record of it is control's, as it
// names the session.
func (s *Server) handOutVariable(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	return s.control.VariableValue(ctx, r.who, r.environment(), r.work(), r.credential())
}
