package e2e

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// What those get who are not who they say, each with what the attack needs: a token, a
// certificate, an edge, a name server, a private server. Mallory is a host outside.
func TestTunnelAttacks(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	mallory := l.lan.host("mallory", "192.0.2.66/24")
	l.setUp("docs=http://" + upstreamAddr)
	l.inside.filter(onlyAnswers, "")
	ca, caKey := l.readCA()
	var stolen atomic.Int64 // requests that mallory has got to see
	mallory.serve("192.0.2.66:8080", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Add(1) }))
	token, err := os.ReadFile(filepath.Join(l.dir, "tunnel-token"))
	if err != nil {
		t.Fatal(err)
	}
	// with runs a gateway of mallory's, with the token and a certificate.
	with := func(t *testing.T, chain []*x509.Certificate, key crypto.Signer, check func()) {
		t.Helper()
		g := l.run("mallory", mallory.command(nil, "gateway", "--config", l.forge(chain, key, string(token), "docs: {upstream: \"http://192.0.2.66:8080\", any-ip: true}"), "--listen", ""))
		defer l.attached(0)
		defer g.stop()
		for _, c := range l.attached(2) {
			if host, _, _ := net.SplitHostPort(c.RemoteAddress); host != "192.0.2.66" {
				t.Errorf("the status says it comes from %s", c.RemoteAddress)
			}
		}
		check()
		if stolen.Load() != 0 {
			t.Errorf("mallory has got %d requests", stolen.Load())
		}
		if strings.Contains(g.out.String(), "hush-argument") {
			t.Error("mallory has seen the argument")
		}
	}
	wildcard := "*." + l.tunnel.Domain
	otherCA, otherKey := issueCert(t, nil, nil, "somebody's CA", true)

	t.Run("StolenToken", func(t *testing.T) {
		leaf, key := issueCert(t, otherCA, otherKey, wildcard, false)
		with(t, []*x509.Certificate{leaf}, key, func() {
			l.call("docs", "echo").refuses(t, http.StatusBadGateway, "inner_tls")
			if f := l.fault("inner_tls"); f.Remedy == "" {
				t.Errorf("the status says %+v", f)
			}
			out, err := command([]string{"BAILEY_URL=" + l.plane.url, "BAILEY_KEY=" + l.plane.admin}, "tunnels", "status", string(l.tunnel.ID)).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "192.0.2.66:") || !strings.Contains(string(out), "inner tls") {
				t.Errorf("tunnels status: %v\n%s", err, out)
			}
		})
	})
	t.Run("RogueLeaf", func(t *testing.T) {
		// It names the registered CA in all that it says of its issuer.
		named := *ca
		named.PublicKey = otherKey.Public()
		leaf, key := issueCert(t, &named, otherKey, wildcard, false)
		with(t, []*x509.Certificate{leaf}, key, func() {
			l.call("docs", "echo").refuses(t, http.StatusBadGateway, "inner_tls", "not signed with that CA's key")
		})
	})
	t.Run("Intermediate", func(t *testing.T) {
		middle, middleKey := issueCert(t, ca, caKey, "an intermediate", true)
		leaf, key := issueCert(t, middle, middleKey, wildcard, false)
		with(t, []*x509.Certificate{leaf, middle}, key, func() {
			l.call("docs", "echo").refuses(t, http.StatusBadGateway, "inner_tls", "without intermediates")
		})
		with(t, []*x509.Certificate{leaf}, key, func() {
			l.call("docs", "echo").refuses(t, http.StatusBadGateway, "inner_tls")
		})
	})
	t.Run("AnotherTenantsHost", func(t *testing.T) {
		// A tunnel of mallory's own, whose gateway says that it serves everybody's hosts.
		name := "mallory"
		own, err := l.plane.client.CreateTunnel(within(t), api.TunnelCreate{DisplayName: &name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.plane.client.AddCertificate(within(t), own.ID, encodeCert(otherCA)); err != nil {
			t.Fatal(err)
		}
		revealed, err := l.plane.client.RevealToken(within(t), own.ID)
		if err != nil {
			t.Fatal(err)
		}
		leaf, key := issueCert(t, otherCA, otherKey, wildcard, false)
		g := l.run("mallory", mallory.command(nil, "gateway", "--config", l.forge([]*x509.Certificate{leaf}, key, revealed.Token, "docs: {upstream: \"http://192.0.2.66:8080\", any-ip: true}"), "--listen", ""))
		defer g.stop()
		l.until("mallory is attached", func() bool {
			s, err := l.plane.client.TunnelStatus(within(t), own.ID)
			return err == nil && len(s.Data) == 2
		})
		l.call("docs", "echo").refuses(t, http.StatusServiceUnavailable, "no_connector")
		for _, host := range []string{"docs." + own.Domain, "docs." + l.tunnel.Domain + "." + own.Domain} {
			if a := l.callHost(host, "echo"); a.Status < 500 || !strings.Contains(a.Error, "inner_tls") && !strings.Contains(a.Error, "no_route") && !strings.Contains(a.Error, "no tunnel") {
				t.Errorf("%s: %s", host, a)
			}
		}
		if stolen.Load() != 0 {
			t.Errorf("mallory has got %d requests", stolen.Load())
		}
	})
	t.Run("TokenReplay", func(t *testing.T) {
		fresh, err := l.plane.client.RotateToken(within(t), l.tunnel.ID, api.TokenRotate{})
		if err != nil {
			t.Fatal(err)
		}
		leaf, key := issueCert(t, ca, caKey, wildcard, false) // not even the right key helps
		g := l.run("mallory", mallory.command(nil, "gateway", "--config", l.forge([]*x509.Certificate{leaf}, key, string(token), "docs: {upstream: \"http://192.0.2.66:8080\", any-ip: true}"), "--listen", ""))
		defer g.stop()
		g.waitFor(tokenRefused)
		l.fault("token_refused")
		l.call("docs", "echo").refuses(t, http.StatusServiceUnavailable, "no_connector")
		if err := os.WriteFile(filepath.Join(l.dir, "tunnel-token"), []byte(fresh.Token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.runGateway(2)
		l.works()
	})

	// From here on: against the gateway, and what is behind it.
	t.Run("ServerNameIsNotHost", func(t *testing.T) {
		// Mallory has an edge that gateways come to, and asks it for one server under the
		// name of another.
		edgeCert, edgeKey := issueCert(t, otherCA, otherKey, "192.0.2.66", false)
		ask := mallory.rogueEdge("192.0.2.66:8443", tls.Certificate{Certificate: [][]byte{edgeCert.Raw}, PrivateKey: edgeKey})
		dir := l.copyGateway("lured")
		trust := filepath.Join(dir, "rogue.crt")
		if err := os.WriteFile(trust, []byte(encodeCert(otherCA)), 0o600); err != nil {
			t.Fatal(err)
		}
		g := l.run("lured", l.inside.command(nil, "gateway", "--config", filepath.Join(dir, "gateway.yaml"), "--edge", "192.0.2.66:8443", "--edge-ca", trust,
			"--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:9402"))
		defer g.stop()
		before := l.upstream.count("any")
		for _, c := range []struct {
			sni, host string
			status    int
		}{
			{"docs." + l.tunnel.Domain, "files." + l.tunnel.Domain, 421},
			{"files." + l.tunnel.Domain, "docs." + l.tunnel.Domain, 421},
			{"docs." + l.tunnel.Domain, "169.254.169.254", 421},
		} {
			status, why := ask(t, c.sni, c.host)
			if status != c.status || !strings.HasPrefix(why, "request_refused") {
				t.Errorf("SNI %s, Host %s: %d %s", c.sni, c.host, status, why)
			}
		}
		if n := l.upstream.count("any") - before; n != 0 {
			t.Errorf("%d requests came through", n)
		}
		if status, _ := ask(t, "docs."+l.tunnel.Domain, "docs."+l.tunnel.Domain); status >= 500 || l.upstream.count("any") == before {
			t.Errorf("the same name twice: %d", status)
		}
	})
	t.Run("RedirectToMetadata", func(t *testing.T) {
		conn, err := l.inside.dial(within(t), metadataAddr)
		if err != nil {
			t.Fatalf("the gateway's host cannot reach what it must not reach: %v", err)
		}
		conn.Close()
		l.upstream.host.serve("10.9.0.2:8082", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l.upstream.add("redirect")
			http.Redirect(w, r, "http://"+metadataAddr+"/latest/meta-data/iam/", http.StatusTemporaryRedirect)
		}))
		l.edit("routes:\n", "routes:\n  moved: http://10.9.0.2:8082\n  creds: http://169.254.169.254:80\n")
		l.until("the route is there", func() bool { return !strings.Contains(l.call("moved", "echo").Error, "no_route") })
		l.call("moved", "echo").refuses(t, http.StatusBadGateway, "upstream_protocol")
		l.call("creds", "echo").refuses(t, http.StatusBadGateway, "address_refused", "169.254.169.254")
		if l.upstream.count("redirect") == 0 || l.upstream.count("metadata") != 0 {
			t.Errorf("%d redirects, %d requests to the metadata service", l.upstream.count("redirect"), l.upstream.count("metadata"))
		}
	})
	t.Run("DNSRebinding", func(t *testing.T) {
		l.gateways[0].stop()
		l.attached(0)
		// A server's name leads to it, and the next name to where it must not: as names are
		// remembered for a moment, each is another.
		asked := l.upstream.host.rebindingDNS("10.9.0.2:53", "10.9.0.2", "169.254.169.254", "127.0.0.1")
		for i := range 6 {
			l.edit("routes:\n", fmt.Sprintf("routes:\n  named%d: http://mcp%d.inside.test:80\n", i, i))
		}
		resolv := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(resolv, []byte("nameserver 10.9.0.2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		l.upstream.host.serve("10.9.0.2:80", l.upstream.handler())
		l.inside.serve("127.0.0.1:80", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { l.upstream.add("loopback") }))
		cmd := l.inside.command(nil, "gateway", "--config", filepath.Join(l.dir, "gateway.yaml"), "--data", filepath.Join(t.TempDir(), "data"))
		l.run("gateway", ownResolver(t, cmd, resolv))
		l.attached(2)
		fine := 0
		for i := range 6 {
			if a := l.call(fmt.Sprintf("named%d", i), "echo"); a.Status == http.StatusOK && !a.Failed {
				fine++
			} else {
				a.refuses(t, http.StatusBadGateway, "address_refused")
			}
		}
		if fine == 0 || fine == 6 {
			t.Errorf("%d calls came through, the names were asked for %d times: it proves nothing", fine, asked())
		}
		for _, what := range []string{"metadata", "loopback"} {
			if n := l.upstream.count(what); n != 0 {
				t.Errorf("%d requests to %s", n, what)
			}
		}
	})
}

// readCA reads the CA that gateway init has made.
func (l *tunnelLab) readCA() (*x509.Certificate, crypto.Signer) {
	l.t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			l.t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			l.t.Fatalf("%s is no PEM", name)
		}
		return block.Bytes
	}
	cert, err := x509.ParseCertificate(read("ca.crt"))
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(read("ca.key"))
	if err != nil {
		l.t.Fatal(err)
	}
	return cert, key.(crypto.Signer)
}

// issueCert makes a certificate, signed by itself if there is no CA.
func issueCert(t *testing.T, ca *x509.Certificate, caKey crypto.Signer, name string, isCA bool) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	switch ip := net.ParseIP(name); {
	case isCA:
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	case ip != nil:
		template.IPAddresses = []net.IP{ip}
	default:
		template.DNSNames = []string{name}
	}
	if !isCA {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	if ca == nil {
		ca, caKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func encodeCert(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func encodeKey(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// forge writes the settings of a gateway that nobody has set up.
func (l *tunnelLab) forge(chain []*x509.Certificate, key crypto.Signer, token, route string) (config string) {
	l.t.Helper()
	dir := l.t.TempDir()
	known, err := l.plane.client.TunnelEdges(within(l.t), l.tunnel.ID)
	if err != nil || len(known.Data) != 2 {
		l.t.Fatalf("edges: %+v, %v", known, err)
	}
	certs := ""
	for _, c := range chain {
		certs += encodeCert(c)
	}
	text := "tunnel:\n  domain: " + l.tunnel.Domain + "\n  token-file: token\n  protocol: tcp\n  edges:\n"
	for _, e := range known.Data {
		text += fmt.Sprintf("    - {id: %s, addresses: [%q], server-name: %q, ca: edges.crt}\n", e.EdgeID, e.Addresses[0], e.ServerName)
	}
	text += "tls: {cert: tls.crt, key: tls.key}\ndata: data\nroutes:\n  " + route + "\n"
	for name, text := range map[string]string{
		"token": token, "edges.crt": known.Data[0].CAs, "tls.crt": certs, "gateway.yaml": text,
		"tls.key": encodeKey(l.t, key),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	return filepath.Join(dir, "gateway.yaml")
}

// rogueEdge is an edge that belongs to no plane: connectors come to it with their token,
// and it makes requests of its own. ask makes one, with a name for TLS and one for HTTP.
func (h *host) rogueEdge(addr string, cert tls.Certificate) (ask func(t *testing.T, sni, hostname string) (status int, why string)) {
	h.t.Helper()
	l := tls.NewListener(h.listen(addr), &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{tunnel.ALPNConnector}, MinVersion: tls.VersionTLS13})
	parked := make(chan net.Conn, 16)
	serve := func(conn net.Conn) error {
		kind, _, err := tunnel.ReadFrame(conn, tunnel.MessageMax)
		if err != nil || kind == tunnel.FramePark {
			parked <- conn
			return err
		}
		hello, err := tunnel.AppendMessage(nil, tunnel.FrameAttached, tunnel.Attached{
			AttachmentID: "tatt_rogue", TunnelID: "tnl_rogue", Domain: "rogue.test", Ticket: make([]byte, tunnel.TicketLen), Want: 2,
		})
		if err == nil {
			_, err = conn.Write(hello)
		}
		for err == nil {
			_, _, err = tunnel.ReadFrame(conn, tunnel.MessageMax) // pings, which may go unanswered for long
		}
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h.t.Cleanup(func() { conn.Close() })
			go serve(conn)
		}
	}()
	return func(t *testing.T, sni, hostname string) (int, string) {
		t.Helper()
		var conn net.Conn
		select {
		case conn = <-parked:
		case <-within(t).Done():
			t.Fatal("no gateway comes")
		}
		if _, err := conn.Write(tunnel.AppendFrame(nil, tunnel.FrameOpen, nil)); err != nil {
			t.Fatal(err)
		}
		stream := tunnel.NewStream(conn, tunnel.StreamConfig{})
		defer stream.Close()
		inner := tls.Client(stream, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		if err := inner.HandshakeContext(within(t)); err != nil {
			return 0, err.Error()
		}
		_, err := fmt.Fprintf(inner, "POST /mcp HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}", hostname)
		if err != nil {
			return 0, err.Error()
		}
		res, err := http.ReadResponse(bufio.NewReader(inner), nil)
		if err != nil {
			return 0, err.Error()
		}
		io.Copy(io.Discard, res.Body)
		return res.StatusCode, res.Header.Get("Bailey-Tunnel-Error")
	}
}

// rebindingDNS is a name server that gives every name one of the addresses, in turn.
func (h *host) rebindingDNS(addr string, addrs ...string) (asked func() int64) {
	h.t.Helper()
	var conn net.PacketConn
	err := elsewhere(h.ns, func() (err error) {
		conn, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	var count atomic.Int64
	answer := func(query []byte) ([]byte, error) {
		var m dnsmessage.Message
		if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
			return nil, errors.Join(err, errors.New("not one question"))
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			to := addrs[(count.Add(1)-1)%int64(len(addrs))]
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(to).To4())},
			}}
		}
		return m.Pack()
	}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, err := answer(buf[:n]); err == nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	return count.Load
}
