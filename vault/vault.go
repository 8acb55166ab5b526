package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Options of [New]. Zero fields mean what is said.
type Options struct {
	// Key names the key-encryption key that secrets are sealed with:
	//
	//	file:PATH                          a file of our own
	//	transit+https://HOST/MOUNT/KEY     HashiCorp Vault's (or OpenBao's) transit engine
	//	awskms:KEY?region=REGION           AWS KMS; KEY is an id, ARN or alias/NAME
	//
	// transit reads its token from the file ?token-file=PATH, or from VAULT_TOKEN;
	// ?namespace=NAME is sent where it is given. awskms finds credentials and, without
	// ?region, the region where AWS's own tools do; ?endpoint=URL is another address.
	Key string

	// Old name keys that secrets may still be sealed with, for opening alone.
	Old []string

	// HTTP reaches keys that are elsewhere. Nil is a plain client that gives up after
	// ten seconds and follows no redirects.
	HTTP *http.Client

	// Env looks up a variable, as os.LookupEnv does. Nil is an empty environment.
	Env func(string) (string, bool)
}

// A Vault seals and opens secrets. It is safe for concurrent use.
type Vault struct {
	current key
	all     []key // the current one first
	opened  *cache
}

// SecretMax bounds a secret, in bytes.
const SecretMax = 64 << 10

// New makes a vault. It looks for no key yet: see [Vault.Start].
func New(o Options) (*Vault, error) {
	v := &Vault{opened: newCache()}
	for i, keyURL := range append([]string{o.Key}, o.Old...) {
		k, err := newKey(keyURL, o)
		if err != nil {
			if i > 0 {
				err = fmt.Errorf("old key %d: %w", i, err)
			}
			return nil, err
		}
		v.all = append(v.all, k)
	}
	v.current = v.all[0]
	return v, nil
}

// Start finds the key. inUse are the ids of the keys that stored secrets are sealed
// with: a key file that is not there is made only if none of them would have been in
// it. An error says which key is missing and what to do; what is sealed with others
// can be used all the same. Where several processes may start at once with files of their
// own, it is for the caller to let one at a time, and to tell the next of its key.
func (v *Vault) Start(ctx context.Context, inUse []string) error {
	if err := v.Missing(inUse); err != nil {
		return err
	}
	if f, ok := v.current.(*fileKey); ok {
		return f.create()
	}
	return nil
}

// Missing says which of the keys in use are not here, and what to do. It looks only for
// those that are in files.
func (v *Vault) Missing(inUse []string) (missing error) {
	for _, id := range inUse {
		if !slices.ContainsFunc(v.all, func(k key) bool { return k.has(id) }) {
			missing = errors.Join(missing, fmt.Errorf("secrets are sealed with key %s: %w; put the key file back, or name the key as an old one", id, ErrNoKey))
		}
	}
	return missing
}

// InFile reports whether the current key is in a file.
func (v *Vault) InFile() bool {
	_, ok := v.current.(*fileKey)
	return ok
}

// IsCurrent reports whether id may be a version of the current key, not of an old one.
func (v *Vault) IsCurrent(id string) bool { return v.current.has(id) }

// Check seals and opens something, and returns the id of the key that does.
func (v *Vault) Check(ctx context.Context) (keyID string, err error) {
	owner := Owner{"check", "check"}
	data := make([]byte, dataKeyLen)
	_, _ = rand.Read(data)
	wrapped, id, err := v.current.wrap(ctx, owner, data)
	if err != nil {
		return "", err
	}
	again, err := v.current.unwrap(ctx, owner, id, wrapped)
	if err != nil {
		return "", err
	}
	if string(again) != string(data) {
		return "", fmt.Errorf("key %s does not give back what it wrapped", id)
	}
	return id, nil
}

// Rotate makes a new version of the current key, and returns its id. What is sealed
// with others stays so until [Vault.Rewrap].
func (v *Vault) Rotate(ctx context.Context) (keyID string, err error) {
	return v.current.rotate(ctx)
}

const dataKeyLen = 32

// Seal encrypts a secret for its owner.
func (v *Vault) Seal(ctx context.Context, owner Owner, secret []byte) (Sealed, error) {
	if len(secret) > SecretMax {
		return "", fmt.Errorf("a secret has at most %d bytes", SecretMax)
	}
	data := make([]byte, dataKeyLen)
	_, _ = rand.Read(data) // never fails
	defer clear(data)
	p := parts{text: aead(data).Seal(nil, nil, secret, owner.bytes())}
	var err error
	if p.wrapped, p.keyID, err = v.current.wrap(ctx, owner, data); err != nil {
		return "", fmt.Errorf("seal %s of %s: %w", owner.Field, owner.ID, err)
	}
	if !isKeyID(p.keyID) {
		return "", fmt.Errorf("seal %s of %s: the key has an id that cannot be kept", owner.Field, owner.ID)
	}
	return p.sealed(), nil
}

// Open returns what was sealed for the owner.
func (v *Vault) Open(ctx context.Context, owner Owner, s Sealed) ([]byte, error) {
	p, err := s.parts()
	if err != nil {
		return nil, err
	}
	data, err := v.unwrap(ctx, owner, p)
	if err != nil {
		return nil, fmt.Errorf("open %s of %s: %w", owner.Field, owner.ID, err)
	}
	defer clear(data)
	secret, err := aead(data).Open(nil, nil, p.text, owner.bytes())
	if err != nil {
		return nil, fmt.Errorf("open %s of %s: it was changed, or sealed for another owner", owner.Field, owner.ID)
	}
	return secret, nil
}

// Rewrap returns s under the current key. The secret itself is not opened.
func (v *Vault) Rewrap(ctx context.Context, owner Owner, s Sealed) (Sealed, error) {
	p, err := s.parts()
	if err != nil {
		return "", err
	}
	data, err := v.unwrap(ctx, owner, p)
	if err != nil {
		return "", fmt.Errorf("re-wrap %s of %s: %w", owner.Field, owner.ID, err)
	}
	defer clear(data)
	if p.wrapped, p.keyID, err = v.current.wrap(ctx, owner, data); err != nil {
		return "", fmt.Errorf("re-wrap %s of %s: %w", owner.Field, owner.ID, err)
	}
	return p.sealed(), nil
}

// unwrap returns the data key of a sealed value, which the caller clears.
func (v *Vault) unwrap(ctx context.Context, owner Owner, p parts) ([]byte, error) {
	if data := v.opened.get(owner, p); data != nil {
		return data, nil
	}
	err := fmt.Errorf("key %s: %w", p.keyID, ErrNoKey)
	for _, k := range v.all {
		if !k.has(p.keyID) {
			continue
		}
		var data []byte
		if data, err = k.unwrap(ctx, owner, p.keyID, p.wrapped); err != nil {
			continue
		}
		if len(data) != dataKeyLen {
			return nil, fmt.Errorf("key %s gave back something else than it wrapped", p.keyID)
		}
		if _, local := k.(*fileKey); !local {
			v.opened.put(owner, p, data)
		}
		return data, nil
	}
	return nil, err
}

// aead is the cipher of everything in here: AES-256-GCM, a random nonce before the text.
// A data key seals once, so nonces cannot meet; a key-encryption key of a file may wrap
// 2^32 of them.
func aead(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err == nil {
		var c cipher.AEAD
		if c, err = cipher.NewGCMWithRandomNonce(block); err == nil {
			return c
		}
	}
	panic("vault: a key of the wrong length: " + err.Error())
}

// cache remembers data keys that a key elsewhere has unwrapped, so that not every use
// of a credential is a request to it. A key that is taken from us is so for as long.
type cache struct {
	mu   sync.Mutex
	keys map[[sha256.Size]byte]cached
}

type cached struct {
	data  []byte
	until time.Time
}

const (
	cacheFor = 5 * time.Minute
	cacheMax = 4096
)

func newCache() *cache { return &cache{keys: map[[sha256.Size]byte]cached{}} }

func cacheKey(owner Owner, p parts) [sha256.Size]byte {
	h := sha256.New()
	h.Write(owner.bytes()) // its length is in it
	h.Write([]byte(p.keyID))
	h.Write([]byte{0})
	h.Write(p.wrapped)
	return [sha256.Size]byte(h.Sum(nil))
}

func (c *cache) get(owner Owner, p parts) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keys[cacheKey(owner, p)]
	if !ok || time.Now().After(k.until) {
		return nil
	}
	return slices.Clone(k.data)
}

func (c *cache) put(owner Owner, p parts, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for id, k := range c.keys {
		if len(c.keys) >= cacheMax || now.After(k.until) { // full: some go, it does not matter which
			clear(k.data)
			delete(c.keys, id)
		}
	}
	c.keys[cacheKey(owner, p)] = cached{slices.Clone(data), now.Add(cacheFor)}
}
