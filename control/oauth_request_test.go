package control

import (
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/vault"
)

// Only what an authorization needs can be asked of a host behind a tunnel this way.
func TestOAuthRequestCheck(t *testing.T) {
	t.Parallel()
	const host, form, js = "https://docs.x.test", "application/x-www-form-urlencoded", "application/json"
	for name, c := range map[string]struct {
		in   api.OAuthRequest
		good bool
	}{
		"metadata":               {api.OAuthRequest{Method: "GET", URL: host + "/.well-known/oauth-protected-resource/mcp"}, true},
		"of a path":              {api.OAuthRequest{Method: "GET", URL: host + "/tenant/.well-known/openid-configuration"}, true},
		"probe":                  {api.OAuthRequest{Method: "POST", URL: host + "/mcp", ContentType: js, Body: vault.ProbeBody}, true},
		"registration":           {api.OAuthRequest{Method: "POST", URL: host + "/register", ContentType: js, Body: `{"redirect_uris":["http://127.0.0.1:80/callback"]}`}, true},
		"code":                   {api.OAuthRequest{Method: "POST", URL: host + "/token", ContentType: form, Authorization: "Basic x", Body: "grant_type=authorization_code&code=c"}, true},
		"another page":           {api.OAuthRequest{Method: "GET", URL: host + "/admin"}, false},
		"a path about":           {api.OAuthRequest{Method: "GET", URL: host + "/.well-known/oauth-protected-resource/../../admin"}, false},
		"an escaped one":         {api.OAuthRequest{Method: "GET", URL: host + "/.well-known/oauth-protected-resource/%2e%2e/admin"}, false},
		"a query":                {api.OAuthRequest{Method: "GET", URL: host + "/.well-known/openid-configuration?x=y"}, false},
		"a credential":           {api.OAuthRequest{Method: "GET", URL: host + "/.well-known/openid-configuration", Authorization: "Bearer x"}, false},
		"plain":                  {api.OAuthRequest{Method: "GET", URL: "http://docs.x.test/.well-known/openid-configuration"}, false},
		"a tool":                 {api.OAuthRequest{Method: "POST", URL: host + "/mcp", ContentType: js, Body: `{"jsonrpc":"2.0","id":1,"method":"tools/call"}`}, false},
		"two methods":            {api.OAuthRequest{Method: "POST", URL: host + "/mcp", ContentType: js, Body: `{"jsonrpc":"2.0","id":1,"method":"tools/call","Method":"initialize"}`}, false},
		"a tool that comes back": {api.OAuthRequest{Method: "POST", URL: host + "/mcp", ContentType: js, Body: `{"method":"tools/call","redirect_uris":["http://127.0.0.1/"]}`}, false},
		"back to elsewhere":      {api.OAuthRequest{Method: "POST", URL: host + "/register", ContentType: js, Body: `{"redirect_uris":["https://evil.test/"]}`}, false},
		"another grant":          {api.OAuthRequest{Method: "POST", URL: host + "/token", ContentType: form, Body: "grant_type=client_credentials&code=c"}, false},
		"another method":         {api.OAuthRequest{Method: "DELETE", URL: host + "/.well-known/openid-configuration"}, false},
	} {
		if err := checkOAuthRequest(&c.in); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
