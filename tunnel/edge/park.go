package edge

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// Over TCP a connector keeps data connections parked at the edge, each good for one
// stream. How many is for the edge to say: few while nothing happens, as they cost
// memory on both sides, and as many as are waited for when calls come.

// parking is what an attachment has of that; guarded by its mutex.
type parking struct {
	parked  []tunnel.Carrier // the newest last
	waiting []chan tunnel.Carrier
	want    int       // what the connector was asked to keep
	busy    time.Time // when want was last too small
	used    time.Time // when a stream began last, or the attachment
}

// calm is how long want stays as it is after it was too small.
const calm = 30 * time.Second

// waitingMax bounds the streams that wait for a connection of one attachment.
const waitingMax = 512

// park takes in a data connection of a connector, and gives it to who waits for one.
func (e *Edge) park(conn *tls.Conn, payload []byte) (kept bool) {
	e.mu.Lock()
	a := e.tickets[sha256.Sum256(payload)]
	e.mu.Unlock()
	if a == nil || len(payload) != tunnel.TicketLen {
		newControl(conn).refuse(tunnel.Errorf(tunnel.StageTokenRefused, "this ticket's attachment is over"))
		return false
	}
	conn.SetDeadline(time.Time{})
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) > 0 {
		a.waiting[0] <- conn // has room for one
		a.waiting = a.waiting[1:]
		return true
	}
	if a.over() != nil || len(a.parked) >= e.cfg.Limits.Parked {
		return false
	}
	a.parked = append(a.parked, conn)
	return true
}

var errNoConnection = errors.New("the connector brought no connection in time")

// begin gets a connection to the connector on which a stream has begun.
func (a *attachment) begin(ctx context.Context) (tunnel.Carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, a.edge.cfg.Limits.WaitConnection)
	defer cancel()
	for {
		conn, err := a.connection(ctx)
		if err != nil {
			return nil, err
		}
		conn.SetWriteDeadline(time.Now().Add(sendMax))
		if _, err := conn.Write(tunnel.AppendFrame(nil, tunnel.FrameOpen, nil)); err == nil {
			return conn, nil
		}
		abandon(conn) // it broke while it was parked
	}
}

// connection takes a parked connection, or waits for the connector to bring one.
func (a *attachment) connection(ctx context.Context) (tunnel.Carrier, error) {
	if a.quic != nil {
		return a.quic.open(ctx)
	}
	a.mu.Lock()
	a.used = time.Now()
	if n := len(a.parked); n > 0 && a.over() == nil {
		conn := a.parked[n-1]
		a.parked = a.parked[:n-1]
		a.mu.Unlock()
		return conn, nil
	}
	if a.over() != nil || len(a.waiting) >= waitingMax {
		a.mu.Unlock()
		return nil, errNoConnection
	}
	w := make(chan tunnel.Carrier, 1)
	a.waiting = append(a.waiting, w)
	a.busy = time.Now()
	a.raise(len(a.waiting) + a.edge.cfg.Limits.Spare)
	a.mu.Unlock()

	select {
	case conn, ok := <-w:
		if !ok {
			return nil, errNoConnection
		}
		return conn, nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, other := range a.waiting {
		if other == w {
			a.waiting = append(a.waiting[:i:i], a.waiting[i+1:]...)
			return nil, errNoConnection
		}
	}
	if conn, ok := <-w; ok { // it was given one just now
		return conn, nil
	}
	return nil, errNoConnection
}

// raise asks the connector for more connections, if it was not asked already. The
// caller holds mu.
func (a *attachment) raise(want int) {
	want = min(max(want, a.want), a.edge.cfg.Limits.Parked)
	if want != a.want {
		a.want = want
		go a.sayWant()
	}
}

// relax lets an attachment go back to few parked connections, by halves, once they
// were enough for a while; and to none once there was no stream for long.
func (a *attachment) relax(now time.Time) {
	spare := a.edge.cfg.Limits.Spare
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.used) >= a.edge.cfg.Limits.SpareIdle {
		spare = 0
	}
	if a.quic != nil || a.ended || a.want <= spare || now.Sub(a.busy) < calm {
		return
	}
	a.busy = now
	a.want = max(spare, a.want/2) // 0 of 1
	if extra := len(a.parked) - a.want; extra > 0 {
		for _, conn := range a.parked[:extra] {
			go abandon(conn)
		}
		a.parked = append([]tunnel.Carrier(nil), a.parked[extra:]...)
	}
	go a.sayWant()
}

// sayWant tells the connector how many connections to keep.
func (a *attachment) sayWant() {
	a.control.mu.Lock()
	defer a.control.mu.Unlock()
	a.mu.Lock()
	want := a.want // as of now: a later call may have come before
	a.mu.Unlock()
	a.control.write(tunnel.AppendFrame(nil, tunnel.FrameWant, binary.BigEndian.AppendUint16(nil, uint16(want))))
}

// abandon lets go of what is left when an attachment ends.
func (p *parking) abandon() {
	for _, w := range p.waiting {
		close(w)
	}
	for _, conn := range p.parked {
		abandon(conn)
	}
}

// abandon closes a connection without waiting for the other end.
func abandon(conn tunnel.Carrier) {
	switch c := conn.(type) {
	case *tls.Conn:
		c.NetConn().Close()
	case interface{ Abort() }:
		c.Abort()
	default:
		conn.Close()
	}
}
