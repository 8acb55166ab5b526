package netjail

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/egress"
)

// An authority issues the certificates that one box is shown where its TLS is opened.
// Only that box trusts it, and its key never leaves this process but in [Jail.State].
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf *ecdsa.PrivateKey // of all certificates: it is the box that they are for

	mu     sync.Mutex
	issued map[egress.Host]*tls.Certificate
}

const (
	authorityLife = 90 * 24 * time.Hour
	leafLife      = 48 * time.Hour
	leafRenewed   = 24 * time.Hour // before its end
	issuedMax     = 1024           // certificates kept

	// A box may have another idea of the time.
	clockSkew = 24 * time.Hour
)

// A savedAuthority is an authority within a [Jail.State].
type savedAuthority struct {
	Cert []byte // DER
	Key  []byte // DER
}

func newAuthority(box string, was *savedAuthority) (*authority, error) {
	a := &authority{issued: make(map[egress.Host]*tls.Certificate)}
	var err error
	if a.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if was != nil {
		if a.cert, err = x509.ParseCertificate(was.Cert); err != nil {
			return nil, fmt.Errorf("authority of the box: %w", err)
		}
		if a.key, err = x509.ParseECPrivateKey(was.Key); err != nil {
			return nil, fmt.Errorf("authority of the box: %w", err)
		}
		return a, nil
	}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Bailey box " + box, Organization: []string{"Network policy of this box alone"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	a.cert, err = x509.ParseCertificate(der)
	return a, err
}

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

// pem is the authority's certificate as it stands in a bundle.
func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) save() (*savedAuthority, error) {
	key, err := x509.MarshalECPrivateKey(a.key)
	return &savedAuthority{Cert: a.cert.Raw, Key: key}, err
}

// config is for speaking TLS with the box in the name of a host.
func (a *authority) config(h egress.Host) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.certificate(h)
		},
	}
}

// certificate is the certificate for a host.
func (a *authority) certificate(h egress.Host) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if c, ok := a.issued[h]; ok && now.Before(c.Leaf.NotAfter.Add(-leafRenewed)) {
		return c, nil
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if addr, ok := h.Addr(); ok {
		template.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		template.DNSNames = []string{h.Name()}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.leaf.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", h, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", h, err)
	}
	if len(a.issued) >= issuedMax {
		clear(a.issued)
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leaf, Leaf: leaf}
	a.issued[h] = c
	return c, nil
}
