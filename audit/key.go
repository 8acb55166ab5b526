package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Key keys the hashes of a log. It is a secret: it never appears in a log, an
// error or a line.
type Key [32]byte

// ID names a key without giving it away.
func (k Key) ID() string { return hex.EncodeToString(k.mac("id", nil))[:16] }

// String keeps a key out of logs and error texts.
func (k Key) String() string { return "audit key " + k.ID() }

// GoString does the same for %#v.
func (k Key) GoString() string { return k.String() }

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

// openKey reads the key at path, or makes one if there is none and fresh is set.
func openKey(path string, fresh bool) (Key, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil:
		if info.Mode().Perm()&0o077 != 0 {
			return Key{}, fmt.Errorf("audit key %s can be read or written by others (mode %#o): chmod 600 it", path, info.Mode().Perm())
		}
		return ReadKey(path)
	case !errors.Is(err, fs.ErrNotExist):
		return Key{}, fmt.Errorf("audit key: %w", err)
	case !fresh:
		// A new key here would make everything recorded so far unverifiable.
		return Key{}, fmt.Errorf("audit key %s is missing but the log is not empty: put the key back, or move the log aside to begin a new one", path)
	}
	var k Key
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	if err := writeNew(path, []byte(hex.EncodeToString(k[:])+"\n")); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	return k, nil
}

// writeNew writes b durably under a temporary name and then gives it its own,
// so that a crash leaves either the whole file or none.
func writeNew(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
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
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(tmp)
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
