package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// What is spoken with an edge, by connectors and by dialers. Both come to the same
// listener and are told apart by ALPN; both speak frames, within TLS 1.3 or QUIC.
//
//	connector, TCP: a control connection  ── attach ──▶ ◀── attached
//	                                      ── ping ──▶   ◀── pong, want, edges, drain
//	                data connections      ── park ──▶   … ◀── open, then a stream
//	connector, QUIC: the same control on its first stream; the edge opens a stream of
//	                QUIC for each of ours: ◀── open, then a stream
//	dialer:         a connection a stream ── open ──▶   ◀── opened, then a stream
//
// A stream is data frames each way, whose content is the inner TLS: the edge passes it
// on and can read none of it. It ends with the connection that carries it; an end frame
// before that says that it was meant. A connection never carries a second stream, so
// streams share no window and no order, and nothing has to be agreed on when one ends.
const (
	ALPNConnector = "bailey-connector/1"
	ALPNDial      = "bailey-dial/1"
)

// DataCurves are what the keys of connections that carry streams are agreed with: the
// cheapest that is good today. What they carry is the inner TLS, whose own agreement,
// like that of control connections, also resists computers of another kind, should
// somebody keep what passes until there are such.
var DataCurves = []tls.CurveID{tls.CurveP256}

// A FrameType is the first byte of a frame.
//
//	type  1 byte
//	size  2 bytes, of the payload, big-endian
//	payload
type FrameType byte

const (
	FrameData    FrameType = 0x01 // bytes of the inner TLS, at most PayloadMax
	FrameEnd     FrameType = 0x02 // the sender has closed the stream; empty
	FramePing    FrameType = 0x03 // the connection lives; empty. Only a control connection answers, with a pong
	FramePong    FrameType = 0x04 // empty
	FrameRefused FrameType = 0x05 // a Refusal: the last frame of a connection
	FrameDrain   FrameType = 0x06 // the sender will leave: start nothing new here; empty

	FrameAttach   FrameType = 0x10 // connector: an Attach, once, on a control connection
	FrameAttached FrameType = 0x11 // edge: an Attached
	FrameWant     FrameType = 0x12 // edge: how many data connections to keep parked; 2 bytes
	FramePark     FrameType = 0x13 // connector: a Ticket, once, on a data connection
	FrameEdges    FrameType = 0x14 // edge: an Attached of which only Edges counts: they have changed

	FrameOpen   FrameType = 0x20 // dialer: an Open. To a connector it is empty: a stream begins
	FrameOpened FrameType = 0x21 // edge: an Opened
)

// The sizes of frames. One with a payload of PayloadMax fills one record of TLS, so
// that a frame is written, carried and read as a whole.
const (
	FrameHeader  = 3
	PayloadMax   = 16<<10 - FrameHeader
	InnerMax     = PayloadMax - recordOverhead // what is written to the inner TLS at once and is one frame
	MessageMax   = 1<<16 - 1                   // payload of frames other than data; the header can say no more
	TicketLen    = 32
	keyMax       = 64
	connectorMax = 128
	connectorsIn = 64 // named in an Opened
	edgesMax     = 16 // named in an Attached
)

// KeepAlive is how often an end that has nothing to say says so, and SilenceMax how
// long the other waits for a word before it takes the connection for dead.
const (
	KeepAlive  = 20 * time.Second
	SilenceMax = 3*KeepAlive + 5*time.Second
)

// A Ticket ties the data connections of a connector to its control connection. The
// edge makes one for every attachment, with which it ends.
type Ticket [TicketLen]byte

// String shows nothing, as a ticket is a credential.
func (Ticket) String() string { return "tunnel.Ticket{…}" }

// An Attach is what a connector begins with.
type Attach struct {
	Token       Secret `json:"token"`
	ConnectorID string `json:"connector_id"` // its own choice, the same on all its connections
	Version     string `json:"version,omitempty"`
}

// A Secret is text that prints as nothing.
type Secret string

func (Secret) String() string   { return "…" }
func (Secret) GoString() string { return "…" }

// An Attached is the edge's consent.
type Attached struct {
	AttachmentID api.AttachmentID `json:"attachment_id"`
	TunnelID     api.TunnelID     `json:"tunnel_id"`
	Domain       string           `json:"domain"`
	EdgeID       api.EdgeID       `json:"edge_id,omitempty"` // the edge's own
	Ticket       []byte           `json:"ticket,omitempty"`  // not over QUIC, which needs none
	Want         int              `json:"want,omitempty"`    // as FrameWant

	// Edges are where connectors can attach now; none says nothing of it.
	Edges []api.EdgeAddress `json:"edges,omitempty"`
}

// An Open asks an edge for a stream to a gateway.
type Open struct {
	TunnelID api.TunnelID `json:"tunnel_id"`

	// Connector is the one that should get it, if it is attached; with Only no other
	// will do. Otherwise calls with the same Key, which may be any text of at most 64
	// bytes, should get the same one.
	Connector string `json:"connector,omitempty"`
	Only      bool   `json:"only,omitempty"`
	Key       string `json:"key,omitempty"`
}

// An Opened says who got the stream.
type Opened struct {
	Connector  string   `json:"connector"`
	Connectors []string `json:"connectors"` // all that are attached here, at most 64
}

// A Refusal is an [Error] on its way.
type Refusal struct {
	Stage      Stage         `json:"stage"`
	Detail     string        `json:"detail,omitempty"`
	RetryAfter time.Duration `json:"retry_after_ns,omitempty"`
}

// NewRefusal is what the other end may know of err: the stage and the detail of an
// *Error, not its cause.
func NewRefusal(err error) Refusal {
	if e := AsError(err); e != nil {
		return Refusal{e.Stage, oneLine(e.Detail), e.RetryAfter}
	}
	return Refusal{Stage: StageProtocol}
}

// Error is the refusal as its receiver sees it.
func (r Refusal) Error() *Error {
	if !r.Stage.plausible() {
		r.Stage = StageProtocol
	}
	return &Error{Stage: r.Stage, Detail: oneLine(r.Detail), RetryAfter: min(max(r.RetryAfter, 0), retryAfterMax)}
}

// An EdgeAddr is an edge as those see it who dial it.
type EdgeAddr struct {
	ID         api.EdgeID     // "" if not known
	Addr       string         // host:port
	ServerName string         // in its certificate
	CAs        *x509.CertPool // who may have signed that; nil for those of the system
}

// EdgeAddrs are the addresses of an edge as the API writes them.
func EdgeAddrs(a api.EdgeAddress) ([]EdgeAddr, error) {
	var pool *x509.CertPool
	if a.CAs != "" {
		if pool = x509.NewCertPool(); !pool.AppendCertsFromPEM([]byte(a.CAs)) {
			return nil, fmt.Errorf("edge %s: its CAs hold no certificate that can be read", a.EdgeID)
		}
	}
	var all []EdgeAddr
	for _, addr := range a.Addresses {
		all = append(all, EdgeAddr{a.EdgeID, addr, a.ServerName, pool})
	}
	return all, nil
}

// AppendFrame appends a frame to b. The payload is at most MessageMax bytes.
func AppendFrame(b []byte, t FrameType, payload []byte) []byte {
	b = append(b, byte(t), 0, 0)
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(len(payload)))
	return append(b, payload...)
}

// PutHeader writes a frame's header to the first bytes of b.
func PutHeader(b []byte, t FrameType, size int) {
	b[0] = byte(t)
	binary.BigEndian.PutUint16(b[1:], uint16(size))
}

// ParseHeader reads a frame's header and holds it to its limits: of data frames, and
// of those that have no payload. Types it does not know pass.
func ParseHeader(b [FrameHeader]byte) (t FrameType, size int, err error) {
	t, size = FrameType(b[0]), int(binary.BigEndian.Uint16(b[1:]))
	most := MessageMax
	switch t {
	case FrameData:
		most = PayloadMax
	case FrameEnd, FramePing, FramePong, FrameDrain:
		most = 0
	case FrameWant:
		most = 2
	case FramePark:
		most = TicketLen
	}
	if size > most {
		return t, size, Errorf(StageProtocol, "a frame of type %#x has %d bytes, and %d are the most", byte(t), size, most)
	}
	return t, size, nil
}

// ReadFrame reads one frame with a payload of at most most bytes, and, if kinds are
// given, of one of them: others are refused by their header. It is for the messages at a
// connection's beginning and for control connections; streams are read by a [Stream].
func ReadFrame(r io.Reader, most int, kinds ...FrameType) (FrameType, []byte, error) {
	var h [FrameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	t, size, err := ParseHeader(h)
	if err != nil {
		return t, nil, err
	}
	if len(kinds) > 0 && !slices.Contains(kinds, t) {
		return t, nil, Errorf(StageProtocol, "a frame of type %#x comes where it may not", byte(t))
	}
	if size > most {
		return t, nil, Errorf(StageProtocol, "a frame of type %#x has %d bytes, and %d are the most here", byte(t), size, most)
	}
	if size == 0 {
		return t, nil, nil
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return t, nil, err
	}
	return t, payload, nil
}

// AppendMessage appends a frame whose payload is v in JSON.
func AppendMessage(b []byte, t FrameType, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return b, err
	}
	if len(payload) > MessageMax {
		return b, fmt.Errorf("message of type %#x has %d bytes, and %d are the most", byte(t), len(payload), MessageMax)
	}
	return AppendFrame(b, t, payload), nil
}

// ParseAttach reads the payload of FrameAttach.
func ParseAttach(payload []byte) (Attach, error) {
	a, err := parseMessage[Attach](payload)
	switch {
	case err != nil:
		return Attach{}, err
	case a.Token == "" || len(a.Token) > tokenTextMax:
		return Attach{}, Errorf(StageTokenRefused, "there is no token, or it is too long to be one")
	case a.ConnectorID == "" || len(a.ConnectorID) > connectorMax || len(a.Version) > connectorMax || a.ConnectorID != oneLine(a.ConnectorID) || a.Version != oneLine(a.Version):
		return Attach{}, Errorf(StageProtocol, "connector_id and version: want one line of at most %d bytes", connectorMax)
	}
	return a, nil
}

// ParseAttached reads the payload of FrameAttached.
func ParseAttached(payload []byte) (Attached, error) {
	a, err := parseMessage[Attached](payload)
	if err == nil && (len(a.Ticket) != 0 && len(a.Ticket) != TicketLen || a.Want < 0 || len(a.Edges) > edgesMax) {
		err = Errorf(StageProtocol, "the edge's consent has an impossible ticket, want or list of edges")
	}
	return a, err
}

// ParseOpen reads the payload of FrameOpen as a dialer sends it.
func ParseOpen(payload []byte) (Open, error) {
	o, err := parseMessage[Open](payload)
	if err == nil && (o.TunnelID == "" || len(o.TunnelID) > connectorMax || len(o.Connector) > connectorMax || len(o.Key) > keyMax) {
		err = Errorf(StageProtocol, "a field of the request for a stream is missing or too long")
	}
	return o, err
}

// ParseOpened reads the payload of FrameOpened.
func ParseOpened(payload []byte) (Opened, error) {
	o, err := parseMessage[Opened](payload)
	if err == nil && len(o.Connectors) > connectorsIn {
		err = Errorf(StageProtocol, "the edge names %d connectors, and %d are the most", len(o.Connectors), connectorsIn)
	}
	return o, err
}

// ParseRefusal reads the payload of FrameRefused. What cannot be read is a refusal too.
func ParseRefusal(payload []byte) *Error {
	r, err := parseMessage[Refusal](payload)
	if err != nil {
		return AsError(err)
	}
	return r.Error()
}

// parseMessage never quotes what it was given: there may be a token in it.
func parseMessage[T any](payload []byte) (T, error) {
	var v T
	if err := json.Unmarshal(payload, &v); err != nil {
		var zero T
		return zero, Errorf(StageProtocol, "a message cannot be read")
	}
	return v, nil
}
