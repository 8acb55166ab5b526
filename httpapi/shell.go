package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/bailey-platform/bailey/api"
)

// shellPing is how often an end of a shell is asked for a sign of life, and how long
// it may take.
const shellPing = 20 * time.Second

// openShell answers a person's request for a shell. Everything that can go wrong before
// the shell is there is an ordinary error answer; then the connection becomes a
// WebSocket.
func (s *Server) openShell(ctx context.Context, r *request) (any, error) {
	q := r.query()
	size := api.ShellSize{Columns: int(q.integer("columns", 1, api.ShellSizeMax)), Rows: int(q.integer("rows", 1, api.ShellSizeMax))}
	if q.err != nil {
		return nil, q.err
	}
	if err := upgradable(r.Request); err != nil {
		return nil, err
	}
	ctx, end := s.untilStreamsEnd(ctx)
	defer end()
	sh, err := s.control.OpenShell(ctx, r.who, r.session(), size)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	worker, err := sh.Wait(ctx)
	if err != nil {
		return nil, s.stoppingOr(err)
	}
	person, err := s.upgrade(ctx, r)
	if err != nil {
		return nil, err
	}
	defer person.close()
	how := sh.Relay(person.ctx, person, worker)
	r.rec.outcome = how.Reason
	if how.Code != api.ShellCodeNone {
		r.rec.outcome = fmt.Sprintf("exit %d", how.Code)
	}
	return nil, nil
}

// nextShell answers a worker that asks for shells, with null when there is none.
func (s *Server) nextShell(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	q := r.query()
	block := q.milliseconds("block_ms", time.Millisecond, api.ShellPollMax)
	if q.err != nil {
		return nil, q.err
	}
	ctx, end := s.untilStreamsEnd(ctx)
	defer end()
	sh, err := s.control.NextShell(ctx, r.who, r.environment(), r.work(), block)
	if err != nil {
		return nil, s.stoppingOr(err)
	}
	return sh, nil
}

// attachShell makes a worker's connection its end of a shell.
func (s *Server) attachShell(ctx context.Context, r *request) (any, error) {
	if err := upgradable(r.Request); err != nil {
		return nil, err
	}
	end, err := s.control.AttachShell(ctx, r.who, r.environment(), r.work(), r.shell())
	if err != nil {
		return nil, err
	}
	ctx, done := s.untilStreamsEnd(ctx)
	defer done()
	worker, err := s.upgrade(ctx, r)
	if err != nil {
		end.GiveUp()
		return nil, err
	}
	defer worker.close()
	end.Serve(worker.ctx, worker)
	return nil, nil
}

// untilStreamsEnd derives a context that also ends with the streams of this server.
// What runs in it is waited for.
func (s *Server) untilStreamsEnd(ctx context.Context) (context.Context, func()) {
	s.hijacked.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ending, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.hijacked.Done()
	}
}

// stoppingOr is err, or what a client is told when the server was the one to stop.
func (s *Server) stoppingOr(err error) error {
	if errors.Is(err, context.Canceled) && s.ending.Err() != nil {
		return api.Overloaded(time.Second, "the server is stopping; connect again")
	}
	return err
}

// upgradable refuses a request that does not ask for a WebSocket of ours.
func upgradable(r *http.Request) error {
	for _, p := range r.Header.Values("Sec-WebSocket-Protocol") {
		if p == api.ShellProtocol {
			return nil
		}
	}
	e := api.Invalid("this operation is a WebSocket of the protocol %s; `bailey sessions shell` speaks it", api.ShellProtocol)
	e.Status = http.StatusUpgradeRequired
	return e
}

// upgrade turns a request's connection into an end of a shell.
func (s *Server) upgrade(ctx context.Context, r *request) (*shellConn, error) {
	r.rec.stream = true
	conn, err := websocket.Accept(r.w, r.Request, &websocket.AcceptOptions{Subprotocols: []string{api.ShellProtocol}})
	if err != nil {
		// It has answered already.
		return nil, api.Invalid("the WebSocket handshake failed")
	}
	conn.SetReadLimit(api.ShellDataMax + 1)
	// The request's own context does not outlive its handshake in every server.
	ctx, cancel := context.WithCancel(ctx)
	c := &shellConn{ctx: ctx, cancel: cancel, conn: conn, timeout: s.writeTimeout, pinged: make(chan struct{})}
	go c.ping()
	return c, nil
}

// A shellConn is a WebSocket as an end of a shell.
type shellConn struct {
	ctx     context.Context // ends when the connection is known to be dead
	cancel  context.CancelFunc
	conn    *websocket.Conn
	timeout time.Duration
	pinged  chan struct{}
}

// ping finds out about an end that is gone without a word. Somebody has to be in
// Receive for the answers to be read.
func (c *shellConn) ping() {
	defer close(c.pinged)
	tick := time.NewTicker(shellPing)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(c.ctx, shellPing)
		err := c.conn.Ping(ctx)
		cancel()
		if err != nil {
			c.cancel()
			return
		}
	}
}

func (c *shellConn) close() {
	c.conn.Close(websocket.StatusNormalClosure, "")
	c.cancel()
	<-c.pinged
}

// Receive returns the next frame.
func (c *shellConn) Receive(ctx context.Context) (f api.ShellFrame, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	kind, data, err := c.conn.Read(ctx)
	if err != nil {
		return f, err
	}
	if kind == websocket.MessageBinary {
		f.Data = data
		return f, nil
	}
	f.Note = new(api.ShellNote)
	return f, json.Unmarshal(data, f.Note)
}

// Send sends a frame, and waits for an end that does not read for as long as any other
// write does.
func (c *shellConn) Send(ctx context.Context, f api.ShellFrame) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	if f.Note == nil {
		return c.conn.Write(ctx, websocket.MessageBinary, f.Data)
	}
	data, err := json.Marshal(f.Note)
	if err != nil {
		return err
	}
	return c.conn.Write(ctx, websocket.MessageText, data)
}
