package control

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// The key that secrets are sealed with is outside the database, and a key in a file is on
// one host, while several servers may be on the database. So that all of them seal with
// one key, the database has a secret of its own, the mark, which is sealed with it. Who
// finds no mark makes the key, if it is one to be made, and leaves the mark; who cannot
// open the mark has not the others' key, and seals nothing until it has.

// mark is what is sealed as the mark.
var mark = vault.Owner{ID: "vault", Field: "mark"}

// startVault finds the key that secrets are sealed with. A server without it can do
// everything else; what is sealed with it cannot be used until it is back, and nothing
// is sealed with another one meanwhile.
func (c *Control) startVault(ctx context.Context) error {
	if c.cfg.Vault == nil {
		return nil
	}
	fault, err := c.findKey(ctx)
	if err != nil {
		return fmt.Errorf("find the key of secrets: %w", err)
	}
	if fault != nil {
		c.cfg.Logger.Error("secrets cannot be used: their key is not here", "error", fault)
	}
	return nil
}

// findKey finds the key to seal with, once. fault says why it is not the one to use: it
// may be mended while this server runs, so it is looked for again then.
func (c *Control) findKey(ctx context.Context) (fault, err error) {
	if c.keyFound.Load() {
		return nil, nil
	}
	var marked string
	var inUse []string
	err = c.db.Read(ctx, func(tx *store.Tx) (err error) {
		marked, inUse, err = sealKeys(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	fault = c.cfg.Vault.Missing(inUse)
	switch {
	case marked != "" && c.cfg.Vault.IsCurrent(marked):
		if fault != nil { // which is no matter to what is sealed from now on
			c.cfg.Logger.Error("some secrets cannot be used: their key is not here", "error", fault)
		}
		c.keyFound.Store(true)
		return nil, nil
	case fault != nil:
		return fault, nil
	}
	return c.markKey(ctx, false)
}

// sealKeys reads the ids of the keys that the mark, if there is one, and all secrets are
// sealed with.
func sealKeys(tx *store.Tx) (marked string, inUse []string, err error) {
	m, err := tx.Secret(mark.ID, mark.Field)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", nil, err
	}
	if err == nil {
		marked = m.KeyID
	}
	keys, err := tx.SecretKeys()
	return marked, slices.Sorted(maps.Keys(keys)), err
}

// markKey leaves the mark of this server's key, which it makes if it is a file that is
// not there. With abandon it does so whatever other keys are in use. Servers do it one
// after the other. A crash before the commit leaves a key file without a mark: it is the
// key at the next start, unless another server was first.
func (c *Control) markKey(ctx context.Context, abandon bool) (fault, err error) {
	v := c.cfg.Vault
	seal := func() (sealed vault.Sealed, err error) { return v.Seal(ctx, mark, []byte("bailey")) }
	var sealed vault.Sealed
	if !v.InFile() { // it may take a while, so it is not done in the transaction
		if sealed, fault = seal(); fault != nil {
			return fault, nil
		}
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		if err := tx.Alone(); err != nil {
			return err
		}
		marked, inUse, err := sealKeys(tx)
		if err != nil || marked != "" && v.IsCurrent(marked) {
			return err // another server with this key was first
		}
		if abandon {
			inUse = nil
		}
		if fault = v.Start(ctx, inUse); fault == nil && sealed == "" {
			sealed, fault = seal()
		}
		if fault != nil {
			return nil
		}
		return tx.PutSecret(&store.Secret{Owner: mark.ID, Field: mark.Field, KeyID: sealed.KeyID(), Sealed: string(sealed)})
	})
	if err == nil && fault == nil {
		c.keyFound.Store(true)
	}
	return fault, err
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

// The bounds of what one request moves: secrets, and for how long. A key that is
// elsewhere is asked twice for each.
const (
	rewrapMax   = 200
	rewrapFor   = 20 * time.Second
	rewrapBatch = 100 // secrets that are read at a time
)

// RotateVaultKey makes a new key and moves secrets to it, while everything runs: each is
// usable at every moment, under the one key or the other. Secrets that cannot be opened
// are counted and left alone. The rest is moved by further requests, which say where the
// one before has ended.
func (c *Control) RotateVaultKey(ctx context.Context, p Principal, in api.VaultKeyRotate) (*api.VaultKeyRotation, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if c.cfg.Vault == nil {
		return nil, noVault(errors.New("none is set up"))
	}
	owner, field, err := rotationPage(in)
	if err != nil {
		return nil, err
	}
	if c.cfg.Vault.InFile() && !c.cfg.Sole && !in.SharedKeyFile {
		return nil, api.Invalid("shared_key_file: other servers may be on this database, and one that does not read this server's key file would lose all secrets; say shared_key_file if every one reads it, or there is no other")
	}
	fault, err := c.findKey(ctx)
	if err == nil && in.AbandonLostKey {
		if fault == nil {
			return nil, api.Invalid("abandon_lost_key: the key that this server's secrets are sealed with is not lost")
		}
		in.RewrapOnly = true // the one there is now is as new as can be
		fault, err = c.markKey(ctx, true)
	}
	if err != nil {
		return nil, err
	}
	if fault != nil {
		c.cfg.Logger.Error("the key that secrets are sealed with cannot be used", "error", fault)
		return nil, noVault(fault)
	}
	current, err := c.newVaultKey(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &api.VaultKeyRotation{Type: "vault_key_rotation", KeyID: current}
	for began := time.Now(); ; {
		var batch []*store.Secret
		err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
			batch, err = tx.SecretsNotUnder(current, owner, field, rewrapBatch)
			return err
		})
		if err != nil || len(batch) == 0 {
			return out, err
		}
		for _, row := range batch {
			if out.Rewrapped+out.Failed >= rewrapMax || time.Since(began) > rewrapFor {
				out.NextPage = base64.RawURLEncoding.EncodeToString([]byte(owner + "\x00" + field))
				return out, nil
			}
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
			owner, field = row.Owner, row.Field
		}
	}
}

// rotationPage is the secret that an earlier request ended with.
func rotationPage(in api.VaultKeyRotate) (owner, field string, err error) {
	if in.Page == "" {
		return "", "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(in.Page)
	owner, field, ok := strings.Cut(string(text), "\x00")
	if err != nil || !ok {
		return "", "", api.Invalid("page: is not one that a rotation has ended with")
	}
	if !in.RewrapOnly {
		return "", "", api.Invalid("page: goes with rewrap_only; without, another key would be made")
	}
	return owner, field, nil
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
