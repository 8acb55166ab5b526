package control

import (
	"context"
	"errors"
	"reflect"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/workload"
)

// Who workloads are here, whose word is taken for it, and by which rule: see
// api/federation.go. What they come for is in exchange.go.

// A transaction that locks or pins several of them does so in the order rule, issuer,
// service account. What a rule has given out ends with each of the three, so an exchange
// pins what it goes by until its token is there to be seen.

// federates refuses whoever may not say who else gets in: an access token, which is
// given out for that, is not enough.
func (p Principal) federates() error {
	if p.AccountID != "" {
		return api.Forbidden("an access token cannot change who gets one; use an API key")
	}
	return p.admin()
}

// named turns the store's duplicate into the public error of a name that is taken.
func named(err error, noun, name string) error {
	if errors.Is(err, store.ErrDuplicate) {
		return api.Conflict("name: there is a %s named %q already", noun, name)
	}
	return err
}

// created, updated and archived note who did it, and when.
func created(r *api.Recorded, tx *store.Tx, p Principal) {
	r.CreatedAt, r.CreatedBy = tx.Now, p.Actor()
	updated(r, tx, p)
}

func updated(r *api.Recorded, tx *store.Tx, p Principal) {
	r.UpdatedAt, r.UpdatedBy = tx.Now, p.Actor()
}

func archived(r *api.Recorded, tx *store.Tx, p Principal) {
	by := p.Actor()
	r.ArchivedAt, r.ArchivedBy = &tx.Now, &by
	updated(r, tx, p)
}

// dropTokens ends what rules have given out, and the streams opened with it.
func dropTokens(tx *store.Tx, rules ...*api.FederationRule) error {
	for _, r := range rules {
		gone, err := tx.DropAccessTokens(r.ID)
		if err != nil {
			return err
		}
		for _, id := range gone {
			tx.Notify(topicKey(id))
		}
	}
	return nil
}

// -- service accounts --------------------------------------------------------------

// CreateServiceAccount makes a service account.
func (c *Control) CreateServiceAccount(ctx context.Context, p Principal, in api.ServiceAccountCreate) (*api.ServiceAccount, error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	a := &api.ServiceAccount{
		ID: newID[api.ServiceAccountID](c, api.PrefixServiceAccount), Type: "service_account", Name: in.Name, OrganizationRole: "developer",
	}
	if in.Description != nil {
		a.Description = *in.Description
	}
	if in.OrganizationRole != nil {
		a.OrganizationRole = *in.OrganizationRole
	}
	if err := a.Check(); err != nil {
		return nil, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		created(&a.Recorded, tx, p)
		return tx.PutServiceAccount(a)
	})
	return a, named(err, "service account", in.Name)
}

// GetServiceAccount returns a service account.
func (c *Control) GetServiceAccount(ctx context.Context, p Principal, id api.ServiceAccountID) (a *api.ServiceAccount, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		a, err = tx.ServiceAccount(id)
		return found(err, "service account", string(id))
	})
	return a, err
}

// ListServiceAccounts lists service accounts, the newest first.
func (c *Control) ListServiceAccounts(ctx context.Context, p Principal, archived bool, req api.PageRequest) (page api.Page[*api.ServiceAccount], err error) {
	if err := p.federates(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.FederationPageMax,
		func(tx *store.Tx, win store.Window) ([]*api.ServiceAccount, error) {
			return tx.ServiceAccounts(archived, win)
		},
		func(a *api.ServiceAccount) (int64, string) { return a.CreatedAt.UnixMicro(), string(a.ID) }, same)
}

// changeAccount runs fn with a service account that is not archived, and writes what it
// becomes.
func (c *Control) changeAccount(ctx context.Context, p Principal, id api.ServiceAccountID, fn func(*store.Tx, *api.ServiceAccount) error) (a *api.ServiceAccount, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		if a, err = tx.LockServiceAccount(id); err != nil {
			return found(err, "service account", string(id))
		}
		if err := fn(tx, a); err != nil {
			return err
		}
		return tx.PutServiceAccount(a)
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// UpdateServiceAccount changes a service account; fields left out keep their value.
func (c *Control) UpdateServiceAccount(ctx context.Context, p Principal, id api.ServiceAccountID, in api.ServiceAccountUpdate) (*api.ServiceAccount, error) {
	return c.changeAccount(ctx, p, id, func(tx *store.Tx, a *api.ServiceAccount) error {
		if a.ArchivedAt != nil {
			return api.Invalid("service account %s is archived and cannot be changed", id)
		}
		if in.Description.Set {
			a.Description = in.Description.Value // null is ""
		}
		if in.OrganizationRole.Set && !in.OrganizationRole.Null {
			a.OrganizationRole = in.OrganizationRole.Value
		}
		updated(&a.Recorded, tx, p)
		return a.Check()
	})
}

// ArchiveServiceAccount ends a service account: no rule gives out tokens for it any more,
// and those that were are not good. Archiving again changes nothing.
func (c *Control) ArchiveServiceAccount(ctx context.Context, p Principal, id api.ServiceAccountID) (*api.ServiceAccount, error) {
	return c.changeAccount(ctx, p, id, func(tx *store.Tx, a *api.ServiceAccount) error {
		if a.ArchivedAt != nil {
			return nil
		}
		archived(&a.Recorded, tx, p)
		rules, err := tx.LiveRules("", id)
		if err != nil {
			return err
		}
		return dropTokens(tx, rules...)
	})
}

// -- issuers -----------------------------------------------------------------------

// CreateIssuer registers an issuer.
func (c *Control) CreateIssuer(ctx context.Context, p Principal, in api.FederationIssuerCreate) (*api.FederationIssuer, error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	i := &api.FederationIssuer{
		ID: newID[api.IssuerID](c, api.PrefixIssuer), Type: "federation_issuer", Name: in.Name, IssuerURL: in.IssuerURL,
		JWKS: api.JWKS{Type: api.JWKSDiscovery}, CheckJTI: true, MaxLifetime: int64(api.JWTLifetimeDefault.Seconds()),
	}
	if in.JWKS != nil {
		i.JWKS = *in.JWKS
	}
	if in.CheckJTI != nil {
		i.CheckJTI = *in.CheckJTI
	}
	if in.MaxLifetime != nil {
		i.MaxLifetime = *in.MaxLifetime
	}
	if err := checkIssuer(i); err != nil {
		return nil, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		created(&i.Recorded, tx, p)
		return tx.PutIssuer(i)
	})
	return i, named(err, "federation issuer", in.Name)
}

func checkIssuer(i *api.FederationIssuer) error {
	if err := i.Check(); err != nil {
		return err
	}
	if err := workload.CheckKeys(i.JWKS); err != nil {
		return api.Invalid("jwks.%s", err)
	}
	return nil
}

// GetIssuer returns an issuer.
func (c *Control) GetIssuer(ctx context.Context, p Principal, id api.IssuerID) (i *api.FederationIssuer, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		i, err = tx.Issuer(id)
		return found(err, "federation issuer", string(id))
	})
	return i, err
}

// ListIssuers lists issuers, the newest first.
func (c *Control) ListIssuers(ctx context.Context, p Principal, archived bool, req api.PageRequest) (page api.Page[*api.FederationIssuer], err error) {
	if err := p.federates(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.FederationPageMax,
		func(tx *store.Tx, win store.Window) ([]*api.FederationIssuer, error) {
			return tx.Issuers(archived, win)
		},
		func(i *api.FederationIssuer) (int64, string) { return i.CreatedAt.UnixMicro(), string(i.ID) }, same)
}

func (c *Control) changeIssuer(ctx context.Context, p Principal, id api.IssuerID, fn func(*store.Tx, *api.FederationIssuer) error) (i *api.FederationIssuer, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		if i, err = tx.LockIssuer(id); err != nil {
			return found(err, "federation issuer", string(id))
		}
		if err := fn(tx, i); err != nil {
			return err
		}
		return named(tx.PutIssuer(i), "federation issuer", i.Name)
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// UpdateIssuer changes an issuer; fields left out keep their value.
func (c *Control) UpdateIssuer(ctx context.Context, p Principal, id api.IssuerID, in api.FederationIssuerUpdate) (*api.FederationIssuer, error) {
	return c.changeIssuer(ctx, p, id, func(tx *store.Tx, i *api.FederationIssuer) error {
		if i.ArchivedAt != nil {
			return api.Invalid("federation issuer %s is archived and cannot be changed", id)
		}
		was := *i
		set(&i.Name, in.Name)
		set(&i.IssuerURL, in.IssuerURL)
		set(&i.JWKS, in.JWKS)
		set(&i.CheckJTI, in.CheckJTI)
		set(&i.MaxLifetime, in.MaxLifetime)
		if in.PollingDisabled.Set && in.PollingDisabled.Value {
			return api.Invalid("jwks_polling_disabled: only false is accepted")
		}
		if err := checkIssuer(i); err != nil {
			return err
		}
		rules, err := tx.LiveRules(id, "")
		if err != nil {
			return err
		}
		for _, r := range rules {
			if err := r.Check(i.IssuerURL); err != nil {
				return api.Invalid("issuer_url: rule %s (%s) would not do: %s", r.Name, r.ID, err)
			}
		}
		// What was believed of the issuer it was is not of the one it becomes.
		if i.IssuerURL != was.IssuerURL || !reflect.DeepEqual(i.JWKS, was.JWKS) {
			if err := dropTokens(tx, rules...); err != nil {
				return err
			}
		}
		updated(&i.Recorded, tx, p)
		return nil
	})
}

// set copies a field of an update that is there and not null.
func set[T any](field *T, o api.Opt[T]) {
	if o.Set && !o.Null {
		*field = o.Value
	}
}

// ArchiveIssuer ends the trust in an issuer, and what its rules have given out.
// Archiving again changes nothing.
func (c *Control) ArchiveIssuer(ctx context.Context, p Principal, id api.IssuerID) (*api.FederationIssuer, error) {
	return c.changeIssuer(ctx, p, id, func(tx *store.Tx, i *api.FederationIssuer) error {
		if i.ArchivedAt != nil {
			return nil
		}
		archived(&i.Recorded, tx, p)
		rules, err := tx.LiveRules(id, "")
		if err != nil {
			return err
		}
		return dropTokens(tx, rules...)
	})
}

// -- rules -------------------------------------------------------------------------

// CreateRule makes a rule. Its issuer and its service account must be there.
func (c *Control) CreateRule(ctx context.Context, p Principal, in api.FederationRuleCreate) (*api.FederationRule, error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	r := &api.FederationRule{
		ID: newID[api.RuleID](c, api.PrefixRule), Type: "federation_rule", Name: in.Name, IssuerID: in.IssuerID, Match: in.Match,
		Target: in.Target, OAuthScope: in.OAuthScope, Lifetime: int64(api.TokenLifetimeDefault.Seconds()), Attributes: in.Attributes,
		WorkspaceIDs: []api.WorkspaceID{},
	}
	if in.Description != nil {
		r.Description = *in.Description
	}
	if in.Lifetime != nil {
		r.Lifetime = *in.Lifetime
	}
	if in.AllWorkspaces != nil {
		r.AllWorkspaces = *in.AllWorkspaces
	}
	if in.WorkspaceID != nil {
		enable(r, *in.WorkspaceID)
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		issuer, err := tx.LockIssuer(in.IssuerID)
		if errors.Is(err, store.ErrNotFound) || err == nil && issuer.ArchivedAt != nil {
			return api.Invalid("issuer_id: there is no federation issuer %s, or it is archived", in.IssuerID)
		}
		if err != nil {
			return err
		}
		if err := c.checkRule(tx, p, r, issuer); err != nil {
			return err
		}
		created(&r.Recorded, tx, p)
		return tx.PutRule(r)
	})
	if err != nil {
		return nil, named(err, "federation rule", in.Name)
	}
	return r, nil
}

// enable makes a workspace the one that a rule is enabled for.
func enable(r *api.FederationRule, ws api.WorkspaceID) {
	if ws == "default" {
		ws = api.WorkspaceDefault
	}
	r.WorkspaceID, r.WorkspaceIDs = &ws, []api.WorkspaceID{ws}
}

// checkRule refuses a rule that cannot be, or that would give out more than the
// principal has.
func (c *Control) checkRule(tx *store.Tx, p Principal, r *api.FederationRule, issuer *api.FederationIssuer) error {
	if err := r.Check(issuer.IssuerURL); err != nil {
		return err
	}
	for _, s := range r.Scopes() {
		if s == api.ScopeTunnels && !p.Tunnels {
			return api.Forbidden("oauth_scope: a rule that lets others manage tunnels can only be made with a key that may")
		}
	}
	account, err := tx.LockServiceAccount(r.Target.ID)
	if errors.Is(err, store.ErrNotFound) || err == nil && account.ArchivedAt != nil {
		return api.Invalid("target.service_account_id: there is no service account %s, or it is archived", r.Target.ID)
	}
	if err != nil {
		return err
	}
	r.IssuerName, r.Target.Name = issuer.Name, &account.Name
	return nil
}

// withNames gives rules the present names of what they refer to.
func withNames(tx *store.Tx, rules ...*api.FederationRule) error {
	issuers, accounts := map[api.IssuerID]string{}, map[api.ServiceAccountID]*string{}
	for _, r := range rules {
		if _, ok := issuers[r.IssuerID]; !ok {
			i, err := tx.Issuer(r.IssuerID)
			if err != nil {
				return err
			}
			issuers[i.ID] = i.Name
		}
		if accounts[r.Target.ID] == nil {
			a, err := tx.ServiceAccount(r.Target.ID)
			if err != nil {
				return err
			}
			accounts[a.ID] = &a.Name
		}
		r.IssuerName, r.Target.Name = issuers[r.IssuerID], accounts[r.Target.ID]
	}
	return nil
}

// GetRule returns a rule.
func (c *Control) GetRule(ctx context.Context, p Principal, id api.RuleID) (r *api.FederationRule, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		if r, err = tx.Rule(id); err != nil {
			return found(err, "federation rule", string(id))
		}
		return withNames(tx, r)
	})
	return r, err
}

// ListRules lists rules, the newest first.
func (c *Control) ListRules(ctx context.Context, p Principal, archived bool, req api.PageRequest) (page api.Page[*api.FederationRule], err error) {
	if err := p.federates(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.FederationPageMax,
		func(tx *store.Tx, win store.Window) ([]*api.FederationRule, error) {
			rules, err := tx.Rules(archived, win)
			if err != nil {
				return nil, err
			}
			return rules, withNames(tx, rules...)
		},
		func(r *api.FederationRule) (int64, string) { return r.CreatedAt.UnixMicro(), string(r.ID) }, same)
}

func (c *Control) changeRule(ctx context.Context, p Principal, id api.RuleID, fn func(*store.Tx, *api.FederationRule) error) (r *api.FederationRule, err error) {
	if err := p.federates(); err != nil {
		return nil, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		if r, err = tx.LockRule(id); err != nil {
			return found(err, "federation rule", string(id))
		}
		if err := fn(tx, r); err != nil {
			return err
		}
		if err := withNames(tx, r); err != nil {
			return err
		}
		return named(tx.PutRule(r), "federation rule", r.Name)
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// UpdateRule changes a rule; fields left out keep their value. A rule that gives
// something else than before, or to others, takes back what it has given.
func (c *Control) UpdateRule(ctx context.Context, p Principal, id api.RuleID, in api.FederationRuleUpdate) (*api.FederationRule, error) {
	return c.changeRule(ctx, p, id, func(tx *store.Tx, r *api.FederationRule) error {
		if r.ArchivedAt != nil {
			return api.Invalid("federation rule %s is archived and cannot be changed", id)
		}
		was := *r
		set(&r.Name, in.Name)
		if in.Description.Set {
			r.Description = in.Description.Value // null is ""
		}
		set(&r.Match, in.Match)
		set(&r.Target, in.Target)
		set(&r.OAuthScope, in.OAuthScope)
		set(&r.Lifetime, in.Lifetime)
		set(&r.AllWorkspaces, in.AllWorkspaces)
		if in.WorkspaceID.Set && !in.WorkspaceID.Null {
			enable(r, in.WorkspaceID.Value)
		}
		set(&r.Attributes, in.Attributes)
		issuer, err := tx.PinIssuer(r.IssuerID)
		if err != nil {
			return err
		}
		if err := c.checkRule(tx, p, r, issuer); err != nil {
			return err
		}
		updated(&r.Recorded, tx, p)
		if r.OAuthScope != was.OAuthScope || r.Target.ID != was.Target.ID || !reflect.DeepEqual(r.Match, was.Match) {
			return dropTokens(tx, r)
		}
		return nil
	})
}

// ArchiveRule ends a rule, and what it has given out. Archiving again changes nothing.
func (c *Control) ArchiveRule(ctx context.Context, p Principal, id api.RuleID) (*api.FederationRule, error) {
	return c.changeRule(ctx, p, id, func(tx *store.Tx, r *api.FederationRule) error {
		if r.ArchivedAt != nil {
			return nil
		}
		archived(&r.Recorded, tx, p)
		return dropTokens(tx, r)
	})
}
