package api

import "fmt"

// Identifiers are tagged strings, opaque to clients. Each noun has its own type
// so that one cannot be passed for another.
type (
	AgentID       string // agent_…
	EnvironmentID string // env_…
	WorkID        string // work_…
	SessionID     string // sesn_…
	ThreadID      string // sthr_…
	EventID       string // sevt_…
	KeyID         string // apikey_… or envkey_…
	RequestID     string // req_…
	ShellID       string // shell_…
	VaultID       string // vlt_…
	CredentialID  string // vcrd_…
)

// IDLenMax bounds an identifier in a request, in bytes.
const IDLenMax = 128

// The prefixes of identifiers.
const (
	PrefixAgent       = "agent_"
	PrefixEnvironment = "env_"
	PrefixWork        = "work_"
	PrefixSession     = "sesn_"
	PrefixThread      = "sthr_"
	PrefixEvent       = "sevt_"
	PrefixAPIKey      = "apikey_"
	PrefixEnvKey      = "envkey_"
	PrefixEdgeKey     = "edgekey_"
	PrefixRequest     = "req_"
	PrefixShell       = "shell_"
	PrefixVault       = "vlt_"
	PrefixCredential  = "vcrd_"
)

// An Entropy gives the random part of an identifier. The clock and the source of
// randomness stay with the caller.
type Entropy [16]byte

const idAlphabet = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// NewID returns prefix followed by 22 letters and digits that hold 16 bytes of
// entropy.
func NewID[T ~string](prefix string, e Entropy) T {
	// 58^22 > 2^128: repeated division of the 128-bit number, no letter lost.
	out := make([]byte, 22)
	for i := range out {
		rem := 0
		for j := range e {
			cur := rem<<8 | int(e[j])
			e[j] = byte(cur / 58)
			rem = cur % 58
		}
		out[i] = idAlphabet[rem]
	}
	return T(prefix + string(out))
}

// CheckID refuses an identifier that no object can have: empty, longer than
// [IDLenMax], or with a byte outside [A-Za-z0-9_-]. name is the field or path
// parameter it came from.
func CheckID(name, id string) error {
	if id == "" || len(id) > IDLenMax {
		return Invalid("%s: must be 1 to %d characters", name, IDLenMax)
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '-') {
			return Invalid("%s: %s is not an identifier", name, fmt.Sprintf("%q", id))
		}
	}
	return nil
}
