package httpapi

import (
	"context"

	"github.com/bailey-platform/bailey/api"
)

// exchangeMax bounds the body of an exchange, in bytes: anybody may send one.
const exchangeMax = 2 * api.AssertionMax

func (s *Server) exchangeToken(ctx context.Context, r *request) (any, error) {
	if r.ContentLength < 0 || r.ContentLength > exchangeMax {
		return nil, api.TooLarge("the body must say how long it is, and be of at most %d bytes", exchangeMax)
	}
	in, err := decode[api.TokenRequest](r)
	if err != nil {
		return nil, err
	}
	return s.control.Exchange(ctx, in, r.rec.id)
}

func (s *Server) listExchanges(ctx context.Context, r *request) (any, error) {
	q := r.query()
	rule, page := q.id("federation_rule_id"), q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListExchanges(ctx, r.who, api.RuleID(rule), page)
}

// listed reads what the lists of this file take.
func listed(r *request) (archived bool, page api.PageRequest, err error) {
	q := r.query()
	archived, page = q.boolean("include_archived"), q.page()
	return archived, page, q.err
}

func (s *Server) createServiceAccount(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.ServiceAccountCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateServiceAccount(ctx, r.who, in)
}

func (s *Server) listServiceAccounts(ctx context.Context, r *request) (any, error) {
	archived, page, err := listed(r)
	if err != nil {
		return nil, err
	}
	return s.control.ListServiceAccounts(ctx, r.who, archived, page)
}

func (s *Server) getServiceAccount(ctx context.Context, r *request) (any, error) {
	return s.control.GetServiceAccount(ctx, r.who, r.account())
}

func (s *Server) updateServiceAccount(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.ServiceAccountUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateServiceAccount(ctx, r.who, r.account(), in)
}

func (s *Server) archiveServiceAccount(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveServiceAccount(ctx, r.who, r.account())
}

func (s *Server) createIssuer(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.FederationIssuerCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateIssuer(ctx, r.who, in)
}

func (s *Server) listIssuers(ctx context.Context, r *request) (any, error) {
	archived, page, err := listed(r)
	if err != nil {
		return nil, err
	}
	return s.control.ListIssuers(ctx, r.who, archived, page)
}

func (s *Server) getIssuer(ctx context.Context, r *request) (any, error) {
	return s.control.GetIssuer(ctx, r.who, r.issuer())
}

func (s *Server) updateIssuer(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.FederationIssuerUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateIssuer(ctx, r.who, r.issuer(), in)
}

func (s *Server) archiveIssuer(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveIssuer(ctx, r.who, r.issuer())
}

func (s *Server) createRule(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.FederationRuleCreate](r)
	if err != nil {
		return nil, err
	}
	return s.control.CreateRule(ctx, r.who, in)
}

func (s *Server) listRules(ctx context.Context, r *request) (any, error) {
	archived, page, err := listed(r)
	if err != nil {
		return nil, err
	}
	return s.control.ListRules(ctx, r.who, archived, page)
}

func (s *Server) getRule(ctx context.Context, r *request) (any, error) {
	return s.control.GetRule(ctx, r.who, r.rule())
}

func (s *Server) updateRule(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.FederationRuleUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateRule(ctx, r.who, r.rule(), in)
}

func (s *Server) archiveRule(ctx context.Context, r *request) (any, error) {
	return s.control.ArchiveRule(ctx, r.who, r.rule())
}
