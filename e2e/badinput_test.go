package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// refused checks that an answer is an error envelope with a status and a message
// that names what is wrong.
func refused(t *testing.T, what string, status int, header http.Header, answer string, wantStatus int, wantText string) {
	t.Helper()
	var body api.ErrorBody
	err := json.Unmarshal([]byte(answer), &body)
	switch {
	case status != wantStatus:
		t.Errorf("%s: status %d, want %d: %.300s", what, status, wantStatus, answer)
	case err != nil || body.Type != "error" || body.Error.Type == "" || body.Error.Message == "":
		t.Errorf("%s: not an error envelope: %.300s", what, answer)
	case body.RequestID == "" || string(body.RequestID) != header.Get("Request-Id"):
		t.Errorf("%s: request id %q in the body and %q in the header", what, body.RequestID, header.Get("Request-Id"))
	case !strings.Contains(body.Error.Message, wantText):
		t.Errorf("%s: the message %q does not say %q", what, body.Error.Message, wantText)
	}
}

// stillWorks checks that nothing that happened before has hurt the plane: a whole
// conversation goes through.
func (p *plane) stillWorks(t *testing.T) {
	t.Helper()
	env, _ := p.environment(t)
	w := p.watch(t, p.session(t, p.agent(t), env, "let us talk"))
	if said := outcomeOf(w.finished()).said; len(said) != 1 || said[0] != talk.Turns[0].Text {
		t.Errorf("said %q", said)
	}
}

// Whatever body is sent to whatever operation, the answer is a clear refusal.
func TestMalformedBodies(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{talk}})
	env, _ := p.environment(t)
	agent := p.agent(t)
	session := p.session(t, agent, env)
	operations := []string{
		"/v1/agents", "/v1/agents/" + string(agent), "/v1/environments", "/v1/environments/" + string(env),
		"/v1/sessions", "/v1/sessions/" + string(session), "/v1/sessions/" + string(session) + "/events",
		"/v1/keys", "/v1/environments/" + string(env) + "/keys",
	}
	bodies := map[string]string{
		"nothing":           "",
		"not JSON":          "name=x",
		"cut off":           `{"name": "x`,
		"a list":            `[]`,
		"a string":          `"x"`,
		"null":              `null`,
		"two values":        `{} {}`,
		"an unknown field":  `{"no_such_field": 1}`,
		"a wrong type":      `{"name": {"a": 1}, "events": 7, "agent": 7, "title": 7, "metadata": 7}`,
		"deep nesting":      strings.Repeat(`{"metadata":`, 100_000) + "1" + strings.Repeat("}", 100_000),
		"deep lists":        strings.Repeat("[", 1_000_000),
		"a NUL byte":        "{\"name\": \"a\x00b\"}",
		"no UTF-8":          "{\"name\": \"\xff\xfe\", \"events\": [\"\xff\"]}",
		"a huge number":     `{"name": "x", "version": 1e999999, "events": 1e999999}`,
		"a long name":       `{"name": "` + strings.Repeat("x", 1<<20) + `", "title": "` + strings.Repeat("x", 1<<20) + `", "events": []}`,
		"many events":       `{"events": [` + strings.Repeat(`{"type":"user.message"},`, 5000) + `{}]}`,
		"an event of ours":  `{"events": [{"type": "agent.message", "content": []}], "name": 1}`,
		"an empty message":  `{"events": [{"type": "user.message", "content": []}], "name": 1}`,
		"a redacted block":  `{"events": [{"type": "user.message", "content": [{"type": "redacted"}]}], "name": 1}`,
		"a made-up event":   `{"events": [{"type": "user.wish"}], "name": 1}`,
		"an event with id":  `{"events": [{"type": "user.interrupt", "id": "sevt_1"}], "name": 1}`,
		"a metadata bomb":   `{"name": "x", "metadata": {` + strings.Repeat(`"k": "v", `, 10) + `"` + strings.Repeat("k", 100) + `": "v"}}`,
		"a lone surrogate":  `{"name": "\ud800", "events": [7]}`,
		"a repeated object": `{"name": "x", "name": 7}`,
	}
	for _, path := range operations {
		for what, body := range bodies {
			status, header, answer := p.call(t, "POST", path, body)
			if status == http.StatusOK && acceptable(path, what) {
				continue
			}
			if status != http.StatusBadRequest {
				t.Errorf("%s to %s: status %d: %.300s", what, path, status, answer)
				continue
			}
			refused(t, what+" to "+path, status, header, answer, http.StatusBadRequest, "")
		}
	}
	p.stillWorks(t)
}

// acceptable lists what is odd and yet allowed.
func acceptable(path, what string) bool {
	switch what {
	case "null", "nothing": // an update that changes nothing
		return strings.Count(path, "/") == 3 && !strings.HasSuffix(path, "keys")
	case "no UTF-8", "a lone surrogate", "a NUL byte": // read as U+FFFD, as JSON decoders do, and kept
		return !strings.HasSuffix(path, "/events")
	}
	return false
}

func TestOversizedBodies(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{talk}})
	const most = 32 << 20
	big := `{"name": "` + strings.Repeat("x", most) + `"}`
	for _, path := range []string{"/v1/agents", "/v1/messages"} {
		status, header, answer := p.call(t, "POST", path, big)
		refused(t, "too large for "+path, status, header, answer, http.StatusRequestEntityTooLarge, "")
	}
	// A length that is announced, and a length that is not, are refused alike, and a
	// header has a limit too.
	status, header, answer := p.raw(t, "POST /v1/agents HTTP/1.1\r\nHost: x\r\nX-Api-Key: "+p.admin+
		"\r\nAnthropic-Version: 2023-06-01\r\nAnthropic-Beta: managed-agents-2026-04-01\r\nTransfer-Encoding: chunked\r\n\r\n"+
		strings.Repeat("100000\r\n"+strings.Repeat("x", 1<<20)+"\r\n", 33)+"0\r\n\r\n")
	refused(t, "chunks without end", status, header, answer, http.StatusRequestEntityTooLarge, "")
	if status, _, _ := p.raw(t, "GET /v1/agents HTTP/1.1\r\nHost: x\r\nX-Api-Key: "+strings.Repeat("x", 1<<20)+"\r\n\r\n"); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 1 MiB: status %d", status)
	}
	if status, _, _ := p.raw(t, "\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n"); status != http.StatusBadRequest {
		t.Errorf("no HTTP: status %d", status)
	}
	p.stillWorks(t)
}

// raw sends bytes and reads one answer.
func (p *plane) raw(t *testing.T, request string) (int, http.Header, string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(p.url, "http://"), timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(conn, request) // the answer may come before all is sent
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body) // the server may cut off what it will not read
	return res.StatusCode, res.Header, string(body)
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{talk}})
	env, _ := p.environment(t)
	ids := []string{
		"agent_none", string(env), "..", "%2e%2e%2fkeys", "%00", "a%20b", "';DROP%20TABLE%20sessions;--", strings.Repeat("x", 5000), "%F0%9F%92%A9",
	}
	for _, path := range []string{
		"/v1/agents/%s", "/v1/agents/%s/versions", "/v1/sessions/%s", "/v1/sessions/%s/events", "/v1/sessions/%s/events/stream",
		"/v1/sessions/%s/threads", "/v1/environments/" + string(env) + "/work/%s",
	} {
		for _, id := range ids {
			target := fmt.Sprintf(path, id)
			status, header, answer := p.call(t, "GET", target, "")
			if id == ".." && status == http.StatusMovedPermanently {
				t.Errorf("%s is redirected", target)
			}
			refused(t, target, status, header, answer, http.StatusNotFound, "")
		}
	}
	for _, query := range []string{"limit=0", "limit=-1", "limit=1000000", "limit=x", "page=x", "page=page_AAAA", "order=sideways", "statuses[]=asleep", "created_at[gte]=yesterday"} {
		status, header, answer := p.call(t, "GET", "/v1/sessions?"+query, "")
		name, _, _ := strings.Cut(query, "=")
		refused(t, query, status, header, answer, http.StatusBadRequest, strings.TrimRight(strings.SplitN(name, "[", 2)[0], "]"))
	}
	p.stillWorks(t)
}

// Each kind of key opens its own doors and no other.
func TestWrongKeys(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{talk}})
	mine, key := p.environment(t)
	other, _ := p.environment(t)
	session := p.session(t, p.agent(t), mine)
	elsewhere := p.session(t, p.agent(t), other)
	_, token := p.claim(t, mine, key)

	for _, tt := range []struct {
		name, method, path, body string
		edit                     func(http.Header)
		status                   int
	}{
		{"no key", "GET", "/v1/agents", "", func(h http.Header) { h.Del("X-Api-Key") }, 401},
		{"a made-up key", "GET", "/v1/agents", "", as("sk-ant-api03-" + strings.Repeat("A", 43)), 401},
		{"an empty key", "GET", "/v1/agents", "", as(""), 401},
		{"no key at all", "GET", "/v1/agents", "", as("hello"), 401},
		{"a long key", "GET", "/v1/agents", "", as("sk-ant-api03-" + strings.Repeat("A", 10_000)), 401},
		{"two keys", "GET", "/v1/agents", "", func(h http.Header) { h.Set("Authorization", "Bearer "+key) }, 401},
		{"basic authentication", "GET", "/v1/agents", "", func(h http.Header) { h.Del("X-Api-Key"); h.Set("Authorization", "Basic YTpi") }, 401},
		{"an environment key as x-api-key", "GET", "/v1/environments/" + string(mine) + "/work", "", func(h http.Header) { h.Set("X-Api-Key", key) }, 401},

		{"a worker makes an agent", "POST", "/v1/agents", `{"name":"x","model":"m"}`, as(key), 403},
		{"a worker lists sessions", "GET", "/v1/sessions", "", as(key), 403},
		{"a worker makes a key", "POST", "/v1/environments/" + string(mine) + "/keys", `{"name":"x"}`, as(key), 403},
		{"a worker uses the model", "POST", "/v1/messages", `{}`, as(key), 403},
		{"a worker deletes a session", "DELETE", "/v1/sessions/" + string(session), "", as(key), 403},
		{"a worker speaks for the user", "POST", "/v1/sessions/" + string(session) + "/events", `{"events":[{"type":"user.message","content":[{"type":"text","text":"x"}]}]}`, as(key), 403},
		{"a worker polls elsewhere", "GET", "/v1/environments/" + string(other) + "/work/poll", "", as(key), 404},
		{"a worker reads elsewhere", "GET", "/v1/sessions/" + string(elsewhere), "", as(key), 404},
		{"a worker listens elsewhere", "GET", "/v1/sessions/" + string(elsewhere) + "/events/stream", "", as(key), 404},

		{"a token polls", "GET", "/v1/environments/" + string(mine) + "/work/poll", "", as(token), 403},
		{"a token makes an agent", "POST", "/v1/agents", `{"name":"x","model":"m"}`, as(token), 403},
		{"a token reads elsewhere", "GET", "/v1/sessions/" + string(elsewhere), "", as(token), 404},
		{"a token reads its own", "GET", "/v1/sessions/" + string(session), "", as(token), 200},

		{"no version", "GET", "/v1/agents", "", func(h http.Header) { h.Del("Anthropic-Version") }, 400},
		{"a version of tomorrow", "GET", "/v1/agents", "", func(h http.Header) { h.Set("Anthropic-Version", "2031-01-01") }, 400},
		{"no beta", "GET", "/v1/agents", "", func(h http.Header) { h.Del("Anthropic-Beta") }, 404},
		{"another workspace", "GET", "/v1/agents", "", func(h http.Header) { h.Set("Anthropic-Workspace-Id", "wrkspc_other") }, 400},
		{"no such path", "GET", "/v1/nothing", "", nil, 404},
		{"no such method", "PUT", "/v1/agents", "", nil, 405},
	} {
		var edits []func(http.Header)
		if tt.edit != nil {
			edits = append(edits, tt.edit)
		}
		status, header, answer := p.call(t, tt.method, tt.path, tt.body, edits...)
		if tt.status != http.StatusOK {
			refused(t, tt.name, status, header, answer, tt.status, "")
		} else if status != tt.status {
			t.Errorf("%s: status %d: %s", tt.name, status, answer)
		}
		if secretRE.MatchString(answer) {
			t.Errorf("%s: the answer repeats a key", tt.name)
		}
	}
}

// claim takes the next work item by hand and acknowledges it.
func (p *plane) claim(t *testing.T, env api.EnvironmentID, key string) (work *api.Work, token string) {
	t.Helper()
	status, _, answer := p.call(t, "GET", "/v1/environments/"+string(env)+"/work/poll?block_ms=999", "", as(key))
	if status != http.StatusOK || json.Unmarshal([]byte(answer), &work) != nil || work == nil || work.Secret == nil {
		t.Fatalf("poll: status %d: %s", status, answer)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(*work.Secret, "="))
	var secret api.WorkSecret
	if err != nil || json.Unmarshal(payload, &secret) != nil || !strings.HasPrefix(secret.SessionsToken, api.SecretPrefixSession) {
		t.Fatalf("the secret of a work item does not hold a token: %v", err)
	}
	if status, _, answer := p.call(t, "POST", workPath(env, work.ID)+"/ack", "", as(key)); status != http.StatusOK {
		t.Fatalf("ack: status %d: %s", status, answer)
	}
	return work, secret.SessionsToken
}

func workPath(env api.EnvironmentID, work api.WorkID) string {
	return "/v1/environments/" + string(env) + "/work/" + string(work)
}

// A heartbeat proves, by repeating the last answer, that nobody else has beaten
// since. One that cannot is told what the state is.
func TestStaleHeartbeats(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{})
	env, key := p.environment(t)
	p.session(t, p.agent(t), env)
	work, token := p.claim(t, env, key)
	path := workPath(env, work.ID)
	beat := func(expected string) (int, string) {
		t.Helper()
		status, _, answer := p.call(t, "POST", path+"/heartbeat?expected_last_heartbeat="+escape(expected), "", as(token))
		return status, answer
	}
	var first, second api.Heartbeat
	if status, answer := beat("NO_HEARTBEAT"); status != 200 || json.Unmarshal([]byte(answer), &first) != nil || !first.LeaseExtended || first.State != api.WorkActive {
		t.Fatalf("the first beat: status %d: %s", status, answer)
	}
	if status, answer := beat(first.LastHeartbeat); status != 200 || json.Unmarshal([]byte(answer), &second) != nil || second.LastHeartbeat == first.LastHeartbeat {
		t.Fatalf("the second beat: status %d: %s", status, answer)
	}
	for _, stale := range []string{first.LastHeartbeat, "NO_HEARTBEAT", "", "made up"} {
		status, header, answer := p.call(t, "POST", path+"/heartbeat?expected_last_heartbeat="+escape(stale), "", as(token))
		refused(t, "expecting "+stale, status, header, answer, http.StatusPreconditionFailed, "Heartbeat precondition failed")
		var body struct {
			Error struct {
				Details struct {
					ErrorCode    string `json:"error_code"`
					CurrentState struct {
						State         string `json:"state"`
						LastHeartbeat string `json:"last_heartbeat"`
						LeaseExtended bool   `json:"lease_extended"`
						TTLSeconds    int    `json:"ttl_seconds"`
					} `json:"current_state"`
				} `json:"details"`
			} `json:"error"`
		}
		if err := json.Unmarshal([]byte(answer), &body); err != nil {
			t.Fatal(err)
		}
		d := body.Error.Details
		if d.ErrorCode != "heartbeat_precondition_failed" || d.CurrentState.State != "active" || d.CurrentState.LastHeartbeat != second.LastHeartbeat ||
			d.CurrentState.LeaseExtended || d.CurrentState.TTLSeconds == 0 || header.Get("X-Should-Retry") != "false" {
			t.Errorf("expecting %q: %s", stale, answer)
		}
	}
	if status, answer := beat(second.LastHeartbeat); status != 200 {
		t.Errorf("a stale beat disturbed the right one: status %d: %s", status, answer)
	}
	for range 2 { // stopping what is stopped is no mistake
		if status, _, answer := p.call(t, "POST", path+"/stop", `{"force":true}`, as(key)); status != 200 && status != 204 {
			t.Errorf("stop: status %d: %s", status, answer)
		}
	}
	status, header, answer := p.call(t, "POST", path+"/heartbeat?expected_last_heartbeat=x", "", as(token))
	refused(t, "the token of a stopped item", status, header, answer, http.StatusUnauthorized, "")
	var late api.Heartbeat
	if status, _, answer := p.call(t, "POST", path+"/heartbeat?expected_last_heartbeat=x", "", as(key)); status != 200 ||
		json.Unmarshal([]byte(answer), &late) != nil || late.LeaseExtended || late.State != api.WorkStopped {
		t.Errorf("a beat of a stopped item: status %d: %s", status, answer)
	}
	if status, _, answer := p.call(t, "GET", "/v1/environments/"+string(env)+"/work/poll?block_ms=1", "", as(key)); status != 200 || strings.TrimSpace(answer) != "null" {
		t.Errorf("an empty poll: status %d: %s", status, answer)
	}
	status, header, answer = p.call(t, "GET", "/v1/environments/"+string(env)+"/work/poll?block_ms=0", "", as(key))
	refused(t, "block_ms=0", status, header, answer, http.StatusBadRequest, "block_ms")
}

func escape(s string) string {
	return strings.NewReplacer("%", "%25", "+", "%2B", " ", "%20", "&", "%26", "/", "%2F", ":", "%3A").Replace(s)
}

// Results that nobody asked for change nothing, and those sent twice count once.
func TestStrayResults(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{{
			Name: "stray",
			Turns: []scripted.Turn{
				{Calls: []scripted.Call{bash("one"), bash("two")}},
				{Expect: []scripted.Expect{{Result: 0, OK: true, Contains: "first"}, {Result: 1, Failed: true, Contains: "second"}}, Text: "Both."},
			},
		}}})
		env, key := p.environment(t)
		id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "go")
		w := p.watch(t, id)
		calls := w.untilIdle(api.StopRequiresAction).StopReason.EventIDs
		if len(calls) != 2 {
			t.Fatalf("waits for %v", calls)
		}
		message := p.events(t, id)[0].ID
		path := "/v1/sessions/" + string(id) + "/events"
		post := func(format string, args ...any) (int, http.Header, string) {
			t.Helper()
			return p.call(t, "POST", path, `{"events":[`+fmt.Sprintf(format, args...)+`]}`, as(key))
		}
		const form = `{"type":"user.tool_result","tool_use_id":%q,"content":[{"type":"text","text":%q}],"is_error":%t}`
		for what, event := range map[string]string{
			"no call":             fmt.Sprintf(form, "sevt_none", "x", false),
			"an event of another": fmt.Sprintf(form, message, "x", false),
			"the wrong type":      fmt.Sprintf(`{"type":"user.custom_tool_result","custom_tool_use_id":%q}`, calls[0]),
			"no id":               `{"type":"user.tool_result"}`,
			"one good, one bad":   fmt.Sprintf(form, calls[0], "good", false) + "," + fmt.Sprintf(form, "sevt_none", "x", false),
			"a bad block":         fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"content":[{"type":"video"}]}`, calls[0]),
		} {
			status, header, answer := post("%s", event)
			refused(t, what, status, header, answer, http.StatusBadRequest, "")
		}
		status, header, answer := p.call(t, "POST", path, fmt.Sprintf(`{"events":[{"type":"user.tool_confirmation","tool_use_id":%q,"result":"allow"}]}`, calls[0]))
		refused(t, "a confirmation nobody asked for", status, header, answer, http.StatusBadRequest, "confirmation")
		status, header, answer = p.call(t, "POST", path, `{"events":[{"type":"user.message","content":[{"type":"text","text":"x"}]}]}`)
		refused(t, "a message while calls are open", status, header, answer, http.StatusBadRequest, string(calls[0]))

		var answers []string
		for range 3 {
			status, _, answer := post(form, calls[0], "the first", false)
			if status != http.StatusOK {
				t.Errorf("a result again: status %d: %s", status, answer)
			}
			answers = append(answers, answer)
		}
		if answers[0] != answers[1] || answers[1] != answers[2] {
			t.Errorf("a result sent again is answered differently:\n%s", strings.Join(answers, "\n"))
		}
		// A second result that says something else has no effect either.
		if status, _, answer := post(form, calls[0], "something else", true); status != http.StatusOK {
			t.Errorf("another result for an answered call: status %d: %s", status, answer)
		}
		if status, _, answer := post(form, calls[1], "the second", true); status != http.StatusOK {
			t.Errorf("the second result: status %d: %s", status, answer)
		}
		events := w.finished()
		want := []result{{"the first", false}, {"the second", true}}
		if diff := cmp.Diff(want, outcomeOf(events).results, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
}
