package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// domain is the tunnel's in tests.
const domain = "abcd1234.tunnel.test"

// A lab is a gateway with a platform that calls it.
type lab struct {
	t    testing.TB
	dir  string
	g    *Gateway
	addr string
	cas  *x509.CertPool
	logs *syncBuffer
	reg  *prometheus.Registry
	stop context.CancelFunc
	done chan error
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// config is one with a route, which change may alter.
func config(dir, upstream string, change func(*Config)) *Config {
	c := &Config{
		Tunnel: Tunnel{Domain: domain},
		TLS:    TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")},
		Data:   dir,
		Drain:  settingsDuration(10 * time.Second),
		Routes: map[string]*Route{"docs": {Upstream: upstream, Settings: Settings{AllowedIPs: []string{"127.0.0.0/8"}}}},
	}
	if change != nil {
		change(c)
	}
	return c
}

// serve starts a gateway in front of an upstream.
func serve(t testing.TB, upstream string, change func(*Config), options ...func(*Options)) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, dir: dir, logs: new(syncBuffer), reg: prometheus.NewRegistry(), done: make(chan error, 1)}
	l.cas = writePair(t, dir, "tls", time.Now().Add(90*24*time.Hour), "*."+domain, domain)
	o := Options{
		Load:    func() (*Config, error) { return config(dir, upstream, change), nil },
		Logger:  slog.New(slog.NewTextHandler(l.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: l.reg,
	}
	for _, change := range options {
		change(&o)
	}
	var err error
	if l.g, err = New(o); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go func() { l.done <- l.g.Serve(ctx, listener) }()
	t.Cleanup(l.close)
	return l
}

func (l *lab) close() {
	l.stop()
	select {
	case err := <-l.done:
		l.done <- err
		if err != nil {
			l.t.Errorf("Serve: %v", err)
		}
	case <-time.After(20 * time.Second):
		l.t.Error("Serve does not return")
	}
	if l.t.Failed() {
		l.t.Logf("the gateway's log:\n%s", l.logs)
	}
}

// dial opens an inner TLS connection for a server name.
func (l *lab) dial(server string, protocols ...string) *tls.Conn {
	l.t.Helper()
	conn, err := tls.Dial("tcp", l.addr, &tls.Config{RootCAs: l.cas, ServerName: server, NextProtos: protocols})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// client calls through the gateway: https://docs.<domain>/… reaches it.
func (l *lab) client(h2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetHTTP2(h2)
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: l.cas}, Protocols: protocols, DisableCompression: true, MaxIdleConnsPerHost: 64,
	}
	l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends text on a connection of HTTP/1.1 and returns what comes back until it ends,
// or the answers are wanted in number.
func (l *lab) raw(server, text string) string {
	l.t.Helper()
	conn := l.dial(server, "http/1.1")
	if _, err := io.WriteString(conn, text); err != nil {
		l.t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	var b strings.Builder
	_, _ = io.Copy(&b, bufio.NewReader(conn))
	return b.String()
}

// writePair writes a CA and a leaf it has signed for names: NAME.crt and NAME.key, and
// ca.crt and ca.key.
func writePair(t testing.TB, dir, name string, until time.Time, names ...string) *x509.CertPool {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, err = x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "gateway"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": keyBlock(t, key),
		"ca.crt": {Type: "CERTIFICATE", Bytes: caDER}, "ca.key": keyBlock(t, caKey),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool
}

func keyBlock(t testing.TB, key *ecdsa.PrivateKey) *pem.Block {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
}

// upstream is a private server.
func upstreamServer(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

// get returns an answer's status, head and body.
func get(t testing.TB, c *http.Client, method, url, body string, head ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(head); i += 2 {
		if head[i] == "Host" {
			req.Host = head[i+1]
			continue
		}
		req.Header.Add(head[i], head[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// nobodyAt is an address that refuses connections, and goes on doing so: its port is
// taken, so that nothing else comes to listen there, and not listened on.
func nobodyAt(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
