package control

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

// newDB makes the database of a test. All tests run on SQLite, and then once more
// on PostgreSQL.
var newDB = storetest.SQLite

func TestMain(m *testing.M) {
	code := m.Run()
	switch {
	case os.Getenv(storetest.PostgresEnv) != "" || os.Getenv("CI") == "true":
		newDB = storetest.Postgres
		code = max(code, m.Run())
	default:
		fmt.Println("control: not run on PostgreSQL, as", storetest.PostgresEnv, "is not set")
	}
	os.Exit(code)
}

// A world is a control over a fresh database with a clock that only tests move.
type world struct {
	*Control
	t     *testing.T
	ctx   context.Context
	admin Principal
	url   string // of the database

	mu  sync.Mutex
	now time.Time
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), admin: Principal{Kind: api.KeyAPI, KeyID: "apikey_test"}}
	cfg.Clock = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.now = w.now.Add(time.Microsecond) // no two rows at the same time
		return w.now
	}
	w.url = newDB(t)
	c, err := New(w.ctx, w.url, store.Options{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Log("on", c.Engine()) // seen when the test fails
	w.Control = c
	return w
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func must1[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// session makes an agent, an environment with a key, and a session.
func (w *world) session(tools ...api.AgentTool) (*api.Session, Principal) {
	w.t.Helper()
	agent := must1[*api.Agent](w.t)(w.CreateAgent(w.ctx, w.admin, api.AgentCreate{
		Name: "a", Model: &api.ModelConfig{ID: "claude-sonnet-4-5"}, Tools: tools,
	}))
	env := must1[*api.Environment](w.t)(w.CreateEnvironment(w.ctx, w.admin, api.EnvironmentCreate{
		Name: "e", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted},
	}))
	s := must1[*api.Session](w.t)(w.CreateSession(w.ctx, w.admin, api.SessionCreate{
		Agent: api.AgentRef{Type: "agent", ID: agent.ID}, EnvironmentID: env.ID,
	}))
	return s, Principal{Kind: api.KeyEnvironment, EnvironmentID: env.ID}
}

func (w *world) send(p Principal, id api.SessionID, events ...string) ([]*api.Event, error) {
	var in api.EventsRequest
	for _, e := range events {
		in.Events = append(in.Events, json.RawMessage(e))
	}
	out, err := w.SendEvents(w.ctx, p, id, in)
	return out.Data, err
}

// calls makes a turn that asks for one sandbox call per permission and goes idle
// with them open. It returns their ids.
func (w *world) calls(s *api.Session, perms ...api.Permission) []api.EventID {
	w.t.Helper()
	must1[[]*api.Event](w.t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"go"}]}`))
	var ids []api.EventID
	turn, err := w.ClaimTurn(w.ctx, s.ID, "test", nil, func(v View) (Batch, error) {
		b := Batch{Release: true}
		for _, e := range v.Entries {
			if e.Queued {
				b.Append = append(b.Append, api.Draft{ID: e.Event.ID})
			}
		}
		b.Append = append(b.Append, api.Draft{Body: &api.SessionStatusRunning{}})
		for _, p := range perms {
			id := w.NewEventID()
			ids = append(ids, id)
			b.Append = append(b.Append, api.Draft{ID: id, Body: &api.AgentToolUse{Name: "bash", Input: json.RawMessage(`{}`), EvaluatedPermission: p}})
		}
		b.Append = append(b.Append, api.Draft{Body: &api.SessionUsage{}},
			api.Draft{Body: &api.SessionStatusIdle{StopReason: api.StopReason{Type: api.StopRequiresAction, EventIDs: ids}}})
		return b, nil
	})
	if err != nil || turn != nil {
		w.t.Fatalf("claim: turn %v, error %v", turn, err)
	}
	return ids
}

func (w *world) eventTypes(id api.SessionID) (types []string) {
	w.t.Helper()
	page := must1[api.Page[*api.Event]](w.t)(w.ListEvents(w.ctx, w.admin, id, "", api.EventFilter{}, api.PageRequest{}))
	for _, e := range page.Data {
		types = append(types, string(e.Type()))
	}
	return types
}

func wantError(t *testing.T, err error, status int, fragment string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil || e.Status != status {
		t.Fatalf("error is %v (%T), want a public error with status %d", err, err, status)
	}
	if fragment != "" && !contains(e.Message, fragment) {
		t.Fatalf("message %q does not mention %q", e.Message, fragment)
	}
}

func contains(s, sub string) bool {
	for i := range s {
		if len(s)-i >= len(sub) && s[i:i+len(sub)] == sub {
			return true
		}
	}
	return false
}

func TestMessageQueuesUntilATurnTakesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	f := must1[*Follower](t)(w.Follow(w.ctx, w.admin, s.ID, "", FollowOptions{}))
	defer f.Close()
	sent := must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"hi"}]}`))
	if sent[0].ProcessedAt != nil {
		t.Error("a queued message has a processed_at")
	}
	if got := must1[*api.Session](t)(w.GetSession(w.ctx, w.admin, s.ID)); got.Status != api.StatusRunning {
		t.Errorf("status after a message is %s, want running at once", got.Status)
	}
	turn, err := w.ClaimTurn(w.ctx, s.ID, "me", nil, func(v View) (Batch, error) {
		if len(v.Entries) != 1 || !v.Entries[0].Queued {
			t.Errorf("entries %+v, want one queued", v.Entries)
		}
		return Batch{Append: []api.Draft{{ID: sent[0].ID}, {Body: &api.SessionStatusRunning{}}}}, nil
	})
	if err != nil || turn == nil {
		t.Fatal(turn, err)
	}
	defer turn.Close()
	err = turn.Commit(w.ctx, func(v View) (Batch, error) {
		if len(v.Entries) != 2 || v.Entries[0].Queued {
			t.Errorf("after taking it the log is %+v", v.Entries)
		}
		return Batch{Release: true, Tokens: api.Tokens{Input: 1_000_000}, Model: "claude-sonnet-4-5",
			Append: []api.Draft{{Body: &api.SessionUsage{}}, {Body: &api.SessionStatusIdle{StopReason: api.StopReason{Type: api.StopEndTurn}}}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for len(names) < 5 {
		for _, fr := range must1[[]Frame](t)(f.Next(w.ctx)) {
			names = append(names, fr.Name+" "+fr.ID)
		}
	}
	want := []string{"user.message 1", "user.message 2", "session.status_running 3", "session.usage 4", "session.status_idle 5"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error("stream (-want +got):\n" + d)
	}
	if d := cmp.Diff([]string{"user.message", "session.status_running", "session.usage", "session.status_idle"}, w.eventTypes(s.ID)); d != "" {
		t.Error("list (-want +got):\n" + d)
	}
	got := must1[*api.Session](t)(w.GetSession(w.ctx, w.admin, s.ID))
	if got.Usage.ListCost == nil || got.Usage.ListCost.Money().Amount != "300" {
		t.Errorf("cost of a million input tokens is %v, want 300 cents", got.Usage.ListCost)
	}
}

func TestFencedTurnWritesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"hi"}]}`))
	hold := func(v View) (Batch, error) { return Batch{}, nil }
	old := must1[*Turn](t)(w.ClaimTurn(w.ctx, s.ID, "old", nil, hold))
	defer old.Close()
	if other := must1[*Turn](t)(w.ClaimTurn(w.ctx, s.ID, "new", nil, hold)); other != nil {
		t.Fatal("a held turn was claimed")
	}
	w.pass(time.Minute)
	if err := old.Renew(w.ctx); err != nil {
		t.Fatalf("nobody claimed it, yet: %v", err)
	}
	w.pass(time.Minute)
	newer := must1[*Turn](t)(w.ClaimTurn(w.ctx, s.ID, "new", nil, hold))
	defer newer.Close()
	err := old.Commit(w.ctx, func(View) (Batch, error) {
		return Batch{Append: []api.Draft{{Body: &api.SessionStatusRunning{}}}}, nil
	})
	if !errors.Is(err, ErrFenced) || !errors.Is(old.Renew(w.ctx), ErrFenced) {
		t.Fatalf("a late holder could write: %v", err)
	}
	if got := w.eventTypes(s.ID); len(got) != 1 {
		t.Errorf("events %v, want the message alone", got)
	}
}

func TestToolResults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, worker := w.session()
	ids := w.calls(s, api.PermissionAllow, api.PermissionAsk, api.PermissionDeny)
	allow, ask, deny := ids[0], ids[1], ids[2]
	result := func(id api.EventID) string {
		return fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"content":[{"type":"text","text":"ok"}]}`, id)
	}
	confirm := func(id api.EventID, verdict string) string {
		return fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":%q}`, id, verdict)
	}

	first := must1[[]*api.Event](t)(w.send(worker, s.ID, result(allow)))
	again := must1[[]*api.Event](t)(w.send(worker, s.ID, result(allow)))
	if first[0].ID != again[0].ID {
		t.Error("a second result for the same call became an event of its own")
	}
	for name, tc := range map[string]struct {
		p     Principal
		event string
		code  int
	}{
		"unknown call":                 {worker, result("sevt_nope"), 400},
		"unconfirmed call":             {worker, result(ask), 400},
		"denied call":                  {worker, result(deny), 400},
		"worker approves its own call": {worker, confirm(ask, "allow"), 403},
		"confirming an allowed call":   {w.admin, confirm(allow, "allow"), 400},
		"message while calls are open": {w.admin, `{"type":"user.message","content":[{"type":"text","text":"x"}]}`, 400},
		"other environment's worker":   {Principal{Kind: api.KeyEnvironment, EnvironmentID: "env_other"}, result(ask), 404},
		"custom result for a tool":     {worker, fmt.Sprintf(`{"type":"user.custom_tool_result","custom_tool_use_id":%q}`, ask), 400},
	} {
		_, err := w.send(tc.p, s.ID, tc.event)
		if e := api.AsError(err); e == nil || e.Status != tc.code {
			t.Errorf("%s: %v, want status %d", name, err, tc.code)
		}
	}
	// One refused event refuses the whole request.
	before := len(w.eventTypes(s.ID))
	if _, err := w.send(w.admin, s.ID, confirm(ask, "allow"), result("sevt_nope")); err == nil {
		t.Error("a request with a bad event was accepted")
	}
	if after := len(w.eventTypes(s.ID)); after != before {
		t.Errorf("a refused request left %d events", after-before)
	}
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, confirm(ask, "allow")))
	if _, err := w.send(w.admin, s.ID, confirm(ask, "deny")); err == nil {
		t.Error("a confirmation was turned round")
	}
	must1[[]*api.Event](t)(w.send(worker, s.ID, result(ask)))
}

// Three thousand open calls cost two queries each, at every answer to one of them.
// Logs of earlier versions may hold that many.
func TestThousandsOfOpenCallsAreLookedUpAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, worker := w.session()
	perms := make([]api.Permission, 1500)
	for i := range perms {
		perms[i] = api.PermissionAllow
	}
	perms[7], perms[1400] = api.PermissionAsk, api.PermissionAsk
	ids := w.calls(s, perms...)
	must1[[]*api.Event](t)(w.send(w.admin, s.ID,
		fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"deny"}`, ids[7]),
		fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q}`, ids[1499])))
	_, err := w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"x"}]}`)
	wantError(t, err, 400, "the session waits for "+string(ids[0])+", "+string(ids[1]))
	err = w.db.Read(w.ctx, func(tx *store.Tx) error {
		row, err := tx.Session(s.ID)
		if err != nil {
			return err
		}
		o, err := openCalls(tx, row)
		if len(o.all) != 1498 || len(o.denied) != 1 || len(o.runnable) != 1497 || o.denied[0] != ids[7] || o.all[1497] != ids[1498] {
			t.Errorf("%d open, %d denied, %d runnable", len(o.all), len(o.denied), len(o.runnable))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	must1[[]*api.Event](t)(w.send(worker, s.ID, fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q}`, ids[0])))
}

// take drives an item through poll, ack and first heartbeat.
func (w *world) take(p Principal) (*api.Work, *api.Heartbeat) {
	w.t.Helper()
	item := must1[*api.Work](w.t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{WorkerID: "w"}))
	if item == nil {
		w.t.Fatal("no work")
	}
	must1[*api.Work](w.t)(w.AckWork(w.ctx, p, p.EnvironmentID, item.ID))
	return item, must1[*api.Heartbeat](w.t)(w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: api.HeartbeatNone}))
}

func TestWorkLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	item, beat := w.take(p)
	if item.Secret == nil || beat.State != api.WorkActive || beat.TTLSeconds != 60 {
		t.Fatalf("item %+v, beat %+v", item, beat)
	}
	if again := must1[*api.Work](t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{})); again != nil {
		t.Fatal("an item was handed out twice")
	}
	// Stale, replayed and first beats are refused with the current state.
	for _, expected := range []string{api.HeartbeatNone, "stale", ""} {
		_, err := w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: expected})
		wantError(t, err, 412, "Heartbeat precondition failed: expected "+expected)
		if code := api.AsError(err).Details["error_code"]; code != api.HeartbeatConflict {
			t.Errorf("error_code %v", code)
		}
	}
	next := must1[*api.Heartbeat](t)(w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: beat.LastHeartbeat}))
	if next.LastHeartbeat == beat.LastHeartbeat || !next.LeaseExtended {
		t.Errorf("beat %+v", next)
	}
	// A lapsed lease with calls open is offered again; the old worker is told.
	w.calls(s, api.PermissionAllow)
	w.pass(2 * time.Minute)
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	_, err := w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: next.LastHeartbeat})
	wantError(t, err, 412, "actual was NULL")
	second, _ := w.take(p)
	if second.ID != item.ID || *second.Secret == *item.Secret {
		t.Errorf("second delivery %+v, want the same item with a new secret", second)
	}
	// A graceful stop is learnt at the next heartbeat; a forced one is final, and
	// as the call is still open the session is queued again.
	must1[*api.Work](t)(w.StopWork(w.ctx, p, p.EnvironmentID, item.ID, api.StopRequest{}))
	beat = must1[*api.Heartbeat](t)(w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: "whatever"}))
	if beat.LeaseExtended || beat.State != api.WorkStopping {
		t.Errorf("beat of a stopping item: %+v", beat)
	}
	for range 2 { // stopping a stopped item is harmless
		if got := must1[*api.Work](t)(w.StopWork(w.ctx, p, p.EnvironmentID, item.ID, api.StopRequest{Force: true})); got.State != api.WorkStopped {
			t.Errorf("state %s", got.State)
		}
	}
	if third, _ := w.take(p); third.ID == item.ID || third.Data.ID != s.ID {
		t.Errorf("third item %+v, want a new one for the same session", third)
	}
}

func TestNeverBeatenItemIsOfferedAgainUntilTheSessionIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{DeliveriesMax: 3})
	s, p := w.session()
	ids := w.calls(s, api.PermissionAllow)
	for i := range 3 {
		item := must1[*api.Work](t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{}))
		if item == nil {
			t.Fatalf("delivery %d: nothing offered", i)
		}
		must1[*api.Work](t)(w.AckWork(w.ctx, p, p.EnvironmentID, item.ID))
		w.pass(3 * time.Minute)
		if err := w.Sweep(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if item := must1[*api.Work](t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{})); item != nil {
		t.Fatal("offered beyond the cap")
	}
	types := w.eventTypes(s.ID)
	want := []string{"session.error", "agent.tool_result", "session.thread_status_idle", "session.usage", "session.status_idle"}
	if d := cmp.Diff(want, types[len(types)-5:]); d != "" {
		t.Error("the session was not told (-want +got):\n" + d)
	}
	// A late result of the call that was given up is refused, and the session
	// accepts a new message.
	_, err := w.send(p, s.ID, fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q}`, ids[0]))
	wantError(t, err, 400, "")
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"again"}]}`))
	if item := must1[*api.Work](t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{})); item == nil {
		t.Error("a new message did not queue the session again")
	}
}

func TestUnclaimedWorkIsSaid(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	w.calls(s, api.PermissionAllow)
	w.pass(5 * time.Minute)
	for range 2 {
		if err := w.Sweep(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, typ := range w.eventTypes(s.ID) {
		if typ == "session.error" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d errors about unclaimed work, want 1", n)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	first, ok, err := w.Bootstrap(w.ctx, func(string) error { return nil })
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, again, _ := w.Bootstrap(w.ctx, func(string) error { return nil }); again {
		t.Error("a second admin key was made")
	}
	admin := must1[Principal](t)(w.Authenticate(w.ctx, first.Secret))
	if admin.Kind != api.KeyAPI {
		t.Errorf("principal %+v", admin)
	}
	expires := w.now.Add(time.Hour)
	key := must1[*api.Key](t)(w.CreateKey(w.ctx, admin, p.EnvironmentID, api.KeyCreate{Name: "k", ExpiresAt: &expires}))
	env := must1[Principal](t)(w.Authenticate(w.ctx, key.Secret))
	if env.EnvironmentID != p.EnvironmentID || env.Kind != api.KeyEnvironment {
		t.Errorf("principal %+v", env)
	}
	if list := must1[api.Page[*api.Key]](t)(w.ListKeys(w.ctx, admin, p.EnvironmentID, api.PageRequest{})); len(list.Data) != 1 || list.Data[0].Secret != "" {
		t.Errorf("list %+v", list.Data)
	}
	_, err = w.CreateAgent(w.ctx, env, api.AgentCreate{})
	wantError(t, err, 403, "environment key")
	item := must1[*api.Work](t)(w.PollWork(w.ctx, env, p.EnvironmentID, api.PollRequest{}))
	if item.Data.ID != s.ID {
		t.Fatal(item)
	}
	for name, secret := range map[string]string{
		"empty": "", "garbage": "x", "other prefix": "sk-live-1", "unknown": "sk-ant-api03-AAAA", "huge": "sk-ant-" + string(make([]byte, 10_000)),
	} {
		if _, err := w.Authenticate(w.ctx, secret); api.AsError(err) == nil || api.AsError(err).Status != 401 {
			t.Errorf("%s: %v", name, err)
		}
	}
	must1[*api.Key](t)(w.RevokeKey(w.ctx, admin, p.EnvironmentID, key.ID))
	if _, err := w.Authenticate(w.ctx, key.Secret); err == nil {
		t.Error("a revoked key works")
	}
	w.pass(2 * time.Hour)
	if _, err := w.RevokeKey(w.ctx, admin, "", admin.KeyID); err == nil {
		t.Error("a key revoked itself")
	}
}

func TestReplicasStartingAtOnceMakeOneAdminKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	var made atomic.Int64
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			_, ok, err := w.Bootstrap(w.ctx, func(string) error { return nil })
			if ok {
				made.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil || made.Load() != 1 {
		t.Errorf("%d keys were made, error %v", made.Load(), err)
	}
}

func TestKeyNameWithNULIsRefusedAndNotAnInternalError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	for _, name := range []string{"a\x00b", "a\nb", "\x1b[2J"} {
		_, err := w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: name})
		wantError(t, err, 400, "control characters")
	}
}

// Messages arrive while turns are claimed, written and given up by two owners.
// Whoever holds the turn sees every event once, in order, and takes each once.
func TestTurnsSeeEveryEventOnceWhileMessagesArrive(t *testing.T) {
	t.Parallel()
	const messages, rounds = 40, 4
	w := newWorld(t, Config{})
	s, _ := w.session()
	check := func(v View) {
		last := int64(0)
		for _, e := range v.Entries {
			if e.Seq <= last {
				t.Errorf("entry %d comes after entry %d", e.Seq, last)
			}
			last = e.Seq
		}
	}
	var taken atomic.Int64
	take := func(release bool) func(View) (Batch, error) {
		return func(v View) (Batch, error) {
			check(v)
			b := Batch{Release: release}
			for _, e := range v.Entries {
				if e.Queued {
					taken.Add(1)
					b.Append = append(b.Append, api.Draft{ID: e.Event.ID})
				}
			}
			return b, nil
		}
	}
	var senders, owners errgroup.Group
	for range rounds {
		senders.Go(func() error {
			for range messages / rounds {
				if _, err := w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"hi"}]}`); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, owner := range []string{"a", "b"} {
		owners.Go(func() error {
			for taken.Load() < messages {
				turn, err := w.ClaimTurn(w.ctx, s.ID, owner, nil, take(false))
				if err != nil {
					return err
				}
				if turn == nil {
					continue
				}
				if err := turn.Commit(w.ctx, take(true)); err != nil {
					return err
				}
				turn.Close()
			}
			return nil
		})
	}
	if err := errors.Join(senders.Wait(), owners.Wait()); err != nil {
		t.Fatal(err)
	}
	if got := w.eventTypes(s.ID); len(got) != messages || taken.Load() != messages {
		t.Errorf("%d events, %d taken, want %d", len(got), taken.Load(), messages)
	}
}

func TestArchiveAndDelete(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	f := must1[*Follower](t)(w.Follow(w.ctx, w.admin, s.ID, "", FollowOptions{}))
	defer f.Close()
	if _, err := w.DeleteEnvironment(w.ctx, w.admin, p.EnvironmentID); api.AsError(err) == nil || *api.AsError(err).Retry {
		t.Errorf("deleting an environment in use: %v", err)
	}
	got := must1[*api.Session](t)(w.ArchiveSession(w.ctx, w.admin, s.ID))
	if got.Status != api.StatusTerminated || got.ArchivedAt == nil {
		t.Errorf("archived session: %+v", got)
	}
	if _, err := w.send(w.admin, s.ID, `{"type":"user.interrupt"}`); err == nil {
		t.Error("a terminated session accepted an event")
	}
	if item := must1[*api.Work](t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{})); item != nil {
		t.Error("the work of an archived session is offered")
	}
	must1[api.Deleted](t)(w.DeleteSession(w.ctx, w.admin, s.ID))
	var names []string
	for len(names) == 0 || names[len(names)-1] != "session.deleted" {
		for _, fr := range must1[[]Frame](t)(f.Next(w.ctx)) {
			names = append(names, fr.Name)
		}
	}
	_, err := w.GetSession(w.ctx, w.admin, s.ID)
	wantError(t, err, 404, "")
	must1[api.Deleted](t)(w.DeleteEnvironment(w.ctx, w.admin, p.EnvironmentID))
}

func TestSessionListWalksBothWays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	want := []api.SessionID{s.ID}
	for range 6 {
		n := must1[*api.Session](t)(w.CreateSession(w.ctx, w.admin, api.SessionCreate{
			Agent: api.AgentRef{Type: "agent", ID: s.Agent.ID}, EnvironmentID: p.EnvironmentID}))
		want = append([]api.SessionID{n.ID}, want...)
	}
	var got []api.SessionID
	var pages []api.SessionPage
	cursor := ""
	for {
		page := must1[api.SessionPage](t)(w.ListSessions(w.ctx, w.admin, api.SessionFilter{}, api.PageRequest{Limit: 3, Cursor: cursor}))
		pages = append(pages, page)
		for _, s := range page.Data {
			got = append(got, s.ID)
		}
		if page.NextPage == nil {
			break
		}
		cursor = *page.NextPage
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error("forwards (-want +got):\n" + d)
	}
	if pages[0].PrevPage != nil {
		t.Error("the first page has a previous one")
	}
	back := must1[api.SessionPage](t)(w.ListSessions(w.ctx, w.admin, api.SessionFilter{}, api.PageRequest{Limit: 3, Cursor: *pages[2].PrevPage}))
	if d := cmp.Diff(ids(pages[1]), ids(back)); d != "" {
		t.Error("backwards (-want +got):\n" + d)
	}
	if _, err := w.ListSessions(w.ctx, w.admin, api.SessionFilter{Order: api.Ascending}, api.PageRequest{Cursor: cursor}); err == nil {
		t.Error("a cursor of another order was accepted")
	}
}

func ids(p api.SessionPage) (out []api.SessionID) {
	for _, s := range p.Data {
		out = append(out, s.ID)
	}
	return out
}

func (w *world) sweep() {
	w.t.Helper()
	if err := w.Sweep(w.ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) count(id api.SessionID, typ api.EventType) (n int) {
	w.t.Helper()
	for _, got := range w.eventTypes(id) {
		if got == string(typ) {
			n++
		}
	}
	return n
}

func (w *world) poll(p Principal) *api.Work {
	w.t.Helper()
	return must1[*api.Work](w.t)(w.PollWork(w.ctx, p, p.EnvironmentID, api.PollRequest{WorkerID: "w"}))
}

func (w *world) stop(p Principal, id api.WorkID, force bool) {
	w.t.Helper()
	must1[*api.Work](w.t)(w.StopWork(w.ctx, p, p.EnvironmentID, id, api.StopRequest{Force: force}))
}

// A worker slept past its lease, the item was queued again, and then the worker's
// late, graceful stop arrived.
func TestLateStopOfARequeuedItemDoesNotStrandTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	item, _ := w.take(p)
	w.calls(s, api.PermissionAllow)
	w.pass(5 * time.Minute)
	w.sweep()
	w.stop(p, item.ID, false)
	if next := w.poll(p); next == nil || next.Data.ID != s.ID {
		t.Fatalf("after the stop %+v is offered, want the session", next)
	}
}

// The item had been queued for long before there was anything to run.
func TestUnclaimedWorkIsSaidAlsoWhenTheCallComesLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	w.pass(5 * time.Minute)
	w.sweep()
	w.calls(s, api.PermissionAllow)
	w.sweep()
	if n := w.count(s.ID, api.EvSessionError); n != 0 {
		t.Errorf("%d errors at once", n)
	}
	w.pass(5 * time.Minute)
	w.sweep()
	w.sweep()
	if n := w.count(s.ID, api.EvSessionError); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
}

func TestCallThatWaitsForAPersonIsNotGivenUpWithItsWorkers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{DeliveriesMax: 2})
	s, p := w.session()
	ask := w.calls(s, api.PermissionAsk)[0]
	item, _ := w.take(p)
	for range 3 { // restarts: each ends the item, and nothing is left to queue
		w.stop(p, item.ID, true)
		if again := w.poll(p); again != nil {
			t.Fatalf("a call that nobody may run was queued: %+v", again)
		}
	}
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"allow"}`, ask)))
	if next := w.poll(p); next == nil {
		t.Fatal("an allowed call was not queued")
	}
	if n := w.count(s.ID, api.EvSessionError); n != 0 {
		t.Errorf("%d errors in a healthy session", n)
	}
}

func TestRevokedKeyEndsItsTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	_, p := w.session()
	key := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, p.EnvironmentID, api.KeyCreate{Name: "k"}))
	item := w.poll(must1[Principal](t)(w.Authenticate(w.ctx, key.Secret)))
	raw := must1[[]byte](t)(base64.RawURLEncoding.DecodeString(*item.Secret))
	var secret api.WorkSecret
	if err := json.Unmarshal(raw, &secret); err != nil {
		t.Fatal(err)
	}
	must1[Principal](t)(w.Authenticate(w.ctx, secret.SessionsToken))
	must1[*api.Key](t)(w.RevokeKey(w.ctx, w.admin, p.EnvironmentID, key.ID))
	_, err := w.Authenticate(w.ctx, secret.SessionsToken)
	wantError(t, err, 401, "")
}

// A stream that was open when its key was revoked went on for up to a minute, and one
// opened with a session token for as long as that lived.
func TestRevokedKeysStreamsEndAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, p := w.session()
	key := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, p.EnvironmentID, api.KeyCreate{Name: "k"}))
	holder := must1[Principal](t)(w.Authenticate(w.ctx, key.Secret))
	item := w.poll(holder)
	raw := must1[[]byte](t)(base64.RawURLEncoding.DecodeString(*item.Secret))
	var secret api.WorkSecret
	if err := json.Unmarshal(raw, &secret); err != nil {
		t.Fatal(err)
	}
	token := must1[Principal](t)(w.Authenticate(w.ctx, secret.SessionsToken))
	ended := make(chan error)
	for _, who := range []Principal{holder, token} {
		f := must1[*Follower](t)(w.Follow(w.ctx, who, s.ID, "", FollowOptions{}))
		go func() {
			defer f.Close()
			_, err := f.Next(w.ctx)
			ended <- err
		}()
	}
	must1[*api.Key](t)(w.RevokeKey(w.ctx, w.admin, p.EnvironmentID, key.ID))
	for range 2 {
		wantError(t, <-ended, 401, "")
	}
}

func TestLastAPIKeyCannotBeRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	first := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: "1"}))
	second := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: "2"}))
	must1[*api.Key](t)(w.RevokeKey(w.ctx, w.admin, "", first.ID))
	_, err := w.RevokeKey(w.ctx, w.admin, "", second.ID)
	wantError(t, err, 400, "last API key")
}

func TestInterruptThenMessageIsNotIdleInBetween(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.interrupt"}`, `{"type":"user.message","content":[{"type":"text","text":"x"}]}`))
	if got := must1[*api.Session](t)(w.GetSession(w.ctx, w.admin, s.ID)); got.Status != api.StatusRunning {
		t.Errorf("status %s", got.Status)
	}
	_, err := w.DeleteSession(w.ctx, w.admin, s.ID)
	wantError(t, err, 400, "running")
}

func TestInterruptIsHeardWhenItsNotificationWasLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"x"}]}`))
	turn := must1[*Turn](t)(w.ClaimTurn(w.ctx, s.ID, "me", nil, func(View) (Batch, error) { return Batch{}, nil }))
	defer turn.Close()
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.interrupt"}`))
	<-turn.Interrupted() // as if it had never come
	if err := turn.Renew(w.ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-turn.Interrupted():
	default:
		t.Error("the renewal did not look")
	}
	if yes, err := turn.Check(w.ctx); !yes || err != nil {
		t.Errorf("check: %v, %v", yes, err)
	}
}

func TestPreviewsEndWithTheirRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s, _ := w.session()
	f := must1[*Follower](t)(w.Follow(w.ctx, w.admin, s.ID, "", FollowOptions{Previews: []api.EventType{api.EvAgentMessage}}))
	defer f.Close()
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.message","content":[{"type":"text","text":"x"}]}`))
	span := w.NewEventID()
	turn := must1[*Turn](t)(w.ClaimTurn(w.ctx, s.ID, "me", nil, func(View) (Batch, error) {
		return Batch{Append: []api.Draft{{ID: span, Body: &api.SpanModelRequestStart{}}}}, nil
	}))
	defer turn.Close()
	id := w.NewEventID()
	turn.PreviewText(id, 0, "never begun")
	turn.PreviewStart(api.EvAgentMessage, id)
	turn.PreviewText(id, 0, "hel")
	var names []string
	read := func() {
		for _, fr := range must1[[]Frame](t)(f.Next(w.ctx)) {
			names = append(names, fr.Name)
		}
	}
	read()
	turn.PreviewText(id, 0, "lo") // and then the request ends without the event
	err := turn.Commit(w.ctx, func(View) (Batch, error) {
		return Batch{Release: true, Append: []api.Draft{{Body: &api.SpanModelRequestEnd{ModelRequestStartID: span, IsError: true}}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	read()
	turn.PreviewText(id, 0, "too late")
	must1[[]*api.Event](t)(w.send(w.admin, s.ID, `{"type":"user.interrupt"}`))
	read()
	want := []string{"event_start", "event_delta", "user.message", "span.model_request_start", "event_delta", "span.model_request_end", "user.interrupt"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error("frames (-want +got):\n" + d)
	}
}
