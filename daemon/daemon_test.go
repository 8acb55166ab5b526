package daemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// testConfig is a server of its own: a temporary directory, a free port.
func testConfig(t *testing.T) Config {
	t.Helper()
	cfg := Defaults()
	cfg.Listen = "127.0.0.1:0"
	cfg.Data = t.TempDir()
	cfg.ShutdownGrace = time.Second
	return cfg
}

// start runs a server until stop is called, which returns what Run did. The test's
// end stops it too.
func start(t *testing.T, cfg Config) (d *Daemon, stop func() error) {
	t.Helper()
	d, err := New(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ran
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return d, stop
}

func get(t *testing.T, url, key string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var data bytes.Buffer
	if _, err := data.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, data.String()
}

func TestMetricsAtAnAddressOfTheirOwn(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Metrics = "127.0.0.1:0"
	d, _ := start(t, cfg)
	if status, body := get(t, "http://"+d.metrics.listener.Addr().String()+"/metrics", ""); status != http.StatusOK || !strings.Contains(body, "bailey_build_info") {
		t.Errorf("HTTP %d: %s", status, body)
	}
	if status, _ := get(t, d.URL()+"/metrics", d.FirstKey()); status != http.StatusNotFound {
		t.Errorf("at the API's address too: HTTP %d", status)
	}
}

// A link to the data directory that was turned elsewhere split a server's files; one
// to nothing ended in "file exists".
func TestTheDataDirectoryMayBeALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openData(link); err == nil || !strings.Contains(err.Error(), "which is no directory") {
		t.Errorf("a link to nothing: %v", err)
	}
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	want, err := filepath.EvalSymlinks(real)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := openData(link); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if err := os.Chmod(real, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openData(link); err == nil || !strings.Contains(err.Error(), "by everybody") {
		t.Errorf("a directory for everybody: %v", err)
	}
}

func TestStartStop(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	d, stop := start(t, cfg)

	key, err := os.ReadFile(cfg.AdminKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(key)); got != d.FirstKey() || !strings.HasPrefix(got, api.SecretPrefixAPI) {
		t.Errorf("admin.key holds %d bytes that are not the first key", len(key))
	}
	info, err := os.Stat(cfg.AdminKeyFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin.key: mode %v, %v", info.Mode(), err)
	}
	cl, err := client.New(client.Config{BaseURL: d.URL(), Key: d.FirstKey()})
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if _, err := cl.CreateAgent(t.Context(), api.AgentCreate{Name: "a", Model: &api.ModelConfig{ID: "m"}}); err != nil {
		t.Errorf("create an agent: %v", err)
	}
	if status, _ := get(t, d.URL()+"/metrics", ""); status != http.StatusUnauthorized {
		t.Errorf("metrics for everybody: HTTP %d", status)
	}
	if _, metrics := get(t, d.URL()+"/metrics", d.FirstKey()); !strings.Contains(metrics, "bailey_build_info") {
		t.Errorf("metrics: %s", metrics)
	}

	if err := stop(); err != nil {
		t.Fatalf("Run: %v", err)
	}
	if _, err := net.Dial("tcp", d.Addr().String()); err == nil {
		t.Error("the port is still open")
	}

	// The same directory again: the database is there, and no new key is made.
	again, _ := start(t, cfg)
	if again.FirstKey() != "" {
		t.Error("a second start made another first key")
	}
	cl, err = client.New(client.Config{BaseURL: again.URL(), Key: strings.TrimSpace(string(key))})
	if err != nil {
		t.Fatal(err)
	}
	for a, err := range cl.Agents(t.Context(), client.ListOptions{}) {
		if err != nil || a.Name != "a" {
			t.Errorf("agents after a restart: %v, %v", a, err)
		}
	}
}

func TestTwoServersOnOneDataDirectory(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	start(t, cfg)
	_, err := New(t.Context(), cfg, nil)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), cfg.Data) {
		t.Errorf("error = %v, want ErrInUse with the directory", err)
	}
}

func TestTwoServersOnOneDatabase(t *testing.T) {
	t.Parallel()
	db := "sqlite:" + filepath.Join(t.TempDir(), "x.db")
	one, two := testConfig(t), testConfig(t)
	one.DB, two.DB = db, db
	start(t, one)
	if _, err := New(t.Context(), two, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("error = %v, want ErrInUse", err)
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig(t)
	cfg.Listen = l.Addr().String()
	if _, err := New(t.Context(), cfg, nil); err == nil || !strings.Contains(err.Error(), "is another server there?") {
		t.Errorf("error = %v", err)
	}
	// A failed start leaves nothing behind that would stop the next one.
	cfg.Listen = "127.0.0.1:0"
	start(t, cfg)
}

// Without a model key the server starts and says what to set.
func TestNoModelKeyIsNoReasonNotToStart(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	cfg := testConfig(t)
	c, err := newModel(t.Context(), &cfg, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil || c == nil {
		t.Fatalf("newModel: %v", err)
	}
	if !strings.Contains(logged.String(), "ANTHROPIC_API_KEY") {
		t.Errorf("no warning about the key: %s", &logged)
	}

	d, _ := start(t, cfg)
	req, err := http.NewRequestWithContext(t.Context(), "POST", d.URL()+"/v1/messages", strings.NewReader(
		`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", d.FirstKey())
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil || !strings.Contains(body.String(), "--model-url") {
		t.Errorf("answer %d does not say what to set: %s", res.StatusCode, &body)
	}
}

func TestModelKeyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, empty := filepath.Join(dir, "good"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(good, []byte("  k\n"), 0o600), os.WriteFile(empty, []byte("\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, file string
		is         func(error) bool
	}{
		{"good", good, func(err error) bool { return err == nil }},
		{"empty", empty, func(err error) bool { _, ok := errors.AsType[*SettingError](err); return ok }},
		{"missing", filepath.Join(dir, "missing"), func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
	} {
		cfg := testConfig(t)
		cfg.ModelKeyFile = tt.file
		if _, err := newModel(t.Context(), &cfg, slog.New(slog.DiscardHandler)); !tt.is(err) {
			t.Errorf("%s: error = %v", tt.name, err)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	pool := certificate(t, &cfg)
	d, _ := start(t, cfg)
	if !strings.HasPrefix(d.URL(), "https://") {
		t.Errorf("URL = %s", d.URL())
	}
	cl, err := client.New(client.Config{BaseURL: d.URL(), Key: d.FirstKey(), HTTPClient: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Ready(t.Context()); err != nil {
		t.Errorf("not ready over TLS: %v", err)
	}
}

// certificate makes a certificate for 127.0.0.1 and puts it into cfg.
func certificate(t *testing.T, cfg *Config) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLSCert, cfg.TLSKey = filepath.Join(cfg.Data, "cert.pem"), filepath.Join(cfg.Data, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := errors.Join(os.WriteFile(cfg.TLSCert, certPEM, 0o600), os.WriteFile(cfg.TLSKey, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool
}

// A watcher must not hold up a shutdown.
func TestShutdownEndsOpenStreams(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.ShutdownGrace = time.Minute
	d, stop := start(t, cfg)
	cl, err := client.New(client.Config{BaseURL: d.URL(), Key: d.FirstKey()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	agent, err := cl.CreateAgent(ctx, api.AgentCreate{Name: "a", Model: &api.ModelConfig{ID: "m"}})
	if err != nil {
		t.Fatal(err)
	}
	env, err := cl.CreateEnvironment(ctx, api.EnvironmentCreate{Name: "e", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted}})
	if err != nil {
		t.Fatal(err)
	}
	session, err := cl.CreateSession(ctx, api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: agent.ID}, EnvironmentID: env.ID})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, "GET", d.URL()+"/v1/sessions/"+string(session.ID)+"/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+d.FirstKey())
	req.Header.Set("Anthropic-Version", "2026-10-21")
	req.Header.Set("Anthropic-Beta", "managed-agents-2026-04-01")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("stream: %s", res.Status)
	}
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the shutdown took %s", took)
	}
}
