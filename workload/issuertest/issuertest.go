// Package issuertest is an OpenID Connect issuer for tests: a server on the loopback
// interface with real keys, which signs whatever it is asked to. It shares no code with
// what checks its tokens. Start reading at [Start].
package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// An Issuer signs tokens and publishes its keys. It lives until its test ends, and is
// safe for concurrent use.
type Issuer struct {
	URL string // the issuer, and where its documents are
	CA  string // of its certificate, in PEM; "" if it speaks plain HTTP

	t      testing.TB
	server *httptest.Server

	mu       sync.Mutex
	keys     []key
	asked    int           // how often for its keys
	broken   bool          // it answers with an error
	answer   func() []byte // instead of its keys; nil: those
	document map[string]any
}

type key struct {
	id   string
	alg  jose.SignatureAlgorithm
	sign crypto.Signer
}

// Start starts an issuer, with TLS or without, that has one key of ES256, "key-1".
func Start(t testing.TB, tls bool) *Issuer {
	t.Helper()
	i := &Issuer{t: t, document: map[string]any{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", i.serveKeys)
	if tls {
		i.server = httptest.NewTLSServer(mux)
		i.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw}))
	} else {
		i.server = httptest.NewServer(mux)
	}
	t.Cleanup(i.server.Close)
	i.URL = i.server.URL
	i.AddKey("key-1", jose.ES256)
	return i
}

// AddKey makes a key that the issuer publishes from now on.
func (i *Issuer) AddKey(id string, alg jose.SignatureAlgorithm) {
	i.t.Helper()
	k := key{id: id, alg: alg}
	var err error
	switch alg {
	case jose.ES256:
		k.sign, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		k.sign, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		k.sign, err = i.rsaKey()
	}
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, k)
}

// rsaKey is the issuer's one RSA key, as making one takes a while.
func (i *Issuer) rsaKey() (crypto.Signer, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, k := range i.keys {
		if _, ok := k.sign.(*rsa.PrivateKey); ok {
			return k.sign, nil
		}
	}
	return rsa.GenerateKey(rand.Reader, 2048)
}

// Answer has the issuer answer with something else than its keys; nil is those again.
func (i *Issuer) Answer(with func() []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = with
}

// Break has the issuer answer with an error, or not any more.
func (i *Issuer) Break(broken bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.broken = broken
}

// Document changes what the issuer says of itself.
func (i *Issuer) Document(name string, value any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.document[name] = value
}

// Asked is how often the issuer was asked for its keys.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// Keys is the set of keys as it is published.
func (i *Issuer) Keys() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.sign.Public(), KeyID: k.id, Algorithm: string(k.alg), Use: "sig"})
	}
	text, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	return text
}

// Claims are those of an ordinary token of a subject: for five minutes from a time, for
// the audience "bailey".
func (i *Issuer) Claims(now time.Time, subject string) map[string]any {
	return map[string]any{
		"iss": i.URL, "sub": subject, "aud": "bailey", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
}

// Sign signs claims with the newest key, over those of changes.
func (i *Issuer) Sign(claims map[string]any, changes ...map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	k := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return i.SignAs(k.id, claims, changes...)
}

// SignAs signs with the newest key under another name, which "" leaves out. A claim that
// is changed to nil is left out.
func (i *Issuer) SignAs(kid string, claims map[string]any, changes ...map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	k := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	all := maps.Clone(claims)
	for _, c := range changes {
		maps.Copy(all, c)
	}
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.alg, Key: jose.JSONWebKey{Key: k.sign, KeyID: kid}}, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	doc := map[string]any{"issuer": i.server.URL, "jwks_uri": i.server.URL + "/keys"}
	maps.Copy(doc, i.document)
	i.send(w, doc)
}

func (i *Issuer) serveKeys(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	i.asked++
	answer := i.answer
	i.mu.Unlock()
	if answer == nil {
		answer = i.Keys
	}
	text := json.RawMessage(answer())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.send(w, text)
}

// send answers with JSON. The caller holds mu.
func (i *Issuer) send(w http.ResponseWriter, v any) {
	if i.broken {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if raw, ok := v.(json.RawMessage); ok {
		_, _ = w.Write(raw) // which may be no JSON at all
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}
