package control

import (
	"context"
	"encoding/json"
	"net/url"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
)

// CodeMCPBlocked is the code of the error for an MCP server that the networking of an
// environment does not allow.
const CodeMCPBlocked = "mcp_egress_blocked_error"

// checkMCPServers refuses an agent whose MCP servers the environment does not allow. That
// they can be reached is not looked at: sessions tell of it.
func checkMCPServers(env *api.Environment, agent api.SessionAgent) error {
	for i, s := range agent.MCPServers {
		if err := mcpAllowed(env, s); err != nil {
			return nested(err, "agent.mcp_servers.%d", i)
		}
	}
	return nil
}

func mcpAllowed(env *api.Environment, server api.MCPServer) error {
	u, err := url.Parse(server.URL)
	if err != nil {
		return api.Invalid("url: not a URL")
	}
	if !env.Config.Networking.AllowsMCP(u.Hostname()) {
		return api.InvalidCode(CodeMCPBlocked, "url: the networking of environment %s is limited and does not allow %s; add it to allowed_hosts, or set allow_mcp_servers", env.ID, u.Hostname())
	}
	return nil
}

// MCPAllowed says whether a session may connect to an MCP server now: the networking of
// its environment may have changed since it was created. The error is an [*api.Error] with
// [CodeMCPBlocked] if it may not.
func (c *Control) MCPAllowed(ctx context.Context, environment api.EnvironmentID, server api.MCPServer) error {
	return c.db.Read(ctx, func(tx *store.Tx) error {
		env, err := tx.Environment(environment)
		if err != nil {
			return found(err, "environment", string(environment))
		}
		return mcpAllowed(env, server)
	})
}

// An MCPCall is a call of an MCP tool that the plane makes for a session.
type MCPCall struct {
	Session api.SessionID
	ID      api.EventID // of the agent.mcp_tool_use event
	Server  string
	Tool    string
	Input   []byte
	Start   time.Time
}

func (m MCPCall) record(action string) audit.Record {
	return audit.Record{
		Action: action, Actor: "plane", Session: string(m.Session), Call: string(m.ID), Tool: m.Tool,
		Attrs: map[string]string{"mcp_server": m.Server}, Input: m.Input, Start: m.Start,
	}
}

// BeginMCPCall puts a call on record before it is made. With an error it must not be.
func (c *Control) BeginMCPCall(m MCPCall) error { return c.announce(m.record(audit.ToolStart)) }

// EndMCPCall puts on record what it came to. With an error output must not be passed on.
func (c *Control) EndMCPCall(m MCPCall, end time.Time, outcome string, output []byte) error {
	r := m.record(audit.ToolEnd)
	r.End, r.Outcome, r.Output = end, outcome, output
	return c.announce(r)
}

// An OutputNote is the private part of an agent.mcp_tool_result event whose text was too
// long for the model.
type OutputNote struct {
	Output string `json:"output"`
}

// EventOutput returns the whole text of a result of which the event shows only a part: see
// [api.AgentMCPToolResult]. It is for whoever runs the session's built-in tools, and for
// the holders of API keys.
func (c *Control) EventOutput(ctx context.Context, p Principal, session api.SessionID, event api.EventID) (string, error) {
	var note OutputNote
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, session)
		if err != nil {
			return err
		}
		found, err := tx.EventsByID(s.ID, []api.EventID{event})
		if err != nil {
			return err
		}
		for _, e := range found {
			if b, ok := e.Event.Body.(*api.AgentMCPToolResult); ok && b.OutputFile != "" {
				return json.Unmarshal(e.Private, &note)
			}
		}
		return api.NotFound("event %s has no output besides what it shows", event)
	})
	return note.Output, err
}
