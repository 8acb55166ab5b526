// Package model is the client of a Messages API endpoint: Anthropic's own, the
// same API at Amazon Bedrock, Vertex AI or Microsoft Foundry, or anything that
// speaks it at a URL (vLLM, Ollama, LiteLLM). The official Go SDK makes the
// requests; this package decides what is sent, how long to wait, and what each
// way of failing means.
//
// It knows nothing of sessions, events or agents, keeps no history and never
// retries: the durable loop does, and it needs every failure as one [*Error]
// that says whether another try can help.
//
// Start reading at [Client.Stream], then [Client.Forward]. The fake endpoint
// for tests and demos is a real HTTP server, in model/scripted.
package model

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// Providers, as written in [Config.Provider].
const (
	Anthropic = "anthropic" // Anthropic's API, or a compatible endpoint at Config.BaseURL
	Bedrock   = "bedrock"   // Amazon Bedrock (InvokeModel on bedrock-runtime)
	Vertex    = "vertex"    // Claude on Vertex AI
	Foundry   = "foundry"   // Claude in Microsoft Foundry
)

// Values of [Config.Thinking].
const (
	// ThinkingAuto asks for adaptive thinking of the models that offer it and do
	// not do it by default, and says nothing to any other model.
	ThinkingAuto = ""
	// ThinkingAdaptive asks every model for adaptive thinking.
	ThinkingAdaptive = "adaptive"
	// ThinkingDisabled tells every model not to think. Some models refuse that.
	ThinkingDisabled = "disabled"
	// ThinkingOmit never mentions thinking: the model's own default applies.
	ThinkingOmit = "omit"
)

// Defaults of the zero [Config].
const (
	defaultMaxOutputTokens  = 32_000
	defaultTimeout          = time.Hour
	defaultFirstByteTimeout = 10 * time.Minute
	defaultIdleTimeout      = 2 * time.Minute
)

// Config says which endpoint to use and how. The zero value plus a Key is
// Anthropic's API. No ANTHROPIC_* environment variable is read: the caller
// resolves those. Bedrock and Vertex without a Key use their cloud's standard
// credential chain, which does read that cloud's own variables and files.
type Config struct {
	// Provider is one of the constants above; "" is [Anthropic].
	Provider string

	// BaseURL replaces the provider's address: a compatible endpoint, a gateway,
	// a private link. The client adds /v1/messages itself; a trailing /v1 is
	// dropped. It must include /anthropic for Foundry, and must have no path for
	// Bedrock and Vertex.
	BaseURL string

	// Key is the secret itself, never a file name. It is an API key for
	// Anthropic (required there, optional for a BaseURL) and Foundry (required),
	// a Bedrock API key, or the JSON of a Google credential. It is never logged,
	// and is blanked out of every error message.
	Key string

	// Region is required for Bedrock ("eu-west-1") and Vertex ("global",
	// "europe-west1", …).
	Region string

	// Project is the Google Cloud project, required for Vertex.
	Project string

	// Resource is the Foundry resource name, required there unless BaseURL is set.
	Resource string

	// ModelIDs maps a Claude API model id to what this endpoint calls it, where
	// that differs from the built-in rules: an inference profile, a Foundry
	// deployment, a local model standing in.
	ModelIDs map[string]string

	// HTTPClient carries the requests; nil makes a plain one. Its Timeout should
	// be zero, because it would cut long streams. Redirects are never followed,
	// whatever it says, so that no key travels to another host.
	HTTPClient *http.Client

	// MaxOutputTokens is the max_tokens of a request that names none. 0 means
	// 32,000, which every Claude model since 4.5 allows; a local model with a
	// small context needs less.
	MaxOutputTokens int

	// Thinking is one of the Thinking constants.
	Thinking string

	// Timeout bounds a whole call (0: one hour), FirstByteTimeout the wait for
	// the first byte of the reply (0: ten minutes, since a local server may load
	// the model first), IdleTimeout the silence between later bytes (0: two
	// minutes; the pings of a stream count as bytes).
	Timeout, FirstByteTimeout, IdleTimeout time.Duration
}

// String shows the configuration without the key.
func (c Config) String() string {
	key := "none"
	if c.Key != "" {
		key = "set"
	}
	return fmt.Sprintf("model.Config{provider %s, url %s, key %s}", c.provider(), hostOf(c.BaseURL), key)
}

// GoString is String, so that %#v does not show the key either.
func (c Config) GoString() string { return c.String() }

func (c Config) provider() string {
	if c.Provider == "" {
		return Anthropic
	}
	return c.Provider
}

// A Client talks to one endpoint. It is safe for concurrent use and holds no
// state besides the connections of its HTTP client.
type Client struct {
	cfg  Config
	sdk  anthropic.Client
	host string // for messages; never has user information
}

// New returns a client for cfg, or an error that says what to set. It sends
// nothing; ctx bounds the search for the cloud's credentials.
func New(ctx context.Context, cfg Config) (*Client, error) {
	cfg.Provider = cfg.provider()
	cfg.Key = strings.TrimSpace(cfg.Key)
	if err := cfg.normalize(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}

	options := []option.RequestOption{
		// The caller decides on every credential and address; without this the
		// SDK would also try ANTHROPIC_AUTH_TOKEN, ANTHROPIC_BASE_URL,
		// ANTHROPIC_CUSTOM_HEADERS and the profiles in the home directory.
		option.WithoutEnvironmentDefaults(),
		option.WithHTTPClient(cfg.HTTPClient),
		option.WithMaxRetries(0),
		// Pinned because the SDK would let an environment variable put whole
		// conversations into traces.
		option.WithOpenTelemetryTracesContentMode(option.OpenTelemetryContentModeMetadataOnly),
	}
	options, err := cfg.withProvider(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	c := &Client{cfg: cfg, sdk: anthropic.NewClient(options...), host: hostOf(cfg.BaseURL)}
	if cfg.BaseURL == "" {
		c.host = cfg.Provider
	}
	return c, nil
}

func (c *Config) normalize() error {
	switch c.Thinking {
	case ThinkingAuto, ThinkingAdaptive, ThinkingDisabled, ThinkingOmit:
	default:
		return fmt.Errorf("thinking %q is not one of adaptive, disabled, omit", c.Thinking)
	}
	if c.MaxOutputTokens < 0 || c.Timeout < 0 || c.FirstByteTimeout < 0 || c.IdleTimeout < 0 {
		return fmt.Errorf("limits and timeouts must not be negative")
	}
	if c.MaxOutputTokens == 0 {
		c.MaxOutputTokens = defaultMaxOutputTokens
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.FirstByteTimeout == 0 {
		c.FirstByteTimeout = defaultFirstByteTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}

	if c.BaseURL != "" {
		u, err := url.Parse(c.BaseURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			// Not %q of the URL: it may hold a password.
			return fmt.Errorf("the model URL must look like https://host[:port][/path]")
		}
		if u.User != nil {
			return fmt.Errorf("the model URL must not hold a user or password; give the secret as the key")
		}
		if u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("the model URL must not have a query or a fragment")
		}
		c.BaseURL = strings.TrimSuffix(strings.TrimRight(c.BaseURL, "/"), "/v1")
	}

	client := http.Client{}
	if c.HTTPClient != nil {
		client = *c.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.HTTPClient = &client
	return nil
}

func hostOf(baseURL string) string {
	if u, err := url.Parse(baseURL); err == nil && u.Host != "" {
		return u.Host
	}
	return "(default)"
}
