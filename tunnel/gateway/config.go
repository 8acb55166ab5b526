package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/settings"
)

// A Config is gateway.yaml. docs/gateway.yaml is an example with every setting. Paths
// that are not absolute count from the directory of the file.
type Config struct {
	Tunnel  Tunnel `yaml:"tunnel"`
	TLS     TLS    `yaml:"tls"`
	Replica string `yaml:"replica"` // this gateway's name among those of the tunnel; default random

	Data   string            `yaml:"data"`   // the gateway's own directory; default bailey-gateway
	Listen string            `yaml:"listen"` // for /healthz, /readyz and /metrics; empty for none
	Drain  settings.Duration `yaml:"drain"`  // for calls under way once the gateway is to stop; default 30s
	Log    string            `yaml:"log-level"`
	Audit  Audit             `yaml:"audit"`

	// What holds for each route that says nothing else.
	Settings `yaml:",inline"`

	Routes map[string]*Route `yaml:"routes"`

	// Warnings are what is odd about the file, in lines for a person.
	Warnings []string `yaml:"-"`
}

// Tunnel says which tunnel is served, and where its edges are.
type Tunnel struct {
	ID        string `yaml:"id"`         // informative
	Server    string `yaml:"server"`     // the plane's address; informative
	Domain    string `yaml:"domain"`     // what is before it in a host is the route
	TokenFile string `yaml:"token-file"` // holds the tunnel token; read again at each attachment
	Edges     []Edge `yaml:"edges"`      // where to begin; an edge names others
	Protocol  string `yaml:"protocol"`   // auto, quic or tcp; default auto
	Links     int    `yaml:"links"`      // how many edges to be attached to at a time; default 2
}

// An Edge is where the tunnel is entered from inside. In the file it can be its address
// alone, host:port, as a string.
type Edge struct {
	ID         string   `yaml:"id"`          // informative
	Addresses  []string `yaml:"addresses"`   // host:port
	ServerName string   `yaml:"server-name"` // in its certificate; default the host of the first address
	CA         string   `yaml:"ca"`          // a file with who may have signed that; default the authorities of this host
}

// TLS is the inner TLS: the pair that proves this gateway to the platform.
type TLS struct {
	Cert string `yaml:"cert"` // a file with the certificate
	Key  string `yaml:"key"`  // a file with its key

	// With the CA at hand the certificate is renewed by the gateway itself.
	CACert      string            `yaml:"ca-cert"`
	CAKey       string            `yaml:"ca-key"`
	Life        settings.Duration `yaml:"life"`         // of a renewed certificate; default 90d
	RenewBefore settings.Duration `yaml:"renew-before"` // its expiry; default 30d
}

// Audit says what the record of calls keeps, and where it goes: to audit.jsonl in the
// data directory, and to what else is listed.
type Audit struct {
	Off       bool              `yaml:"off"`       // calls are not put on record
	Arguments string            `yaml:"arguments"` // none, hash (the default) or full
	Sinks     []string          `yaml:"sinks"`     // see sink.Open
	Retention settings.Duration `yaml:"retention"` // how old a record gets before it is removed; 0 keeps all
}

// Settings are what may differ from one route to another.
type Settings struct {
	AllowedIPs     []string `yaml:"allowed-ips"`     // addresses and ranges; default private ones
	AnyIP          bool     `yaml:"any-ip"`          // whatever a name leads to
	Host           string   `yaml:"host"`            // what the server is told as Host: preserve (the default) or rewrite
	UpstreamTLS    Trust    `yaml:"upstream-tls"`    // for servers at https
	Timeouts       Timeouts `yaml:"timeouts"`        // of calls
	Limits         Limits   `yaml:"limits"`          // of what is taken
	Tools          Tools    `yaml:"tools"`           // which may be called
	Headers        Headers  `yaml:"headers"`         // which are changed
	Auth           Auth     `yaml:"auth"`            // who may call
	StickySessions bool     `yaml:"sticky-sessions"` // a session's calls have to come to this gateway
}

// Trust is which servers are trusted, and what they are shown.
type Trust struct {
	CA         string `yaml:"ca"`          // a file with authorities
	SystemCAs  bool   `yaml:"system-cas"`  // those of this host as well
	Cert       string `yaml:"cert"`        // a client certificate to show
	Key        string `yaml:"key"`         // its key
	ServerName string `yaml:"server-name"` // to ask for and to verify; default the upstream's
}

// Timeouts bound what is waited for. "never" waits.
type Timeouts struct {
	Connect  settings.Duration `yaml:"connect"`  // to the server, TLS included; default 10s
	Response settings.Duration `yaml:"response"` // for its answer to begin; default 1h
	Idle     settings.Duration `yaml:"idle"`     // for more of an answer, a stream's next event; default 12h
}

// Limits bound what is taken.
type Limits struct {
	Body  settings.Size `yaml:"body"`  // of a request; default 10MiB
	Calls int           `yaml:"calls"` // under way at a time, open streams included; default 1000
	Rate  float64       `yaml:"rate"`  // calls a second, without what MCP needs to set a session up; default any
	Burst int           `yaml:"burst"` // how many may come at once; default the rate, at least 1
}

// Tools are patterns of names, in which * stands for any text.
type Tools struct {
	Allow []string `yaml:"allow"` // default all
	Deny  []string `yaml:"deny"`  // goes before Allow
}

// Headers are rules for the fields of requests and of answers.
type Headers struct {
	Request  HeaderRules `yaml:"request"`
	Response HeaderRules `yaml:"response"`
}

// HeaderRules change the fields of a head. A field that is set replaces what was sent.
type HeaderRules struct {
	Remove   []string          `yaml:"remove"`
	Set      map[string]string `yaml:"set"`
	SetFiles map[string]string `yaml:"set-files"` // the value is in the file of this name
}

// Auth says who may call. Without it that is everybody who can open a stream of the
// tunnel's: the platform, and edges. With several, any is enough.
type Auth struct {
	TokenFiles []string `yaml:"token-files"` // each holds a bearer token
	JWT        JWT      `yaml:"jwt"`
	Forward    *bool    `yaml:"forward"` // pass Authorization on to the server; default true for jwt, false for token-files alone

	// ResourceMetadata is the address that a caller without a token is sent to
	// (RFC 9728).
	ResourceMetadata string `yaml:"resource-metadata"`
}

// JWT says which tokens of an issuer are good.
type JWT struct {
	Issuer   string            `yaml:"issuer"`
	Audience string            `yaml:"audience"`
	JWKS     string            `yaml:"jwks"`      // where the issuer's keys are; default what the issuer publishes
	JWKSFile string            `yaml:"jwks-file"` // or a file with them
	Scopes   []string          `yaml:"scopes"`    // all of which the token has to have
	Claims   map[string]string `yaml:"claims"`    // claims and what they have to be
}

// A Route is one private server. In the file it can be the upstream alone, as a string.
type Route struct {
	Upstream string `yaml:"upstream"` // http://host:port, https://host:port or unix:/path

	// Or a program that speaks MCP on its standard streams.
	Command []string          `yaml:"command"`
	Dir     string            `yaml:"dir"`      // where it runs; default the data directory, or / for another user's
	Env     map[string]string `yaml:"env"`      // of it; besides these it gets PATH, HOME, LANG and TZ
	EnvFrom map[string]string `yaml:"env-from"` // variables whose values are in files
	Process Process           `yaml:"process"`

	Settings `yaml:",inline"`

	lax bool // of mcp-proxy's file, which lets one configure a server that is never trusted
}

// Process bounds the programs of a route.
type Process struct {
	Sessions int               `yaml:"sessions"` // at a time, each with a program of its own; default 16
	Idle     settings.Duration `yaml:"idle"`     // how long one lives that nobody asks; default 30m
	Memory   settings.Size     `yaml:"memory"`   // of address space; default any
	CPU      settings.Duration `yaml:"cpu"`      // time of processors; default any
	Files    int               `yaml:"files"`    // open at a time; default 1024
	User     string            `yaml:"user"`     // to run as; default the gateway's own, but for a gateway that is root, which has to be told
}

// example is where all settings are.
const example = "docs/gateway.yaml"

// UnmarshalYAML reads an edge, or the address of one.
func (e *Edge) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*e = Edge{Addresses: []string{node.Value}}
		return nil
	}
	type plainEdge Edge
	if err := settings.Unknown(node, plainEdge{}); err != nil {
		return err
	}
	return node.Decode((*plainEdge)(e))
}

// UnmarshalYAML reads a route, or the upstream of one that says nothing else.
func (r *Route) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*r = Route{Upstream: node.Value}
		return nil
	}
	type plainRoute Route
	if err := settings.Unknown(node, plainRoute{}); err != nil {
		return err
	}
	return node.Decode((*plainRoute)(r))
}

// Load reads a configuration file: ours, or one of mcp-proxy's, which is told by its
// listen_addr. What is wrong with it is a [settings.Invalid].
func Load(path string) (*Config, error) {
	text, err := settings.ReadFile(path)
	if err != nil {
		return nil, &settings.Invalid{Path: path, Problems: []string{err.Error()}}
	}
	c, problems := parse(text)
	if len(problems) > 0 {
		return nil, &settings.Invalid{Path: path, Problems: problems}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, &settings.Invalid{Path: path, Problems: []string{err.Error()}}
	}
	c.resolve(dir)
	return c, nil
}

func parse(text []byte) (*Config, []string) {
	if isProxyFile(text) {
		return parseProxyFile(text)
	}
	// Once strictly, to find what no setting means.
	c := new(Config)
	root, problems := settings.Parse(text, c, example)
	if len(problems) > 0 {
		return nil, problems
	}
	if root == nil {
		return c, nil
	}
	// And then each route anew, over what holds for all of them.
	for name, node := range routeNodes(root) {
		r := Route{Settings: c.Settings.clone()}
		if err := node.Decode(&routeOver{&r}); err != nil {
			return nil, settings.Problems(err, example)
		}
		c.Routes[name] = &r
	}
	return c, nil
}

// A routeOver decodes a route and leaves what it does not say as it was.
type routeOver struct{ *Route }

func (r *routeOver) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		r.Upstream = node.Value
		return nil
	}
	type plainRoute Route
	return node.Decode((*plainRoute)(r.Route))
}

func routeNodes(root *yaml.Node) map[string]*yaml.Node {
	nodes := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "routes" {
			continue
		}
		routes := root.Content[i+1]
		for routes.Kind == yaml.AliasNode {
			routes = routes.Alias
		}
		for j := 0; j+1 < len(routes.Content); j += 2 {
			nodes[routes.Content[j].Value] = routes.Content[j+1]
		}
	}
	return nodes
}

// clone copies what decoding into a copy would otherwise change.
func (s Settings) clone() Settings {
	copyMap := func(m map[string]string) map[string]string {
		if m == nil {
			return nil
		}
		c := make(map[string]string, len(m))
		for k, v := range m {
			c[k] = v
		}
		return c
	}
	for _, rules := range []*HeaderRules{&s.Headers.Request, &s.Headers.Response} {
		rules.Set, rules.SetFiles = copyMap(rules.Set), copyMap(rules.SetFiles)
	}
	s.Auth.JWT.Claims = copyMap(s.Auth.JWT.Claims)
	return s
}

// resolve makes the paths of a file absolute.
func (c *Config) resolve(dir string) {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	values := func(m map[string]string) {
		for k, v := range m {
			abs(&v)
			m[k] = v
		}
	}
	for _, p := range []*string{&c.Tunnel.TokenFile, &c.TLS.Cert, &c.TLS.Key, &c.TLS.CACert, &c.TLS.CAKey, &c.Data} {
		abs(p)
	}
	for i := range c.Tunnel.Edges {
		abs(&c.Tunnel.Edges[i].CA)
	}
	for _, r := range c.Routes {
		for _, p := range []*string{&r.UpstreamTLS.CA, &r.UpstreamTLS.Cert, &r.UpstreamTLS.Key, &r.Auth.JWT.JWKSFile, &r.Dir} {
			abs(p)
		}
		values(r.Headers.Request.SetFiles)
		values(r.Headers.Response.SetFiles)
		values(r.EnvFrom)
		files := make([]string, len(r.Auth.TokenFiles))
		for i, f := range r.Auth.TokenFiles {
			abs(&f)
			files[i] = f
		}
		r.Auth.TokenFiles = files
	}
}

// files are the files that the configuration names and that are read with it, but for
// those of the gateway's own certificate.
func (c *Config) files() (all []string) {
	add := func(files ...string) {
		for _, f := range files {
			if f != "" {
				all = append(all, f)
			}
		}
	}
	for _, r := range c.Routes {
		add(r.UpstreamTLS.CA, r.UpstreamTLS.Cert, r.UpstreamTLS.Key, r.Auth.JWT.JWKSFile)
		add(r.Auth.TokenFiles...)
		for _, m := range []map[string]string{r.Headers.Request.SetFiles, r.Headers.Response.SetFiles, r.EnvFrom} {
			for _, f := range m {
				add(f)
			}
		}
	}
	return all
}

// Fingerprint names a configuration: two that are the same have the same. It holds no
// secret.
func (c *Config) Fingerprint() string {
	text, err := yaml.Marshal(c)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func problemf(problems *[]string, format string, args ...any) {
	*problems = append(*problems, fmt.Sprintf(format, args...))
}
