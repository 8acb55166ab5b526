package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
)

// A Finding is one thing that was checked.
type Finding struct {
	Name   string
	OK     bool
	Detail string
	Remedy string // what to do about it, if it is not in order
}

// checkTime bounds what is waited for at one route.
const checkTime = 15 * time.Second

// CheckOptions are what Check goes by, besides the configuration.
type CheckOptions struct {
	Resolver egress.Resolver // nil for the host's
	Now      time.Time

	// CAs are those that the tunnel knows; nil if that could not be asked.
	CAs []*x509.Certificate

	// Step, if not nil, is told what is looked at next.
	Step func(what string)
}

// Check looks at the way from the inner TLS to the private servers, hop by hop: the
// settings, the certificate, whether the tunnel knows who signed it, and for each route its
// host, the address that its name leads to, and the server itself. What is wrong with one is
// no reason not to look at the others. It serves nothing and calls no tool. Programs of
// stdio routes are started and asked who they are.
func Check(ctx context.Context, cfg *Config, o CheckOptions) []Finding {
	if o.Step == nil {
		o.Step = func(string) {}
	}
	cfg.SetDefaults()
	found := checkSettings(cfg)
	o.Step("certificate")
	found = append(found, checkCertificate(cfg, o)...)
	g := newBare(Options{Resolver: o.Resolver, Logger: slog.New(slog.DiscardHandler)})
	sweeping, stop := context.WithCancel(ctx)
	defer stop()
	go g.sweeper.run(sweeping)
	for _, name := range sortedNames(cfg.Routes) {
		lower := routeName(name)
		if len(cfg.Routes[name].problems()) > 0 || !isHost(lower) {
			continue // said with the settings
		}
		o.Step("route " + name)
		r, problems := g.newRoute(cfg, lower, cfg.Routes[name])
		for _, problem := range problems {
			found = append(found, Finding{Name: "route " + name + ": files", Detail: problem, Remedy: "see to it that the file is there, holds what it is to hold, and can be read by this user"})
		}
		if len(problems) == 0 {
			found = append(found, g.checkRoute(ctx, cfg, name, r)...)
		}
		r.close()
	}
	return found
}

// checkSettings finds what the settings cannot mean: all of it.
func checkSettings(cfg *Config) []Finding {
	err := cfg.Validate()
	if invalid, ok := errors.AsType[*settings.Invalid](err); ok {
		var found []Finding
		for _, problem := range invalid.Problems {
			found = append(found, Finding{Name: "settings", Detail: problem, Remedy: "see " + example})
		}
		return found
	}
	f := Finding{Name: "settings", OK: true, Detail: counted(len(cfg.Routes), "route")}
	if len(cfg.Warnings) > 0 {
		f.Detail += "; " + strings.Join(cfg.Warnings, "; ")
	}
	return []Finding{f}
}

// counted is a number of things, for a person.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// checkCertificate looks at the gateway's certificate as the platform will, with what is
// here and then with what the tunnel knows.
func checkCertificate(cfg *Config, o CheckOptions) []Finding {
	if cfg.TLS.Cert == "" || cfg.TLS.Key == "" {
		return nil // said with the settings
	}
	f := Finding{Name: "certificate"}
	pair, err := tls.LoadX509KeyPair(cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "see to it that tls.cert and tls.key are there, are a pair, and can be read by this user; `bailey gateway renew` makes a new pair where the CA is at hand"
		return []Finding{f}
	}
	f.Detail = fmt.Sprintf("%s, for %s, expires %s", cfg.TLS.Cert, strings.Join(pair.Leaf.DNSNames, ", "), pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
	var own *x509.Certificate
	if cfg.TLS.CACert != "" {
		text, err := settings.ReadFile(cfg.TLS.CACert)
		if err != nil {
			f.Detail, f.Remedy = err.Error(), "see to it that tls.ca-cert is there, or leave it out"
			return []Finding{f}
		}
		if own, err = tunnel.CheckCA(text, o.Now); err != nil {
			f.Detail, f.Remedy = "the CA certificate "+err.Error(), "move it and its key away, and make a new CA with `bailey gateway init`, which registers it"
			return []Finding{f}
		}
	}
	switch {
	case o.Now.After(pair.Leaf.NotAfter):
		f.Detail, f.Remedy = "it has expired: "+f.Detail, "`bailey gateway renew`, or have it signed anew where the CA is kept"
		return []Finding{f}
	case len(pair.Certificate) > 1:
		f.Detail, f.Remedy = "its file holds a chain: "+f.Detail, "have it signed by the registered CA itself: the platform accepts no intermediates"
		return []Finding{f}
	}
	for _, host := range cfg.hosts() {
		err := pair.Leaf.VerifyHostname(host)
		if err == nil && own != nil {
			_, err = tunnel.VerifyLeaf([]*x509.Certificate{pair.Leaf}, []*x509.Certificate{own}, host, o.Now)
		}
		if err != nil {
			f.Detail, f.Remedy = fmt.Sprintf("not good for %s: %v", host, err), "`bailey gateway renew` makes one for all routes"
			return []Finding{f}
		}
	}
	f.OK = true
	if left := pair.Leaf.NotAfter.Sub(o.Now); left < warnings[len(warnings)-1] {
		f.Remedy = "it expires soon: `bailey gateway renew`"
	}
	if o.CAs == nil {
		return []Finding{f}
	}
	return []Finding{f, checkTrust(cfg, pair.Leaf, own, o)}
}

// checkTrust finds out whether the platform accepts the certificate: whether a CA that the
// tunnel knows has signed it.
func checkTrust(cfg *Config, leaf, own *x509.Certificate, o CheckOptions) Finding {
	f := Finding{Name: "certificate: CA"}
	id := cmp.Or(cfg.Tunnel.ID, "TUNNEL")
	add := "`bailey tunnels certificates add " + id + " " + cmp.Or(cfg.TLS.CACert, "ca.crt") + "`"
	if len(o.CAs) == 0 {
		f.Detail, f.Remedy = "the tunnel knows no CA, so that it takes no calls", "`bailey gateway init` registers the one that is here, or "+add
		return f
	}
	var by *x509.Certificate
	for _, host := range cfg.hosts() {
		var err error
		if by, err = tunnel.VerifyLeaf([]*x509.Certificate{leaf}, o.CAs, host, o.Now); err == nil {
			continue
		}
		f.Detail = fmt.Sprintf("the platform refuses the certificate for %s: %v", host, err)
		f.Remedy = "`bailey gateway init` registers the CA that is here on the tunnel; if it has as many as it may, archive one first (`bailey tunnels certificates list " + id + "`)"
		switch {
		case own == nil:
			f.Remedy = "have the CA that signed it registered on the tunnel (" + add + "), or have a registered one sign a new certificate"
		case slices.ContainsFunc(o.CAs, own.Equal):
			f.Remedy = "the tunnel knows the CA that is here: `bailey gateway renew` has it sign a new certificate"
		}
		return f
	}
	f.OK = true
	if by != nil {
		f.Detail = fmt.Sprintf("the tunnel knows it: %s…, until %s", tunnel.Fingerprint(by)[:16], by.NotAfter.UTC().Format(time.DateOnly))
	}
	return f
}

// hosts are the hosts of all routes.
func (c *Config) hosts() (hosts []string) {
	for _, name := range sortedNames(c.Routes) {
		host, err := canonicalHost(name)
		if err != nil {
			continue
		}
		if c.Tunnel.Domain != "" && host != c.Tunnel.Domain && !isBelow(host, c.Tunnel.Domain) {
			host += "." + c.Tunnel.Domain
		}
		hosts = append(hosts, host)
	}
	return hosts
}

// checkRoute looks at one route: its address, then its server.
func (g *Gateway) checkRoute(ctx context.Context, cfg *Config, name string, r *route) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if r.stdio != nil {
		return []Finding{r.stdio.check(ctx, "route "+name)}
	}
	u := r.upstream
	address := Finding{Name: "route " + name + ": address"}
	switch addrs, err := g.addresses(ctx, u); {
	case u.unix != "":
		address.OK, address.Detail = true, "a socket of this host: "+u.unix
	case err != nil:
		address.Detail, address.Remedy = err.Error(), "see to it that this host can look the name up (DNS, /etc/hosts)"
		return []Finding{address}
	default:
		var allowed, refused []string
		var rules []egress.Class
		for _, a := range addrs {
			if verdict := u.rule.judge(netip.AddrPortFrom(a, u.port)); verdict.Allow {
				allowed = append(allowed, a.String())
			} else {
				refused, rules = append(refused, verdict.Reason), append(rules, egress.Class(verdict.Rule))
			}
		}
		if len(allowed) == 0 {
			address.Detail, address.Remedy = strings.Join(refused, "; "), remedyFor(rules[0])
			return []Finding{address}
		}
		address.OK, address.Detail = true, fmt.Sprintf("%s is at %s", u.name, strings.Join(allowed, ", "))
		if len(refused) > 0 {
			address.Detail += "; not used: " + strings.Join(refused, "; ")
		}
	}
	return []Finding{address, g.checkServer(ctx, cfg, name, r)}
}

// remedyFor is what to do about an address that is refused as one of a class.
func remedyFor(class egress.Class) string {
	const where = " (allowed-ips; in mcp-proxy's file, upstream.allowed_ips)"
	switch class {
	case egress.Metadata:
		return "correct the route, or the name: no MCP server is there, but what hands out this machine's credentials. Only naming this very address opens it" + where
	case ownAddress, egress.Loopback:
		return "if a server on the gateway's own host is meant, name this very address" + where + "; it replaces the default, so name those you still need"
	case egress.LinkLocal:
		return "correct the route, or the name; if this address is meant, name it, or a range of its kind" + where
	case egress.Unspecified, egress.Multicast, egress.Translated:
		return "correct the route, or the name: such an address is never connected to"
	case ownUnknown:
		return "let this process list the addresses of the host (in systemd's unit, RestrictAddressFamilies has to have AF_NETLINK)"
	}
	return "add the address, or its range" + where + "; it replaces the default, so name those you still need"
}

func (g *Gateway) addresses(ctx context.Context, u *upstream) ([]netip.Addr, error) {
	if u.unix != "" {
		return nil, nil
	}
	if addr, ok := u.host.Addr(); ok {
		return []netip.Addr{addr}, nil
	}
	return g.dialer.Resolver.LookupNetIP(ctx, "ip", u.host.Name()+".")
}

// checkServer connects to an upstream and asks for its root, without a credential. Any
// answer will do.
func (g *Gateway) checkServer(ctx context.Context, cfg *Config, name string, r *route) Finding {
	f := Finding{Name: "route " + name + ": server"}
	u := r.upstream
	began := time.Now()
	conn, refused := u.dial(ctx)
	if refused != nil {
		f.Detail, f.Remedy = refused.provenance.Detail, "see to it that the server runs and listens there, and that this host may connect to it"
		if u.tls != nil && strings.HasPrefix(f.Detail, "TLS") {
			f.Remedy = "see upstream-tls: ca names who has signed its certificate, server-name what it is issued for, cert and key what it wants to be shown"
		}
		return f
	}
	defer conn.discard()
	took := time.Since(began).Round(time.Millisecond)
	host := u.authority
	if !r.rewriteHost {
		host = strings.ToLower(name)
		if domain := cfg.Tunnel.Domain; domain != "" && host != domain && !isBelow(host, domain) {
			host += "." + domain
		}
	}
	err := conn.send([]byte("GET / HTTP/1.1\r\nHost: "+host+"\r\nAccept: */*\r\nX-Forwarded-Host: "+host+"\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"), nil)
	if err == nil {
		err = conn.readHead(checkTime)
	}
	if err != nil {
		if refused := u.refusedUs(err); refused != nil {
			f.Detail, f.Remedy = refused.provenance.Detail, "name the certificate that it wants, and its key, with upstream-tls: cert and key"
			return f
		}
		f.Detail, f.Remedy = fmt.Sprintf("%s was connected to in %s, and gave no answer of HTTP/1.1: %s", u.name, took, plainly(err)), "see whether it is an HTTP server, and whether it wants https"
		return f
	}
	f.OK, f.Detail = true, fmt.Sprintf("%s answers (HTTP %d, connected in %s)", u.name, conn.head.status, took)
	if s := conn.head.status; (s == 403 || s == 421) && !r.rewriteHost {
		f.Remedy = "if calls are answered like this, too, the server guards against DNS rebinding: allow the host " + host + " there, or set host: rewrite for this route"
	}
	return f
}

// check starts the program and asks it who it is.
func (s *stdio) check(ctx context.Context, name string) Finding {
	f := Finding{Name: name}
	answered := make(chan []byte, 1)
	run, err := s.program.start(func(line []byte) {
		select {
		case answered <- bytes.Clone(line):
		default:
		}
	})
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "see to it that the program is there, and its directory, and that its user may use both (command, dir, process.user)"
		return f
	}
	defer run.stop()
	_ = run.send([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bailey-gateway-check","version":"1"}}}`))
	select {
	case line := <-answered:
		f.OK, f.Detail = true, "the program starts and answers: "+shorten(string(line), 200)
	case <-run.gone:
		f.Detail, f.Remedy = "the program ended: "+run.goneError.Error(), "run it by hand and see what it says"
	case <-ctx.Done():
		f.Detail, f.Remedy = fmt.Sprintf("the program started and did not answer within %s", checkTime), "run it by hand and see what it says"
	}
	return f
}
