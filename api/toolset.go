package api

import (
	"bytes"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// The kinds of an [AgentTool].
const (
	ToolsetBuiltin = "agent_toolset_20260401"
	ToolsetMCP     = "mcp_toolset"
	ToolCustom     = "custom"
)

// BuiltinTools are the tools of [ToolsetBuiltin], in the order of output.
var BuiltinTools = []string{"bash", "read", "write", "edit", "glob", "grep", "web_search", "web_fetch"}

// SandboxTools are the built-in tools that run in a box, on a worker.
var SandboxTools = BuiltinTools[:6]

// The permission policies of a tool.
const (
	AlwaysAllow = "always_allow"
	AlwaysAsk   = "always_ask"
	Auto        = "auto"
)

// An AgentTool is one entry of an agent's tools: the built-in toolset, the tools
// of one MCP server, or one custom tool that the client runs.
type AgentTool struct {
	Type string

	// Toolsets.
	DefaultConfig *ToolDefaults
	Configs       []ToolConfig
	MCPServerName string // ToolsetMCP

	// ToolCustom.
	Name        string
	Description string
	InputSchema json.RawMessage
}

// ToolDefaults hold for every tool of a toolset that no [ToolConfig] names.
type ToolDefaults struct {
	Enabled          *bool             `json:"enabled"`
	PermissionPolicy *PermissionPolicy `json:"permission_policy"`
}

// A ToolConfig sets one tool of a toolset. Null fields inherit.
type ToolConfig struct {
	Type             string            `json:"type,omitempty"` // equal to Name; built-in toolset only
	Name             string            `json:"name"`
	Enabled          *bool             `json:"enabled"`
	PermissionPolicy *PermissionPolicy `json:"permission_policy"`

	// Settings of the web tools, kept as given; the tools themselves are not
	// offered by this server yet.
	AllowedDomains   []string        `json:"allowed_domains,omitempty"`
	BlockedDomains   []string        `json:"blocked_domains,omitempty"`
	MaxContentTokens *int64          `json:"max_content_tokens,omitempty"`
	UserLocation     json.RawMessage `json:"user_location,omitempty"`
	URLSources       json.RawMessage `json:"url_sources,omitempty"`
}

// A PermissionPolicy says who decides whether a call runs.
type PermissionPolicy struct {
	Type string `json:"type"`
}

type toolsetJSON struct {
	Type          string        `json:"type"`
	MCPServerName string        `json:"mcp_server_name,omitempty"`
	DefaultConfig *ToolDefaults `json:"default_config"`
	Configs       []ToolConfig  `json:"configs"`
}

type customToolJSON struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"input_schema"`
}

func (t AgentTool) MarshalJSON() ([]byte, error) {
	if t.Type == ToolCustom {
		return json.Marshal(customToolJSON{t.Type, t.Name, t.Description, t.InputSchema})
	}
	return json.Marshal(toolsetJSON{t.Type, t.MCPServerName, t.DefaultConfig, t.Configs})
}

func (t *AgentTool) UnmarshalJSON(data []byte) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Invalid("must be an object with a type")
	}
	switch head.Type {
	case ToolsetBuiltin, ToolsetMCP:
		var j toolsetJSON
		if err := DecodeStrict(data, &j); err != nil {
			return err
		}
		*t = AgentTool{Type: j.Type, DefaultConfig: j.DefaultConfig, Configs: j.Configs, MCPServerName: j.MCPServerName}
	case ToolCustom:
		var j customToolJSON
		if err := DecodeStrict(data, &j); err != nil {
			return err
		}
		*t = AgentTool{Type: j.Type, Name: j.Name, Description: j.Description, InputSchema: j.InputSchema}
	default:
		return Invalid("tools: unknown type %q; use %q, %q or %q", head.Type, ToolsetBuiltin, ToolsetMCP, ToolCustom)
	}
	return nil
}

// resolve fills the defaults of a toolset: everything enabled; built-in tools
// always allowed, MCP tools always asked for.
func (t *AgentTool) resolve() error {
	if t.Type == ToolCustom {
		return nil
	}
	if t.DefaultConfig == nil {
		t.DefaultConfig = &ToolDefaults{}
	}
	d := t.DefaultConfig
	if d.Enabled == nil {
		yes := true
		d.Enabled = &yes
	}
	if d.PermissionPolicy == nil {
		d.PermissionPolicy = &PermissionPolicy{AlwaysAllow}
		if t.Type == ToolsetMCP {
			d.PermissionPolicy.Type = AlwaysAsk
		}
	}
	if t.Configs == nil {
		t.Configs = []ToolConfig{}
	}
	for i := range t.Configs {
		c := &t.Configs[i]
		if c.Enabled == nil {
			c.Enabled = d.Enabled
		}
		if c.PermissionPolicy == nil {
			c.PermissionPolicy = d.PermissionPolicy
		}
		if t.Type == ToolsetMCP {
			continue
		}
		if c.Type != "" && c.Type != c.Name {
			return Invalid("configs.%d.type: must be equal to name", i)
		}
		c.Type = c.Name
	}
	return nil
}

// Setting returns whether the toolset offers the named tool, and under which
// policy.
func (t *AgentTool) Setting(name string) (enabled bool, policy string) {
	enabled, policy = *t.DefaultConfig.Enabled, t.DefaultConfig.PermissionPolicy.Type
	for _, c := range t.Configs {
		if c.Name == name {
			return *c.Enabled, c.PermissionPolicy.Type
		}
	}
	return enabled, policy
}

var (
	customNameRE   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
	propertyNameRE = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
)

// checkTools checks the tools of an agent against one another and against its
// MCP servers.
func (s *AgentSpec) checkTools() error {
	if len(s.MCPServers) > AgentMCPServersMax {
		return Invalid("mcp_servers: at most %d, got %d", AgentMCPServersMax, len(s.MCPServers))
	}
	servers := map[string]bool{} // name → referenced by a toolset
	for i, m := range s.MCPServers {
		if err := m.check(); err != nil {
			return at(err, "mcp_servers.%d", i)
		}
		if _, dup := servers[m.Name]; dup {
			return Invalid("mcp_servers.%d.name: %q is already used", i, m.Name)
		}
		servers[m.Name] = false
	}

	count, seen := 0, map[string]bool{}
	for i, t := range s.Tools {
		key := t.Type + "/" + t.MCPServerName + "/" + t.Name
		if seen[key] {
			return Invalid("tools.%d: a second entry for the same %s", i, t.Type)
		}
		seen[key] = true
		var err error
		switch t.Type {
		case ToolsetBuiltin:
			count += len(BuiltinTools)
			err = t.checkBuiltin()
		case ToolsetMCP:
			count += len(t.Configs)
			if _, ok := servers[t.MCPServerName]; !ok {
				err = Invalid("mcp_server_name: no server named %q in mcp_servers", t.MCPServerName)
			}
			servers[t.MCPServerName] = true
		case ToolCustom:
			count++
			err = t.checkCustom()
		}
		if err == nil {
			err = t.checkPolicies()
		}
		if err != nil {
			return at(err, "tools.%d", i)
		}
	}
	if count > AgentToolsMax {
		return Invalid("tools: at most %d tools in all toolsets together, got %d", AgentToolsMax, count)
	}
	for name, used := range servers {
		if !used {
			return Invalid("mcp_servers: %q is not referenced by any mcp_toolset in tools", name)
		}
	}
	return nil
}

func (m *MCPServer) check() error {
	if m.Type != "url" {
		return Invalid("type: must be \"url\"")
	}
	if err := checkLen("name", m.Name, 1, mcpNameMax); err != nil {
		return err
	}
	if err := checkLen("url", m.URL, 1, mcpURLMax); err != nil {
		return err
	}
	if u, err := url.Parse(m.URL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return Invalid("url: must be an absolute http or https URL")
	}
	return nil
}

func (t *AgentTool) checkBuiltin() error {
	names := map[string]bool{}
	for i, c := range t.Configs {
		if !slices.Contains(BuiltinTools, c.Name) {
			return Invalid("configs.%d.name: unknown tool %q; known: %s", i, c.Name, strings.Join(BuiltinTools, ", "))
		}
		if names[c.Name] {
			return Invalid("configs.%d.name: a second entry for %q", i, c.Name)
		}
		names[c.Name] = true
	}
	return nil
}

func (t *AgentTool) checkPolicies() error {
	if t.Type == ToolCustom {
		return nil
	}
	policies := []string{t.DefaultConfig.PermissionPolicy.Type}
	for _, c := range t.Configs {
		policies = append(policies, c.PermissionPolicy.Type)
	}
	for _, p := range policies {
		if p != AlwaysAllow && p != AlwaysAsk && p != Auto {
			return Invalid("permission_policy.type: must be %q, %q or %q", AlwaysAllow, AlwaysAsk, Auto)
		}
	}
	return nil
}

func (t *AgentTool) checkCustom() error {
	switch {
	case !customNameRE.MatchString(t.Name):
		return Invalid("name: must match %s", customNameRE)
	case slices.Contains(BuiltinTools, t.Name):
		return Invalid("name: %q is the name of a built-in tool", t.Name)
	case strings.HasPrefix(t.Name, "mcp__"), strings.HasPrefix(t.Name, "ant__"):
		return Invalid("name: the prefixes mcp__ and ant__ are reserved")
	case t.Description == "":
		return Invalid("description: must not be empty")
	}
	return checkSchema(t.InputSchema)
}

// checkSchema applies the rules for the input schema of a custom tool.
func checkSchema(raw json.RawMessage) error {
	var schema map[string]json.RawMessage
	if err := json.Unmarshal(raw, &schema); err != nil || schema == nil {
		return Invalid("input_schema: must be a JSON Schema object")
	}
	if string(schema["type"]) != `"object"` {
		return Invalid("input_schema.type: must be \"object\"")
	}
	for _, k := range []string{"oneOf", "anyOf", "allOf"} {
		if _, ok := schema[k]; ok {
			return Invalid("input_schema: %s is not allowed at the top level", k)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	for {
		tok, err := dec.Token()
		if err != nil {
			break
		}
		if tok == "$ref" {
			return Invalid("input_schema: $ref is not allowed")
		}
	}
	var props map[string]json.RawMessage
	if p, ok := schema["properties"]; ok {
		if err := json.Unmarshal(p, &props); err != nil {
			return Invalid("input_schema.properties: must be an object")
		}
	}
	for name := range props {
		if !propertyNameRE.MatchString(name) {
			return Invalid("input_schema.properties: the name %q must match %s", name, propertyNameRE)
		}
	}
	return nil
}
