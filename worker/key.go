package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A KeySource returns the environment key. It is asked at the start and again
// whenever the plane refuses the key, so a key can be rotated under a running
// worker. It may be called by several goroutines.
type KeySource func() (string, error)

// StaticKey is a key that does not change.
func StaticKey(key string) KeySource {
	return func() (string, error) { return key, nil }
}

// KeyFile is a key in a file, white space around it ignored. A file that others on this
// host can read is refused: see [checkKeyFile].
func KeyFile(path string) KeySource {
	return func() (string, error) {
		file, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read environment key: %w", err)
		}
		defer file.Close()
		if err := checkKeyFile(file); err != nil {
			return "", fmt.Errorf("read environment key: %w", err)
		}
		b, err := io.ReadAll(io.LimitReader(file, keyFileMax))
		if err != nil {
			return "", fmt.Errorf("read environment key: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
}

// keyFileMax bounds what is read of a file with a key, in bytes.
const keyFileMax = 64 << 10

// checkKeyFile refuses a file that others can write to or read. Two ways of handing out
// secrets are common and as good: a file of root's that the group of a service may read,
// and one of root's in memory that is for one service alone, whatever its mode says
// (Kubernetes, Docker).
func checkKeyFile(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	mode, owner := info.Mode().Perm(), -1
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	var fs unix.Statfs_t
	inMemory := unix.Fstatfs(int(file.Fd()), &fs) == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC)
	allowed := os.FileMode(0o700)
	switch {
	case !info.Mode().IsRegular():
		return nil // what comes through a pipe is nobody else's
	case owner == 0 && inMemory:
		allowed = 0o755
	case owner == 0:
		allowed = 0o750
	}
	if mode&^allowed == 0 {
		return nil
	}
	return fmt.Errorf("%s: others can get at it (mode %#o): chmod 600 it, and if they may have read it, make another key", file.Name(), mode)
}

// A credential is what a request is authorised with. When the plane refuses a
// bearer, refused says whether there is now another to try.
type credential interface {
	bearer() (string, error)
	refused(bearer string) (again bool)
}

// keyring holds the environment key. It is a credential.
type keyring struct {
	source KeySource

	mu     sync.Mutex
	key    string
	onRead func() // may be nil
}

// told has then called for each reading of the key, the one that was made included.
func (k *keyring) told(then func()) {
	k.mu.Lock()
	k.onRead = then
	had := k.key != ""
	k.mu.Unlock()
	if had {
		then()
	}
}

func (k *keyring) bearer() (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key == "" {
		return k.read()
	}
	return k.key, nil
}

func (k *keyring) refused(bearer string) (again bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key == bearer {
		// A source that cannot be read now may be in the middle of the rotation.
		_, _ = k.read()
	}
	return k.key != bearer
}

func (k *keyring) read() (string, error) {
	key, err := k.source()
	if err != nil {
		return "", err
	}
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("the environment key is empty or holds characters that no key has")
	}
	k.key = key
	if k.onRead != nil {
		k.onRead()
	}
	return key, nil
}

// itemCredential is a work item's own token, and the environment key once the
// token is refused or if there is none.
type itemCredential struct {
	keys *keyring

	mu    sync.Mutex
	token string
}

func (c *itemCredential) bearer() (string, error) {
	c.mu.Lock()
	token := c.token
	c.mu.Unlock()
	if token != "" {
		return token, nil
	}
	return c.keys.bearer()
}

func (c *itemCredential) refused(bearer string) (again bool) {
	c.mu.Lock()
	if c.token == bearer {
		c.token = ""
		c.mu.Unlock()
		return true
	}
	c.mu.Unlock()
	return c.keys.refused(bearer)
}
