package edge_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/dial"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// A lab is a whole tunnel on the loopback interface: edges with a plane, connectors
// with a server behind an inner TLS, and a dialer.
type lab struct {
	t       *testing.T
	ctx     context.Context
	plane   *fakePlane
	outer   *authority // of edges and dialers
	inner   *authority // the tunnel's
	edges   []*labEdge
	handler http.Handler
	h2      bool
	dialer  *dial.Dialer

	protocol api.TunnelProtocol // of connectors
	here     bool               // the edges are in the dialer's process
}

const (
	tunnelID = api.TunnelID("tnl_test")
	domain   = "abcd1234.tunnel.test"
	host     = "docs." + domain
)

type labEdge struct {
	*edge.Edge
	addr tunnel.EdgeAddr
	stop context.CancelFunc
	done chan struct{}
}

// newLab starts an edge. Connectors and the dialer are started by tests.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, ctx: t.Context(), protocol: api.ProtocolTCP, outer: newAuthority(t), inner: newAuthority(t)}
	l.plane = &fakePlane{good: map[string]api.TunnelID{}, attached: map[api.AttachmentID]api.EdgeAttach{}, cuts: make(chan []api.EdgeCut, 8)}
	l.plane.good[token.Text()] = tunnelID
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Answered-By", r.Context().Value(connectorKey{}).(string))
		io.WriteString(w, "hello "+string(body))
	})
	return l
}

var token = tunnel.NewToken("test", tunnelID)

// edge starts an edge.
func (l *lab) edge(limits edge.Limits, change ...func(*edge.Config)) *labEdge {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	cert := l.outer.leaf(l.t, "edge.test")
	cfg := edge.Config{
		ID:          api.EdgeID("edge_" + listener.Addr().String()),
		Plane:       l.plane,
		Listener:    listener,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		DialerCAs:   l.outer.pool,
		Limits:      limits,
		Log:         testLog(l.t),
	}
	if l.protocol == api.ProtocolQUIC {
		withQUIC(l.t)(&cfg)
	}
	for _, c := range change {
		c(&cfg)
	}
	e, err := edge.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	le := &labEdge{e, tunnel.EdgeAddr{ID: cfg.ID, Addr: listener.Addr().String(), ServerName: "edge.test", CAs: l.outer.pool()}, stop, make(chan struct{})}
	go func() {
		defer close(le.done)
		if err := e.Run(ctx); err != nil {
			l.t.Errorf("edge: %v", err)
		}
	}()
	l.t.Cleanup(func() {
		stop()
		e.Close()
		<-le.done
	})
	l.edges = append(l.edges, le)
	return le
}

// eachWay runs a test with a connector that comes by TCP, with one that comes by QUIC, and
// with one that comes by TCP to an edge in the dialer's own process.
func eachWay(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Parallel()
	for _, p := range []api.TunnelProtocol{api.ProtocolTCP, api.ProtocolQUIC} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.protocol = p
			test(t, l)
		})
	}
	t.Run("here", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		l.here = true
		test(t, l)
	})
}

type connectorKey struct{}

// connector starts a connector with a server behind it, and waits until it is attached
// to an edge.
func (l *lab) connector(id string, change ...func(*connect.Config)) *labConnector {
	l.t.Helper()
	cfg := connect.Config{
		Token:    func() (tunnel.Token, error) { return token, nil },
		ID:       id,
		Protocol: l.protocol,
		Grace:    time.Second,
		Log:      testLog(l.t),
	}
	for _, e := range l.edges {
		cfg.Edges = append(cfg.Edges, e.addr)
	}
	for _, c := range change {
		c(&cfg)
	}
	c, err := connect.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	cert := l.inner.leaf(l.t, "*."+domain)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.handler.ServeHTTP(w, r) }),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connectorKey{}, id)
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	protocols := []string{"http/1.1"}
	if l.h2 {
		protocols = []string{"h2"}
	}
	ctx, stop := context.WithCancel(context.Background())
	lc := &labConnector{Connector: c, server: server, stop: stop, done: make(chan struct{})}
	go server.Serve(tls.NewListener(c.Listener(), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: protocols}))
	go func() {
		defer close(lc.done)
		if err := c.Run(ctx); err != nil {
			l.t.Errorf("connector: %v", err)
		}
	}()
	l.t.Cleanup(func() {
		server.Close()
		stop()
		<-lc.done
	})
	eventually(l.t, "the connector is attached", func() bool { return len(c.Status().Links) > 0 })
	return lc
}

type labConnector struct {
	*connect.Connector
	server *http.Server
	stop   context.CancelFunc
	done   chan struct{}
}

func (c *labConnector) await(t *testing.T, links int) {
	t.Helper()
	eventually(t, "the connector is attached", func() bool { return len(c.Status().Links) == links })
}

// dial makes the lab's dialer.
func (l *lab) dial(change ...func(*dial.Config)) *dial.Dialer {
	l.t.Helper()
	cert := l.outer.leaf(l.t, "plane.test")
	cfg := dial.Config{
		Route:       func(context.Context, string) (dial.Route, error) { return l.route(), nil },
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Log:         testLog(l.t),
	}
	if l.here {
		cfg.Certificate = func() (*tls.Certificate, error) { return nil, errors.New("a connection to an edge is to be made") }
		cfg.Here = func(id api.EdgeID) dial.Opener {
			for _, e := range l.edges {
				if e.addr.ID == id {
					return e.Edge
				}
			}
			return nil
		}
	}
	for _, c := range change {
		c(&cfg)
	}
	d, err := dial.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { d.Close() })
	l.dialer = d
	return d
}

func (l *lab) route() dial.Route {
	r := dial.Route{TunnelID: tunnelID, Domain: domain, CAs: []*x509.Certificate{l.inner.cert}}
	for _, e := range l.edges {
		r.Edges = append(r.Edges, e.addr)
	}
	return r
}

// call makes a request and returns the answer's text and who answered.
func (l *lab) call(ctx context.Context, body string, header ...string) (text, by string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+host+"/mcp", strings.NewReader(body))
	if err != nil {
		return "", "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := l.dialer.RoundTrip(req)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), res.Header.Get("Answered-By"), err
}

// mustCall fails the test unless the server says hello.
func (l *lab) mustCall(header ...string) (by string) {
	l.t.Helper()
	text, by, err := l.call(l.ctx, "world", header...)
	if err != nil || text != "hello world" {
		l.t.Fatalf("call: %q, %v", text, err)
	}
	return by
}

// wantStage fails the test unless err is an error of the tunnel at that stage.
func wantStage(t *testing.T, err error, stage tunnel.Stage) *tunnel.Error {
	t.Helper()
	e := tunnel.AsError(err)
	if e == nil || e.Stage != stage {
		t.Fatalf("got error %v, want one of stage %s", err, stage)
	}
	return e
}

// eventually waits for what other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about that %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func testLog(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// A lockedBuffer can be written by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

func (b *lockedBuffer) String() string { return string(b.Bytes()) }
func (b *lockedBuffer) Len() int       { return len(b.Bytes()) }

func newTextLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// A fakePlane is the far end of an edge.
type fakePlane struct {
	cuts chan []api.EdgeCut

	mu       sync.Mutex
	good     map[string]api.TunnelID
	attached map[api.AttachmentID]api.EdgeAttach
	detached []api.AttachmentID
	reasons  []string // of detached
	reports  []api.EdgeReport
	edges    []api.EdgeAddress
	fail     error                  // of Report
	failed   int                    // reports
	granted  func(api.AttachmentID) // called before Attach returns, if not nil
	asked    int                    // calls of Attach
}

// set looks at the plane, or changes it.
func (p *fakePlane) set(f func(*fakePlane)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *fakePlane) Attach(_ context.Context, a api.EdgeAttach) (*api.EdgeGrant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	id, ok := p.good[a.Token]
	if !ok {
		return nil, &api.Error{Status: http.StatusUnauthorized, Type: api.TypeAuthentication, Message: "the token is not good"}
	}
	if _, err := netip.ParseAddrPort(a.RemoteAddress); err != nil {
		return nil, err
	}
	attachment := api.AttachmentID("tatt_" + rand.Text())
	p.attached[attachment] = a
	if p.granted != nil {
		p.mu.Unlock()
		p.granted(attachment)
		p.mu.Lock()
	}
	return &api.EdgeGrant{ID: attachment, TunnelID: id, Domain: domain, Edges: p.edges}, nil
}

func (p *fakePlane) Detach(_ context.Context, id api.AttachmentID, d api.EdgeDetach) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reasons = append(p.reasons, d.Reason)
	p.detached = append(p.detached, id)
	delete(p.attached, id)
	return nil
}

func (p *fakePlane) Report(_ context.Context, r api.EdgeReport) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		p.failed++
		return p.fail
	}
	if err := r.Check(); err != nil {
		return err
	}
	p.reports = append(p.reports, r)
	return nil
}

func (p *fakePlane) Cuts(ctx context.Context) ([]api.EdgeCut, error) {
	select {
	case c := <-p.cuts:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// traffic is the sum of the reports.
func (p *fakePlane) traffic() (toGateway, fromGateway, opened int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.reports {
		for _, t := range r.Traffic {
			toGateway += t.ToGateway
			fromGateway += t.FromGateway
			opened += t.Opened
		}
	}
	return toGateway, fromGateway, opened
}

// An authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
	ski := sha1.Sum(public)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: ski[:],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func (a *authority) leaf(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
