package daemon

import (
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
