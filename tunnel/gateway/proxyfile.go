package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/settings"
)

// A proxyFile is the configuration of mcp-proxy (/etc/mcp-gateway/config.yaml), read as
// it is, so that whoever has one can use it here.
type proxyFile struct {
	ListenAddr      string             `yaml:"listen_addr"`
	LogLevel        string             `yaml:"log_level"`
	ShutdownTimeout *settings.Duration `yaml:"shutdown_timeout"`
	TunnelDomain    string             `yaml:"tunnel_domain"`
	TLS             struct {
		CertFile string `yaml:"cert_file"`
		KeyFile  string `yaml:"key_file"`
	} `yaml:"tls"`
	Routes   map[string]string `yaml:"routes"`
	Upstream struct {
		AllowedIPs          []string `yaml:"allowed_ips"`
		DisableIPValidation bool     `yaml:"disable_ip_validation"`
		TLS                 struct {
			CAFile           string `yaml:"ca_file"`
			IncludeSystemCAs bool   `yaml:"include_system_cas"`
		} `yaml:"tls"`
	} `yaml:"upstream"`
}

// isProxyFile tells mcp-proxy's file from ours by the names at its top, of which ours has
// none.
func isProxyFile(text []byte) bool {
	var top map[string]yaml.Node
	if yaml.Unmarshal(text, &top) != nil {
		return false
	}
	for _, name := range []string{"listen_addr", "tunnel_domain", "shutdown_timeout", "log_level", "upstream"} {
		if _, ok := top[name]; ok {
			return true
		}
	}
	return false
}

// intoRoutes is what the YAML library says of routes that are no map.
var intoRoutes = regexp.MustCompile(`^(line \d+: cannot unmarshal !!seq)(?: .*)? into map\[string\]string$`)

func parseProxyFile(text []byte) (*Config, []string) {
	var f proxyFile
	root, problems := settings.Parse(text, &f, "the documentation of mcp-proxy")
	for i, p := range problems {
		if m := intoRoutes.FindStringSubmatch(p); m != nil {
			problems[i] = m[1] + " into map[string]string: routes is a map of name: scheme://host:port"
		}
	}
	if root == nil || len(problems) > 0 {
		return new(Config), problems
	}
	c := &Config{
		Log:    f.LogLevel,
		Tunnel: Tunnel{Domain: f.TunnelDomain},
		TLS:    TLS{Cert: f.TLS.CertFile, Key: f.TLS.KeyFile},
		Routes: make(map[string]*Route),
		Settings: Settings{
			AllowedIPs: f.Upstream.AllowedIPs, AnyIP: f.Upstream.DisableIPValidation,
			UpstreamTLS: Trust{CA: f.Upstream.TLS.CAFile, SystemCAs: f.Upstream.TLS.IncludeSystemCAs},
		},
	}
	if f.ShutdownTimeout != nil {
		c.Drain = *f.ShutdownTimeout
	}
	if f.ListenAddr == "" {
		problemf(&problems, "listen_addr is required by mcp-proxy's format (nothing listens there: this gateway dials out by itself)")
	}
	if len(f.Upstream.AllowedIPs) > 0 && f.Upstream.DisableIPValidation {
		problemf(&problems, "upstream: allowed_ips and disable_ip_validation exclude each other")
	}
	names := make([]string, 0, len(f.Routes))
	for name := range f.Routes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		to := f.Routes[name]
		u, err := parseUpstream(to)
		if err != nil || u.scheme == "unix" {
			problemf(&problems, "routes: %s: invalid upstream (must be scheme://host:port)", name)
			continue
		}
		if u.scheme == "https" && f.Upstream.TLS.CAFile == "" && !f.Upstream.TLS.IncludeSystemCAs {
			c.Warnings = append(c.Warnings, fmt.Sprintf("routes: %s: no server at https is trusted: upstream.tls has neither ca_file nor include_system_cas", name))
		}
		c.Routes[name] = &Route{Upstream: to, Settings: c.Settings, lax: true}
	}
	if f.TunnelDomain == "" && slices.ContainsFunc(names, func(name string) bool { return !strings.Contains(name, ".") }) {
		problemf(&problems, "tunnel_domain is required for routes that are no whole host names")
	}
	return c, problems
}

// defaultDrain is how long calls under way may take once the gateway is to stop.
const defaultDrain = 30 * time.Second
