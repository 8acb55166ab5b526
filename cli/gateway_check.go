package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

func (p *Program) gatewayCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check each hop from the edges to the private servers",
		Long: `Checks the way of a call hop by hop, and says what to do where one fails: the way
out to the edges, the token, the certificate and whether the tunnel knows the CA
that signed it, and for each route the address that its server's name leads to and
the server itself. The exit status is 9 if anything failed.

It attaches to nothing and calls no tool; programs of routes are started and asked
who they are. A gateway that runs is not disturbed.`,
		Example: `  bailey gateway check
  bailey gateway check --config /etc/bailey/gateway.yaml -o json`,
	}
	var g gatewayFlags
	p.gatewayFlags(cmd, &g)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		say := func(what string) { fmt.Fprintf(p.Stderr, "checking: %s\n", what) }
		if *out == outJSON {
			say = func(string) {}
		}
		findings, err := p.checkGateway(cmd.Context(), &g, say)
		if err != nil {
			return err
		}
		return p.printFindings(*out, findings)
	}
	return cmd
}

// doctorGateway is the check of the gateway whose settings are here.
func (p *Program) doctorGateway(ctx context.Context, g *gatewayFlags) []finding {
	findings, err := p.checkGateway(ctx, g, func(string) {})
	if err != nil {
		findings = []finding{{"settings", findingFailed, fmt.Sprint(err), "docs/gateway.yaml has every setting"}}
	}
	for i := range findings {
		findings[i].Name = "gateway: " + findings[i].Name
	}
	return findings
}

// checkGateway looks at the whole way of a gateway's calls, and tells say what it looks at.
// What is wrong with the meaning of settings is a finding beside the others; the error is
// of a file that cannot be read.
func (p *Program) checkGateway(ctx context.Context, g *gatewayFlags, say func(what string)) ([]finding, error) {
	cfg, err := g.load()
	if cfg == nil {
		return nil, err
	}
	findings := checkEdges(ctx, cfg, say)
	say("token")
	token, known := p.checkToken(ctx, cfg)
	findings = append(findings, token)
	if cfg.Listen != "" {
		say("running gateway")
		findings = append(findings, checkRunning(ctx, cfg.Listen))
	}
	for _, f := range gateway.Check(ctx, cfg, gateway.CheckOptions{Now: time.Now(), CAs: known, Step: say}) {
		status := findingOK
		switch {
		case !f.OK:
			status = findingFailed
		case f.Remedy != "":
			status = findingNote
		}
		findings = append(findings, finding{f.Name, status, f.Detail, f.Remedy})
	}
	for i := range findings {
		findings[i].Remedy = g.asTyped(findings[i].Remedy)
	}
	return findings, nil
}

// asTyped is a remedy whose commands are about the files that were looked at, also where
// those are not where the commands look by themselves.
func (g *gatewayFlags) asTyped(remedy string) string {
	path := g.path()
	if dir := filepath.Dir(path); dir != gatewayDir {
		remedy = strings.ReplaceAll(remedy, "`bailey gateway init", "`bailey gateway init --dir "+dir)
	}
	if g.config != "" {
		remedy = strings.ReplaceAll(remedy, "`bailey gateway renew", "`bailey gateway renew --config "+g.config)
	}
	return remedy
}

// checkEdges sees whether the edges can be reached. One of several is enough.
func checkEdges(ctx context.Context, cfg *gateway.Config, say func(string)) []finding {
	edges, err := gatewayEdges(cfg)
	if err != nil {
		return []finding{{"outbound", findingFailed, err.Error(), "`bailey gateway init` finds the edges out; or name them with tunnel.edges or --edge"}}
	}
	var findings []finding
	good := 0
	for _, e := range edges {
		f := finding{Name: "outbound " + e.Addr}
		say(f.Name)
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

// checkToken looks at the token, and asks the plane about it where that is known and can be
// reached, which a gateway does not need. known are the CAs that the tunnel knows, nil if
// the plane did not say.
func (p *Program) checkToken(ctx context.Context, cfg *gateway.Config) (f finding, known []*x509.Certificate) {
	f = finding{Name: "token", Status: findingFailed}
	token, err := p.gatewayToken(cfg)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "`bailey gateway init` fetches it, and so does `bailey tunnels reveal-token "+cmp.Or(cfg.Tunnel.ID, "TUNNEL")+" --save "+cmp.Or(cfg.Tunnel.TokenFile, tokenFile)+"`"
		return f, nil
	}
	id := api.TunnelID(cfg.Tunnel.ID)
	if id != "" && !token.IsFor(id) {
		f.Detail = "it is another tunnel's: not that of tunnel.id, " + cfg.Tunnel.ID
		f.Remedy = "`bailey gateway init` fetches the token of " + cfg.Tunnel.ID + "; if that is not the tunnel that is meant, correct tunnel.id and tunnel.domain"
		return f, nil
	}
	form := "it has the form of one, " + string(token.ID())[:len(api.PrefixToken)+8] + "…"
	unasked := func(why string) (finding, []*x509.Certificate) {
		f.Status, f.Detail = findingNote, form+"; whether it is good, and whether the tunnel knows the CA of this gateway, was not asked: "+why
		f.Remedy = "the gateway needs no way to the server: a running one that is ready has a good token, and `bailey tunnels status` shows whether its certificate is refused (inner tls)"
		return f, nil
	}
	if cfg.Tunnel.Server == "" || id == "" {
		return unasked("tunnel.server and tunnel.id do not say whom to ask")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cl, err := client.New(client.Config{BaseURL: cfg.Tunnel.Server, Key: token.Text()})
	if err != nil {
		return unasked(err.Error())
	}
	answer, err := cl.TunnelEdges(ctx, id)
	switch {
	case apiError(api.TypeAuthentication, api.TypePermission, api.TypeNotFound)(err):
		f.Detail = "the server refuses it: " + err.Error()
		f.Remedy = "it was rotated, or its tunnel archived: `bailey gateway init` fetches the one in force"
		return f, nil
	case err != nil:
		return unasked(err.Error())
	}
	f.Status, f.Detail = findingOK, "the server accepts it, "+string(token.ID())[:len(api.PrefixToken)+8]+"…"
	if known, err = parseCAs(answer.CAs); err != nil {
		f.Status, f.Detail = findingNote, f.Detail+"; the CAs of the tunnel cannot be read: "+err.Error()
	}
	return f, known
}

// parseCAs reads certificates in PEM, one after the other. No text is none, and not nil.
func parseCAs(text string) ([]*x509.Certificate, error) {
	cas := []*x509.Certificate{}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return cas, nil
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		cas = append(cas, ca)
	}
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
		f.Status, f.Detail, f.Remedy = findingFailed, "the gateway at "+listen+" is not ready: "+notReadyReason(text), "see its log"
		return f
	}
	f.Status, f.Detail = findingOK, "the gateway at "+listen+" is attached and ready"
	return f
}

// notReadyReason is what a gateway's /readyz says.
func notReadyReason(answer []byte) string {
	var health struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(answer, &health) == nil && health.Reason != "" {
		return health.Reason
	}
	return strings.TrimSpace(string(answer))
}
