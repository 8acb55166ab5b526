package httpapi

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/anthropics/anthropic-sdk-go"
	option1 "github.com/anthropics/anthropic-sdk-go/option"
	v2 "github.com/anthropics/anthropic-sdk-go/v2"
	option2 "github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/bailey-platform/bailey/workload/issuertest"
)

// plainIssuers asks issuers wherever they are: those of the tests are on this machine.
func plainIssuers(*x509.CertPool) *http.Client { return &http.Client{} }

// A workload manages tunnels with the identity its platform gave it, through the SDKs'
// own federation, against a real issuer. The federation itself is set up with the SDK
// as well.
func TestWorkloadIdentityWithTheSDKs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	far := issuertest.Start(t, false)
	admin := v1.NewClient(option1.WithBaseURL(f.url), option1.WithAPIKey(f.key))
	org := admin.Beta.Organization
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	issuer, err := org.Federation.Issuers.New(ctx, v1.BetaOrganizationFederationIssuerNewParams{Name: "cluster", IssuerURL: far.URL})
	ok(err)
	if issuer.JWKS.Type != "discovery" || !issuer.CheckJTI || issuer.MaxJWTLifetimeSeconds != 3600 || issuer.JSON.ArchivedAt.Raw() != "null" || issuer.JSON.PollStatus.Raw() != "null" {
		t.Errorf("issuer %s", issuer.RawJSON())
	}
	account, err := org.ServiceAccounts.New(ctx, v1.BetaOrganizationServiceAccountNewParams{Name: "setup", Description: v1.String("sets tunnels up")})
	ok(err)
	if account.OrganizationRole != "developer" || account.Description != "sets tunnels up" || account.CreatedByActorID == "" {
		t.Errorf("account %s", account.RawJSON())
	}
	rule, err := org.Federation.Rules.New(ctx, v1.BetaOrganizationFederationRuleNewParams{
		Name: "setup", IssuerID: issuer.ID, OAuthScope: "workspace:manage_tunnels", WorkspaceID: v1.String(workspaceID),
		Match:  v1.BetaFederationRuleMatchParam{SubjectPrefix: v1.String("system:serviceaccount:mcp-tunnel:*"), Audience: v1.String("api.anthropic.com")},
		Target: v1.BetaServiceAccountTargetParam{ServiceAccountID: account.ID},
	})
	ok(err)
	if rule.IssuerName != "cluster" || rule.Target.ServiceAccountName != "setup" || rule.TokenLifetimeSeconds != 3600 || len(rule.WorkspaceIDs) != 1 {
		t.Errorf("rule %s", rule.RawJSON())
	}
	rule, err = org.Federation.Rules.Update(ctx, rule.ID, v1.BetaOrganizationFederationRuleUpdateParams{TokenLifetimeSeconds: v1.Int(120)})
	ok(err)
	if rule.TokenLifetimeSeconds != 120 || rule.Match.Audience != "api.anthropic.com" {
		t.Errorf("updated rule %s", rule.RawJSON())
	}
	rules := org.Federation.Rules.ListAutoPaging(ctx, v1.BetaOrganizationFederationRuleListParams{})
	n := 0
	for ; rules.Next(); n++ {
	}
	ok(rules.Err())
	if n != 1 {
		t.Errorf("%d rules", n)
	}

	// The token that a platform projects into a file.
	file := filepath.Join(t.TempDir(), "token")
	claims := far.Claims(time.Now(), "system:serviceaccount:mcp-tunnel:setup")
	claims["aud"] = []string{"api.anthropic.com"}
	ok(os.WriteFile(file, []byte(far.Sign(claims)+"\n"), 0o600))
	first := v1.NewClient(option1.WithBaseURL(f.url), option1.WithFederationTokenProvider(option1.IdentityTokenFile(file), option1.FederationOptions{
		FederationRuleID: rule.ID, OrganizationID: organizationID,
	}))
	made, err := first.Beta.Tunnels.New(ctx, v1.BetaTunnelNewParams{DisplayName: v1.String("office")})
	ok(err)

	second := v2.NewClient(option2.WithBaseURL(f.url), option2.WithFederationTokenProvider(
		func(context.Context) (string, error) { return far.Sign(claims), nil },
		option2.FederationOptions{FederationRuleID: rule.ID, OrganizationID: organizationID, ServiceAccountID: account.ID, WorkspaceID: "default"}))
	got, err := second.Beta.Tunnels.Get(ctx, made.ID, v2.BetaTunnelGetParams{})
	ok(err)
	if got.Domain != made.Domain {
		t.Errorf("made %s, got %s", made.Domain, got.Domain)
	}
	_, err = second.Beta.Agents.List(ctx, v2.BetaAgentListParams{})
	var e *v2.Error
	if !errors.As(err, &e) || e.StatusCode != 403 {
		t.Errorf("agents with a token for tunnels: %v", err)
	}

	// A refusal is opaque: the SDK shows what there is, and where the reason would be.
	stranger := v1.NewClient(option1.WithBaseURL(f.url), option1.WithFederationTokenProvider(
		func(context.Context) (string, error) { return far.Sign(claims, map[string]any{"sub": "other"}), nil },
		option1.FederationOptions{FederationRuleID: rule.ID, OrganizationID: organizationID}))
	_, err = stranger.Beta.Tunnels.List(ctx, v1.BetaTunnelListParams{})
	if err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "match_subject") {
		t.Errorf("a stranger: %v", err)
	}
	res, body := f.answer(t, f.request(t, "GET", "/v1/organizations/federation_exchanges?limit=1&federation_rule_id="+rule.ID, ""))
	if res.StatusCode != 200 || !strings.Contains(body, `"reason":"match_subject_prefix"`) || !strings.Contains(body, `"assertion_subject":"other"`) {
		t.Errorf("history: %s %s", res.Status, body)
	}

	_, err = org.ServiceAccounts.Archive(ctx, account.ID, v1.BetaOrganizationServiceAccountArchiveParams{})
	ok(err)
	if _, err = first.Beta.Tunnels.Get(ctx, made.ID, v1.BetaTunnelGetParams{}); err == nil {
		t.Error("an archived service account manages tunnels")
	}
	_, err = org.Federation.Rules.Archive(ctx, rule.ID, v1.BetaOrganizationFederationRuleArchiveParams{})
	ok(err)
	_, err = org.Federation.Issuers.Archive(ctx, issuer.ID, v1.BetaOrganizationFederationIssuerArchiveParams{})
	ok(err)
	inline, err := org.Federation.Issuers.New(ctx, v1.BetaOrganizationFederationIssuerNewParams{
		Name: "cluster", IssuerURL: far.URL, CheckJTI: v1.Bool(false),
		JWKS: v1.BetaOrganizationFederationIssuerNewParamsJWKSUnion{OfExplicitURL: &v1.BetaJWKSExplicitURLParam{URL: far.URL + "/keys"}},
	})
	ok(err)
	if inline.JWKS.Type != "explicit_url" || inline.JWKS.URL != far.URL+"/keys" {
		t.Errorf("issuer %s", inline.RawJSON())
	}
}

// Anybody may ask for a token, so little is taken from them.
func TestExchangeOnTheWire(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	const form = `{"grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","assertion":"x","federation_rule_id":"fdrl_x","organization_id":"` + organizationID + `"}`
	for name, tt := range map[string]struct {
		body   string
		change func(*http.Request)
		status int
		want   string
	}{
		"no such rule":  {form, nil, 401, `"message":"Authentication failed"`},
		"no beta":       {form, func(r *http.Request) { r.Header.Del("Anthropic-Beta") }, 404, betaFederation},
		"no version":    {form, func(r *http.Request) { r.Header.Del("Anthropic-Version") }, 401, ""},
		"a useless key": {form, func(r *http.Request) { r.Header.Set("X-Api-Key", "nonsense") }, 401, `"message":"Authentication failed"`},
		"too long":      {strings.Repeat(" ", exchangeMax) + form, nil, 413, "request_too_large"},
		"of no length":  {form, func(r *http.Request) { r.ContentLength = -1 }, 413, ""},
		"not JSON":      {"grant_type=x", nil, 400, "invalid_request_error"},
		"another grant": {strings.Replace(form, "jwt-bearer", "saml", 1), nil, 400, "grant_type"},
		"a refresh":     {`{"grant_type":"refresh_token","refresh_token":"x"}`, nil, 400, ""},
	} {
		req := f.request(t, "POST", "/v1/oauth/token", tt.body)
		req.Header.Del("X-Api-Key")
		req.Header.Set("Anthropic-Beta", "oauth-2025-04-20,"+betaFederation)
		if tt.change != nil {
			tt.change(req)
		}
		res, body := f.answer(t, req)
		if res.StatusCode != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %s %s", name, res.Status, body)
		}
	}
}
