package workload

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/jwks"
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

	mu      sync.Mutex
	issuers map[string]*jwks.Set // by issuer and version
}

// issuersMax bounds the issuers whose keys are kept.
const issuersMax = 1000

// New returns a Verifier that knows no keys yet.
func New(o Options) *Verifier {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Verifier{client: o.Client, clock: o.Clock, issuers: map[string]*jwks.Set{}}
}

// keys returns the keys of an issuer that have an id.
func (v *Verifier) keys(ctx context.Context, issuer *api.FederationIssuer, kid string) (found []jose.JSONWebKey, err error) {
	if issuer.JWKS.Type == api.JWKSInline {
		all, err := parseKeys(issuer.JWKS.Keys)
		if err != nil {
			return nil, &Denied{NoKeys, "the issuer's inline keys cannot be read", err}
		}
		for _, k := range all {
			if k.KeyID == kid {
				found = append(found, k)
			}
		}
		if len(found) == 0 {
			return nil, unknown(kid)
		}
		return found, nil
	}
	set, err := v.published(issuer)
	if err != nil {
		return nil, &Denied{NoKeys, "the issuer's keys cannot be asked for", err}
	}
	found, err = set.Named(ctx, kid)
	switch {
	case errors.Is(err, jwks.ErrUnknown):
		return nil, unknown(kid)
	case errors.Is(err, jwks.ErrUnavailable):
		return nil, &Denied{Reason: NoKeys, Detail: err.Error()}
	}
	return found, err
}

func unknown(kid string) *Denied {
	return deny(UnknownKey, "the issuer has no key %q; one that is new is known after a minute at most", shorten(kid))
}

// published are the keys of an issuer that are not inline.
func (v *Verifier) published(issuer *api.FederationIssuer) (*jwks.Set, error) {
	if v.client == nil {
		return nil, errors.New("this server asks no issuers")
	}
	// A change of the issuer makes it another one here.
	name := string(issuer.ID) + issuer.UpdatedAt.Format(time.RFC3339Nano)
	v.mu.Lock()
	defer v.mu.Unlock()
	if set := v.issuers[name]; set != nil {
		return set, nil
	}
	roots, err := pool(issuer.JWKS.CACertPEM)
	if err != nil {
		return nil, err
	}
	from := jwks.Issuer{URL: issuer.IssuerURL, Clock: v.clock, Client: func() *http.Client { return v.client(roots) }}
	if issuer.JWKS.Type != api.JWKSDiscovery {
		from.Keys = issuer.JWKS.URL
	} else if b := issuer.JWKS.DiscoveryBase; b != nil {
		from.Metadata = *b
	}
	if len(v.issuers) >= issuersMax {
		clear(v.issuers)
	}
	set := jwks.New(from)
	v.issuers[name] = set
	return set, nil
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
		k, err := jwks.Parse(text)
		if err == nil && k.KeyID == "" {
			err = errors.New("has no kid")
		}
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}
