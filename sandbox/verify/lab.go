package verify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/netns"
)

// A Lab is a network in which every address there is leads to this process, which plays
// whoever lives there and writes down who came.
type Lab struct {
	roots  *x509.CertPool // of the laboratory's authority
	leaf   tls.Certificate
	rogue  tls.Certificate // of another authority
	secret string          // the value of the credential

	servers []io.Closer

	mu     sync.Mutex
	visits []visit
	asked  []string // names that were looked up
}

// A visit is one thing that reached an address of the laboratory's network.
type visit struct {
	network string // "tcp", "udp"
	to      string // address and port
	name    string // the host that was asked for, in TLS or HTTP; may be empty
	secret  bool   // it carried the value of the credential
}

func (v visit) String() string {
	if v.name == "" {
		return v.network + " to " + v.to
	}
	return v.network + " to " + v.to + " for " + v.name
}

// What there is in the laboratory. Public addresses only as far as a policy can tell.
const (
	allowedName  = "allowed.test"  // allowed at ports 80, 443 and 5432
	openedName   = "secret.test"   // allowed at 443, where the credential is for it
	otherName    = "other.test"    // allowed at 443, TLS opened, no credential
	rogueName    = "rogue.test"    // allowed at 443, TLS opened; its certificate is nobody's
	rebindName   = "rebind.test"   // allowed, and leads to a metadata service
	internalName = "internal.test" // allowed, and leads to a private address
	wildName     = "wild.test"     // *.wild.test is allowed
	deniedName   = "denied.test"

	allowedAddr  = "20.0.0.10"
	deniedAddr   = "20.0.0.40"
	metadataAddr = "169.254.169.254"
	resolverAddr = "198.18.0.1" // what boxes are told
	foreignDNS   = "20.0.0.53"

	credentialName = "LAB_TOKEN"
)

var labNames = map[string]string{
	allowedName: allowedAddr, openedName: "20.0.0.20", otherName: "20.0.0.30", rogueName: "20.0.0.50", rebindName: metadataAddr,
	internalName: "10.1.2.3", "a." + wildName: "20.0.0.60", "b.a." + wildName: "20.0.0.61", wildName: "20.0.0.62", deniedName: deniedAddr,
}

// labPorts are where the laboratory's hosts listen, and labUDP where they do by UDP.
var (
	labPorts = []string{"22", "80", "443", "5432", "6379", "8443"}
	labUDP   = []string{"123", "443", "4433"}
)

// labFacts are what a prober is told of it.
type labFacts struct {
	SecretHead, SecretTail string
}

func (l *Lab) facts() labFacts {
	half := len(l.secret) / 2
	return labFacts{l.secret[:half], l.secret[half:]}
}

// inLab is set in the environment of a process that [Prepare] has prepared.
const inLab = "BAILEY_VERIFY_LAB=1"

// Prepare changes a command, which is to be started next, so that it runs in a network
// namespace that nothing leads out of, where it may call [Enter]. An ordinary user's
// runs in a user namespace as well, as the same user.
func Prepare(cmd *exec.Cmd) {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, inLab)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	attr := cmd.SysProcAttr
	attr.Cloneflags |= unix.CLONE_NEWNET
	attr.Pdeathsig = syscall.SIGKILL
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}
	}
}

// Prepared reports whether this process runs in a namespace made by [Prepare].
func Prepared() bool {
	name, value, _ := strings.Cut(inLab, "=")
	return os.Getenv(name) == value
}

// Enter builds the laboratory in the network namespace of this process, which
// [Prepare] has made for it: it refuses to do so anywhere else.
func Enter() (_ *Lab, err error) {
	if !Prepared() {
		return nil, errors.New("this process is not in a network namespace of its own")
	}
	if err := netns.ClaimEveryAddress(); err != nil {
		return nil, fmt.Errorf("set up the laboratory's network: %w", err)
	}
	// What this process starts from here on needs no rights over networks.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return nil, err
	}
	l := &Lab{secret: marker("credential")}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := l.makeCertificates(); err != nil {
		return nil, err
	}
	return l, l.open()
}

// open begins to listen.
func (l *Lab) open() error {
	for _, port := range labPorts {
		ln, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		l.servers = append(l.servers, ln)
		go l.serve(ln, port)
	}
	for _, port := range labUDP {
		conn, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		l.servers = append(l.servers, conn)
		go l.collect(conn, ":"+port)
	}
	for _, addr := range []string{resolverAddr, foreignDNS, "127.0.0.53"} {
		conn, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
		if err != nil {
			return err
		}
		l.servers = append(l.servers, conn)
		go l.serveDNS(conn)
	}
	return nil
}

// Close ends the laboratory's hosts.
func (l *Lab) Close() error {
	var errs []error
	for _, s := range l.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (l *Lab) record(v visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.visits) < 1000 {
		l.visits = append(l.visits, v)
	}
}

func (l *Lab) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.visits, l.asked = nil, nil
}

// seen returns the visits for which want is true.
func (l *Lab) seen(want func(visit) bool) (found []visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.visits {
		if want(v) {
			found = append(found, v)
		}
	}
	return found
}

// lookedUp returns the names that were looked up, of those for which want is true.
func (l *Lab) lookedUp(want func(string) bool) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range l.asked {
		if want(name) {
			found = append(found, name)
		}
	}
	return found
}

// LookupNetIP is the resolver of whoever serves the boxes' exits.
func (l *Lab) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	l.mu.Lock()
	l.asked = append(l.asked, host)
	l.mu.Unlock()
	addr, ok := labNames[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{netip.MustParseAddr(addr)}, nil
}

// serveDNS is a name server in the open, for boxes that get around the one they are
// given.
func (l *Lab) serveDNS(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		l.record(visit{network: "udp", to: conn.LocalAddr().String(), name: q.Name.String()})
		m.Response, m.RCode = true, dnsmessage.RCodeNameError
		if addr, err := l.LookupNetIP(context.Background(), "ip4", q.Name.String()); err == nil {
			m.RCode = dnsmessage.RCodeSuccess
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: addr[0].As4()},
				}}
			}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(out, from)
		}
	}
}

func (l *Lab) collect(conn net.PacketConn, to string) {
	buf := make([]byte, 2048)
	for {
		if _, _, err := conn.ReadFrom(buf); err != nil {
			return
		}
		l.record(visit{network: "udp", to: to})
	}
}

// serve plays the host at every address, at one port: HTTP at 80, HTTPS at 443 and 8443,
// and a line of greeting elsewhere.
func (l *Lab) serve(ln net.Listener, port string) {
	handler := http.HandlerFunc(l.answer)
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0), // most of what comes is broken on purpose
		Handler:  handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		ConnState: func(c net.Conn, s http.ConnState) {
			if s == http.StateNew {
				l.record(visit{network: "tcp", to: unmapped(c.LocalAddr())})
			}
		},
	}
	switch port {
	case "80":
		_ = server.Serve(ln) // until it is closed
	case "443", "8443":
		server.TLSConfig = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			l.record(visit{network: "tls", to: unmapped(hello.Conn.LocalAddr()), name: hello.ServerName})
			if hello.ServerName == rogueName {
				return &l.rogue, nil
			}
			return &l.leaf, nil
		}}
		_ = server.ServeTLS(ln, "", "")
	default:
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			l.record(visit{network: "tcp", to: unmapped(conn.LocalAddr())})
			_, _ = io.WriteString(conn, "hello from the laboratory\n")
			conn.Close()
		}
	}
}

// unmapped writes an IPv4 address as one, whatever the socket's family.
func unmapped(a net.Addr) string {
	addr, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()).String()
}

const answerBody = "the laboratory answers"

// answer is what the laboratory's web hosts say.
func (l *Lab) answer(w http.ResponseWriter, r *http.Request) {
	var carried strings.Builder
	_ = r.Header.Write(&carried)
	carried.WriteString(r.URL.String())
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	carried.Write(body)
	to, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	network := "http"
	if r.TLS != nil {
		network = "https"
	}
	l.record(visit{network: network, to: unmapped(to), name: r.Host, secret: strings.Contains(carried.String(), l.secret)})
	switch r.URL.Path {
	case "/redirect":
		http.Redirect(w, r, "https://"+otherName+"/landed", http.StatusTemporaryRedirect)
	case "/echo":
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		fmt.Fprintf(w, "%s\n%s\n", answerBody, carried.String())
	default:
		fmt.Fprintln(w, answerBody)
	}
}

// makeCertificates makes an authority for the laboratory's names, and one that nobody
// trusts.
func (l *Lab) makeCertificates() error {
	var names []string
	for name := range labNames {
		names = append(names, name)
	}
	root, leaf, err := certify(names)
	if err != nil {
		return err
	}
	l.leaf, l.roots = leaf, x509.NewCertPool()
	l.roots.AddCert(root)
	_, l.rogue, err = certify(names)
	return err
}

func certify(names []string) (root *x509.Certificate, leaf tls.Certificate, err error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "laboratory"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		return nil, tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: from, NotAfter: to, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, root, &key.PublicKey, rootKey)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	return root, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
