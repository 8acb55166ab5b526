package api

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"
)

// A Secret is a secret on its way to a vault. It shows itself in JSON alone: not when it
// is printed, and not in a log.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[secret]"
}

// GoString is String, so that %#v does not show the secret either.
func (s Secret) GoString() string { return s.String() }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Secrets are those of a credential, by the field that each is in.
type Secrets map[string]Secret

// The fields of [Secrets].
const (
	FieldToken        = "token"
	FieldAccessToken  = "access_token"
	FieldRefreshToken = "refresh_token"
	FieldClientSecret = "client_secret"
	FieldSecretValue  = "secret_value"
)

func (s Secrets) check() error {
	for field, secret := range s {
		least, most, of := 1, CredentialTokenMax, "auth."
		switch field {
		case FieldRefreshToken:
			of = "auth.refresh."
		case FieldClientSecret:
			of = "auth.refresh.token_endpoint_auth."
		case FieldSecretValue:
			least, most = secretValueMin, secretValueMax
			if strings.Contains(string(secret), "\x00") {
				return Invalid("%s%s: has a byte 0, which nothing can take", of, field)
			}
		case FieldToken, FieldAccessToken:
			// What could not be sent is refused while somebody is there to hear it.
			if strings.ContainsFunc(string(secret), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
				return Invalid("%s%s: has a space, an end of line or another character that a header cannot have", of, field)
			}
		}
		if n := len(secret); n < least || n > most {
			return Invalid("%s%s: must be %d to %d bytes, got %d", of, field, least, most, n)
		}
	}
	return nil
}

// A CredentialCreate is the body of POST /v1/vaults/{vault}/credentials.
type CredentialCreate struct {
	Auth        CredentialAuthCreate `json:"auth"`
	DisplayName *string              `json:"display_name,omitempty"`
	Metadata    Metadata             `json:"metadata,omitempty"`
}

// A CredentialAuthCreate is a [CredentialAuth] with its secrets. Which fields are there
// depends on Type.
type CredentialAuthCreate struct {
	Type string

	MCPServerURL string // of static_bearer and mcp_oauth
	Token        Secret // of static_bearer

	// Of mcp_oauth.
	AccessToken Secret
	ExpiresAt   *time.Time
	Refresh     *CredentialRefreshCreate

	// Of environment_variable.
	SecretName        string
	SecretValue       Secret
	Networking        *CredentialNetworking
	InjectionLocation Opt[InjectionLocationPatch] // not set: header and body
}

// A CredentialRefreshCreate is a [CredentialRefresh] with its secrets.
type CredentialRefreshCreate struct {
	TokenEndpoint     string                  `json:"token_endpoint"`
	TokenEndpointAuth TokenEndpointAuthCreate `json:"token_endpoint_auth"`
	ClientID          string                  `json:"client_id"`
	RefreshToken      Secret                  `json:"refresh_token"`
	Scope             *string                 `json:"scope,omitempty"`
	Resource          *string                 `json:"resource,omitempty"`
}

// A TokenEndpointAuthCreate is a [TokenEndpointAuth] with its secret, which "none" has
// not.
type TokenEndpointAuthCreate struct {
	Type         string  `json:"type"`
	ClientSecret *Secret `json:"client_secret,omitempty"`
}

// An InjectionLocationPatch is an [InjectionLocation] of which parts may be left out.
type InjectionLocationPatch struct {
	Body   Opt[bool] `json:"body,omitzero"`
	Header Opt[bool] `json:"header,omitzero"`
}

type staticBearerCreateJSON struct {
	Type         string `json:"type"`
	MCPServerURL string `json:"mcp_server_url"`
	Token        Secret `json:"token"`
}

type mcpOAuthCreateJSON struct {
	Type         string                   `json:"type"`
	MCPServerURL string                   `json:"mcp_server_url"`
	AccessToken  Secret                   `json:"access_token"`
	ExpiresAt    *time.Time               `json:"expires_at,omitempty"`
	Refresh      *CredentialRefreshCreate `json:"refresh,omitempty"`
}

type environmentVariableCreateJSON struct {
	Type              string                      `json:"type"`
	SecretName        string                      `json:"secret_name"`
	SecretValue       Secret                      `json:"secret_value"`
	Networking        *CredentialNetworking       `json:"networking"`
	InjectionLocation Opt[InjectionLocationPatch] `json:"injection_location,omitzero"`
}

func (a CredentialAuthCreate) MarshalJSON() ([]byte, error) {
	switch a.Type {
	case AuthMCPOAuth:
		return json.Marshal(mcpOAuthCreateJSON{a.Type, a.MCPServerURL, a.AccessToken, a.ExpiresAt, a.Refresh})
	case AuthEnvironmentVariable:
		return json.Marshal(environmentVariableCreateJSON{a.Type, a.SecretName, a.SecretValue, a.Networking, a.InjectionLocation})
	}
	return json.Marshal(staticBearerCreateJSON{a.Type, a.MCPServerURL, a.Token})
}

func (a *CredentialAuthCreate) UnmarshalJSON(data []byte) error {
	kind, err := authType(data)
	if err != nil {
		return err
	}
	switch kind {
	case AuthStaticBearer:
		var j staticBearerCreateJSON
		err = DecodeStrict(data, &j)
		*a = CredentialAuthCreate{Type: j.Type, MCPServerURL: j.MCPServerURL, Token: j.Token}
	case AuthMCPOAuth:
		var j mcpOAuthCreateJSON
		err = DecodeStrict(data, &j)
		*a = CredentialAuthCreate{Type: j.Type, MCPServerURL: j.MCPServerURL, AccessToken: j.AccessToken, ExpiresAt: j.ExpiresAt, Refresh: j.Refresh}
	default:
		var j environmentVariableCreateJSON
		err = DecodeStrict(data, &j)
		*a = CredentialAuthCreate{Type: j.Type, SecretName: j.SecretName, SecretValue: j.SecretValue, Networking: j.Networking, InjectionLocation: j.InjectionLocation}
	}
	return at(err, "auth")
}

// authType reads the type of an auth object.
func authType(data []byte) (string, error) {
	var head struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(data, &head) != nil {
		return "", Invalid("auth: must be an object with a type")
	}
	switch head.Type {
	case AuthStaticBearer, AuthMCPOAuth, AuthEnvironmentVariable:
		return head.Type, nil
	}
	return "", Invalid("auth.type: must be %q, %q or %q", AuthStaticBearer, AuthMCPOAuth, AuthEnvironmentVariable)
}

// Split checks a, of which the whole is judged at now, and returns what is not secret
// apart from what is.
func (a *CredentialAuthCreate) Split(now time.Time) (CredentialAuth, Secrets, error) {
	out := CredentialAuth{Type: a.Type, MCPServerURL: a.MCPServerURL, SecretName: a.SecretName, Networking: a.Networking}
	secrets := Secrets{}
	switch a.Type {
	case AuthStaticBearer:
		secrets[FieldToken] = a.Token
	case AuthMCPOAuth:
		secrets[FieldAccessToken] = a.AccessToken
		if err := checkExpiry(a.ExpiresAt, now); err != nil {
			return out, nil, err
		}
		out.ExpiresAt = a.ExpiresAt
		if a.Refresh != nil {
			if err := a.Refresh.split(&out, secrets); err != nil {
				return out, nil, err
			}
		}
	case AuthEnvironmentVariable:
		secrets[FieldSecretValue] = a.SecretValue
		out.InjectionLocation = InjectionLocation{Body: true, Header: true}
		if a.InjectionLocation.Set {
			out.InjectionLocation = InjectionLocation{}
			if err := a.InjectionLocation.Value.apply(&out.InjectionLocation, a.InjectionLocation.Null); err != nil {
				return out, nil, err
			}
		}
	}
	return out, secrets, secrets.check()
}

func (r *CredentialRefreshCreate) split(out *CredentialAuth, secrets Secrets) error {
	secrets[FieldRefreshToken] = r.RefreshToken
	out.Refresh = &CredentialRefresh{
		TokenEndpoint: r.TokenEndpoint, TokenEndpointAuth: TokenEndpointAuth{r.TokenEndpointAuth.Type},
		ClientID: r.ClientID, Scope: nonEmpty(r.Scope), Resource: nonEmpty(r.Resource),
	}
	secret := r.TokenEndpointAuth.ClientSecret
	switch {
	case r.TokenEndpointAuth.Type == TokenAuthNone && secret != nil:
		return Invalid("auth.refresh.token_endpoint_auth.client_secret: not with type %q", TokenAuthNone)
	case r.TokenEndpointAuth.Type == TokenAuthNone:
	case secret == nil:
		return Invalid("auth.refresh.token_endpoint_auth.client_secret: required")
	default:
		secrets[FieldClientSecret] = *secret
	}
	return nil
}

func nonEmpty(s *string) *string {
	if s == nil || *s == "" {
		return nil
	}
	return s
}

func checkExpiry(at *time.Time, now time.Time) error {
	if at != nil && !at.After(now) {
		return Invalid("auth.expires_at: must be in the future")
	}
	return nil
}

func (p InjectionLocationPatch) apply(to *InjectionLocation, null bool) error {
	if null || p.Body.Null || p.Header.Null {
		return Invalid("auth.injection_location: null is not accepted, for the whole or a part; leave it out")
	}
	if p.Body.Set {
		to.Body = p.Body.Value
	}
	if p.Header.Set {
		to.Header = p.Header.Value
	}
	return nil
}

// A CredentialUpdate is the body of POST /v1/vaults/{vault}/credentials/{id}. What a
// credential is for cannot change.
type CredentialUpdate struct {
	Auth        Opt[CredentialAuthUpdate] `json:"auth,omitzero"`
	DisplayName Opt[string]               `json:"display_name,omitzero"`
	Metadata    MetadataPatch             `json:"metadata,omitempty"`
}

// A CredentialAuthUpdate changes a [CredentialAuth] of the same type: what is left out
// keeps its value.
type CredentialAuthUpdate struct {
	Type string

	Token Opt[Secret] // of static_bearer

	// Of mcp_oauth.
	AccessToken Opt[Secret]
	ExpiresAt   Opt[time.Time]
	Refresh     Opt[CredentialRefreshUpdate]

	// Of environment_variable.
	SecretValue       Opt[Secret]
	Networking        Opt[CredentialNetworking]
	InjectionLocation Opt[InjectionLocationPatch]
}

// A CredentialRefreshUpdate changes a [CredentialRefresh].
type CredentialRefreshUpdate struct {
	RefreshToken      Opt[Secret]                  `json:"refresh_token,omitzero"`
	Scope             Opt[string]                  `json:"scope,omitzero"`
	TokenEndpointAuth Opt[TokenEndpointAuthUpdate] `json:"token_endpoint_auth,omitzero"`
}

// A TokenEndpointAuthUpdate changes a client's secret, and never how it is sent.
type TokenEndpointAuthUpdate struct {
	Type         string      `json:"type"`
	ClientSecret Opt[Secret] `json:"client_secret,omitzero"`
}

type staticBearerUpdateJSON struct {
	Type  string      `json:"type"`
	Token Opt[Secret] `json:"token,omitzero"`
}

type mcpOAuthUpdateJSON struct {
	Type        string                       `json:"type"`
	AccessToken Opt[Secret]                  `json:"access_token,omitzero"`
	ExpiresAt   Opt[time.Time]               `json:"expires_at,omitzero"`
	Refresh     Opt[CredentialRefreshUpdate] `json:"refresh,omitzero"`
}

type environmentVariableUpdateJSON struct {
	Type              string                      `json:"type"`
	SecretValue       Opt[Secret]                 `json:"secret_value,omitzero"`
	Networking        Opt[CredentialNetworking]   `json:"networking,omitzero"`
	InjectionLocation Opt[InjectionLocationPatch] `json:"injection_location,omitzero"`
}

func (u CredentialAuthUpdate) MarshalJSON() ([]byte, error) {
	switch u.Type {
	case AuthMCPOAuth:
		return json.Marshal(mcpOAuthUpdateJSON{u.Type, u.AccessToken, u.ExpiresAt, u.Refresh})
	case AuthEnvironmentVariable:
		return json.Marshal(environmentVariableUpdateJSON{u.Type, u.SecretValue, u.Networking, u.InjectionLocation})
	}
	return json.Marshal(staticBearerUpdateJSON{u.Type, u.Token})
}

func (u *CredentialAuthUpdate) UnmarshalJSON(data []byte) error {
	kind, err := authType(data)
	if err != nil {
		return err
	}
	switch kind {
	case AuthStaticBearer:
		var j staticBearerUpdateJSON
		err = DecodeStrict(data, &j)
		*u = CredentialAuthUpdate{Type: j.Type, Token: j.Token}
	case AuthMCPOAuth:
		var j mcpOAuthUpdateJSON
		err = DecodeStrict(data, &j)
		*u = CredentialAuthUpdate{Type: j.Type, AccessToken: j.AccessToken, ExpiresAt: j.ExpiresAt, Refresh: j.Refresh}
	default:
		var j environmentVariableUpdateJSON
		err = DecodeStrict(data, &j)
		*u = CredentialAuthUpdate{Type: j.Type, SecretValue: j.SecretValue, Networking: j.Networking, InjectionLocation: j.InjectionLocation}
	}
	return at(err, "auth")
}

// Apply returns a with the update, and the secrets that are new. Neither is changed.
func (u *CredentialAuthUpdate) Apply(a CredentialAuth, now time.Time) (CredentialAuth, Secrets, error) {
	if u.Type != a.Type {
		return a, nil, Invalid("auth.type: is %q and cannot be changed", a.Type)
	}
	secrets := Secrets{}
	set := func(field string, s Opt[Secret]) error {
		if s.Set && s.Null {
			return Invalid("auth: %s cannot be cleared; archive the credential instead", field)
		}
		if s.Set {
			secrets[field] = s.Value
		}
		return nil
	}
	for field, s := range map[string]Opt[Secret]{FieldToken: u.Token, FieldAccessToken: u.AccessToken, FieldSecretValue: u.SecretValue} {
		if err := set(field, s); err != nil {
			return a, nil, err
		}
	}
	if u.ExpiresAt.Set {
		a.ExpiresAt = nil
		if !u.ExpiresAt.Null {
			a.ExpiresAt = &u.ExpiresAt.Value
		}
		if err := checkExpiry(a.ExpiresAt, now); err != nil {
			return a, nil, err
		}
	}
	if u.Refresh.Set {
		if a.Refresh == nil || u.Refresh.Null {
			return a, nil, Invalid("auth.refresh: can be given when the credential is created, and not be taken away after")
		}
		next := *a.Refresh
		a.Refresh = &next
		r := u.Refresh.Value
		if r.Scope.Set {
			next.Scope = nonEmpty(&r.Scope.Value)
		}
		if err := set(FieldRefreshToken, r.RefreshToken); err != nil {
			return a, nil, err
		}
		if r.TokenEndpointAuth.Set {
			if err := r.TokenEndpointAuth.Value.check(next.TokenEndpointAuth.Type); err != nil {
				return a, nil, err
			}
			if err := set(FieldClientSecret, r.TokenEndpointAuth.Value.ClientSecret); err != nil {
				return a, nil, err
			}
		}
	}
	if u.Networking.Set {
		if u.Networking.Null {
			return a, nil, Invalid("auth.networking: cannot be cleared")
		}
		a.Networking = &u.Networking.Value
	}
	if u.InjectionLocation.Set {
		if err := u.InjectionLocation.Value.apply(&a.InjectionLocation, u.InjectionLocation.Null); err != nil {
			return a, nil, err
		}
	}
	return a, secrets, secrets.check()
}

// check refuses an update that a token endpoint's auth of a type cannot take. The two
// types with a secret stand for each other.
func (u TokenEndpointAuthUpdate) check(is string) error {
	switch {
	case u.Type != TokenAuthBasic && u.Type != TokenAuthPost:
		return Invalid("auth.refresh.token_endpoint_auth.type: must be %q or %q", TokenAuthBasic, TokenAuthPost)
	case is == TokenAuthNone:
		return Invalid("auth.refresh.token_endpoint_auth: is %q and cannot be changed", is)
	}
	return nil
}
