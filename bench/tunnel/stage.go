package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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

// contenders are all ways to the server, the direct one first.
func (s *stage) contenders() ([]contender, error) {
	all := []contender{s.plain("direct", s.upstream)}
	for _, protocol := range []api.TunnelProtocol{api.ProtocolTCP, api.ProtocolQUIC} {
		c, err := s.ours(protocol)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	for _, theirs := range []func() (contender, error){s.haproxy, s.ssh} {
		c, err := theirs()
		if err != nil {
			s.missing = append(s.missing, err.Error())
			continue
		}
		all = append(all, c)
	}
	return all, nil
}

// plain is a contender that is HTTP to an address.
func (s *stage) plain(name, addr string) contender {
	t := &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
	return contender{name, "http://" + addr, t, t.CloseIdleConnections}
}

// ours is an edge and a gateway of their own.
func (s *stage) ours(protocol api.TunnelProtocol) (contender, error) {
	r := role{Dir: s.dir, Token: s.token.Text(), Upstream: "http://" + s.upstream, Protocol: protocol}
	addr, err := s.start("role-edge", r)
	if err != nil {
		return contender{}, err
	}
	r.Edge = addr
	if _, err := s.start("role-gateway", r); err != nil {
		return contender{}, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "dialer.crt"), filepath.Join(s.dir, "dialer.key"))
	if err != nil {
		return contender{}, err
	}
	route := dial.Route{
		TunnelID: tunnelID, Domain: domain, CAs: []*x509.Certificate{s.inner.cert},
		Edges: []tunnel.EdgeAddr{{Addr: addr, ServerName: "edge.bench", CAs: s.outer.pool()}},
	}
	d, err := dial.New(dial.Config{
		Route:       func(context.Context, string) (dial.Route, error) { return route, nil },
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		return contender{}, err
	}
	s.closers = append(s.closers, func() { d.Close() })
	c := contender{"bailey-" + string(protocol), "https://" + host, d, func() { d.Drop(tunnelID, "") }}
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
func (s *stage) haproxy() (contender, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return contender{}, fmt.Errorf("haproxy: it is not installed")
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
	c := s.plain("haproxy-tls", "127.0.0.1:"+near)
	return c, s.await(c)
}

// ssh is a port that `ssh -R` forwards.
func (s *stage) ssh() (contender, error) {
	server, err := exec.LookPath("sshd")
	if err != nil {
		if server, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			return contender{}, fmt.Errorf("ssh -R: sshd is not installed")
		}
	}
	client, err := exec.LookPath("ssh")
	if err != nil {
		return contender{}, fmt.Errorf("ssh -R: ssh is not installed")
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			return contender{}, fmt.Errorf("ssh -R: ssh-keygen: %s", out)
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
	c := s.plain("ssh", "127.0.0.1:"+forwarded)
	if err := s.await(c); err != nil {
		return contender{}, fmt.Errorf("ssh -R: %w", err)
	}
	return c, nil
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
