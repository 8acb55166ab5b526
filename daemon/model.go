package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// modelKeyMax bounds a key file in bytes; a Google credential is the longest.
const modelKeyMax = 64 << 10

const noModelKey = "no model is set up on this server: give it a key (ANTHROPIC_API_KEY, BAILEY_MODEL_KEY or --model-key-file) " +
	"or the URL of an endpoint that needs none (--model-url), and start it again"

// scriptedProvider is a fake model within the server itself, for trying things out
// without a key or a network.
const scriptedProvider = "scripted"

// ReadModelKey returns the key for the model endpoint, "" if there is none.
func (c *Config) ReadModelKey() (string, error) {
	if c.ModelKeyFile == "" {
		return string(c.ModelKey), nil
	}
	data, err := readSmall(c.ModelKeyFile, modelKeyMax)
	if err != nil {
		return "", fmt.Errorf("read model-key-file: %w", err)
	}
	key := strings.TrimSpace(string(data))
	if key == "" {
		return "", badSetting("model-key-file", "%s is empty", c.ModelKeyFile)
	}
	return key, nil
}

// newModel makes the client of the model endpoint. A missing key is no reason not
// to start: agents, environments and old sessions can be used without one. New
// turns then fail with a message that says what to set.
func newModel(ctx context.Context, cfg *Config, log *slog.Logger) (*model.Client, error) {
	key, err := cfg.ReadModelKey()
	if err != nil {
		return nil, err
	}
	thinking := cfg.ModelThinking
	if thinking == "auto" {
		thinking = model.ThinkingAuto
	}
	mc := model.Config{
		Provider:        cfg.ModelProvider,
		BaseURL:         cfg.ModelURL,
		Key:             key,
		Region:          cfg.ModelRegion,
		Project:         cfg.ModelProject,
		Resource:        cfg.ModelResource,
		ModelIDs:        cfg.ModelIDs,
		MaxOutputTokens: cfg.ModelMaxOutput,
		Thinking:        thinking,
	}
	needsKey := cfg.ModelProvider == model.Anthropic && (cfg.ModelURL == "" || isAnthropic(cfg.ModelURL)) ||
		cfg.ModelProvider == model.Foundry
	if needsKey && key == "" {
		log.Warn(noModelKey)
		mc.Key = "none"
		mc.HTTPClient = &http.Client{Transport: keyless{}}
	}
	return model.New(ctx, mc)
}

// keyless answers every request as an endpoint answers one without a key, and
// sends nothing anywhere.
type keyless struct{}

func (keyless) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body.Close()
	}
	e := api.Unauthenticated("%s", noModelKey)
	e.Type = model.NotSetUp // it says all there is to say
	body, err := json.Marshal(e.Body(""))
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status:        "401 Unauthorized",
		StatusCode:    http.StatusUnauthorized,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       r,
	}, nil
}
