package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/sandbox"
)

// Options are what a [Cloud] is made of.
type Options struct {
	// Plane says which environments have work. HTTPClient reaches its API, whatever
	// host BaseURL has.
	Plane      Plane
	HTTPClient *http.Client

	// Data is a directory of the cloud's own.
	Data string

	// Config is what the operator wants of the boxes: a worker.yaml without server and
	// environments. Nil is one with nothing in it. It is not changed.
	Config *field.Config

	// BoxesMax bounds the boxes of all environments together.
	BoxesMax int

	// Drain is how long calls under way may take once Run is to end.
	Drain time.Duration

	Backends  []field.Backend // of this build, the strongest first
	Agent     func(dir string) (string, error)
	AgentArgs []string
	Env       func(name string) (string, bool)
	Logger    *slog.Logger
	Metrics   prometheus.Registerer // nil registers nothing
}

// Plane is what a [Cloud] has to be told, besides what it asks by the API.
type Plane interface {
	// CloudEnvironments are those that have work.
	CloudEnvironments(context.Context) ([]*api.Environment, error)

	// CloudConfigured are these as they are now, with work or without, but for those that
	// are gone.
	CloudConfigured(context.Context, []api.EnvironmentID) ([]*api.Environment, error)

	// CloudChanged receives when any of that may have changed.
	CloudChanged() <-chan struct{}

	// OwnKey makes an environment key for a worker of this process, until it is dropped.
	OwnKey(api.EnvironmentID) (secret string, drop func())
}

// BaseURL is the address that requests to the plane go to, as far as they show it.
const BaseURL = "http://plane.internal"

// A Cloud runs the sessions of cloud environments.
type Cloud struct {
	// Static.
	o       Options
	base    field.Config
	drivers *drivers
	memory  *netjail.Memory
	log     *slog.Logger

	metrics *metrics
	ended   chan struct{} // a site has ended; one in it at most

	// Owned by Run.
	sites map[api.EnvironmentID]*site
}

// site is one environment while it is served.
type site struct {
	// Static.
	cancel context.CancelFunc
	ended  chan struct{}
	field  *field.Field // nil if it could not be made
	began  time.Time

	// Owned by Run.
	seen     time.Time // when it last had work
	stopping bool      // it was told to stop

	mu  sync.Mutex
	env *api.Environment // as it is configured now
}

// stop has a site finish the calls under way and end.
func (s *site) stop() {
	s.stopping = true
	s.cancel()
}

// over reports whether a site has ended.
func (s *site) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// New prepares a cloud. It starts nothing.
func New(o Options) (*Cloud, error) {
	c := &Cloud{o: o, log: o.Logger, memory: netjail.NewMemory(), metrics: newMetrics(o.Metrics), ended: make(chan struct{}, 1), sites: map[api.EnvironmentID]*site{}}
	if o.Config != nil {
		c.base = *o.Config
	}
	b := &c.base
	switch {
	case len(b.Environments) > 0 || b.Server != field.Server{}:
		return nil, errors.New("the cloud worker's configuration says server or environments: both are this server's own")
	case b.Data != "" || b.Listen != "":
		return nil, errors.New("the cloud worker's configuration says data or listen: its files are in this server's data directory, its health is this server's")
	case len(o.Backends) == 0:
		return nil, errors.New("this build has no sandbox")
	}
	if b.Network.Mode == "none" {
		return nil, errors.New("the cloud worker's configuration has network.mode none: what boxes reach is said by their environments")
	}
	if b.Sandbox.Backend == "" {
		b.Sandbox.Backend = o.Backends[0].Name
	}
	c.drivers = &drivers{
		backends: o.Backends, made: map[string]*driver{}, room: newRoom(o.BoxesMax),
		options: field.BackendOptions{State: filepath.Join(o.Data, "sandbox"), Logger: o.Logger, Engine: b.Sandbox.Engine, Runtime: b.Sandbox.Runtime,
			AllowOld: b.Sandbox.AllowOldEngine, Image: b.Sandbox.Image},
	}
	return c, nil
}

// Ready is nil if there is a sandbox here that sessions can run in, and else says why
// not. The first call takes as long as starting a box.
func (c *Cloud) Ready(ctx context.Context) error {
	want := sandbox.Requirements{
		Isolation: sandbox.Isolation(c.base.Sandbox.Require.Isolation), Limits: c.base.Sandbox.Require.Limits, Network: true,
		GPU: c.base.Sandbox.Require.GPU || len(c.base.Sandbox.Devices) > 0,
	}
	var reasons []string
	for _, name := range append([]string{c.base.Sandbox.Backend}, c.base.Sandbox.Fallback...) {
		if err := os.MkdirAll(filepath.Join(c.o.Data, "sandbox", name), 0o700); err != nil {
			return err
		}
		var report sandbox.Report
		d, err := c.drivers.named(name)
		if err == nil {
			report, err = d.Check(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if u, ok := errors.AsType[*sandbox.Unavailable](err); ok {
			reasons = append(reasons, fmt.Sprintf("%s: %s (to mend it: %s)", name, u.Cause, strings.Join(u.Remedy, ", or ")))
			continue
		}
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		missing := report.Missing(want)
		if len(missing) == 0 {
			return nil
		}
		reasons = append(reasons, fmt.Sprintf("%s lacks %s", name, strings.Join(missing, ", ")))
	}
	return errors.New(strings.Join(reasons, "; "))
}

const (
	lookEvery    = 10 * time.Second // without being told of a change
	keepIdle     = 30 * time.Minute // an environment without work
	restartAfter = 15 * time.Second // one whose worker could not begin
)

// Run serves the environments that have work until ctx ends, then lets calls under way
// finish, and returns nil.
func (c *Cloud) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := c.look(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			c.log.Error("looking for cloud environments with work failed; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			for _, s := range c.sites {
				<-s.ended
			}
			return nil
		case <-c.o.Plane.CloudChanged():
		case <-c.ended:
		case <-tick.C:
		}
	}
}

// look brings what is served into line with the environments.
func (c *Cloud) look(ctx context.Context) error {
	busy, err := c.o.Plane.CloudEnvironments(ctx)
	if err != nil {
		return err
	}
	// Those without work have boxes all the same, and shells may be open in them.
	idle := maps.Clone(c.sites)
	for _, e := range busy {
		delete(idle, e.ID)
	}
	known, err := c.o.Plane.CloudConfigured(ctx, slices.Collect(maps.Keys(idle)))
	if err != nil {
		return err
	}
	now := time.Now()
	for id, s := range c.sites {
		if s.over() && (s.stopping || now.Sub(s.began) > restartAfter) {
			delete(c.sites, id) // one that could not begin gets another try, after a while
		}
	}
	for _, e := range known {
		s := idle[e.ID]
		delete(idle, e.ID)
		if e.ArchivedAt != nil || now.Sub(s.seen) > keepIdle {
			s.stop()
			continue
		}
		c.update(s, e)
	}
	for _, s := range idle { // it was deleted
		s.stop()
	}
	for _, e := range busy {
		s := c.sites[e.ID]
		if s == nil {
			c.sites[e.ID] = c.start(ctx, e)
			continue
		}
		s.seen = now
		c.update(s, e)
	}
	return nil
}

// start begins to serve an environment.
func (c *Cloud) start(ctx context.Context, e *api.Environment) *site {
	ctx, cancel := context.WithCancel(ctx)
	s := &site{cancel: cancel, ended: make(chan struct{}), began: time.Now(), seen: time.Now(), env: e}
	log := c.log
	secret, drop := c.o.Plane.OwnKey(e.ID)
	registry := prometheus.NewRegistry()
	c.metrics.add(registry)
	var err error
	s.field, err = field.New(field.Options{
		Load:     func() (*field.Config, error) { return c.config(s.configured(), secret), nil },
		Backends: c.drivers.shared(e.ID), Memory: c.memory, Agent: c.agent, AgentArgs: c.o.AgentArgs, Env: c.o.Env,
		HTTPClient: c.o.HTTPClient, Logger: log, Metrics: registry,
	})
	forget := func() {}
	if err == nil {
		forget = c.drivers.room.giver(e.ID, s.field.GiveUpKept)
	}
	go func() {
		defer func() {
			cancel()
			drop()
			forget()
			c.metrics.remove(registry)
			close(s.ended)
			select {
			case c.ended <- struct{}{}:
			default:
			}
		}()
		if err == nil {
			log.Info("serving a cloud environment", "environment_id", e.ID)
			err = s.field.Run(ctx)
		}
		if err != nil && ctx.Err() == nil {
			log.Error("a cloud environment cannot be served; trying again", "environment_id", e.ID, "error", err)
		}
	}()
	return s
}

func (s *site) configured() *api.Environment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env
}

// update gives a site its environment's new configuration: network rules at once, also
// for calls under way, and packages by starting it anew when those are done.
func (c *Cloud) update(s *site, e *api.Environment) {
	old := s.configured()
	if reflect.DeepEqual(old.Config, e.Config) || s.field == nil || s.stopping {
		return
	}
	s.mu.Lock()
	s.env = e
	s.mu.Unlock()
	if err := s.field.Reload(); err != nil {
		c.log.Error("new network rules of a cloud environment are not in force; its boxes have no network until it is served anew", "environment_id", e.ID, "error", err)
		s.field.CutNetworks()
		s.stop()
	} else if !reflect.DeepEqual(old.Config.Packages, e.Config.Packages) {
		s.stop()
	}
}

// agent is the executable for boxes, the same for all.
func (c *Cloud) agent(string) (string, error) {
	dir := filepath.Join(c.o.Data, "sandbox")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return c.o.Agent(dir)
}

// config is the worker.yaml of one environment.
func (c *Cloud) config(e *api.Environment, secret string) *field.Config {
	cfg := c.base
	cfg.Server.BaseURL = BaseURL
	cfg.Data = filepath.Join(c.o.Data, string(e.ID))
	if cfg.WorkDir != "" {
		cfg.WorkDir = filepath.Join(cfg.WorkDir, string(e.ID))
	}
	cfg.Drain = field.Duration(c.o.Drain)
	settings := c.base.Settings
	settings.Network.Policy = policy(e.Config.Networking, c.base.Network.Policy)
	settings.Sandbox.Env = maps.Clone(settings.Sandbox.Env)
	if settings.Sandbox.Env == nil {
		settings.Sandbox.Env = map[string]string{}
	}
	for name, value := range packagesEnv(e.Config.Packages) {
		if _, said := settings.Sandbox.Env[name]; !said {
			settings.Sandbox.Env[name] = value
		}
	}
	settings.Sandbox.Setup = strings.Join(slices.DeleteFunc([]string{settings.Sandbox.Setup, packagesSetup(e.Config.Packages)}, func(s string) bool { return s == "" }), "\n")
	// What takes long is done while the model thinks.
	settings.Sandbox.Eager = settings.Sandbox.Eager || !e.Config.Packages.Empty()
	settings.Credentials = slices.Clone(settings.Credentials)
	cfg.Settings = settings
	cfg.Environments = []field.Environment{{ID: string(e.ID), Key: secret, Settings: settings}}
	return &cfg
}
