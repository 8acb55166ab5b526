package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/telemetry"
)

// A Config is everything that `bailey serve` can be told. The comments of its
// fields are the reference manual: the flags' help and `bailey config example`
// are printed from them.
//
// Each field has one name. It is the flag (--model-url), the key in the file
// (model-url) and, in capitals, the environment variable (BAILEY_MODEL_URL). A
// flag wins over the environment, the environment over the file, the file over
// the default. Fields that hold a secret have no flag and no key in the file.
type Config struct {
	// Listen is the address of the API, host:port. Port 0 takes a free one. An
	// address that other machines can reach needs tls-cert and tls-key, or
	// insecure-http.
	Listen string `name:"listen"`

	// Data is the directory for what the server keeps outside the database: the
	// first API key and, by default, the SQLite file. It is created with mode
	// 0700, and one server at a time may use it.
	Data string `name:"data"`

	// DB is the database: sqlite:PATH, or a PostgreSQL URL (version 15 or
	// newer). Empty means sqlite:bailey.db in the data directory. A password in
	// the URL is accepted from the environment only; a PostgreSQL URL can also
	// name a file with it (?passfile=PATH).
	DB string `name:"db"`

	// VaultKey names the key that secrets of vaults and tunnels are sealed with: file:PATH;
	// transit+https://HOST/MOUNT/KEY, of HashiCorp Vault or OpenBao, with its token from
	// the variable VAULT_TOKEN or a file (?token-file=PATH); or awskms:KEY?region=REGION.
	// Empty means the file vault.key in the data directory, which is made at the first
	// start. Several servers on one database need the same key.
	VaultKey string `name:"vault-key"`

	// VaultOldKeys are keys that secrets may still be sealed with, named alike, with
	// commas between them. "bailey vaults keys rotate --rewrap-only" moves the secrets.
	VaultOldKeys string `name:"vault-old-keys"`

	// ModelProvider is whose endpoint serves the model: anthropic, bedrock, vertex or
	// foundry; or scripted. With anthropic, model-url may name any compatible endpoint.
	// Scripted is a fake model in the server itself that needs no key and no network,
	// plays the session of the demo and answers nothing else.
	ModelProvider string `name:"model-provider"`

	// ModelURL is the address of the Messages API, without /v1/messages. Empty
	// means the provider's own.
	ModelURL string `name:"model-url"`

	// ModelKeyFile is a file that holds the key for the model endpoint. Empty
	// means the variable BAILEY_MODEL_KEY or, for Anthropic's own endpoint only,
	// ANTHROPIC_API_KEY. Bedrock and Vertex find their cloud's own credentials
	// when there is no key.
	ModelKeyFile string `name:"model-key-file"`

	// ModelKey is the key for the model endpoint itself, instead of a file with it.
	ModelKey Secret `name:"model-key"`

	// ModelRegion is the cloud region, required for bedrock and vertex.
	ModelRegion string `name:"model-region"`

	// ModelProject is the Google Cloud project, required for vertex.
	ModelProject string `name:"model-project"`

	// ModelResource is the name of the Foundry resource, required for foundry
	// unless model-url is set.
	ModelResource string `name:"model-resource"`

	// ModelIDs maps the model ids that agents name to what the endpoint calls
	// them, where that differs: claude-opus-5=my-deployment,…
	ModelIDs map[string]string `name:"model-ids"`

	// ModelMaxOutput is how many tokens one answer of the model may have. 0
	// means 32000; a local model with a small context needs less.
	ModelMaxOutput int `name:"model-max-output"`

	// ModelThinking says what requests ask about thinking: auto (adaptive where
	// the model is known to have it), adaptive, disabled, or omit (say nothing).
	ModelThinking string `name:"model-thinking"`

	// Prices are the list prices of models, in dollars for a million input and
	// output tokens, for costs and budgets: claude-opus-5=5/25,local-*=0/0. A name
	// that ends in * is a prefix. They come before the built-in ones.
	Prices map[string]string `name:"prices"`

	// TLSCert is a file with the server's certificate chain in PEM. It is read
	// once, at the start.
	TLSCert string `name:"tls-cert"`

	// TLSKey is a file with the private key of tls-cert in PEM.
	TLSKey string `name:"tls-key"`

	// InsecureHTTP allows plain HTTP on an address that other machines can
	// reach. API keys then travel in the clear: only for a private network, or
	// behind a proxy that ends TLS.
	InsecureHTTP bool `name:"insecure-http"`

	// MCPAllowedAddresses are addresses and ranges, with commas between them, that are not
	// of the public internet and where MCP servers may be all the same, and issuers of
	// workloads' identities: 10.1.0.0/16, 127.0.0.1. MCP servers behind a tunnel need none.
	MCPAllowedAddresses string `name:"mcp-allowed-addresses"`

	// CloudWorker has the sessions of cloud environments run on this host, in boxes.
	// Without it they are refused, and self_hosted environments are the only ones.
	CloudWorker bool `name:"cloud-worker"`

	// CloudConfig is a file that says more about the boxes of cloud environments:
	// backend, image, limits, network rules for all of them, credentials, shells. It is
	// a worker.yaml without server and environments.
	CloudConfig string `name:"cloud-config"`

	// CloudBoxes is how many boxes of cloud environments may be there at the same time,
	// idle ones included.
	CloudBoxes int `name:"cloud-boxes"`

	// TunnelListen is where this server's own edge takes the connections of tunnels, by
	// TCP and UDP: host:port, or off for servers whose edges are elsewhere (bailey edge).
	// Empty means the port after that of listen, on the same host. Everything that comes
	// in there is TLS 1.3, and needs a tunnel's token or a certificate of this server's.
	TunnelListen string `name:"tunnel-listen"`

	// TunnelAddresses are the addresses at which gateways reach the edge, host:port with
	// commas between them; a host alone has the port of tunnel-listen. Empty means
	// tunnel-listen, or where that is all interfaces the host's name and addresses.
	TunnelAddresses string `name:"tunnel-addresses"`

	// TunnelDialAddresses are those at which other servers on the same database reach the
	// edge. Empty means the same.
	TunnelDialAddresses string `name:"tunnel-dial-addresses"`

	// TunnelDomain is what the host names of private MCP servers end in. It is never looked
	// up in the DNS. Tunnels that there are cannot be reached when it changes.
	TunnelDomain string `name:"tunnel-domain"`

	// MaxTunnels is how many tunnels there may be that are not archived.
	MaxTunnels int `name:"max-tunnels"`

	// Metrics says who may read /metrics: key (whoever has an API key, as
	// Authorization: Bearer), open (everybody who reaches the API), off; or a host:port
	// of its own, where it is open and nothing else is served.
	Metrics string `name:"metrics"`

	// MaxStreams is how many event streams may be open at the same time. One more is
	// turned away, to come back later.
	MaxStreams int `name:"max-streams"`

	// MaxShells is how many shells of people into boxes may be open at the same time. 0
	// allows none. A worker's operator has to allow them, too.
	MaxShells int `name:"max-shells"`

	// WritesPerMinute is how many requests that change something one API key may make
	// a minute. 0 means no bound. Keys of workers are not counted.
	WritesPerMinute int `name:"writes-per-minute"`

	// ReadsPerMinute is the same for requests that only read.
	ReadsPerMinute int `name:"reads-per-minute"`

	// MaxTurns is how many turns of sessions run at the same time. More wait in
	// the database, in order.
	MaxTurns int `name:"max-turns"`

	// ShutdownGrace is how long running model requests and API calls may take
	// to finish after the first interrupt or SIGTERM. A second one ends the
	// process at once, which loses nothing that was acknowledged.
	ShutdownGrace time.Duration `name:"shutdown-grace"`

	// Audit is the file of the audit record, in which every change is written down
	// before it is made: without a record it is refused. Empty means audit.jsonl in
	// the data directory; off keeps none. See docs/audit.md.
	Audit string `name:"audit"`

	// AuditSinks are second places for the record, with commas between them:
	// file:PATH, syslog:PATH, syslog+tls://HOST:PORT, otlp+https://HOST, stdout:. With
	// ?required=true what such a place cannot take is refused as well.
	AuditSinks string `name:"audit-sinks"`

	// AuditRetainDays is how many days old records have to be before whole segments
	// of them are removed, unless they are held. 0 keeps them for ever.
	AuditRetainDays int `name:"audit-retain-days"`

	// AuditReads has requests that change nothing recorded, too.
	AuditReads bool `name:"audit-reads"`

	// LogLevel is the least severe level that is logged: debug, info, warn or
	// error.
	LogLevel string `name:"log-level"`

	// LogFormat is text, json, or auto: text on a terminal, JSON otherwise.
	LogFormat string `name:"log-format"`
}

// A Secret is a setting that is never shown: not in the file, not on the command
// line, not by `bailey config`, not in a log.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[set]"
}

// GoString is String, so that %#v does not show the secret either.
func (s Secret) GoString() string { return s.String() }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Defaults returns the Config of a server that was told nothing.
func Defaults() Config {
	return Config{
		Listen:        "127.0.0.1:8484",
		Data:          "bailey-data",
		ModelProvider: model.Anthropic,
		ModelThinking: "auto",
		CloudWorker:   true,
		CloudBoxes:    64,
		TunnelDomain:  "tunnel.bailey.internal",
		MaxTunnels:    api.TunnelsMax,
		Metrics:       metricsForKeys,
		MaxStreams:    10_000,
		MaxShells:     16,
		MaxTurns:      256,
		ShutdownGrace: 25 * time.Second,
		LogLevel:      "info",
		LogFormat:     telemetry.FormatAuto,
	}
}

// Check refuses what cannot work, naming the setting and what to do.
func (c *Config) Check() error {
	if err := c.checkListen(); err != nil {
		return err
	}
	if c.Data == "" {
		return badSetting("data", "must name a directory")
	}
	if err := c.checkDB(); err != nil {
		return err
	}
	if err := c.checkVault(); err != nil {
		return err
	}
	switch c.ModelProvider {
	case model.Anthropic, model.Bedrock, model.Vertex, model.Foundry, scriptedProvider:
	default:
		return badSetting("model-provider", "%q is not one of anthropic, bedrock, vertex, foundry, scripted", c.ModelProvider)
	}
	if _, err := c.prices(); err != nil {
		return err
	}
	if c.ModelMaxOutput < 0 {
		return badSetting("model-max-output", "must not be negative")
	}
	if c.CloudBoxes < 1 {
		return badSetting("cloud-boxes", "must be at least 1")
	}
	if err := c.checkTunnels(); err != nil {
		return err
	}
	if err := c.checkMetrics(); err != nil {
		return err
	}
	if _, err := egress.ParseOpen(c.MCPAllowedAddresses); err != nil {
		return badSetting("mcp-allowed-addresses", "%v", err)
	}
	if c.MaxStreams < 1 {
		return badSetting("max-streams", "must be at least 1")
	}
	if c.MaxShells < 0 {
		return badSetting("max-shells", "must not be negative")
	}
	if c.WritesPerMinute < 0 {
		return badSetting("writes-per-minute", "must not be negative")
	}
	if c.ReadsPerMinute < 0 {
		return badSetting("reads-per-minute", "must not be negative")
	}
	if c.MaxTurns < 1 {
		return badSetting("max-turns", "must be at least 1")
	}
	if c.MaxTunnels < 1 {
		return badSetting("max-tunnels", "must be at least 1")
	}
	if c.ShutdownGrace < 0 {
		return badSetting("shutdown-grace", "must not be negative")
	}
	if err := c.checkAudit(); err != nil {
		return err
	}
	if _, err := c.level(); err != nil {
		return badSetting("log-level", "%q is not one of debug, info, warn, error", c.LogLevel)
	}
	return nil
}

func badSetting(name, format string, args ...any) error {
	return &SettingError{Name: name, Problem: fmt.Sprintf(format, args...)}
}

// A SettingError is a setting that cannot be used.
type SettingError struct {
	Name    string // as in [Setting]; may be a key of the file that is none
	Source  string // where it was set; "" if that does not matter
	Problem string
	Err     error // what is behind the problem; may be nil
}

func (e *SettingError) Unwrap() error { return e.Err }

func (e *SettingError) Error() string {
	if e.Source == "" {
		return e.Name + ": " + e.Problem
	}
	return fmt.Sprintf("%s (%s): %s", e.Name, e.Source, e.Problem)
}

func (c *Config) checkListen() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return badSetting("listen", "%q is not host:port, such as 127.0.0.1:8484 or [::1]:8484", c.Listen)
	}
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return badSetting("tls-cert", "needs tls-key, and the other way round")
	case c.TLSCert != "" || c.InsecureHTTP || loopback(host):
		return nil
	}
	return badSetting("listen", "%s can be reached from other machines, and API keys would travel in the clear: "+
		"give tls-cert and tls-key, or insecure-http if a proxy in front ends TLS", c.Listen)
}

// The values of Metrics that are no address.
const (
	metricsForKeys = "key"
	metricsOpen    = "open"
	metricsOff     = "off"
)

func (c *Config) checkMetrics() error {
	switch c.Metrics {
	case metricsForKeys, metricsOpen, metricsOff:
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
		return badSetting("metrics", "%q is not key, open, off, or host:port such as 127.0.0.1:9484", c.Metrics)
	}
	return nil
}

// loopback reports whether host can only mean this machine. A name other than
// localhost may resolve to anything, so it does not.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *Config) checkDB() error {
	switch scheme, rest, _ := strings.Cut(c.DB, ":"); {
	case c.DB == "":
	case scheme == "sqlite" && rest != "":
	case scheme == "postgres", scheme == "postgresql":
		if _, err := url.Parse(c.DB); err != nil {
			// Not the URL itself: it may hold a password.
			return badSetting("db", "is not a valid PostgreSQL URL")
		}
	default:
		return badSetting("db", "must be sqlite:PATH or postgres://user@host/database")
	}
	return nil
}

// prices reads Prices.
func (c *Config) prices() (control.Prices, error) {
	sheet := control.Prices{}
	for name, text := range c.Prices {
		in, out, ok := strings.Cut(text, "/")
		input, err1 := cents(in)
		output, err2 := cents(out)
		if !ok || err1 != nil || err2 != nil {
			return nil, badSetting("prices", "%q for %s is not dollars for input and output, such as 5/25 or 0.80/4", text, name)
		}
		sheet[name] = control.Price{Input: input, Output: output}
	}
	return sheet, nil
}

// priceMax bounds a price in dollars for a million tokens, far from overflow.
const priceMax = 1_000_000

// cents reads dollars with at most two decimals.
func cents(dollars string) (int64, error) {
	whole, part, _ := strings.Cut(strings.TrimSpace(dollars), ".")
	n, err := strconv.ParseUint(whole+(part + "00")[:2], 10, 63)
	if err != nil || len(part) > 2 || whole == "" || n > priceMax*100 {
		return 0, fmt.Errorf("%q is not an amount of dollars", dollars)
	}
	return int64(n), nil
}

// Database is the database's URL with the default filled in.
func (c *Config) Database() string {
	if c.DB == "" {
		return "sqlite:" + filepath.Join(c.Data, "bailey.db")
	}
	return c.DB
}

// AdminKeyFile is where the first API key is written.
func (c *Config) AdminKeyFile() string { return filepath.Join(c.Data, "admin.key") }

// NewLogger returns the logger that c asks for.
func (c *Config) NewLogger(w io.Writer, terminal, colour bool) (*slog.Logger, error) {
	level, err := c.level()
	if err != nil {
		return nil, badSetting("log-level", "%q is not one of debug, info, warn, error", c.LogLevel)
	}
	log, err := telemetry.NewLogger(w, telemetry.LogOptions{Format: c.LogFormat, Level: level, Terminal: terminal, Colour: colour})
	if err != nil {
		return nil, badSetting("log-format", "%q is not one of auto, text, json", c.LogFormat)
	}
	return log, nil
}

// orNone is a bound of 0 for those who take 0 as "the default".
func orNone(most int) int {
	if most == 0 {
		return -1
	}
	return most
}

// grace is ShutdownGrace for those who take 0 as "the default".
func (c *Config) grace() time.Duration { return max(c.ShutdownGrace, time.Millisecond) }

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}
