package cli

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

func TestRoutesOfInit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		route string
		want  any // in the file
	}{
		{"docs=http://10.0.0.5:8080", "http://10.0.0.5:8080"},
		{"docs=http://docs.corp:8080", "http://docs.corp:8080"},
		{"docs=http://127.0.0.1:8080", map[string]any{
			"upstream": "http://127.0.0.1:8080", "host": "rewrite", "allowed-ips": []string{"127.0.0.1"},
		}},
		{"docs=http://203.0.113.7:8080", map[string]any{"upstream": "http://203.0.113.7:8080", "allowed-ips": []string{"203.0.113.7"}}},
		{"docs=https://docs.corp:8443", map[string]any{"upstream": "https://docs.corp:8443", "upstream-tls": map[string]any{"system-cas": true}}},
		{"docs=exec:mcp-files /srv", map[string]any{"command": []string{"mcp-files", "/srv"}}},
	} {
		routes, _, err := parseRoutes([]string{tt.route}, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.route, err)
			continue
		}
		if diff := cmp.Diff(tt.want, routeValue(routes["docs"])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.route, diff)
		}
	}
}

// An init that cannot be meant makes nothing, here or at the server.
func TestInitWithoutARouteDoesNothing(t *testing.T) {
	t.Parallel()
	env := server(t)
	dir := filepath.Join(t.TempDir(), "gw")
	for _, args := range [][]string{
		{"--name", "office"},
		{"--name", "office", "--route", "docs=https://10.0.0.5:8443", "--ca", "/nowhere/ca.crt"},
		{"--name", "office", "--route", "docs=http://10.0.0.5:8080", "--ca", "/dev/null"},
	} {
		r := testRun{env: env}
		if code := r.run(t.Context(), append([]string{"gateway", "init", "--dir", dir}, args...)...); code != 2 || !strings.Contains(r.stderr.String(), "--route") && !strings.Contains(r.stderr.String(), "--ca") {
			t.Errorf("%v: exit status %d: %s", args, code, &r.stderr)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
	if all := object[[]api.Tunnel](t, env, "tunnels", "list"); len(all) != 0 {
		t.Errorf("tunnels were made: %+v", all)
	}
}

// A server whose certificate is of an authority of its own is trusted by init alone, and a
// repeated init asks the server of the first.
func TestInitWithAServersOwnAuthority(t *testing.T) {
	t.Parallel()
	env := server(t)
	await(t, "the server's edge has registered", func() bool { return len(object[[]api.Edge](t, env, "edge", "list")) > 0 })
	private := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(private.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "corp.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: private.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := filepath.Join(dir, "gw")
	ok(t, env, "gateway", "init", "--dir", gw, "--name", "office", "--route", "wiki="+private.URL, "--route", "docs=https://10.0.0.5:8443", "--ca", "wiki="+ca)
	cfg, err := gateway.Load(filepath.Join(gw, "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cfg.Routes["wiki"].UpstreamTLS, (gateway.Trust{CA: filepath.Join(gw, "wiki-ca.crt")}); got != want {
		t.Errorf("%+v", got)
	}
	if !cfg.Routes["docs"].UpstreamTLS.SystemCAs {
		t.Errorf("%+v", cfg.Routes["docs"].UpstreamTLS)
	}
	r := testRun{env: env}
	r.run(t.Context(), "gateway", "check", "--config", filepath.Join(gw, "gateway.yaml"))
	if got := r.stdout.String(); !strings.Contains(got, private.URL+" answers (HTTP 200") {
		t.Errorf("%s\n%s", got, &r.stderr)
	}
	key, err := os.ReadFile(env["BAILEY_KEY_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	ok(t, map[string]string{"BAILEY_KEY": strings.TrimSpace(string(key))}, "gateway", "init", "--dir", gw, "--route", "more=http://10.0.0.6:80")
}

func TestEdgesThatAreNotFromHere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		server    string
		addresses []string
		warns     bool
	}{
		{"http://127.0.0.1:8484", []string{"127.0.0.1:8485"}, false},
		{"https://bailey.example.org", []string{"127.0.0.1:8485"}, true},
		{"https://bailey.example.org", []string{"localhost:8485", "[::1]:8485"}, true},
		{"https://bailey.example.org", []string{"127.0.0.1:8485", "edge.example.org:8485"}, false},
	} {
		if got := notFromHere(test.server, test.addresses); (got != "") != test.warns {
			t.Errorf("%s, %v: %q", test.server, test.addresses, got)
		}
	}
}

// A token file that is there is brought up to date; what is no token stays.
func TestATokenReplacesAToken(t *testing.T) {
	t.Parallel()
	env := server(t)
	tun := object[api.Tunnel](t, env, "tunnels", "create", "--name", "office")
	file := filepath.Join(t.TempDir(), "tunnel-token")
	ok(t, env, "tunnels", "reveal-token", string(tun.ID), "--save", file)
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ok(t, env, "tunnels", "rotate-token", string(tun.ID))
	ok(t, env, "tunnels", "reveal-token", string(tun.ID), "--save", file)
	second, err := os.ReadFile(file)
	if err != nil || string(second) == string(first) || !strings.HasPrefix(string(second), "eyJ") {
		t.Errorf("%s, then %s: %v", first, second, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(file, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := testRun{env: env}
	if code := r.run(t.Context(), "tunnels", "reveal-token", string(tun.ID), "--save", file); code != 2 || !strings.Contains(r.stderr.String(), "holds no token of this tunnel") {
		t.Errorf("exit status %d: %s", code, &r.stderr)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}
