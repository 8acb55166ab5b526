package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/daemon"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/none"
)

// server starts a server with a scripted model and returns the environment that
// leads commands to it.
func server(t *testing.T, scripts ...scripted.Script) map[string]string {
	t.Helper()
	model, err := scripted.New(scripted.Options{}, scripts...).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := daemon.Defaults()
	cfg.Listen = "127.0.0.1:0"
	cfg.Data = t.TempDir()
	cfg.ModelURL = model.URL
	cfg.ShutdownGrace = 0
	cfg.Prices = map[string]string{"claude-opus-5-5": "5/25"}
	d, err := daemon.New(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	parts.Go(func() {
		if err := model.Run(ctx); err != nil {
			t.Errorf("model: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	return map[string]string{"BAILEY_URL": d.URL(), "BAILEY_KEY_FILE": cfg.AdminKeyFile()}
}

// ok runs a command that must work and returns its standard output.
func ok(t *testing.T, env map[string]string, args ...string) string {
	t.Helper()
	r := testRun{env: env}
	if code := r.run(t.Context(), args...); code != 0 {
		t.Fatalf("bailey %s: exit status %d: %s", strings.Join(args, " "), code, &r.stderr)
	}
	return r.stdout.String()
}

// object runs a command with -o json and decodes what it prints.
func object[T any](t *testing.T, env map[string]string, args ...string) T {
	t.Helper()
	var v T
	out := ok(t, env, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("bailey %s: %v in %s", strings.Join(args, " "), err, out)
	}
	return v
}

// The commands of every noun, against a real server.
func TestCommands(t *testing.T) {
	t.Parallel()
	env := server(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	// Agents.
	a := object[api.Agent](t, env, "agents", "create", "--name", "one", "--model", "claude-opus-5-5",
		"--system", "@"+file("system.txt", "Be brief."), "--tools", "bash,read", "--permission", "always_ask", "--metadata", "team=x")
	if a.Name != "one" || deref(a.System) != "Be brief." || a.Metadata["team"] != "x" {
		t.Errorf("agent = %+v", a)
	}
	if on, policy := a.Tools[0].Setting("bash"); !on || policy != api.AlwaysAsk {
		t.Errorf("bash: %v, %s", on, policy)
	}
	if on, _ := a.Tools[0].Setting("write"); on {
		t.Error("write is enabled, and was not asked for")
	}
	id := string(a.ID)
	a = object[api.Agent](t, env, "agents", "update", id, "--system", "", "--metadata", "team=", "--version", "1")
	if a.Version != 2 || a.System != nil || len(a.Metadata) != 0 {
		t.Errorf("updated agent = %+v", a)
	}
	var stale testRun
	stale.env = env
	if code := stale.run(t.Context(), "agents", "update", id, "--name", "x", "--version", "1"); code != 5 {
		t.Errorf("update of an old version: exit status %d: %s", code, &stale.stderr)
	}
	if got := object[[]api.Agent](t, env, "agents", "versions", id); len(got) != 2 {
		t.Errorf("%d versions, want 2", len(got))
	}
	yaml := file("agent.yaml", "name: two\nmodel: claude-haiku-5-5\ntools:\n  - type: agent_toolset_20260401\n")
	two := object[api.Agent](t, env, "agents", "create", "--file", yaml, "--name", "renamed")
	if two.Name != "renamed" || two.Model.ID != "claude-haiku-5-5" {
		t.Errorf("agent from a file = %+v", two)
	}
	if got := object[[]api.Agent](t, env, "agents", "list", "-n", "1"); len(got) != 1 || got[0].ID != two.ID {
		t.Errorf("list -n 1 = %+v", got)
	}
	if out := ok(t, env, "agents", "get", id); !strings.Contains(out, "bash read (always_ask)") {
		t.Errorf("agents get =\n%s", out)
	}
	ok(t, env, "agents", "archive", string(two.ID))
	if got := object[[]api.Agent](t, env, "agents", "list"); len(got) != 1 {
		t.Errorf("%d agents after archiving one, want 1", len(got))
	}

	// Environments and their keys.
	e := object[api.Environment](t, env, "environments", "create", "--name", "here")
	if e.Config.Type != api.EnvSelfHosted {
		t.Errorf("environment = %+v", e)
	}
	envID := string(e.ID)
	saved := filepath.Join(dir, "worker.key")
	k := object[api.Key](t, env, "environments", "keys", "create", envID, "--name", "w", "--save", saved)
	secret, err := os.ReadFile(saved)
	if err != nil || !strings.HasPrefix(string(secret), api.SecretPrefixEnvironment) || k.Secret != "" {
		t.Errorf("saved key: %v, shown %q", err, k.Secret)
	}
	if info, err := os.Stat(saved); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("saved key: %v, %v", info, err)
	}
	if out := ok(t, env, "environments", "keys", "list", envID); !strings.Contains(out, string(k.ID)) {
		t.Errorf("keys list =\n%s", out)
	}
	ok(t, env, "environments", "keys", "revoke", envID, string(k.ID))
	ok(t, env, "environments", "update", envID, "--description", "d")
	ok(t, env, "environments", "work", "list", envID)
	if s := object[api.WorkStats](t, env, "environments", "work", "stats", envID); s.Depth != 0 {
		t.Errorf("stats = %+v", s)
	}

	// API keys.
	key := object[api.Key](t, env, "keys", "create", "--name", "ci", "--expires-in", "1h")
	other := map[string]string{"BAILEY_URL": env["BAILEY_URL"], "BAILEY_KEY": key.Secret}
	ok(t, other, "agents", "list")
	ok(t, env, "keys", "revoke", string(key.ID))
	revoked := testRun{env: other}
	if code := revoked.run(t.Context(), "agents", "list"); code != 4 || !strings.Contains(revoked.stderr.String(), "--key-file") {
		t.Errorf("a revoked key: exit status %d: %s", code, &revoked.stderr)
	}

	// Sessions. The scripted model knows no tools beyond what it is told.
	s := object[api.Session](t, env, "sessions", "create", "--agent", id+"@2", "--environment", envID, "--title", "t", "--budget", "1.50")
	if deref(s.Title) != "t" || s.Budget == nil || s.Budget.MaxListCost.Amount != "150" {
		t.Errorf("session = %+v", s)
	}
	sid := string(s.ID)
	if out := ok(t, env, "sessions", "send", sid, "hello", "--follow"); !strings.Contains(out, "scripted stand-in") || !strings.Contains(out, "idle: the turn is done") {
		t.Errorf("send --follow =\n%s", out)
	}
	following := testRun{env: env}
	if code := following.run(t.Context(), "sessions", "follow", sid, "--until-idle"); code != 0 || !strings.Contains(following.stderr.String(), "no worker asks for the work of "+envID) {
		t.Errorf("a session without a worker is followed without a word: %s", &following.stderr)
	}
	lines := strings.Split(strings.TrimSpace(ok(t, env, "sessions", "follow", sid, "--until-idle", "-o", "json")), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `"session.status_idle"`) {
		t.Errorf("follow ended with %s", last)
	}
	if got := object[[]api.Event](t, env, "sessions", "events", sid, "--type", "user.message"); len(got) != 1 {
		t.Errorf("%d user messages, want 1", len(got))
	}
	if out := ok(t, env, "sessions", "events", sid); !strings.Contains(out, "user      hello") {
		t.Errorf("events =\n%s", out)
	}

	// A call that waits for a person.
	ok(t, env, "sessions", "send", sid, "run echo hi")
	call := waitForCall(t, env, sid)
	sent := object[[]api.Event](t, env, "sessions", "deny", sid, call, "--message", "not now")
	if len(sent) != 1 || sent[0].Type() != api.EvUserToolConfirmation {
		t.Errorf("deny = %+v", sent)
	}
	if out := ok(t, env, "sessions", "follow", sid, "--until-idle"); !strings.Contains(out, "deny bash: not now") {
		t.Errorf("follow after deny =\n%s", out)
	}
	ok(t, env, "sessions", "interrupt", sid)
	ok(t, env, "sessions", "update", sid, "--budget", "none", "--title", "")
	if got := object[api.Session](t, env, "sessions", "get", sid); got.Budget != nil || got.Title != nil {
		t.Errorf("updated session = %+v", got)
	}
	if got := object[[]api.Session](t, env, "sessions", "list", "--agent", id); len(got) != 1 {
		t.Errorf("%d sessions, want 1", len(got))
	}
	ok(t, env, "sessions", "archive", sid)
	ok(t, env, "sessions", "delete", sid)
	gone := testRun{env: env}
	if code := gone.run(t.Context(), "sessions", "get", sid); code != 3 {
		t.Errorf("a deleted session: exit status %d: %s", code, &gone.stderr)
	}
	ok(t, env, "environments", "archive", envID)
	ok(t, env, "environments", "delete", envID)
	if out := ok(t, env, "environments", "list", "--archived"); out != "" {
		t.Errorf("environments list =\n%s", out)
	}
}

// waitForCall follows a session until a call waits for a person.
func waitForCall(t *testing.T, env map[string]string, session string) (call string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := testRun{env: env}
	p := r.program()
	p.Stdout = writerFunc(func(line []byte) (int, error) {
		var e struct {
			Type       string
			StopReason api.StopReason `json:"stop_reason"`
		}
		if json.Unmarshal(line, &e) == nil && e.StopReason.Type == api.StopRequiresAction {
			call = string(e.StopReason.EventIDs[0])
			cancel()
		}
		return len(line), nil
	})
	root := p.root()
	root.SetArgs([]string{"sessions", "follow", session, "-o", "json"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatalf("follow: %v", err)
	}
	return call
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// "idle" was all that a session said which waited for the person who looked at it.
func TestASessionSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	env := server(t, scripted.Script{Turns: []scripted.Turn{{Calls: []scripted.Call{
		{Name: "bash", Input: map[string]any{"command": "ls"}}, {Name: "read", Input: map[string]any{"file_path": "a"}},
	}}}})
	a := object[api.Agent](t, env, "agents", "create", "--name", "a", "--model", "m", "--permission", "always_ask")
	e := object[api.Environment](t, env, "environments", "create", "--name", "e")
	s := object[api.Session](t, env, "sessions", "create", "--agent", string(a.ID), "--environment", string(e.ID), "--message", "go")
	until := func(want string) {
		t.Helper()
		for {
			if out := ok(t, env, "sessions", "get", string(s.ID)); strings.Contains(out, want) {
				return
			} else if t.Context().Err() != nil {
				t.Fatalf("no %q in\n%s", want, out)
			}
		}
	}
	until("idle, waits for you to allow 2 calls (bailey sessions follow " + string(s.ID))
	var uses []api.Event
	if err := json.Unmarshal([]byte(ok(t, env, "sessions", "events", string(s.ID), "--type", "agent.tool_use", "-o", "json")), &uses); err != nil {
		t.Fatal(err)
	}
	ok(t, env, "sessions", "confirm", string(s.ID), string(uses[0].ID))
	until("idle, waits for you to allow 1 call ")
	ok(t, env, "sessions", "confirm", string(s.ID), string(uses[1].ID))
	until("idle, waits for a worker's results")

	r := testRun{env: env}
	p := r.program()
	c := &connection{p: p}
	cl, err := c.client()
	if err != nil {
		t.Fatal(err)
	}
	p.hintWorkers(t.Context(), cl, e.ID)
	if got := r.stderr.String(); !strings.Contains(got, "bailey worker --environment-id "+string(e.ID)) {
		t.Errorf("the hint is %q", got)
	}
}

func TestInputIsStrict(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, text, want string }{
		{"unknown field", `{"name":"a","modle":"m"}`, "modle: extra inputs are not permitted"},
		{"unknown field in YAML", "name: a\nmodle: m\n", "modle: extra inputs are not permitted"},
		{"wrong type", `{"name":1}`, "name: wrong type"},
		{"not an object", "- a\n", "must be a JSON object"},
		{"empty", "", "is empty"},
		{"two documents", "name: a\n---\nname: b\n", "more than one document"},
		{"broken", `{"name":`, "not valid JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := testRun{stdin: tt.text}
			if code := r.run(t.Context(), "agents", "create", "--file", "-"); code != 2 || !strings.Contains(r.stderr.String(), tt.want) {
				t.Errorf("exit status %d, standard error %q, want %q", code, &r.stderr, tt.want)
			}
		})
	}
}

func FuzzInput(f *testing.F) {
	f.Add([]byte("name: a\nmodel: m\ntools: []\n"))
	f.Add([]byte(`{"name":"a"}`))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := asJSON(data); err == nil && len(out) == 0 {
			t.Error("neither JSON nor an error")
		}
	})
}

func TestAuditVerify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		err := log.Append(audit.Record{
			Actor: "w", Action: audit.ToolStart, Session: "sesn_1", Call: "sevt_1", Tool: "bash", Input: []byte("{}"), Start: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if out := ok(t, nil, "audit", "verify", path); !strings.Contains(out, "intact and complete") {
		t.Errorf("verify =\n%s", out)
	}
	if s := object[audit.Summary](t, nil, "audit", "verify", path); s.Records != 5 {
		t.Errorf("summary = %+v", s)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), "bash", "cash", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	var r testRun
	if code := r.run(t.Context(), "audit", "verify", path); code != 9 || !strings.Contains(r.stderr.String(), "record 2 was changed") {
		t.Errorf("an edited record: exit status %d: %s", code, &r.stderr)
	}
}

func noneBackend() []Backend {
	return []Backend{{Name: none.Name, New: func(o BackendOptions) (sandbox.Driver, error) { return none.New(o.Logger), nil }}}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	env := server(t)
	env["BAILEY_DATA"] = t.TempDir()
	r := testRun{env: env, backends: noneBackend()}
	if code := r.run(t.Context(), "doctor", "-o", "json"); code != 0 {
		t.Fatalf("exit status %d: %s\n%s", code, &r.stderr, &r.stdout)
	}
	var findings []finding
	if err := json.Unmarshal(r.stdout.Bytes(), &findings); err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, f := range findings {
		status[f.Name] = f.Status
	}
	for name, want := range map[string]string{
		"sandbox none": findingNote, "data directory": findingOK, "model endpoint": findingNote,
		"server": findingOK, "clock": findingOK, "API key": findingOK,
	} {
		if status[name] != want {
			t.Errorf("%s: %q, want %q", name, status[name], want)
		}
	}

	env["BAILEY_KEY"] = "sk-ant-api03-wrong"
	r = testRun{env: env, backends: noneBackend()}
	if code := r.run(t.Context(), "doctor"); code != 9 || !strings.Contains(r.stdout.String(), "the key from BAILEY_KEY is not an API key of this server") {
		t.Errorf("a wrong key: exit status %d:\n%s", code, &r.stdout)
	}
}

// A server that could not ask its model was told of by its first session.
func TestDoctorTriesTheModelsKey(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		http.StatusOK:           "it takes the key",
		http.StatusUnauthorized: "refuses the key (HTTP 401)",
		http.StatusNotFound:     "the key could not be tried",
	} {
		endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/models" && r.Header.Get("X-Api-Key") == "sk-good" {
				w.WriteHeader(status)
			}
		}))
		defer endpoint.Close()
		dir := t.TempDir()
		r := testRun{backends: noneBackend(), env: map[string]string{"BAILEY_MODEL_URL": endpoint.URL, "BAILEY_MODEL_KEY": "sk-good"}}
		r.run(t.Context(), "doctor", "--data", dir, "-o", "json")
		if out := r.stdout.String(); !strings.Contains(out, want) || !strings.Contains(out, dir+" is writable") || strings.Contains(out, "sk-good") {
			t.Errorf("HTTP %d: %s", status, out)
		}
	}
}

// The whole demo, in this process, without isolation.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	r := testRun{backends: noneBackend()}
	if code := r.run(t.Context(), "demo"); code != 0 {
		t.Errorf("exit status %d: %s", code, &r.stderr)
	}
	out := r.stdout.String()
	for _, want := range []string{"There is no isolation", "should be 5050", "Checked", "Took", "Next"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "✗ no") || strings.Count(out, "  ✓ ") < len(demoChecks) {
		t.Errorf("a check failed:\n%s", out)
	}
	if strings.Contains(out, "sk-ant-") {
		t.Error("the demo shows a key without --keep")
	}
}
