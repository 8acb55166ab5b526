package verify

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Signed is a report with a signature by the host it was made on. The signature is
// over the bytes of Report as they stand, so that it can be checked by anybody who has
// the public key, with nothing but a tool for Ed25519.
//
// It proves that the report came from who holds the key, and was not changed since. It
// proves nothing against the host's own root.
type Signed struct {
	Report    json.RawMessage `json:"report"`
	PublicKey string          `json:"public_key"` // base64, 32 bytes
	Signature string          `json:"signature"`  // base64, of Ed25519
}

// context sets these signatures apart from others made with the same key.
const signContext = "bailey sandbox verify report v1\n"

// Sign signs a report.
func Sign(r Report, key ed25519.PrivateKey) (Signed, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Signed{}, err
	}
	return Signed{
		Report:    body,
		PublicKey: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)),
		Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, append([]byte(signContext), body...))),
	}, nil
}

// Open checks the signature and returns the report and the key that signed it. Whether
// that is the key of the host it should be is for the caller to know.
func (s Signed) Open() (Report, ed25519.PublicKey, error) {
	key, err := base64.StdEncoding.DecodeString(s.PublicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return Report{}, nil, errors.New("the report names no public key")
	}
	signature, err := base64.StdEncoding.DecodeString(s.Signature)
	if err != nil || !ed25519.Verify(key, append([]byte(signContext), s.Report...), signature) {
		return Report{}, nil, errors.New("the signature is not of this report")
	}
	var r Report
	if err := json.Unmarshal(s.Report, &r); err != nil {
		return Report{}, nil, fmt.Errorf("the report cannot be read: %w", err)
	}
	return r, key, nil
}

// Key returns the key in a file (PKCS #8, PEM), which is made with mode 0600 if there is
// none.
func Key(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds another kind of key than Ed25519", path)
	}
	return key, nil
}

func makeKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return key, errors.Join(err, f.Sync(), f.Close())
}
