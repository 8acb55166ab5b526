package control

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// CreateCredential puts a credential into a vault. Its secrets are sealed, and given
// back to nobody but those who send them to where they belong.
func (c *Control) CreateCredential(ctx context.Context, p Principal, vault api.VaultID, in api.CredentialCreate) (*api.Credential, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	auth, secrets, err := in.Auth.Split(c.cfg.Clock())
	if err != nil {
		return nil, err
	}
	auth.ExpiresAt = utc(auth.ExpiresAt)
	cred := &store.Credential{Version: 1, Credential: api.Credential{
		ID: newID[api.CredentialID](c, api.PrefixCredential), Type: "vault_credential", VaultID: vault,
		DisplayName: in.DisplayName, Auth: auth, Metadata: in.Metadata,
	}}
	if cred.DisplayName != nil && *cred.DisplayName == "" {
		cred.DisplayName = nil
	}
	if cred.Metadata == nil {
		cred.Metadata = api.Metadata{}
	}
	if err := cred.Check(); err != nil {
		return nil, err
	}
	if _, err := c.GetVault(ctx, p, vault); err != nil {
		return nil, err // before a key elsewhere is asked for nothing
	}
	sealed, err := c.seal(ctx, string(cred.ID), secrets)
	if err != nil {
		return nil, err
	}
	err = c.write(ctx, func(tx *store.Tx) error {
		v, err := tx.LockVault(vault)
		if err := liveVault(v, err, vault); err != nil {
			return err
		}
		if err := roomFor(tx, cred); err != nil {
			return err
		}
		cred.CreatedAt, cred.UpdatedAt = tx.Now, tx.Now
		if err := tx.PutCredential(cred); err != nil {
			return err
		}
		return putSecrets(tx, sealed)
	})
	if err != nil {
		return nil, err
	}
	return &cred.Credential, nil
}

// roomFor refuses a credential that its vault, which is locked, cannot take.
func roomFor(tx *store.Tx, cred *store.Credential) error {
	switch other, err := tx.CredentialFor(cred.VaultID, cred.Auth.Target()); {
	case err == nil && cred.Auth.Type == api.AuthEnvironmentVariable:
		return api.Conflict("vault %s has a credential for the variable %s already: %s; change or archive that one", cred.VaultID, cred.Auth.SecretName, other.ID)
	case err == nil:
		return api.Conflict("vault %s has a credential for %s already: %s; change or archive that one", cred.VaultID, cred.Auth.MCPServerURL, other.ID)
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	n, err := tx.CountCredentials(cred.VaultID)
	if err == nil && n >= api.VaultCredentialsMax {
		return api.Invalid("vault %s has %d credentials, the most there can be; archive one, or use another vault", cred.VaultID, n)
	}
	return err
}

// GetCredential returns a credential, without its secrets.
func (c *Control) GetCredential(ctx context.Context, p Principal, vault api.VaultID, id api.CredentialID) (*api.Credential, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var cred *store.Credential
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		cred, err = tx.Credential(vault, id)
		return found(err, "credential", string(id))
	})
	if err != nil {
		return nil, err
	}
	return &cred.Credential, nil
}

// UpdateCredential changes a credential; fields left out keep their value. New secrets
// are what running sessions use from then on.
func (c *Control) UpdateCredential(ctx context.Context, p Principal, vault api.VaultID, id api.CredentialID, in api.CredentialUpdate) (*api.Credential, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if in.Auth.Set && in.Auth.Null {
		return nil, api.Invalid("auth: cannot be cleared")
	}
	// What is to be sealed is known once the update fits the credential, which is of the
	// same type for ever: only its other fields can change between the two looks.
	var sealed []*store.Secret
	if in.Auth.Set {
		old, err := c.GetCredential(ctx, p, vault, id)
		if err != nil {
			return nil, err
		}
		_, secrets, err := in.Auth.Value.Apply(old.Auth, c.cfg.Clock())
		if err != nil {
			return nil, err
		}
		if sealed, err = c.seal(ctx, string(id), secrets); err != nil {
			return nil, err
		}
	}
	var out *api.Credential
	err := c.write(ctx, func(tx *store.Tx) error {
		cred, err := tx.LockCredential(vault, id)
		if err != nil {
			return found(err, "credential", string(id))
		}
		if cred.ArchivedAt != nil {
			return api.Invalid("credential %s is archived and cannot be changed", id)
		}
		was := cred.Credential
		if err := applyCredentialUpdate(&cred.Credential, in, tx); err != nil {
			return err
		}
		out = &cred.Credential
		if len(sealed) == 0 && reflect.DeepEqual(was, cred.Credential) {
			return nil
		}
		cred.UpdatedAt = tx.Now
		if len(sealed) > 0 {
			// Whoever is renewing the old ones may end, and what became of them is forgotten.
			cred.Version++
			cred.RefreshOwner, cred.RefreshUntil = "", time.Time{}
			cred.RefusedAt, cred.RefusedWhy = nil, ""
			tx.Notify(topicCredential(id))
		}
		if err := putSecrets(tx, sealed); err != nil {
			return err
		}
		return tx.PutCredential(cred)
	})
	return out, err
}

func applyCredentialUpdate(cred *api.Credential, in api.CredentialUpdate, tx *store.Tx) error {
	if in.DisplayName.Set {
		cred.DisplayName = nil
		if !in.DisplayName.Null {
			cred.DisplayName = &in.DisplayName.Value
		}
	}
	cred.Metadata, _ = in.Metadata.Apply(cred.Metadata)
	if in.Auth.Set {
		auth, _, err := in.Auth.Value.Apply(cred.Auth, tx.Now)
		if err != nil {
			return err
		}
		auth.ExpiresAt = utc(auth.ExpiresAt)
		cred.Auth = auth
	}
	return cred.Check()
}

// archiveCredential archives a credential that is not, and removes its secrets.
func archiveCredential(tx *store.Tx, cred *store.Credential) error {
	cred.ArchivedAt, cred.UpdatedAt = &tx.Now, tx.Now
	cred.Version++
	cred.RefreshOwner, cred.RefreshUntil = "", time.Time{}
	tx.Notify(topicCredential(cred.ID))
	if err := tx.DropSecrets(string(cred.ID)); err != nil {
		return err
	}
	return tx.PutCredential(cred)
}

// ArchiveCredential ends a credential and removes its secrets; running sessions lose it
// at their next use. What it was for is free for another. Archiving again changes
// nothing.
func (c *Control) ArchiveCredential(ctx context.Context, p Principal, vault api.VaultID, id api.CredentialID) (*api.Credential, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Credential
	err := c.write(ctx, func(tx *store.Tx) error {
		cred, err := tx.LockCredential(vault, id)
		if err != nil {
			return found(err, "credential", string(id))
		}
		out = &cred.Credential
		if cred.ArchivedAt != nil {
			return nil
		}
		return archiveCredential(tx, cred)
	})
	return out, err
}

// DeleteCredential removes a credential.
func (c *Control) DeleteCredential(ctx context.Context, p Principal, vault api.VaultID, id api.CredentialID) (api.Deleted, error) {
	if err := p.admin(); err != nil {
		return api.Deleted{}, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockCredential(vault, id); err != nil {
			return found(err, "credential", string(id))
		}
		tx.Notify(topicCredential(id))
		return tx.DeleteCredential(id)
	})
	return api.Deleted{ID: string(id), Type: "vault_credential_deleted"}, err
}

// ListCredentials lists the credentials of a vault, the newest first.
func (c *Control) ListCredentials(ctx context.Context, p Principal, vault api.VaultID, archived bool, req api.PageRequest) (api.Page[*api.Credential], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*store.Credential, error) {
			if _, err := tx.Vault(vault); err != nil {
				return nil, found(err, "vault", string(vault))
			}
			return tx.Credentials(vault, archived, win)
		},
		func(c *store.Credential) (int64, string) { return c.CreatedAt.UnixMicro(), string(c.ID) },
		func(c *store.Credential) *api.Credential { return &c.Credential })
}
