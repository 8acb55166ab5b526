package edge_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// A fakeProxy is an HTTP proxy that connects whoever knows its password.
type fakeProxy struct {
	addr  string
	asked atomic.Int64
}

const proxyAuth = "user:pass word"

func newFakeProxy(t *testing.T) *fakeProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProxy{addr: l.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(conn) })
		}
	})
	return p
}

func (p *fakeProxy) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	p.asked.Add(1)
	if req.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(proxyAuth)) {
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return
	}
	far, err := net.Dial("tcp", req.Host)
	if err != nil {
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer far.Close()
	io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		io.Copy(far, r)
		far.Close()
	}()
	io.Copy(conn, far)
}

func TestAConnectorGoesThroughTheProxyOfItsEnvironment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{}, withQUIC(t)) // which no proxy of HTTP leads to
	proxy := newFakeProxy(t)
	c := l.connector("one", func(c *connect.Config) {
		c.Protocol = ""
		c.Proxy = func(u *url.URL) (*url.URL, error) {
			if u.Scheme != "https" || u.Host != l.edges[0].addr.Addr {
				t.Errorf("asked for the proxy to %v", u)
			}
			return &url.URL{Scheme: "http", Host: proxy.addr, User: url.UserPassword("user", "pass word")}, nil
		}
	})
	l.dial()
	l.mustCall()
	if link := c.Status().Links[0]; link.Protocol != api.ProtocolTCP || link.Proxy != proxy.addr {
		t.Errorf("the link is %+v", link)
	}
	if n := proxy.asked.Load(); n < 2 {
		t.Errorf("the proxy was asked %d times: data connections went another way", n)
	}
}

func TestAProxysRefusalIsSaid(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{})
	proxy := newFakeProxy(t)
	c, err := connect.New(connect.Config{
		Edges: []tunnel.EdgeAddr{e.addr},
		Token: func() (tunnel.Token, error) { return token, nil },
		Proxy: func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: "http", Host: proxy.addr}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	eventually(t, "it failed", func() bool { return c.Status().LastError != nil })
	want := "proxy " + proxy.addr + ": it refuses to connect to " + e.addr.Addr + ": 407 Proxy Authentication Required"
	if got := c.Status().LastError.Error(); got != want {
		t.Errorf("the error is %q, want %q", got, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A firewall is a UDP socket that nothing gets into while it is shut.
type firewall struct {
	net.PacketConn
	open atomic.Bool
}

func (f *firewall) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := f.PacketConn.ReadFrom(p)
		if err != nil || f.open.Load() {
			return n, from, err
		}
	}
}

func TestAConnectorComesBackToQUICOnceUDPPasses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	wall := new(firewall)
	l.edge(edge.Limits{}, withQUIC(t), func(c *edge.Config) {
		wall.PacketConn = c.Packets
		c.Packets = wall
	})
	hold := make(chan struct{})
	begun := make(chan struct{}, 1)
	quick := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Slow") != "" {
			begun <- struct{}{}
			<-hold
		}
		quick.ServeHTTP(w, r)
	})
	c := l.connector("one", func(c *connect.Config) { c.Protocol, c.UDPAgain = "", 50*time.Millisecond })
	l.dial()
	if p := c.Status().Links[0].Protocol; p != api.ProtocolTCP {
		t.Fatalf("attached by %s through a firewall", p)
	}
	slow := make(chan error, 1)
	go func() {
		_, _, err := l.call(l.ctx, "world", "Slow", "1")
		slow <- err
	}()
	<-begun
	wall.open.Store(true)
	eventually(t, "it is attached by QUIC, and only by that", func() bool {
		links := c.Status().Links
		return len(links) == 1 && links[0].Protocol == api.ProtocolQUIC
	})
	for range 3 {
		l.mustCall()
	}
	close(hold)
	if err := <-slow; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
}

func TestAConnectorLearnsOfOtherEdges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	first, second := l.edge(edge.Limits{}), l.edge(edge.Limits{})
	pem := l.outer.pem()
	address := func(e *labEdge) api.EdgeAddress {
		return api.EdgeAddress{EdgeID: e.addr.ID, Addresses: []string{e.addr.Addr}, ServerName: "edge.test", CAs: pem}
	}
	l.plane.set(func(p *fakePlane) { p.edges = []api.EdgeAddress{address(first), address(second)} })
	var told atomic.Pointer[[]api.EdgeAddress]
	var named sync.Map
	c := l.connector("one", func(c *connect.Config) {
		bootstrap := first.addr
		bootstrap.ID = ""
		c.Edges = []tunnel.EdgeAddr{bootstrap}
		c.Learned = func(edges []api.EdgeAddress) {
			told.Store(&edges)
			for _, e := range edges {
				named.Store(e.EdgeID, true)
			}
		}
	})
	c.await(t, 2)
	if diff := cmp.Diff([]api.EdgeAddress{address(first), address(second)}, *told.Load()); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	// The first goes away, and a third comes.
	third := l.edge(edge.Limits{})
	second.TellEdges([]api.EdgeAddress{address(second), address(third)})
	first.Close()
	eventually(t, "it goes there", func() bool {
		return attachedTo(c, second) && attachedTo(c, third) && !attachedTo(c, first)
	})
	if _, ok := named.Load(third.addr.ID); !ok {
		t.Error("of the third edge nobody was told")
	}
	l.dial()
	l.mustCall()
}

func attachedTo(c *labConnector, e *labEdge) bool {
	return slices.ContainsFunc(c.Status().Links, func(k connect.Link) bool { return k.EdgeID == e.addr.ID })
}

// What an edge says of itself may not lead to it from here: then what was configured does.
func TestAnAddressThatLeadsNowhereIsNotTheOnlyOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{})
	l.plane.set(func(p *fakePlane) {
		p.edges = []api.EdgeAddress{{EdgeID: e.addr.ID, Addresses: []string{"127.0.0.1:1"}, ServerName: "edge.test", CAs: l.outer.pem()}}
	})
	c := l.connector("one", func(c *connect.Config) { c.Edges[0].ID = "" })
	c.await(t, 1)
	first := c.Status().Links[0].AttachmentID
	e.Cut(tunnelID, "for a test")
	eventually(t, "it is attached anew", func() bool {
		s := c.Status().Links
		return len(s) == 1 && s[0].AttachmentID != first
	})
}

// Of two names of an edge the second is tried once the first leads nowhere.
func TestASecondNameIsTriedOnceTheFirstIsGone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gone, stays := l.edge(edge.Limits{}), l.edge(edge.Limits{})
	name := &forward{to: gone.addr.Addr}
	addr := name.listen(t)
	c := l.connector("one", func(c *connect.Config) {
		first, second := gone.addr, gone.addr
		first.ID, second.ID, second.Addr = "", "", addr
		c.Edges = []tunnel.EdgeAddr{first, second}
	})
	l.plane.set(func(p *fakePlane) { p.edges = nil })
	eventually(t, "it is attached once", func() bool { return len(c.Status().Links) == 1 })
	name.lead(stays.addr.Addr)
	gone.Close()
	eventually(t, "it is attached by the second name", func() bool { return attachedTo(c, stays) })
}

// Data connections that break as soon as they are there are not made again and again: the
// link is given up.
func TestDataConnectionsThatDoNotLast(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{})
	way := &forward{to: e.addr.Addr, short: true}
	addr := way.listen(t)
	c := l.connector("one", func(c *connect.Config) { c.Edges[0].ID, c.Edges[0].Addr, c.Links = "", addr, 1 })
	eventually(t, "the link is given up", func() bool { return c.Status().LastError != nil })
	if n := way.came.Load(); n > 20 {
		t.Errorf("%d connections until then", n)
	}
}

// A forward is a name that leads to an edge, and later to another.
type forward struct {
	mu    sync.Mutex
	to    string
	short bool // connections but the first last a moment only
	came  atomic.Int64
}

func (f *forward) lead(to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
}

func (f *forward) listen(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			if n := f.came.Add(1); f.short && n > 1 {
				time.AfterFunc(50*time.Millisecond, func() { near.Close() })
			}
			f.mu.Lock()
			to := f.to
			f.mu.Unlock()
			go func() {
				defer near.Close()
				far, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer far.Close()
				go func() {
					io.Copy(far, near)
					far.Close()
				}()
				io.Copy(near, far)
			}()
		}
	}()
	return l.Addr().String()
}

func TestTwoNamesOfAnEdgeAreOneEdge(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{})
	_, port, _ := net.SplitHostPort(e.addr.Addr)
	c := l.connector("one", func(c *connect.Config) {
		other := e.addr
		other.ID, other.Addr = "", "localhost:"+port
		c.Edges[0].ID = ""
		c.Edges = append(c.Edges, other)
		c.Links = 1
	})
	two := l.connector("two", func(c *connect.Config) {
		other := e.addr
		other.ID, other.Addr = "", "localhost:"+port
		c.Edges[0].ID = ""
		c.Edges = []tunnel.EdgeAddr{c.Edges[0], other}
		c.Links = 2
	})
	l.dial()
	l.mustCall()
	eventually(t, "only one of the two links stays", func() bool { return len(two.Status().Links) == 1 })
	if n := len(c.Status().Links); n != 1 {
		t.Errorf("%d links", n)
	}
	asked := func() (n int) {
		l.plane.set(func(p *fakePlane) { n = p.asked })
		return n
	}
	before := asked()
	for range 50 {
		l.mustCall()
	}
	if after := asked(); after > before+1 {
		t.Errorf("the connector attaches again and again: %d times", after-before)
	}
}

func TestARotatedTokenIsReadAnew(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.edge(edge.Limits{RefusalDelay: time.Millisecond})
	var current atomic.Pointer[tunnel.Token]
	first, second := token, tunnel.NewToken("test", tunnelID)
	current.Store(&first)
	c := l.connector("one", func(c *connect.Config) {
		c.Token = func() (tunnel.Token, error) { return *current.Load(), nil }
	})
	l.plane.set(func(p *fakePlane) {
		clear(p.good)
		p.good[second.Text()] = tunnelID
	})
	current.Store(&second)
	e.Cut("tnl_other", "none of its business")
	if n := len(c.Status().Links); n != 1 {
		t.Fatalf("%d links after another tunnel was cut", n)
	}
	e.Cut(tunnelID, "to make it attach again")
	eventually(t, "it is attached with the new token", func() bool {
		yes := false
		l.plane.set(func(p *fakePlane) {
			for _, a := range p.attached {
				yes = yes || a.Token == second.Text()
			}
		})
		return yes && len(c.Status().Links) == 1
	})
}

// TestManyStreamsAtOnce has more come than connections are parked.
func TestManyStreamsAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		all := make(chan struct{})
		var arrived atomic.Int64
		const calls = 40 // of which one is parked for
		release := sync.OnceFunc(func() { close(all) })
		quick := l.handler
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if arrived.Add(1) == calls {
				release()
			}
			<-all // each waits for all others: each has a connection
			quick.ServeHTTP(w, r)
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		var done sync.WaitGroup
		for range calls {
			done.Go(func() {
				if text, _, err := l.call(l.ctx, "world"); err != nil || text != "hello world" {
					t.Errorf("%q, %v", text, err)
					release()
				}
			})
		}
		done.Wait()
	})
}

// A gateway that is stopped is told from one whose connection broke, over either protocol.
func TestAGatewayThatIsStoppedHasLeft(t *testing.T) {
	t.Parallel()
	for _, protocol := range []api.TunnelProtocol{api.ProtocolTCP, api.ProtocolQUIC} {
		l := newLab(t)
		l.edge(edge.Limits{}, withQUIC(t))
		c := l.connector("one", func(c *connect.Config) { c.Protocol = protocol })
		c.stop()
		<-c.done
		eventually(t, "the plane knows", func() (known bool) {
			l.plane.set(func(p *fakePlane) { known = len(p.reasons) > 0 })
			return known
		})
		l.plane.set(func(p *fakePlane) {
			if !strings.HasPrefix(p.reasons[0], "the gateway has left: it was stopped") {
				t.Errorf("%s: %s", protocol, p.reasons[0])
			}
		})
	}
}
