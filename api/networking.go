package api

import (
	"encoding/json"
	"strings"
)

// The kinds of [Networking].
const (
	NetworkUnrestricted = "unrestricted"
	NetworkLimited      = "limited"
)

// Networking is the network rule of a cloud environment. Only a limited one has
// anything but its type.
type Networking struct {
	Type                 string
	AllowedHosts         []string // see [CheckAllowedHost]
	AllowMCPServers      bool
	AllowPackageManagers bool
}

type unrestrictedJSON struct {
	Type string `json:"type"`
}

type limitedJSON struct {
	Type                 string   `json:"type"`
	AllowMCPServers      bool     `json:"allow_mcp_servers"`
	AllowPackageManagers bool     `json:"allow_package_managers"`
	AllowedHosts         []string `json:"allowed_hosts"`
}

func (n Networking) MarshalJSON() ([]byte, error) {
	if n.Type != NetworkLimited {
		return json.Marshal(unrestrictedJSON{n.Type})
	}
	hosts := n.AllowedHosts
	if hosts == nil {
		hosts = []string{}
	}
	return json.Marshal(limitedJSON{n.Type, n.AllowMCPServers, n.AllowPackageManagers, hosts})
}

func (n *Networking) UnmarshalJSON(data []byte) error {
	var u NetworkingUpdate
	if err := json.Unmarshal(data, &u); err != nil {
		return err
	}
	*n = *u.apply(nil, false)
	return nil
}

func (n *Networking) resolve() error {
	if n.Type != NetworkUnrestricted && n.Type != NetworkLimited {
		return Invalid("type: must be %q or %q", NetworkUnrestricted, NetworkLimited)
	}
	if len(n.AllowedHosts) > AllowedHostsMax {
		return Invalid("allowed_hosts: at most %d, got %d", AllowedHostsMax, len(n.AllowedHosts))
	}
	for i, host := range n.AllowedHosts {
		if err := CheckAllowedHost(host); err != nil {
			return Invalid("allowed_hosts.%d: %s", i, err)
		}
	}
	return nil
}

// AllowsMCP reports whether the sessions of an environment may use an MCP server at a
// host, as it stands in a URL without its port. n may be nil, as that of a self-hosted
// environment: its networking is its workers', and MCP servers are reached by the plane.
func (n *Networking) AllowsMCP(host string) bool {
	if n == nil || n.Type != NetworkLimited || n.AllowMCPServers {
		return true
	}
	host = LowerHost(strings.TrimSuffix(host, "."))
	for _, allowed := range n.AllowedHosts {
		allowed = LowerHost(allowed)
		if beneath, ok := strings.CutPrefix(allowed, "*"); ok && strings.HasSuffix(host, beneath) && len(host) > len(beneath) {
			return true // "*.example.com" is everything that ends in .example.com
		}
		if host == allowed {
			return true
		}
	}
	return false
}

// LowerHost is a host, as it stands in a URL, in lower case as far as it is ASCII. What other
// scripts have for capitals is not what names have: the lower case of a dotted capital I is
// an i, and a host with that letter another than the one with an i.
func LowerHost(host string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, host)
}

// A NetworkingUpdate changes a [Networking]. Fields that are left out keep their value
// where the type stays the same; null is the default.
type NetworkingUpdate struct {
	Type                 string
	AllowedHosts         Opt[[]string]
	AllowMCPServers      Opt[bool]
	AllowPackageManagers Opt[bool]
}

type limitedUpdateJSON struct {
	Type                 string        `json:"type"`
	AllowMCPServers      Opt[bool]     `json:"allow_mcp_servers,omitzero"`
	AllowPackageManagers Opt[bool]     `json:"allow_package_managers,omitzero"`
	AllowedHosts         Opt[[]string] `json:"allowed_hosts,omitzero"`
}

func (u NetworkingUpdate) MarshalJSON() ([]byte, error) {
	return json.Marshal(limitedUpdateJSON{u.Type, u.AllowMCPServers, u.AllowPackageManagers, u.AllowedHosts})
}

func (u *NetworkingUpdate) UnmarshalJSON(data []byte) error {
	var head unrestrictedJSON
	if err := json.Unmarshal(data, &head); err != nil {
		return Invalid("must be an object with a type")
	}
	if head.Type == NetworkUnrestricted {
		u.Type = head.Type
		return DecodeStrict(data, &head)
	}
	var j limitedUpdateJSON
	if err := DecodeStrict(data, &j); err != nil {
		return err
	}
	*u = NetworkingUpdate{j.Type, j.AllowedHosts, j.AllowMCPServers, j.AllowPackageManagers}
	return nil
}

// apply returns old, which may be nil, with the update.
func (u NetworkingUpdate) apply(old *Networking, null bool) *Networking {
	if null {
		return &Networking{Type: NetworkUnrestricted}
	}
	next := Networking{Type: u.Type}
	if old != nil && old.Type == u.Type {
		next = *old
	}
	if u.AllowedHosts.Set {
		next.AllowedHosts = u.AllowedHosts.Value
	}
	if u.AllowMCPServers.Set {
		next.AllowMCPServers = u.AllowMCPServers.Value
	}
	if u.AllowPackageManagers.Set {
		next.AllowPackageManagers = u.AllowPackageManagers.Value
	}
	return &next
}

// The bounds of allowed_hosts: how many, and the length of a name in DNS.
const (
	AllowedHostsMax = 500
	hostNameMax     = 253
	hostLabelMax    = 63
)

// CheckAllowedHost refuses what is not a bare host name, or one with "*." before it
// for all names below it. Addresses are none: which of them are whose is not for an
// environment to say.
func CheckAllowedHost(entry string) error {
	name := strings.TrimPrefix(entry, "*.")
	switch {
	case entry == "":
		return Invalid("must not be empty")
	case strings.Contains(entry, "://"), strings.ContainsAny(entry, "/:@?#"):
		return Invalid("%.100q is not a bare host name: leave out the scheme, the port and the path", entry)
	case strings.Contains(name, "*"):
		return Invalid("%.100q: a wildcard is only \"*.\" at the beginning, before a name", entry)
	case len(name) > hostNameMax:
		return Invalid("a host name has at most %d characters", hostNameMax)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) < 1 || len(label) > hostLabelMax || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, hostLetters) != "" {
			return Invalid("%.100q is not a host name: it is made of letters, digits and hyphens, in parts of 1 to %d with dots between; names in other scripts are written with xn--", entry, hostLabelMax)
		}
	}
	// What ends in a number is an address to some programs, in some notation or other.
	if last := strings.ToLower(labels[len(labels)-1]); strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		return Invalid("%.100q is an address; only host names are allowed", entry)
	}
	return nil
}

const hostLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
