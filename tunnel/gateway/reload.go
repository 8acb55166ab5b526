package gateway

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"reflect"
	"time"

	"github.com/bailey-platform/bailey/audit"
)

// Reload reads the configuration anew and takes on what can change while calls are under
// way: the routes, and everything that is said of them. What cannot is left as it was,
// and the log says so. An error means that nothing changed. Calls under way go on as they
// began.
func (g *Gateway) Reload() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	if err := g.reload(); err != nil {
		g.metrics.reloads.WithLabelValues("settings", "failed").Inc()
		return fmt.Errorf("the configuration stays as it was: %w", err)
	}
	g.metrics.reloads.WithLabelValues("settings", "ok").Inc()
	return nil
}

func (g *Gateway) reload() error {
	next, err := g.opts.Load()
	if err != nil {
		return err
	}
	next.SetDefaults()
	if err := next.Validate(); err != nil {
		return err
	}
	was := g.state.Load()
	for _, name := range next.keepFixed(was.cfg) {
		g.log.Warn("changed in the file, and in force from the next start on", "setting", name)
	}
	s, err := g.newState(next)
	if err != nil {
		return err
	}
	if g.audit != nil {
		err := g.audit.AppendAll([]audit.Record{{Actor: g.replica, Action: audit.ConfigChange, Attrs: map[string]string{"config": next.Fingerprint(), "was": was.cfg.Fingerprint()}}})
		if err != nil {
			s.close()
			return fmt.Errorf("the change cannot be put on record: %w", err)
		}
	}
	s.keep(was)
	g.state.Store(s)
	was.close()
	g.log.Info("the configuration was read anew", "config", next.Fingerprint())
	g.tell(s)
	return nil
}

// keepFixed puts the settings of a running configuration back that cannot change under
// it, and returns their names.
func (c *Config) keepFixed(was *Config) (changed []string) {
	keep := func(name string, now, old any) {
		n, o := reflect.ValueOf(now).Elem(), reflect.ValueOf(old).Elem()
		if !reflect.DeepEqual(n.Interface(), o.Interface()) {
			changed = append(changed, name)
			n.Set(o)
		}
	}
	keep("tunnel.token-file", &c.Tunnel.TokenFile, &was.Tunnel.TokenFile)
	keep("tunnel.edges", &c.Tunnel.Edges, &was.Tunnel.Edges)
	keep("tunnel.protocol", &c.Tunnel.Protocol, &was.Tunnel.Protocol)
	keep("tunnel.links", &c.Tunnel.Links, &was.Tunnel.Links)
	keep("tls", &c.TLS, &was.TLS)
	keep("replica", &c.Replica, &was.Replica)
	keep("data", &c.Data, &was.Data)
	keep("listen", &c.Listen, &was.Listen)
	keep("drain", &c.Drain, &was.Drain)
	keep("log-level", &c.Log, &was.Log)
	keep("audit", &c.Audit, &was.Audit)
	return changed
}

// keep takes over what was counted of routes, so that a reload is no way around their
// limits, and programs of those that are the same as before, so that a change elsewhere
// ends no session.
func (s *state) keep(was *state) {
	for name, r := range s.routes {
		old := was.routes[name]
		if old == nil {
			continue
		}
		r.taken = old.taken
		if r.limiter != nil && old.limiter != nil {
			old.limiter.SetLimit(r.limiter.Limit())
			old.limiter.SetBurst(r.limiter.Burst())
			r.limiter = old.limiter
		}
		if r.stdio == nil || old.stdio == nil || !reflect.DeepEqual(s.cfg.Routes[r.key], was.cfg.Routes[old.key]) {
			continue
		}
		if !maps.Equal(r.stdio.program.secrets, old.stdio.program.secrets) {
			continue
		}
		r.stdio = old.stdio
		old.kept = true
	}
}

// tell logs the routes, in the words of mcp-proxy.
func (g *Gateway) tell(s *state) {
	for _, warning := range s.cfg.Warnings {
		g.log.Warn(warning)
	}
	for _, name := range sortedNames(s.cfg.Routes) {
		r := s.cfg.Routes[name]
		to := r.Upstream
		if to == "" {
			to = r.Command[0]
		}
		g.log.Info("route configured", "route", name, "upstream", to)
		if r.AnyIP {
			g.log.Warn("any-ip: this route connects to whatever address its upstream's name leads to", "route", name)
		}
	}
	for _, file := range append(s.cfg.files(), s.cfg.TLS.Key, s.cfg.TLS.CAKey, s.cfg.Tunnel.TokenFile) {
		if warning := tooOpen(file); warning != "" && s.cfg.secret(file) {
			g.log.Warn(warning)
		}
	}
}

// secret reports whether a file of the configuration's holds a secret.
func (c *Config) secret(file string) bool {
	for _, r := range c.Routes {
		if file == r.UpstreamTLS.CA || file == r.Auth.JWT.JWKSFile || file == r.UpstreamTLS.Cert {
			return false
		}
	}
	return file != ""
}

// pollFiles reloads the configuration when its file changes, or one that it names, until
// ctx ends. It looks at what they hold: a Kubernetes mount changes by a link above it.
func (g *Gateway) pollFiles(ctx context.Context) {
	last := g.sums()
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := g.sums()
		if maps.Equal(now, last) {
			continue
		}
		if err := g.Reload(); err != nil {
			g.log.Error("settings not read anew", "error", err)
		}
		last = g.sums() // of the files that are named now
		for file, sum := range now {
			if _, ok := last[file]; ok {
				last[file] = sum // what changed since is for the next look
			}
		}
	}
}

// sums are hashes of the files that the configuration in force was made of.
func (g *Gateway) sums() map[string][sha256.Size]byte {
	sums := make(map[string][sha256.Size]byte)
	for _, file := range append(g.Config().files(), g.opts.File) {
		text, err := os.ReadFile(file)
		if err != nil {
			text = []byte("error: " + err.Error())
		}
		sums[file] = sha256.Sum256(text)
	}
	return sums
}
