package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

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
	renewKeep    = time.Minute      // for writing down what it said
	renewLease   = renewTimeout + renewKeep + 15*time.Second
	renewWait    = renewLease + 15*time.Second // for somebody else's lease to end, and for the key of secrets
	renewPause   = 5 * time.Second             // after an attempt that got no answer
	renewLook    = time.Second                 // at a row that somebody else has
	refusedFor   = 10 * time.Minute            // a refusal is believed
)

// renewals are those under way in this process.
type renewals struct {
	group singleflight.Group // by credential

	under sync.WaitGroup
	mu    sync.Mutex
	ended bool // guarded by mu: no more are begun, and under is waited for
}

func (r *renewals) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.under.Add(1)
	}
	return !r.ended
}

// end begins no more, and reports whether those under way have ended in time: for the
// one that has asked, the endpoint's answer must not be lost.
func (r *renewals) end(most time.Duration) bool {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.under.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(most):
		return false
	}
}

// renew makes a credential's access token a new one, or finds that it is new already:
// another than that of cred. The caller reads it again.
func (c *Control) renew(ctx context.Context, cred *store.Credential) error {
	// What the endpoint says must not be lost because the one who asked first has left.
	done := c.renewals.group.DoChan(string(cred.ID), func() (any, error) {
		if !c.renewals.begin() {
			return nil, c.ending(cred)
		}
		defer c.renewals.under.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewWait)
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

func (c *Control) ending(cred *store.Credential) error {
	return unavailable(cred, "this server is about to end")
}

// renewAlone is renew for the one in this process that does it. ctx bounds the waiting
// for others.
func (c *Control) renewAlone(ctx context.Context, cred *store.Credential) error {
	if c.cfg.HTTP == nil {
		return unavailable(cred, "this server makes no connections to MCP servers")
	}
	secrets, err := c.openRenewal(ctx, cred)
	if err != nil || secrets == nil {
		return err
	}
	changed := newSignal()
	defer c.hub.subscribe(topicCredential(cred.ID), changed)()
	look := time.NewTicker(renewLook)
	defer look.Stop()
	owner := newID[string](c, "")
	for {
		if c.hub.isClosed() {
			return c.ending(cred)
		}
		claimed, err := c.claimRenewal(ctx, cred, owner)
		if err != nil {
			return err
		}
		if claimed {
			return c.renewClaimed(context.WithoutCancel(ctx), cred, owner, secrets)
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

// openRenewal opens the secrets that a token endpoint is shown. The key that they are
// sealed with may take a while, so it is done before the claim. Nil means that there is
// nothing to renew any more.
func (c *Control) openRenewal(ctx context.Context, cred *store.Credential) (api.Secrets, error) {
	var sealed []*store.Secret
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		now, err := tx.Credential(cred.VaultID, cred.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && (now.Version != cred.Version || now.Auth.Refresh == nil) {
			return nil
		}
		if err != nil {
			return err
		}
		sealed, err = tx.Secrets(string(cred.ID))
		return err
	})
	sealed = slices.DeleteFunc(sealed, func(s *store.Secret) bool {
		return s.Field != api.FieldRefreshToken && s.Field != api.FieldClientSecret
	})
	if err != nil || len(sealed) == 0 {
		return nil, err
	}
	return c.unseal(ctx, sealed)
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

// claimRenewal makes owner the one who renews a credential. False means that it is
// somebody else, or that cred is not what the credential is any more.
func (c *Control) claimRenewal(ctx context.Context, cred *store.Credential, owner string) (claimed bool, err error) {
	err = c.write(ctx, func(tx *store.Tx) error {
		claimed = false
		now, err := tx.LockCredential(cred.VaultID, cred.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		case now.Version != cred.Version:
			return nil
		case now.RefusedAt != nil && tx.Now.Sub(*now.RefusedAt) < refusedFor:
			return refused(now, now.RefusedWhy)
		case now.RefreshUntil.After(tx.Now) && now.RefreshOwner == "":
			return unavailable(now, now.RefusedWhy)
		case now.RefreshUntil.After(tx.Now):
			return nil
		}
		now.RefreshOwner, now.RefreshUntil = owner, tx.Now.Add(renewLease)
		claimed = true
		return tx.PutCredential(now)
	})
	return claimed, err
}

// renewClaimed asks the token endpoint, and keeps what it says. It takes no longer than
// the lease.
func (c *Control) renewClaimed(ctx context.Context, cred *store.Credential, owner string, shown api.Secrets) error {
	token, err := c.askToken(ctx, cred, shown)
	ctx, cancel := context.WithTimeout(ctx, renewKeep)
	defer cancel()
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
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err = c.keepToken(ctx, cred, secrets, token.ExpiresAt)
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
func (c *Control) askToken(ctx context.Context, cred *store.Credential, secrets api.Secrets) (vault.Token, error) {
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
func (c *Control) keepToken(ctx context.Context, cred *store.Credential, secrets api.Secrets, ends time.Time) error {
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
