package edge_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/dial"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// raw makes a TLS connection to an edge, as whoever the certificate says.
func (l *lab) raw(alpn string, certs ...tls.Certificate) (*tls.Conn, error) {
	e := l.edges[0]
	var alpns []string
	if alpn != "" {
		alpns = strings.Split(alpn, ",")
	}
	conn, err := tls.Dial("tcp", e.addr.Addr, &tls.Config{
		RootCAs: e.addr.CAs, ServerName: e.addr.ServerName, NextProtos: alpns, Certificates: certs,
	})
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn, nil
}

func (l *lab) mustRaw(alpn string, certs ...tls.Certificate) *tls.Conn {
	l.t.Helper()
	conn, err := l.raw(alpn, certs...)
	if err != nil {
		l.t.Fatal(err)
	}
	return conn
}

func message(t *testing.T, kind tunnel.FrameType, v any) []byte {
	t.Helper()
	b, err := tunnel.AppendMessage(nil, kind, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// attach attaches a connector by hand.
func (l *lab) attach(id string) (*tls.Conn, tunnel.Attached) {
	l.t.Helper()
	conn := l.mustRaw(tunnel.ALPNConnector)
	conn.Write(message(l.t, tunnel.FrameAttach, tunnel.Attach{Token: tunnel.Secret(token.Text()), ConnectorID: id}))
	kind, payload, err := tunnel.ReadFrame(conn, tunnel.MessageMax)
	if err != nil || kind != tunnel.FrameAttached {
		l.t.Fatalf("attach: frame %#x, %v", kind, err)
	}
	a, err := tunnel.ParseAttached(payload)
	if err != nil {
		l.t.Fatal(err)
	}
	return conn, a
}

// wantEnd fails the test unless the edge closes the connection.
func wantEnd(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	said, err := io.ReadAll(conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the edge keeps the connection")
	}
	return said
}

func TestADialerNeedsACertificateOfThePlane(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	l.attach("one")
	open := message(t, tunnel.FrameOpen, tunnel.Open{TunnelID: tunnelID})
	for name, certs := range map[string][]tls.Certificate{
		"none":         nil,
		"another CA's": {newAuthority(t).leaf(t, "plane.test")},
		"the tunnel's": {l.inner.leaf(t, "plane.test")},
	} {
		conn, err := l.raw(tunnel.ALPNDial, certs...)
		if err == nil { // the client's side of TLS 1.3 ends before the server judges it
			conn.Write(open)
			if _, err = conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("certificate %s: the edge answers", name)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "tls:") {
			t.Errorf("certificate %s: %v", name, err)
		}
	}
	// Nor does a ticket of a session without one help, got as a connector.
	sessions := tls.NewLRUClientSessionCache(1)
	cfg := &tls.Config{RootCAs: l.outer.pool(), ServerName: "edge.test", ClientSessionCache: sessions, NextProtos: []string{tunnel.ALPNConnector}}
	first, err := tls.Dial("tcp", l.edges[0].addr.Addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	first.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	first.Read(make([]byte, 1)) // takes the ticket in
	first.Close()
	cfg.NextProtos = []string{tunnel.ALPNDial}
	if second, err := tls.Dial("tcp", l.edges[0].addr.Addr, cfg); err == nil {
		second.Write(open)
		if _, err := second.Read(make([]byte, 1)); err == nil {
			t.Error("a connector's session opened a dialer's connection")
		}
		second.Close()
	}
}

func TestOnlyTheTwoProtocolsAndTLS13AreSpoken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	for _, alpn := range []string{"", "h2", "http/1.1", tunnel.ALPNConnector + "," + tunnel.ALPNDial} {
		if _, err := l.raw(alpn); err == nil {
			t.Errorf("ALPN %q: the handshake succeeds", alpn)
		}
	}
	_, err := tls.Dial("tcp", l.edges[0].addr.Addr, &tls.Config{
		RootCAs: l.outer.pool(), ServerName: "edge.test", NextProtos: []string{tunnel.ALPNConnector}, MaxVersion: tls.VersionTLS12,
	})
	if err == nil {
		t.Error("TLS 1.2: the handshake succeeds")
	}
}

func TestFramesThatBreakTheRulesEndTheConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	plane := l.outer.leaf(t, "plane.test")
	header := func(kind tunnel.FrameType, size int) []byte {
		b := make([]byte, tunnel.FrameHeader)
		tunnel.PutHeader(b, kind, size)
		return b
	}
	oversize := append(header(tunnel.FrameData, tunnel.PayloadMax+1), make([]byte, tunnel.PayloadMax+1)...)
	for name, c := range map[string]struct {
		alpn  string
		bytes []byte
	}{
		"a connector that begins with data":         {tunnel.ALPNConnector, append(header(tunnel.FrameData, 5), "hello"...)},
		"a connector that begins with HTTP":         {tunnel.ALPNConnector, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		"a connector without a token":               {tunnel.ALPNConnector, message(t, tunnel.FrameAttach, tunnel.Attach{ConnectorID: "x"})},
		"a connector whose message is no JSON":      {tunnel.ALPNConnector, tunnel.AppendFrame(nil, tunnel.FrameAttach, []byte("{{{"))},
		"a ticket that nobody gave out":             {tunnel.ALPNConnector, tunnel.AppendFrame(nil, tunnel.FramePark, make([]byte, tunnel.TicketLen))},
		"a ticket that is too short":                {tunnel.ALPNConnector, tunnel.AppendFrame(nil, tunnel.FramePark, []byte("x"))},
		"a dialer that begins with data":            {tunnel.ALPNDial, append(header(tunnel.FrameData, 5), "hello"...)},
		"a dialer with an oversized frame":          {tunnel.ALPNDial, oversize},
		"a dialer with an oversized message":        {tunnel.ALPNDial, append(header(tunnel.FrameOpen, tunnel.MessageMax), make([]byte, tunnel.MessageMax)...)},
		"a dialer whose message is no JSON":         {tunnel.ALPNDial, tunnel.AppendFrame(nil, tunnel.FrameOpen, []byte("}"))},
		"a dialer with a key that is too long":      {tunnel.ALPNDial, message(t, tunnel.FrameOpen, tunnel.Open{TunnelID: tunnelID, Key: strings.Repeat("k", 65)})},
		"a dialer that asks for nothing":            {tunnel.ALPNDial, message(t, tunnel.FrameOpen, tunnel.Open{})},
		"a dialer of a tunnel that is not attached": {tunnel.ALPNDial, message(t, tunnel.FrameOpen, tunnel.Open{TunnelID: "tnl_none"})},
	} {
		conn := l.mustRaw(c.alpn, plane)
		conn.Write(c.bytes)
		said := wantEnd(t, conn)
		if kind, payload, err := tunnel.ReadFrame(bytes.NewReader(said), tunnel.MessageMax); len(said) > 0 && (err != nil || kind != tunnel.FrameRefused) {
			t.Errorf("%s: the edge says %#x %q", name, kind, payload)
		}
	}
	eventually(t, "nothing is held", func() bool { return l.edges[0].Stats() == edge.Stats{} })
}

func TestAnOversizedFrameInAStreamEndsIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	_, attached := l.attach("one")
	data := l.mustRaw(tunnel.ALPNConnector)
	data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket))
	dialer := l.mustRaw(tunnel.ALPNDial, l.outer.leaf(t, "plane.test"))
	dialer.Write(message(t, tunnel.FrameOpen, tunnel.Open{TunnelID: tunnelID}))
	if kind, _, err := tunnel.ReadFrame(data, 0); err != nil || kind != tunnel.FrameOpen {
		t.Fatalf("frame %#x, %v", kind, err)
	}
	header := make([]byte, tunnel.FrameHeader)
	tunnel.PutHeader(header, tunnel.FrameData, tunnel.PayloadMax+1)
	data.Write(header)
	wantEnd(t, data)
	said := bytes.NewReader(wantEnd(t, dialer))
	if kind, _, err := tunnel.ReadFrame(said, tunnel.MessageMax); err != nil || kind != tunnel.FrameOpened {
		t.Fatalf("first the dialer got %#x, %v", kind, err)
	}
	kind, payload, err := tunnel.ReadFrame(said, tunnel.MessageMax)
	if err != nil || kind != tunnel.FrameRefused {
		t.Fatalf("then %#x, %v", kind, err)
	}
	wantStage(t, tunnel.ParseRefusal(payload), tunnel.StageProtocol)
}

func TestATicketEndsWithItsAttachment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	control, attached := l.attach("one")
	control.Close()
	eventually(t, "it is detached", func() bool { return l.edges[0].Stats().Attachments == 0 })
	data := l.mustRaw(tunnel.ALPNConnector)
	data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket))
	kind, payload, err := tunnel.ReadFrame(data, tunnel.MessageMax)
	if err != nil || kind != tunnel.FrameRefused {
		t.Fatalf("frame %#x, %v", kind, err)
	}
	wantStage(t, tunnel.ParseRefusal(payload), tunnel.StageTokenRefused)
	wantEnd(t, data)
}

func TestAConnectorWithADeadTokenIsToldSoAndTriesSeldom(t *testing.T) {
	t.Parallel()
	for _, p := range []api.TunnelProtocol{api.ProtocolTCP, api.ProtocolQUIC} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.edge(edge.Limits{RefusalDelay: time.Millisecond}, withQUIC(t))
			dead := tunnel.NewToken("test", tunnelID)
			c, err := connect.New(connect.Config{
				Edges: []tunnel.EdgeAddr{l.edges[0].addr}, Protocol: p,
				Token: func() (tunnel.Token, error) { return dead, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(l.ctx)
			done := make(chan error, 1)
			go func() { done <- c.Run(ctx) }()
			eventually(t, "it knows", func() bool { return c.Status().LastError != nil })
			e := wantStage(t, c.Status().LastError, tunnel.StageTokenRefused)
			if strings.Contains(e.Error(), dead.Text()) || e.Detail != "the token is not good" {
				t.Errorf("the error is %q", e)
			}
			l.plane.set(func(p *fakePlane) {
				if p.asked != 1 {
					t.Errorf("the plane was asked %d times at once", p.asked)
				}
			})
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheTokenIsInNoLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var text lockedBuffer
	log := newTextLog(&text)
	l.edge(edge.Limits{RefusalDelay: time.Millisecond}, func(c *edge.Config) { c.Log = log })
	c := l.connector("one", func(c *connect.Config) { c.Log = log })
	l.dial(func(c *dial.Config) { c.Log = log })
	l.mustCall()
	l.plane.set(func(p *fakePlane) { clear(p.good) })
	l.edges[0].Cut(tunnelID, "archived")
	eventually(t, "the token is refused", func() bool {
		e := tunnel.AsError(c.Status().LastError)
		return e != nil && e.Stage == tunnel.StageTokenRefused
	})
	if s := text.String(); strings.Contains(s, token.Text()) || !strings.Contains(s, "attached") {
		t.Errorf("the log says:\n%s", s)
	}
}

func TestHalfOpenConnectionsAreFewAndShort(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{HalfOpenPerAddress: 8, Handshake: 500 * time.Millisecond})
	var held, refused atomic.Int64
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			conn, err := net.Dial("tcp", l.edges[0].addr.Addr)
			if err != nil {
				refused.Add(1)
				return
			}
			defer conn.Close()
			began := time.Now()
			conn.Read(make([]byte, 1)) // says nothing itself
			if time.Since(began) < 250*time.Millisecond {
				refused.Add(1)
			} else {
				held.Add(1)
			}
		})
	}
	all.Wait()
	if held.Load() > 8 || refused.Load() < 32 {
		t.Errorf("%d connections were held and %d refused", held.Load(), refused.Load())
	}
	// Those who speak get in once the flood's time is over.
	l.connector("one")
	l.dial()
	l.mustCall()
}

func TestAReceiverThatTakesNothingIsCut(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	stopped := make(chan error, 1)
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		block := make([]byte, 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				stopped <- err
				return
			}
		}
	})
	var passed atomic.Int64
	l.edge(edge.Limits{Stall: 300 * time.Millisecond}, func(c *edge.Config) {
		c.Tap = func(_ api.TunnelID, _ bool, data []byte) { passed.Add(int64(len(data))) }
	})
	l.connector("one")
	l.dial()
	req, _ := http.NewRequestWithContext(l.ctx, http.MethodGet, "https://"+host+"/", nil)
	res, err := l.dialer.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-stopped // though nobody reads the answer, and nobody gave it up
	if n := passed.Load(); n > 32<<20 {
		t.Errorf("the edge took %d bytes in that nobody took from it", n)
	}
	eventually(t, "the stream is over", func() bool { return l.edges[0].Stats().Streams == 0 })
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the answer seems complete")
	}
}

func TestAGatewayThatTakesNothingIsCut(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		l.edge(edge.Limits{Stall: 300 * time.Millisecond})
		l.connector("one")
		l.dial()
		_, _, err := l.call(l.ctx, strings.Repeat("x", 64<<20))
		if e := wantStage(t, err, tunnel.StageConnectorLost); !strings.Contains(e.Error(), "took nothing for too long") {
			t.Errorf("the caller is told: %v", e)
		}
		eventually(t, "the stream is over", func() bool { return l.edges[0].Stats().Streams == 0 })
	})
}

func TestLimitsOfStreamsAndAttachments(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		block := make(chan struct{})
		begun := make(chan struct{}, 2)
		l.handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			begun <- struct{}{}
			<-block
		})
		l.edge(edge.Limits{StreamsPerTunnel: 2, AttachmentsPerTunnel: 1})
		l.connector("one")
		l.dial()
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() { l.call(l.ctx, "") })
			<-begun
		}
		_, _, err := l.call(l.ctx, "")
		if e := wantStage(t, err, tunnel.StageOverloaded); e.HTTPStatus() != http.StatusServiceUnavailable || e.RetryAfter == 0 {
			t.Errorf("got %+v", e)
		}
		close(block)
		all.Wait()

		conn := l.mustRaw(tunnel.ALPNConnector)
		conn.Write(message(t, tunnel.FrameAttach, tunnel.Attach{Token: tunnel.Secret(token.Text()), ConnectorID: "two"}))
		kind, payload, err := tunnel.ReadFrame(conn, tunnel.MessageMax)
		if err != nil || kind != tunnel.FrameRefused {
			t.Fatalf("frame %#x, %v", kind, err)
		}
		wantStage(t, tunnel.ParseRefusal(payload), tunnel.StageOverloaded)
		eventually(t, "the plane forgets who was not let in", func() (yes bool) {
			l.plane.set(func(p *fakePlane) { yes = len(p.attached) == 1 })
			return yes
		})
	})
}

// TestACutThatComesBeforeItsAttachment is the race of an archived tunnel with a
// connector that is just being let in.
func TestACutThatComesBeforeItsAttachment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{RefusalDelay: time.Millisecond})
	l.plane.set(func(p *fakePlane) {
		p.granted = func(id api.AttachmentID) {
			l.plane.cuts <- []api.EdgeCut{{AttachmentID: id, TunnelID: tunnelID, Reason: "archived"}}
			eventually(t, "the edge has seen the cut", func() bool { return len(l.plane.cuts) == 0 })
			time.Sleep(20 * time.Millisecond) // it is being worked on
		}
	})
	conn := l.mustRaw(tunnel.ALPNConnector)
	conn.Write(message(t, tunnel.FrameAttach, tunnel.Attach{Token: tunnel.Secret(token.Text()), ConnectorID: "one"}))
	kind, _, err := tunnel.ReadFrame(conn, tunnel.MessageMax)
	if err != nil || kind != tunnel.FrameRefused {
		t.Fatalf("frame %#x, %v", kind, err)
	}
}

// What only an edge says of a stream is not believed of the connector that has it: whoever
// has but a token could name himself as he likes, and make his failures another's.
func TestAConnectorDoesNotSpeakForItsEdge(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string][]byte{
		"refused": message(t, tunnel.FrameRefused, tunnel.Refusal{Stage: tunnel.StageNotActive, Detail: "the tunnel was archived"}),
		"opened":  message(t, tunnel.FrameOpened, tunnel.Opened{Connector: "one", Connectors: []string{"one", "two"}}),
	} {
		for where, here := range map[string]bool{"dialled": false, "here": true} {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				l.here = here
				l.edge(edge.Limits{})
				_, attached := l.attach("rogue")
				data := l.mustRaw(tunnel.ALPNConnector)
				data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket))
				l.dial()
				failed := make(chan error)
				go func() {
					_, _, err := l.call(l.ctx, "x")
					failed <- err
				}()
				if kind, _, err := tunnel.ReadFrame(data, 0); err != nil || kind != tunnel.FrameOpen {
					t.Fatalf("frame %#x, %v", kind, err)
				}
				data.Write(frame)
				wantStage(t, <-failed, tunnel.StageProtocol)
			})
		}
	}
}
