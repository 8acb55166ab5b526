package edge_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// open is what a dialer of the edge's process asks for.
var open = tunnel.Open{TunnelID: tunnelID}

// parked attaches a connector by hand that brings one connection, and returns once a
// stream has begun on it.
func (l *lab) parked() *tunnel.Stream {
	l.t.Helper()
	_, attached := l.attach("one")
	data := l.mustRaw(tunnel.ALPNConnector)
	data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket))
	s, err := l.edges[0].Open(l.ctx, open, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	return s
}

// A dialer that took its own deadline away is not left with none.
func TestAGatewayThatTakesNothingIsCutAfterADeadlineOfTheDialers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{Stall: time.Second})
	s := l.parked()
	_, err := s.Write([]byte("hello")) // by which the edge has set one
	for block := make([]byte, 64<<10); err == nil; {
		// Soon after, so that it is far enough away for the edge.
		err = errors.Join(s.SetDeadline(time.Now().Add(time.Hour)), s.SetDeadline(time.Time{}))
		if err == nil {
			_, err = s.Write(block)
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write ends with: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !strings.Contains(err.Error(), "took nothing for too long") {
		t.Errorf("who reads is told: %v", err)
	}
	eventually(t, "the stream is over", func() bool { return l.edges[0].Stats().Streams == 0 })
}

// A call that its caller gave up says nothing about connectors.
func TestWhoIsNotWaitedForIsNotToBlame(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	l.attach("one") // and brings no connection
	ctx, cancel := context.WithCancel(l.ctx)
	cancel()
	if _, err := l.edges[0].Open(ctx, open, nil); !errors.Is(err, context.Canceled) || tunnel.AsError(err) != nil {
		t.Errorf("got %v", err)
	}
	if n := l.edges[0].Stats().Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
}
