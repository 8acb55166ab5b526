package vault

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
)

// A transitKey is a key of HashiCorp Vault's transit engine, or of OpenBao's, which has
// the same API. The key never leaves it; the engine has to be one that takes associated
// data (aes256-gcm96, the default, or another AEAD).
type transitKey struct {
	base      string // the address, without the path
	mount     string
	name      string
	namespace string
	tokenFile string
	env       func(string) (string, bool)
	http      *http.Client
}

var transitPath = regexp.MustCompile(`^/([A-Za-z0-9_./-]+)/([A-Za-z0-9_.-]+)$`)

func newTransitKey(u *url.URL, o Options) (*transitKey, error) {
	m := transitPath.FindStringSubmatch(u.Path)
	if m == nil || strings.Contains(u.Path, "..") {
		return nil, errors.New("a transit key is named as transit+https://HOST/MOUNT/KEY")
	}
	opts, err := options(u.RawQuery, "token-file", "namespace")
	if err != nil {
		return nil, err
	}
	return &transitKey{
		base: u.Scheme + "://" + u.Host, mount: m[1], name: m[2],
		namespace: opts["namespace"], tokenFile: opts["token-file"], env: o.Env, http: o.HTTP,
	}, nil
}

func (k *transitKey) id(version string) string {
	return fmt.Sprintf("%s:%s/%s:%s", schemeTransit, k.mount, k.name, version)
}

func (k *transitKey) has(id string) bool { return strings.HasPrefix(id, k.id("")) }

// token is read each time: an agent beside us may renew it.
func (k *transitKey) token() (string, error) {
	if k.tokenFile != "" {
		data, err := os.ReadFile(k.tokenFile)
		if err != nil {
			return "", fmt.Errorf("token-file: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	token, ok := k.env("VAULT_TOKEN")
	if !ok || token == "" {
		return "", errors.New("no token: set VAULT_TOKEN, or name a file with ?token-file=PATH")
	}
	return token, nil
}

// transitText is the form of a ciphertext: the version of the key is in it.
var transitText = regexp.MustCompile(`^vault:(v[0-9]{1,9}):[A-Za-z0-9+/=]+$`)

type transitIn struct {
	Plaintext  string `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	Owner      string `json:"associated_data,omitempty"`
}

type transitOut struct {
	Plaintext  string `json:"plaintext"`
	Ciphertext string `json:"ciphertext"`
}

func (k *transitKey) wrap(ctx context.Context, owner Owner, data []byte) ([]byte, string, error) {
	out, err := k.call(ctx, "encrypt/"+k.name, transitIn{
		Plaintext: base64.StdEncoding.EncodeToString(data), Owner: base64.StdEncoding.EncodeToString(owner.bytes()),
	})
	if err != nil {
		return nil, "", err
	}
	m := transitText.FindStringSubmatch(out.Ciphertext)
	if m == nil {
		return nil, "", errors.New("transit answered with something that is not its ciphertext")
	}
	return []byte(out.Ciphertext), k.id(m[1]), nil
}

func (k *transitKey) unwrap(ctx context.Context, owner Owner, _ string, wrapped []byte) ([]byte, error) {
	out, err := k.call(ctx, "decrypt/"+k.name, transitIn{
		Ciphertext: string(wrapped), Owner: base64.StdEncoding.EncodeToString(owner.bytes()),
	})
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.DecodeString(out.Plaintext)
	if err != nil {
		return nil, errors.New("transit answered with something that is not base64")
	}
	return data, nil
}

// rotate needs a token that may do so.
func (k *transitKey) rotate(ctx context.Context) (string, error) {
	if _, err := k.call(ctx, "keys/"+k.name+"/rotate", transitIn{}); err != nil {
		return "", err
	}
	_, id, err := k.wrap(ctx, Owner{"check", "check"}, make([]byte, dataKeyLen))
	return id, err
}

// remoteMax bounds an answer of a key that is elsewhere, in bytes.
const remoteMax = 1 << 20

func (k *transitKey) call(ctx context.Context, path string, in transitIn) (out transitOut, err error) {
	token, err := k.token()
	if err != nil {
		return out, fmt.Errorf("transit: %w", err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.base+"/v1/"+k.mount+"/"+path, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if k.namespace != "" {
		req.Header.Set("X-Vault-Namespace", k.namespace)
	}
	status, answer, err := remote(k.http, req)
	if err != nil {
		return out, fmt.Errorf("transit: %w", err)
	}
	var envelope struct {
		Data   transitOut `json:"data"`
		Errors []string   `json:"errors"`
	}
	parseErr := json.Unmarshal(answer, &envelope)
	switch {
	case status == http.StatusNoContent:
		return out, nil
	case status/100 == 2 && parseErr == nil:
		return envelope.Data, nil
	case status/100 == 2:
		return out, errors.New("transit answered with something that is not JSON")
	}
	return out, refusedBy("transit", status, strings.Join(envelope.Errors, "; "))
}

// remote makes one request, and reads the answer whole.
func remote(client *http.Client, req *http.Request) (status int, answer []byte, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(resp.Body, remoteMax)); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return resp.StatusCode, answer, nil
}

// refusedBy is the error of an answer that is none. What may pass by itself is the
// server's trouble, a limit, or a token that is being renewed.
func refusedBy(who string, status int, message string) error {
	err := fmt.Errorf("%s answered %d: %.300s", who, status, message)
	if status >= 500 || status == http.StatusTooManyRequests || status == http.StatusUnauthorized || status == http.StatusForbidden {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
