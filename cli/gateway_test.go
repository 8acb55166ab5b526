package cli

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// What an earlier init has written is not lost to a later one: a CA's key above all, and
// not the settings under a gateway that reads them.
func TestGatewayInitKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	env := server(t)
	dir := filepath.Join(t.TempDir(), "gw")
	one := object[api.Tunnel](t, env, "tunnels", "create", "--name", "one")
	other := object[api.Tunnel](t, env, "tunnels", "create", "--name", "other")
	ok(t, env, "gateway", "init", "--dir", dir, "--tunnel", string(one.ID), "--route", "docs=http://10.0.0.5:8080")
	files := func() map[string]string {
		all := make(map[string]string)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = string(b)
		}
		return all
	}
	before := files()

	r := testRun{env: env}
	if code := r.run(t.Context(), "gateway", "init", "--dir", dir, "--tunnel", string(other.ID), "--route", "docs=http://10.0.0.6:8080"); code == 0 || !strings.Contains(r.stderr.String(), string(one.ID)) {
		t.Errorf("for another tunnel: exit status %d: %s", code, &r.stderr)
	}
	if diff := cmp.Diff(before, files()); diff != "" {
		t.Errorf("for another tunnel, files were changed (-before +after):\n%s", diff)
	}
	if certs := object[[]api.TunnelCertificate](t, env, "tunnels", "certificates", "list", string(other.ID)); len(certs) != 0 {
		t.Errorf("%d CAs were registered on it", len(certs))
	}

	// Whoever reads the settings while they are written sees all of the old ones.
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	ok(t, env, "gateway", "init", "--dir", dir, "--route", "wiki=http://10.0.0.9:9000")
	if text, err := io.ReadAll(open); err != nil || string(text) != before["gateway.yaml"] {
		t.Errorf("under who reads it the file became %q, %v", text, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// A key without its certificate is no reason for another key.
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	r = testRun{env: env}
	if code := r.run(t.Context(), "gateway", "init", "--dir", dir); code == 0 || files()["ca.key"] != before["ca.key"] {
		t.Errorf("without its certificate the CA's key was written over: exit status %d: %s", code, &r.stderr)
	}
}

// A gateway is set up, checked, run and seen by the server.
func TestGateway(t *testing.T) {
	t.Parallel()
	env := server(t)
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	t.Cleanup(private.Close)
	dir := filepath.Join(t.TempDir(), "gw")
	tun := object[api.Tunnel](t, env, "tunnels", "create", "--name", "office")
	await(t, "the server's edge has registered", func() bool { return len(object[[]api.Edge](t, env, "edge", "list")) > 0 })
	ok(t, env, "gateway", "init", "--dir", dir, "--tunnel", string(tun.ID), "--route", "docs="+private.URL)

	for name, mode := range map[string]os.FileMode{"gateway.yaml": 0o644, "tunnel-token": 0o600, "ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	file := filepath.Join(dir, "gateway.yaml")
	cfg, err := gateway.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Tunnel.Domain != tun.Domain || cfg.Tunnel.ID != string(tun.ID) || len(cfg.Tunnel.Edges) == 0 || cfg.Routes["docs"].Upstream != private.URL {
		t.Errorf("%+v", cfg)
	}

	// Again: what is there stays, and a route is added.
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := map[string]string{}
	for _, name := range []string{"ca.crt", "ca.key", "tls.crt", "tls.key", "tunnel-token"} {
		before[name] = read(name)
	}
	edited := strings.Replace(read("gateway.yaml"), "data: .", "# mine\ndata: data", 1)
	if err := os.WriteFile(file, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	ok(t, env, "gateway", "init", "--dir", dir, "--route", "wiki=http://10.0.0.9:9000")
	for name, text := range before {
		if read(name) != text {
			t.Errorf("%s was made anew", name)
		}
	}
	if text := read("gateway.yaml"); !strings.Contains(text, "# mine") || !strings.Contains(text, "wiki: http://10.0.0.9:9000") || !strings.Contains(text, private.URL) {
		t.Errorf("%s", text)
	}
	if certs := object[[]api.TunnelCertificate](t, env, "tunnels", "certificates", "list", string(tun.ID)); len(certs) != 1 {
		t.Errorf("%d certificates are registered", len(certs))
	}
	text := strings.Replace(read("gateway.yaml"), "  wiki: http://10.0.0.9:9000\n", "", 1)
	listen := freeAddress(t)
	if err := os.WriteFile(file, []byte(strings.Replace(text, "listen: 127.0.0.1:9400", "listen: "+listen, 1)), 0o644); err != nil {
		t.Fatal(err)
	}

	found := object[[]finding](t, env, "gateway", "check", "--config", file)
	for _, f := range found {
		if f.Status == findingFailed {
			t.Errorf("%+v", f)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	run := testRun{env: env}
	done := make(chan int, 1)
	go func() { done <- run.run(ctx, "gateway", "--config", file) }()
	await(t, "the gateway is ready", func() bool {
		res, err := http.Get("http://" + listen + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	for _, f := range object[[]finding](t, env, "gateway", "check", "--config", file) {
		if f.Name == "running" && f.Status != findingOK {
			t.Errorf("%+v", f)
		}
	}
	stop()
	if code := <-done; code != 0 {
		t.Errorf("exit status %d: %s", code, &run.stderr)
	}
	if sum, err := audit.VerifyFile(filepath.Join(dir, "data", "audit.jsonl")); err != nil || !sum.Complete {
		t.Errorf("%+v, %v", sum, err)
	}

	// What goes wrong is named.
	ok(t, env, "tunnels", "rotate-token", string(tun.ID))
	failing := testRun{env: env}
	if code := failing.run(t.Context(), "gateway", "check", "--config", file); code != 9 || !strings.Contains(failing.stdout.String(), "the server refuses it") {
		t.Errorf("exit status %d: %s", code, &failing.stdout)
	}
	ok(t, env, "gateway", "init", "--dir", dir)
	ok(t, env, "gateway", "check", "--config", file)
	ok(t, env, "gateway", "renew", "--config", file, "--before", "24h")
	if read("tls.crt") != before["tls.crt"] {
		t.Error("the certificate was renewed without need")
	}
	ok(t, env, "gateway", "renew", "--config", file)
	if read("tls.crt") == before["tls.crt"] || read("ca.crt") != before["ca.crt"] {
		t.Error("the certificate was not renewed")
	}
	ok(t, env, "gateway", "check", "--config", file)
}

func TestGatewayUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("rutes: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"gateway", "--config", bad}, `there is no setting "rutes"`},
		{[]string{"gateway", "check", "--config", filepath.Join(dir, "none.yaml")}, "no such file"},
		{[]string{"gateway", "init", "--dir", dir, "--route", "docs"}, "is not name=upstream"},
		{[]string{"gateway", "init", "--dir", dir, "--route", "docs=ftp://x"}, "invalid upstream"},
		{[]string{"gateway", "init", "--dir", dir, "--route", "a_b=http://10.0.0.1:80"}, "letters, digits and hyphens"},
		{[]string{"gateway", "init", "--dir", dir, "--route", "a=exec:"}, "names no program"},
	} {
		r := testRun{env: map[string]string{"BAILEY_KEY": "sk-x"}}
		if code := r.run(t.Context(), c.args...); code != 2 || !strings.Contains(r.stderr.String(), c.want) {
			t.Errorf("%v: exit status %d: %s", c.args, code, &r.stderr)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// await waits for what other processes bring about.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

// An edge of the plane's own authority has a name that its address does not show.
func TestGatewayEdgesOfFlags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	text := "tunnel: {domain: abcd1234.tunnel.test, edges: [{addresses: [a:1]}]}\ntls: {cert: c, key: k}\nroutes: {docs: http://10.0.0.5:8080}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := gatewayFlags{config: path, edges: []string{"192.0.2.1:8485"}, edgeCA: "edges.crt", edgeName: "x.edge.test"}
	c, err := flags.load()
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Tunnel.Edges; len(e) != 1 || e[0].Addresses[0] != "192.0.2.1:8485" || e[0].CA != "edges.crt" || e[0].ServerName != "x.edge.test" {
		t.Errorf("%+v", e)
	}
}
