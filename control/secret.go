package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// Secrets that have to be given back are kept sealed, each under the id of the object
// that it is one of. Sealing and opening may take a while, as the key may be somewhere
// else: it is done outside transactions.

// startVault finds the key that secrets are sealed with. A server without it can do
// everything else; what is sealed with it cannot be used until it is back, and nothing
// is sealed with a new one meanwhile.
func (c *Control) startVault(ctx context.Context) error {
	if c.cfg.Vault == nil {
		return nil
	}
	var inUse []string
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		keys, err := tx.SecretKeys()
		for id := range keys {
			inUse = append(inUse, id)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read which keys secrets are sealed with: %w", err)
	}
	slices.Sort(inUse)
	if err := c.cfg.Vault.Start(ctx, inUse); err != nil {
		c.cfg.Logger.Error("secrets cannot be used: their key is not here", "error", err)
	}
	return nil
}

// seal seals the secrets of an object, by field.
func (c *Control) seal(ctx context.Context, owner string, secrets api.Secrets) ([]*store.Secret, error) {
	var rows []*store.Secret
	for field, secret := range secrets {
		if c.cfg.Vault == nil {
			return nil, noVault(errors.New("none is set up"))
		}
		sealed, err := c.cfg.Vault.Seal(ctx, vault.Owner{ID: owner, Field: field}, []byte(secret))
		if err != nil {
			c.cfg.Logger.Error("a secret could not be sealed", "error", err)
			return nil, noVault(err)
		}
		rows = append(rows, &store.Secret{Owner: owner, Field: field, KeyID: sealed.KeyID(), Sealed: string(sealed)})
	}
	return rows, nil
}

// putSecrets writes what seal returned.
func putSecrets(tx *store.Tx, rows []*store.Secret) error {
	for _, row := range rows {
		if err := tx.PutSecret(row); err != nil {
			return err
		}
	}
	return nil
}

// unseal opens secrets of one object.
func (c *Control) unseal(ctx context.Context, rows []*store.Secret) (api.Secrets, error) {
	secrets := api.Secrets{}
	for _, row := range rows {
		if c.cfg.Vault == nil {
			return nil, noVault(errors.New("none is set up"))
		}
		secret, err := c.cfg.Vault.Open(ctx, vault.Owner{ID: row.Owner, Field: row.Field}, vault.Sealed(row.Sealed))
		if err != nil {
			c.cfg.Logger.Error("a secret could not be opened", "error", err)
			return nil, noVault(err)
		}
		secrets[row.Field] = api.Secret(secret)
	}
	return secrets, nil
}

// noVault is the public error for a key that does not do its work. What is wrong with it
// is in the log, for the operator.
func noVault(err error) error {
	e := &api.Error{
		Status: http.StatusServiceUnavailable, Type: api.TypeAPI,
		Message: "the key that this server's secrets are sealed with cannot be used; its operator has to see to it, and its log says what is wrong",
		Details: map[string]any{"error_code": CodeCredentialUnavailable, "error_visibility": "user_facing"},
	}
	if errors.Is(err, vault.ErrUnavailable) {
		e.RetryAfter = 5 * time.Second
	}
	return e
}

// VaultKeys lists the keys that secrets are sealed with, the current one first.
func (c *Control) VaultKeys(ctx context.Context, p Principal) (*api.VaultKeys, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if c.cfg.Vault == nil {
		return nil, noVault(errors.New("none is set up"))
	}
	current, err := c.cfg.Vault.Check(ctx)
	if err != nil {
		c.cfg.Logger.Error("the key that secrets are sealed with cannot be used", "error", err)
		return nil, noVault(err)
	}
	var uses map[string]int64
	err = c.db.Read(ctx, func(tx *store.Tx) (err error) {
		uses, err = tx.SecretKeys()
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &api.VaultKeys{Data: []api.VaultKey{{ID: current, Type: "vault_key", Current: true, Secrets: uses[current]}}}
	delete(uses, current)
	for id, n := range uses {
		out.Data = append(out.Data, api.VaultKey{ID: id, Type: "vault_key", Secrets: n})
	}
	slices.SortFunc(out.Data[1:], func(a, b api.VaultKey) int { return int(b.Secrets - a.Secrets) })
	return out, nil
}

// rewrapBatch is how many secrets are re-wrapped between two looks at the database.
const rewrapBatch = 100

// RotateVaultKey makes a new key and moves every secret to it, while everything runs: each
// is usable at every moment, under the one key or the other. It can be done again if it
// did not come to its end; secrets that cannot be opened are counted and left alone.
func (c *Control) RotateVaultKey(ctx context.Context, p Principal, in api.VaultKeyRotate) (*api.VaultKeyRotation, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if c.cfg.Vault == nil {
		return nil, noVault(errors.New("none is set up"))
	}
	current, err := c.newVaultKey(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &api.VaultKeyRotation{Type: "vault_key_rotation", KeyID: current}
	for owner, field := "", ""; ; {
		var batch []*store.Secret
		err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
			batch, err = tx.SecretsNotUnder(current, owner, field, rewrapBatch)
			return err
		})
		if err != nil || len(batch) == 0 {
			return out, err
		}
		for _, row := range batch {
			done, err := c.rewrap(ctx, row)
			switch {
			case err != nil && errors.Is(err, vault.ErrUnavailable):
				return nil, noVault(err)
			case err != nil:
				c.cfg.Logger.Error("a secret could not be moved to the current key", "error", err)
				out.Failed++
			case done:
				out.Rewrapped++
			}
		}
		last := batch[len(batch)-1]
		owner, field = last.Owner, last.Field
	}
}

// newVaultKey makes the key that secrets are to be moved to, or finds the one there is.
func (c *Control) newVaultKey(ctx context.Context, in api.VaultKeyRotate) (id string, err error) {
	if !in.RewrapOnly {
		if id, err = c.cfg.Vault.Rotate(ctx); err == nil {
			return id, nil
		}
		if !errors.Is(err, vault.ErrUnavailable) {
			return "", api.Invalid("no new key was made: %s", err)
		}
	} else if id, err = c.cfg.Vault.Check(ctx); err == nil {
		return id, nil
	}
	c.cfg.Logger.Error("the key that secrets are sealed with cannot be used", "error", err)
	return "", noVault(err)
}

// rewrap moves one secret to the current key, unless it was changed meanwhile: it is
// under that key then.
func (c *Control) rewrap(ctx context.Context, row *store.Secret) (done bool, err error) {
	sealed, err := c.cfg.Vault.Rewrap(ctx, vault.Owner{ID: row.Owner, Field: row.Field}, vault.Sealed(row.Sealed))
	if err != nil {
		return false, err
	}
	next := &store.Secret{Owner: row.Owner, Field: row.Field, KeyID: sealed.KeyID(), Sealed: string(sealed)}
	err = c.write(ctx, func(tx *store.Tx) error {
		done, err = tx.ResealSecret(row, next)
		return err
	})
	return done, err
}
