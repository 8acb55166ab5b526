package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A real OAuth authorization server, in the version that oauth/package-lock.json pins.

var oauthProject = newNPMProject("oauth", "the authorization server")

// authServer starts the authorization server and returns its issuer.
func authServer(t *testing.T) (issuer string) {
	t.Helper()
	dir := oauthProject.need(t)
	cmd := exec.Command("node", "authserver.mjs")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	p := start(t, "authserver", cmd)
	t.Cleanup(func() {
		if p.alive() {
			p.kill()
		}
	})
	return p.waitFor(regexp.MustCompile(`issuer (http://\S+)`))[1]
}

// guarded is an MCP server that takes the tokens of an authorization server, and says
// so in the way of RFC 9728.
func guarded(t *testing.T, issuer string) (serverURL string) {
	server := mcp.NewServer(&mcp.Implementation{Name: "guarded", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "find"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{}, nil, nil
	})
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil)
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	mux.HandleFunc("/.well-known/oauth-protected-resource/mcp", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"resource": %q, "authorization_servers": [%q], "scopes_supported": ["read"]}`, s.URL+"/mcp", issuer)
	})
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		resp, err := http.Get(issuer + "/check?" + url.Values{"token": {token}, "resource": {s.URL + "/mcp"}}.Encode())
		if err == nil {
			resp.Body.Close()
		}
		if err != nil || resp.StatusCode != http.StatusOK {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})
	return s.URL + "/mcp"
}

// consent is a person with a browser who signs in and agrees to whatever is asked.
func consent(page string) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	browser := &http.Client{Jar: jar}
	resp, err := browser.Get(page)
	form := regexp.MustCompile(`(?s)action="([^"]+)"[^>]*>.*?name="prompt" value="([a-z]+)"`)
	for range 5 {
		if err != nil {
			return err
		}
		text, err2 := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err2 != nil {
			return err2
		}
		if strings.Contains(string(text), "You can close this window") {
			return nil
		}
		m := form.FindSubmatch(text)
		if m == nil {
			return fmt.Errorf("%s has no form: %d %.500s", resp.Request.URL, resp.StatusCode, text)
		}
		action, err2 := resp.Request.URL.Parse(string(m[1]))
		if err2 != nil {
			return err2
		}
		resp, err = browser.PostForm(action.String(), url.Values{"prompt": {string(m[2])}, "login": {"somebody"}, "password": {"any"}})
	}
	return errors.New("too many pages")
}

// A person's consent at a real authorization server, and the renewal of what came of
// it. The server takes a refresh token once, and a second use ends everything: so if
// two of those who wait were to renew the token, nobody would get in any more.
func TestOAuthWithARealAuthorizationServer(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		issuer := authServer(t)
		serverURL := guarded(t, issuer)
		p := startPlane(t, planeConfig{db: db, args: []string{"--mcp-allowed-addresses", "127.0.0.0/8"}})
		ctx := within(t)
		v, err := p.client.CreateVault(ctx, api.VaultCreate{DisplayName: "v"})
		if err != nil {
			t.Fatal(err)
		}
		cmd := command([]string{"BAILEY_URL=" + p.url, "BAILEY_KEY=" + p.admin}, "vaults", "credentials", "authorize", string(v.ID), serverURL, "--no-browser")
		authorize := start(t, "authorize", cmd)
		t.Cleanup(authorize.finish)
		page := authorize.waitFor(regexp.MustCompile(`(http://\S+/auth\?\S+)`))[1]
		if err := consent(page); err != nil {
			t.Fatal(err)
		}
		<-authorize.ended
		var cred *api.Credential
		for c, err := range p.client.Credentials(ctx, v.ID, client.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			cred = c
		}
		if cred == nil || cred.Auth.Refresh == nil || cred.Auth.ExpiresAt == nil {
			t.Fatalf("the credential is %+v", cred)
		}

		if got, err := p.client.ValidateCredential(ctx, v.ID, cred.ID); err != nil || got.Status != api.CredentialValid || got.Refresh != nil {
			t.Fatalf("at first: %+v, %v", got, err)
		}
		before := endTokens(t, issuer)
		for range 3 {
			var g errgroup.Group
			for range 8 {
				g.Go(func() error {
					got, err := p.client.ValidateCredential(ctx, v.ID, cred.ID)
					if err == nil && (got.Status != api.CredentialValid || got.Refresh != nil && got.Refresh.Status != api.RefreshSucceeded) {
						err = fmt.Errorf("validated as %s: probe %+v, renewal %+v", got.Status, got.MCPProbe, got.Refresh)
					}
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if after := endTokens(t, issuer); after != before+1 {
				t.Fatalf("%d renewals for eight who waited", after-before)
			}
			before++
		}
	})
}

// endTokens ends every access token that was used so far, and returns how many were
// renewed.
func endTokens(t *testing.T, issuer string) (renewals int) {
	t.Helper()
	resp, err := http.Get(issuer + "/end")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := fmt.Fscan(resp.Body, &renewals); err != nil {
		t.Fatal(err)
	}
	return renewals
}
