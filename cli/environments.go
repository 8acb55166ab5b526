package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) environmentsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "environments",
		Aliases: []string{"environment", "envs", "env"},
		Short:   "Say where sessions run their tools, and see the work there",
		Long: `An environment says where sessions run their tools. A self_hosted one is served
by workers of yours: create it, create a key for it, and start "bailey worker"
with that key wherever the tools should run.`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.environmentsCreate(c), p.environmentsGet(c), p.environmentsList(c), p.environmentsUpdate(c),
		p.environmentsArchive(c), p.environmentsDelete(c), p.environmentKeys(c), p.environmentWork(c),
	)
	return cmd
}

func (p *Program) environmentsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create an environment",
		Example: `  bailey environments create --name laptops
  bailey environments create --file environment.yaml`,
	}
	f := cmd.Flags()
	f.String("name", "", "the environment's `name`")
	f.String("description", "", "what the environment is for")
	f.String("type", api.EnvSelfHosted, "self_hosted (your workers) or cloud (the server's)")
	metadata := f.StringArray("metadata", nil, metadataUsage)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		var in api.EnvironmentCreate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		setString(cmd, "name", &in.Name)
		setOptional(cmd, "description", &in.Description)
		if in.Config == nil || f.Changed("type") {
			in.Config = &api.EnvironmentConfig{Type: f.Lookup("type").Value.String()}
		}
		if f.Changed("metadata") {
			m, err := metadataOf(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = m
		}
		if in.Name == "" {
			return usageError(cmd, fmt.Errorf("an environment needs --name"))
		}
		e, err := cl.CreateEnvironment(ctx, in)
		if err != nil {
			return err
		}
		return p.printEnvironment(*out, e)
	})
	return cmd
}

func (p *Program) environmentsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get ENVIRONMENT",
		Short:   "Show an environment",
		Example: `  bailey environments get env_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		e, err := cl.GetEnvironment(ctx, api.EnvironmentID(args[0]))
		if err != nil {
			return err
		}
		return p.printEnvironment(*out, e)
	})
	return cmd
}

func (p *Program) environmentsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List environments, the newest first",
		Example: `  bailey environments list -o json | jq -r '.[] | select(.config.type=="self_hosted").id'`,
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Environments(ctx, l.options()),
			[]string{"ID", "NAME", "TYPE", "CREATED"},
			func(e *api.Environment) []string {
				name := e.Name
				if e.ArchivedAt != nil {
					name += " (archived)"
				}
				return []string{string(e.ID), name, e.Config.Type, when(e.CreatedAt)}
			})
	})
	return cmd
}

func (p *Program) environmentsUpdate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update ENVIRONMENT",
		Short: "Change an environment",
		Long: `Changes the fields given and leaves the others as they are. An empty text clears
a field; --metadata key= removes a key.`,
		Example: `  bailey environments update env_… --name "build machines"`,
		Args:    cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.String("name", "", "the environment's `name`")
	f.String("description", "", "what the environment is for")
	metadata := f.StringArray("metadata", nil, metadataUsage)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if *file == "" && !changed(cmd, "name", "description", "metadata") {
			return nothingToDo(cmd)
		}
		var in api.EnvironmentUpdate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		setPatch(cmd, "name", &in.Name)
		setPatch(cmd, "description", &in.Description)
		if f.Changed("metadata") {
			patch, err := metadataPatch(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = patch
		}
		e, err := cl.UpdateEnvironment(ctx, api.EnvironmentID(args[0]), in)
		if err != nil {
			return err
		}
		return p.printEnvironment(*out, e)
	})
	return cmd
}

func (p *Program) environmentsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "archive ENVIRONMENT",
		Short:   "Archive an environment, for good",
		Long:    `Archives an environment: no new session can use it.`,
		Example: `  bailey environments archive env_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		e, err := cl.ArchiveEnvironment(ctx, api.EnvironmentID(args[0]))
		if err != nil {
			return err
		}
		return p.printEnvironment(*out, e)
	})
	return cmd
}

func (p *Program) environmentsDelete(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete ENVIRONMENT",
		Short:   "Delete an environment",
		Example: `  bailey environments delete env_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if err := cl.DeleteEnvironment(ctx, api.EnvironmentID(args[0])); err != nil {
			return err
		}
		return p.printDeleted(*out, api.Deleted{ID: args[0], Type: "environment_deleted"})
	})
	return cmd
}

func (p *Program) printDeleted(out string, d api.Deleted) error {
	if out == outJSON {
		return printJSON(p.Stdout, d)
	}
	_, err := fmt.Fprintln(p.Stdout, "deleted "+d.ID)
	return err
}

func (p *Program) printEnvironment(out string, e *api.Environment) error {
	return p.printObject(out, e,
		field{"id", string(e.ID)},
		field{"name", e.Name},
		field{"type", e.Config.Type},
		field{"description", deref(e.Description)},
		field{"network", networkText(e.Config.Networking)},
		field{"metadata", metadataText(e.Metadata)},
		field{"created", when(e.CreatedAt)},
		field{"updated", when(e.UpdatedAt)},
		field{"archived", whenPtr(e.ArchivedAt)},
	)
}

func networkText(n *api.Networking) string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.Type + " " + strings.Join(n.AllowedHosts, " "))
}

func (p *Program) environmentKeys(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Create, list and revoke the keys of workers",
		Long: `An environment key lets workers do the work of one environment, and nothing
else. It is shown once, when it is created.`,
	}
	create := p.keyCreate(c, true, "Create a key for the workers of an environment", `  bailey environments keys create env_… --name "build machine 1" --save worker.key
  bailey worker --environment-id env_… --environment-key-file worker.key`)
	list := p.keyList(c, true, "List the keys of an environment, the newest first", `  bailey environments keys list env_…`)
	revoke := p.keyRevoke(c, true, "End a key at once", `  bailey environments keys revoke env_… envkey_…`)
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func (p *Program) environmentWork(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "work",
		Short: "See the work of an environment and who does it",
	}
	list := &cobra.Command{
		Use:     "list ENVIRONMENT",
		Short:   "List work items, the newest first",
		Example: `  bailey environments work list env_…`,
		Args:    cobra.ExactArgs(1),
	}
	l := addListFlags(list, false)
	list.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.Work(ctx, api.EnvironmentID(args[0]), l.options()),
			[]string{"ID", "STATE", "SESSION", "CREATED", "LAST HEARTBEAT"},
			func(w *api.Work) []string {
				return []string{string(w.ID), string(w.State), string(w.Data.ID), when(w.CreatedAt), whenPtr(w.LatestHeartbeatAt)}
			})
	})
	stats := &cobra.Command{
		Use:     "stats ENVIRONMENT",
		Short:   "Count the queue of an environment and its workers",
		Example: `  bailey environments work stats env_… -o json`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(stats)
	stats.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		s, err := cl.WorkStats(ctx, api.EnvironmentID(args[0]))
		if err != nil {
			return err
		}
		return p.printObject(*out, s,
			field{"waiting", fmt.Sprint(s.Depth)},
			field{"being claimed", fmt.Sprint(s.Pending)},
			field{"oldest waiting since", whenPtr(s.OldestQueuedAt)},
			field{"workers polling", fmt.Sprint(s.WorkersPolling)},
		)
	})
	cmd.AddCommand(list, stats)
	return cmd
}
