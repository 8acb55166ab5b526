package gateway

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// settingNames are the names of all settings of a struct and those within it.
func settingNames(v any) (names []string) {
	seen := make(map[reflect.Type]bool)
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			name, rest, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if name != "" && name != "-" {
				names = append(names, name)
			}
			if name != "-" && (name != "" || strings.Contains(rest, "inline")) {
				walk(t.Field(i).Type)
			}
		}
	}
	walk(reflect.TypeOf(v))
	return names
}

func TestTheExampleHasEverySetting(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range settingNames(Config{}) {
		if !regexp.MustCompile(`(?m)^[\s#-]*` + regexp.QuoteMeta(name) + `:`).Match(text) {
			t.Errorf("docs/gateway.yaml does not show %s", name)
		}
	}
	c, err := Load("../../docs/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if isProxyFile(text) {
		t.Error("it is taken for mcp-proxy's")
	}
	// What its routes allow is what its comments say.
	const every = "anything read_page search"
	want := map[string]string{"docs": every, "issues": "read_page search", "notes": every, "files": every}
	got := make(map[string]string)
	for name, r := range c.Routes {
		rules, err := newToolRules(r.Tools.Allow, r.Tools.Deny)
		if err != nil {
			t.Fatal(err)
		}
		var may []string
		for _, tool := range []string{"anything", "delete_page", "read_page", "search"} {
			if rules.allows(tool) {
				may = append(may, tool)
			}
		}
		got[name] = strings.Join(may, " ")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

const minimal = "tunnel: {domain: d.test}\ntls: {cert: a, key: b}\n"

func TestRoutesTakeOnWhatHoldsForAll(t *testing.T) {
	t.Parallel()
	c, problems := parse([]byte(minimal + `
tools: {deny: [rm]}
headers: {request: {set: {A: all}}}
limits: {body: 1MiB, calls: 7}
routes:
  plain: http://10.0.0.1:80
  own:
    upstream: http://10.0.0.2:80
    tools: {allow: [ls]}
    limits: {body: 2MiB}
    headers: {request: {set: {A: own}}}
`))
	if problems != nil {
		t.Fatal(problems)
	}
	plain, own := c.Routes["plain"], c.Routes["own"]
	if plain.Upstream != "http://10.0.0.1:80" || plain.Limits.Body != 1<<20 || !cmp.Equal(plain.Tools.Deny, []string{"rm"}) || plain.Headers.Request.Set["A"] != "all" {
		t.Errorf("%+v", plain)
	}
	if own.Limits.Body != 2<<20 || own.Limits.Calls != 7 || !cmp.Equal(own.Tools, Tools{Allow: []string{"ls"}, Deny: []string{"rm"}}) || own.Headers.Request.Set["A"] != "own" {
		t.Errorf("%+v", own)
	}
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	route := func(more string) string { return minimal + "routes:\n  a:\n    upstream: http://10.0.0.1:80\n" + more }
	for name, c := range map[string]struct{ text, want string }{
		"unknown":             {minimal + "rutes: {}", `line 3: there is no setting "rutes" here; docs/gateway.yaml has them all`},
		"unknown in a route":  {route("    hots: x"), `there is no setting "hots" here`},
		"a secret":            {minimal + "token: x", "a secret is not written into this file"},
		"no routes":           {minimal, "there are none"},
		"no certificate":      {"routes: {a.b: http://10.0.0.1:80}", "cert and key are required"},
		"a path":              {minimal + "routes: {a: http://10.0.0.1:80/mcp}", "invalid upstream"},
		"no port":             {minimal + "routes: {a: http://10.0.0.1}", "(must be scheme://host:port)"},
		"a user":              {minimal + "routes: {a: 'http://u:p@10.0.0.1:80'}", "invalid upstream"},
		"a relative socket":   {minimal + "routes: {a: 'unix:x.sock'}", "absolute path"},
		"https without trust": {minimal + "routes: {a: 'https://10.0.0.1:443'}", "ca or system-cas is needed"},
		"a name":              {minimal + "routes: {a_b: http://10.0.0.1:80}", "letters, digits and hyphens"},
		"the same name":       {minimal + "routes: {a: http://10.0.0.1:80, A: http://10.0.0.1:80}", "are the same"},
		"a bare name":         {"tls: {cert: a, key: b}\nroutes: {a: http://10.0.0.1:80}", "tunnel.domain is needed"},
		"a range":             {route("    allowed-ips: [10.0.0.1/8]"), "bits beyond its length"},
		"no range":            {route("    allowed-ips: [all]"), "is no address"},
		"a mapped range":      {route("    allowed-ips: ['::ffff:10.0.0.0/104']"), "range of IPv4"},
		"a host mode":         {route("    host: change"), "is not preserve or rewrite"},
		"half a pair":         {route("    upstream-tls: {cert: x}"), "cert and key are needed together"},
		"two backends":        {route("    command: [x]"), "an upstream and a command"},
		"HTTP's own header":   {route("    headers: {request: {set: {Host: x}}}"), "is HTTP's own"},
		"the gateway's":       {route("    headers: {response: {set: {Bailey-Tunnel-Error: x}}}"), "or the gateway's"},
		"a header's value":    {route("    headers: {request: {set: {A: \"x\\ny\"}}}"), "characters that no header can have"},
		"no tool":             {route("    tools: {allow: []}"), "allow is empty"},
		"no tool for all":     {"tools: {allow: []}\n" + route(""), "allow is empty"},
		"a pattern":           {route("    tools: {allow: ['']}"), "is no name of a tool"},
		"an audience":         {route("    auth: {jwt: {issuer: https://i.test}}"), "jwt.audience is needed"},
		"an issuer":           {route("    auth: {jwt: {issuer: 'http://i.test', audience: a}}"), "is not an address at https"},
		"arguments":           {route("") + "audit: {arguments: some}", "is not none, hash or full"},
		"an edge":             {route("") + "edges: []", `there is no setting "edges"`},
		"an edge's address":   {strings.Replace(route(""), "domain: d.test", "domain: d.test, edges: [edge]", 1), "is not host:port"},
		"drain":               {route("") + "drain: never", "drain: a time"},
	} {
		got, problems := parse([]byte(c.text))
		all := strings.Join(problems, "\n")
		if len(problems) == 0 {
			got.SetDefaults()
			if err := got.Validate(); err != nil {
				all = err.Error()
			}
		}
		if !strings.Contains(all, c.want) {
			t.Errorf("%s: %q, want %q", name, all, c.want)
		}
	}
}

// The examples of mcp-proxy's documentation, as far as a gateway reads them.
func TestProxyFile(t *testing.T) {
	t.Parallel()
	const good = `listen_addr: ":8080"
log_level: debug
shutdown_timeout: 45s
tunnel_domain: abcd1234.tunnel.anthropic.com
tls:
  cert_file: /data/tls.crt
  key_file: /data/tls.key
routes:
  echo: http://10.1.2.3:9000
  docs.abcd1234.tunnel.anthropic.com: https://docs.internal:8443
upstream:
  allowed_ips:
    - 10.0.0.0/8
    - 172.20.0.1
  tls:
    ca_file: /etc/ca.pem
    include_system_cas: true
`
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Tunnel.Domain != "abcd1234.tunnel.anthropic.com" || c.Log != "debug" || time.Duration(c.Drain) != 45*time.Second || c.TLS.Cert != "/data/tls.crt" || c.TLS.Key != "/data/tls.key" {
		t.Errorf("%+v", c)
	}
	echo := c.Routes["echo"]
	if echo == nil || echo.Upstream != "http://10.1.2.3:9000" || !cmp.Equal(echo.AllowedIPs, []string{"10.0.0.0/8", "172.20.0.1"}) || echo.UpstreamTLS != (Trust{CA: "/etc/ca.pem", SystemCAs: true}) || echo.Host != "preserve" {
		t.Errorf("%+v", echo)
	}
	for name, c := range map[string]struct{ text, want string }{
		"a list":         {"listen_addr: x\nroutes:\n- a\n", "line 3: must be `name: value` lines, and is a list"},
		"a path":         {"listen_addr: x\ntunnel_domain: d.test\nroutes:\n  a: http://10.0.0.1:80/mcp\n", "invalid upstream (must be scheme://host:port)"},
		"no port":        {"listen_addr: x\ntunnel_domain: d.test\nroutes:\n  a: http://10.0.0.1\n", "invalid upstream (must be scheme://host:port)"},
		"no scheme":      {"listen_addr: x\ntunnel_domain: d.test\nroutes:\n  a: 10.0.0.1:80\n", "invalid upstream (must be scheme://host:port)"},
		"both":           {"listen_addr: x\nupstream: {allowed_ips: [10.0.0.1], disable_ip_validation: true}\n", "exclude each other"},
		"a bare key":     {"listen_addr: x\nroutes:\n  a: http://10.0.0.1:80\n", "tunnel_domain is required"},
		"no listen_addr": {"tunnel_domain: d.test\n", "listen_addr is required"},
		"unknown":        {"listen_addr: x\nrutes: {}\n", `there is no setting "rutes"`},
	} {
		if _, problems := parse([]byte(c.text)); !strings.Contains(strings.Join(problems, "\n"), c.want) {
			t.Errorf("%s: %q, want %q", name, problems, c.want)
		}
	}
	// It starts with a server that is never trusted, and says so.
	c, problems := parse([]byte("listen_addr: x\ntunnel_domain: d.test\ntls: {cert_file: a, key_file: b}\nroutes:\n  a: https://10.0.0.1:443\n"))
	if len(problems) > 0 || len(c.Warnings) != 1 {
		t.Errorf("problems %q, warnings %q", problems, c.Warnings)
	}
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(minimal + "routes: {a: http://10.0.0.1:80}"))
	f.Add([]byte("listen_addr: x\nroutes: {a: http://10.0.0.1:80}\nupstream: {allowed_ips: [10.0.0.0/8]}"))
	f.Add([]byte("routes: &a {b: {tools: {allow: [x]}}}\nx: *a"))
	f.Add([]byte("routes:\n- a"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, problems := parse(text)
		if len(problems) > 0 {
			return
		}
		c.resolve("/x")
		c.SetDefaults()
		if c.Validate() != nil {
			return
		}
		for name, r := range c.Routes {
			if r.Upstream != "" {
				if _, err := parseUpstream(r.Upstream); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if !isHost(strings.TrimSuffix(name, ".")) {
				t.Errorf("route %q", name)
			}
		}
		if c.Fingerprint() == "unknown" {
			t.Error("no fingerprint")
		}
	})
}
