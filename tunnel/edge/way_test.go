package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/dial"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

func TestACallGoesThroughAndIsCounted(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		for range 3 {
			if by := l.mustCall(); by != "one" {
				t.Fatalf("answered by %q", by)
			}
		}
		eventually(t, "the plane knows what has passed", func() bool {
			to, from, opened := l.plane.traffic()
			return to > 300 && from > 300 && opened == 1
		})
	})
}

func TestWhatAReportSaysIsCountedOnceThoughThePlaneFails(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		var passed atomic.Int64
		l.edge(edge.Limits{}, func(c *edge.Config) {
			c.Tap = func(_ api.TunnelID, toGateway bool, data []byte) {
				if toGateway {
					passed.Add(int64(len(data)))
				}
			}
		})
		l.plane.set(func(p *fakePlane) { p.fail = errors.New("the plane is away") })
		l.connector("one")
		l.dial()
		l.mustCall()
		eventually(t, "a report was refused", func() (yes bool) {
			l.plane.set(func(p *fakePlane) { yes = p.failed > 0 })
			return yes
		})
		l.mustCall()
		l.plane.set(func(p *fakePlane) { p.fail = nil })
		l.mustCall()
		l.dialer.Close()
		eventually(t, "every byte is reported once", func() bool {
			to, _, _ := l.plane.traffic()
			return to == passed.Load()
		})
		l.plane.set(func(p *fakePlane) {
			for i, r := range p.reports {
				if r.Sequence != int64(i+1) {
					t.Errorf("report %d has sequence %d", i+1, r.Sequence)
				}
			}
		})
	})
}

func TestLargeBodiesPassBothWays(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, r.Body)
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		sent := make([]byte, 8<<20+12345)
		rand.Read(sent)
		// A reader whose length nobody knows: the body goes while the answer comes.
		req, err := http.NewRequestWithContext(l.ctx, http.MethodPost, "https://"+host+"/", struct{ io.Reader }{bytes.NewReader(sent)})
		if err != nil {
			t.Fatal(err)
		}
		res, err := l.dialer.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d of %d bytes came back, the same: %t; %v", len(got), len(sent), bytes.Equal(got, sent), err)
		}
	})
}

func TestHTTP2CarriesManyRequestsOnOneStream(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	l.h2 = true
	l.connector("one")
	l.dial(func(c *dial.Config) { c.HTTP2 = true })
	l.mustCall()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { l.mustCall() })
	}
	all.Wait()
	if n := l.edges[0].Stats().Streams; n != 1 {
		t.Errorf("%d streams are open", n)
	}
}

func TestEventsArriveAsTheyAreSent(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		next := make(chan struct{})
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				http.NewResponseController(w).Flush()
				<-next
			}
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		req, _ := http.NewRequestWithContext(l.ctx, http.MethodGet, "https://"+host+"/", nil)
		res, err := l.dialer.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		lines := bufio.NewScanner(res.Body)
		for i := range 3 { // the next is sent only once this one was read
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) {
				t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
			}
			lines.Scan()
			next <- struct{}{}
		}
	})
}

func TestACallThatIsCalledOffEndsAtTheServer(t *testing.T) {
	t.Parallel()
	for _, body := range []bool{false, true} {
		t.Run(map[bool]string{false: "before the answer", true: "in the answer's body"}[body], func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			begun, ended := make(chan struct{}), make(chan time.Time, 1)
			l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if body {
					http.NewResponseController(w).Flush()
				}
				close(begun)
				<-r.Context().Done()
				ended <- time.Now()
			})
			l.edge(edge.Limits{})
			l.connector("one")
			l.dial()
			ctx, cancel := context.WithCancel(l.ctx)
			done := make(chan error, 1)
			go func() {
				_, _, err := l.call(ctx, "")
				done <- err
			}()
			<-begun
			at := time.Now()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("the caller got %v", err)
			}
			t.Logf("the server knew after %v", (<-ended).Sub(at))
		})
	}
}

func TestNoRequestIsSentTwice(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		var requests atomic.Int64
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.ReadAll(r.Body)
			requests.Add(1)
			panic(http.ErrAbortHandler) // the connection breaks with the request read
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		_, _, err := l.call(l.ctx, "once")
		wantStage(t, err, tunnel.StageConnectorLost)
		if n := requests.Load(); n != 1 {
			t.Errorf("the server saw the request %d times", n)
		}
	})
}

func TestAnIdleConnectionThatWasClosedFailsNoCall(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.edge(edge.Limits{})
		c := l.connector("one")
		l.dial()
		for range 20 {
			l.mustCall()
			c.server.SetKeepAlivesEnabled(false) // closes those that are idle
			eventually(t, "the dialer could know", func() bool {
				if l.here { // where nobody looks until the connection is needed
					return c.Status().Links[0].Streams == 0
				}
				return l.edges[0].Stats().Streams == 0
			})
			c.server.SetKeepAlivesEnabled(true)
		}
	})
}

func TestAGatewaysOwnAnswerIsItsError(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e := &tunnel.Error{Stage: tunnel.StageAddressRefused, Detail: `"10.0.0.1" is not allowed`, RetryAfter: 3 * time.Second}
			e.SetHeader(w.Header())
			w.WriteHeader(e.HTTPStatus())
			io.WriteString(w, "an explanation")
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		for range 2 {
			_, _, err := l.call(l.ctx, "")
			e := wantStage(t, err, tunnel.StageAddressRefused)
			if e.Detail != `"10.0.0.1" is not allowed` || e.RetryAfter != 3*time.Second || e.Host != host || e.Tunnel != string(tunnelID) {
				t.Errorf("got %+v", e)
			}
		}
	})
}

func TestStagesOfWhatIsMissing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{})
	l.dial()
	_, _, err := l.call(l.ctx, "")
	if e := wantStage(t, err, tunnel.StageNoConnector); e.RetryAfter == 0 || e.HTTPStatus() != http.StatusServiceUnavailable {
		t.Errorf("got %+v", e)
	}

	l.connector("one")
	l.mustCall()
	l.inner.cert = newAuthority(t).cert // the tunnel's CA is archived, there is another
	_, _, err = l.call(l.ctx, "")
	wantStage(t, err, tunnel.StageInnerTLS)

	e.stop()
	<-e.done
	_, _, err = l.call(l.ctx, "")
	wantStage(t, err, tunnel.StageEdgeUnreachable)
}

func TestSessionsWithAGatewayAreNotResumedOnceItsCAIsArchived(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	l.connector("one")
	var handshakes atomic.Int64
	live := atomic.Pointer[[]*x509.Certificate]{}
	live.Store(&[]*x509.Certificate{l.inner.cert})
	d := l.dial(func(c *dial.Config) {
		c.Route = func(context.Context, string) (dial.Route, error) {
			r := l.route()
			r.CAs = *live.Load()
			return r, nil
		}
		c.OnLeaf = func(api.TunnelID, string, *x509.Certificate, *x509.Certificate) { handshakes.Add(1) }
	})
	l.mustCall()
	d.Drop(tunnelID, tunnel.Fingerprint(l.inner.cert))
	l.mustCall()
	if n := handshakes.Load(); n != 1 {
		t.Errorf("%d full handshakes: the second connection resumes no session", n)
	}
	live.Store(&[]*x509.Certificate{newAuthority(t).cert})
	_, _, err := l.call(l.ctx, "") // neither by the pooled connection nor by the session
	wantStage(t, err, tunnel.StageInnerTLS)
	live.Store(&[]*x509.Certificate{l.inner.cert})
	l.mustCall()
}

func TestDropCutsCallsUnderWay(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		begun := make(chan struct{})
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
		})
		l.edge(edge.Limits{})
		l.connector("one")
		d := l.dial()
		done := make(chan error, 1)
		go func() {
			_, _, err := l.call(l.ctx, "")
			done <- err
		}()
		<-begun
		d.Drop(tunnelID, "another CA's")
		d.Drop("tnl_other", "")
		select {
		case err := <-done:
			t.Fatalf("cut by what is none of its business: %v", err)
		default:
		}
		d.Drop(tunnelID, tunnel.Fingerprint(l.inner.cert))
		wantStage(t, <-done, tunnel.StageConnectorLost)
	})
}

func TestCutEndsEverythingOfATunnelAndRotationNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		begun := make(chan struct{}, 1)
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begun <- struct{}{}
			<-r.Context().Done()
		})
		l.edge(edge.Limits{})
		c := l.connector("one")
		l.dial()
		done := make(chan error, 1)
		go func() {
			_, _, err := l.call(l.ctx, "")
			done <- err
		}()
		<-begun
		// The old token is good no more; who is attached stays.
		l.plane.set(func(p *fakePlane) { clear(p.good) })
		if n := len(c.Status().Links); n != 1 {
			t.Fatalf("%d links after a rotation", n)
		}
		var cuts []api.EdgeCut
		l.plane.set(func(p *fakePlane) {
			for id := range p.attached {
				cuts = append(cuts, api.EdgeCut{AttachmentID: id, TunnelID: tunnelID, Reason: "the tunnel was archived"})
			}
		})
		at := time.Now()
		l.plane.cuts <- cuts
		e := wantStage(t, <-done, tunnel.StageNotActive)
		if e.Detail != "the tunnel was archived" {
			t.Errorf("the caller is told %q", e.Detail)
		}
		t.Logf("cut after %v", time.Since(at))
		c.await(t, 0)
		eventually(t, "the plane knows", func() (yes bool) {
			l.plane.set(func(p *fakePlane) { yes = len(p.attached) == 0 })
			return yes
		})
		eventually(t, "the token's refusal shows", func() bool {
			e := tunnel.AsError(c.Status().LastError)
			return e != nil && e.Stage == tunnel.StageTokenRefused
		})
	})
}

func TestADrainFailsNoCallAndEndsNoneUnderWay(t *testing.T) { eachWay(t, testDrain) }

func testDrain(t *testing.T, l *lab) {
	first, second := l.edge(edge.Limits{}), l.edge(edge.Limits{})
	release := make(chan struct{})
	begun := make(chan struct{}, 1)
	quick := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Slow") != "" {
			begun <- struct{}{}
			<-release
		}
		quick.ServeHTTP(w, r)
	})
	c := l.connector("one")
	c.await(t, 2)
	l.dial()
	slow := make(chan error, 1)
	go func() {
		_, _, err := l.call(l.ctx, "world", "Slow", "1")
		slow <- err
	}()
	<-begun
	var calls atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if _, _, err := l.call(l.ctx, "world"); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				calls.Add(1)
			}
		}
	}()
	more := func() {
		before := calls.Load()
		eventually(t, "calls go on", func() bool { return calls.Load() > before+20 || t.Failed() })
	}
	more()
	first.stop()
	eventually(t, "it drains", func() bool { return first.Stats().Draining })
	more()
	eventually(t, "only the slow call is left", func() bool { return first.Stats().Streams+second.Stats().Streams <= 2 || t.Failed() })
	close(release)
	if err := <-slow; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
	<-first.done
	more()
	close(stop)
	<-stopped
}

func TestAnEdgeThatDiesIsReplaced(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		first, _ := l.edge(edge.Limits{}), l.edge(edge.Limits{})
		c := l.connector("one")
		c.await(t, 2)
		l.dial()
		l.mustCall()
		first.Close()
		l.mustCall() // nothing of it has left by the broken connection
		c.await(t, 1)
	})
}

// One that says nothing, or behind which nothing answers, does not use up the time in
// which another can be asked.
func TestAnEdgeThatIsSilentLeavesTimeForAnother(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cert := l.outer.leaf(t, "edge.test")
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{tunnel.ALPNDial}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // takes all, and says nothing
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	l.edge(edge.Limits{})
	l.connector("one")
	silent := tunnel.EdgeAddr{ID: "edge_silent", Addr: listener.Addr().String(), ServerName: "edge.test", CAs: l.outer.pool()}
	l.dial(func(c *dial.Config) {
		r := l.route()
		r.Edges = append([]tunnel.EdgeAddr{silent}, r.Edges...)
		c.Route = func(context.Context, string) (dial.Route, error) { return r, nil }
	})
	if by := l.mustCall(); by != "one" {
		t.Errorf("answered by %q", by)
	}
}

func TestAConnectorThatLeavesFailsNoCall(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.edge(edge.Limits{})
		c := l.connector("one")
		l.connector("two")
		l.dial()
		stop, stopped := make(chan struct{}), make(chan struct{})
		var by sync.Map
		var calls atomic.Int64
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				text, who, err := l.call(l.ctx, "world")
				if err != nil || text != "hello world" {
					t.Errorf("call %d: %q, %v", i, text, err)
					return
				}
				by.Store(who, i)
				calls.Add(1)
				if i%5 == 0 {
					l.dialer.Drop(tunnelID, "") // so that both are used
				}
			}
		}()
		used := func(who string) bool { _, ok := by.Load(who); return ok || t.Failed() }
		eventually(t, "both answer", func() bool { return used("one") && used("two") })
		c.stop()
		<-c.done
		before := calls.Load()
		eventually(t, "what was asked before is answered", func() bool { return calls.Load() > before || t.Failed() })
		by.Clear()
		eventually(t, "the other answers", func() bool { return used("two") })
		close(stop)
		<-stopped
		if _, ok := by.Load("one"); ok {
			t.Error("who has left still answers")
		}
	})
}

func TestSessionsStayWithWhoBeganThem(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.edge(edge.Limits{})
		connectors := map[string]*labConnector{}
		for _, id := range []string{"one", "two", "three"} {
			connectors[id] = l.connector(id)
		}
		quick := l.handler
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Mcp-Session-Id") == "" {
				w.Header().Set("Mcp-Session-Id", "of "+r.Context().Value(connectorKey{}).(string))
			}
			quick.ServeHTTP(w, r)
		})
		l.dial()
		owner := map[string]bool{}
		for i := 0; len(owner) < 3 && i < 200; i++ {
			owner[l.mustCall()] = true // begins a session there
			l.dialer.Drop(tunnelID, "")
		}
		if len(owner) != 3 {
			t.Fatalf("of three connectors only %v are used", owner)
		}
		for id := range owner {
			for range 3 {
				if by := l.mustCall("Mcp-Session-Id", "of "+id); by != id {
					t.Errorf("a session of %q was answered by %q", id, by)
				}
				l.dialer.Drop(tunnelID, "")
			}
		}
		// Sessions that this dialer has not seen begin go to one place too.
		seen := map[string]bool{}
		for i := range 20 {
			session := fmt.Sprint("unknown ", i)
			first := l.mustCall("Mcp-Session-Id", session)
			seen[first] = true
			l.dial() // another replica of the plane
			if again := l.mustCall("Mcp-Session-Id", session); again != first {
				t.Errorf("session %d went to %q and then to %q", i, first, again)
			}
		}
		if len(seen) < 2 {
			t.Errorf("20 sessions all went to %v", seen)
		}
		// When one is gone, another takes its sessions.
		connectors["one"].stop()
		<-connectors["one"].done
		if by := l.mustCall("Mcp-Session-Id", "of one"); by == "one" {
			t.Error("answered by who is gone")
		}
	})
}

func TestPortsAndSchemesThatNoTunnelHas(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.dial()
	for _, url := range []string{"http://" + host + "/", "https://" + host + ":8443/"} {
		req, _ := http.NewRequest(http.MethodGet, url, nil)
		if _, err := l.dialer.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "https") && !strings.Contains(err.Error(), "port") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
