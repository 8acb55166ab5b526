package control

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// The sessions of cloud environments are served by workers within the processes of
// the plane. They come in by the public API, as every worker does; here is what they
// are given to do so.

// cloudEnvironmentsMax bounds the environments that are served at a time.
const cloudEnvironmentsMax = 1000

// CloudEnvironments lists the cloud environments whose sessions need a worker.
func (c *Control) CloudEnvironments(ctx context.Context) ([]*api.Environment, error) {
	var out []*api.Environment
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		out, err = tx.CloudEnvironments(cloudEnvironmentsMax)
		return err
	})
	return out, err
}

// CloudConfigured reads cloud environments as they are now, with work or without. Those
// that are gone are left out.
func (c *Control) CloudConfigured(ctx context.Context, ids []api.EnvironmentID) ([]*api.Environment, error) {
	var out []*api.Environment
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		out = nil
		for _, id := range ids {
			e, err := tx.Environment(id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

// CloudChanged receives when CloudEnvironments, or a configuration in it, may have
// changed. It is a hint, and for one receiver.
func (c *Control) CloudChanged() <-chan struct{} { return c.hub.cloud.C }

// OwnKey makes an environment key for a worker within this process. It is kept in
// memory alone, and good until it is dropped.
func (c *Control) OwnKey(env api.EnvironmentID) (secret string, drop func()) {
	secret, _, _ = c.newSecret(api.KeyEnvironment)
	return secret, c.own.add(secret, Principal{Kind: api.KeyEnvironment, EnvironmentID: env, Own: true})
}

// ownKeys are the keys of the workers and of the edge within this process, by hash, so
// that finding one compares no secret byte by byte.
type ownKeys struct {
	mu     sync.Mutex
	owners map[[sha256.Size]byte]Principal
}

func newOwnKeys() *ownKeys {
	return &ownKeys{owners: map[[sha256.Size]byte]Principal{}}
}

func (o *ownKeys) add(secret string, p Principal) (drop func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	hash := sha256.Sum256([]byte(secret))
	o.owners[hash] = p
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.owners, hash)
	}
}

func (o *ownKeys) find(secret string) (p Principal, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok = o.owners[sha256.Sum256([]byte(secret))]
	return p, ok
}

// ErrNoCloud is the error of a Config.Cloud that is switched off.
var ErrNoCloud = errors.New("control: there is no cloud worker")

// cloudReady refuses a session that this server cannot serve.
func (c *Control) cloudReady(ctx context.Context, env api.EnvironmentID) error {
	err := ErrNoCloud
	if c.cfg.Cloud != nil {
		err = c.cfg.Cloud(ctx)
	}
	if errors.Is(err, ErrNoCloud) {
		return api.Invalid("environment %s is a cloud environment, and this server runs no tools itself; start it with --cloud-worker, or use a self_hosted environment and `bailey worker`", env)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.cfg.Logger.Error("a session of a cloud environment was refused: there is no sandbox to run it in", "environment_id", env, "error", err)
		return api.Invalid("environment %s is a cloud environment, and this server's host has no usable sandbox to run its tools in: %s. Its operator has to mend that; a self_hosted environment and `bailey worker` elsewhere do without", env, err)
	}
	return nil
}
