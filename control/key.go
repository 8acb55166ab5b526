package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

// newSecret makes a secret of a kind, and what is kept of it.
func (c *Control) newSecret(kind api.KeyKind) (secret, hash, hint string) {
	prefix := map[api.KeyKind]string{
		api.KeyAPI: api.SecretPrefixAPI, api.KeyEnvironment: api.SecretPrefixEnvironment, api.KeySession: api.SecretPrefixSession,
		api.KeyEdge: api.SecretPrefixEdge, api.KeyAccess: api.SecretPrefixAccess,
	}[kind]
	var b [32]byte
	if _, err := io.ReadFull(c.cfg.Rand, b[:]); err != nil {
		panic("control: no randomness: " + err.Error())
	}
	secret = prefix + base64.RawURLEncoding.EncodeToString(b[:])
	return secret, hashSecret(secret), secret[len(secret)-4:]
}

// hashSecret is a plain SHA-256: the secrets are 256 random bits, so there is
// nothing to guess, and looking the hash up compares no secret byte by byte.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

const (
	secretLenMax = 256
	touchEvery   = time.Minute // how fresh last_used_at is kept
)

// Authenticate finds whom a secret belongs to. Every failure is the same 401: it
// never says which part was wrong.
func (c *Control) Authenticate(ctx context.Context, secret string) (Principal, error) {
	invalid := api.Unauthenticated("invalid credential")
	if token, err := tunnel.ParseToken(secret); err == nil {
		return c.authenticateConnector(ctx, token)
	}
	if secret == "" || len(secret) > secretLenMax || !strings.HasPrefix(secret, "sk-ant-") {
		return Principal{}, invalid
	}
	if own, ok := c.own.find(secret); ok {
		return own, nil
	}
	var key *store.Key
	var now time.Time
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		now = tx.Now
		key, err = tx.KeyByHash(hashSecret(secret))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return Principal{}, invalid
	}
	if err != nil {
		return Principal{}, err
	}
	if key.RevokedAt != nil || key.ExpiresAt != nil && !key.ExpiresAt.After(now) {
		return Principal{}, invalid
	}
	if key.Type == api.KeySession {
		// A token is worth no more than the key it was given out for.
		if err := c.valid(ctx, key.Parent); err != nil {
			return Principal{}, err
		}
	}
	// Session tokens live for minutes; when they were used last interests nobody.
	if key.Type != api.KeySession && (key.LastUsedAt == nil || now.Sub(*key.LastUsedAt) > touchEvery) {
		if err := c.write(ctx, func(tx *store.Tx) error { return tx.TouchKey(key.ID) }); err != nil {
			c.cfg.Logger.Warn("could not note the use of a key", "key_id", key.ID, "error", err)
		}
	}
	return Principal{
		Kind: seenAs(key), KeyID: key.ID, EnvironmentID: key.EnvironmentID, SessionID: key.SessionID, WorkID: key.WorkID, Parent: key.Parent, Shell: key.Shell,
		Tunnels: slices.Contains(key.Scopes, api.ScopeTunnels), AccountID: key.AccountID,
	}, nil
}

// seenAs is the kind of principal that a key stands for. What an API key or an access
// token may do is said by its scopes; one that is not good for the workspace is no API
// key to anybody who asks for one.
func seenAs(k *store.Key) api.KeyKind {
	switch {
	case k.Type != api.KeyAPI && k.Type != api.KeyAccess:
		return k.Type
	case slices.Contains(k.Scopes, api.ScopeWorkspace):
		return api.KeyAPI
	}
	return api.KeyTunnels
}

// valid refuses a key that has been revoked or has expired. "" is a principal that
// did not come by a key.
func (c *Control) valid(ctx context.Context, id api.KeyID) error {
	return c.db.Read(ctx, func(tx *store.Tx) error { return validKey(tx, id) })
}

func validKey(tx *store.Tx, id api.KeyID) error {
	if id == "" {
		return nil
	}
	k, err := tx.Key(id)
	if errors.Is(err, store.ErrNotFound) || err == nil && (k.RevokedAt != nil || k.ExpiresAt != nil && !k.ExpiresAt.After(tx.Now)) {
		return api.Unauthenticated("invalid credential")
	}
	return err
}

// Bootstrap creates the first API key of a new database. ok is false, and key
// nil, when there is one already. save keeps the secret before the key becomes
// valid, so that a crash in between leaves a secret without a key, which the next
// start replaces, and never a key whose secret nobody has.
func (c *Control) Bootstrap(ctx context.Context, save func(secret string) error) (key *api.Key, ok bool, err error) {
	err = c.write(ctx, func(tx *store.Tx) error {
		if err := tx.Alone(); err != nil {
			return err
		}
		n, err := tx.CountKeys(api.KeyAPI)
		if err != nil || n > 0 {
			return err
		}
		if key, err = c.insertKey(tx, api.KeyAPI, "", api.KeyCreate{
			Name: "admin", Shell: true, Scopes: []api.KeyScope{api.ScopeWorkspace, api.ScopeTunnels},
		}); err != nil {
			return err
		}
		return save(key.Secret)
	})
	return key, key != nil && err == nil, err
}

// CreateKey creates an environment key, or with env "" an API key. The answer is
// the only place where the secret ever appears.
func (c *Control) CreateKey(ctx context.Context, p Principal, env api.EnvironmentID, in api.KeyCreate) (*api.Key, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if err := in.Check(c.cfg.Clock()); err != nil {
		return nil, err
	}
	switch {
	case in.Type != "" && env != "", in.Type != "" && in.Type != api.KeyAPI && in.Type != api.KeyEdge:
		return nil, api.Invalid("type: must be %s or %s, and not be there for the key of an environment", api.KeyAPI, api.KeyEdge)
	case in.Type == api.KeyEdge && (in.Shell || len(in.Scopes) > 0):
		return nil, api.Invalid("type: an %s carries tunnels; it has no shell and no scopes", api.KeyEdge)
	case in.Type == api.KeyEdge && !p.Tunnels:
		return nil, api.Forbidden("type: an %s can only be made with a key that may manage tunnels", api.KeyEdge)
	case in.Shell && env != "":
		return nil, api.Invalid("shell: only API keys open shells; workers serve them")
	case in.Shell && !p.Shell:
		return nil, api.Forbidden("shell: a key that may open shells can only be made with one that may")
	case len(in.Scopes) > 0 && env != "":
		return nil, api.Invalid("scopes: are of API keys; the key of an environment is good for its work alone")
	case slices.Contains(in.Scopes, api.ScopeTunnels) && !p.Tunnels:
		return nil, api.Forbidden("scopes: a key that may manage tunnels can only be made with one that may")
	case in.Shell && len(in.Scopes) > 0 && !slices.Contains(in.Scopes, api.ScopeWorkspace):
		return nil, api.Invalid("shell: a key without the scope %s has no sessions to open shells of", api.ScopeWorkspace)
	case p.AccountID != "":
		return nil, api.Forbidden("a key cannot be made with an access token, which it would outlive; use an API key")
	}
	var key *api.Key
	err := c.write(ctx, func(tx *store.Tx) error {
		kind := cmp.Or(in.Type, api.KeyAPI)
		if env != "" {
			kind = api.KeyEnvironment
			e, err := tx.Environment(env)
			if err != nil {
				return found(err, "environment", string(env))
			}
			if e.ArchivedAt != nil {
				return api.Invalid("environment %s is archived", env)
			}
			if e.Config.Type != api.EnvSelfHosted {
				return api.Invalid("environment %s is not self_hosted: its work is done by the server, and no key is needed", env)
			}
		}
		var err error
		key, err = c.insertKey(tx, kind, env, in)
		return err
	})
	return key, err
}

func (c *Control) insertKey(tx *store.Tx, kind api.KeyKind, env api.EnvironmentID, in api.KeyCreate) (*api.Key, error) {
	prefix := api.PrefixAPIKey
	switch kind {
	case api.KeyEnvironment:
		prefix = api.PrefixEnvKey
	case api.KeyEdge:
		prefix = api.PrefixEdgeKey
	}
	secret, hash, hint := c.newSecret(kind)
	k := api.Key{
		ID: newID[api.KeyID](c, prefix), Type: kind, Name: in.Name, EnvironmentID: env, Hint: hint,
		CreatedAt: tx.Now, ExpiresAt: utc(in.ExpiresAt), Shell: in.Shell, Scopes: in.Scopes,
	}
	if kind == api.KeyAPI && len(k.Scopes) == 0 {
		k.Scopes = []api.KeyScope{api.ScopeWorkspace}
	}
	if err := tx.InsertKey(&store.Key{Key: k, Hash: hash}); err != nil {
		return nil, err
	}
	k.Secret = secret
	return &k, nil
}

// ListKeys lists environment keys, or with env "" API keys and edge keys, the newest
// first.
func (c *Control) ListKeys(ctx context.Context, p Principal, env api.EnvironmentID, req api.PageRequest) (api.Page[*api.Key], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*store.Key, error) {
			if env == "" {
				return tx.ServerKeys(win)
			}
			if _, err := tx.Environment(env); err != nil {
				return nil, found(err, "environment", string(env))
			}
			return tx.Keys(api.KeyEnvironment, env, win)
		},
		func(k *store.Key) (int64, string) { return k.CreatedAt.UnixMicro(), string(k.ID) },
		func(k *store.Key) *api.Key { return &k.Key })
}

// RevokeKey ends a key at once, with the tokens given out for it and the streams
// opened with either. Revoking a revoked key changes nothing. The last
// API key that works cannot be revoked: nobody could get in any more.
func (c *Control) RevokeKey(ctx context.Context, p Principal, env api.EnvironmentID, id api.KeyID) (*api.Key, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if env == "" && id == p.KeyID {
		return nil, api.Invalid("a key cannot revoke itself; use another one")
	}
	var out *api.Key
	err := c.write(ctx, func(tx *store.Tx) error {
		k, err := tx.KeyOf(keyKind(env), env, id)
		if errors.Is(err, store.ErrNotFound) && env == "" {
			k, err = tx.KeyOf(api.KeyEdge, "", id)
		}
		if err != nil {
			return found(err, "key", string(id))
		}
		out = &k.Key
		if k.RevokedAt != nil {
			return nil
		}
		switch k.Type {
		case api.KeyEdge:
			if err := c.endEdgesOf(tx, id); err != nil {
				return err
			}
		case api.KeyAPI:
			if err := tx.Alone(); err != nil {
				return err
			}
			if n, err := tx.CountOtherKeys(id); err != nil {
				return err
			} else if n == 0 {
				return api.Invalid("key %s is the last API key that does not expire; create another one first", id)
			}
		}
		k.RevokedAt = &tx.Now
		tx.Notify(topicKey(id))
		return tx.RevokeKey(id)
	})
	return out, err
}

func keyKind(env api.EnvironmentID) api.KeyKind {
	if env == "" {
		return api.KeyAPI
	}
	return api.KeyEnvironment
}

// utc brings a client's time into the form in which it is kept.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC().Truncate(time.Microsecond)
	return &u
}
