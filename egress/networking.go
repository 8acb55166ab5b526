package egress

import "strings"

// Networking is the policy that the networking of an environment stands for, in the
// words of the public API: bare hosts, with "*." before one for all names below it, at
// any depth. An unrestricted environment's is Policy{Mode: Unrestricted}.
func Networking(allowedHosts []string, packageManagers bool) Policy {
	policy := Policy{Mode: Limited}
	if packageManagers {
		policy.Presets = []string{"package-managers"}
	}
	seen := make(map[string]bool)
	for _, host := range allowedHosts {
		if seen[host] {
			continue
		}
		seen[host] = true
		rule := Rule{Name: "allowed_hosts " + host}
		if parsed, err := ParseHost(host); err == nil && parsed.addr.IsValid() {
			rule.CIDRs, rule.Ports = []string{parsed.String()}, []Ports{Port(80), Port(443)}
		} else {
			rule.Hosts = []string{AllowedHost(host)}
		}
		policy.Rules = append(policy.Rules, rule)
	}
	return policy
}

// AllowedHost is the pattern that an entry of the public API's allowed_hosts stands for.
func AllowedHost(entry string) string {
	if name, ok := strings.CutPrefix(entry, "*."); ok {
		return prefixes[beneath] + name
	}
	return entry
}
