package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// An edge is one that streams were opened at. A few connections are kept ready with it:
// each is good for one stream, and making one takes two round trips.
type edge struct {
	d    *Dialer
	addr tunnel.EdgeAddr

	mu      sync.Mutex // guards what follows
	ready   []ready    // the oldest first
	coming  int
	failed  time.Time // when it could not be reached last
	over    bool
	expires *time.Timer
}

type ready struct {
	conn *tls.Conn
	at   time.Time
}

const (
	edgeDialMax = 5 * time.Second
	readyMax    = 90 * time.Second // that a connection is kept; edges keep them longer
	failedMax   = 5 * time.Second  // that an edge is asked last after a failure
	openMax     = 5 * time.Second  // to send what opens a stream
)

// edgeAt is the edge at an address.
func (d *Dialer) edgeAt(addr tunnel.EdgeAddr) *edge {
	key := addr.Addr + "\x00" + addr.ServerName
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.edges[key]
	if e == nil {
		e = &edge{d: d}
		d.edges[key] = e
	}
	e.mu.Lock()
	e.addr = addr // its CAs may be others by now
	e.mu.Unlock()
	return e
}

// edgesOf are the edges of a route, those last that could not be reached lately.
func (d *Dialer) edgesOf(r Route) []*edge {
	var first, later []*edge
	for _, addr := range r.Edges {
		if e := d.edgeAt(addr); e.isDoubtful() {
			later = append(later, e)
		} else {
			first = append(first, e)
		}
	}
	return append(first, later...)
}

// isDoubtful reports whether the edge could not be reached lately.
func (e *edge) isDoubtful() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Since(e.failed) < failedMax
}

// open begins a stream, on a connection that is ready if there is one and fresh is not
// asked for. Where the edge is not in this process, its answer comes with the stream's
// first bytes.
func (e *edge) open(ctx context.Context, w *want, only, fresh bool) error {
	o := tunnel.Open{TunnelID: w.to.route.TunnelID, Connector: w.connector, Only: only, Key: keyOf(w.to)}
	if here := e.here(); here != nil {
		stream, err := here.Open(ctx, o, w.drain)
		if !errors.Is(err, errors.ErrUnsupported) {
			w.stream, w.fresh = stream, fresh // the connector's connection lay ready there
			return err
		}
	}
	hello, err := tunnel.AppendMessage(nil, tunnel.FrameOpen, o)
	if err != nil {
		return err
	}
	conn := e.take(fresh)
	if w.fresh = conn == nil; w.fresh {
		if conn, err = e.dial(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return e.fail(err)
		}
	}
	conn.SetWriteDeadline(time.Now().Add(openMax))
	if _, err = conn.Write(hello); err != nil {
		conn.NetConn().Close()
		return e.fail(err)
	}
	conn.SetWriteDeadline(time.Time{})
	w.stream = tunnel.NewStream(conn, tunnel.StreamConfig{OnDrain: w.drain})
	return nil
}

// here is the edge itself if it is in this process, or nil.
func (e *edge) here() Opener {
	if e.d.cfg.Here == nil {
		return nil
	}
	e.mu.Lock()
	id := e.addr.ID
	e.mu.Unlock()
	return e.d.cfg.Here(id)
}

// take is a connection that is ready, or nil. There will be others next time.
func (e *edge) take(none bool) *tls.Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.refill()
	if none {
		return nil
	}
	for len(e.ready) > 0 {
		last := len(e.ready) - 1
		r := e.ready[last]
		e.ready = e.ready[:last]
		if time.Since(r.at) < readyMax && tunnel.Quiet(r.conn, tunnel.SocketOf(r.conn)) {
			return r.conn
		}
		go r.conn.Close()
	}
	return nil
}

// refill brings the number of ready connections up, aside. The caller holds mu.
func (e *edge) refill() {
	for !e.over && len(e.ready)+e.coming < e.d.cfg.Spare {
		e.coming++
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), edgeDialMax)
			defer cancel()
			conn, err := e.dial(ctx)
			e.mu.Lock()
			defer e.mu.Unlock()
			e.coming--
			switch {
			case err != nil: // who needs one dials, and says so
			case e.over:
				go conn.Close()
			default:
				e.ready = append(e.ready, ready{conn, time.Now()})
				e.expire()
			}
		}()
	}
}

// expire closes what is ready for too long. The caller holds mu.
func (e *edge) expire() {
	if e.expires != nil || len(e.ready) == 0 {
		return
	}
	e.expires = time.AfterFunc(readyMax, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.expires = nil
		for len(e.ready) > 0 && time.Since(e.ready[0].at) >= readyMax {
			go e.ready[0].conn.Close()
			e.ready = e.ready[1:]
		}
		e.expire()
	})
}

func (e *edge) dial(ctx context.Context) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, edgeDialMax)
	defer cancel()
	e.mu.Lock()
	addr := e.addr
	e.mu.Unlock()
	name := addr.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(addr.Addr)
	}
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: tunnel.KeepAlive, Interval: tunnel.KeepAlive / 2, Count: 4,
	}}
	raw, err := d.DialContext(ctx, "tcp", addr.Addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tunnel.NewSocket(raw), &tls.Config{
		ServerName: name,
		RootCAs:    addr.CAs,
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{tunnel.ALPNDial},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return e.d.cfg.Certificate()
		},
		CurvePreferences:            tunnel.DataCurves,
		ClientSessionCache:          e.d.outer,
		DynamicRecordSizingDisabled: true, // a frame is a record
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != tunnel.ALPNDial {
		conn.Close()
		return nil, errors.New("what answers there is no edge")
	}
	return conn, nil
}

// fail notes that the edge was not reached.
func (e *edge) fail(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = time.Now()
	return &tunnel.Error{Stage: tunnel.StageEdgeUnreachable, Detail: fmt.Sprintf("edge %s", e.addr.Addr), Err: err, RetryAfter: 2 * time.Second}
}

func (e *edge) name() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.addr.Addr
}

func (e *edge) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	for _, r := range e.ready {
		go r.conn.Close()
	}
	e.ready = nil
}
