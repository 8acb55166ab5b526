package control

import (
	"context"
	"net/url"

	"github.com/bailey-platform/bailey/api"
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
