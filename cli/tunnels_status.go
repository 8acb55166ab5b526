package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// tunnelStatus is `bailey tunnels status`: one tunnel in full, or all in a line each.
func (p *Program) tunnelStatus(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [TUNNEL]",
		Short: "Show who is connected to a tunnel, and what went wrong last",
		Long: `Shows a tunnel's gateways that are connected now: since when, from where, through
which edge, how, and how much has passed; the certificate that they answered with
last; and for each kind of failure the last one and what to do about it. Without
an id it shows all tunnels, a line each.`,
		Example: `  bailey tunnels status
  bailey tunnels status tnl_…`,
		Args: cobra.MaximumNArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if len(args) == 1 {
			s, err := cl.TunnelStatus(ctx, api.TunnelID(args[0]))
			if err != nil {
				return err
			}
			if *out == outJSON {
				return printJSON(p.Stdout, s)
			}
			return p.printTunnelStatus(s)
		}
		var all []*api.TunnelStatus
		var rows [][]string
		for t, err := range cl.Tunnels(ctx, client.ListOptions{PageSize: pageSize}) {
			if err != nil {
				return err
			}
			s, err := cl.TunnelStatus(ctx, t.ID)
			if err != nil {
				return err
			}
			all = append(all, s)
			rows = append(rows, []string{string(t.ID), deref(t.DisplayName), stateText(s), fmt.Sprint(len(s.Data)), leafText(s.Certificate, time.Now()), lastFault(s)})
		}
		if *out == outJSON {
			return printJSON(p.Stdout, all)
		}
		return p.printRows([]string{"ID", "NAME", "STATE", "GATEWAYS", "CERTIFICATE", "LAST FAILURE"}, rows)
	})
	return cmd
}

func (p *Program) printTunnelStatus(s *api.TunnelStatus) error {
	if err := p.printFields(field{"tunnel", string(s.TunnelID)}, field{"state", stateText(s)}, field{"certificate", leafText(s.Certificate, time.Now())}); err != nil {
		return err
	}
	fmt.Fprintln(p.Stdout)
	header := []string{"GATEWAY", "SINCE", "FROM", "EDGE", "BY", "STREAMS", "IN", "OUT", "VERSION"}
	row := func(c api.TunnelConnection) []string {
		return []string{
			c.ConnectorID, when(c.AttachedAt), c.RemoteAddress, c.Edge, string(c.Protocol), fmt.Sprint(c.Streams),
			bytesText(c.ToGateway), bytesText(c.FromGateway), c.Version,
		}
	}
	var rows [][]string
	for _, c := range s.Data {
		rows = append(rows, row(c))
	}
	if len(rows) == 0 {
		fmt.Fprintln(p.Stdout, "no gateway is connected")
	} else if err := p.printRows(header, rows); err != nil {
		return err
	}
	if len(s.Former) > 0 {
		rows = nil
		for _, c := range s.Former {
			rows = append(rows, []string{c.ConnectorID, when(c.AttachedAt), whenPtr(c.DetachedAt), c.RemoteAddress, c.Edge, strings.ReplaceAll(c.DetachReason, "_", " ")})
		}
		fmt.Fprintln(p.Stdout)
		if err := p.printRows([]string{"NOT ANY MORE", "SINCE", "UNTIL", "FROM", "EDGE", "WHY"}, rows); err != nil {
			return err
		}
	}
	st := p.styleOf(p.Stdout)
	for _, f := range s.Faults {
		times := "once"
		if f.Count > 1 {
			times = fmt.Sprintf("%d times since %s", f.Count, when(f.FirstAt))
		}
		fmt.Fprintf(p.Stdout, "\n%s  %s, %s\n", st.red(strings.ReplaceAll(f.Stage, "_", " ")), when(f.LastAt), times)
		if f.Host != "" {
			fmt.Fprintf(p.Stdout, "  %s\n", oneLine(f.Host, 300))
		}
		fmt.Fprintf(p.Stdout, "  %s\n", oneLine(f.Detail, 1000))
		if f.Remedy != "" {
			fmt.Fprintf(p.Stdout, "  %s\n", st.bold("→ "+f.Remedy))
		}
	}
	return nil
}

func stateText(s *api.TunnelStatus) string { return strings.ReplaceAll(string(s.State), "_", " ") }

// leafSoon is how long before a gateway's certificate expires it is said.
const leafSoon = 30 * 24 * time.Hour

func leafText(l *api.TunnelLeaf, now time.Time) string {
	switch {
	case l == nil:
		return "none seen yet"
	case l.ExpiresAt.Before(now):
		return "EXPIRED " + when(l.ExpiresAt)
	case l.ExpiresAt.Sub(now) < leafSoon:
		return "expires in " + count(int(l.ExpiresAt.Sub(now).Hours()/24), "day")
	}
	return "good until " + when(l.ExpiresAt)
}

func lastFault(s *api.TunnelStatus) string {
	if len(s.Faults) == 0 {
		return ""
	}
	return strings.ReplaceAll(s.Faults[0].Stage, "_", " ") + " " + when(s.Faults[0].LastAt)
}

// bytesText is a number of bytes for a person.
func bytesText(n int64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// tunnelUsage is `bailey tunnels usage`.
func (p *Program) tunnelUsage(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "usage TUNNEL",
		Short: "Show what passed through a tunnel, hour by hour",
		Long: `Shows the bytes that passed through a tunnel to its gateways and from them, as the
edges counted them: encrypted, with what the encryption adds. A server or an edge
that is killed loses at most what passed since its last report, a second before.`,
		Example: `  bailey tunnels usage tnl_…
  bailey tunnels usage tnl_… --since 7d -o json`,
		Args: cobra.ExactArgs(1),
	}
	since := timeFlag(cmd, "since", 24*time.Hour, "how far back, such as 7d; 31d is the most")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		hours, err := cl.TunnelUsage(ctx, api.TunnelID(args[0]), time.Now().Add(-*since), time.Time{})
		if err != nil {
			return err
		}
		if *out == outJSON {
			return printJSON(p.Stdout, hours)
		}
		rows := make([][]string, len(hours))
		for i, h := range hours {
			rows[i] = []string{when(h.StartingAt), bytesText(h.ToGateway), bytesText(h.FromGateway), fmt.Sprint(h.Opened)}
		}
		return p.printRows([]string{"HOUR", "TO GATEWAYS", "FROM GATEWAYS", "STREAMS"}, rows)
	})
	return cmd
}
