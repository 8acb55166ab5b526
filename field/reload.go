package field

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/bailey-platform/bailey/audit"
)

// Reload reads the configuration anew and takes on what can change while boxes run:
// network rules, the proxy, credentials, keys, the pool's size, how many sessions, what is
// kept and shells. An environment that is not listed any more claims no more sessions, and
// does so again once it is. What cannot is left as it was, and the log says so; a box that could
// not take on its network rules is stopped. An error means that nothing changed, or,
// after "partly:", which environments could not take on all of it.
func (f *Field) Reload() error {
	next, err := f.load()
	if err != nil {
		return fmt.Errorf("the configuration stays as it was: %w", err)
	}
	f.mu.Lock()
	record, actor, was, sites := f.audit, f.actor, f.cfg, f.sites
	f.mu.Unlock()
	if record == nil || sites == nil {
		return errors.New("the worker is starting; try again when it is ready")
	}
	networked := make(map[string]bool)
	for _, s := range sites {
		networked[s.id] = s.networks != nil
	}
	for _, setting := range next.keepFixed(was, networked) {
		f.opts.Logger.Warn("changed in the file, and in force from the next start on", "setting", setting)
	}
	networks := make(map[string]rules)
	for i := range next.Environments {
		e := &next.Environments[i]
		if networks[e.ID], err = f.rules(e); err != nil {
			return fmt.Errorf("the configuration stays as it was: environment %s: %w", e.ID, err)
		}
	}
	err = record.Append(audit.Record{Actor: actor, Action: audit.ConfigChange, Attrs: map[string]string{"config": next.Fingerprint(), "was": was.Fingerprint()}})
	if err != nil {
		return fmt.Errorf("the configuration stays as it was, as the change cannot be put on record: %w", err)
	}
	f.mu.Lock()
	f.cfg = next
	f.mu.Unlock()
	var errs []error
	for _, s := range sites {
		if e := next.environment(s.id); e != nil && s.worker != nil {
			if e.gone && !was.environment(s.id).gone {
				f.opts.Logger.Info("not in the file any more: no more sessions are claimed, and those that are served are served to their end", "environment_id", s.id)
			}
			if err := f.apply(s, e, was.environment(s.id), networks[s.id]); err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", s.id, err))
			}
		}
	}
	f.opts.Logger.Info("the configuration was read anew", "config", next.Fingerprint())
	if len(errs) > 0 {
		return fmt.Errorf("partly: %w", errors.Join(errs...))
	}
	return nil
}

// CutNetworks takes the network from all boxes that have one, and from those to come, for
// the rest of Run. Boxes that cannot be told are stopped.
func (f *Field) CutNetworks() {
	f.mu.Lock()
	sites := f.sites
	f.mu.Unlock()
	for _, s := range sites {
		if s.networks == nil {
			continue
		}
		if err := s.networks.set(rules{}); err != nil {
			f.opts.Logger.Error("boxes were stopped, as their network could not be cut", "environment_id", s.id, "error", err)
		}
	}
}

// GiveUpKept stops the box that was kept longest for a session which may come back, and
// reports whether there was one.
func (f *Field) GiveUpKept() bool {
	f.mu.Lock()
	sites := f.sites
	f.mu.Unlock()
	return slices.ContainsFunc(sites, func(s *site) bool { return s.worker != nil && s.worker.GiveUpKept() })
}

// apply gives a site what can change of its settings.
func (f *Field) apply(s *site, e, was *Environment, r rules) error {
	// What boxes may not any more goes before what waits for a server or a disk.
	var err error
	if s.networks != nil {
		err = s.networks.set(r) // also when only values of credentials may have changed
	}
	s.worker.Apply(e.live())
	if unread := s.worker.RereadKey(); unread != nil && !e.gone { // whose key may have gone with it
		err = errors.Join(err, unread)
	}
	if s.networks == nil {
		return err
	}
	if !reflect.DeepEqual(e.Network, was.Network) || !reflect.DeepEqual(e.Credentials, was.Credentials) {
		s.worker.RenewPool() // its boxes know the old placeholders only
	}
	return err
}

// keepFixed puts the settings of a running configuration back that cannot change under
// it, and returns their names. networked are the environments whose boxes were started
// with a network.
func (c *Config) keepFixed(was *Config, networked map[string]bool) (changed []string) {
	keep := func(name string, now, old any) {
		n, o := reflect.ValueOf(now).Elem(), reflect.ValueOf(old).Elem()
		if !reflect.DeepEqual(n.Interface(), o.Interface()) {
			changed = append(changed, name)
			n.Set(o)
		}
	}
	keep("server", &c.Server, &was.Server)
	keep("worker-id", &c.WorkerID, &was.WorkerID)
	keep("data", &c.Data, &was.Data)
	keep("work-dir", &c.WorkDir, &was.WorkDir)
	keep("disk-reserve", &c.DiskReserve, &was.DiskReserve)
	keep("listen", &c.Listen, &was.Listen)
	keep("drain", &c.Drain, &was.Drain)
	keep("audit", &c.Audit, &was.Audit)

	listed := make(map[string]bool)
	var kept []Environment
	for _, e := range c.Environments {
		old := was.environment(e.ID)
		if old == nil {
			changed = append(changed, "environment "+e.ID+" (new)")
			continue
		}
		listed[e.ID] = true
		in := "environment " + e.ID + ": "
		keep(in+"sandbox", &e.Sandbox, &old.Sandbox)
		keep(in+"sessions.idle", &e.Sessions.Idle, &old.Sessions.Idle)
		keep(in+"sessions.tool-timeout", &e.Sessions.ToolTimeout, &old.Sessions.ToolTimeout)
		if !networked[e.ID] {
			// Boxes with and without a network are started differently.
			keep(in+"network", &e.Network, &old.Network)
			keep(in+"credentials", &e.Credentials, &old.Credentials)
		}
		kept = append(kept, e)
	}
	for _, old := range was.Environments {
		if !listed[old.ID] {
			old.gone = true
			kept = append(kept, old)
		}
	}
	c.Environments = kept
	return changed
}
