package gateway

import (
	"context"
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

// A remoteKeys is the keys of an issuer, as it publishes them. It is a key set of go-oidc that
// asks the issuer seldom, whatever the tokens are that come: go-oidc's own asks for each
// token that names a key it does not know, which anybody can make up. It is safe for
// concurrent use.
type remoteKeys struct {
	issuer  string
	address string // of the keys; "" for where the issuer says that they are
	client  *http.Client
	flights singleflight.Group

	mu    sync.Mutex
	keys  []jose.JSONWebKey
	read  time.Time // when keys were read last; zero for never
	tried time.Time
	err   error // of the last try
}

const (
	keysFresh   = 5 * time.Minute  // then they are read again
	keysStale   = time.Hour        // then they are not used any more, if that fails
	keysAgain   = time.Minute      // before they are read again for a key that is not there
	keysFailing = 10 * time.Second // or because reading them failed
	keysMax     = 200
	keysSizeMax = 1 << 20 // bytes of an answer
)

var errUnknownKey = errors.New("the token is signed with none of the issuer's keys")

// VerifySignature implements [oidc.KeySet]. Its error has the text of errNoKeys where the
// issuer is to blame: what is around it drops the error.
func (k *remoteKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSignedCompact(token, joseAlgorithms)
	if err != nil || len(signed.Signatures) != 1 {
		return nil, errors.New("the token is not signed as it should be")
	}
	keys, err := k.named(ctx, signed.Signatures[0].Header.KeyID)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if payload, err := signed.Verify(&keys[i]); err == nil {
			return payload, nil
		}
	}
	return nil, errUnknownKey
}

// named returns the keys of a name, or all where a token names none.
func (k *remoteKeys) named(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	found, again, err := k.known(id)
	if again {
		if err := k.refresh(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoKeys, err)
		}
		found, _, err = k.known(id)
	}
	return found, err
}

// known returns the keys of a name that are there, and whether it is time to ask for them.
func (k *remoteKeys) known(id string) (found []jose.JSONWebKey, again bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.keys {
		if id == "" || key.KeyID == id {
			found = append(found, key)
		}
	}
	wait := keysAgain
	if k.err != nil {
		wait = keysFailing
	}
	again = (len(found) == 0 || time.Since(k.read) >= keysFresh) && time.Since(k.tried) >= wait
	switch {
	case k.read.IsZero() || time.Since(k.read) >= keysStale:
		return nil, again, fmt.Errorf("%w: %w", errNoKeys, k.err)
	case len(found) == 0:
		return nil, again, errUnknownKey
	}
	return found, again, nil
}

// refresh asks for the keys, once for all who wait. Its error is that of ctx.
func (k *remoteKeys) refresh(ctx context.Context) error {
	done := k.flights.DoChan("", func() (any, error) {
		// Whoever asked first may leave; the others still want them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jwksTime)
		defer cancel()
		k.mu.Lock()
		just := time.Since(k.tried) < keysFailing
		k.mu.Unlock()
		if just {
			return nil, nil // somebody was first
		}
		keys, err := k.fetch(ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.tried, k.err = time.Now(), err
		if err == nil {
			k.keys, k.read = keys, k.tried
		}
		return nil, nil
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *remoteKeys) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	address := k.address
	if address == "" {
		var err error
		if address, err = k.discover(ctx); err != nil {
			return nil, err
		}
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := k.get(ctx, address, &set); err != nil {
		return nil, err
	}
	if len(set.Keys) > keysMax {
		return nil, fmt.Errorf("%s holds more than %d keys", address, keysMax)
	}
	var keys []jose.JSONWebKey
	for _, text := range set.Keys {
		// There may be kinds that are nothing to us.
		var key jose.JSONWebKey
		if json.Unmarshal(text, &key) == nil && key.Valid() && key.IsPublic() && key.Use != "enc" {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key that can be used", address)
	}
	return keys, nil
}

// discover finds out where the issuer's keys are (OpenID Connect Discovery 1.0 §4).
func (k *remoteKeys) discover(ctx context.Context) (address string, err error) {
	var names struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := k.get(ctx, strings.TrimSuffix(k.issuer, "/")+"/.well-known/openid-configuration", &names); err != nil {
		return "", err
	}
	if names.Issuer != k.issuer {
		return "", fmt.Errorf("%s says that it is another issuer, %.100q", k.issuer, names.Issuer)
	}
	if u, err := url.Parse(names.Keys); err != nil || u.Scheme != "https" && !isLoopback(u.Hostname()) {
		return "", fmt.Errorf("%s names no address at https for its keys", k.issuer)
	}
	return names.Keys, nil
}

// get reads the JSON object at an address, of which it reads no more than keysSizeMax.
func (k *remoteKeys) get(ctx context.Context, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	res, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, keysSizeMax)).Decode(into); err != nil {
		return fmt.Errorf("%s holds no JSON object, or one that is too large", address)
	}
	return nil
}
