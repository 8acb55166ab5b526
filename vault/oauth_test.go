package vault

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A fakeAS stands for an authorization server, and for an MCP server beside it that
// refuses whoever has no token of its.
type fakeAS struct {
	*httptest.Server
	t *testing.T

	oidc   bool // has OpenID's discovery and not OAuth's
	noPRM  bool // the MCP server says nothing of who gives out tokens, but where to look
	noDCR  bool
	secret string // a registered client's; "" is a public one

	refusal string // the challenge of the MCP server's 403; "" is a 401

	mu        sync.Mutex
	challenge string
	log       []string
	tokenWas  func(w http.ResponseWriter, form url.Values, r *http.Request) bool
}

func newFakeAS(t *testing.T) *fakeAS {
	as := &fakeAS{t: t}
	mux := http.NewServeMux()
	as.Server = httptest.NewServer(mux)
	t.Cleanup(as.Close)
	mux.HandleFunc("/", as.serve)
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case as.refusal != "":
			w.Header().Set("WWW-Authenticate", as.refusal)
			w.WriteHeader(403)
			return
		case !as.noPRM:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer resource_metadata="%s/prm", scope="read write"`, as.URL))
		}
		w.WriteHeader(401)
	})
	return as
}

func (as *fakeAS) serve(w http.ResponseWriter, r *http.Request) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.log = append(as.log, r.Method+" "+r.URL.Path)
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	switch path := r.URL.Path; {
	case path == "/prm" || as.noPRM && path == "/.well-known/oauth-protected-resource/mcp":
		answer(200, map[string]any{"resource": as.URL + "/mcp", "authorization_servers": []string{as.URL}, "scopes_supported": []string{"other"}})
	case !as.oidc && path == "/.well-known/oauth-authorization-server", as.oidc && path == "/.well-known/openid-configuration":
		meta := map[string]any{
			"issuer": as.URL, "authorization_endpoint": as.URL + "/authorize", "token_endpoint": as.URL + "/token",
			"code_challenge_methods_supported": []string{"S256"}, "scopes_supported": []string{"read", "offline_access"},
			"response_types_supported": []string{"code"},
		}
		if !as.noDCR {
			meta["registration_endpoint"] = as.URL + "/register"
		}
		if as.secret != "" {
			meta["token_endpoint_auth_methods_supported"] = []string{"client_secret_basic"}
		}
		answer(200, meta)
	case path == "/register":
		answer(201, map[string]any{"client_id": "registered", "redirect_uris": []string{"http://127.0.0.1:1/back"}, "token_endpoint_auth_method": "none"})
	case path == "/token":
		_ = r.ParseForm()
		if as.tokenWas != nil && as.tokenWas(w, r.PostForm, r) {
			return
		}
		sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
		id, secret, basic := r.BasicAuth()
		switch {
		case r.PostForm.Get("code") != "the code" || base64.RawURLEncoding.EncodeToString(sum[:]) != as.challenge:
			answer(400, map[string]any{"error": "invalid_grant"})
		case as.secret != "" && (!basic || id != "mine" || secret != as.secret):
			answer(401, map[string]any{"error": "invalid_client"})
		default:
			answer(200, map[string]any{"access_token": "good", "refresh_token": "again", "token_type": "Bearer", "expires_in": 600, "scope": "read"})
		}
	default:
		http.NotFound(w, r)
	}
}

// visit plays the person and the browser.
func (as *fakeAS) visit(_ context.Context, page string) (url.Values, error) {
	u, err := url.Parse(page)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	as.mu.Lock()
	defer as.mu.Unlock()
	as.challenge = q.Get("code_challenge")
	if u.Path != "/authorize" || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != "http://127.0.0.1:1/back" {
		as.t.Errorf("the person was sent to %s", page)
	}
	scopes := strings.Fields(q.Get("scope"))
	slices.Sort(scopes)
	as.log = append(as.log, "visit as "+q.Get("client_id")+" for "+strings.TrimPrefix(q.Get("resource"), as.URL)+", "+strings.Join(scopes, " "))
	return url.Values{"code": {"the code"}, "state": {q.Get("state")}}, nil
}

func (as *fakeAS) authorization() Authorization {
	return Authorization{ServerURL: as.URL + "/mcp", RedirectURL: "http://127.0.0.1:1/back", Visit: as.visit, HTTP: as.Client()}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		as   func(*fakeAS)
		a    func(*Authorization)
		want Grant
		log  []string
	}{
		"from the refusal, with a client registered": {
			want: Grant{AuthMethod: AuthNone, ClientID: "registered"},
			log: []string{"GET /prm", "GET /.well-known/oauth-authorization-server", "POST /register",
				"visit as registered for /mcp, offline_access read write", "POST /token"},
		},
		"from the well-known place, by OpenID": {
			as:   func(as *fakeAS) { as.noPRM, as.oidc = true, true },
			want: Grant{AuthMethod: AuthNone, ClientID: "registered"},
			log: []string{"GET /.well-known/oauth-protected-resource/mcp", "GET /.well-known/oauth-authorization-server", "GET /.well-known/openid-configuration",
				"POST /register", "visit as registered for /mcp, offline_access other", "POST /token"},
		},
		"with a client of one's own": {
			as:   func(as *fakeAS) { as.secret, as.noDCR = "s", true },
			a:    func(a *Authorization) { a.ClientID, a.ClientSecret, a.Scopes = "mine", "s", []string{"read"} },
			want: Grant{AuthMethod: AuthBasic, ClientID: "mine", ClientSecret: "s"},
			log:  []string{"GET /prm", "GET /.well-known/oauth-authorization-server", "visit as mine for /mcp, offline_access read", "POST /token"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := newFakeAS(t)
			if tt.as != nil {
				tt.as(as)
			}
			a := as.authorization()
			if tt.a != nil {
				tt.a(&a)
			}
			got, err := a.Do(t.Context())
			if err != nil {
				t.Fatalf("%v, after %q", err, as.log)
			}
			if left := time.Until(got.ExpiresAt); left < 9*time.Minute || left > 11*time.Minute {
				t.Errorf("it ends at %v", got.ExpiresAt)
			}
			tt.want.Token = Token{"good", "again", got.ExpiresAt}
			tt.want.TokenEndpoint, tt.want.Scope, tt.want.Resource = as.URL+"/token", "read", as.URL+"/mcp"
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.log, as.log); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAuthorizeRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		as   func(*fakeAS)
		a    func(*fakeAS, *Authorization)
		want string
	}{
		"no way to register": {as: func(as *fakeAS) { as.noDCR = true }, want: "registration"},
		"the person says no": {a: func(_ *fakeAS, a *Authorization) {
			a.Visit = func(context.Context, string) (url.Values, error) {
				return url.Values{"error": {"access_denied"}, "error_description": {"no"}}, nil
			}
		}, want: "access_denied"},
		"another's answer": {a: func(as *fakeAS, a *Authorization) {
			a.Visit = func(ctx context.Context, page string) (url.Values, error) {
				back, err := as.visit(ctx, page)
				back.Set("state", "another")
				return back, err
			}
		}, want: "state"},
		"another server's answer": {a: func(as *fakeAS, a *Authorization) {
			a.Visit = func(ctx context.Context, page string) (url.Values, error) {
				back, err := as.visit(ctx, page)
				back.Set("iss", "https://evil.example")
				return back, err
			}
		}, want: "issuer"},
		"a 403 for something else": {as: func(as *fakeAS) { as.refusal = `Bearer error="invalid_request"` }, want: "403"},
		"no server":                {a: func(_ *fakeAS, a *Authorization) { a.ServerURL = "http://127.0.0.1:1/mcp" }, want: "ask the MCP server"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := newFakeAS(t)
			if tt.as != nil {
				tt.as(as)
			}
			a := as.authorization()
			if tt.a != nil {
				tt.a(as, &a)
			}
			got, err := a.Do(t.Context())
			if err == nil {
				t.Fatalf("granted %+v after %q", got, as.log)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	var form url.Values
	var user string
	as.tokenWas = func(w http.ResponseWriter, f url.Values, r *http.Request) bool {
		form = f
		id, secret, _ := r.BasicAuth()
		user = id + " " + secret
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"new","token_type":"bearer","expires_in":"3600"}`)
		return true
	}
	base := Refresh{TokenEndpoint: as.URL + "/token", ClientID: "an id", ClientSecret: "a:secret", RefreshToken: "r", Scope: "a b", Resource: "https://h/mcp"}
	for method, want := range map[string]struct{ form, user string }{
		AuthNone:  {"client_id=an+id&grant_type=refresh_token&refresh_token=r&resource=https%3A%2F%2Fh%2Fmcp&scope=a+b", " "},
		AuthPost:  {"client_id=an+id&client_secret=a%3Asecret&grant_type=refresh_token&refresh_token=r&resource=https%3A%2F%2Fh%2Fmcp&scope=a+b", " "},
		AuthBasic: {"grant_type=refresh_token&refresh_token=r&resource=https%3A%2F%2Fh%2Fmcp&scope=a+b", "an+id a%3Asecret"},
	} {
		r := base
		r.AuthMethod = method
		got, err := r.Do(t.Context(), as.Client())
		if err != nil || got.AccessToken != "new" || got.RefreshToken != "" || time.Until(got.ExpiresAt) < 59*time.Minute {
			t.Errorf("%s: %+v, %v", method, got, err)
		}
		if form.Encode() != want.form || user != want.user {
			t.Errorf("%s: asked %s as %q, want %s as %q", method, form.Encode(), user, want.form, want.user)
		}
	}
}

func TestRefreshRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status int
		answer string
		final  bool
		code   string
		body   string // as it is shown; "": as it was
	}{
		"refused":               {400, `{"error":"invalid_grant"}`, true, "invalid_grant", ""},
		"for a while":           {400, `{"error":"temporarily_unavailable"}`, false, "temporarily_unavailable", ""},
		"too many":              {429, `slow down`, false, "", ""},
		"broken":                {500, `oops`, false, "", ""},
		"a redirect":            {302, ``, false, "", ""},
		"no token":              {200, `{"token_type":"Bearer"}`, false, "", ""},
		"another type":          {200, `{"access_token":"SECRET-a","token_type":"DPoP"}`, false, "", `{"access_token":"[scrubbed]","token_type":"DPoP"}`},
		"two lines":             {200, `{"access_token":"SECRET\nX: y"}`, false, "", `{"access_token":"[scrubbed]"}`},
		"refused in a 200":      {200, `{"error":"bad_refresh_token"}`, true, "bad_refresh_token", ""},
		"for a while, in a 200": {200, `{"error":"server_error"}`, false, "server_error", ""},
		"too fast":              {400, `{"error":"slow_down"}`, false, "slow_down", ""},
		"too many, with a code": {429, `{"error":"rate_limited"}`, false, "rate_limited", ""},
		"broken, with a code":   {500, `{"error":"internal_error"}`, false, "internal_error", ""},
		"refused in a 500":      {500, `{"error":"invalid_grant"}`, true, "invalid_grant", ""},
		"no permission":         {403, `{"error":"access_denied"}`, true, "access_denied", ""},
		"no JSON":               {200, `<html>SECRET-r and SECRET+s%2B and SECRET s+</html>`, false, "", `<html>[scrubbed] and [scrubbed] and [scrubbed]</html>`},
		"a code of code":        {400, `{"error":"<script>"}`, true, "", ""},
		"a long answer":         {400, `{"error":"invalid_grant","error_description":"` + strings.Repeat("ü", 2000) + `"}`, true, "invalid_grant", "cut"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
			defer elsewhere.Close()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				if tt.status == 302 {
					w.Header().Set("Location", elsewhere.URL)
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.answer)
			}))
			defer s.Close()
			got, err := Refresh{TokenEndpoint: s.URL, AuthMethod: AuthPost, ClientID: "c", ClientSecret: "SECRET s+", RefreshToken: "SECRET-r"}.Do(t.Context(), s.Client())
			var e *RefreshError
			if !errors.As(err, &e) || e.Response == nil || got != (Token{}) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if e.Final() != tt.final || e.Code != tt.code || e.Response.Status != tt.status || e.Response.ContentType != "application/json" {
				t.Errorf("final %v, code %q, %+v", e.Final(), e.Code, e.Response)
			}
			switch want := tt.body; {
			case want == "cut":
				if !e.Response.Truncated || len(e.Response.Body) > bodyShown || strings.ContainsRune(e.Response.Body, '\uFFFD') {
					t.Errorf("shown %d bytes, %v", len(e.Response.Body), e.Response.Truncated)
				}
			case want == "":
				want = tt.answer
				fallthrough
			default:
				if e.Response.Body != want {
					t.Errorf("shown %q, want %q", e.Response.Body, want)
				}
			}
			if strings.Contains(e.Error()+e.Response.Body, "SECRET") {
				t.Errorf("a secret is shown: %v, %q", e, e.Response.Body)
			}
		})
	}
	_, err := Refresh{TokenEndpoint: "http://127.0.0.1:1/?token=SECRET", RefreshToken: "r"}.Do(t.Context(), http.DefaultClient)
	var e *RefreshError
	if !errors.As(err, &e) || e.Response != nil || e.Final() || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("an endpoint that is not there: %v", err)
	}
}

func FuzzTokenAnswer(f *testing.F) {
	f.Add(200, []byte(`{"access_token":"a","expires_in":1e3}`))
	f.Add(400, []byte(`{"error":"invalid_grant"}`))
	f.Add(200, []byte(`{"access_token":"hunter22","expires_in":"NaN"`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := Refresh{RefreshToken: "hunter22-refresh", ClientSecret: "hunter22-client"}
		token, err := r.answer(&http.Response{StatusCode: status, Header: http.Header{}}, body, time.Unix(0, 0))
		if err == nil {
			if token.AccessToken == "" || !isHeaderToken(token.AccessToken) {
				t.Errorf("took %q", token.AccessToken)
			}
			return
		}
		var e *RefreshError
		if !errors.As(err, &e) || e.Response == nil || len(e.Response.Body) > bodyShown {
			t.Errorf("error %v", err)
		}
		for _, secret := range []string{r.RefreshToken, r.ClientSecret} {
			if strings.Contains(e.Response.Body, secret) || strings.Contains(e.Error(), secret) {
				t.Errorf("%s is shown", secret)
			}
		}
	})
}

// A token endpoint that writes back what it was sent gives no secret away, however it
// spells it.
func TestAnEndpointThatEchoes(t *testing.T) {
	t.Parallel()
	const refresh, secret = "1//0SECRET/r+", "SECRET/s +"
	for name, echo := range map[string]func(form string, r *http.Request) string{
		"header": func(_ string, r *http.Request) string { return "you sent " + r.Header.Get("Authorization") },
		"form":   func(form string, _ *http.Request) string { return form },
		"form, in lower case": func(form string, _ *http.Request) string {
			return strings.NewReplacer("%2F", "%2f", "%2B", "%2b").Replace(form)
		},
		"JSON": func(string, *http.Request) string { return `{"error_description":"no ` + refresh + `"}` },
		"JSON, slashes escaped": func(string, *http.Request) string {
			return `{"error_description":"no ` + strings.ReplaceAll(refresh, "/", `\/`) + `"}`
		},
	} {
		for _, method := range []string{AuthBasic, AuthPost} {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				form, _ := io.ReadAll(r.Body)
				w.WriteHeader(400)
				_, _ = io.WriteString(w, echo(string(form), r))
			}))
			defer s.Close()
			_, err := Refresh{TokenEndpoint: s.URL, AuthMethod: method, ClientID: "c", ClientSecret: secret, RefreshToken: refresh}.Do(t.Context(), s.Client())
			var e *RefreshError
			if !errors.As(err, &e) || e.Response == nil {
				t.Fatalf("%s: %v", name, err)
			}
			encoded := base64.StdEncoding.EncodeToString([]byte("c:" + url.QueryEscape(secret)))
			if strings.Contains(e.Response.Body, "SECRET") || strings.Contains(e.Response.Body, encoded) {
				t.Errorf("%s, %s: %s", name, method, e.Response.Body)
			}
		}
	}
}

// A client's secret is for the authorization server that knows the client, whatever the MCP
// server, or that one, says.
func TestAuthorizeShowsTheSecretToNobodyElse(t *testing.T) {
	t.Parallel()
	for name, meant := range map[string]func(*fakeAS, *Authorization){
		"another server": func(_ *fakeAS, a *Authorization) { a.TokenEndpoint = "https://as.example/token" },
		"a redirect": func(as *fakeAS, _ *Authorization) {
			elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { as.t.Error("a redirect was followed") }))
			as.t.Cleanup(elsewhere.Close)
			as.tokenWas = func(w http.ResponseWriter, _ url.Values, r *http.Request) bool {
				http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := newFakeAS(t)
			as.secret = "hunter22"
			a := as.authorization()
			a.ClientID, a.ClientSecret = "mine", as.secret
			if meant(as, &a); a.TokenEndpoint != "" {
				as.tokenWas = func(_ http.ResponseWriter, form url.Values, r *http.Request) bool {
					t.Errorf("it was shown %v, %s", form, r.Header.Get("Authorization"))
					return false
				}
			}
			if grant, err := a.Do(t.Context()); err == nil {
				t.Errorf("granted %+v", grant)
			}
		})
	}
	as := newFakeAS(t)
	as.secret = "hunter22"
	a := as.authorization()
	a.ClientID, a.ClientSecret, a.TokenEndpoint = "mine", as.secret, as.URL+"/token"
	if _, err := a.Do(t.Context()); err != nil {
		t.Errorf("the server that is meant: %v", err)
	}
}
