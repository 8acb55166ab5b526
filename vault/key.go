package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A key is a key-encryption key, of which there may be several versions. Its methods
// are safe for concurrent use. Errors hold nothing secret, and wrap [ErrUnavailable]
// if trying again later may help.
type key interface {
	// wrap encrypts a data key with the current version, and returns that one's id.
	wrap(ctx context.Context, owner Owner, data []byte) (wrapped []byte, id string, err error)

	// unwrap is the reverse, for any version. It fails for another owner.
	unwrap(ctx context.Context, owner Owner, id string, wrapped []byte) (data []byte, err error)

	// has reports whether id may be one of this key's.
	has(id string) bool

	// rotate makes a new version, which is current from then on.
	rotate(ctx context.Context) (id string, err error)
}

var (
	// ErrUnavailable is in the chain of errors that may pass by themselves: the key is
	// somewhere else, and there was no answer.
	ErrUnavailable = errors.New("the key is not available for now")

	// ErrNoKey is in the chain of the error for a sealed value that names a key which
	// is not here.
	ErrNoKey = errors.New("no such key is here")
)

// The schemes of keys' URLs.
const (
	schemeFile    = "file"
	schemeTransit = "transit" // transit+https, transit+http
	schemeAWS     = "awskms"
)

// CheckURL refuses a URL that names no key, without looking for it.
func CheckURL(keyURL string) error {
	_, err := newKey(keyURL, Options{})
	return err
}

// newKey makes the key that a URL names. It looks for nothing yet.
func newKey(keyURL string, o Options) (key, error) {
	if o.HTTP == nil {
		o.HTTP = &http.Client{
			Timeout:       10 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if o.Env == nil {
		o.Env = func(string) (string, bool) { return "", false }
	}
	scheme, rest, _ := strings.Cut(keyURL, ":")
	switch scheme {
	case schemeFile:
		if rest == "" || strings.ContainsAny(rest, "?#") {
			return nil, errors.New("a key file is named as file:PATH")
		}
		return newFileKey(rest), nil
	case schemeTransit + "+https", schemeTransit + "+http":
		u, err := parseURL(strings.TrimPrefix(keyURL, schemeTransit+"+"))
		if err != nil {
			return nil, err
		}
		return newTransitKey(u, o)
	case schemeAWS:
		return newAWSKey(rest, o)
	}
	return nil, errors.New("a key is file:PATH, transit+https://HOST/MOUNT/KEY or awskms:KEY?region=REGION")
}

// parseURL reads a URL, of which errors say nothing: somebody may have put a token in.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return nil, errors.New("not a valid URL")
	case u.User != nil:
		return nil, errors.New("a URL with a user or password in it is refused: tokens are read from a file or the environment")
	}
	return u, nil
}

// options reads the query of a key's URL, which has no other parameters than names.
func options(query string, names ...string) (map[string]string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, errors.New("not a valid URL")
	}
	out := make(map[string]string, len(names))
	for _, name := range names {
		out[name] = values.Get(name)
		values.Del(name)
	}
	for name := range values {
		return nil, fmt.Errorf("%q is no parameter of this kind of key; there are %s", name, strings.Join(names, ", "))
	}
	return out, nil
}
