package api

import (
	"encoding/json"
	"slices"
	"time"
)

// A Session is one run of an agent: its events, and the state they add up to.
type Session struct {
	ID                 SessionID         `json:"id"`
	Type               string            `json:"type"` // "session"
	Status             SessionStatus     `json:"status"`
	Title              *string           `json:"title"`
	Agent              SessionAgent      `json:"agent"`
	EnvironmentID      EnvironmentID     `json:"environment_id"`
	DeploymentID       *string           `json:"deployment_id"`
	Resources          []json.RawMessage `json:"resources"`
	VaultIDs           []VaultID         `json:"vault_ids"`
	Metadata           Metadata          `json:"metadata"`
	Budget             *Budget           `json:"budget"`
	OutcomeEvaluations []json.RawMessage `json:"outcome_evaluations"`
	Usage              Usage             `json:"usage"`
	Stats              SessionStats      `json:"stats"`
	CreatedAt          time.Time         `json:"created_at"`
	UpdatedAt          time.Time         `json:"updated_at"`
	ArchivedAt         *time.Time        `json:"archived_at"`
}

// A SessionStatus is one of exactly four.
type SessionStatus string

const (
	StatusIdle         SessionStatus = "idle"
	StatusRunning      SessionStatus = "running"
	StatusRescheduling SessionStatus = "rescheduling"
	StatusTerminated   SessionStatus = "terminated"
)

// Statuses lists them all.
var Statuses = []SessionStatus{StatusRescheduling, StatusRunning, StatusIdle, StatusTerminated}

// SessionStats are times in seconds.
type SessionStats struct {
	ActiveSeconds   float64 `json:"active_seconds"`
	DurationSeconds float64 `json:"duration_seconds"`
}

// A SessionCreate is the body of POST /v1/sessions.
type SessionCreate struct {
	Agent         AgentRef          `json:"agent"`
	EnvironmentID EnvironmentID     `json:"environment_id"`
	Title         *string           `json:"title"`
	Metadata      Metadata          `json:"metadata"`
	Resources     []json.RawMessage `json:"resources"`
	VaultIDs      []VaultID         `json:"vault_ids"`
	InitialEvents []json.RawMessage `json:"initial_events"`
	Budget        *Budget           `json:"budget"`
}

// An AgentRef names the agent of a new session: an id, an id with a version, or
// either with fields overridden for this session. A bare string is an id.
type AgentRef struct {
	Type       string            `json:"type"` // "agent" or "agent_with_overrides"
	ID         AgentID           `json:"id"`
	Version    *int64            `json:"version,omitempty"`
	Model      Opt[ModelConfig]  `json:"model,omitzero"`
	System     Opt[string]       `json:"system,omitzero"`
	Tools      Opt[[]AgentTool]  `json:"tools,omitzero"`
	MCPServers Opt[[]MCPServer]  `json:"mcp_servers,omitzero"`
	Skills     Opt[[]AgentSkill] `json:"skills,omitzero"`
}

func (r *AgentRef) UnmarshalJSON(data []byte) error {
	var id string
	if json.Unmarshal(data, &id) == nil {
		*r = AgentRef{Type: "agent", ID: AgentID(id)}
		return nil
	}
	type plain AgentRef
	if err := DecodeStrict(data, (*plain)(r)); err != nil {
		return at(err, "agent")
	}
	return nil
}

// Check refuses a reference that cannot be meant.
func (r *AgentRef) Check() error {
	overrides := r.Model.Set || r.System.Set || r.Tools.Set || r.MCPServers.Set || r.Skills.Set
	switch {
	case r.Type != "agent" && r.Type != "agent_with_overrides":
		return Invalid("agent.type: must be \"agent\" or \"agent_with_overrides\"")
	case r.Type == "agent" && overrides:
		return Invalid("agent: overrides need type \"agent_with_overrides\"")
	case r.Model.Null:
		return InvalidCode("agent_model_required", "agent.model: an agent needs a model; omit it to keep the agent's own")
	case r.Version != nil && *r.Version < 1:
		return Invalid("agent.version: must be at least 1")
	}
	return CheckID("agent.id", string(r.ID))
}

// Apply returns spec with the overrides of r: a value replaces, null clears,
// absent inherits. The caller resolves and checks the result.
func (r *AgentRef) Apply(spec AgentSpec) AgentSpec {
	if r.Model.Set {
		spec.Model = r.Model.Value
	}
	if r.System.Set {
		spec.System = nil
		if !r.System.Null {
			spec.System = &r.System.Value
		}
	}
	if r.Tools.Set {
		spec.Tools = slices.Clone(r.Tools.Value)
	}
	if r.MCPServers.Set {
		spec.MCPServers = slices.Clone(r.MCPServers.Value)
	}
	if r.Skills.Set {
		spec.Skills = slices.Clone(r.Skills.Value)
	}
	return spec
}

// A SessionUpdate is the body of POST /v1/sessions/{id}.
type SessionUpdate struct {
	Title    Opt[string]             `json:"title,omitzero"`
	Metadata MetadataPatch           `json:"metadata,omitempty"`
	Budget   Opt[Budget]             `json:"budget,omitzero"`
	Agent    Opt[SessionAgentUpdate] `json:"agent,omitzero"`
	VaultIDs Opt[[]string]           `json:"vault_ids,omitzero"`
}

// A SessionAgentUpdate replaces lists of the session's own copy of its agent.
type SessionAgentUpdate struct {
	Tools      Opt[[]AgentTool] `json:"tools,omitzero"`
	MCPServers Opt[[]MCPServer] `json:"mcp_servers,omitzero"`
}

// A SessionFilter narrows the session list.
type SessionFilter struct {
	AgentID         AgentID
	AgentVersion    int64 // only with AgentID
	DeploymentID    string
	MemoryStoreID   string
	Statuses        []SessionStatus
	Created         TimeRange
	IncludeArchived bool
	Order           Order
}

// A TimeRange bounds a time; nil ends are open.
type TimeRange struct {
	GT, GTE, LT, LTE *time.Time
}

// Contains reports whether t lies in the range.
func (r TimeRange) Contains(t time.Time) bool {
	return (r.GT == nil || t.After(*r.GT)) && (r.GTE == nil || !t.Before(*r.GTE)) &&
		(r.LT == nil || t.Before(*r.LT)) && (r.LTE == nil || !t.After(*r.LTE))
}

const (
	SessionTitleMax     = 1024
	InitialEventsMax    = 50
	EventsPerRequestMax = 1000
	SessionsPageDefault = 20
	SessionsPageMax     = 100
	EventsPageDefault   = 1000
	EventsPageMax       = 1000
	ListPageDefault     = 20
	ListPageMax         = 100
	WorkPageMax         = 1000
	ThreadsPageDefault  = 1000
)

// CheckTitle applies the limit of a session's title.
func CheckTitle(title *string) error {
	if title == nil {
		return nil
	}
	return checkLen("title", *title, 0, SessionTitleMax)
}

// A Thread is one line of conversation in a session. Every session has a primary
// one.
type Thread struct {
	ID             ThreadID      `json:"id"`
	Type           string        `json:"type"` // "session_thread"
	SessionID      SessionID     `json:"session_id"`
	ParentThreadID *ThreadID     `json:"parent_thread_id"`
	Agent          SessionAgent  `json:"agent"`
	Status         SessionStatus `json:"status"`
	WorkflowRunID  *string       `json:"workflow_run_id"`
	Stats          *ThreadStats  `json:"stats"`
	Usage          *Usage        `json:"usage"`
	CreatedAt      time.Time     `json:"created_at"`
	UpdatedAt      time.Time     `json:"updated_at"`
	ArchivedAt     *time.Time    `json:"archived_at"`
}

// ThreadStats are times in seconds.
type ThreadStats struct {
	ActiveSeconds   float64 `json:"active_seconds"`
	DurationSeconds float64 `json:"duration_seconds"`
	StartupSeconds  float64 `json:"startup_seconds"`
}
