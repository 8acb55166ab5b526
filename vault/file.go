package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// A fileKey is a key that is kept in a file: one version a line, the current one last,
// as "ID KEY", the key in base64. Lines that begin with # are for people.
type fileKey struct {
	path string

	mu       sync.Mutex
	modified fs.FileInfo // the file as it was read
	versions []fileVersion
}

type fileVersion struct {
	id   string
	data []byte
}

const (
	fileHead = `# The keys that this server's secrets are sealed with, the current one last. Whoever has
# this file and the database has the secrets; without it they are lost. Keep a copy, and
# keep it away from the database's backups.
`
	fileKeyMax = 1 << 20
)

func newFileKey(path string) *fileKey { return &fileKey{path: path} }

// newVersion makes a key. Its id says nothing of it.
func newVersion() fileVersion {
	data := make([]byte, dataKeyLen)
	_, _ = rand.Read(data) // never fails
	return fileVersion{fileKeyID(data), data}
}

func fileKeyID(data []byte) string {
	sum := sha256.Sum256(append([]byte("bailey key id\x00"), data...))
	return schemeFile + ":" + hex.EncodeToString(sum[:8])
}

// read brings versions up to date with the file, which another process of the same host
// may have changed. The caller holds mu.
func (k *fileKey) read() error {
	f, err := os.Open(k.path)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if k.modified != nil && os.SameFile(k.modified, info) && k.modified.ModTime().Equal(info.ModTime()) && k.modified.Size() == info.Size() {
		return nil
	}
	if err := checkPrivate(k.path, info); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(f, fileKeyMax+1))
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer clear(data)
	versions, err := parseKeyFile(data)
	if err != nil {
		return fmt.Errorf("key file %s: %w", k.path, err)
	}
	k.versions, k.modified = versions, info
	return nil
}

// checkPrivate refuses a file that others than its owner can read, or that belongs to
// somebody else.
func checkPrivate(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("key file %s: not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("key file %s: others can read it (mode %#o): chmod 600 it, and if they may have, rotate the key", path, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != uint32(os.Geteuid()) && os.Geteuid() != 0 {
		return fmt.Errorf("key file %s: belongs to user %d, and this process runs as user %d", path, st.Uid, os.Geteuid())
	}
	return nil
}

func parseKeyFile(data []byte) (versions []fileVersion, err error) {
	if len(data) > fileKeyMax {
		return nil, fmt.Errorf("larger than %d bytes", fileKeyMax)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		// Errors quote nothing of a line: it may be a key.
		id, text, _ := strings.Cut(line, " ")
		key, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
		if err != nil || len(key) != dataKeyLen {
			return nil, fmt.Errorf("line %d is not an id and a key of %d bytes in base64", n, dataKeyLen)
		}
		if id != fileKeyID(key) {
			return nil, fmt.Errorf("line %d: the id is not that of the key: one of them was changed", n)
		}
		versions = append(versions, fileVersion{id, key})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(versions) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return versions, nil
}

// create makes the file with a first key if there is none.
func (k *fileKey) create() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return k.alone(func() error {
		if err := k.read(); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err := k.write([]fileVersion{newVersion()}, placeNew)
		if errors.Is(err, fs.ErrExist) {
			return k.read() // made on another host, where the lock does not count
		}
		return err
	})
}

// alone runs fn while no other process changes the file: who read it before has to read
// it again. The lock is on a file beside it, as the file itself is replaced. The caller
// holds mu.
func (k *fileKey) alone(fn func() error) error {
	lock, err := os.OpenFile(k.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer lock.Close() // and so the lock ends
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
		if err == nil {
			return fn()
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("key file: lock %s: %w", lock.Name(), err)
		}
	}
}

// placeNew gives a file its name unless another has it.
func placeNew(from, to string) error {
	err := os.Link(from, to)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return os.Rename(from, to) // a file system without links: the lock has to do
	}
	return err
}

// write makes or replaces the file, so that a crash leaves the old one or the new one,
// and reads it back. The caller holds mu and the lock.
func (k *fileKey) write(versions []fileVersion, place func(from, to string) error) (err error) {
	var text bytes.Buffer
	text.WriteString(fileHead)
	for _, v := range versions {
		fmt.Fprintf(&text, "%s %s\n", v.id, base64.StdEncoding.EncodeToString(v.data))
	}
	defer clear(text.Bytes())
	dir := filepath.Dir(k.path)
	f, err := os.CreateTemp(dir, ".vault-key-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer os.Remove(f.Name()) // gone already if it was renamed
	_, err = f.Write(text.Bytes())
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = place(f.Name(), k.path)
	}
	if err == nil {
		err = syncDir(dir) // a secret must not be durable before the key it is sealed with
	}
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	return k.read()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (k *fileKey) has(id string) bool {
	return strings.HasPrefix(id, schemeFile+":") && k.find(id) != nil
}

// find returns the key with an id, or nil. An id that is not known yet may be one that
// another process made.
func (k *fileKey) find(id string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	for again := false; ; again = true {
		for _, v := range k.versions {
			if v.id == id {
				return v.data
			}
		}
		if again || k.read() != nil {
			return nil
		}
	}
}

func (k *fileKey) wrap(_ context.Context, owner Owner, data []byte) ([]byte, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(); err != nil {
		return nil, "", err
	}
	v := k.versions[len(k.versions)-1]
	return aead(v.data).Seal(nil, nil, data, owner.bytes()), v.id, nil
}

func (k *fileKey) unwrap(_ context.Context, owner Owner, id string, wrapped []byte) ([]byte, error) {
	version := k.find(id)
	if version == nil {
		return nil, fmt.Errorf("key %s: %w", id, ErrNoKey)
	}
	data, err := aead(version).Open(nil, nil, wrapped, owner.bytes())
	if err != nil {
		return nil, fmt.Errorf("key %s: what it wrapped was changed, or for another owner", id)
	}
	return data, nil
}

func (k *fileKey) rotate(context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := newVersion()
	err := k.alone(func() error {
		if err := k.read(); err != nil {
			return err
		}
		return k.write(append(k.versions[:len(k.versions):len(k.versions)], v), os.Rename)
	})
	if err != nil {
		return "", err
	}
	return v.id, nil
}
