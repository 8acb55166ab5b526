package vault

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A fakeTransit stands for HashiCorp Vault's transit engine: one key with versions,
// which it "encrypts" with by keeping the plaintext and giving out a number.
type fakeTransit struct {
	mu      sync.Mutex
	version int
	kept    map[string]transitKept
	calls   map[string]int
	down    bool
}

type transitKept struct{ plaintext, owner string }

func newFakeTransit(t *testing.T) (*fakeTransit, string) {
	f := &fakeTransit{version: 1, kept: map[string]transitKept{}, calls: map[string]int{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return f, "transit+" + s.URL + "/kv/transit/bailey"
}

func (f *fakeTransit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	if f.down {
		answer(503, map[string]any{"errors": []string{"Vault is sealed"}})
		return
	}
	if r.Header.Get("X-Vault-Token") != "s.token" || r.Header.Get("X-Vault-Request") != "true" || r.Header.Get("X-Vault-Namespace") != "team" {
		answer(403, map[string]any{"errors": []string{"permission denied"}})
		return
	}
	var in map[string]string
	_ = json.NewDecoder(r.Body).Decode(&in)
	f.calls[r.Method+" "+r.URL.Path]++
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/kv/transit/encrypt/bailey":
		text := fmt.Sprintf("vault:v%d:%s", f.version, base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "n%d", len(f.kept))))
		f.kept[text] = transitKept{in["plaintext"], in["associated_data"]}
		answer(200, map[string]any{"data": map[string]any{"ciphertext": text, "key_version": f.version}})
	case "POST /v1/kv/transit/decrypt/bailey":
		k, ok := f.kept[in["ciphertext"]]
		if !ok || k.owner != in["associated_data"] {
			answer(400, map[string]any{"errors": []string{"cipher: message authentication failed"}})
			return
		}
		answer(200, map[string]any{"data": map[string]any{"plaintext": k.plaintext}})
	case "POST /v1/kv/transit/keys/bailey/rotate":
		f.version++
		w.WriteHeader(204)
	default:
		answer(404, map[string]any{"errors": []string{}})
	}
}

func TestTransit(t *testing.T) {
	t.Parallel()
	fake, url := newFakeTransit(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s.token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{Key: url + "?namespace=team&token-file=" + token})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if id, err := v.Check(t.Context()); err != nil || id != "transit:kv/transit/bailey:v1" {
		t.Fatalf("checked %q, %v", id, err)
	}
	s := seal(t, v, owner, "a token")
	if got, err := v.Open(t.Context(), owner, s); err != nil || string(got) != "a token" {
		t.Fatalf("opened %q, %v", got, err)
	}
	if _, err := v.Open(t.Context(), Owner{"vcrd_2", "access_token"}, s); err == nil {
		t.Error("another owner opened it")
	}

	id, err := v.Rotate(t.Context())
	if err != nil || id != "transit:kv/transit/bailey:v2" {
		t.Fatalf("rotated to %q, %v", id, err)
	}
	moved, err := v.Rewrap(t.Context(), owner, s)
	if err != nil || moved.KeyID() != id {
		t.Fatalf("re-wrapped under %q, %v", moved.KeyID(), err)
	}
	for _, s := range []Sealed{s, moved} {
		if got, err := v.Open(t.Context(), owner, s); err != nil || string(got) != "a token" {
			t.Errorf("%s opens as %q, %v", s.KeyID(), got, err)
		}
	}

	// Not every use is a request.
	before := fake.calls["POST /v1/kv/transit/decrypt/bailey"]
	for range 5 {
		if _, err := v.Open(t.Context(), owner, moved); err != nil {
			t.Fatal(err)
		}
	}
	if n := fake.calls["POST /v1/kv/transit/decrypt/bailey"] - before; n != 0 {
		t.Errorf("five uses of an open secret made %d requests", n)
	}

	fake.mu.Lock()
	fake.down = true
	fake.mu.Unlock()
	if _, err := v.Seal(t.Context(), owner, []byte("x")); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "Vault is sealed") {
		t.Errorf("with the engine down: %v", err)
	}
	if err := os.WriteFile(token, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fake.mu.Lock()
	fake.down = false
	fake.mu.Unlock()
	if _, err := v.Seal(t.Context(), owner, []byte("x")); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong token: %v", err)
	}
}

// A fakeKMS stands for AWS KMS.
type fakeKMS struct {
	t    *testing.T
	mu   sync.Mutex
	kept []awsIn
}

const fakeARN = "arn:aws:kms:eu-central-1:111122223333:key/1234"

func (f *fakeKMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	auth := r.Header.Get("Authorization")
	if !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") || !strings.Contains(auth, "/eu-central-1/kms/aws4_request") || !strings.Contains(auth, "x-amz-target") {
		f.t.Errorf("signed as %q", auth)
	}
	var in awsIn
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Errorf("asked %q", body)
	}
	refuse := func(kind string) {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"__type":%q,"message":"no"}`, kind)
	}
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.Encrypt":
		if in.KeyID != "alias/bailey" {
			refuse("NotFoundException")
			return
		}
		f.kept = append(f.kept, in)
		_ = json.NewEncoder(w).Encode(awsOut{KeyID: fakeARN, Ciphertext: fmt.Appendf(nil, "blob %d", len(f.kept)-1)})
	case "TrentService.Decrypt":
		i := slices.IndexFunc(f.kept, func(awsIn) bool { return true })
		_, _ = fmt.Sscanf(string(in.Ciphertext), "blob %d", &i)
		if in.KeyID != fakeARN || i < 0 || i >= len(f.kept) || !maps.Equal(f.kept[i].Context, in.Context) {
			refuse("InvalidCiphertextException")
			return
		}
		_ = json.NewEncoder(w).Encode(awsOut{KeyID: fakeARN, Plaintext: f.kept[i].Plaintext})
	default:
		refuse("ThrottlingException")
	}
}

func TestAWSKMS(t *testing.T) { // not parallel: AWS's SDK reads the process's environment
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "",
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	s := httptest.NewServer(&fakeKMS{t: t})
	defer s.Close()
	v, err := New(Options{Key: "awskms:alias/bailey?region=eu-central-1&endpoint=" + s.URL})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := v.Check(t.Context()); err != nil || id != "awskms:"+fakeARN {
		t.Fatalf("checked %q, %v", id, err)
	}
	sealed := seal(t, v, owner, "a token")
	if got, err := v.Open(t.Context(), owner, sealed); err != nil || string(got) != "a token" {
		t.Fatalf("opened %q, %v", got, err)
	}
	if _, err := v.Open(t.Context(), Owner{"vcrd_2", "access_token"}, sealed); err == nil {
		t.Error("another owner opened it")
	}
	if _, err := v.Rotate(t.Context()); err == nil {
		t.Error("a key of KMS was rotated from here")
	}
	if err := v.Start(t.Context(), []string{sealed.KeyID()}); err != nil {
		t.Errorf("a start with secrets in use: %v", err)
	}

	// A transport may read a request for longer than it takes the answer to come.
	late := &lateReader{}
	if v, err = New(Options{Key: "awskms:alias/bailey?region=eu-central-1&endpoint=" + s.URL, HTTP: &http.Client{Transport: late}}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Seal(t.Context(), owner, []byte("a token")); err == nil {
		t.Error("sealed without an answer")
	}
	if body, err := io.ReadAll(late.body); err != nil || !json.Valid(body) {
		t.Errorf("the transport read %q, %v", body, err)
	}
}

// A lateReader is a transport that fails before it has read the request.
type lateReader struct{ body io.Reader }

func (l *lateReader) RoundTrip(r *http.Request) (*http.Response, error) {
	l.body = r.Body
	return nil, errors.New("reset by peer")
}
