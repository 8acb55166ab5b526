package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

// workerFlags are what `bailey worker` was told.
type workerFlags struct {
	environmentID, key, keyFile, baseURL, workerID string

	data, sandbox, agent, auditInput string
	maxSessions                      int
	maxIdle, toolTimeout, drain      time.Duration
	eager                            bool
	boxEnv                           []string
	memory, disk                     byteSize
	cpus                             float64
	processes                        int
	lifetime                         time.Duration

	listen, logLevel, logFormat string
	check                       bool
}

func (p *Program) workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker: claim sessions and run their tools in boxes",
		Long: `Runs a worker for one self-hosted environment: it claims sessions, runs their
tools in isolated boxes on this machine and sends the results back. It only
makes outgoing connections, and its keys never enter a box.

The server is ours, or Anthropic's with --base-url https://api.anthropic.com.
The first interrupt or SIGTERM lets what is under way finish; a second one ends
the process, and the next start on the same --data carries on.

The variables of the official tools work too: ANTHROPIC_ENVIRONMENT_ID,
ANTHROPIC_ENVIRONMENT_KEY, ANTHROPIC_BASE_URL and ANTHROPIC_WORKER_ID.`,
		Example: `  bailey worker --environment-id env_… --environment-key-file worker.key
  bailey worker --environment-id env_… --environment-key-file worker.key --check
  ANTHROPIC_ENVIRONMENT_ID=env_… ANTHROPIC_ENVIRONMENT_KEY=… bailey worker --base-url https://bailey.example.org`,
	}
	var w workerFlags
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&w.environmentID, "environment-id", "", "the environment's `id` (ANTHROPIC_ENVIRONMENT_ID)")
	f.StringVar(&w.key, "environment-key", "", "the environment `key` (ANTHROPIC_ENVIRONMENT_KEY); others on this machine may see a flag, so prefer the file")
	f.StringVar(&w.keyFile, "environment-key-file", "", "a `file` with the environment key; it is read again when the key is refused")
	f.StringVar(&w.baseURL, "base-url", "", "the server's `address` (ANTHROPIC_BASE_URL; default "+defaultURL+")")
	f.StringVar(&w.workerID, "worker-id", "", "a `name` for this worker in statistics and the audit record (ANTHROPIC_WORKER_ID; default host and a random suffix)")
	f.StringVar(&w.data, "data", "bailey-worker", "a `dir`ectory of this worker's own, for work folders, journals and the audit record")
	f.IntVar(&w.maxSessions, "max-sessions", 16, "how many sessions to serve at a time; an idle one keeps its place for --max-idle")
	f.StringVar(&w.sandbox, "sandbox", p.strongest(), "what makes the boxes: "+p.backendNames())
	f.Var(&w.memory, "memory", "the most memory a box may use, such as 512MiB (default 2GiB)")
	f.Float64Var(&w.cpus, "cpus", 0, "the most CPU a box may use, in cores (default 2)")
	f.IntVar(&w.processes, "processes", 0, "the most processes and threads in a box (default 1024)")
	f.Var(&w.disk, "disk", "the most scratch space of a box outside its work folder (default 1GiB)")
	f.DurationVar(&w.lifetime, "lifetime", 0, "the longest a box may live (default 24h)")
	f.DurationVar(&w.toolTimeout, "tool-timeout", 0, "the longest a tool call may take (default 2m)")
	f.DurationVar(&w.maxIdle, "max-idle", 0, "how long to keep a session whose turn is over; below 0 is for ever (default 1m)")
	f.DurationVar(&w.drain, "drain-timeout", 0, "how long calls under way may take once the worker is to stop (default 30s)")
	f.BoolVar(&w.eager, "eager-box", false, "start a box when a session is claimed, not when it first needs one")
	f.StringArrayVar(&w.boxEnv, "box-env", nil, "`NAME=value` for the environment inside boxes, which the model can read; may be repeated")
	f.StringVar(&w.auditInput, "audit-input", string(audit.InputHash), "what the audit record keeps of tool inputs: hash or text")
	f.StringVar(&w.listen, "listen", "", "serve /healthz, /readyz and /metrics on this `address`")
	f.StringVar(&w.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&w.logFormat, "log-format", telemetry.FormatAuto, "text, json, or auto: text on a terminal")
	f.BoolVar(&w.check, "check", false, "only check that everything a worker needs is there")
	f.StringVar(&w.agent, "agent", "", "the executable `file` that runs inside boxes (default this program)")
	must(f.MarkHidden("agent"))
	must(cmd.MarkFlagFilename("environment-key-file"))
	must(cmd.MarkFlagDirname("data"))
	out := outputFlag(cmd)
	must(f.MarkHidden("output")) // of --check only
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := w.logger(p)
		if err != nil {
			return err
		}
		cfg, err := w.config(p, log)
		if err != nil {
			return err
		}
		if w.check {
			findings, err := worker.Check(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return p.printFindings(*out, workerFindings(findings))
		}
		return w.run(cmd.Context(), cfg, log)
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
	return log, nil
}

// config makes a worker's configuration of the flags and the environment.
func (w *workerFlags) config(p *Program, log *slog.Logger) (worker.Config, error) {
	env := func(flag, name, otherwise string) string {
		if flag != "" {
			return flag
		}
		if v, _ := p.Env(name); v != "" {
			return strings.TrimSpace(v)
		}
		return otherwise
	}
	c := worker.Config{
		EnvironmentID: env(w.environmentID, "ANTHROPIC_ENVIRONMENT_ID", ""),
		BaseURL:       env(w.baseURL, "ANTHROPIC_BASE_URL", defaultURL),
		WorkerID:      env(w.workerID, "ANTHROPIC_WORKER_ID", ""),
		MaxSessions:   w.maxSessions,
		Agent:         w.agent,
		AgentArgs:     agentArgs(),
		BoxEnv:        w.boxEnv,
		EagerBox:      w.eager,
		Limits: sandbox.Limits{
			MemoryBytes: int64(w.memory), CPUs: w.cpus, Processes: w.processes, DiskBytes: int64(w.disk), Lifetime: w.lifetime,
		},
		ToolTimeout:  w.toolTimeout,
		MaxIdle:      w.maxIdle,
		DrainTimeout: w.drain,
		AuditInput:   audit.InputMode(w.auditInput),
		Logger:       log,
	}
	key := env(w.key, "ANTHROPIC_ENVIRONMENT_KEY", "")
	switch {
	case c.EnvironmentID == "":
		return c, usagef("--environment-id or ANTHROPIC_ENVIRONMENT_ID is needed; `bailey environments list` shows them")
	case w.key != "" && w.keyFile != "":
		return c, usagef("--environment-key and --environment-key-file: give one of them")
	case w.keyFile != "":
		if _, err := readKeyFile(w.keyFile); err != nil {
			return c, err
		}
		c.Key = worker.KeyFile(w.keyFile)
	case key != "":
		c.Key = worker.StaticKey(key)
	default:
		return c, usagef("--environment-key-file or ANTHROPIC_ENVIRONMENT_KEY is needed; `bailey environments keys create` makes a key")
	}
	if c.AuditInput != audit.InputHash && c.AuditInput != audit.InputText {
		return c, usagef("--audit-input %q is not hash or text", w.auditInput)
	}
	if w.maxSessions < 1 {
		return c, usagef("--max-sessions must be at least 1")
	}
	for _, pair := range w.boxEnv {
		if name, _, ok := strings.Cut(pair, "="); !ok || name == "" {
			return c, usagef("--box-env %q is not NAME=value", pair)
		}
	}
	if strings.HasPrefix(c.BaseURL, "http://") && !onThisMachine(c.BaseURL) {
		log.Warn("the environment key travels in the clear: use https, or only a private network", "base_url", c.BaseURL)
	}
	backend, err := p.backend(w.sandbox)
	if err != nil {
		return c, err
	}
	if c.DataDir, err = filepath.Abs(w.data); err != nil {
		return c, err
	}
	state := filepath.Join(c.DataDir, "sandbox")
	if c.Agent == "" {
		if c.Agent, err = agentbin.Path(state); err != nil {
			return c, err
		}
	}
	c.Driver, err = backend.driver(state, log)
	return c, err
}

// agentArgs are the arguments of the agent in a box; see [Main].
func agentArgs() []string { return []string{"tool", "serve", "--workdir", sandbox.WorkPath} }

// run tests the boxes and then serves until ctx ends.
func (w *workerFlags) run(ctx context.Context, cfg worker.Config, log *slog.Logger) error {
	if d, ok := cfg.Driver.(sweeper); ok {
		if err := d.Sweep(ctx); err != nil {
			return fmt.Errorf("remove what an earlier worker left behind: %w", err)
		}
	}
	report, err := cfg.Driver.Check(ctx)
	if err != nil {
		return err
	}
	logReport(log, report)
	registry := telemetry.NewRegistry(telemetry.ReadBuild())
	cfg.Metrics = registry
	wk, err := worker.New(cfg)
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	if w.listen != "" {
		l, err := net.Listen("tcp", w.listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		log.Info("health and metrics", "address", l.Addr().String())
		parts.Go(func() error { return serveHealth(ctx, l, wk.Ready, registry) })
	}
	parts.Go(func() error { return wk.Run(ctx) })
	log.Info("worker started", "server", cfg.BaseURL, "environment_id", cfg.EnvironmentID, "max_sessions", cfg.MaxSessions)
	if err := parts.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped")
	return nil
}

// A sweeper is a backend that a killed worker may leave something of behind.
type sweeper interface {
	Sweep(ctx context.Context) error
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

// serveHealth answers probes until ctx ends.
func serveHealth(ctx context.Context, l net.Listener, ready func() error, registry *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, ready()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}

func writeHealth(w http.ResponseWriter, err error) {
	status, body := http.StatusOK, map[string]string{"status": "ok"}
	if err != nil {
		status, body = http.StatusServiceUnavailable, map[string]string{"status": "unavailable", "reason": string(telemetry.Redact([]byte(err.Error())))}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a prober that left needs no answer
}

// backend finds a sandbox backend by its name.
func (p *Program) backend(name string) (Backend, error) {
	for _, b := range p.Backends {
		if b.Name == name {
			return b, nil
		}
	}
	return Backend{}, usagef("--sandbox %q: there is %s", name, p.backendNames())
}

// driver makes a driver whose own files are in state.
func (b Backend) driver(state string, log *slog.Logger) (sandbox.Driver, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	return b.New(BackendOptions{State: state, Logger: log})
}

func (p *Program) strongest() string {
	if len(p.Backends) == 0 {
		return ""
	}
	return p.Backends[0].Name
}

func (p *Program) backendNames() string {
	names := make([]string, len(p.Backends))
	for i, b := range p.Backends {
		names[i] = b.Name
	}
	return strings.Join(names, " or ")
}

// A byteSize is a flag for a number of bytes, such as 512MiB or 2G.
type byteSize int64

var byteUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"", 1},
}

func (b *byteSize) Set(text string) error {
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 1 || n > (1<<62)/u.bytes {
			break
		}
		*b = byteSize(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is not a size such as 512MiB or 2GiB", text)
}

func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*b), 10)
}

func (b *byteSize) Type() string { return "size" }
