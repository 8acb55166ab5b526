package edge_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// secrets are what a call says that an edge must not see.
var secrets = []string{"Bearer the-token-of-a-server", "read_the_file", "/home/somebody/plans.txt", "the plans of somebody", "X-Header-Of-The-Caller", host}

const secretCall = `{"method":"tools/call","params":{"name":"read_the_file","arguments":{"path":"/home/somebody/plans.txt"}}}`

// record has an edge keep all that it passes on.
func record(all *lockedBuffer) func(*edge.Config) {
	return func(c *edge.Config) {
		c.Tap = func(_ api.TunnelID, _ bool, data []byte) { all.Write(data) }
	}
}

func answerSecrets(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if !bytes.Contains(body, []byte("read_the_file")) || r.Header.Get("Authorization") != secrets[0] {
		w.WriteHeader(http.StatusTeapot)
	}
	io.WriteString(w, "the plans of somebody")
}

func TestAnEdgeSeesNothingOfWhatIsSaid(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		var seen lockedBuffer
		l.handler = http.HandlerFunc(answerSecrets)
		l.edge(edge.Limits{}, record(&seen))
		l.connector("one")
		l.dial()
		text, _, err := l.call(l.ctx, secretCall, "Authorization", secrets[0], "X-Header-Of-The-Caller", "1")
		if err != nil || text != "the plans of somebody" {
			t.Fatalf("%q, %v", text, err)
		}
		if seen.Len() < 1000 {
			t.Fatalf("the edge passed %d bytes on, which cannot be all", seen.Len())
		}
		for _, secret := range secrets[:len(secrets)-1] { // the inner TLS names the host, as every TLS does
			if bytes.Contains(seen.Bytes(), []byte(secret)) {
				t.Errorf("the edge has seen %q", secret)
			}
		}
	})
}

// TestWithoutTheInnerTLSAnEdgeSeesAll shows that the test above can fail.
func TestWithoutTheInnerTLSAnEdgeSeesAll(t *testing.T) {
	t.Parallel()
	var seen lockedBuffer
	l := newLab(t)
	l.edge(edge.Limits{}, record(&seen))
	_, attached := l.attach("one")
	data := l.mustRaw(tunnel.ALPNConnector)
	data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket))
	served := make(chan struct{})
	go func() {
		defer close(served)
		if kind, _, err := tunnel.ReadFrame(data, 0); err != nil || kind != tunnel.FrameOpen {
			t.Errorf("frame %#x, %v", kind, err)
			return
		}
		serveOne(tunnel.NewStream(data, tunnel.StreamConfig{}))
	}()

	dialer := l.mustRaw(tunnel.ALPNDial, l.outer.leaf(t, "plane.test"))
	dialer.Write(message(t, tunnel.FrameOpen, tunnel.Open{TunnelID: tunnelID}))
	stream := tunnel.NewStream(dialer, tunnel.StreamConfig{})
	fmt.Fprintf(stream, "POST / HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nX-Header-Of-The-Caller: 1\r\nContent-Length: %d\r\n\r\n%s", host, secrets[0], len(secretCall), secretCall)
	res, err := http.ReadResponse(bufio.NewReader(stream), nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	stream.Close()
	<-served
	for _, secret := range secrets {
		if !bytes.Contains(seen.Bytes(), []byte(secret)) {
			t.Errorf("the edge has not seen %q", secret)
		}
	}
}

// serveOne answers one request without any TLS.
func serveOne(conn net.Conn) {
	defer conn.Close()
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	var answer bytes.Buffer
	io.Copy(io.Discard, req.Body)
	answer.WriteString("the plans of somebody")
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", answer.Len(), answer.Bytes())
	io.Copy(io.Discard, conn)
}
