package cloud

import (
	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/egress"
)

// policy is what an environment's networking allows, with what the operator allows
// every environment. Beside an unrestricted one only the operator's rules for addresses
// have a meaning.
func policy(n *api.Networking, operator egress.Policy) egress.Policy {
	if n.Type == api.NetworkUnrestricted {
		p := egress.Policy{Mode: egress.Unrestricted}
		for _, r := range operator.Rules {
			if len(r.CIDRs) > 0 {
				p.Rules = append(p.Rules, r)
			}
		}
		return p
	}
	p := egress.Networking(n.AllowedHosts, n.AllowPackageManagers)
	p.Presets = append(p.Presets, operator.Presets...)
	p.Rules = append(p.Rules, operator.Rules...)
	return p
}
