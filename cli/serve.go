package cli

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/cloud"
	"github.com/bailey-platform/bailey/daemon"
	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
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
		p.captureLog(log)
		d, err := daemon.New(cmd.Context(), *cfg, log)
		if err != nil {
			return err
		}
		if cfg.CloudWorker {
			c, err := p.cloud(d, cfg, log)
			if err != nil {
				return errors.Join(err, d.Close())
			}
			d.SetCloud(c)
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

// cloud is what runs the sessions of cloud environments beside the server.
func (p *Program) cloud(d *daemon.Daemon, cfg *daemon.Config, log *slog.Logger) (*cloud.Cloud, error) {
	inside := d.Inside()
	o := cloud.Options{
		Plane: inside, HTTPClient: inside.HTTPClient, Data: inside.Data, Drain: inside.Drain, Metrics: inside.Registerer,
		BoxesMax: cfg.CloudBoxes, Backends: p.fieldBackends(),
		Agent: agentbin.Path, AgentArgs: agentArgs(),
		Env: p.Env, Logger: log.With("part", "cloud"),
	}
	if cfg.CloudConfig != "" {
		var err error
		if o.Config, err = fieldwork.Load(cfg.CloudConfig); err != nil {
			return nil, &daemon.SettingError{Name: "cloud-config", Problem: err.Error(), Err: err}
		}
	}
	c, err := cloud.New(o)
	if err != nil {
		return nil, &daemon.SettingError{Name: "cloud-config", Source: cfg.CloudConfig, Problem: err.Error(), Err: err}
	}
	return c, nil
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
