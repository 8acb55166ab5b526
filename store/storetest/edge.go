package storetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

func newEdge(id, name string) *store.Edge {
	return &store.Edge{
		Edge: api.Edge{
			ID: api.EdgeID(id), Type: "edge", Name: name, State: api.EdgeActive, Version: "v1",
			ConnectorAddresses: []string{"edge.example.org:443"}, DialAddresses: []string{"[fd00::1]:443", "10.0.0.1:443"}, ServerName: "e.example.org",
			CreatedAt: start, LastSeenAt: start,
		},
		KeyID: "edgekey_1", Deadline: ptr(at(time.Minute)),
	}
}

func newAttachment(id, tunnel, edge string) *store.Attachment {
	return &store.Attachment{TunnelConnection: api.TunnelConnection{
		ID: api.AttachmentID(id), Type: "tunnel_connection", TunnelID: api.TunnelID(tunnel), EdgeID: api.EdgeID(edge), TokenID: "ttkn_1",
		ConnectorID: "c1", Version: "v2", Protocol: api.ProtocolQUIC, RemoteAddress: "192.0.2.1:4242", AttachedAt: start,
	}}
}

func (r *rig) attach(id, tunnel, edge string) {
	r.t.Helper()
	r.write(func(tx *store.Tx) error { return tx.InsertAttachment(newAttachment(id, tunnel, edge)) })
}

func attached(r *rig, tunnel api.TunnelID) (ids []api.AttachmentID) {
	r.t.Helper()
	for _, a := range read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.AttachedTo(tunnel, 10) }) {
		ids = append(ids, a.ID)
	}
	return ids
}

var edgeTests = []test{
	{"WhatWasWrittenIsRead", func(r *rig) {
		e := newEdge("edge_1", "one")
		r.write(func(tx *store.Tx) error { return tx.InsertEdge(e) })
		r.same("by id", e, read(r, func(tx *store.Tx) (*store.Edge, error) { return tx.Edge("edge_1") }))
		r.write(func(tx *store.Tx) error {
			named, err := tx.LockEdgeNamed("one")
			r.same("by name", e, named)
			return err
		})
		e.State, e.Sequence, e.LastSeenAt, e.Deadline, e.GoneAt = api.EdgeGone, 7, at(time.Second), nil, ptr(at(2*time.Second))
		r.write(func(tx *store.Tx) error { return tx.UpdateEdge(e) })
		r.same("updated", e, read(r, func(tx *store.Tx) (*store.Edge, error) { return tx.Edge("edge_1") }))

		a := newAttachment("tatt_1", "tnl_1", "edge_1")
		a.Cut, a.Streams, a.ToGateway, a.FromGateway = ptr("archived"), 1, 2, 3
		r.write(func(tx *store.Tx) error { return tx.InsertAttachment(a) })
		r.same("attachment", []*store.Attachment{a}, read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.AttachedTo("tnl_1", 10) }))
	}},

	{"ANameIsFreeOnceItsEdgeIsGone", func(r *rig) {
		e := newEdge("edge_1", "one")
		r.write(func(tx *store.Tx) error { return tx.InsertEdge(e) })
		if err := r.fail(func(tx *store.Tx) error { return tx.InsertEdge(newEdge("edge_2", "one")) }); !errors.Is(err, store.ErrDuplicate) {
			r.t.Errorf("a second one of the name: %v, want ErrDuplicate", err)
		}
		e.GoneAt, e.Deadline = ptr(at(time.Second)), nil
		r.write(func(tx *store.Tx) error { return tx.UpdateEdge(e) })
		r.write(func(tx *store.Tx) error { return tx.InsertEdge(newEdge("edge_2", "one")) })
		list := func(gone bool) []string {
			return walk(r, api.Descending, 1,
				func(tx *store.Tx, win store.Window) ([]*store.Edge, error) { return tx.Edges(gone, win) },
				func(e *store.Edge) (int64, string) { return e.CreatedAt.UnixMicro(), string(e.ID) })
		}
		r.same("live", []string{"edge_2"}, list(false))
		r.same("all", []string{"edge_2", "edge_1"}, list(true))
	}},

	{"OnlyEdgesThatReportAreReached", func(r *rig) {
		overdue, draining, active, elsewhere := newEdge("edge_1", "a"), newEdge("edge_2", "b"), newEdge("edge_3", "c"), newEdge("edge_4", "d")
		overdue.Deadline, draining.State = ptr(at(-time.Second)), api.EdgeDraining
		draining.CreatedAt = at(time.Millisecond)
		for _, e := range []*store.Edge{overdue, draining, active, elsewhere} {
			r.write(func(tx *store.Tx) error { return tx.InsertEdge(e) })
		}
		for i, e := range []string{"edge_1", "edge_2", "edge_3"} {
			r.attach(fmt.Sprint("tatt_", i), "tnl_1", e)
		}
		r.attach("tatt_4", "tnl_2", "edge_4")
		ids := func(fn func(tx *store.Tx) ([]*store.Edge, error)) (ids []api.EdgeID) {
			for _, e := range read(r, fn) {
				ids = append(ids, e.ID)
			}
			return ids
		}
		r.same("reachable", []api.EdgeID{"edge_3", "edge_4", "edge_2"}, ids(func(tx *store.Tx) ([]*store.Edge, error) { return tx.ReachableEdges(10) }))
		r.same("of tnl_1", []api.EdgeID{"edge_3", "edge_2"}, ids(func(tx *store.Tx) ([]*store.Edge, error) { return tx.EdgesOfTunnel("tnl_1", 10) }))
		r.same("overdue", []api.EdgeID{"edge_1"}, read(r, func(tx *store.Tx) ([]api.EdgeID, error) { return tx.OverdueEdges(10) }))
	}},

	{"AttachmentsEndAndComeBack", func(r *rig) {
		r.attach("tatt_1", "tnl_1", "edge_1")
		r.attach("tatt_2", "tnl_1", "edge_1")
		r.attach("tatt_3", "tnl_1", "edge_2")
		detach := func(edge api.EdgeID, id api.AttachmentID) (was bool) {
			r.write(func(tx *store.Tx) (err error) { was, err = tx.Detach(edge, id, "left"); return err })
			return was
		}
		if detach("edge_2", "tatt_1") {
			r.t.Error("another edge's attachment was ended")
		}
		if !detach("edge_1", "tatt_1") || detach("edge_1", "tatt_1") {
			r.t.Error("an attachment ends once")
		}
		r.write(func(tx *store.Tx) error { _, err := tx.DetachAll("edge_1", "silent"); return err })
		r.same("attached", []api.AttachmentID{"tatt_3"}, attached(r, "tnl_1"))
		r.write(func(tx *store.Tx) error { _, err := tx.Reattach("edge_1", "silent"); return err })
		r.same("back", []api.AttachmentID{"tatt_2", "tatt_3"}, attached(r, "tnl_1"))
		if n := read(r, func(tx *store.Tx) (int64, error) { return tx.CountAttached("edge_1") }); n != 1 {
			r.t.Errorf("%d attached to edge_1", n)
		}
		former := read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.FormerlyAttachedTo("tnl_1", 10) })
		if len(former) != 1 || former[0].ID != "tatt_1" || former[0].DetachReason != "left" || former[0].DetachedAt == nil {
			r.t.Errorf("former: %+v", former)
		}
	}},

	{"ACutStaysUntilItIsDone", func(r *rig) {
		for i, e := range []string{"edge_1", "edge_1", "edge_2", "edge_3"} {
			r.attach(fmt.Sprint("tatt_", i), "tnl_1", e)
		}
		r.attach("tatt_9", "tnl_2", "edge_1")
		r.write(func(tx *store.Tx) error { _, err := tx.DetachAll("edge_2", "silent"); return err })
		r.write(func(tx *store.Tx) error { _, err := tx.DetachAll("edge_3", "left"); return err })
		var edges []api.EdgeID
		r.write(func(tx *store.Tx) (err error) { edges, err = tx.CutTunnel("tnl_1", "archived", "silent"); return err })
		r.same("edges to tell", []api.EdgeID{"edge_1", "edge_2"}, edges)
		cuts := func(e api.EdgeID) []api.EdgeCut {
			return read(r, func(tx *store.Tx) ([]api.EdgeCut, error) { return tx.Cuts(e, 10) })
		}
		r.same("of edge_1", []api.EdgeCut{{AttachmentID: "tatt_0", TunnelID: "tnl_1", Reason: "archived"}, {AttachmentID: "tatt_1", TunnelID: "tnl_1", Reason: "archived"}}, cuts("edge_1"))
		r.same("of a silent one", 0, len(cuts("edge_2")))
		r.write(func(tx *store.Tx) error { _, err := tx.Reattach("edge_2", "silent"); return err })
		r.same("of one that is back", 1, len(cuts("edge_2")))
		r.write(func(tx *store.Tx) error { _, err := tx.Detach("edge_1", "tatt_0", "archived"); return err })
		r.same("done", 1, len(cuts("edge_1")))
	}},

	{"TrafficIsAddedUp", func(r *rig) {
		const many = 100 // more than one statement takes
		traffic := make([]api.EdgeTraffic, many)
		for i := range traffic {
			id, tunnel := fmt.Sprintf("tatt_%03d", i), fmt.Sprint("tnl_", i%3)
			r.attach(id, tunnel, "edge_1")
			traffic[i] = api.EdgeTraffic{AttachmentID: api.AttachmentID(id), ToGateway: 1 << 40, FromGateway: int64(i), Opened: 2, Open: 1}
		}
		r.attach("tatt_other", "tnl_0", "edge_2")
		traffic = append(traffic, api.EdgeTraffic{AttachmentID: "tatt_other", ToGateway: 1}, api.EdgeTraffic{AttachmentID: "tatt_unknown", ToGateway: 1})
		r.write(func(tx *store.Tx) error { _, err := tx.Detach("edge_1", "tatt_003", "left"); return err })
		for range 2 {
			r.write(func(tx *store.Tx) error { return tx.AddTraffic("edge_1", traffic) })
		}
		usage := read(r, func(tx *store.Tx) ([]api.TunnelUsage, error) {
			return tx.TunnelUsage("tnl_0", start.Truncate(time.Hour), start.Add(time.Hour), 10)
		})
		r.same("hour", []api.TunnelUsage{{
			TunnelID: "tnl_0", StartingAt: start.Truncate(time.Hour), EndingAt: start.Truncate(time.Hour).Add(time.Hour),
			ToGateway: 2 * 34 << 40, FromGateway: 2 * 33 * 34 / 2 * 3, Opened: 2 * 34 * 2,
		}}, usage)
		for _, a := range read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.AttachedTo("tnl_1", 100) }) {
			if a.ToGateway != 2<<40 || a.Streams != 1 {
				r.t.Errorf("%s: %d bytes, %d streams", a.ID, a.ToGateway, a.Streams)
			}
		}
		former := read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.FormerlyAttachedTo("tnl_0", 10) })
		if len(former) != 1 || former[0].ToGateway != 2<<40 || former[0].Streams != 0 {
			r.t.Errorf("what has ended counts its last bytes, and has no streams: %+v", former)
		}
		r.write(func(tx *store.Tx) error { _, err := tx.PruneTunnelUsage(start.Add(time.Hour), 2); return err })
		left := 0
		for i := range 3 {
			left += len(read(r, func(tx *store.Tx) ([]api.TunnelUsage, error) {
				return tx.TunnelUsage(api.TunnelID(fmt.Sprint("tnl_", i)), start.Add(-time.Hour), start.Add(time.Hour), 10)
			}))
		}
		r.same("left after pruning two", 1, left)
	}},

	{"FaultsAreCountedByStage", func(r *rig) {
		fault := func(stage, detail string, n int64, t time.Time) api.TunnelFault {
			return api.TunnelFault{Stage: stage, Host: "h", Detail: detail, Count: n, FirstAt: t, LastAt: t}
		}
		for _, f := range []api.TunnelFault{fault("inner_tls", "a", 1, at(0)), fault("no_connector", "b", 1, at(time.Second)), fault("inner_tls", "c", 2, at(time.Minute))} {
			r.write(func(tx *store.Tx) error { return tx.NoteTunnelFault("tnl_1", f) })
		}
		want := []api.TunnelFault{fault("inner_tls", "c", 3, at(time.Minute)), fault("no_connector", "b", 1, at(time.Second))}
		want[0].FirstAt = at(0)
		r.same("faults", want, read(r, func(tx *store.Tx) ([]api.TunnelFault, error) { return tx.TunnelFaults("tnl_1", 10) }))
		r.write(func(tx *store.Tx) error { _, err := tx.PruneTunnelFaults(at(time.Minute), 10); return err })
		r.same("kept", want[:1], read(r, func(tx *store.Tx) ([]api.TunnelFault, error) { return tx.TunnelFaults("tnl_1", 10) }))
	}},

	{"TheNewestLeafIsKept", func(r *rig) {
		if _, err := tryRead(r, func(tx *store.Tx) (api.TunnelLeaf, error) { return tx.TunnelLeaf("tnl_1") }); !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("before there is one: %v", err)
		}
		leaf := api.TunnelLeaf{Host: "a.b", Fingerprint: "00", ExpiresAt: at(time.Hour), SeenAt: at(0)}
		for range 2 {
			r.write(func(tx *store.Tx) error { return tx.PutTunnelLeaf("tnl_1", leaf) })
			r.same("leaf", leaf, read(r, func(tx *store.Tx) (api.TunnelLeaf, error) { return tx.TunnelLeaf("tnl_1") }))
			leaf.ExpiresAt, leaf.SeenAt, leaf.Fingerprint = at(2*time.Hour), at(time.Minute), "01"
		}
	}},

	{"AuthoritiesAreTrustedUntilTheyAreArchivedOrExpire", func(r *rig) {
		authority := func(id string, signs, expires time.Duration) *api.Authority {
			return &api.Authority{
				ID: api.AuthorityID(id), Type: "edge_authority", Certificate: "PEM " + id, CreatedAt: start, SignsFrom: at(signs), ExpiresAt: at(expires),
			}
		}
		older, newer, expired := authority("eca_1", 0, time.Hour), authority("eca_2", time.Minute, 2*time.Hour), authority("eca_3", 0, -time.Minute)
		for _, a := range []*api.Authority{older, newer, expired} {
			r.write(func(tx *store.Tx) error { return tx.InsertAuthority(a) })
		}
		trusted := func() []*api.Authority {
			return read(r, func(tx *store.Tx) ([]*api.Authority, error) { return tx.Authorities() })
		}
		r.same("trusted", []*api.Authority{newer, older}, trusted())
		r.write(func(tx *store.Tx) error { return tx.ArchiveAuthority("eca_1") })
		r.same("after", []*api.Authority{newer}, trusted())
		if err := r.fail(func(tx *store.Tx) error { return tx.ArchiveAuthority("eca_1") }); !errors.Is(err, store.ErrNotFound) {
			r.t.Errorf("archiving twice: %v", err)
		}
	}},

	{"WhatIsOldIsPruned", func(r *rig) {
		gone, silent, live := newEdge("edge_1", "a"), newEdge("edge_2", "b"), newEdge("edge_3", "c")
		gone.GoneAt, gone.Deadline = ptr(at(0)), nil
		silent.Deadline = nil
		for _, e := range []*store.Edge{gone, silent, live} {
			r.write(func(tx *store.Tx) error { return tx.InsertEdge(e) })
		}
		r.attach("tatt_1", "tnl_1", "edge_1")
		r.attach("tatt_2", "tnl_1", "edge_1")
		r.write(func(tx *store.Tx) error { _, err := tx.Detach("edge_1", "tatt_1", "left"); return err })
		r.write(func(tx *store.Tx) error {
			_, e1 := tx.PruneEdges(at(time.Hour), 10)
			_, e2 := tx.PruneSilentEdges(at(time.Hour), 10)
			_, e3 := tx.PruneAttachments(at(time.Hour), 10)
			return errors.Join(e1, e2, e3)
		})
		for id, kept := range map[api.EdgeID]bool{"edge_1": false, "edge_2": false, "edge_3": true} {
			if _, err := tryRead(r, func(tx *store.Tx) (*store.Edge, error) { return tx.Edge(id) }); kept != (err == nil) {
				r.t.Errorf("%s: %v; kept should be %v", id, err, kept)
			}
		}
		r.same("attached", []api.AttachmentID{"tatt_2"}, attached(r, "tnl_1"))
		former := read(r, func(tx *store.Tx) ([]*store.Attachment, error) { return tx.FormerlyAttachedTo("tnl_1", 10) })
		r.same("former", 0, len(former))
	}},
}
