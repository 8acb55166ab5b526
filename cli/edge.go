package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/edge"
	"github.com/bailey-platform/bailey/tunnel/edge/remote"
)

// edgeSettings are what `bailey edge` can be told; docs/edge.yaml explains them.
type edgeSettings struct {
	Server        string            `yaml:"server"`
	KeyFile       string            `yaml:"key-file"`
	Name          string            `yaml:"name"`
	Listen        string            `yaml:"listen"`
	Addresses     []string          `yaml:"addresses"`
	DialAddresses []string          `yaml:"dial-addresses"`
	Certificate   edgeCertificate   `yaml:"certificate"`
	QUIC          *bool             `yaml:"quic"`
	Metrics       string            `yaml:"metrics"`
	Drain         settings.Duration `yaml:"drain"`
	Limits        edgeLimits        `yaml:"limits"`

	key string // of BAILEY_EDGE_KEY
}

// edgeCertificate is the operator's own.
type edgeCertificate struct {
	Cert       string `yaml:"cert"`
	Key        string `yaml:"key"`
	CA         string `yaml:"ca"`
	ServerName string `yaml:"server-name"`
}

type edgeLimits struct {
	Connectors          int `yaml:"connectors"`
	ConnectorsPerTunnel int `yaml:"connectors-per-tunnel"`
	Streams             int `yaml:"streams"`
	StreamsPerTunnel    int `yaml:"streams-per-tunnel"`
}

const (
	edgeListen = "127.0.0.1:8443"
	edgeDrain  = 5 * time.Minute
)

func (p *Program) edgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "edge",
		Short: "Run an edge: where tunnels meet, on a machine of its own",
		Long: `Runs a tunnel edge: gateways dial in from the inside of networks, the server dials
in with calls, and the edge joins the two. What it passes on is encrypted between
server and gateway, and it has no key to it. "bailey serve" has an edge of its own;
this one is for a DMZ, for another region, or for more than one machine.

It needs the server's address and an edge key, and keeps nothing on disk. The
server gives it a certificate, unless the file names one of yours. On the first
interrupt or SIGTERM gateways are sent to other edges and calls under way finish; a
second one ends the process.`,
		Example: `  bailey keys create --type edge_key --name edge-1 --save edge.key
  bailey edge --server https://bailey.example.org --key-file edge.key --listen 0.0.0.0:8443 --address edge-1.example.org:8443
  bailey edge --config edge.yaml
  bailey edge list`,
	}
	var s edgeSettings
	var config, logLevel, logFormat string
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&config, "config", "", "a `file` with the settings; docs/edge.yaml is an example of all of them")
	f.StringVar(&s.Server, "server", "", "the server's `address`")
	f.StringVar(&s.KeyFile, "key-file", "", "a `file` with the edge key (or the variable BAILEY_EDGE_KEY)")
	f.StringVar(&s.Name, "name", "", "a `name` that tells this edge from others (default the host's and the port)")
	f.StringVar(&s.Listen, "listen", "", "the `host:port` for gateways and the server, TCP and UDP (default "+edgeListen+")")
	f.StringArrayVar(&s.Addresses, "address", nil, "a `host:port` at which gateways reach it (default --listen); may be repeated")
	f.StringArrayVar(&s.DialAddresses, "dial-address", nil, "a `host:port` at which the server reaches it (default --address); may be repeated")
	f.StringVar(&s.Metrics, "metrics", "", "serve /healthz, /readyz and /metrics on this `host:port`")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", telemetry.FormatAuto, "text, json, or auto: text on a terminal")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagFilename("key-file"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := p.loadEdge(config, s)
		if err != nil {
			return err
		}
		return p.runEdge(cmd.Context(), all, workerFlags{logLevel: logLevel, logFormat: logFormat})
	}
	cmd.AddCommand(p.edgeList(), p.edgeAuthorities())
	return cmd
}

// loadEdge puts the settings together: the file, and what flags say instead.
func (p *Program) loadEdge(path string, flags edgeSettings) (*edgeSettings, error) {
	s := new(edgeSettings)
	if path != "" {
		text, err := settings.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if _, problems := settings.Parse(text, s, "docs/edge.yaml"); len(problems) > 0 {
			return nil, &settings.Invalid{Path: path, Problems: problems}
		}
		for _, file := range []*string{&s.KeyFile, &s.Certificate.Cert, &s.Certificate.Key, &s.Certificate.CA} {
			if *file != "" && !filepath.IsAbs(*file) {
				*file = filepath.Join(filepath.Dir(path), *file)
			}
		}
	}
	for _, v := range []struct {
		to   *string
		flag string
	}{{&s.Server, flags.Server}, {&s.KeyFile, flags.KeyFile}, {&s.Name, flags.Name}, {&s.Listen, flags.Listen}, {&s.Metrics, flags.Metrics}} {
		if v.flag != "" {
			*v.to = v.flag
		}
	}
	if len(flags.Addresses) > 0 {
		s.Addresses = flags.Addresses
	}
	if len(flags.DialAddresses) > 0 {
		s.DialAddresses = flags.DialAddresses
	}
	if s.Listen == "" {
		s.Listen = edgeListen
	}
	if _, port, err := net.SplitHostPort(s.Listen); err == nil && port != "0" {
		for _, list := range [][]string{s.Addresses, s.DialAddresses} {
			for i := range list {
				list[i] = tunnel.WithPort(list[i], port)
			}
		}
	}
	if s.Drain == 0 {
		s.Drain = settings.Duration(edgeDrain)
	}
	if s.KeyFile == "" {
		key, _ := p.Env("BAILEY_EDGE_KEY")
		s.key = strings.TrimSpace(key)
	}
	if problems := s.problems(); len(problems) > 0 {
		return nil, &settings.Invalid{Path: path, Problems: problems}
	}
	return s, nil
}

func (s *edgeSettings) problems() (out []string) {
	problem := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if s.Server == "" {
		problem("server: say where the server is, such as https://bailey.example.org")
	}
	if s.KeyFile == "" && s.key == "" {
		problem("key-file: the edge key is missing; `bailey keys create --name NAME --type edge_key --save edge.key` makes one")
	}
	host, port, err := net.SplitHostPort(s.Listen)
	if err != nil {
		problem("listen: %q is not host:port", s.Listen)
	}
	if ip := net.ParseIP(host); err == nil && len(s.Addresses) == 0 && (host == "" || ip != nil && ip.IsUnspecified() || port == "0" && host != "127.0.0.1") {
		problem("addresses: say at which host:port gateways reach this edge; %s does not tell", s.Listen)
	}
	for _, a := range slices.Concat(s.Addresses, s.DialAddresses) {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" || port == "0" || strings.Trim(port, "0123456789") != "" {
			problem("addresses: %q is not host:port", a)
		}
	}
	if c := s.Certificate; c != (edgeCertificate{}) && (c.Cert == "" || c.Key == "" || c.ServerName == "") {
		problem("certificate: needs cert, key and server-name; leave all of it out for one of the server's")
	}
	if s.Drain < 0 {
		problem("drain: must be a time, such as 5m")
	}
	if l := s.Limits; min(l.Connectors, l.ConnectorsPerTunnel, l.Streams, l.StreamsPerTunnel) < 0 {
		problem("limits: must not be negative")
	}
	return out
}

// runEdge serves until ctx ends.
func (p *Program) runEdge(ctx context.Context, s *edgeSettings, flags workerFlags) error {
	log, err := flags.logger(p)
	if err != nil {
		return err
	}
	key := s.key
	if s.KeyFile != "" {
		if key, err = readKeyFile(s.KeyFile); err != nil {
			return err
		}
	}
	plane, err := client.New(client.Config{BaseURL: s.Server, Key: key, UserAgent: "bailey-edge"})
	if err != nil {
		return usagef("server: %q is not an http or https URL", s.Server)
	}
	join := remote.Config{Client: plane, Log: log}
	if s.Certificate.Cert != "" {
		own := &certificateFile{cert: s.Certificate.Cert, key: s.Certificate.Key}
		if _, err := own.get(); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		join.Certificate = own.get
		join.Edge.ServerName = s.Certificate.ServerName
		if s.Certificate.CA != "" {
			text, err := settings.ReadFile(s.Certificate.CA)
			if err != nil {
				return fmt.Errorf("certificate: %w", err)
			}
			if !x509.NewCertPool().AppendCertsFromPEM(text) {
				return fmt.Errorf("certificate: %s holds no certificate in PEM", s.Certificate.CA)
			}
			join.Edge.CAs = string(text)
		}
	}
	serve := edge.Config{Log: log, Limits: edge.Limits{
		Drain: time.Duration(s.Drain), Attachments: s.Limits.Connectors, AttachmentsPerTunnel: s.Limits.ConnectorsPerTunnel,
		Streams: s.Limits.Streams, StreamsPerTunnel: s.Limits.StreamsPerTunnel,
	}}
	if serve.Listener, err = net.Listen("tcp", s.Listen); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; `listen` takes another address (bailey serve has an edge of its own, by default at 8485)", err)
		}
		return fmt.Errorf("listen: %w", err)
	}
	bound := serve.Listener.Addr().String()
	if s.QUIC == nil || *s.QUIC {
		if serve.Packets, err = net.ListenPacket("udp", bound); err != nil {
			serve.Listener.Close()
			return fmt.Errorf("listen for QUIC: %w; `quic: false` does without", err)
		}
	}
	join.Edge.Name, join.Edge.Version = s.Name, telemetry.ReadBuild().Version
	if join.Edge.Name == "" {
		join.Edge.Name = edgeName(bound)
	}
	join.Edge.ConnectorAddresses = s.Addresses
	if len(s.Addresses) == 0 {
		join.Edge.ConnectorAddresses = []string{bound}
	}
	join.Edge.DialAddresses = s.DialAddresses
	if len(s.DialAddresses) == 0 {
		join.Edge.DialAddresses = join.Edge.ConnectorAddresses
	}

	var running atomic.Pointer[edge.Edge]
	join.Started = func(e *edge.Edge) { running.Store(e) }
	parts, asked := errgroup.WithContext(ctx)
	probes, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	if s.Metrics != "" {
		l, err := net.Listen("tcp", s.Metrics)
		if err != nil {
			serve.Listener.Close()
			return fmt.Errorf("metrics: %w", err)
		}
		log.Info("health and metrics", "address", l.Addr().String())
		parts.Go(func() error { return serveEdgeHealth(probes, l, &running) })
	}
	log.Info("listening for tunnels", "address", bound, "name", join.Edge.Name, "server", s.Server)
	parts.Go(func() error {
		defer stop() // probes are answered while calls finish
		return remote.Run(asked, join, serve)
	})
	if err := parts.Wait(); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// edgeName is an edge's name if its operator gives it none.
func edgeName(bound string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "edge"
	}
	_, port, _ := net.SplitHostPort(bound)
	return host + ":" + port
}

// serveEdgeHealth answers probes until ctx ends. An edge is ready once its plane knows
// it, and until it drains.
func serveEdgeHealth(ctx context.Context, l net.Listener, running *atomic.Pointer[edge.Edge]) error {
	registry := telemetry.NewRegistry(telemetry.ReadBuild())
	edge.Register(registry, running.Load)
	answer := func(w http.ResponseWriter, ok bool) {
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "{\"ok\":%t}\n", ok)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, true) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		e := running.Load()
		answer(w, e != nil && !e.Stats().Draining)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}

// A certificateFile is a certificate that its operator renews: it is read again when a
// file has changed, and the one there was is used as long as the new one cannot be.
type certificateFile struct {
	cert, key string

	mu      sync.Mutex
	have    *tls.Certificate
	stamp   [2]time.Time
	checked time.Time
}

const certificateCheck = 10 * time.Second

func (c *certificateFile) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.have != nil && time.Since(c.checked) < certificateCheck {
		return c.have, nil
	}
	c.checked = time.Now()
	var stamp [2]time.Time
	for i, path := range []string{c.cert, c.key} {
		if info, err := os.Stat(path); err == nil {
			stamp[i] = info.ModTime()
		}
	}
	if c.have != nil && stamp == c.stamp {
		return c.have, nil
	}
	cert, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		if c.have != nil {
			return c.have, nil
		}
		return nil, err
	}
	c.have, c.stamp = &cert, stamp
	return c.have, nil
}

func (p *Program) edgeList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the edges that the server knows, the newest first",
		Example: `  bailey edge list
  bailey edge list --archived -o json`,
	}
	c := p.connectFlags(cmd)
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		return printList(p, l, cl.Edges(ctx, l.options()),
			[]string{"ID", "NAME", "STATE", "GATEWAYS", "ADDRESSES", "SEEN", "VERSION"},
			func(e *api.Edge) []string {
				return []string{string(e.ID), e.Name, string(e.State), fmt.Sprint(e.Connectors), strings.Join(e.ConnectorAddresses, " "), when(e.LastSeenAt), e.Version}
			})
	})
	return cmd
}

func (p *Program) edgeAuthorities() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "Show and replace the server's own CA for edges",
		Long: `The server has a CA of its own, which vouches for edges to gateways, and for the
server to edges. It has no say in what a tunnel carries. It is replaced by itself
before it expires. "rotate" makes the next one now: it is trusted at once, and signs
a day later, when everybody has learnt of it; "archive" then ends the trust in the
old one.`,
	}
	c := p.connectFlags(cmd)
	list := &cobra.Command{Use: "list", Short: "List the CAs that are trusted, the newest first", Example: `  bailey edge authority list`}
	out := outputFlag(list)
	list.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		all, err := cl.Authorities(ctx)
		if err != nil {
			return err
		}
		if *out == outJSON {
			return printJSON(p.Stdout, all)
		}
		var rows [][]string
		for _, a := range all {
			rows = append(rows, []string{string(a.ID), a.Fingerprint[:16], when(a.SignsFrom), when(a.ExpiresAt)})
		}
		return p.printRows([]string{"ID", "FINGERPRINT", "SIGNS FROM", "EXPIRES"}, rows)
	})
	rotate := &cobra.Command{Use: "rotate", Short: "Make the next CA", Example: `  bailey edge authority rotate`}
	rotated := outputFlag(rotate)
	rotate.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		a, err := cl.RotateAuthority(ctx)
		if err != nil {
			return err
		}
		return p.printAuthority(*rotated, a)
	})
	archive := &cobra.Command{Use: "archive AUTHORITY", Short: "End the trust in a CA that signs no more", Args: cobra.ExactArgs(1), Example: `  bailey edge authority archive eca_…`}
	archived := outputFlag(archive)
	archive.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		a, err := cl.ArchiveAuthority(ctx, api.AuthorityID(args[0]))
		if err != nil {
			return err
		}
		return p.printAuthority(*archived, a)
	})
	cmd.AddCommand(list, rotate, archive)
	return cmd
}

func (p *Program) printAuthority(out string, a *api.Authority) error {
	return p.printObject(out, a,
		field{"id", string(a.ID)},
		field{"fingerprint", a.Fingerprint},
		field{"signs from", when(a.SignsFrom)},
		field{"expires", when(a.ExpiresAt)},
		field{"archived", whenPtr(a.ArchivedAt)},
	)
}
