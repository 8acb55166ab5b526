package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

// An edge registers, reports each second that something passes and else every few, and
// asks for each connector whether it may serve the tunnel whose token it has. What is
// attached to which edge is in the table; that is how the dialers of any replica find
// their way. An edge that falls silent loses what is attached to it until it reports
// again, so that nobody waits for one that is gone.

const (
	edgesMax             = 1000 // that are not gone
	edgesTold            = 8    // to a connector
	edgesTried           = 16   // for a tunnel
	edgesTextMax         = 24 << 10
	attachmentsPerTunnel = 200
	changesPoll          = time.Second // how often who waits for changes looks by itself
)

// The reasons of attachments that the plane ends.
const (
	reasonSilent   = "edge_silent"   // its edge does not report; taken back when it does
	reasonReplaced = "edge_replaced" // another process has the edge's name
	reasonStopped  = "edge_stopped"  // its edge has left
	reasonKey      = "edge_key_revoked"
	reasonArchived = "tunnel_archived" // the tunnel was archived
)

// OwnEdgeKey makes an edge key for an edge within this process. It is kept in memory
// alone, and good until it is dropped.
func (c *Control) OwnEdgeKey() (secret string, drop func()) {
	secret, _, _ = c.newSecret(api.KeyEdge)
	return secret, c.own.add(secret, Principal{Kind: api.KeyEdge, Own: true})
}

// runs refuses everybody but the edge itself: who has the key it registered with.
func (p Principal) runs(e *store.Edge) error {
	if p.Kind != api.KeyEdge || p.KeyID != e.KeyID {
		return api.NotFound("edge %s was not found", e.ID)
	}
	return nil
}

func (p Principal) edge() error {
	if p.Kind != api.KeyEdge {
		return api.Forbidden("this operation needs an edge key; `bailey keys create --name NAME --type edge_key` makes one")
	}
	return nil
}

// RegisterEdge adds an edge, which then has to report. One of the same name and key
// that there was before is gone.
func (c *Control) RegisterEdge(ctx context.Context, p Principal, in api.EdgeRegister) (*api.EdgeRegistration, error) {
	if err := p.edge(); err != nil {
		return nil, err
	}
	if err := in.Check(); err != nil {
		return nil, err
	}
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	name := in.ServerName
	if in.CSR != "" {
		name = edgeServerName(in.Name)
	}
	cert, err := trust.certify(in.CSR, name, c.cfg.Clock())
	if err != nil {
		return nil, err
	}
	out := &api.EdgeRegistration{EdgeCertificate: cert, LeaseSeconds: int64(c.cfg.EdgeLease / time.Second)}
	err = c.write(ctx, func(tx *store.Tx) error {
		if err := tx.Alone(); err != nil { // names and their number
			return err
		}
		old, err := tx.LockEdgeNamed(in.Name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			n, err := tx.CountEdges()
			if err != nil {
				return err
			}
			if n >= edgesMax {
				return api.Conflict("there are %d edges already, which is the most", n)
			}
		case err != nil:
			return err
		case old.KeyID != p.KeyID && old.Deadline != nil:
			return api.Conflict("an edge named %q runs with another key; give this one another name", in.Name)
		default:
			if err := c.endEdge(tx, old, reasonReplaced); err != nil {
				return err
			}
		}
		deadline := tx.Now.Add(c.cfg.EdgeLease)
		e := &store.Edge{
			Edge: api.Edge{
				ID: newID[api.EdgeID](c, api.PrefixEdge), Type: "edge", Name: in.Name, State: api.EdgeActive, Version: in.Version,
				ConnectorAddresses: in.ConnectorAddresses, DialAddresses: in.DialAddresses, ServerName: name, CAs: in.CAs, OwnCertificate: in.CSR == "",
				CreatedAt: tx.Now, LastSeenAt: tx.Now,
			},
			KeyID: p.KeyID, Deadline: &deadline,
		}
		out.Edge = e.Edge
		tx.Notify(topicEdges)
		return tx.InsertEdge(e)
	})
	return out, err
}

// endEdge ends an edge for good, and what is attached to it.
func (c *Control) endEdge(tx *store.Tx, e *store.Edge, reason string) error {
	if _, err := tx.DetachAll(e.ID, reason); err != nil {
		return err
	}
	e.State, e.Deadline, e.GoneAt = api.EdgeGone, nil, &tx.Now
	tx.Notify(topicEdge(e.ID))
	tx.Notify(topicEdges)
	return tx.UpdateEdge(e)
}

// endEdgesOf ends the edges that run with a key, which is about to be revoked.
func (c *Control) endEdgesOf(tx *store.Tx, key api.KeyID) error {
	edges, err := tx.LockEdgesOf(key)
	for _, e := range edges {
		if err == nil {
			err = c.endEdge(tx, e, reasonKey)
		}
	}
	return err
}

// onEdge runs fn on the caller's edge, which is locked.
func (c *Control) onEdge(ctx context.Context, p Principal, id api.EdgeID, fn func(*store.Tx, *store.Edge) error) error {
	return c.write(ctx, func(tx *store.Tx) error {
		e, err := tx.LockEdge(id)
		if err != nil {
			return found(err, "edge", string(id))
		}
		if err := p.runs(e); err != nil {
			return err
		}
		if e.GoneAt != nil {
			return edgeGone(e)
		}
		return fn(tx, e)
	})
}

// edgeGone tells an edge that it is not one any more. It may register again.
func edgeGone(e *store.Edge) error {
	err := api.Conflict("edge %s is gone: it has left, or another process has registered as %q", e.ID, e.Name)
	api.AsError(err).Status = http.StatusGone
	return err
}

// LeaveEdge ends an edge that stops.
func (c *Control) LeaveEdge(ctx context.Context, p Principal, id api.EdgeID) (*api.Edge, error) {
	var out *api.Edge
	err := c.onEdge(ctx, p, id, func(tx *store.Tx, e *store.Edge) error {
		out = &e.Edge
		return c.endEdge(tx, e, reasonStopped)
	})
	return out, err
}

// CertifyEdge makes an edge's next certificate, and tells it who signs for dialers.
func (c *Control) CertifyEdge(ctx context.Context, p Principal, id api.EdgeID, in api.EdgeCertificateRequest) (*api.EdgeCertificate, error) {
	if err := in.Check(); err != nil {
		return nil, err
	}
	var e *store.Edge
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		e, err = tx.Edge(id)
		return found(err, "edge", string(id))
	})
	if err != nil {
		return nil, err
	}
	if err := p.runs(e); err != nil {
		return nil, err
	}
	if e.GoneAt != nil {
		return nil, edgeGone(e)
	}
	if in.CSR != "" && e.OwnCertificate {
		return nil, api.Invalid("csr_pem: edge %s has a certificate of its operator's", id)
	}
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := trust.certify(in.CSR, e.ServerName, c.cfg.Clock())
	return &cert, err
}

// AttachTunnel lets a connector in, or refuses it. Of a token that is not good it does
// not say why.
func (c *Control) AttachTunnel(ctx context.Context, p Principal, id api.EdgeID, in api.EdgeAttach) (*api.EdgeGrant, error) {
	if err := in.Check(); err != nil {
		return nil, err
	}
	// Strangers cost no write.
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		_, err := knownToken(tx, in.Token)
		return err
	})
	if err != nil {
		return nil, err
	}
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	var grant *api.EdgeGrant
	var refused *api.TunnelFault
	var of api.TunnelID
	err = c.onEdge(ctx, p, id, func(tx *store.Tx, e *store.Edge) error {
		token, t, err := goodToken(tx, in.Token)
		if t != nil {
			of = t.ID
		}
		if err != nil {
			refused = c.fault(tunnel.StageTokenRefused, "", fmt.Errorf("%w (it came from %s)", err, sender(in.RemoteAddress)))
			return err
		}
		n, err := tx.CountAttachedTo(t.ID)
		if err != nil {
			return err
		}
		if n >= attachmentsPerTunnel {
			err := api.Overloaded(time.Minute, "%d connectors are attached to tunnel %s, which is the most", n, t.ID)
			refused = c.fault(tunnel.StageOverloaded, "", fmt.Errorf("%w; one more came from %s", err, sender(in.RemoteAddress)))
			return err
		}
		a := &store.Attachment{TunnelConnection: api.TunnelConnection{
			ID: newID[api.AttachmentID](c, api.PrefixAttachment), TunnelID: t.ID, TokenID: token.ID, EdgeID: e.ID,
			ConnectorID: in.ConnectorID, Version: in.Version, Protocol: in.Protocol, RemoteAddress: in.RemoteAddress, AttachedAt: tx.Now,
		}}
		if err := tx.InsertAttachment(a); err != nil {
			return err
		}
		edges, err := reachable(tx, trust)
		if err != nil {
			return err
		}
		grant = &api.EdgeGrant{ID: a.ID, Type: "tunnel_attachment", TunnelID: t.ID, Domain: t.Domain, Edges: edges}
		return nil
	})
	if refused != nil && of != "" {
		c.noteFault(ctx, of, *refused)
	}
	return grant, err
}

// authenticateConnector finds out whose a tunnel token is that is shown instead of a
// key.
func (c *Control) authenticateConnector(ctx context.Context, t tunnel.Token) (Principal, error) {
	var p Principal
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		token, err := tx.Token(t.ID())
		if errors.Is(err, store.ErrNotFound) || err == nil && !token.Good(tx.Now) {
			return api.Unauthenticated("invalid credential")
		}
		if err == nil {
			p = Principal{Kind: api.KeyTunnelToken, KeyID: api.KeyID(token.ID), TunnelID: token.TunnelID}
		}
		return err
	})
	return p, err
}

// errBadToken is all that a connector is told of a token that is not good.
func errBadToken() error {
	return api.Forbidden("the tunnel token is not good: it was rotated, or the tunnel archived, or it was not copied whole")
}

// knownToken finds a token that was given out, good or not.
func knownToken(tx *store.Tx, text string) (*store.TunnelToken, error) {
	parsed, err := tunnel.ParseToken(text)
	if err != nil {
		return nil, errBadToken()
	}
	token, err := tx.Token(parsed.ID())
	if errors.Is(err, store.ErrNotFound) {
		return nil, errBadToken()
	}
	return token, err
}

// goodToken finds the tunnel that a connector may attach to with a token. The tunnel
// is locked, so that it is not archived in between, and returned if it is known, also
// with an error.
func goodToken(tx *store.Tx, text string) (*store.TunnelToken, *store.Tunnel, error) {
	token, err := knownToken(tx, text)
	if err != nil {
		return nil, nil, err
	}
	t, err := tx.LockTunnel(api.WorkspaceDefault, token.TunnelID)
	switch {
	case err != nil:
		return nil, nil, err
	case t.ArchivedAt != nil || !token.Good(tx.Now):
		return nil, t, errBadToken()
	}
	return token, t, nil
}

// sender is an address without its port, which is another one at each attempt.
func sender(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return cmp.Or(address, "an unknown address")
}

// DetachTunnel notes that an attachment is over. One that was over already, or is not
// known any more, is no error.
func (c *Control) DetachTunnel(ctx context.Context, p Principal, id api.EdgeID, a api.AttachmentID, in api.EdgeDetach) error {
	if err := in.Check(); err != nil {
		return err
	}
	return c.onEdge(ctx, p, id, func(tx *store.Tx, e *store.Edge) error {
		_, err := tx.Detach(e.ID, a, in.Reason)
		return err
	})
}

// ReportEdge counts what has passed through an edge, and notes that it is alive. A
// report is counted once, however often it comes.
func (c *Control) ReportEdge(ctx context.Context, p Principal, id api.EdgeID, in api.EdgeReport) (*api.EdgeReportAnswer, error) {
	if err := in.Check(); err != nil {
		return nil, err
	}
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.EdgeReportAnswer{Sequence: in.Sequence, Revision: trust.revision}
	err = c.write(ctx, func(tx *store.Tx) error {
		e, err := tx.LockEdge(id)
		if err != nil {
			return found(err, "edge", string(id))
		}
		if err := p.runs(e); err != nil {
			return err
		}
		switch in.Sequence {
		case e.Sequence: // its answer was lost
		case e.Sequence + 1:
			if err := tx.AddTraffic(e.ID, in.Traffic); err != nil {
				return err
			}
		default:
			return api.Conflict("sequence: the next report of edge %s is %d, not %d", id, e.Sequence+1, in.Sequence)
		}
		e.Sequence, e.LastSeenAt = in.Sequence, tx.Now
		if out.Gone = e.GoneAt != nil; out.Gone {
			return tx.UpdateEdge(e) // its last words
		}
		if e.State == api.EdgeSilent {
			if _, err := tx.Reattach(e.ID, reasonSilent); err != nil {
				return err
			}
			tx.Notify(topicEdge(e.ID)) // something may have to be cut
		}
		state := api.EdgeActive
		if in.Draining {
			state = api.EdgeDraining
		}
		if e.State != state {
			e.State = state
			tx.Notify(topicEdges)
		}
		deadline := tx.Now.Add(c.cfg.EdgeLease)
		e.Deadline = &deadline
		return tx.UpdateEdge(e)
	})
	return out, err
}

// EdgeChanges waits until there is something for an edge to do: attachments to end, or
// another list of edges than that with the revision. It answers without either after a
// while.
func (c *Control) EdgeChanges(ctx context.Context, p Principal, id api.EdgeID, revision string, block time.Duration) (*api.EdgeChanges, error) {
	changed := newSignal()
	defer c.hub.subscribe(topicEdge(id), changed)()
	defer c.hub.subscribe(topicEdges, changed)()
	late := time.NewTimer(block)
	defer late.Stop()
	look := time.NewTicker(changesPoll)
	defer look.Stop()
	for {
		out, err := c.edgeChanges(ctx, p, id)
		if err != nil {
			return nil, err
		}
		if out.EdgesRevision == revision {
			out.Edges = nil
		}
		if len(out.Cuts) > 0 || out.EdgesRevision != revision || c.hub.isClosed() {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late.C:
			return out, nil
		case <-changed.C:
		case <-look.C:
		}
	}
}

// edgeChanges is how things are now.
func (c *Control) edgeChanges(ctx context.Context, p Principal, id api.EdgeID) (*api.EdgeChanges, error) {
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.EdgeChanges{Cuts: []api.EdgeCut{}}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		e, err := tx.Edge(id)
		if err != nil {
			return found(err, "edge", string(id))
		}
		if err := p.runs(e); err != nil {
			return err
		}
		if e.GoneAt != nil {
			return edgeGone(e)
		}
		cuts, err := tx.Cuts(id, api.EdgeCutsMax)
		if err != nil {
			return err
		}
		out.Cuts = append(out.Cuts, cuts...)
		out.Edges, err = reachable(tx, trust)
		out.EdgesRevision = edgesRevision(out.Edges)
		return err
	})
	return out, err
}

// cutTunnel has the edges of a tunnel end what is attached to it.
func (c *Control) cutTunnel(tx *store.Tx, id api.TunnelID) error {
	edges, err := tx.CutTunnel(id, reasonArchived, reasonSilent)
	for _, e := range edges {
		tx.Notify(topicEdge(e))
	}
	return err
}

// silence handles an edge whose report is overdue.
func (c *Control) silence(ctx context.Context, id api.EdgeID) error {
	return c.write(ctx, func(tx *store.Tx) error {
		e, err := tx.LockEdge(id)
		if errors.Is(err, store.ErrNotFound) || err == nil && (e.Deadline == nil || e.Deadline.After(tx.Now)) {
			return nil // it reported meanwhile, or is gone
		}
		if err != nil {
			return err
		}
		n, err := tx.DetachAll(e.ID, reasonSilent)
		if err != nil {
			return err
		}
		c.cfg.Logger.Warn("an edge has fallen silent", "edge_id", e.ID, "name", e.Name, "last_seen_at", e.LastSeenAt, "attachments", n)
		e.State, e.Deadline = api.EdgeSilent, nil
		tx.Notify(topicEdges)
		return tx.UpdateEdge(e)
	})
}

// ListEdges lists edges, the newest first.
func (c *Control) ListEdges(ctx context.Context, p Principal, gone bool, req api.PageRequest) (api.Page[*api.Edge], error) {
	return listNewest(ctx, c, p, req,
		func(tx *store.Tx, win store.Window) ([]*store.Edge, error) {
			edges, err := tx.Edges(gone, win)
			for _, e := range edges {
				if err == nil && e.GoneAt == nil {
					e.Connectors, err = tx.CountAttached(e.ID)
				}
			}
			return edges, err
		},
		func(e *store.Edge) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) },
		func(e *store.Edge) *api.Edge { return &e.Edge })
}

// reachable is where connectors can attach, as they need to know it.
func reachable(tx *store.Tx, t *trust) ([]api.EdgeAddress, error) {
	edges, err := tx.ReachableEdges(edgesTold)
	if err != nil {
		return nil, err
	}
	out := []api.EdgeAddress{}
	size := 0
	for _, e := range edges {
		if e.State != api.EdgeActive && len(out) > 0 {
			break // one that drains only where there is no other
		}
		a := t.address(e, e.ConnectorAddresses)
		if size += len(a.CAs); size > edgesTextMax && len(out) > 0 {
			break
		}
		out = append(out, a)
	}
	return out, nil
}

// edgesRevision is another for another list.
func edgesRevision(edges []api.EdgeAddress) string {
	h := sha256.New()
	for _, e := range edges {
		fmt.Fprintf(h, "%q %q %q %q\n", e.EdgeID, e.Addresses, e.ServerName, e.CAs)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// address is an edge as those see it who dial it.
func (t *trust) address(e *store.Edge, addresses []string) api.EdgeAddress {
	a := api.EdgeAddress{EdgeID: e.ID, Addresses: addresses, ServerName: e.ServerName, CAs: e.CAs}
	if !e.OwnCertificate {
		a.CAs = t.pem
	}
	return a
}

// sweepEdges does what is due of edges.
func (c *Control) sweepEdges(ctx context.Context) error {
	var overdue []api.EdgeID
	err := c.db.Read(ctx, func(tx *store.Tx) (err error) {
		overdue, err = tx.OverdueEdges(sweepBatch)
		return err
	})
	for _, id := range overdue {
		err = errors.Join(err, c.silence(ctx, id))
	}
	return err
}

// How long things can be looked up once they are over.
const (
	edgeKept        = 24 * time.Hour
	attachmentKept  = 7 * 24 * time.Hour
	faultKept       = 30 * 24 * time.Hour
	tunnelUsageKept = 400 * 24 * time.Hour
)

// pruneEdges removes what is old.
func (c *Control) pruneEdges(ctx context.Context) error {
	return c.write(ctx, func(tx *store.Tx) error {
		const batch = 10 * sweepBatch
		_, e1 := tx.PruneEdges(tx.Now.Add(-edgeKept), batch)
		_, e2 := tx.PruneSilentEdges(tx.Now.Add(-edgeKept), batch)
		_, e3 := tx.PruneAttachments(tx.Now.Add(-attachmentKept), batch)
		_, e4 := tx.PruneTunnelFaults(tx.Now.Add(-faultKept), batch)
		_, e5 := tx.PruneTunnelUsage(tx.Now.Add(-tunnelUsageKept), batch)
		return errors.Join(e1, e2, e3, e4, e5)
	})
}
