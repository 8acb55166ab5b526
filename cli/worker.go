package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/docs"
	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

// workerFlags are what `bailey worker` was told.
type workerFlags struct {
	config                                         string
	environmentID, key, keyFile, baseURL, workerID string

	data, workDir, sandbox, agent, auditInput string
	maxSessions, pool                         int
	maxIdle, toolTimeout, drain               time.Duration
	eager                                     bool
	boxEnv                                    []string
	memory, disk                              byteSize
	cpus                                      float64
	processes                                 int
	lifetime                                  time.Duration

	listen, logLevel, logFormat string
	check, example              bool

	set func(name string) bool // whether a flag was given
}

func (p *Program) workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker: claim sessions and run their tools in boxes",
		Long: `Runs a worker for self-hosted environments: it claims sessions, runs their tools
in isolated boxes on this machine and sends the results back. It only makes
outgoing connections, and its keys never enter a box.

One environment can be given by flags. For more, and for network rules,
credentials, a pool of boxes and audit sinks there is a file: --example prints
one with every setting, explained. Flags override the file, which is read again
on SIGHUP.

The server is ours, or Anthropic's with --base-url https://api.anthropic.com.
The first interrupt or SIGTERM lets what is under way finish; a second one ends
the process, and the next start on the same --data carries on.

The variables of the official tools work too, where neither a flag nor the file
says anything: ANTHROPIC_ENVIRONMENT_ID, ANTHROPIC_ENVIRONMENT_KEY,
ANTHROPIC_BASE_URL and ANTHROPIC_WORKER_ID.`,
		Example: `  bailey worker --environment-id env_… --environment-key-file worker.key
  bailey worker --example >worker.yaml
  bailey worker --config worker.yaml --check
  bailey worker --config worker.yaml
  ANTHROPIC_ENVIRONMENT_ID=env_… ANTHROPIC_ENVIRONMENT_KEY=… bailey worker --base-url https://bailey.example.org`,
	}
	var w workerFlags
	f := cmd.Flags()
	f.SortFlags = false
	w.set = f.Changed
	f.StringVar(&w.config, "config", "", "a `file` with the settings; --example prints one with all of them")
	f.StringVar(&w.environmentID, "environment-id", "", "the environment's `id` (ANTHROPIC_ENVIRONMENT_ID); of several in the file, serve only this one")
	f.StringVar(&w.key, "environment-key", "", "the environment `key` (ANTHROPIC_ENVIRONMENT_KEY); others on this machine may see a flag, so prefer the file")
	f.StringVar(&w.keyFile, "environment-key-file", "", "a `file` with the environment key; it is read again when the key is refused")
	f.StringVar(&w.baseURL, "base-url", "", "the server's `address` (ANTHROPIC_BASE_URL; default "+defaultURL+")")
	f.StringVar(&w.workerID, "worker-id", "", "a `name` for this worker in statistics and the audit record (ANTHROPIC_WORKER_ID; default host and a random suffix)")
	f.StringVar(&w.data, "data", "bailey-worker", "a `dir`ectory of this worker's own, for journals, the audit record and work folders")
	f.StringVar(&w.workDir, "work-dir", "", "a `dir`ectory for the sessions' work folders, on a disk of its own if it can be (default in --data)")
	f.IntVar(&w.maxSessions, "max-sessions", 16, "how many sessions to serve at a time")
	f.IntVar(&w.pool, "pool", 0, "how many boxes to keep ready for sessions to come")
	f.StringVar(&w.sandbox, "sandbox", p.strongest(), "what makes the boxes: "+p.backendNames())
	f.Var(&w.memory, "memory", "the most memory a box may use, such as 512MiB (default 2GiB)")
	f.Float64Var(&w.cpus, "cpus", 0, "the most CPU a box may use, in cores (default 2)")
	f.IntVar(&w.processes, "processes", 0, "the most processes and threads in a box (default 1024)")
	f.Var(&w.disk, "disk", "the most scratch space of a box outside its work folder (default 1GiB)")
	f.DurationVar(&w.lifetime, "lifetime", 0, "the longest a box may live (default 24h)")
	f.DurationVar(&w.toolTimeout, "tool-timeout", 0, "the longest a tool call may take (default 2m)")
	f.DurationVar(&w.maxIdle, "max-idle", 0, "how long a session with nothing to do keeps its place, unless it is needed; below 0 is until then (default 1m)")
	f.DurationVar(&w.drain, "drain-timeout", 0, "how long calls under way may take once the worker is to stop (default 30s)")
	f.BoolVar(&w.eager, "eager-box", false, "start a box when a session is claimed, not when it first needs one")
	f.StringArrayVar(&w.boxEnv, "box-env", nil, "`NAME=value` for the environment inside boxes, which the model can read; may be repeated")
	f.StringVar(&w.auditInput, "audit-input", string(audit.InputHash), "what the audit record keeps of tool inputs: hash or text")
	f.StringVar(&w.listen, "listen", "", "serve /healthz, /readyz and /metrics on this `address`")
	f.StringVar(&w.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&w.logFormat, "log-format", telemetry.FormatAuto, "text, json, or auto: text on a terminal")
	f.BoolVar(&w.check, "check", false, "only check that everything a worker needs is there")
	f.BoolVar(&w.example, "example", false, "only print an example of the file with the settings")
	f.StringVar(&w.agent, "agent", "", "the executable `file` that runs inside boxes (default this program)")
	must(f.MarkHidden("agent"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagFilename("environment-key-file"))
	must(cmd.MarkFlagDirname("data"))
	must(cmd.MarkFlagDirname("work-dir"))
	out := outputFlag(cmd)
	must(f.MarkHidden("output")) // of --check only
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if w.example {
			_, err := fmt.Fprint(p.Stdout, docs.WorkerYAML)
			return err
		}
		if w.check && !f.Changed("log-level") {
			w.logLevel = "error" // the findings say the rest
		}
		log, err := w.logger(p)
		if err != nil {
			return err
		}
		registry := telemetry.NewRegistry(telemetry.ReadBuild())
		fd, err := fieldwork.New(fieldwork.Options{
			Load: func() (*fieldwork.Config, error) { return w.load(p) }, Backends: p.fieldBackends(),
			Agent: w.agentPath, AgentArgs: agentArgs(), Env: p.Env, Logger: log, Metrics: registry, Stdout: p.Stdout,
		})
		if err != nil {
			return err
		}
		warnInTheClear(log, fd.Config().Server.BaseURL)
		if w.check {
			findings, err := fd.Check(cmd.Context())
			if err != nil {
				return err
			}
			return p.printFindings(*out, fieldFindings(findings))
		}
		return runField(cmd.Context(), fd, log)
	}
	return cmd
}

func (w *workerFlags) logger(p *Program) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(w.logLevel)); err != nil {
		return nil, usagef("--log-level %q is not one of debug, info, warn, error", w.logLevel)
	}
	log, err := telemetry.NewLogger(p.Stderr, telemetry.LogOptions{
		Format: w.logFormat, Level: level, Terminal: isTerminal(p.Stderr), Colour: p.styleOf(p.Stderr).on,
	})
	if err != nil {
		return nil, usagef("--log-format: %v", err)
	}
	p.captureLog(log)
	return log, nil
}

// load puts the configuration together: the file, if there is one, what flags say
// instead, and the environment's variables where neither says anything.
func (w *workerFlags) load(p *Program) (*fieldwork.Config, error) {
	c := new(fieldwork.Config)
	if w.config != "" {
		var err error
		if c, err = fieldwork.Load(w.config); err != nil {
			return nil, err
		}
	}
	variable := func(name string) string {
		v, _ := p.Env(name)
		return strings.TrimSpace(v)
	}
	for _, s := range []struct {
		to              *string
		flag, given, or string
	}{
		{&c.Server.BaseURL, "base-url", w.baseURL, variable("ANTHROPIC_BASE_URL")},
		{&c.Server.BaseURL, "", "", defaultURL},
		{&c.WorkerID, "worker-id", w.workerID, variable("ANTHROPIC_WORKER_ID")},
		{&c.Data, "data", w.data, w.data},
		{&c.WorkDir, "work-dir", w.workDir, ""},
		{&c.Listen, "listen", w.listen, ""},
		{&c.Audit.Input, "audit-input", w.auditInput, ""},
	} {
		if w.set(s.flag) {
			*s.to = s.given
		} else if *s.to == "" {
			*s.to = s.or
		}
	}
	if w.set("drain-timeout") {
		c.Drain = fieldwork.Duration(w.drain)
	}
	if err := w.environments(c, variable); err != nil {
		return nil, err
	}
	for i := range c.Environments {
		if err := w.override(p, &c.Environments[i].Settings); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// environments adds or picks the environment that flags name.
func (w *workerFlags) environments(c *fieldwork.Config, variable func(string) string) error {
	id := w.environmentID
	if id == "" && len(c.Environments) == 0 {
		id = variable("ANTHROPIC_ENVIRONMENT_ID")
	}
	if id == "" && len(c.Environments) == 0 {
		if w.config != "" {
			return usagef("%s lists no environments: write `environments: [{id: ENVIRONMENT_ID, key-file: FILE}]`; `bailey environments list` shows them", w.config)
		}
		return usagef("--environment-id or ANTHROPIC_ENVIRONMENT_ID is needed; `bailey environments list` shows them")
	}
	if w.key != "" && w.keyFile != "" {
		return usagef("--environment-key and --environment-key-file: give one of them")
	}
	if id != "" {
		picked := fieldwork.Environment{ID: id, Settings: c.Settings}
		for _, e := range c.Environments {
			if e.ID == id {
				picked = e
			}
		}
		c.Environments = []fieldwork.Environment{picked}
	}
	if len(c.Environments) > 1 {
		if w.key != "" || w.keyFile != "" {
			return usagef("the file lists several environments: say with --environment-id which one the key is for")
		}
		return nil
	}
	e := &c.Environments[0]
	switch {
	case w.keyFile != "":
		if _, err := readKeyFile(w.keyFile); err != nil {
			return err
		}
		e.KeyFile, e.KeyEnv = w.keyFile, ""
	case w.key != "":
		e.Key, e.KeyFile, e.KeyEnv = w.key, "", ""
	case e.KeyFile == "" && e.KeyEnv == "":
		if e.Key = variable("ANTHROPIC_ENVIRONMENT_KEY"); e.Key == "" {
			return usagef("--environment-key-file or ANTHROPIC_ENVIRONMENT_KEY is needed; `bailey environments keys create ENVIRONMENT --name NAME` makes a key")
		}
	}
	return nil
}

// override puts the flags that were given in the place of an environment's settings.
func (w *workerFlags) override(p *Program, s *fieldwork.Settings) error {
	if w.set("sandbox") || s.Sandbox.Backend == "" {
		if _, err := p.backend("sandbox", w.sandbox); err != nil {
			return err
		}
		s.Sandbox.Backend = w.sandbox
		if w.set("sandbox") {
			s.Sandbox.Fallback = nil
		}
	}
	if w.set("audit-input") && w.auditInput != string(audit.InputHash) && w.auditInput != string(audit.InputText) {
		return usagef("--audit-input %q is not hash or text", w.auditInput)
	}
	if w.set("max-sessions") && w.maxSessions < 1 {
		return usagef("--max-sessions must be at least 1")
	}
	for _, f := range []struct {
		name string
		set  func()
	}{
		{"max-sessions", func() { s.Sessions.Max = w.maxSessions }},
		{"pool", func() { s.Pool.Size = w.pool }},
		{"memory", func() { s.Sandbox.Limits.Memory = w.memory }},
		{"cpus", func() { s.Sandbox.Limits.CPUs = w.cpus }},
		{"processes", func() { s.Sandbox.Limits.Processes = w.processes }},
		{"disk", func() { s.Sandbox.Limits.Disk = w.disk }},
		{"lifetime", func() { s.Sandbox.Limits.Lifetime = fieldwork.Duration(w.lifetime) }},
		{"tool-timeout", func() { s.Sessions.ToolTimeout = fieldwork.Duration(w.toolTimeout) }},
		{"max-idle", func() { s.Sessions.Idle = fieldwork.Duration(w.maxIdle) }},
		{"eager-box", func() { s.Sandbox.Eager = w.eager }},
	} {
		if w.set(f.name) {
			f.set()
		}
	}
	for _, pair := range w.boxEnv {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return usagef("--box-env %q is not NAME=value", pair)
		}
		if s.Sandbox.Env == nil {
			s.Sandbox.Env = make(map[string]string)
		}
		s.Sandbox.Env[name] = value
	}
	return nil
}

// agentPath is the executable that runs in boxes.
func (w *workerFlags) agentPath(dir string) (string, error) {
	if w.agent != "" {
		return filepath.Abs(w.agent)
	}
	return agentbin.Path(dir)
}

func warnInTheClear(log *slog.Logger, baseURL string) {
	if strings.HasPrefix(baseURL, "http://") && !onThisMachine(baseURL) {
		log.Warn("the environment key travels in the clear: use https, or only a private network", "base_url", baseURL)
	}
}

// agentArgs are the arguments of the agent in a box; see [Main].
func agentArgs() []string { return []string{"tool", "serve", "--workdir", sandbox.WorkPath} }

// runField serves until ctx ends, and reads the settings anew on SIGHUP.
func runField(ctx context.Context, fd *fieldwork.Field, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := make(chan error, 1)
	go func() { done <- fd.Run(ctx) }()
	for {
		select {
		case <-hup:
			if err := fd.Reload(); err != nil {
				log.Error("settings not read anew", "error", err)
			}
		case err := <-done:
			if err == nil {
				log.Info("stopped")
			}
			return err
		}
	}
}

// fieldFindings words what a worker's check found.
func fieldFindings(from []fieldwork.Finding) []finding {
	var plain []worker.Finding
	environments := map[string]bool{}
	for _, f := range from {
		environments[f.Environment] = true
	}
	for _, f := range from {
		if f.Environment != "" && len(environments) > 2 { // the empty one counts too
			f.Name = f.Environment + " " + f.Name
		}
		plain = append(plain, f.Finding)
	}
	return workerFindings(plain)
}

// fieldBackends are the backends as package field takes them.
func (p *Program) fieldBackends() []fieldwork.Backend {
	all := make([]fieldwork.Backend, len(p.Backends))
	for i, b := range p.Backends {
		all[i] = fieldwork.Backend(b)
	}
	return all
}

func logReport(log *slog.Logger, r sandbox.Report) {
	log.Info("the sandbox passed its self-test", "backend", r.Backend, "version", r.Version, "isolation", r.Isolation,
		"start", r.Start.Round(time.Millisecond), "root", r.Root)
	level := slog.LevelInfo
	if r.Isolation == sandbox.NoIsolation {
		level = slog.LevelWarn
	}
	for _, note := range r.Notes {
		log.Log(context.Background(), level, "sandbox: "+note)
	}
}

// A byteSize is a flag for a number of bytes, such as 512MiB or 2G.
type byteSize = fieldwork.Size
