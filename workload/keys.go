package workload

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"

	"github.com/bailey-platform/bailey/api"
)

// Options of [New].
type Options struct {
	// Client makes an HTTP client that trusts the CAs of a pool, or with nil the system's.
	// It says where connections may go. Nil: no issuer can be asked, and only those whose
	// keys are inline are believed.
	Client func(roots *x509.CertPool) *http.Client

	// Clock is the time assertions are checked at; default time.Now.
	Clock func() time.Time
}

// A Verifier checks assertions. It is safe for concurrent use; it keeps the keys of
// issuers for a few minutes.
type Verifier struct {
	client func(*x509.CertPool) *http.Client
	clock  func() time.Time

	flights singleflight.Group // by issuer and version

	mu     sync.Mutex
	cached map[string]*keySet // by issuer and version
}

// New returns a Verifier that knows no keys yet.
func New(o Options) *Verifier {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Verifier{client: o.Client, clock: o.Clock, cached: map[string]*keySet{}}
}

// A keySet is what is known of an issuer's keys.
type keySet struct {
	keys  []jose.JSONWebKey
	read  time.Time // when the keys were read last; zero: never
	tried time.Time // when that was tried last
	err   error     // of that try
}

const (
	keysFresh = 5 * time.Minute // then they are read again
	keysStale = time.Hour       // then they are not used any more, if that fails

	// keysAgain is how often keys are read again because an assertion names one that is
	// not there, or because reading them failed. Whoever makes up names of keys causes no
	// more requests than that, and a key that appears suddenly may not be known for so long.
	keysAgain   = time.Minute
	keysFailing = 10 * time.Second

	keysMax      = 200 // of an issuer
	answerMax    = 1 << 20
	fetchTimeout = 10 * time.Second
	cachedMax    = 1000 // issuers
)

// keys returns the keys of an issuer that have an id.
func (v *Verifier) keys(ctx context.Context, issuer *api.FederationIssuer, kid string) ([]jose.JSONWebKey, error) {
	if issuer.JWKS.Type == api.JWKSInline {
		keys, err := parseKeys(issuer.JWKS.Keys)
		if err != nil {
			return nil, &Denied{NoKeys, "the issuer's inline keys cannot be read", err}
		}
		return withID(keys, kid)
	}
	// A change of the issuer makes it another one here.
	name := string(issuer.ID) + issuer.UpdatedAt.Format(time.RFC3339Nano)
	now := v.clock()
	set := v.known(name)
	fresh := now.Sub(set.read) < keysFresh
	if found, err := withID(set.keys, kid); err == nil && fresh {
		return found, nil
	}
	wait := keysAgain
	if set.err != nil {
		wait = keysFailing
	}
	if now.Sub(set.tried) >= wait {
		var err error
		if set, err = v.refresh(ctx, name, issuer); err != nil {
			return nil, err
		}
	}
	if set.read.IsZero() || now.Sub(set.read) > keysStale {
		return nil, &Denied{NoKeys, "the issuer's keys cannot be read", set.err}
	}
	return withID(set.keys, kid)
}

func (v *Verifier) known(name string) keySet {
	v.mu.Lock()
	defer v.mu.Unlock()
	if set := v.cached[name]; set != nil {
		return *set
	}
	return keySet{}
}

// refresh reads the keys of an issuer, once for all who wait, and returns what is known
// then. Its error is that of the context.
func (v *Verifier) refresh(ctx context.Context, name string, issuer *api.FederationIssuer) (keySet, error) {
	done := v.flights.DoChan(name, func() (any, error) {
		// Whoever asked first may leave; the others still want the keys.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		keys, err := v.fetch(ctx, issuer)

		v.mu.Lock()
		defer v.mu.Unlock()
		set := v.cached[name]
		if set == nil {
			if len(v.cached) >= cachedMax {
				clear(v.cached)
			}
			set = new(keySet)
			v.cached[name] = set
		}
		set.tried, set.err = v.clock(), err
		if err == nil {
			set.keys, set.read = keys, set.tried
		}
		return *set, nil
	})
	select {
	case r := <-done:
		return r.Val.(keySet), r.Err
	case <-ctx.Done():
		return keySet{}, context.Cause(ctx)
	}
}

// fetch reads the keys of an issuer from where they are.
func (v *Verifier) fetch(ctx context.Context, issuer *api.FederationIssuer) ([]jose.JSONWebKey, error) {
	if v.client == nil {
		return nil, errors.New("this server asks no issuers")
	}
	roots, err := pool(issuer.JWKS.CACertPEM)
	if err != nil {
		return nil, err
	}
	whole := v.client(roots)
	defer whole.CloseIdleConnections()
	client := *whole
	client.Transport = bounded{client.Transport}
	client.Timeout = fetchTimeout

	address := issuer.JWKS.URL
	if issuer.JWKS.Type == api.JWKSDiscovery {
		if address, err = discover(ctx, &client, issuer); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", address, res.Status)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(res.Body).Decode(&set); err != nil {
		return nil, fmt.Errorf("GET %s: not a JSON set of keys", address)
	}
	if len(set.Keys) > keysMax {
		return nil, fmt.Errorf("GET %s: more than %d keys", address, keysMax)
	}
	var keys []jose.JSONWebKey
	for _, text := range set.Keys {
		// A set may have keys of kinds that are nothing to us.
		if k, err := parseKey(text); err == nil {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("GET %s: none of the %d keys can be used", address, len(set.Keys))
	}
	return keys, nil
}

// discover finds where the keys of an issuer are.
func discover(ctx context.Context, client *http.Client, issuer *api.FederationIssuer) (string, error) {
	ctx = oidc.ClientContext(ctx, client)
	base := issuer.IssuerURL
	if b := issuer.JWKS.DiscoveryBase; b != nil {
		base = *b
		ctx = oidc.InsecureIssuerURLContext(ctx, issuer.IssuerURL) // the document must name the issuer all the same
	}
	provider, err := oidc.NewProvider(ctx, base)
	if err != nil {
		return "", errors.New(shorten(err.Error()))
	}
	var doc struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := provider.Claims(&doc); err != nil || doc.JWKS == "" {
		return "", errors.New("the discovery document names no jwks_uri")
	}
	from, err1 := url.Parse(base)
	to, err2 := url.Parse(doc.JWKS)
	if err1 != nil || err2 != nil || to.Scheme != "https" && to.Scheme != from.Scheme {
		return "", fmt.Errorf("the discovery document names a jwks_uri that is not https: %s", shorten(doc.JWKS))
	}
	return doc.JWKS, nil
}

// bounded bounds what is read of an answer, whoever reads it.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	next := b.RoundTripper
	if next == nil {
		next = http.DefaultTransport
	}
	res, err := next.RoundTrip(r)
	if err == nil {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, answerMax), res.Body}
	}
	return res, err
}

// CheckKeys refuses a source of keys that can never give any: inline keys or CA
// certificates that cannot be read. Its text is for whoever sent it.
func CheckKeys(j api.JWKS) error {
	if _, err := pool(j.CACertPEM); err != nil {
		return fmt.Errorf("ca_cert_pem: %w", err)
	}
	if j.Type != api.JWKSInline {
		return nil
	}
	_, err := parseKeys(j.Keys)
	return err
}

func pool(text *string) (*x509.CertPool, error) {
	if text == nil {
		return nil, nil
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(*text)) {
		return nil, errors.New("holds no certificate in PEM")
	}
	return p, nil
}

func parseKeys(texts []json.RawMessage) (keys []jose.JSONWebKey, err error) {
	for i, text := range texts {
		k, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

const rsaBitsMin = 2048

// parseKey reads a public key that assertions can be signed with.
func parseKey(text json.RawMessage) (k jose.JSONWebKey, err error) {
	switch err := k.UnmarshalJSON(text); {
	case err != nil:
		return k, errors.New("is not a JWK that can be read")
	case k.KeyID == "":
		return k, errors.New("has no kid")
	case k.Use != "" && k.Use != "sig":
		return k, errors.New("is not for signatures")
	case !k.Valid() || !k.IsPublic():
		return k, errors.New("is not a public key; send that part alone")
	}
	if pub, ok := k.Key.(*rsa.PublicKey); ok && pub.N.BitLen() < rsaBitsMin {
		return k, fmt.Errorf("is an RSA key of less than %d bits", rsaBitsMin)
	}
	return k, nil
}

// withID picks the keys with an id: there may be one of each algorithm.
func withID(keys []jose.JSONWebKey, kid string) (found []jose.JSONWebKey, err error) {
	for _, k := range keys {
		if k.KeyID == kid {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil, deny(UnknownKey, "the issuer has no key %q; one that is new is known after a minute at most", shorten(kid))
	}
	return found, nil
}
