package jwks_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/bailey-platform/bailey/jwks"
)

// What an issuer says is not read for ever. When keys are read, and what is done about those
// that cannot be, is tested where they are used, see package workload.
func TestAnswersThatDoNotEnd(t *testing.T) {
	t.Parallel()
	for _, endless := range []string{"/.well-known/openid-configuration", "/keys"} {
		var issuer *httptest.Server
		sent := make(chan int64, 1)
		issuer = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != endless {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer.URL, issuer.URL+"/keys")
				return
			}
			n := int64(0)
			for some := bytes.Repeat([]byte(" "), 64<<10); n < 64<<20; n += int64(len(some)) {
				if _, err := w.Write(some); err != nil {
					break
				}
			}
			sent <- n
		}))
		t.Cleanup(issuer.Close)
		keys := jwks.New(jwks.Issuer{URL: issuer.URL, Client: issuer.Client})
		if _, err := keys.Named(t.Context(), ""); !errors.Is(err, jwks.ErrUnavailable) {
			t.Errorf("%s: there are keys, or %v", endless, err)
		}
		if n := <-sent; n >= 64<<20 {
			t.Errorf("%s: %d bytes were read", endless, n)
		}
	}
}

// Metadata that are another issuer's, or that lead from https to the open, are not followed.
func TestMetadataThatAreNotFollowed(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"another issuer": `{"issuer":"https://other.test","jwks_uri":%q}`,
		"in the open":    `{"issuer":%q,"jwks_uri":"http://127.0.0.1/keys"}`,
		"no address":     `{"issuer":%q}`,
	} {
		asked := false
		var issuer *httptest.Server
		issuer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keys" {
				asked = true
			}
			fmt.Fprintf(w, answer, issuer.URL)
		}))
		t.Cleanup(issuer.Close)
		keys := jwks.New(jwks.Issuer{URL: issuer.URL, Client: issuer.Client})
		if _, err := keys.Named(t.Context(), "one"); !errors.Is(err, jwks.ErrUnavailable) || asked {
			t.Errorf("%s: %v, keys asked for: %t", name, err, asked)
		}
	}
}
