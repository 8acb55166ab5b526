package control

import (
	"context"
	"reflect"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// CreateEnvironment stores a new environment.
func (c *Control) CreateEnvironment(ctx context.Context, p Principal, in api.EnvironmentCreate) (*api.Environment, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	e := &api.Environment{
		ID: newID[api.EnvironmentID](c, api.PrefixEnvironment), Type: "environment", Name: in.Name, Description: in.Description,
		Config: api.EnvironmentConfig{Type: api.EnvCloud}, Metadata: in.Metadata, Scope: "organization",
	}
	if in.Config != nil {
		e.Config = *in.Config
	}
	if in.Scope != nil {
		e.Scope = *in.Scope
	}
	if e.Metadata == nil {
		e.Metadata = api.Metadata{}
	}
	if err := e.Check(); err != nil {
		return nil, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		e.CreatedAt, e.UpdatedAt = tx.Now, tx.Now
		return tx.PutEnvironment(e)
	})
	return e, err
}

// GetEnvironment returns an environment.
func (c *Control) GetEnvironment(ctx context.Context, p Principal, id api.EnvironmentID) (*api.Environment, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var e *api.Environment
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		e, err = tx.Environment(id)
		return found(err, "environment", string(id))
	})
	return e, err
}

// UpdateEnvironment changes an environment; fields left out keep their value.
func (c *Control) UpdateEnvironment(ctx context.Context, p Principal, id api.EnvironmentID, in api.EnvironmentUpdate) (*api.Environment, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Environment
	err := c.write(ctx, func(tx *store.Tx) error {
		old, err := tx.LockEnvironment(id)
		if err != nil {
			return found(err, "environment", string(id))
		}
		out = old
		if old.ArchivedAt != nil {
			return api.Invalid("environment %s is archived and cannot be changed", id)
		}
		next, err := applyEnvironmentUpdate(*old, in)
		if err != nil || reflect.DeepEqual(next, *old) {
			return err
		}
		next.UpdatedAt = tx.Now
		out = &next
		tx.Notify(topicCloud)
		return tx.PutEnvironment(out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func applyEnvironmentUpdate(e api.Environment, in api.EnvironmentUpdate) (api.Environment, error) {
	if in.Name.Set {
		if in.Name.Null {
			return e, api.Invalid("name: cannot be cleared")
		}
		e.Name = in.Name.Value
	}
	if in.Description.Set {
		e.Description = nil
		if !in.Description.Null { // here "" is a value of its own
			e.Description = &in.Description.Value
		}
	}
	if in.Scope.Set && !in.Scope.Null {
		e.Scope = in.Scope.Value
	}
	if in.Config.Set && !in.Config.Null {
		var err error
		if e.Config, err = in.Config.Value.Apply(e.Config); err != nil {
			return e, err
		}
	}
	for k, v := range in.Metadata {
		if v != nil && *v == "" {
			in.Metadata[k] = nil // unlike elsewhere, "" deletes here too
		}
	}
	e.Metadata, _ = in.Metadata.Apply(e.Metadata)
	return e, e.Check()
}

// ArchiveEnvironment makes an environment read-only. Its sessions go on; new ones
// are refused. Archiving again changes nothing.
func (c *Control) ArchiveEnvironment(ctx context.Context, p Principal, id api.EnvironmentID) (*api.Environment, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var e *api.Environment
	err := c.write(ctx, func(tx *store.Tx) (err error) {
		if e, err = tx.LockEnvironment(id); err != nil || e.ArchivedAt != nil {
			return found(err, "environment", string(id))
		}
		e.ArchivedAt, e.UpdatedAt = &tx.Now, tx.Now
		return tx.PutEnvironment(e)
	})
	return e, err
}

// DeleteEnvironment removes an environment that no session refers to, with its
// keys.
func (c *Control) DeleteEnvironment(ctx context.Context, p Principal, id api.EnvironmentID) (api.Deleted, error) {
	if err := p.admin(); err != nil {
		return api.Deleted{}, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockEnvironment(id); err != nil {
			return found(err, "environment", string(id))
		}
		n, err := tx.SessionsIn(id)
		if err != nil {
			return err
		}
		if n > 0 {
			return api.Conflict("environment %s still has %d sessions; delete them first, or archive the environment", id, n)
		}
		return tx.DeleteEnvironment(id)
	})
	return api.Deleted{ID: string(id), Type: "environment_deleted"}, err
}

// ListEnvironments lists environments, the newest first.
func (c *Control) ListEnvironments(ctx context.Context, p Principal, archived bool, req api.PageRequest) (api.Page[*api.Environment], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*api.Environment, error) {
			return tx.Environments(archived, win)
		},
		func(e *api.Environment) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) }, same)
}
