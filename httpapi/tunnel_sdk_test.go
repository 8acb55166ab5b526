package httpapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/anthropics/anthropic-sdk-go"
	option1 "github.com/anthropics/anthropic-sdk-go/option"
	v2 "github.com/anthropics/anthropic-sdk-go/v2"
	option2 "github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/bailey-platform/bailey/api"
)

// testCA makes a CA certificate that can be registered.
func testCA(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "office CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// counted is an HTTP client that counts what it sends.
type countedClient struct{ n atomic.Int64 }

func (c *countedClient) Do(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return http.DefaultClient.Do(r)
}

// All ten operations, as the unmodified SDK of the first generation calls them.
func TestTunnelsWithSDKv1(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	sent := new(countedClient)
	c := v1.NewClient(option1.WithBaseURL(f.url), option1.WithAPIKey(f.key), option1.WithHTTPClient(sent))
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tn, err := c.Beta.Tunnels.New(ctx, v1.BetaTunnelNewParams{DisplayName: v1.String("office")})
	ok(err)
	if tn.DisplayName != "office" || tn.Type != "tunnel" || !strings.HasPrefix(tn.ID, "tnl_") || tn.JSON.ArchivedAt.Raw() != "null" || tn.CreatedAt.IsZero() {
		t.Errorf("tunnel %s", tn.RawJSON())
	}
	bare, err := c.Beta.Tunnels.New(ctx, v1.BetaTunnelNewParams{WorkspaceID: v1.String(workspaceID), Betas: []v1.AnthropicBeta{"other-beta"}})
	ok(err)
	if bare.JSON.DisplayName.Raw() != "null" || bare.Domain == tn.Domain {
		t.Errorf("tunnel %s", bare.RawJSON())
	}
	got, err := c.Beta.Tunnels.Get(ctx, tn.ID, v1.BetaTunnelGetParams{})
	ok(err)
	if got.RawJSON() != tn.RawJSON() {
		t.Errorf("got %s, made %s", got.RawJSON(), tn.RawJSON())
	}

	token, err := c.Beta.Tunnels.RevealToken(ctx, tn.ID, v1.BetaTunnelRevealTokenParams{})
	ok(err)
	if token.Type != "tunnel_token" || !strings.HasPrefix(token.TunnelToken, "eyJ") || len(token.ID) != len("ttkn_")+64 || len(token.JSON.ExtraFields) > 0 {
		t.Errorf("token %s", token.ID)
	}
	rotated, err := c.Beta.Tunnels.RotateToken(ctx, tn.ID, v1.BetaTunnelRotateTokenParams{Reason: v1.String("scheduled")})
	ok(err)
	again, err := c.Beta.Tunnels.RotateToken(ctx, tn.ID, v1.BetaTunnelRotateTokenParams{})
	ok(err)
	if rotated.ID == token.ID || again.ID == rotated.ID {
		t.Error("a rotation gave the same token")
	}

	ca := testCA(t)
	cert, err := c.Beta.Tunnels.Certificates.New(ctx, tn.ID, v1.BetaTunnelCertificateNewParams{CACertificatePEM: ca})
	ok(err)
	if cert.Type != "tunnel_certificate" || cert.TunnelID != tn.ID || len(cert.Fingerprint) != 64 || cert.ExpiresAt.IsZero() || cert.JSON.ArchivedAt.Raw() != "null" ||
		strings.Contains(cert.RawJSON(), "BEGIN") {
		t.Errorf("certificate %s", cert.RawJSON())
	}
	gotCert, err := c.Beta.Tunnels.Certificates.Get(ctx, cert.ID, v1.BetaTunnelCertificateGetParams{TunnelID: tn.ID})
	ok(err)
	if gotCert.RawJSON() != cert.RawJSON() {
		t.Errorf("got %s, made %s", gotCert.RawJSON(), cert.RawJSON())
	}

	// What is refused for what it means is asked for once: the SDK repeats every other 409.
	before := sent.n.Load()
	_, err = c.Beta.Tunnels.Certificates.New(ctx, tn.ID, v1.BetaTunnelCertificateNewParams{CACertificatePEM: ca})
	var e *v1.Error
	if !errors.As(err, &e) || e.StatusCode != 409 || sent.n.Load() != before+1 {
		t.Errorf("the same certificate: %v, after %d requests", err, sent.n.Load()-before)
	}

	archived, err := c.Beta.Tunnels.Certificates.Archive(ctx, cert.ID, v1.BetaTunnelCertificateArchiveParams{TunnelID: tn.ID})
	ok(err)
	if archived.ArchivedAt.IsZero() {
		t.Errorf("archived %s", archived.RawJSON())
	}
	n := 0
	certs := c.Beta.Tunnels.Certificates.ListAutoPaging(ctx, tn.ID, v1.BetaTunnelCertificateListParams{IncludeArchived: v1.Bool(true)})
	for ; certs.Next(); n++ {
	}
	ok(certs.Err())
	if n != 1 {
		t.Errorf("%d certificates, want the archived one", n)
	}

	if _, err := c.Beta.Tunnels.Archive(ctx, bare.ID, v1.BetaTunnelArchiveParams{}); err != nil {
		t.Error(err)
	}
	for _, include := range []bool{false, true} {
		var ids []string
		tunnels := c.Beta.Tunnels.ListAutoPaging(ctx, v1.BetaTunnelListParams{IncludeArchived: v1.Bool(include), Limit: v1.Int(1)})
		for tunnels.Next() {
			ids = append(ids, tunnels.Current().ID)
		}
		ok(tunnels.Err())
		if want := map[bool]int{false: 1, true: 2}[include]; len(ids) != want || include && ids[0] != bare.ID {
			t.Errorf("listed %v", ids)
		}
	}
}

// The same with the second generation, whose client authenticates by Authorization.
func TestTunnelsWithSDKv2(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	admin, err := f.control.Authenticate(t.Context(), f.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := f.control.CreateKey(t.Context(), admin, "", api.KeyCreate{Name: "t", Scopes: []api.KeyScope{api.ScopeTunnels}})
	if err != nil {
		t.Fatal(err)
	}
	c := v2.NewClient(option2.WithBaseURL(f.url), option2.WithAuthToken(key.Secret))
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tn, err := c.Beta.Tunnels.New(ctx, v2.BetaTunnelNewParams{})
	ok(err)
	_, err = c.Beta.Tunnels.Get(ctx, tn.ID, v2.BetaTunnelGetParams{})
	ok(err)
	token, err := c.Beta.Tunnels.RevealToken(ctx, tn.ID, v2.BetaTunnelRevealTokenParams{})
	ok(err)
	rotated, err := c.Beta.Tunnels.RotateToken(ctx, tn.ID, v2.BetaTunnelRotateTokenParams{Reason: v2.String("x")})
	ok(err)
	if rotated.TunnelToken == token.TunnelToken {
		t.Error("a rotation gave the same token")
	}
	cert, err := c.Beta.Tunnels.Certificates.New(ctx, tn.ID, v2.BetaTunnelCertificateNewParams{CACertificatePEM: testCA(t)})
	ok(err)
	_, err = c.Beta.Tunnels.Certificates.Get(ctx, cert.ID, v2.BetaTunnelCertificateGetParams{TunnelID: tn.ID})
	ok(err)
	certs, err := c.Beta.Tunnels.Certificates.List(ctx, tn.ID, v2.BetaTunnelCertificateListParams{})
	ok(err)
	tunnels, err := c.Beta.Tunnels.List(ctx, v2.BetaTunnelListParams{Limit: v2.Int(1000)})
	ok(err)
	if len(certs.Data) != 1 || len(tunnels.Data) != 1 {
		t.Errorf("%d certificates, %d tunnels", len(certs.Data), len(tunnels.Data))
	}
	_, err = c.Beta.Tunnels.Certificates.Archive(ctx, cert.ID, v2.BetaTunnelCertificateArchiveParams{TunnelID: tn.ID})
	ok(err)
	archived, err := c.Beta.Tunnels.Archive(ctx, tn.ID, v2.BetaTunnelArchiveParams{})
	ok(err)
	again, err := c.Beta.Tunnels.Archive(ctx, tn.ID, v2.BetaTunnelArchiveParams{})
	ok(err)
	if archived.RawJSON() != again.RawJSON() {
		t.Errorf("archived %s, then %s", archived.RawJSON(), again.RawJSON())
	}
	// The key is for tunnels and nothing else.
	_, err = c.Beta.Agents.List(ctx, v2.BetaAgentListParams{})
	var e *v2.Error
	if !errors.As(err, &e) || e.StatusCode != 403 {
		t.Errorf("agents with a key for tunnels: %v", err)
	}
}

// What is on the wire, where an SDK would not show a difference.
func TestTunnelsOnTheWire(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	admin, err := f.control.Authenticate(t.Context(), f.key)
	if err != nil {
		t.Fatal(err)
	}
	ordinary, err := f.control.CreateKey(t.Context(), admin, "", api.KeyCreate{Name: "o"})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string, change func(http.Header)) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, f.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+f.key)
		req.Header.Set("Anthropic-Version", "2023-06-01")
		req.Header.Set("Anthropic-Beta", "oauth-2025-04-20, "+betaTunnels)
		if change != nil {
			change(req.Header)
		}
		return f.answer(t, req)
	}
	res, body := call("POST", "/v1/tunnels?beta=true", "{}", nil)
	if res.StatusCode != 200 || !strings.Contains(body, `"display_name":null`) || !strings.Contains(body, `"archived_at":null`) {
		t.Fatalf("created: %s %s", res.Status, body)
	}
	id := body[strings.Index(body, "tnl_"):]
	id = id[:strings.IndexByte(id, '"')]

	for name, tt := range map[string]struct {
		method, path, body string
		change             func(http.Header)
		status             int
		want               string
	}{
		"no beta":            {"GET", "/v1/tunnels?beta=true", "", func(h http.Header) { h.Del("Anthropic-Beta") }, 404, "mcp-tunnels-2026-06-22"},
		"an ordinary key":    {"GET", "/v1/tunnels?beta=true", "", func(h http.Header) { h.Set("Authorization", "Bearer "+ordinary.Secret) }, 403, "--scope tunnels"},
		"another workspace":  {"GET", "/v1/tunnels?beta=true", "", func(h http.Header) { h.Set("Anthropic-Workspace-Id", "wrkspc_x") }, 400, "anthropic-workspace-id"},
		"an empty name":      {"POST", "/v1/tunnels", `{"display_name":""}`, nil, 400, "display_name"},
		"a long name":        {"POST", "/v1/tunnels", `{"display_name":"` + strings.Repeat("é", 256) + `"}`, nil, 400, "display_name"},
		"a null name":        {"POST", "/v1/tunnels", `{"display_name":null}`, nil, 200, ""},
		"an unknown field":   {"POST", "/v1/tunnels", `{"name":"x"}`, nil, 400, "name"},
		"no body, rotate":    {"POST", "/v1/tunnels/" + id + "/rotate_token", "", nil, 200, `"tunnel_token":"eyJ`},
		"a null reason":      {"POST", "/v1/tunnels/" + id + "/rotate_token", `{"reason":null}`, nil, 200, ""},
		"an overlap":         {"POST", "/v1/tunnels/" + id + "/rotate_token", `{"bailey_overlap_seconds":60}`, nil, 200, `"bailey_overlap":{"id":"ttkn_`},
		"reveal, no body":    {"POST", "/v1/tunnels/" + id + "/reveal_token?beta=true", "", nil, 200, `"type":"tunnel_token"`},
		"no such tunnel":     {"GET", "/v1/tunnels/tnl_nosuch", "", nil, 404, "not_found_error"},
		"not an id":          {"GET", "/v1/tunnels/..%2f..", "", nil, 404, "not_found_error"},
		"a limit too far":    {"GET", "/v1/tunnels?limit=1001", "", nil, 400, "limit: must be 1 to 1000"},
		"a foreign cursor":   {"GET", "/v1/tunnels?page=page_x", "", nil, 400, "page"},
		"a private key":      {"POST", "/v1/tunnels/" + id + "/certificates", `{"ca_certificate_pem":"-----BEGIN PRIVATE KEY-----"}`, nil, 400, "holds a private key"},
		"no such method":     {"DELETE", "/v1/tunnels/" + id, "", nil, 405, ""},
		"a second token":     {"POST", "/v1/tunnels/" + id + "/tokens", "", nil, 200, `"tunnel_token":"eyJ`},
		"tokens":             {"GET", "/v1/tunnels/" + id + "/tokens", "", nil, 200, `"slot":"primary"`},
		"revoke the primary": {"POST", "/v1/tunnels/" + id + "/tokens/ttkn_nosuch/revoke", "", nil, 404, "was not found"},
	} {
		res, body := call(tt.method, tt.path, tt.body, tt.change)
		if res.StatusCode != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %s %s, want %d with %q", name, res.Status, body, tt.status, tt.want)
		}
	}
	// At the limit, the words that are known of the official service.
	for range api.TunnelsMax {
		if res, body = call("POST", "/v1/tunnels", "{}", nil); res.StatusCode != 200 {
			break
		}
	}
	if res.StatusCode != 409 || res.Header.Get("X-Should-Retry") != "false" || !strings.Contains(body, `"Organization already has the maximum of 10 non-archived Tunnels"`) {
		t.Errorf("beyond the limit: %s %v %s", res.Status, res.Header, body)
	}
	_, _ = io.Copy(io.Discard, res.Body)
}
