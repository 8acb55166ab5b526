package daemon

import (
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/config"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/workload/issuertest"
)

// An issuer is asked for its keys at a public address, or where the operator says, and
// with the CA that the issuer was registered with.
func TestIssuersAreAskedWhereTheOperatorAllows(t *testing.T) {
	t.Parallel()
	far := issuertest.Start(t, true)
	for name, tt := range map[string]struct {
		allowed string
		ca      bool
		reason  string // "" is granted
	}{
		"allowed, with its CA":    {"127.0.0.0/8", true, ""},
		"allowed, without its CA": {"127.0.0.0/8", false, "keys_unavailable"},
		"not allowed":             {"", true, "keys_unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			cfg.MCPAllowedAddresses = tt.allowed
			d, _ := start(t, cfg)
			cl := adminOf(t, d, d.FirstKey())
			in := api.FederationIssuerCreate{Name: "cluster", IssuerURL: far.URL, JWKS: &api.JWKS{Type: api.JWKSDiscovery}}
			if tt.ca {
				in.JWKS.CACertPEM = &far.CA
			}
			issuer, err := cl.CreateIssuer(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			account, err := cl.CreateServiceAccount(t.Context(), api.ServiceAccountCreate{Name: "setup"})
			if err != nil {
				t.Fatal(err)
			}
			ws, subject := api.WorkspaceDefault, "pod"
			rule, err := cl.CreateRule(t.Context(), api.FederationRuleCreate{
				Name: "setup", IssuerID: issuer.ID, Match: api.FederationMatch{SubjectPrefix: &subject}, WorkspaceID: &ws,
				Target: api.FederationTarget{Type: "service_account", ID: account.ID}, OAuthScope: api.OAuthManageTunnels,
			})
			if err != nil {
				t.Fatal(err)
			}
			creds, err := config.ExchangeFederationAssertion(t.Context(), config.FederationExchangeParams{
				Assertion: far.Sign(far.Claims(time.Now(), "pod")), FederationRuleID: string(rule.ID), OrganizationID: api.OrganizationDefault, BaseURL: d.URL(),
			})
			if tt.reason == "" {
				if err != nil || creds.AccessToken == "" {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Error("granted")
			}
			for e, err := range cl.Exchanges(t.Context(), rule.ID, client.ListOptions{}) {
				if err != nil || e.Reason != tt.reason {
					t.Errorf("%s, %v: %s", e.Reason, err, e.Detail)
				}
			}
		})
	}
}
