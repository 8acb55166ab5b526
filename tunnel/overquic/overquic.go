// Package overquic is what connectors and edges agree on when they speak over QUIC: how
// a connection is set up, and a stream of QUIC as what carries a tunnel's stream. What
// is said on them is package tunnel's business, and who says it that of the two ends.
//
// Start reading at [Stream].
package overquic

import (
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// The times of a connection. Translators of addresses forget UDP flows sooner than
// those of TCP: 30 s are common.
const (
	keepAlive    = 10 * time.Second
	idleMax      = 30 * time.Second
	handshakeMax = 3 * time.Second // without a packet of the other side
)

// StreamsMax bounds the streams that an edge opens on one connection, at once.
const StreamsMax = 4096

// ConnectorConfig is a connector's side: the edge opens the streams, but for the first.
func ConnectorConfig() *quic.Config {
	c := config()
	c.MaxIncomingStreams = StreamsMax
	c.KeepAlivePeriod = keepAlive // the connector's alone: it is behind the translator
	return c
}

// EdgeConfig is an edge's side.
func EdgeConfig() *quic.Config {
	c := config()
	c.MaxIncomingStreams = 1 // the control stream
	return c
}

func config() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           handshakeMax,
		MaxIdleTimeout:                 idleMax,
		InitialStreamReceiveWindow:     1 << 20,
		MaxStreamReceiveWindow:         8 << 20,
		InitialConnectionReceiveWindow: 2 << 20,
		MaxConnectionReceiveWindow:     24 << 20,
		MaxIncomingUniStreams:          -1,
		Allow0RTT:                      false, // what comes early can come again
	}
}

// A Stream is a stream of QUIC that can be used like a connection of its own: by
// several writers, and closed under them.
type Stream struct {
	*quic.Stream
	conn    *quic.Conn
	writing sync.Mutex
	closing sync.Once
}

// NewStream makes a Stream of a connection's stream.
func NewStream(conn *quic.Conn, s *quic.Stream) *Stream { return &Stream{Stream: s, conn: conn} }

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.Stream.Write(p)
}

// Close lets what was written arrive, and takes in nothing more. A Write under way is
// cut short.
func (s *Stream) Close() error {
	s.closing.Do(func() {
		s.CancelRead(0)
		if s.writing.TryLock() {
			defer s.writing.Unlock()
			s.Stream.Close()
			return
		}
		s.CancelWrite(0)
	})
	return nil
}

// Abort ends the stream both ways at once.
func (s *Stream) Abort() {
	s.closing.Do(func() {
		s.CancelRead(0)
		s.CancelWrite(0)
	})
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }
