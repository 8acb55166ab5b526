package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// Where a gateway's settings are if nothing is said: here, or where init puts them.
const (
	gatewayDir  = "bailey-gateway"
	gatewayFile = "gateway.yaml"
)

// gatewayFlags are what `bailey gateway` was told.
type gatewayFlags struct {
	config                                    string
	domain, tokenFile, edgeCA, edgeName, data string
	edges                                     []string
	listen, logLevel, logFormat               string
}

func (p *Program) gatewayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a gateway: the inside end of a tunnel to private MCP servers",
		Long: `Runs the customer's end of a tunnel. It dials out to the tunnel's edges, ends the
TLS that only it has the key for, and passes calls on to the private MCP servers
that its file names, and to nothing else. Nothing has to be let in.

"bailey gateway init" writes the file, docs/gateway.yaml is an example with every
setting. The file of Anthropic's mcp-proxy is read as it is; say with flags what
it does not: the token, and the edges.

Routes and certificates are read anew when their files change, and on SIGHUP. The
first interrupt or SIGTERM lets calls under way finish; a second one ends the
process. A proxy on the way out is taken from HTTPS_PROXY.`,
		Example: `  bailey gateway init --tunnel tnl_… --route docs=http://10.0.0.5:8080
  bailey gateway
  bailey gateway check
  bailey gateway --config /etc/mcp-gateway/config.yaml --token-file tunnel-token --edge edge.example.org:8443`,
	}
	var g gatewayFlags
	p.gatewayFlags(cmd, &g)
	f := cmd.Flags()
	f.StringVar(&g.data, "data", "", "a `dir`ectory of the gateway's own, for its record of calls (default bailey-gateway)")
	must(cmd.MarkFlagDirname("data"))
	f.StringVar(&g.listen, "listen", "", "serve /healthz, /readyz and /metrics on this `address`")
	f.StringVar(&g.logLevel, "log-level", "", "debug, info, warn or error (default info)")
	f.StringVar(&g.logFormat, "log-format", telemetry.FormatAuto, "text, json, or auto: text on a terminal")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return p.runGateway(cmd.Context(), &g) }
	cmd.AddCommand(p.gatewayInit(), p.gatewayCheck(), p.gatewayRenew())
	return cmd
}

// gatewayFlags adds the flags that say what gateway is meant.
func (p *Program) gatewayFlags(cmd *cobra.Command, g *gatewayFlags) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&g.config, "config", "", "a `file` with the settings, ours or mcp-proxy's (default gateway.yaml here, or in "+gatewayDir+")")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	f.StringVar(&g.domain, "tunnel-domain", "", "the tunnel's `domain`, instead of the file's")
	f.StringVar(&g.tokenFile, "token-file", "", "a `file` with the tunnel's token, instead of the file's (or the variable TUNNEL_TOKEN)")
	must(cmd.MarkFlagFilename("token-file"))
	f.StringArrayVar(&g.edges, "edge", nil, "an edge's `host:port`, instead of the file's; may be repeated")
	f.StringVar(&g.edgeCA, "edge-ca", "", "a `file` with who may have signed the certificates of --edge (default the authorities of this host)")
	must(cmd.MarkFlagFilename("edge-ca"))
	f.StringVar(&g.edgeName, "edge-server-name", "", "the `name` in the certificates of --edge, such as ID.edge.bailey.internal (default the host of --edge)")
}

// path is the file with the settings, or "" if there is none.
func (g *gatewayFlags) path() string {
	if g.config != "" {
		return g.config
	}
	for _, path := range []string{gatewayFile, filepath.Join(gatewayDir, gatewayFile)} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// load reads the settings, with what flags say instead. With settings that cannot be meant
// it returns them beside the error.
func (g *gatewayFlags) load() (*gateway.Config, error) {
	path := g.path()
	if path == "" {
		return nil, usagef("there is no %s here or in %s: name one with --config, or make one with `bailey gateway init --tunnel TUNNEL --route NAME=http://HOST:PORT`", gatewayFile, gatewayDir)
	}
	c, err := gateway.Load(path)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		to   *string
		flag string
	}{{&c.Tunnel.Domain, g.domain}, {&c.Tunnel.TokenFile, g.tokenFile}, {&c.Data, g.data}, {&c.Listen, g.listen}, {&c.Log, g.logLevel}} {
		if s.flag != "" {
			*s.to = s.flag
		}
	}
	if len(g.edges) > 0 {
		c.Tunnel.Edges = nil
		for _, e := range g.edges {
			c.Tunnel.Edges = append(c.Tunnel.Edges, gateway.Edge{Addresses: []string{e}, CA: g.edgeCA, ServerName: g.edgeName})
		}
	}
	c.SetDefaults()
	return c, c.Validate()
}

// gatewayToken reads the tunnel's token.
func (p *Program) gatewayToken(c *gateway.Config) (tunnel.Token, error) {
	if c.Tunnel.TokenFile == "" {
		text, ok := p.Env("TUNNEL_TOKEN")
		if !ok {
			return tunnel.Token{}, &settings.Invalid{Problems: []string{"the tunnel's token is missing: tunnel.token-file, --token-file or the variable TUNNEL_TOKEN"}}
		}
		return tunnel.ParseToken(text)
	}
	text, err := settings.ReadFile(c.Tunnel.TokenFile)
	if err != nil {
		return tunnel.Token{}, err
	}
	token, err := tunnel.ParseToken(string(text))
	if err != nil {
		err = fmt.Errorf("%s: %w", c.Tunnel.TokenFile, err)
	}
	return token, err
}

// gatewayEdges are the edges as a connector takes them: those of the settings, and those
// that edges have named since.
func gatewayEdges(c *gateway.Config) ([]tunnel.EdgeAddr, error) {
	configured := make([]api.EdgeAddress, 0, len(c.Tunnel.Edges))
	for _, e := range c.Tunnel.Edges {
		a := api.EdgeAddress{EdgeID: api.EdgeID(e.ID), Addresses: e.Addresses, ServerName: e.ServerName}
		if e.CA != "" {
			text, err := settings.ReadFile(e.CA)
			if err != nil {
				return nil, err
			}
			a.CAs = string(text)
		}
		configured = append(configured, a)
	}
	learned, err := readLearned(c)
	if err != nil {
		return nil, err
	}
	var all []tunnel.EdgeAddr
	for _, a := range withLearned(configured, learned) {
		addrs, err := tunnel.EdgeAddrs(a)
		if err != nil {
			return nil, err
		}
		all = append(all, addrs...)
	}
	if len(all) == 0 {
		return nil, &settings.Invalid{Problems: []string{"tunnel.edges: there are none; `bailey gateway init` finds them out, --edge names one"}}
	}
	return all, nil
}

// runGateway serves until ctx ends.
func (p *Program) runGateway(ctx context.Context, flags *gatewayFlags) (err error) {
	cfg, err := flags.load()
	if err != nil {
		return err
	}
	w := workerFlags{logLevel: cfg.Log, logFormat: flags.logFormat}
	log, err := w.logger(p)
	if err != nil {
		return err
	}
	edges, err := gatewayEdges(cfg)
	if err != nil {
		return err
	}
	if _, err := p.gatewayToken(cfg); err != nil {
		return err
	}
	record, err := openGatewayAudit(p, cfg, log)
	if err != nil {
		return err
	}
	if record != nil {
		defer func() { err = errors.Join(err, record.Close()) }()
	}
	registry := telemetry.NewRegistry(telemetry.ReadBuild())
	o := gateway.Options{Load: flags.load, File: flags.path(), Logger: log, Metrics: registry}
	if record != nil {
		o.Audit = record
	}
	g, err := gateway.New(o)
	if err != nil {
		return err
	}
	links, err := connect.New(connect.Config{
		Edges: edges, Token: func() (tunnel.Token, error) { return p.gatewayToken(cfg) }, ID: g.Replica(), Version: telemetry.ReadBuild().Version,
		Learned: keepLearned(cfg, log), Protocol: gatewayProtocol(cfg), Links: cfg.Tunnel.Links, Grace: time.Duration(cfg.Drain) + 5*time.Second, Log: log,
	})
	if err != nil {
		return err
	}
	if err := noteGateway(record, audit.Record{Actor: g.Replica(), Action: audit.GatewayStart, Attrs: map[string]string{"config": cfg.Fingerprint(), "tunnel": cfg.Tunnel.ID}}); err != nil {
		return fmt.Errorf("the start cannot be put on record: %w", err)
	}
	if err := serveGateway(ctx, g, links, cfg.Listen, registry, log); err != nil {
		return err
	}
	log.Info("stopped")
	return noteGateway(record, audit.Record{Actor: g.Replica(), Action: audit.GatewayStop})
}

func noteGateway(record *audit.Log, r audit.Record) error {
	if record == nil {
		return nil
	}
	return record.Append(r)
}

func gatewayProtocol(c *gateway.Config) api.TunnelProtocol {
	if c.Tunnel.Protocol == "auto" {
		return ""
	}
	return api.TunnelProtocol(c.Tunnel.Protocol)
}

// openGatewayAudit opens the record of calls, unless there is to be none.
func openGatewayAudit(p *Program, c *gateway.Config, log *slog.Logger) (*audit.Log, error) {
	if c.Audit.Off {
		log.Warn("calls are not put on record (audit.off)")
		return nil, nil
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	sinks, err := sink.OpenAll(strings.Join(c.Audit.Sinks, ","), p.Stdout)
	if err != nil {
		return nil, err
	}
	input := audit.InputHash
	if c.Audit.Arguments == "full" {
		input = audit.InputText
	}
	record, err := audit.Open(filepath.Join(c.Data, "audit.jsonl"), audit.Options{Logger: log, Input: input, Retain: time.Duration(c.Audit.Retention), Sinks: sinks})
	if errors.Is(err, audit.ErrInUse) {
		err = fmt.Errorf("%w; does another gateway run with this configuration? Stop that one, or give this one a data directory of its own", err)
	}
	return record, err
}

// serveGateway runs the parts of a gateway until ctx ends. It reads the settings anew on
// SIGHUP.
func serveGateway(ctx context.Context, g *gateway.Gateway, links *connect.Connector, listen string, registry *prometheus.Registry, log *slog.Logger) error {
	parts, ctx := errgroup.WithContext(ctx)
	health, stopHealth := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHealth()
	if listen != "" {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		log.Info("health and metrics", "address", l.Addr().String())
		server := &http.Server{
			Handler:           g.HealthHandler(func() error { return attached(links) }, registry),
			ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		}
		context.AfterFunc(health, func() { server.Close() })
		parts.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve health and metrics: %w", err)
			}
			return nil
		})
	}
	parts.Go(func() error { return links.Run(ctx) })
	parts.Go(func() error {
		// Probes are answered while calls finish.
		defer stopHealth()
		return g.Serve(ctx, links.Listener())
	})
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	parts.Go(func() error {
		for {
			select {
			case <-hup:
				if err := g.Reload(); err != nil {
					log.Error("settings not read anew", "error", err)
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	return parts.Wait()
}

// attached returns why no call can come through the tunnel, or nil.
func attached(links *connect.Connector) error {
	s := links.Status()
	if len(s.Links) > 0 {
		return nil
	}
	if s.LastError != nil {
		return fmt.Errorf("attached to no edge: %w", s.LastError)
	}
	return errors.New("attached to no edge yet")
}
