package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/client"
)

// Not the log, not the record with its inputs as text, not an answer: a secret is seen
// in none of them, however it came in.
func TestSecretsOfCredentialsAreSeenNowhere(t *testing.T) {
	t.Parallel()
	record, path := openAudit(t, audit.Options{Input: audit.InputText})
	var log bytes.Buffer
	f := newFixture(t, Config{Audit: record, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	var vault, cred struct{ ID string }
	f.do(t, "POST", "/v1/vaults", `{"display_name": "v"}`, &vault)
	at := "/v1/vaults/" + vault.ID + "/credentials"
	f.do(t, "POST", at, `{"auth": {"type": "static_bearer", "mcp_server_url": "https://h", "token": "hush-1-token"}}`, &cred)
	f.do(t, "POST", at+"/"+cred.ID, `{"auth": {"type": "static_bearer", "token": "hush-2-token"}}`, &cred)
	for _, body := range []string{
		`{"auth": {"type": "mcp_oauth", "mcp_server_url": "https://o", "access_token": "hush-3", "refresh": {"token_endpoint": "https://as", "client_id": "c",
			"refresh_token": "hush-4", "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "hush-5"}}}}`,
		`{"auth": {"type": "environment_variable", "secret_name": "A", "secret_value": "hush-6-value", "networking": {"type": "unrestricted"}}}`,
		// What is refused is no different.
		`{"auth": {"type": "environment_variable", "secret_name": "0", "secret_value": "hush-7-value", "networking": {"type": "unrestricted"}}}`,
		`{"auth": {"type": "static_bearer", "mcp_server_url": "https://h", "Token": "hush 8"}}`,
		`{"auth": {"type": "static_bearer", "token": ["hush-9"]}}`,
		`{"auth": {"type": "static_bearer", "token": "hush-10"`,
	} {
		if _, answer := f.answer(t, f.request(t, "POST", at, body)); strings.Contains(answer, "hush") {
			t.Errorf("the answer has a secret: %s", answer)
		}
	}
	if _, answer := f.answer(t, f.request(t, "GET", at, "")); strings.Contains(answer, "hush") {
		t.Errorf("the list has a secret: %s", answer)
	}
	all := entries(t, record, path)
	hidden := 0
	for _, e := range all {
		if strings.Contains(string(e.Raw), "hush") {
			t.Errorf("on record: %s", e.Raw)
		}
		if strings.HasPrefix(e.Attrs["operation"], "vaults.credentials.") && e.Action == audit.APIRequest {
			if e.Attrs["vault_id"] != vault.ID {
				t.Errorf("the record does not name the vault: %s", e.Raw)
			}
			if strings.Contains(e.Input, "[secret]") || strings.Contains(e.Input, "[masked") { // the record hides its own way what looks like one
				hidden++
			}
		}
	}
	if hidden < 6 {
		t.Errorf("only %d of the requests are on record with their secrets taken out", hidden)
	}
	if strings.Contains(log.String(), "hush") {
		t.Errorf("in the log: %s", &log)
	}
	if data, err := os.ReadFile(path); err != nil || bytes.Contains(data, []byte("hush")) {
		t.Errorf("in the file: %v", err)
	}
}

func TestOwnClientOfVaults(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	c, err := client.New(client.Config{BaseURL: f.url, Key: f.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v, err := c.CreateVault(ctx, api.VaultCreate{DisplayName: "v"})
	ok(err)
	v, err = c.UpdateVault(ctx, v.ID, api.VaultUpdate{DisplayName: api.Some("w")})
	ok(err)
	v, err = c.GetVault(ctx, v.ID)
	ok(err)
	if v.DisplayName != "w" {
		t.Errorf("vault %+v", v)
	}
	ok(count(c.Vaults(ctx, client.ListOptions{}), 1))

	scope, secret := "read", api.Secret("s")
	for _, auth := range []api.CredentialAuthCreate{
		{Type: api.AuthStaticBearer, MCPServerURL: "https://h/a", Token: "t"},
		{Type: api.AuthMCPOAuth, MCPServerURL: "https://h/b", AccessToken: "t", Refresh: &api.CredentialRefreshCreate{
			TokenEndpoint: "https://as", ClientID: "c", RefreshToken: "r", Scope: &scope,
			TokenEndpointAuth: api.TokenEndpointAuthCreate{Type: api.TokenAuthBasic, ClientSecret: &secret},
		}},
		{Type: api.AuthEnvironmentVariable, SecretName: "A", SecretValue: "a secret", Networking: &api.CredentialNetworking{Type: api.NetworkLimited, AllowedHosts: []string{"h.example"}},
			InjectionLocation: api.Some(api.InjectionLocationPatch{Header: api.Some(true)})},
	} {
		cred, err := c.CreateCredential(ctx, v.ID, api.CredentialCreate{Auth: auth})
		ok(err)
		update := api.CredentialAuthUpdate{Type: auth.Type}
		switch auth.Type {
		case api.AuthStaticBearer:
			update.Token = api.Some(api.Secret("new"))
		case api.AuthMCPOAuth:
			update.Refresh = api.Some(api.CredentialRefreshUpdate{Scope: api.Some("")})
		default:
			update.Networking = api.Some(api.CredentialNetworking{Type: api.NetworkUnrestricted})
		}
		cred, err = c.UpdateCredential(ctx, v.ID, cred.ID, api.CredentialUpdate{Auth: api.Some(update), DisplayName: api.Some("n")})
		ok(err)
		cred, err = c.GetCredential(ctx, v.ID, cred.ID)
		ok(err)
		if cred.Auth.Type != auth.Type || *cred.DisplayName != "n" || cred.Auth.Refresh != nil && cred.Auth.Refresh.Scope != nil ||
			cred.Auth.Networking != nil && cred.Auth.Networking.Type != api.NetworkUnrestricted {
			t.Errorf("credential %+v", cred)
		}
	}
	ok(count(c.Credentials(ctx, v.ID, client.ListOptions{PageSize: 2}), 3))
	keys, err := c.VaultKeys(ctx)
	ok(err)
	done, err := c.RotateVaultKey(ctx, api.VaultKeyRotate{SharedKeyFile: true})
	ok(err)
	if done.KeyID == keys.Data[0].ID || done.Rewrapped != keys.Data[0].Secrets {
		t.Errorf("rotated %+v after %+v", done, keys)
	}
	for cred, err := range c.Credentials(ctx, v.ID, client.ListOptions{}) {
		ok(err)
		if cred.Auth.Type == api.AuthMCPOAuth {
			if _, err := c.ValidateCredential(ctx, v.ID, cred.ID); err == nil || !strings.Contains(err.Error(), "connections") {
				t.Errorf("validated by a server that goes nowhere: %v", err)
			}
			_, err := c.ArchiveCredential(ctx, v.ID, cred.ID)
			ok(err)
		}
		ok(c.DeleteCredential(ctx, v.ID, cred.ID))
	}
	_, err = c.ArchiveVault(ctx, v.ID)
	ok(err)
	ok(c.DeleteVault(ctx, v.ID))
}

// A worker is told of variables with its session's token, and of nobody else's.
func TestVariablesForAWorker(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	var agent, env, other, vault, cred, session struct{ ID string }
	f.do(t, "POST", "/v1/agents", `{"name": "a", "model": "m"}`, &agent)
	f.do(t, "POST", "/v1/environments", `{"name": "e", "config": {"type": "self_hosted"}}`, &env)
	f.do(t, "POST", "/v1/environments", `{"name": "o", "config": {"type": "self_hosted"}}`, &other)
	f.do(t, "POST", "/v1/vaults", `{"display_name": "v"}`, &vault)
	f.do(t, "POST", "/v1/vaults/"+vault.ID+"/credentials",
		`{"auth": {"type": "environment_variable", "secret_name": "A", "secret_value": "a secret", "networking": {"type": "limited", "allowed_hosts": ["h.example"]}}}`, &cred)
	f.do(t, "POST", "/v1/sessions", `{"agent": "`+agent.ID+`", "environment_id": "`+env.ID+`", "vault_ids": ["`+vault.ID+`"]}`, &session)
	var key, otherKey struct{ Key string }
	f.do(t, "POST", "/v1/environments/"+env.ID+"/keys", `{"name": "w"}`, &key)
	f.do(t, "POST", "/v1/environments/"+other.ID+"/keys", `{"name": "w"}`, &otherKey)
	as := func(bearer, method, target string) (status int, answer string) {
		t.Helper()
		req := f.request(t, method, target, "")
		req.Header.Del("X-Api-Key")
		req.Header.Set("Authorization", "Bearer "+bearer)
		resp, answer := f.answer(t, req)
		return resp.StatusCode, answer
	}
	var work struct{ ID, Secret string }
	_, body := as(key.Key, "GET", "/v1/environments/"+env.ID+"/work/poll?block_ms=1")
	if err := json.Unmarshal([]byte(body), &work); err != nil || work.ID == "" {
		t.Fatalf("poll: %s, %v", body, err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(work.Secret)
	var secret api.WorkSecret
	if err := errors.Join(err, json.Unmarshal(payload, &secret)); err != nil {
		t.Fatal(err)
	}
	list := "/v1/environments/" + env.ID + "/work/" + work.ID + "/variables"
	value := list + "/" + cred.ID + "/value"
	if status, answer := as(secret.SessionsToken, "POST", value); status != 409 {
		t.Errorf("before the item is acknowledged: %d %s", status, answer)
	}
	as(key.Key, "POST", "/v1/environments/"+env.ID+"/work/"+work.ID+"/ack")
	for _, bearer := range []string{secret.SessionsToken, key.Key} {
		var got api.SessionVariables
		status, answer := as(bearer, "GET", list)
		if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || len(got.Data) != 1 || string(got.Data[0].CredentialID) != cred.ID ||
			got.Data[0].Name != "A" || got.Data[0].Networking.AllowedHosts[0] != "h.example" || strings.Contains(answer, "a secret") {
			t.Errorf("listed %d %s, %v", status, answer, err)
		}
		if status, answer := as(bearer, "POST", value); status != 200 || answer != `{"type":"variable_value","value":"a secret"}` {
			t.Errorf("value %d %q", status, answer)
		}
	}
	for bearer, want := range map[string]int{otherKey.Key: 404, f.key: 403} {
		for method, target := range map[string]string{"GET": list, "POST": value} {
			if status, answer := as(bearer, method, target); status != want || strings.Contains(answer, "a secret") {
				t.Errorf("%s with another key: %d %s, want %d", method, status, answer, want)
			}
		}
	}
}
