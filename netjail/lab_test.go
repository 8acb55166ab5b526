package netjail_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
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
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
)

// The tests run in a network namespace of their own, in which every address of the
// internet is the namespace's own: public hosts and metadata services are servers of the
// test, and nothing that a test does, or fails to prevent, leaves it. Each box has a
// further namespace, with the exits that boxes really have.
const labVariable = "NETJAIL_TEST_IN_LAB"

func TestMain(m *testing.M) {
	if os.Getenv(labVariable) == "" && !fuzzing() {
		if code, ok := inNamespace(); ok {
			os.Exit(code)
		}
	}
	if os.Getenv(labVariable) != "" {
		if err := netns.ClaimEveryAddress(); err != nil {
			fmt.Fprintln(os.Stderr, "the network of the tests:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func fuzzing() bool {
	for _, arg := range os.Args {
		if strings.HasPrefix(arg, "-test.fuzz") {
			return true
		}
	}
	return false
}

// inNamespace runs the tests in a namespace of their own, if that can be had.
func inNamespace() (code int, ok bool) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), labVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// The signal comes when the thread that started it ends.
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, true
	}
	return cmd.ProcessState.ExitCode(), true
}

// inLab skips a test where there is no lab. Under CI that is a failure.
func inLab(t testing.TB) {
	t.Helper()
	if os.Getenv(labVariable) != "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("no network namespace can be made here")
	}
	t.Skip("no network namespace can be made here: it takes root, or user namespaces for ordinary users")
}

// A world is the internet of one test: names, and servers at addresses of its own.
type world struct {
	t     testing.TB
	roots *x509.CertPool
	key   *ecdsa.PrivateKey
	ca    *x509.Certificate

	mu    sync.Mutex
	names map[string][]netip.Addr
	asked []string // what the worker's resolver was asked for
}

var (
	worldMu sync.Mutex
	worlds  int
)

func newWorld(t testing.TB) *world {
	t.Helper()
	inLab(t)
	w := &world{t: t, names: make(map[string][]netip.Addr), roots: x509.NewCertPool()}
	w.ca, w.key = newCA(t, "the world's authority")
	w.roots.AddCert(w.ca)
	return w
}

func newCA(t testing.TB, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// certificate is one for names, or addresses, by the world's authority.
func (w *world) certificate(names ...string) tls.Certificate {
	return issue(w.t, w.ca, w.key, names...)
}

func issue(t testing.TB, ca *x509.Certificate, key *ecdsa.PrivateKey, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// address is a public one that nothing else in the tests has.
func (w *world) address() netip.Addr {
	worldMu.Lock()
	defer worldMu.Unlock()
	worlds++
	return netip.AddrFrom4([4]byte{93, 184, byte(worlds >> 8), byte(worlds)})
}

// name has a name lead to addresses.
func (w *world) name(name string, addrs ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[name+"."] = addrs
}

// LookupNetIP is the worker's resolver.
func (w *world) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, name)
	if addrs, ok := w.names[name]; ok {
		return addrs, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (w *world) lookedUp() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

// listen opens a port of an address.
func (w *world) listen(addr netip.Addr, port uint16) net.Listener {
	w.t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l
}

// serve runs handle for each connection to an address, until the test ends.
func (w *world) serve(addr netip.Addr, port uint16, handle func(*net.TCPConn)) {
	w.t.Helper()
	l := w.listen(addr, port)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			}()
		}
	}()
}

// greeter says who it is to everybody, and then repeats what it is told.
func greeter(who string) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		fmt.Fprintln(conn, who)
		io.Copy(conn, conn)
	}
}

// web serves HTTP, over TLS if there is a certificate.
func (w *world) web(addr netip.Addr, port uint16, cert *tls.Certificate, handler http.Handler) {
	w.t.Helper()
	l := w.listen(addr, port)
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	w.t.Cleanup(func() { server.Close() })
	if cert != nil {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
		go server.ServeTLS(l, "", "")
		return
	}
	go server.Serve(l)
}

// A site is a web server that remembers what it was asked.
type site struct {
	mu       sync.Mutex
	requests []seen
	reply    http.HandlerFunc // after the request was read; nil answers "hello"
}

type seen struct {
	Method, Host, URI, Body, Proto string
	Header                         http.Header
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	s.mu.Lock()
	s.requests = append(s.requests, seen{r.Method, r.Host, r.RequestURI, string(body), r.Proto, r.Header.Clone()})
	s.mu.Unlock()
	if s.reply != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		s.reply(w, r)
		return
	}
	io.WriteString(w, "hello")
}

func (s *site) all() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.requests...)
}

// host makes a name of a web server on ports 80 and 443.
func (w *world) host(name string, s *site) netip.Addr {
	w.t.Helper()
	addr := w.address()
	w.name(name, addr)
	cert := w.certificate(name)
	w.web(addr, 443, &cert, s)
	w.web(addr, 80, nil, s)
	return addr
}

// A box is a network namespace with a jail, as a program in a box has it.
type box struct {
	t     testing.TB
	jail  *netjail.Jail
	exits sandbox.Exits
	do    chan func()
	ended chan struct{}

	mu        sync.Mutex
	decisions []netjail.Decision
	refuse    error // of the record
}

func (b *box) record(d netjail.Decision) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != nil {
		return b.refuse
	}
	b.decisions = append(b.decisions, d)
	return nil
}

func (b *box) refuseRecords(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = err
}

// recorded are the decisions of an action, in order.
func (b *box) recorded(action netjail.Action) []netjail.Decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []netjail.Decision
	for _, d := range b.decisions {
		if d.Action == action {
			found = append(found, d)
		}
	}
	return found
}

// until waits for a condition that something else brings about.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// box starts a box whose own namespace has the exits.
func (w *world) box(o netjail.Options) *box {
	w.t.Helper()
	return w.start(o, func() (sandbox.Exits, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return sandbox.Exits{}, err
		}
		return netns.Jail()
	})
}

// pairedBox starts a box that has a network card, with the exits at the other end of its
// cable.
func (w *world) pairedBox(o netjail.Options) *box {
	w.t.Helper()
	return w.start(o, func() (sandbox.Exits, error) {
		file, exits, err := netns.Pair()
		if err != nil {
			return exits, err
		}
		defer file.Close()
		return exits, unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
	})
}

// start starts a box on a thread that enters it.
func (w *world) start(o netjail.Options, enter func() (sandbox.Exits, error)) *box {
	w.t.Helper()
	b := &box{t: w.t, do: make(chan func()), ended: make(chan struct{})}
	o.Box, o.Record, o.Dialer, o.Roots = "box1", b.record, &egress.Dialer{Resolver: w, Timeout: 5 * time.Second}, w.roots
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		var err error
		b.exits, err = enter()
		ready <- err
		for {
			select {
			case f := <-b.do:
				f()
			case <-b.ended:
				return
			}
		}
	}()
	if err := <-ready; err != nil {
		w.t.Fatal(err)
	}
	var err error
	if b.jail, err = netjail.New(o); err != nil {
		w.t.Fatal(err)
	}
	if err := b.jail.Attach(b.exits); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		close(b.ended)
		b.exits.Close()
		<-b.jail.Done()
		if err := b.jail.Close(); err != nil || b.jail.Err() != nil {
			w.t.Errorf("the jail ended with %v, %v", err, b.jail.Err())
		}
	})
	return b
}

// inside runs f on the thread that is in the box.
func (b *box) inside(f func()) {
	done := make(chan struct{})
	select {
	case b.do <- func() { defer close(done); f() }:
		<-done
	case <-b.ended:
	}
}

const patience = 20 * time.Second

// dial connects from within the box to an address.
func (b *box) dial(addr string) (*net.TCPConn, error) {
	var conn net.Conn
	err := errors.New("the box has ended")
	b.inside(func() { conn, err = net.DialTimeout("tcp", addr, patience) })
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn), nil
}

// reach connects to a name's port as a program does: it asks, and connects.
func (b *box) reach(name string, port uint16) (*net.TCPConn, error) {
	addr, err := b.resolve(name)
	if err != nil {
		return nil, err
	}
	return b.dial(netip.AddrPortFrom(addr, port).String())
}

// hears connects to a name's port and returns the first line that it hears.
func (b *box) hears(name string, port uint16) (string, error) {
	conn, err := b.reach(name, port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return bufio.NewReader(conn).ReadString('\n')
}

// question is a message that asks for a name.
func question(name string, kind dnsmessage.Type) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	if err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{
		Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET,
	})); err != nil {
		panic(err)
	}
	m, err := b.Finish()
	if err != nil {
		panic(err)
	}
	return m
}

// ask sends a message to a name server by UDP and returns the answer.
func (b *box) ask(server string, message []byte) (dnsmessage.Message, error) {
	var conn net.Conn
	var err error
	b.inside(func() { conn, err = net.Dial("udp", server) })
	if err != nil {
		return dnsmessage.Message{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(message); err != nil {
		return dnsmessage.Message{}, err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		return dnsmessage.Message{}, err
	}
	var m dnsmessage.Message
	return m, m.Unpack(buf[:n])
}

var errRefusedName = errors.New("the name server refuses the name")

func (b *box) resolve(name string) (netip.Addr, error) {
	m, err := b.ask("198.18.0.1:53", question(name, dnsmessage.TypeA))
	switch {
	case err != nil:
		return netip.Addr{}, err
	case m.RCode == dnsmessage.RCodeRefused:
		return netip.Addr{}, errRefusedName
	case m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1:
		return netip.Addr{}, fmt.Errorf("answer %v", m)
	}
	return netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A), nil
}

// client is an HTTP client in the box, which trusts the box's authority and no other.
func (b *box) client() *http.Client {
	b.t.Helper()
	transport := &http.Transport{
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			if ip, err := netip.ParseAddr(host); err == nil {
				return b.dial(net.JoinHostPort(ip.String(), port))
			}
			ip, err := b.resolve(host)
			if err != nil {
				return nil, err
			}
			return b.dial(net.JoinHostPort(ip.String(), port))
		},
		TLSClientConfig:    &tls.Config{RootCAs: b.trusts()},
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
	}
	b.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// trusts are the authorities in the box's bundle.
func (b *box) trusts() *x509.CertPool {
	b.t.Helper()
	files, err := b.jail.Files(b.t.TempDir(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if path, ok := files[netjail.BundlePath]; ok {
		pem, err := os.ReadFile(path)
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			b.t.Fatalf("the bundle cannot be read: %v", err)
		}
	}
	return pool
}

// fetch makes a request from within the box.
func (b *box) fetch(c *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
	}
	resp, err := c.Do(r)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(text)
}

// isReset reports whether a connection was refused by the jail.
func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// refused fails the test unless a connection that was made is reset.
func refused(t testing.TB, what string, conn *net.TCPConn, err error) {
	t.Helper()
	if err != nil {
		if !isReset(err) {
			t.Errorf("%s: %v, want it reset", what, err)
		}
		return
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); !isReset(err) {
		t.Errorf("%s: read %q, %v, want it reset", what, b, err)
	}
}

// denied fails the test unless something with this in its sentence was refused.
func (b *box) denied(sentence string) {
	b.t.Helper()
	var all []string
	for _, d := range b.jail.Denials() {
		if strings.Contains(d.Text, sentence) {
			return
		}
		all = append(all, d.Text)
	}
	b.t.Errorf("nothing was refused with %q; there is %q", sentence, all)
}

// endings waits for the records of connections' ends, and fails the test unless they say
// that they ended so, in any order.
func (b *box) endings(whys ...string) {
	b.t.Helper()
	until(b.t, "the connections' ends are recorded", func() bool { return len(b.recorded(netjail.ActionEnd)) >= len(whys) })
	ends := b.recorded(netjail.ActionEnd)
	for _, why := range whys {
		i := slices.IndexFunc(ends, func(d netjail.Decision) bool { return strings.HasPrefix(d.Reason, why) })
		if i < 0 {
			b.t.Errorf("no connection is on record that ended so: %q; there are %+v", why, ends)
			return
		}
		ends = slices.Delete(ends, i, i+1)
	}
}

// env is a variable of the box's environment.
func (b *box) env(name string) string {
	for _, v := range b.jail.Env() {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// loopback opens every loopback address to a policy, as all servers are there in the end.
func limited(rules ...egress.Rule) egress.Policy {
	return egress.Policy{Mode: egress.Limited, Rules: rules}
}

func ports(list ...uint16) []egress.Ports {
	var all []egress.Ports
	for _, p := range list {
		all = append(all, egress.Port(p))
	}
	return all
}

func exits(l net.Listener, dns *net.UDPConn) sandbox.Exits {
	return sandbox.Exits{TCP: l.(*net.TCPListener), DNS: dns}
}

// echConfigList is a key for encrypted greetings, which nobody has the other half of
// (RFC 9849 §4).
func echConfigList(t testing.TB, publicName string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	prefixed := func(size int, b []byte) []byte {
		n := len(b)
		if size == 1 {
			return append([]byte{byte(n)}, b...)
		}
		return append([]byte{byte(n >> 8), byte(n)}, b...)
	}
	contents := append([]byte{7, 0, 0x20}, prefixed(2, key.PublicKey().Bytes())...)
	contents = append(contents, prefixed(2, []byte{0, 1, 0, 1})...) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 0)                                  // longest name: unknown
	contents = append(contents, prefixed(1, []byte(publicName))...)
	contents = append(contents, 0, 0) // no extensions
	return prefixed(2, append([]byte{0xfe, 0x0d}, prefixed(2, contents)...))
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
