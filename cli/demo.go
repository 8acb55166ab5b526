package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/daemon"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

func (p *Program) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a whole session on this machine; needs nothing",
		Long: `Runs everything in one process on this machine's loopback: a server on a
temporary database, a worker with the strongest sandbox this machine allows, and
a scripted model that answers over real HTTP; and a private MCP server that is
reached through a tunnel, by a gateway that dials out. An agent writes a small
program, runs it, finds its bug, mends it and answers; and it asks the private
server, once it was allowed to. Then the demo checks what it saw, also that the
tunnel's edge saw only ciphertext.

It needs no key, no network, no Docker, and leaves nothing behind. The exit
status is 9 if a check failed, 10 if no sandbox works here.`,
		Example: `  bailey demo
  bailey demo --keep`,
	}
	keep := cmd.Flags().Bool("keep", false, "leave it running afterwards, and show how to talk to it")
	name := cmd.Flags().String("sandbox", p.strongest(), "what makes the box: "+p.backendNames())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		backend, err := p.backend("sandbox", *name)
		if err != nil {
			return err
		}
		d := &demo{p: p, keep: *keep, backend: backend}
		return d.run(cmd.Context())
	}
	return cmd
}

// demoMax bounds the demo, so that a fault shows as an error and not as silence.
const demoMax = 2 * time.Minute

// The demo's model wants this key. That it arrives is part of what the demo shows,
// as it must be in nobody's box.
const demoModelKey = "sk-ant-api03-demo-model-key"

// A demo is one run of `bailey demo`. It is used by one goroutine.
type demo struct {
	p       *Program
	keep    bool
	backend Backend

	dir     string // everything the demo writes
	log     *slog.Logger
	logFile *os.File
	style   style
	fail    context.CancelCauseFunc // ends the demo because a part broke

	driver  sandbox.Driver
	model   string // URL
	plane   *daemon.Daemon
	client  *client.Client
	env     *api.Environment
	envKey  string
	agent   *api.Agent
	session *api.Session
	orders  *orderDesk
	tunnel  *api.Tunnel
	vault   *api.Vault
	stops   []func() error // of the parts that run, in the order of their starts
	asks    []api.EventID  // calls that wait for somebody to allow them
	took    []duration
	seen    evidence
}

type duration struct {
	name string
	took time.Duration
}

// run plays the demo from start to end. Parts are stopped in the reverse order of
// their start, whatever happens.
func (d *demo) run(person context.Context) (err error) {
	ctx, fail := context.WithCancelCause(person)
	d.fail = fail
	defer d.fail(nil)
	d.style = d.p.styleOf(d.p.Stdout)
	if d.dir, err = os.MkdirTemp("", "bailey-demo-"); err != nil {
		return err
	}
	if d.logFile, err = os.Create(filepath.Join(d.dir, "demo.log")); err != nil {
		return err
	}
	defer d.logFile.Close()
	if d.log, err = telemetry.NewLogger(d.logFile, telemetry.LogOptions{Format: telemetry.FormatText}); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.stopAll())
		d.tidy(err != nil && person.Err() == nil && !is[*sandbox.Unavailable](err))
	}()

	d.printf("%s  %s\n\n", d.style.bold("Bailey demo"), d.style.dim("a session from start to end, all on this machine"))
	began := time.Now()
	bounded, cancel := context.WithTimeoutCause(ctx, demoMax, fmt.Errorf("the demo did not finish within %s", demoMax))
	defer cancel()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"sandbox self-test", d.testSandbox},
		{"model, scripted", d.startModel},
		{"server", d.startPlane},
		{"private MCP server", d.startOrders},
		{"tunnel and gateway", d.startGateway},
		{"agent and environment", d.define},
		{"worker", d.startWorker},
		{"session", d.play},
		{"box removed", d.leave},
		{"checks", d.gather},
	} {
		at := time.Now()
		if err := step.do(bounded); err != nil {
			if cause := context.Cause(bounded); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause // what broke a part says more than what noticed it
			}
			return fmt.Errorf("%s: %w", step.name, err)
		}
		d.took = append(d.took, duration{step.name, time.Since(at)})
	}
	d.took = append(d.took, duration{"all together", time.Since(began)})

	failed := d.printChecks()
	d.printTook()
	if failed > 0 {
		return &checkFailed{fmt.Sprintf("%d of %d checks failed", failed, len(demoChecks))}
	}
	if d.keep {
		return d.stay(ctx)
	}
	d.printNext()
	return nil
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.p.Stdout, format, args...) }

// say prints what a step came to.
func (d *demo) say(name, format string, args ...any) {
	d.printf("%s %-12s %s\n", d.style.green("✓"), name, fmt.Sprintf(format, args...))
}

// start runs a part of the demo until it is stopped. A part that ends by itself
// ends the demo.
func (d *demo) start(name string, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			d.fail(fmt.Errorf("the %s ended: %w", name, err))
		}
		done <- err
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("stop the %s: %w", name, err)
		}
		return nil
	})
	d.stops = append(d.stops, stop)
	return stop
}

func (d *demo) stopAll() error {
	var errs []error
	for i := len(d.stops) - 1; i >= 0; i-- {
		errs = append(errs, d.stops[i]())
	}
	d.stops = nil
	return errors.Join(errs...)
}

// tidy removes what the demo wrote, unless it is needed to see what went wrong.
func (d *demo) tidy(broken bool) {
	if broken {
		fmt.Fprintf(d.p.Stderr, "what the parts logged: %s\n", filepath.Join(d.dir, "demo.log"))
		return
	}
	os.RemoveAll(d.dir)
}

// testSandbox makes the boxes' driver. A sandbox that does not work stops the demo:
// there is no quiet way down to a weaker one.
func (d *demo) testSandbox(ctx context.Context) error {
	driver, err := d.backend.driver(d.sandboxDir(), BackendOptions{}, d.log)
	if err != nil {
		return err
	}
	report, err := driver.Check(ctx)
	if err != nil {
		return err
	}
	logReport(d.log, report)
	d.driver = driver
	name := report.Backend
	if report.Version != name {
		name += " " + report.Version
	}
	d.say("sandbox", "%s, isolation: %s, a box starts in %s", name, report.Isolation, shortDuration(report.Start))
	if report.Isolation == sandbox.NoIsolation {
		d.printf("  %s\n", d.style.red("There is no isolation: the scripted agent runs as an ordinary process of yours."))
	}
	return nil
}

func (d *demo) startModel(context.Context) error {
	// As slow as a quick model, so that there is something to see.
	server := scripted.New(scripted.Options{Key: demoModelKey, FirstByte: 80 * time.Millisecond, EventDelay: 4 * time.Millisecond}, scripted.Demo())
	listener, err := server.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	d.model = listener.URL
	d.start("model", listener.Run)
	d.say("model", "a transcript, served as a Messages API at %s", d.model)
	return nil
}

func (d *demo) startPlane(ctx context.Context) error {
	cfg := daemon.Defaults()
	cfg.Listen = "127.0.0.1:0"
	cfg.Data = filepath.Join(d.dir, "server")
	cfg.ModelURL = d.model
	cfg.ModelKey = demoModelKey
	cfg.ShutdownGrace = 2 * time.Second
	plane, err := daemon.New(ctx, cfg, d.log)
	if err != nil {
		return err
	}
	d.plane = plane
	plane.SetEdgeTap(d.seen.edge.see)
	d.start("server", plane.Run)
	d.client, err = client.New(client.Config{BaseURL: plane.URL(), Key: plane.FirstKey()})
	if err != nil {
		return err
	}
	if err := d.client.Ready(ctx); err != nil {
		return err
	}
	d.say("server", "%s, on a temporary SQLite database", plane.URL())
	return nil
}

// define makes what a user would make, over the public API.
func (d *demo) define(ctx context.Context) (err error) {
	if d.env, err = d.client.CreateEnvironment(ctx, api.EnvironmentCreate{
		Name: "demo", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted},
	}); err != nil {
		return err
	}
	key, err := d.client.CreateKey(ctx, d.env.ID, api.KeyCreate{Name: "demo worker"})
	if err != nil {
		return err
	}
	d.envKey = key.Secret
	if err := d.lockAway(ctx); err != nil {
		return err
	}
	system := "You are a careful programmer. You try out what you write."
	if d.agent, err = d.client.CreateAgent(ctx, api.AgentCreate{
		Name:   "programmer",
		Model:  &api.ModelConfig{ID: "claude-opus-5-5"},
		System: &system,
		Tools: []api.AgentTool{
			{Type: api.ToolsetBuiltin},
			{Type: api.ToolsetMCP, MCPServerName: orderServer, DefaultConfig: &api.ToolDefaults{
				PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAsk},
			}},
		},
		MCPServers: []api.MCPServer{{Type: "url", Name: orderServer, URL: d.ordersURL()}},
	}); err != nil {
		return err
	}
	d.say("agent", "%s in %s; knows %s", d.agent.ID, d.env.ID, d.ordersURL())
	return nil
}

func (d *demo) workerDir() string  { return filepath.Join(d.dir, "worker") }
func (d *demo) sandboxDir() string { return filepath.Join(d.dir, "sandbox") }

func (d *demo) startWorker(context.Context) error {
	agent, err := agentbin.Path(d.sandboxDir())
	if err != nil {
		return err
	}
	w, err := worker.New(worker.Config{
		EnvironmentID: string(d.env.ID),
		Key:           worker.StaticKey(d.envKey),
		BaseURL:       d.plane.URL(),
		WorkerID:      "demo",
		DataDir:       d.workerDir(),
		Driver:        d.driver,
		Agent:         agent,
		AgentArgs:     agentArgs(),
		EagerBox:      true,
		Keep:          worker.Keep{For: -1}, // so that --keep can show the box go, too
		MaxIdle:       time.Second,
		DrainTimeout:  5 * time.Second,
		Logger:        d.log,
	})
	if err != nil {
		return err
	}
	d.start("worker", w.Run)
	d.say("worker", "waits for work; its keys stay outside the box")
	return nil
}

// play sends the messages and shows what comes of them.
func (d *demo) play(ctx context.Context) (err error) {
	d.seen.before = tracesOf(d.dir)
	if d.session, err = d.client.CreateSession(ctx, api.SessionCreate{
		Agent:         api.AgentRef{Type: "agent", ID: d.agent.ID},
		EnvironmentID: d.env.ID,
		VaultIDs:      []api.VaultID{d.vault.ID},
	}); err != nil {
		return err
	}
	d.say("session", "%s", d.session.ID)
	d.printf("\n")

	// The stream is opened before the first message, so that all of it is live.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	view := d.p.timeline(d.session.ID)
	view.self = "" // the demo allows by itself what the hints are about
	messages := []string{scripted.DemoPrompt, scripted.DemoOrderPrompt, "run env"}
	var end *turnEnd
	say := func() error {
		sent, err := d.client.Send(ctx, d.session.ID, &api.UserMessage{Content: api.Content{api.TextBlock(messages[0])}})
		if err != nil {
			return err
		}
		messages = messages[1:]
		end = &turnEnd{mark: sent[0].ID, fresh: true}
		return nil
	}
	if err := say(); err != nil {
		return err
	}
	for f, err := range d.client.Follow(ctx, d.session.ID, client.FollowOptions{
		After:    client.FromStart,
		Previews: livePreviews,
	}) {
		if err != nil {
			return err
		}
		d.seen.streamed = append(d.seen.streamed, f)
		view.frame(f)
		if f.Name == string(api.EvUserToolResult) {
			d.seen.alive = d.seen.alive.or(tracesOf(d.dir).without(d.seen.before))
		}
		if err := d.allow(ctx, f); err != nil {
			return err
		}
		if !end.reached(f) {
			continue
		}
		if len(messages) == 0 {
			d.printf("\n")
			return nil
		}
		if err := say(); err != nil {
			return err
		}
	}
	return errors.New("the stream ended early")
}

// allow says yes to calls that wait for a person.
func (d *demo) allow(ctx context.Context, f *client.Frame) error {
	if f.Name != string(api.EvAgentMCPToolUse) && f.Name != string(api.EvSessionStatusIdle) {
		return nil
	}
	e, err := f.Event()
	if err != nil {
		return err
	}
	switch b := e.Body.(type) {
	case *api.AgentMCPToolUse:
		if b.EvaluatedPermission == api.PermissionAsk {
			d.asks = append(d.asks, e.ID)
		}
	case *api.SessionStatusIdle:
		for len(d.asks) > 0 && slices.Contains(b.StopReason.EventIDs, d.asks[0]) {
			d.seen.heardUnasked = d.orders.calls.Load()
			if _, err := d.client.Send(ctx, d.session.ID, &api.UserToolConfirmation{ToolUseID: d.asks[0], Result: "allow"}); err != nil {
				return err
			}
			d.asks = d.asks[1:]
		}
	}
	return nil
}

// leave waits until the worker has given the session back and its box is gone.
// With keep the worker stays, and lets go of a session that is idle.
func (d *demo) leave(ctx context.Context) error {
	if !d.keep {
		if err := d.stops[len(d.stops)-1](); err != nil {
			return err
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for {
		d.seen.after = tracesOf(d.dir).without(d.seen.before).left(d.seen.alive)
		if d.seen.after.empty() {
			return nil
		}
		select {
		case <-tick.C:
		case <-late:
			return nil // the check says what is left
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// gather collects what the checks look at, and makes them.
func (d *demo) gather(ctx context.Context) (err error) {
	frames, err := take(d.client.Events(ctx, d.session.ID, client.EventOptions{}), 0)
	if err != nil {
		return err
	}
	for _, f := range frames {
		d.seen.listed = append(d.seen.listed, f.Data)
		e := new(api.Event)
		if err := json.Unmarshal(f.Data, e); err != nil {
			return fmt.Errorf("decode a listed event: %w", err)
		}
		d.seen.events = append(d.seen.events, e)
	}
	if d.seen.session, err = d.client.GetSession(ctx, d.session.ID); err != nil {
		return err
	}
	d.seen.workerDir = d.workerDir()
	d.seen.secrets = map[string]string{
		"the admin key":       d.plane.FirstKey(),
		"the environment key": d.envKey,
		"the model's key":     demoModelKey,
		"the order desk's":    d.orders.token,
		"the tunnel's token":  d.orders.tunnelToken,
	}
	d.seen.desk = d.orders
	d.seen.results = make([]checkResult, len(demoChecks))
	for i, c := range demoChecks {
		detail, err := c.look(&d.seen)
		d.seen.results[i] = checkResult{detail, err}
	}
	return nil
}

func (d *demo) printChecks() (failed int) {
	d.printf("%s\n", d.style.bold("Checked"))
	width := 0
	for _, c := range demoChecks {
		width = max(width, len(c.name))
	}
	for i, c := range demoChecks {
		r := d.seen.results[i]
		mark, text := d.style.green("✓"), d.style.dim(r.detail)
		if r.err != nil {
			failed++
			mark, text = d.style.red("✗"), oneLine(r.err.Error(), 500)
		}
		d.printf("  %s %-*s  %s\n", mark, width, c.name, text)
	}
	return failed
}

func (d *demo) printTook() {
	d.printf("\n%s\n", d.style.bold("Took"))
	for _, t := range d.took {
		d.printf("  %8s  %s\n", shortDuration(t.took), t.name)
	}
}

func (d *demo) printNext() {
	d.printf(`
%s
  bailey demo --keep                      the same, left running to talk to
  ANTHROPIC_API_KEY=… bailey serve        a server of your own with a real model
  bailey gateway --help                   private MCP servers of your own
  bailey doctor                           what this machine can do
`, d.style.bold("Next"))
}

// stay leaves everything running until a signal.
func (d *demo) stay(ctx context.Context) error {
	keyFile := filepath.Join(d.dir, "server", "admin.key")
	text := `
%s
  server   %s
  key      %s
  session  %s

  export BAILEY_URL=%[2]s BAILEY_KEY_FILE=%[5]s
  bailey sessions send %[4]s "run uname -a" --follow
  bailey sessions create --agent %[6]s --environment %[7]s --message "run ls -la /" --follow
  bailey tunnels status %[9]s

  The official SDKs, with ANTHROPIC_BASE_URL=%[2]s ANTHROPIC_API_KEY=$(cat %[5]s):
    Python      anthropic.Anthropic().beta.sessions.events.list("%[4]s")
    TypeScript  new Anthropic().beta.sessions.events.list("%[4]s")
    Go          client := anthropic.NewClient(); client.Beta.Sessions.Get(ctx, "%[4]s", anthropic.BetaSessionGetParams{})

%[8]s
`
	d.printf(text, d.style.bold("It runs on"), d.plane.URL(), d.plane.FirstKey(), d.session.ID, keyFile,
		d.agent.ID, d.env.ID, d.style.dim("Interrupt (Ctrl-C) ends it and removes everything."), d.tunnel.ID)
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	d.printf("%s\n", d.style.dim("stopping"))
	return nil
}
