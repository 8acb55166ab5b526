package store

import (
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// An Attachment is the row of a connection between a connector and an edge.
type Attachment struct {
	api.TunnelConnection         // Edge is known to those who read the edge
	Cut                  *string // why the edge is to end it; nil: it is not
}

const attachmentColumns = `attachments.id, attachments.tunnel_id, attachments.edge_id, attachments.token_id, attachments.connector_id,
	attachments.version, attachments.protocol, attachments.remote, attachments.attached_at, attachments.detached_at, attachments.reason,
	attachments.cut, attachments.streams, attachments.to_gateway, attachments.from_gateway`

func scanAttachment(row scanner) (*Attachment, error) {
	a := Attachment{TunnelConnection: api.TunnelConnection{Type: "tunnel_connection"}}
	var attached int64
	var detached sql.NullInt64
	err := row.Scan(&a.ID, &a.TunnelID, &a.EdgeID, &a.TokenID, &a.ConnectorID, &a.Version, &a.Protocol, &a.RemoteAddress, &attached, &detached, &a.DetachReason,
		&a.Cut, &a.Streams, &a.ToGateway, &a.FromGateway)
	a.AttachedAt, a.DetachedAt = fromMicros(attached), fromOptMicros(detached)
	return &a, err
}

// lockAttachments locks rows in one order, for a statement that is about to change
// many of them: two that meet on the same ones would otherwise wait for each other.
func (tx *Tx) lockAttachments(cond string, args ...any) error {
	if tx.d.forUpdate == "" {
		return nil
	}
	_, err := collect(tx, scanOne[string], "SELECT id FROM attachments WHERE "+cond+" ORDER BY id"+tx.d.forUpdate, args...)
	return err
}

// InsertAttachment adds an attachment.
func (tx *Tx) InsertAttachment(a *Attachment) error {
	_, err := tx.exec(`INSERT INTO attachments (id, tunnel_id, edge_id, token_id, connector_id, version, protocol, remote, attached_at, detached_at, reason,
		cut, streams, to_gateway, from_gateway) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		a.ID, a.TunnelID, a.EdgeID, a.TokenID, a.ConnectorID, a.Version, a.Protocol, a.RemoteAddress, micros(a.AttachedAt), optMicros(a.DetachedAt), a.DetachReason,
		a.Cut, a.Streams, a.ToGateway, a.FromGateway)
	return err
}

// Detach ends an attachment of an edge. It reports whether there was one to end.
func (tx *Tx) Detach(edge api.EdgeID, id api.AttachmentID, reason string) (bool, error) {
	n, err := tx.exec("UPDATE attachments SET detached_at = ?, reason = ?, streams = 0 WHERE edge_id = ? AND id = ? AND detached_at IS NULL",
		micros(tx.Now), reason, edge, id)
	return n > 0, err
}

// DetachAll ends the attachments of an edge.
func (tx *Tx) DetachAll(edge api.EdgeID, reason string) (int64, error) {
	if err := tx.lockAttachments("edge_id = ? AND detached_at IS NULL", edge); err != nil {
		return 0, err
	}
	return tx.exec("UPDATE attachments SET detached_at = ?, reason = ?, streams = 0 WHERE edge_id = ? AND detached_at IS NULL",
		micros(tx.Now), reason, edge)
}

// Reattach takes back a DetachAll for that reason.
func (tx *Tx) Reattach(edge api.EdgeID, reason string) (int64, error) {
	if err := tx.lockAttachments("edge_id = ? AND detached_at IS NOT NULL AND reason = ?", edge, reason); err != nil {
		return 0, err
	}
	return tx.exec("UPDATE attachments SET detached_at = NULL, reason = '' WHERE edge_id = ? AND detached_at IS NOT NULL AND reason = ?", edge, reason)
}

// CutTunnel marks the attachments of a tunnel for their edges to end, also those that
// an edge which is silent may still have, and returns the edges.
func (tx *Tx) CutTunnel(id api.TunnelID, reason, silent string) ([]api.EdgeID, error) {
	const which = "tunnel_id = ? AND cut IS NULL AND (detached_at IS NULL OR reason = ?)"
	if err := tx.lockAttachments(which, id, silent); err != nil {
		return nil, err
	}
	edges, err := collect(tx, scanOne[api.EdgeID], "UPDATE attachments SET cut = ? WHERE "+which+" RETURNING edge_id", reason, id, silent)
	slices.Sort(edges)
	return slices.Compact(edges), err
}

// Cuts reads the attachments of an edge that it is to end.
func (tx *Tx) Cuts(edge api.EdgeID, limit int) ([]api.EdgeCut, error) {
	return collect(tx, func(row scanner) (c api.EdgeCut, err error) {
		return c, row.Scan(&c.AttachmentID, &c.TunnelID, &c.Reason)
	}, "SELECT id, tunnel_id, cut FROM attachments WHERE edge_id = ? AND cut IS NOT NULL AND detached_at IS NULL ORDER BY id LIMIT ?", edge, limit)
}

// AttachedTo reads what is attached to a tunnel now, the newest first.
func (tx *Tx) AttachedTo(id api.TunnelID, limit int) ([]*Attachment, error) {
	return collect(tx, scanAttachment, "SELECT "+attachmentColumns+` FROM attachments
		WHERE tunnel_id = ? AND detached_at IS NULL ORDER BY attached_at DESC, id LIMIT ?`, id, limit)
}

// FormerlyAttachedTo reads what was attached to a tunnel, the last to leave first.
func (tx *Tx) FormerlyAttachedTo(id api.TunnelID, limit int) ([]*Attachment, error) {
	return collect(tx, scanAttachment, "SELECT "+attachmentColumns+` FROM attachments
		WHERE tunnel_id = ? AND detached_at IS NOT NULL ORDER BY detached_at DESC, id LIMIT ?`, id, limit)
}

// CountAttached counts what is attached to an edge.
func (tx *Tx) CountAttached(edge api.EdgeID) (int64, error) {
	return tx.count("SELECT count(*) FROM attachments WHERE edge_id = ? AND detached_at IS NULL", edge)
}

// CountAttachedTo counts what is attached to a tunnel.
func (tx *Tx) CountAttachedTo(id api.TunnelID) (int64, error) {
	return tx.count("SELECT count(*) FROM attachments WHERE tunnel_id = ? AND detached_at IS NULL", id)
}

// LastDetached is when something was last detached from a tunnel; the zero time if
// nothing was.
func (tx *Tx) LastDetached(id api.TunnelID) (time.Time, error) {
	var last sql.NullInt64
	err := tx.row("SELECT max(detached_at) FROM attachments WHERE tunnel_id = ? AND detached_at IS NOT NULL", id).Scan(&last)
	if err != nil || !last.Valid {
		return time.Time{}, tx.classify(err)
	}
	return fromMicros(last.Int64), nil
}

// PruneAttachments removes attachments that ended before t, a batch at a time.
func (tx *Tx) PruneAttachments(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM attachments WHERE id IN (SELECT id FROM attachments WHERE detached_at < ? LIMIT ?)", micros(t), limit)
}

// -- usage -------------------------------------------------------------------------

// trafficBatch is how many attachments one statement updates: many when there are
// many, else one, so that there are two texts of it.
const trafficBatch = 32

// AddTraffic adds what an edge has reported to its attachments and to the tunnels'
// hour. What belongs to no attachment of the edge is left out.
func (tx *Tx) AddTraffic(edge api.EdgeID, traffic []api.EdgeTraffic) error {
	sums := map[api.TunnelID]api.EdgeTraffic{}
	traffic = slices.SortedFunc(slices.Values(traffic), func(a, b api.EdgeTraffic) int { return strings.Compare(string(a.AttachmentID), string(b.AttachmentID)) })
	for len(traffic) > 0 {
		n := 1
		if len(traffic) >= trafficBatch {
			n = trafficBatch
		}
		if err := tx.addTraffic(edge, traffic[:n], sums); err != nil {
			return err
		}
		traffic = traffic[n:]
	}
	// In one order, so that two edges do not wait for each other.
	tunnels := make([]api.TunnelID, 0, len(sums))
	for id := range sums {
		tunnels = append(tunnels, id)
	}
	slices.Sort(tunnels)
	hour := micros(tx.Now.Truncate(time.Hour))
	for _, id := range tunnels {
		sum := sums[id]
		_, err := tx.exec(`INSERT INTO tunnel_usage (tunnel_id, hour, to_gateway, from_gateway, streams) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (tunnel_id, hour) DO UPDATE SET to_gateway = tunnel_usage.to_gateway + excluded.to_gateway,
			from_gateway = tunnel_usage.from_gateway + excluded.from_gateway, streams = tunnel_usage.streams + excluded.streams`,
			id, hour, sum.ToGateway, sum.FromGateway, sum.Opened)
		if err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) addTraffic(edge api.EdgeID, traffic []api.EdgeTraffic, sums map[api.TunnelID]api.EdgeTraffic) error {
	const row = "(CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT))"
	byID := make(map[api.AttachmentID]api.EdgeTraffic, len(traffic))
	args := make([]any, 0, 4*len(traffic)+1)
	for _, t := range traffic {
		byID[t.AttachmentID] = t
		args = append(args, t.AttachmentID, t.Open, t.ToGateway, t.FromGateway)
	}
	if len(traffic) > 1 {
		ids := make([]any, len(traffic))
		for i, t := range traffic {
			ids[i] = t.AttachmentID
		}
		if err := tx.lockAttachments("id IN (?"+strings.Repeat(", ?", len(ids)-1)+")", ids...); err != nil {
			return err
		}
	}
	args = append(args, edge)
	type updated struct {
		id     api.AttachmentID
		tunnel api.TunnelID
	}
	// Both engines name the columns of VALUES so. What has ended meanwhile has no open
	// streams, but its last bytes count.
	rows, err := collect(tx, func(row scanner) (u updated, err error) { return u, row.Scan(&u.id, &u.tunnel) },
		`UPDATE attachments SET streams = CASE WHEN detached_at IS NULL THEN v.column2 ELSE 0 END,
			to_gateway = to_gateway + v.column3, from_gateway = from_gateway + v.column4
		FROM (VALUES `+strings.TrimSuffix(strings.Repeat(row+", ", len(traffic)), ", ")+`) AS v
		WHERE attachments.id = v.column1 AND edge_id = ? RETURNING id, tunnel_id`, args...)
	for _, u := range rows {
		t, sum := byID[u.id], sums[u.tunnel]
		sum.ToGateway, sum.FromGateway, sum.Opened = sum.ToGateway+t.ToGateway, sum.FromGateway+t.FromGateway, sum.Opened+t.Opened
		sums[u.tunnel] = sum
	}
	return err
}

// TunnelUsage reads what passed through a tunnel in the hours that begin in
// [from, to), the newest first.
func (tx *Tx) TunnelUsage(id api.TunnelID, from, to time.Time, limit int) ([]api.TunnelUsage, error) {
	return collect(tx, func(row scanner) (u api.TunnelUsage, err error) {
		var hour int64
		err = row.Scan(&u.TunnelID, &hour, &u.ToGateway, &u.FromGateway, &u.Opened)
		u.StartingAt = fromMicros(hour)
		u.EndingAt = u.StartingAt.Add(time.Hour)
		return u, err
	}, "SELECT tunnel_id, hour, to_gateway, from_gateway, streams FROM tunnel_usage WHERE tunnel_id = ? AND hour >= ? AND hour < ? ORDER BY hour DESC LIMIT ?",
		id, micros(from), micros(to), limit)
}

// PruneTunnelUsage removes the hours before t, a batch at a time.
func (tx *Tx) PruneTunnelUsage(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM tunnel_usage WHERE (tunnel_id, hour) IN (SELECT tunnel_id, hour FROM tunnel_usage WHERE hour < ? LIMIT ?)", micros(t), limit)
}

// -- faults ------------------------------------------------------------------------

// NoteTunnelFault counts a fault of a tunnel at a stage and keeps what the newest
// says.
func (tx *Tx) NoteTunnelFault(id api.TunnelID, f api.TunnelFault) error {
	_, err := tx.exec(`INSERT INTO tunnel_faults (tunnel_id, stage, host, detail, count, first_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (tunnel_id, stage) DO UPDATE SET host = excluded.host, detail = excluded.detail,
		count = tunnel_faults.count + excluded.count, last_at = excluded.last_at`,
		id, f.Stage, f.Host, f.Detail, f.Count, micros(f.FirstAt), micros(f.LastAt))
	return err
}

// TunnelFaults reads the faults of a tunnel, the newest first.
func (tx *Tx) TunnelFaults(id api.TunnelID, limit int) ([]api.TunnelFault, error) {
	return collect(tx, func(row scanner) (f api.TunnelFault, err error) {
		var first, last int64
		err = row.Scan(&f.Stage, &f.Host, &f.Detail, &f.Count, &first, &last)
		f.FirstAt, f.LastAt = fromMicros(first), fromMicros(last)
		return f, err
	}, "SELECT stage, host, detail, count, first_at, last_at FROM tunnel_faults WHERE tunnel_id = ? ORDER BY last_at DESC, stage LIMIT ?", id, limit)
}

// PruneTunnelFaults removes faults that were last seen before t, a batch at a time.
func (tx *Tx) PruneTunnelFaults(t time.Time, limit int) (int64, error) {
	return tx.exec("DELETE FROM tunnel_faults WHERE (tunnel_id, stage) IN (SELECT tunnel_id, stage FROM tunnel_faults WHERE last_at < ? LIMIT ?)", micros(t), limit)
}

// PutTunnelLeaf keeps the certificate that a tunnel's gateway answered with.
func (tx *Tx) PutTunnelLeaf(id api.TunnelID, l api.TunnelLeaf) error {
	_, err := tx.exec(`INSERT INTO tunnel_leaves (tunnel_id, host, fingerprint, expires_at, seen_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (tunnel_id) DO UPDATE SET host = excluded.host, fingerprint = excluded.fingerprint, expires_at = excluded.expires_at, seen_at = excluded.seen_at`,
		id, l.Host, l.Fingerprint, micros(l.ExpiresAt), micros(l.SeenAt))
	return err
}

// TunnelLeaf reads the certificate that a tunnel's gateway answered with last.
func (tx *Tx) TunnelLeaf(id api.TunnelID) (api.TunnelLeaf, error) {
	return one(tx, func(row scanner) (l api.TunnelLeaf, err error) {
		var expires, seen int64
		err = row.Scan(&l.Host, &l.Fingerprint, &expires, &seen)
		l.ExpiresAt, l.SeenAt = fromMicros(expires), fromMicros(seen)
		return l, err
	}, "SELECT host, fingerprint, expires_at, seen_at FROM tunnel_leaves WHERE tunnel_id = ?", id)
}
