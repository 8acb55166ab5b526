package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/dial"
	"github.com/bailey-platform/bailey/tunnel/edge"
	"github.com/bailey-platform/bailey/tunnel/edge/remote"
)

// tunnels is what this process has to do with tunnels: a dialer, which reaches private
// MCP servers through whatever edge their gateway is attached to, and unless it is told
// otherwise an edge.
type tunnels struct {
	// Static after construction.
	d      *Daemon
	log    *slog.Logger
	dialer *dial.Dialer
	notes  chan func(context.Context) // what is to be kept of calls
	tcp    net.Listener               // of the edge; nil if there is none
	udp    net.PacketConn
	edge   atomic.Pointer[edge.Edge] // nil until it runs

	mu     sync.Mutex // guards what follows
	cert   *tls.Certificate
	certAt time.Time
}

const (
	insideURL = "http://plane.internal"

	dialerCertFor = time.Hour       // before the next one is made; it is good for longer
	dialerCertMax = 5 * time.Second // to make one
	notesMax      = 256             // that wait; more are dropped
	trustEvery    = 5 * time.Second // how often the table is read without a hint
	trustOverlap  = time.Minute     // read again, for clocks that differ and commits that took long
	edgeAgain     = time.Minute     // after the edge was replaced or refused
)

// newTunnels makes the dialer and binds the edge's addresses.
func (d *Daemon) newTunnels() (_ *tunnels, err error) {
	t := &tunnels{d: d, log: d.log.With("part", "tunnels"), notes: make(chan func(context.Context), notesMax)}
	t.dialer, err = dial.New(dial.Config{
		Route: t.route, Certificate: t.certificate, Here: t.here, OnLeaf: t.onLeaf, OnError: t.onError, Log: t.log,
	})
	if err != nil {
		return nil, err
	}
	address := d.cfg.tunnelListen(d.listener.Addr())
	if address == "" {
		return t, nil
	}
	edge.Register(d.registry, t.edge.Load)
	if t.tcp, err = net.Listen("tcp", address); err != nil {
		if d.cfg.TunnelListen == "" {
			// Nobody has asked for it: not a reason to have no server.
			t.log.Warn("this server has no edge for tunnels: set tunnel-listen to another address, or to off", "address", address, "error", err)
			return t, nil
		}
		return nil, fmt.Errorf("listen for tunnels on %s: %w; --tunnel-listen takes another address, or off", address, err)
	}
	// Connectors come by QUIC where they can: the same number, of UDP.
	if t.udp, err = net.ListenPacket("udp", t.tcp.Addr().String()); err != nil {
		t.log.Warn("connectors cannot come by QUIC, only by TCP", "address", t.tcp.Addr(), "error", err)
		t.udp = nil
	}
	return t, nil
}

// tunnelsOff is the value of TunnelListen for no edge.
const tunnelsOff = "off"

// tunnelListen is the address of the edge, or "" if there is none: by default that of
// the API with the next port.
func (c *Config) tunnelListen(api net.Addr) string {
	switch c.TunnelListen {
	case tunnelsOff:
		return ""
	case "":
	default:
		return c.TunnelListen
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "0" {
		return net.JoinHostPort(host, "0")
	}
	if tcp, ok := api.(*net.TCPAddr); ok && tcp.Port < 65535 {
		return net.JoinHostPort(host, strconv.Itoa(tcp.Port+1))
	}
	return net.JoinHostPort(host, "0")
}

func (c *Config) checkTunnels() error {
	if c.TunnelListen != "" && c.TunnelListen != tunnelsOff {
		if _, _, err := net.SplitHostPort(c.TunnelListen); err != nil {
			return badSetting("tunnel-listen", "%q is not host:port, such as 0.0.0.0:8485, or off", c.TunnelListen)
		}
	}
	for name, list := range map[string]string{"tunnel-addresses": c.TunnelAddresses, "tunnel-dial-addresses": c.TunnelDialAddresses} {
		for _, a := range splitList(list) {
			if host, port, err := net.SplitHostPort(tunnel.WithPort(a, "1")); err != nil || host == "" || port == "" || port == "0" {
				return badSetting(name, "%q is not host:port", a)
			}
		}
	}
	if !plausibleDomain(c.TunnelDomain) {
		return badSetting("tunnel-domain", "%q is not a domain in lower case, such as tunnel.example.org", c.TunnelDomain)
	}
	return nil
}

func plausibleDomain(s string) bool {
	_, domain, ok := tunnel.SplitHost("x."+s, s)
	return ok && domain == "x."+s && s != ""
}

func splitList(list string) (out []string) {
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// run keeps what tunnels need up to date until ctx ends.
func (t *tunnels) run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { t.watchTrust(ctx) })
	parts.Go(func() { t.keepNotes(ctx) })
	parts.Wait()
	return nil
}

// runEdge serves the edge until ctx ends, and then until what runs through it is over.
// It needs the API, which runs longer.
func (t *tunnels) runEdge(ctx context.Context) error {
	if t.tcp == nil {
		<-ctx.Done()
		return nil
	}
	key, drop := t.d.control.OwnEdgeKey()
	defer drop()
	plane, err := client.New(client.Config{BaseURL: insideURL, Key: key, HTTPClient: t.d.insider})
	if err != nil {
		return err
	}
	err = remote.Run(ctx, remote.Config{Client: plane, Edge: t.introduction(), Log: t.log, Started: t.edge.Store}, edge.Config{
		Listener: t.tcp, Packets: t.udp, Tap: t.d.tap, Log: t.log, Limits: edge.Limits{Drain: t.d.cfg.grace()},
	})
	if err != nil && ctx.Err() == nil {
		// Sessions, and tunnels of other edges, go on without it.
		t.log.Error("the server's own edge has ended; other edges serve on", "error", err)
	}
	<-ctx.Done()
	return nil
}

// introduction is what the plane is told of the edge.
func (t *tunnels) introduction() api.EdgeRegister {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	bound := t.tcp.Addr().(*net.TCPAddr)
	port := strconv.Itoa(bound.Port)
	at := []string{bound.String()}
	if bound.IP.IsUnspecified() {
		at = atInterfaces(host, port)
	}
	in := api.EdgeRegister{
		Name: "serve@" + net.JoinHostPort(host, port), Version: telemetry.ReadBuild().Version,
		ConnectorAddresses: splitList(t.d.cfg.TunnelAddresses), DialAddresses: splitList(t.d.cfg.TunnelDialAddresses),
	}
	for _, list := range [][]string{in.ConnectorAddresses, in.DialAddresses} {
		for i := range list {
			list[i] = tunnel.WithPort(list[i], port)
		}
	}
	if len(in.DialAddresses) == 0 {
		in.DialAddresses = at
	}
	if len(in.ConnectorAddresses) == 0 {
		in.ConnectorAddresses = at
		t.log.Info("gateways are told to come to these addresses; tunnel-addresses names others", "addresses", strings.Join(at, ", "))
	}
	return in
}

// atInterfaces are the addresses of what listens on all interfaces: the name of the host,
// which other machines may not know, and the addresses it has. Who comes tries one after
// the other.
func atInterfaces(host, port string) []string {
	all := []string{net.JoinHostPort(host, port)}
	list, _ := net.InterfaceAddrs() // without, there is the name
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() && len(all) < api.EdgeAddressesMax {
			all = append(all, net.JoinHostPort(p.Addr().String(), port))
		}
	}
	return all
}

// close gives up what newTunnels took.
func (t *tunnels) close() {
	if t == nil {
		return
	}
	if t.tcp != nil {
		t.tcp.Close()
	}
	if t.udp != nil {
		t.udp.Close()
	}
	_ = t.dialer.Close()
}

// route implements [dial.Config]. This server has one workspace.
func (t *tunnels) route(ctx context.Context, host string) (dial.Route, error) {
	r, err := t.d.control.TunnelRoute(ctx, api.WorkspaceDefault, host)
	if err != nil {
		return dial.Route{}, err
	}
	return dial.Route{TunnelID: r.TunnelID, Domain: r.Domain, Edges: r.Edges, CAs: r.CAs}, nil
}

// here implements [dial.Config].
func (t *tunnels) here(id api.EdgeID) dial.Opener {
	if e := t.edge.Load(); e != nil && e.ID() == id {
		return e
	}
	return nil
}

// certificate is what this process shows to edges, made anew each hour.
func (t *tunnels) certificate() (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cert != nil && time.Since(t.certAt) < dialerCertFor {
		return t.cert, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialerCertMax)
	defer cancel()
	cert, err := t.d.control.DialerCertificate(ctx)
	if err != nil {
		if t.cert != nil && time.Now().Before(t.cert.Leaf.NotAfter) {
			t.log.Warn("the dialer's certificate could not be renewed", "error", err)
			return t.cert, nil
		}
		return nil, err
	}
	t.cert, t.certAt = cert, time.Now()
	return cert, nil
}

// onLeaf notes which certificate a gateway has answered with.
func (t *tunnels) onLeaf(id api.TunnelID, host string, leaf, ca *x509.Certificate) {
	t.note(func(ctx context.Context) {
		err := t.d.control.NoteTunnelLeaf(ctx, id, api.TunnelLeaf{Host: host, Fingerprint: tunnel.Fingerprint(ca), ExpiresAt: leaf.NotAfter})
		if err != nil {
			t.log.Warn("a gateway's certificate could not be noted", "tunnel_id", id, "error", err)
		}
	})
}

// onError notes what has gone wrong, where it is known with which tunnel.
func (t *tunnels) onError(e *tunnel.Error) {
	if e.Tunnel != "" {
		t.note(func(ctx context.Context) { t.d.control.NoteTunnelFault(ctx, api.TunnelID(e.Tunnel), e) })
	}
}

// note has something kept by and by: no call waits for it.
func (t *tunnels) note(fn func(context.Context)) {
	select {
	case t.notes <- fn:
	default: // the database is slower than calls fail; what is kept is counts
	}
}

func (t *tunnels) keepNotes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case fn := <-t.notes:
			fn(ctx)
		}
	}
}

// watchTrust cuts the connections to gateways whose CA was archived, here or at another
// replica. A hint says when to look; the table says what.
func (t *tunnels) watchTrust(ctx context.Context) {
	since := time.Now()
	tick := time.NewTicker(trustEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		if err := t.distrust(ctx, since.Add(-trustOverlap)); err == nil {
			since = began
		} else if ctx.Err() == nil {
			t.log.Warn("cannot look for archived CAs; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.d.control.TrustChanged():
		case <-tick.C:
		}
	}
}

// distrust cuts the connections of the CAs that were archived since a time.
func (t *tunnels) distrust(ctx context.Context, since time.Time) error {
	for {
		archived, err := t.d.control.Distrusted(ctx, since)
		if err != nil {
			return err
		}
		last := since
		for _, c := range archived {
			t.dialer.Drop(c.TunnelID, c.Fingerprint)
			last = *c.ArchivedAt
		}
		if !last.After(since) {
			return nil // that was all
		}
		since = last
	}
}
