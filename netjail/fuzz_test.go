package netjail

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/http/httpguts"

	"github.com/bailey-platform/bailey/egress"
)

// unattached is a jail that serves nothing, for its parts.
func unattached(t testing.TB, policy egress.Policy) *Jail {
	t.Helper()
	j, err := New(Options{Policy: policy, Record: func(Decision) error { return nil }, Limits: Limits{Queries: 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// No message makes the name server fail, and none gets an address for a name that is
// not allowed.
func FuzzAnswer(f *testing.F) {
	j := unattached(f, egress.Policy{Rules: []egress.Rule{{Hosts: []string{"*.allowed.example"}}}})
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 1, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName("a.allowed.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	b.StartAdditionals()
	var h dnsmessage.ResourceHeader
	h.SetEDNS0(4096, 0, true)
	b.OPTResource(h, dnsmessage.OPTResource{})
	seed, err := b.Finish()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:20])
	f.Add(bytes.Replace(seed, []byte("allowed"), []byte("denied!"), 1))
	f.Fuzz(func(t *testing.T, message []byte) {
		reply := j.answer(message)
		if reply == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("the answer cannot be read: %v", err)
		}
		if !m.Response || m.ID != uint16(message[0])<<8|uint16(message[1]) || len(reply) > 600 {
			t.Fatalf("answer %+v of %d bytes", m.Header, len(reply))
		}
		for _, answer := range m.Answers {
			if name := strings.ToLower(m.Questions[0].Name.String()); !strings.HasSuffix(name, ".allowed.example.") || m.RCode != 0 || answer.Header.Type != dnsmessage.TypeA {
				t.Fatalf("an address for %q: %+v", name, answer)
			}
		}
	})
}

// What the framing lets pass, the standard library reads as the same requests: as many,
// with bodies of the same lengths, and nothing that both could be said to have.
func FuzzFraming(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
	} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		passed, err := through(stream, max(size, 1))
		whole, wholeErr := through(stream, len(stream)+1)
		if !bytes.Equal(passed, whole) || (err == nil) != (wholeErr == nil) {
			t.Fatalf("%q depends on how it arrives: %q, %v and %q, %v", stream, passed, err, whole, wholeErr)
		}
		starts := boundaries(t, passed)
		r := bufio.NewReader(bytes.NewReader(passed))
		for i := 0; ; i++ {
			request, err := http.ReadRequest(r)
			if err != nil {
				break // a head that has not arrived, or is more than it will have
			}
			if len(request.TransferEncoding) > 0 && request.Header.Get("Content-Length") != "" {
				t.Fatalf("%q has two lengths", passed)
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				break
			}
			at := len(passed) - r.Buffered()
			if left, _ := io.ReadAll(r); len(left) > 0 {
				at = len(passed) - len(left)
				r = bufio.NewReader(bytes.NewReader(left))
			}
			if i >= len(starts) || starts[i] != at {
				t.Fatalf("%q: the library ends request %d at %d, and the framing has %v", passed, i, at, starts)
			}
		}
	})
}

// through is what a framing passes on of a stream that arrives in pieces.
func through(stream []byte, size int) ([]byte, error) {
	f := newFraming()
	var passed []byte
	for len(stream) > 0 {
		n := min(size, len(stream))
		good, err := f.follow(stream[:n])
		passed = append(passed, stream[:good]...)
		if err != nil {
			return passed, err
		}
		stream = stream[n:]
	}
	return passed, nil
}

// boundaries are where the requests of a stream end.
func boundaries(t *testing.T, stream []byte) []int {
	f := newFraming()
	var ends []int
	for i := range stream {
		if _, err := f.follow(stream[i : i+1]); err != nil {
			t.Fatalf("%q is refused at %d, though it was passed on: %v", stream, i, err)
		}
		if f.step == inHead && f.first && len(f.line) == 0 && f.head == 0 {
			ends = append(ends, i+1)
		}
	}
	return ends
}

func FuzzHello(f *testing.F) {
	ours, theirs := net.Pipe()
	go tls.Client(theirs, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}}).Handshake()
	buf := make([]byte, 4096)
	n, err := ours.Read(buf)
	if err != nil {
		f.Fatal(err)
	}
	ours.Close()
	theirs.Close()
	f.Add(buf[:n])
	f.Add(buf[:n/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		h, heard, err := readHello(&silent{Reader: iotest.OneByteReader(bytes.NewReader(data))})
		if !bytes.HasPrefix(data, heard) {
			t.Fatalf("heard %x of %x", heard, data)
		}
		if err == nil && h.serverName != "" && !bytes.Contains(data, []byte(h.serverName)) {
			t.Fatalf("the name %q is not in %x", h.serverName, data)
		}
	})
}

// A silent connection is only read.
type silent struct {
	net.Conn
	io.Reader
}

func (s *silent) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (s *silent) SetDeadline(time.Time) error      { return nil }
func (s *silent) SetReadDeadline(time.Time) error  { return nil }
func (s *silent) SetWriteDeadline(time.Time) error { return nil }
func (s *silent) Close() error                     { return nil }

func TestAGreetingWithoutEndIsGivenUp(t *testing.T) {
	t.Parallel()
	record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
	record[5], record[6], record[7], record[8] = 1, 0, 0xff, 0xff // a greeting of 64 KiB
	endless := strings.NewReader(strings.Repeat(string(record), 20))
	if _, heard, err := readHello(&silent{Reader: endless}); err == nil || len(heard) > helloMax+1<<14 {
		t.Errorf("heard %d bytes, %v", len(heard), err)
	}
}

// However a stream arrives, the same comes out, and no text that was to be replaced.
func FuzzRewriter(f *testing.F) {
	f.Add([]byte("a secret and a secretive sec"), "secret", "secre", "PH", 3)
	f.Add([]byte("aaaaaaaaab"), "aaab", "ab", "", 1)
	f.Fuzz(func(t *testing.T, stream []byte, old1, old2, new1 string, size int) {
		if len(old1) > 100 || len(old2) > 100 || len(stream) > 1<<16 {
			return
		}
		p := new(patterns)
		p.add(old1, new1)
		p.add(old2, "")
		want := p.redact(bytes.Clone(stream))
		for _, n := range []int{1, max(1, size%100), len(stream) + 1} {
			got, err := io.ReadAll(newRewriter(&pieces{stream, n}, fixed(p), replaced))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q in pieces of %d without %q and %q is %q, %v; want %q", stream, n, old1, old2, got, err, want)
			}
		}
		same, err := io.ReadAll(newRewriter(&pieces{stream, 1}, fixed(p), filled))
		if err != nil || len(same) != len(stream) {
			t.Fatalf("%d bytes of %d, %v", len(same), len(stream), err)
		}
		for _, old := range []string{old1, old2} {
			if old != "" && strings.Trim(old, "*") != "" && bytes.Contains(same, []byte(old)) && !strings.Contains(old, "*") {
				t.Fatalf("%q is still in %q", old, same)
			}
		}
	})
}

type pieces struct {
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data[:min(p.size, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

// Every value is found in what holds it, in every form and at every place.
func FuzzForms(f *testing.F) {
	f.Add("s3cr3t-value", "before", "after")
	f.Fuzz(func(t *testing.T, value, before, after string) {
		if len(value) < ValueMin || len(value) > 200 || !httpguts.ValidHeaderFieldValue(value) {
			return
		}
		s := newSecrets(nil)
		ph := s.placeholder("T")
		if strings.Contains(ph, value) {
			return
		}
		s.learn("T", value)
		clean := string(s.patterns().redact([]byte(before + value + after)))
		if strings.Contains(clean, value) && !strings.Contains(before+ph+after, value) {
			t.Fatalf("%q is in %q", value, clean)
		}
	})
}

func TestHeldBackIsNoMoreThanNeeded(t *testing.T) {
	t.Parallel()
	p := new(patterns)
	p.add("secret", "X")
	r, w := io.Pipe()
	rewritten := newRewriter(r, fixed(p), replaced)
	buf := make([]byte, 100)
	for _, c := range []struct{ in, out string }{{"data: 1\n\n", "data: 1\n\n"}, {"data: se", "data: "}, {"cret\n", "X\n"}, {"tell se", "tell "}, {"ven\n", "seven\n"}} {
		go io.WriteString(w, c.in)
		n, err := rewritten.Read(buf)
		if err != nil || string(buf[:n]) != c.out {
			t.Errorf("after %q came %q, %v; want %q", c.in, buf[:n], err, c.out)
		}
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	if got := printable("a\nb\x00c\xffd\u202ee ü " + strings.Repeat("x", 1000)); !strings.HasPrefix(got, "a?b?c?d?e ü x") || len(got) > 600 {
		t.Errorf("%q", got)
	}
}
