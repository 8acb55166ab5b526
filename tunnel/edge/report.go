package edge

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
)

// A reporter tells the plane what has passed, each second, and who has left. Every byte
// is in one report, and every report is sent until it was counted: what a crash loses
// is what passed since the last one. It is owned by one goroutine.
type reporter struct {
	edge     *Edge
	sequence int64
	pending  []api.EdgeReport // built and not yet counted, in order
	said     time.Time        // when the plane last heard of us
	left     []departure      // to be told of
	over     []*attachment    // left, but streams of theirs go on
}

// A departure is an attachment that the plane is still to be told the end of.
type departure struct {
	id     api.AttachmentID
	reason string
	a      *attachment // nil for one that never was attached here
}

const (
	reportEvery   = time.Second
	callMax       = 10 * time.Second // for one request to the plane
	detachesMax   = 16               // at once
	lastReportMax = 5 * time.Second  // when the edge stops
)

func newReporter(e *Edge) *reporter { return &reporter{edge: e} }

// detach has the reporter tell the plane of an attachment's end.
func (e *Edge) detach(id api.AttachmentID, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.departed = append(e.departed, departure{id: id, reason: reason})
}

func (r *reporter) run(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, a := range r.edge.attachments() {
				a.relax(now)
			}
			r.flush(ctx)
		}
	}
}

// last is called when nothing passes any more.
func (r *reporter) last() {
	ctx, cancel := context.WithTimeout(context.Background(), lastReportMax)
	defer cancel()
	r.flush(ctx)
}

func (r *reporter) flush(ctx context.Context) {
	if !r.send(ctx) {
		return
	}
	r.edge.mu.Lock()
	departed := r.edge.departed
	r.edge.departed = nil
	r.edge.mu.Unlock()
	r.left = append(r.left, departed...)
	for _, d := range departed {
		if d.a != nil {
			r.over = append(r.over, d.a)
		}
	}
	r.build()
	if r.send(ctx) {
		r.detach(ctx)
	}
}

// build makes reports of what has passed since the last ones.
func (r *reporter) build() {
	var traffic []api.EdgeTraffic
	for _, a := range r.edge.attachments() {
		if t, some := a.sinceReported(); some {
			traffic = append(traffic, t)
		}
	}
	going := r.over[:0]
	for _, a := range r.over {
		t, some := a.sinceReported()
		if some {
			traffic = append(traffic, t)
		}
		if some || t.Open > 0 {
			going = append(going, a)
		}
	}
	clear(r.over[len(going):])
	r.over = going

	if len(traffic) == 0 && time.Since(r.said) < ReportIdle {
		return
	}
	draining := r.edge.Stats().Draining
	for first := true; first || len(traffic) > 0; first = false {
		part := traffic[:min(len(traffic), api.EdgeReportMax)]
		traffic = traffic[len(part):]
		r.sequence++
		r.pending = append(r.pending, api.EdgeReport{Sequence: r.sequence, Draining: draining, Traffic: part})
	}
}

// sinceReported is what has passed since it was called last, and whether that is
// anything.
func (a *attachment) sinceReported() (api.EdgeTraffic, bool) {
	now := api.EdgeTraffic{
		AttachmentID: a.id, ToGateway: a.toGateway.Load(), FromGateway: a.fromGateway.Load(),
		Opened: a.opened.Load(), Open: a.open.Load(),
	}
	before := a.reported
	a.reported = now
	if now == before {
		return now, false
	}
	now.ToGateway -= before.ToGateway
	now.FromGateway -= before.FromGateway
	now.Opened -= before.Opened
	return now, true
}

// send sends what is pending, and reports whether nothing is any more.
func (r *reporter) send(ctx context.Context) bool {
	for len(r.pending) > 0 {
		report := r.pending[0]
		err := r.call(ctx, func(ctx context.Context) error { return r.edge.cfg.Plane.Report(ctx, report) })
		switch {
		case err == nil:
		case isRefused(err):
			r.edge.log.Error("the plane refuses a report: what it says is lost", "sequence", report.Sequence, "error", err)
		default:
			if ctx.Err() == nil {
				r.edge.log.Warn("the plane cannot be told what has passed; trying again", "sequence", report.Sequence, "error", err)
			}
			return false
		}
		r.pending = r.pending[1:]
		r.said = time.Now()
	}
	return true
}

// detach tells the plane who has left. Who could not be told of stays in the list.
func (r *reporter) detach(ctx context.Context) {
	if len(r.left) == 0 {
		return
	}
	told := make([]bool, len(r.left))
	var g errgroup.Group
	g.SetLimit(detachesMax)
	for i, d := range r.left {
		g.Go(func() error {
			err := r.call(ctx, func(ctx context.Context) error {
				return r.edge.cfg.Plane.Detach(ctx, d.id, api.EdgeDetach{Reason: d.reason})
			})
			told[i] = err == nil || isRefused(err)
			if err != nil && ctx.Err() == nil {
				r.edge.log.Warn("the plane was not told of a connector's end", "attachment_id", d.id, "error", err)
			}
			return nil
		})
	}
	g.Wait()
	var left []departure
	for i, d := range r.left {
		if !told[i] {
			left = append(left, d)
		}
	}
	r.left = left
}

func (r *reporter) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	return f(ctx)
}

// isRefused reports whether the plane has said no, and will again.
func isRefused(err error) bool {
	e := api.AsError(err)
	if e == nil {
		return false
	}
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusUnauthorized:
		return false
	}
	return e.Status >= 400 && e.Status < 500
}
