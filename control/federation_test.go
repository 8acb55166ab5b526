package control

import (
	"crypto/x509"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
	"github.com/bailey-platform/bailey/workload/issuertest"
)

// A fedWorld is a world with an issuer, whose pods of one name may manage tunnels.
type fedWorld struct {
	*world
	far     *issuertest.Issuer
	issuer  *api.FederationIssuer
	account *api.ServiceAccount
	rule    *api.FederationRule
}

const pod = "system:serviceaccount:mcp-tunnel:setup"

func newFedWorld(t *testing.T, cfg Config) *fedWorld {
	t.Helper()
	cfg.Issuers = func(*x509.CertPool) *http.Client { return &http.Client{} }
	f := &fedWorld{world: tunnelWorld(t, cfg), far: issuertest.Start(t, false)}
	f.issuer = must1[*api.FederationIssuer](t)(f.CreateIssuer(f.ctx, f.admin, api.FederationIssuerCreate{Name: "cluster", IssuerURL: f.far.URL}))
	f.account = must1[*api.ServiceAccount](t)(f.CreateServiceAccount(f.ctx, f.admin, api.ServiceAccountCreate{Name: "setup"}))
	f.rule = f.newRule("setup", api.OAuthManageTunnels)
	return f
}

func ref[T any](v T) *T { return &v }

func (f *fedWorld) ruleOf(name, scope string) api.FederationRuleCreate {
	return api.FederationRuleCreate{
		Name: name, IssuerID: f.issuer.ID, Match: api.FederationMatch{SubjectPrefix: ref(pod)},
		Target: api.FederationTarget{Type: "service_account", ID: f.account.ID}, OAuthScope: scope, WorkspaceID: ref(api.WorkspaceDefault),
	}
}

func (f *fedWorld) newRule(name, scope string) *api.FederationRule {
	f.t.Helper()
	return must1[*api.FederationRule](f.t)(f.CreateRule(f.ctx, f.admin, f.ruleOf(name, scope)))
}

// assertion is a token of the pod's, with changes.
func (f *fedWorld) assertion(changes ...map[string]any) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.far.Sign(f.far.Claims(f.now, pod), changes...)
}

func (f *fedWorld) request(changes ...map[string]any) api.TokenRequest {
	return api.TokenRequest{
		GrantType: api.GrantJWTBearer, Assertion: f.assertion(changes...), FederationRuleID: f.rule.ID, OrganizationID: api.OrganizationDefault,
	}
}

// token exchanges an assertion of the pod's.
func (f *fedWorld) token() *api.AccessToken {
	f.t.Helper()
	return must1[*api.AccessToken](f.t)(f.Exchange(f.ctx, f.request(), "req_1"))
}

// good reports whether a token is a credential.
func (f *fedWorld) good(t *api.AccessToken) bool {
	_, err := f.Authenticate(f.ctx, t.Token)
	return err == nil
}

// last is the newest attempt in the history of f's rule.
func (f *fedWorld) last() *api.FederationExchange {
	f.t.Helper()
	page, err := f.ListExchanges(f.ctx, f.admin, f.rule.ID, api.PageRequest{Limit: 1})
	if err != nil || len(page.Data) == 0 {
		f.t.Fatalf("history: %v, %v", page, err)
	}
	return page.Data[0]
}

func TestAnAssertionIsExchanged(t *testing.T) {
	t.Parallel()
	f := newFedWorld(t, Config{})
	tok := f.token()
	if !strings.HasPrefix(tok.Token, "sk-ant-oat01-") || tok.TokenType != "Bearer" || tok.ExpiresIn < 598 || tok.ExpiresIn > 600 { // twice the assertion's five minutes
		t.Errorf("token for %d s, %s", tok.ExpiresIn, tok.TokenType)
	}
	p, err := f.Authenticate(f.ctx, tok.Token)
	if err != nil || p.Kind != api.KeyTunnels || !p.Tunnels || p.Shell || p.Actor() != string(f.account.ID) {
		t.Errorf("principal %+v, %v", p, err)
	}
	if _, err := f.CreateTunnel(f.ctx, p, api.TunnelCreate{}); err != nil {
		t.Error(err)
	}
	for name, call := range map[string]func() error{
		"agents":     func() error { _, err := f.ListAgents(f.ctx, p, AgentFilter{}, api.PageRequest{}); return err },
		"keys":       func() error { _, err := f.CreateKey(f.ctx, p, "", api.KeyCreate{Name: "k"}); return err },
		"federation": func() error { _, err := f.ListRules(f.ctx, p, false, api.PageRequest{}); return err },
	} {
		if e := api.AsError(call()); e == nil || e.Status != 403 {
			t.Errorf("%s: %v", name, e)
		}
	}
	if got := f.last(); got.Outcome != "granted" || got.Subject != pod || !got.Verified || got.AccountID != f.account.ID || got.RequestID != "req_1" {
		t.Errorf("history %+v", got)
	}
	f.pass(10*time.Minute + time.Second)
	if f.good(tok) {
		t.Error("good after its time")
	}

	// A rule for the workspace gives what an API key has, but no way to stay.
	f.rule = f.newRule("developer", api.OAuthDeveloper)
	p, err = f.Authenticate(f.ctx, f.token().Token)
	if err != nil || p.Kind != api.KeyAPI || p.Tunnels {
		t.Errorf("principal %+v, %v", p, err)
	}
	if _, err := f.CreateTunnel(f.ctx, p, api.TunnelCreate{}); api.AsError(err) == nil {
		t.Error("manages tunnels")
	}
	if _, err := f.CreateKey(f.ctx, p, "", api.KeyCreate{Name: "k"}); api.AsError(err) == nil || api.AsError(err).Status != 403 {
		t.Errorf("made a key: %v", err)
	}
	if _, err := f.ArchiveRule(f.ctx, p, f.rule.ID); api.AsError(err) == nil || api.AsError(err).Status != 403 {
		t.Errorf("changed the federation: %v", err)
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	rule := &api.FederationRule{Lifetime: 3600}
	for left, want := range map[time.Duration]time.Duration{
		time.Hour: time.Hour, 24 * time.Hour: time.Hour, 20 * time.Minute: 40 * time.Minute, 10 * time.Second: time.Minute, -20 * time.Second: time.Minute,
	} {
		if got := lifetime(rule, left); got != want {
			t.Errorf("with %s left: %s, want %s", left, got, want)
		}
	}
}

// Whatever is wrong, the answer is the same; the history has the reason.
func TestRefusalsAreOpaque(t *testing.T) {
	t.Parallel()
	f := newFedWorld(t, Config{})
	with := func(name string, v any) map[string]any { return map[string]any{name: v} }
	ask := func(change func(*api.TokenRequest), changes ...map[string]any) api.TokenRequest {
		in := f.request(changes...)
		if change != nil {
			change(&in)
		}
		return in
	}
	for name, tt := range map[string]struct {
		in   api.TokenRequest
		want string
	}{
		"another pod":          {ask(nil, with("sub", "system:serviceaccount:mcp-tunnel:other")), "match_subject_prefix"},
		"another audience":     {ask(nil, with("aud", "https://bailey")), "match_audience"},
		"expired":              {ask(nil, with("exp", f.now.Add(-time.Hour).Unix()), with("iat", f.now.Add(-2*time.Hour).Unix())), "expired"},
		"another issuer":       {ask(nil, with("iss", "https://evil.example")), "issuer_mismatch"},
		"not a token":          {ask(func(in *api.TokenRequest) { in.Assertion = "x" }), "assertion_malformed"},
		"another organization": {ask(func(in *api.TokenRequest) { in.OrganizationID = "11111111-0000-0000-0000-000000000000" }), "organization_mismatch"},
		"another account":      {ask(func(in *api.TokenRequest) { in.ServiceAccountID = "svac_other" }), "service_account_mismatch"},
		"another workspace":    {ask(func(in *api.TokenRequest) { in.WorkspaceID = "wrkspc_other" }), "workspace_mismatch"},
		"a signature not its own": {ask(func(in *api.TokenRequest) {
			in.Assertion = in.Assertion[:len(in.Assertion)-20] + strings.Repeat("A", 20)
		}), "signature_invalid"},
	} {
		_, err := f.Exchange(f.ctx, tt.in, "req_2")
		if e := api.AsError(err); e == nil || e.Status != 401 || e.Type != api.TypeAuthentication || e.Message != "Authentication failed" || e.Details != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := f.last(); got.Outcome != "denied" || got.Reason != tt.want || got.Detail == "" {
			t.Errorf("%s: history %+v", name, got)
		}
	}
	// Nor does a rule that is not there make a difference.
	in := f.request()
	in.FederationRuleID = "fdrl_nosuch"
	if _, err := f.Exchange(f.ctx, in, ""); api.AsError(err) == nil || err.Error() != "Authentication failed" {
		t.Errorf("no such rule: %v", err)
	}
	// What is no request for an exchange is told so, and leaves no trace.
	before := f.last().ID
	for name, tt := range map[string]struct {
		change func(*api.TokenRequest)
		want   string
	}{
		"grant type":   {func(in *api.TokenRequest) { in.GrantType = "password" }, "grant_type"},
		"no assertion": {func(in *api.TokenRequest) { in.Assertion = "" }, "assertion"},
		"too long":     {func(in *api.TokenRequest) { in.Assertion = strings.Repeat("x", 16<<10+1) }, "assertion: at most 16384"},
		"no rule":      {func(in *api.TokenRequest) { in.FederationRuleID = "" }, "federation_rule_id"},
		"no org":       {func(in *api.TokenRequest) { in.OrganizationID = "" }, "organization_id"},
	} {
		in := f.request()
		tt.change(&in)
		if _, err := f.Exchange(f.ctx, in, ""); api.AsError(err) == nil || api.AsError(err).Status != 400 || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.last().ID != before {
		t.Error("a malformed request is in the history")
	}
	// Workspaces can be said in three ways.
	for _, ws := range []api.WorkspaceID{"", "default", api.WorkspaceDefault} {
		if _, err := f.Exchange(f.ctx, ask(func(in *api.TokenRequest) { in.WorkspaceID = ws }), ""); err != nil {
			t.Errorf("workspace %q: %v", ws, err)
		}
	}
}

func TestAnAssertionWithAnIDIsExchangedOnce(t *testing.T) {
	t.Parallel()
	f := newFedWorld(t, Config{})
	in := f.request(map[string]any{"jti": "one"})
	var granted atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := f.Exchange(f.ctx, in, ""); err == nil {
				granted.Add(1)
			}
		})
	}
	all.Wait()
	if n := granted.Load(); n != 1 {
		t.Errorf("granted %d times", n)
	}
	if got := f.last(); got.Reason != "assertion_replayed" && got.Outcome != "granted" {
		t.Errorf("history %+v", got)
	}
	if _, err := f.Exchange(f.ctx, f.request(map[string]any{"jti": "two"}), ""); err != nil {
		t.Error(err)
	}
	// Unless the issuer says that it does not matter.
	must1[*api.FederationIssuer](t)(f.UpdateIssuer(f.ctx, f.admin, f.issuer.ID, api.FederationIssuerUpdate{CheckJTI: api.Some(false)}))
	if _, err := f.Exchange(f.ctx, in, ""); err != nil {
		t.Error(err)
	}
}

// What a rule has given out is not good any more once the rule, its issuer or its
// service account is archived, or leads elsewhere.
func TestAccessTokensEndWithWhatTheyCameFrom(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*fedWorld) error{
		"rule":    func(f *fedWorld) error { _, err := f.ArchiveRule(f.ctx, f.admin, f.rule.ID); return err },
		"issuer":  func(f *fedWorld) error { _, err := f.ArchiveIssuer(f.ctx, f.admin, f.issuer.ID); return err },
		"account": func(f *fedWorld) error { _, err := f.ArchiveServiceAccount(f.ctx, f.admin, f.account.ID); return err },
		"match": func(f *fedWorld) error {
			_, err := f.UpdateRule(f.ctx, f.admin, f.rule.ID, api.FederationRuleUpdate{Match: api.Some(api.FederationMatch{SubjectPrefix: ref("other")})})
			return err
		},
		"scope": func(f *fedWorld) error {
			_, err := f.UpdateRule(f.ctx, f.admin, f.rule.ID, api.FederationRuleUpdate{OAuthScope: api.Some(api.OAuthDeveloper)})
			return err
		},
		"keys": func(f *fedWorld) error {
			_, err := f.UpdateIssuer(f.ctx, f.admin, f.issuer.ID, api.FederationIssuerUpdate{JWKS: api.Some(api.JWKS{Type: api.JWKSURL, URL: f.far.URL + "/keys"})})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFedWorld(t, Config{})
			tok := f.token()
			if !f.good(tok) {
				t.Fatal("not good to begin with")
			}
			if err := end(f); err != nil {
				t.Fatal(err)
			}
			if f.good(tok) {
				t.Error("still good")
			}
			_, err := f.Exchange(f.ctx, f.request(), "")
			ends := name == "rule" || name == "issuer" || name == "account" || name == "match"
			if ends != (err != nil) {
				t.Errorf("another exchange: %v", err)
			}
			if ends && !strings.HasSuffix(f.last().Reason, "_archived") && f.last().Reason != "match_subject_prefix" {
				t.Errorf("history %+v", f.last())
			}
		})
	}
	// A change of the name or of the lifetime changes nothing for those who have one.
	f := newFedWorld(t, Config{})
	tok := f.token()
	must1[*api.FederationRule](t)(f.UpdateRule(f.ctx, f.admin, f.rule.ID, api.FederationRuleUpdate{Name: api.Some("renamed"), Lifetime: api.Some[int64](60)}))
	if !f.good(tok) || f.token().ExpiresIn != 60 {
		t.Error("after a change of the lifetime")
	}
}

// The one that ends it comes when the exchange has looked at everything.
func TestNoTokenIsGivenOutPastTheEndOfWhatItComesFrom(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*fedWorld) error{
		"rule":    func(f *fedWorld) error { _, err := f.ArchiveRule(f.ctx, f.admin, f.rule.ID); return err },
		"issuer":  func(f *fedWorld) error { _, err := f.ArchiveIssuer(f.ctx, f.admin, f.issuer.ID); return err },
		"account": func(f *fedWorld) error { _, err := f.ArchiveServiceAccount(f.ctx, f.admin, f.account.ID); return err },
		"keys": func(f *fedWorld) error {
			_, err := f.UpdateIssuer(f.ctx, f.admin, f.issuer.ID, api.FederationIssuerUpdate{JWKS: api.Some(api.JWKS{Type: api.JWKSURL, URL: f.far.URL + "/keys"})})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFedWorld(t, Config{})
			if f.Engine() == "sqlite" {
				t.Skip("SQLite has one transaction at a time")
			}
			ended, armed := make(chan struct{}), false
			replica, err := New(f.ctx, f.url, store.Options{BeforeCommit: func() error {
				if armed {
					armed = false
					go func() {
						defer close(ended)
						if err := end(f); err != nil {
							t.Error(err)
						}
					}()
					storetest.Blocked(t, f.url, ended)
				}
				return nil
			}}, f.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer replica.Close()
			armed = true
			tok, err := replica.Exchange(f.ctx, f.request(), "")
			<-ended
			if err != nil || f.good(tok) {
				t.Errorf("it is good still, %v", err)
			}
		})
	}
}

func TestFederationRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	f := newFedWorld(t, Config{})
	ordinary := Principal{Kind: api.KeyAPI, KeyID: "apikey_o"}
	rule := func(change func(*api.FederationRuleCreate)) func() error {
		return func() error {
			in := f.ruleOf("another", api.OAuthDeveloper)
			change(&in)
			_, err := f.CreateRule(f.ctx, f.admin, in)
			return err
		}
	}
	issuer := func(change func(*api.FederationIssuerCreate)) func() error {
		return func() error {
			in := api.FederationIssuerCreate{Name: "another", IssuerURL: "https://issuer.example"}
			change(&in)
			_, err := f.CreateIssuer(f.ctx, f.admin, in)
			return err
		}
	}
	github := must1[*api.FederationIssuer](t)(f.CreateIssuer(f.ctx, f.admin, api.FederationIssuerCreate{
		Name: "github", IssuerURL: "https://token.actions.githubusercontent.com",
	}))
	for name, tt := range map[string]struct {
		call   func() error
		status int
		want   string
	}{
		"a rule's name twice":    {rule(func(in *api.FederationRuleCreate) { in.Name = f.rule.Name }), 409, `there is a federation rule named "setup"`},
		"an issuer's name twice": {issuer(func(in *api.FederationIssuerCreate) { in.Name = "cluster" }), 409, "named"},
		"an account's name twice": {func() error {
			_, err := f.CreateServiceAccount(f.ctx, f.admin, api.ServiceAccountCreate{Name: "setup"})
			return err
		}, 409, "named"},
		"no slug":           {rule(func(in *api.FederationRuleCreate) { in.Name = "A rule" }), 400, "name: must be"},
		"no such issuer":    {rule(func(in *api.FederationRuleCreate) { in.IssuerID = "fdis_x" }), 400, "issuer_id"},
		"no such account":   {rule(func(in *api.FederationRuleCreate) { in.Target.ID = "svac_x" }), 400, "target.service_account_id"},
		"everybody":         {rule(func(in *api.FederationRuleCreate) { in.Match.SubjectPrefix = ref("*") }), 400, "match: needs subject_prefix"},
		"an audience alone": {rule(func(in *api.FederationRuleCreate) { in.Match = api.FederationMatch{Audience: ref("x")} }), 400, "an audience alone is not enough"},
		"a condition":       {rule(func(in *api.FederationRuleCreate) { in.Match.Condition = ref("true") }), 400, "CEL conditions are not offered"},
		"attributes":        {rule(func(in *api.FederationRuleCreate) { in.Attributes = map[string]string{"a": "b"} }), 400, "attributes"},
		"no scope":          {rule(func(in *api.FederationRuleCreate) { in.OAuthScope = " " }), 400, "oauth_scope"},
		"another scope":     {rule(func(in *api.FederationRuleCreate) { in.OAuthScope = "org:admin" }), 400, `oauth_scope: "org:admin" is not offered`},
		"no workspace":      {rule(func(in *api.FederationRuleCreate) { in.WorkspaceID = nil }), 400, "workspace_id: is required"},
		"another workspace": {rule(func(in *api.FederationRuleCreate) { in.WorkspaceID = ref(api.WorkspaceID("wrkspc_x")) }), 400, "one workspace"},
		"too short a life":  {rule(func(in *api.FederationRuleCreate) { in.Lifetime = ref[int64](59) }), 400, "token_lifetime_seconds"},
		"anybody at GitHub": {rule(func(in *api.FederationRuleCreate) { in.IssuerID, in.Match.SubjectPrefix = github.ID, ref("repo:*") }), 400, "say whose are meant"},
		"somebody at GitHub": {rule(func(in *api.FederationRuleCreate) {
			in.IssuerID, in.Match.SubjectPrefix = github.ID, ref("repo:acme/*")
		}), 0, ""},
		"tunnels, by one that not": {func() error {
			_, err := f.CreateRule(f.ctx, ordinary, f.ruleOf("x", api.OAuthManageTunnels))
			return err
		}, 403, "can only be made with a key that may"},
		"plain http": {issuer(func(in *api.FederationIssuerCreate) { in.IssuerURL = "http://issuer.example" }), 400, "issuer_url: must be an https URL"},
		"plain http, only named": {issuer(func(in *api.FederationIssuerCreate) {
			in.IssuerURL, in.JWKS = "http://issuer.example", &api.JWKS{Type: api.JWKSURL, URL: "https://issuer.example/keys"}
		}), 0, ""},
		"no keys": {issuer(func(in *api.FederationIssuerCreate) { in.JWKS = &api.JWKS{Type: api.JWKSInline} }), 400, "jwks.keys"},
		"no CA": {issuer(func(in *api.FederationIssuerCreate) {
			in.JWKS = &api.JWKS{Type: api.JWKSDiscovery, CACertPEM: ref("x")}
		}), 400, "jwks.ca_cert_pem"},
		"for a week": {issuer(func(in *api.FederationIssuerCreate) { in.MaxLifetime = ref[int64](176_401) }), 400, "max_jwt_lifetime_seconds"},
		"to GitHub's URL": {func() error {
			_, err := f.UpdateIssuer(f.ctx, f.admin, f.issuer.ID, api.FederationIssuerUpdate{IssuerURL: api.Some("https://token.actions.githubusercontent.com")})
			return err
		}, 400, "rule setup"},
		"polling off": {func() error {
			_, err := f.UpdateIssuer(f.ctx, f.admin, f.issuer.ID, api.FederationIssuerUpdate{PollingDisabled: api.Some(true)})
			return err
		}, 400, "only false is accepted"},
		"another role": {func() error {
			_, err := f.CreateServiceAccount(f.ctx, f.admin, api.ServiceAccountCreate{Name: "x", OrganizationRole: ref("owner")})
			return err
		}, 400, "organization_role"},
	} {
		err := tt.call()
		if e := api.AsError(err); tt.status == 0 && err != nil || tt.status != 0 && (e == nil || e.Status != tt.status || !strings.Contains(e.Message, tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must1[*api.FederationRule](t)(f.ArchiveRule(f.ctx, f.admin, f.rule.ID))
	if _, err := f.UpdateRule(f.ctx, f.admin, f.rule.ID, api.FederationRuleUpdate{Name: api.Some("x")}); err == nil || !strings.Contains(err.Error(), "is archived and cannot be changed") {
		t.Errorf("an archived rule was changed: %v", err)
	}
}

func TestExchangesAreOnRecord(t *testing.T) {
	t.Parallel()
	d := new(deaf)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, audit.Options{Sinks: []audit.SinkOptions{{Sink: d, Required: true}}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f := newFedWorld(t, Config{Audit: log})
	d.on.Store(true)
	if _, err := f.Exchange(f.ctx, f.request(), ""); err == nil {
		t.Error("a token without a record")
	}
	d.on.Store(false)
	f.token()
	if _, err := f.Exchange(f.ctx, f.request(map[string]any{"sub": "other\x00"}), "req_3"); err == nil {
		t.Error("granted")
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := audit.OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	granted, refused := 0, 0
	for e, err := range audit.Entries(r, audit.Filter{Actions: []string{audit.FederationGrant, audit.FederationRefused}}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(e.Raw), "eyJ") || strings.Contains(string(e.Raw), "sk-ant") {
			t.Errorf("a secret on record: %s", e.Raw)
		}
		switch e.Action {
		case audit.FederationGrant:
			if e.Actor == string(f.account.ID) && e.Attrs["subject"] == pod && e.Attrs["rule_id"] == string(f.rule.ID) {
				granted++
			}
		case audit.FederationRefused:
			if e.Attrs["reason"] == "match_subject_prefix" && e.Request == "req_3" && e.Attrs["verified"] == "true" {
				refused++
			}
		}
	}
	if granted == 0 || refused != 1 {
		t.Errorf("%d granted and %d refused on record", granted, refused)
	}
}

// Strangers cannot fill the history or the disk: most of their attempts are counted.
func TestAFloodOfRefusalsIsCounted(t *testing.T) {
	t.Parallel()
	f := newFedWorld(t, Config{})
	in := f.request(map[string]any{"sub": "other"})
	for range 3 * refusalsBurst {
		if _, err := f.Exchange(f.ctx, in, ""); err == nil {
			t.Fatal("granted")
		}
	}
	page, err := f.ListExchanges(f.ctx, f.admin, f.rule.ID, api.PageRequest{Limit: 1000})
	if err != nil || len(page.Data) > refusalsBurst+refusalsPerSecond {
		t.Errorf("%d in the history, %v", len(page.Data), err)
	}
	f.token() // which is none of theirs
}
