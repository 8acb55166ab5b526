package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/store/storetest"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
)

// An office is a customer's side of a tunnel: a CA, and an HTTP server behind an inner
// TLS that connectors bring calls to.
type office struct {
	t      *testing.T
	cl     *client.Client
	tunnel *api.Tunnel
	token  tunnel.Token
	ca     *x509.Certificate
	cert   *api.TunnelCertificate
	leaf   tls.Certificate
	hold   chan struct{} // what /hold waits for
}

func newOffice(t *testing.T, cl *client.Client) *office {
	t.Helper()
	o := &office{t: t, cl: cl, hold: make(chan struct{})}
	var err error
	if o.tunnel, err = cl.CreateTunnel(t.Context(), api.TunnelCreate{}); err != nil {
		t.Fatal(err)
	}
	o.rotateCA()
	revealed, err := cl.RevealToken(t.Context(), o.tunnel.ID)
	if err != nil {
		t.Fatal(err)
	}
	if o.token, err = tunnel.ParseToken(revealed.Token); err != nil {
		t.Fatal(err)
	}
	return o
}

// rotateCA makes a CA and a leaf and registers the CA.
func (o *office) rotateCA() {
	o.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "office " + rand.Text()[:8]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte(rand.Text()),
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		o.t.Fatal(err)
	}
	if o.ca, err = x509.ParseCertificate(der); err != nil {
		o.t.Fatal(err)
	}
	leafKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"*." + o.tunnel.Domain}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, o.ca, leafKey.Public(), key)
	if err != nil {
		o.t.Fatal(err)
	}
	o.leaf = tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: leafKey}
	o.cert, err = o.cl.AddCertificate(o.t.Context(), o.tunnel.ID, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if err != nil {
		o.t.Fatal(err)
	}
}

// connect starts a connector that asks the plane where the edges are, with its token.
// It returns once it is attached to as many as links.
func (o *office) connect(plane string, links int) *connect.Connector {
	o.t.Helper()
	asking, err := client.New(client.Config{BaseURL: plane, Key: o.token.Text()})
	if err != nil {
		o.t.Fatal(err)
	}
	var edges []tunnel.EdgeAddr
	o.await("the plane has edges", func() bool {
		known, err := asking.TunnelEdges(o.t.Context(), o.tunnel.ID)
		if err != nil {
			o.t.Fatal(err)
		}
		edges = nil
		for _, k := range known.Data {
			addrs, err := tunnel.EdgeAddrs(k)
			if err != nil {
				o.t.Fatal(err)
			}
			edges = append(edges, addrs...)
		}
		return len(edges) >= links
	})
	c, err := connect.New(connect.Config{
		Edges: edges, Token: func() (tunnel.Token, error) { return o.token, nil }, ID: "cnct_office", Version: "test", Grace: time.Second, Log: testLog(o.t),
		Protocol: api.ProtocolTCP,
	})
	if err != nil {
		o.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(o.serve), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go server.Serve(tls.NewListener(c.Listener(), &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &o.leaf, nil }, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
	}))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	o.t.Cleanup(func() {
		server.Close()
		stop()
		<-done
	})
	o.await("the connector is attached", func() bool { return len(c.Status().Links) == links })
	return c
}

func (o *office) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.URL.Path == "/hold" {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-o.hold:
		case <-r.Context().Done():
			return
		}
	}
	io.WriteString(w, "hello "+string(body))
}

// call makes a call through the dialer of a server.
func (o *office) call(d *Daemon, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(o.t.Context(), http.MethodPost, "https://docs."+o.tunnel.Domain+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	res, err := d.tunnels.dialer.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

func (o *office) mustCall(d *Daemon) {
	o.t.Helper()
	if text, err := o.call(d, "/mcp", "world"); err != nil || text != "hello world" {
		o.t.Fatalf("call: %q, %v", text, err)
	}
}

func (o *office) status() *api.TunnelStatus {
	o.t.Helper()
	s, err := o.cl.TunnelStatus(o.t.Context(), o.tunnel.ID)
	if err != nil {
		o.t.Fatal(err)
	}
	return s
}

// await waits for what other goroutines bring about.
func (o *office) await(what string, ok func() bool) {
	o.t.Helper()
	await(o.t, what, ok)
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

func testLog(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return nil
}

func adminOf(t *testing.T, d *Daemon, key string) *client.Client { return adminOfURL(t, d.URL(), key) }

func adminOfURL(t *testing.T, url, key string) *client.Client {
	t.Helper()
	cl, err := client.New(client.Config{BaseURL: url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func wantStage(t *testing.T, err error, stage tunnel.Stage) *tunnel.Error {
	t.Helper()
	e := tunnel.AsError(err)
	if e == nil || e.Stage != stage {
		t.Fatalf("got error %v, want one of stage %s", err, stage)
	}
	return e
}

func TestACallGoesThroughTheServersOwnEdge(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.TunnelDialAddresses = "127.0.0.1:1" // where nobody listens: the server needs no way to its own edge
	d, _ := start(t, cfg)
	o := newOffice(t, adminOf(t, d, d.FirstKey()))

	_, err := o.call(d, "/mcp", "x")
	wantStage(t, err, tunnel.StageNoConnector)
	if s := o.status(); s.State != api.TunnelDisconnected || len(s.Data) != 0 {
		t.Errorf("without a connector: %+v", s)
	}
	o.connect(d.URL(), 1)
	o.mustCall(d)

	var s *api.TunnelStatus
	o.await("the traffic is reported", func() bool {
		s = o.status()
		return len(s.Data) == 1 && s.Data[0].ToGateway > 0 && s.Certificate != nil && len(s.Faults) > 0
	})
	c := s.Data[0]
	if s.State != api.TunnelReady || c.ConnectorID != "cnct_office" || c.Version != "test" || c.Protocol != api.ProtocolTCP || c.Edge == "" ||
		!strings.HasPrefix(c.RemoteAddress, "127.0.0.1:") || c.TokenID != o.token.ID() || c.AttachedAt.IsZero() {
		t.Errorf("status: %+v", s)
	}
	if !s.Certificate.ExpiresAt.Equal(o.leafExpiry()) || s.Certificate.Fingerprint != o.cert.Fingerprint {
		t.Errorf("certificate: %+v", s.Certificate)
	}
	if f := s.Faults[0]; f.Stage != string(tunnel.StageNoConnector) || f.Remedy == "" {
		t.Errorf("fault: %+v", f)
	}
	usage, err := o.cl.TunnelUsage(t.Context(), o.tunnel.ID, time.Time{}, time.Time{})
	if err != nil || len(usage) == 0 || usage[0].ToGateway == 0 || usage[0].FromGateway == 0 || usage[0].Opened == 0 {
		t.Errorf("usage: %+v, %v", usage, err)
	}
}

func (o *office) leafExpiry() time.Time {
	leaf, err := x509.ParseCertificate(o.leaf.Certificate[0])
	if err != nil {
		o.t.Fatal(err)
	}
	return leaf.NotAfter
}

func TestArchivingATunnelCutsWhatIsConnected(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	c := o.connect(d.URL(), 1)
	o.mustCall(d)
	held := make(chan error, 1)
	go func() {
		_, err := o.call(d, "/hold", "")
		held <- err
	}()
	o.await("a call is under way", func() bool { return c.Status().Links[0].Streams > 0 })
	if _, err := o.cl.ArchiveTunnel(t.Context(), o.tunnel.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err == nil {
		t.Error("a call went on after its tunnel was archived")
	}
	o.await("the connector is cut", func() bool { return len(c.Status().Links) == 0 })
	_, err := o.call(d, "/mcp", "x")
	wantStage(t, err, tunnel.StageNotActive)
	if s := o.status(); s.State != api.TunnelArchived || len(s.Former) == 0 || s.Former[0].DetachReason != "tunnel_archived" {
		o.await("the edge has told of it", func() bool {
			s = o.status()
			return len(s.Data) == 0 && len(s.Former) > 0
		})
		if s.Former[0].DetachReason != "tunnel_archived" {
			t.Errorf("status: %+v", s)
		}
	}
}

func TestArchivingACADropsConnectionsBuiltOnIt(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	c := o.connect(d.URL(), 1)
	o.mustCall(d)
	old := o.cert
	o.rotateCA()
	o.mustCall(d) // on the pooled connection, or a new one
	if _, err := o.cl.ArchiveCertificate(t.Context(), o.tunnel.ID, old.ID); err != nil {
		t.Fatal(err)
	}
	o.await("the pooled connections are gone", func() bool { return c.Status().Links[0].Streams == 0 })
	o.mustCall(d)
	o.await("the new certificate is noted", func() bool {
		s := o.status()
		return s.Certificate != nil && s.Certificate.Fingerprint == o.cert.Fingerprint
	})
}

func TestARotatedTokenKeepsWhatIsConnected(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	o.connect(d.URL(), 1)
	o.mustCall(d)
	if _, err := o.cl.RotateToken(t.Context(), o.tunnel.ID, api.TokenRotate{}); err != nil {
		t.Fatal(err)
	}
	o.mustCall(d)
	asking := adminOf(t, d, o.token.Text())
	if _, err := asking.TunnelEdges(t.Context(), o.tunnel.ID); api.AsError(err) == nil || api.AsError(err).Status != http.StatusUnauthorized {
		t.Errorf("the old token is good for asking: %v", err)
	}
}

// Two servers on one database: a connector is attached to both edges, and each server
// finds it wherever it is.
func TestTwoServersAndTwoEdges(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.DB = storetest.Postgres(t)
	first, stopFirst := start(t, cfg)
	other := testConfig(t)
	other.DB, other.VaultKey = cfg.DB, "file:"+cfg.Data+"/vault.key"
	second, _ := start(t, other)
	o := newOffice(t, adminOf(t, first, first.FirstKey()))
	c := o.connect(second.URL(), 2)
	o.mustCall(first)
	o.mustCall(second)

	// An idle connection and a call under way survive the first one's end.
	o.cl = adminOf(t, second, first.FirstKey())
	held := make(chan error, 1)
	go func() {
		text, err := o.call(second, "/hold", "")
		if err == nil && text != "hello " {
			err = errors.New("got " + text)
		}
		held <- err
	}()
	o.await("a call is under way", func() bool {
		n := 0
		for _, l := range c.Status().Links {
			n += l.Streams
		}
		return n > 0
	})
	var calls sync.WaitGroup
	stopped := make(chan struct{})
	calls.Go(func() {
		for {
			select {
			case <-stopped:
				return
			default:
			}
			if text, err := o.call(second, "/mcp", "world"); err != nil || text != "hello world" {
				t.Errorf("a call during the rollover: %q, %v", text, err)
				return
			}
		}
	})
	close(o.hold)
	if err := <-held; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if err := stopFirst(); err != nil {
		t.Errorf("stop: %v", err)
	}
	o.await("one link is left", func() bool { return len(c.Status().Links) == 1 })
	close(stopped)
	calls.Wait()
	o.mustCall(second)

	// What one has archived, the other knows.
	if _, err := o.cl.ArchiveTunnel(t.Context(), o.tunnel.ID); err != nil {
		t.Fatal(err)
	}
	o.await("the connector is cut", func() bool { return len(c.Status().Links) == 0 })
	_, err := o.call(second, "/mcp", "x")
	wantStage(t, err, tunnel.StageNotActive)
}

// A connector that stays for long hears of edges that come later, so that every edge
// there was when it came can be replaced, one after the other.
func TestEdgesCanAllBeReplacedOneAfterTheOther(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.DB = storetest.Postgres(t)
	next := func() Config {
		c := testConfig(t)
		c.DB, c.VaultKey = cfg.DB, "file:"+cfg.Data+"/vault.key"
		return c
	}
	d, stop := start(t, cfg)
	key := d.FirstKey()
	o := newOffice(t, adminOf(t, d, key))
	c := o.connect(d.URL(), 1)
	o.mustCall(d)
	for range 3 {
		after, stopAfter := start(t, next())
		o.await("the connector is attached to the new edge too", func() bool { return len(c.Status().Links) == 2 })
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		d, stop = after, stopAfter
		o.mustCall(d)
	}
}

// An edge that was killed is not waited for, and its traffic up to the last report is
// counted.
func TestAnEdgeThatFallsSilentIsNotDialledForEver(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	key, err := o.cl.CreateKey(t.Context(), "", api.KeyCreate{Name: "edge", Type: api.KeyEdge})
	if err != nil {
		t.Fatal(err)
	}
	edge := adminOf(t, d, key.Secret)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	reg, err := edge.RegisterEdge(t.Context(), api.EdgeRegister{
		Name: "killed", ConnectorAddresses: []string{gone.Addr().String()}, DialAddresses: []string{gone.Addr().String()}, ServerName: "e.example.org",
	})
	if err != nil {
		t.Fatal(err)
	}
	grant, err := edge.AttachTunnel(t.Context(), reg.ID, api.EdgeAttach{Token: o.token.Text(), ConnectorID: "c", Protocol: api.ProtocolTCP})
	if err != nil {
		t.Fatal(err)
	}
	report := api.EdgeReport{Sequence: 1, Traffic: []api.EdgeTraffic{{AttachmentID: grant.ID, ToGateway: 5, FromGateway: 7, Opened: 1, Open: 1}}}
	for range 2 { // the answer to the first was lost
		if _, err := edge.ReportEdge(t.Context(), reg.ID, report); err != nil {
			t.Fatal(err)
		}
	}
	_, err = o.call(d, "/mcp", "x")
	wantStage(t, err, tunnel.StageEdgeUnreachable)

	o.connect(d.URL(), 1) // to the server's own, too
	o.mustCall(d)
	usage, err := o.cl.TunnelUsage(t.Context(), o.tunnel.ID, time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var to, from int64
	for _, u := range usage {
		to, from = to+u.ToGateway, from+u.FromGateway
	}
	if s := o.status(); len(s.Former)+len(s.Data) < 2 {
		t.Errorf("status: %+v", s)
	}
	if to < 5 || from < 7 {
		t.Errorf("%d and %d bytes", to, from)
	}
}

// An edge that listens on all interfaces is told of by each address that it has, as its
// host's name may mean nothing elsewhere.
func TestAddressesOfAllInterfaces(t *testing.T) {
	t.Parallel()
	all := atInterfaces("host", "8485")
	if all[0] != "host:8485" || len(all) > api.EdgeAddressesMax {
		t.Errorf("%v", all)
	}
	for _, a := range all[1:] {
		if at, err := netip.ParseAddrPort(a); err != nil || at.Port() != 8485 || at.Addr().IsLoopback() {
			t.Errorf("%s: %v", a, err)
		}
	}
}
