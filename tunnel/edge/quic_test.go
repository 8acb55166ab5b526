package edge_test

import (
	"net"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// withQUIC has an edge listen on the UDP port of the same number.
func withQUIC(t *testing.T) func(*edge.Config) {
	return func(c *edge.Config) {
		packets, err := net.ListenPacket("udp", c.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Packets = packets
	}
}

func protocol(p api.TunnelProtocol) func(*connect.Config) {
	return func(c *connect.Config) { c.Protocol = p }
}

func TestACallGoesThroughOverQUIC(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{}, withQUIC(t))
	c := l.connector("one", protocol(""))
	l.dial()
	for range 3 {
		l.mustCall()
	}
	if p := c.Status().Links[0].Protocol; p != api.ProtocolQUIC {
		t.Errorf("attached by %s where UDP passes", p)
	}
}

func TestAConnectorFallsBackToTCP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	c := l.connector("one", protocol(""))
	l.dial()
	l.mustCall()
	if p := c.Status().Links[0].Protocol; p != api.ProtocolTCP {
		t.Errorf("attached by %s where UDP does not pass", p)
	}
}
