package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tunnel"
)

// A Recorder keeps the record of what was called. [audit.Log] is one.
type Recorder interface {
	AppendAll([]audit.Record) error
	Note(audit.Record) error
}

// A pending is a call on record whose answer is not.
type pending struct{ record audit.Record }

// nobody is the actor of a call whose caller has not proved who they are. It came through
// the tunnel: from the platform, or from an edge, which can begin an inner TLS of its own.
const nobody = "unproved"

// describe is what is recorded of a message.
func (ex *exchange) describe(action string, m *message) audit.Record {
	r := audit.Record{
		Actor: nobody, Action: action, Call: shorten(strings.Trim(string(m.id), `"`), 100), Tool: shorten(m.name, 200), Start: ex.began,
		Attrs: map[string]string{
			"route": ex.route.name, "host": ex.host, "method": shorten(m.method, 100), "bytes": strconv.FormatInt(ex.in.Load(), 10),
		},
	}
	if ex.caller != "" {
		r.Actor = shorten(ex.caller, 200)
	}
	if ex.bearer != "" {
		r.Attrs["bearer"] = ex.bearer
	}
	if id := ex.req.get(sessionID); id != nil {
		// Some servers take it for a proof of who calls.
		sum := sha256.Sum256(id)
		r.Session = "mcp_" + hex.EncodeToString(sum[:8])
	}
	if m.arguments != nil && ex.g.arguments {
		r.Input = m.arguments
	}
	return r
}

// record puts the messages on record, of which none has left yet. What cannot be recorded
// is not done.
func (ex *exchange) record() *refusal {
	if !ex.route.recorded {
		return nil
	}
	var all []audit.Record
	for i := range ex.messages {
		if m := &ex.messages[i]; m.method != "" {
			r := ex.describe(audit.MCPCall, m)
			all = append(all, r)
			r.Input = nil
			ex.records = append(ex.records, pending{r})
		}
	}
	if len(all) == 0 {
		return nil
	}
	if err := ex.g.audit.AppendAll(all); err != nil {
		ex.records = ex.records[:0]
		refused := failed(tunnel.StageRequestRefused, err, "the call cannot be put on record, so it is not made")
		refused.status = http.StatusServiceUnavailable
		return refused
	}
	return nil
}

// unread is the method, on record, of a call that was refused before its body was looked at.
const unread = "(not read)"

// Whoever is refused may come again at once, and must not fill the record by it: so many
// refusals a second are noted, and of the others that there were.
const (
	refusalsRate  = 10
	refusalsBurst = 200
)

// recordRefusal notes a call that the gateway has refused before it was on record. It is
// refused in any case.
func (ex *exchange) recordRefusal(refused *refusal) {
	if ex.route == nil || !ex.route.recorded || len(ex.records) > 0 || ex.stage == tunnel.StageOtherReplica {
		return // a call that another gateway is asked to make is not refused
	}
	messages := ex.messages
	if len(messages) == 0 {
		if refused.provenance == nil {
			return // what MCP says about a stream or a session
		}
		messages = append(messages, message{method: unread})
	}
	for i := range messages {
		if messages[i].method == "" {
			continue
		}
		if !ex.g.refusals.Allow() {
			ex.g.unnoted.Add(1)
			continue
		}
		r := ex.describe(audit.MCPRefused, &messages[i])
		r.Outcome = "refused"
		r.Attrs["stage"], r.Attrs["status"], r.Attrs["reason"] = string(ex.stage), strconv.Itoa(ex.status), shorten(refused.reason(), 300)
		if n := ex.g.unnoted.Swap(0); n > 0 {
			r.Attrs["not_noted_before"] = strconv.FormatInt(n, 10)
		}
		if err := ex.g.audit.Note(r); err != nil {
			ex.g.log.Error("refused call not on record", "error", err)
		}
	}
}

// recordEnd notes what the calls on record came to.
func (ex *exchange) recordEnd() {
	for i := range ex.records {
		r := ex.records[i].record
		r.Action, r.End, r.Outcome = audit.MCPAnswer, time.Now(), "ok"
		if ex.stage != "" {
			r.Outcome = string(ex.stage)
		} else if ex.status >= 400 {
			r.Outcome = "error"
		}
		r.Attrs["status"], r.Attrs["answer_bytes"] = strconv.Itoa(ex.status), strconv.FormatInt(ex.out, 10)
		if err := ex.g.audit.Note(r); err != nil {
			ex.g.log.Error("answer not on record", "error", err)
		}
	}
	clear(ex.records)
	ex.records = ex.records[:0]
}

// logRefusal tells the operator what the gateway answered itself. The words are those
// that users of mcp-proxy look for.
func (g *Gateway) logRefusal(ex *exchange, r *refusal) {
	level, text := slog.LevelWarn, "call refused"
	attrs := []any{"host", ex.host, "status", r.httpStatus()}
	if ex.route != nil {
		attrs = append(attrs, "route", ex.route.name)
	}
	if p := r.provenance; p != nil {
		attrs = append(attrs, "stage", string(p.Stage), "detail", p.Detail)
		switch p.Stage {
		case tunnel.StageNoRoute:
			text = "no route for host"
			g.metrics.refused("", p.Stage)
		case tunnel.StageAddressRefused:
			text = p.Detail
		}
		if p.Err != nil {
			attrs = append(attrs, "error", p.Err)
		}
	} else {
		level = slog.LevelInfo
		attrs = append(attrs, "detail", r.text)
	}
	if ex.bearer != "" {
		attrs = append(attrs, "bearer", ex.bearer)
	}
	g.log.Log(ex.g.ctx(), level, text, attrs...)
}
