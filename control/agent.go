package control

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// CreateAgent stores a new agent as version 1, with every default written out.
func (c *Control) CreateAgent(ctx context.Context, p Principal, in api.AgentCreate) (*api.Agent, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if in.Model == nil {
		return nil, api.Invalid("model: required")
	}
	a := &api.Agent{
		AgentSpec: api.AgentSpec{
			Name: in.Name, Description: in.Description, Model: *in.Model, System: in.System,
			Tools: in.Tools, MCPServers: in.MCPServers, Skills: in.Skills, Multiagent: in.Multiagent,
		},
		ID: newID[api.AgentID](c, api.PrefixAgent), Type: "agent", Metadata: in.Metadata, Version: 1,
	}
	if in.ExecutionIdentity != nil {
		a.ExecutionIdentity = *in.ExecutionIdentity
	}
	if a.Metadata == nil {
		a.Metadata = api.Metadata{}
	}
	if err := checkAgent(a); err != nil {
		return nil, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		a.CreatedAt, a.UpdatedAt = tx.Now, tx.Now
		return tx.PutAgent(a)
	})
	return a, err
}

func checkAgent(a *api.Agent) error {
	if err := a.Resolve(); err != nil {
		return err
	}
	return a.Metadata.Check()
}

// GetAgent returns an agent's newest version, or a given one.
func (c *Control) GetAgent(ctx context.Context, p Principal, id api.AgentID, version int64) (*api.Agent, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var a *api.Agent
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		a, err = agentAt(tx, id, version)
		return err
	})
	return a, err
}

func agentAt(tx *store.Tx, id api.AgentID, version int64) (*api.Agent, error) {
	if version == 0 {
		a, err := tx.Agent(id)
		return a, found(err, "agent", string(id))
	}
	a, err := tx.AgentVersion(id, version)
	return a, found(err, "this version of agent", string(id))
}

// UpdateAgent changes an agent, as a new version if anything changes. A version
// that is given and not the current one is a conflict, even if nothing would
// change.
func (c *Control) UpdateAgent(ctx context.Context, p Principal, id api.AgentID, in api.AgentUpdate) (*api.Agent, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Agent
	err := c.write(ctx, func(tx *store.Tx) error {
		old, err := tx.LockAgent(id)
		if err != nil {
			return found(err, "agent", string(id))
		}
		out = old
		if in.Version.Set && !in.Version.Null && in.Version.Value != old.Version {
			return api.Conflict("agent %s is at version %d, not %d; read it again and repeat the change", id, old.Version, in.Version.Value)
		}
		if old.ArchivedAt != nil {
			return api.Invalid("agent %s is archived and cannot be changed", id)
		}
		next, err := applyAgentUpdate(*old, in)
		if err != nil {
			return err
		}
		if reflect.DeepEqual(normal(next), normal(*old)) {
			return nil
		}
		next.Version++
		next.UpdatedAt = tx.Now
		out = &next
		return tx.PutAgent(out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// normal is the form in which two agents are compared: what a client would see.
func normal(a api.Agent) (v any) {
	b, err := json.Marshal(a)
	if err != nil {
		panic("control: an agent always encodes: " + err.Error())
	}
	_ = json.Unmarshal(b, &v)
	return v
}

func applyAgentUpdate(a api.Agent, in api.AgentUpdate) (api.Agent, error) {
	if in.Name.Set {
		if in.Name.Null {
			return a, api.Invalid("name: cannot be cleared")
		}
		a.Name = in.Name.Value
	}
	if in.Model.Set {
		if in.Model.Null {
			return a, api.Invalid("model: cannot be cleared")
		}
		m := in.Model.Value
		// The same model keeps its effort; another one starts from its default.
		if m.Effort == nil && m.ID == a.Model.ID {
			m.Effort = a.Model.Effort
		}
		a.Model = m
	}
	setText(&a.System, in.System)
	setText(&a.Description, in.Description)
	if in.Tools.Set {
		a.Tools = in.Tools.Value
	}
	if in.MCPServers.Set {
		a.MCPServers = in.MCPServers.Value
	}
	if in.Skills.Set {
		a.Skills = in.Skills.Value
	}
	if in.Multiagent.Set {
		a.Multiagent = in.Multiagent.Value
	}
	if in.ExecutionIdentity.Set {
		a.ExecutionIdentity = in.ExecutionIdentity.Value
	}
	a.Metadata, _ = in.Metadata.Apply(a.Metadata)
	return a, checkAgent(&a)
}

// setText applies an update to a text that null or "" clears.
func setText(field **string, in api.Opt[string]) {
	if !in.Set {
		return
	}
	*field = nil
	if !in.Null && in.Value != "" {
		*field = &in.Value
	}
}

// ArchiveAgent ends the use of an agent for new sessions. Archiving again changes
// nothing.
func (c *Control) ArchiveAgent(ctx context.Context, p Principal, id api.AgentID) (*api.Agent, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var a *api.Agent
	err := c.write(ctx, func(tx *store.Tx) (err error) {
		if a, err = tx.LockAgent(id); err != nil || a.ArchivedAt != nil {
			return found(err, "agent", string(id))
		}
		a.ArchivedAt, a.UpdatedAt = &tx.Now, tx.Now
		return tx.PutAgent(a)
	})
	return a, err
}

// An AgentFilter narrows the agent list.
type AgentFilter struct {
	Created         api.TimeRange
	IncludeArchived bool
}

// ListAgents lists agents, the newest first.
func (c *Control) ListAgents(ctx context.Context, p Principal, f AgentFilter, req api.PageRequest) (api.Page[*api.Agent], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*api.Agent, error) {
			return tx.Agents(f.Created, f.IncludeArchived, win)
		},
		func(a *api.Agent) (int64, string) { return a.CreatedAt.UnixMicro(), string(a.ID) }, same)
}

// ListAgentVersions lists the versions of an agent, the newest first.
func (c *Control) ListAgentVersions(ctx context.Context, p Principal, id api.AgentID, req api.PageRequest) (api.Page[*api.Agent], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*api.Agent, error) {
			if _, err := tx.Agent(id); err != nil {
				return nil, found(err, "agent", string(id))
			}
			return tx.AgentVersions(id, win)
		},
		func(a *api.Agent) (int64, string) { return a.Version, string(a.ID) }, same)
}
