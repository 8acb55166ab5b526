package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/store/storetest"
)

// A plane is a running `bailey serve` with a scripted model and its own database.
type plane struct {
	*process // the newest of runs
	runs     []*process

	url   string
	admin string // the first API key
	data  string // the data directory
	db    string
	args  []string // of a start, but for the address
	env   []string

	model    *scripted.Server
	modelURL string
	client   *client.Client // with the admin key
}

// planeConfig says how to start a plane. The zero value is one on SQLite.
type planeConfig struct {
	scripts []scripted.Script
	model   scripted.Options // its Key is set by startPlane
	db      string           // "" is SQLite in the data directory
	data    string           // "" is a temporary directory
	admin   string           // the API key, for a database that has one already
	args    []string
}

// startPlane starts a plane and returns when it is ready. The end of the test
// stops it by SIGTERM, checks that it ends with status 0, and that it never wrote
// a secret.
func startPlane(t testing.TB, cfg planeConfig) *plane {
	t.Helper()
	cfg.model.Key = modelKey
	cfg.model.Models = []string{modelID, "claude-haiku-4-5"}
	p := &plane{model: scripted.New(cfg.model, cfg.scripts...), data: cfg.data, db: cfg.db}
	if p.data == "" {
		p.data = filepath.Join(t.TempDir(), "data")
	}
	p.modelURL = serveModel(t, p.model)
	p.args = []string{"serve", "--data", p.data, "--model-url", p.modelURL, "--log-level", "debug"}
	p.args = append(p.args, cfg.args...)
	p.env = []string{"BAILEY_MODEL_KEY=" + modelKey}
	if p.db != "" {
		p.env = append(p.env, "BAILEY_DB="+p.db)
	}
	t.Cleanup(func() {
		if p.process != nil && p.alive() {
			p.stop()
		}
		for _, run := range p.runs {
			run.finish()
		}
	})
	p.run(t, "127.0.0.1:0")
	p.admin = cfg.admin
	if p.admin == "" {
		p.admin = readKey(t, filepath.Join(p.data, "admin.key"))
	}
	p.client = p.clientWith(t, p.admin)
	return p
}

// twin starts a second plane over the same database.
func (p *plane) twin(t testing.TB, cfg planeConfig) *plane {
	t.Helper()
	cfg.db, cfg.admin = p.db, p.admin
	return startPlane(t, cfg)
}

var servingRE = regexp.MustCompile(`"msg":"serving","url":"(http://[^"]+)"`)

// run starts the process on an address and waits until it is ready.
func (p *plane) run(t testing.TB, addr string) {
	t.Helper()
	p.process = start(t, "serve", command(p.env, append(p.args, "--listen", addr)...))
	p.runs = append(p.runs, p.process)
	p.url = p.waitFor(servingRE)[1]
	p.waitReady(t)
}

// restart brings a plane that was killed back, on the same address and data.
func (p *plane) restart(t testing.TB) {
	t.Helper()
	p.run(t, strings.TrimPrefix(p.url, "http://"))
}

func (p *plane) waitReady(t testing.TB) {
	t.Helper()
	ctx := within(t)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		if !p.alive() || ctx.Err() != nil {
			t.Fatalf("the plane is not ready: %v", err)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// pause waits between two looks at something that tells nobody when it changes.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serveModel serves a scripted model until the end of the test.
func serveModel(t testing.TB, model *scripted.Server) (url string) {
	t.Helper()
	l, err := model.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return l.URL
}

func readKey(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
	}
	return strings.TrimSpace(string(data))
}

func (p *plane) clientWith(t testing.TB, key string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: p.url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// onEngines runs a test of the plane on SQLite and, where there is a server, on
// PostgreSQL.
func onEngines(t *testing.T, test func(t *testing.T, db string)) {
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, "") })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, storetest.Postgres(t)) })
}

// call makes a request by hand and returns the answer as it came. The usual
// headers are set first; edit may change them.
func (p *plane) call(t testing.TB, method, path, body string, edit ...func(http.Header)) (status int, header http.Header, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), method, p.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", p.admin)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Anthropic-Beta", "managed-agents-2026-04-01")
	req.Header.Set("Content-Type", "application/json")
	for _, f := range edit {
		f(req.Header)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, res.Header, string(data)
}

// as replaces the credential of a call.
func as(key string) func(http.Header) {
	return func(h http.Header) {
		h.Del("X-Api-Key")
		h.Set("Authorization", "Bearer "+key)
	}
}

// modelID is the model of every agent here: one with a known list price.
const modelID = "claude-opus-4-5"

// toolset is the official set of tools under one policy.
func toolset(policy string) api.AgentTool {
	var set api.AgentTool
	if err := json.Unmarshal(fmt.Appendf(nil, `{"type":"agent_toolset_20260401",
		"default_config":{"enabled":true,"permission_policy":{"type":%q}},
		"configs":[{"name":"web_search","enabled":false},{"name":"web_fetch","enabled":false}]}`, policy), &set); err != nil {
		panic(err)
	}
	return set
}

// agent creates an agent with tools.
func (p *plane) agent(t testing.TB, tools ...api.AgentTool) api.AgentID {
	t.Helper()
	a, err := p.client.CreateAgent(within(t), api.AgentCreate{
		Name: t.Name(), Model: &api.ModelConfig{ID: modelID}, Tools: tools,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.ID
}

// environment creates a self-hosted environment and a key for its workers.
func (p *plane) environment(t testing.TB) (id api.EnvironmentID, key string) {
	t.Helper()
	ctx := within(t)
	env, err := p.client.CreateEnvironment(ctx, api.EnvironmentCreate{
		Name: t.Name(), Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted},
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.client.CreateKey(ctx, env.ID, api.KeyCreate{Name: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(k.Secret, api.SecretPrefixEnvironment) {
		t.Errorf("an environment key begins with %.14s", k.Secret)
	}
	return env.ID, k.Secret
}

// session creates a session that begins with messages.
func (p *plane) session(t testing.TB, agent api.AgentID, env api.EnvironmentID, messages ...string) api.SessionID {
	t.Helper()
	in := api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: agent}, EnvironmentID: env}
	for _, text := range messages {
		raw, err := client.ClientEvent(userMessage(text))
		if err != nil {
			t.Fatal(err)
		}
		in.InitialEvents = append(in.InitialEvents, raw)
	}
	s, err := p.client.CreateSession(within(t), in)
	if err != nil {
		t.Fatal(err)
	}
	return s.ID
}

func userMessage(text string) *api.UserMessage {
	return &api.UserMessage{Content: api.Content{api.TextBlock(text)}}
}

// send sends events and returns them as they were accepted.
func (p *plane) send(t testing.TB, id api.SessionID, events ...api.EventBody) []*api.Event {
	t.Helper()
	sent, err := p.client.Send(within(t), id, events...)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// workStopped checks that the newest work item of an environment is stopped.
func (p *plane) workStopped(t testing.TB, env api.EnvironmentID) {
	t.Helper()
	for item, err := range p.client.Work(within(t), env, client.ListOptions{PageSize: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		if item.State != api.WorkStopped {
			t.Errorf("work item %s is %s", item.ID, item.State)
		}
		return
	}
	t.Error("there is no work item")
}

// testLogger writes to the test's output.
func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}
