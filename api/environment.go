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
	Networking *Networking
	Packages   *Packages
}

// Networking is the network rule of a cloud environment.
type Networking struct {
	Type                 string   `json:"type"` // "unrestricted" or "limited"
	AllowedHosts         []string `json:"allowed_hosts,omitempty"`
	AllowMCPServers      bool     `json:"allow_mcp_servers,omitempty"`
	AllowPackageManagers bool     `json:"allow_package_managers,omitempty"`
}

// Packages are installed into a cloud environment's boxes, per package manager.
type Packages struct {
	Type  string   `json:"type,omitempty"` // "packages"
	Apt   []string `json:"apt"`
	Cargo []string `json:"cargo"`
	Gem   []string `json:"gem"`
	Go    []string `json:"go"`
	NPM   []string `json:"npm"`
	Pip   []string `json:"pip"`
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
	case EnvCloud:
		if c.Networking == nil {
			c.Networking = &Networking{Type: "unrestricted"}
		}
		if n := c.Networking; n.Type != "unrestricted" && n.Type != "limited" {
			return Invalid("config.networking.type: must be \"unrestricted\" or \"limited\"")
		}
		if c.Packages == nil {
			c.Packages = &Packages{}
		}
		p := c.Packages
		p.Type = "packages"
		any := false
		for _, l := range []*[]string{&p.Apt, &p.Cargo, &p.Gem, &p.Go, &p.NPM, &p.Pip} {
			if *l == nil {
				*l = []string{}
			}
			any = any || len(*l) > 0
		}
		if any && c.Networking.Type == "limited" && !c.Networking.AllowPackageManagers {
			return Invalid("config.packages: under limited networking packages need allow_package_managers: true")
		}
	default:
		return Invalid("config.type: must be \"self_hosted\" or \"cloud\"")
	}
	return nil
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
	Name        Opt[string]            `json:"name,omitzero"`
	Description Opt[string]            `json:"description,omitzero"`
	Config      Opt[EnvironmentConfig] `json:"config,omitzero"`
	Metadata    MetadataPatch          `json:"metadata,omitempty"`
	Scope       Opt[string]            `json:"scope,omitzero"`
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

// Merge applies the config of an update: fields left out keep their value.
func (c EnvironmentConfig) Merge(in EnvironmentConfig) (EnvironmentConfig, error) {
	if in.Type != "" && in.Type != c.Type {
		return c, Invalid("config.type: an environment cannot change its kind; create another one")
	}
	out := c
	if in.Networking != nil {
		out.Networking = in.Networking
	}
	if in.Packages != nil {
		out.Packages = in.Packages
	}
	return out, nil
}

// Deleted is the answer to a DELETE.
type Deleted struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}
