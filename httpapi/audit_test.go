package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/control"
)

// A deaf place is a required sink that can be told to take nothing.
type deaf struct{ on atomic.Bool }

func (d *deaf) Name() string { return "deaf" }
func (d *deaf) Close() error { return nil }

func (d *deaf) Write(context.Context, []audit.Line) error {
	if d.on.Load() {
		return errors.New("takes nothing")
	}
	return nil
}

// openAudit makes an audit record.
func openAudit(tb testing.TB, o audit.Options) (log *audit.Log, path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { log.Close() })
	return log, path
}

// entries closes a record and returns what is in it, but for the record's own.
func entries(tb testing.TB, log *audit.Log, path string) (all []*audit.Entry) {
	tb.Helper()
	if err := log.Close(); err != nil {
		tb.Fatal(err)
	}
	if s, err := audit.VerifyFile(path); err != nil || !s.Complete {
		tb.Errorf("the record does not verify: %+v, %v", s, err)
	}
	r, err := audit.OpenSegments(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	for e, err := range audit.Entries(r, audit.Filter{}) {
		if err != nil {
			tb.Fatal(err)
		}
		if !strings.HasPrefix(e.Action, "audit.") {
			all = append(all, e)
		}
	}
	return all
}

// TestAuditRecord plays a session from its agent to an approval and reads the record.
func TestAuditRecord(t *testing.T) {
	t.Parallel()
	log, path := openAudit(t, audit.Options{})
	f := newSession(t, Config{Audit: log})
	var env struct{ ID string }
	var sess struct {
		EnvironmentID string `json:"environment_id"`
	}
	f.do(t, "GET", "/v1/sessions/"+string(f.session), "", &sess)
	env.ID = sess.EnvironmentID
	var key struct{ ID, Key string }
	f.do(t, "POST", "/v1/environments/"+env.ID+"/keys", `{"name": "w"}`, &key)
	f.do(t, "GET", "/v1/environments/"+env.ID+"/keys", "", &struct{}{})
	f.do(t, "POST", "/v1/environments/"+env.ID, `{"config": {"type": "self_hosted"}}`, &struct{}{})

	// The model asks for a call, somebody allows it, a worker claims it.
	f.say(t, "go")
	call := f.control.NewEventID()
	f.write(t, f.session, control.Batch{Append: []api.Draft{
		{ID: call, Body: &api.AgentToolUse{Name: "bash", Input: []byte(`{}`), EvaluatedPermission: api.PermissionAsk}},
		{Body: &api.SessionStatusIdle{StopReason: api.StopReason{Type: api.StopRequiresAction, EventIDs: []api.EventID{call}}}},
	}, Release: true})
	f.do(t, "POST", "/v1/sessions/"+string(f.session)+"/events",
		fmt.Sprintf(`{"events": [{"type": "user.tool_confirmation", "tool_use_id": %q, "result": "allow"}]}`, call), &struct{}{})

	worker := func(method, target string) (*http.Response, string) {
		req := f.request(t, method, target, "")
		req.Header.Del("X-Api-Key")
		req.Header.Set("Authorization", "Bearer "+key.Key)
		req.Header.Set("Anthropic-Worker-Id", "w-1")
		return f.answer(t, req)
	}
	var work struct{ ID string }
	_, body := worker("GET", "/v1/environments/"+env.ID+"/work/poll?block_ms=1")
	if err := json.Unmarshal([]byte(body), &work); err != nil || work.ID == "" {
		t.Fatalf("poll: %s, %v", body, err)
	}
	at := "/v1/environments/" + env.ID + "/work/" + work.ID
	worker("POST", at+"/ack")
	worker("POST", at+"/heartbeat?expected_last_heartbeat=NO_HEARTBEAT")
	worker("POST", at+"/heartbeat?expected_last_heartbeat=somebody-elses")

	// What is turned away.
	bad := f.request(t, "GET", "/v1/agents", "")
	bad.Header.Set("X-Api-Key", "sk-ant-api03-wrong-wrong-wrong-wrong")
	f.answer(t, bad)
	worker("POST", "/v1/agents")
	f.answer(t, f.request(t, "POST", "/v1/agents", `{"name": ""}`))

	var got []string
	admin := ""
	for _, e := range entries(t, log, path) {
		who := e.Actor
		switch {
		case who == key.ID:
			who = "worker"
		case strings.HasPrefix(who, "apikey_"), who != "" && admin == "":
			admin, who = e.Actor, "admin"
		case who == admin && who != "":
			who = "admin"
		}
		line := fmt.Sprintf("%s %s by %s", e.Action, e.Attrs["operation"], who)
		if e.Attrs["decision"] != "" {
			line += " " + e.Attrs["decision"]
			if e.Call != string(call) || e.Session != string(f.session) {
				t.Errorf("approval of %s in %s", e.Call, e.Session)
			}
		}
		if e.Outcome != "" {
			line += fmt.Sprintf(" %s %s", e.Outcome, e.Attrs["status"])
		}
		got = append(got, line)
		if e.Request == "" || strings.Contains(string(e.Raw), key.Key) || strings.Contains(string(e.Raw), f.key) {
			t.Errorf("no request id, or a key: %s", e.Raw)
		}
	}
	want := []string{
		"api.request agents.create by admin", "policy.change agents.create by admin", "api.answer agents.create by admin ok 200",
		"api.request environments.create by admin", "policy.change environments.create by admin", "api.answer environments.create by admin ok 200",
		"api.request sessions.create by admin", "api.answer sessions.create by admin ok 200",
		"api.request environments.keys.create by admin", "api.answer environments.keys.create by admin ok 200",
		"api.request environments.keys.list by admin", "api.answer environments.keys.list by admin ok 200",
		"api.request environments.update by admin", "policy.change environments.update by admin", "api.answer environments.update by admin ok 200",
		"api.request sessions.events.send by admin", "api.answer sessions.events.send by admin ok 200",
		"api.request sessions.events.send by admin", "approval sessions.events.send by admin allow", "api.answer sessions.events.send by admin ok 200",
		"work.claimed environments.work.poll by worker",
		"api.request environments.work.ack by worker", "api.answer environments.work.ack by worker ok 200",
		"api.request environments.work.heartbeat by worker", "api.answer environments.work.heartbeat by worker ok 200",
		"lease.refused environments.work.heartbeat by worker refused 412",
		"auth.refused agents.list by  refused 401",
		"auth.refused agents.create by worker refused 403",
		"api.request agents.create by admin", "api.answer agents.create by admin refused 400",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestWithoutARecordNothingIsDone makes the record impossible to write and calls
// every operation that must be on it.
func TestWithoutARecordNothingIsDone(t *testing.T) {
	t.Parallel()
	d := new(deaf)
	log, path := openAudit(t, audit.Options{Sinks: []audit.SinkOptions{{Sink: d, Required: true}}})
	f := newSession(t, Config{Audit: log})
	before := f.list(t)
	d.on.Store(true)

	for i := range routes {
		rt := &routes[i]
		method, path := rt.split()
		if rt.handle == nil || rt.status == passed {
			continue
		}
		for _, name := range rt.params() {
			id := "x_1"
			if name == "session" {
				id = string(f.session)
			}
			path = strings.Replace(path, "{"+name+"}", id, 1)
		}
		req := f.request(t, method, path, "{}")
		if rt.op == "environments.work.heartbeat" {
			req.URL.RawQuery = "expected_last_heartbeat=NO_HEARTBEAT"
		}
		if !f.server.audit.wants(rt, req) || !slices.Contains(rt.keys, api.KeyAPI) {
			continue
		}
		res, body := f.answer(t, req)
		if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "nothing was done") {
			t.Errorf("%s: %s %s", rt.op, res.Status, body)
		}
	}
	if res, body := f.answer(t, f.request(t, "POST", "/v1/sessions/"+string(f.session)+"/events",
		`{"events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}]}`)); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "10" {
		t.Errorf("%s %s", res.Status, body)
	}
	if w := get(f.server, "/readyz"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", w.Code)
	}

	// Reading goes on, and finds everything as it was.
	if diff := cmp.Diff(before, f.list(t)); diff != "" {
		t.Errorf("events: %s", diff)
	}
	for _, target := range []string{"/v1/agents", "/v1/environments", "/v1/sessions"} {
		var out struct{ Data []struct{ ID string } }
		f.do(t, "GET", target, "", &out)
		if len(out.Data) != 1 {
			t.Errorf("%s: %d of them", target, len(out.Data))
		}
	}

	d.on.Store(false)
	f.say(t, "again")
	if w := get(f.server, "/readyz"); w.Code != http.StatusOK {
		t.Errorf("readyz with room again: %d", w.Code)
	}
	entries(t, log, path)
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

// A claim that cannot be recorded is not handed out, and offered again later.
func TestClaimWithoutARecordKeepsItsToken(t *testing.T) {
	t.Parallel()
	d := new(deaf)
	log, _ := openAudit(t, audit.Options{Sinks: []audit.SinkOptions{{Sink: d, Required: true}}})
	f := newSession(t, Config{Audit: log})
	var sess struct {
		EnvironmentID string `json:"environment_id"`
	}
	f.do(t, "GET", "/v1/sessions/"+string(f.session), "", &sess)
	f.say(t, "go")
	d.on.Store(true)
	poll := "/v1/environments/" + sess.EnvironmentID + "/work/poll?block_ms=1&reclaim_older_than_ms=1"
	if res, body := f.answer(t, f.request(t, "GET", poll, "")); res.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "secret") {
		t.Errorf("%s %s", res.Status, body)
	}
	d.on.Store(false)
	deadline := 200
	for ; deadline > 0; deadline-- { // its millisecond has to pass
		if _, body := f.answer(t, f.request(t, "GET", poll, "")); body != "null" {
			break
		}
	}
	if deadline == 0 {
		t.Error("the item was not offered again")
	}
}

// Whoever tries keys must not fill the disk.
func TestRefusalsAreCountedBeyondABound(t *testing.T) {
	t.Parallel()
	log, path := openAudit(t, audit.Options{})
	f := newFixture(t, Config{Audit: log})
	// However long they take here, at some time they come too fast.
	asked, begun := 0, time.Now()
	for ; f.server.audit.unrecorded.Load() == 0 && asked < 1000*refusalsBurst; asked++ {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/v1/agents", nil)
		r.Header.Set("X-Api-Key", "sk-ant-api03-wrong")
		f.server.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Fatalf("status %d", w.Code)
		}
	}
	recordsMax := refusalsBurst + int(time.Since(begun).Seconds()*refusalsPerSecond) + 1
	uncounted := int(f.server.audit.unrecorded.Load())
	if uncounted == 0 {
		t.Error("nothing was counted")
	}
	refused := entries(t, log, path)
	if n := len(refused); n < refusalsBurst || n > recordsMax || n+uncounted != asked {
		t.Errorf("%d records, of at most %d, and %d not recorded of %d refusals", n, recordsMax, uncounted, asked)
	}
}

// BenchmarkPostEvents is what the record adds to a client's message: the same message
// goes to a server with a record and to one without, by turns, as the time that a disk
// takes differs more from one minute to the next.
func BenchmarkPostEvents(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			log, _ := openAudit(b, audit.Options{})
			servers := []*sessionFixture{
				newSession(b, Config{Logger: slog.New(slog.DiscardHandler)}),
				newSession(b, Config{Logger: slog.New(slog.DiscardHandler), Audit: log}),
			}
			var mu sync.Mutex
			var took [2][]time.Duration
			var all sync.WaitGroup
			b.ResetTimer()
			for range clients {
				all.Go(func() {
					var sessions [2]string
					for n := range b.N {
						for i, f := range servers {
							if n%500 == 0 { // a session's queue has a bound
								sessions[i] = f.another(b)
							}
							start := time.Now()
							f.do(b, "POST", "/v1/sessions/"+sessions[i]+"/events",
								`{"events": [{"type": "user.message", "content": [{"type": "text", "text": "hello"}]}]}`, &struct{}{})
							mu.Lock()
							took[i] = append(took[i], time.Since(start))
							mu.Unlock()
						}
					}
				})
			}
			all.Wait()
			for i, name := range []string{"without", "with"} {
				slices.Sort(took[i])
				b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), name+"-p50-µs")
			}
			b.ReportMetric(0, "ns/op") // of two requests by so many clients: says nothing
		})
	}
}

// another makes one more session like the first.
func (f *sessionFixture) another(tb testing.TB) string {
	tb.Helper()
	var sess struct {
		EnvironmentID string `json:"environment_id"`
		Agent         struct{ ID string }
	}
	f.do(tb, "GET", "/v1/sessions/"+string(f.session), "", &sess)
	var s struct{ ID string }
	f.do(tb, "POST", "/v1/sessions", fmt.Sprintf(`{"agent": %q, "environment_id": %q}`, sess.Agent.ID, sess.EnvironmentID), &s)
	return s.ID
}

// Whatever spelling of a name the decoder takes for that of a secret, its value is in no
// record.
func TestSecretsAreInNoRecordHoweverTheyAreNamed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"token", "Token", "to\u212aen", `tok\u0065n`, "acce\u017fs_token", "CLIENT_SECRET", "client_\u017fecret", "\u017fecret_value"} {
		body := []byte(`{"auth":{"type":"static_bearer","refresh":[{"` + name + `":"hunter22"}],"` + name + `":"hunter22"}}`)
		kept := withoutSecrets(&route{op: "vaults.credentials.create"}, body)
		if len(kept) == 0 || strings.Contains(string(kept), "hunter22") {
			t.Errorf("%s: %s", name, kept)
		}
	}
}
