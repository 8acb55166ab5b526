package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) vaultsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "vaults",
		Aliases: []string{"vault"},
		Short:   "Keep credentials that sessions may use and never see",
		Long: `A vault holds credentials for MCP servers and secrets for tools. A session that is
created with it (bailey sessions create --vault) can use them; neither the model
nor what runs in the session's box sees them.`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.vaultsCreate(c), p.vaultsGet(c), p.vaultsList(c), p.vaultsUpdate(c),
		p.vaultsArchive(c), p.vaultsDelete(c), p.credentialsCommand(c), p.vaultKeys(c),
	)
	return cmd
}

func (p *Program) vaultsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Create a vault",
		Example: `  bailey vaults create --name "docs team"`,
	}
	name := cmd.Flags().String("name", "", "the vault's `name`")
	metadata := cmd.Flags().StringArray("metadata", nil, metadataUsage)
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		if *name == "" {
			return usageError(cmd, fmt.Errorf("a vault needs --name"))
		}
		m, err := metadataOf(*metadata)
		if err != nil {
			return err
		}
		v, err := cl.CreateVault(ctx, api.VaultCreate{DisplayName: *name, Metadata: m})
		if err != nil {
			return err
		}
		return p.printVault(*out, v)
	})
	return cmd
}

func (p *Program) vaultsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get VAULT",
		Short:   "Show a vault",
		Example: `  bailey vaults get vlt_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		v, err := cl.GetVault(ctx, api.VaultID(args[0]))
		if err != nil {
			return err
		}
		return p.printVault(*out, v)
	})
	return cmd
}

func (p *Program) vaultsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List vaults, the newest first",
		Example: `  bailey vaults list`,
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Vaults(ctx, l.options()), []string{"ID", "NAME", "CREATED"},
			func(v *api.Vault) []string {
				return []string{string(v.ID), archivedName(v.DisplayName, v.ArchivedAt != nil), when(v.CreatedAt)}
			})
	})
	return cmd
}

func archivedName(name string, archived bool) string {
	if archived {
		name += " (archived)"
	}
	return name
}

func (p *Program) vaultsUpdate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "update VAULT",
		Short:   "Change a vault's name or metadata",
		Long:    `Changes the fields given and leaves the others as they are; --metadata key= removes a key.`,
		Example: `  bailey vaults update vlt_… --name "docs team, Berlin"`,
		Args:    cobra.ExactArgs(1),
	}
	name := cmd.Flags().String("name", "", "the vault's `name`")
	metadata := cmd.Flags().StringArray("metadata", nil, metadataUsage)
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if !changed(cmd, "name", "metadata") {
			return nothingToDo(cmd)
		}
		patch, err := metadataPatch(*metadata)
		if err != nil {
			return err
		}
		in := api.VaultUpdate{Metadata: patch}
		if changed(cmd, "name") {
			in.DisplayName = api.Some(*name)
		}
		v, err := cl.UpdateVault(ctx, api.VaultID(args[0]), in)
		if err != nil {
			return err
		}
		return p.printVault(*out, v)
	})
	return cmd
}

func (p *Program) vaultsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive VAULT",
		Short: "Archive a vault with its credentials, for good",
		Long: `Archives a vault and its credentials and removes their secrets. No new session can
have it; those that do go on without its credentials.`,
		Example: `  bailey vaults archive vlt_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		v, err := cl.ArchiveVault(ctx, api.VaultID(args[0]))
		if err != nil {
			return err
		}
		return p.printVault(*out, v)
	})
	return cmd
}

func (p *Program) vaultsDelete(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete VAULT",
		Short:   "Delete a vault with its credentials",
		Long:    `Deletes a vault, its credentials and their secrets. Sessions that have it go on without.`,
		Example: `  bailey vaults delete vlt_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if err := cl.DeleteVault(ctx, api.VaultID(args[0])); err != nil {
			return err
		}
		return p.printDeleted(*out, api.Deleted{ID: args[0], Type: "vault_deleted"})
	})
	return cmd
}

func (p *Program) printVault(out string, v *api.Vault) error {
	return p.printObject(out, v,
		field{"id", string(v.ID)},
		field{"name", v.DisplayName},
		field{"metadata", metadataText(v.Metadata)},
		field{"created", when(v.CreatedAt)},
		field{"updated", when(v.UpdatedAt)},
		field{"archived", whenPtr(v.ArchivedAt)},
	)
}

func (p *Program) vaultKeys(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "See and rotate the keys that the server's secrets are sealed with",
		Long: `All secrets of vaults, and the tokens of tunnels, are sealed with a key that stays
outside the database: in a file, or wherever vault-key of the server's settings says.`,
	}
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the keys, the current one first",
		Example: `  bailey vaults keys list`,
	}
	listOut := outputFlag(list)
	list.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		keys, err := cl.VaultKeys(ctx)
		if err != nil {
			return err
		}
		if *listOut == outJSON {
			return printJSON(p.Stdout, keys.Data)
		}
		var rows [][]string
		for _, k := range keys.Data {
			current := ""
			if k.Current {
				current = "yes"
			}
			rows = append(rows, []string{k.ID, current, fmt.Sprint(k.Secrets)})
		}
		return p.printRows([]string{"ID", "CURRENT", "SECRETS"}, rows)
	})
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new key and move every secret to it",
		Long: `Makes a new key and moves every secret to it, while the server runs. The old key
stays where it is, as backups of the database need it. If it does not come to its
end, go on with --rewrap-only: without, it would make yet another key.

A server that was given another key in its settings (vault-key, with the present one
under vault-old-keys) needs --rewrap-only: the secrets are moved to that one.

With PostgreSQL several servers may share the secrets. A key in a file is then
rotated only with --shared-key-file: it says that all of them read the very file of
the server that is asked (or that there is no other). Any that does not would lose all
secrets at once; copy the file to it before it is needed, or keep the key elsewhere.

--abandon-lost-key is for a key that is lost for ever: the server goes on with the one
it has, or makes one. What is sealed with the lost one has to be replaced.`,
		Example: `  bailey vaults keys rotate
  bailey vaults keys rotate --rewrap-only`,
	}
	var in api.VaultKeyRotate
	f := rotate.Flags()
	f.BoolVar(&in.RewrapOnly, "rewrap-only", false, "move secrets to the current key, and make no new one")
	f.BoolVar(&in.SharedKeyFile, "shared-key-file", false, "every server on the database reads the same key file, or there is one server")
	f.BoolVar(&in.AbandonLostKey, "abandon-lost-key", false, "give up a key that is lost, with what is sealed with it")
	rotateOut := outputFlag(rotate)
	rotate.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		done, err := rotateVaultKey(ctx, cl, in)
		if err != nil {
			return err
		}
		err = p.printObject(*rotateOut, done,
			field{"key", done.KeyID},
			field{"moved to it", fmt.Sprint(done.Rewrapped)},
		)
		if err == nil && done.Failed > 0 {
			err = fmt.Errorf("%d secrets could not be opened and are where they were; the server's log names them", done.Failed)
		}
		return err
	})
	cmd.AddCommand(list, rotate)
	return cmd
}

// rotateVaultKey asks until all secrets have been moved, and adds up what each request
// came to.
func rotateVaultKey(ctx context.Context, cl *client.Client, in api.VaultKeyRotate) (*api.VaultKeyRotation, error) {
	total := new(api.VaultKeyRotation)
	for {
		done, err := cl.RotateVaultKey(ctx, in)
		if err != nil && total.KeyID != "" {
			return nil, fmt.Errorf("%w; %d secrets are under key %s already: go on with --rewrap-only", err, total.Rewrapped, total.KeyID)
		}
		if err != nil {
			return nil, err
		}
		done.Rewrapped, done.Failed = done.Rewrapped+total.Rewrapped, done.Failed+total.Failed
		if done.NextPage == "" {
			return done, nil
		}
		total = done
		in.RewrapOnly, in.AbandonLostKey, in.Page = true, false, done.NextPage
	}
}
