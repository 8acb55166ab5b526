package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/bailey-platform/bailey/jwks"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
)

// An authRule says who may call a route, by the bearer token of the call.
type authRule struct {
	tokens  [][sha256.Size]byte // hashes: comparing them tells nothing of how much of a guess was right
	jwt     *jwtRule
	forward bool   // Authorization is passed on
	where   string // the address of the metadata of the protected resource
}

// bearerMax bounds a token, in bytes.
const bearerMax = 16 << 10

func newAuthRule(a Auth) (*authRule, error) {
	if len(a.TokenFiles) == 0 && a.JWT.Issuer == "" {
		return nil, nil
	}
	rule := &authRule{forward: a.JWT.Issuer != "", where: a.ResourceMetadata}
	if a.Forward != nil {
		rule.forward = *a.Forward
	}
	for _, file := range a.TokenFiles {
		token, err := readSecret(file)
		if err != nil {
			return nil, err
		}
		rule.tokens = append(rule.tokens, sha256.Sum256([]byte(token)))
	}
	if a.JWT.Issuer != "" {
		var err error
		if rule.jwt, err = newJWTRule(a.JWT); err != nil {
			return nil, fmt.Errorf("jwt: %w", err)
		}
	}
	return rule, nil
}

// check decides on a call by its token, and says in ex who calls.
func (a *authRule) check(ex *exchange) *refusal {
	value, ok := ex.req.one(authorization)
	scheme, token, _ := strings.Cut(string(value), " ")
	token = strings.TrimSpace(token)
	switch {
	case !ok:
		return a.challenge(http.StatusBadRequest, "invalid_request", errors.New("there is more than one Authorization field"))
	case value == nil:
		return a.challenge(http.StatusUnauthorized, "", errors.New("a bearer token is needed"))
	case !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > bearerMax:
		return a.challenge(http.StatusUnauthorized, "invalid_token", errors.New("the Authorization field holds no bearer token"))
	}
	sum := sha256.Sum256([]byte(token))
	ex.bearer = "sha256:" + hex.EncodeToString(sum[:8])
	good := 0
	for i := range a.tokens {
		good |= subtle.ConstantTimeCompare(sum[:], a.tokens[i][:])
	}
	if good == 1 {
		ex.caller = "bearer " + ex.bearer
		return nil
	}
	if a.jwt == nil {
		return a.challenge(http.StatusUnauthorized, "invalid_token", errNotAccepted)
	}
	subject, err := a.jwt.verify(ex.g.ctx(), token)
	switch {
	case err == nil:
		ex.caller = subject
		return nil
	case errors.Is(err, errScope):
		return a.challenge(http.StatusForbidden, "insufficient_scope", err)
	case errors.Is(err, jwks.ErrUnavailable):
		refused := failed(tunnel.StageRequestRefused, err, "the caller's token cannot be checked now: the issuer's keys cannot be had")
		refused.status, refused.retryAfter = http.StatusServiceUnavailable, 5*time.Second
		return refused
	}
	refused := a.challenge(http.StatusUnauthorized, "invalid_token", errNotAccepted)
	refused.provenance.Err = err // the log and the record say why; whoever guesses is not told
	return refused
}

// challenge refuses a call as an OAuth protected resource does (RFC 6750 §3, RFC 9728
// §5.1).
func (a *authRule) challenge(status int, code string, err error) *refusal {
	var params []string
	if code != "" {
		params = append(params, "error="+strconv.Quote(code))
	}
	if code == "insufficient_scope" && a.jwt != nil {
		params = append(params, "scope="+strconv.Quote(strings.Join(a.jwt.scopes, " ")))
	}
	if a.where != "" {
		params = append(params, "resource_metadata="+strconv.Quote(a.where))
	}
	value := strings.TrimSpace("Bearer " + strings.Join(params, ", "))
	refused := failed(tunnel.StageCallerRefused, nil, "the gateway in front of this server does not let the caller through: %v", err)
	refused.status, refused.fields = status, []field{newField([]byte("WWW-Authenticate"), []byte(value))}
	return refused
}

var (
	errNotAccepted = errors.New("the bearer token is not accepted")

	errScope = errors.New("the token lacks a scope that is needed here")
)

// A jwtRule checks the tokens of one issuer.
type jwtRule struct {
	scopes   []string
	claims   map[string]string
	verifier *oidc.IDTokenVerifier
}

// Algorithms of signatures that are accepted: none with a shared secret, and not "none".
var jwtAlgorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// joseAlgorithms are the same for another library.
var joseAlgorithms = func() (all []jose.SignatureAlgorithm) {
	for _, a := range jwtAlgorithms {
		all = append(all, jose.SignatureAlgorithm(a))
	}
	return all
}()

func newJWTRule(j JWT) (*jwtRule, error) {
	r := &jwtRule{scopes: j.Scopes, claims: j.Claims}
	config := &oidc.Config{ClientID: j.Audience, SupportedSigningAlgs: jwtAlgorithms}
	if j.JWKSFile == "" {
		// A gateway starts while its issuer is away: keys are asked for once they are needed.
		client := &http.Client{Timeout: jwks.Patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		issuer := jwks.Issuer{URL: j.Issuer, Keys: j.JWKS, Client: func() *http.Client { return client }}
		r.verifier = oidc.NewVerifier(j.Issuer, remoteKeys{jwks.New(issuer)}, config)
	} else {
		text, err := settings.ReadFile(j.JWKSFile)
		if err != nil {
			return nil, err
		}
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) == 0 {
			return nil, fmt.Errorf("%s holds no set of keys (JWKS)", j.JWKSFile)
		}
		keys := new(oidc.StaticKeySet)
		for _, k := range set.Keys {
			if !k.Valid() || !k.IsPublic() {
				return nil, fmt.Errorf("%s: key %q is no public key", j.JWKSFile, k.KeyID)
			}
			keys.PublicKeys = append(keys.PublicKeys, k.Key)
		}
		r.verifier = oidc.NewVerifier(j.Issuer, keys, config)
	}
	return r, nil
}

// verify returns who a token says its bearer is, if the token is good.
func (r *jwtRule) verify(ctx context.Context, token string) (subject string, err error) {
	ctx, cancel := context.WithTimeout(ctx, jwks.Patience)
	defer cancel()
	t, err := r.verifier.Verify(ctx, token)
	if err != nil {
		if strings.Contains(err.Error(), jwks.ErrUnavailable.Error()) {
			return "", fmt.Errorf("%w: %w", jwks.ErrUnavailable, err)
		}
		return "", whyBad(err)
	}
	var claims map[string]any
	if err := t.Claims(&claims); err != nil {
		return "", errNoJWT
	}
	for name, want := range r.claims {
		if got, ok := claims[name].(string); !ok || got != want {
			return "", fmt.Errorf("claim %s is not what is asked for", name)
		}
	}
	has := scopesOf(claims)
	for _, scope := range r.scopes {
		if !slices.Contains(has, scope) {
			return "", errScope
		}
	}
	if t.Subject == "" {
		return "", errors.New("the token has no subject")
	}
	return t.Subject, nil
}

// errNoJWT is of what cannot be read as a token.
var errNoJWT = errors.New("it is no JWT, or not signed in a way that is taken here")

// badTokens are why a token is not good, by how the library's errors begin. Those quote the
// token, which is nothing for a log.
var badTokens = []struct{ begins, why string }{
	{"oidc: id token issued by a different provider", "it is of another issuer than auth.jwt.issuer"},
	{"oidc: expected audience", "it is for another audience than auth.jwt.audience"},
	{"oidc: current time", "it is not good yet (nbf)"},
	{"failed to verify signature", "its signature is by none of the issuer's keys"},
	{"oidc: malformed jwt", errNoJWT.Error()},
	{"oidc: id token not signed", errNoJWT.Error()},
}

// whyBad words an error of the library's, without anything of the token but when it expired.
func whyBad(err error) error {
	if expired, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
		return fmt.Errorf("it has expired, at %s", expired.Expiry.UTC().Format(time.RFC3339))
	}
	for _, bad := range badTokens {
		if strings.HasPrefix(err.Error(), bad.begins) {
			return errors.New(bad.why)
		}
	}
	return errors.New("it cannot be verified")
}

// scopesOf are the scopes of a token: a text with spaces (RFC 8693 §4.2), or a list, as
// some issuers have it.
func scopesOf(claims map[string]any) (scopes []string) {
	for _, name := range []string{"scope", "scp"} {
		switch v := claims[name].(type) {
		case string:
			scopes = append(scopes, strings.Fields(v)...)
		case []any:
			for _, s := range v {
				if s, ok := s.(string); ok {
					scopes = append(scopes, s)
				}
			}
		}
	}
	return scopes
}
