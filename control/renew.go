package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// An access token is renewed by whoever needs it first. Within a process the others wait
// for that one; across replicas the credential's row says who is at it, and until when.
// Many authorization servers take a refresh token once: two at a time would lose it.

const (
	renewTimeout = 30 * time.Second // of the token endpoint
	renewLease   = 45 * time.Second // for all of one attempt; longer than that can take
	renewPause   = 5 * time.Second  // after an attempt that got no answer
	renewLook    = time.Second      // at a row that somebody else has
	refusedFor   = 10 * time.Minute // a refusal is believed
)

// renew makes a credential's access token a new one, or finds that it is new already:
// another than that of cred. The caller reads it again.
func (c *Control) renew(ctx context.Context, cred *store.Credential) error {
	// What the endpoint says must not be lost because the one who asked first has left.
	done := c.renewals.DoChan(string(cred.ID), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewLease+renewTimeout)
		defer cancel()
		return nil, c.renewAlone(ctx, cred)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renewAlone is renew for the one in this process that does it.
func (c *Control) renewAlone(ctx context.Context, cred *store.Credential) error {
	changed := newSignal()
	defer c.hub.subscribe(topicCredential(cred.ID), changed)()
	look := time.NewTicker(renewLook)
	defer look.Stop()
	owner := newID[string](c, "")
	for {
		sealed, err := c.claimRenewal(ctx, cred, owner)
		if err != nil {
			return err
		}
		if sealed != nil {
			return c.renewClaimed(ctx, cred, owner, sealed)
		}
		if moved, err := c.movedOn(ctx, cred); err != nil || moved {
			return err
		}
		select { // somebody else is at it
		case <-ctx.Done():
			return unavailable(cred, "another replica of this server is at it, and has not ended")
		case <-changed.C:
		case <-look.C:
		}
	}
}

// movedOn reports whether the credential is not what cred is any more.
func (c *Control) movedOn(ctx context.Context, cred *store.Credential) (moved bool, err error) {
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		now, err := tx.Credential(cred.VaultID, cred.ID)
		moved = errors.Is(err, store.ErrNotFound) || err == nil && now.Version != cred.Version
		if moved {
			return nil
		}
		return err
	})
	return moved, err
}

// claimRenewal makes owner the one who renews a credential, and returns its secrets. Nil
// means that it is somebody else, or that there is nothing to renew any more.
func (c *Control) claimRenewal(ctx context.Context, cred *store.Credential, owner string) (sealed []*store.Secret, err error) {
	err = c.write(ctx, func(tx *store.Tx) error {
		now, err := tx.LockCredential(cred.VaultID, cred.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		case now.Version != cred.Version || now.Auth.Refresh == nil:
			return nil
		case now.RefusedAt != nil && tx.Now.Sub(*now.RefusedAt) < refusedFor:
			return refused(now, now.RefusedWhy)
		case now.RefreshUntil.After(tx.Now) && now.RefreshOwner == "":
			return unavailable(now, now.RefusedWhy)
		case now.RefreshUntil.After(tx.Now):
			return nil
		}
		now.RefreshOwner, now.RefreshUntil = owner, tx.Now.Add(renewLease)
		if err := tx.PutCredential(now); err != nil {
			return err
		}
		sealed, err = tx.Secrets(string(cred.ID))
		return err
	})
	return sealed, err
}

// renewClaimed asks the token endpoint, and keeps what it says.
func (c *Control) renewClaimed(ctx context.Context, cred *store.Credential, owner string, sealed []*store.Secret) error {
	token, err := c.askToken(ctx, cred, sealed)
	if err != nil {
		return errors.Join(err, c.endRenewal(ctx, cred, owner, err))
	}
	secrets := api.Secrets{api.FieldAccessToken: api.Secret(token.AccessToken)}
	if token.RefreshToken != "" {
		secrets[api.FieldRefreshToken] = api.Secret(token.RefreshToken)
	}
	// The old refresh token may be worth nothing by now, so the new one is not given up
	// because something is away for a moment. A crash here loses it all the same: somebody
	// has to authorize again then.
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		err = c.keepToken(ctx, cred, owner, secrets, token.ExpiresAt)
		if err == nil {
			c.noteRenewal(cred, "renewed", "")
			return nil
		}
		c.cfg.Logger.Error("a renewed access token could not be kept; trying again", "credential_id", cred.ID, "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// askToken asks the token endpoint for a new access token. What it says is on record,
// and so is that it is about to be asked.
func (c *Control) askToken(ctx context.Context, cred *store.Credential, sealed []*store.Secret) (vault.Token, error) {
	secrets, err := c.unseal(ctx, sealed)
	if err != nil {
		return vault.Token{}, err
	}
	if c.cfg.HTTP == nil {
		return vault.Token{}, unavailable(cred, "this server makes no connections to MCP servers")
	}
	r := cred.Auth.Refresh
	if err := c.announce(renewalRecord(cred, "asked", "")); err != nil {
		return vault.Token{}, fmt.Errorf("the audit record cannot be written: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	token, err := vault.Refresh{
		TokenEndpoint: r.TokenEndpoint, AuthMethod: r.TokenEndpointAuth.Type, ClientID: r.ClientID,
		ClientSecret: string(secrets[api.FieldClientSecret]), RefreshToken: string(secrets[api.FieldRefreshToken]),
		Scope: deref(r.Scope), Resource: deref(r.Resource),
	}.Do(ctx, c.cfg.HTTP)
	if err == nil {
		return token, nil
	}
	if e, ok := errors.AsType[*vault.RefreshError](err); ok && e.Final() {
		c.noteRenewal(cred, "refused", e.Error())
		return token, &renewalError{refused(cred, e.Error()), e}
	} else if ok {
		c.noteRenewal(cred, "failed", e.Error())
		return token, &renewalError{unavailable(cred, e.Error()), e}
	}
	return token, err
}

// A renewalError is a public error with what the token endpoint said.
type renewalError struct {
	public *api.Error
	said   *vault.RefreshError
}

func (e *renewalError) Error() string   { return e.public.Error() }
func (e *renewalError) Unwrap() []error { return []error{e.public, e.said} }

// keepToken writes new tokens, unless the credential was changed meanwhile: what somebody
// put there by hand is newer.
func (c *Control) keepToken(ctx context.Context, cred *store.Credential, owner string, secrets api.Secrets, ends time.Time) error {
	sealed, err := c.seal(ctx, string(cred.ID), secrets)
	if err != nil {
		return err
	}
	return c.write(ctx, func(tx *store.Tx) error {
		now, err := tx.LockCredential(cred.VaultID, cred.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && now.Version != cred.Version {
			return nil
		}
		if err != nil {
			return err
		}
		now.Auth.ExpiresAt = nil
		if !ends.IsZero() {
			now.Auth.ExpiresAt = utc(&ends)
		}
		now.Version++
		now.UpdatedAt, now.RefreshedAt = tx.Now, &tx.Now
		now.RefreshOwner, now.RefreshUntil = "", time.Time{}
		now.RefusedAt, now.RefusedWhy = nil, ""
		tx.Notify(topicCredential(cred.ID))
		if err := putSecrets(tx, sealed); err != nil {
			return err
		}
		return tx.PutCredential(now)
	})
}

// endRenewal notes an attempt that came to nothing, so that nobody else waits for it.
func (c *Control) endRenewal(ctx context.Context, cred *store.Credential, owner string, why error) error {
	var said *vault.RefreshError
	errors.As(why, &said)
	return c.write(ctx, func(tx *store.Tx) error {
		now, err := tx.LockCredential(cred.VaultID, cred.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && (now.Version != cred.Version || now.RefreshOwner != owner) {
			return nil
		}
		if err != nil {
			return err
		}
		now.RefreshOwner, now.RefreshUntil = "", time.Time{}
		switch {
		case said != nil && said.Final():
			now.RefusedAt, now.RefusedWhy = &tx.Now, said.Error()
		case said != nil:
			now.RefreshUntil, now.RefusedWhy = tx.Now.Add(renewPause), said.Error()
		}
		tx.Notify(topicCredential(cred.ID))
		return tx.PutCredential(now)
	})
}

func renewalRecord(cred *store.Credential, outcome, detail string) audit.Record {
	return audit.Record{
		Action: audit.CredentialRefresh, Outcome: outcome, Detail: detail,
		Attrs: map[string]string{"credential": string(cred.ID), "vault": string(cred.VaultID), "host": hostOf(cred.Auth.Refresh.TokenEndpoint)},
	}
}

// noteRenewal records what an attempt came to.
func (c *Control) noteRenewal(cred *store.Credential, outcome, detail string) {
	if outcome != "renewed" {
		c.cfg.Logger.Warn("an access token was not renewed", "credential_id", cred.ID, "vault_id", cred.VaultID, "outcome", outcome, "detail", detail)
	}
	if c.cfg.Audit != nil {
		_ = c.cfg.Audit.Note(renewalRecord(cred, outcome, detail)) // logs by itself what it cannot write
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
