package daemon

import (
	"crypto/x509"
	"net/http"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/tunnel"
)

// newOutbound makes the way to hosts that users name, which those of tunnels go another.
func (d *Daemon) newOutbound() (*egress.Outbound, error) {
	open, err := egress.ParseOpen(d.cfg.MCPAllowedAddresses)
	if err != nil {
		return nil, badSetting("mcp-allowed-addresses", "%v", err)
	}
	return egress.NewOutbound(egress.Outbound{
		Open: open,
		Tunnelled: func(host string) bool {
			_, _, ok := tunnel.SplitHost(host, d.cfg.TunnelDomain)
			return ok
		},
		Tunnel: throughTunnels{d},
	}), nil
}

// throughTunnels is the dialer of tunnels, which is made after what uses it.
type throughTunnels struct{ d *Daemon }

func (t throughTunnels) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.d.tunnels.dialer.RoundTrip(r)
}

// askIssuer makes the client that issuers of workloads' identities are asked for their
// keys with. They are hosts that users name, like MCP servers, and so are judged alike.
func (d *Daemon) askIssuer(roots *x509.CertPool) *http.Client {
	o := *d.outbound
	o.RootCAs = roots
	return egress.NewOutbound(o).Client()
}
