package sink

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/bailey-platform/bailey/audit"
)

func record(n int) audit.Record {
	return audit.Record{
		Actor: "w", Action: audit.ToolStart, Session: "sesn_1", Call: fmt.Sprint("sevt_", n), Tool: "bash",
		Input: []byte("{}"), Start: time.Unix(0, 0),
	}
}

// write makes a log with a sink, n records long, and returns its path.
func write(t *testing.T, sink audit.SinkOptions, n int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := audit.Open(path, audit.Options{Sinks: []audit.SinkOptions{sink}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := l.Append(record(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t *testing.T, text string) audit.SinkOptions {
	t.Helper()
	s, err := Open(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lines are the lines of a log without their newlines.
func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestOpen(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"file:/x":                               "",
		"file:x?required=true":                  "",
		"file:":                                 "names no file",
		"file://host/x":                         "names no file",
		"syslog:":                               "",
		"syslog:/run/log":                       "",
		"syslog+tcp://h:601?required=true":      "",
		"syslog+tls://h:6514":                   "",
		"syslog+tls://h:6514?ca=/none":          "no such file",
		"syslog+tls://h":                        "no host and port",
		"syslog+udp://h:514":                    "",
		"syslog+udp://h:514?required=true":      "cannot be required",
		"otlp+https://h":                        "",
		"otlp+http://h:4318/v1/logs":            "",
		"otlp+http://h?ca=/x":                   "ca is for tls and https",
		"otlp+https://user:secret@h":            "has no place for a credential",
		"stdout:":                               "no standard output",
		"kafka://h":                             "is not one of",
		"file:/x?required=perhaps":              "is not understood",
		"file:/x?require=true":                  "is not understood",
		"file:/x?required=true&required=true":   "is not understood",
		"":                                      "is not one of",
		"http://h/%zz":                          "is not one of",
		"syslog+tcp://:601":                     "no host and port",
		"otlp+https://h?required=true&ca=/none": "no such file",
	} {
		s, err := Open(text, nil)
		switch {
		case err == nil && want == "":
			if s.Required != strings.Contains(text, "required=true") || strings.Contains(s.Name(), "?") {
				t.Errorf("%q: required %v, name %q", text, s.Required, s.Name())
			}
			s.Close()
		case err == nil || want == "" || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret"):
			t.Errorf("%q: %v, want …%s…", text, err, want)
		}
	}
	if all, err := OpenAll("file:/a, file:/b?required=true,", nil); err != nil || len(all) != 2 {
		t.Errorf("OpenAll: %v, %v", all, err)
	}
	if _, err := OpenAll("file:/a,nonsense:", nil); err == nil {
		t.Error("OpenAll took nonsense")
	}
}

func TestFileIsACopyThatVerifies(t *testing.T) {
	t.Parallel()
	copied := filepath.Join(t.TempDir(), "copy.jsonl")
	path := write(t, mustOpen(t, "file:"+copied+"?required=true"), 5)
	if diff := cmp.Diff(lines(t, path), lines(t, copied)); diff != "" {
		t.Errorf("the copy differs: %s", diff)
	}
	key, err := audit.ReadKey(path + ".key")
	if err != nil {
		t.Fatal(err)
	}
	head, err := os.ReadFile(path + ".head")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s, err := audit.Verify(f, audit.Evidence{Key: &key, Head: head}); err != nil || !s.Complete {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestFileCatchesUp(t *testing.T) {
	t.Parallel()
	path := write(t, audit.SinkOptions{Sink: stream{"", io.Discard}}, 3)
	whole := lines(t, path)
	other := write(t, audit.SinkOptions{Sink: stream{"", io.Discard}}, 3)
	for name, tt := range map[string]struct {
		has  string // the copy, before
		want string // of the error
	}{
		"a new copy":           {},
		"one that is behind":   {has: strings.Join(whole[:2], "\n") + "\n"},
		"one with a torn line": {has: strings.Join(whole[:2], "\n") + "\n" + whole[2][:20]},
		"one torn at once":     {has: whole[0][:20]},
		"one that is ahead":    {has: strings.Join(append(whole, lines(t, other)[4]), "\n") + "\n", want: "holds a record that this log does not"},
		"of another log":       {has: strings.Join(lines(t, other)[:3], "\n") + "\n", want: "holds a record that this log does not"},
		"no log at all":        {has: "something\nelse\n", want: "not a copy"},
	} {
		t.Run(name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "copy")
			if tt.has != "" {
				if err := os.WriteFile(copied, []byte(tt.has), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l, err := audit.Open(path, audit.Options{Sinks: []audit.SinkOptions{mustOpen(t, "file:"+copied+"?required=true")}})
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Open: %v, want …%s…", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(lines(t, path), lines(t, copied)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFileIsNotSharedByTwoLogs(t *testing.T) {
	t.Parallel()
	copied := filepath.Join(t.TempDir(), "copy")
	one, two := mustOpen(t, "file:"+copied), mustOpen(t, "file:"+copied)
	defer one.Close()
	defer two.Close()
	if _, _, err := one.Sink.(audit.Keeper).Last(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := two.Sink.(audit.Keeper).Last(); !errors.Is(err, audit.ErrInUse) {
		t.Errorf("error = %v, want ErrInUse", err)
	}
}

// TestRequiredCopyOnAFullDisk limits the size of the copy, which is the longer file
// of the two, in a process of its own.
func TestRequiredCopyOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getenv("SINK_FULL") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRequiredCopyOnAFullDisk$")
		cmd.Env = append(os.Environ(), "SINK_FULL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	copied := filepath.Join(dir, "copy")
	// The copy is on its limit from the start; the log's own segments are smaller.
	path := write(t, mustOpen(t, "file:"+copied), 40)
	l, err := audit.Open(path, audit.Options{SegmentBytes: 4 << 10, Sinks: []audit.SinkOptions{mustOpen(t, "file:"+copied+"?required=true")}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(copied)
	if err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(info.Size()) + 2000, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for err = nil; err == nil && n < 50; n++ {
		err = l.Append(record(n))
	}
	if !errors.Is(err, syscall.EFBIG) || n < 2 {
		t.Fatalf("after %d records: %v", n, err)
	}
	if err := l.Append(record(0)); err == nil {
		t.Error("a record was taken that the copy cannot take")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(record(n)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := audit.OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	b, _ := io.ReadAll(all)
	if c, _ := os.ReadFile(copied); !bytes.Equal(b, c) {
		t.Error("the copy differs")
	}
}

func TestStdout(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s, err := Open("stdout:?required=true", &out)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, s, 2)
	if diff := cmp.Diff(strings.Join(lines(t, path), "\n")+"\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

// message takes an RFC 5424 message apart.
var message = regexp.MustCompile(`^<110>1 (\S+) (\S+) bailey (\d+) (\S+) - (.*)$`)

func checkMessages(t *testing.T, path string, got []string) {
	t.Helper()
	want := lines(t, path)
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d: %q", len(got), len(want), got)
	}
	for i, m := range got {
		parts := message.FindStringSubmatch(m)
		if parts == nil || parts[5] != want[i] {
			t.Errorf("message %q of line %q", m, want[i])
			continue
		}
		if _, err := time.Parse(time.RFC3339, parts[1]); err != nil || !strings.Contains(want[i], `"action":"`+parts[4]+`"`) {
			t.Errorf("header of %q: %v", m, err)
		}
	}
}

func TestSyslogDatagrams(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unixgram", "udp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := "127.0.0.1:0"
			if network == "unixgram" {
				addr = filepath.Join(shortDir(t), "log")
			}
			conn, err := net.ListenPacket(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			text := "syslog:" + addr + "?required=true"
			if network == "udp" {
				text = "syslog+udp://" + conn.LocalAddr().String()
			}
			path := write(t, mustOpen(t, text), 3)
			var got []string
			buf := make([]byte, 64<<10)
			for range lines(t, path) {
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				n, _, err := conn.ReadFrom(buf)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, string(buf[:n]))
			}
			checkMessages(t, path, got)
		})
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A line that no datagram can hold is announced by its number and hash.
func TestSyslogDatagramThatIsTooLong(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := mustOpen(t, "syslog+udp://"+conn.LocalAddr().String())
	defer s.Close()
	long := audit.Line{Seq: 7, Action: "tool.start", Hash: "abc", JSON: bytes.Repeat([]byte("x"), 100_000)}
	if err := s.Write(t.Context(), []audit.Line{long}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := conn.ReadFrom(buf)
	if err != nil || !strings.HasSuffix(string(buf[:n]), `{"seq":7,"action":"tool.start","hash":"abc","too_long_for_syslog":100000}`) {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// A collector accepts streams and keeps the messages of each, framed by octets.
type collector struct {
	listener net.Listener
	mu       sync.Mutex
	messages []string
	streams  sync.WaitGroup
}

func collect(t *testing.T, l net.Listener) *collector {
	c := &collector{listener: l}
	c.streams.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.streams.Go(func() { c.read(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); c.streams.Wait() })
	return c
}

func (c *collector) read(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		size, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(size))
		if err != nil {
			return
		}
		m := make([]byte, n)
		if _, err := io.ReadFull(r, m); err != nil {
			return
		}
		c.mu.Lock()
		c.messages = append(c.messages, string(m))
		c.mu.Unlock()
	}
}

// all waits for the streams to end.
func (c *collector) all() []string {
	c.listener.Close()
	c.streams.Wait()
	return c.messages
}

func TestSyslogStreams(t *testing.T) {
	t.Parallel()
	t.Run("unix", func(t *testing.T) {
		t.Parallel()
		addr := filepath.Join(shortDir(t), "log")
		l, err := net.Listen("unix", addr)
		if err != nil {
			t.Fatal(err)
		}
		c := collect(t, l)
		path := write(t, mustOpen(t, "syslog:"+addr+"?required=true"), 20)
		checkMessages(t, path, c.all())
	})
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		l := listen(t)
		c := collect(t, l)
		path := write(t, mustOpen(t, "syslog+tcp://"+l.Addr().String()+"?required=true"), 20)
		checkMessages(t, path, c.all())
	})
	t.Run("tls", func(t *testing.T) {
		t.Parallel()
		ca, cert := authority(t)
		l := tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{cert}})
		c := collect(t, l)
		path := write(t, mustOpen(t, "syslog+tls://"+l.Addr().String()+"?required=true&ca="+ca), 20)
		checkMessages(t, path, c.all())
	})
	t.Run("tls of somebody else", func(t *testing.T) {
		t.Parallel()
		_, cert := authority(t)
		ca, _ := authority(t)
		l := tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{cert}})
		collect(t, l)
		s := mustOpen(t, "syslog+tls://"+l.Addr().String()+"?ca="+ca)
		defer s.Close()
		if err := s.Write(t.Context(), []audit.Line{{Seq: 1, JSON: []byte("{}")}}); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("error = %v", err)
		}
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// authority makes a certificate for 127.0.0.1 that is its own authority.
func authority(t *testing.T) (ca string, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The first write after a server has gone would seem to succeed.
func TestSyslogServerThatIsGoneIsNoticedBeforeAWrite(t *testing.T) {
	t.Parallel()
	l := listen(t)
	s := mustOpen(t, "syslog+tcp://"+l.Addr().String())
	defer s.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	line := []audit.Line{{Seq: 1, Action: "x", JSON: []byte("{}")}}
	if err := s.Write(t.Context(), line); err != nil {
		t.Fatal(err)
	}
	conn := <-accepted
	l.Close()
	conn.Close()
	<-s.Sink.(*syslog).gone
	if err := s.Write(t.Context(), line); err == nil {
		t.Error("a write to a server that is gone succeeded")
	}
}

// A backend keeps the OTLP records it is sent, or refuses them.
type backend struct {
	mu      sync.Mutex
	refuse  int   // a status, or 0
	partial int64 // records said to be rejected
	bodies  []string
	events  []string
	header  http.Header
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != 0 {
		w.WriteHeader(b.refuse)
		return
	}
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(r.Body)
	}
	raw, err := io.ReadAll(body)
	var in collogspb.ExportLogsServiceRequest
	if err != nil || proto.Unmarshal(raw, &in) != nil || r.URL.Path != "/v1/logs" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b.header = r.Header
	for _, rl := range in.ResourceLogs {
		for _, sl := range rl.ScopeLogs {
			for _, rec := range sl.LogRecords {
				b.bodies = append(b.bodies, rec.Body.GetStringValue())
				b.events = append(b.events, rec.EventName)
			}
		}
	}
	var out collogspb.ExportLogsServiceResponse
	if b.partial > 0 {
		out.PartialSuccess = &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: b.partial, ErrorMessage: "too many"}
	}
	answer, _ := proto.Marshal(&out)
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

func TestOTLP(t *testing.T) {
	t.Parallel()
	b := new(backend)
	server := httptest.NewServer(b)
	defer server.Close()
	path := write(t, mustOpen(t, "otlp+"+server.URL+"?required=true"), 20)
	if diff := cmp.Diff(lines(t, path), b.bodies); diff != "" {
		t.Error(diff)
	}
	if b.events[1] != audit.ToolStart {
		t.Errorf("events %v", b.events)
	}
}

func TestOTLPThatDoesNotTakeARecordIsAnError(t *testing.T) {
	t.Parallel()
	line := []audit.Line{{Seq: 1, Action: "x", JSON: []byte(`{"session_id":"s"}`)}}
	for name, b := range map[string]*backend{
		"refused":     {refuse: http.StatusUnauthorized},
		"unavailable": {refuse: http.StatusServiceUnavailable},
		"redirected":  {refuse: http.StatusTemporaryRedirect},
		"rejected":    {partial: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(b)
			defer server.Close()
			s := mustOpen(t, "otlp+"+server.URL)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := s.Write(ctx, line); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestOTLPOverTLS(t *testing.T) {
	t.Parallel()
	ca, cert := authority(t)
	b := new(backend)
	server := httptest.NewUnstartedServer(b)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()
	write(t, mustOpen(t, "otlp+"+server.URL+"?required=true&ca="+ca), 2)
	if len(b.bodies) != 4 {
		t.Errorf("%d records", len(b.bodies))
	}
}
