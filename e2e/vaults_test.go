package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// A box has a placeholder for what its session's vault keeps, and never the secret; the
// session is told of a host that the environment's network rules do not permit.
func TestVariablesInTheBox(t *testing.T) {
	t.Parallel()
	const secret = "hush-variable-of-the-vault"
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "variables",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash(`echo "A is $REACHABLE, B is $UNREACHABLE, $(cat /proc/*/environ 2>/dev/null | grep -ac hush-var) secrets, $(grep -rl hush-var / --include='*' --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr 2>/dev/null | wc -l) files"`)}},
			{Expect: []scripted.Expect{
				{OK: true, Contains: "A is bailey_ph_"}, {Contains: "B is bailey_ph_"}, {Contains: ", 0 secrets, 0 files"},
			}, Text: "Thank you."},
		},
	}}})
	ctx := within(t)
	v, err := p.client.CreateVault(ctx, api.VaultCreate{DisplayName: "v"})
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, host string) *api.Credential {
		t.Helper()
		cred, err := p.client.CreateCredential(ctx, v.ID, api.CredentialCreate{Auth: api.CredentialAuthCreate{
			Type: api.AuthEnvironmentVariable, SecretName: name, SecretValue: secret,
			Networking: &api.CredentialNetworking{Type: api.NetworkLimited, AllowedHosts: []string{host}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return cred
	}
	put("REACHABLE", "api.example.com")
	bad := put("UNREACHABLE", "elsewhere.example.org")
	env, err := p.client.CreateEnvironment(ctx, api.EnvironmentCreate{Name: t.Name(), Config: &api.EnvironmentConfig{
		Type: api.EnvCloud, Networking: &api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"*.example.com"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.client.CreateSession(ctx, api.SessionCreate{
		Agent: api.AgentRef{Type: "agent", ID: p.agent(t, toolset(api.AlwaysAllow))}, EnvironmentID: env.ID, VaultIDs: []api.VaultID{v.ID},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := p.watch(t, s.ID)
	p.send(t, s.ID, userMessage("look at your variables"))
	var told []api.TurnError
	for _, ev := range w.finished() {
		raw, err := json.Marshal(ev)
		if err != nil || strings.Contains(string(raw), secret) {
			t.Errorf("an event with the secret: %s, %v", raw, err)
		}
		if e, ok := ev.Body.(*api.SessionError); ok {
			told = append(told, e.Error)
		}
	}
	if len(told) != 1 || told[0].Type != api.ErrorCredentialHost || told[0].CredentialID != bad.ID || told[0].VaultID != v.ID ||
		!strings.Contains(told[0].Message, "elsewhere.example.org") {
		t.Errorf("the session was told %+v", told)
	}
}
