package api

import (
	"encoding/json"
	"time"
)

// An Environment says where sessions run their tools: on the customer's own
// workers ("self_hosted") or on the server's ("cloud").
type Environment struct {
	ID          EnvironmentID     `json:"id"`
	Type        string            `json:"type"` // "environment"
	Name        string            `json:"name"`
	Description *string           `json:"description"`
	Config      EnvironmentConfig `json:"config"`
	Metadata    Metadata          `json:"metadata"`
	Scope       string            `json:"scope"` // "organization"
	CreatedAt   time.Time         `json:"created_at"`
	UpdatedAt   time.Time         `json:"updated_at"`
	ArchivedAt  *time.Time        `json:"archived_at"`
}

// The kinds of an [EnvironmentConfig].
const (
	EnvCloud      = "cloud"
	EnvSelfHosted = "self_hosted"
)

// An EnvironmentConfig is the kind of an environment and, for cloud ones, its
// network rules and packages.
type EnvironmentConfig struct {
	Type       string
	Networking *Networking // of cloud environments: never nil once resolved
	Packages   *Packages   // likewise
}

type environmentConfigJSON struct {
	Type       string      `json:"type"`
	Networking *Networking `json:"networking,omitempty"`
	Packages   *Packages   `json:"packages,omitempty"`
}

func (c EnvironmentConfig) MarshalJSON() ([]byte, error) {
	return json.Marshal(environmentConfigJSON(c))
}

func (c *EnvironmentConfig) UnmarshalJSON(data []byte) error {
	return DecodeStrict(data, (*environmentConfigJSON)(c))
}

// Resolve fills the defaults of c and checks it.
func (c *EnvironmentConfig) Resolve() error {
	switch c.Type {
	case EnvSelfHosted:
		if c.Networking != nil || c.Packages != nil {
			return Invalid("config: a self_hosted environment takes no networking or packages; they are the worker's own configuration")
		}
		return nil
	case EnvCloud:
	default:
		return Invalid("config.type: must be \"self_hosted\" or \"cloud\"")
	}
	if c.Networking == nil {
		c.Networking = &Networking{Type: NetworkUnrestricted}
	}
	if err := c.Networking.resolve(); err != nil {
		return at(err, "config.networking")
	}
	if c.Packages == nil {
		c.Packages = &Packages{}
	}
	if err := c.Packages.resolve(); err != nil {
		return at(err, "config.packages")
	}
	if !c.Packages.Empty() && c.Networking.Type == NetworkLimited && !c.Networking.AllowPackageManagers {
		return Invalid("config.packages: under limited networking packages need allow_package_managers: true")
	}
	return nil
}

// An EnvironmentConfigUpdate changes a config: what is left out keeps its value, down
// to the single fields of networking and packages; null is the default.
type EnvironmentConfigUpdate struct {
	Type       string                `json:"type"`
	Networking Opt[NetworkingUpdate] `json:"networking,omitzero"`
	Packages   Opt[PackagesUpdate]   `json:"packages,omitzero"`
}

// Apply returns c with the update. Neither is changed.
func (u EnvironmentConfigUpdate) Apply(c EnvironmentConfig) (EnvironmentConfig, error) {
	switch {
	case u.Type != "" && u.Type != c.Type:
		return c, Invalid("config.type: an environment cannot change its kind; create another one")
	case c.Type != EnvCloud && (u.Networking.Set && !u.Networking.Null || u.Packages.Set && !u.Packages.Null):
		return c, Invalid("config: a self_hosted environment takes no networking or packages; they are the worker's own configuration")
	case c.Type != EnvCloud:
		return c, nil
	}
	if n := u.Networking; n.Set {
		c.Networking = n.Value.apply(c.Networking, n.Null)
	}
	if p := u.Packages; p.Set {
		c.Packages = p.Value.apply(c.Packages, p.Null)
	}
	return c, nil
}

// An EnvironmentCreate is the body of POST /v1/environments. Without a config the
// environment is a cloud one.
type EnvironmentCreate struct {
	Name        string             `json:"name"`
	Description *string            `json:"description"`
	Config      *EnvironmentConfig `json:"config"`
	Metadata    Metadata           `json:"metadata"`
	Scope       *string            `json:"scope"`
}

// An EnvironmentUpdate is the body of POST /v1/environments/{id}. The kind of an
// environment cannot change.
type EnvironmentUpdate struct {
	Name        Opt[string]                  `json:"name,omitzero"`
	Description Opt[string]                  `json:"description,omitzero"`
	Config      Opt[EnvironmentConfigUpdate] `json:"config,omitzero"`
	Metadata    MetadataPatch                `json:"metadata,omitempty"`
	Scope       Opt[string]                  `json:"scope,omitzero"`
}

const (
	EnvironmentNameMax        = 256
	EnvironmentDescriptionMax = 1024
)

// Check applies the limits of an environment's own fields.
func (e *Environment) Check() error {
	if err := checkLen("name", e.Name, 1, EnvironmentNameMax); err != nil {
		return err
	}
	if e.Description != nil {
		if err := checkLen("description", *e.Description, 0, EnvironmentDescriptionMax); err != nil {
			return err
		}
	}
	if e.Scope != "organization" {
		return Invalid("scope: only \"organization\" is accepted")
	}
	if err := e.Config.Resolve(); err != nil {
		return err
	}
	return e.Metadata.Check()
}

// Deleted is the answer to a DELETE.
type Deleted struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}
