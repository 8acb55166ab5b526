package field

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

// Options are what a Field is made of, besides its configuration.
type Options struct {
	// Load returns the configuration. It is called by New, and again by Reload.
	Load func() (*Config, error)

	Backends []Backend // of this build, the strongest first

	// Agent returns the host path of the executable that runs in boxes, which may keep
	// files in dir; AgentArgs are its arguments there.
	Agent     func(dir string) (string, error)
	AgentArgs []string

	// Env looks up a variable of the process, as os.LookupEnv does.
	Env func(name string) (string, bool)

	// Memory is what the networks of all boxes of the process share. Nil is one of this
	// field's own.
	Memory *netjail.Memory

	HTTPClient *http.Client // to the server; nil is the worker's own

	Logger  *slog.Logger         // required
	Metrics *prometheus.Registry // nil registers nothing
	Stdout  io.Writer            // for an audit sink that asks for it; nil for none
}

// A Field runs the workers of one configuration.
type Field struct {
	// Static.
	opts Options

	mu       sync.Mutex
	cfg      *Config
	audit    *audit.Log
	actor    string // of the audit record
	sites    []*site
	starting bool // until every environment is served, or known not to be
}

// site is one environment.
type site struct {
	id       string
	worker   *worker.Worker
	choice   *Choice
	networks *networks // nil if boxes have none
	err      error     // why it is not served
}

// New reads the configuration and checks it. It changes nothing on the host.
func New(o Options) (*Field, error) {
	if o.Memory == nil {
		o.Memory = netjail.NewMemory()
	}
	f := &Field{opts: o, starting: true}
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	f.cfg = cfg
	return f, nil
}

// Config is the configuration in force. It must not be changed.
func (f *Field) Config() *Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg
}

func (f *Field) load() (*Config, error) {
	cfg, err := f.opts.Load()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(f.opts.Backends))
	for i, b := range f.opts.Backends {
		names[i] = b.Name
	}
	if len(names) == 0 {
		return nil, errors.New("this build has no sandbox")
	}
	cfg.setDefaults(names[0])
	if cfg.Data, err = filepath.Abs(cfg.Data); err != nil {
		return nil, err
	}
	if cfg.WorkDir != "" {
		if cfg.WorkDir, err = filepath.Abs(cfg.WorkDir); err != nil {
			return nil, err
		}
	}
	return cfg, cfg.Validate(names)
}

// Run serves the environments until ctx ends, and returns nil once all is left in order.
// An environment that cannot be served is not asked for work: Ready and the log say why.
// If that goes for all of them, or if the audit record cannot be opened, Run returns an
// error.
func (f *Field) Run(ctx context.Context) error {
	cfg := f.Config()
	lock, err := f.prepare(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	log, err := openAudit(cfg, f.opts)
	if err != nil {
		return err
	}
	if f.opts.Metrics != nil {
		if err := telemetry.RegisterAudit(f.opts.Metrics, "bailey_worker", "tool calls are", log); err != nil {
			return err
		}
	}
	defer func() {
		if err := log.Close(); err != nil {
			f.opts.Logger.Error("audit record not closed", "error", err)
		}
	}()
	f.mu.Lock()
	f.audit, f.actor = log, actor(cfg.WorkerID)
	f.mu.Unlock()

	parts, ctx := errgroup.WithContext(ctx)
	if cfg.Listen != "" {
		l, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		f.opts.Logger.Info("health and metrics", "address", l.Addr().String())
		parts.Go(func() error { return f.serveHealth(ctx, l) })
	}
	parts.Go(func() error { return f.serveAll(ctx, cfg) })
	if err := parts.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serveAll serves all environments that can be served.
func (f *Field) serveAll(ctx context.Context, cfg *Config) error {
	sites, err := f.open(ctx, cfg)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.sites, f.starting = sites, false
	f.mu.Unlock()
	if err := f.unserved(sites); err != nil {
		return err
	}
	served, ctx := errgroup.WithContext(ctx)
	for _, s := range sites {
		if s.err == nil {
			f.opts.Logger.Info("worker started", "server", cfg.Server.BaseURL, "environment_id", s.id)
			served.Go(func() error { return f.serve(ctx, s) })
		}
	}
	return served.Wait()
}

// serve runs the worker of one environment. One that cannot begin leaves the others
// alone, as long as there are any.
func (f *Field) serve(ctx context.Context, s *site) error {
	err := s.worker.Run(ctx)
	if err == nil {
		return nil
	}
	f.mu.Lock()
	s.err = err
	sites := f.sites
	f.mu.Unlock()
	f.opts.Logger.Error("environment is not served", "environment_id", s.id, "error", err)
	return f.unserved(sites)
}

// unserved returns why no environment is served, or nil if one is.
func (f *Field) unserved(sites []*site) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, s := range sites {
		if s.err == nil {
			return nil
		}
		errs = append(errs, s.err)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	for i, s := range sites {
		errs[i] = fmt.Errorf("environment %s: %w", s.id, errs[i])
	}
	return errors.Join(errs...)
}

// Ready returns nil while every environment can take work, and otherwise why one cannot.
func (f *Field) Ready() error {
	f.mu.Lock()
	sites, starting := slices.Clone(f.sites), f.starting
	errs := make([]error, len(sites))
	for i, s := range sites {
		errs[i] = s.err
	}
	f.mu.Unlock()
	if starting {
		return errors.New("the worker is starting")
	}
	for i, s := range sites {
		if errs[i] == nil {
			errs[i] = s.worker.Ready()
		}
		if errs[i] != nil && len(sites) > 1 {
			errs[i] = fmt.Errorf("environment %s: %w", s.id, errs[i])
		}
	}
	return errors.Join(errs...)
}

// Worker returns the worker of an environment, or nil if it is not served. An empty id is
// that of the only one.
func (f *Field) Worker(environment string) *worker.Worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sites {
		if s.err == nil && (s.id == environment || environment == "" && len(f.sites) == 1) {
			return s.worker
		}
	}
	return nil
}

// prepare makes the data directory and locks it.
func (f *Field) prepare(cfg *Config) (lock *os.File, err error) {
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err = os.OpenFile(filepath.Join(cfg.Data, "worker.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("data directory %s: another worker uses it; give this one a directory of its own", cfg.Data)
	}
	return lock, nil
}

// openAudit opens the audit record with its sinks.
func openAudit(cfg *Config, o Options) (*audit.Log, error) {
	sinks, err := sink.OpenAll(strings.Join(cfg.Audit.Sinks, ","), o.Stdout)
	if err != nil {
		return nil, err
	}
	return audit.Open(filepath.Join(cfg.Data, "audit.jsonl"), audit.Options{
		Logger: o.Logger, Input: audit.InputMode(cfg.Audit.Input), Retain: time.Duration(cfg.Audit.Retention), Sinks: sinks,
	})
}

func actor(workerID string) string {
	if workerID != "" {
		return workerID
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "worker"
	}
	return host
}

// open chooses a backend for each environment and makes its worker.
func (f *Field) open(ctx context.Context, cfg *Config) ([]*site, error) {
	agent, err := f.opts.Agent(filepath.Join(cfg.Data, "sandbox"))
	if err != nil {
		return nil, fmt.Errorf("the executable for boxes: %w", err)
	}
	drivers := &drivers{backends: f.opts.Backends, dir: filepath.Join(cfg.Data, "sandbox"), log: f.opts.Logger, made: make(map[driverKey]*checked)}
	fingerprint := cfg.Fingerprint()
	var sites []*site
	for i := range cfg.Environments {
		e := &cfg.Environments[i]
		s := &site{id: e.ID}
		s.err = f.openSite(ctx, cfg, e, s, drivers, agent, fingerprint)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if s.err != nil {
			f.opts.Logger.Error("environment is not served", "environment_id", e.ID, "error", s.err)
		}
		sites = append(sites, s)
	}
	return sites, nil
}

func (f *Field) openSite(ctx context.Context, cfg *Config, e *Environment, s *site, drivers *drivers, agent, fingerprint string) (err error) {
	log := f.opts.Logger
	if s.choice, err = drivers.choose(ctx, &e.Settings); err != nil {
		return err
	}
	f.tell(s)
	if err := s.choice.Driver.Prepare(ctx, e.Sandbox.Image); err != nil {
		return fmt.Errorf("prepare image %q: %w", e.Sandbox.Image, err)
	}
	c := f.workerConfig(cfg, e)
	if err := letThrough(s.choice.Report, cfg.Data, filepath.Join(cfg.Data, "sandbox"), c.DataDir, workFolders(c)); err != nil {
		return err
	}
	c.Driver, c.Agent, c.Fingerprint, c.Audit = s.choice.Driver, agent, fingerprint, f.audit
	c.Notes = s.choice.PassedBy
	if !e.Network.none() {
		rules, err := f.rules(e)
		if err != nil {
			return err
		}
		if s.networks, err = newNetworks(filepath.Join(c.DataDir, "net"), e.Sandbox.Image, f.opts.Memory, log); err != nil {
			return err
		}
		if err := s.networks.set(rules); err != nil {
			return err
		}
		c.Networks = s.networks
	}
	if f.opts.Metrics != nil {
		c.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"environment_id": e.ID}, f.opts.Metrics)
	}
	s.worker, err = worker.New(c)
	return err
}

// workFolders is the directory of a worker's work folders.
func workFolders(c worker.Config) string { return cmp.Or(c.WorkDir, filepath.Join(c.DataDir, "work")) }

// letThrough makes directories of the worker's own, and lets other users pass through
// them, though not look around, where boxes are processes of this host: those of a worker
// that is root have a user of their own, and find their folder and agent by the path.
func letThrough(r sandbox.Report, dirs ...string) error {
	if r.Isolation != sandbox.Restricted || !r.Root {
		return nil
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		// All of its mode: a directory that others write to, as /tmp, keeps what protects it.
		if err := os.Chmod(dir, info.Mode()|0o011); err != nil {
			return fmt.Errorf("let boxes through to their work folders: %w", err)
		}
	}
	return nil
}

// tell says which backend an environment got, and why.
func (f *Field) tell(s *site) {
	r, log := s.choice.Report, f.opts.Logger.With("environment_id", s.id)
	for _, why := range s.choice.PassedBy {
		log.Warn("a fallback is used: "+why, "backend", r.Backend)
	}
	log.Info("the sandbox passed its self-test", "backend", r.Backend, "version", r.Version, "isolation", r.Isolation,
		"start", r.Start.Round(time.Millisecond), "root", r.Root)
	level := slog.LevelInfo
	if !r.Isolation.AtLeast(sandbox.SharedKernel) {
		level = slog.LevelWarn
	}
	for _, note := range r.Notes {
		log.Log(context.Background(), level, "sandbox: "+note)
	}
}

// workerConfig is the part of a worker's configuration that the file says outright.
func (f *Field) workerConfig(cfg *Config, e *Environment) worker.Config {
	c := worker.Config{
		EnvironmentID: e.ID,
		Key:           f.keySource(e.ID),
		BaseURL:       cfg.Server.BaseURL,
		WorkerID:      cfg.WorkerID,
		DataDir:       filepath.Join(cfg.Data, e.ID),
		DiskReserve:   int64(cfg.DiskReserve),
		Image:         e.Sandbox.Image,
		Devices:       e.Sandbox.Devices,
		AgentArgs:     f.opts.AgentArgs,
		Setup:         e.Sandbox.Setup,
		EagerBox:      e.Sandbox.Eager,
		HTTPClient:    f.opts.HTTPClient,
		Limits:        e.Sandbox.Limits.box(),
		FolderMax:     int64(e.Sandbox.Limits.WorkFolder),
		ToolTimeout:   time.Duration(e.Sessions.ToolTimeout),
		MaxIdle:       time.Duration(e.Sessions.Idle),
		DrainTimeout:  time.Duration(cfg.Drain),
		Logger:        f.opts.Logger,
	}
	if cfg.WorkDir != "" {
		c.WorkDir = filepath.Join(cfg.WorkDir, e.ID)
	}
	for name, value := range e.Sandbox.Env {
		c.BoxEnv = append(c.BoxEnv, name+"="+value)
	}
	slices.Sort(c.BoxEnv)
	live := e.live()
	c.MaxSessions, c.PoolSize, c.Keep, c.Shell = live.MaxSessions, live.PoolSize, live.Keep, live.Shell
	return c
}

// live is what a running worker can take on.
func (e *Environment) live() worker.Live {
	return worker.Live{
		Retired:     e.gone,
		MaxSessions: e.Sessions.Max,
		PoolSize:    e.Pool.Size,
		Keep: worker.Keep{
			FreezeAfter: time.Duration(e.Keep.FreezeAfter), For: time.Duration(e.Keep.For), Max: e.Keep.Max, MemoryBytes: int64(e.Keep.Memory),
		},
		Shell: worker.ShellRules{Allow: e.Shell.Allow, Max: e.Shell.Max, For: time.Duration(e.Shell.For), Idle: time.Duration(e.Shell.Idle), Transcript: e.Shell.Transcript},
	}
}

// keySource reads an environment's key from where the configuration in force says.
func (f *Field) keySource(id string) worker.KeySource {
	return func() (string, error) {
		e := f.Config().environment(id)
		switch {
		case e == nil:
			return "", fmt.Errorf("read environment key: environment %s is not configured any more", id)
		case e.Key != "":
			return e.Key, nil
		case e.KeyFile != "":
			return worker.KeyFile(e.KeyFile)()
		}
		key, ok := f.opts.Env(e.KeyEnv)
		if !ok {
			return "", fmt.Errorf("read environment key: the variable %s is not set", e.KeyEnv)
		}
		return strings.TrimSpace(key), nil
	}
}

// environment returns an environment by its id, or nil.
func (c *Config) environment(id string) *Environment {
	for i := range c.Environments {
		if c.Environments[i].ID == id {
			return &c.Environments[i]
		}
	}
	return nil
}

// rules are the network rules and credentials of an environment. A mode of none, in one
// whose boxes were started with a network, allows nothing.
func (f *Field) rules(e *Environment) (r rules, err error) {
	if e.Network.none() {
		return r, nil
	}
	r.policy = e.Network.Policy
	r.credentials, _ = bind(e.Credentials, f.opts.Env)
	if e.Network.ProxyEnv == "" {
		return r, nil
	}
	text, ok := f.opts.Env(e.Network.ProxyEnv)
	if !ok {
		return r, fmt.Errorf("network.proxy-env: the variable %s is not set", e.Network.ProxyEnv)
	}
	if r.proxy, err = egress.ParseProxy(text); err != nil {
		return r, fmt.Errorf("network.proxy-env: %w", err)
	}
	return r, nil
}
