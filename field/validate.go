package field

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/settings"
)

// Limits of a configuration.
const (
	environmentsMax = 100
	sessionsMax     = 10_000
	poolMax         = 1_000
	refreshDefault  = Duration(time.Minute)
)

// setDefaults fills what was left out and another part has no default for.
func (c *Config) setDefaults(backend string) {
	if c.Data == "" {
		c.Data = "bailey-worker"
	}
	all := []*Settings{&c.Settings}
	for i := range c.Environments {
		all = append(all, &c.Environments[i].Settings)
	}
	for _, s := range all {
		if s.Sandbox.Backend == "" {
			s.Sandbox.Backend = backend
		}
		for i := range s.Credentials {
			if s.Credentials[i].Refresh == 0 {
				s.Credentials[i].Refresh = refreshDefault
			}
			if len(s.Credentials[i].Where) == 0 {
				s.Credentials[i].Where = []string{"header"}
			}
		}
	}
}

// Validate says everything that is wrong with a configuration as it is written, in an
// [*Invalid]. It looks at nothing outside it.
func (c *Config) Validate(backends []string) error {
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...).Error()) }
	if u, err := url.Parse(c.Server.BaseURL); c.Server.BaseURL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		bad("server.base-url: %q is not an http or https address", c.Server.BaseURL)
	}
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			bad("listen: %q is not host:port", c.Listen)
		}
	}
	switch audit.InputMode(c.Audit.Input) {
	case "", audit.InputHash, audit.InputText:
	default:
		bad("audit.input: %q is not hash or text", c.Audit.Input)
	}
	if c.Drain < 0 || c.Audit.Retention < 0 {
		bad("drain and audit.retention cannot be never")
	}
	for _, text := range c.Audit.Sinks {
		s, err := sink.Open(text, io.Discard)
		if err != nil {
			bad("audit.sinks: %w", err)
			continue
		}
		_ = s.Close() // nothing was sent yet
	}
	switch {
	case len(c.Environments) == 0:
		bad("environments: list at least one, with its id and key-file; `bailey environments list` shows the ids")
	case len(c.Environments) > environmentsMax:
		bad("environments: %d, and %d are the most", len(c.Environments), environmentsMax)
	}
	seen := make(map[string]bool)
	for i := range c.Environments {
		e := &c.Environments[i]
		name := e.name(i)
		switch {
		case e.ID == "":
			bad("%s: it has no id", name)
		case !plainID(e.ID):
			bad("%s: %q is not an environment's id", name, e.ID)
		case seen[e.ID]:
			bad("%s: it is listed twice", name)
		}
		seen[e.ID] = true
		switch given := countSet(e.Key, e.KeyFile, e.KeyEnv); {
		case given == 0:
			bad("%s: it has no key; name a key-file; `bailey environments keys create ENVIRONMENT --name NAME` makes a key", name)
		case given > 1:
			bad("%s: give the key in one way, key-file or key-env", name)
		}
		if err := e.Settings.validate(backends); err != nil {
			for err := range each(err) {
				bad("%s: %w", name, err)
			}
		}
	}
	if len(problems) == 0 {
		return nil
	}
	for i, problem := range problems {
		if line := c.line(problem); line > 0 {
			problems[i] = fmt.Sprintf("line %d: %s", line, problem)
		}
	}
	return &Invalid{Path: c.path, Problems: problems}
}

// settingRE finds the setting that a problem begins with.
var settingRE = regexp.MustCompile(`^[a-z]+(-[a-z]+)*(\.[a-z]+(-[a-z]+)*)*`)

// line finds where in the file the setting is that a problem speaks of, or the environment.
// It is 0 if neither is there, as what a flag says is not.
func (c *Config) line(problem string) int {
	if c.root == nil {
		return 0
	}
	if id, of, ok := strings.Cut(strings.TrimPrefix(problem, "environment "), ": "); ok {
		for _, node := range environmentNodes(c.root) {
			var e struct{ ID string }
			if node.Decode(&e) != nil || e.ID != id {
				continue
			}
			setting := settingRE.FindString(of)
			return cmp.Or(settings.Line(node, setting), settings.Line(c.root, setting), node.Line)
		}
	}
	return settings.Line(c.root, settingRE.FindString(problem))
}

// name is what messages call an environment.
func (e *Environment) name(i int) string {
	if e.ID == "" {
		return fmt.Sprintf("environment %d of the list", i+1)
	}
	return "environment " + e.ID
}

// plainID reports whether an id can be the name of a directory as it is.
func plainID(id string) bool {
	return len(id) <= 100 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

func countSet(values ...string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

// each yields the errors that errors.Join put together.
func each(err error) func(func(error) bool) {
	return func(yield func(error) bool) {
		all := []error{err}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = joined.Unwrap()
		}
		for _, err := range all {
			if !yield(err) {
				return
			}
		}
	}
}

func (s *Settings) validate(backends []string) error {
	return errors.Join(s.Sandbox.validate(backends), s.counts(), s.Network.validate(), s.credentials())
}

// limitNames are the limits that a backend's report speaks of; see sandbox.Report.
var limitNames = []string{"memory", "cpu", "processes", "disk", "work_folder", "lifetime", "network"}

func (s *Sandbox) validate(backends []string) error {
	var errs []error
	for _, name := range append([]string{s.Backend}, s.Fallback...) {
		if !slices.Contains(backends, name) {
			errs = append(errs, fmt.Errorf("sandbox: there is no backend %q; there is %s", name, strings.Join(backends, ", ")))
		}
	}
	switch i := sandbox.Isolation(s.Require.Isolation); i {
	case "", sandbox.OwnKernel, sandbox.SharedKernel, sandbox.Restricted, sandbox.NoIsolation:
	default:
		errs = append(errs, fmt.Errorf("sandbox.require.isolation: %q is not one of %q, %q, %q, %q", i,
			sandbox.OwnKernel, sandbox.SharedKernel, sandbox.Restricted, sandbox.NoIsolation))
	}
	for _, limit := range s.Require.Limits {
		if !slices.Contains(limitNames, limit) {
			errs = append(errs, fmt.Errorf("sandbox.require.limits: %q is not one of %s", limit, strings.Join(limitNames, ", ")))
		}
	}
	if s.Engine != "" && !filepath.IsAbs(s.Engine) {
		errs = append(errs, fmt.Errorf("sandbox.engine: %q is no absolute path", s.Engine))
	}
	for name := range s.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			errs = append(errs, fmt.Errorf("sandbox.env: %q is not the name of a variable", name))
		}
	}
	if s.Limits.Lifetime < 0 {
		errs = append(errs, errors.New("sandbox.limits.lifetime cannot be never: a box without an end is a box that leaks"))
	}
	if err := s.Limits.box().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("sandbox.limits: %w", err))
	}
	return errors.Join(errs...)
}

// counts checks the numbers.
func (s *Settings) counts() error {
	var errs []error
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"sessions.max", s.Sessions.Max, sessionsMax},
		{"pool.size", s.Pool.Size, poolMax},
		{"keep.max", s.Keep.Max, sessionsMax},
		{"shell.max", s.Shell.Max, 1000},
	} {
		if n.value < 0 || n.value > n.max {
			errs = append(errs, fmt.Errorf("%s: %d is not between 0 and %d", n.name, n.value, n.max))
		}
	}
	if s.Shell.For < 0 || s.Shell.Idle < 0 {
		errs = append(errs, errors.New("shell.for and shell.idle cannot be never"))
	}
	if s.Sessions.ToolTimeout < 0 || s.Sessions.ToolTimeout > Duration(24*time.Hour) {
		errs = append(errs, errors.New("sessions.tool-timeout: want a time of at most 24h"))
	}
	return errors.Join(errs...)
}

func (n *Network) validate() error {
	if n.none() {
		if len(n.Rules) > 0 || len(n.Presets) > 0 {
			return fmt.Errorf("network: it has rules, and its mode is none; write mode: %s", egress.Limited)
		}
		return nil
	}
	if n.Mode != egress.Limited && n.Mode != egress.Unrestricted {
		return fmt.Errorf("network.mode: %q is not one of %s, %s, %s", n.Mode, networkNone, egress.Limited, egress.Unrestricted)
	}
	return n.Policy.Validate()
}

func (s *Settings) credentials() error {
	if len(s.Credentials) == 0 {
		return nil
	}
	if s.Network.none() {
		return errors.New("credentials: boxes without a network have no use for them; set network.mode, and allow their hosts")
	}
	var errs []error
	for _, c := range s.Credentials {
		if err := c.validate(); err != nil {
			errs = append(errs, fmt.Errorf("credential %q: %w", c.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The jail knows the rest, and is made of nothing but what is checked here.
	bound, _ := bind(s.Credentials, nil)
	for i := range bound {
		bound[i].AtHand = false // the values are not looked at here
	}
	jail, err := netjail.New(netjail.Options{Credentials: bound, Record: func(netjail.Decision) error { return nil }})
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return jail.Close()
}

func (c *Credential) validate() error {
	var errs []error
	command := ""
	if len(c.From.Command) > 0 {
		command = c.From.Command[0]
	}
	if n := countSet(c.From.Env, c.From.File, command); n != 1 {
		errs = append(errs, errors.New("from: want one of env, file and command"))
	}
	if command != "" && !filepath.IsAbs(command) {
		errs = append(errs, fmt.Errorf("from.command: %q is no absolute path", command))
	}
	for _, where := range c.Where {
		if !slices.Contains([]string{"header", "body", "query"}, where) {
			errs = append(errs, fmt.Errorf("where: %q is not header, body or query", where))
		}
	}
	if c.Refresh < 0 {
		errs = append(errs, errors.New("refresh cannot be never: the value may be rotated"))
	}
	return errors.Join(errs...)
}

func (l Limits) box() sandbox.Limits {
	return sandbox.Limits{
		MemoryBytes: int64(l.Memory), CPUs: l.CPUs, Processes: l.Processes, DiskBytes: int64(l.Disk), Lifetime: time.Duration(l.Lifetime),
	}
}
