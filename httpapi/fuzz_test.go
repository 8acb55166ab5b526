package httpapi

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bailey-platform/bailey/api"
)

// Whatever a query string holds, it is read or refused with a 400 that a person
// can read, and nothing out of range comes through.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"", "limit=20&page=page_x&order=asc", "statuses[]=idle&statuses%5B%5D=running&statuses=terminated",
		"created_at[gte]=2026-01-02T15:04:05Z&created_at%5Blt%5D=2026-01-02T15:04:05.123%2B02:00",
		"types[]=user.message", "event_deltas[]=agent.message", "include_archived=true", "agent_id=agent_1",
		"limit=1;order=asc", "limit=%", "limit=-1", "limit=99999999999999999999", "a=1&a=2", "statuses[]=" + strings.Repeat("&statuses[]=", 101),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q := parseQuery(raw)
		page, order := q.page(), q.order()
		statuses, types := q.statuses(), q.eventTypes()
		id, ms := q.id("agent_id"), q.milliseconds("block_ms", 1e6, api.PollBlockMax)
		q.boolean("include_archived")
		q.timeRange("created_at")
		if q.err != nil {
			e := api.AsError(q.err)
			if e == nil || e.Status != http.StatusBadRequest || !utf8.ValidString(e.Message) {
				t.Errorf("error %v", q.err)
			}
			return
		}
		if page.Limit < 0 || ms < 0 || ms > api.PollBlockMax || len(statuses) > listMax || len(types) > listMax {
			t.Errorf("out of range: %+v %v %v %v", page, ms, statuses, types)
		}
		if order != "" && order != api.Ascending && order != api.Descending {
			t.Errorf("order %q", order)
		}
		if id != "" && api.CheckID("agent_id", id) != nil {
			t.Errorf("id %q", id)
		}
	})
}

func FuzzCredential(f *testing.F) {
	f.Add("sk-ant-api03-x", "")
	f.Add("", "Bearer sk-ant-oat01-x")
	f.Add("a", "bearer  a ")
	f.Add("", "Basic YTpi")
	f.Add("\x00", "Bearer")
	f.Fuzz(func(t *testing.T, key, auth string) {
		h := http.Header{}
		if key != "" {
			h.Set("X-Api-Key", key)
		}
		if auth != "" {
			h.Set("Authorization", auth)
		}
		p, err := credential(h)
		if err != nil {
			if e := api.AsError(err); e == nil || e.Status != http.StatusUnauthorized {
				t.Errorf("error %v", err)
			}
			return
		}
		if p.secret == "" || len(p.secret) > secretMax {
			t.Errorf("accepted %q", p.secret)
		}
		if p.apiKey && strings.TrimSpace(key) != p.secret || !p.apiKey && !strings.Contains(auth, p.secret) {
			t.Errorf("%q is neither %q nor in %q", p.secret, key, auth)
		}
		if p.checkKind(api.KeyEnvironment) == nil && key != "" {
			t.Error("a worker's key was accepted beside x-api-key")
		}
	})
}

func FuzzBeta(f *testing.F) {
	f.Add(betaAgents, "")
	f.Add("a,b", " "+betaAgents+" ,c")
	f.Add(betaAgents+"x", ",,,")
	f.Fuzz(func(t *testing.T, one, two string) {
		h := http.Header{"Anthropic-Beta": {one, two}}
		names := strings.Split(one+","+two, ",")
		for i := range names {
			names[i] = strings.TrimSpace(names[i])
		}
		if got, want := hasBeta(h, betaAgents), slices.Contains(names, betaAgents); got != want {
			t.Errorf("hasBeta(%q, %q) = %v", one, two, got)
		}
	})
}

func FuzzLastEventID(f *testing.F) {
	f.Add("1", "event_deltas[]=agent.message")
	f.Add("-1", "event_deltas=agent.thinking&event_deltas[]=agent.thinking")
	f.Add("99999999999999999999", "event_deltas[]=user.message")
	f.Add("a\x00b", "")
	f.Fuzz(func(t *testing.T, id, query string) {
		req := httptest.NewRequest("GET", "/", nil)
		req.URL.RawQuery = query
		req.Header.Set("Last-Event-Id", id)
		o, err := (&request{Request: req}).followOptions()
		if err != nil {
			if api.AsError(err) == nil {
				t.Errorf("error %v", err)
			}
			return
		}
		if o.LastEventID != id || len(o.Previews) > len(previewable) {
			t.Errorf("options %+v from %q", o, id)
		}
	})
}

// An odd worker id is made harmless; it never turns a worker away.
func FuzzWorkerID(f *testing.F) {
	f.Add("machine-1")
	f.Add("a\x00b\xff")
	f.Add(strings.Repeat("é", api.WorkerIDMax))
	f.Fuzz(func(t *testing.T, v string) {
		id := workerID(v)
		if len(id) > api.WorkerIDMax || !utf8.ValidString(id) || strings.ContainsRune(id, 0) {
			t.Errorf("%q became %q", v, id)
		}
	})
}
