package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/workload"
)

// Why an exchange is refused, beside what is wrong with the assertion itself.
const (
	reasonNoRule       workload.Reason = "rule_not_found"
	reasonOrganization workload.Reason = "organization_mismatch"
	reasonRuleArchived workload.Reason = "rule_archived"
	reasonIssuer       workload.Reason = "issuer_archived"
	reasonAccount      workload.Reason = "service_account_archived"
	reasonOtherAccount workload.Reason = "service_account_mismatch"
	reasonWorkspace    workload.Reason = "workspace_mismatch"
	reasonSeen         workload.Reason = "assertion_replayed"
	reasonChanged      workload.Reason = "rule_changed"
)

// accessTokensMax bounds the access tokens of a rule that have not expired: a workload
// that exchanges an assertion for every request is to be told so.
const accessTokensMax = 1000

// An exchange is one attempt under way.
type exchange struct {
	in      api.TokenRequest
	rule    *api.FederationRule
	issuer  *api.FederationIssuer
	account *api.ServiceAccount
	id      *workload.Identity
	request api.RequestID
}

// Exchange gives out an access token for an assertion that a rule accepts. Whoever asks
// is told nothing of why one is not accepted: that is in the audit record and in the
// rule's history. request goes there too.
func (c *Control) Exchange(ctx context.Context, in api.TokenRequest, request api.RequestID) (*api.AccessToken, error) {
	if err := in.Check(); err != nil {
		return nil, err
	}
	x := &exchange{in: in, id: new(workload.Identity), request: request}
	err := c.db.Read(ctx, x.load)
	if err == nil {
		err = x.check()
	}
	if err == nil {
		x.id, err = c.workloads.Verify(ctx, x.issuer, in.Assertion)
	}
	if err == nil {
		err = x.id.Matches(x.rule.Match)
	}
	var token *api.AccessToken
	if err == nil {
		token, err = c.grant(ctx, x)
	}
	if denied, ok := errors.AsType[*workload.Denied](err); ok {
		c.refuse(ctx, x, denied)
		return nil, api.Unauthenticated("Authentication failed")
	}
	return token, err
}

func refuseFor(r workload.Reason, detail string) error {
	return &workload.Denied{Reason: r, Detail: detail}
}

// load reads what the exchange is about.
func (x *exchange) load(tx *store.Tx) (err error) {
	if x.rule, err = tx.Rule(x.in.FederationRuleID); errors.Is(err, store.ErrNotFound) {
		return refuseFor(reasonNoRule, "there is no such rule")
	}
	if err != nil {
		return err
	}
	if x.issuer, err = tx.Issuer(x.rule.IssuerID); err != nil {
		return err
	}
	x.account, err = tx.ServiceAccount(x.rule.Target.ID)
	return err
}

// hold reports whether what load read is what there is, and keeps it so until the
// transaction ends.
func (x *exchange) hold(tx *store.Tx) (same bool, err error) {
	rule, err := tx.LockRule(x.rule.ID)
	if err != nil {
		return false, err
	}
	issuer, err := tx.PinIssuer(x.issuer.ID)
	if err != nil {
		return false, err
	}
	account, err := tx.PinServiceAccount(x.account.ID)
	if err != nil {
		return false, err
	}
	return rule.UpdatedAt.Equal(x.rule.UpdatedAt) && issuer.UpdatedAt.Equal(x.issuer.UpdatedAt) && account.UpdatedAt.Equal(x.account.UpdatedAt), nil
}

// check refuses what no assertion could make good.
func (x *exchange) check() error {
	ws := x.in.WorkspaceID
	switch {
	case x.in.OrganizationID != api.OrganizationDefault:
		return refuseFor(reasonOrganization, "organization_id is not this server's, "+api.OrganizationDefault)
	case x.rule.ArchivedAt != nil:
		return refuseFor(reasonRuleArchived, "the rule is archived")
	case x.issuer.ArchivedAt != nil:
		return refuseFor(reasonIssuer, "the rule's issuer is archived")
	case x.account.ArchivedAt != nil:
		return refuseFor(reasonAccount, "the rule's service account is archived")
	case x.in.ServiceAccountID != "" && x.in.ServiceAccountID != x.account.ID:
		return refuseFor(reasonOtherAccount, "service_account_id is not the rule's, "+string(x.account.ID))
	case ws != "" && ws != "default" && ws != api.WorkspaceDefault,
		!x.rule.AllWorkspaces && !slices.Contains(x.rule.WorkspaceIDs, api.WorkspaceDefault):
		return refuseFor(reasonWorkspace, "the rule is not enabled for the workspace; this server has one, "+string(api.WorkspaceDefault))
	}
	return nil
}

// grant makes the access token, unless what the assertion was judged by has changed
// meanwhile or the assertion was used before.
func (c *Control) grant(ctx context.Context, x *exchange) (*api.AccessToken, error) {
	secret, hash, hint := c.newSecret(api.KeyAccess)
	var life time.Duration
	err := c.write(ctx, func(tx *store.Tx) error {
		if same, err := x.hold(tx); err != nil {
			return err
		} else if !same {
			return refuseFor(reasonChanged, "the rule was changed while the assertion was checked")
		}
		if x.issuer.CheckJTI && x.id.JTI != "" {
			sum := sha256.Sum256([]byte(x.id.JTI))
			until := x.id.ExpiresAt.Add(time.Minute) // it may be valid for a little longer than it says
			err := tx.MarkSeen(x.issuer.ID, hex.EncodeToString(sum[:]), until)
			if errors.Is(err, store.ErrDuplicate) {
				return refuseFor(reasonSeen, "the assertion was exchanged before; the issuer has check_jti")
			}
			if err != nil {
				return err
			}
		}
		if err := tx.DropExpiredAccessTokens(); err != nil {
			return err
		}
		if n, err := tx.CountAccessTokens(x.rule.ID); err != nil {
			return err
		} else if n >= accessTokensMax {
			return api.Overloaded(time.Minute, "the rule has given out %d access tokens that have not expired; use a token until it does", n)
		}
		life = lifetime(x.rule, x.id.ExpiresAt.Sub(tx.Now))
		expires := tx.Now.Add(life)
		k := &store.Key{
			Key: api.Key{
				ID: newID[api.KeyID](c, api.PrefixAccessToken), Type: api.KeyAccess, Name: x.account.Name, Hint: hint,
				CreatedAt: tx.Now, ExpiresAt: &expires, Scopes: x.rule.Scopes(),
			},
			Hash: hash, RuleID: x.rule.ID, AccountID: x.account.ID,
		}
		if err := tx.InsertKey(k); err != nil {
			return err
		}
		ev := c.event(x, tx.Now)
		ev.Outcome = "granted"
		if err := tx.InsertExchange(ev); err != nil {
			return err
		}
		return c.announce(audit.Record{Action: audit.FederationGrant, Actor: string(x.account.ID), Request: string(x.request), Attrs: map[string]string{
			"rule_id": string(x.rule.ID), "issuer_id": string(x.issuer.ID), "subject": bounded(x.id.Subject), "key_id": string(k.ID),
			"expires_at": expires.Format(time.RFC3339), "scope": x.rule.OAuthScope,
		}})
	})
	if err != nil {
		return nil, err
	}
	return &api.AccessToken{Token: secret, TokenType: "Bearer", ExpiresIn: int64(life / time.Second)}, nil
}

// lifetime is how long an access token lives: as the rule says, but at most twice as
// long as the assertion does still, and a minute at least.
func lifetime(r *api.FederationRule, left time.Duration) time.Duration {
	life := min(time.Duration(r.Lifetime)*time.Second, 2*left)
	return max(api.TokenLifetimeMin, life).Truncate(time.Second)
}

// event is what the history says of an exchange.
func (c *Control) event(x *exchange, now time.Time) *api.FederationExchange {
	ev := &api.FederationExchange{
		ID: newID[api.ExchangeID](c, api.PrefixExchange), Type: "federation_exchange", CreatedAt: now, RuleID: x.in.FederationRuleID,
		RequestID: x.request, Verified: x.id.Verified, Issuer: bounded(x.id.Issuer), Subject: bounded(x.id.Subject),
	}
	for _, a := range x.id.Audience[:min(len(x.id.Audience), 10)] {
		ev.Audience = append(ev.Audience, bounded(a))
	}
	if x.rule != nil {
		ev.IssuerID, ev.AccountID = x.rule.IssuerID, x.rule.Target.ID
	}
	return ev
}

// bounded is text that a stranger wrote, in a form that can be kept.
func bounded(s string) string {
	const most = 500 // bytes
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
}

// refusals bounds what is written down of refused exchanges: anybody can cause one.
// Beyond the bound they are counted, and the next record says how many.
type refusals struct {
	limit      *rate.Limiter
	unrecorded atomic.Int64
}

const (
	refusalsPerSecond = 5
	refusalsBurst     = 50
)

func (c *Control) refuse(ctx context.Context, x *exchange, denied *workload.Denied) {
	now := c.cfg.Clock().UTC().Truncate(time.Microsecond)
	if !c.refusals.limit.AllowN(now, 1) {
		c.refusals.unrecorded.Add(1)
		return
	}
	detail := bounded(denied.Detail)
	if denied.Err != nil {
		detail = bounded(denied.Detail + ": " + denied.Err.Error())
	}
	if c.cfg.Audit != nil {
		attrs := map[string]string{"rule_id": string(x.in.FederationRuleID), "reason": string(denied.Reason)}
		if n := c.refusals.unrecorded.Swap(0); n > 0 {
			attrs["more_refused"] = strconv.FormatInt(n, 10)
		}
		if x.id.Subject != "" {
			attrs["subject"], attrs["verified"] = bounded(x.id.Subject), strconv.FormatBool(x.id.Verified)
		}
		// Nothing depends on it: there is no effect to be refused.
		_ = c.cfg.Audit.Note(audit.Record{Action: audit.FederationRefused, Request: string(x.request), Attrs: attrs, Detail: detail})
	}
	c.cfg.Logger.Info("an exchange of a workload's identity was refused", "rule_id", x.in.FederationRuleID, "reason", denied.Reason, "detail", detail, "request_id", x.request)
	if x.rule == nil {
		return // nobody's history
	}
	ev := c.event(x, now)
	ev.Outcome, ev.Reason, ev.Detail = "denied", string(denied.Reason), detail
	err := c.write(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.InsertExchange(ev) })
	if err != nil {
		c.cfg.Logger.Warn("a refused exchange could not be kept", "rule_id", x.rule.ID, "error", err)
	}
}

// ListExchanges lists attempts to exchange assertions, of one rule or with rule "" of
// all, the newest first. The newest 500 of each rule are kept.
func (c *Control) ListExchanges(ctx context.Context, p Principal, rule api.RuleID, req api.PageRequest) (page api.Page[*api.FederationExchange], err error) {
	if err := p.federates(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.FederationPageMax,
		func(tx *store.Tx, win store.Window) ([]*api.FederationExchange, error) {
			return tx.Exchanges(rule, win)
		},
		func(e *api.FederationExchange) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) }, same)
}
