package api

import (
	"net"
	"strings"
	"time"
	"unicode"
)

// Edges are where the connectors of tunnels dial in, and where the plane dials the
// tunnels. They hold no database: what they must know and what they have seen goes
// over these operations, all of which are an extension.

// Identifiers of edges and what is attached to them.
type (
	EdgeID       string // edge_…
	AttachmentID string // tatt_…, one connection of a connector to an edge
	AuthorityID  string // eca_…, a CA of the plane's own
)

// The prefixes of those identifiers.
const (
	PrefixEdge       = "edge_"
	PrefixAttachment = "tatt_"
	PrefixAuthority  = "eca_"
)

// The limits of edges.
const (
	EdgeAddressesMax = 16
	EdgeReportMax    = 1000 // entries of one report; more go into the next
	EdgeCutsMax      = 1000 // attachments in one answer
	EdgeChangesMax   = 30 * time.Second
	edgeNameMax      = 128
	edgeVersionMax   = 64
	edgeAddressMax   = 300
	edgeCSRMax       = 8 << 10
	edgeCAMax        = 16 << 10
	connectorTextMax = 128
	tokenTextMax     = 4 << 10
)

// An EdgeState is how the plane sees an edge.
type EdgeState string

const (
	EdgeActive   EdgeState = "active"
	EdgeDraining EdgeState = "draining" // takes no new connectors, and asks those it has to go elsewhere
	EdgeSilent   EdgeState = "silent"   // has not reported in time; it may come back
	EdgeGone     EdgeState = "gone"     // has left, or another took its name
)

// An Edge is one process that tunnels run through.
type Edge struct {
	ID      EdgeID    `json:"id"`
	Type    string    `json:"type"` // "edge"
	Name    string    `json:"name"`
	State   EdgeState `json:"state"`
	Version string    `json:"version"`

	// ConnectorAddresses are where connectors reach it, host:port, and DialAddresses
	// where the replicas of the plane do.
	ConnectorAddresses []string `json:"connector_addresses"`
	DialAddresses      []string `json:"dial_addresses"`

	// ServerName is the name in its certificate. One of its operator's was signed by
	// CAs, in PEM, or if there are none by one of the web's; else it is the plane's.
	ServerName     string `json:"server_name"`
	OwnCertificate bool   `json:"own_certificate"`
	CAs            string `json:"ca_pem,omitempty"`

	CreatedAt  time.Time  `json:"created_at"`
	LastSeenAt time.Time  `json:"last_seen_at"`
	GoneAt     *time.Time `json:"gone_at"`
	Connectors int64      `json:"connectors"` // attached now
}

// An EdgeRegister is the body of POST /v1/edges.
type EdgeRegister struct {
	// Name tells edges apart. A registration takes the name over from an earlier one,
	// which is then gone.
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`

	ConnectorAddresses []string `json:"connector_addresses"`
	DialAddresses      []string `json:"dial_addresses"`

	// CSR asks for a certificate of the plane's own authority, which chooses the names
	// in it. An edge with a certificate of its operator's says instead what name that
	// has and, in PEM, who signed it: nothing is the CAs of the web.
	CSR        string `json:"csr_pem,omitempty"`
	ServerName string `json:"server_name,omitempty"`
	CAs        string `json:"ca_pem,omitempty"`
}

// Check applies the limits of a registration.
func (e *EdgeRegister) Check() error {
	if err := checkText("name", e.Name, 1, edgeNameMax); err != nil {
		return err
	}
	if err := checkText("version", e.Version, 0, edgeVersionMax); err != nil {
		return err
	}
	if err := checkAddresses("connector_addresses", e.ConnectorAddresses); err != nil {
		return err
	}
	if err := checkAddresses("dial_addresses", e.DialAddresses); err != nil {
		return err
	}
	switch {
	case (e.CSR == "") == (e.ServerName == ""):
		return Invalid("csr_pem or server_name: give one of them; the name of a certificate that the plane signs is the plane's choice")
	case e.CSR != "" && e.CAs != "":
		return Invalid("ca_pem: is for an edge with a certificate of its own")
	case len(e.CAs) > edgeCAMax:
		return Invalid("ca_pem: must be at most %d bytes", edgeCAMax)
	case strings.Contains(e.CAs, "PRIVATE KEY"):
		return Invalid("ca_pem: holds a private key, which must not leave its machine: replace that key")
	}
	if e.CSR == "" {
		return checkText("server_name", e.ServerName, 1, 253)
	}
	return checkLen("csr_pem", e.CSR, 1, edgeCSRMax)
}

func checkAddresses(name string, addresses []string) error {
	if len(addresses) == 0 || len(addresses) > EdgeAddressesMax {
		return Invalid("%s: must be 1 to %d addresses", name, EdgeAddressesMax)
	}
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" || port == "0" || len(a) > edgeAddressMax || strings.ContainsFunc(a, unicode.IsSpace) {
			return Invalid("%s: %q is not host:port", name, cutText(a, 100))
		}
	}
	return nil
}

// checkText is checkLen for text that is shown to people in one line.
func checkText(name, text string, least, most int) error {
	if err := checkLen(name, text, least, most); err != nil {
		return err
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return Invalid("%s: must not contain control characters", name)
	}
	return nil
}

func cutText(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// An EdgeRegistration is the answer to POST /v1/edges.
type EdgeRegistration struct {
	Edge
	EdgeCertificate

	// LeaseSeconds is how long an edge may be silent before its connectors count as
	// lost. With nothing to say it reports just that.
	LeaseSeconds int64 `json:"lease_seconds"`
}

// An EdgeCertificate is what an edge serves with. It is also the answer to
// POST /v1/edges/{id}/certificate.
type EdgeCertificate struct {
	// Certificate is the chain in PEM, and RenewAt when to ask for the next one. ""
	// and null for an edge with its operator's certificate.
	Certificate string     `json:"certificate_pem,omitempty"`
	RenewAt     *time.Time `json:"renew_at,omitempty"`

	// DialerCAs, in PEM, are who has signed the certificates that the plane's dialers
	// present. Revision changes when they do; see [EdgeReportAnswer].
	DialerCAs string `json:"dialer_ca_pem"`
	Revision  string `json:"authority_revision"`
}

// An EdgeCertificateRequest is the body of POST /v1/edges/{id}/certificate.
type EdgeCertificateRequest struct {
	CSR string `json:"csr_pem,omitempty"` // "" where the operator's is used
}

// Check applies the limits of a request for a certificate.
func (r *EdgeCertificateRequest) Check() error { return checkLen("csr_pem", r.CSR, 0, edgeCSRMax) }

// A TunnelProtocol is how a connector reaches an edge.
type TunnelProtocol string

const (
	ProtocolQUIC TunnelProtocol = "quic"
	ProtocolTCP  TunnelProtocol = "tcp"
)

// An EdgeAttach is the body of POST /v1/edges/{id}/attachments: a connector wants in.
type EdgeAttach struct {
	Token         string         `json:"tunnel_token"`
	ConnectorID   string         `json:"connector_id"` // as it calls itself; the same on every edge
	Version       string         `json:"version,omitempty"`
	Protocol      TunnelProtocol `json:"protocol"`
	RemoteAddress string         `json:"remote_address"` // as the edge sees it
}

// Check applies the limits of an attachment.
func (a *EdgeAttach) Check() error {
	if err := checkLen("tunnel_token", a.Token, 1, tokenTextMax); err != nil {
		return err
	}
	if err := checkText("connector_id", a.ConnectorID, 0, connectorTextMax); err != nil {
		return err
	}
	if err := checkText("version", a.Version, 0, edgeVersionMax); err != nil {
		return err
	}
	if a.Protocol != ProtocolQUIC && a.Protocol != ProtocolTCP {
		return Invalid("protocol: must be quic or tcp")
	}
	return checkText("remote_address", a.RemoteAddress, 0, edgeAddressMax)
}

// An EdgeGrant is the answer to an [EdgeAttach]: the connector may serve the tunnel.
type EdgeGrant struct {
	ID       AttachmentID `json:"id"`
	Type     string       `json:"type"` // "tunnel_attachment"
	TunnelID TunnelID     `json:"tunnel_id"`
	Domain   string       `json:"domain"`

	// Edges are where connectors can attach now, this edge among them.
	Edges []EdgeAddress `json:"edges"`
}

// An EdgeAddress is where a connector, or a dialer of the plane, reaches an edge.
type EdgeAddress struct {
	EdgeID     EdgeID   `json:"edge_id"`
	Addresses  []string `json:"addresses"`
	ServerName string   `json:"server_name"`

	// CAs, in PEM, is who may have signed its certificate; "" is the CAs of the web.
	CAs string `json:"ca_pem,omitempty"`
}

// An EdgeDetach is the body of POST /v1/edges/{id}/attachments/{id}/detach.
type EdgeDetach struct {
	Reason string `json:"reason,omitempty"`
}

// Check applies the limits of a detachment.
func (d *EdgeDetach) Check() error { return checkText("reason", d.Reason, 0, detachReasonMax) }

const detachReasonMax = 300

// An EdgeReport is the body of POST /v1/edges/{id}/reports: that the edge is alive,
// and what has passed since its last report.
type EdgeReport struct {
	// Sequence numbers the reports of an edge from 1. The plane counts each once, so a
	// report whose answer was lost is sent again as it is.
	Sequence int64         `json:"sequence"`
	Draining bool          `json:"draining,omitempty"`
	Traffic  []EdgeTraffic `json:"traffic,omitempty"`
}

// EdgeTraffic is what has passed through one attachment since the last report.
type EdgeTraffic struct {
	AttachmentID AttachmentID `json:"attachment_id"`
	ToGateway    int64        `json:"bytes_to_gateway"`
	FromGateway  int64        `json:"bytes_from_gateway"`
	Opened       int64        `json:"streams_opened"` // since the last report
	Open         int64        `json:"streams_open"`   // now
}

// Check applies the limits of a report.
func (r *EdgeReport) Check() error {
	if r.Sequence < 1 {
		return Invalid("sequence: must be at least 1")
	}
	if len(r.Traffic) > EdgeReportMax {
		return Invalid("traffic: at most %d entries", EdgeReportMax)
	}
	seen := make(map[AttachmentID]bool, len(r.Traffic))
	for _, t := range r.Traffic {
		if err := CheckID("attachment_id", string(t.AttachmentID)); err != nil {
			return err
		}
		if t.ToGateway < 0 || t.FromGateway < 0 || t.Opened < 0 || t.Open < 0 || max(t.ToGateway, t.FromGateway, t.Opened, t.Open) > trafficMax {
			return Invalid("traffic: counts must be 0 to %d", int64(trafficMax))
		}
		if seen[t.AttachmentID] {
			return Invalid("traffic: %s is there twice", t.AttachmentID)
		}
		seen[t.AttachmentID] = true
	}
	return nil
}

// trafficMax keeps sums far from overflow.
const trafficMax = 1 << 50

// An EdgeReportAnswer is the answer to a report.
type EdgeReportAnswer struct {
	Sequence int64  `json:"sequence"`           // the last one that was counted
	Gone     bool   `json:"gone,omitempty"`     // the edge is not one any more; what it reported was counted
	Revision string `json:"authority_revision"` // of the dialers' CAs: another than that of the edge's certificate means to ask for a new one
}

// EdgeChanges is the answer to GET /v1/edges/{id}/changes, which waits until there is
// something to answer.
type EdgeChanges struct {
	// Cuts are the attachments that are to end. One stays until the edge has detached it.
	Cuts []EdgeCut `json:"cuts"`

	// Edges are where connectors can attach, if that is not the list whose revision was
	// asked with.
	Edges         []EdgeAddress `json:"edges,omitempty"`
	EdgesRevision string        `json:"edges_revision"`
}

// An EdgeCut is an attachment that is to end, and why.
type EdgeCut struct {
	AttachmentID AttachmentID `json:"attachment_id"`
	TunnelID     TunnelID     `json:"tunnel_id"`
	Reason       string       `json:"reason"`
}

// TunnelEdges is the answer to GET /v1/tunnels/{id}/edges: where the connectors of a
// tunnel can attach, and who may have signed the certificates that its gateways show.
type TunnelEdges struct {
	Data []EdgeAddress `json:"data"`

	// CAs are the certificates of the tunnel's live CAs in PEM, "" if it has none. They
	// are no secret.
	CAs string `json:"ca_certificates"`
}

// A TunnelConnection is a connector that is, or was, attached.
type TunnelConnection struct {
	ID            AttachmentID   `json:"id"`
	Type          string         `json:"type"` // "tunnel_connection"
	TunnelID      TunnelID       `json:"tunnel_id"`
	TokenID       TokenID        `json:"token_id"` // of the token it attached with
	EdgeID        EdgeID         `json:"edge_id"`
	Edge          string         `json:"edge"` // its name
	ConnectorID   string         `json:"connector_id"`
	Version       string         `json:"version"`
	Protocol      TunnelProtocol `json:"protocol"`
	RemoteAddress string         `json:"remote_address"`
	AttachedAt    time.Time      `json:"attached_at"`
	DetachedAt    *time.Time     `json:"detached_at"`
	DetachReason  string         `json:"detach_reason,omitempty"`
	Streams       int64          `json:"streams"` // open now
	ToGateway     int64          `json:"bytes_to_gateway"`
	FromGateway   int64          `json:"bytes_from_gateway"`
}

// A TunnelFault is what has gone wrong with a tunnel at one stage, the last time and
// how often.
type TunnelFault struct {
	Stage   string    `json:"stage"`
	Host    string    `json:"host,omitempty"`
	Detail  string    `json:"detail"`
	Remedy  string    `json:"remedy,omitempty"`
	Count   int64     `json:"count"`
	FirstAt time.Time `json:"first_at"`
	LastAt  time.Time `json:"last_at"`
}

// A TunnelLeaf is the certificate that a gateway answered with last.
type TunnelLeaf struct {
	Host        string    `json:"host"`
	Fingerprint string    `json:"ca_fingerprint"` // of the CA that signed it
	ExpiresAt   time.Time `json:"expires_at"`
	SeenAt      time.Time `json:"seen_at"`
}

// A TunnelStatus is the answer to GET /v1/tunnels/{id}/connections.
type TunnelStatus struct {
	TunnelID TunnelID `json:"tunnel_id"`

	// State is what the tunnel can do: see the constants.
	State TunnelState `json:"state"`

	Data        []TunnelConnection `json:"data"` // attached now, the newest first
	Former      []TunnelConnection `json:"former"`
	Certificate *TunnelLeaf        `json:"certificate"` // null until one was seen
	Faults      []TunnelFault      `json:"faults"`      // the newest first
}

// A TunnelState is what a tunnel can do.
type TunnelState string

const (
	TunnelReady        TunnelState = "ready"
	TunnelNoCA         TunnelState = "needs_certificate"
	TunnelDisconnected TunnelState = "disconnected"
	TunnelArchived     TunnelState = "archived"
)

// A TunnelUsage is what passed through a tunnel in one hour.
type TunnelUsage struct {
	TunnelID    TunnelID  `json:"tunnel_id"`
	StartingAt  time.Time `json:"starting_at"`
	EndingAt    time.Time `json:"ending_at"`
	ToGateway   int64     `json:"bytes_to_gateway"`
	FromGateway int64     `json:"bytes_from_gateway"`
	Opened      int64     `json:"streams_opened"`
}

// TunnelUsages is the answer to GET /v1/tunnels/{id}/usage.
type TunnelUsages struct {
	Data []TunnelUsage `json:"data"` // the newest first
}

// An Authority is a CA of the plane's own, for the certificates of edges and of the
// plane's dialers. Its key stays on the plane, sealed.
type Authority struct {
	ID          AuthorityID `json:"id"`
	Type        string      `json:"type"` // "edge_authority"
	Fingerprint string      `json:"fingerprint"`
	Certificate string      `json:"certificate_pem"`
	CreatedAt   time.Time   `json:"created_at"`
	SignsFrom   time.Time   `json:"signs_from"` // it is trusted at once, and signs once everybody trusts it
	ExpiresAt   time.Time   `json:"expires_at"`
	ArchivedAt  *time.Time  `json:"archived_at"` // not trusted any more
}
