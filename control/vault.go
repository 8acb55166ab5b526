package control

import (
	"context"
	"reflect"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// CreateVault stores a new vault.
func (c *Control) CreateVault(ctx context.Context, p Principal, in api.VaultCreate) (*api.Vault, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	v := &api.Vault{ID: newID[api.VaultID](c, api.PrefixVault), Type: "vault", DisplayName: in.DisplayName, Metadata: in.Metadata}
	if v.Metadata == nil {
		v.Metadata = api.Metadata{}
	}
	if err := v.Check(); err != nil {
		return nil, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		v.CreatedAt, v.UpdatedAt = tx.Now, tx.Now
		return tx.PutVault(v)
	})
	return v, err
}

// GetVault returns a vault.
func (c *Control) GetVault(ctx context.Context, p Principal, id api.VaultID) (*api.Vault, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var v *api.Vault
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		v, err = tx.Vault(id)
		return found(err, "vault", string(id))
	})
	return v, err
}

// liveVault refuses a vault that is archived, or not there.
func liveVault(v *api.Vault, err error, id api.VaultID) error {
	if err != nil {
		return found(err, "vault", string(id))
	}
	if v.ArchivedAt != nil {
		return api.Invalid("vault %s is archived and cannot be changed", id)
	}
	return nil
}

// UpdateVault changes a vault; fields left out keep their value.
func (c *Control) UpdateVault(ctx context.Context, p Principal, id api.VaultID, in api.VaultUpdate) (*api.Vault, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Vault
	err := c.write(ctx, func(tx *store.Tx) error {
		v, err := tx.LockVault(id)
		if err := liveVault(v, err, id); err != nil {
			return err
		}
		next := *v
		if in.DisplayName.Set {
			next.DisplayName = in.DisplayName.Value // null is refused as "" is
		}
		next.Metadata, _ = in.Metadata.Apply(next.Metadata)
		if err := next.Check(); err != nil {
			return err
		}
		out = &next
		if reflect.DeepEqual(next, *v) {
			return nil
		}
		next.UpdatedAt = tx.Now
		return tx.PutVault(out)
	})
	return out, err
}

// ArchiveVault makes a vault read-only, archives its credentials and removes their
// secrets. New sessions cannot have it; those that do go on without its credentials.
// Archiving again changes nothing.
func (c *Control) ArchiveVault(ctx context.Context, p Principal, id api.VaultID) (*api.Vault, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var v *api.Vault
	err := c.write(ctx, func(tx *store.Tx) (err error) {
		if v, err = tx.LockVault(id); err != nil || v.ArchivedAt != nil {
			return found(err, "vault", string(id))
		}
		credentials, err := tx.LiveCredentials(id, "")
		if err != nil {
			return err
		}
		for _, cred := range credentials {
			if cred, err = tx.LockCredential(id, cred.ID); err != nil {
				return err
			}
			if err := archiveCredential(tx, cred); err != nil {
				return err
			}
		}
		v.ArchivedAt, v.UpdatedAt = &tx.Now, tx.Now
		return tx.PutVault(v)
	})
	return v, err
}

// DeleteVault removes a vault with its credentials. Sessions that have it go on without.
func (c *Control) DeleteVault(ctx context.Context, p Principal, id api.VaultID) (api.Deleted, error) {
	if err := p.admin(); err != nil {
		return api.Deleted{}, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockVault(id); err != nil {
			return found(err, "vault", string(id))
		}
		credentials, err := tx.LiveCredentials(id, "")
		if err != nil {
			return err
		}
		for _, cred := range credentials {
			tx.Notify(topicCredential(cred.ID))
		}
		return tx.DeleteVault(id)
	})
	return api.Deleted{ID: string(id), Type: "vault_deleted"}, err
}

// ListVaults lists vaults, the newest first.
func (c *Control) ListVaults(ctx context.Context, p Principal, archived bool, req api.PageRequest) (api.Page[*api.Vault], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*api.Vault, error) { return tx.Vaults(archived, win) },
		func(v *api.Vault) (int64, string) { return v.CreatedAt.UnixMicro(), string(v.ID) }, same)
}

// sessionVaults refuses vaults that a new session cannot have.
func sessionVaults(tx *store.Tx, ids []api.VaultID) error {
	for i, id := range ids {
		v, err := tx.PinVault(id)
		if err != nil {
			return found(err, "vault", string(id))
		}
		if v.ArchivedAt != nil {
			return api.Invalid("vault_ids.%d: vault %s is archived; new sessions cannot use it", i, id)
		}
	}
	return nil
}
