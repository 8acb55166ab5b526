package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/audit"
)

// A syslog sends RFC 5424 messages. On a stream they are framed by counting
// octets (RFC 6587, and RFC 5425 with TLS). What the system has taken from us
// counts as taken: syslog has no answer. A peer that has closed its end is noticed
// before a write.
type syslog struct {
	name, network, addr string // network is unix, tcp or udp
	tls                 *tls.Config
	host                string

	conn   net.Conn // nil while there is none
	stream bool
	gone   <-chan struct{} // closed once the peer has closed its end
}

func newSyslog(name, network, addr string, conf *tls.Config) *syslog {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	return &syslog{name: name, network: network, addr: addr, tls: conf, host: printable(host, 255)}
}

// priority is facility 13, log audit, severity 6, informational.
const priority = 13*8 + 6

func (s *syslog) Name() string { return s.name }

func (s *syslog) Write(ctx context.Context, lines []audit.Line) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline() // zero is none
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	err := s.send(lines)
	if err != nil {
		s.disconnect()
	}
	return err
}

func (s *syslog) send(lines []audit.Line) error {
	if s.stream {
		var buf []byte
		for _, l := range lines {
			m := s.message(l, l.JSON)
			buf = fmt.Appendf(buf, "%d %s", len(m), m)
		}
		_, err := s.conn.Write(buf)
		return err
	}
	for _, l := range lines {
		_, err := s.conn.Write(s.message(l, l.JSON))
		if errors.Is(err, syscall.EMSGSIZE) {
			// A datagram cannot hold it. What it was can be found by its number and
			// hash; stopping for ever would be worse.
			_, err = s.conn.Write(s.message(l, fmt.Appendf(nil, `{"seq":%d,"action":%q,"hash":%q,"too_long_for_syslog":%d}`, l.Seq, l.Action, l.Hash, len(l.JSON))))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// message is a line as a message of RFC 5424.
func (s *syslog) message(l audit.Line, text []byte) []byte {
	return fmt.Appendf(nil, "<%d>1 %s %s bailey %d %s - %s", priority,
		l.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), s.host, os.Getpid(), printable(l.Action, 32), text)
}

// printable makes a header field of RFC 5424: printable ASCII of bounded length.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, text)
	if text == "" {
		return "-"
	}
	return text[:min(len(text), limit)]
}

func (s *syslog) check(ctx context.Context) error { return s.connect(ctx) }

func (s *syslog) connect(ctx context.Context) error {
	if s.conn != nil {
		select {
		case <-s.gone:
			s.disconnect()
		default:
			return nil
		}
	}
	var d net.Dialer
	var err error
	switch s.network {
	case "unix":
		if s.conn, err = d.DialContext(ctx, "unixgram", s.addr); errors.Is(err, syscall.EPROTOTYPE) {
			s.conn, err = d.DialContext(ctx, "unix", s.addr)
			s.stream = true
		}
	case "udp":
		s.conn, err = d.DialContext(ctx, "udp", s.addr)
	case "tcp":
		s.stream = true
		if s.tls != nil {
			s.conn, err = (&tls.Dialer{NetDialer: &d, Config: s.tls}).DialContext(ctx, "tcp", s.addr)
		} else {
			s.conn, err = d.DialContext(ctx, "tcp", s.addr)
		}
	}
	if err != nil {
		s.conn = nil
		return err
	}
	s.gone = nil
	if s.stream {
		s.watch()
	}
	return nil
}

// watch notices the end of a stream, which a first write after it would not.
func (s *syslog) watch() {
	gone, conn := make(chan struct{}), s.conn
	s.gone = gone
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // ends with the connection
	}()
}

func (s *syslog) disconnect() {
	_ = s.conn.Close()
	if s.gone != nil {
		<-s.gone
	}
	s.conn, s.stream = nil, false
}

// Close lets a server read what was sent before the connection ends.
func (s *syslog) Close() error {
	if s.conn == nil {
		return nil
	}
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok && s.stream && c.CloseWrite() == nil {
		select {
		case <-s.gone:
		case <-time.After(time.Second):
		}
	}
	s.disconnect()
	return nil
}
