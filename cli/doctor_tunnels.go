package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel"
)

// doctorTunnelsMax bounds the tunnels, and the edges, that doctor looks at.
const doctorTunnelsMax = 50

// checkTunnels looks at the edges that the server knows, and at what its tunnels say of
// themselves. Without tunnels there is nothing to say.
func (c *connection) checkTunnels(ctx context.Context) []finding {
	cl, err := c.client()
	if err != nil {
		return nil
	}
	tunnels, err := take(cl.Tunnels(ctx, client.ListOptions{PageSize: doctorTunnelsMax}), doctorTunnelsMax)
	if err != nil {
		if apiError(api.TypePermission)(err) {
			return []finding{{"tunnels", findingNote, "this key may not manage them", "look with one made by `bailey keys create --name NAME --scope tunnels`"}}
		}
		return []finding{{"tunnels", findingFailed, err.Error(), ""}}
	}
	out := c.checkEdges(ctx, cl, len(tunnels))
	for _, t := range tunnels {
		s, err := cl.TunnelStatus(ctx, t.ID)
		if err != nil {
			out = append(out, finding{"tunnel " + string(t.ID), findingFailed, err.Error(), ""})
			continue
		}
		out = append(out, tunnelFindings(t, s, time.Now())...)
	}
	return out
}

// checkEdges looks at the edges, and whether they answer from here.
func (c *connection) checkEdges(ctx context.Context, cl *client.Client, tunnels int) []finding {
	edges, err := take(cl.Edges(ctx, client.ListOptions{PageSize: doctorTunnelsMax}), doctorTunnelsMax)
	if err != nil {
		return []finding{{"edges", findingFailed, err.Error(), ""}}
	}
	if len(edges) == 0 {
		if tunnels == 0 {
			return nil
		}
		return []finding{{"edges", findingFailed, "there is none, so no gateway can connect", "see tunnel-listen of `bailey serve`, or run `bailey edge`"}}
	}
	authorities, err := cl.Authorities(ctx)
	if err != nil {
		return []finding{{"edges", findingFailed, err.Error(), ""}}
	}
	own := x509.NewCertPool()
	for _, a := range authorities {
		own.AppendCertsFromPEM([]byte(a.Certificate))
	}
	var out []finding
	for _, e := range edges {
		out = append(out, lookAtEdge(ctx, e, own))
	}
	return out
}

func lookAtEdge(ctx context.Context, e *api.Edge, own *x509.CertPool) finding {
	f := finding{Name: "edge " + e.Name}
	switch e.State {
	case api.EdgeSilent:
		f.Status, f.Detail = findingFailed, "has not reported since "+when(e.LastSeenAt)
		f.Remedy = "look at its machine and its log; what was connected to it has gone elsewhere"
		return f
	case api.EdgeDraining:
		f.Status, f.Detail = findingNote, "is about to stop: its gateways go to other edges"
		return f
	}
	roots := own
	if e.OwnCertificate {
		roots = nil
		if e.CAs != "" {
			roots = x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(e.CAs))
		}
	}
	var problems []string
	for _, addr := range e.ConnectorAddresses {
		until, err := greetEdge(ctx, addr, e.ServerName, roots)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", addr, err))
			continue
		}
		f.Status, f.Detail = findingOK, fmt.Sprintf("%s answers, %s, its certificate is good until %s", addr, count(int(e.Connectors), "gateway"), when(until))
		return f
	}
	// A gateway's way there may be another one than ours.
	f.Status, f.Detail = findingNote, fmt.Sprintf("reports, with %s, but is not reached from here: %s", count(int(e.Connectors), "gateway"), strings.Join(problems, "; "))
	f.Remedy = "no fault if gateways reach it from where they are"
	return f
}

// greetEdge makes the TLS connection that a gateway makes, and says until when the
// edge's certificate is good.
func greetEdge(ctx context.Context, addr, name string, roots *x509.CertPool) (time.Time, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second}, Config: &tls.Config{
		RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPNConnector},
	}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter, nil
}

// faultFresh is how new a failure has to be to be mentioned.
const faultFresh = time.Hour

// tunnelFindings are what a tunnel's status comes to.
func tunnelFindings(t *api.Tunnel, s *api.TunnelStatus, now time.Time) []finding {
	name := "tunnel " + string(t.ID)
	if t.DisplayName != nil {
		name = "tunnel " + *t.DisplayName
	}
	f := finding{Name: name, Status: findingOK}
	switch s.State {
	case api.TunnelNoCA:
		f.Status, f.Detail, f.Remedy = findingNote, "has no CA certificate, and takes no calls until it has", "inside: `bailey gateway init --tunnel "+string(t.ID)+" --route NAME=http://HOST:PORT`"
	case api.TunnelDisconnected:
		f.Status, f.Detail, f.Remedy = findingFailed, "no gateway is connected", "start `bailey gateway` inside; `bailey gateway check` there says what is in its way"
	default:
		edges := map[api.EdgeID]bool{}
		for _, c := range s.Data {
			edges[c.EdgeID] = true
		}
		f.Detail = fmt.Sprintf("%s of gateways, over %s", count(len(s.Data), "connection"), count(len(edges), "edge"))
	}
	out := []finding{f}
	if l := s.Certificate; l != nil {
		left := l.ExpiresAt.Sub(now)
		cert := finding{Name: name, Detail: "its gateway's certificate " + leafText(l, now), Remedy: "inside: `bailey gateway renew`"}
		switch {
		case left < 7*24*time.Hour:
			cert.Status = findingFailed
			out = append(out, cert)
		case left < leafSoon:
			cert.Status = findingNote
			out = append(out, cert)
		}
	}
	for _, fault := range s.Faults {
		if now.Sub(fault.LastAt) < faultFresh {
			out = append(out, finding{name, findingNote, fmt.Sprintf("%s at %s (%s): %s", strings.ReplaceAll(fault.Stage, "_", " "), when(fault.LastAt), count(int(fault.Count), "time"), fault.Detail), fault.Remedy})
		}
	}
	return out
}
