package edge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// A hub is what is attached to one tunnel.
type hub struct {
	attachments []*attachment // guarded by Edge.mu
	streams     int           // guarded by Edge.mu
}

// ticketHash is what a ticket is found by, so that looking one up tells nothing of how
// much of a guess was right.
type ticketHash [sha256.Size]byte

// An attachment is a connector at this edge.
type attachment struct {
	// Static after construction.
	edge      *Edge
	id        api.AttachmentID
	tunnel    api.TunnelID
	connector string // its own id
	protocol  api.TunnelProtocol
	control   *control
	ticket    ticketHash
	quic      opener // nil over TCP
	log       *slog.Logger

	toGateway, fromGateway atomic.Int64 // payload that was passed on
	opened                 atomic.Int64
	open                   atomic.Int64

	leaving atomic.Bool // takes no new streams

	reported api.EdgeTraffic // owned by the reporter: what it has told of

	mu sync.Mutex // guards what follows
	parking
	ended   bool
	reason  string
	why     *tunnel.Error // it was cut: what its streams are told, those to come as well
	streams map[stream]struct{}
}

// A stream is one to a gateway that has begun.
type stream interface {
	cut(why *tunnel.Error) // ends it at once
	sayDrain()             // lets the dialer know that nothing new should begin on it
}

// An opener opens streams of QUIC.
type opener interface {
	open(ctx context.Context) (tunnel.Carrier, error)
	close(reason string)
}

// A control is a control connection. One goroutine reads it; any may send.
type control struct {
	conn tunnel.Carrier
	mu   sync.Mutex // held while sending
}

func newControl(conn tunnel.Carrier) *control { return &control{conn: conn} }

// sendMax bounds how long a message may take. The connection of a connector that
// takes none of a few bytes is given up.
const sendMax = 10 * time.Second

func (c *control) send(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.write(b)
}

// write is send for who holds mu.
func (c *control) write(b []byte) error {
	c.conn.SetWriteDeadline(time.Now().Add(sendMax))
	_, err := c.conn.Write(b)
	if err != nil {
		c.conn.Close()
	}
	return err
}

func (c *control) refuse(err error) { c.send(refused(err)) }

// refused is the frame that tells the other end of err.
func refused(err error) []byte {
	b, err := tunnel.AppendMessage(nil, tunnel.FrameRefused, tunnel.NewRefusal(err))
	if err != nil {
		panic("edge: a refusal is a small message: " + err.Error())
	}
	return b
}

// meetConnector asks the plane about a connector. It returns its attachment, to be
// served, or nil if it was refused. quic opens streams over QUIC; nil is a connector
// by TCP.
func (e *Edge) meetConnector(ctx context.Context, c *control, payload []byte, quic opener) *attachment {
	a, err := e.attach(ctx, c, payload, quic)
	if err != nil {
		e.log.Info("connector refused", "remote", c.conn.RemoteAddr(), "reason", err)
		if tunnel.AsError(err).Stage == tunnel.StageTokenRefused {
			sleep(ctx, e.cfg.Limits.RefusalDelay) // it still counts as half open
		}
		c.refuse(err)
		return nil
	}
	return a
}

// serve keeps a connector attached until it goes.
func (a *attachment) serve() {
	a.log.Info("connector attached", "remote", a.control.conn.RemoteAddr(), "protocol", a.protocol)
	reason := a.listen()
	a.end(reason)
	a.log.Info("connector detached", "reason", reason)
}

// attach makes an attachment of a connector's first message, or fails with a
// *tunnel.Error for the connector.
func (e *Edge) attach(ctx context.Context, c *control, payload []byte, quic opener) (*attachment, error) {
	m, err := tunnel.ParseAttach(payload)
	if err != nil {
		return nil, err
	}
	if _, err := tunnel.ParseToken(string(m.Token)); err != nil {
		return nil, &tunnel.Error{Stage: tunnel.StageTokenRefused, Detail: "what came is no tunnel token", Err: err}
	}
	if err := e.hasRoom(); err != nil {
		return nil, err
	}
	protocol := api.ProtocolTCP
	if quic != nil {
		protocol = api.ProtocolQUIC
	}
	grant, err := e.cfg.Plane.Attach(ctx, api.EdgeAttach{
		Token: string(m.Token), ConnectorID: m.ConnectorID, Version: m.Version,
		Protocol: protocol, RemoteAddress: c.conn.RemoteAddr().String(),
	})
	if err != nil {
		return nil, refusal(err)
	}
	a := &attachment{
		edge: e, id: grant.ID, tunnel: grant.TunnelID, connector: m.ConnectorID,
		protocol: protocol, control: c, quic: quic,
		log:     e.log.With("tunnel_id", grant.TunnelID, "attachment_id", grant.ID, "connector_id", m.ConnectorID),
		streams: make(map[stream]struct{}),
	}
	a.reported.AttachmentID = a.id
	answer := tunnel.Attached{AttachmentID: a.id, TunnelID: a.tunnel, Domain: grant.Domain, EdgeID: e.cfg.ID, Edges: grant.Edges}
	if quic == nil {
		var ticket tunnel.Ticket
		_, _ = rand.Read(ticket[:]) // never fails
		a.ticket = sha256.Sum256(ticket[:])
		a.want, a.used = e.cfg.Limits.Spare, time.Now()
		answer.Ticket, answer.Want = ticket[:], a.want
	}
	if err := e.add(a); err != nil {
		e.detach(a.id, err.Error())
		return nil, err
	}
	b, err := tunnel.AppendMessage(nil, tunnel.FrameAttached, fit(answer))
	if err == nil {
		err = c.send(b)
	}
	if err != nil {
		a.end("the connector did not take the edge's consent")
		return nil, &tunnel.Error{Stage: tunnel.StageConnectorLost, Err: err}
	}
	return a, nil
}

// fit drops edges from a message that would not fit into a frame; each comes with the
// certificates of its CA.
func fit(m tunnel.Attached) tunnel.Attached {
	size := 1 << 10
	for i, edge := range m.Edges {
		if size += len(edge.CAs) + len(edge.ServerName) + 200*(1+len(edge.Addresses)); size > tunnel.MessageMax*3/4 || i == 16 {
			m.Edges = m.Edges[:i]
			break
		}
	}
	return m
}

// refusal is what the connector is told of the plane's answer.
func refusal(err error) *tunnel.Error {
	e := api.AsError(err)
	switch {
	case e == nil || e.Status >= 500 && e.Type != api.TypeOverloaded || e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooEarly:
		return &tunnel.Error{Stage: tunnel.StageEdgeUnreachable, Detail: "the edge cannot ask the plane about the token now", RetryAfter: 2 * time.Second, Err: err}
	case e.Status == http.StatusTooManyRequests || e.Type == api.TypeOverloaded:
		return &tunnel.Error{Stage: tunnel.StageOverloaded, Detail: e.Message, RetryAfter: max(e.RetryAfter, 2*time.Second), Err: err}
	}
	return &tunnel.Error{Stage: tunnel.StageTokenRefused, Detail: e.Message, Err: err}
}

func (e *Edge) hasRoom() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.room()
}

// room says why there is none for another connector. The caller holds mu.
func (e *Edge) room() error {
	switch {
	case e.drain:
		return tunnel.Errorf(tunnel.StageDraining, "this edge is about to stop: attach to another")
	case len(e.byID) >= e.cfg.Limits.Attachments:
		return tunnel.Errorf(tunnel.StageOverloaded, "this edge holds %d connectors, and no more", e.cfg.Limits.Attachments)
	}
	return nil
}

// add makes an attachment known, unless it was cut before that.
func (e *Edge) add(a *attachment) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.room(); err != nil {
		return err
	}
	h := e.tunnels[a.tunnel]
	if h == nil {
		h = new(hub)
	}
	if len(h.attachments) >= e.cfg.Limits.AttachmentsPerTunnel {
		return tunnel.Errorf(tunnel.StageOverloaded, "%d connectors of this tunnel are attached here, and no more", len(h.attachments))
	}
	if reason, ok := e.early[a.id]; ok {
		delete(e.early, a.id)
		return tunnel.Errorf(tunnel.StageTokenRefused, "%s", reason.reason)
	}
	h.attachments = append(h.attachments, a)
	e.tunnels[a.tunnel] = h
	e.byID[a.id] = a
	if a.quic == nil {
		e.tickets[a.ticket] = a
	}
	return nil
}

// listen reads the control connection until it ends, and says why it did.
func (a *attachment) listen() (reason string) {
	for {
		a.control.conn.SetReadDeadline(time.Now().Add(tunnel.SilenceMax))
		t, _, err := tunnel.ReadFrame(a.control.conn, 0)
		switch {
		case err != nil:
			return a.whyEnded(err)
		case t == tunnel.FramePing:
			if err := a.control.send(tunnel.AppendFrame(nil, tunnel.FramePong, nil)); err != nil {
				return a.whyEnded(err)
			}
		case t == tunnel.FrameDrain:
			a.leave()
		case t == tunnel.FrameEnd:
			return reasonLeft
		default:
			return "the connector sent what it may not send"
		}
	}
}

func (a *attachment) whyEnded(err error) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.reason != "":
		return a.reason
	case closedByOther(err):
		return reasonLeft // over QUIC the end of the connection can be faster than the frame
	case isTimeout(err):
		return "the gateway fell silent"
	}
	return "the connection to the gateway broke"
}

// reasonLeft is of a connector that has said that it goes.
const reasonLeft = "the gateway has left: it was stopped, or took another connection"

// leave takes no more streams to the connector and lets dialers know.
func (a *attachment) leave() {
	a.leaving.Store(true)
	a.mu.Lock()
	var all []stream
	for s := range a.streams {
		all = append(all, s)
	}
	a.mu.Unlock()
	for _, s := range all {
		s.sayDrain()
	}
}

// enter counts a stream, until exit. It says why the stream may not begin after all, if
// it may not.
func (a *attachment) enter(s stream) *tunnel.Error {
	a.opened.Add(1)
	a.open.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams[s] = struct{}{}
	return a.over()
}

func (a *attachment) exit(s stream) {
	a.open.Add(-1)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.streams, s)
}

// over says why no stream may begin, or nil. The caller holds mu.
func (a *attachment) over() *tunnel.Error {
	if a.why == nil && a.ended {
		return &tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "the gateway left", RetryAfter: retryAfter}
	}
	return a.why
}

// end takes an attachment from the edge, with its parked connections and, if it was
// cut, its streams. Streams of a connector that was lost end by themselves: it may be
// its control connection alone that broke.
func (a *attachment) end(reason string) {
	a.mu.Lock()
	if a.ended {
		a.mu.Unlock()
		return
	}
	a.ended = true
	a.leaving.Store(true)
	if a.reason == "" {
		a.reason = reason
	}
	left, reason := a.parking, a.reason
	a.parking = parking{}
	a.mu.Unlock()

	a.edge.remove(a, reason)
	a.control.conn.Close()
	if a.quic != nil {
		a.quic.close(reason)
	}
	left.abandon()
}

func (e *Edge) remove(a *attachment, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byID[a.id] != a {
		return
	}
	delete(e.byID, a.id)
	delete(e.tickets, a.ticket)
	h := e.tunnels[a.tunnel]
	for i, other := range h.attachments {
		if other == a {
			h.attachments = append(h.attachments[:i:i], h.attachments[i+1:]...)
			break
		}
	}
	if len(h.attachments) == 0 && h.streams == 0 {
		delete(e.tunnels, a.tunnel)
	}
	e.departed = append(e.departed, departure{a.id, reason, a})
}

// cut ends an attachment and its streams at once, also those that are just beginning.
func (a *attachment) cut(reason string) {
	why := tunnel.Errorf(tunnel.StageNotActive, "%s", reason)
	a.mu.Lock()
	a.reason, a.why = reason, why
	a.leaving.Store(true)
	var all []stream
	for s := range a.streams {
		all = append(all, s)
	}
	a.mu.Unlock()
	var cuts sync.WaitGroup
	for _, s := range all {
		cuts.Go(func() { s.cut(why) })
	}
	cuts.Wait()
	if a.control.mu.TryLock() { // else it is stuck, and learns it by the connection's end
		a.control.conn.SetWriteDeadline(time.Now().Add(cutMax))
		a.control.conn.Write(refused(why))
		a.control.mu.Unlock()
	}
	a.end(reason)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
