package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// Secrets that have to be given back are kept sealed, each under the id of the object
// that it is one of. Sealing and opening may take a while, as the key may be somewhere
// else: it is done outside transactions.

// seal seals the secrets of an object, by field.
func (c *Control) seal(ctx context.Context, owner string, secrets api.Secrets) ([]*store.Secret, error) {
	var rows []*store.Secret
	for field, secret := range secrets {
		if c.cfg.Vault == nil {
			return nil, noVault(errors.New("none is set up"))
		}
		if fault, err := c.findKey(ctx); err != nil {
			return nil, err
		} else if fault != nil {
			c.cfg.Logger.Error("a secret could not be sealed", "error", fault)
			return nil, noVault(fault)
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
