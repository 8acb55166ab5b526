// Package edge is the meeting place of tunnels: connectors dial in from the inside of
// networks and stay, the plane's dialers come with calls, and an edge joins the two. What
// it passes on is the inner TLS between dialer and gateway, to which it has no key: it
// sees who calls which tunnel, when and how much, and nothing of what is said.
//
// It knows no database, no host names and no HTTP. Who may attach is for its [Plane] to
// say; who may dial is whoever holds a client certificate of the plane's CA.
//
// Start reading at [Edge.Run], then attach.go and park.go for connectors, dial.go for
// dialers (here.go for one in the edge's own process), and splice.go for what happens
// between them.
package edge

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// Config says what an edge serves and with what.
type Config struct {
	// ID is the edge's own, which connectors tell edges apart by. "" leaves them to
	// addresses.
	ID api.EdgeID

	// Plane is asked about connectors and told what they did.
	Plane Plane

	// Listener is where connectors and dialers come in by TCP. Packets, if not nil, is
	// the UDP socket for connectors that come by QUIC; both usually have one number.
	// The edge closes them.
	Listener net.Listener
	Packets  net.PacketConn

	// Certificate is what the edge shows to both, asked for at each handshake.
	Certificate func() (*tls.Certificate, error)

	// DialerCAs are who has signed the certificates of dialers, asked for at each
	// handshake of one. Other certificates are refused.
	DialerCAs func() *x509.CertPool

	// Tap, if not nil, is shown all that is passed on, as the edge has it: that is how
	// tests and demonstrations show that it can read none of it. It must not keep data.
	Tap func(id api.TunnelID, toGateway bool, data []byte)

	Limits Limits
	Log    *slog.Logger // nil logs nothing
}

// Limits bound what an edge holds. Zero fields are the defaults.
type Limits struct {
	Handshake            time.Duration // 10 s: from an accepted connection to its first message, read and answered
	HalfOpen             int           // 4096: connections within that time
	HalfOpenPerAddress   int           // 256: of one remote address
	Attachments          int           // 20,000
	AttachmentsPerTunnel int           // 50
	Streams              int           // 20,000
	StreamsPerTunnel     int           // 2,000
	Parked               int           // 64: spare data connections of one attachment
	Spare                int           // 1: of them, those kept when nothing happens
	SpareIdle            time.Duration // 10 min: without a stream until there are none kept
	WaitConnection       time.Duration // 8 s: for a connector to bring another data connection
	Stall                time.Duration // 2 min: a receiver that takes nothing is cut
	IdleDialer           time.Duration // 3 min: a dialer's connection that asks for nothing is closed
	RefusalDelay         time.Duration // 1 s: before a refused connector is told so
	Drain                time.Duration // 5 min: for streams under way once Run's context has ended
}

func (l *Limits) setDefaults() {
	l.Handshake = cmp.Or(l.Handshake, 10*time.Second)
	l.HalfOpen = cmp.Or(l.HalfOpen, 4096)
	l.HalfOpenPerAddress = cmp.Or(l.HalfOpenPerAddress, 256)
	l.Attachments = cmp.Or(l.Attachments, 20_000)
	l.AttachmentsPerTunnel = cmp.Or(l.AttachmentsPerTunnel, 50)
	l.Streams = cmp.Or(l.Streams, 20_000)
	l.StreamsPerTunnel = cmp.Or(l.StreamsPerTunnel, 2_000)
	l.Parked = cmp.Or(l.Parked, 64)
	l.Spare = min(cmp.Or(l.Spare, 1), l.Parked)
	l.SpareIdle = cmp.Or(l.SpareIdle, 10*time.Minute)
	l.WaitConnection = cmp.Or(l.WaitConnection, 8*time.Second)
	l.Stall = cmp.Or(l.Stall, 2*time.Minute)
	l.IdleDialer = cmp.Or(l.IdleDialer, 3*time.Minute)
	l.RefusalDelay = cmp.Or(l.RefusalDelay, time.Second)
	l.Drain = cmp.Or(l.Drain, 5*time.Minute)
}

// A Plane is what an edge needs of the plane. Its methods are called concurrently.
type Plane interface {
	// Attach asks whether a connector may serve the tunnel whose token it has sent. An
	// *api.Error with a 4xx status other than 408, 425 and 429 refuses it; any other
	// error means that it may try again.
	Attach(ctx context.Context, a api.EdgeAttach) (*api.EdgeGrant, error)

	// Detach says that an attachment is over. It is repeated until it succeeds or is
	// refused.
	Detach(ctx context.Context, id api.AttachmentID, d api.EdgeDetach) error

	// Report says what has passed; see [api.EdgeReport]. It is called each second in
	// which something did and else each ReportIdle. After an error the same report is
	// sent again, so that it is counted once. A 4xx error drops the report.
	Report(ctx context.Context, r api.EdgeReport) error

	// Cuts waits until there are attachments to end and returns them, or returns none
	// after a while. One is returned until it was detached.
	Cuts(ctx context.Context) ([]api.EdgeCut, error)
}

// ReportIdle is how often the plane hears of an edge at which nothing happens.
const ReportIdle = 5 * time.Second

// An Edge joins connectors and dialers. Its methods may be called concurrently.
type Edge struct {
	// Static after construction.
	cfg        Config
	log        *slog.Logger
	connector  *tls.Config // for those that offer the connector's ALPN
	dialer     *tls.Config // for those that offer the dialer's
	conns      sync.WaitGroup
	halfOpen   *gate
	closing    context.Context // ends when every connection is to be closed
	closeAll   context.CancelFunc
	drains     context.Context // ends when nobody is taken in any more
	startDrain context.CancelFunc
	allIdle    chan struct{} // closed by idle
	idle       func()        // called once there is no stream and will be none

	mu       sync.Mutex
	tunnels  map[api.TunnelID]*hub
	byID     map[api.AttachmentID]*attachment
	tickets  map[ticketHash]*attachment
	departed []departure                   // for the reporter
	early    map[api.AttachmentID]earlyCut // cuts of what is not attached yet
	streams  int
	drain    bool
	served   bool
}

// New checks cfg and makes an edge. It serves once Run is called.
func New(cfg Config) (*Edge, error) {
	if cfg.Plane == nil || cfg.Listener == nil || cfg.Certificate == nil || cfg.DialerCAs == nil {
		return nil, errors.New("edge: Plane, Listener, Certificate and DialerCAs are needed")
	}
	cfg.Limits.setDefaults()
	e := &Edge{
		cfg:      cfg,
		log:      cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		halfOpen: newGate(cfg.Limits.HalfOpen, cfg.Limits.HalfOpenPerAddress),
		tunnels:  make(map[api.TunnelID]*hub),
		byID:     make(map[api.AttachmentID]*attachment),
		tickets:  make(map[ticketHash]*attachment),
		early:    make(map[api.AttachmentID]earlyCut),
	}
	e.allIdle = make(chan struct{})
	e.idle = sync.OnceFunc(func() { close(e.allIdle) })
	e.closing, e.closeAll = context.WithCancel(context.Background())
	e.drains, e.startDrain = context.WithCancel(context.Background())
	e.connector, e.dialer = e.tlsConfigs()
	return e, nil
}

// Stats is what an edge holds now.
type Stats struct {
	Tunnels     int
	Attachments int
	Streams     int
	Draining    bool
}

// Stats counts what the edge holds.
func (e *Edge) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{len(e.tunnels), len(e.byID), e.streams, e.drain}
}
