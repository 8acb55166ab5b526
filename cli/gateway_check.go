package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

func (p *Program) gatewayCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check each hop from the edges to the private servers",
		Long: `Checks the way of a call hop by hop, and says what to do where one fails: the way
out to the edges, the token, the certificate, and for each route the address that
its server's name leads to and the server itself. The exit status is 9 if
anything failed.

It attaches to nothing and calls no tool; programs of routes are started and asked
who they are. A gateway that runs is not disturbed.`,
		Example: `  bailey gateway check
  bailey gateway check --config /etc/bailey/gateway.yaml -o json`,
	}
	var g gatewayFlags
	p.gatewayFlags(cmd, &g)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := g.load()
		if err != nil {
			return err
		}
		return p.printFindings(*out, p.checkGateway(cmd.Context(), cfg))
	}
	return cmd
}

// doctorGateway is the check of the gateway whose settings are here.
func (p *Program) doctorGateway(ctx context.Context, g *gatewayFlags) []finding {
	cfg, err := g.load()
	findings := []finding{{"settings", findingFailed, fmt.Sprint(err), "docs/gateway.yaml has every setting"}}
	if err == nil {
		findings = p.checkGateway(ctx, cfg)
	}
	for i := range findings {
		findings[i].Name = "gateway: " + findings[i].Name
	}
	return findings
}

// checkGateway looks at the whole way of a gateway's calls.
func (p *Program) checkGateway(ctx context.Context, cfg *gateway.Config) []finding {
	findings := append(checkEdges(ctx, cfg), p.checkToken(ctx, cfg))
	if cfg.Listen != "" {
		findings = append(findings, checkRunning(ctx, cfg.Listen))
	}
	for _, f := range gateway.Check(ctx, cfg, nil, time.Now()) {
		status := findingOK
		switch {
		case !f.OK:
			status = findingFailed
		case f.Remedy != "":
			status = findingNote
		}
		findings = append(findings, finding{f.Name, status, f.Detail, f.Remedy})
	}
	return findings
}

// checkEdges sees whether the edges can be reached. One of several is enough.
func checkEdges(ctx context.Context, cfg *gateway.Config) []finding {
	edges, err := gatewayEdges(cfg)
	if err != nil {
		return []finding{{"outbound", findingFailed, err.Error(), "`bailey gateway init` finds the edges out; or name them with tunnel.edges or --edge"}}
	}
	var findings []finding
	good := 0
	for _, e := range edges {
		f := finding{Name: "outbound " + e.Addr}
		began := time.Now()
		probing, cancel := context.WithTimeout(ctx, probeTimeout)
		via, err := connect.Probe(probing, e)
		cancel()
		through := ""
		if via != "" {
			through = " through the proxy " + via
		}
		if err != nil {
			f.Status, f.Detail = findingFailed, err.Error()+through
			f.Remedy = "let this host connect to " + e.Addr + " (TCP, or by a proxy in HTTPS_PROXY)"
			if strings.Contains(err.Error(), "TLS") {
				f.Remedy = "see that the edge's certificate is signed by the authority in tunnel.edges (ca), and that nothing on the way opens TLS; `bailey gateway init` fetches the authority anew"
			}
		} else {
			good++
			f.Status, f.Detail = findingOK, fmt.Sprintf("an edge answers%s (%s)", through, time.Since(began).Round(time.Millisecond))
		}
		findings = append(findings, f)
	}
	if good > 0 {
		for i := range findings {
			if findings[i].Status == findingFailed {
				findings[i].Status = findingNote // the others carry the tunnel
			}
		}
	}
	return findings
}

// checkToken looks at the token, and asks the plane about it where its address is known.
func (p *Program) checkToken(ctx context.Context, cfg *gateway.Config) finding {
	f := finding{Name: "token", Status: findingFailed}
	token, err := p.gatewayToken(cfg)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "`bailey gateway init` fetches it; or put what `bailey tunnels reveal-token` prints into the file"
		return f
	}
	id := api.TunnelID(cfg.Tunnel.ID)
	if id != "" && !token.IsFor(id) {
		f.Status, f.Detail = findingNote, "it names another tunnel than tunnel.id, "+cfg.Tunnel.ID
	} else {
		f.Status, f.Detail = findingOK, "it has the form of one: "+string(token.ID())[:len(api.PrefixToken)+8]+"…"
	}
	if cfg.Tunnel.Server == "" || id == "" {
		f.Detail += "; whether it is accepted, an edge says at the attachment"
		return f
	}
	return askForToken(ctx, f, cfg.Tunnel.Server, id, token)
}

// askForToken asks the plane whether the token is good. A gateway needs no way to the
// plane, so that none is no fault.
func askForToken(ctx context.Context, f finding, server string, id api.TunnelID, token tunnel.Token) finding {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cl, err := client.New(client.Config{BaseURL: server, Key: token.Text()})
	if err == nil {
		_, err = cl.TunnelEdges(ctx, id)
	}
	switch {
	case err == nil:
		f.Detail += "; the server accepts it"
	case apiError(api.TypeAuthentication, api.TypePermission, api.TypeNotFound)(err):
		f.Status, f.Detail = findingFailed, "the server refuses it: "+err.Error()
		f.Remedy = "it was rotated or its tunnel archived: fetch the one in force with `bailey gateway init`"
	default:
		f.Detail += "; the server was not asked: " + err.Error()
	}
	return f
}

// checkRunning asks the gateway that runs here how it is.
func checkRunning(ctx context.Context, listen string) finding {
	f := finding{Name: "running"}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if strings.HasPrefix(listen, ":") {
		listen = "127.0.0.1" + listen
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/readyz", nil)
	if err != nil {
		f.Status, f.Detail = findingNote, err.Error()
		return f
	}
	res, err := probeClient.Do(req)
	if err != nil {
		f.Status, f.Detail = findingNote, "no gateway answers at "+listen
		return f
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // what there is of it will do
	if res.StatusCode != http.StatusOK {
		f.Status, f.Detail, f.Remedy = findingFailed, "the gateway at "+listen+" is not ready: "+strings.TrimSpace(string(text)), "see its log"
		return f
	}
	f.Status, f.Detail = findingOK, "the gateway at "+listen+" is attached and ready"
	return f
}
