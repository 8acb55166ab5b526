package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/tunnel/gateway"
	"github.com/bailey-platform/bailey/vault"
)

// The protocol's own conformance suite, in the version that mcp/package-lock.json pins,
// as far as it is about what is used of the protocol.

// conformance is a run of the suite in what it calls a mode: client or server.
func conformance(t *testing.T, mode string, args ...string) *exec.Cmd {
	t.Helper()
	dir := mcpProject.need(t)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "node", append([]string{"--import", "./loader.mjs",
		"node_modules/@modelcontextprotocol/conformance/dist/index.js", mode}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	return cmd
}

// The client of sessions, and the flow that has a vault's credential authorized. Left out
// are questions of servers to their client, which is declined by not declaring the
// capability; asking a person for more in the middle of a call (scope-step-up), where a
// session reports an authentication error instead; a client that is known by the URL of
// its description (basic-cimd), as ours has no public one; and metadata that names another
// issuer than the one that was asked (2025-03-26-oauth-metadata-backcompat), which RFC 8414
// has a client refuse.
func TestMCPConformanceOfTheClient(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, scenario := range []string{
		"initialize", "tools_call", "sse-retry",
		"auth/metadata-default", "auth/metadata-var1", "auth/metadata-var2", "auth/metadata-var3",
		"auth/scope-from-www-authenticate", "auth/scope-from-scopes-supported", "auth/scope-omitted-when-undefined",
		"auth/token-endpoint-auth-basic", "auth/token-endpoint-auth-post", "auth/token-endpoint-auth-none",
		"auth/2025-03-26-oauth-endpoint-fallback", "auth/scope-retry-limit",
		"auth/pre-registration", "auth/resource-mismatch", "auth/offline-access-scope", "auth/offline-access-not-supported",
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			if out, err := conformance(t, "client", "--command", self, "--scenario", scenario).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// conformanceScenario and conformanceContext are the variables by which the suite tells
// its client what to do.
const (
	conformanceScenario = "MCP_CONFORMANCE_SCENARIO"
	conformanceContext  = "MCP_CONFORMANCE_CONTEXT"
)

// conformanceClient is the client under test: this program, started by the suite.
func conformanceClient(scenario, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	server := mcp.Server{Name: "suite", URL: url, HTTP: http.DefaultClient}
	if strings.HasPrefix(scenario, "auth/") {
		token, err := conformanceToken(ctx, url)
		if err != nil {
			return err
		}
		server.Authorization = func(context.Context, string) (string, error) { return "Bearer " + token, nil }
	}
	s, err := mcp.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer s.Close()
	tools, err := s.Tools(ctx)
	if err != nil {
		return err
	}
	for _, tool := range tools {
		input := `{}`
		if tool.Name == "add_numbers" {
			input = `{"a":5,"b":3}`
		}
		res, err := s.Call(ctx, tool.Name, json.RawMessage(input))
		if err != nil {
			return err
		}
		fmt.Println(scenario, tool.Name, res.Content.Text())
	}
	return nil
}

// conformanceToken has the vault's flow get a token. The person that it asks agrees to
// everything: the suite's authorization server redirects at once.
func conformanceToken(ctx context.Context, server string) (string, error) {
	a := vault.Authorization{ServerURL: server, RedirectURL: "http://127.0.0.1:1/callback", HTTP: http.DefaultClient}
	var given struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	if text := os.Getenv(conformanceContext); text != "" {
		if err := json.Unmarshal([]byte(text), &given); err != nil {
			return "", err
		}
		a.ClientID, a.ClientSecret = given.ClientID, given.ClientSecret
	}
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	a.Visit = func(ctx context.Context, page string) (url.Values, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
		if err != nil {
			return nil, err
		}
		resp, err := browser.Do(req)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		back, err := resp.Location()
		if err != nil {
			return nil, err
		}
		return back.Query(), nil
	}
	grant, err := a.Do(ctx)
	if err != nil {
		return "", err
	}
	return grant.AccessToken, nil
}

// The gateway as a proxy: the server that the protocol's Go SDK has for the suite is found
// to be conformant through it, too, in every scenario that there is. That includes what
// sessions do not use, such as questions of the server to its client in the middle of a
// call, several streams at once and subscriptions.
func TestMCPConformanceThroughTheGateway(t *testing.T) {
	t.Parallel()
	mcpProject.need(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/server", "github.com/modelcontextprotocol/go-sdk/conformance/everything-server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const domain, host = "abcd1234.tunnel.test", "suite.abcd1234.tunnel.test"
	addr := fmt.Sprint("127.0.0.1:", anyPort())
	upstream := start(t, "the SDK's server", exec.Command(dir+"/server", "-http", addr, "-stateless=false"))
	t.Cleanup(upstream.finish)
	upstream.waitFor(regexp.MustCompile("listening at"))

	// The suite speaks plain HTTP to an address. What is before the gateway speaks TLS for it
	// and lets a Host that is not its own through as it is, for the gateway to refuse.
	addrOfGateway, cas := conformanceGateway(t, domain, host, "http://"+addr)
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", host
			r.Out.Header.Del("Origin") // of the suite's address; servers take it for a foreign page's
			if own := r.In.Context().Value(http.LocalAddrContextKey).(net.Addr).String(); r.In.Host == own {
				r.Out.Host = host
			}
		},
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: cas},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addrOfGateway)
			},
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without this, the server closes the request's body where the answer begins, and a
		// transport that has not yet seen the end of it breaks off the answer: of a stream, all
		// that was still to come.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		defer r.Body.Close()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	out, err := conformance(t, "server", "--url", front.URL+"/mcp").CombinedOutput()
	if err != nil || !regexp.MustCompile(`Total: [1-9]\d+ passed, 0 failed`).Match(out) {
		t.Errorf("%v\n%s", err, out)
	}
}

// conformanceGateway starts a gateway with one route, and returns where it listens and
// whom to trust for it.
func conformanceGateway(t *testing.T, domain, host, upstream string) (addr string, cas *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	ca, caKey := issueCert(t, nil, nil, "conformance CA", true)
	leaf, key := issueCert(t, ca, caKey, host, false)
	cert := gateway.TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	for file, text := range map[string]string{
		cert.Cert: encodeCert(leaf), cert.Key: encodeKey(t, key),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g, err := gateway.New(gateway.Options{
		Load: func() (*gateway.Config, error) {
			return &gateway.Config{
				Tunnel: gateway.Tunnel{Domain: domain}, TLS: cert, Data: dir,
				Routes: map[string]*gateway.Route{
					strings.TrimSuffix(host, "."+domain): {Upstream: upstream, Settings: gateway.Settings{AllowedIPs: []string{"127.0.0.1"}, Host: "rewrite"}},
				},
			}, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway: %v", err)
		}
	})
	cas = x509.NewCertPool()
	cas.AddCert(ca)
	return l.Addr().String(), cas
}
