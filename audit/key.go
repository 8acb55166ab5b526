package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Key keys the MACs and digests of a log. It is a secret: it never appears in
// a log, an error or a line.
type Key [32]byte

// ID names a key without giving it away.
func (k Key) ID() string { return hex.EncodeToString(k.mac("id", nil))[:16] }

// String keeps a key out of logs and error texts.
func (k Key) String() string { return "audit key " + k.ID() }

// GoString does the same for %#v.
func (k Key) GoString() string { return k.String() }

// Digest is what a line shows of a value: the same for equal values, and without
// the key good for nothing. It is how the key's owner finds or proves an input.
func (k Key) Digest(value []byte) string { return hex.EncodeToString(k.mac("value", value)) }

func (k Key) digest(value []byte) (string, *int) {
	n := len(value)
	return k.Digest(value), &n
}

// mac signs b for one use, so that a signature of one kind is never taken for
// one of another.
func (k Key) mac(use string, b []byte) []byte {
	h := hmac.New(sha256.New, k[:])
	h.Write([]byte("bailey-audit " + use + "\x00"))
	h.Write(b)
	return h.Sum(nil)
}

// ReadKey reads a key file: 64 hexadecimal digits and a newline.
func ReadKey(path string) (Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fmt.Errorf("read audit key: %w", err)
	}
	var k Key
	b = bytes.TrimSuffix(b, []byte("\n"))
	if len(b) != hex.EncodedLen(len(k)) {
		return Key{}, fmt.Errorf("audit key %s is not 64 hexadecimal digits", path)
	}
	if _, err := hex.Decode(k[:], b); err != nil {
		return Key{}, fmt.Errorf("audit key %s is not 64 hexadecimal digits", path)
	}
	return k, nil
}

// A PublicKey checks the checkpoints of a log. Its file is PEM, as openssl and
// others read it.
type PublicKey ed25519.PublicKey

// ID names a public key: the first half of its SHA-256.
func (p PublicKey) ID() string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:8])
}

func (p PublicKey) equal(q PublicKey) bool { return bytes.Equal(p, q) }

// PEM is the key as its file holds it.
func (p PublicKey) PEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(p))
	if err != nil {
		panic("audit: an Ed25519 key can always be encoded: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// ParsePublicKey reads what [PublicKey.PEM] writes.
func ParsePublicKey(b []byte) (PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("not a public key in PEM")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a public key in PEM")
	}
	ed, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("not an Ed25519 key")
	}
	return PublicKey(ed), nil
}

// ReadPublicKey reads a public key's file.
func ReadPublicKey(path string) (PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read audit public key: %w", err)
	}
	k, err := ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("audit public key %s: %w", path, err)
	}
	return k, nil
}

// A signer signs checkpoints.
type signer struct{ private ed25519.PrivateKey }

func (s signer) public() PublicKey { return PublicKey(s.private.Public().(ed25519.PublicKey)) }

func (s signer) sign(text []byte) []byte { return ed25519.Sign(s.private, text) }

// verify reports whether sig signs text.
func (p PublicKey) verify(text, sig []byte) bool {
	return len(p) == ed25519.PublicKeySize && ed25519.Verify(ed25519.PublicKey(p), text, sig)
}

// openKey reads the key at path, or makes one if there is none and fresh is set.
func openKey(path string, fresh bool) (k Key, err error) {
	there, err := secretFile(path, fresh)
	if err != nil {
		return Key{}, err
	}
	if there {
		return ReadKey(path)
	}
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	if err := writeNew(path, []byte(hex.EncodeToString(k[:])+"\n"), 0o600); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	return k, nil
}

// openSigner is openKey for the key that signs, in PKCS 8.
func openSigner(path string, fresh bool) (s signer, err error) {
	there, err := secretFile(path, fresh)
	if err != nil {
		return s, err
	}
	if there {
		return readSigner(path)
	}
	if _, s.private, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return s, fmt.Errorf("make audit key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.private)
	if err != nil {
		return s, fmt.Errorf("make audit key: %w", err)
	}
	if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return s, fmt.Errorf("make audit key: %w", err)
	}
	return s, nil
}

func readSigner(path string) (s signer, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return s, fmt.Errorf("read audit key: %w", err)
	}
	var ok bool
	if block, _ := pem.Decode(b); block != nil {
		if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			s.private, ok = k.(ed25519.PrivateKey)
		}
	}
	if !ok {
		return s, fmt.Errorf("audit key %s is not an Ed25519 key in PEM", path)
	}
	return s, nil
}

// secretFile reports whether there is a key at path, which nobody else may read
// and which only a fresh log may lack.
func secretFile(path string, fresh bool) (there bool, err error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Mode().Perm()&0o077 != 0:
		return false, fmt.Errorf("audit key %s can be read or written by others (mode %#o): chmod 600 it", path, info.Mode().Perm())
	case err == nil:
		return true, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("audit key: %w", err)
	case !fresh:
		// A new key here would make everything recorded so far unverifiable.
		return false, fmt.Errorf("audit key %s is missing but the log is not empty: put the key back, or move the log aside to begin a new one", path)
	}
	return false, nil
}

// writeNew writes b durably under a temporary name and then gives it its own,
// so that a crash leaves either the whole file or none.
func writeNew(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".new"
	if err := writeSynced(tmp, b, mode); err != nil {
		return err
	}
	err := os.Rename(tmp, path)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// writeSynced makes a file with the contents b, durably but for its name.
func writeSynced(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
