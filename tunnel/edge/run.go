package edge

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
)

// Run serves until ctx ends, and then drains: it takes nobody in any more, tells
// connectors and dialers to go elsewhere, and lets the streams under way end by
// themselves, for at most [Limits.Drain]. It returns nil then, when all connections are
// closed and the plane was told, or an error if the listener failed. It can be called
// once.
func (e *Edge) Run(ctx context.Context) error {
	e.mu.Lock()
	served := e.served
	e.served = true
	e.mu.Unlock()
	if served {
		return errors.New("edge: Run was called before")
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()

	r := newReporter(e)
	var parts sync.WaitGroup
	parts.Go(func() { r.run(life) })
	parts.Go(func() { e.followCuts(life) })
	var doors sync.WaitGroup
	failed := make(chan error, 2)
	doors.Go(func() { failed <- e.accept(ctx) })
	if e.cfg.Packets != nil {
		doors.Go(func() { failed <- e.acceptQUIC() })
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	e.drainAll()
	e.closeAll()
	for _, a := range e.attachments() {
		a.end("the edge has stopped")
	}
	doors.Wait() // nobody comes in any more
	e.conns.Wait()
	stop()
	parts.Wait()
	r.last()
	return err
}

// goElsewhere is how long connectors have, when an edge drains, to attach to another.
const goElsewhere = 10 * time.Second

// drainTold is how often the log says what a drain waits for.
const drainTold = 10 * time.Second

// drainAll returns when nothing is under way, or the time for it is over.
func (e *Edge) drainAll() {
	e.mu.Lock()
	e.drain = true
	streams := e.streams
	e.mu.Unlock()
	if streams == 0 {
		e.idle()
	}
	e.cfg.Listener.Close()
	e.startDrain()
	all := e.attachments()
	e.log.Info("stopping: gateways are sent to other edges, and calls under way may finish", "attachments", len(all), "streams", streams, "at_most", e.cfg.Limits.Drain)
	for _, a := range all {
		go a.control.send(tunnel.AppendFrame(nil, tunnel.FrameDrain, nil))
		a.leave()
	}
	over := time.NewTimer(e.cfg.Limits.Drain)
	defer over.Stop()
	told := time.NewTicker(drainTold)
	defer told.Stop()
	for idle := false; !idle; {
		select {
		case <-e.allIdle:
			idle = true
		case <-told.C:
			s := e.Stats()
			e.log.Info("still stopping", "attachments", s.Attachments, "streams", s.Streams)
		case <-over.C:
			e.log.Warn("streams are cut: the time to end them is over", "streams", e.Stats().Streams)
			return
		}
	}
	// No call is under way; the connectors may still be on their way elsewhere.
	elsewhere := time.NewTimer(min(goElsewhere, e.cfg.Limits.Drain))
	defer elsewhere.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(e.attachments()) > 0 {
		select {
		case <-e.closing.Done():
			return
		case <-tick.C:
		case <-elsewhere.C:
			return
		case <-over.C:
			return
		}
	}
}

// tellMax is how many connectors are told at once.
const tellMax = 64

// TellEdges tells the connectors where they can attach, as that has changed. It returns
// when all were told who could be.
func (e *Edge) TellEdges(edges []api.EdgeAddress) {
	b, err := tunnel.AppendMessage(nil, tunnel.FrameEdges, fit(tunnel.Attached{Edges: edges}))
	if err != nil {
		e.log.Error("connectors cannot be told of other edges", "error", err)
		return
	}
	var g errgroup.Group
	g.SetLimit(tellMax)
	for _, a := range e.attachments() {
		g.Go(func() error {
			a.control.send(b) // one that cannot take it is given up
			return nil
		})
	}
	g.Wait()
}

func (e *Edge) attachments() []*attachment {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*attachment, 0, len(e.byID))
	for _, a := range e.byID {
		all = append(all, a)
	}
	return all
}

// Cut ends everything of a tunnel at this edge, at once: it was archived. The reason is
// shown to both ends.
func (e *Edge) Cut(id api.TunnelID, reason string) {
	var cuts sync.WaitGroup
	for _, a := range e.attachments() {
		if a.tunnel == id {
			cuts.Go(func() { a.cut(reason) })
		}
	}
	cuts.Wait()
}

// Close ends everything at once: Run returns soon after, however much is under way.
func (e *Edge) Close() error {
	e.closeAll()
	e.mu.Lock()
	e.drain = true
	e.mu.Unlock()
	e.startDrain()
	for _, a := range e.attachments() {
		a.cut("the edge has stopped")
	}
	e.idle()
	return e.cfg.Listener.Close()
}

// An earlyCut is a cut of an attachment that the plane has granted and the connector
// has not heard of yet.
type earlyCut struct {
	reason string
	at     time.Time
}

const (
	earlyCutMax = time.Minute            // that one is remembered
	cutsRest    = 200 * time.Millisecond // after cuts, for them to reach the plane
	cutsRetry   = time.Second            // after an error
)

// followCuts ends what the plane says is to end.
func (e *Edge) followCuts(ctx context.Context) {
	for ctx.Err() == nil {
		cuts, err := e.cfg.Plane.Cuts(ctx)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Warn("the plane cannot be asked which connections to end", "error", err)
			}
			sleep(ctx, cutsRetry)
			continue
		}
		var done sync.WaitGroup
		for _, c := range cuts {
			done.Go(func() { e.cutOne(c) })
		}
		done.Wait()
		if len(cuts) > 0 {
			sleep(ctx, cutsRest)
		}
	}
}

func (e *Edge) cutOne(c api.EdgeCut) {
	e.mu.Lock()
	a := e.byID[c.AttachmentID]
	if a == nil {
		now := time.Now()
		for id, cut := range e.early {
			if now.Sub(cut.at) > earlyCutMax {
				delete(e.early, id)
			}
		}
		if _, known := e.early[c.AttachmentID]; !known {
			e.early[c.AttachmentID] = earlyCut{c.Reason, now}
		}
	}
	e.mu.Unlock()
	if a == nil {
		e.detach(c.AttachmentID, c.Reason)
		return
	}
	a.cut(c.Reason)
}
