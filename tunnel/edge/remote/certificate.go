package remote

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
)

// A signing is a new key and the request to have it certified. The key never leaves
// this process.
type signing struct {
	key *ecdsa.PrivateKey
	csr string
}

func newSigning() (*signing, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return &signing{key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}, nil
}

// certificate puts the plane's answer and the key together.
func (s *signing) certificate(chain string) (*tls.Certificate, error) {
	cert := &tls.Certificate{PrivateKey: s.key}
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("there is none")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	if !s.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("it is for another key")
	}
	cert.Leaf = leaf
	return cert, nil
}
