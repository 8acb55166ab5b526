package verify

import (
	"context"
	"io"
	"maps"
	"os"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/sandbox"
)

// labPolicy is what boxes may reach in the laboratory.
var labPolicy = egress.Policy{
	Mode: egress.Limited,
	Rules: []egress.Rule{
		{Name: "web", Hosts: []string{allowedName}},
		{Name: "database", Hosts: []string{allowedName}, Ports: []egress.Ports{egress.Port(5432)}, Protocol: egress.TCP},
		{Name: "credential", Hosts: []string{openedName}, Ports: []egress.Ports{egress.Port(443)}, Protocol: egress.HTTPS},
		{Name: "opened", Hosts: []string{otherName, rogueName}, Ports: []egress.Ports{egress.Port(443)}, Protocol: egress.HTTPS},
		{Name: "lead elsewhere", Hosts: []string{rebindName, internalName}, Ports: []egress.Ports{egress.Port(80)}},
		{Name: "wild", Hosts: []string{"*." + wildName}},
	},
}

// attach gives a box the laboratory's network, under the laboratory's policy and with
// its credential, by files in dir.
func (l *Lab) attach(spec *sandbox.Spec, dir string) (sandbox.Network, io.Closer, error) {
	jail, err := netjail.New(netjail.Options{
		Box:    spec.ID,
		Policy: labPolicy,
		Credentials: []netjail.Credential{{
			Name: credentialName, Hosts: []string{openedName}, Where: netjail.Where{Header: true, Query: true, Body: true},
			Value: func(context.Context) (string, error) { return l.secret, nil },
		}},
		Record: func(netjail.Decision) error { return nil },
		Dialer: &egress.Dialer{Resolver: l},
		Roots:  l.roots,
	})
	if err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		jail.Close()
		return nil, nil, err
	}
	files, err := jail.Files(dir, nil)
	if err != nil {
		jail.Close()
		return nil, nil, err
	}
	spec.Files = maps.Clone(spec.Files)
	if spec.Files == nil {
		spec.Files = make(map[string]string)
	}
	maps.Copy(spec.Files, files)
	spec.Env = append(spec.Env, jail.Env()...)
	return jail, jail, nil
}
