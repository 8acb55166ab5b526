package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/settings"
)

// drain is how long calls under way may take once the gateway is to stop.
func (s *state) drain() time.Duration { return time.Duration(s.cfg.Drain) }

// close lets go of what the state's routes hold.
func (s *state) close() {
	for _, r := range s.routes {
		r.close()
	}
}

// newState reads what a configuration names and makes its routes. It connects to nothing.
func (g *Gateway) newState(c *Config) (*state, error) {
	s := &state{cfg: c, routes: make(map[string]*route)}
	if c.Tunnel.Domain != "" {
		s.suffix = "." + c.Tunnel.Domain
	}
	var problems []string
	for _, name := range sortedNames(c.Routes) {
		r, wrong := g.newRoute(c, routeName(name), c.Routes[name])
		for _, problem := range wrong {
			problemf(&problems, "routes: %s: %s", name, problem)
		}
		r.key = name
		s.routes[r.name] = r
	}
	if len(problems) > 0 {
		s.close()
		return nil, &settings.Invalid{Problems: problems}
	}
	return s, nil
}

// newRoute makes a route, and says all that is wrong with it. One with which something is
// wrong is good for nothing but to be closed.
func (g *Gateway) newRoute(c *Config, name string, from *Route) (r *route, problems []string) {
	r = &route{
		name: name, rewriteHost: from.Host == "rewrite", bodyMax: int64(from.Limits.Body),
		response: time.Duration(from.Timeouts.Response), idle: time.Duration(from.Timeouts.Idle),
		sticky: from.StickySessions || len(from.Command) > 0, recorded: g.audit != nil && !c.Audit.Off, slots: int64(from.Limits.Calls), taken: new(atomic.Int64),
		metrics: g.metrics.route(name),
	}
	wrong := func(where string, err error) {
		if err != nil {
			problemf(&problems, "%s%v", where, err)
		}
	}
	var err error
	r.tools, err = newToolRules(from.Tools.Allow, from.Tools.Deny)
	wrong("tools: ", err)
	r.request, err = newFieldRules(from.Headers.Request)
	wrong("headers.request: ", err)
	r.answer, err = newFieldRules(from.Headers.Response)
	wrong("headers.response: ", err)
	r.auth, err = newAuthRule(from.Auth)
	wrong("auth: ", err)
	if from.Limits.Rate > 0 {
		r.limiter = rate.NewLimiter(rate.Limit(from.Limits.Rate), from.Limits.Burst)
	}
	if len(from.Command) > 0 {
		r.stdio, err = g.newStdio(c, name, from)
	} else {
		r.upstream, err = g.newUpstream(from)
	}
	wrong("", err)
	return r, problems
}

func (g *Gateway) newUpstream(from *Route) (*upstream, error) {
	to, err := parseUpstream(from.Upstream)
	if err != nil {
		return nil, err
	}
	rule, err := parseAllowed(from.AllowedIPs)
	if err != nil {
		return nil, err
	}
	rule.off, rule.own = from.AnyIP, g.own
	u := &upstream{
		name: from.Upstream, rule: rule, dialer: g.dialer, connect: time.Duration(from.Timeouts.Connect), sweeper: g.sweeper,
	}
	if to.scheme == "unix" {
		u.unix, u.authority = to.path, "localhost"
		return u, nil
	}
	if u.host, err = egress.ParseHost(to.host); err != nil {
		return nil, err
	}
	u.port = to.port
	u.rule.named, _ = u.host.Addr()
	u.authority = net.JoinHostPort(u.host.String(), strconv.Itoa(int(to.port)))
	if port, ok := strings.CutPrefix(u.authority, u.host.String()+":"); ok && (to.scheme == "https" && port == "443" || to.scheme == "http" && port == "80") {
		u.authority = u.host.String() // as everybody writes it
	}
	if to.scheme == "https" {
		u.tls, err = newTrust(from.UpstreamTLS, to.host)
	}
	return u, err
}

// newTrust is the TLS with an upstream.
func newTrust(t Trust, host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, NextProtos: []string{"http/1.1"}, RootCAs: x509.NewCertPool()}
	if t.ServerName != "" {
		config.ServerName = t.ServerName
	}
	if t.SystemCAs {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("the authorities of this host: %w", err)
		}
		config.RootCAs = roots
	}
	if t.CA != "" {
		text, err := settings.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("authorities: %s holds no certificate in PEM", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func newFieldRules(h HeaderRules) (fieldRules, error) {
	rules := fieldRules{remove: h.Remove}
	for name, value := range h.Set {
		rules.set = append(rules.set, newField([]byte(name), []byte(value)))
	}
	for name, file := range h.SetFiles {
		value, err := readSecret(file)
		if err != nil {
			return rules, err
		}
		if !httpguts.ValidHeaderFieldValue(value) {
			return rules, fmt.Errorf("%s: the value in %s has characters that no header can have", name, file)
		}
		rules.set = append(rules.set, newField([]byte(name), []byte(value)))
	}
	return rules, nil
}

// secretMax bounds a file with one secret, in bytes.
const secretMax = 64 << 10

// readSecret reads a secret from a file, without the white space around it. Its error does
// not show it.
func readSecret(file string) (string, error) {
	text, err := settings.ReadFile(file)
	if err != nil {
		return "", err
	}
	value := strings.TrimSpace(string(text))
	if value == "" || len(value) > secretMax {
		return "", fmt.Errorf("%s is empty, or longer than %d bytes", file, secretMax)
	}
	return value, nil
}

// tooOpen returns a word of warning about a file with a secret that others can read.
func tooOpen(file string) string {
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("%s can be read by other users of this machine (mode %04o): chmod 600 it", file, info.Mode().Perm())
}
