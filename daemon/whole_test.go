package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/edge"
	"github.com/bailey-platform/bailey/tunnel/edge/remote"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// What a session of the tests says, which nobody on the way may read.
const (
	secretTool     = "harvest_kiwis_needle"
	secretArgument = "argument-needle-9d1f"
	secretResult   = "result-needle-77ab"
	secretHeader   = "X-Needle-Header"
	secretToken    = "token-needle-c0ffee"
)

var needles = []string{secretTool, secretArgument, secretResult, secretHeader, secretToken}

// privateServer is an MCP server of the official SDK, as a customer might run one.
func privateServer(t *testing.T) (address string) {
	t.Helper()
	server := sdk.NewServer(&sdk.Implementation{Name: "kiwis", Version: "1"}, nil)
	type arguments struct {
		Where string `json:"where"`
	}
	sdk.AddTool(server, &sdk.Tool{Name: secretTool, Description: "Harvests kiwis."},
		func(_ context.Context, _ *sdk.CallToolRequest, in arguments) (*sdk.CallToolResult, any, error) {
			return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: secretResult + " " + in.Where}}}, nil, nil
		})
	handler := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secretToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set(secretHeader, "1")
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// harvest is a whole MCP session: connect, list the tools, call one.
func harvest(ctx context.Context, host string, hc *http.Client) error {
	s, err := mcp.Connect(ctx, mcp.Server{
		Name: "kiwis", URL: "https://" + host + "/mcp", HTTP: hc,
		Authorization: func(context.Context, string) (string, error) { return "Bearer " + secretToken, nil },
	})
	if err != nil {
		return err
	}
	defer s.Close()
	tools, err := s.Tools(ctx)
	if err != nil {
		return err
	}
	if len(tools) != 1 || tools[0].Name != secretTool {
		return fmt.Errorf("tools: %+v", tools)
	}
	res, err := s.Call(ctx, secretTool, []byte(`{"where":"`+secretArgument+`"}`))
	if err != nil {
		return err
	}
	text, err := json.Marshal(res.Content)
	if err != nil {
		return err
	}
	if text := string(text); !strings.Contains(text, secretResult) || !strings.Contains(text, secretArgument) {
		return fmt.Errorf("result: %s", text)
	}
	return nil
}

// gateway serves an upstream behind a tunnel's domain, as `bailey gateway` does, on
// what a connector accepts.
func (o *office) gateway(upstream string, listener net.Listener, change func(*gateway.Config)) {
	o.t.Helper()
	dir := o.t.TempDir()
	ca, err := gateway.NewAuthority(o.tunnel.Domain, time.Now())
	if err != nil {
		o.t.Fatal(err)
	}
	if _, err := o.cl.AddCertificate(o.t.Context(), o.tunnel.ID, string(ca.PEM)); err != nil {
		o.t.Fatal(err)
	}
	cert, key, err := ca.Issue([]string{"*." + o.tunnel.Domain}, time.Hour, time.Now())
	if err != nil {
		o.t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
		o.t.Fatal(err)
	}
	load := func() (*gateway.Config, error) {
		c := &gateway.Config{
			Tunnel: gateway.Tunnel{Domain: o.tunnel.Domain, Edges: []gateway.Edge{{Addresses: []string{"unused:1"}}}},
			TLS:    gateway.TLS{Cert: certFile, Key: keyFile}, Data: dir, Audit: gateway.Audit{Off: true}, Drain: settings.Duration(time.Second),
			Routes: map[string]*gateway.Route{"docs": {
				Upstream: upstream, Settings: gateway.Settings{AllowedIPs: []string{"127.0.0.0/8"}, Host: "rewrite"},
			}},
		}
		if change != nil {
			change(c)
		}
		c.SetDefaults()
		return c, nil
	}
	g, err := gateway.New(gateway.Options{Load: load, Logger: cmp.Or(testLog(o.t), slog.New(slog.DiscardHandler))})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Serve(ctx, listener); err != nil {
			o.t.Errorf("gateway: %v", err)
		}
	}()
	o.t.Cleanup(func() {
		stop()
		<-done
	})
}

// A wiretap is somebody at the edge, who has its key: it ends the TLS that connectors
// and dialers have with the edge and keeps every byte that the edge sees.
type wiretap struct {
	t        *testing.T
	listener net.Listener
	cert     tls.Certificate // the edge's
	cas      *x509.CertPool
	dialer   func() (*tls.Certificate, error)
	behind   string // where the edge is

	mu   sync.Mutex
	seen []*bytes.Buffer // one for each direction of each connection
}

// tap opens an edge that the wiretap sits in front of, joined to a server that has
// none.
func tap(t *testing.T, d *Daemon, cl *client.Client) *wiretap {
	t.Helper()
	ca, err := tunnel.NewAuthority("the operator's", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const name = "edge.example.org"
	cert, err := serverCertificate(ca, name)
	if err != nil {
		t.Fatal(err)
	}
	w := &wiretap{t: t, cert: *cert, cas: x509.NewCertPool(), dialer: d.tunnels.certificate}
	w.cas.AddCert(ca.Certificate)
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.behind = behind.Addr().String()

	key, err := cl.CreateKey(t.Context(), "", api.KeyCreate{Name: "tapped", Type: api.KeyEdge})
	if err != nil {
		t.Fatal(err)
	}
	address := []string{w.listener.Addr().String()}
	ctx, stop := context.WithCancel(context.Background())
	done, started := make(chan error, 1), make(chan struct{})
	go func() {
		done <- remote.Run(ctx, remote.Config{
			Client: adminOf(t, d, key.Secret), Log: testLog(t), Certificate: func() (*tls.Certificate, error) { return cert, nil },
			Edge: api.EdgeRegister{
				Name: "tapped", ConnectorAddresses: address, DialAddresses: address,
				ServerName: name, CAs: string(tunnel.EncodeCertificate(ca.Certificate)),
			},
			Started: func(*edge.Edge) { close(started) },
		}, edge.Config{Listener: behind, Log: testLog(t), Limits: edge.Limits{Drain: time.Second}})
	}()
	go w.serve()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("edge: %v", err)
		}
		w.listener.Close()
	})
	select {
	case <-started:
	case err := <-done:
		t.Fatalf("edge: %v", err)
	}
	return w
}

func (w *wiretap) serve() {
	for {
		conn, err := w.listener.Accept()
		if err != nil {
			return
		}
		go w.relay(conn)
	}
}

func (w *wiretap) relay(conn net.Conn) {
	defer conn.Close()
	in := tls.Server(conn, &tls.Config{
		Certificates: []tls.Certificate{w.cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPNConnector, tunnel.ALPNDial},
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
	})
	if in.Handshake() != nil {
		return
	}
	protocol := in.ConnectionState().NegotiatedProtocol
	out, err := tls.Dial("tcp", w.behind, &tls.Config{
		RootCAs: w.cas, ServerName: "edge.example.org", MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return w.dialer() },
	})
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		defer in.Close()
		defer out.Close()
		io.Copy(io.MultiWriter(in, w.pen()), out)
	}()
	io.Copy(io.MultiWriter(out, w.pen()), in)
}

// pen keeps what one side of a connection says.
func (w *wiretap) pen() io.Writer {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := new(bytes.Buffer)
	w.seen = append(w.seen, b)
	return writerFunc(func(p []byte) (int, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return b.Write(p)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// found says which of the needles went by, and how many bytes did.
func (w *wiretap) found() (needle []string, size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.seen {
		size += b.Len()
	}
	for _, n := range needles {
		for _, b := range w.seen {
			if bytes.Contains(bytes.ToLower(b.Bytes()), []byte(strings.ToLower(n))) {
				needle = append(needle, n)
				break
			}
		}
	}
	return needle, size
}

// serverCertificate makes a certificate of an operator's own CA.
func serverCertificate(ca *tunnel.Authority, name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	leaf, err := ca.ServerCertificate(csr, name, time.Now(), time.Hour)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// openConnector starts a connector without anything behind it yet.
func (o *office) openConnector(plane string) *connect.Connector {
	o.t.Helper()
	known, err := adminOfURL(o.t, plane, o.token.Text()).TunnelEdges(o.t.Context(), o.tunnel.ID)
	if err != nil || len(known.Data) != 1 {
		o.t.Fatalf("edges: %+v, %v", known, err)
	}
	addrs, err := tunnel.EdgeAddrs(known.Data[0])
	if err != nil {
		o.t.Fatal(err)
	}
	c, err := connect.New(connect.Config{
		Edges: addrs, Token: func() (tunnel.Token, error) { return o.token, nil }, ID: "cnct_office", Grace: time.Second, Protocol: api.ProtocolTCP, Log: testLog(o.t),
	})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	o.t.Cleanup(func() {
		stop()
		<-done
	})
	o.await("the connector is attached", func() bool { return len(c.Status().Links) == 1 })
	return c
}

// Who sits at the edge, with its key and every byte that it passes on, learns nothing of
// what a session says. Without the inner TLS, between the same parts, the same search
// finds all of it.
func TestTheEdgeSeesOnlyCiphertext(t *testing.T) {
	t.Parallel()
	upstream := privateServer(t)
	plane := func(t *testing.T) (*Daemon, *office, *wiretap, *connect.Connector) {
		cfg := testConfig(t)
		cfg.TunnelListen = tunnelsOff
		d, _ := start(t, cfg)
		cl := adminOf(t, d, d.FirstKey())
		w := tap(t, d, cl)
		o := newOffice(t, cl)
		return d, o, w, o.openConnector(d.URL())
	}

	t.Run("WithTheInnerTLS", func(t *testing.T) {
		t.Parallel()
		d, o, w, c := plane(t)
		o.gateway(upstream, c.Listener(), nil)
		if err := harvest(t.Context(), "docs."+o.tunnel.Domain, d.outbound.Client()); err != nil {
			t.Fatal(err)
		}
		needle, size := w.found()
		if len(needle) > 0 {
			t.Errorf("the edge saw %v", needle)
		}
		if size < 1000 {
			t.Errorf("only %d bytes went through the tap: the session took another way", size)
		}
	})

	t.Run("WithoutIt", func(t *testing.T) {
		t.Parallel()
		d, o, w, c := plane(t)
		to, err := url.Parse(upstream)
		if err != nil {
			t.Fatal(err)
		}
		proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// An answer may begin before the end of the request was looked for.
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			defer r.Body.Close()
			proxy.ServeHTTP(w, r)
		}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go server.Serve(c.Listener())
		t.Cleanup(func() { server.Close() })
		plain := &http.Client{Transport: plainly{&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return openStream(ctx, d, o.tunnel.ID, "docs."+o.tunnel.Domain)
		}}}}
		if err := harvest(t.Context(), "docs."+o.tunnel.Domain, plain); err != nil {
			t.Fatal(err)
		}
		if needle, _ := w.found(); len(needle) != len(needles) {
			t.Errorf("the search finds only %v of %v: it proves nothing", needle, needles)
		}
	})
}

// plainly makes requests for https URLs without TLS.
type plainly struct{ http.RoundTripper }

func (p plainly) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return p.RoundTripper.RoundTrip(r)
}

// openStream is what a dialer does up to the inner TLS.
func openStream(ctx context.Context, d *Daemon, id api.TunnelID, host string) (net.Conn, error) {
	route, err := d.tunnels.route(ctx, host)
	if err != nil {
		return nil, err
	}
	cert, err := d.tunnels.certificate()
	if err != nil {
		return nil, err
	}
	to := route.Edges[0]
	conn, err := tls.Dial("tcp", to.Addr, &tls.Config{
		RootCAs: to.CAs, ServerName: to.ServerName, MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPNDial}, Certificates: []tls.Certificate{*cert},
	})
	if err != nil {
		return nil, err
	}
	hello, err := tunnel.AppendMessage(nil, tunnel.FrameOpen, tunnel.Open{TunnelID: id})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(hello); err != nil {
		return nil, err
	}
	return tunnel.NewStream(conn, tunnel.StreamConfig{}), nil
}

// awaitEdge waits until the plane knows its own edge.
func (o *office) awaitEdge() {
	o.t.Helper()
	o.await("the plane has an edge", func() bool {
		known, err := o.cl.TunnelEdges(o.t.Context(), o.tunnel.ID)
		return err == nil && len(known.Data) == 1
	})
}

func TestASessionThroughGatewayEdgeAndPlane(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	o.awaitEdge()
	c := o.openConnector(d.URL())
	o.gateway(privateServer(t), c.Listener(), nil)
	host := "docs." + o.tunnel.Domain
	if err := harvest(t.Context(), host, d.outbound.Client()); err != nil {
		t.Fatal(err)
	}

	// What the gateway refuses says so, all the way.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://nothing."+o.tunnel.Domain+"/mcp", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.tunnels.dialer.RoundTrip(req)
	wantStage(t, err, tunnel.StageNoRoute)
	o.await("the fault is kept", func() bool {
		for _, f := range o.status().Faults {
			if f.Stage == string(tunnel.StageNoRoute) {
				return f.Host == "nothing."+o.tunnel.Domain && f.Remedy != ""
			}
		}
		return false
	})
}

// What the gateway refuses because of the call is an answer to it, with its status and its
// challenge, and is the gateway's: not that of the server, which has heard nothing of it.
func TestWhatTheGatewayRefusesIsNotTheServers(t *testing.T) {
	t.Parallel()
	d, _ := start(t, testConfig(t))
	o := newOffice(t, adminOf(t, d, d.FirstKey()))
	o.awaitEdge()
	c := o.openConnector(d.URL())
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("open sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	upstream := privateServer(t)
	o.gateway(upstream, c.Listener(), func(c *gateway.Config) {
		c.Routes["docs"].Limits.Rate, c.Routes["docs"].Limits.Burst = 0.001, 1
		for name, s := range map[string]gateway.Settings{
			"guarded": {Auth: gateway.Auth{TokenFiles: []string{token}}},
			"narrow":  {Limits: gateway.Limits{Body: 10}},
		} {
			s.AllowedIPs, s.Host = []string{"127.0.0.0/8"}, "rewrite"
			c.Routes[name] = &gateway.Route{Upstream: upstream, Settings: s}
		}
	})
	host := func(route string) string { return route + "." + o.tunnel.Domain }
	if err := harvest(t.Context(), host("docs"), d.outbound.Client()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		route  string
		stage  tunnel.Stage
		status int
		kind   mcp.Kind
	}{
		{"docs", tunnel.StageRateLimited, 429, mcp.Connection},
		{"guarded", tunnel.StageCallerRefused, 401, mcp.Authentication},
		{"narrow", tunnel.StageBodyTooLong, 413, mcp.Connection},
	} {
		err := harvest(t.Context(), host(test.route), d.outbound.Client())
		e, ok := errors.AsType[*mcp.Error](err)
		if !ok || e.Status != test.status || e.Kind != test.kind || e.MayHaveRun ||
			!strings.HasPrefix(e.Message, "tunnel to "+host(test.route)+": "+string(test.stage)+": the ") || strings.Contains(e.Message, "upstream") {
			t.Errorf("%s: %v", test.route, err)
		}
		o.await("the fault is kept", func() bool {
			for _, f := range o.status().Faults {
				if f.Stage == string(test.stage) {
					return f.Host == host(test.route) && strings.Contains(f.Detail, "gateway") && f.Remedy != ""
				}
			}
			return false
		})
	}
}
