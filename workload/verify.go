package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/bailey-platform/bailey/api"
)

// algorithms are what an assertion may be signed with. All are of public keys: with a
// shared secret, whoever can check an assertion could write one.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512,
}

// skew is how far an issuer's clock may be from ours.
const skew = 30 * time.Second

// A Reason is why an assertion is not believed, as a word that stays the same.
type Reason string

const (
	Malformed      Reason = "assertion_malformed"
	BadAlgorithm   Reason = "algorithm_not_allowed"
	NoKeyID        Reason = "kid_missing"
	WrongIssuer    Reason = "issuer_mismatch"
	NoKeys         Reason = "keys_unavailable"
	UnknownKey     Reason = "key_not_found"
	BadSignature   Reason = "signature_invalid"
	MissingClaim   Reason = "claim_missing"
	Expired        Reason = "expired"
	NotYetValid    Reason = "not_yet_valid"
	TooLong        Reason = "lifetime_too_long"
	WrongAudience  Reason = "match_audience"
	WrongSubject   Reason = "match_subject_prefix"
	WrongClaim     Reason = "match_claims"
	UnknownMatcher Reason = "match_condition"
)

// Denied is the error of an assertion that is not believed. Its text is for the owner of
// the rule; whoever sent the assertion is told nothing.
type Denied struct {
	Reason Reason
	Detail string
	Err    error // what is behind it; may be nil
}

func (d *Denied) Error() string {
	if d.Err != nil {
		return fmt.Sprintf("%s: %s: %s", d.Reason, d.Detail, d.Err)
	}
	return fmt.Sprintf("%s: %s", d.Reason, d.Detail)
}

func (d *Denied) Unwrap() error { return d.Err }

func deny(r Reason, format string, args ...any) *Denied {
	return &Denied{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// An Identity is what an assertion says.
type Identity struct {
	Verified  bool // false: anybody may have written the rest
	Issuer    string
	Subject   string
	Audience  []string
	JTI       string // "" if it has none
	IssuedAt  time.Time
	ExpiresAt time.Time

	claims map[string]any
}

// Verify checks that an issuer has signed an assertion and that it is valid now. The
// identity is there, unverified, with an error too, as far as the assertion could be
// read. The error is a [*Denied], or that of a context that ended.
func (v *Verifier) Verify(ctx context.Context, issuer *api.FederationIssuer, assertion string) (*Identity, error) {
	id := new(Identity)
	if len(assertion) > api.AssertionMax {
		return id, deny(Malformed, "longer than %d bytes", api.AssertionMax)
	}
	token, err := jwt.ParseSigned(assertion, algorithms)
	if err != nil {
		if bad, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return id, deny(BadAlgorithm, "%q is not one of RS256 to RS512, PS256 to PS512, ES256 to ES512", shorten(string(bad.Got)))
		}
		return id, deny(Malformed, "not a signed JWT in compact form")
	}
	var std jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&std, &id.claims); err != nil {
		return id, deny(Malformed, "its claims cannot be read")
	}
	id.read(std)
	// Before any key is asked for: nobody's tokens but the issuer's cause requests to it.
	if id.Issuer != issuer.IssuerURL {
		return id, deny(WrongIssuer, "iss is %q, and the issuer's URL %q; they have to be the same to the letter", shorten(id.Issuer), issuer.IssuerURL)
	}
	head := token.Headers[0] // ParseSigned takes no more than one
	if head.KeyID == "" {
		return id, deny(NoKeyID, "the header names no kid")
	}
	keys, err := v.keys(ctx, issuer, head.KeyID)
	if err != nil {
		return id, err
	}
	if !signedByOne(token, keys, head.Algorithm) {
		return id, deny(BadSignature, "the key %q has not signed it, or is not for %s", shorten(head.KeyID), head.Algorithm)
	}
	id.Verified = true
	return id, checkTimes(std, v.clock(), time.Duration(issuer.MaxLifetime)*time.Second)
}

func (id *Identity) read(std jwt.Claims) {
	id.Issuer, id.Subject, id.Audience, id.JTI = std.Issuer, std.Subject, std.Audience, std.ID
	if std.IssuedAt != nil {
		id.IssuedAt = std.IssuedAt.Time().UTC()
	}
	if std.Expiry != nil {
		id.ExpiresAt = std.Expiry.Time().UTC()
	}
}

// signedByOne reports whether one of the keys has signed a token.
func signedByOne(token *jwt.JSONWebToken, keys []jose.JSONWebKey, algorithm string) bool {
	for _, k := range keys {
		if k.Algorithm != "" && k.Algorithm != algorithm {
			continue
		}
		if token.Claims(k.Key) == nil {
			return true
		}
	}
	return false
}

// checkTimes checks what a verified assertion says of its time. As numbers and not as
// times, so that absurd ones do not wrap around.
func checkTimes(c jwt.Claims, now time.Time, longest time.Duration) error {
	switch {
	case c.Subject == "":
		return deny(MissingClaim, "it has no sub")
	case c.IssuedAt == nil:
		return deny(MissingClaim, "it has no iat")
	case c.Expiry == nil:
		return deny(MissingClaim, "it has no exp")
	}
	at, early, late := now.Unix(), now.Add(-skew).Unix(), now.Add(skew).Unix()
	iat, exp := int64(*c.IssuedAt), int64(*c.Expiry)
	switch life := exp - iat; {
	case exp <= early:
		return deny(Expired, "it expired %s ago", time.Duration(min(at-exp, 1<<32))*time.Second)
	case iat > late:
		return deny(NotYetValid, "it says it was issued in the future; are the clocks right?")
	case c.NotBefore != nil && int64(*c.NotBefore) > late:
		return deny(NotYetValid, "nbf is in the future")
	case life < 0 || life > int64(longest/time.Second):
		return deny(TooLong, "it is valid for longer than the %s that the issuer's tokens may be", longest)
	}
	return nil
}

// Matches checks a verified identity against what a rule says of whose it must be.
func (id *Identity) Matches(m api.FederationMatch) error {
	audience := api.AudienceDefault
	if m.Audience != nil {
		audience = *m.Audience
	}
	if !slices.Contains(id.Audience, audience) {
		return deny(WrongAudience, "aud is %q, and %q is wanted; they have to be the same to the letter, https:// included", shortenAll(id.Audience), audience)
	}
	if m.SubjectPrefix != nil {
		prefix, open := strings.CutSuffix(*m.SubjectPrefix, "*")
		if open && !strings.HasPrefix(id.Subject, prefix) || !open && id.Subject != *m.SubjectPrefix {
			return deny(WrongSubject, "sub is %q, and %q is wanted", shorten(id.Subject), *m.SubjectPrefix)
		}
	}
	for name, want := range m.Claims {
		switch got := id.claims[name].(type) {
		case string:
			if got != want {
				return deny(WrongClaim, "%s is %q, and %q is wanted", name, shorten(got), want)
			}
		case nil:
			return deny(WrongClaim, "there is no claim %s; %q is wanted", name, want)
		default:
			return deny(WrongClaim, "%s is not a string; only those can be matched", name)
		}
	}
	if m.Condition != nil {
		return deny(UnknownMatcher, "conditions are not offered by this server")
	}
	return nil
}

// shorten bounds what an assertion says of itself, for messages.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

func shortenAll(list []string) []string {
	const few = 5
	var out []string
	for _, s := range list[:min(len(list), few)] {
		out = append(out, shorten(s))
	}
	return out
}
