package httpapi

import (
	"context"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// pollWork answers null when there is nothing to do. It answers no status that
// official workers take as final, unless the request itself is wrong.
func (s *Server) pollWork(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	q := r.query()
	req := api.PollRequest{
		Block:        q.milliseconds("block_ms", time.Millisecond, api.PollBlockMax),
		ReclaimAfter: q.milliseconds("reclaim_older_than_ms", time.Millisecond, api.PollReclaimMaxValue),
		WorkerID:     workerID(r.Header.Get("Anthropic-Worker-Id")),
	}
	if q.err != nil {
		return nil, q.err
	}
	w, err := s.control.PollWork(ctx, r.who, r.environment(), req)
	if err != nil || w == nil {
		return nil, err
	}
	if err := s.audit.claimed(r, w, req.WorkerID); err != nil {
		return nil, err
	}
	return w, nil
}

// workerID makes a header value fit to be stored. An odd one only blurs a
// statistic, which is no reason to turn a worker away.
func workerID(v string) string {
	v = strings.ReplaceAll(v, "\x00", "")
	if len(v) > api.WorkerIDMax {
		v = v[:api.WorkerIDMax]
	}
	return strings.ToValidUTF8(v, "")
}

func (s *Server) ackWork(ctx context.Context, r *request) (any, error) {
	return s.control.AckWork(ctx, r.who, r.environment(), r.work())
}

func (s *Server) heartbeatWork(ctx context.Context, r *request) (any, error) {
	r.rec.quiet = true
	q := r.query()
	req := api.HeartbeatRequest{
		Expected:   q.text("expected_last_heartbeat"),
		DesiredTTL: time.Duration(q.integer("desired_ttl_seconds", 1, 86_400)) * time.Second,
	}
	if q.err != nil {
		return nil, q.err
	}
	return s.control.HeartbeatWork(ctx, r.who, r.environment(), r.work(), req)
}

// stopWork answers with the item. The official service answers 204 without a body;
// every known client accepts both.
func (s *Server) stopWork(ctx context.Context, r *request) (any, error) {
	in, err := decodeOptional[api.StopRequest](r)
	if err != nil {
		return nil, err
	}
	return s.control.StopWork(ctx, r.who, r.environment(), r.work(), in)
}

func (s *Server) getWork(ctx context.Context, r *request) (any, error) {
	return s.control.GetWork(ctx, r.who, r.environment(), r.work())
}

func (s *Server) updateWork(ctx context.Context, r *request) (any, error) {
	in, err := decode[api.WorkUpdate](r)
	if err != nil {
		return nil, err
	}
	return s.control.UpdateWork(ctx, r.who, r.environment(), r.work(), in)
}

func (s *Server) listWork(ctx context.Context, r *request) (any, error) {
	q := r.query()
	page := q.page()
	if q.err != nil {
		return nil, q.err
	}
	return s.control.ListWork(ctx, r.who, r.environment(), page)
}

func (s *Server) workStats(ctx context.Context, r *request) (any, error) {
	return s.control.WorkStats(ctx, r.who, r.environment())
}
