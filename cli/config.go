package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/daemon"
)

// settingFlags adds a flag for every setting of the server to cmd. The function
// it returns puts the configuration together once the flags are parsed.
func (p *Program) settingFlags(cmd *cobra.Command) func() (*daemon.Config, daemon.Sources, error) {
	shown := daemon.Defaults()
	flags := cmd.Flags()
	flags.SortFlags = false
	file := flags.String("config", "", "read settings from a YAML `file` (BAILEY_CONFIG)")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	for _, s := range shown.Settings() {
		if s.Secret {
			continue
		}
		f := flags.VarPF(s, s.Name, "", firstSentence(s.Help))
		if s.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	return func() (*daemon.Config, daemon.Sources, error) {
		in := daemon.Inputs{Env: p.Env, File: *file, Flags: map[string]string{}}
		if in.File == "" {
			in.File, _ = p.Env("BAILEY_CONFIG")
		}
		for _, s := range shown.Settings() {
			if f := flags.Lookup(s.Name); f != nil && f.Changed {
				in.Flags[s.Name] = f.Value.String()
			}
		}
		return daemon.Load(in)
	}
}

// firstSentence returns the first sentence of a comment as a flag's help.
func firstSentence(text string) string {
	text, _, _ = strings.Cut(strings.TrimSuffix(text, "."), ". ")
	return strings.ToLower(text[:1]) + text[1:]
}

func (p *Program) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the settings of the server and where each comes from",
		Long: `Shows the settings that "bailey serve" would run with, from the same flags,
environment and file, and where each one comes from. Secrets are not shown.`,
		Example: `  bailey config --config bailey.yaml
  bailey config example > bailey.yaml`,
	}
	load := p.settingFlags(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, sources, err := load()
		if err != nil {
			return err
		}
		type setting struct {
			Name   string `json:"name"`
			Value  string `json:"value"`
			Source string `json:"source"`
		}
		var list []setting
		for _, s := range cfg.Settings() {
			list = append(list, setting{s.Name, s.Shown(), sources[s.Name]})
		}
		if *out == outJSON {
			return printJSON(p.Stdout, list)
		}
		rows := make([][]string, len(list))
		for i, s := range list {
			rows[i] = []string{s.Name, s.Value, s.Source}
		}
		return p.printRows([]string{"SETTING", "VALUE", "FROM"}, rows)
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "example",
		Short:   "Print a configuration file with every setting explained",
		Example: `  bailey config example > bailey.yaml`,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(p.Stdout, daemon.Example())
			return err
		},
	})
	return cmd
}
