package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// The files that init writes, in its directory.
const (
	tokenFile  = "tunnel-token"
	caFile     = "ca.crt"
	caKeyFile  = "ca.key"
	tlsFile    = "tls.crt"
	tlsKeyFile = "tls.key"
	edgesFile  = "edges.crt"
)

type gatewayInit struct {
	dir, tunnel, name string
	routes, cas       []string
}

func (p *Program) gatewayInit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Set up a gateway on this machine",
		Long: `Makes what a gateway needs, in a directory: a CA of your own and a certificate that
it has signed, both here, so that their keys never leave this machine; the
tunnel's token and the addresses of its edges, fetched from the server; and
gateway.yaml with the routes. The CA's public part is registered on the tunnel.
Servers at https are trusted if an authority of this host has signed for them, or
one of --ca.

It can be repeated: what is there is kept, what is missing is made, the token and
the edges are fetched anew, and routes are added. A new CA is made only where
there is none, and a directory is for one tunnel. Whoever has the CA's key can speak for your servers: once
gateway.yaml is on the machines that need it, keep ca.key elsewhere, and renew
certificates there.`,
		Example: `  bailey gateway init --tunnel tnl_… --route docs=http://10.0.0.5:8080
  bailey gateway init --name office --route docs=http://10.0.0.5:8080 --route files='exec:mcp-server-files /srv'
  bailey gateway init --route wiki=https://wiki.corp:8443 --ca wiki=corp-ca.crt`,
	}
	c := p.connectFlags(cmd)
	var in gatewayInit
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&in.tunnel, "tunnel", "", "the tunnel's `id` (default the one of an earlier init)")
	f.StringVar(&in.name, "name", "", "make a tunnel of this `name`, if none is given and there is none of an earlier init")
	f.StringArrayVar(&in.routes, "route", nil, "a `name=upstream`, such as docs=http://10.0.0.5:8080, or name=exec:program arguments; may be repeated")
	f.StringArrayVar(&in.cas, "ca", nil, "a `file` with the authority that has signed for the https servers of --route, or name=file for one of them; may be repeated")
	must(cmd.MarkFlagFilename("ca", "crt", "pem"))
	f.StringVar(&in.dir, "dir", gatewayDir, "the `dir`ectory to write to")
	must(cmd.MarkFlagDirname("dir"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// An init that is repeated asks the server of the first one.
		doc, err := readGatewayFile(filepath.Join(in.dir, gatewayFile))
		if err != nil {
			return err
		}
		c.known = doc.value("tunnel", "server")
		cl, err := c.client()
		if err != nil {
			return err
		}
		return p.initGateway(cmd.Context(), cl, c.address(), doc, in)
	}
	return cmd
}

// initGateway does all of init. What can be known to be wrong is found before anything is
// made, here or at the server.
func (p *Program) initGateway(ctx context.Context, cl *client.Client, server string, doc *gatewayDoc, in gatewayInit) error {
	routes, cas, err := parseRoutes(in.routes, in.cas)
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(in.dir, name) }
	if len(routes) == 0 && !doc.hasRoutes() {
		return usagef("--route is needed, such as --route docs=http://10.0.0.5:8080: a gateway without routes serves nothing")
	}
	if err := os.MkdirAll(in.dir, 0o700); err != nil {
		return err
	}
	if is := doc.tunnelID(); is != "" && in.tunnel != "" && in.tunnel != is {
		return usagef("%s is for tunnel %s, and its CA with it: name another --dir for %s, or move this one away", in.dir, is, in.tunnel)
	}
	t, err := initTunnel(ctx, cl, doc, in)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(p.Stderr, format+"\n", args...) }
	say("tunnel %s, %s", t.ID, t.Domain)

	now := time.Now()
	ca, made, err := initAuthority(at(caFile), at(caKeyFile), t.Domain, now)
	if err != nil {
		return err
	}
	if made {
		say("made a CA: %s and, for nobody else's eyes, %s", at(caFile), at(caKeyFile))
	}
	registered, err := registerAuthority(ctx, cl, t.ID, ca)
	if err != nil {
		return err
	}
	if registered {
		say("registered the CA on the tunnel: %s", tunnel.Fingerprint(ca.Cert))
	}
	revealed, err := cl.RevealToken(ctx, t.ID)
	if err != nil {
		return err
	}
	if err := gateway.WriteSecret(at(tokenFile), []byte(revealed.Token+"\n")); err != nil {
		return err
	}
	say("wrote the token: %s", at(tokenFile))
	found, err := awaitEdges(ctx, cl, t.ID, say)
	if err != nil {
		return err
	}
	edges, err := writeEdges(found, in.dir)
	if err != nil {
		return err
	}
	for _, e := range edges {
		say("edge %s%s", strings.Join(e.Addresses, ", "), notFromHere(server, e.Addresses))
	}
	for name, text := range cas {
		if err := gateway.WriteFile(at(name), text, 0o644); err != nil {
			return err
		}
		say("wrote %s", at(name))
	}
	if err := doc.write(at(gatewayFile), server, t, edges, routes); err != nil {
		return err
	}
	say("wrote %s", at(gatewayFile))
	cfg, err := gateway.Load(at(gatewayFile))
	if err != nil {
		return err
	}
	cfg.SetDefaults()
	renewed, err := cfg.Renew(time.Duration(cfg.TLS.RenewBefore), now)
	if err != nil {
		return err
	}
	if renewed {
		say("made a certificate: %s and %s", cfg.TLS.Cert, cfg.TLS.Key)
	}
	if len(edges) == 0 {
		say("The server has no edge, so that this gateway has nowhere to go: give it one (tunnel-listen of `bailey serve`, or `bailey edge`), and repeat this.")
		return nil
	}
	say("Check it: bailey gateway check --config %s", at(gatewayFile))
	say("Run it:   bailey gateway --config %s", at(gatewayFile))
	return nil
}

// notFromHere is a word of warning about an edge that a server elsewhere says is on this
// machine.
func notFromHere(server string, addresses []string) string {
	if onThisMachine(server) {
		return ""
	}
	for _, a := range addresses {
		host, _, _ := net.SplitHostPort(a)
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return ""
		}
	}
	return ": that is this machine itself, from here. The operator of the server has to say where gateways reach it (tunnel-addresses of `bailey serve`, addresses of `bailey edge`); then repeat this"
}

// initTunnel finds the tunnel that is meant, or makes one.
func initTunnel(ctx context.Context, cl *client.Client, doc *gatewayDoc, in gatewayInit) (*api.Tunnel, error) {
	id := api.TunnelID(in.tunnel)
	if id == "" {
		id = api.TunnelID(doc.tunnelID())
	}
	switch {
	case id != "":
		t, err := cl.GetTunnel(ctx, id)
		if err == nil && t.ArchivedAt != nil {
			return nil, usagef("tunnel %s is archived: name another with --tunnel", id)
		}
		return t, err
	case in.name != "":
		return cl.CreateTunnel(ctx, api.TunnelCreate{DisplayName: &in.name})
	}
	return nil, usagef("--tunnel is needed (`bailey tunnels list` shows them), or --name to make one")
}

// initAuthority reads the CA, or makes one where there is nothing of one: neither a
// certificate nor a key is ever written over.
func initAuthority(cert, key, domain string, now time.Time) (ca *gateway.Authority, made bool, err error) {
	for _, file := range []string{cert, key} {
		if _, err := os.Lstat(file); err == nil {
			ca, err := gateway.ReadAuthority(cert, key, now)
			return ca, false, err
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, false, err
		}
	}
	if ca, err = gateway.NewAuthority(domain, now); err != nil {
		return nil, false, err
	}
	return ca, true, ca.Write(cert, key)
}

// registerAuthority registers the CA on the tunnel, unless it is there.
func registerAuthority(ctx context.Context, cl *client.Client, id api.TunnelID, ca *gateway.Authority) (registered bool, err error) {
	live := 0
	for c, err := range cl.Certificates(ctx, id, client.ListOptions{PageSize: api.TunnelPageMax}) {
		if err != nil {
			return false, err
		}
		if c.ArchivedAt != nil {
			continue
		}
		if live++; c.Fingerprint == tunnel.Fingerprint(ca.Cert) {
			return false, nil
		}
	}
	if live >= api.CertificatesMax {
		return false, usagef("the tunnel has %d CAs, which is the most, and none is this directory's: archive one that no gateway needs (`bailey tunnels certificates list %s` shows them, `bailey tunnels certificates archive %s CERTIFICATE` ends one), or use the directory of one", live, id, id)
	}
	_, err = cl.AddCertificate(ctx, id, string(ca.PEM))
	return err == nil, err
}

// A server that has just been started knows its edge a moment later.
const (
	edgesWait  = 5 * time.Second
	edgesAgain = 250 * time.Millisecond
)

// awaitEdges fetches the edges, and waits a little if there is none.
func awaitEdges(ctx context.Context, cl *client.Client, id api.TunnelID, say func(string, ...any)) ([]api.EdgeAddress, error) {
	for until := time.Now().Add(edgesWait); ; {
		found, err := cl.TunnelEdges(ctx, id)
		if err != nil || len(found.Data) > 0 || time.Now().After(until) {
			return found.Data, err
		}
		if say != nil {
			say("the server has no edge yet; waiting for one")
			say = nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(edgesAgain):
		}
	}
}

// writeEdges writes who has signed the certificates of edges, and returns them as the
// settings have them.
func writeEdges(found []api.EdgeAddress, dir string) ([]gateway.Edge, error) {
	var edges []gateway.Edge
	files := make(map[string]string) // by what is in them
	for _, e := range found {
		edge := gateway.Edge{ID: string(e.EdgeID), Addresses: e.Addresses, ServerName: e.ServerName}
		if e.CAs != "" {
			name, ok := files[e.CAs]
			if !ok {
				name = edgesFile
				if len(files) > 0 {
					name = fmt.Sprintf("edges-%d.crt", len(files)+1)
				}
				files[e.CAs] = name
				if err := gateway.WriteFile(filepath.Join(dir, name), []byte(e.CAs), 0o644); err != nil {
					return nil, err
				}
			}
			edge.CA = name
		}
		edges = append(edges, edge)
	}
	return edges, nil
}

// parseRoutes reads the values of --route and --ca. The second result are files to be
// written beside the settings, by their names: who has signed for servers.
func parseRoutes(texts, cas []string) (map[string]gateway.Route, map[string][]byte, error) {
	routes, err := parseUpstreams(texts)
	if err != nil {
		return nil, nil, err
	}
	files := make(map[string][]byte)
	for _, ca := range cas {
		only, file, named := strings.Cut(ca, "=")
		if !named {
			only, file = "", ca
		}
		text, err := settings.ReadFile(file)
		if err != nil {
			return nil, nil, usagef("--ca: %v", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(text) {
			return nil, nil, usagef("--ca: %s holds no certificate in PEM", file)
		}
		used := false
		for name, r := range routes {
			if (named && name != only) || !strings.HasPrefix(r.Upstream, "https://") {
				continue
			}
			used = true
			r.UpstreamTLS = gateway.Trust{CA: name + "-ca.crt"}
			routes[name], files[r.UpstreamTLS.CA] = r, text
		}
		if !used {
			return nil, nil, usagef("--ca %s: no --route beside it is at https and could need it", ca)
		}
	}
	return routes, files, nil
}

func parseUpstreams(texts []string) (map[string]gateway.Route, error) {
	routes := make(map[string]gateway.Route)
	for _, text := range texts {
		name, to, ok := strings.Cut(text, "=")
		if !ok || name == "" || to == "" {
			return nil, usagef("--route %q is not name=upstream", text)
		}
		if _, twice := routes[name]; twice {
			return nil, usagef("--route %s is given twice", name)
		}
		var r gateway.Route
		if program, ok := strings.CutPrefix(to, "exec:"); ok {
			if r.Command = strings.Fields(program); len(r.Command) == 0 {
				return nil, usagef("--route %q names no program", text)
			}
		} else {
			r.Upstream = to
			// Whoever names an address means it.
			addr := upstreamAddr(to)
			if addr.IsValid() && !privateByDefault(addr) {
				r.AllowedIPs = []string{addr.String()}
			}
			// MCP servers on loopback refuse names that are not its own, as a guard
			// against DNS rebinding.
			if addr.IsLoopback() {
				r.Host = "rewrite"
			}
			r.UpstreamTLS.SystemCAs = strings.HasPrefix(to, "https://")
		}
		routes[name] = r
	}
	probe := &gateway.Config{Tunnel: gateway.Tunnel{Domain: "x.test"}, TLS: gateway.TLS{Cert: "x", Key: "x"}, Routes: map[string]*gateway.Route{}}
	for name, r := range routes {
		probe.Routes[name] = &r
	}
	if len(routes) == 0 {
		return routes, nil
	}
	probe.SetDefaults()
	if err := probe.Validate(); err != nil {
		return nil, usagef("--route: %v", err)
	}
	return routes, nil
}

// upstreamAddr is the address that an upstream is, if it is one, or that localhost is.
func upstreamAddr(upstream string) netip.Addr {
	u, err := url.Parse(upstream)
	if err != nil {
		return netip.Addr{}
	}
	host := u.Hostname()
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, _ := netip.ParseAddr(host)
	return addr
}

func privateByDefault(addr netip.Addr) bool { return addr.Is4() && addr.IsPrivate() }

// A gatewayDoc is a gateway.yaml that is being written, as a person may have edited it.
type gatewayDoc struct{ root *yaml.Node } // nil if there is none yet

func readGatewayFile(path string) (*gatewayDoc, error) {
	text, err := settings.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return new(gatewayDoc), nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := gateway.Load(path); err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil || len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, usagef("%s is no file of settings; move it away", path)
	}
	return &gatewayDoc{&doc}, nil
}

func (d *gatewayDoc) tunnelID() string { return d.value("tunnel", "id") }

// value is a setting within a section, or "".
func (d *gatewayDoc) value(section, name string) string {
	if d.root == nil {
		return ""
	}
	if node := child(d.root.Content[0], section); node != nil {
		if v := child(node, name); v != nil {
			return v.Value
		}
	}
	return ""
}

// hasRoutes reports whether there are routes in the file.
func (d *gatewayDoc) hasRoutes() bool {
	if d.root == nil {
		return false
	}
	all := child(d.root.Content[0], "routes")
	return all != nil && len(all.Content) > 0
}

// child returns the value of a name in a mapping, or nil.
func child(mapping *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == name {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// set gives a name in a mapping a value.
func set(mapping *yaml.Node, name string, value any) error {
	node := new(yaml.Node)
	if err := node.Encode(value); err != nil {
		return err
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == name {
			mapping.Content[i+1] = node
			return nil
		}
	}
	key := new(yaml.Node)
	key.SetString(name)
	mapping.Content = append(mapping.Content, key, node)
	return nil
}

// firstGatewayFile is what a new gateway.yaml begins as.
const firstGatewayFile = `# The settings of a gateway, for "bailey gateway". docs/gateway.yaml explains them all.
tunnel:
  token-file: ` + tokenFile + `
tls:
  cert: ` + tlsFile + `
  key: ` + tlsKeyFile + `
  # With the CA's key here, the certificate is renewed by itself. Kept elsewhere, it is
  # safer: then leave these two out, and renew there.
  ca-cert: ` + caFile + `
  ca-key: ` + caKeyFile + `
data: .
listen: 127.0.0.1:9400
routes: {}
`

// write writes the file: what a person has put there stays, what init knows is brought up
// to date, and routes are added.
func (d *gatewayDoc) write(path, server string, t *api.Tunnel, edges []gateway.Edge, routes map[string]gateway.Route) error {
	if d.root == nil {
		d.root = new(yaml.Node)
		if err := yaml.Unmarshal([]byte(firstGatewayFile), d.root); err != nil {
			return err
		}
	}
	root := d.root.Content[0]
	at := child(root, "tunnel")
	if at == nil || at.Kind != yaml.MappingNode {
		return usagef("%s has no tunnel section; it is not one that init can bring up to date", path)
	}
	list := make([]map[string]any, 0, len(edges))
	for _, e := range edges {
		m := map[string]any{"id": e.ID, "addresses": e.Addresses, "server-name": e.ServerName}
		if e.CA != "" {
			m["ca"] = e.CA
		}
		list = append(list, m)
	}
	err := errors.Join(set(at, "id", string(t.ID)), set(at, "domain", t.Domain), set(at, "server", server), set(at, "edges", list))
	if err != nil {
		return err
	}
	all := child(root, "routes")
	if all == nil || all.Kind != yaml.MappingNode {
		if err := set(root, "routes", map[string]any{}); err != nil {
			return err
		}
		all = child(root, "routes")
	}
	all.Style = 0
	names := make([]string, 0, len(routes))
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := set(all, name, routeValue(routes[name])); err != nil {
			return err
		}
	}
	text, err := encodeYAML(d.root)
	if err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	return gateway.WriteFile(path, text, mode)
}

// routeValue is a route as it is written: its upstream alone, if that says it all.
func routeValue(r gateway.Route) any {
	m := map[string]any{}
	if len(r.Command) > 0 {
		m["command"] = r.Command
		return m
	}
	if len(r.AllowedIPs) == 0 && r.UpstreamTLS == (gateway.Trust{}) && r.Host == "" {
		return r.Upstream
	}
	m["upstream"] = r.Upstream
	if r.Host != "" {
		m["host"] = r.Host
	}
	if len(r.AllowedIPs) > 0 {
		m["allowed-ips"] = r.AllowedIPs
	}
	switch {
	case r.UpstreamTLS.CA != "":
		m["upstream-tls"] = map[string]any{"ca": r.UpstreamTLS.CA}
	case r.UpstreamTLS.SystemCAs:
		m["upstream-tls"] = map[string]any{"system-cas": true}
	}
	return m
}

func encodeYAML(node *yaml.Node) ([]byte, error) {
	var b strings.Builder
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	err := errors.Join(enc.Encode(node), enc.Close())
	return []byte(b.String()), err
}

func (p *Program) gatewayRenew() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Make a new certificate for a gateway",
		Long: `Makes a new certificate of the gateway's, signed by the CA in its settings (tls:
ca-cert, ca-key), and asks nobody. A gateway that runs reads it within seconds and
renews by itself where the CA's key is at hand: this is for where it is not.`,
		Example: `  bailey gateway renew
  bailey gateway renew --before 30d`,
	}
	var g gatewayFlags
	p.gatewayFlags(cmd, &g)
	before := timeFlag(cmd, "before", 0, "only if it expires within this `time`, such as 30d; 0 is always")
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := g.load()
		if err != nil {
			return err
		}
		renewed, err := cfg.Renew(*before, time.Now())
		if err != nil {
			return err
		}
		if renewed {
			fmt.Fprintf(p.Stderr, "made a certificate: %s and %s\n", cfg.TLS.Cert, cfg.TLS.Key)
		} else {
			fmt.Fprintf(p.Stderr, "%s is good for longer than %s: nothing was changed\n", cfg.TLS.Cert, *before)
		}
		return nil
	}
	return cmd
}
