package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A server may answer before it has the whole body. The connection goes on then, as its
// caller was told nothing else: a call that is made on it next must not be lost.
func TestAConnectionOutlivesAnEarlyAnswer(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		_ = out.EnableFullDuplex()
		half := make([]byte, 5)
		if _, err := io.ReadFull(r.Body, half); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Length", "5")
		w.Write(half)
		_ = out.Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	})
	l := serve(t, s.URL, nil)
	for name, c := range map[string]struct{ length, half, rest string }{
		"OfKnownLength": {"Content-Length: 10", "hello", "world"},
		"InChunks":      {"Transfer-Encoding: chunked", "5\r\nhello\r\n", "5\r\nworld\r\n0\r\n\r\n"},
		"WithoutAnEnd":  {"Transfer-Encoding: chunked", "5\r\nhello\r\n", "0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := l.dial("docs."+domain, "http/1.1")
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			for range 3 {
				if _, err := fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: docs.%s\r\n%s\r\n\r\n%s", domain, c.length, c.half); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != http.StatusOK || res.Close || string(got) != "hello" {
					t.Fatalf("status %d, close %t, %q, %v", res.StatusCode, res.Close, got, err)
				}
				if _, err := io.WriteString(conn, c.rest); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The server may answer the last of a body before the write of it has returned. Both
// connections can be used again then, which takes that the body is known to be whole.
func TestABodyIsKnownToBeWholeBeforeTheLastOfItLeaves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		length  int64
		chunked bool
		body    string
	}{
		"OfKnownLength": {5, false, "hello"},
		"Large":         {4 * outMax, false, strings.Repeat("x", 4*outMax)},
		"InChunks":      {unknownLength, true, "5\r\nhello\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ex := &exchange{route: &route{bodyMax: 1 << 30}, req: head{length: c.length, chunked: c.chunked}, passed: make(chan struct{}, 1)}
			var whole []bool
			ex.up = &upConn{Conn: writerConn{write: func() { whole = append(whole, ex.gotAll.Load()) }}, sends: newSweeper().watch(func() {})}
			var from body
			from.begin(&reader{from: strings.NewReader(c.body)}, c.length, c.chunked)
			if !ex.pass(&from, func() {}) || !ex.sentAll.Load() {
				t.Fatal("the body was not passed on")
			}
			for i, known := range whole {
				if last := i == len(whole)-1; known != last {
					t.Errorf("at write %d of %d the body is known to be whole: %t", i+1, len(whole), known)
				}
			}
		})
	}
}

// A writerConn is a connection that takes everything.
type writerConn struct {
	net.Conn
	write func()
}

func (c writerConn) Write(p []byte) (int, error) {
	c.write()
	return len(p), nil
}

// What a server may do something for counts, whether or not its caller wants an answer.
func TestWhatTheRateCounts(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]bool{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`: true,
		`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}`:        true,
		`{"jsonrpc":"2.0","id":1,"method":"resources/read"}`:                   true,
		`{"jsonrpc":"2.0","id":1,"method":"x/y"}`:                              true,
		`{"jsonrpc":"2.0","id":1,"method":"initialize"}`:                       false,
		`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`:                       false,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`:               false,
		`{"jsonrpc":"2.0","id":1,"result":{}}`:                                 false,
	} {
		messages, _, err := parseMessages([]byte(body), nil)
		if err != nil || len(messages) != 1 || messages[0].counts() != want {
			t.Errorf("%s: %+v, want %t: %v", body, messages, want, err)
		}
	}
}
