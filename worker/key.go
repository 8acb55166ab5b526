package worker

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// A KeySource returns the environment key. It is asked at the start and again
// whenever the plane refuses the key, so a key can be rotated under a running
// worker. It may be called by several goroutines.
type KeySource func() (string, error)

// StaticKey is a key that does not change.
func StaticKey(key string) KeySource {
	return func() (string, error) { return key, nil }
}

// KeyFile is a key in a file, white space around it ignored.
func KeyFile(path string) KeySource {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read environment key: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
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
