package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
)

var tokenRefused = regexp.MustCompile("token_refused")

// What a caller sees when what is trusted changes, from a network that has no way out
// but an HTTP proxy.
func TestTunnelThroughAProxy(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	seen := l.lan.host("proxy", "192.0.2.30/24").connectProxy(proxyAddr)
	l.upstream.serveSilent()
	l.setUp("docs=http://"+upstreamAddr, "quiet=http://10.9.0.2:8081")
	l.inside.filter(onlyAnswers, "ip daddr 192.0.2.30 tcp dport 3128 accept; oifname eth0 drop;")
	env := "HTTPS_PROXY=http://" + proxyAddr
	l.runGateway(2, env)
	for _, c := range l.status().Data {
		if c.Protocol != api.ProtocolTCP || !strings.HasPrefix(c.RemoteAddress, "192.0.2.30:") {
			t.Errorf("attached by %s from %s", c.Protocol, c.RemoteAddress)
		}
	}
	l.works()
	if asked := seen(); len(asked) == 0 || !strings.HasSuffix(asked[0], ":8443") {
		t.Errorf("the proxy was asked for %q", asked)
	}

	t.Log("== a server that only says it is there")
	came := make(chan answer, 1)
	go func() { came <- l.call("quiet", "silent") }()
	l.until("the server has the call", func() bool { return l.upstream.count("silent") == 1 })
	for range 3 {
		before := l.fromGateway()
		l.upstream.tick <- struct{}{}
		l.until("the keep-alive has come through", func() bool { return l.fromGateway() > before })
	}
	close(l.upstream.tick)
	if a := <-came; a.Status != http.StatusOK || a.Failed || a.Result != "after a while" {
		t.Errorf("the silent call came to %s", a)
	}

	t.Log("== the token is rotated")
	ctx := within(t)
	old, err := os.ReadFile(filepath.Join(l.dir, "tunnel-token"))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := l.plane.client.RotateToken(ctx, l.tunnel.ID, api.TokenRotate{})
	if err != nil {
		t.Fatal(err)
	}
	held := l.hold()
	l.works()
	second := l.copyGateway("second")
	g := l.run("gateway", l.inside.command([]string{env}, "gateway", "--config", filepath.Join(second, "gateway.yaml"), "--data", filepath.Join(second, "data"), "--listen", "127.0.0.1:9401"))
	g.waitFor(tokenRefused)
	if f := l.fault("token_refused"); f.Remedy == "" {
		t.Errorf("the status says %+v", f)
	}
	l.attached(2)
	l.works()
	l.upstream.letGo()
	if a := <-held; a.Failed || a.Status != http.StatusOK {
		t.Errorf("the call under way came to %s", a)
	}
	for _, dir := range []string{second, l.dir} {
		if err := os.WriteFile(filepath.Join(dir, "tunnel-token"), []byte(fresh.Token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.attached(4) // it reads the file again
	g.stop()
	l.attached(2)
	if strings.Contains(g.out.String(), strings.TrimSpace(string(old))) {
		t.Error("the gateway shows its token")
	}

	t.Log("== the CA is replaced")
	first := l.liveCAs()
	other := filepath.Join(t.TempDir(), "other")
	l.dir, other = other, l.dir
	l.setUp("docs=http://" + upstreamAddr)
	l.dir, other = other, l.dir
	held = l.hold()
	if _, err := l.plane.client.ArchiveCertificate(ctx, l.tunnel.ID, first[0]); err != nil {
		t.Fatal(err)
	}
	l.failsOnceThen(held, "connector_lost: the connection was ended by the platform", func() {
		l.call("docs", "echo").refuses(t, http.StatusBadGateway, "inner_tls")
		l.fault("inner_tls")
		for _, name := range []string{"ca.crt", "ca.key", "tls.key", "tls.crt"} {
			text, err := os.ReadFile(filepath.Join(other, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(l.dir, name), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})

	t.Log("== no CA is left")
	for _, ca := range l.liveCAs() {
		if _, err := l.plane.client.ArchiveCertificate(ctx, l.tunnel.ID, ca); err != nil {
			t.Fatal(err)
		}
	}
	l.call("docs", "echo").refuses(t, http.StatusServiceUnavailable, "tunnel_not_active")
	ca, err := os.ReadFile(filepath.Join(l.dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.plane.client.AddCertificate(ctx, l.tunnel.ID, string(ca)); err != nil {
		t.Fatal(err)
	}
	l.worksAgain()

	t.Log("== the tunnel is archived")
	held = l.hold()
	if _, err := l.plane.client.ArchiveTunnel(ctx, l.tunnel.ID); err != nil {
		t.Fatal(err)
	}
	if a := <-held; a.Status != http.StatusOK || !a.Failed || !strings.Contains(a.Result, "tunnel_not_active") && !strings.Contains(a.Result, "connector_lost") {
		t.Errorf("the call under way came to %s", a)
	}
	l.attached(0)
	l.call("docs", "echo").refuses(t, http.StatusServiceUnavailable, "tunnel_not_active")
}

// fromGateway is how much has come out of the network inside, as the status has it.
func (l *tunnelLab) fromGateway() (n int64) {
	for _, c := range l.status().Data {
		n += c.FromGateway
	}
	return n
}

// liveCAs are those registered on the tunnel, the newest first.
func (l *tunnelLab) liveCAs() (ids []api.CertificateID) {
	l.t.Helper()
	for c, err := range l.plane.client.Certificates(within(l.t), l.tunnel.ID, listAll) {
		if err != nil {
			l.t.Fatal(err)
		}
		if c.ArchivedAt == nil {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// copyGateway copies the gateway's files, as to a second machine.
func (l *tunnelLab) copyGateway(name string) (dir string) {
	l.t.Helper()
	dir = filepath.Join(l.t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(l.dir)); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// failsOnceThen is failsOnce with something that has to be mended before calls come
// through again.
func (l *tunnelLab) failsOnceThen(came <-chan answer, stage string, mend func()) {
	l.t.Helper()
	a := <-came
	mend()
	again := make(chan answer, 1)
	again <- a
	l.failsOnce(again, stage)
}

// serveSilent serves, beside the rest, an MCP server whose one tool says nothing for as
// long as the test wants, but that it is there.
func (u *upstream) serveSilent() {
	u.tick = make(chan struct{})
	u.host.serve("10.9.0.2:8081", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req struct {
			ID     json.RawMessage
			Method string
			Params struct{ ProtocolVersion string }
		}
		if r.Method != http.MethodPost || err != nil || json.Unmarshal(body, &req) != nil {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		result := ""
		switch req.Method {
		case "initialize":
			result = `{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"quiet","version":"1"}}`
		case "tools/list":
			result = `{"tools":[{"name":"silent","inputSchema":{"type":"object"}}]}`
		case "tools/call":
			u.add("silent")
			w.Header().Set("Content-Type", "text/event-stream")
			flush := http.NewResponseController(w)
			flush.Flush()
			for range u.tick {
				io.WriteString(w, ": keep-alive\n\n")
				flush.Flush()
			}
			fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"after a while\"}]}}\n\n", req.ID)
			return
		default:
			if len(req.ID) == 0 {
				w.WriteHeader(http.StatusAccepted)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		if result == "" {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`, req.ID)
			return
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, req.ID, bytes.TrimSpace([]byte(result)))
	}))
}
