package gateway

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/tunnel"
)

// A state is what a configuration came to. It does not change; a reload makes a new one,
// and calls under way keep theirs.
type state struct {
	cfg    *Config
	suffix string            // "." and the tunnel's domain, or "" if there is none
	routes map[string]*route // by the whole host, or by what is before the suffix
}

// find returns the route for a host in its canonical form: that of the whole name, or
// that of the name without the tunnel's domain.
func (s *state) find(host string) *route {
	if r := s.routes[host]; r != nil {
		return r
	}
	if name, ok := strings.CutSuffix(host, s.suffix); ok && s.suffix != "" {
		return s.routes[name]
	}
	return nil
}

// A route is a private server and what may be asked of it.
type route struct {
	// Static. Either upstream or stdio is set.
	name     string
	key      string // in the file
	upstream *upstream
	stdio    *stdio

	rewriteHost     bool
	request, answer fieldRules
	bodyMax         int64
	response        time.Duration // to the head of an answer
	idle            time.Duration // between two reads of an answer
	tools           *toolRules    // nil if all may be called
	auth            *authRule     // nil if all may call
	sticky          bool          // sessions are this replica's
	recorded        bool          // its calls are put on record

	limiter *rate.Limiter // nil for none
	slots   int64         // calls at a time
	taken   *atomic.Int64 // those under way, an earlier state's among them

	metrics *routeMetrics

	kept bool // a later state has stdio
}

// inspects reports whether bodies have to be seen before they leave.
func (r *route) inspects() bool {
	return r.tools != nil || r.recorded || r.stdio != nil || r.limiter != nil
}

// pace refuses what the rate does not allow. What counts is what is asked of the server: a
// call of a tool is one, however many requests MCP makes to get there.
func (r *route) pace(messages []message) *refusal {
	if r.limiter == nil {
		return nil
	}
	asked := 0
	for i := range messages {
		if messages[i].counts() {
			asked++
		}
	}
	if asked == 0 {
		return nil
	}
	now := time.Now()
	// A batch of more than may ever come at once takes all that there is.
	taken := r.limiter.ReserveN(now, min(asked, r.limiter.Burst()))
	wait := taken.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	taken.CancelAt(now)
	refused := failed(tunnel.StageRateLimited, nil, "the gateway lets %v calls a second through to this server (limits.rate), and there were more", r.limiter.Limit())
	refused.status, refused.retryAfter = http.StatusTooManyRequests, wait
	return refused
}

// enter takes one of the route's places, if there is one.
func (r *route) enter(ex *exchange) *refusal {
	if r.taken.Add(1) > r.slots {
		r.taken.Add(-1)
		refused := failed(tunnel.StageOverloaded, nil, "%d calls of this route are under way, which is its limit", r.slots)
		refused.retryAfter = time.Second
		return refused
	}
	ex.slot = true
	r.metrics.active.Inc()
	return nil
}

// leave gives back what enter took, and counts.
func (r *route) leave(ex *exchange) {
	if ex.slot {
		ex.slot = false
		r.taken.Add(-1)
		r.metrics.active.Dec()
	}
	r.metrics.count(ex)
}

func (r *route) tooLong() *refusal {
	refused := failed(tunnel.StageBodyTooLong, nil, "the body is longer than the %d bytes that the gateway lets through to this server (limits.body)", r.bodyMax)
	refused.status = http.StatusRequestEntityTooLarge
	return refused
}

// close lets go of what the route holds. Calls under way go on.
func (r *route) close() {
	if r.upstream != nil {
		r.upstream.close()
	}
	if r.stdio != nil && !r.kept {
		r.stdio.close()
	}
}

// fieldRules change the fields of a head.
type fieldRules struct {
	remove []string
	set    []field
}

// removes reports whether a field is not to be passed on, as it is removed or set.
func (r *fieldRules) removes(name []byte) bool {
	for _, n := range r.remove {
		if len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return true
		}
	}
	for i := range r.set {
		if bytes.EqualFold(r.set[i].name, name) {
			return true
		}
	}
	return false
}

// keeps returns the fields of a trailer that are passed on: some programs take them for
// fields of the head. The slice is trailer's own.
func (r *fieldRules) keeps(trailer []field) []field {
	return slices.DeleteFunc(trailer, func(f field) bool { return r.removes(f.name) })
}
