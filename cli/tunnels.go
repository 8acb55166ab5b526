package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) tunnelsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "tunnels",
		Aliases: []string{"tunnel"},
		Short:   "Reach private MCP servers through connections that their side opens",
		Long: `A tunnel gives private MCP servers names that agents can use, such as
https://docs.a1b2c3d4.tunnel.bailey.internal/mcp. A gateway inside the private
network dials out to this server and serves them; nothing has to be opened there.
What passes is encrypted up to the gateway, with a key that only it has.

Create a tunnel, then run "bailey gateway init" where the servers are. Both need a
key that may manage tunnels, as the first one of a server may; another is made with
"bailey keys create --name NAME --scope tunnels".`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.tunnelsCreate(c), p.tunnelsGet(c), p.tunnelsList(c), p.tunnelsArchive(c),
		p.tunnelsRevealToken(c), p.tunnelsRotateToken(c), p.tunnelTokens(c), p.tunnelCertificates(c),
		p.tunnelStatus(c), p.tunnelUsage(c),
	)
	return cmd
}

func (p *Program) tunnelsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a tunnel",
		Long: `Creates a tunnel with a domain of its own. It takes no calls until a CA certificate
is registered on it, which "bailey gateway init" does.`,
		Example: `  bailey tunnels create --name office`,
	}
	name := cmd.Flags().String("name", "", "a `name` to know the tunnel by")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		var in api.TunnelCreate
		if *name != "" {
			in.DisplayName = name
		}
		t, err := cl.CreateTunnel(ctx, in)
		if err != nil {
			return err
		}
		if err := p.printTunnel(*out, t); err != nil || *out == outJSON {
			return err
		}
		_, err = fmt.Fprintf(p.Stderr, "next, where the MCP servers are: bailey gateway init --tunnel %s --route NAME=http://HOST:PORT\n", t.ID)
		return err
	})
	return cmd
}

func (p *Program) tunnelsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get TUNNEL",
		Short:   "Show a tunnel",
		Example: `  bailey tunnels get tnl_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		t, err := cl.GetTunnel(ctx, api.TunnelID(args[0]))
		if err != nil {
			return err
		}
		return p.printTunnel(*out, t)
	})
	return cmd
}

func (p *Program) tunnelsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List tunnels, the newest first",
		Long:    `Lists tunnels. Whether gateways are connected says "bailey tunnels status".`,
		Example: `  bailey tunnels list`,
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Tunnels(ctx, l.options()), []string{"ID", "NAME", "DOMAIN", "CREATED"},
			func(t *api.Tunnel) []string {
				return []string{string(t.ID), archivedName(deref(t.DisplayName), t.ArchivedAt != nil), t.Domain, when(t.CreatedAt)}
			})
	})
	return cmd
}

func (p *Program) tunnelsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive TUNNEL",
		Short: "End a tunnel, for good",
		Long: `Ends a tunnel with its tokens and certificates, at once: its gateways are cut off.
Its domain is never used again, so agents that name it need another.`,
		Example: `  bailey tunnels archive tnl_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		t, err := cl.ArchiveTunnel(ctx, api.TunnelID(args[0]))
		if err != nil {
			return err
		}
		return p.printTunnel(*out, t)
	})
	return cmd
}

func (p *Program) tunnelsRevealToken(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reveal-token TUNNEL",
		Short: "Show the token that gateways connect with",
		Long: `Shows a tunnel's current token. Whoever has it can connect a gateway, though not
read or answer calls, which takes a certificate too. That it was shown is in the
audit record.`,
		Example: `  bailey tunnels reveal-token tnl_… --save tunnel-token`,
		Args:    cobra.ExactArgs(1),
	}
	save := saveTokenFlag(cmd)
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return p.keepToken(api.TunnelID(args[0]), *out, *save, func() (*api.TunnelToken, error) { return cl.RevealToken(ctx, api.TunnelID(args[0])) })
	})
	return cmd
}

func (p *Program) tunnelsRotateToken(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-token TUNNEL",
		Short: "Give a tunnel another token",
		Long: `Makes a new token and shows it. Gateways that are connected stay so, but none can
connect with the old token any more, not even one that was connected: give the new
one to all of them. --overlap lets the old one work for a while longer, so that
there is time for that; a rotation within it ends it.`,
		Example: `  bailey tunnels rotate-token tnl_… --overlap 1h --save tunnel-token.new
  bailey tunnels rotate-token tnl_… --reason "a laptop was stolen"`,
		Args: cobra.ExactArgs(1),
	}
	reason := cmd.Flags().String("reason", "", "`why`, for the audit record")
	overlap := timeFlag(cmd, "overlap", 0, "how long the old token works as well, such as 1h; at most 7d")
	save := saveTokenFlag(cmd)
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		in := api.TokenRotate{OverlapSeconds: int64(overlap.Round(time.Second) / time.Second)}
		if *reason != "" {
			in.Reason = reason
		}
		if err := p.keepToken(api.TunnelID(args[0]), *out, *save, func() (*api.TunnelToken, error) { return cl.RotateToken(ctx, api.TunnelID(args[0]), in) }); err != nil {
			return err
		}
		fmt.Fprintln(p.Stderr, "next, beside each gateway of the tunnel: bailey gateway init   (fetches the new token)")
		return nil
	})
	return cmd
}

func (p *Program) tunnelTokens(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tokens",
		Short: "Give a tunnel a second token, and take it back",
		Long: `A tunnel can have a second token, for gateways of another kind or place, which can
be taken back without the others noticing.`,
	}
	create := &cobra.Command{
		Use:     "create TUNNEL",
		Short:   "Make the second token of a tunnel; it is shown once",
		Example: `  bailey tunnels tokens create tnl_… --save tunnel-token`,
		Args:    cobra.ExactArgs(1),
	}
	reason := create.Flags().String("reason", "", "`why`, for the audit record")
	save := saveTokenFlag(create)
	createOut := outputFlag(create)
	create.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		var in api.TokenCreate
		if *reason != "" {
			in.Reason = reason
		}
		return p.keepToken(api.TunnelID(args[0]), *createOut, *save, func() (*api.TunnelToken, error) { return cl.CreateSecondToken(ctx, api.TunnelID(args[0]), in) })
	})
	list := &cobra.Command{
		Use:     "list TUNNEL",
		Short:   "List the tokens that gateways can connect with, without showing them",
		Example: `  bailey tunnels tokens list tnl_…`,
		Args:    cobra.ExactArgs(1),
	}
	l := addListFlags(list, false)
	list.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.TunnelTokens(ctx, api.TunnelID(args[0])), []string{"ID", "SLOT", "CREATED", "ENDS"},
			func(t *api.TunnelTokenInfo) []string {
				return []string{string(t.ID), string(t.Slot), when(t.CreatedAt), whenPtr(t.EndsAt)}
			})
	})
	revoke := &cobra.Command{
		Use:   "revoke TUNNEL TOKEN",
		Short: "End a second token, or the overlap of a rotated one, at once",
		Long: `Ends a token, by its id. Gateways that are connected stay so. The tunnel's own
token is not revoked but rotated.`,
		Example: `  bailey tunnels tokens revoke tnl_… ttkn_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(revoke)
	revoke.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		t, err := cl.RevokeTunnelToken(ctx, api.TunnelID(args[0]), api.TokenID(args[1]))
		if err != nil {
			return err
		}
		return p.printObject(*out, t,
			field{"id", string(t.ID)},
			field{"slot", string(t.Slot)},
			field{"created", when(t.CreatedAt)},
			field{"ends", whenPtr(t.EndsAt)},
		)
	})
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func saveTokenFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("save", "", "write the token to a `file` (mode 0600), a new one or in place of another token of the tunnel, and do not show it")
}

// keepToken shows a token, or saves it. The file is made before the token is asked for,
// so that none is made that nobody gets to see.
func (p *Program) keepToken(id api.TunnelID, out, save string, get func() (*api.TunnelToken, error)) error {
	keep, err := newTokenFile(save, id)
	if err != nil {
		return err
	}
	t, err := get()
	if err != nil {
		keep.discard()
		return err
	}
	if err := keep.write(t.Token); err != nil {
		return fmt.Errorf("the token %s was not saved; reveal it again, or rotate it: %w", t.ID, err)
	}
	if keep != nil {
		t.Token = ""
	}
	fields := []field{{"id", string(t.ID)}, {"token", t.Token}}
	if t.Overlap != nil {
		fields = append(fields, field{"old one works until", when(t.Overlap.Until)})
	}
	return p.printObject(out, t, fields...)
}

func (p *Program) printTunnel(out string, t *api.Tunnel) error {
	return p.printObject(out, t,
		field{"id", string(t.ID)},
		field{"name", deref(t.DisplayName)},
		field{"domain", t.Domain},
		field{"created", when(t.CreatedAt)},
		field{"archived", whenPtr(t.ArchivedAt)},
	)
}

// -- certificates ------------------------------------------------------------------

func (p *Program) tunnelCertificates(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "certificates",
		Aliases: []string{"certificate", "certs"},
		Short:   "Say which CAs vouch for the gateways of a tunnel",
		Long: `Calls through a tunnel go only to gateways whose certificate was signed by a CA
registered here, of which a tunnel has at most two: with the second one the first
can be replaced without a gap. "bailey gateway init" makes a CA and registers it.`,
	}
	cmd.AddCommand(p.certificatesAdd(c), p.certificatesList(c), p.certificatesGet(c), p.certificatesArchive(c))
	return cmd
}

func (p *Program) certificatesAdd(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add TUNNEL FILE",
		Short: "Register a CA certificate on a tunnel",
		Long: `Registers the CA certificate in a PEM file (- is standard input). It holds exactly
one certificate, and no private key: that never leaves the machine it was made on.
The CA needs basic constraints that are critical and say CA:TRUE, keyCertSign, a
subject key identifier, and a key of RSA with 2048 bits or of P-256 at least.`,
		Example: `  bailey tunnels certificates add tnl_… ca.crt`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		text, err := p.readInput(args[1])
		if err != nil {
			return err
		}
		cert, err := cl.AddCertificate(ctx, api.TunnelID(args[0]), string(text))
		if err != nil {
			return err
		}
		return p.printCertificate(*out, cert)
	})
	return cmd
}

func (p *Program) certificatesList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list TUNNEL",
		Short:   "List the CA certificates of a tunnel, the newest first",
		Example: `  bailey tunnels certificates list tnl_…`,
		Args:    cobra.ExactArgs(1),
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.Certificates(ctx, api.TunnelID(args[0]), l.options()), []string{"ID", "FINGERPRINT", "CREATED", "EXPIRES", "ARCHIVED"},
			func(v *api.TunnelCertificate) []string {
				return []string{string(v.ID), oneLine(v.Fingerprint, 16), when(v.CreatedAt), whenPtr(v.ExpiresAt), whenPtr(v.ArchivedAt)}
			})
	})
	return cmd
}

func (p *Program) certificatesGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get TUNNEL CERTIFICATE",
		Short:   "Show a CA certificate of a tunnel",
		Example: `  bailey tunnels certificates get tnl_… tcrt_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		cert, err := cl.GetCertificate(ctx, api.TunnelID(args[0]), api.CertificateID(args[1]))
		if err != nil {
			return err
		}
		return p.printCertificate(*out, cert)
	})
	return cmd
}

func (p *Program) certificatesArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive TUNNEL CERTIFICATE",
		Short: "Trust a CA no more, for good",
		Long: `Ends the trust in a CA. Gateways whose certificate it signed get no calls from then
on, and connections to them are cut. To replace a CA without a gap, register the
new one, give every gateway a certificate of it, and archive the old one last.`,
		Example: `  bailey tunnels certificates archive tnl_… tcrt_…`,
		Args:    cobra.ExactArgs(2),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		cert, err := cl.ArchiveCertificate(ctx, api.TunnelID(args[0]), api.CertificateID(args[1]))
		if err != nil {
			return err
		}
		return p.printCertificate(*out, cert)
	})
	return cmd
}

func (p *Program) printCertificate(out string, c *api.TunnelCertificate) error {
	return p.printObject(out, c,
		field{"id", string(c.ID)},
		field{"tunnel", string(c.TunnelID)},
		field{"fingerprint", c.Fingerprint},
		field{"created", when(c.CreatedAt)},
		field{"expires", whenPtr(c.ExpiresAt)},
		field{"archived", whenPtr(c.ArchivedAt)},
	)
}
