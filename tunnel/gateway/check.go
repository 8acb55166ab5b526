package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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

// Check looks at the way from the inner TLS to the private servers, hop by hop: the
// certificate, and for each route its host, the address that its name leads to, and the
// server itself. It serves nothing and calls no tool. Programs of stdio routes are started
// and asked who they are.
func Check(ctx context.Context, cfg *Config, resolver egress.Resolver, now time.Time) []Finding {
	cfg.SetDefaults()
	if err := cfg.Validate(); err != nil {
		return []Finding{{Name: "settings", Detail: err.Error(), Remedy: "see " + example}}
	}
	found := []Finding{{Name: "settings", OK: true, Detail: fmt.Sprintf("%d routes", len(cfg.Routes))}}
	if len(cfg.Warnings) > 0 {
		found[0].Detail += "; " + strings.Join(cfg.Warnings, "; ")
	}
	found = append(found, checkCertificate(cfg, now))
	quiet := slog.New(slog.DiscardHandler)
	g, err := New(Options{Load: func() (*Config, error) { return cfg, nil }, Resolver: resolver, Logger: quiet})
	if err != nil {
		if invalid, ok := errors.AsType[*settings.Invalid](err); ok || !found[1].OK {
			if ok {
				found = append(found, Finding{Name: "routes", Detail: invalid.Error(), Remedy: "see to it that the files are there and can be read by this user"})
			}
			return found
		}
		return append(found, Finding{Name: "routes", Detail: err.Error(), Remedy: "see to it that the files are there and can be read by this user"})
	}
	defer g.state.Load().close()
	sweeping, stop := context.WithCancel(ctx)
	defer stop()
	go g.sweeper.run(sweeping)
	for _, name := range sortedNames(cfg.Routes) {
		found = append(found, g.checkRoute(ctx, name)...)
	}
	return found
}

// checkCertificate looks at the gateway's certificate as the platform will.
func checkCertificate(cfg *Config, now time.Time) Finding {
	f := Finding{Name: "certificate"}
	pair, err := tls.LoadX509KeyPair(cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "see to it that tls.cert and tls.key are there, are a pair, and can be read by this user; `bailey gateway renew` makes a new pair where the CA is at hand"
		return f
	}
	f.Detail = fmt.Sprintf("%s, for %s, expires %s", cfg.TLS.Cert, strings.Join(pair.Leaf.DNSNames, ", "), pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
	live := []*x509.Certificate{}
	if cfg.TLS.CACert != "" {
		text, err := settings.ReadFile(cfg.TLS.CACert)
		if err != nil {
			f.Detail, f.Remedy = err.Error(), "see to it that tls.ca-cert is there, or leave it out"
			return f
		}
		ca, err := tunnel.CheckCA(text, now)
		if err != nil {
			f.Detail, f.Remedy = "the CA certificate "+err.Error(), "make a new CA with `bailey gateway init`, and register it"
			return f
		}
		live = append(live, ca)
	}
	switch {
	case now.After(pair.Leaf.NotAfter):
		f.Detail, f.Remedy = "it has expired: "+f.Detail, "`bailey gateway renew`, or have it signed anew where the CA is kept"
		return f
	case len(pair.Certificate) > 1:
		f.Detail, f.Remedy = "its file holds a chain: "+f.Detail, "have it signed by the registered CA itself: the platform accepts no intermediates"
		return f
	}
	for _, host := range cfg.hosts() {
		err := pair.Leaf.VerifyHostname(host)
		if err == nil && len(live) > 0 {
			_, err = tunnel.VerifyLeaf([]*x509.Certificate{pair.Leaf}, live, host, now)
		}
		if err != nil {
			f.Detail, f.Remedy = fmt.Sprintf("not good for %s: %v", host, err), "`bailey gateway renew` makes one for all routes"
			return f
		}
	}
	f.OK = true
	if left := pair.Leaf.NotAfter.Sub(now); left < warnings[len(warnings)-1] {
		f.Remedy = "it expires soon: `bailey gateway renew`"
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
func (g *Gateway) checkRoute(ctx context.Context, name string) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	r := g.state.Load().routes[strings.ToLower(strings.TrimSuffix(name, "."))]
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
		for _, a := range addrs {
			if verdict := u.rule.judge(netip.AddrPortFrom(a, u.port)); verdict.Allow {
				allowed = append(allowed, a.String())
			} else {
				refused = append(refused, verdict.Reason)
			}
		}
		if len(allowed) == 0 {
			address.Detail, address.Remedy = strings.Join(refused, "; "), "add the address, or its range, to allowed-ips (in mcp-proxy's file: upstream.allowed_ips); it replaces the default, so name those you still need"
			return []Finding{address}
		}
		address.OK, address.Detail = true, fmt.Sprintf("%s is at %s", u.name, strings.Join(allowed, ", "))
		if len(refused) > 0 {
			address.Detail += "; not used: " + strings.Join(refused, "; ")
		}
	}
	return []Finding{address, g.checkServer(ctx, name, r)}
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
func (g *Gateway) checkServer(ctx context.Context, name string, r *route) Finding {
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
		if suffix := g.state.Load().suffix; suffix != "" && !strings.HasSuffix(host, suffix) {
			host += suffix
		}
	}
	err := conn.send([]byte("GET / HTTP/1.1\r\nHost: "+host+"\r\nAccept: */*\r\nX-Forwarded-Host: "+host+"\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"), nil)
	if err == nil {
		err = conn.readHead(checkTime)
	}
	if err != nil {
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
