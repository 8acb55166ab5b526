package api

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// A Credential is something secret in a vault, and where it may be used. The secret
// itself is never in it.
type Credential struct {
	ID          CredentialID   `json:"id"`
	Type        string         `json:"type"` // "vault_credential"
	VaultID     VaultID        `json:"vault_id"`
	DisplayName *string        `json:"display_name"`
	Auth        CredentialAuth `json:"auth"`
	Metadata    Metadata       `json:"metadata"`
	CreatedAt   time.Time      `json:"created_at"`
	UpdatedAt   time.Time      `json:"updated_at"`
	ArchivedAt  *time.Time     `json:"archived_at"`
}

// The kinds of credentials.
const (
	AuthStaticBearer        = "static_bearer"
	AuthMCPOAuth            = "mcp_oauth"
	AuthEnvironmentVariable = "environment_variable"
)

// A CredentialAuth is what kind of credential it is, with all that is not secret. Which
// fields are there depends on Type.
type CredentialAuth struct {
	Type string

	// Of static_bearer and mcp_oauth.
	MCPServerURL string

	// Of mcp_oauth.
	ExpiresAt *time.Time
	Refresh   *CredentialRefresh

	// Of environment_variable.
	SecretName        string
	Networking        *CredentialNetworking
	InjectionLocation InjectionLocation
}

type staticBearerJSON struct {
	Type         string `json:"type"`
	MCPServerURL string `json:"mcp_server_url"`
}

type mcpOAuthJSON struct {
	Type         string             `json:"type"`
	MCPServerURL string             `json:"mcp_server_url"`
	ExpiresAt    *time.Time         `json:"expires_at,omitempty"`
	Refresh      *CredentialRefresh `json:"refresh"`
}

type environmentVariableJSON struct {
	Type              string                `json:"type"`
	SecretName        string                `json:"secret_name"`
	Networking        *CredentialNetworking `json:"networking"`
	InjectionLocation InjectionLocation     `json:"injection_location"`
}

func (a CredentialAuth) MarshalJSON() ([]byte, error) {
	switch a.Type {
	case AuthMCPOAuth:
		return json.Marshal(mcpOAuthJSON{a.Type, a.MCPServerURL, a.ExpiresAt, a.Refresh})
	case AuthEnvironmentVariable:
		return json.Marshal(environmentVariableJSON{a.Type, a.SecretName, a.Networking, a.InjectionLocation})
	}
	return json.Marshal(staticBearerJSON{a.Type, a.MCPServerURL})
}

func (a *CredentialAuth) UnmarshalJSON(data []byte) error {
	var all struct {
		mcpOAuthJSON
		Type              string                `json:"type"`
		SecretName        string                `json:"secret_name"`
		Networking        *CredentialNetworking `json:"networking"`
		InjectionLocation InjectionLocation     `json:"injection_location"`
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	*a = CredentialAuth{all.Type, all.MCPServerURL, all.ExpiresAt, all.Refresh, all.SecretName, all.Networking, all.InjectionLocation}
	return nil
}

// A CredentialRefresh is how an access token is renewed.
type CredentialRefresh struct {
	TokenEndpoint     string            `json:"token_endpoint"`
	TokenEndpointAuth TokenEndpointAuth `json:"token_endpoint_auth"`
	ClientID          string            `json:"client_id"`
	Scope             *string           `json:"scope"`
	Resource          *string           `json:"resource"`
}

// A TokenEndpointAuth is how the client proves who it is to a token endpoint.
type TokenEndpointAuth struct {
	Type string `json:"type"`
}

// The kinds of a [TokenEndpointAuth].
const (
	TokenAuthNone  = "none"
	TokenAuthBasic = "client_secret_basic"
	TokenAuthPost  = "client_secret_post"
)

// A CredentialNetworking says which hosts an environment variable's secret may be sent
// to: all that the environment's network policy permits, or some of them.
type CredentialNetworking struct {
	Type         string // as of a [Networking]
	AllowedHosts []string
}

type limitedHostsJSON struct {
	Type         string   `json:"type"`
	AllowedHosts []string `json:"allowed_hosts"`
}

func (n CredentialNetworking) MarshalJSON() ([]byte, error) {
	if n.Type != NetworkLimited {
		return json.Marshal(unrestrictedJSON{n.Type})
	}
	return json.Marshal(limitedHostsJSON(n))
}

func (n *CredentialNetworking) UnmarshalJSON(data []byte) error {
	var head unrestrictedJSON
	if err := json.Unmarshal(data, &head); err != nil {
		return Invalid("must be an object with a type")
	}
	if head.Type != NetworkLimited {
		n.Type, n.AllowedHosts = head.Type, nil
		return DecodeStrict(data, &head)
	}
	return DecodeStrict(data, (*limitedHostsJSON)(n))
}

// An InjectionLocation says in which parts of a request an environment variable's
// placeholder is replaced by the secret.
type InjectionLocation struct {
	Body   bool `json:"body"`
	Header bool `json:"header"`
}

// The limits of credentials, in characters or entries.
const (
	CredentialNameMax  = 255
	CredentialURLMax   = 2047
	CredentialTokenMax = 8192
	CredentialHostsMax = 16
	clientIDMax        = 1024
	scopeMax           = 4096
	secretNameMax      = 255
	secretValueMin     = 6 // less could not be told from ordinary text where it has to be taken out
	secretValueMax     = 16384
)

// Check applies the limits of a credential's own fields.
func (c *Credential) Check() error {
	if c.DisplayName != nil {
		if err := checkLen("display_name", *c.DisplayName, 1, CredentialNameMax); err != nil {
			return err
		}
	}
	if err := c.Auth.check(); err != nil {
		return at(err, "auth")
	}
	return c.Metadata.Check()
}

func (a *CredentialAuth) check() error {
	switch a.Type {
	case AuthStaticBearer:
		return checkServerURL(a.MCPServerURL)
	case AuthMCPOAuth:
		if err := checkServerURL(a.MCPServerURL); err != nil || a.Refresh == nil {
			return err
		}
		return at(a.Refresh.check(), "refresh")
	case AuthEnvironmentVariable:
		return a.checkVariable()
	}
	return Invalid("type: must be %q, %q or %q", AuthStaticBearer, AuthMCPOAuth, AuthEnvironmentVariable)
}

func (r *CredentialRefresh) check() error {
	if err := checkLen("token_endpoint", r.TokenEndpoint, 1, CredentialURLMax); err != nil {
		return err
	}
	u, err := parseHTTP(r.TokenEndpoint)
	if err != nil || u.Scheme == "http" && !loopback(u.Hostname()) {
		return Invalid("token_endpoint: must be an https URL without a user or fragment")
	}
	if err := checkLen("client_id", r.ClientID, 1, clientIDMax); err != nil {
		return err
	}
	switch r.TokenEndpointAuth.Type {
	case TokenAuthNone, TokenAuthBasic, TokenAuthPost:
	default:
		return Invalid("token_endpoint_auth.type: must be %q, %q or %q", TokenAuthNone, TokenAuthBasic, TokenAuthPost)
	}
	if r.Scope != nil {
		if err := checkLen("scope", *r.Scope, 0, scopeMax); err != nil {
			return err
		}
	}
	if r.Resource != nil {
		if err := checkLen("resource", *r.Resource, 0, CredentialURLMax); err != nil {
			return err
		}
	}
	return nil
}

func (a *CredentialAuth) checkVariable() error {
	if err := checkLen("secret_name", a.SecretName, 1, secretNameMax); err != nil {
		return err
	}
	if first := a.SecretName[0]; first >= '0' && first <= '9' || strings.Trim(a.SecretName, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return Invalid("secret_name: has letters, digits and _ and begins with no digit, as the name of an environment variable")
	}
	if !a.InjectionLocation.Body && !a.InjectionLocation.Header {
		return Invalid("injection_location: at least one of header and body must be true")
	}
	n := a.Networking
	switch {
	case n == nil:
		return Invalid("networking: required")
	case n.Type == NetworkUnrestricted:
		return nil
	case n.Type != NetworkLimited:
		return Invalid("networking.type: must be %q or %q", NetworkUnrestricted, NetworkLimited)
	case len(n.AllowedHosts) < 1 || len(n.AllowedHosts) > CredentialHostsMax:
		return Invalid("networking.allowed_hosts: must be 1 to %d, got %d", CredentialHostsMax, len(n.AllowedHosts))
	}
	for i, host := range n.AllowedHosts {
		if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
			continue
		}
		if err := CheckAllowedHost(host); err != nil {
			return Invalid("networking.allowed_hosts.%d: %s", i, err)
		}
	}
	return nil
}

func checkServerURL(s string) error {
	if err := checkLen("mcp_server_url", s, 1, CredentialURLMax); err != nil {
		return err
	}
	if _, err := parseHTTP(s); err != nil {
		return Invalid("mcp_server_url: must be an http or https URL without a user or fragment")
	}
	return nil
}

// parseHTTP reads a URL that requests can be sent to.
func parseHTTP(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, strings.Contains(s, "#"):
	default:
		return u, nil
	}
	return nil, Invalid("must be an http or https URL without a user or fragment")
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// ServerKey is what the URLs of an MCP server have in common by which credentials are
// found: scheme and host in lower case, no default port, no slashes at the end. "" is
// that of what is no URL.
func ServerKey(serverURL string) string {
	u, err := parseHTTP(serverURL)
	if err != nil {
		return ""
	}
	host, port := LowerHost(u.Hostname()), u.Port()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" && !(u.Scheme == "http" && port == "80") && !(u.Scheme == "https" && port == "443") {
		host += ":" + port
	}
	key := u.Scheme + "://" + host + strings.TrimRight(u.EscapedPath(), "/")
	if u.RawQuery != "" {
		key += "?" + u.RawQuery
	}
	return key
}

// Target is what a credential is for, of which a vault has one that is not archived: a
// server or a variable.
func (a *CredentialAuth) Target() string {
	if a.Type == AuthEnvironmentVariable {
		return "env " + a.SecretName
	}
	return "url " + ServerKey(a.MCPServerURL)
}

// -- validation -------------------------------------------------------------------

// A CredentialValidation is what came of trying a credential at its MCP server.
type CredentialValidation struct {
	Type            string          `json:"type"` // "vault_credential_validation"
	CredentialID    CredentialID    `json:"credential_id"`
	VaultID         VaultID         `json:"vault_id"`
	Status          string          `json:"status"`
	HasRefreshToken bool            `json:"has_refresh_token"`
	MCPProbe        *MCPProbe       `json:"mcp_probe"`
	Refresh         *RefreshAttempt `json:"refresh"`
	ValidatedAt     time.Time       `json:"validated_at"`
}

// The verdicts of a [CredentialValidation].
const (
	CredentialValid   = "valid"
	CredentialInvalid = "invalid"
	CredentialUnknown = "unknown"
)

// An MCPProbe is the step of a probe that failed.
type MCPProbe struct {
	Method       string         `json:"method"`
	HTTPResponse *ProbeResponse `json:"http_response"`
}

// A RefreshAttempt is what came of renewing a token.
type RefreshAttempt struct {
	Status       string         `json:"status"`
	HTTPResponse *ProbeResponse `json:"http_response"`
}

// The outcomes of a [RefreshAttempt].
const (
	RefreshSucceeded    = "succeeded"
	RefreshFailed       = "failed"
	RefreshConnectError = "connect_error"
	RefreshNoToken      = "no_refresh_token"
)

// A ProbeResponse is an HTTP answer without secrets.
type ProbeResponse struct {
	StatusCode    int    `json:"status_code"`
	ContentType   string `json:"content_type"`
	Body          string `json:"body"`
	BodyTruncated bool   `json:"body_truncated"`
}
