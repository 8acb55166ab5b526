package netjail_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// The paths that are compared: straight to a host, and through a jail, whose box's
// processes pay for the way out of the namespace as well.
func paths(b *testing.B, handle func(*net.TCPConn)) map[string]func() net.Conn {
	w := newWorld(b)
	addr := w.address()
	w.name("host.example", addr)
	w.serve(addr, 9000, handle)
	box := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"host.example"}, Ports: ports(9000)}), Limits: netjail.Limits{Connections: 4096}})
	fake, err := box.resolve("host.example")
	if err != nil {
		b.Fatal(err)
	}
	return map[string]func() net.Conn{
		"direct": func() net.Conn {
			conn, err := net.Dial("tcp", netip.AddrPortFrom(addr, 9000).String())
			if err != nil {
				b.Fatal(err)
			}
			return conn
		},
		"jail": func() net.Conn {
			conn, err := box.dial(netip.AddrPortFrom(fake, 9000).String())
			if err != nil {
				b.Fatal(err)
			}
			return conn
		},
	}
}

var order = []string{"direct", "jail"}

// A new connection and one byte of the host's.
func BenchmarkConnection(b *testing.B) {
	dials := paths(b, func(conn *net.TCPConn) { conn.Write([]byte{1}) })
	for _, name := range order {
		b.Run(name, func(b *testing.B) {
			one := make([]byte, 1)
			for b.Loop() {
				conn := dials[name]()
				if _, err := io.ReadFull(conn, one); err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
		})
	}
}

func BenchmarkThroughput(b *testing.B) {
	const much = 256 << 20
	dials := paths(b, func(conn *net.TCPConn) {
		chunk := make([]byte, 1<<20)
		for range much / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
	for _, name := range order {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(much)
			sink := make([]byte, 1<<20)
			for b.Loop() {
				conn := dials[name]()
				n := 0
				for {
					m, err := conn.Read(sink)
					n += m
					if err != nil {
						break
					}
				}
				conn.Close()
				if n != much {
					b.Fatalf("%d bytes", n)
				}
			}
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	dials := paths(b, func(conn *net.TCPConn) { io.Copy(conn, conn) })
	for _, name := range order {
		b.Run(name, func(b *testing.B) {
			conn := dials[name]()
			defer conn.Close()
			one := make([]byte, 1)
			for b.Loop() {
				conn.Write(one)
				if _, err := io.ReadFull(conn, one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Requests over TLS that is passed on unopened, and that is opened with a credential put
// in, on connections that are kept.
func BenchmarkRequest(b *testing.B) {
	w := newWorld(b)
	cert := w.certificate("api.example")
	addr := w.address()
	w.name("api.example", addr)
	w.web(addr, 443, &cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	policy := limited(egress.Rule{Hosts: []string{"api.example"}})
	unopened := w.box(netjail.Options{Policy: policy})
	opened := w.box(netjail.Options{Policy: policy, Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"api.example"}, Where: everywhere, Value: value(secret)}}})
	direct := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.roots, ServerName: "api.example"}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("%s:443", addr))
		},
	}}
	unopenedClient := unopened.client()
	unopenedClient.Transport.(*http.Transport).TLSClientConfig.RootCAs = w.roots
	for _, c := range []struct {
		name   string
		client *http.Client
		token  string
	}{{"direct", direct, "x"}, {"unopened", unopenedClient, "x"}, {"opened", opened.client(), opened.env("TOKEN")}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				r, err := http.NewRequest("GET", "https://api.example/", nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Authorization", "Bearer "+c.token)
				resp, err := c.client.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

func BenchmarkName(b *testing.B) {
	w := newWorld(b)
	box := w.box(netjail.Options{Policy: limited(egress.Rule{Hosts: []string{"host.example"}}), Limits: netjail.Limits{Queries: 1 << 30}})
	for b.Loop() {
		if _, err := box.resolve("host.example"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJail(b *testing.B) {
	for name, authority := range map[string]bool{"plain": false, "authority": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				j, err := netjail.New(netjail.Options{Record: func(netjail.Decision) error { return nil }, Authority: authority})
				if err != nil {
					b.Fatal(err)
				}
				j.Close()
			}
		})
	}
}
