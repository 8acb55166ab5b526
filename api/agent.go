package api

import (
	"encoding/json"
	"slices"
	"time"
)

// An Agent is a reusable definition: model, system prompt, tools. Every effective
// change makes a new version; sessions keep a snapshot of the version they began
// with.
type Agent struct {
	AgentSpec
	ID         AgentID    `json:"id"`
	Type       string     `json:"type"` // "agent"
	Metadata   Metadata   `json:"metadata"`
	Version    int64      `json:"version"` // from 1
	CreatedAt  time.Time  `json:"created_at"`
	UpdatedAt  time.Time  `json:"updated_at"`
	ArchivedAt *time.Time `json:"archived_at"`
}

// An AgentSpec is the part of an agent that a session snapshots.
type AgentSpec struct {
	Name              string            `json:"name"`
	Description       *string           `json:"description"`
	Model             ModelConfig       `json:"model"`
	System            *string           `json:"system"`
	Tools             []AgentTool       `json:"tools"`
	MCPServers        []MCPServer       `json:"mcp_servers"`
	Skills            []AgentSkill      `json:"skills"`
	Multiagent        json.RawMessage   `json:"multiagent"` // always null for now
	ExecutionIdentity ExecutionIdentity `json:"execution_identity"`
}

// A SessionAgent is the snapshot of an agent inside a session.
type SessionAgent struct {
	AgentSpec
	ID      AgentID `json:"id"`
	Type    string  `json:"type"` // "agent"
	Version int64   `json:"version"`
}

// Snapshot returns what a new session keeps of a.
func (a *Agent) Snapshot() SessionAgent {
	return SessionAgent{AgentSpec: a.AgentSpec, ID: a.ID, Type: "agent", Version: a.Version}
}

// A ModelConfig names the model and how it is to be used. A bare string is
// accepted on input; the output is always the object.
type ModelConfig struct {
	ID           string  `json:"id"`
	Effort       *Effort `json:"effort,omitempty"`
	Speed        string  `json:"speed,omitempty"`         // "standard" or "fast"
	InferenceGeo string  `json:"inference_geo,omitempty"` // "us", "global" or unset
}

func (m *ModelConfig) UnmarshalJSON(data []byte) error {
	var id string
	if json.Unmarshal(data, &id) == nil {
		*m = ModelConfig{ID: id}
		return nil
	}
	type plain ModelConfig
	return DecodeStrict(data, (*plain)(m))
}

// An Effort is how hard the model tries: low, medium, high, xhigh or max.
// A bare string is accepted on input.
type Effort struct {
	Type string `json:"type"`
}

func (e *Effort) UnmarshalJSON(data []byte) error {
	var level string
	if json.Unmarshal(data, &level) == nil {
		*e = Effort{Type: level}
		return nil
	}
	type plain Effort
	return DecodeStrict(data, (*plain)(e))
}

var effortLevels = []string{"low", "medium", "high", "xhigh", "max"}

// An ExecutionIdentity is whom an agent's runs act as. Only service_account for
// now.
type ExecutionIdentity struct {
	Type    string `json:"type"`
	RoleARN string `json:"role_arn,omitempty"`
}

// An MCPServer is a remote MCP server an agent may use.
type MCPServer struct {
	Type string `json:"type"` // "url"
	Name string `json:"name"`
	URL  string `json:"url"`
}

// An AgentSkill is a skill an agent may use.
type AgentSkill struct {
	Type    string `json:"type"` // "custom" or "anthropic"
	SkillID string `json:"skill_id"`
	Version string `json:"version,omitempty"`
}

// An AgentCreate is the body of POST /v1/agents.
type AgentCreate struct {
	Name              string             `json:"name"`
	Model             *ModelConfig       `json:"model"`
	System            *string            `json:"system"`
	Description       *string            `json:"description"`
	Tools             []AgentTool        `json:"tools"`
	MCPServers        []MCPServer        `json:"mcp_servers"`
	Skills            []AgentSkill       `json:"skills"`
	Multiagent        json.RawMessage    `json:"multiagent"`
	ExecutionIdentity *ExecutionIdentity `json:"execution_identity"`
	Metadata          Metadata           `json:"metadata"`
}

// An AgentUpdate is the body of POST /v1/agents/{id}. With Version, the update is
// refused when the agent has moved on.
type AgentUpdate struct {
	Version           Opt[int64]             `json:"version,omitzero"`
	Name              Opt[string]            `json:"name,omitzero"`
	Model             Opt[ModelConfig]       `json:"model,omitzero"`
	System            Opt[string]            `json:"system,omitzero"`
	Description       Opt[string]            `json:"description,omitzero"`
	Tools             Opt[[]AgentTool]       `json:"tools,omitzero"`
	MCPServers        Opt[[]MCPServer]       `json:"mcp_servers,omitzero"`
	Skills            Opt[[]AgentSkill]      `json:"skills,omitzero"`
	Multiagent        Opt[json.RawMessage]   `json:"multiagent,omitzero"`
	ExecutionIdentity Opt[ExecutionIdentity] `json:"execution_identity,omitzero"`
	Metadata          MetadataPatch          `json:"metadata,omitempty"`
}

// The limits of an agent, in characters or entries.
const (
	AgentNameMax        = 256
	AgentDescriptionMax = 2048
	AgentSystemMax      = 100_000
	AgentToolsMax       = 256
	AgentMCPServersMax  = 20
	AgentSkillsMax      = 20
	modelIDMax          = 256
	mcpNameMax          = 255
	mcpURLMax           = 2048
)

// Resolve fills every default of the specification, so that the stored agent says
// exactly what it means, and then checks it.
func (s *AgentSpec) Resolve() error {
	if s.Model.Effort == nil {
		s.Model.Effort = &Effort{Type: "high"}
	}
	if s.Model.Speed == "" {
		s.Model.Speed = "standard"
	}
	if s.ExecutionIdentity.Type == "" {
		s.ExecutionIdentity.Type = "service_account"
	}
	// Empty lists are [], never null, and cleared texts are null, never "".
	if s.Tools == nil {
		s.Tools = []AgentTool{}
	}
	if s.MCPServers == nil {
		s.MCPServers = []MCPServer{}
	}
	if s.Skills == nil {
		s.Skills = []AgentSkill{}
	}
	if string(s.Multiagent) == "null" {
		s.Multiagent = nil
	}
	if s.System != nil && *s.System == "" {
		s.System = nil
	}
	if s.Description != nil && *s.Description == "" {
		s.Description = nil
	}
	for i := range s.Tools {
		if err := s.Tools[i].resolve(); err != nil {
			return at(err, "tools.%d", i)
		}
	}
	return s.check()
}

func (s *AgentSpec) check() error {
	if err := checkLen("name", s.Name, 1, AgentNameMax); err != nil {
		return err
	}
	if s.Description != nil {
		if err := checkLen("description", *s.Description, 0, AgentDescriptionMax); err != nil {
			return err
		}
	}
	if s.System != nil {
		if err := checkLen("system", *s.System, 0, AgentSystemMax); err != nil {
			return err
		}
	}
	if err := s.Model.check(); err != nil {
		return at(err, "model")
	}
	if s.ExecutionIdentity.Type != "service_account" {
		return Invalid("execution_identity.type: only \"service_account\" is supported by this server")
	}
	if s.Multiagent != nil {
		return Invalid("multiagent: not supported by this server yet; omit it or send null")
	}
	if len(s.Skills) > 0 {
		return Invalid("skills: not supported by this server yet; omit it or send []")
	}
	return s.checkTools()
}

func (m *ModelConfig) check() error {
	if err := checkLen("id", m.ID, 1, modelIDMax); err != nil {
		return err
	}
	if !slices.Contains(effortLevels, m.Effort.Type) {
		return Invalid("effort: must be one of low, medium, high, xhigh, max")
	}
	if m.Speed != "standard" && m.Speed != "fast" {
		return Invalid("speed: must be \"standard\" or \"fast\"")
	}
	if m.InferenceGeo != "" && m.InferenceGeo != "us" && m.InferenceGeo != "global" {
		return Invalid("inference_geo: must be \"us\", \"global\" or null")
	}
	return nil
}
