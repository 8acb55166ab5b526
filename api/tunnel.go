package api

import (
	"strings"
	"time"
	"unicode"
)

// Identifiers of tunnels and what belongs to them.
type (
	TunnelID      string // tnl_…
	CertificateID string // tcrt_…, a CA certificate registered on a tunnel
	TokenID       string // ttkn_…, of one value of a tunnel's token: says nothing of it
	WorkspaceID   string // wrkspc_…
)

// The prefixes of those identifiers.
const (
	PrefixTunnel      = "tnl_"
	PrefixCertificate = "tcrt_"
	PrefixToken       = "ttkn_"
)

// WorkspaceDefault is the one workspace that a server has, and OrganizationDefault the
// organization it belongs to.
const (
	WorkspaceDefault    WorkspaceID = "wrkspc_default"
	OrganizationDefault string      = "00000000-0000-0000-0000-000000000000"
)

// The limits of tunnels that the public API states.
const (
	TunnelsMax      = 10      // not archived, by default
	TunnelPageMax   = 1000    // of a list of tunnels or of certificates
	CertificatesMax = 2       // not archived, of one tunnel
	CACertPEMMax    = 8 << 10 // bytes
	displayNameMax  = 255
	reasonMax       = 1024

	// RotationOverlapMax bounds how long an old token stays good after a rotation.
	RotationOverlapMax = 7 * 24 * time.Hour
)

// A Tunnel is a name space of private MCP servers: every server whose host is a
// subdomain of Domain is reached through the connectors that hold the tunnel's token.
type Tunnel struct {
	ID          TunnelID   `json:"id"`
	Type        string     `json:"type"` // "tunnel"
	DisplayName *string    `json:"display_name"`
	Domain      string     `json:"domain"` // never used again, even after the tunnel is archived
	CreatedAt   time.Time  `json:"created_at"`
	ArchivedAt  *time.Time `json:"archived_at"`
}

// A TunnelCreate is the body of POST /v1/tunnels.
type TunnelCreate struct {
	DisplayName *string `json:"display_name,omitempty"`
}

// Check applies the limits of a new tunnel.
func (t *TunnelCreate) Check() error {
	if t.DisplayName == nil {
		return nil
	}
	if err := checkLen("display_name", *t.DisplayName, 1, displayNameMax); err != nil {
		return err
	}
	if strings.ContainsFunc(*t.DisplayName, unicode.IsControl) {
		return Invalid("display_name: must not contain control characters")
	}
	return nil
}

// A TunnelToken is what a connector attaches with. It is a credential.
type TunnelToken struct {
	ID    TokenID `json:"id"`   // of this value; another after a rotation
	Type  string  `json:"type"` // "tunnel_token"
	Token string  `json:"tunnel_token"`

	// Overlap says until when the value before this one is good as well. An extension:
	// it is there only after a rotation that asked for it.
	Overlap *TokenOverlap `json:"bailey_overlap,omitempty"`
}

// A TokenOverlap is an older token that connectors may still attach with.
type TokenOverlap struct {
	ID    TokenID   `json:"id"`
	Until time.Time `json:"until"`
}

// A TunnelTokenInfo says of a token that connectors may attach with that there is one.
// An extension: the public API has one token a tunnel, and no list.
type TunnelTokenInfo struct {
	ID        TokenID    `json:"id"`
	Type      string     `json:"type"` // "tunnel_token_info"
	TunnelID  TunnelID   `json:"tunnel_id"`
	Slot      TokenSlot  `json:"slot"`
	CreatedAt time.Time  `json:"created_at"`
	EndsAt    *time.Time `json:"ends_at"` // of one that was rotated with an overlap
}

// A TokenSlot is which of a tunnel's tokens one is.
type TokenSlot string

const (
	TokenPrimary TokenSlot = "primary" // the one of the public API: revealed and rotated
	TokenSecond  TokenSlot = "second"  // for other connectors; shown once, when it is made
)

// A TokenRotate is the body of POST /v1/tunnels/{id}/rotate_token, which may be left
// out.
type TokenRotate struct {
	// Reason goes to the audit record.
	Reason *string `json:"reason,omitempty"`

	// OverlapSeconds is how long connectors may still attach with the token there is
	// now. An extension; 0 refuses it at once, as the public API does.
	OverlapSeconds int64 `json:"bailey_overlap_seconds,omitempty"`
}

// A TokenCreate is the body of POST /v1/tunnels/{id}/tokens, which may be left out.
type TokenCreate struct {
	Reason *string `json:"reason,omitempty"` // goes to the audit record
}

// Check applies the limits of a new token.
func (t *TokenCreate) Check() error { return checkReason(t.Reason) }

func checkReason(reason *string) error {
	if reason == nil {
		return nil
	}
	return checkLen("reason", *reason, 0, reasonMax)
}

// Check applies the limits of a rotation.
func (r *TokenRotate) Check() error {
	if err := checkReason(r.Reason); err != nil {
		return err
	}
	if most := int64(RotationOverlapMax / time.Second); r.OverlapSeconds < 0 || r.OverlapSeconds > most {
		return Invalid("bailey_overlap_seconds: must be 0 to %d", most)
	}
	return nil
}

// A TunnelCertificate is a CA certificate that a tunnel's gateways are trusted by.
// What it certifies with stays with the customer; not even the certificate is given
// back, only its fingerprint.
type TunnelCertificate struct {
	ID          CertificateID `json:"id"`
	Type        string        `json:"type"` // "tunnel_certificate"
	TunnelID    TunnelID      `json:"tunnel_id"`
	Fingerprint string        `json:"fingerprint"` // lower-case hex SHA-256 of the DER
	CreatedAt   time.Time     `json:"created_at"`
	ExpiresAt   *time.Time    `json:"expires_at"`
	ArchivedAt  *time.Time    `json:"archived_at"`
}

// A CertificateCreate is the body of POST /v1/tunnels/{id}/certificates.
type CertificateCreate struct {
	CACertificatePEM string `json:"ca_certificate_pem"`
}
