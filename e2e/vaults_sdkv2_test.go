package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	anthropic "github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Vaults and credentials by the official SDK. The tests of its other generation are
// made from this file, as those of sdkv2_test.go are.
//
//go:generate sh -c "./sdkv1.sh vaults_sdkv2_test.go > vaults_sdkv1_test.go"

// An oauthServerV2 is an MCP server that takes the tokens of an authorization server
// beside it, which gives out each refresh token once.
type oauthServerV2 struct {
	*httptest.Server
	mu      sync.Mutex
	good    string // the token that is taken
	refresh string // that is good for another
	n       int
}

func newOAuthServerV2(t *testing.T) *oauthServerV2 {
	s := &oauthServerV2{good: "hush-token-0", refresh: "hush-refresh-0"}
	server := mcp.NewServer(&mcp.Implementation{Name: "docs", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "find"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{}, nil, nil
	})
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		good := r.Header.Get("Authorization") == "Bearer "+s.good
		s.mu.Unlock()
		if !good {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":"invalid_token","sent":%q}`, r.Header.Get("Authorization"))
			return
		}
		handler.ServeHTTP(w, r)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		id, secret, _ := r.BasicAuth()
		if r.PostFormValue("refresh_token") != s.refresh || id != "client" || secret != "hush-client-secret" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":"invalid_grant","refresh_token":%q}`, r.PostFormValue("refresh_token"))
			return
		}
		s.n++
		s.good, s.refresh = fmt.Sprintf("hush-token-%d", s.n), fmt.Sprintf("hush-refresh-%d", s.n)
		fmt.Fprintf(w, `{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":3600}`, s.good, s.refresh)
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestVaultsBySDKV2(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		p := startPlane(t, planeConfig{db: db, args: []string{"--mcp-allowed-addresses", "127.0.0.0/8"}})
		c := clientV2(p, option.WithAPIKey(p.admin))
		t.Run("vaults", func(t *testing.T) { t.Parallel(); vaultsV2(t, c) })
		t.Run("credentials", func(t *testing.T) { t.Parallel(); credentialsV2(t, c) })
		t.Run("validation", func(t *testing.T) { t.Parallel(); validationV2(t, c) })
		t.Run("sessions", func(t *testing.T) { t.Parallel(); vaultSessionsV2(t, c) })
	})
}

func vaultsV2(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	made, err := c.Beta.Vaults.New(ctx, anthropic.BetaVaultNewParams{DisplayName: "team", Metadata: map[string]string{"a": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(made.ID, "vlt_") || made.Type != "vault" || made.DisplayName != "team" || made.Metadata["a"] != "1" ||
		!made.ArchivedAt.IsZero() || made.CreatedAt.IsZero() || made.UpdatedAt.IsZero() {
		t.Errorf("made %s", made.RawJSON())
	}
	got, err := c.Beta.Vaults.Get(ctx, made.ID, anthropic.BetaVaultGetParams{})
	if err != nil || got.RawJSON() != made.RawJSON() {
		t.Errorf("got %s, %v", got.RawJSON(), err)
	}
	changed, err := c.Beta.Vaults.Update(ctx, made.ID, anthropic.BetaVaultUpdateParams{DisplayName: anthropic.String("other"), Metadata: map[string]string{"b": "2"}})
	if err != nil || changed.DisplayName != "other" || len(changed.Metadata) != 2 || !changed.UpdatedAt.After(made.UpdatedAt) {
		t.Errorf("changed %s, %v", changed.RawJSON(), err)
	}
	for i := range 3 {
		if _, err := c.Beta.Vaults.New(ctx, anthropic.BetaVaultNewParams{DisplayName: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	n, found := 0, false
	pages := c.Beta.Vaults.ListAutoPaging(ctx, anthropic.BetaVaultListParams{Limit: anthropic.Int(2)})
	for ; pages.Next(); n++ {
		found = found || pages.Current().ID == made.ID
	}
	if pages.Err() != nil || n < 4 || !found {
		t.Errorf("listed %d, found %v, %v", n, found, pages.Err())
	}
	archived, err := c.Beta.Vaults.Archive(ctx, made.ID, anthropic.BetaVaultArchiveParams{})
	if err != nil || archived.ArchivedAt.IsZero() {
		t.Errorf("archived %s, %v", archived.RawJSON(), err)
	}
	_, err = c.Beta.Vaults.Update(ctx, made.ID, anthropic.BetaVaultUpdateParams{DisplayName: anthropic.String("x")})
	wantErrorV2(t, err, 400)
	deleted, err := c.Beta.Vaults.Delete(ctx, made.ID, anthropic.BetaVaultDeleteParams{})
	if err != nil || deleted.ID != made.ID || deleted.Type != "vault_deleted" {
		t.Errorf("deleted %s, %v", deleted.RawJSON(), err)
	}
	_, err = c.Beta.Vaults.Get(ctx, made.ID, anthropic.BetaVaultGetParams{})
	wantErrorV2(t, err, 404)
}

func bearerV2(url, token string) anthropic.BetaVaultCredentialNewParamsAuthUnion {
	return anthropic.BetaVaultCredentialNewParamsAuthUnion{OfStaticBearer: &anthropic.BetaManagedAgentsStaticBearerCreateParams{
		Type: "static_bearer", MCPServerURL: url, Token: token,
	}}
}

func credentialsV2(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	v, err := c.Beta.Vaults.New(ctx, anthropic.BetaVaultNewParams{DisplayName: "v"})
	if err != nil {
		t.Fatal(err)
	}
	api := c.Beta.Vaults.Credentials
	bearer, err := api.New(ctx, v.ID, anthropic.BetaVaultCredentialNewParams{
		Auth: bearerV2("https://docs.example.com/mcp", "hush-bearer"), DisplayName: anthropic.String("docs"), Metadata: map[string]string{"a": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(bearer.ID, "vcrd_") || bearer.Type != "vault_credential" || bearer.VaultID != v.ID || bearer.DisplayName != "docs" || bearer.Metadata["a"] != "1" ||
		bearer.Auth.AsStaticBearer().MCPServerURL != "https://docs.example.com/mcp" || !bearer.ArchivedAt.IsZero() {
		t.Errorf("made %s", bearer.RawJSON())
	}
	_, err = api.New(ctx, v.ID, anthropic.BetaVaultCredentialNewParams{Auth: bearerV2("https://DOCS.example.com/mcp/", "hush-bearer")})
	wantErrorV2(t, err, 409)

	ends := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	oauth, err := api.New(ctx, v.ID, anthropic.BetaVaultCredentialNewParams{Auth: anthropic.BetaVaultCredentialNewParamsAuthUnion{
		OfMCPOAuth: &anthropic.BetaManagedAgentsMCPOAuthCreateParams{
			Type: "mcp_oauth", MCPServerURL: "https://oauth.example.com/mcp", AccessToken: "hush-access", ExpiresAt: param.NewOpt(ends),
			Refresh: anthropic.BetaManagedAgentsMCPOAuthRefreshParams{
				TokenEndpoint: "https://as.example.com/token", ClientID: "client", RefreshToken: "hush-refresh", Scope: anthropic.String("read"), Resource: anthropic.String("https://oauth.example.com/mcp"),
				TokenEndpointAuth: anthropic.BetaManagedAgentsMCPOAuthRefreshParamsTokenEndpointAuthUnion{
					OfClientSecretPost: &anthropic.BetaManagedAgentsTokenEndpointAuthPostParam{Type: "client_secret_post", ClientSecret: "hush-client-secret"},
				},
			},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if a := oauth.Auth.AsMCPOAuth(); !a.ExpiresAt.Equal(ends) || a.Refresh.ClientID != "client" || a.Refresh.TokenEndpointAuth.Type != "client_secret_post" ||
		a.Refresh.Scope != "read" || a.Refresh.Resource != "https://oauth.example.com/mcp" || oauth.DisplayName != "" {
		t.Errorf("made %s", oauth.RawJSON())
	}
	variable, err := api.New(ctx, v.ID, anthropic.BetaVaultCredentialNewParams{Auth: anthropic.BetaVaultCredentialNewParamsAuthUnion{
		OfEnvironmentVariable: &anthropic.BetaManagedAgentsEnvironmentVariableCreateParams{
			Type: "environment_variable", SecretName: "API_KEY", SecretValue: "hush-variable",
			Networking: anthropic.BetaManagedAgentsCredentialNetworkingParamsUnion{OfLimited: &anthropic.BetaManagedAgentsLimitedCredentialNetworkingParams{
				Type: "limited", AllowedHosts: []string{"api.example.com", "*.example.org", "192.0.2.1"},
			}},
			InjectionLocation: anthropic.BetaManagedAgentsInjectionLocationParams{Header: anthropic.Bool(true)},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if a := variable.Auth.AsEnvironmentVariable(); a.SecretName != "API_KEY" || len(a.Networking.AllowedHosts) != 3 || !a.InjectionLocation.Header || a.InjectionLocation.Body {
		t.Errorf("made %s", variable.RawJSON())
	}

	changed, err := api.Update(ctx, bearer.ID, anthropic.BetaVaultCredentialUpdateParams{
		VaultID: v.ID, DisplayName: anthropic.String("renamed"),
		Auth: anthropic.BetaVaultCredentialUpdateParamsAuthUnion{OfStaticBearer: &anthropic.BetaManagedAgentsStaticBearerUpdateParams{Type: "static_bearer", Token: anthropic.String("hush-other")}},
	})
	if err != nil || changed.DisplayName != "renamed" || changed.Metadata["a"] != "1" {
		t.Errorf("changed %s, %v", changed.RawJSON(), err)
	}
	changed, err = api.Update(ctx, oauth.ID, anthropic.BetaVaultCredentialUpdateParams{
		VaultID: v.ID, Auth: anthropic.BetaVaultCredentialUpdateParamsAuthUnion{OfMCPOAuth: &anthropic.BetaManagedAgentsMCPOAuthUpdateParams{
			Type: "mcp_oauth", AccessToken: anthropic.String("hush-access-2"), ExpiresAt: param.NewOpt(ends.Add(time.Hour)),
			Refresh: anthropic.BetaManagedAgentsMCPOAuthRefreshUpdateParams{
				RefreshToken: anthropic.String("hush-refresh-2"), Scope: anthropic.String(""),
				TokenEndpointAuth: anthropic.BetaManagedAgentsMCPOAuthRefreshUpdateParamsTokenEndpointAuthUnion{
					OfClientSecretBasic: &anthropic.BetaManagedAgentsTokenEndpointAuthBasicUpdateParam{Type: "client_secret_basic", ClientSecret: anthropic.String("hush-client-2")},
				},
			},
		}},
	})
	if err != nil || !changed.Auth.AsMCPOAuth().ExpiresAt.Equal(ends.Add(time.Hour)) || changed.Auth.Refresh.Scope != "" || changed.Auth.Refresh.TokenEndpointAuth.Type != "client_secret_post" {
		t.Errorf("changed %s, %v", changed.RawJSON(), err)
	}
	changed, err = api.Update(ctx, variable.ID, anthropic.BetaVaultCredentialUpdateParams{
		VaultID: v.ID, Auth: anthropic.BetaVaultCredentialUpdateParamsAuthUnion{OfEnvironmentVariable: &anthropic.BetaManagedAgentsEnvironmentVariableUpdateParams{
			Type: "environment_variable", SecretValue: anthropic.String("hush-variable-2"),
			Networking:        anthropic.BetaManagedAgentsCredentialNetworkingParamsUnion{OfUnrestricted: &anthropic.BetaManagedAgentsUnrestrictedCredentialNetworkingParams{Type: "unrestricted"}},
			InjectionLocation: anthropic.BetaManagedAgentsInjectionLocationUpdateParams{Body: anthropic.Bool(true)},
		}},
	})
	if a := changed.Auth.AsEnvironmentVariable(); err != nil || a.Networking.Type != "unrestricted" || !a.InjectionLocation.Header || !a.InjectionLocation.Body {
		t.Errorf("changed %s, %v", changed.RawJSON(), err)
	}
	_, err = api.Update(ctx, bearer.ID, anthropic.BetaVaultCredentialUpdateParams{
		VaultID: v.ID, Auth: anthropic.BetaVaultCredentialUpdateParamsAuthUnion{OfMCPOAuth: &anthropic.BetaManagedAgentsMCPOAuthUpdateParams{Type: "mcp_oauth"}},
	})
	wantErrorV2(t, err, 400)

	list := func(archived bool) (ids []string) {
		pages := api.ListAutoPaging(ctx, v.ID, anthropic.BetaVaultCredentialListParams{Limit: anthropic.Int(1), IncludeArchived: anthropic.Bool(archived)})
		for pages.Next() {
			if raw := pages.Current().RawJSON(); strings.Contains(raw, "hush") {
				t.Errorf("listed with a secret: %s", raw)
			}
			ids = append(ids, pages.Current().ID)
		}
		if pages.Err() != nil {
			t.Error(pages.Err())
		}
		return ids
	}
	archived, err := api.Archive(ctx, bearer.ID, anthropic.BetaVaultCredentialArchiveParams{VaultID: v.ID})
	if err != nil || archived.ArchivedAt.IsZero() {
		t.Errorf("archived %s, %v", archived.RawJSON(), err)
	}
	if got, all := list(false), list(true); len(got) != 2 || got[0] != variable.ID || got[1] != oauth.ID || len(all) != 3 {
		t.Errorf("listed %v, and %v with archived ones", got, all)
	}
	deleted, err := api.Delete(ctx, oauth.ID, anthropic.BetaVaultCredentialDeleteParams{VaultID: v.ID})
	if err != nil || deleted.ID != oauth.ID || deleted.Type != "vault_credential_deleted" {
		t.Errorf("deleted %s, %v", deleted.RawJSON(), err)
	}
	_, err = api.Get(ctx, oauth.ID, anthropic.BetaVaultCredentialGetParams{VaultID: v.ID})
	wantErrorV2(t, err, 404)
	if got, err := api.Get(ctx, variable.ID, anthropic.BetaVaultCredentialGetParams{VaultID: v.ID}); err != nil || got.ID != variable.ID {
		t.Errorf("got %s, %v", got.RawJSON(), err)
	}
}

func validationV2(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	s := newOAuthServerV2(t)
	v, err := c.Beta.Vaults.New(ctx, anthropic.BetaVaultNewParams{DisplayName: "v"})
	if err != nil {
		t.Fatal(err)
	}
	api := c.Beta.Vaults.Credentials
	put := func(path, token string, refresh bool) string {
		t.Helper()
		auth := &anthropic.BetaManagedAgentsMCPOAuthCreateParams{Type: "mcp_oauth", MCPServerURL: s.URL + path, AccessToken: token}
		if refresh {
			auth.Refresh = anthropic.BetaManagedAgentsMCPOAuthRefreshParams{
				TokenEndpoint: s.URL + "/token", ClientID: "client", RefreshToken: "hush-refresh-0",
				TokenEndpointAuth: anthropic.BetaManagedAgentsMCPOAuthRefreshParamsTokenEndpointAuthUnion{
					OfClientSecretBasic: &anthropic.BetaManagedAgentsTokenEndpointAuthBasicParam{Type: "client_secret_basic", ClientSecret: "hush-client-secret"},
				},
			}
		}
		cred, err := api.New(ctx, v.ID, anthropic.BetaVaultCredentialNewParams{Auth: anthropic.BetaVaultCredentialNewParamsAuthUnion{OfMCPOAuth: auth}})
		if err != nil {
			t.Fatal(err)
		}
		return cred.ID
	}
	validate := func(id string) *anthropic.BetaManagedAgentsCredentialValidation {
		t.Helper()
		got, err := api.MCPOAuthValidate(ctx, id, anthropic.BetaVaultCredentialMCPOAuthValidateParams{VaultID: v.ID})
		if err != nil {
			t.Fatal(err)
		}
		if got.CredentialID != id || got.VaultID != v.ID || got.Type != "vault_credential_validation" || got.ValidatedAt.IsZero() || strings.Contains(got.RawJSON(), "hush") {
			t.Errorf("validated: %s", got.RawJSON())
		}
		return got
	}
	good := put("/mcp", "hush-token-0", true)
	if got := validate(good); got.Status != "valid" || !got.HasRefreshToken || got.JSON.MCPProbe.Raw() != "null" || got.JSON.Refresh.Raw() != "null" {
		t.Errorf("a good one: %s", got.RawJSON())
	}
	// The server takes it no more: it is renewed.
	s.mu.Lock()
	s.good = "another"
	s.mu.Unlock()
	if got := validate(good); got.Status != "valid" || got.Refresh.Status != "succeeded" {
		t.Errorf("one that had to be renewed: %s", got.RawJSON())
	}
	s.mu.Lock()
	s.good, s.refresh = "another", "another"
	s.mu.Unlock()
	if got := validate(good); got.Status != "invalid" || got.MCPProbe.HTTPResponse.StatusCode != 401 || got.Refresh.Status != "failed" ||
		got.Refresh.HTTPResponse.StatusCode != 400 || !strings.Contains(got.Refresh.HTTPResponse.Body, "invalid_grant") {
		t.Errorf("one that cannot be renewed: %s", got.RawJSON())
	}
	if got := validate(put("/mcp?x=1", "hush-wrong", false)); got.Status != "invalid" || got.HasRefreshToken || got.MCPProbe.Method != "initialize" || got.Refresh.Status != "no_refresh_token" {
		t.Errorf("one without a refresh token: %s", got.RawJSON())
	}
	if got := validate(put("/nothing", "hush-token-0", false)); got.Status != "unknown" || got.MCPProbe.HTTPResponse.StatusCode != 404 || got.JSON.Refresh.Raw() != "null" {
		t.Errorf("one for no MCP server: %s", got.RawJSON())
	}
}

func vaultSessionsV2(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	v, err := c.Beta.Vaults.New(ctx, anthropic.BetaVaultNewParams{DisplayName: "v"})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := c.Beta.Agents.New(ctx, anthropic.BetaAgentNewParams{Name: "a", Model: anthropic.BetaManagedAgentsModelConfigParams{ID: modelID}})
	if err != nil {
		t.Fatal(err)
	}
	env := newEnvironmentV2(t, c)
	create := func() (*anthropic.BetaManagedAgentsSession, error) {
		return c.Beta.Sessions.New(ctx, anthropic.BetaSessionNewParams{
			Agent: anthropic.BetaSessionNewParamsAgentUnion{OfString: anthropic.String(agent.ID)}, EnvironmentID: env.ID, VaultIDs: []string{v.ID},
		})
	}
	made, err := create()
	if err != nil || len(made.VaultIDs) != 1 || made.VaultIDs[0] != v.ID {
		t.Fatalf("made %s, %v", made.RawJSON(), err)
	}
	if _, err := c.Beta.Vaults.Archive(ctx, v.ID, anthropic.BetaVaultArchiveParams{}); err != nil {
		t.Fatal(err)
	}
	_, err = create()
	wantErrorV2(t, err, 400)
	if got, err := c.Beta.Sessions.Get(ctx, made.ID, anthropic.BetaSessionGetParams{}); err != nil || len(got.VaultIDs) != 1 {
		t.Errorf("the session that has it: %s, %v", got.RawJSON(), err)
	}
}
