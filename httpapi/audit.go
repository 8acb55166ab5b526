package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/messages"
)

// An auditor writes the plane's audit record of what is asked of it: an operation
// before it is done, and what it came to after. Its zero value writes none.
type auditor struct {
	log   *audit.Log
	reads bool // every GET as well

	// Requests turned away at the door are many when somebody tries keys. Beyond a
	// bound they are counted, and the next record says how many.
	refusals   *rate.Limiter
	unrecorded atomic.Int64
}

const (
	refusalsPerSecond = 5
	refusalsBurst     = 50

	policyMax = 64 << 10 // bytes of a policy that are kept
)

func newAuditor(log *audit.Log, reads bool) *auditor {
	return &auditor{log: log, reads: reads, refusals: rate.NewLimiter(refusalsPerSecond, refusalsBurst)}
}

// wants reports whether an operation is on record: all that change something, and
// of the reads those that show keys or look into a box.
func (a *auditor) wants(rt *route, r *http.Request) bool {
	method, _ := rt.split()
	switch rt.op {
	case "environments.work.poll", "environments.work.shells.next":
		return false // asked all the time; what is handed out is: see claimed
	case "oauth.token":
		return false // asked by nobody known; what is given out is on record: see control
	case "edges.reports.create":
		return false // made all the time, and changes counts alone
	case "environments.work.heartbeat":
		// The first takes the lease. The others are the same again, and on record
		// when they are refused.
		return r.URL.Query().Get("expected_last_heartbeat") == api.HeartbeatNone
	case "messages.count_tokens":
		return a.reads
	case "environments.work.variables.value":
		return false // has a record of its own, which names the session
	case "keys.list", "environments.keys.list", "tunnels.tokens.list", "sessions.shell", "environments.work.shells.attach":
		return true
	}
	return method != http.MethodGet || a.reads
}

// announce records an operation that is about to be done. With an error it must
// not be.
func (a *auditor) announce(rt *route, r *request) error {
	if a.log == nil || !a.wants(rt, r.Request) {
		return nil
	}
	about := a.about(r)
	about.Action = audit.APIRequest
	about.Attrs["client"] = r.rec.client
	records := []audit.Record{about}
	if rt.status != passed && r.ContentLength != 0 {
		body, err := r.body()
		if err != nil {
			return err
		}
		records[0].Input = withoutSecrets(rt, body)
		records = append(records, a.content(rt, r, body)...)
	}
	if err := a.log.AppendAll(records); err != nil {
		return r.unrecorded(err)
	}
	r.rec.announced = true
	return nil
}

// withoutSecrets is the body of a request as it is recorded. Not even a digest is kept
// of the secrets of credentials: some are short enough to be guessed by.
func withoutSecrets(rt *route, body []byte) []byte {
	if !strings.HasPrefix(rt.op, "vaults.credentials.") {
		return body
	}
	var in any
	if json.Unmarshal(body, &in) != nil {
		return nil
	}
	hideSecrets(in)
	out, err := json.Marshal(in)
	if err != nil {
		return nil
	}
	return out
}

// hideSecrets replaces the values of the members of v, and of what is in it, that hold
// secrets.
func hideSecrets(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			hideSecrets(e)
		}
	case map[string]any:
		for name, e := range v {
			if isSecret(name) {
				v[name] = "[secret]"
			} else {
				hideSecrets(e)
			}
		}
	}
}

// isSecret reports whether our decoder takes the member of this name for one that holds a
// secret: it matches names whatever their case, by Unicode's folding, not by lower case.
func isSecret(name string) bool {
	return slices.ContainsFunc([]string{
		api.FieldToken, api.FieldAccessToken, api.FieldRefreshToken, api.FieldClientSecret, api.FieldSecretValue,
		api.FieldAuthorization, api.FieldRequestBody,
	}, func(field string) bool { return strings.EqualFold(name, field) })
}

// unrecorded is what the caller is told when there is no record, and so no effect.
func (r *request) unrecorded(err error) error {
	r.rec.cause = err
	return &api.Error{
		Status: http.StatusServiceUnavailable, Type: api.TypeAPI, RetryAfter: 10 * time.Second,
		Message: "the audit record cannot be written, so nothing was done; the operator of this server has to see to it",
	}
}

// about is what the records of one request have in common. Who asks is as the server
// resolved the credential; what the client says of itself does not count.
func (a *auditor) about(r *request) audit.Record {
	rec := audit.Record{
		Actor: r.who.Actor(), Request: string(r.rec.id),
		Environment: string(r.who.EnvironmentID), Session: string(r.who.SessionID),
		Attrs: map[string]string{"operation": r.rec.op, "credential": string(r.who.Kind)},
	}
	if r.who.Parent != "" {
		rec.Attrs["parent_key"] = string(r.who.Parent)
	}
	if r.who.AccountID != "" {
		rec.Attrs["access_token"] = string(r.who.KeyID)
	}
	for _, id := range r.rec.ids {
		switch id.Key {
		case "environment_id":
			rec.Environment = id.Value.String()
		case "session_id":
			rec.Session = id.Value.String()
		default:
			rec.Attrs[id.Key] = id.Value.String()
		}
	}
	return rec
}

// calls puts the calls of MCP tools on record that are made for a request of the Messages
// API.
func (a *auditor) calls(r *request) messages.Recorder {
	if a.log == nil {
		return nil
	}
	return func(c messages.Call) (func(string, []byte) error, error) {
		rec := audit.Record{
			Action: audit.ConnectorCall, Actor: r.who.Actor(), Request: string(r.rec.id), Call: c.ID, Tool: c.Tool,
			Attrs: map[string]string{"mcp_server": c.Server}, Input: c.Input, Start: c.Start,
		}
		return func(outcome string, output []byte) error {
			rec.Action, rec.Input, rec.Output = audit.ConnectorAnswer, nil, output
			rec.End, rec.Outcome = time.Now(), outcome
			return a.log.Append(rec)
		}, a.log.Append(rec)
	}
}

// content is what a body asks for that has records of its own.
func (a *auditor) content(rt *route, r *request, body []byte) []audit.Record {
	switch rt.op {
	case "sessions.events.send":
		return a.approvals(r, body)
	case "environments.create", "environments.update":
		return a.policy(r, body, "config")
	case "agents.create", "agents.update":
		return a.policy(r, body, "tools", "mcp_servers")
	case "organizations.federation_issuers.create", "organizations.federation_issuers.update":
		return a.policy(r, body, "issuer_url", "jwks", "check_jti", "max_jwt_lifetime_seconds")
	case "organizations.federation_rules.create", "organizations.federation_rules.update":
		return a.policy(r, body, "issuer_id", "match", "target", "oauth_scope", "token_lifetime_seconds")
	}
	return nil
}

// approvals are the verdicts on tool calls among the events of a body. One that is
// not well formed is refused later, as is one that nobody asked for; the answer's
// record says so.
func (a *auditor) approvals(r *request, body []byte) (records []audit.Record) {
	if !bytes.Contains(body, []byte(api.EvUserToolConfirmation)) {
		return nil
	}
	var in struct {
		Events []struct {
			Type   api.EventType `json:"type"`
			CallID string        `json:"tool_use_id"`
			Result string        `json:"result"`
		} `json:"events"`
	}
	if json.Unmarshal(body, &in) != nil || len(in.Events) > api.EventsPerRequestMax {
		return nil
	}
	for _, ev := range in.Events {
		if ev.Type != api.EvUserToolConfirmation || ev.CallID == "" || ev.Result == "" || len(ev.CallID)+len(ev.Result) > 200 {
			continue
		}
		rec := a.about(r)
		rec.Action, rec.Call = audit.Approval, ev.CallID
		rec.Attrs["decision"] = ev.Result
		records = append(records, rec)
	}
	return records
}

// policy is what a body says about what agents or boxes may do.
func (a *auditor) policy(r *request, body []byte, members ...string) []audit.Record {
	var in map[string]json.RawMessage
	if json.Unmarshal(body, &in) != nil {
		return nil
	}
	out := map[string]json.RawMessage{}
	for _, m := range members {
		if v, ok := in[m]; ok && string(v) != "null" {
			out[m] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	rec := a.about(r)
	rec.Action = audit.PolicyChange
	rec.Attrs["policy"] = strings.ToValidUTF8(string(text[:min(len(text), policyMax)]), "")
	return []audit.Record{rec}
}

// claimed records that a work item is about to be handed out, with its token. With
// an error it must not be; it is offered again a little later.
func (a *auditor) claimed(r *request, w *api.Work, worker string) error {
	if a.log == nil {
		return nil
	}
	if worker == "" {
		worker = "unnamed"
	}
	rec := a.about(r)
	rec.Action, rec.Environment, rec.Session = audit.WorkClaimed, string(w.EnvironmentID), string(w.Data.ID)
	rec.Attrs["work_id"], rec.Attrs["worker"] = string(w.ID), worker
	if err := a.log.Append(rec); err != nil {
		return r.unrecorded(err)
	}
	return nil
}

// answered records what a request came to. The effect is there or it is not, so
// nobody waits for this record.
func (a *auditor) answered(rec *record, status int) {
	if a.log == nil {
		return
	}
	r := &request{rec: rec, who: rec.who}
	out := a.about(r)
	out.Attrs["status"] = strconv.Itoa(status)
	switch {
	case status == statusClientGone:
		out.Outcome = "gone"
	case status >= 500:
		out.Outcome = "error"
	case status >= 400:
		out.Outcome = "refused"
	default:
		out.Outcome = "ok"
	}
	out.Start, out.End, out.Detail = rec.start, time.Now(), rec.outcome
	if rec.public != nil {
		out.Attrs["error_type"] = string(rec.public.Type)
	}
	if rec.made != "" {
		out.Attrs["created"] = rec.made
	}
	switch {
	case rec.announced:
		out.Action = audit.APIAnswer
	case rec.op == "environments.work.heartbeat" && status == http.StatusPreconditionFailed:
		out.Action = audit.LeaseRefused
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		if !a.refusals.Allow() {
			a.unrecorded.Add(1)
			return
		}
		if n := a.unrecorded.Swap(0); n > 0 {
			out.Attrs["more_refused"] = strconv.FormatInt(n, 10)
		}
		out.Action, out.Attrs["client"] = audit.AuthRefused, rec.client
		if rec.who.Kind == "" {
			out.Actor = "" // nobody
			delete(out.Attrs, "credential")
		}
	default:
		return
	}
	_ = a.log.Note(out) // logs by itself what it cannot write
}

// err is why nothing can be recorded, for readiness.
func (a *auditor) err() error {
	if a.log == nil {
		return nil
	}
	return a.log.Err()
}

// madeBy is the id of what an answer says was made.
func madeBy(out any) string {
	switch v := out.(type) {
	case *api.Agent:
		return string(v.ID)
	case *api.Environment:
		return string(v.ID)
	case *api.Session:
		return string(v.ID)
	case *api.Key:
		return string(v.ID)
	case *api.Tunnel:
		return string(v.ID)
	case *api.TunnelCertificate:
		return string(v.ID)
	case *api.TunnelToken:
		return string(v.ID)
	case *api.FederationIssuer:
		return string(v.ID)
	case *api.FederationRule:
		return string(v.ID)
	case *api.ServiceAccount:
		return string(v.ID)
	case *api.Vault:
		return string(v.ID)
	case *api.Credential:
		return string(v.ID)
	case *api.EdgeRegistration:
		return string(v.ID)
	case *api.EdgeGrant:
		return string(v.ID)
	case *api.Authority:
		return string(v.ID)
	}
	return ""
}
