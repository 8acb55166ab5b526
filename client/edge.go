package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// The operations of edges make one attempt each: an edge has its own mind about when to
// try again.

// RegisterEdge adds an edge. The caller has an edge key.
func (c *Client) RegisterEdge(ctx context.Context, in api.EdgeRegister) (*api.EdgeRegistration, error) {
	out := new(api.EdgeRegistration)
	return out, c.attempt(ctx, http.MethodPost, "/v1/edges", nil, in, out)
}

// CertifyEdge asks for an edge's next certificate.
func (c *Client) CertifyEdge(ctx context.Context, id api.EdgeID, in api.EdgeCertificateRequest) (*api.EdgeCertificate, error) {
	out := new(api.EdgeCertificate)
	return out, c.attempt(ctx, http.MethodPost, path("/v1/edges/%s/certificate", id), nil, in, out)
}

// AttachTunnel asks whether a connector may serve the tunnel whose token it has.
func (c *Client) AttachTunnel(ctx context.Context, id api.EdgeID, in api.EdgeAttach) (*api.EdgeGrant, error) {
	out := new(api.EdgeGrant)
	return out, c.attempt(ctx, http.MethodPost, path("/v1/edges/%s/attachments", id), nil, in, out)
}

// DetachTunnel says that an attachment is over.
func (c *Client) DetachTunnel(ctx context.Context, id api.EdgeID, a api.AttachmentID, in api.EdgeDetach) error {
	return c.attempt(ctx, http.MethodPost, path("/v1/edges/%s/attachments/%s/detach", id, a), nil, in, nil)
}

// ReportEdge tells what has passed through an edge.
func (c *Client) ReportEdge(ctx context.Context, id api.EdgeID, in api.EdgeReport) (*api.EdgeReportAnswer, error) {
	out := new(api.EdgeReportAnswer)
	return out, c.attempt(ctx, http.MethodPost, path("/v1/edges/%s/reports", id), nil, in, out)
}

// EdgeChanges waits up to block for something that the edge is to do. revision is that
// of the list of edges that it has.
func (c *Client) EdgeChanges(ctx context.Context, id api.EdgeID, revision string, block time.Duration) (*api.EdgeChanges, error) {
	query := url.Values{"block_ms": {strconv.FormatInt(block.Milliseconds(), 10)}, "edges_revision": {revision}}
	out := new(api.EdgeChanges)
	return out, c.attempt(ctx, http.MethodGet, path("/v1/edges/%s/changes", id), query, nil, out)
}

// LeaveEdge says that an edge has stopped.
func (c *Client) LeaveEdge(ctx context.Context, id api.EdgeID) error {
	return c.attempt(ctx, http.MethodPost, path("/v1/edges/%s/leave", id), nil, nil, nil)
}

// attempt is do without a second try.
func (c *Client) attempt(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("client: encode the request: %w", err)
		}
	}
	return c.once(ctx, method, path, query, body, out)
}

// Edges lists edges, the newest first; with IncludeArchived those too that are gone.
func (c *Client) Edges(ctx context.Context, o ListOptions) iter.Seq2[*api.Edge, error] {
	q := o.query()
	if q.Has("include_archived") {
		q.Del("include_archived")
		q.Set("include_gone", "true")
	}
	return list[*api.Edge](ctx, c, "/v1/edges", q)
}

// Authorities lists the CAs that vouch for edges, the newest first.
func (c *Client) Authorities(ctx context.Context) ([]*api.Authority, error) {
	var out api.Page[*api.Authority]
	err := c.do(ctx, http.MethodGet, "/v1/edge_authorities", nil, nil, &out)
	return out.Data, err
}

// RotateAuthority makes the next CA for edges.
func (c *Client) RotateAuthority(ctx context.Context) (*api.Authority, error) {
	out := new(api.Authority)
	return out, c.do(ctx, http.MethodPost, "/v1/edge_authorities/rotate", nil, nil, out)
}

// ArchiveAuthority ends the trust in a CA for edges.
func (c *Client) ArchiveAuthority(ctx context.Context, id api.AuthorityID) (*api.Authority, error) {
	out := new(api.Authority)
	return out, c.do(ctx, http.MethodPost, path("/v1/edge_authorities/%s/archive", id), nil, nil, out)
}

// TunnelEdges lists where the connectors of a tunnel can attach, and the CAs that their
// gateways are trusted by. The tunnel's token is good for it, too. The answer is never nil.
func (c *Client) TunnelEdges(ctx context.Context, id api.TunnelID) (*api.TunnelEdges, error) {
	out := new(api.TunnelEdges)
	return out, c.do(ctx, http.MethodGet, path("/v1/tunnels/%s/edges", id), nil, nil, out)
}

// TunnelStatus says who is attached to a tunnel, and what went wrong last.
func (c *Client) TunnelStatus(ctx context.Context, id api.TunnelID) (*api.TunnelStatus, error) {
	out := new(api.TunnelStatus)
	return out, c.do(ctx, http.MethodGet, path("/v1/tunnels/%s/connections", id), nil, nil, out)
}

// TunnelUsage lists what passed through a tunnel in each hour that begins in [from,
// to), the newest first. Zero times leave it to the server.
func (c *Client) TunnelUsage(ctx context.Context, id api.TunnelID, from, to time.Time) ([]api.TunnelUsage, error) {
	q := url.Values{}
	for name, t := range map[string]time.Time{"starting_at": from, "ending_at": to} {
		if !t.IsZero() {
			q.Set(name, t.Format(time.RFC3339))
		}
	}
	var out api.TunnelUsages
	err := c.do(ctx, http.MethodGet, path("/v1/tunnels/%s/usage", id), q, nil, &out)
	return out.Data, err
}
