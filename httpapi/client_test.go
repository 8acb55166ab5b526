package httpapi

import (
	"encoding/json"
	"fmt"
	"iter"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// Our own client and this server understand one another: every call of the client
// is made once, and what it sends passes the strict decoding here.
func TestOwnClient(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	c, err := client.New(client.Config{BaseURL: f.url, Key: f.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(c.Ready(ctx))

	agent, err := c.CreateAgent(ctx, api.AgentCreate{
		Name: "a", Model: &api.ModelConfig{ID: "m"}, Tools: []api.AgentTool{{Type: api.ToolsetBuiltin}},
	})
	ok(err)
	agent, err = c.UpdateAgent(ctx, agent.ID, api.AgentUpdate{System: api.Some("Be brief."), Version: api.Some(agent.Version)})
	ok(err)
	agent, err = c.GetAgent(ctx, agent.ID, 2)
	ok(err)
	if agent.System == nil || *agent.System != "Be brief." || len(agent.Tools) != 1 {
		t.Errorf("agent %+v", agent)
	}
	ok(count(c.Agents(ctx, client.ListOptions{IncludeArchived: true}), 1))
	ok(count(c.AgentVersions(ctx, agent.ID, client.ListOptions{PageSize: 1}), 2))

	env, err := c.CreateEnvironment(ctx, api.EnvironmentCreate{Name: "e", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted}})
	ok(err)
	env, err = c.UpdateEnvironment(ctx, env.ID, api.EnvironmentUpdate{Description: api.Some("d")})
	ok(err)
	env, err = c.GetEnvironment(ctx, env.ID)
	ok(err)
	ok(count(c.Environments(ctx, client.ListOptions{}), 1))

	key, err := c.CreateKey(ctx, env.ID, api.KeyCreate{Name: "k"})
	ok(err)
	ok(count(c.Keys(ctx, env.ID, client.ListOptions{}), 1))
	key, err = c.RevokeKey(ctx, env.ID, key.ID)
	ok(err)
	if key.RevokedAt == nil {
		t.Error("not revoked")
	}

	hello, err := client.ClientEvent(&api.UserMessage{Content: api.Content{api.TextBlock("hello")}})
	ok(err)
	s, err := c.CreateSession(ctx, api.SessionCreate{
		Agent: api.AgentRef{Type: "agent", ID: agent.ID}, EnvironmentID: env.ID, InitialEvents: []json.RawMessage{hello},
	})
	ok(err)
	s, err = c.UpdateSession(ctx, s.ID, api.SessionUpdate{Title: api.Some("t")})
	ok(err)
	s, err = c.GetSession(ctx, s.ID)
	ok(err)
	ok(count(c.Sessions(ctx, api.SessionFilter{AgentID: agent.ID, Order: api.Ascending}, client.ListOptions{}), 1))
	ok(count(c.Threads(ctx, s.ID, client.ListOptions{}), 1))
	_, err = c.Send(ctx, s.ID, &api.UserMessage{Content: api.Content{api.TextBlock("more")}})
	ok(err)
	ok(count(c.Events(ctx, s.ID, client.EventOptions{}), 3))

	ok(count(c.Work(ctx, env.ID, client.ListOptions{}), 1))
	stats, err := c.WorkStats(ctx, env.ID)
	ok(err)
	if stats.Depth != 1 {
		t.Errorf("stats %+v", stats)
	}

	idle, err := c.CreateSession(ctx, api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: agent.ID}, EnvironmentID: env.ID})
	ok(err)
	var names []string
	for frame, err := range c.Follow(ctx, s.ID, client.FollowOptions{After: client.FromStart}) {
		ok(err)
		if names = append(names, frame.Name); len(names) == 3 {
			break
		}
	}
	if names[1] != "session.updated" {
		t.Errorf("followed %v", names)
	}
	_, err = c.ArchiveSession(ctx, idle.ID)
	ok(err)
	ok(c.DeleteSession(ctx, idle.ID))
	_, err = c.ArchiveAgent(ctx, agent.ID)
	ok(err)
	spare, err := c.CreateEnvironment(ctx, api.EnvironmentCreate{Name: "spare", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted}})
	ok(err)
	_, err = c.ArchiveEnvironment(ctx, spare.ID)
	ok(err)
	ok(c.DeleteEnvironment(ctx, spare.ID))

	_, err = c.GetSession(ctx, idle.ID)
	if e := api.AsError(err); e == nil || e.Status != 404 {
		t.Errorf("a deleted session: %v", err)
	}
}

// The same for tunnels and for the identities of workloads.
func TestOwnClientOnTunnels(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	c, err := client.New(client.Config{BaseURL: f.url, Key: f.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	name := "office"
	tn, err := c.CreateTunnel(ctx, api.TunnelCreate{DisplayName: &name})
	ok(err)
	tn, err = c.GetTunnel(ctx, tn.ID)
	ok(err)
	ok(count(c.Tunnels(ctx, client.ListOptions{IncludeArchived: true}), 1))
	_, err = c.RevealToken(ctx, tn.ID)
	ok(err)
	_, err = c.RotateToken(ctx, tn.ID, api.TokenRotate{Reason: &name, OverlapSeconds: 60})
	ok(err)
	second, err := c.CreateSecondToken(ctx, tn.ID, api.TokenCreate{Reason: &name})
	ok(err)
	ok(count(c.TunnelTokens(ctx, tn.ID), 3))
	_, err = c.RevokeTunnelToken(ctx, tn.ID, second.ID)
	ok(err)
	cert, err := c.AddCertificate(ctx, tn.ID, testCA(t))
	ok(err)
	_, err = c.GetCertificate(ctx, tn.ID, cert.ID)
	ok(err)
	ok(count(c.Certificates(ctx, tn.ID, client.ListOptions{PageSize: 1}), 1))
	_, err = c.ArchiveCertificate(ctx, tn.ID, cert.ID)
	ok(err)
	_, err = c.ArchiveTunnel(ctx, tn.ID)
	ok(err)

	issuer, err := c.CreateIssuer(ctx, api.FederationIssuerCreate{Name: "cluster", IssuerURL: "https://cluster.local"})
	ok(err)
	issuer, err = c.GetIssuer(ctx, issuer.ID)
	ok(err)
	ok(count(c.Issuers(ctx, client.ListOptions{}), 1))
	account, err := c.CreateServiceAccount(ctx, api.ServiceAccountCreate{Name: "setup"})
	ok(err)
	account, err = c.GetServiceAccount(ctx, account.ID)
	ok(err)
	ok(count(c.ServiceAccounts(ctx, client.ListOptions{}), 1))
	ws, subject := api.WorkspaceDefault, "pod:*"
	rule, err := c.CreateRule(ctx, api.FederationRuleCreate{
		Name: "setup", IssuerID: issuer.ID, Match: api.FederationMatch{SubjectPrefix: &subject}, WorkspaceID: &ws,
		Target: api.FederationTarget{Type: "service_account", ID: account.ID}, OAuthScope: api.OAuthManageTunnels,
	})
	ok(err)
	rule, err = c.UpdateRule(ctx, rule.ID, api.FederationRuleUpdate{Description: api.Some("d")})
	ok(err)
	rule, err = c.GetRule(ctx, rule.ID)
	ok(err)
	if rule.Description != "d" || rule.IssuerName != "cluster" {
		t.Errorf("rule %+v", rule)
	}
	ok(count(c.Rules(ctx, client.ListOptions{}), 1))
	ok(count(c.Exchanges(ctx, rule.ID, client.ListOptions{}), 0))
	_, err = c.ArchiveRule(ctx, rule.ID)
	ok(err)
	_, err = c.ArchiveServiceAccount(ctx, account.ID)
	ok(err)
	_, err = c.ArchiveIssuer(ctx, issuer.ID)
	ok(err)
}

// count walks a list and says when it does not have n entries.
func count[T any](list iter.Seq2[T, error], n int) error {
	got := 0
	for _, err := range list {
		if err != nil {
			return err
		}
		got++
	}
	if got != n {
		return fmt.Errorf("a list has %d entries, want %d", got, n)
	}
	return nil
}
