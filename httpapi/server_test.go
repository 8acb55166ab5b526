package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/semaphore"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model"
)

// answer makes a call and returns its status and body.
func (f *fixture) answer(tb testing.TB, req *http.Request) (*http.Response, string) {
	tb.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res, string(data)
}

func TestOversizedBody(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	// The length is not announced, so the server has to count.
	req := f.request(t, "POST", "/v1/agents", "")
	req.Body = io.NopCloser(io.LimitReader(zeros{}, bodyMax+1))
	req.ContentLength = -1
	res, body := f.answer(t, req)
	if res.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(body, `"request_too_large"`) {
		t.Errorf("%s %s", res.Status, body)
	}
}

// A message that quotes a huge field name does not come back whole.
func TestHugeFieldNameIsNotEchoed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	res, body := f.answer(t, f.request(t, "POST", "/v1/agents", `{"`+strings.Repeat("x", 1<<20)+`": 1}`))
	if res.StatusCode != http.StatusBadRequest || len(body) > messageMax+500 {
		t.Errorf("%s, %d bytes", res.Status, len(body))
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestHealth(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	f := newFixture(t, Config{Registerer: reg, Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), OpenMetrics: true})
	get := func(path string) (int, string) {
		res, err := http.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		data, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(data)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(path); code != 200 || !strings.Contains(body, `"ok"`) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	f.answer(t, f.request(t, "GET", "/v1/agents", ""))
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, `bailey_http_requests_total{op="agents.list",status="200"} 1`) {
		t.Errorf("metrics: %d %s", code, body)
	}
	if err := f.control.Close(); err != nil {
		t.Fatal(err)
	}
	if code, body := get("/readyz"); code != 503 || strings.Contains(body, "sql") {
		t.Errorf("readyz without a database: %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz without a database: %d", code)
	}
}

// What a server does, and for whom, could be read by everybody who reached it.
func TestMetricsNeedAnAPIKey(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	f := newFixture(t, Config{Registerer: reg, Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{})})
	for key, want := range map[string]int{"": 401, "sk-ant-nonsense": 401, f.key: 200} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", f.url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("status %d, want %d", res.StatusCode, want)
		}
	}
}

// As many large bodies as somebody cared to send were held in memory.
func TestLargeBodiesWaitForRoomAndSmallOnesDoNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Server{smallBodies: semaphore.NewWeighted(bodiesSmallMax), largeBodies: semaphore.NewWeighted(bodiesLargeMax)}
		post := func(size int64) *request {
			hr := httptest.NewRequestWithContext(t.Context(), "POST", "/", nil)
			hr.ContentLength = size
			return &request{Request: hr, s: s}
		}
		var held []*request
		for range bodiesLargeMax / bodyMax {
			r := post(bodyMax)
			held = append(held, r)
			if err := r.room(); err != nil {
				t.Fatal(err)
			}
		}
		if err := post(1000).room(); err != nil {
			t.Errorf("a small body: %v", err)
		}
		one := post(-1) // of unknown size
		if e := api.AsError(one.room()); e == nil || e.Status != 529 || e.RetryAfter == 0 {
			t.Errorf("one more: %v", e)
		}
		go held[0].release()
		if err := one.room(); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
	})
}

func TestRates(t *testing.T) {
	t.Parallel()
	r := newRates(12, 60)
	one := control.Principal{Kind: api.KeyAPI, KeyID: "apikey_1"}
	other := control.Principal{Kind: api.KeyAPI, KeyID: "apikey_2"}
	worker := control.Principal{Kind: api.KeyEnvironment, KeyID: "envkey_1"}
	now := time.Unix(1000, 0)
	for i := range 2 { // ten seconds' worth
		if err := r.take(one, "POST", now); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	e := api.AsError(r.take(one, "POST", now))
	if e == nil || e.Status != 429 || e.Type != api.TypeRateLimit || e.RetryAfter != 5*time.Second {
		t.Fatalf("one too many: %+v", e)
	}
	for what, err := range map[string]error{
		"a read":        r.take(one, "GET", now),
		"another key":   r.take(other, "POST", now),
		"a worker":      r.take(worker, "POST", now),
		"some time on":  r.take(one, "POST", now.Add(5*time.Second)),
		"without limit": newRates(0, 0).take(one, "POST", now),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range ratedKeysMax + 1 {
		if err := r.take(control.Principal{Kind: api.KeyAPI, KeyID: api.KeyID(strconv.Itoa(i))}, "GET", now); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.byKey) > ratedKeysMax {
		t.Errorf("%d keys are remembered", len(r.byKey))
	}
}

func TestRateLimitedAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{ReadsPerMinute: 1})
	f.answer(t, f.request(t, "GET", "/v1/agents", ""))
	res, body := f.answer(t, f.request(t, "GET", "/v1/agents", ""))
	if after, _ := strconv.Atoi(res.Header.Get("Retry-After")); res.StatusCode != 429 || after < 1 || after > 60 {
		t.Errorf("%s, retry-after %d: %s", res.Status, after, body)
	}
}

// The messages of another API pass through; neither key crosses over.
func TestForward(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("X-Api-Key")+r.Header.Get("Authorization"), "sk-ant-api03-") {
			t.Errorf("our client's key reached the model endpoint: %v", r.Header)
		}
		w.Header().Set("Request-Id", "req_upstream")
		switch r.URL.Path {
		case "/v1/messages":
			body, _ := io.ReadAll(r.Body)
			if strings.Contains(string(body), "overload") {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(529)
				io.WriteString(w, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
		case "/v1/models/some/local-model":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"id":"some/local-model"}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(upstream.Close)
	m, err := model.New(t.Context(), model.Config{BaseURL: upstream.URL, Key: "upstream-key"})
	if err != nil {
		t.Fatal(err)
	}
	log := newRecords()
	f := newFixture(t, Config{Model: m, Logger: log.logger()})

	req := f.request(t, "POST", "/v1/messages?beta=true", `{"model": "m", "max_tokens": 1, "stream": true, "messages": []}`)
	req.Header.Del("Anthropic-Beta")
	res, body := f.answer(t, req)
	if res.StatusCode != 200 || !strings.Contains(body, "message_stop") || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%s %v %s", res.Status, res.Header, body)
	}
	if id := res.Header.Get("Request-Id"); id == "req_upstream" || !strings.HasPrefix(id, api.PrefixRequest) {
		t.Errorf("request id %q", id)
	}
	if rec := log.await(t, "messages.create"); rec["status"] != int64(200) {
		t.Errorf("record %v", rec)
	}

	// The endpoint's own errors come back as they are.
	res, body = f.answer(t, f.request(t, "POST", "/v1/messages", `{"model": "m", "messages": "overload"}`))
	if res.StatusCode != 529 || !strings.Contains(body, "overloaded_error") {
		t.Errorf("%s %s", res.Status, body)
	}
	if res, body = f.answer(t, f.request(t, "GET", "/v1/models/some/local-model", "")); res.StatusCode != 200 {
		t.Errorf("a model id with a slash: %s %s", res.Status, body)
	}

	upstream.Close()
	res, body = f.answer(t, f.request(t, "POST", "/v1/messages", `{"model": "m", "messages": []}`))
	var envelope api.ErrorBody
	if err := json.Unmarshal([]byte(body), &envelope); err != nil || res.StatusCode != 502 || envelope.Error.Type != api.TypeAPI ||
		res.Header.Get("X-Should-Retry") != "true" || strings.Contains(body, "upstream-key") {
		t.Errorf("without an endpoint: %s %s", res.Status, body)
	}
}

// No operation answers a stranger, but the one that makes them known.
func TestEveryRouteNeedsACredential(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	for _, rt := range routes {
		if rt.handle == nil || rt.op == "oauth.token" {
			continue
		}
		method, path := rt.split()
		path = strings.NewReplacer("{", "", "}", "", "...", "").Replace(path)
		req := f.request(t, method, path, "")
		req.Header.Set("X-Api-Key", api.SecretPrefixAPI+"nobody")
		res, body := f.answer(t, req)
		if res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, `"authentication_error"`) {
			t.Errorf("%s: %s %s", rt.op, res.Status, body)
		}
		if res.Header.Get("Anthropic-Workspace-Id") != "" {
			t.Errorf("%s: a stranger is told the workspace", rt.op)
		}
	}
}
