// Code generated from sdkv2_test.go by sdkv1.sh; DO NOT EDIT.

package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	anthropic "github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/lib/environments"
	"github.com/anthropics/anthropic-sdk-go/option"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// The official Go SDK, unmodified. The tests of its other generation are made from
// this file: run go generate after a change.
//

func clientV1(p *plane, credential option.RequestOption) anthropic.Client {
	return anthropic.NewClient(option.WithBaseURL(p.url), credential, option.WithMaxRetries(0))
}

// toolsV1 is the official toolset, with every call allowed.
func toolsV1() []anthropic.BetaAgentNewParamsToolUnion {
	return []anthropic.BetaAgentNewParamsToolUnion{{
		OfAgentToolset20260401: &anthropic.BetaManagedAgentsAgentToolset20260401Params{
			Type: "agent_toolset_20260401",
			DefaultConfig: anthropic.BetaManagedAgentsAgentToolsetDefaultConfigParams{
				PermissionPolicy: anthropic.BetaManagedAgentsAgentToolsetDefaultConfigParamsPermissionPolicyUnion{
					OfAlwaysAllow: &anthropic.BetaManagedAgentsAlwaysAllowPolicyParam{Type: "always_allow"},
				},
			},
		},
	}}
}

func messageV1(text string) anthropic.BetaManagedAgentsEventParamsUnion {
	return anthropic.BetaManagedAgentsEventParamsUnion{OfUserMessage: &anthropic.BetaManagedAgentsUserMessageEventParams{
		Type: "user.message",
		Content: []anthropic.BetaManagedAgentsUserMessageEventParamsContentUnion{{
			OfText: &anthropic.BetaManagedAgentsTextBlockParam{Type: "text", Text: text},
		}},
	}}
}

func TestSDKV1(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		// Slow enough to be watched: previews are left out for who cannot keep up.
		p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{talk}, model: scripted.Options{EventDelay: 10 * time.Millisecond}})
		for name, credential := range map[string]option.RequestOption{
			"api key":    option.WithAPIKey(p.admin),
			"auth token": option.WithAuthToken(p.admin),
		} {
			c := clientV1(p, credential)
			t.Run(name, func(t *testing.T) {
				t.Run("agents", func(t *testing.T) { t.Parallel(); agentsV1(t, c) })
				t.Run("environments", func(t *testing.T) { t.Parallel(); environmentsV1(t, c) })
				t.Run("sessions", func(t *testing.T) { t.Parallel(); sessionsV1(t, c) })
				t.Run("events", func(t *testing.T) { t.Parallel(); eventsV1(t, c) })
				t.Run("models", func(t *testing.T) { t.Parallel(); modelsV1(t, c) })
			})
		}
	})
}

func agentsV1(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	begun := time.Now()
	made, err := c.Beta.Agents.New(ctx, anthropic.BetaAgentNewParams{
		Name:        "librarian",
		Model:       anthropic.BetaManagedAgentsModelConfigParams{ID: modelID},
		System:      anthropic.String("You know where every book is."),
		Description: anthropic.String("finds books"),
		Metadata:    map[string]string{"team": "books"},
		Tools: append(toolsV1(), anthropic.BetaAgentNewParamsToolUnion{OfCustom: &anthropic.BetaManagedAgentsCustomToolParams{
			Type: "custom", Name: "find_book", Description: "Finds a book.",
			InputSchema: anthropic.BetaManagedAgentsCustomToolInputSchemaParam{
				Properties: map[string]any{"title": map[string]any{"type": "string"}}, Required: []string{"title"},
			},
		}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case !strings.HasPrefix(made.ID, "agent_"), made.Type != "agent", made.Version != 1:
		t.Errorf("id %s, type %s, version %d", made.ID, made.Type, made.Version)
	case made.Name != "librarian", made.System != "You know where every book is.", made.Description != "finds books":
		t.Errorf("name %q, system %q, description %q", made.Name, made.System, made.Description)
	case made.Model.ID != modelID, made.Model.Speed != "standard", made.Model.Effort.Type == "":
		t.Errorf("model %s", made.Model.RawJSON())
	case made.Metadata["team"] != "books", made.ExecutionIdentity.Type != "service_account":
		t.Errorf("metadata %v, identity %s", made.Metadata, made.ExecutionIdentity.Type)
	case !made.ArchivedAt.IsZero(), made.CreatedAt.Before(begun.Add(-time.Second)), made.UpdatedAt.Before(made.CreatedAt):
		t.Errorf("created %s, updated %s, archived %s", made.CreatedAt, made.UpdatedAt, made.ArchivedAt)
	case len(made.Tools) != 2, made.MCPServers == nil, made.Skills == nil:
		t.Errorf("%d tools, servers %v, skills %v", len(made.Tools), made.MCPServers, made.Skills)
	}
	set := made.Tools[0].AsAgentToolset20260401()
	if !set.DefaultConfig.Enabled || set.DefaultConfig.PermissionPolicy.Type != "always_allow" {
		t.Errorf("the toolset came back as %s", set.RawJSON())
	}
	custom := made.Tools[1].AsCustom()
	if custom.Name != "find_book" || !slices.Equal(custom.InputSchema.Required, []string{"title"}) {
		t.Errorf("the custom tool came back as %s", custom.RawJSON())
	}

	changed, err := c.Beta.Agents.Update(ctx, made.ID, anthropic.BetaAgentUpdateParams{
		Version: anthropic.Int(1), Name: anthropic.String("head librarian"), Metadata: map[string]string{"floor": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if changed.Version != 2 || changed.Name != "head librarian" || changed.System != made.System || len(changed.Metadata) != 2 {
		t.Errorf("after the update: %s", changed.RawJSON())
	}
	_, err = c.Beta.Agents.Update(ctx, made.ID, anthropic.BetaAgentUpdateParams{Version: anthropic.Int(1), Name: anthropic.String("x")})
	wantErrorV1(t, err, 409)

	first, err := c.Beta.Agents.Get(ctx, made.ID, anthropic.BetaAgentGetParams{Version: anthropic.Int(1)})
	if err != nil || first.Name != "librarian" {
		t.Errorf("version 1: %v, %v", first, err)
	}
	var versions []int64
	pages := c.Beta.Agents.Versions.ListAutoPaging(ctx, made.ID, anthropic.BetaAgentVersionListParams{Limit: anthropic.Int(1)})
	for pages.Next() {
		versions = append(versions, pages.Current().Version)
	}
	if err := pages.Err(); err != nil || !slices.Equal(versions, []int64{2, 1}) {
		t.Errorf("versions %v, %v", versions, err)
	}

	listed := func(params anthropic.BetaAgentListParams) bool {
		t.Helper()
		params.Limit = anthropic.Int(3)
		found := false
		pages := c.Beta.Agents.ListAutoPaging(ctx, params)
		for pages.Next() {
			found = found || pages.Current().ID == made.ID
		}
		if err := pages.Err(); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if !listed(anthropic.BetaAgentListParams{CreatedAtGte: anthropic.Time(made.CreatedAt)}) {
		t.Error("the agent is not listed")
	}
	archived, err := c.Beta.Agents.Archive(ctx, made.ID, anthropic.BetaAgentArchiveParams{})
	if err != nil || archived.ArchivedAt.IsZero() {
		t.Errorf("archive: %v, %v", archived, err)
	}
	if listed(anthropic.BetaAgentListParams{}) || !listed(anthropic.BetaAgentListParams{IncludeArchived: anthropic.Bool(true)}) {
		t.Error("an archived agent is listed when asked for, and only then")
	}
	_, err = c.Beta.Agents.Get(ctx, "agent_none", anthropic.BetaAgentGetParams{})
	wantErrorV1(t, err, 404)
}

// wantErrorV1 checks that an error came from the plane with a status, and in the
// form that the SDK understands.
func wantErrorV1(t *testing.T, err error, status int) {
	t.Helper()
	var e *anthropic.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v, want status %d", err, status)
		return
	}
	if e.StatusCode != status || !strings.HasPrefix(e.RequestID, "req_") || !strings.Contains(e.RawJSON(), `"type":"error"`) {
		t.Errorf("status %d of request %s with %s, want %d", e.StatusCode, e.RequestID, e.RawJSON(), status)
	}
}

func newEnvironmentV1(t *testing.T, c anthropic.Client) *anthropic.BetaEnvironment {
	t.Helper()
	env, err := c.Beta.Environments.New(within(t), anthropic.BetaEnvironmentNewParams{
		Name: "desks", Description: anthropic.String("the machines at our desks"), Metadata: map[string]string{"a": "1"},
		Config: anthropic.BetaEnvironmentNewParamsConfigUnion{OfSelfHosted: &anthropic.BetaSelfHostedConfigParams{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func environmentsV1(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	made := newEnvironmentV1(t, c)
	switch {
	case !strings.HasPrefix(made.ID, "env_"), made.Type != "environment", made.Config.Type != "self_hosted":
		t.Errorf("id %s, type %s, config %s", made.ID, made.Type, made.Config.Type)
	case made.Name != "desks", made.Description != "the machines at our desks", made.Metadata["a"] != "1", made.Scope != "organization":
		t.Errorf("the environment came back as %s", made.RawJSON())
	case made.ArchivedAt != "", made.CreatedAt == "":
		t.Errorf("created %q, archived %q", made.CreatedAt, made.ArchivedAt)
	}
	changed, err := c.Beta.Environments.Update(ctx, made.ID, anthropic.BetaEnvironmentUpdateParams{Name: anthropic.String("desks 2")})
	if err != nil || changed.Name != "desks 2" || changed.Description != made.Description {
		t.Errorf("after the update: %v, %v", changed, err)
	}
	got, err := c.Beta.Environments.Get(ctx, made.ID, anthropic.BetaEnvironmentGetParams{})
	if err != nil || got.RawJSON() != changed.RawJSON() {
		t.Errorf("get: %v, %v", got, err)
	}
	found := false
	pages := c.Beta.Environments.ListAutoPaging(ctx, anthropic.BetaEnvironmentListParams{Limit: anthropic.Int(2)})
	for pages.Next() {
		found = found || pages.Current().ID == made.ID
	}
	if pages.Err() != nil || !found {
		t.Errorf("not listed: %v", pages.Err())
	}
	archived, err := c.Beta.Environments.Archive(ctx, made.ID, anthropic.BetaEnvironmentArchiveParams{})
	if err != nil || archived.ArchivedAt == "" {
		t.Errorf("archive: %v, %v", archived, err)
	}
	deleted, err := c.Beta.Environments.Delete(ctx, made.ID, anthropic.BetaEnvironmentDeleteParams{})
	if err != nil || deleted.ID != made.ID || deleted.Type != "environment_deleted" {
		t.Errorf("delete: %v, %v", deleted, err)
	}
	_, err = c.Beta.Environments.Get(ctx, made.ID, anthropic.BetaEnvironmentGetParams{})
	wantErrorV1(t, err, 404)
}

// An official client's whole session in a cloud environment, whose tools this server
// runs itself.
func TestSDKCloudV1(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{cloudy}})
	c := clientV1(p, option.WithAPIKey(p.admin))
	ctx := within(t)
	env, err := c.Beta.Environments.New(ctx, anthropic.BetaEnvironmentNewParams{
		Name: "cloud",
		Config: anthropic.BetaEnvironmentNewParamsConfigUnion{OfCloud: &anthropic.BetaCloudConfigParams{
			Networking: anthropic.BetaCloudConfigParamsNetworkingUnion{OfLimited: &anthropic.BetaLimitedNetworkParams{
				AllowedHosts: []string{"allowed.example", "*.below.example"}, AllowPackageManagers: anthropic.Bool(true),
			}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	network := env.Config.AsCloud().Networking.AsLimited()
	if env.Config.Type != "cloud" || !slices.Equal(network.AllowedHosts, []string{"allowed.example", "*.below.example"}) || !network.AllowPackageManagers || network.AllowMCPServers {
		t.Errorf("the environment came back as %s", env.RawJSON())
	}
	changed, err := c.Beta.Environments.Update(ctx, env.ID, anthropic.BetaEnvironmentUpdateParams{
		Config: anthropic.BetaEnvironmentUpdateParamsConfigUnion{OfCloud: &anthropic.BetaCloudConfigParams{
			Networking: anthropic.BetaCloudConfigParamsNetworkingUnion{OfLimited: &anthropic.BetaLimitedNetworkParams{
				AllowPackageManagers: anthropic.Bool(false),
			}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	network = changed.Config.AsCloud().Networking.AsLimited()
	if len(network.AllowedHosts) != 2 || network.AllowPackageManagers {
		t.Errorf("after the update of one field: %s", changed.RawJSON())
	}
	s := newSessionV1(t, c, toolsV1(), anthropic.BetaSessionNewParams{EnvironmentID: env.ID})
	_, err = c.Beta.Sessions.Events.Send(ctx, s.ID, anthropic.BetaSessionEventSendParams{Events: []anthropic.BetaManagedAgentsEventParamsUnion{messageV1("look outside")}})
	if err != nil {
		t.Fatal(err)
	}
	w := p.watch(t, api.SessionID(s.ID))
	if n := len(outcomeOf(w.finished()).results); n != cloudyCalls {
		t.Errorf("%d calls were answered, want %d", n, cloudyCalls)
	}
	wantErrorV1(t, func() error {
		_, err := c.Beta.Environments.New(ctx, anthropic.BetaEnvironmentNewParams{
			Name: "wrong",
			Config: anthropic.BetaEnvironmentNewParamsConfigUnion{OfCloud: &anthropic.BetaCloudConfigParams{
				Networking: anthropic.BetaCloudConfigParamsNetworkingUnion{OfLimited: &anthropic.BetaLimitedNetworkParams{
					AllowedHosts: []string{"https://scheme.example"},
				}},
			}},
		})
		return err
	}(), 400)
}

func newSessionV1(t *testing.T, c anthropic.Client, tools []anthropic.BetaAgentNewParamsToolUnion, params anthropic.BetaSessionNewParams) *anthropic.BetaManagedAgentsSession {
	t.Helper()
	ctx := within(t)
	agent, err := c.Beta.Agents.New(ctx, anthropic.BetaAgentNewParams{
		Name: "clerk", Model: anthropic.BetaManagedAgentsModelConfigParams{ID: modelID}, Tools: tools,
	})
	if err != nil {
		t.Fatal(err)
	}
	params.Agent = anthropic.BetaSessionNewParamsAgentUnion{OfString: anthropic.String(agent.ID)}
	if params.EnvironmentID == "" {
		params.EnvironmentID = newEnvironmentV1(t, c).ID
	}
	s, err := c.Beta.Sessions.New(ctx, params)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sessionsV1(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	made := newSessionV1(t, c, toolsV1(), anthropic.BetaSessionNewParams{
		Title: anthropic.String("Monday"), Metadata: map[string]string{"ticket": "7"},
		Budget: anthropic.BetaManagedAgentsBudgetLimitParam{
			Type: "limit", MaxListCost: anthropic.BetaMonetaryAmountParam{Amount: "250", Currency: "USD"},
		},
	})
	switch {
	case !strings.HasPrefix(made.ID, "sesn_"), made.Type != "session", made.Status != "idle":
		t.Errorf("id %s, type %s, status %s", made.ID, made.Type, made.Status)
	case made.Title != "Monday", made.Metadata["ticket"] != "7", made.Budget.MaxListCost.Amount != "250":
		t.Errorf("title %q, metadata %v, budget %s", made.Title, made.Metadata, made.Budget.RawJSON())
	case made.Agent.Name != "clerk", made.Agent.Version != 1, made.Agent.Model.ID != modelID, len(made.Agent.Tools) != 1:
		t.Errorf("agent %s", made.Agent.RawJSON())
	case !made.ArchivedAt.IsZero(), made.CreatedAt.IsZero(), made.DeploymentID != "":
		t.Errorf("created %s, archived %s, deployment %q", made.CreatedAt, made.ArchivedAt, made.DeploymentID)
	}
	changed, err := c.Beta.Sessions.Update(ctx, made.ID, anthropic.BetaSessionUpdateParams{Title: anthropic.String("Tuesday")})
	if err != nil || changed.Title != "Tuesday" || changed.Metadata["ticket"] != "7" {
		t.Errorf("after the update: %v, %v", changed, err)
	}
	got, err := c.Beta.Sessions.Get(ctx, made.ID, anthropic.BetaSessionGetParams{})
	if err != nil || got.Title != "Tuesday" || got.EnvironmentID != made.EnvironmentID {
		t.Errorf("get: %v, %v", got, err)
	}

	second, err := c.Beta.Sessions.New(ctx, anthropic.BetaSessionNewParams{
		EnvironmentID: made.EnvironmentID,
		Agent: anthropic.BetaSessionNewParamsAgentUnion{OfBetaManagedAgentsAgents: &anthropic.BetaManagedAgentsAgentParams{
			Type: "agent", ID: made.Agent.ID, Version: anthropic.Int(1),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	pages := c.Beta.Sessions.ListAutoPaging(ctx, anthropic.BetaSessionListParams{
		AgentID: anthropic.String(made.Agent.ID), Limit: anthropic.Int(1), Order: "asc", Statuses: []string{"idle", "running"},
	})
	for pages.Next() {
		ids = append(ids, pages.Current().ID)
	}
	if pages.Err() != nil || !slices.Equal(ids, []string{made.ID, second.ID}) {
		t.Errorf("listed %v, want %s and %s: %v", ids, made.ID, second.ID, pages.Err())
	}

	threads, err := c.Beta.Sessions.Threads.List(ctx, made.ID, anthropic.BetaSessionThreadListParams{})
	if err != nil || len(threads.Data) != 1 || threads.Data[0].SessionID != made.ID || threads.Data[0].ParentThreadID != "" {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	thread, err := c.Beta.Sessions.Threads.Get(ctx, threads.Data[0].ID, anthropic.BetaSessionThreadGetParams{SessionID: made.ID})
	if err != nil || thread.Type != "session_thread" || thread.Status != "idle" {
		t.Errorf("thread: %v, %v", thread, err)
	}

	work, err := c.Beta.Environments.Work.List(ctx, made.EnvironmentID, anthropic.BetaEnvironmentWorkListParams{})
	if err != nil || len(work.Data) != 2 || work.Data[1].Data.ID != made.ID || work.Data[1].State != "queued" || work.Data[1].Secret != "" {
		t.Errorf("work: %v, %v", work, err)
	}
	stats, err := c.Beta.Environments.Work.Stats(ctx, made.EnvironmentID, anthropic.BetaEnvironmentWorkStatsParams{})
	if err != nil || stats.Depth != 2 || stats.Pending != 0 || stats.OldestQueuedAt == "" {
		t.Errorf("stats: %v, %v", stats, err)
	}

	archived, err := c.Beta.Sessions.Archive(ctx, made.ID, anthropic.BetaSessionArchiveParams{})
	if err != nil || archived.Status != "terminated" || archived.ArchivedAt.IsZero() {
		t.Errorf("archive: %v, %v", archived, err)
	}
	_, err = c.Beta.Sessions.Events.Send(ctx, made.ID, anthropic.BetaSessionEventSendParams{
		Events: []anthropic.BetaManagedAgentsEventParamsUnion{messageV1("too late")},
	})
	wantErrorV1(t, err, 400)
	deleted, err := c.Beta.Sessions.Delete(ctx, made.ID, anthropic.BetaSessionDeleteParams{})
	if err != nil || deleted.ID != made.ID || deleted.Type != "session_deleted" {
		t.Errorf("delete: %v, %v", deleted, err)
	}
	_, err = c.Beta.Sessions.Get(ctx, made.ID, anthropic.BetaSessionGetParams{})
	wantErrorV1(t, err, 404)
}

// A conversation over the stream, with previews, and the same over the list.
func eventsV1(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	s := newSessionV1(t, c, nil, anthropic.BetaSessionNewParams{})
	stream := c.Beta.Sessions.Events.StreamEvents(ctx, s.ID, anthropic.BetaSessionEventStreamParams{
		EventDeltas: []anthropic.BetaManagedAgentsDeltaType{"agent.message", "agent.thinking"},
	})
	defer stream.Close()
	said := func(text string) (answer string, previews int) {
		t.Helper()
		sent, err := c.Beta.Sessions.Events.Send(ctx, s.ID, anthropic.BetaSessionEventSendParams{
			Events: []anthropic.BetaManagedAgentsEventParamsUnion{messageV1(text)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(sent.Data) != 1 || !strings.HasPrefix(sent.Data[0].ID, "sevt_") || sent.Data[0].Type != "user.message" {
			t.Errorf("the echo is %s", sent.RawJSON())
		}
		preview := map[string]string{}
		for stream.Next() {
			switch ev := stream.Current().AsAny().(type) {
			case anthropic.BetaManagedAgentsStartEvent:
				if _, twice := preview[ev.Event.ID]; twice {
					t.Errorf("%s starts twice", ev.Event.ID)
				}
				preview[ev.Event.ID] = ""
			case anthropic.BetaManagedAgentsDeltaEvent:
				if _, started := preview[ev.EventID]; !started {
					t.Errorf("a delta of %s, which did not start", ev.EventID)
				}
				preview[ev.EventID] += ev.Delta.Content.Text
				previews++
			case anthropic.BetaManagedAgentsAgentMessageEvent:
				answer = ev.Content[0].Text
				if !strings.HasPrefix(answer, preview[ev.ID]) {
					t.Errorf("the preview is %q and the message %q", preview[ev.ID], answer)
				}
			case anthropic.BetaManagedAgentsSessionErrorEvent:
				t.Errorf("session.error: %s", ev.RawJSON())
			case anthropic.BetaManagedAgentsSessionStatusIdleEvent:
				if ev.StopReason.Type != "end_turn" {
					t.Errorf("idle because of %s", ev.StopReason.Type)
				}
				return answer, previews
			}
		}
		t.Fatalf("the stream ended: %v", stream.Err())
		return "", 0
	}
	answer, previews := said("let us talk")
	if answer != talk.Turns[0].Text || previews == 0 {
		t.Errorf("the first answer came in %d pieces as %q", previews, answer)
	}
	if answer, _ := said("talk again"); answer != talk.Turns[1].Text {
		t.Errorf("the second answer is %q", answer)
	}

	var got []string
	pages := c.Beta.Sessions.Events.ListAutoPaging(ctx, s.ID, anthropic.BetaSessionEventListParams{Limit: anthropic.Int(4)})
	for pages.Next() {
		ev := pages.Current()
		if ev.ID == "" || ev.ProcessedAt.IsZero() {
			t.Errorf("event %s has id %q and time %s", ev.Type, ev.ID, ev.ProcessedAt)
		}
		got = append(got, ev.Type)
	}
	turn := []string{
		"user.message", "session.status_running", "session.thread_status_running",
		"span.model_request_start", "agent.thinking", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle",
	}
	want := slices.Concat(turn, slices.DeleteFunc(slices.Clone(turn), func(s string) bool { return s == "agent.thinking" }))
	if pages.Err() != nil || !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v: %v", got, want, pages.Err())
	}
	only, err := c.Beta.Sessions.Events.List(ctx, s.ID, anthropic.BetaSessionEventListParams{
		Types: []anthropic.BetaManagedAgentsSessionEventType{"agent.message"}, Order: "desc",
	})
	if err != nil || len(only.Data) != 2 || only.Data[0].AsAgentMessage().Content[0].Text != talk.Turns[1].Text {
		t.Errorf("messages, the newest first: %v, %v", only, err)
	}

	threads, err := c.Beta.Sessions.Threads.List(ctx, s.ID, anthropic.BetaSessionThreadListParams{})
	if err != nil || len(threads.Data) != 1 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	thread, err := c.Beta.Sessions.Threads.Events.List(ctx, threads.Data[0].ID, anthropic.BetaSessionThreadEventListParams{SessionID: s.ID})
	if err != nil || len(thread.Data) != len(want) {
		t.Errorf("events of the thread: %v, %v", thread, err)
	}

	after, err := c.Beta.Sessions.Get(ctx, s.ID, anthropic.BetaSessionGetParams{})
	if err != nil {
		t.Fatal(err)
	}
	u := after.Usage
	if u.InputTokens != 3000 || u.OutputTokens != 300 || u.CacheReadInputTokens != 30 || u.CacheCreation.Ephemeral5mInputTokens != 4 {
		t.Errorf("usage %s", u.RawJSON())
	}
	// 3000 tokens in at $5 a million, 300 out at $25, and next to nothing else.
	if u.ListCost.Currency != "USD" || u.ListCost.Amount != "2" {
		t.Errorf("cost %s", u.ListCost.RawJSON())
	}
}

// The model's own endpoints, passed through.
func modelsV1(t *testing.T, c anthropic.Client) {
	ctx := within(t)
	found := false
	pages := c.Models.ListAutoPaging(ctx, anthropic.ModelListParams{})
	for pages.Next() {
		found = found || pages.Current().ID == modelID
	}
	if pages.Err() != nil || !found {
		t.Errorf("models: found %v, %v", found, pages.Err())
	}
	model, err := c.Models.Get(ctx, modelID, anthropic.ModelGetParams{})
	if err != nil || model.DisplayName == "" {
		t.Errorf("model: %v, %v", model, err)
	}
	question := []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("let us talk"))}
	count, err := c.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: modelID, Messages: question})
	if err != nil || count.InputTokens == 0 {
		t.Errorf("count: %v, %v", count, err)
	}
	params := anthropic.MessageNewParams{Model: modelID, MaxTokens: 1000, Messages: question}
	whole, err := c.Messages.New(ctx, params)
	if err != nil {
		t.Fatal(err)
	}
	var streamed anthropic.Message
	stream := c.Messages.NewStreaming(ctx, params)
	pieces := 0
	for stream.Next() {
		pieces++
		if err := streamed.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if pieces < 10 || whole.StopReason != "end_turn" || len(whole.Content) != 2 || len(streamed.Content) != 2 ||
		whole.Content[1].Text != talk.Turns[0].Text || streamed.Content[1].Text != talk.Turns[0].Text {
		t.Errorf("in %d pieces: %s\nat once: %s", pieces, streamed.RawJSON(), whole.RawJSON())
	}
}

// The official worker serves a whole session.
func TestSDKV1Worker(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{greet}})
		env, key := p.environment(t)
		c := clientV1(p, option.WithAPIKey(p.admin))
		s := newSessionV1(t, c, toolsV1(), anthropic.BetaSessionNewParams{
			EnvironmentID: string(env),
			InitialEvents: []anthropic.BetaSessionNewParamsInitialEventUnion{{OfUserMessage: messageV1("greet me").OfUserMessage}},
		})
		if s.Status != "running" {
			t.Errorf("a session with a first message is %s", s.Status)
		}
		w := p.watch(t, api.SessionID(s.ID))

		ctx, cancel := context.WithCancel(within(t))
		worker := environments.NewEnvironmentWorker(anthropic.NewClient(option.WithBaseURL(p.url)), environments.EnvironmentWorkerOptions{
			EnvironmentID: string(env), EnvironmentKey: key, WorkerID: "official", Workdir: t.TempDir(), Logger: testLogger(t),
		})
		ran := make(chan error, 1)
		go func() { ran <- worker.Run(ctx) }()
		events := w.finished()
		if n := len(outcomeOf(events).results); n != greetCalls {
			t.Errorf("%d calls were answered, want %d", n, greetCalls)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		// The worker has given the item back, so the next message is for another.
		p.workStopped(t, env)
	})
}

// The token of a claimed item is all that a box needs to serve it: not even the
// environment key. When its session has been idle for a while, the worker leaves.
func TestSDKV1WorkerWithTokenAlone(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{greet}})
	env, key := p.environment(t)
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "greet me")
	w := p.watch(t, id)

	ctx := within(t)
	host := clientV1(p, option.WithAuthToken(key))
	item, err := host.Beta.Environments.Work.Poll(ctx, string(env), anthropic.BetaEnvironmentWorkPollParams{BlockMs: anthropic.Int(999)})
	if err != nil || item.Data.ID != string(id) {
		t.Fatalf("poll: %v, %v", item, err)
	}
	acked, err := host.Beta.Environments.Work.Ack(ctx, item.ID, anthropic.BetaEnvironmentWorkAckParams{EnvironmentID: string(env)})
	if err != nil || acked.State != "starting" || acked.Secret != "" {
		t.Fatalf("ack: %v, %v", acked, err)
	}
	idle := 100 * time.Millisecond
	worker := environments.NewEnvironmentWorker(anthropic.NewClient(option.WithBaseURL(p.url)), environments.EnvironmentWorkerOptions{
		Workdir: t.TempDir(), MaxIdle: &idle, Logger: testLogger(t),
	})
	err = worker.HandleItem(ctx, environments.HandleItemOptions{
		WorkID: item.ID, EnvironmentID: string(env), SessionID: string(id), WorkSecret: item.Secret,
	})
	if err != nil {
		t.Errorf("HandleItem: %v", err)
	}
	w.finished()
	p.workStopped(t, env)
	empty, err := host.Beta.Environments.Work.Poll(ctx, string(env), anthropic.BetaEnvironmentWorkPollParams{})
	if err != nil || empty != nil && empty.ID != "" {
		t.Errorf("an empty poll: %v, %v", empty, err)
	}
}
