package api

import (
	"encoding/json"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Workloads have identities of their own: a pod its service account, a pipeline its
// repository. Federation exchanges such an identity, a signed token of its platform's,
// for an access token of ours that lives for minutes, so that no key has to be kept
// where the workload runs. An issuer is whose signature is believed, a service account
// is who the workload is here, and a rule says which identities of the one are the other.

// Identifiers of federation.
type (
	ServiceAccountID string // svac_…
	IssuerID         string // fdis_…
	RuleID           string // fdrl_…
	ExchangeID       string // fdex_…, of an attempt to exchange an assertion
)

// The prefixes of those identifiers, and of an access token's.
const (
	PrefixServiceAccount = "svac_"
	PrefixIssuer         = "fdis_"
	PrefixRule           = "fdrl_"
	PrefixExchange       = "fdex_"
	PrefixAccessToken    = "oatk_"
)

// SecretPrefixAccess is the prefix of access tokens, as the official ones have it.
const SecretPrefixAccess = "sk-ant-oat01-"

// The limits of federation.
const (
	AssertionMax      = 16 << 10 // bytes
	FederationPageMax = 1000     // of a list

	TokenLifetimeMin     = time.Minute
	TokenLifetimeMax     = 24 * time.Hour
	TokenLifetimeDefault = time.Hour

	JWTLifetimeMax     = 49 * time.Hour
	JWTLifetimeDefault = time.Hour

	// AudienceDefault is the audience an assertion must name when its rule names none.
	AudienceDefault = "bailey"

	jwksKeysMax     = 50
	jwksBytesMax    = 64 << 10
	caCertPEMMax    = 64 << 10
	descriptionMax  = 2048
	claimsMax       = 32
	claimMax        = 1024
	federatedURLMax = 2048
)

// The OAuth scopes that a rule can grant.
const (
	OAuthDeveloper     = "workspace:developer"      // what an API key of the workspace is good for
	OAuthManageTunnels = "workspace:manage_tunnels" // all operations on tunnels
)

var slug = regexp.MustCompile(`^[a-z0-9-]{1,255}$`)

func checkSlug(name string) error {
	if !slug.MatchString(name) {
		return Invalid("name: must be 1 to 255 lower-case letters, digits and hyphens")
	}
	return nil
}

// Recorded is who made and changed an object, and when.
type Recorded struct {
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by_actor_id"`
	UpdatedAt  time.Time  `json:"updated_at"`
	UpdatedBy  string     `json:"updated_by_actor_id"`
	ArchivedAt *time.Time `json:"archived_at"`
	ArchivedBy *string    `json:"archived_by_actor_id"`
}

// -- service accounts --------------------------------------------------------------

// A ServiceAccount is an identity that is nobody's in person. What it may do is said by
// the rules that lead to it.
type ServiceAccount struct {
	ID               ServiceAccountID `json:"id"`
	Type             string           `json:"type"` // "service_account"
	Name             string           `json:"name"` // a slug, unique among those not archived
	Description      string           `json:"description"`
	OrganizationRole string           `json:"organization_role"` // admin or developer
	Recorded
}

// A ServiceAccountCreate is the body of POST /v1/organizations/service_accounts.
type ServiceAccountCreate struct {
	Name             string  `json:"name"`
	Description      *string `json:"description,omitempty"`
	OrganizationRole *string `json:"organization_role,omitempty"`
}

// A ServiceAccountUpdate is the body of POST /v1/organizations/service_accounts/{id}.
type ServiceAccountUpdate struct {
	Description      Opt[string] `json:"description,omitzero"`
	OrganizationRole Opt[string] `json:"organization_role,omitzero"`
}

// Check applies the limits of a service account.
func (a *ServiceAccount) Check() error {
	if err := checkSlug(a.Name); err != nil {
		return err
	}
	if a.OrganizationRole != "admin" && a.OrganizationRole != "developer" {
		return Invalid("organization_role: must be admin or developer")
	}
	return checkLen("description", a.Description, 0, descriptionMax)
}

// -- issuers -----------------------------------------------------------------------

// A FederationIssuer is an OpenID Connect provider whose tokens are believed.
type FederationIssuer struct {
	ID          IssuerID `json:"id"`
	Type        string   `json:"type"` // "federation_issuer"
	Name        string   `json:"name"` // a slug, unique among those not archived
	IssuerURL   string   `json:"issuer_url"`
	JWKS        JWKS     `json:"jwks"`
	CheckJTI    bool     `json:"check_jti"` // an assertion with a jti is exchanged once
	MaxLifetime int64    `json:"max_jwt_lifetime_seconds"`

	// This server asks for keys when it needs them. It does not poll, and so never gives
	// up: both are always null.
	PollingDisabledAt *time.Time `json:"jwks_polling_disabled_at"`
	PollStatus        *struct{}  `json:"poll_status"`
	Recorded
}

// A JWKSType is how an issuer's keys are found.
type JWKSType string

const (
	JWKSDiscovery JWKSType = "discovery"
	JWKSURL       JWKSType = "explicit_url"
	JWKSInline    JWKSType = "inline"
)

// JWKS says where the keys are that an issuer signs with.
type JWKS struct {
	Type          JWKSType
	CACertPEM     *string           // discovery, explicit_url: trusted for this host instead of the system's CAs
	DiscoveryBase *string           // discovery: where the document is, if not at the issuer's URL
	URL           string            // explicit_url
	Keys          []json.RawMessage // inline: JWKs
}

type (
	jwksDiscovery struct {
		Type          JWKSType `json:"type"`
		CACertPEM     *string  `json:"ca_cert_pem"`
		DiscoveryBase *string  `json:"discovery_base"`
	}
	jwksURL struct {
		Type      JWKSType `json:"type"`
		URL       string   `json:"url"`
		CACertPEM *string  `json:"ca_cert_pem"`
	}
	jwksInline struct {
		Type JWKSType          `json:"type"`
		Keys []json.RawMessage `json:"keys"`
	}
)

func (j JWKS) MarshalJSON() ([]byte, error) {
	switch j.Type {
	case JWKSURL:
		return json.Marshal(jwksURL{j.Type, j.URL, j.CACertPEM})
	case JWKSInline:
		return json.Marshal(jwksInline{j.Type, j.Keys})
	}
	return json.Marshal(jwksDiscovery{JWKSDiscovery, j.CACertPEM, j.DiscoveryBase})
}

func (j *JWKS) UnmarshalJSON(data []byte) error {
	var kind struct {
		Type JWKSType `json:"type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return Invalid("jwks: must be an object with a type")
	}
	switch kind.Type {
	case JWKSDiscovery:
		var v jwksDiscovery
		err := at(DecodeStrict(data, &v), "jwks")
		*j = JWKS{Type: v.Type, CACertPEM: v.CACertPEM, DiscoveryBase: v.DiscoveryBase}
		return err
	case JWKSURL:
		var v jwksURL
		err := at(DecodeStrict(data, &v), "jwks")
		*j = JWKS{Type: v.Type, URL: v.URL, CACertPEM: v.CACertPEM}
		return err
	case JWKSInline:
		var v jwksInline
		err := at(DecodeStrict(data, &v), "jwks")
		*j = JWKS{Type: v.Type, Keys: v.Keys}
		return err
	}
	return Invalid("jwks.type: must be %s, %s or %s", JWKSDiscovery, JWKSURL, JWKSInline)
}

// A FederationIssuerCreate is the body of POST /v1/organizations/federation_issuers.
type FederationIssuerCreate struct {
	Name        string `json:"name"`
	IssuerURL   string `json:"issuer_url"`
	JWKS        *JWKS  `json:"jwks,omitempty"`
	CheckJTI    *bool  `json:"check_jti,omitempty"`
	MaxLifetime *int64 `json:"max_jwt_lifetime_seconds,omitempty"`
}

// A FederationIssuerUpdate is the body of POST
// /v1/organizations/federation_issuers/{id}.
type FederationIssuerUpdate struct {
	Name            Opt[string] `json:"name,omitzero"`
	IssuerURL       Opt[string] `json:"issuer_url,omitzero"`
	JWKS            Opt[JWKS]   `json:"jwks,omitzero"`
	CheckJTI        Opt[bool]   `json:"check_jti,omitzero"`
	MaxLifetime     Opt[int64]  `json:"max_jwt_lifetime_seconds,omitzero"`
	PollingDisabled Opt[bool]   `json:"jwks_polling_disabled,omitzero"`
}

// Check applies the limits of an issuer, but for the keys of an inline set.
func (i *FederationIssuer) Check() error {
	if err := checkSlug(i.Name); err != nil {
		return err
	}
	// What is only compared may be any URL; what is fetched from must be safe to.
	if err := checkFederatedURL("issuer_url", i.IssuerURL, i.JWKS.Type == JWKSDiscovery && i.JWKS.DiscoveryBase == nil); err != nil {
		return err
	}
	if most := int64(JWTLifetimeMax / time.Second); i.MaxLifetime < 1 || i.MaxLifetime > most {
		return Invalid("max_jwt_lifetime_seconds: must be 1 to %d", most)
	}
	if j := i.JWKS; j.CACertPEM != nil && len(*j.CACertPEM) > caCertPEMMax {
		return Invalid("jwks.ca_cert_pem: at most %d bytes", caCertPEMMax)
	}
	switch j := i.JWKS; j.Type {
	case JWKSDiscovery:
		if j.DiscoveryBase != nil {
			return checkFederatedURL("jwks.discovery_base", *j.DiscoveryBase, true)
		}
	case JWKSURL:
		return checkFederatedURL("jwks.url", j.URL, true)
	case JWKSInline:
		size := 0
		for _, k := range j.Keys {
			size += len(k)
		}
		if len(j.Keys) == 0 || len(j.Keys) > jwksKeysMax || size > jwksBytesMax {
			return Invalid("jwks.keys: must be 1 to %d keys of at most %d bytes together", jwksKeysMax, jwksBytesMax)
		}
	}
	return nil
}

// checkFederatedURL checks a URL; one that is fetched from is https, or http on this
// machine.
func checkFederatedURL(field, text string, fetched bool) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > federatedURLMax || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return Invalid("%s: must be an https URL without a user or a fragment", field)
	}
	if host := u.Hostname(); fetched && u.Scheme != "https" && host != "localhost" && host != "127.0.0.1" && host != "::1" {
		return Invalid("%s: must be an https URL; plain http is accepted for this machine alone", field)
	}
	return nil
}

// -- rules -------------------------------------------------------------------------

// A FederationRule says which identities of an issuer are which service account.
type FederationRule struct {
	ID            RuleID            `json:"id"`
	Type          string            `json:"type"` // "federation_rule"
	Name          string            `json:"name"` // a slug, unique among those not archived
	Description   string            `json:"description"`
	IssuerID      IssuerID          `json:"issuer_id"`
	IssuerName    string            `json:"issuer_name"`
	Match         FederationMatch   `json:"match"`
	Target        FederationTarget  `json:"target"`
	OAuthScope    string            `json:"oauth_scope"`            // separated by spaces
	Lifetime      int64             `json:"token_lifetime_seconds"` // of access tokens, at most
	AllWorkspaces bool              `json:"applies_to_all_workspaces"`
	WorkspaceID   *WorkspaceID      `json:"workspace_id"`
	WorkspaceIDs  []WorkspaceID     `json:"workspace_ids"`
	Attributes    map[string]string `json:"attributes"` // always null
	Recorded
}

// A FederationMatch is what an assertion must say. Everything that is set must fit.
type FederationMatch struct {
	Audience      *string           `json:"audience"`       // one of the token's; nil: AudienceDefault
	SubjectPrefix *string           `json:"subject_prefix"` // exact, or a prefix if it ends in *
	Claims        map[string]string `json:"claims"`         // each exactly so, at the top level
	Condition     *string           `json:"condition"`      // CEL; not offered here
}

// A FederationTarget is who a matching identity is.
type FederationTarget struct {
	Type string           `json:"type"` // "service_account"
	ID   ServiceAccountID `json:"service_account_id"`
	Name *string          `json:"service_account_name"` // as it is now; ignored in requests
}

// A FederationRuleCreate is the body of POST /v1/organizations/federation_rules.
type FederationRuleCreate struct {
	Name          string            `json:"name"`
	Description   *string           `json:"description,omitempty"`
	IssuerID      IssuerID          `json:"issuer_id"`
	Match         FederationMatch   `json:"match"`
	Target        FederationTarget  `json:"target"`
	OAuthScope    string            `json:"oauth_scope"`
	Lifetime      *int64            `json:"token_lifetime_seconds,omitempty"`
	AllWorkspaces *bool             `json:"applies_to_all_workspaces,omitempty"`
	WorkspaceID   *WorkspaceID      `json:"workspace_id,omitempty"`
	Attributes    map[string]string `json:"attributes,omitempty"`
}

// A FederationRuleUpdate is the body of POST /v1/organizations/federation_rules/{id}.
type FederationRuleUpdate struct {
	Name          Opt[string]            `json:"name,omitzero"`
	Description   Opt[string]            `json:"description,omitzero"`
	Match         Opt[FederationMatch]   `json:"match,omitzero"`
	Target        Opt[FederationTarget]  `json:"target,omitzero"`
	OAuthScope    Opt[string]            `json:"oauth_scope,omitzero"`
	Lifetime      Opt[int64]             `json:"token_lifetime_seconds,omitzero"`
	AllWorkspaces Opt[bool]              `json:"applies_to_all_workspaces,omitzero"`
	WorkspaceID   Opt[WorkspaceID]       `json:"workspace_id,omitzero"`
	Attributes    Opt[map[string]string] `json:"attributes,omitzero"`
}

// Scopes is OAuthScope as the scopes of a key.
func (r *FederationRule) Scopes() (scopes []KeyScope) {
	granted := strings.Fields(r.OAuthScope)
	if slices.Contains(granted, OAuthDeveloper) {
		scopes = append(scopes, ScopeWorkspace)
	}
	if slices.Contains(granted, OAuthManageTunnels) {
		scopes = append(scopes, ScopeTunnels)
	}
	return scopes
}

// Check applies the limits of a rule. issuerURL is its issuer's: on platforms that many
// share, a rule has to say whose workloads it means.
func (r *FederationRule) Check(issuerURL string) error {
	if err := checkSlug(r.Name); err != nil {
		return err
	}
	if err := checkLen("description", r.Description, 0, descriptionMax); err != nil {
		return err
	}
	scopes := strings.Fields(r.OAuthScope)
	if len(scopes) == 0 {
		return Invalid("oauth_scope: must name %s or %s", OAuthDeveloper, OAuthManageTunnels)
	}
	for _, s := range scopes {
		if s != OAuthDeveloper && s != OAuthManageTunnels {
			return Invalid("oauth_scope: %q is not offered by this server; %s and %s are", s, OAuthDeveloper, OAuthManageTunnels)
		}
	}
	if least, most := int64(TokenLifetimeMin/time.Second), int64(TokenLifetimeMax/time.Second); r.Lifetime < least || r.Lifetime > most {
		return Invalid("token_lifetime_seconds: must be %d to %d", least, most)
	}
	if len(r.Attributes) > 0 {
		return Invalid("attributes: are not supported")
	}
	if r.Target.Type != "service_account" {
		return Invalid("target.type: must be service_account")
	}
	for _, ws := range r.WorkspaceIDs {
		if ws != WorkspaceDefault {
			return Invalid("workspace_id: this server has one workspace, %s", WorkspaceDefault)
		}
	}
	if !r.AllWorkspaces && len(r.WorkspaceIDs) == 0 {
		return Invalid("workspace_id: is required unless applies_to_all_workspaces is true; this server's is %s", WorkspaceDefault)
	}
	return r.Match.check(issuerURL)
}

func (m *FederationMatch) check(issuerURL string) error {
	if m.Condition != nil {
		return Invalid("match.condition: CEL conditions are not offered by this server; use subject_prefix, audience and claims")
	}
	if m.Audience != nil {
		if err := checkLen("match.audience", *m.Audience, 1, claimMax); err != nil {
			return err
		}
	}
	if m.SubjectPrefix != nil {
		if err := checkLen("match.subject_prefix", *m.SubjectPrefix, 1, claimMax); err != nil {
			return err
		}
	}
	if len(m.Claims) > claimsMax {
		return Invalid("match.claims: at most %d", claimsMax)
	}
	for name, value := range m.Claims {
		if name == "" || runeLen(name) > claimMax || runeLen(value) > claimMax {
			return Invalid("match.claims: names are 1 to %d characters, values at most %[1]d", claimMax)
		}
	}
	if !m.narrows() {
		return Invalid("match: needs subject_prefix, other than *, or claims; an audience alone is not enough")
	}
	return m.checkTenant(issuerURL)
}

// narrows reports whether the match says anything of who the workload is.
func (m *FederationMatch) narrows() bool {
	return len(m.Claims) > 0 || m.SubjectPrefix != nil && strings.Trim(*m.SubjectPrefix, "*") != ""
}

// A shared issuer signs for many who know nothing of each other: everybody can get a
// token of it, so a rule must pin whose. One of claims does, and so does a subject that
// begins with what subject matches.
type sharedIssuer struct {
	host    string
	claims  []string
	subject *regexp.Regexp
	example string
}

var sharedIssuers = []sharedIssuer{
	{"token.actions.githubusercontent.com",
		[]string{"repository", "repository_id", "repository_owner", "repository_owner_id"},
		regexp.MustCompile(`^repo:[^/*:]+/`), "repo:OWNER/REPO:*"},
	{"gitlab.com",
		[]string{"namespace_id", "namespace_path", "project_id", "project_path"},
		regexp.MustCompile(`^project_path:[^/*:]+/`), "project_path:GROUP/PROJECT:*"},
	{"agent.buildkite.com",
		[]string{"organization_id", "organization_slug"},
		regexp.MustCompile(`^organization:[^*:]+:`), "organization:SLUG:pipeline:NAME:*"},
	{"app.terraform.io",
		[]string{"terraform_organization_id", "terraform_organization_name", "terraform_workspace_id"},
		regexp.MustCompile(`^organization:[^*:]+:`), "organization:NAME:project:*"},
	{"accounts.google.com",
		[]string{"email", "hd", "sub"},
		regexp.MustCompile(`^[0-9]+$`), "the account's number, in full"},
}

func (m *FederationMatch) checkTenant(issuerURL string) error {
	u, err := url.Parse(issuerURL)
	if err != nil {
		return nil // refused where the issuer is checked
	}
	for _, shared := range sharedIssuers {
		if !strings.EqualFold(u.Hostname(), shared.host) {
			continue
		}
		if m.SubjectPrefix != nil && shared.subject.MatchString(*m.SubjectPrefix) {
			return nil
		}
		for _, name := range slices.Sorted(maps.Keys(m.Claims)) {
			if slices.Contains(shared.claims, name) && m.Claims[name] != "" {
				return nil
			}
		}
		return Invalid("match: everybody can get tokens of %s; say whose are meant, by one of the claims %s, or a subject_prefix such as %s",
			shared.host, strings.Join(shared.claims, ", "), shared.example)
	}
	return nil
}

// -- the exchange ------------------------------------------------------------------

// GrantJWTBearer is the grant type (RFC 7523) of an exchange.
const GrantJWTBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"

// A TokenRequest is the body of POST /v1/oauth/token.
type TokenRequest struct {
	GrantType        string           `json:"grant_type"`
	Assertion        string           `json:"assertion"`
	FederationRuleID RuleID           `json:"federation_rule_id"`
	OrganizationID   string           `json:"organization_id"`
	ServiceAccountID ServiceAccountID `json:"service_account_id,omitempty"`
	WorkspaceID      WorkspaceID      `json:"workspace_id,omitempty"` // or "default"
}

// String shows the request without the assertion.
func (r TokenRequest) String() string { return "api.TokenRequest{" + string(r.FederationRuleID) + "}" }

// GoString is String, so that %#v does not show the assertion either.
func (r TokenRequest) GoString() string { return r.String() }

// Check refuses what is not a request for an exchange at all. Whether it is granted is
// another question, whose answer says nothing of why.
func (r *TokenRequest) Check() error {
	switch {
	case r.GrantType != GrantJWTBearer:
		return Invalid("grant_type: must be %s", GrantJWTBearer)
	case r.Assertion == "":
		return Invalid("assertion: is required")
	case len(r.Assertion) > AssertionMax:
		return Invalid("assertion: at most %d bytes", AssertionMax)
	case r.OrganizationID == "":
		return Invalid("organization_id: is required; this server's is %s", OrganizationDefault)
	}
	if err := CheckID("federation_rule_id", string(r.FederationRuleID)); err != nil {
		return err
	}
	if r.ServiceAccountID != "" {
		if err := CheckID("service_account_id", string(r.ServiceAccountID)); err != nil {
			return err
		}
	}
	if r.WorkspaceID != "" {
		return CheckID("workspace_id", string(r.WorkspaceID))
	}
	return nil
}

// An AccessToken is the answer to an exchange that is granted.
type AccessToken struct {
	Token     string `json:"access_token"`
	TokenType string `json:"token_type"` // "Bearer"
	ExpiresIn int64  `json:"expires_in"` // seconds
}

// A FederationExchange is one attempt to exchange an assertion, as the history has it.
// An extension: the official service shows it in its console.
type FederationExchange struct {
	ID        ExchangeID       `json:"id"`
	Type      string           `json:"type"` // "federation_exchange"
	CreatedAt time.Time        `json:"created_at"`
	RuleID    RuleID           `json:"federation_rule_id"`
	IssuerID  IssuerID         `json:"federation_issuer_id"`
	AccountID ServiceAccountID `json:"service_account_id"`
	Outcome   string           `json:"outcome"` // granted or denied
	Reason    string           `json:"reason,omitempty"`
	Detail    string           `json:"detail,omitempty"`
	RequestID RequestID        `json:"request_id,omitempty"`

	// What the assertion says. Unless Verified, anybody may have written that.
	Verified bool     `json:"verified"`
	Issuer   string   `json:"assertion_issuer,omitempty"`
	Subject  string   `json:"assertion_subject,omitempty"`
	Audience []string `json:"assertion_audience,omitempty"`
}
