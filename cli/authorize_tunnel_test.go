package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A person allows the use of a server behind a tunnel, whose authorization server is behind
// it too but for the page that the browser is sent to.
func TestAuthorizeBehindATunnel(t *testing.T) {
	t.Parallel()
	env := server(t)
	mux := http.NewServeMux()
	private := httptest.NewServer(mux)
	t.Cleanup(private.Close)
	tun := object[api.Tunnel](t, env, "tunnels", "create", "--name", "office")
	at := "https://docs." + tun.Domain
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="`+at+`/.well-known/oauth-protected-resource/mcp"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("/.well-known/oauth-protected-resource/mcp", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"resource": at + "/mcp", "authorization_servers": []string{at}})
	})
	mux.HandleFunc("/.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"issuer": at, "authorization_endpoint": private.URL + "/authorize", "token_endpoint": at + "/token",
			"registration_endpoint": at + "/register", "code_challenge_methods_supported": []string{"S256"}, "response_types_supported": []string{"code"},
		})
	})
	mux.HandleFunc("/register", func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		in["client_id"] = "registered"
		answer(w, http.StatusCreated, in)
	})
	mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		http.Redirect(w, r, q.Get("redirect_uri")+"?code=c&state="+url.QueryEscape(q.Get("state")), http.StatusFound)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("code") != "c" || r.FormValue("code_verifier") == "" {
			t.Errorf("the token is asked for with %v", r.Form)
		}
		answer(w, http.StatusOK, map[string]any{"access_token": "SECRET-a", "refresh_token": "SECRET-r", "token_type": "Bearer", "expires_in": 600})
	})

	await(t, "the server's edge has registered", func() bool { return len(object[[]api.Edge](t, env, "edge", "list")) > 0 })
	dir := filepath.Join(t.TempDir(), "gw")
	ok(t, env, "gateway", "init", "--dir", dir, "--tunnel", string(tun.ID), "--route", "docs="+private.URL)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	gateway := testRun{env: env}
	go func() {
		defer close(done)
		gateway.run(ctx, "gateway", "--config", filepath.Join(dir, "gateway.yaml"), "--listen", freeAddress(t))
	}()
	defer func() {
		stop()
		<-done
	}()
	await(t, "the gateway is connected", func() bool {
		return object[api.TunnelStatus](t, env, "tunnels", "status", string(tun.ID)).State == api.TunnelReady
	})

	v := object[api.Vault](t, env, "vaults", "create", "--name", "v")
	r := testRun{env: env}
	p := r.program()
	p.Stderr = &browser{t: t}
	root := p.root()
	root.SetArgs([]string{"vaults", "credentials", "authorize", string(v.ID), at + "/mcp", "--no-browser", "-o", "json"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, &p.Stderr.(*browser).seen)
	}
	var cred api.Credential
	if err := json.Unmarshal(r.stdout.Bytes(), &cred); err != nil {
		t.Fatal(err)
	}
	if re := cred.Auth.Refresh; cred.Auth.MCPServerURL != at+"/mcp" || re == nil || re.TokenEndpoint != at+"/token" || re.ClientID != "registered" {
		t.Errorf("%+v, %+v", cred.Auth, re)
	}

	// A page behind the tunnel is no use to a browser.
	through := &tunnelled{behind: map[string]bool{"docs." + tun.Domain: true}}
	if err := through.visitable(at + "/authorize?x=y"); err == nil || !strings.Contains(err.Error(), "no browser gets") {
		t.Errorf("%v", err)
	}
	if err := through.visitable(private.URL); err != nil {
		t.Error(err)
	}
}

// What is for a host elsewhere, the server does not see.
func TestAuthorizeElsewhereIsNoneOfTheServers(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 4)
	plane := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- string(body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"type":"error","error":{"type":"invalid_request_error","message":"no","details":{"error_code":"not_behind_tunnel"}}}`)
	}))
	t.Cleanup(plane.Close)
	cl, err := client.New(client.Config{BaseURL: plane.URL, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	through := &tunnelled{server: cl, vault: "vlt_1", behind: make(map[string]bool)}
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://127.0.0.1:1/token?q=SECRET", strings.NewReader("code=SECRET"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Basic SECRET")
		if _, err := through.RoundTrip(req); err == nil || strings.Contains(err.Error(), "tunnel") {
			t.Errorf("nobody listens there, and: %v", err)
		}
	}
	if body := <-asked; strings.Contains(body, "SECRET") || len(asked) > 0 {
		t.Errorf("the server was asked %s, and %d times more", body, len(asked))
	}
}
