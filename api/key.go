package api

import (
	"slices"
	"strings"
	"time"
	"unicode"
)

// A KeyKind is what a credential is for. Kinds are told apart by the prefix of
// the secret, never by the header it came in.
type KeyKind string

const (
	KeyAPI         KeyKind = "api_key"         // everything in the workspace
	KeyEnvironment KeyKind = "environment_key" // the work of one environment
	KeySession     KeyKind = "session_token"   // one claimed session
	KeyAccess      KeyKind = "access_token"    // what the identity of a workload was exchanged for

	// KeyTunnels is how the holder of an API key or an access token is seen that is good
	// for tunnels and nothing else. No key is stored with it.
	KeyTunnels KeyKind = "tunnel_key"
	KeyEdge    KeyKind = "edge_key" // carrying tunnels, and nothing else

	// KeyTunnelToken is how a connector is seen that asks where its tunnel's edges are.
	KeyTunnelToken KeyKind = "tunnel_token"
)

// The prefixes of secrets, as the official ones have them.
const (
	SecretPrefixAPI         = "sk-ant-api03-"
	SecretPrefixEnvironment = "sk-ant-oat01-"
	SecretPrefixSession     = "sk-ant-req-"
	SecretPrefixEdge        = "sk-ant-edge01-" // ours
)

// A KeyScope is a part of the API that an API key or an access token is good for.
type KeyScope string

const (
	ScopeWorkspace KeyScope = "workspace" // everything that has no scope of its own
	ScopeTunnels   KeyScope = "tunnels"   // tunnels, their tokens and certificates
)

// A Key is a credential. Secret is set only in the answer to its creation; the
// server keeps a hash. Keys by API are an extension: Anthropic makes them in its
// console.
type Key struct {
	ID            KeyID         `json:"id"`
	Type          KeyKind       `json:"type"`
	Name          string        `json:"name"`
	EnvironmentID EnvironmentID `json:"environment_id,omitempty"`
	Secret        string        `json:"key,omitempty"`
	Hint          string        `json:"key_hint"`         // the last four characters
	Scopes        []KeyScope    `json:"scopes,omitempty"` // of API keys
	Shell         bool          `json:"shell"`            // an API key with which shells into boxes can be opened
	CreatedAt     time.Time     `json:"created_at"`
	ExpiresAt     *time.Time    `json:"expires_at"`
	LastUsedAt    *time.Time    `json:"last_used_at"`
	RevokedAt     *time.Time    `json:"revoked_at"`
}

// A KeyCreate is the body of POST /v1/keys and of
// POST /v1/environments/{id}/keys.
type KeyCreate struct {
	Name      string     `json:"name"`
	Type      KeyKind    `json:"type,omitempty"` // of POST /v1/keys: api_key, the default, or edge_key
	ExpiresAt *time.Time `json:"expires_at"`
	Shell     bool       `json:"shell,omitempty"` // API keys only; whoever gives it has it

	// Scopes of an API key; whoever gives one has it. None is the workspace.
	Scopes []KeyScope `json:"scopes,omitempty"`
}

const keyNameMax = 256

// Check applies the limits of a new key; now is the server's time.
func (k *KeyCreate) Check(now time.Time) error {
	if err := checkLen("name", k.Name, 1, keyNameMax); err != nil {
		return err
	}
	if strings.ContainsFunc(k.Name, unicode.IsControl) {
		return Invalid("name: must not contain control characters")
	}
	if k.ExpiresAt != nil && !k.ExpiresAt.After(now) {
		return Invalid("expires_at: must be in the future")
	}
	for i, s := range k.Scopes {
		if s != ScopeWorkspace && s != ScopeTunnels {
			return Invalid("scopes: must be %s or %s", ScopeWorkspace, ScopeTunnels)
		}
		if slices.Contains(k.Scopes[:i], s) {
			return Invalid("scopes: %s is there twice", s)
		}
	}
	return nil
}
