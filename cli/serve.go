package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/daemon"
)

func (p *Program) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: API, agent loop, database",
		Long: `Runs the server: the HTTP API, the agent loop and the database. The first start
makes an API key, writes it to admin.key in the data directory and, on a
terminal, shows it once.

Every flag is also a key of the file given with --config and an environment
variable: --model-url is model-url in the file and BAILEY_MODEL_URL in the
environment. A flag wins over the environment, the environment over the file.
"bailey config example" explains every setting.`,
		Example: `  ANTHROPIC_API_KEY=… bailey serve
  bailey serve --model-url http://127.0.0.1:11434 --data /var/lib/bailey
  bailey serve --db postgres://bailey@db/bailey?passfile=/run/pgpass --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem`,
	}
	load := p.settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, _, err := load()
		if err != nil {
			return err
		}
		log, err := cfg.NewLogger(p.Stderr, isTerminal(p.Stderr), p.styleOf(p.Stderr).on)
		if err != nil {
			return err
		}
		d, err := daemon.New(cmd.Context(), *cfg, log)
		if err != nil {
			return err
		}
		p.greet(d, cfg)
		if err := d.Run(cmd.Context()); err != nil {
			return err
		}
		log.Info("stopped")
		return nil
	}
	return cmd
}

// greet tells a person at a terminal what was started. Elsewhere the log does, and
// a key is never written to one.
func (p *Program) greet(d *daemon.Daemon, cfg *daemon.Config) {
	if !isTerminal(p.Stderr) {
		return
	}
	s := p.styleOf(p.Stderr)
	fmt.Fprintf(p.Stderr, "\n  %s %s\n", s.bold("Bailey listens on"), s.cyan(d.URL()))
	if key := d.FirstKey(); key != "" {
		fmt.Fprintf(p.Stderr, `
  The first API key, also in %s:
    %s
`, cfg.AdminKeyFile(), s.bold(key))
	}
	fmt.Fprintf(p.Stderr, "\n  In another terminal, from this directory: bailey agents list\n\n")
}
