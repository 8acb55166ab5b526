package edge

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// TestASilentStreamLivesForHours has both ends of a stream say nothing but that they are
// there, and then one of them not even that.
func TestASilentStreamLivesForHours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, from := net.Pipe()
		dst, to := net.Pipe()
		defer from.Close()
		defer dst.Close()
		var count atomic.Int64
		ended := make(chan error, 1)
		go func() { ended <- pump(dst, src, &count, time.Minute, nil) }()

		var pings atomic.Int64
		got := make(chan string, 1)
		go func() {
			for {
				kind, payload, err := tunnel.ReadFrame(to, tunnel.PayloadMax)
				switch {
				case err != nil:
					return
				case kind == tunnel.FramePing:
					pings.Add(1)
				case kind == tunnel.FrameData:
					got <- string(payload)
				}
			}
		}()
		began := time.Now()
		for time.Since(began) < 3*time.Hour {
			if _, err := from.Write(tunnel.AppendFrame(nil, tunnel.FramePing, nil)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(tunnel.KeepAlive)
		}
		if n := pings.Load(); n < 500 {
			t.Errorf("%d pings reached the other end in three hours", n)
		}
		if _, err := from.Write(tunnel.AppendFrame(nil, tunnel.FrameData, []byte("still there"))); err != nil {
			t.Fatal(err)
		}
		s := <-got
		synctest.Wait()
		if s != "still there" || count.Load() != int64(len(s)) {
			t.Errorf("%q arrived, and %d bytes were counted", s, count.Load())
		}
		fell := time.Now()
		err := <-ended
		if e := tunnel.AsError(err); e == nil || e.Stage != tunnel.StageConnectorLost || time.Since(fell) > tunnel.SilenceMax+2*tunnel.KeepAlive {
			t.Errorf("after %v of silence: %v", time.Since(fell), err)
		}
		to.Close()
	})
}

// A bare is a carrier that reads as much at once as TLS does, but is none.
type bare struct {
	*tunnel.Socket
	in *bufio.Reader
}

func newBare(conn net.Conn) bare {
	s := tunnel.NewSocket(conn)
	return bare{s, bufio.NewReader(s)}
}

func (b bare) Read(p []byte) (int, error) { return b.in.Read(p) }
func (b bare) NetConn() net.Conn          { return b.Socket }

// A counting is a connection that counts the times it is written to.
type counting struct {
	net.Conn
	writes atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestFramesThatComeTogetherGoTogetherAndNoneIsKept has frames come in bursts, and then
// nothing more.
func TestFramesThatComeTogetherGoTogetherAndNoneIsKept(t *testing.T) {
	t.Parallel()
	from, src := tcpPair(t)
	dst, to := tcpPair(t)
	counted := &counting{Conn: dst}
	var count atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- pump(newBare(counted), newBare(src), &count, time.Minute, nil)
	}()
	const bursts, each = 5, 10
	to.SetReadDeadline(time.Now().Add(time.Minute))
	for i := range bursts {
		var burst []byte
		for j := range each {
			burst = tunnel.AppendFrame(burst, tunnel.FrameData, fmt.Appendf(nil, "%d.%d", i, j))
		}
		if _, err := from.Write(burst); err != nil {
			t.Fatal(err)
		}
		for j := range each {
			_, payload, err := tunnel.ReadFrame(to, tunnel.PayloadMax)
			if want := fmt.Sprintf("%d.%d", i, j); err != nil || string(payload) != want {
				t.Fatalf("got %q and not %q, %v", payload, want, err)
			}
		}
	}
	if n := counted.writes.Load(); n >= bursts*each {
		t.Errorf("%d frames took %d writes", bursts*each, n)
	}
	from.Close()
	<-ended
}

// tcpPair is the two ends of a connection.
func tcpPair(t *testing.T) (x, y net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if x, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if y, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Close()
		y.Close()
	})
	return x, y
}

func TestAPumpEndsAsItsSourceDoes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bytes []byte
		check func(error) bool
	}{
		"closed":    {tunnel.AppendFrame(nil, tunnel.FrameEnd, nil), func(err error) bool { return errors.Is(err, errEnded) }},
		"broken":    {nil, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"in a head": {[]byte{1, 0}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"in data":   {[]byte{1, 0, 5, 'x'}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"foreign":   {[]byte{0x77, 0, 0}, func(err error) bool { e := tunnel.AsError(err); return e != nil && e.Stage == tunnel.StageProtocol }},
	} {
		src, from := net.Pipe()
		dst, to := net.Pipe()
		go io.Copy(io.Discard, to)
		go func() {
			from.Write(c.bytes)
			from.Close()
		}()
		var count atomic.Int64
		if err := pump(dst, src, &count, time.Minute, nil); !c.check(err) {
			t.Errorf("%s: %v", name, err)
		}
		to.Close()
	}
}

// A stream that is just beginning when its tunnel is archived does not slip through while
// those before it are being cut.
func TestACutHoldsForStreamsThatBegin(t *testing.T) {
	t.Parallel()
	conn, far := net.Pipe()
	far.Close()
	stuck, holding, release := new(splice), make(chan struct{}), make(chan struct{})
	a := &attachment{
		edge: new(Edge), control: &control{conn: conn}, log: slog.New(slog.DiscardHandler),
		streams: map[stream]struct{}{stuck: {}},
	}
	go stuck.once.Do(func() {
		close(holding)
		<-release
	})
	<-holding
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		a.cut("archived")
	}()
	var why *tunnel.Error
	for limit := time.Now().Add(10 * time.Second); why == nil && time.Now().Before(limit); time.Sleep(time.Millisecond) {
		a.mu.Lock()
		why = a.over()
		a.mu.Unlock()
	}
	if why == nil || why.Stage != tunnel.StageNotActive {
		t.Errorf("while the others are cut, a stream may begin: %v", why)
	}
	close(release)
	<-cut
}
