package tunnel

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// An Authority is a CA of the plane's own: it vouches for edges, to connectors and
// dialers, and for the plane's dialers, to edges. It has no say in the inner TLS, whose
// CAs are the customers'. It is safe for concurrent use.
type Authority struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// clockSlack is how far the clocks of those who are vouched for may be behind.
const clockSlack = 5 * time.Minute

// NewAuthority makes a CA with a new key on P-256.
func NewAuthority(name string, now time.Time, life time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	cert, err := issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name + " " + hex.EncodeToString(id[:4])},
		SubjectKeyId:          id[:20],
		NotBefore:             now.Add(-clockSlack),
		NotAfter:              now.Add(life),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Authority{cert, key}, nil
}

// OpenAuthority puts a CA back together from its certificate and what
// [Authority.MarshalKey] returned.
func OpenAuthority(certificate, key []byte) (*Authority, error) {
	cert, err := ParseCertificate(certificate)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("the CA's key cannot be read")
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the CA's key is not that of its certificate")
	}
	return &Authority{cert, private}, nil
}

// MarshalKey returns the private key, which is to be sealed.
func (a *Authority) MarshalKey() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(a.key) }

// ServerCertificate certifies, for TLS servers alone, the key of a request for a
// certificate in PEM. Of the request nothing else counts: the names are the caller's.
func (a *Authority) ServerCertificate(csr []byte, name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	block, rest := pem.Decode(csr)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("is not one certificate request in PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("is not a certificate request that can be read")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, errors.New("is not signed with the key that it is for")
	}
	if err := checkKey(&x509.Certificate{PublicKey: req.PublicKey, PublicKeyAlgorithm: req.PublicKeyAlgorithm}); err != nil {
		return nil, err
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := req.PublicKey.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	return issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name},
		NotBefore:   now.Add(-clockSlack),
		NotAfter:    earlier(now.Add(life), a.Certificate.NotAfter),
		KeyUsage:    usage,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.Certificate, req.PublicKey, a.key)
}

// ClientCertificate makes a certificate for TLS clients alone, with a new key.
func (a *Authority) ClientCertificate(name string, now time.Time, life time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotBefore:   now.Add(-clockSlack),
		NotAfter:    earlier(now.Add(life), a.Certificate.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.Certificate, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// issue makes a certificate; without a parent it signs itself.
func issue(template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ParseCertificate reads a certificate in PEM.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemCertificate {
		return nil, errors.New("is not a certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("is not a certificate that can be read: %w", err)
	}
	return cert, nil
}

// EncodeCertificate writes a certificate in PEM.
func EncodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})
}
