package api

import "time"

// A Vault is a collection of credentials that sessions may be given.
type Vault struct {
	ID          VaultID    `json:"id"`
	Type        string     `json:"type"` // "vault"
	DisplayName string     `json:"display_name"`
	Metadata    Metadata   `json:"metadata"`
	CreatedAt   time.Time  `json:"created_at"`
	UpdatedAt   time.Time  `json:"updated_at"`
	ArchivedAt  *time.Time `json:"archived_at"`
}

// A VaultCreate is the body of POST /v1/vaults.
type VaultCreate struct {
	DisplayName string   `json:"display_name"`
	Metadata    Metadata `json:"metadata"`
}

// A VaultUpdate is the body of POST /v1/vaults/{id}.
type VaultUpdate struct {
	DisplayName Opt[string]   `json:"display_name,omitzero"`
	Metadata    MetadataPatch `json:"metadata,omitempty"`
}

// The limits of vaults, in characters or entries.
const (
	VaultNameMax        = 255
	VaultCredentialsMax = 20 // that are not archived
	SessionVaultsMax    = 50
)

// Check applies the limits of a vault's own fields.
func (v *Vault) Check() error {
	if err := checkLen("display_name", v.DisplayName, 1, VaultNameMax); err != nil {
		return err
	}
	return v.Metadata.Check()
}

// A VaultKey is one of the keys that this server's secrets are sealed with. It is an
// extension of this server.
type VaultKey struct {
	ID      string `json:"id"`
	Type    string `json:"type"` // "vault_key"
	Current bool   `json:"current"`
	Secrets int64  `json:"secrets"` // that are sealed with it
}

// VaultKeys are all of them.
type VaultKeys struct {
	Data []VaultKey `json:"data"`
}

// A VaultKeyRotate is the body of POST /v1/vault_keys/rotate. It may be left out.
type VaultKeyRotate struct {
	// RewrapOnly moves secrets to the current key and makes no new one: for a server that
	// was given another key in its configuration, and to go on with what was begun.
	RewrapOnly bool `json:"rewrap_only,omitzero"`

	// SharedKeyFile says that every server on the database reads the very key file of the
	// one that is asked, or that there is no other. Where there may be others, a key in a
	// file is not rotated without: they would lose all secrets.
	SharedKeyFile bool `json:"shared_key_file,omitzero"`

	// AbandonLostKey gives up a key that is not to be found any more, with what is sealed
	// with it: the server goes on with the one that it has, or makes one.
	AbandonLostKey bool `json:"abandon_lost_key,omitzero"`

	// Page goes on where an earlier rotation has ended: its next_page. It goes with
	// rewrap_only.
	Page string `json:"page,omitzero"`
}

// A VaultKeyRotation is what one request came to. It moves a bounded number of secrets.
type VaultKeyRotation struct {
	Type      string `json:"type"`      // "vault_key_rotation"
	KeyID     string `json:"key_id"`    // the current one
	Rewrapped int64  `json:"rewrapped"` // secrets that are under it now and were not before
	Failed    int64  `json:"failed"`    // secrets that are not, as they could not be opened
	NextPage  string `json:"next_page"` // where to go on; "" when all have been looked at
}
