package workload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/jwks"
	"github.com/bailey-platform/bailey/workload/issuertest"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// A rig is a verifier with a clock of its own, and an issuer.
type rig struct {
	*Verifier
	far    *issuertest.Issuer
	issuer *api.FederationIssuer

	mu  sync.Mutex
	now time.Time
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{far: issuertest.Start(t, false), now: start}
	r.Verifier = New(Options{Clock: r.clock, Client: func(roots *x509.CertPool) *http.Client {
		return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	}})
	r.issuer = &api.FederationIssuer{ID: "fdis_1", IssuerURL: r.far.URL, JWKS: api.JWKS{Type: api.JWKSDiscovery}, MaxLifetime: 3600}
	return r
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

// wantDenied wants a reason, or with "" none.
func wantDenied(t *testing.T, name string, err error, want Reason) {
	t.Helper()
	var d *Denied
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want != "" && (!errors.As(err, &d) || d.Reason != want || d.Detail == ""):
		t.Errorf("%s: %v, want %s", name, err, want)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	claims := r.far.Claims(start, "system:serviceaccount:ns:setup")
	with := func(name string, value any) map[string]any { return map[string]any{name: value} }
	at := func(d time.Duration) int64 { return start.Add(d).Unix() }

	hmac := func() string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: r.far.Keys()[:64], KeyID: "key-1"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}()
	good := r.far.Sign(claims)
	part := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"key-1"}`)) + "." + part[1] + "."
	other := strings.Split(r.far.Sign(claims, with("sub", "root")), ".")

	for _, tt := range []struct {
		name, assertion string
		want            Reason
	}{
		{"good", good, ""},
		{"two audiences", r.far.Sign(claims, with("aud", []string{"x", "bailey"})), ""},
		{"clocks half a minute apart", r.far.Sign(claims, with("iat", at(30*time.Second))), ""},
		{"just expired", r.far.Sign(claims, with("exp", at(-29*time.Second)), with("iat", at(-time.Minute))), ""},
		{"an hour, to the second", r.far.Sign(claims, with("exp", at(time.Hour))), ""},

		{"empty", "", Malformed},
		{"not a JWT", "eyJhbGciOiJSUzI1NiJ9", Malformed},
		{"encrypted", part[0] + "." + part[1] + ".x.y.z", Malformed},
		{"two signatures", `{"payload":"` + part[1] + `","signatures":[{"protected":"` + part[0] + `","signature":"` + part[2] + `"}]}`, Malformed},
		{"too long", r.far.Sign(claims, with("x", strings.Repeat("x", api.AssertionMax))), Malformed},
		{"no algorithm", none, BadAlgorithm},
		{"a shared secret", hmac, BadAlgorithm},
		{"claims that are no object", part[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`[1]`)) + "." + part[2], Malformed},
		{"another issuer", r.far.Sign(claims, with("iss", r.far.URL+"/")), WrongIssuer},
		{"no issuer", r.far.Sign(claims, with("iss", nil)), WrongIssuer},
		{"no key id", r.far.SignAs("", claims), NoKeyID},
		{"an unknown key", r.far.SignAs("key-9", claims), UnknownKey},
		{"claims of another token", part[0] + "." + other[1] + "." + part[2], BadSignature},
		{"no signature", part[0] + "." + part[1] + ".", BadSignature},
		{"no subject", r.far.Sign(claims, with("sub", nil)), MissingClaim},
		{"no iat", r.far.Sign(claims, with("iat", nil)), MissingClaim},
		{"no exp", r.far.Sign(claims, with("exp", nil)), MissingClaim},
		{"expired", r.far.Sign(claims, with("exp", at(-30*time.Second)), with("iat", at(-time.Minute))), Expired},
		{"expired long ago", r.far.Sign(claims, with("exp", 1)), Expired},
		{"issued in the future", r.far.Sign(claims, with("iat", at(31*time.Second))), NotYetValid},
		{"not before", r.far.Sign(claims, with("nbf", at(31*time.Second))), NotYetValid},
		{"for too long", r.far.Sign(claims, with("exp", at(time.Hour+time.Second))), TooLong},
		{"for ever", r.far.Sign(claims, with("exp", int64(1)<<62), with("iat", -(int64(1)<<62))), Malformed},
		{"since the beginning", r.far.Sign(claims, with("iat", 0)), TooLong},
		{"backwards", r.far.Sign(claims, with("iat", at(time.Second)), with("exp", at(0))), TooLong},
	} {
		id, err := r.Verify(t.Context(), r.issuer, tt.assertion)
		wantDenied(t, tt.name, err, tt.want)
		if id == nil || tt.want == "" && (!id.Verified || id.Subject != claims["sub"]) {
			t.Errorf("%s: identity %+v", tt.name, id)
		}
		switch tt.want {
		case "", MissingClaim, Expired, NotYetValid, TooLong:
		default:
			if id.Verified {
				t.Errorf("%s: is said to be verified", tt.name)
			}
		}
	}
}

func TestEveryAlgorithm(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384} {
		r.far.AddKey(string(alg), alg)
		r.pass(2 * jwks.Again) // for a new key
		_, err := r.Verify(t.Context(), r.issuer, r.far.Sign(r.far.Claims(r.clock(), "s")))
		wantDenied(t, string(alg), err, "")
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	id := &Identity{Subject: "repo:acme/site:ref:refs/heads/main", Audience: []string{"x", "bailey"}, claims: map[string]any{
		"repository_owner": "acme", "count": 3.0, "empty": "",
	}}
	for _, tt := range []struct {
		name  string
		match api.FederationMatch
		want  Reason
	}{
		{"exact subject", api.FederationMatch{SubjectPrefix: text("repo:acme/site:ref:refs/heads/main")}, ""},
		{"prefix", api.FederationMatch{SubjectPrefix: text("repo:acme/*")}, ""},
		{"audience and claims", api.FederationMatch{Audience: text("x"), Claims: map[string]string{"repository_owner": "acme", "empty": ""}}, ""},

		{"a beginning is not enough", api.FederationMatch{SubjectPrefix: text("repo:acme/")}, WrongSubject},
		{"* inside stands for itself", api.FederationMatch{SubjectPrefix: text("repo:*/site:ref:refs/heads/main")}, WrongSubject},
		{"another prefix", api.FederationMatch{SubjectPrefix: text("repo:acme-evil/*")}, WrongSubject},
		{"another audience", api.FederationMatch{Audience: text("https://x"), SubjectPrefix: text("repo:*")}, WrongAudience},
		{"part of an audience", api.FederationMatch{Audience: text("bail"), SubjectPrefix: text("repo:*")}, WrongAudience},
		{"another claim", api.FederationMatch{Claims: map[string]string{"repository_owner": "ACME"}}, WrongClaim},
		{"no such claim", api.FederationMatch{Claims: map[string]string{"owner": ""}}, WrongClaim},
		{"not a string", api.FederationMatch{Claims: map[string]string{"count": "3"}}, WrongClaim},
		{"a condition", api.FederationMatch{SubjectPrefix: text("repo:*"), Condition: text("true")}, UnknownMatcher},
	} {
		wantDenied(t, tt.name, id.Matches(tt.match), tt.want)
	}
	// Without one of its own, a rule wants ours.
	wantDenied(t, "no audience", (&Identity{Subject: "s"}).Matches(api.FederationMatch{SubjectPrefix: text("s")}), WrongAudience)
}

func TestKeysAreKeptForAWhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issuer.JWKS = api.JWKS{Type: api.JWKSURL, URL: r.far.URL + "/keys"}
	verify := func(want Reason) {
		t.Helper()
		_, err := r.Verify(t.Context(), r.issuer, r.far.Sign(r.far.Claims(r.clock(), "s")))
		wantDenied(t, "", err, want)
	}
	asked := func(want int) {
		t.Helper()
		if n := r.far.Asked(); n != want {
			t.Errorf("asked for its keys %d times, want %d", n, want)
		}
	}
	verify("")
	verify("")
	asked(1)

	// Names of keys that are made up cause one request a minute.
	for range 20 {
		_, err := r.Verify(t.Context(), r.issuer, r.far.SignAs("made-up", r.far.Claims(r.clock(), "s")))
		wantDenied(t, "made up", err, UnknownKey)
	}
	asked(1)
	// A new key is known after a minute at most.
	r.far.AddKey("key-2", jose.ES256)
	verify(UnknownKey)
	r.pass(jwks.Again)
	verify("")
	asked(2)

	// While the issuer does not answer, the keys that are known do.
	r.far.Break(true)
	r.pass(jwks.Fresh)
	verify("")
	asked(3)
	verify("")
	asked(3) // it is left alone for a little
	r.pass(jwks.Stale)
	verify(NoKeys)
	r.far.Break(false)
	r.pass(jwks.Failing)
	verify("")

	// A changed issuer is asked again at once.
	n := r.far.Asked()
	r.issuer.UpdatedAt = r.clock()
	verify("")
	asked(n + 1)
}

func TestManyWaitForOneRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	r.far.Answer(func() []byte {
		close(arrived)
		<-release
		return r.far.Keys()
	})
	assertion := r.far.Sign(r.far.Claims(start, "s"))
	// The first leaves before there is an answer; the others have it all the same.
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := r.Verify(ctx, r.issuer, assertion)
		gone <- err
	}()
	<-arrived
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			_, err := r.Verify(t.Context(), r.issuer, assertion)
			wantDenied(t, "one of many", err, "")
		})
	}
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that left: %v", err)
	}
	close(release)
	all.Wait()
	if n := r.far.Asked(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestWhereKeysAre(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	safe := issuertest.Start(t, true)
	var keys struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(r.far.Keys(), &keys); err != nil {
		t.Fatal(err)
	}
	moved := issuertest.Start(t, false)
	moved.Document("issuer", "https://cluster.local")
	for name, tt := range map[string]struct {
		far    *issuertest.Issuer
		issuer string
		jwks   api.JWKS
		want   Reason
	}{
		"discovery":                    {r.far, r.far.URL, api.JWKS{Type: api.JWKSDiscovery}, ""},
		"an explicit URL":              {r.far, "https://cluster.local", api.JWKS{Type: api.JWKSURL, URL: r.far.URL + "/keys"}, ""},
		"inline":                       {r.far, "https://cluster.local", api.JWKS{Type: api.JWKSInline, Keys: keys.Keys}, ""},
		"a CA of its own":              {safe, safe.URL, api.JWKS{Type: api.JWKSDiscovery, CACertPEM: &safe.CA}, ""},
		"a document elsewhere":         {moved, "https://cluster.local", api.JWKS{Type: api.JWKSDiscovery, DiscoveryBase: &moved.URL}, ""},
		"an unknown CA":                {safe, safe.URL, api.JWKS{Type: api.JWKSDiscovery}, NoKeys},
		"a document of another issuer": {moved, moved.URL, api.JWKS{Type: api.JWKSDiscovery}, NoKeys},
		"nobody there":                 {r.far, "http://127.0.0.1:1", api.JWKS{Type: api.JWKSDiscovery}, NoKeys},
		"no such path":                 {r.far, r.far.URL, api.JWKS{Type: api.JWKSURL, URL: r.far.URL + "/nothing"}, NoKeys},
		"a document with keys nowhere": {r.far, r.far.URL + "/nothing", api.JWKS{Type: api.JWKSDiscovery}, NoKeys},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			issuer := &api.FederationIssuer{ID: api.IssuerID(name), IssuerURL: tt.issuer, JWKS: tt.jwks, MaxLifetime: 3600}
			_, err := r.Verify(t.Context(), issuer, tt.far.Sign(tt.far.Claims(start, "s"), map[string]any{"iss": tt.issuer}))
			wantDenied(t, name, err, tt.want)
		})
	}
}

func TestAnswersThatAreNoKeys(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"no JSON":       "<html>",
		"no keys":       `{"keys":[]}`,
		"endless":       `{"keys":[` + strings.Repeat(" ", 1<<20) + `]}`,
		"too many":      `{"keys":[` + strings.Repeat(`{},`, 200) + `{}]}`,
		"secret keys":   `{"keys":[{"kty":"oct","kid":"key-1","k":"c2VjcmV0"}]}`,
		"short RSA key": `{"keys":[{"kty":"RSA","kid":"key-1","n":"` + base64.RawURLEncoding.EncodeToString(make128()) + `","e":"AQAB"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.far.Answer(func() []byte { return []byte(answer) })
			_, err := r.Verify(t.Context(), r.issuer, r.far.Sign(r.far.Claims(start, "s")))
			wantDenied(t, name, err, NoKeys)
		})
	}
}

// make128 is a modulus of 1024 bits.
func make128() []byte {
	n := make([]byte, 128)
	for i := range n {
		n[i] = 0xff
	}
	return n
}

func TestKeysNextToUnknownOnesAreUsed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.far.Answer(func() []byte {
		return []byte(strings.Replace(string(r.far.Keys()), `{"keys":[`, `{"keys":[{"kty":"quantum","kid":"q"},{"kty":"EC","kid":"enc","use":"enc"},`, 1))
	})
	_, err := r.Verify(t.Context(), r.issuer, r.far.Sign(r.far.Claims(start, "s")))
	wantDenied(t, "", err, "")
}

func TestCheckKeys(t *testing.T) {
	t.Parallel()
	far := issuertest.Start(t, true)
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(far.Keys(), &set); err != nil {
		t.Fatal(err)
	}
	raw := func(s string) []json.RawMessage { return []json.RawMessage{json.RawMessage(s)} }
	bad := "-----BEGIN CERTIFICATE-----\n"
	for name, tt := range map[string]struct {
		jwks api.JWKS
		want string
	}{
		"good keys":  {api.JWKS{Type: api.JWKSInline, Keys: set.Keys}, ""},
		"good CA":    {api.JWKS{Type: api.JWKSDiscovery, CACertPEM: &far.CA}, ""},
		"bad CA":     {api.JWKS{Type: api.JWKSURL, CACertPEM: &bad}, "ca_cert_pem: holds no certificate"},
		"no JWK":     {api.JWKS{Type: api.JWKSInline, Keys: raw(`{}`)}, "keys[0]: is not a JWK"},
		"a secret":   {api.JWKS{Type: api.JWKSInline, Keys: raw(`{"kty":"oct","kid":"a","k":"c2VjcmV0"}`)}, "keys[0]: is not a public key"},
		"no kid":     {api.JWKS{Type: api.JWKSInline, Keys: raw(strings.Replace(string(set.Keys[0]), `"kid":"key-1",`, "", 1))}, "keys[0]: has no kid"},
		"encryption": {api.JWKS{Type: api.JWKSInline, Keys: raw(strings.Replace(string(set.Keys[0]), `"sig"`, `"enc"`, 1))}, "keys[0]: is not for signatures"},
	} {
		err := CheckKeys(tt.jwks)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever is sent as an assertion, it is not believed unless the issuer has signed it.
func FuzzVerify(f *testing.F) {
	r := newRig(f)
	good := r.far.Sign(r.far.Claims(start, "s"))
	f.Add(good)
	f.Add(r.far.SignAs("", r.far.Claims(start, "s")))
	f.Add("a.b.c")
	body := strings.Split(good, ".")[1]
	f.Fuzz(func(t *testing.T, assertion string) {
		id, err := r.Verify(context.Background(), r.issuer, assertion)
		if id == nil {
			t.Fatal("no identity")
		}
		if err == nil && !strings.Contains(assertion, body) {
			t.Fatalf("believed %q", assertion)
		}
	})
}
