package field

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/worker"
)

// TestVariablesBesideTheOperatorsCredentials: what the operator says of a name counts, and
// a change of his leaves a session's variables as they are.
func TestVariablesBesideTheOperatorsCredentials(t *testing.T) {
	t.Parallel()
	secret := func(context.Context) (string, error) { return "a secret value", nil }
	own := func(name string) netjail.Credential {
		return netjail.Credential{Name: name, Hosts: []string{"own.example"}, Where: netjail.Where{Header: true}, Value: secret}
	}
	n, err := newNetworks(t.TempDir(), "", netjail.NewMemory(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.set(rules{policy: egress.Policy{Mode: egress.Unrestricted}, credentials: []netjail.Credential{own("OWN")}}); err != nil {
		t.Fatal(err)
	}
	network, err := n.Open("box", []worker.Variable{
		{Name: "OWN", Header: true, Value: secret},
		{Name: "ANYWHERE", Header: true, Value: secret},
		{Name: "LIMITED", Hosts: []string{"*.example.com", "192.0.2.1", "not a host"}, Body: true, Value: secret},
		{Name: "NOWHERE", Hosts: []string{"not a host"}, Body: true, Value: secret},
	}, func(audit.Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	names := func() (names []string) {
		for _, v := range network.Env() {
			if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(value, netjail.PlaceholderPrefix) {
				names = append(names, name)
			}
			if strings.Contains(v, "secret") {
				t.Errorf("the environment has %s", v)
			}
		}
		return names
	}
	if diff := cmp.Diff([]string{"OWN", "ANYWHERE", "LIMITED"}, names()); diff != "" {
		t.Errorf("at first:\n%s", diff)
	}
	placeholders := network.Env()
	if err := n.set(rules{policy: egress.Policy{Mode: egress.Unrestricted}, credentials: []netjail.Credential{own("OTHER")}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"OTHER", "OWN", "ANYWHERE", "LIMITED"}, names()); diff != "" {
		t.Errorf("after a change:\n%s", diff)
	}
	if after := network.Env(); after[2] != placeholders[1] {
		t.Errorf("a placeholder changed from %s to %s", placeholders[1], after[2])
	}
}
