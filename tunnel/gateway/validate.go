package gateway

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/bailey-platform/bailey/settings"
)

// What holds where a file says nothing.
const (
	defaultData        = "bailey-gateway"
	defaultLife        = 90 * 24 * time.Hour
	defaultRenewBefore = 30 * 24 * time.Hour
	defaultConnect     = 10 * time.Second
	defaultResponse    = time.Hour
	defaultIdle        = 12 * time.Hour
	defaultBody        = 10 << 20
	defaultCalls       = 1000
	defaultSessions    = 16
	defaultProcessIdle = 30 * time.Minute
	defaultFiles       = 1024
)

// Bounds of a file.
const (
	routesMax = 1000
	bodyLimit = 1 << 30
)

// SetDefaults fills in what a file does not say.
func (c *Config) SetDefaults() {
	c.Data = cmp.Or(c.Data, defaultData)
	c.Drain = cmp.Or(c.Drain, settings.Duration(defaultDrain))
	c.Log = cmp.Or(c.Log, "info")
	c.Audit.Arguments = cmp.Or(c.Audit.Arguments, "hash")
	c.TLS.Life = cmp.Or(c.TLS.Life, settings.Duration(defaultLife))
	c.TLS.RenewBefore = cmp.Or(c.TLS.RenewBefore, settings.Duration(defaultRenewBefore))
	c.Tunnel.Protocol = cmp.Or(c.Tunnel.Protocol, "auto")
	c.Tunnel.Domain = strings.ToLower(strings.TrimSuffix(c.Tunnel.Domain, "."))
	for _, r := range c.Routes {
		if r.AllowedIPs == nil {
			r.AllowedIPs = defaultAllowed
		}
		r.Host = cmp.Or(r.Host, "preserve")
		r.Timeouts.Connect = cmp.Or(r.Timeouts.Connect, settings.Duration(defaultConnect))
		r.Timeouts.Response = cmp.Or(r.Timeouts.Response, settings.Duration(defaultResponse))
		r.Timeouts.Idle = cmp.Or(r.Timeouts.Idle, settings.Duration(defaultIdle))
		r.Limits.Body = cmp.Or(r.Limits.Body, defaultBody)
		r.Limits.Calls = cmp.Or(r.Limits.Calls, defaultCalls)
		r.Limits.Burst = cmp.Or(r.Limits.Burst, max(int(r.Limits.Rate), 1))
		r.Process.Sessions = cmp.Or(r.Process.Sessions, defaultSessions)
		r.Process.Idle = cmp.Or(r.Process.Idle, settings.Duration(defaultProcessIdle))
		r.Process.Files = cmp.Or(r.Process.Files, defaultFiles)
	}
}

// Validate says what cannot be meant, of a configuration whose defaults are set. It looks
// at no file but the configuration itself.
func (c *Config) Validate() error {
	var problems []string
	wrong := func(format string, args ...any) { problemf(&problems, format, args...) }
	if len(c.Routes) > routesMax {
		wrong("routes: %d, and %d are the most", len(c.Routes), routesMax)
	}
	if c.Tunnel.Domain != "" && !isHost(c.Tunnel.Domain) {
		wrong("tunnel.domain %q: %v", c.Tunnel.Domain, errName)
	}
	for _, edge := range c.Tunnel.Edges {
		if len(edge.Addresses) == 0 {
			wrong("tunnel.edges: an edge has no addresses")
		}
		for _, a := range edge.Addresses {
			if host, port, err := net.SplitHostPort(a); err != nil || port == "" || host == "" {
				wrong("tunnel.edges: %q is not host:port; an edge of its own has port 8443 unless it was told otherwise, and that of a server 8485", a)
			}
		}
	}
	if c.Tunnel.Links < 0 || c.Tunnel.Links > 8 {
		wrong("tunnel.links: 1 to 8")
	}
	if !slices.Contains([]string{"auto", "quic", "tcp"}, c.Tunnel.Protocol) {
		wrong("tunnel.protocol %q is not auto, quic or tcp", c.Tunnel.Protocol)
	}
	if c.TLS.Cert == "" || c.TLS.Key == "" {
		wrong("tls: cert and key are required: the pair that proves this gateway; `bailey gateway init` makes one")
	}
	if (c.TLS.CACert == "") != (c.TLS.CAKey == "") {
		wrong("tls: ca-cert and ca-key are needed together, for renewals")
	}
	if c.TLS.Life < settings.Duration(time.Hour) || c.TLS.RenewBefore < 0 || c.TLS.RenewBefore >= c.TLS.Life {
		wrong("tls: life is at least 1h, and renew-before less than life")
	}
	if !slices.Contains([]string{"none", "hash", "full"}, c.Audit.Arguments) {
		wrong("audit.arguments %q is not none, hash or full", c.Audit.Arguments)
	}
	if new(slog.Level).UnmarshalText([]byte(c.Log)) != nil {
		wrong("log-level %q is not debug, info, warn or error", c.Log)
	}
	if c.Drain < 0 {
		wrong("drain: a time, and not never")
	}
	if c.Replica != "" && (len(c.Replica) > 63 || strings.Trim(c.Replica, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "") {
		wrong("replica %q: letters, digits, hyphens, underscores and dots, at most 63", c.Replica)
	}
	if len(c.Routes) == 0 {
		wrong("routes: there are none")
	}
	hosts := make(map[string]string)
	for _, name := range sortedNames(c.Routes) {
		lower := routeName(name)
		if !isHost(lower) {
			wrong("routes: %q: a route is named as the first part of its host, or as the whole host: letters, digits and hyphens", name)
		} else if c.Tunnel.Domain == "" && !strings.Contains(lower, ".") {
			wrong("routes: %s: tunnel.domain is needed for routes that are no whole host names", name)
		}
		if other, ok := hosts[lower]; ok {
			wrong("routes: %s and %s are the same", other, name)
		}
		hosts[lower] = name
		for _, problem := range c.Routes[name].problems() {
			wrong("routes: %s: %s", name, problem)
		}
	}
	if len(problems) > 0 {
		return &settings.Invalid{Problems: problems}
	}
	return nil
}

// problems are what cannot be meant of a route.
func (r *Route) problems() (problems []string) {
	wrong := func(format string, args ...any) { problemf(&problems, format, args...) }
	switch {
	case r.Upstream == "" && len(r.Command) == 0:
		wrong("it has neither an upstream nor a command")
	case r.Upstream != "" && len(r.Command) > 0:
		wrong("it has an upstream and a command: one of them")
	case r.Upstream != "":
		if _, err := parseUpstream(r.Upstream); err != nil {
			wrong("%v", err)
		} else if r.UpstreamTLS.CA == "" && !r.UpstreamTLS.SystemCAs && strings.HasPrefix(r.Upstream, "https:") && !r.lax {
			wrong("upstream-tls: ca or system-cas is needed to trust a server at https")
		}
	}
	if _, err := parseAllowed(r.AllowedIPs); err != nil {
		wrong("allowed-ips: %v", err)
	}
	if r.Host != "preserve" && r.Host != "rewrite" {
		wrong("host %q is not preserve or rewrite", r.Host)
	}
	if (r.UpstreamTLS.Cert == "") != (r.UpstreamTLS.Key == "") {
		wrong("upstream-tls: cert and key are needed together")
	}
	if _, err := newToolRules(r.Tools.Allow, r.Tools.Deny); err != nil {
		wrong("tools: %v", err)
	}
	if r.Limits.Body < 0 || r.Limits.Body > bodyLimit {
		wrong("limits.body: at most 1GiB")
	}
	if r.Limits.Calls < 0 || r.Limits.Rate < 0 || r.Limits.Burst < 0 || r.Process.Sessions < 0 || r.Process.Files < 16 {
		wrong("limits and process: numbers above 0; files at least 16")
	}
	if r.Timeouts.Connect < 0 {
		wrong("timeouts.connect: a time, and not never")
	}
	for which, rules := range map[string]HeaderRules{"request": r.Headers.Request, "response": r.Headers.Response} {
		for _, problem := range rules.problems() {
			wrong("headers.%s: %s", which, problem)
		}
	}
	for _, problem := range r.Auth.problems() {
		wrong("auth: %s", problem)
	}
	slices.Sort(problems)
	return problems
}

func (h HeaderRules) problems() (problems []string) {
	check := func(name string) {
		if !httpguts.ValidHeaderFieldName(name) {
			problemf(&problems, "%q is not the name of a header", name)
		} else if k := kindOf([]byte(name)); k == hopByHop || k == connection || k == contentLength || k == transferEncoding || k == host || k == trailer || k == te || k == theirs || k == keepAlive || k == expect {
			problemf(&problems, "%s is HTTP's own, or the gateway's", name)
		}
	}
	for _, name := range h.Remove {
		check(name)
	}
	for name, value := range h.Set {
		check(name)
		if !httpguts.ValidHeaderFieldValue(value) {
			problemf(&problems, "%s: its value has characters that no header can have", name)
		}
	}
	for name := range h.SetFiles {
		check(name)
		if _, ok := h.Set[name]; ok {
			problemf(&problems, "%s is set twice", name)
		}
	}
	return problems
}

func (a *Auth) problems() (problems []string) {
	j := &a.JWT
	if j.Issuer == "" && (j.Audience != "" || j.JWKS != "" || j.JWKSFile != "" || len(j.Scopes) > 0 || len(j.Claims) > 0) {
		problemf(&problems, "jwt.issuer is needed")
	}
	if j.Issuer != "" && j.Audience == "" {
		problemf(&problems, "jwt.audience is needed: a token for somebody else would be good here otherwise")
	}
	if j.JWKS != "" && j.JWKSFile != "" {
		problemf(&problems, "jwt.jwks and jwt.jwks-file: one of them")
	}
	for _, s := range []string{j.JWKS, j.Issuer} {
		if u, err := url.Parse(s); s != "" && j.JWKSFile == "" && (err != nil || u.Scheme != "https" && !isLoopback(u.Hostname()) || u.Host == "") {
			problemf(&problems, "jwt: %q is not an address at https", s)
		}
	}
	return problems
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// A target is an upstream's address, taken apart.
type target struct {
	scheme string // http, https or unix
	host   string
	port   uint16
	path   string // of a socket
}

func parseUpstream(s string) (target, error) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		p = strings.TrimPrefix(p, "//")
		if !path.IsAbs(p) || len(p) > 100 {
			return target{}, fmt.Errorf("invalid upstream %q: want unix: and the absolute path of a socket, of at most 100 characters", s)
		}
		return target{scheme: "unix", path: p}, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return target{}, fmt.Errorf("invalid upstream %.100q (must be scheme://host:port)", s)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return target{}, fmt.Errorf("invalid upstream %.100q: the port is a number from 1 to 65535", s)
	}
	return target{scheme: u.Scheme, host: u.Hostname(), port: uint16(port)}, nil
}

func sortedNames(routes map[string]*Route) []string {
	names := make([]string, 0, len(routes))
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// routeName is the name of a route, or the whole host, as it is compared.
func routeName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
