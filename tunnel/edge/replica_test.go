package edge_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/settings"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/dial"
	"github.com/bailey-platform/bailey/tunnel/edge"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// gateway runs a gateway with a server of its own, whose sessions no other knows, until
// the end of the test.
func (l *lab) gateway(replica string, at *labEdge) {
	l.t.Helper()
	server := mcp.NewServer(&mcp.Implementation{Name: replica, Version: "1"}, &mcp.ServerOptions{SupportedProtocolVersions: []string{"2025-06-18"}})
	mcp.AddTool(server, &mcp.Tool{Name: "who"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: replica}}}, nil, nil
	})
	up := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	l.t.Cleanup(up.Close)

	dir := l.t.TempDir()
	cert := l.inner.leaf(l.t, "*."+domain)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		l.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	g, err := gateway.New(gateway.Options{Logger: testLog(l.t), Load: func() (*gateway.Config, error) {
		return &gateway.Config{
			Replica: replica, Tunnel: gateway.Tunnel{Domain: domain}, Data: dir, Drain: settings.Duration(time.Second),
			TLS:    gateway.TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")},
			Routes: map[string]*gateway.Route{"docs": {Upstream: up.URL, Settings: gateway.Settings{AllowedIPs: []string{"127.0.0.0/8"}, Host: "rewrite", StickySessions: true}}},
		}, nil
	}})
	if err != nil {
		l.t.Fatal(err)
	}
	links, err := connect.New(connect.Config{
		Edges: []tunnel.EdgeAddr{at.addr}, Token: func() (tunnel.Token, error) { return token, nil },
		ID: g.Replica(), Protocol: api.ProtocolTCP, Grace: time.Second, Log: testLog(l.t),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- links.Run(ctx) }()
	go func() { done <- g.Serve(ctx, links.Listener()) }()
	l.t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; err != nil {
				l.t.Error(err)
			}
		}
	})
	eventually(l.t, "the gateway is attached", func() bool { return len(links.Status().Links) > 0 })
}

// Sessions go on at the gateway that began them, though a dialer has not seen that, or
// knows of another gateway alone.
func TestASessionGoesOnAtItsReplicaThoughAffinityIsLost(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		first, second := l.edge(edge.Limits{}), l.edge(edge.Limits{})
		l.gateway("one", first)
		l.gateway("two", second)
		dialer := func(edges ...*labEdge) *dial.Dialer {
			return l.dial(func(c *dial.Config) {
				r := l.route()
				r.Edges = nil
				for _, e := range edges {
					r.Edges = append(r.Edges, e.addr)
				}
				c.Route = func(context.Context, string) (dial.Route, error) { return r, nil }
			})
		}
		via := new(switchboard)
		via.to.Store(dialer(first))
		client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{Logger: slog.New(slog.DiscardHandler)})
		session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{
			Endpoint: "https://" + host + "/", HTTPClient: &http.Client{Transport: via}, DisableStandaloneSSE: true,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		answers := func(when string) {
			t.Helper()
			r, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "who"})
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if by := r.Content[0].(*mcp.TextContent).Text; by != "one" {
				t.Errorf("%s: answered by %s", when, by)
			}
		}
		if tunnel.SessionReplica(session.ID()) != "one" {
			t.Fatalf("the session is %q", session.ID())
		}
		answers("by who began it")

		via.to.Store(dialer(second, first))
		answers("through a dialer that has seen nothing")

		late := dialer(second, first)
		via.to.Store(late)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "https://"+host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := late.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil || res.Header.Get(tunnel.ReplicaHeader) != "two" {
			t.Fatalf("%v, %v", res.Header, err)
		}
		answers("through a dialer with a connection to another gateway")

		// One that is nowhere: no other can take its sessions, and it may come back.
		via.to.Store(dialer(second))
		var e *tunnel.Error
		if _, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "who"}); !errors.As(err, &e) || e.Stage != tunnel.StageOtherReplica || e.HTTPStatus() != http.StatusServiceUnavailable {
			t.Errorf("without its gateway: %v", err)
		}
		via.to.Store(dialer(first))
		answers("once its gateway can be reached again")
	})
}

// A switchboard makes requests through one dialer, and then another.
type switchboard struct{ to atomic.Pointer[dial.Dialer] }

func (s *switchboard) RoundTrip(r *http.Request) (*http.Response, error) {
	return s.to.Load().RoundTrip(r)
}
