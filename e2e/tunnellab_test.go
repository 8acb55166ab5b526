package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// The hosts of an office, and of what is outside of it.
//
//	outside  192.0.2.0/24   plane .10   edges .21 .22   proxy .30   mallory .66   gateway .40
//	inside   10.9.0.0/24    gateway .1, upstream .2
//
// The gateway's cable outside is a wire. The upstream's host also has the address of the
// clouds' metadata services, and the gateway knows the way there.
const (
	planeAddr    = "192.0.2.10:8484"
	proxyAddr    = "192.0.2.30:3128"
	upstreamAddr = "10.9.0.2:8080"
	metadataAddr = "169.254.169.254:80"
)

// A tunnelLab is a plane, two edges and a gateway, each a process on a host of its own,
// with a real MCP server on one more.
type tunnelLab struct {
	t   *testing.T
	lan *lan

	plane    *plane
	planeOn  *host
	edges    []*tunnelEdge
	tunnel   *api.Tunnel
	inside   *host // the gateway's
	wire     *wire
	gateways []*process
	upstream *upstream
	dir      string // the gateway's files

	said atomic.Pointer[string] // what the newest call came to
}

type tunnelEdge struct {
	*process
	host *host
	addr string
	args []string
}

// upstreamScripts have the model call one tool and then say so, whatever came of it.
func upstreamScripts() []scripted.Script {
	all := []scripted.Script{realServers}
	for _, tool := range []string{"echo", "hold", "silent"} {
		all = append(all, scripted.Script{Name: tool, Marker: "call " + tool, Turns: []scripted.Turn{
			{Calls: []scripted.Call{{Name: "mcp__docs__" + tool, Input: map[string]any{"text": "hush-argument"}}}},
			{Text: "That is it."},
		}})
	}
	return all
}

// newTunnelLab starts everything but the gateway.
func newTunnelLab(t *testing.T) *tunnelLab {
	t.Helper()
	n := newLAN(t)
	l := &tunnelLab{t: t, lan: n, dir: filepath.Join(t.TempDir(), "gateway")}
	l.planeOn = n.host("plane", "192.0.2.10/24")
	l.inside, l.wire = n.wiredHost("gateway", "192.0.2.40/24")
	up := newHost(t, "upstream")
	l.inside.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), up.ns.Fd()))
	l.inside.run("ip", "addr", "add", "10.9.0.1/24", "dev", "eth1")
	l.inside.run("ip", "link", "set", "eth1", "up")
	up.run("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
	up.run("ip", "link", "set", "eth0", "up")
	up.run("ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
	l.inside.run("ip", "route", "add", "169.254.169.254/32", "via", "10.9.0.2")
	l.upstream = newUpstream(up)

	l.startPlane()
	for i := range 2 {
		l.addEdge(fmt.Sprintf("edge-%d", i+1), fmt.Sprintf("192.0.2.%d", 21+i))
	}
	name := "office"
	var err error
	if l.tunnel, err = l.plane.client.CreateTunnel(within(t), api.TunnelCreate{DisplayName: &name}); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *tunnelLab) startPlane() {
	l.t.Helper()
	p := &plane{model: scripted.New(scripted.Options{Key: modelKey, Models: []string{modelID}}, upstreamScripts()...), data: filepath.Join(l.t.TempDir(), "data")}
	l.planeOn.serve("127.0.0.1:9000", p.model)
	p.args = []string{
		"serve", "--data", p.data, "--model-url", "http://127.0.0.1:9000", "--log-level", "debug",
		"--listen", planeAddr, "--insecure-http", "--tunnel-listen", "off", "--cloud-worker=false",
	}
	p.env = []string{"BAILEY_MODEL_KEY=" + modelKey}
	l.plane = p
	p.url = l.planeOn.outside(planeAddr)
	l.runPlane()
	p.admin = readKey(l.t, filepath.Join(p.data, "admin.key"))
	p.client = p.clientWith(l.t, p.admin)
}

func (l *tunnelLab) runPlane() {
	l.t.Helper()
	p := l.plane
	p.process = l.run("serve", l.planeOn.command(p.env, p.args...))
	p.waitFor(servingRE)
	p.waitReady(l.t)
}

// run starts a process that ends with the test.
func (l *tunnelLab) run(name string, cmd *exec.Cmd) *process {
	l.t.Helper()
	p := start(l.t, name, cmd)
	l.t.Cleanup(p.finish)
	return p
}

func (l *tunnelLab) addEdge(name, ip string) {
	l.t.Helper()
	key, err := l.plane.client.CreateKey(within(l.t), "", api.KeyCreate{Name: name, Type: api.KeyEdge})
	if err != nil {
		l.t.Fatal(err)
	}
	file := filepath.Join(l.t.TempDir(), "edge.key")
	if err := os.WriteFile(file, []byte(key.Secret), 0o600); err != nil {
		l.t.Fatal(err)
	}
	e := &tunnelEdge{host: l.lan.host(name, ip+"/24"), addr: ip + ":8443"}
	e.args = []string{"edge", "--server", "http://" + planeAddr, "--key-file", file, "--name", name, "--listen", e.addr, "--log-level", "debug"}
	l.edges = append(l.edges, e)
	l.runEdge(e)
}

func (l *tunnelLab) runEdge(e *tunnelEdge) {
	l.t.Helper()
	e.process = l.run("edge", e.host.command(nil, e.args...))
	e.waitFor(regexp.MustCompile("listening for tunnels"))
	l.until("the plane knows the edge", func() bool {
		n := 0
		for known, err := range l.plane.client.Edges(within(l.t), listAll) {
			if err == nil && known.State == api.EdgeActive {
				n++
			}
		}
		return n == len(l.edges)
	})
}

// setUp makes the gateway's files, as its operator does.
func (l *tunnelLab) setUp(routes ...string) {
	l.t.Helper()
	args := []string{"gateway", "init", "--dir", l.dir, "--tunnel", string(l.tunnel.ID), "--url", "http://" + planeAddr, "--key-file", filepath.Join(l.plane.data, "admin.key")}
	for _, r := range routes {
		args = append(args, "--route", r)
	}
	// Its operator is somewhere from where the plane can be reached.
	cmd := l.planeOn.command(nil, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("gateway init: %v\n%s", err, out)
	}
}

// edit changes the gateway's settings.
func (l *tunnelLab) edit(old, new string) {
	l.t.Helper()
	file := filepath.Join(l.dir, "gateway.yaml")
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), old) {
		l.t.Fatalf("%s: %v:\n%s", file, err, text)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), old, new, 1)), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// runGateway starts a gateway on its host and returns when it is attached to as many
// edges.
func (l *tunnelLab) runGateway(links int, env ...string) *process {
	l.t.Helper()
	g := l.run("gateway", l.inside.command(env, "gateway", "--config", filepath.Join(l.dir, "gateway.yaml"), "--data", filepath.Join(l.t.TempDir(), "data"), "--log-level", "debug"))
	l.gateways = append(l.gateways, g)
	l.attached(links)
	return g
}

// attached waits until so many connections are attached to the tunnel.
func (l *tunnelLab) attached(links int) []api.TunnelConnection {
	l.t.Helper()
	var s *api.TunnelStatus
	l.until(fmt.Sprint(links, " connections"), func() bool {
		s = l.status()
		return len(s.Data) == links
	})
	return s.Data
}

func (l *tunnelLab) status() *api.TunnelStatus {
	l.t.Helper()
	s, err := l.plane.client.TunnelStatus(within(l.t), l.tunnel.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// fault waits until the tunnel's status has a failure of the stage.
func (l *tunnelLab) fault(stage string) api.TunnelFault {
	l.t.Helper()
	var found api.TunnelFault
	l.until("a fault of "+stage, func() bool {
		for _, f := range l.status().Faults {
			if f.Stage == stage {
				found = f
				return true
			}
		}
		return false
	})
	return found
}

// until waits for what tells nobody when it comes.
func (l *tunnelLab) until(what string, right func() bool) {
	l.t.Helper()
	ctx := within(l.t)
	for !right() {
		if ctx.Err() != nil {
			l.t.Fatalf("never: %s", what)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// An answer is what who asks for a message with an MCP server sees.
type answer struct {
	Status int    // of HTTP
	Error  string // the message, where Status is not 200
	Result string // of the tool, otherwise
	Failed bool   // what the model is told of it
}

func (a answer) String() string {
	if a.Status != http.StatusOK {
		return fmt.Sprintf("HTTP %d: %s", a.Status, a.Error)
	}
	return fmt.Sprintf("HTTP 200, is_error %t: %.500s", a.Failed, a.Result)
}

// call has the model call a tool of a host of the tunnel.
func (l *tunnelLab) call(route, tool string) answer {
	return l.callHost(route+"."+l.tunnel.Domain, tool)
}

func (l *tunnelLab) callHost(host, tool string) (a answer) {
	l.t.Helper()
	body := fmt.Sprintf(`{"model":%q,"max_tokens":1000,"messages":[{"role":"user","content":"call %s"}],
		"mcp_servers":[{"type":"url","name":"docs","url":"https://%s/mcp"}],"tools":[{"type":"mcp_toolset","mcp_server_name":"docs"}]}`, modelID, tool, host)
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.plane.url+"/v1/messages", strings.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return a
	}
	req.Header.Set("X-Api-Key", l.plane.admin)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Anthropic-Beta", "mcp-client-2025-11-20")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil { // the server is gone
		a.Error = err.Error()
		return a
	}
	var got struct {
		Error   struct{ Message string }
		Content []struct {
			Type    string
			IsError bool `json:"is_error"`
			Content []struct{ Text string }
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		l.t.Errorf("an answer that is none: %v\n%s", err, data)
	}
	a.Status, a.Error = res.StatusCode, got.Error.Message
	for _, b := range got.Content {
		if b.Type == "mcp_tool_result" && len(b.Content) > 0 {
			a.Result, a.Failed = b.Content[0].Text, b.IsError
		}
	}
	said := fmt.Sprintf("%s of %s: %s", tool, host, a)
	if before := l.said.Swap(&said); before == nil || *before != said {
		l.t.Log(said)
	}
	return a
}

// works checks that a call comes through, now.
func (l *tunnelLab) works() {
	l.t.Helper()
	before := l.upstream.count("echo")
	if a := l.call("docs", "echo"); a.Status != http.StatusOK || a.Failed || a.Result != "echo: hush-argument" {
		l.t.Errorf("the call came to %s", a)
	}
	if n := l.upstream.count("echo") - before; n != 1 {
		l.t.Errorf("the server was called %d times", n)
	}
}

// worksAgain waits until calls come through again.
func (l *tunnelLab) worksAgain() {
	l.t.Helper()
	l.until("a call that comes through", func() bool { a := l.call("docs", "echo"); return a.Status == http.StatusOK && !a.Failed })
	l.works()
}

// hold begins a call that the server does not answer before its release, and returns
// when the server has it.
func (l *tunnelLab) hold() (came <-chan answer) {
	l.t.Helper()
	before := l.upstream.count("hold")
	out := make(chan answer, 1)
	go func() { out <- l.call("docs", "hold") }()
	l.until("the server has the call", func() bool { return l.upstream.count("hold") == before+1 })
	return out
}

// failsOnce checks that a call that was under way fails, says at which stage, and was
// made once.
func (l *tunnelLab) failsOnce(came <-chan answer, stage string) {
	l.t.Helper()
	n := l.upstream.count("hold")
	select {
	case a := <-came:
		if a.Status != http.StatusOK || !a.Failed || !strings.Contains(a.Result, stage) || !strings.Contains(a.Result, "not repeated") {
			l.t.Errorf("the call under way came to %s", a)
		}
	case <-within(l.t).Done():
		l.t.Fatal("the call under way came to nothing")
	}
	l.worksAgain()
	if again := l.upstream.count("hold"); again != n {
		l.t.Errorf("the call was made again: %d, was %d", again, n)
	}
}

// refuses checks what a call is refused with.
func (a answer) refuses(t testing.TB, status int, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if a.Status != status || !strings.Contains(a.Error, text) {
			t.Errorf("got %s, want HTTP %d with %q", a, status, text)
			return
		}
	}
}

// An upstream is the private MCP server, of the official SDK, and what else is on its
// host.
type upstream struct {
	host *host
	tick chan struct{} // of serveSilent: each has it say that it is there

	mu      sync.Mutex // guards what follows
	counts  map[string]int
	release chan struct{}
}

type upstreamInput struct {
	Text string `json:"text"`
}

func newUpstream(h *host) *upstream {
	u := &upstream{host: h, counts: map[string]int{}, release: make(chan struct{})}
	h.t.Cleanup(u.letGo)
	h.serve(upstreamAddr, u.handler())
	h.serve(metadataAddr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		u.add("metadata")
		io.WriteString(w, "hush-credentials-of-the-cloud")
	}))
	return u
}

// handler is an MCP server that counts.
func (u *upstream) handler() http.Handler {
	server := sdk.NewServer(&sdk.Implementation{Name: "docs", Version: "1"}, &sdk.ServerOptions{Logger: slog.New(slog.DiscardHandler)})
	say := func(text string) *sdk.CallToolResult {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: text}}}
	}
	sdk.AddTool(server, &sdk.Tool{Name: "echo"}, func(_ context.Context, _ *sdk.CallToolRequest, in upstreamInput) (*sdk.CallToolResult, any, error) {
		u.add("echo")
		return say("echo: " + in.Text), nil, nil
	})
	wait := func(ctx context.Context, _ *sdk.CallToolRequest, in upstreamInput) (*sdk.CallToolResult, any, error) {
		release := u.add("hold")
		select {
		case <-release:
		case <-ctx.Done():
		}
		return say("held: " + in.Text), nil, nil
	}
	sdk.AddTool(server, &sdk.Tool{Name: "hold"}, wait)
	sdk.AddTool(server, &sdk.Tool{Name: "silent"}, wait)
	mcp := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.add("any")
		mcp.ServeHTTP(w, r)
	})
}

func (u *upstream) add(what string) (release <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counts[what]++
	return u.release
}

func (u *upstream) count(what string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.counts[what]
}

// letGo answers all calls that are held.
func (u *upstream) letGo() {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.release)
	u.release = make(chan struct{})
}
