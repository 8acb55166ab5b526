package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/telemetry"
)

func (p *Program) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Example: `  bailey version
  bailey version -o json`,
	}
	out := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		b := telemetry.ReadBuild()
		if *out == outJSON {
			return printJSON(p.Stdout, b)
		}
		rev := b.Revision
		if rev != "" && b.Modified {
			rev += " with changes"
		}
		if rev != "" {
			rev = " (" + rev + ")"
		}
		_, err := fmt.Fprintf(p.Stdout, "bailey %s%s, %s, %s\n", b.Version, rev, b.Go, b.Platform)
		return err
	}
	return cmd
}
