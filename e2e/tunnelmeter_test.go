package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// textSize is how many bytes of text go each way in a call of these tests.
const textSize = 32 << 10

// farewell bounds what connections that end at the same moment may say to nobody: an end
// counts what it sends, or the edge what it passes on, and the other is gone. A call is
// sixty times as much.
const farewell = 1 << 10

// oneCall is what one call may come to in a direction: its text, and what is around it.
const oneCall = 3 * textSize

// What is metered is what was carried, whoever is killed in the middle of it, but for
// what passed since the last report of an edge that died; and nothing is counted twice.
func TestTunnelMeterSurvivesKills(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		own    bool // the edge is a process of its own
		victim func(*meterLab) *process
		back   func(*meterLab)
		loses  bool // what the victim had not reported yet
	}{
		"a server with its edge": {false, func(m *meterLab) *process { return m.plane.process }, func(m *meterLab) { m.plane.restart(m.t) }, true},
		"an edge of its own":     {true, func(m *meterLab) *process { return m.edge }, (*meterLab).runEdge, true},
		"the server of an edge":  {true, func(m *meterLab) *process { return m.plane.process }, func(m *meterLab) { m.plane.restart(m.t) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMeterLab(t, c.own)
			for range 3 {
				m.works()
			}
			defer func() {
				if t.Failed() {
					t.Logf("missing at the end: %+v", m.missing())
				}
			}()
			m.until("all of it is metered", func() bool {
				now := m.missing()
				return max(now.to, -now.to, now.from, -now.from) < farewell
			})

			// Killed under a call, once some of what goes on is counted and more has passed.
			at := m.metered()
			stop := m.keepCalling()
			m.until("some of it is metered", func() bool { return m.metered().to > at.to })
			at = m.metered()
			m.until("more has passed", func() bool { return m.carried().to > at.to+3*oneCall })
			c.victim(m).kill()
			stop()
			carried := m.carried()
			c.back(m)
			m.worksAgain()

			lost, more := bytesPassed{oneCall, oneCall}, int64(oneCall) // under way in the call that broke
			if c.loses {
				lost = bytesPassed{carried.to - at.to, carried.from - at.from}
				more = 0 // what the victim had sent and not seen arrive it has not reported either
			}
			lost.to, lost.from, more = lost.to+farewell, lost.from+farewell, more+farewell

			// What passes now is metered after all that passed before. Some of that may not be
			// metered yet, so that it is not enough to look at the difference.
			before := m.missing()
			for range 3 {
				m.worksAgain()
			}
			m.until("what passed since is metered, and no more is missing than had not been reported", func() bool {
				now := m.missing()
				return now.to < before.to+farewell && now.from < before.from+farewell && now.to <= lost.to && now.from <= lost.from
			})
			missing := m.missing()
			t.Logf("missing %+v, of %+v carried; %+v may be", missing, m.carried(), lost)
			if missing.to < -more || missing.from < -more {
				t.Errorf("%+v: bytes were metered that were not carried", missing)
			}
		})
	}
}

// A meterLab is a tunnel whose gateway, in this process, counts what it gets and sends.
type meterLab struct {
	*tunnelLab
	edge     *process // nil where the server's own is used
	edgeArgs []string

	to, from atomic.Int64 // bytes within the tunnel's streams
}

type bytesPassed struct{ to, from int64 }

func newMeterLab(t *testing.T, ownEdge bool) *meterLab {
	t.Helper()
	listen := fmt.Sprint("127.0.0.1:", anyPort())
	args := []string{"--cloud-worker=false", "--tunnel-listen", listen}
	if ownEdge {
		args = []string{"--cloud-worker=false", "--tunnel-listen", "off"}
	}
	script := scripted.Script{Name: "echo", Marker: "call echo", Turns: []scripted.Turn{
		{Calls: []scripted.Call{{Name: "mcp__docs__echo", Input: map[string]any{"text": strings.Repeat("x", textSize)}}}},
		{Text: "That is it."},
	}}
	m := &meterLab{tunnelLab: &tunnelLab{t: t, dir: filepath.Join(t.TempDir(), "gateway")}}
	m.plane = startPlane(t, planeConfig{scripts: []scripted.Script{script}, args: args})
	m.upstream = &upstream{counts: map[string]int{}, release: make(chan struct{})}
	up := httptest.NewServer(m.upstream.handler())
	t.Cleanup(up.Close)

	if ownEdge {
		key, err := m.plane.client.CreateKey(within(t), "", api.KeyCreate{Name: "edge", Type: api.KeyEdge})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "edge.key")
		if err := os.WriteFile(file, []byte(key.Secret), 0o600); err != nil {
			t.Fatal(err)
		}
		m.edgeArgs = []string{"edge", "--server", m.plane.url, "--key-file", file, "--name", "edge", "--listen", listen}
		m.runEdge()
	}
	name := "meter"
	var err error
	if m.tunnel, err = m.plane.client.CreateTunnel(within(t), api.TunnelCreate{DisplayName: &name}); err != nil {
		t.Fatal(err)
	}
	m.until("there is an edge", func() bool {
		edges, err := m.plane.client.TunnelEdges(within(t), m.tunnel.ID)
		return err == nil && len(edges.Data) > 0
	})
	init := command(nil, "gateway", "init", "--dir", m.dir, "--tunnel", string(m.tunnel.ID), "--url", m.plane.url,
		"--key-file", filepath.Join(m.plane.data, "admin.key"), "--route", "docs="+up.URL)
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("gateway init: %v\n%s", err, out)
	}
	m.runGateway()
	m.attached(1)
	return m
}

func (m *meterLab) runEdge() {
	m.t.Helper()
	m.edge = m.run("edge", command(nil, m.edgeArgs...))
	m.edge.waitFor(regexp.MustCompile("listening for tunnels"))
}

// runGateway runs a gateway until the end of the test.
func (m *meterLab) runGateway() {
	m.t.Helper()
	load := func() (*gateway.Config, error) {
		c, err := gateway.Load(filepath.Join(m.dir, "gateway.yaml"))
		if err == nil {
			c.SetDefaults()
			c.Drain = settings.Duration(time.Second)
		}
		return c, err
	}
	cfg, err := load()
	if err != nil {
		m.t.Fatal(err)
	}
	e := cfg.Tunnel.Edges[0]
	cas, err := os.ReadFile(e.CA)
	if err != nil {
		m.t.Fatal(err)
	}
	edges, err := tunnel.EdgeAddrs(api.EdgeAddress{EdgeID: api.EdgeID(e.ID), Addresses: e.Addresses, ServerName: e.ServerName, CAs: string(cas)})
	if err != nil {
		m.t.Fatal(err)
	}
	g, err := gateway.New(gateway.Options{Load: load, Logger: testLogger(m.t)})
	if err != nil {
		m.t.Fatal(err)
	}
	links, err := connect.New(connect.Config{
		Edges: edges, Protocol: api.ProtocolTCP, // whose end is noticed at once
		Token: func() (tunnel.Token, error) {
			text, err := os.ReadFile(cfg.Tunnel.TokenFile)
			if err != nil {
				return tunnel.Token{}, err
			}
			return tunnel.ParseToken(strings.TrimSpace(string(text)))
		},
		Grace: time.Second, Log: testLogger(m.t),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = links.Run(ctx) })
	parts.Go(func() {
		if err := g.Serve(ctx, countingListener{links.Listener(), m}); err != nil {
			m.t.Errorf("the gateway: %v", err)
		}
	})
	m.t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
}

type countingListener struct {
	net.Listener
	m *meterLab
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{conn, l.m}, nil
}

type countingConn struct {
	net.Conn
	m *meterLab
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.m.to.Add(int64(n))
	return n, err
}

func (c countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.m.from.Add(int64(n))
	return n, err
}

func (m *meterLab) carried() bytesPassed { return bytesPassed{m.to.Load(), m.from.Load()} }

// metered is what the server says has passed, in all hours.
func (m *meterLab) metered() (all bytesPassed) {
	m.t.Helper()
	hours, err := m.plane.client.TunnelUsage(within(m.t), m.tunnel.ID, time.Time{}, time.Time{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, h := range hours {
		all.to += h.ToGateway
		all.from += h.FromGateway
	}
	return all
}

// missing is how much less is metered than was carried.
func (m *meterLab) missing() bytesPassed {
	m.t.Helper()
	metered, carried := m.metered(), m.carried()
	return bytesPassed{carried.to - metered.to, carried.from - metered.from}
}

// keepCalling makes calls, one after the other, until stop.
func (m *meterLab) keepCalling() (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			default:
			}
			if a := m.call("docs", "echo"); a.Status != http.StatusOK {
				return // the victim is dead
			}
		}
	}()
	return func() {
		close(over)
		<-done
	}
}

// works checks that a call comes through, with its text.
func (m *meterLab) works() {
	m.t.Helper()
	if a := m.call("docs", "echo"); a.Status != http.StatusOK || a.Failed || len(a.Result) < textSize {
		m.t.Fatalf("a call came to %d, failed %t, %s, %d bytes of result", a.Status, a.Failed, a.Error, len(a.Result))
	}
}

func (m *meterLab) worksAgain() {
	m.t.Helper()
	m.until("a call that comes through", func() bool { a := m.call("docs", "echo"); return a.Status == http.StatusOK && !a.Failed })
}
