package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tool"
)

// resultEvent writes a result as the event that is posted. It is written once;
// what is posted later, however often, are the same bytes.
func resultEvent(call string, r tool.Result) json.RawMessage {
	b, err := json.Marshal(struct {
		Type      api.EventType     `json:"type"`
		ToolUseID string            `json:"tool_use_id"`
		Content   []json.RawMessage `json:"content"`
		IsError   bool              `json:"is_error"`
	}{api.EvUserToolResult, call, r.Content, r.IsError})
	if err != nil {
		// A block that is no JSON: the caller's own, never the agent's.
		return resultEvent(call, tool.ErrorResult("The result could not be written: "+err.Error()))
	}
	return b
}

// posted is what became of a result.
type posted int

const (
	postedNot   posted = iota // not delivered; the call is still open
	postedOK                  // the plane has it
	postedFinal               // the plane wants no result for this call
)

// post delivers a result, and keeps trying for as long as the lease can be ours.
// The call's id is the idempotency key: a plane that already has the result of an
// attempt whose answer was lost takes the repetition for the same.
//
// A refusal is final. Since a call without any result would hold the session up
// for ever, the first refusal that may be about the result itself is answered
// with a short error in its place.
func (s *session) post(ctx context.Context, call string, event json.RawMessage) posted {
	log := s.log.With("tool_use_id", call)
	retry := backoff{min: 500 * time.Millisecond, max: 30 * time.Second}
	substituted := false
	for {
		err := s.plane.send(ctx, s.cred, s.id, event)
		switch status := statusOf(err); {
		case err == nil:
			s.metrics.results.WithLabelValues("posted").Inc()
			return postedOK
		case ctx.Err() != nil:
			return postedNot
		case final(err):
			about := status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusUnprocessableEntity
			if !about || substituted {
				log.Error("result refused", "error", err)
				s.metrics.results.WithLabelValues("refused").Inc()
				return postedFinal
			}
			log.Warn("result refused; posting an error in its place", "error", err, "bytes", len(event))
			substituted = true
			event = resultEvent(call, tool.ErrorResult(fmt.Sprintf(
				"The tool ran, but its result of %d bytes was refused by the platform (status %d). Ask for less at a time.", len(event), status)))
			continue
		}
		left := time.Until(s.lease.validUntil())
		if left <= 0 {
			log.Error("result not posted while the lease lasted", "error", err)
			s.metrics.results.WithLabelValues("abandoned").Inc()
			return postedNot
		}
		wait := min(max(retry.next(), retryAfter(err)), left)
		log.Warn("result not posted; trying again", "error", err, "wait", wait)
		s.metrics.results.WithLabelValues("retried").Inc()
		if !sleep(ctx, wait) {
			return postedNot
		}
	}
}
