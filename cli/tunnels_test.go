package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// newCAFile writes a CA certificate that can be registered.
func newCAFile(t *testing.T) string {
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
	path := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTunnels(t *testing.T) {
	t.Parallel()
	admin := server(t)
	dir := t.TempDir()

	// A key for tunnels alone, which is all that the rest needs.
	saved := filepath.Join(dir, "tunnels.key")
	k := object[api.Key](t, admin, "keys", "create", "--name", "office", "--scope", "tunnels", "--save", saved)
	if len(k.Scopes) != 1 || k.Scopes[0] != api.ScopeTunnels {
		t.Errorf("key %+v", k)
	}
	env := map[string]string{"BAILEY_URL": admin["BAILEY_URL"], "BAILEY_KEY_FILE": saved}
	refused := testRun{env: env}
	if code := refused.run(t.Context(), "agents", "list"); code != 4 {
		t.Errorf("agents with a key for tunnels: exit status %d: %s", code, &refused.stderr)
	}
	ordinary := filepath.Join(dir, "ordinary.key")
	ok(t, admin, "keys", "create", "--name", "o", "--save", ordinary)
	refused = testRun{env: map[string]string{"BAILEY_URL": admin["BAILEY_URL"], "BAILEY_KEY_FILE": ordinary}}
	if code := refused.run(t.Context(), "tunnels", "list"); code != 4 || !strings.Contains(refused.stderr.String(), "--scope tunnels") {
		t.Errorf("tunnels with an ordinary key: exit status %d: %s", code, &refused.stderr)
	}

	created := testRun{env: env}
	if code := created.run(t.Context(), "tunnels", "create", "--name", "office"); code != 0 || !strings.Contains(created.stderr.String(), "bailey gateway init --tunnel tnl_") {
		t.Errorf("create: exit status %d: %s%s", code, &created.stdout, &created.stderr)
	}
	list := object[[]api.Tunnel](t, env, "tunnels", "list")
	if len(list) != 1 || deref(list[0].DisplayName) != "office" {
		t.Fatalf("list %+v", list)
	}
	id := string(list[0].ID)
	if got := object[api.Tunnel](t, env, "tunnels", "get", id); got.Domain != list[0].Domain {
		t.Errorf("got %+v", got)
	}

	// Tokens.
	token := filepath.Join(dir, "token")
	if out := ok(t, env, "tunnels", "reveal-token", id, "--save", token); strings.Contains(out, "eyJ") {
		t.Errorf("a saved token is shown: %s", out)
	}
	text, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if tok, err := tunnel.ParseToken(string(text)); err != nil || !tok.IsFor(list[0].ID) {
		t.Errorf("saved %v, %v", tok, err)
	}
	again := testRun{env: env}
	if code := again.run(t.Context(), "tunnels", "reveal-token", id, "--save", env["BAILEY_KEY_FILE"]); code != 2 {
		t.Errorf("over a file that is there: exit status %d", code)
	}
	rotated := object[api.TunnelToken](t, env, "tunnels", "rotate-token", id, "--overlap", "1h", "--reason", "test")
	if rotated.Overlap == nil || !strings.HasPrefix(rotated.Token, "eyJ") {
		t.Errorf("rotated %+v", rotated.Overlap)
	}
	second := object[api.TunnelToken](t, env, "tunnels", "tokens", "create", id)
	if got := object[[]api.TunnelTokenInfo](t, env, "tunnels", "tokens", "list", id); len(got) != 3 {
		t.Errorf("%d tokens", len(got))
	}
	ok(t, env, "tunnels", "tokens", "revoke", id, string(second.ID))

	// Certificates.
	cert := object[api.TunnelCertificate](t, env, "tunnels", "certificates", "add", id, newCAFile(t))
	if got := object[api.TunnelCertificate](t, env, "tunnels", "certificates", "get", id, string(cert.ID)); got.Fingerprint != cert.Fingerprint {
		t.Errorf("got %+v", got)
	}
	bad := testRun{env: env, stdin: "nonsense"}
	if code := bad.run(t.Context(), "tunnels", "certificates", "add", id, "-"); code != 6 || !strings.Contains(bad.stderr.String(), "is not a certificate in PEM") {
		t.Errorf("nonsense: exit status %d: %s", code, &bad.stderr)
	}
	if out := ok(t, env, "tunnels", "certificates", "list", id); !strings.Contains(out, string(cert.ID)) {
		t.Errorf("list =\n%s", out)
	}
	ok(t, env, "tunnels", "certificates", "archive", id, string(cert.ID))

	ok(t, env, "tunnels", "archive", id)
	conflict := testRun{env: env}
	if code := conflict.run(t.Context(), "tunnels", "reveal-token", id, "--save", filepath.Join(dir, "none")); code != 5 {
		t.Errorf("the token of an archived tunnel: exit status %d: %s", code, &conflict.stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("a file for a token that was not given out is left behind")
	}
	if got := object[[]api.Tunnel](t, env, "tunnels", "list", "--archived"); len(got) != 1 || got[0].ArchivedAt == nil {
		t.Errorf("list --archived %+v", got)
	}
}

func TestFederation(t *testing.T) {
	t.Parallel()
	env := server(t)
	keys := filepath.Join(t.TempDir(), "jwks.json")
	const jwk = `{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`
	if err := os.WriteFile(keys, []byte(jwk), 0o600); err != nil {
		t.Fatal(err)
	}
	issuer := object[api.FederationIssuer](t, env, "federation", "issuers", "create", "--name", "cluster", "--issuer-url", "https://cluster.local", "--keys", keys, "--max-lifetime", "2h")
	if issuer.JWKS.Type != api.JWKSInline || issuer.MaxLifetime != 7200 || !issuer.CheckJTI {
		t.Errorf("issuer %+v", issuer)
	}
	account := object[api.ServiceAccount](t, env, "federation", "accounts", "create", "--name", "setup", "--description", "sets tunnels up")
	rule := object[api.FederationRule](t, env, "federation", "rules", "create", "--name", "setup", "--issuer", string(issuer.ID), "--account", string(account.ID),
		"--subject", "system:serviceaccount:mcp-tunnel:*", "--audience", "api.anthropic.com", "--claim", "ns=mcp-tunnel", "--scope", "tunnels", "--lifetime", "10m")
	if rule.OAuthScope != api.OAuthManageTunnels || rule.Lifetime != 600 || rule.Match.Claims["ns"] != "mcp-tunnel" {
		t.Errorf("rule %+v", rule)
	}
	for _, args := range [][]string{
		{"issuers", "get", string(issuer.ID)}, {"accounts", "get", string(account.ID)}, {"rules", "get", string(rule.ID)},
		{"issuers", "list"}, {"accounts", "list"}, {"rules", "list"},
	} {
		if out := ok(t, env, append([]string{"federation"}, args...)...); !strings.Contains(out, "setup") && !strings.Contains(out, "cluster") {
			t.Errorf("%v =\n%s", args, out)
		}
	}
	if got := object[[]api.FederationExchange](t, env, "federation", "history", "--rule", string(rule.ID)); len(got) != 0 {
		t.Errorf("history %+v", got)
	}
	taken := testRun{env: env}
	if code := taken.run(t.Context(), "federation", "accounts", "create", "--name", "setup"); code != 5 {
		t.Errorf("a name twice: exit status %d: %s", code, &taken.stderr)
	}
	ok(t, env, "federation", "rules", "archive", string(rule.ID))
	ok(t, env, "federation", "accounts", "archive", string(account.ID))
	ok(t, env, "federation", "issuers", "archive", string(issuer.ID))
	if got := object[[]api.FederationRule](t, env, "federation", "rules", "list"); len(got) != 0 {
		t.Errorf("rules %+v", got)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"issuers", "create"}, "an issuer needs --name and --issuer-url"},
		{[]string{"issuers", "create", "--name", "a", "--issuer-url", "https://a", "--jwks-url", "https://a", "--keys", keys}, "give one of them"},
		{[]string{"issuers", "create", "--name", "a", "--issuer-url", "https://a", "--keys", newCAFile(t)}, "is not a JSON Web Key Set"},
		{[]string{"accounts", "create"}, "a service account needs --name"},
		{[]string{"rules", "create"}, "a rule needs --name, --issuer and --account"},
		{[]string{"rules", "create", "--name", "a", "--issuer", "i", "--account", "s", "--scope", "all"}, `--scope "all" is not workspace or tunnels`},
		{[]string{"rules", "create", "--name", "a", "--issuer", "i", "--account", "s", "--claim", "x"}, `--claim "x" is not name=value`},
	} {
		r := testRun{env: env}
		if code := r.run(t.Context(), append([]string{"federation"}, tt.args...)...); code != 2 || !strings.Contains(r.stderr.String(), tt.want) {
			t.Errorf("%v: exit status %d: %s", tt.args, code, &r.stderr)
		}
	}
}
