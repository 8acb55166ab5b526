package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/connect"
	"github.com/bailey-platform/bailey/tunnel/edge"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// A role is what a process of the benchmark is told to be, in JSON.
type role struct {
	Dir      string // where certificates are
	Token    string
	Edge     string // host:port
	Upstream string // URL
	Protocol api.TunnelProtocol
	Idle     int // connectors
	From     int // of the addresses that they come from

	SpareIdle time.Duration // of the edge's limits
}

const (
	tunnelID = api.TunnelID("tnl_bench")
	domain   = "abcd1234.tunnel.bench"
	host     = "docs." + domain
)

// play is what a process other than the first does. It says where it listens, on
// standard output, once it does.
func play(name string, args []string) error {
	var r role
	if err := json.Unmarshal([]byte(args[0]), &r); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// Whoever started this has gone when standard input ends.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	go serveProfiles(filepath.Join(r.Dir, fmt.Sprintf("%s.%d", name, os.Getpid())))
	switch name {
	case "role-upstream":
		return upstream(ctx)
	case "role-edge":
		return runEdge(ctx, r)
	case "role-gateway":
		return runGateway(ctx, r)
	case "role-idle":
		return idlers(ctx, r)
	}
	return fmt.Errorf("there is no such role")
}

func ready(what string) { fmt.Println(what) }

// serveProfiles answers net/http/pprof's questions on a socket.
func serveProfiles(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/profile", pprof.Profile)
	mux.Handle("/heap", pprof.Handler("heap"))
	http.Serve(l, mux)
}

func upstream(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(block[:smallSize])
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", fmt.Sprint(bigSize))
		for n := 0; n < bigSize; n += len(block) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	ready(l.Addr().String())
	return serveUntil(ctx, &http.Server{Handler: mux}, l)
}

func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// plane lets in who has the token of a tunnel: the first, or one of the idle ones,
// whose tokens name them.
type plane struct {
	token string
	next  atomic.Int64
}

func (p *plane) Attach(_ context.Context, a api.EdgeAttach) (*api.EdgeGrant, error) {
	id := api.AttachmentID(fmt.Sprintf("tatt_%d", p.next.Add(1)))
	switch {
	case a.Token == p.token:
		return &api.EdgeGrant{ID: id, TunnelID: tunnelID, Domain: domain}, nil
	case a.Version == "idle":
		return &api.EdgeGrant{ID: id, TunnelID: api.TunnelID("tnl_" + a.ConnectorID), Domain: a.ConnectorID + ".tunnel.bench"}, nil
	}
	return nil, &api.Error{Status: http.StatusUnauthorized, Type: api.TypeAuthentication, Message: "the token is not good"}
}

func (p *plane) Detach(context.Context, api.AttachmentID, api.EdgeDetach) error { return nil }
func (p *plane) Report(context.Context, api.EdgeReport) error                   { return nil }
func (p *plane) Cuts(ctx context.Context) ([]api.EdgeCut, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func runEdge(ctx context.Context, r role) error {
	e, addr, err := newEdge(r)
	if err != nil {
		return err
	}
	ready(addr)
	return e.Run(ctx)
}

func newEdge(r role) (e *edge.Edge, addr string, err error) {
	ca, err := readCA(r.Dir, "outer")
	if err != nil {
		return nil, "", err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(r.Dir, "edge.crt"), filepath.Join(r.Dir, "edge.key"))
	if err != nil {
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	packets, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return nil, "", err
	}
	e, err = edge.New(edge.Config{
		Plane: &plane{token: r.Token}, Listener: l, Packets: packets,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		DialerCAs:   ca.pool,
		Limits:      edge.Limits{HalfOpenPerAddress: 4096, Drain: 1, SpareIdle: r.SpareIdle},
	})
	return e, l.Addr().String(), err
}

func runGateway(ctx context.Context, r role) error {
	outer, err := readCA(r.Dir, "outer")
	if err != nil {
		return err
	}
	token, err := tunnel.ParseToken(r.Token)
	if err != nil {
		return err
	}
	c, err := connect.New(connect.Config{
		Edges:    []tunnel.EdgeAddr{{Addr: r.Edge, ServerName: "edge.bench", CAs: outer.pool()}},
		Token:    func() (tunnel.Token, error) { return token, nil },
		Protocol: r.Protocol,
		Grace:    1,
	})
	if err != nil {
		return err
	}
	g, err := gateway.New(gateway.Options{
		Load: func() (*gateway.Config, error) {
			return &gateway.Config{
				Tunnel: gateway.Tunnel{Domain: domain},
				TLS:    gateway.TLS{Cert: filepath.Join(r.Dir, "gateway.crt"), Key: filepath.Join(r.Dir, "gateway.key")},
				Data:   r.Dir,
				Routes: map[string]*gateway.Route{"docs": {Upstream: r.Upstream, Settings: gateway.Settings{AllowedIPs: []string{"127.0.0.0/8"}}}},
			}, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, c.Listener()) }()
	ready("gateway")
	if err := c.Run(ctx); err != nil {
		return err
	}
	return <-served
}
