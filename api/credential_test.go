package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestServerKey(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://h/mcp":         "https://h/mcp",
		"HTTPS://H.Example:443": "https://h.example",
		"https://h/":            "https://h",
		"https://h//":           "https://h",
		"https://h/MCP/":        "https://h/MCP",
		"http://h:80/x":         "http://h/x",
		"http://h:443/x":        "http://h:443/x",
		"https://h:8443/x/":     "https://h:8443/x",
		"https://[::1]:443/x":   "https://[::1]/x",
		"https://h/x/?a=1":      "https://h/x?a=1",
		"https://h/a%2Fb":       "https://h/a%2Fb",
		// A dotted capital I is an i in lower case, and another letter in a host.
		"https://G\u0130tHub.com": "https://g\u0130thub.com",
		"https://ban\u212a.com":   "https://ban\u212a.com",
		"ftp://h":                 "",
		"https://u@h":             "",
		"https://h/#f":            "",
		"h/mcp":                   "",
		"":                        "",
	} {
		if got := ServerKey(url); got != want {
			t.Errorf("ServerKey(%q) = %q, want %q", url, got, want)
		}
		if key := ServerKey(url); key != "" && ServerKey(key) != key {
			t.Errorf("the key of %q has another key itself: %q", url, ServerKey(key))
		}
	}
}

// What is accepted reads back as what it was.
func FuzzCredential(f *testing.F) {
	for _, auth := range []string{
		`{"type":"static_bearer","mcp_server_url":"https://h","token":"hunter22"}`,
		`{"type":"mcp_oauth","mcp_server_url":"https://h","access_token":"hunter22","refresh":{"token_endpoint":"https://as","client_id":"c","refresh_token":"hunter22","token_endpoint_auth":{"type":"none"}}}`,
		`{"type":"environment_variable","secret_name":"A","secret_value":"hunter22","networking":{"type":"limited","allowed_hosts":["*.h.example"]},"injection_location":{"body":true}}`,
	} {
		f.Add([]byte(auth))
	}
	now := time.Unix(0, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		var in CredentialAuthCreate
		if DecodeStrict(data, &in) != nil {
			return
		}
		auth, _, err := in.Split(now)
		if err != nil {
			return
		}
		cred := Credential{Auth: auth}
		if cred.Check() != nil {
			return
		}
		text, err := json.Marshal(cred.Auth)
		if err != nil {
			t.Fatal(err)
		}
		var again CredentialAuth
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%s does not read back: %v", text, err)
		}
		if is, _ := json.Marshal(again); string(is) != string(text) {
			t.Errorf("%s reads back as %s", text, is)
		}
		if again.Target() != auth.Target() || strings.TrimPrefix(strings.TrimPrefix(again.Target(), "url "), "env ") == "" {
			t.Errorf("the target of %s is %q", text, again.Target())
		}
	})
}
