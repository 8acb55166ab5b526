package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
)

// withInput runs a command with -o json and standard input.
func withInput[T any](t *testing.T, env map[string]string, stdin string, args ...string) (v T) {
	t.Helper()
	r := testRun{env: env, stdin: stdin}
	if code := r.run(t.Context(), append(args, "-o", "json")...); code != 0 {
		t.Fatalf("bailey %s: exit status %d: %s", strings.Join(args, " "), code, &r.stderr)
	}
	if strings.Contains(r.stdout.String()+r.stderr.String(), "SECRET") {
		t.Errorf("bailey %s shows a secret: %s%s", strings.Join(args, " "), &r.stdout, &r.stderr)
	}
	if err := json.Unmarshal(r.stdout.Bytes(), &v); err != nil {
		t.Fatalf("bailey %s: %v in %s", strings.Join(args, " "), err, &r.stdout)
	}
	return v
}

func TestVaults(t *testing.T) {
	t.Parallel()
	env := server(t)
	v := object[api.Vault](t, env, "vaults", "create", "--name", "team", "--metadata", "a=1")
	v = object[api.Vault](t, env, "vaults", "update", string(v.ID), "--name", "other", "--metadata", "b=2")
	if v.DisplayName != "other" || len(v.Metadata) != 2 {
		t.Errorf("updated %+v", v)
	}
	id := string(v.ID)
	credentials := func(args ...string) []string { return append([]string{"vaults", "credentials"}, args...) }

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("SECRET-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bearer := object[api.Credential](t, env, credentials("create", id, "--url", "https://h/mcp", "--name", "docs", "--secret-file", file)...)
	if bearer.Auth.Type != api.AuthStaticBearer || bearer.Auth.MCPServerURL != "https://h/mcp" || *bearer.DisplayName != "docs" {
		t.Errorf("created %+v", bearer)
	}
	variable := withInput[api.Credential](t, env, "SECRET-2\n", credentials("create", id, "--variable", "API_KEY", "--host", "a.example.com", "--in", "header,body")...)
	if n := variable.Auth.Networking; n.Type != api.NetworkLimited || n.AllowedHosts[0] != "a.example.com" || !variable.Auth.InjectionLocation.Body {
		t.Errorf("created %+v", variable.Auth)
	}
	free := withInput[api.Credential](t, env, "SECRET-3", credentials("create", id, "--variable", "FREE")...)
	if free.Auth.Networking.Type != api.NetworkUnrestricted || free.Auth.InjectionLocation.Body {
		t.Errorf("created %+v", free.Auth)
	}
	whole := withInput[api.Credential](t, env, `
auth:
  type: mcp_oauth
  mcp_server_url: https://h/oauth
  access_token: SECRET-4
  refresh: {token_endpoint: "https://as/token", client_id: c, refresh_token: SECRET-5, token_endpoint_auth: {type: none}}
`, credentials("create", id, "--file", "-")...)
	if whole.Auth.Type != api.AuthMCPOAuth || whole.Auth.Refresh == nil {
		t.Errorf("created %+v", whole.Auth)
	}

	withInput[api.Credential](t, env, "SECRET-6", credentials("update", id, string(bearer.ID), "--secret-file", "-")...)
	changed := object[api.Credential](t, env, credentials("update", id, string(variable.ID), "--host", "b.example.com", "--in", "header", "--name", "n")...)
	if changed.Auth.Networking.AllowedHosts[0] != "b.example.com" || changed.Auth.InjectionLocation.Body || *changed.DisplayName != "n" {
		t.Errorf("updated %+v", changed)
	}
	if out := ok(t, env, credentials("list", id)...); strings.Count(out, "\n") != 5 || !strings.Contains(out, "https://h/oauth") || !strings.Contains(out, "API_KEY") {
		t.Errorf("listed\n%s", out)
	}
	if out := ok(t, env, credentials("get", id, string(variable.ID))...); !strings.Contains(out, "b.example.com") || !strings.Contains(out, "header") {
		t.Errorf("shown\n%s", out)
	}

	a := object[api.Agent](t, env, "agents", "create", "--name", "a", "--model", "m")
	e := object[api.Environment](t, env, "environments", "create", "--name", "e")
	s := object[api.Session](t, env, "sessions", "create", "--agent", string(a.ID), "--environment", string(e.ID), "--vault", id)
	if len(s.VaultIDs) != 1 || s.VaultIDs[0] != v.ID || !strings.Contains(ok(t, env, "sessions", "get", string(s.ID)), id) {
		t.Errorf("session %+v", s.VaultIDs)
	}

	var keys []api.VaultKey
	if err := json.Unmarshal([]byte(ok(t, env, "vaults", "keys", "list", "-o", "json")), &keys); err != nil || len(keys) != 1 || keys[0].Secrets < 5 {
		t.Errorf("keys %+v, %v", keys, err)
	}
	rotated := object[api.VaultKeyRotation](t, env, "vaults", "keys", "rotate")
	if rotated.Rewrapped != keys[0].Secrets || rotated.KeyID == keys[0].ID {
		t.Errorf("rotated %+v", rotated)
	}

	if gone := object[api.Credential](t, env, credentials("archive", id, string(bearer.ID))...); gone.ArchivedAt == nil {
		t.Error("not archived")
	}
	if out := ok(t, env, credentials("delete", id, string(whole.ID))...); !strings.Contains(out, "deleted "+string(whole.ID)) {
		t.Errorf("deleted: %s", out)
	}
	if gone := object[api.Vault](t, env, "vaults", "archive", id); gone.ArchivedAt == nil {
		t.Error("not archived")
	}
	if out := ok(t, env, "vaults", "list", "--archived"); !strings.Contains(out, "other (archived)") {
		t.Errorf("listed\n%s", out)
	}
	ok(t, env, "vaults", "delete", id)

	for _, tt := range []struct {
		args  []string
		stdin string
		want  string
	}{
		{credentials("create", id), "x", "--url or --variable"},
		{credentials("create", id, "--url", "https://h"), "\n", "is empty"},
		{credentials("create", id, "--variable", "A", "--in", "query"), "x", "header or body"},
		{credentials("update", id, "vcrd_x"), "", "nothing to change"},
		{[]string{"vaults", "create"}, "", "--name"},
	} {
		r := testRun{env: env, stdin: tt.stdin}
		if code := r.run(t.Context(), tt.args...); code != 2 || !strings.Contains(r.stderr.String(), tt.want) {
			t.Errorf("%v: exit status %d, %q, want %q", tt.args, code, &r.stderr, tt.want)
		}
	}
}

// A rotation takes as many requests as the server wants, and makes one key.
func TestAKeyIsRotatedByPages(t *testing.T) {
	t.Parallel()
	answers := []string{
		`{"type":"vault_key_rotation","key_id":"file:1","rewrapped":200,"failed":0,"next_page":"p1"}`,
		`{"type":"vault_key_rotation","key_id":"file:1","rewrapped":199,"failed":1,"next_page":"p2"}`,
		`{"type":"vault_key_rotation","key_id":"file:1","rewrapped":5,"failed":0,"next_page":""}`,
	}
	for name, tt := range map[string]struct {
		answers []string
		code    int
		want    string
	}{
		"to its end": {answers, 1, "1 secrets could not be opened"},
		"broken off": {answers[:2], 8, "399 secrets are under key file:1 already: go on with --rewrap-only"},
	} {
		var asked []string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			asked = append(asked, strings.TrimSpace(string(body)))
			w.Header().Set("Content-Type", "application/json")
			if len(asked) > len(tt.answers) {
				w.WriteHeader(503)
				return
			}
			_, _ = io.WriteString(w, tt.answers[len(asked)-1])
		}))
		defer s.Close()
		r := testRun{env: map[string]string{"BAILEY_URL": s.URL, "BAILEY_KEY": "k"}}
		if code := r.run(t.Context(), "vaults", "keys", "rotate", "--shared-key-file"); code != tt.code || !strings.Contains(r.stderr.String(), tt.want) {
			t.Errorf("%s: exit status %d, %s", name, code, &r.stderr)
		}
		if len(tt.answers) == 3 && !strings.Contains(r.stdout.String(), "404") {
			t.Errorf("%s: shown %s", name, &r.stdout)
		}
		want := []string{
			`{"shared_key_file":true}`,
			`{"rewrap_only":true,"shared_key_file":true,"page":"p1"}`,
			`{"rewrap_only":true,"shared_key_file":true,"page":"p2"}`,
		}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("%s: asked\n%s", name, diff)
		}
	}
}

// A signIn is an authorization server with an MCP server beside it, for the flow of a
// person.
func signIn(t *testing.T) *httptest.Server {
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	var registered atomic.Int32
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer resource_metadata="`+s.URL+`/prm"`)
		w.WriteHeader(401)
	})
	mux.HandleFunc("/prm", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"resource": s.URL + "/mcp", "authorization_servers": []string{s.URL}})
	})
	mux.HandleFunc("/.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{
			"issuer": s.URL, "authorization_endpoint": s.URL + "/authorize", "token_endpoint": s.URL + "/token",
			"registration_endpoint": s.URL + "/register", "code_challenge_methods_supported": []string{"S256"}, "response_types_supported": []string{"code"},
		})
	})
	mux.HandleFunc("/register", func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		in["client_id"] = fmt.Sprintf("registered %d", registered.Add(1))
		answer(w, 201, in)
	})
	mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if id := q.Get("client_id"); id != "registered 1" {
			t.Errorf("the person was asked on behalf of %q", id)
		}
		http.Redirect(w, r, q.Get("redirect_uri")+"?code=c&state="+url.QueryEscape(q.Get("state")), http.StatusFound)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"access_token": "SECRET-a", "refresh_token": "SECRET-r", "token_type": "Bearer", "expires_in": 600})
	})
	return s
}

// A browser opens the pages that a command asks a person to open.
type browser struct {
	t    *testing.T
	mu   sync.Mutex
	seen strings.Builder
	once sync.Once
}

func (b *browser) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen.Write(p)
	if page := regexp.MustCompile(`(http://\S+/authorize\?\S+)\n`).FindStringSubmatch(b.seen.String()); page != nil {
		b.once.Do(func() {
			go func() {
				resp, err := http.Get(page[1])
				if err != nil {
					b.t.Errorf("the browser: %v", err)
					return
				}
				defer resp.Body.Close()
				if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.Contains(string(text), "You can close this window") {
					b.t.Errorf("the browser shows %d %s", resp.StatusCode, text)
				}
			}()
		})
	}
	return len(p), nil
}

func TestAuthorizeACredential(t *testing.T) {
	t.Parallel()
	env := server(t)
	as := signIn(t)
	v := object[api.Vault](t, env, "vaults", "create", "--name", "v")
	authorize := func(args ...string) *api.Credential {
		t.Helper()
		var r testRun
		r.env = env
		p := r.program()
		p.Stderr = &browser{t: t}
		root := p.root()
		root.SetArgs(append([]string{"vaults", "credentials", "authorize", string(v.ID), as.URL + "/mcp", "--no-browser", "-o", "json"}, args...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, &p.Stderr.(*browser).seen)
		}
		cred := new(api.Credential)
		if err := json.Unmarshal(r.stdout.Bytes(), cred); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(r.stdout.String()+p.Stderr.(*browser).seen.String(), "SECRET") {
			t.Errorf("a secret is shown: %s", &r.stdout)
		}
		return cred
	}
	cred := authorize("--name", "mine")
	r := cred.Auth.Refresh
	if cred.Auth.Type != api.AuthMCPOAuth || cred.Auth.MCPServerURL != as.URL+"/mcp" || cred.Auth.ExpiresAt == nil || *cred.DisplayName != "mine" ||
		r == nil || r.TokenEndpoint != as.URL+"/token" || r.ClientID != "registered 1" || r.TokenEndpointAuth.Type != api.TokenAuthNone || *r.Resource != as.URL+"/mcp" {
		t.Errorf("credential %+v, %+v", cred.Auth, r)
	}
	if again := authorize("--credential", string(cred.ID)); again.ID != cred.ID || !again.UpdatedAt.After(cred.UpdatedAt) {
		t.Errorf("again: %+v", again)
	}

	// What cannot come to anything is said before a person is asked for anything: a port
	// that is taken, a vault that is not there, a credential that could not take the tokens.
	create := func(auth string) string {
		t.Helper()
		return string(withInput[api.Credential](t, env, "auth: "+auth, "vaults", "credentials", "create", string(v.ID), "--file", "-").ID)
	}
	other := create(`{type: mcp_oauth, mcp_server_url: "https://h/other", access_token: SECRET-a, refresh: {token_endpoint: "https://as", client_id: c, refresh_token: SECRET-r, token_endpoint_auth: {type: none}}}`)
	bare := create(`{type: mcp_oauth, mcp_server_url: "` + as.URL + `/bare", access_token: SECRET-a}`)
	bearer := create(`{type: static_bearer, mcp_server_url: "` + as.URL + `/bearer", token: SECRET-a}`)
	secret := create(`{type: mcp_oauth, mcp_server_url: "` + as.URL + `/secret", access_token: SECRET-a, refresh: {token_endpoint: "` + as.URL + `/token", client_id: c, refresh_token: SECRET-r, token_endpoint_auth: {type: client_secret_post, client_secret: SECRET-s}}}`)
	id, page := string(v.ID), as.URL+"/mcp"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a person who never comes
	defer cancel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{id, page, "--port", strings.Split(as.URL, ":")[2]}, "wait for the browser"},
		{[]string{"vlt_none", page}, "vlt_none"},
		{[]string{id, page, "--credential", "vcrd_none"}, "vcrd_none"},
		{[]string{id, page, "--credential", other}, "https://h/other"},
		{[]string{id, as.URL + "/bare", "--credential", bare}, "nothing to renew"},
		{[]string{id, as.URL + "/bearer", "--credential", bearer}, "static_bearer"},
		{[]string{id, as.URL + "/secret", "--credential", secret}, "--client-secret-file"},
		{[]string{id, page, "--credential", string(cred.ID), "--client-id", "another"}, "registered 1"},
	} {
		run := testRun{env: env}
		code := run.run(ctx, append([]string{"vaults", "credentials", "authorize", "--no-browser"}, tt.args...)...)
		if text := run.stderr.String(); code == 0 || strings.Contains(text, "Open this page") || !strings.Contains(text, tt.want) {
			t.Errorf("%v: exit status %d, %s", tt.args, code, text)
		}
	}
	ok(t, env, "vaults", "credentials", "archive", id, string(cred.ID))
	run := testRun{env: env}
	if code := run.run(ctx, "vaults", "credentials", "authorize", "--no-browser", id, page, "--credential", string(cred.ID)); code == 0 || !strings.Contains(run.stderr.String(), "archived") {
		t.Errorf("an archived one: exit status %d, %s", code, &run.stderr)
	}
}

func TestOnlyTheCallbackIsServed(t *testing.T) {
	t.Parallel()
	b, err := listenBack(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	for path, want := range map[string]int{"/": 404, "/callback": 400, "/callback?state=x": 400} {
		resp, err := http.Get(strings.TrimSuffix(b.url, "/callback") + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if q, err := b.wait(ctx); err == nil {
		t.Errorf("came back with %v", q)
	}
	for i := range 2 {
		resp, err := http.Get(b.url + fmt.Sprintf("?code=%d", i))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if q, err := b.wait(t.Context()); err != nil || q.Get("code") != "0" {
		t.Errorf("came back with %v, %v; the first one counts", q, err)
	}
}
