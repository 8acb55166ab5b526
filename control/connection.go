package control

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

// What a tunnel's owner sees of its connectors, what is kept of what went wrong, and
// how the plane's own dialers find their way.

const (
	connectionsMax = 200
	formerMax      = 10
	faultsMax      = 20
	usageHoursMax  = 31 * 24
)

// TunnelStatus says what a tunnel can do, who is attached to it and what went wrong
// last.
func (c *Control) TunnelStatus(ctx context.Context, p Principal, id api.TunnelID) (*api.TunnelStatus, error) {
	out := &api.TunnelStatus{TunnelID: id, Data: []api.TunnelConnection{}, Former: []api.TunnelConnection{}, Faults: []api.TunnelFault{}}
	err := c.managed(ctx, p, id, func(tx *store.Tx, t *store.Tunnel) error {
		now, err := tx.AttachedTo(id, connectionsMax)
		if err != nil {
			return err
		}
		former, err := tx.FormerlyAttachedTo(id, formerMax)
		if err != nil {
			return err
		}
		names := map[api.EdgeID]string{}
		for _, a := range append(now, former...) {
			if _, ok := names[a.EdgeID]; !ok {
				e, err := tx.Edge(a.EdgeID)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if e != nil {
					names[a.EdgeID] = e.Name
				}
			}
			a.Edge = names[a.EdgeID]
			if a.DetachedAt == nil {
				out.Data = append(out.Data, a.TunnelConnection)
			} else {
				out.Former = append(out.Former, a.TunnelConnection)
			}
		}
		faults, err := tx.TunnelFaults(id, faultsMax)
		if err != nil {
			return err
		}
		for _, f := range faults {
			f.Remedy = strings.ReplaceAll(remedies[tunnel.Stage(f.Stage)], "TUNNEL", string(id))
			out.Faults = append(out.Faults, f)
		}
		leaf, err := tx.TunnelLeaf(id)
		switch {
		case err == nil:
			out.Certificate = &leaf
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		live, err := tx.LiveCertificates(id)
		out.State = stateOf(t, len(live), len(out.Data))
		return err
	})
	return out, err
}

func stateOf(t *store.Tunnel, cas, attached int) api.TunnelState {
	switch {
	case t.ArchivedAt != nil:
		return api.TunnelArchived
	case cas == 0:
		return api.TunnelNoCA
	case attached == 0:
		return api.TunnelDisconnected
	}
	return api.TunnelReady
}

// remedies are what to do about a fault, as far as the stage tells. TUNNEL stands for the
// tunnel's id.
var remedies = map[tunnel.Stage]string{
	tunnel.StageNotActive:        "register a CA certificate on the tunnel (`bailey gateway init --tunnel TUNNEL` does), or make a new tunnel if it was archived",
	tunnel.StageEdgeUnreachable:  "look at the edge: `bailey doctor` says which one does not answer",
	tunnel.StageDraining:         "none: the edge was about to stop, and the next call took another",
	tunnel.StageOverloaded:       "a limit of the edge or of the tunnel is reached: stop connectors that are not needed, or run another edge",
	tunnel.StageNoConnector:      "start `bailey gateway` inside, and see its log if it runs",
	tunnel.StageTokenRefused:     "give the gateway the tunnel's current token (`bailey gateway init` beside it, or `bailey tunnels reveal-token TUNNEL --save tunnel-token` in its directory); if no gateway of yours does this, somebody has an old token",
	tunnel.StageConnectorLost:    "look at the connection between the gateway and the edge; the gateway connects again by itself",
	tunnel.StageInnerTLS:         "renew the gateway's certificate (`bailey gateway renew`), or register the CA that signed it (`bailey gateway init` beside it); if it is not your gateway's, somebody has the tunnel's token: `bailey tunnels rotate-token TUNNEL`",
	tunnel.StageNoRoute:          "add the route to the gateway's configuration, or correct the host in the agent",
	tunnel.StageOtherReplica:     "see whether the gateway that has the session runs; give each gateway a name of its own that stays (replica)",
	tunnel.StageRequestRefused:   "the gateway's configuration does not allow this request",
	tunnel.StageCallerRefused:    "the route asks who calls (auth in the gateway's configuration): put a token that it takes into a vault of the session, for the server's URL; the gateway's log says why it did not take one",
	tunnel.StageRateLimited:      "fewer calls at a time, or a higher limits.rate for the route in the gateway's configuration",
	tunnel.StageBodyTooLong:      "a smaller request, or a higher limits.body for the route in the gateway's configuration",
	tunnel.StageAddressRefused:   "the server's address is outside the gateway's allowed-ips: correct the route, or allow the address",
	tunnel.StageUpstreamRefused:  "start the MCP server, or correct the route's address; `bailey gateway check` tries it",
	tunnel.StageUpstreamTimeout:  "the MCP server is slow or stuck; the route's time limits are in the gateway's configuration",
	tunnel.StageUpstreamStatus:   "the MCP server answers with an error: see its log",
	tunnel.StageUpstreamProtocol: "the route does not lead to an MCP server, or one that redirects elsewhere",
	tunnel.StageTimeout:          "the call took longer than its caller waits",
	tunnel.StageProtocol:         "the two ends are of versions that do not understand each other: update the older",
}

// TunnelUsage lists what passed through a tunnel in the hours that begin in [from, to),
// the newest first. Zero times are a day ago and now.
func (c *Control) TunnelUsage(ctx context.Context, p Principal, id api.TunnelID, from, to time.Time) (*api.TunnelUsages, error) {
	out := &api.TunnelUsages{Data: []api.TunnelUsage{}}
	err := c.managed(ctx, p, id, func(tx *store.Tx, _ *store.Tunnel) error {
		if to.IsZero() {
			to = tx.Now.Add(time.Microsecond)
		}
		if from.IsZero() {
			from = to.Add(-24 * time.Hour)
		}
		if !from.Before(to) || to.Sub(from) > usageHoursMax*time.Hour+time.Minute {
			return api.Invalid("starting_at: must be before ending_at, by at most %d hours", usageHoursMax)
		}
		rows, err := tx.TunnelUsage(id, from.Truncate(time.Hour), to, usageHoursMax+1)
		out.Data = append(out.Data, rows...)
		return err
	})
	return out, err
}

// TunnelEdges lists where the connectors of a tunnel can attach, and the CAs that their
// gateways are trusted by. They may ask themselves, with the tunnel's token.
func (c *Control) TunnelEdges(ctx context.Context, p Principal, id api.TunnelID) (*api.TunnelEdges, error) {
	if p.Kind == api.KeyTunnelToken && p.TunnelID == id {
		p.Tunnels = true // of this one, and for this
	}
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.TunnelEdges{Data: []api.EdgeAddress{}}
	err = c.managed(ctx, p, id, func(tx *store.Tx, _ *store.Tunnel) (err error) {
		if out.Data, err = reachable(tx, trust); err != nil {
			return err
		}
		live, err := tx.LiveCertificates(id)
		for _, ca := range live {
			out.CAs += strings.TrimSpace(ca.PEM) + "\n"
		}
		return err
	})
	return out, err
}

// -- what goes wrong ---------------------------------------------------------------

// faultDetailMax bounds what is kept of a fault's text, in bytes.
const faultDetailMax = 500

// fault puts what went wrong into the form that is kept.
func (c *Control) fault(stage tunnel.Stage, host string, err error) *api.TunnelFault {
	now := c.cfg.Clock().UTC().Truncate(time.Microsecond)
	detail := strings.ToValidUTF8(err.Error(), "?")
	if len(detail) > faultDetailMax {
		detail = strings.ToValidUTF8(detail[:faultDetailMax], "") + "…"
	}
	return &api.TunnelFault{Stage: string(stage), Host: host, Detail: strings.ReplaceAll(detail, "\x00", "?"), Count: 1, FirstAt: now, LastAt: now}
}

// NoteTunnelFault keeps what went wrong on the way through a tunnel, for its owner. It
// may be called for every failed call: faults that come often are added up and written
// now and then.
func (c *Control) NoteTunnelFault(ctx context.Context, id api.TunnelID, e *tunnel.Error) {
	detail := e.Detail
	if e.Err != nil {
		if detail != "" {
			detail += ": "
		}
		detail += e.Err.Error()
	}
	stage := e.Stage
	if remedies[stage] == "" {
		// It is a gateway's, of another version or of none: what is kept for a stage is not
		// kept for each that somebody makes up.
		stage, detail = tunnel.StageProtocol, string(stage)+": "+detail
	}
	c.noteFault(ctx, id, *c.fault(stage, e.Host, errors.New(detail)))
}

func (c *Control) noteFault(ctx context.Context, id api.TunnelID, f api.TunnelFault) {
	f, ok := c.faults.add(id, f)
	if !ok {
		return
	}
	err := c.write(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.NoteTunnelFault(id, f) })
	if err != nil {
		c.cfg.Logger.Warn("a tunnel's fault could not be kept", "tunnel_id", id, "stage", f.Stage, "error", err)
	}
}

// faults adds up the faults that come faster than they are worth a write.
type faults struct {
	mu     sync.Mutex
	recent map[faultKey]*recentFault
}

type faultKey struct {
	tunnel api.TunnelID
	stage  string
}

type recentFault struct {
	written time.Time
	more    int64 // since then
}

const (
	faultEvery   = 5 * time.Second // one write for a tunnel and a stage
	faultKeysMax = 1000
)

// add counts a fault. It returns it with those that were added up before it, if it is
// time to write.
func (fs *faults) add(id api.TunnelID, f api.TunnelFault) (api.TunnelFault, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.recent == nil || len(fs.recent) >= faultKeysMax {
		fs.recent = map[faultKey]*recentFault{} // which forgets a few counts
	}
	key := faultKey{id, f.Stage}
	r := fs.recent[key]
	if r == nil {
		r = new(recentFault)
		fs.recent[key] = r
	}
	if f.LastAt.Sub(r.written) < faultEvery {
		r.more++
		return f, false
	}
	f.Count += r.more
	r.written, r.more = f.LastAt, 0
	return f, true
}

// NoteTunnelLeaf keeps the certificate that a tunnel's gateway has answered with.
func (c *Control) NoteTunnelLeaf(ctx context.Context, id api.TunnelID, l api.TunnelLeaf) error {
	l.SeenAt = c.cfg.Clock().UTC().Truncate(time.Microsecond)
	l.ExpiresAt = l.ExpiresAt.UTC()
	return c.write(ctx, func(tx *store.Tx) error { return tx.PutTunnelLeaf(id, l) })
}

// -- the way ------------------------------------------------------------------------

// A TunnelRoute is the way to the gateways of a tunnel.
type TunnelRoute struct {
	TunnelID api.TunnelID
	Domain   string
	Edges    []tunnel.EdgeAddr   // where its connectors are attached, the best first
	CAs      []*x509.Certificate // that its gateways are trusted by
}

// TunnelRoute finds the way to a private MCP server of a workspace. Its error is a
// [*tunnel.Error].
func (c *Control) TunnelRoute(ctx context.Context, ws api.WorkspaceID, host string) (*TunnelRoute, error) {
	t, cas, err := c.TunnelByHost(ctx, ws, host)
	if err != nil {
		return nil, err
	}
	edges, err := c.wayTo(ctx, t.ID)
	if err != nil {
		tunnel.AsError(err).Host = host
		return nil, err
	}
	return &TunnelRoute{TunnelID: t.ID, Domain: t.Domain, Edges: edges, CAs: cas}, nil
}

// expectedBack is how long after the last connector has left another is expected, and
// expectedIn when to look for it.
const (
	expectedBack = 2 * time.Minute
	expectedIn   = 5 * time.Second
)

// wayTo finds the edges of a tunnel. Its error is a [*tunnel.Error].
func (c *Control) wayTo(ctx context.Context, id api.TunnelID) ([]tunnel.EdgeAddr, error) {
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, &tunnel.Error{Stage: tunnel.StageEdgeUnreachable, Tunnel: string(id), Detail: "the plane's authority for edges cannot be used", Err: err}
	}
	var edges []*store.Edge
	none := &tunnel.Error{Stage: tunnel.StageNoConnector, Tunnel: string(id), Detail: "no gateway is connected"}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		if edges, err = tx.EdgesOfTunnel(id, edgesTried); err != nil || len(edges) > 0 {
			return err
		}
		left, err := tx.LastDetached(id)
		if !left.IsZero() {
			none.Detail += "; the last one left at " + left.Format(time.RFC3339)
			if tx.Now.Sub(left) < expectedBack {
				none.RetryAfter = expectedIn
			}
		}
		return err
	})
	if err != nil {
		return nil, &tunnel.Error{Stage: tunnel.StageEdgeUnreachable, Tunnel: string(id), Detail: "the plane cannot look up where the tunnel is attached", Err: err}
	}
	var out []tunnel.EdgeAddr
	for _, e := range edges {
		if !e.OwnCertificate {
			for _, addr := range e.DialAddresses {
				out = append(out, tunnel.EdgeAddr{ID: e.ID, Addr: addr, ServerName: e.ServerName, CAs: trust.pool})
			}
			continue
		}
		addrs, err := tunnel.EdgeAddrs(trust.address(e, e.DialAddresses))
		if err != nil {
			c.cfg.Logger.Error("an edge cannot be dialled", "edge_id", e.ID, "error", err)
			continue
		}
		out = append(out, addrs...)
	}
	if len(out) == 0 {
		return nil, none
	}
	return out, nil
}
