package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) agentsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "agents",
		Aliases: []string{"agent"},
		Short:   "Define agents: model, system prompt, tools",
		Long: `An agent is a reusable definition: a model, a system prompt and tools. Each
change makes a new version; sessions keep the version they began with.`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.agentsCreate(c), p.agentsGet(c), p.agentsList(c), p.agentsUpdate(c), p.agentsArchive(c), p.agentsVersions(c),
	)
	return cmd
}

// agentFlags are the fields of an agent that have a flag.
func agentFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("name", "", "the agent's `name`")
	f.String("model", "", "the `id` of the model, such as claude-opus-5-5")
	f.String("system", "", "the system prompt; @FILE reads it from a file")
	f.String("description", "", "what the agent is for")
	f.StringSlice("tools", nil, "the built-in `tools` it may use: all, none, or a list such as bash,read,write")
	f.String("permission", "", "who decides about tool calls: always_allow, always_ask or auto")
	f.StringArray("metadata", nil, metadataUsage)
}

func (p *Program) agentsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create an agent",
		Long: `Creates an agent from flags, a file, or both. Without --file the agent gets all
built-in tools unless --tools says otherwise.`,
		Example: `  bailey agents create --name helper --model claude-opus-5-5 --system "You are a careful engineer."
  bailey agents create --file agent.yaml
  bailey agents create --name reader --model claude-haiku-5-5 --tools read,glob,grep -o json | jq -r .id`,
	}
	agentFlags(cmd)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		var in api.AgentCreate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		f := cmd.Flags()
		setString(cmd, "name", &in.Name)
		setOptional(cmd, "description", &in.Description)
		if f.Changed("model") {
			in.Model = &api.ModelConfig{ID: f.Lookup("model").Value.String()}
		}
		setOptional(cmd, "system", &in.System)
		if err := fileText(in.System); err != nil {
			return err
		}
		if changed(cmd, "tools", "permission") || *file == "" {
			tools, err := toolsOf(cmd)
			if err != nil {
				return err
			}
			in.Tools = tools
		}
		if f.Changed("metadata") {
			pairs, _ := f.GetStringArray("metadata")
			m, err := metadataOf(pairs)
			if err != nil {
				return err
			}
			in.Metadata = m
		}
		if in.Name == "" || in.Model == nil {
			return usageError(cmd, fmt.Errorf("an agent needs --name and --model"))
		}
		a, err := cl.CreateAgent(ctx, in)
		if err != nil {
			return err
		}
		return p.printAgent(*out, a)
	})
	return cmd
}

// fileText replaces a text of the form @FILE by what the file holds.
func fileText(text *string) error {
	if text == nil {
		return nil
	}
	if path, ok := strings.CutPrefix(*text, "@"); ok {
		data, err := os.ReadFile(path)
		if err != nil {
			return usagef("%v", err)
		}
		*text = string(data)
	}
	return nil
}

// toolsOf makes the built-in toolset of --tools and --permission.
func toolsOf(cmd *cobra.Command) ([]api.AgentTool, error) {
	names, _ := cmd.Flags().GetStringSlice("tools")
	policy, _ := cmd.Flags().GetString("permission")
	set := api.AgentTool{Type: api.ToolsetBuiltin, DefaultConfig: &api.ToolDefaults{}}
	if policy != "" {
		if !slices.Contains([]string{api.AlwaysAllow, api.AlwaysAsk, api.Auto}, policy) {
			return nil, usagef("--permission %q is not always_allow, always_ask or auto", policy)
		}
		set.DefaultConfig.PermissionPolicy = &api.PermissionPolicy{Type: policy}
	}
	switch {
	case len(names) == 0 || slices.Equal(names, []string{"all"}):
		return []api.AgentTool{set}, nil
	case slices.Equal(names, []string{"none"}):
		return []api.AgentTool{}, nil
	}
	yes, no := true, false
	set.DefaultConfig.Enabled = &no
	for _, name := range names {
		if !slices.Contains(api.BuiltinTools, name) {
			return nil, usagef("--tools: there is no tool %q; there are %s", name, strings.Join(api.BuiltinTools, ", "))
		}
		set.Configs = append(set.Configs, api.ToolConfig{Name: name, Enabled: &yes})
	}
	return []api.AgentTool{set}, nil
}

func (p *Program) agentsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get AGENT",
		Short: "Show an agent",
		Example: `  bailey agents get agent_…
  bailey agents get agent_… --version 2 -o json`,
		Args: cobra.ExactArgs(1),
	}
	version := cmd.Flags().Int64("version", 0, "the version to show; 0 is the newest")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		a, err := cl.GetAgent(ctx, api.AgentID(args[0]), *version)
		if err != nil {
			return err
		}
		return p.printAgent(*out, a)
	})
	return cmd
}

var agentHeader = []string{"ID", "NAME", "MODEL", "VERSION", "CREATED"}

func agentRow(a *api.Agent) []string {
	name := a.Name
	if a.ArchivedAt != nil {
		name += " (archived)"
	}
	return []string{string(a.ID), name, a.Model.ID, fmt.Sprint(a.Version), when(a.CreatedAt)}
}

func (p *Program) agentsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List agents, the newest first",
		Example: `  bailey agents list
  bailey agents list -o json | jq -r '.[].id'`,
	}
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Agents(ctx, l.options()), agentHeader, agentRow)
	})
	return cmd
}

func (p *Program) agentsVersions(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "versions AGENT",
		Short:   "List the versions of an agent, the newest first",
		Example: `  bailey agents versions agent_…`,
		Args:    cobra.ExactArgs(1),
	}
	l := addListFlags(cmd, false)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		return printList(p, l, cl.AgentVersions(ctx, api.AgentID(args[0]), l.options()), agentHeader, agentRow)
	})
	return cmd
}

func (p *Program) agentsUpdate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update AGENT",
		Short: "Change an agent, which makes a new version",
		Long: `Changes the fields given and leaves the others as they are. An empty text clears
a field; --metadata key= removes a key. With --version the change is refused
when somebody else has changed the agent since that version.`,
		Example: `  bailey agents update agent_… --system @prompt.txt
  bailey agents update agent_… --tools read,grep --version 3`,
		Args: cobra.ExactArgs(1),
	}
	agentFlags(cmd)
	version := cmd.Flags().Int64("version", 0, "the version that the change is meant for")
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if *file == "" && !changed(cmd, "name", "model", "system", "description", "tools", "permission", "metadata") {
			return nothingToDo(cmd)
		}
		var in api.AgentUpdate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		if *version != 0 {
			in.Version = api.Some(*version)
		}
		setPatch(cmd, "name", &in.Name)
		setPatch(cmd, "description", &in.Description)
		setPatch(cmd, "system", &in.System)
		if err := fileText(&in.System.Value); err != nil {
			return err
		}
		if cmd.Flags().Changed("model") {
			in.Model = api.Some(api.ModelConfig{ID: cmd.Flags().Lookup("model").Value.String()})
		}
		if changed(cmd, "tools", "permission") {
			tools, err := toolsOf(cmd)
			if err != nil {
				return err
			}
			in.Tools = api.Some(tools)
		}
		if cmd.Flags().Changed("metadata") {
			pairs, _ := cmd.Flags().GetStringArray("metadata")
			patch, err := metadataPatch(pairs)
			if err != nil {
				return err
			}
			in.Metadata = patch
		}
		a, err := cl.UpdateAgent(ctx, api.AgentID(args[0]), in)
		if err != nil {
			return err
		}
		return p.printAgent(*out, a)
	})
	return cmd
}

func (p *Program) agentsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "archive AGENT",
		Short:   "Archive an agent, for good",
		Long:    `Archives an agent: no new session can use it. Sessions that have it go on.`,
		Example: `  bailey agents archive agent_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		a, err := cl.ArchiveAgent(ctx, api.AgentID(args[0]))
		if err != nil {
			return err
		}
		return p.printAgent(*out, a)
	})
	return cmd
}

func (p *Program) printAgent(out string, a *api.Agent) error {
	return p.printObject(out, a,
		field{"id", string(a.ID)},
		field{"name", a.Name},
		field{"version", fmt.Sprint(a.Version)},
		field{"model", a.Model.ID},
		field{"description", deref(a.Description)},
		field{"system", deref(a.System)},
		field{"tools", toolsText(a.Tools)},
		field{"metadata", metadataText(a.Metadata)},
		field{"created", when(a.CreatedAt)},
		field{"updated", when(a.UpdatedAt)},
		field{"archived", whenPtr(a.ArchivedAt)},
	)
}

// toolsText says in lines what an agent may use, and under which policy.
func toolsText(tools []api.AgentTool) string {
	var lines []string
	for _, t := range tools {
		switch t.Type {
		case api.ToolCustom:
			lines = append(lines, t.Name+" (custom, run by the client)")
		case api.ToolsetMCP:
			lines = append(lines, "those of the MCP server "+t.MCPServerName)
		case api.ToolsetBuiltin:
			byPolicy := map[string][]string{}
			for _, name := range api.BuiltinTools {
				if on, policy := t.Setting(name); on {
					byPolicy[policy] = append(byPolicy[policy], name)
				}
			}
			for _, policy := range []string{api.AlwaysAllow, api.AlwaysAsk, api.Auto} {
				if names := byPolicy[policy]; len(names) > 0 {
					lines = append(lines, strings.Join(names, " ")+" ("+policy+")")
				}
			}
		}
	}
	return strings.Join(lines, "\n")
}
