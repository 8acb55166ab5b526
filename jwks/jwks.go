// Package jwks has the keys that an issuer of tokens publishes (RFC 7517), found where its
// metadata say that they are (OpenID Connect Discovery 1.0 §4) or at an address that is
// known. It asks the issuer seldom, whatever the tokens are that come: anybody can make up
// one that names a key which is not there.
//
// It believes nobody: what a key has to have signed is for who asks for it.
//
// Start reading at [Set.Named].
package jwks

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"
)

// An Issuer says whose keys, and how to get to them.
type Issuer struct {
	URL      string // as its metadata have to name it
	Metadata string // what they are found below; "" for URL
	Keys     string // the address of the keys; "" for that in the metadata

	// Client is asked for at each reading. It says where connections may go.
	Client func() *http.Client

	Clock func() time.Time // nil for time.Now
}

// A Set is the keys of one issuer. It is safe for concurrent use.
type Set struct {
	issuer  Issuer
	flights singleflight.Group

	mu    sync.Mutex // guards what follows
	keys  []jose.JSONWebKey
	read  time.Time // when keys were read last; zero for never
	tried time.Time // when that was tried last
	err   error     // of that try
}

// New makes a set that has no keys yet.
func New(i Issuer) *Set {
	if i.Clock == nil {
		i.Clock = time.Now
	}
	return &Set{issuer: i}
}

const (
	// Fresh is for how long keys are used before they are read again, and Stale for how
	// long if that fails.
	Fresh = 5 * time.Minute
	Stale = time.Hour

	// Again is how often keys are read again because one is asked for that is not there, and
	// Failing because reading them failed.
	Again   = time.Minute
	Failing = 10 * time.Second

	// Patience bounds one reading.
	Patience = 10 * time.Second

	keysMax    = 200
	answerMax  = 1 << 20 // bytes
	rsaBitsMin = 2048
)

var (
	// ErrUnavailable is of keys that cannot be had now; it wraps why.
	ErrUnavailable = errors.New("the issuer's keys cannot be read")

	// ErrUnknown is of a key that the issuer does not have.
	ErrUnknown = errors.New("the issuer has no such key")
)

// Named returns the keys with an ID, of which there may be one for each algorithm; with
// "" all. It fails with [ErrUnavailable], [ErrUnknown] or the cause of a context's end.
func (s *Set) Named(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	found, again, err := s.known(id)
	if again {
		if err := s.refresh(ctx); err != nil {
			return nil, err
		}
		found, _, err = s.known(id)
	}
	return found, err
}

// known returns the keys with an ID that are there, and whether it is time to ask for them.
func (s *Set) known(id string) (found []jose.JSONWebKey, again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range s.keys {
		if id == "" || key.KeyID == id {
			found = append(found, key)
		}
	}
	now := s.issuer.Clock()
	again = (len(found) == 0 || now.Sub(s.read) >= Fresh) && s.mayTry(now)
	switch {
	case s.read.IsZero() || now.Sub(s.read) >= Stale:
		return nil, again, fmt.Errorf("%w: %w", ErrUnavailable, s.err)
	case len(found) == 0:
		return nil, again, ErrUnknown
	}
	return found, again, nil
}

// mayTry reports whether the issuer was left alone for long enough. The caller holds mu.
func (s *Set) mayTry(now time.Time) bool {
	wait := Again
	if s.err != nil {
		wait = Failing
	}
	return now.Sub(s.tried) >= wait
}

// refresh asks for the keys, once for all who wait. Its error is that of ctx.
func (s *Set) refresh(ctx context.Context) error {
	done := s.flights.DoChan("", func() (any, error) {
		s.mu.Lock()
		may := s.mayTry(s.issuer.Clock())
		s.mu.Unlock()
		if !may {
			return nil, nil // somebody was first
		}
		// Whoever asked first may leave; the others still want them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Patience)
		defer cancel()
		keys, err := s.fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tried, s.err = s.issuer.Clock(), err
		if err == nil {
			s.keys, s.read = keys, s.tried
		}
		return nil, nil
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Set) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	client := s.issuer.Client()
	defer client.CloseIdleConnections()
	address := s.issuer.Keys
	if address == "" {
		var err error
		if address, err = s.discover(ctx, client); err != nil {
			return nil, err
		}
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := get(ctx, client, address, &set); err != nil {
		return nil, err
	}
	if len(set.Keys) > keysMax {
		return nil, fmt.Errorf("%s holds more than %d keys", address, keysMax)
	}
	var keys []jose.JSONWebKey
	for _, text := range set.Keys {
		if key, err := Parse(text); err == nil { // there may be kinds that are nothing to us
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key that can be used", address)
	}
	return keys, nil
}

// discover finds out where the issuer's keys are.
func (s *Set) discover(ctx context.Context, client *http.Client) (address string, err error) {
	base := s.issuer.URL
	if s.issuer.Metadata != "" {
		base = s.issuer.Metadata
	}
	base = strings.TrimSuffix(base, "/") + "/.well-known/openid-configuration"
	var names struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := get(ctx, client, base, &names); err != nil {
		return "", err
	}
	if names.Issuer != s.issuer.URL {
		return "", fmt.Errorf("%s is of another issuer, %.100q", base, names.Issuer)
	}
	from, err1 := url.Parse(base)
	to, err2 := url.Parse(names.Keys)
	if err := errors.Join(err1, err2); err != nil || to.Host == "" || to.Scheme != "https" && to.Scheme != from.Scheme {
		return "", fmt.Errorf("%s names no address at https for the keys: %.100q", base, names.Keys)
	}
	return names.Keys, nil
}

// get reads the JSON object at an address, of which it reads no more than answerMax.
func get(ctx context.Context, client *http.Client, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", address, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, answerMax)).Decode(into); err != nil {
		return fmt.Errorf("GET %s: it holds no JSON object, or one that is too large", address)
	}
	return nil
}

// Parse reads a public key that tokens can be signed with. Its error is for whoever wrote
// the key.
func Parse(text json.RawMessage) (key jose.JSONWebKey, err error) {
	switch err := key.UnmarshalJSON(text); {
	case err != nil:
		return key, errors.New("is not a JWK that can be read")
	case key.Use != "" && key.Use != "sig":
		return key, errors.New("is not for signatures")
	case !key.Valid() || !key.IsPublic():
		return key, errors.New("is not a public key; send that part alone")
	}
	if public, ok := key.Key.(*rsa.PublicKey); ok && public.N.BitLen() < rsaBitsMin {
		return key, fmt.Errorf("is an RSA key of less than %d bits", rsaBitsMin)
	}
	return key, nil
}
