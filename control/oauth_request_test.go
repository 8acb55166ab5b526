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
		"a tool hidden by none":  {api.OAuthRequest{Method: "POST", URL: host + "/mcp", ContentType: js, Body: `{"jsonrpc":"2.0","id":1,"method":"tools/call","redirect_uris":["http://127.0.0.1/"],"Method":null}`}, false},
		"two grants":             {api.OAuthRequest{Method: "POST", URL: host + "/token", ContentType: form, Body: "grant_type=authorization_code&grant_type=client_credentials&code=c"}, false},
		"back to elsewhere":      {api.OAuthRequest{Method: "POST", URL: host + "/register", ContentType: js, Body: `{"redirect_uris":["https://evil.test/"]}`}, false},
		"another grant":          {api.OAuthRequest{Method: "POST", URL: host + "/token", ContentType: form, Body: "grant_type=client_credentials&code=c"}, false},
		"another method":         {api.OAuthRequest{Method: "DELETE", URL: host + "/.well-known/openid-configuration"}, false},
	} {
		if err := checkOAuthRequest(&c.in); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a host reads is what was looked at, however it reads.
func TestOAuthRequestBodyHasOneMeaning(t *testing.T) {
	t.Parallel()
	const host = "https://docs.x.test"
	for _, c := range []struct{ kind, body, want string }{
		{"application/json", `{"redirect_uris":["https://evil.test/"],"redirect_uris":["http://127.0.0.1/"]}`, `{"redirect_uris":["http://127.0.0.1/"]}`},
		{"application/json", `{"client_name":"b","redirect_uris":["http://[::1]:9/c"]}`, `{"client_name":"b","redirect_uris":["http://[::1]:9/c"]}`},
		{"application/x-www-form-urlencoded", `{"method":"tools/call","x":"&grant_type=authorization_code&code=c"}`,
			"code=c%22%7D&grant_type=authorization_code&%7B%22method%22%3A%22tools%2Fcall%22%2C%22x%22%3A%22="},
		{"application/x-www-form-urlencoded", "grant_type=authorization_code&code=a%2Fb&redirect_uri=http%3A%2F%2F127.0.0.1%3A9%2Fc",
			"code=a%2Fb&grant_type=authorization_code&redirect_uri=http%3A%2F%2F127.0.0.1%3A9%2Fc"},
	} {
		in := api.OAuthRequest{Method: "POST", URL: host + "/x", ContentType: c.kind, Body: api.Secret(c.body)}
		if err := checkOAuthRequest(&in); err != nil || string(in.Body) != c.want {
			t.Errorf("%s: sent is %s, want %s: %v", c.body, string(in.Body), c.want, err)
		}
	}
}
