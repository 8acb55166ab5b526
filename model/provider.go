package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/anthropics/anthropic-sdk-go/v2/bedrock"
	"github.com/anthropics/anthropic-sdk-go/v2/foundry"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/vertex"
	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// The older API version, and what Bedrock and Vertex call it. The SDK sends the
// current one.
const (
	versionOld     = "2023-06-01"
	bedrockVersion = "bedrock-2023-05-31"
	vertexVersion  = "vertex-2023-10-16"
)

// withProvider adds the address and the credential of the provider.
func (c *Config) withProvider(ctx context.Context, options []option.RequestOption) ([]option.RequestOption, error) {
	switch c.Provider {
	case Anthropic:
		if c.Key == "" && c.BaseURL == "" {
			return nil, errors.New("no API key for Anthropic's API: set ANTHROPIC_API_KEY or a model key file, or the URL of a compatible endpoint")
		}
		if c.Key != "" {
			options = append(options, option.WithAPIKey(c.Key))
		}
		return c.withBaseURL(options), nil

	case Bedrock:
		if c.Region == "" {
			return nil, errors.New("bedrock needs a region, such as eu-west-1")
		}
		if err := c.refuseBasePath(); err != nil {
			return nil, err
		}
		credentials, err := c.awsCredentials(ctx)
		if err != nil {
			return nil, err
		}
		// The models served by InvokeModel up to 4.6 refuse the newer version, and
		// all of them take this one.
		options = append(options, bedrock.WithConfig(credentials), option.WithHeader("anthropic-version", bedrockVersion))
		return c.withBaseURL(options), nil

	case Vertex:
		if c.Region == "" || c.Project == "" {
			return nil, errors.New("vertex needs a project and a region, such as global or europe-west1")
		}
		if err := c.refuseBasePath(); err != nil {
			return nil, err
		}
		credentials, err := c.googleCredentials(ctx)
		if err != nil {
			return nil, err
		}
		options = append(options, vertex.WithCredentials(ctx, c.Region, c.Project, credentials))
		return c.withBaseURL(options), nil

	case Foundry:
		if c.Key == "" {
			return nil, errors.New("foundry needs a key: set a model key file")
		}
		if (c.Resource == "") == (c.BaseURL == "") {
			return nil, errors.New("foundry needs either a resource name or the URL of one (ending in /anthropic)")
		}
		client, err := foundry.NewClient(foundry.ClientConfig{APIKey: c.Key, Resource: c.Resource, BaseURL: c.BaseURL}, options...)
		if err != nil {
			return nil, err
		}
		return client.Options, nil
	}
	return nil, fmt.Errorf("unknown provider %q: use anthropic, bedrock, vertex or foundry", c.Provider)
}

func (c *Config) withBaseURL(options []option.RequestOption) []option.RequestOption {
	if c.BaseURL == "" {
		return options
	}
	return append(options, option.WithBaseURL(c.BaseURL))
}

// refuseBasePath guards the providers whose SDK package recognizes requests by
// their whole path.
func (c *Config) refuseBasePath() error {
	if u, err := url.Parse(c.BaseURL); err == nil && strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("the URL for %s must have no path", c.Provider)
	}
	return nil
}

func (c *Config) awsCredentials(ctx context.Context) (aws.Config, error) {
	if c.Key != "" {
		// The SDK lets this variable win over what it is given. Two different keys
		// are a mistake somebody should know of.
		if env := os.Getenv("AWS_BEARER_TOKEN_BEDROCK"); env != "" && env != c.Key {
			return aws.Config{}, errors.New("AWS_BEARER_TOKEN_BEDROCK is set and differs from the configured key: unset one of them")
		}
		return aws.Config{Region: c.Region, BearerAuthTokenProvider: bedrock.NewStaticBearerTokenProvider(c.Key)}, nil
	}
	// The chain keeps its own HTTP client: it must reach the instance's
	// link-local metadata address, which an egress guard refuses.
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(c.Region))
	if err != nil {
		return aws.Config{}, fmt.Errorf("load AWS credentials (set a Bedrock API key, or the standard AWS variables, profile or role): %w", err)
	}
	return cfg, nil
}

func (c *Config) googleCredentials(ctx context.Context) (*google.Credentials, error) {
	const scope = "https://www.googleapis.com/auth/cloud-platform"
	if c.Key == "" {
		credentials, err := google.FindDefaultCredentials(ctx, scope)
		if err != nil {
			return nil, fmt.Errorf("find Google credentials (set a model key file with a service account's JSON, or Application Default Credentials): %w", err)
		}
		return credentials, nil
	}
	var kind struct {
		Type google.CredentialsType `json:"type"`
	}
	// The errors of the JSON itself are left out: they could quote the secret.
	if json.Unmarshal([]byte(c.Key), &kind) != nil {
		return nil, errors.New("the key for vertex must be the JSON of a Google credential")
	}
	switch kind.Type {
	case google.ServiceAccount, google.AuthorizedUser, google.ExternalAccount:
	default:
		return nil, errors.New("the key for vertex must be a service_account, authorized_user or external_account credential")
	}
	// The credential keeps this context for the life of the client, and asks for
	// its tokens through the same guarded client as everything else.
	ctx = context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, c.HTTPClient)
	credentials, err := google.CredentialsFromJSONWithType(ctx, []byte(c.Key), kind.Type, scope)
	if err != nil {
		return nil, errors.New("the key for vertex is not a usable Google credential")
	}
	return credentials, nil
}

// modelID says what the endpoint calls the Claude API model id.
func (c *Config) modelID(id string) (string, error) {
	if id == "" {
		return "", errors.New("model: is required")
	}
	if own, ok := c.ModelIDs[id]; ok {
		return own, nil
	}
	switch c.Provider {
	case Bedrock, Vertex:
		// There the id becomes a part of the path.
		if strings.Trim(id, ".") == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("?#%;", r) }) {
			return "", fmt.Errorf("model: %q is not a model id", id)
		}
	}
	switch c.Provider {
	case Bedrock:
		return c.bedrockID(id)
	case Vertex:
		return vertexID(id), nil
	}
	return id, nil
}

// datedIDs gives the snapshot behind the short names of the models from before
// 4.6. Later models have one undated id everywhere.
var datedIDs = map[string]string{
	"claude-opus-4-5":   "claude-opus-4-5-20251101",
	"claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
	"claude-haiku-4-5":  "claude-haiku-4-5-20251001",
}

// bedrockID follows the id rules of the model cards in the Bedrock user guide:
// dated models end in -v1:0, Opus 4.6 in -v1, later ones in nothing, and all
// are called through the inference profile of the region's geography. An id
// that is already Bedrock's (it has a dot or is an ARN) passes as it is.
func (c *Config) bedrockID(id string) (string, error) {
	if strings.ContainsAny(id, ".:") || !strings.HasPrefix(id, "claude-") {
		return id, nil
	}
	profile, err := c.inferenceProfile()
	if err != nil {
		return "", err
	}
	if dated, ok := datedIDs[id]; ok {
		id = dated
	}
	switch {
	case isDated(id):
		id += "-v1:0"
	case id == "claude-opus-4-6":
		id += "-v1"
	}
	return profile + "anthropic." + id, nil
}

// inferenceProfile never leaves the region's geography on its own account: a
// region without a known one needs Config.ModelIDs.
func (c *Config) inferenceProfile() (string, error) {
	switch {
	case strings.HasPrefix(c.Region, "us-gov-"):
		return "us-gov.", nil
	case strings.HasPrefix(c.Region, "us-"):
		return "us.", nil
	case strings.HasPrefix(c.Region, "eu-"):
		return "eu.", nil
	case c.Region == "ap-northeast-1" || c.Region == "ap-northeast-3":
		return "jp.", nil
	case c.Region == "ap-southeast-2" || c.Region == "ap-southeast-4":
		return "au.", nil
	}
	return "", fmt.Errorf("no inference profile is known for region %s: map the model id to one (such as global.anthropic.…)", c.Region)
}

// vertexID writes a snapshot date the way Vertex AI does: name@date.
func vertexID(id string) string {
	if dated, ok := datedIDs[id]; ok {
		id = dated
	}
	if isDated(id) {
		return id[:len(id)-9] + "@" + id[len(id)-8:]
	}
	return id
}

// isDated reports whether id ends in -YYYYMMDD.
func isDated(id string) bool {
	if len(id) < 9 || id[len(id)-9] != '-' {
		return false
	}
	return strings.Trim(id[len(id)-8:], "0123456789") == ""
}
