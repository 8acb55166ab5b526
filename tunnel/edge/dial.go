package edge

import (
	"cmp"
	"context"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// serveDialer waits for a dialer to say which tunnel it wants, and passes on what both
// ends say until one of them has enough.
func (e *Edge) serveDialer(conn *tls.Conn) {
	// Idle dialers do not keep a drain waiting.
	stop := context.AfterFunc(e.closing, func() { conn.NetConn().Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(e.cfg.Limits.IdleDialer))
	_, payload, err := tunnel.ReadFrame(conn, messageMax, tunnel.FrameOpen)
	if err != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	if err := e.join(conn, payload); err != nil {
		e.log.Debug("stream refused", "error", err)
		conn.SetWriteDeadline(time.Now().Add(sendMax))
		conn.Write(refused(err))
		conn.Close()
	}
}

// join finds the dialer a connector and splices the two. Its error is a *tunnel.Error
// of a stream that did not begin.
func (e *Edge) join(conn *tls.Conn, payload []byte) error {
	open, err := tunnel.ParseOpen(payload)
	if err != nil {
		return err
	}
	candidates, names, err := e.candidates(open)
	if err != nil {
		return err
	}
	defer e.leaveStream(open)
	a, gateway, err := begin(e.closing, candidates)
	if err != nil {
		return err
	}
	opened, err := tunnel.AppendMessage(nil, tunnel.FrameOpened, tunnel.Opened{Connector: a.connector, Connectors: names})
	if err != nil {
		abandon(gateway)
		return err
	}
	e.splice(a, conn, gateway, opened)
	return nil
}

// begin has the first connector that does take a stream. Once ctx has ended, none is to
// blame.
func begin(ctx context.Context, candidates []*attachment) (*attachment, tunnel.Carrier, error) {
	for _, a := range candidates {
		gateway, err := a.begin(ctx)
		if err == nil {
			return a, gateway, nil
		}
		if ctx.Err() != nil {
			break
		}
		a.log.Warn("connector takes no stream", "error", err)
	}
	return nil, nil, &tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "the connectors that are attached take no streams", RetryAfter: retryAfter}
}

// retryAfter is when a connector that was lost can be expected back.
const retryAfter = 2 * time.Second

// triesMax bounds the connectors that are tried for one stream.
const triesMax = 3

// candidates are the connectors to try for a stream, the best first, and the names of
// all. The stream counts from now on, until leaveStream.
func (e *Edge) candidates(open tunnel.Open) (best []*attachment, names []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.drain {
		return nil, nil, &tunnel.Error{Stage: tunnel.StageDraining, Detail: "this edge is about to stop"}
	}
	h := e.tunnels[open.TunnelID]
	if h == nil {
		return nil, nil, &tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "no gateway is connected", RetryAfter: retryAfter}
	}
	if e.streams >= e.cfg.Limits.Streams || h.streams >= e.cfg.Limits.StreamsPerTunnel {
		return nil, nil, &tunnel.Error{Stage: tunnel.StageOverloaded, Detail: "the limit of streams is reached", RetryAfter: retryAfter}
	}
	type candidate struct {
		a        *attachment
		wanted   bool
		affinity uint64
		streams  int64
	}
	var all []candidate
	for _, a := range h.attachments {
		if a.leaving.Load() || open.Only && a.connector != open.Connector {
			continue
		}
		c := candidate{a: a, wanted: open.Connector != "" && a.connector == open.Connector, streams: a.open.Load()}
		if open.Key != "" {
			c.affinity = tunnel.Affinity(open.Key, a.connector)
		}
		all = append(all, c)
		if !slices.Contains(names, a.connector) && len(names) < connectorsNamed {
			names = append(names, a.connector)
		}
	}
	if len(all) == 0 {
		return nil, nil, &tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "no gateway that would do is connected", RetryAfter: retryAfter}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	slices.SortStableFunc(all, func(x, y candidate) int {
		switch {
		case x.wanted && !y.wanted:
			return -1
		case y.wanted && !x.wanted:
			return 1
		}
		return cmp.Or(cmp.Compare(y.affinity, x.affinity), cmp.Compare(x.streams, y.streams))
	})
	for _, c := range all[:min(len(all), triesMax)] {
		best = append(best, c.a)
	}
	slices.Sort(names)
	e.streams++
	h.streams++
	e.conns.Add(1)
	return best, names, nil
}

// connectorsNamed bounds what a dialer is told of other connectors.
const connectorsNamed = 64

// leaveStream is called when a stream that candidates counted is over.
func (e *Edge) leaveStream(open tunnel.Open) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.conns.Done()
	e.streams--
	h := e.tunnels[open.TunnelID] // kept while it has streams
	if h.streams--; h.streams == 0 && len(h.attachments) == 0 {
		delete(e.tunnels, open.TunnelID)
	}
	if e.streams == 0 && e.drain {
		e.idle()
	}
}
