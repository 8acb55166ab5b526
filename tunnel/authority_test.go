package tunnel

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

func request(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "somebody.else.example"}, DNSNames: []string{"somebody.else.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestAnAuthorityCertifiesServersAndClientsApart(t *testing.T) {
	t.Parallel()
	now := time.Now()
	first, err := NewAuthority("plane", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := first.MarshalKey()
	if err != nil {
		t.Fatal(err)
	}
	a, err := OpenAuthority(EncodeCertificate(first.Certificate), key)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.ServerCertificate(request(t, own), "e.edge.bailey.internal", now, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client, err := a.ClientCertificate("dialer", now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !server.NotAfter.Equal(a.Certificate.NotAfter) {
		t.Errorf("a certificate outlives its CA: %v", server.NotAfter)
	}
	if !own.PublicKey.Equal(server.PublicKey) {
		t.Error("another key was certified")
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate)
	for _, c := range []struct {
		what  string
		cert  *x509.Certificate
		name  string
		usage x509.ExtKeyUsage
		good  bool
	}{
		{"a server by its name", server, "e.edge.bailey.internal", x509.ExtKeyUsageServerAuth, true},
		{"a server by the name it asked for", server, "somebody.else.example", x509.ExtKeyUsageServerAuth, false},
		{"a server as a client", server, "", x509.ExtKeyUsageClientAuth, false},
		{"a client", client.Leaf, "", x509.ExtKeyUsageClientAuth, true},
		{"a client as a server", client.Leaf, "", x509.ExtKeyUsageServerAuth, false},
		{"a server as a CA", server, "", x509.ExtKeyUsageAny, true},
	} {
		_, err := c.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.name, KeyUsages: []x509.ExtKeyUsage{c.usage}, CurrentTime: now})
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.what, err)
		}
		if c.cert.IsCA {
			t.Errorf("%s is a CA", c.what)
		}
	}
}

func TestAnAuthorityRefusesRequestsThatAreNone(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority("plane", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := request(t, good)
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, csr := range map[string][]byte{
		"nothing": nil, "text": []byte("x"), "a certificate": EncodeCertificate(a.Certificate),
		"two of them": append(request(t, good), request(t, good)...),
		"P-224":       request(t, weak), "RSA 1024": request(t, small), "Ed25519": request(t, edwards),
		"forged": pem.EncodeToMemory(block),
	} {
		if _, err := a.ServerCertificate(csr, "e", time.Now(), time.Hour); err == nil {
			t.Errorf("%s was certified", name)
		}
	}
	if _, err := a.ServerCertificate(request(t, good), "e", time.Now(), time.Hour); err != nil {
		t.Errorf("P-384: %v", err)
	}
}

func TestAnAuthorityWithAnothersKeyIsRefused(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority("a", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewAuthority("b", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := b.MarshalKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(EncodeCertificate(a.Certificate), key); err == nil || strings.Contains(err.Error(), string(key)) {
		t.Errorf("opened with another's key: %v", err)
	}
}
