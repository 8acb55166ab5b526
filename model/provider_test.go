package model_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/model"
)

// A recorder serves a reply and keeps the last request.
type recorder struct {
	reply http.HandlerFunc

	host   string
	path   string
	header http.Header
	body   map[string]any
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec.host, rec.path, rec.header = r.Host, r.URL.EscapedPath(), r.Header.Clone()
	text, _ := io.ReadAll(r.Body)
	rec.body = nil
	_ = json.Unmarshal(text, &rec.body)
	rec.reply(w, r)
}

func sound() http.HandlerFunc { return sse(start, text0, word0, stop0, endTurn, stop) }

func checkHi(t *testing.T, res *model.Response, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Content) != 1 || !strings.Contains(string(res.Content[0]), `"hi"`) {
		t.Errorf("content %s", res.Content)
	}
}

func TestNewSaysWhatToSet(t *testing.T) {
	tests := []struct {
		name string
		cfg  model.Config
		want string // "" for no error
	}{
		{"no key", model.Config{}, "ANTHROPIC_API_KEY"},
		{"key", model.Config{Key: "k"}, ""},
		{"compatible endpoint without key", model.Config{BaseURL: "http://127.0.0.1:11434/v1/"}, ""},
		{"unknown provider", model.Config{Provider: "openai"}, `unknown provider "openai"`},
		{"URL without scheme", model.Config{BaseURL: "localhost:8000"}, "must look like"},
		{"URL with password", model.Config{BaseURL: "https://u:hunter2@host"}, "must not hold a user or password"},
		{"URL with query", model.Config{BaseURL: "https://host?x=hunter2"}, "must not have a query"},
		{"unknown thinking", model.Config{Key: "k", Thinking: "deep"}, `thinking "deep"`},
		{"negative limit", model.Config{Key: "k", MaxOutputTokens: -1}, "must not be negative"},
		{"bedrock without region", model.Config{Provider: "bedrock"}, "needs a region"},
		{"bedrock with a path", model.Config{Provider: "bedrock", Region: "eu-west-1", BaseURL: "https://host/x"}, "must have no path"},
		{"vertex without project", model.Config{Provider: "vertex", Region: "global"}, "needs a project and a region"},
		{"vertex with an API key", model.Config{Provider: "vertex", Region: "global", Project: "p", Key: "hunter2"}, "JSON of a Google credential"},
		{"vertex with another credential", model.Config{Provider: "vertex", Region: "global", Project: "p", Key: `{"type":"hunter2"}`}, "must be a service_account"},
		{"vertex with a broken credential", model.Config{Provider: "vertex", Region: "global", Project: "p", Key: `{"type":"external_account","audience":"hunter2"}`}, "not a usable Google credential"},
		{"foundry without key", model.Config{Provider: "foundry", Resource: "r"}, "needs a key"},
		{"foundry without resource", model.Config{Provider: "foundry", Key: "k"}, "either a resource name or the URL"},
		{"foundry", model.Config{Provider: "foundry", Key: "k", Resource: "r"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := model.New(t.Context(), test.cfg)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the secret is in the error: %v", err)
			}
		})
	}
}

func TestConfigDoesNotPrintItsKey(t *testing.T) {
	t.Parallel()
	cfg := model.Config{Key: "hunter2", BaseURL: "https://host/x"}
	holder := struct{ Model model.Config }{cfg}
	for _, s := range []string{fmt.Sprint(cfg), fmt.Sprintf("%+v", holder), fmt.Sprintf("%#v", holder), fmt.Sprintf("%v", &cfg)} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("printed %s", s)
		}
	}
}

// TestEnvironmentDoesNotReachRequests sets everything the SDK would read.
func TestEnvironmentDoesNotReachRequests(t *testing.T) {
	for name, value := range map[string]string{
		"ANTHROPIC_API_KEY":        "sk-ambient",
		"ANTHROPIC_AUTH_TOKEN":     "ambient-token",
		"ANTHROPIC_BASE_URL":       "http://127.0.0.1:1",
		"ANTHROPIC_PROFILE":        "no-such-profile",
		"ANTHROPIC_CUSTOM_HEADERS": "X-Ambient: yes",
	} {
		t.Setenv(name, value)
	}
	rec := &recorder{reply: sound()}
	client := newClient(t, rec, func(c *model.Config) { c.Key = "" })
	res, err := client.Stream(t.Context(), hello(), nil)
	checkHi(t, res, err)
	for _, name := range []string{"Authorization", "X-Api-Key", "X-Ambient"} {
		if got := rec.header.Get(name); got != "" {
			t.Errorf("%s: %s was sent", name, got)
		}
	}

	// With a key of our own, that one alone goes, to Anthropic's address.
	own, err := model.New(t.Context(), model.Config{Key: testKey, HTTPClient: &http.Client{Transport: inProcess(rec.ServeHTTP)}})
	if err != nil {
		t.Fatal(err)
	}
	res, err = own.Stream(t.Context(), hello(), nil)
	checkHi(t, res, err)
	if rec.host != "api.anthropic.com" || rec.header.Get("Authorization") != "Bearer "+testKey || rec.header.Get("X-Ambient") != "" {
		t.Errorf("host %s, headers %v", rec.host, rec.header)
	}
}

// withStream puts an event stream into Bedrock's frames.
func withStream(t *testing.T, events ...string) http.HandlerFunc {
	t.Helper()
	var body bytes.Buffer
	encoder := eventstream.NewEncoder()
	frame := func(kind, name string, payload []byte) {
		message := eventstream.Message{Payload: payload}
		message.Headers.Set(":message-type", eventstream.StringValue(kind))
		message.Headers.Set(":"+kind+"-type", eventstream.StringValue(name))
		if err := encoder.Encode(&body, message); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range events {
		if name, ok := strings.CutPrefix(e, "exception:"); ok {
			frame("exception", name, []byte(`{"message":"slow down"}`))
			continue
		}
		payload, _ := json.Marshal(map[string]string{"bytes": base64.StdEncoding.EncodeToString([]byte(e))})
		frame("event", "chunk", payload)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
		w.Header().Set("X-Amzn-Requestid", "aws-1")
		w.Write(body.Bytes())
	}
}

func bedrockConfig(c *model.Config) { c.Provider, c.Region = model.Bedrock, "eu-west-1" }

func TestBedrock(t *testing.T) {
	t.Parallel()
	rec := &recorder{reply: withStream(t, start, text0, word0, stop0, endTurn, stop)}
	client := newClient(t, rec, bedrockConfig)
	req := hello()
	req.Model, req.Speed = "claude-haiku-4-5", "fast"
	res, err := client.Stream(t.Context(), req, nil)
	checkHi(t, res, err)
	if want := "/model/eu.anthropic.claude-haiku-4-5-20251001-v1:0/invoke-with-response-stream"; rec.path != want {
		t.Errorf("path %s, want %s", rec.path, want)
	}
	if got := rec.header.Get("Authorization"); got != "Bearer "+testKey {
		t.Errorf("authorization %s", got)
	}
	for name, want := range map[string]any{
		"anthropic_version": "bedrock-2023-05-31", "model": nil, "stream": nil, "speed": "fast", "anthropic_beta": []any{"fast-mode-2026-02-01"},
	} {
		if diff := cmp.Diff(want, rec.body[name]); diff != "" {
			t.Errorf("%s in the body (-want +got):\n%s", name, diff)
		}
	}
}

func TestBedrockSignsWithTheStandardChain(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "aws-secret", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_BEARER_TOKEN_BEDROCK": "",
	} {
		t.Setenv(name, value)
	}
	rec := &recorder{reply: withStream(t, start, text0, word0, stop0, endTurn, stop)}
	client := newClient(t, rec, bedrockConfig, func(c *model.Config) { c.Key = "" })
	res, err := client.Stream(t.Context(), hello(), nil)
	checkHi(t, res, err)
	if got := rec.header.Get("Authorization"); !strings.HasPrefix(got, "AWS4-HMAC-SHA256 Credential=AKIATEST/") || !strings.Contains(got, "/eu-west-1/bedrock/aws4_request") {
		t.Errorf("authorization %s", got)
	}

	t.Setenv("AWS_BEARER_TOKEN_BEDROCK", "another")
	if _, err := model.New(t.Context(), model.Config{Provider: model.Bedrock, Region: "eu-west-1", Key: testKey}); err == nil || !strings.Contains(err.Error(), "AWS_BEARER_TOKEN_BEDROCK") {
		t.Errorf("two keys: %v", err)
	}
}

func TestBedrockErrors(t *testing.T) {
	t.Parallel()
	fail := func(status int, kind, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amzn-Errortype", kind+":http://internal.amazon.com/")
			w.Header().Set("X-Amzn-Requestid", "aws-1")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"message":%q}`, message)
		}
	}
	tests := []struct {
		name  string
		reply http.HandlerFunc
		want  model.Error
	}{
		{"throttled", fail(429, "ThrottlingException", "too many"), model.Error{Kind: model.RateLimited, Status: 429, Type: "ThrottlingException", Message: "too many", Retryable: true}},
		{"denied", fail(403, "AccessDeniedException", "no"), model.Error{Kind: model.Auth, Status: 403, Type: "AccessDeniedException", Message: "no"}},
		{"too long", fail(400, "ValidationException", "Input is too long for requested model."), model.Error{Kind: model.TooLong, Status: 400, Type: "ValidationException", Message: "Input is too long for requested model."}},
		{"throttled in the stream", withStream(t, start, "exception:throttlingException"), model.Error{Kind: model.RateLimited, Status: 200, Type: "throttlingException", Message: "slow down", Retryable: true}},
		{"broken in the stream", withStream(t, start, "exception:modelStreamErrorException"), model.Error{Kind: model.Failed, Status: 200, Type: "modelStreamErrorException", Message: "slow down", Retryable: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := newClient(t, test.reply, bedrockConfig).Stream(t.Context(), hello(), nil)
			test.want.RequestID = "aws-1"
			if diff := cmp.Diff(&test.want, modelError(t, err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}

	garbled := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
		io.WriteString(w, strings.Repeat("garbage ", 20))
	}
	_, err := newClient(t, http.HandlerFunc(garbled), bedrockConfig).Stream(t.Context(), hello(), nil)
	if e := modelError(t, err); e.Kind != model.Interrupted || !e.Retryable {
		t.Errorf("broken frames: %+v", e)
	}
}

// serviceAccount returns a credential whose tokens come from tokenURL.
func serviceAccount(t *testing.T, tokenURL string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": tokenURL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	return string(text)
}

func TestVertex(t *testing.T) {
	t.Parallel()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"access_token":"ya29.test","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(tokens.Close)
	rec := &recorder{reply: sound()}
	client := newClient(t, rec, func(c *model.Config) {
		c.Provider, c.Region, c.Project, c.Key = model.Vertex, "europe-west1", "proj", serviceAccount(t, tokens.URL)
	})
	req := hello()
	req.Model = "claude-sonnet-4-5"
	res, err := client.Stream(t.Context(), req, nil)
	checkHi(t, res, err)
	if want := "/v1/projects/proj/locations/europe-west1/publishers/anthropic/models/claude-sonnet-4-5@20250929:streamRawPredict"; rec.path != want {
		t.Errorf("path %s, want %s", rec.path, want)
	}
	if got := rec.header.Get("Authorization"); got != "Bearer ya29.test" {
		t.Errorf("authorization %s", got)
	}
	if rec.body["anthropic_version"] != "2026-10-21" || rec.body["model"] != nil || rec.body["stream"] != true {
		t.Errorf("body %v", rec.body)
	}

	// Passthrough, with the older version and its own name for that here.
	rec.reply = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"input_tokens":5}`)
	}
	r := httptest.NewRequest("POST", "/v1/messages/count_tokens", strings.NewReader(`{"model":"claude-haiku-4-5-20251001","messages":[]}`))
	r.Header.Set("Anthropic-Version", "2023-06-01")
	w := httptest.NewRecorder()
	if err := client.Forward(w, r, r.URL.Path); err != nil || w.Body.String() != `{"input_tokens":5}` {
		t.Errorf("count: %v, %s", err, w.Body)
	}
	if !strings.HasSuffix(rec.path, "/models/count-tokens:rawPredict") || rec.body["model"] != "claude-haiku-4-5@20251001" || rec.body["anthropic_version"] != "vertex-2023-10-16" {
		t.Errorf("path %s, body %v", rec.path, rec.body)
	}
}

func TestVertexWithoutAToken(t *testing.T) {
	t.Parallel()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		io.WriteString(w, `{"error":"invalid_grant","error_description":"internals"}`)
	}))
	t.Cleanup(tokens.Close)
	client := newClient(t, http.NotFoundHandler(), func(c *model.Config) {
		c.Provider, c.Region, c.Project, c.Key = model.Vertex, "global", "proj", serviceAccount(t, tokens.URL)
	})
	_, err := client.Stream(t.Context(), hello(), nil)
	if e := modelError(t, err); e.Kind != model.Auth || e.Retryable || strings.Contains(e.Message, "internals") {
		t.Errorf("got %+v", e)
	}
}

func TestFoundry(t *testing.T) {
	t.Parallel()
	rec := &recorder{reply: sound()}
	client := newClient(t, rec, func(c *model.Config) {
		c.Provider = model.Foundry
		c.BaseURL += "/anthropic"
		c.ModelIDs = map[string]string{"claude-opus-5-5": "our-deployment"}
	})
	res, err := client.Stream(t.Context(), hello(), nil)
	checkHi(t, res, err)
	if rec.path != "/anthropic/v1/messages" || rec.body["model"] != "our-deployment" {
		t.Errorf("path %s, model %v", rec.path, rec.body["model"])
	}
	if rec.header.Get("X-Api-Key") != testKey || rec.header.Get("Authorization") != "" {
		t.Errorf("headers %v", rec.header)
	}

	// By resource name, the address is Microsoft's.
	named, err := model.New(context.Background(), model.Config{Provider: model.Foundry, Key: testKey, Resource: "acme",
		HTTPClient: &http.Client{Transport: inProcess(rec.ServeHTTP)}})
	if err != nil {
		t.Fatal(err)
	}
	res, err = named.Stream(t.Context(), hello(), nil)
	checkHi(t, res, err)
	if rec.host != "acme.services.ai.azure.com" {
		t.Errorf("host %s", rec.host)
	}
}

func TestModelIDs(t *testing.T) {
	t.Parallel()
	tests := []struct{ provider, region, id, want string }{
		{"bedrock", "us-east-1", "claude-opus-5-5", "us.anthropic.claude-opus-5-5"},
		{"bedrock", "eu-central-1", "claude-opus-4-6", "eu.anthropic.claude-opus-4-6-v1"},
		{"bedrock", "ap-northeast-1", "claude-sonnet-4-6", "jp.anthropic.claude-sonnet-4-6"},
		{"bedrock", "us-gov-west-1", "claude-opus-4-5-20251101", "us-gov.anthropic.claude-opus-4-5-20251101-v1:0"},
		{"bedrock", "sa-east-1", "global.anthropic.claude-opus-5", "global.anthropic.claude-opus-5"},
		{"bedrock", "sa-east-1", "claude-opus-5", "error: no inference profile is known for region sa-east-1"},
		{"bedrock", "sa-east-1", "mapped", "my-profile"},
		{"bedrock", "us-east-1", "..", `error: model: ".." is not a model id`},
		{"bedrock", "us-east-1", "a?b", `error: model: "a?b" is not a model id`},
		{"bedrock", "us-east-1", "", "error: model: is required"},
	}
	for _, test := range tests {
		rec := &recorder{reply: withStream(t, start, endTurn, stop)}
		client := newClient(t, rec, func(c *model.Config) {
			c.Provider, c.Region, c.ModelIDs = test.provider, test.region, map[string]string{"mapped": "my-profile"}
		})
		req := hello()
		req.Model = test.id
		_, err := client.Stream(t.Context(), req, nil)
		if want, ok := strings.CutPrefix(test.want, "error: "); ok {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s in %s: error %v, want %q", test.id, test.region, err, want)
			}
			continue
		}
		if want := "/model/" + test.want + "/invoke-with-response-stream"; err != nil || rec.path != want {
			t.Errorf("%s in %s: %v, path %s, want %s", test.id, test.region, err, rec.path, want)
		}
	}
}
