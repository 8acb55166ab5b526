package e2e

import (
	"context"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

var listAll = client.ListOptions{PageSize: 100}

// onlyAnswers is a firewall that lets nothing in that was not asked for.
const onlyAnswers = "iif lo accept; ct state established,related accept; iifname eth1 accept; drop;"

// What a caller sees when parts of the way break, for each way out that a gateway may
// have. Nothing may come in to the gateway's host, ever.
func TestTunnelBreaks(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name, filter string
		protocol     api.TunnelProtocol
	}{
		{"QUIC", "", api.ProtocolQUIC},
		{"UDPBlocked", "meta l4proto udp drop;", api.ProtocolTCP},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.setUp("docs=http://" + upstreamAddr)
			l.inside.listen("0.0.0.0:7000") // what a firewall is for
			if conn, err := l.planeOn.dial(within(t), "192.0.2.40:7000"); err != nil {
				t.Fatalf("without a firewall: %v", err)
			} else {
				conn.Close()
			}
			l.inside.filter(onlyAnswers, way.filter)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := l.planeOn.dial(ctx, "192.0.2.40:7000"); err == nil {
				t.Fatal("the firewall lets connections in")
			}
			cancel()

			if a := l.call("docs", "echo"); a.Status != http.StatusServiceUnavailable || !strings.Contains(a.Error, "no_connector") {
				t.Errorf("before there is a gateway: %s", a)
			}
			l.runGateway(2)
			l.works()
			for _, c := range l.status().Data {
				if c.Protocol != way.protocol || !strings.HasPrefix(c.RemoteAddress, "192.0.2.40:") {
					t.Errorf("attached by %s from %s", c.Protocol, c.RemoteAddress)
				}
			}
			l.breaks(t)
		})
	}
}

// breaks breaks one part after the other.
func (l *tunnelLab) breaks(t *testing.T) {
	step := func(name string, f func()) {
		t.Helper()
		began := time.Now()
		f()
		t.Logf("== %s: %s", name, time.Since(began).Round(time.Millisecond))
	}
	step("an edge cannot be reached by the plane, and then dies", func() {
		// Streams go through the first edge alone. One that was idle breaks with the first
		// byte, and what has left is not sent again.
		l.edges[1].host.filter("ip saddr 192.0.2.10 tcp dport 8443 reject with tcp reset;", "")
		l.worksAgain()
		came := l.hold()
		l.edges[0].kill()
		l.edges[1].host.filter("", "")
		l.failsOnce(came, "connector_lost")
		l.runEdge(l.edges[0])
		l.attached(2)
		l.works()
	})
	step("the gateway dies", func() {
		came := l.hold()
		l.gateways[0].kill()
		l.gateways = nil
		l.runGatewayAfter()
		// A connection that is left of it is found dead at once over TCP, and by its silence
		// over QUIC.
		if a := l.call("docs", "echo"); a.Status != http.StatusOK && !strings.Contains(a.Error, "connector_lost") {
			a.refuses(t, http.StatusGatewayTimeout, "no answer in time")
		}
		l.failsOnce(came, "connector_lost")
	})
	step("the plane dies", func() {
		came := l.hold()
		l.plane.kill()
		if a := <-came; a.Status != 0 {
			t.Errorf("the call under way came to %s", a)
		}
		n := l.upstream.count("hold")
		l.runPlane()
		l.worksAgain()
		if l.upstream.count("hold") != n {
			t.Error("the call was made again")
		}
		l.attached(2)
	})
	step("the network mixes everything up", func() {
		l.wire.set(false, 30*time.Millisecond)
		for range 3 {
			l.works()
		}
		l.wire.set(false, 0)
		if l.wire.delayed() == 0 {
			t.Error("nothing went over the wire")
		}
	})
	step("the link is cut for a moment", func() {
		came := l.hold()
		l.wire.set(true, 0)
		l.upstream.letGo() // its answer has nowhere to go
		pause(t.Context(), 2*time.Second)
		l.wire.set(false, 0)
		if a := <-came; a.Status != http.StatusOK || a.Failed || a.Result != "held: hush-argument" {
			t.Errorf("the call under way came to %s", a)
		}
		l.works()
	})
	step("the link is cut until everybody has noticed", func() {
		came := l.hold()
		n := l.upstream.count("hold")
		l.wire.set(true, 0)
		l.attached(0)
		l.call("docs", "echo").refuses(t, http.StatusServiceUnavailable, "no_connector")
		l.wire.set(false, 0)
		l.worksAgain()
		// Over TCP a stream is a connection of its own, which may outlive such a cut.
		l.upstream.letGo()
		if a := <-came; a.Failed && !strings.Contains(a.Result, "connector_lost") || !a.Failed && a.Result != "held: hush-argument" {
			t.Errorf("the call under way came to %s", a)
		}
		if l.upstream.count("hold") != n {
			t.Error("the call was made again")
		}
	})
}

// runGatewayAfter starts a gateway beside what is left of another.
func (l *tunnelLab) runGatewayAfter() {
	l.t.Helper()
	g := l.run("gateway", l.inside.command(nil, "gateway", "--config", filepath.Join(l.dir, "gateway.yaml"), "--data", filepath.Join(l.t.TempDir(), "data"), "--log-level", "debug"))
	l.gateways = append(l.gateways, g)
	g.waitFor(regexp.MustCompile("attached to an edge"))
}
