package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
)

// The times of what is made here.
const (
	caLife     = 5 * 365 * 24 * time.Hour
	backdate   = 5 * time.Minute // for clocks that are a little behind
	renewEvery = time.Hour
)

// An Authority is a CA of the customer's: its certificate is registered on the tunnel,
// and its key signs the certificates of gateways.
type Authority struct {
	Cert *x509.Certificate
	PEM  []byte
	key  *ecdsa.PrivateKey
}

// NewAuthority makes a CA for a tunnel, with a key on P-256.
func NewAuthority(domain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Bailey gateway CA", Organization: []string{domain}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	a := &Authority{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: key}
	a.Cert, err = x509.ParseCertificate(der)
	return a, err
}

// ReadAuthority reads a CA from its two files and sees to it that it is one that can be
// registered.
func ReadAuthority(certFile, keyFile string, now time.Time) (*Authority, error) {
	text, err := settings.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	a := &Authority{PEM: text}
	if a.Cert, err = tunnel.CheckCA(text, now); err != nil {
		return nil, fmt.Errorf("the CA certificate in %s %w", certFile, err)
	}
	if text, err = settings.ReadFile(keyFile); err != nil {
		return nil, err
	}
	if a.key, err = parseKey(text); err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	if !a.key.PublicKey.Equal(a.Cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of the CA in %s", keyFile, certFile)
	}
	return a, nil
}

// Write writes the CA's files.
func (a *Authority) Write(certFile, keyFile string) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	if err := WriteSecret(keyFile, key); err != nil {
		return err
	}
	return WriteFile(certFile, a.PEM, 0o644)
}

// Issue makes a pair for a gateway, good for names: a certificate that the CA itself has
// signed, and a key on P-256.
func (a *Authority) Issue(names []string, life time.Duration, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	until := now.Add(life)
	if until.After(a.Cert.NotAfter) {
		until = a.Cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Bailey gateway"}, DNSNames: names,
		NotBefore: now.Add(-backdate), NotAfter: until,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotBefore.Before(a.Cert.NotBefore) {
		template.NotBefore = a.Cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, err
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

var errNoECDSA = errors.New("it holds no ECDSA key in PEM")

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errNoECDSA
	}
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errNoECDSA
	}
	if key, ok := key.(*ecdsa.PrivateKey); ok {
		return key, nil
	}
	return nil, errNoECDSA
}

// Names are what the gateway's certificate has to be good for: all that is one label below
// the tunnel's domain, and whatever else a route is named.
func (c *Config) Names() []string {
	var names []string
	if c.Tunnel.Domain != "" {
		names = append(names, "*."+c.Tunnel.Domain)
	}
	for name := range c.Routes {
		host, err := canonicalHost(name)
		if err != nil {
			continue
		}
		if c.Tunnel.Domain != "" && host != c.Tunnel.Domain && !isBelow(host, c.Tunnel.Domain) {
			if !bytes.Contains([]byte(host), []byte{'.'}) {
				continue // the wildcard covers it
			}
			host += "." + c.Tunnel.Domain
		}
		if (&x509.Certificate{DNSNames: names}).VerifyHostname(host) != nil {
			names = append(names, host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func isBelow(host, domain string) bool {
	return len(host) > len(domain)+1 && host[len(host)-len(domain)-1:] == "."+domain
}

// Renew makes a new certificate of the gateway's with the CA at hand, if the one there is
// expires within before, is missing, is not good for all routes, or was signed by another
// CA; always, if before is 0. It asks nobody.
func (c *Config) Renew(before time.Duration, now time.Time) (renewed bool, err error) {
	if c.TLS.CAKey == "" {
		return false, errors.New("the CA is not at hand (tls: ca-cert, ca-key): have the certificate signed where the CA is kept")
	}
	a, err := ReadAuthority(c.TLS.CACert, c.TLS.CAKey, now)
	if err != nil {
		return false, err
	}
	names := c.Names()
	if before > 0 && good(c.TLS.Cert, c.TLS.Key, a, names, now.Add(before)) {
		return false, nil
	}
	cert, key, err := a.Issue(names, time.Duration(c.TLS.Life), now)
	if err != nil {
		return false, err
	}
	// A gateway that reads between the two sees a pair that is none, and keeps the old.
	if err := WriteSecret(c.TLS.Key, key); err != nil {
		return false, err
	}
	return true, WriteFile(c.TLS.Cert, cert, 0o644)
}

// good reports whether a pair proves names until then.
func good(certFile, keyFile string, a *Authority, names []string, then time.Time) bool {
	text, err := settings.ReadFile(certFile)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	if text, err = settings.ReadFile(keyFile); err != nil {
		return false
	}
	key, err := parseKey(text)
	if err != nil || !key.PublicKey.Equal(leaf.PublicKey) {
		return false
	}
	for _, name := range names {
		if name[0] == '*' {
			name = "x" + name[1:]
		}
		if _, err := tunnel.VerifyLeaf([]*x509.Certificate{leaf}, []*x509.Certificate{a.Cert}, name, then); err != nil {
			return false
		}
	}
	return true
}

// renew renews the certificate in time, where the CA is at hand, until ctx ends.
func (g *Gateway) renew(ctx context.Context) {
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	for {
		if c := g.Config(); c.TLS.CAKey != "" {
			renewed, err := c.Renew(time.Duration(c.TLS.RenewBefore), time.Now())
			switch {
			case err != nil:
				g.log.Error("the certificate was not renewed", "error", err)
			case renewed:
				g.log.Info("the certificate was renewed", "file", c.TLS.Cert)
				g.certs.look(time.Now())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// WriteSecret writes a file that only its owner can read, as [WriteFile] does.
func WriteSecret(file string, text []byte) error { return WriteFile(file, text, 0o600) }

// WriteFile writes a file with a mode. Whoever reads it meanwhile, as a gateway does with its
// settings, sees the old or the new one.
func WriteFile(file string, text []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
