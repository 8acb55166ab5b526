package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
)

// An awsKey is a key of AWS KMS, which never leaves it. Two operations of its JSON API
// are all that is needed, so they are written out here and signed by AWS's own SDK. The
// owner is the encryption context, and so in CloudTrail's record of each use.
type awsKey struct {
	key      string // id, ARN or alias
	region   string // "" asks the AWS configuration
	endpoint string // "" is the region's own
	http     *http.Client

	mu   sync.Mutex
	conf *aws.Config // once it was found
}

func newAWSKey(rest string, o Options) (*awsKey, error) {
	name, query, _ := strings.Cut(rest, "?")
	name = strings.TrimPrefix(name, "//")
	opts, err := options(query, "region", "endpoint")
	if err != nil {
		return nil, err
	}
	if name == "" || !isKeyID(name) {
		return nil, errors.New("a key of AWS KMS is named as awskms:KEY, an id, ARN or alias/NAME")
	}
	if e := opts["endpoint"]; e != "" {
		if _, err := parseURL(e); err != nil {
			return nil, err
		}
	}
	region := opts["region"]
	if part := strings.Split(name, ":"); region == "" && len(part) > 3 && part[0] == "arn" {
		region = part[3]
	}
	return &awsKey{key: name, region: region, endpoint: opts["endpoint"], http: o.HTTP}, nil
}

// has takes every key of KMS for its own: which ARN an alias stands for may change, and
// KMS itself refuses what it did not wrap.
func (k *awsKey) has(id string) bool { return strings.HasPrefix(id, schemeAWS+":") }

type awsIn struct {
	KeyID      string            `json:"KeyId,omitempty"`
	Plaintext  []byte            `json:",omitempty"`
	Ciphertext []byte            `json:"CiphertextBlob,omitempty"`
	Context    map[string]string `json:"EncryptionContext,omitempty"`
}

type awsOut struct {
	KeyID      string `json:"KeyId"`
	Plaintext  []byte
	Ciphertext []byte `json:"CiphertextBlob"`
}

func awsContext(owner Owner) map[string]string {
	return map[string]string{"bailey:owner": owner.ID, "bailey:field": owner.Field}
}

func (k *awsKey) wrap(ctx context.Context, owner Owner, data []byte) ([]byte, string, error) {
	out, err := k.call(ctx, "Encrypt", awsIn{KeyID: k.key, Plaintext: data, Context: awsContext(owner)})
	if err != nil {
		return nil, "", err
	}
	return out.Ciphertext, schemeAWS + ":" + out.KeyID, nil
}

func (k *awsKey) unwrap(ctx context.Context, owner Owner, id string, wrapped []byte) ([]byte, error) {
	// Naming the key has KMS refuse what another one, of another account even, wrapped.
	out, err := k.call(ctx, "Decrypt", awsIn{KeyID: strings.TrimPrefix(id, schemeAWS+":"), Ciphertext: wrapped, Context: awsContext(owner)})
	return out.Plaintext, err
}

func (k *awsKey) rotate(context.Context) (string, error) {
	return "", errors.New("KMS rotates its keys itself; for another key, name it as vault-key and the present one as an old one")
}

// found returns the AWS configuration, looked for once.
func (k *awsKey) found(ctx context.Context) (aws.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conf == nil {
		var opts []func(*config.LoadOptions) error
		if k.region != "" {
			opts = append(opts, config.WithRegion(k.region))
		}
		conf, err := config.LoadDefaultConfig(ctx, opts...)
		if err != nil {
			return conf, fmt.Errorf("AWS configuration: %w", err)
		}
		if conf.Region == "" {
			return conf, errors.New("AWS configuration: no region: add ?region=REGION, or set AWS_REGION")
		}
		k.conf = &conf
	}
	return *k.conf, nil
}

func (k *awsKey) call(ctx context.Context, op string, in awsIn) (out awsOut, err error) {
	conf, err := k.found(ctx)
	if err != nil {
		return out, err
	}
	creds, err := conf.Credentials.Retrieve(ctx)
	if err != nil {
		return out, fmt.Errorf("%w: AWS credentials: %w", ErrUnavailable, err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	// It is not cleared: the transport may read it for longer than the request lasts.
	endpoint := k.endpoint
	if endpoint == "" {
		endpoint = awsEndpoint(conf.Region)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/", bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "TrentService."+op)
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "kms", conf.Region, time.Now()); err != nil {
		return out, fmt.Errorf("sign the request to KMS: %w", err)
	}
	status, answer, err := remote(k.http, req)
	if err != nil {
		return out, fmt.Errorf("KMS: %w", err)
	}
	defer clear(answer)
	if status != http.StatusOK {
		var e struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		_ = json.Unmarshal(answer, &e) // the status says enough
		if strings.Contains(e.Type, "Throttling") {
			status = http.StatusTooManyRequests
		}
		return out, refusedBy("KMS", status, e.Type+" "+e.Message)
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, errors.New("KMS answered with something that is not JSON")
	}
	return out, nil
}

// awsEndpoint is the region's address.
func awsEndpoint(region string) string {
	domain := "amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		domain = "amazonaws.com.cn"
	}
	return (&url.URL{Scheme: "https", Host: "kms." + region + "." + domain}).String()
}
