package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/dial"
)

// A stage is what all contenders share, and the processes that play on it.
type stage struct {
	ctx      context.Context
	dir      string
	profiles string
	outer    *authority // of edges and dialers
	inner    *authority // of the gateway
	token    tunnel.Token
	upstream string // host:port
	missing  []string
	closers  []func()
}

func newStage(ctx context.Context, profiles string) (s *stage, err error) {
	s = &stage{ctx: ctx, profiles: profiles, token: tunnel.NewToken("bench", tunnelID)}
	if s.dir, err = os.MkdirTemp("", "bailey-bench-"); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() { os.RemoveAll(s.dir) })
	go serveProfiles(filepath.Join(s.dir, "role-load"))
	if s.outer, err = newAuthority(s.dir, "outer"); err == nil {
		s.inner, err = newAuthority(s.dir, "inner")
	}
	for _, name := range []string{"edge", "dialer"} {
		if err == nil {
			err = s.outer.leaf(s.dir, name, name+".bench")
		}
	}
	if err == nil {
		err = s.inner.leaf(s.dir, "gateway", "*."+domain)
	}
	if err == nil {
		s.upstream, err = s.start("role-upstream", role{Dir: s.dir})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends all processes, the last started first.
func (s *stage) close() {
	for _, c := range slices.Backward(s.closers) {
		c()
	}
}

// start starts a process of ours and returns what it says when it is ready.
func (s *stage) start(name string, r role) (said string, err error) {
	said, _, err = s.startPID(name, r)
	return said, err
}

func (s *stage) startPID(name string, r role) (said string, pid int, err error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", 0, err
	}
	cmd := exec.Command("/proc/self/exe", name, string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	s.closers = append(s.closers, func() {
		in.Close()
		cmd.Wait()
	})
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", 0, fmt.Errorf("%s did not get ready: %w", name, err)
	}
	return strings.TrimSpace(said), cmd.Process.Pid, nil
}

// program starts another's program, which ends with the stage.
func (s *stage) program(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	log, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%s.%d.log", filepath.Base(name), len(s.closers))))
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.closers = append(s.closers, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		log.Close()
	})
	return nil
}

// contenders are the ways to the server of these names, the direct one first; without
// names all there are.
func (s *stage) contenders(only []string) ([]contender, error) {
	ways := []struct {
		name  string
		begin func(name string) (contender, error)
		must  bool
	}{
		{"direct", func(name string) (contender, error) { return s.plain(name, s.upstream), nil }, true},
		{"bailey-serve", s.serve, true},
		{"bailey-tcp", func(name string) (contender, error) { return s.ours(name, api.ProtocolTCP) }, true},
		{"bailey-quic", func(name string) (contender, error) { return s.ours(name, api.ProtocolQUIC) }, true},
		{"haproxy-tls", s.haproxy, false},
		{"frp", func(name string) (contender, error) { return s.frp(name, false) }, false},
		{"frp-tls", func(name string) (contender, error) { return s.frp(name, true) }, false},
		{"ssh", s.ssh, false},
	}
	var all []contender
	for _, way := range ways {
		if len(only) > 0 && !slices.Contains(only, way.name) {
			continue
		}
		c, err := way.begin(way.name)
		switch {
		case err == nil:
			all = append(all, c)
		case way.must:
			return nil, fmt.Errorf("%s: %w", way.name, err)
		default:
			s.missing = append(s.missing, fmt.Sprintf("%s: %v", way.name, err))
		}
	}
	return all, nil
}

// plain is a contender that is HTTP to an address.
func (s *stage) plain(name, addr string) contender {
	t := &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
	return contender{name, "http://" + addr, t, t.CloseIdleConnections}
}

// ours is an edge and a gateway of their own.
func (s *stage) ours(name string, protocol api.TunnelProtocol) (contender, error) {
	addr, err := s.start("role-edge", role{Dir: s.dir, Token: s.token.Text()})
	if err != nil {
		return contender{}, err
	}
	return s.through(name, protocol, addr, nil)
}

// serve is a gateway of its own, and an edge in the client's process, as in bailey serve.
func (s *stage) serve(name string) (contender, error) {
	e, addr, err := newEdge(role{Dir: s.dir, Token: s.token.Text()})
	if err != nil {
		return contender{}, err
	}
	ctx, stop := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	s.closers = append(s.closers, func() {
		stop()
		<-done
	})
	return s.through(name, api.ProtocolTCP, addr, func(api.EdgeID) dial.Opener { return e })
}

// through is a gateway of its own, behind an edge.
func (s *stage) through(name string, protocol api.TunnelProtocol, edge string, here func(api.EdgeID) dial.Opener) (contender, error) {
	r := role{Dir: s.dir, Token: s.token.Text(), Edge: edge, Upstream: "http://" + s.upstream, Protocol: protocol}
	if _, err := s.start("role-gateway", r); err != nil {
		return contender{}, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "dialer.crt"), filepath.Join(s.dir, "dialer.key"))
	if err != nil {
		return contender{}, err
	}
	route := dial.Route{
		TunnelID: tunnelID, Domain: domain, CAs: []*x509.Certificate{s.inner.cert},
		Edges: []tunnel.EdgeAddr{{Addr: edge, ServerName: "edge.bench", CAs: s.outer.pool()}},
	}
	d, err := dial.New(dial.Config{
		Route:       func(context.Context, string) (dial.Route, error) { return route, nil },
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Here:        here,
	})
	if err != nil {
		return contender{}, err
	}
	s.closers = append(s.closers, func() { d.Close() })
	c := contender{name, "https://" + host, d, func() { d.Drop(tunnelID, "") }}
	return c, s.await(c)
}

// await waits until a contender answers.
func (s *stage) await(c contender) (err error) {
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end) && s.ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err = small(s.ctx, c); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s does not answer: %w", c.name, err)
}

// haproxy is a chain of two, with TLS between them, that pass TCP on.
func (s *stage) haproxy(name string) (contender, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return contender{}, errors.New("it is not installed")
	}
	near, far := freePort(), freePort()
	pem := filepath.Join(s.dir, "haproxy.pem")
	var both []byte
	for _, name := range []string{"edge.crt", "edge.key"} {
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			return contender{}, err
		}
		both = append(both, b...)
	}
	if err := os.WriteFile(pem, both, 0o600); err != nil {
		return contender{}, err
	}
	conf := filepath.Join(s.dir, "haproxy.cfg")
	text := fmt.Sprintf(`
global
	maxconn 4096
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
listen near
	bind 127.0.0.1:%s
	server far 127.0.0.1:%s ssl verify required ca-file %s verifyhost edge.bench ssl-min-ver TLSv1.3
listen far
	bind 127.0.0.1:%s ssl crt %s ssl-min-ver TLSv1.3
	server upstream %s
`, near, far, filepath.Join(s.dir, "outer.crt"), far, pem, s.upstream)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return contender{}, err
	}
	if err := s.program(path, "-f", conf, "-db"); err != nil {
		return contender{}, err
	}
	c := s.plain(name, "127.0.0.1:"+near)
	return c, s.await(c)
}

// frp is a port that frps forwards to frpc, as fast as they go: a connection for each
// of the client's, some of which are there before they are needed, and nothing in
// between but TLS, or not even that.
func (s *stage) frp(name string, encrypt bool) (contender, error) {
	server, err := exec.LookPath("frps")
	if err != nil {
		return contender{}, errors.New("frps is not installed")
	}
	client, err := exec.LookPath("frpc")
	if err != nil {
		return contender{}, errors.New("frpc is not installed")
	}
	port, forwarded := freePort(), freePort()
	upHost, upPort, err := net.SplitHostPort(s.upstream)
	if err != nil {
		return contender{}, err
	}
	confs := map[string]string{
		"frps": fmt.Sprintf(`
bindAddr = "127.0.0.1"
proxyBindAddr = "127.0.0.1"
bindPort = %s
log.level = "error"
transport.tcpMux = false
transport.maxPoolCount = 64
transport.tls.certFile = %q
transport.tls.keyFile = %q
`, port, filepath.Join(s.dir, "edge.crt"), filepath.Join(s.dir, "edge.key")),
		"frpc": fmt.Sprintf(`
serverAddr = "127.0.0.1"
serverPort = %s
log.level = "error"
transport.tcpMux = false
transport.poolCount = 64
transport.tls.enable = %v
transport.tls.trustedCaFile = %q
transport.tls.serverName = "edge.bench"
[[proxies]]
name = "bench"
type = "tcp"
localIP = %q
localPort = %s
remotePort = %s
`, port, encrypt, filepath.Join(s.dir, "outer.crt"), upHost, upPort, forwarded),
	}
	for _, program := range []struct{ kind, path string }{{"frps", server}, {"frpc", client}} {
		conf := filepath.Join(s.dir, name+"."+program.kind+".toml")
		if err := os.WriteFile(conf, []byte(confs[program.kind]), 0o600); err != nil {
			return contender{}, err
		}
		if err := s.program(program.path, "-c", conf); err != nil {
			return contender{}, err
		}
		time.Sleep(time.Second) // a client that finds no server gives up
	}
	c := s.plain(name, "127.0.0.1:"+forwarded)
	return c, s.await(c)
}

// ssh is a port that `ssh -R` forwards.
func (s *stage) ssh(name string) (contender, error) {
	server, err := exec.LookPath("sshd")
	if err != nil {
		if server, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			return contender{}, errors.New("sshd is not installed")
		}
	}
	client, err := exec.LookPath("ssh")
	if err != nil {
		return contender{}, errors.New("ssh is not installed")
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			return contender{}, fmt.Errorf("ssh-keygen: %s", out)
		}
	}
	port, forwarded := freePort(), freePort()
	conf := filepath.Join(s.dir, "sshd_config")
	text := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nMaxSessions 200\n",
		port, filepath.Join(s.dir, "host"), filepath.Join(s.dir, "user.pub"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return contender{}, err
	}
	os.MkdirAll("/run/sshd", 0o755)                     // where it separates its privileges
	if server, err = filepath.Abs(server); err != nil { // as it starts itself again
		return contender{}, err
	}
	if err := s.program(server, "-D", "-e", "-f", conf); err != nil {
		return contender{}, err
	}
	time.Sleep(time.Second)
	if err := s.program(client, "-N", "-F", "none", "-i", filepath.Join(s.dir, "user"), "-p", port, "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:"+forwarded+":"+s.upstream, "127.0.0.1"); err != nil {
		return contender{}, err
	}
	c := s.plain(name, "127.0.0.1:"+forwarded)
	return c, s.await(c)
}

// freePort is a port that nothing listens on, for a program that wants a number.
func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// profile takes CPU profiles of all our processes while f runs.
func (s *stage) profile(name string, during time.Duration) {
	if s.profiles == "" {
		return
	}
	sockets, _ := filepath.Glob(filepath.Join(s.dir, "role-*"))
	for _, socket := range sockets {
		go func() {
			t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}}
			res, err := (&http.Client{Transport: t}).Get(fmt.Sprintf("http://x/profile?seconds=%d", max(1, int(during.Seconds()))))
			if err != nil {
				return
			}
			defer res.Body.Close()
			f, err := os.Create(filepath.Join(s.profiles, name+"."+filepath.Base(socket)))
			if err != nil {
				return
			}
			defer f.Close()
			io.Copy(f, res.Body)
		}()
	}
}
