package field

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/worker"
)

// networks opens the jails of one environment's boxes, and changes them all when the
// rules do.
type networks struct {
	// Static.
	dir    string // of the files that boxes see of their networks
	bundle []byte // the certificates that the image trusts
	memory *netjail.Memory
	log    *slog.Logger

	mu     sync.Mutex
	rules  rules
	dialer *egress.Dialer
	jails  map[*jail]struct{}
}

// rules are what holds for the networks of an environment.
type rules struct {
	policy      egress.Policy
	credentials []netjail.Credential
	proxy       *egress.Proxy // nil for none
}

// bundlePaths are where systems have the certificates that they trust.
var bundlePaths = []string{netjail.BundlePath, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem"}

// newNetworks makes the networks of an environment, whose files are in dir, which is made
// anew. image is the root of boxes, if it is a directory.
func newNetworks(dir, image string, memory *netjail.Memory, log *slog.Logger) (*networks, error) {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("directory of networks: %w", err)
	}
	n := &networks{dir: dir, memory: memory, log: log, dialer: new(egress.Dialer), jails: make(map[*jail]struct{})}
	var roots []string
	if info, err := os.Stat(image); err == nil && info.IsDir() {
		roots = append(roots, image)
	}
	for _, root := range append(roots, "/") {
		for _, path := range bundlePaths {
			// An image is the operator's, but its links lead nowhere outside it.
			if data, err := readIn(root, path); err == nil && len(data) > 0 {
				n.bundle = data
				return n, nil
			}
		}
	}
	return n, nil
}

func readIn(dir, path string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.ReadFile(path[1:])
}

// set changes what boxes may reach: those that are open at once, and those to come. A
// box that cannot take it on loses its network, and is stopped for that.
func (n *networks) set(next rules) error {
	if _, err := next.policy.Compile(); err != nil {
		return err // nothing has changed
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	moved := !next.proxy.Equal(n.rules.proxy)
	if moved {
		n.dialer = &egress.Dialer{Proxy: next.proxy}
	}
	n.rules = next
	var errs []error
	for j := range n.jails {
		if moved {
			j.SetDialer(n.dialer)
		}
		// What is forbidden from now on goes first.
		for _, err := range []error{j.SetPolicy(next.policy), j.SetCredentials(n.with(j.variables, j.box))} {
			if errors.Is(err, netjail.ErrNoAuthority) {
				n.log.Info("a box cannot have TLS opened that was started without; the next one of its session can", "box", j.box)
			} else if err != nil {
				j.Fail(fmt.Errorf("the new network rules could not be set: %w", err))
				errs = append(errs, fmt.Errorf("box %s is stopped, as it would go on under the old rules: %w", j.box, err))
			}
		}
	}
	return errors.Join(errs...)
}

// with returns the operator's credentials and a session's variables. Names that both
// have are the operator's. The caller holds mu.
func (n *networks) with(variables []worker.Variable, box string) []netjail.Credential {
	all := slices.Clone(n.rules.credentials)
	for _, v := range variables {
		if slices.ContainsFunc(n.rules.credentials, func(c netjail.Credential) bool { return c.Name == v.Name }) {
			n.log.Warn("a variable of a session's vault is left out: there is a credential of that name here", "box", box, "name", v.Name)
			continue
		}
		if len(all) == netjail.CredentialsMax {
			n.log.Warn("variables of a session's vaults are left out: a box can have no more credentials", "box", box, "name", v.Name)
			break
		}
		c := netjail.Credential{Name: v.Name, Anywhere: v.Hosts == nil, Value: v.Value, Where: netjail.Where{Header: v.Header, Body: v.Body}}
		for _, host := range v.Hosts {
			if _, err := egress.ParsePattern(egress.AllowedHost(host)); err != nil {
				n.log.Warn("a host of a variable is left out", "box", box, "name", v.Name, "error", err)
				continue
			}
			c.Hosts = append(c.Hosts, egress.AllowedHost(host))
		}
		if len(c.Hosts) > 0 || c.Anywhere {
			all = append(all, c)
		}
	}
	return all
}

// Open implements [worker.Networks].
func (n *networks) Open(box string, variables []worker.Variable, record func(audit.Record) error) (worker.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	opened, err := netjail.New(netjail.Options{
		Box: box, Policy: n.rules.policy, Credentials: n.with(variables, box), Dialer: n.dialer, Memory: n.memory, Log: n.log,
		Record: func(d netjail.Decision) error { return record(entry(d)) },
	})
	if err != nil {
		return nil, err
	}
	j := &jail{Jail: opened, of: n, box: box, variables: variables, dir: filepath.Join(n.dir, box)}
	if err = os.Mkdir(j.dir, 0o700); err == nil {
		j.files, err = opened.Files(j.dir, n.bundle)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close(), os.RemoveAll(j.dir))
	}
	n.jails[j] = struct{}{}
	return j, nil
}

// jail is a netjail as a worker takes it.
type jail struct {
	*netjail.Jail
	of  *networks
	box string

	variables []worker.Variable // of the session

	dir   string
	files map[string]string
}

func (j *jail) Files() map[string]string  { return j.files }
func (j *jail) Redact(text string) string { return string(j.Jail.Redact([]byte(text))) }

func (j *jail) Denials() (all []string) {
	for _, d := range j.Jail.Denials() {
		text := d.Text
		if d.Count > 1 {
			text += fmt.Sprintf(" (%d times)", d.Count)
		}
		all = append(all, text)
	}
	return all
}

func (j *jail) Close() error {
	j.of.mu.Lock()
	delete(j.of.jails, j)
	j.of.mu.Unlock()
	return errors.Join(j.Jail.Close(), os.RemoveAll(j.dir))
}

// entry is a decision as the audit record has it.
func entry(d netjail.Decision) audit.Record {
	r := audit.Record{
		Action: audit.EgressDecision, Session: d.Session, Call: d.Call, Start: d.Time, Outcome: "denied", Detail: d.Reason,
		Attrs: map[string]string{"box": d.Box, "about": string(d.Action)},
	}
	if d.Allow {
		r.Outcome = "allowed"
	}
	attrs := map[string]string{
		"protocol": d.Protocol, "host": d.Host, "rule": d.Rule, "method": d.Method, "path": d.Path,
		"credential": d.Credential, "policy": d.Policy,
	}
	if d.Port != 0 {
		attrs["port"] = strconv.Itoa(int(d.Port))
	}
	switch d.Action {
	case netjail.ActionEnd:
		r.Action = audit.EgressEnd
		attrs["sent_bytes"], attrs["received_bytes"] = strconv.FormatInt(d.Sent, 10), strconv.FormatInt(d.Received, 10)
	case netjail.ActionPolicy:
		r.Action = audit.EgressPolicy
	case netjail.ActionCredential:
		if d.Allow {
			r.Action = audit.CredentialUse
		}
	}
	if attrs["protocol"] == "" {
		attrs["protocol"] = "any"
	}
	for name, value := range attrs {
		if value != "" {
			r.Attrs[name] = value
		}
	}
	return r
}
