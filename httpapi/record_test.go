package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/api"
)

// records is a slog.Handler that keeps the request records.
type records struct {
	mu   sync.Mutex
	more sync.Cond
	all  []map[string]any
	text strings.Builder
}

func newRecords() *records {
	r := &records{}
	r.more.L = &r.mu
	return r
}

func (r *records) logger() *slog.Logger                     { return slog.New(r) }
func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }

func (r *records) Handle(_ context.Context, rec slog.Record) error {
	m := map[string]any{"level": rec.Level}
	rec.Attrs(func(a slog.Attr) bool {
		m[a.Key] = a.Value.Any()
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, m)
	fmt.Fprintln(&r.text, rec.Message, m)
	r.more.Broadcast()
	return nil
}

// await returns the first record of an operation.
func (r *records) await(t *testing.T, op string) map[string]any {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	stop := context.AfterFunc(t.Context(), r.more.Broadcast)
	defer stop()
	for t.Context().Err() == nil {
		for _, m := range r.all {
			if m["op"] == op {
				return m
			}
		}
		r.more.Wait()
	}
	t.Fatalf("no record of %s", op)
	return nil
}

func (r *records) of(op string) (out []map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.all {
		if m["op"] == op {
			out = append(out, m)
		}
	}
	return out
}

func TestOneRecordPerRequestWithoutSecrets(t *testing.T) {
	t.Parallel()
	log := newRecords()
	f := newSession(t, Config{Logger: log.logger()})
	req := f.request(t, "POST", "/v1/sessions/"+string(f.session)+"/events?token=query-secret", `{"events": "body-secret"}`)
	req.Header.Set("Anthropic-Beta", betaAgents+",header-secret")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	bad := f.request(t, "GET", "/v1/agents", "")
	bad.Header.Set("X-Api-Key", "sk-ant-api03-wrong-secret")
	if res, err = http.DefaultClient.Do(bad); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()

	rec := log.await(t, "sessions.events.send")
	if len(log.of("sessions.events.send")) != 1 {
		t.Error("more than one record")
	}
	for key, want := range map[string]any{
		"status": int64(400), "method": "POST", "session_id": string(f.session), "credential": "api_key",
		"error_type": string(api.TypeInvalidRequest), "level": slog.LevelInfo,
	} {
		if rec[key] != want {
			t.Errorf("%s is %v, want %v", key, rec[key], want)
		}
	}
	for _, key := range []string{"request_id", "key_id", "took", "error"} {
		if rec[key] == nil {
			t.Errorf("no %s", key)
		}
	}
	if rec := log.await(t, "agents.list"); rec["key_id"] != nil {
		t.Errorf("a refused credential has a key: %v", rec)
	}
	for _, secret := range []string{f.key, "query-secret", "body-secret", "header-secret", "wrong-secret"} {
		if strings.Contains(log.text.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// serveWith serves one request with a handler of the test's own.
func serveWith(t *testing.T, log *slog.Logger, h handler) (*httptest.ResponseRecorder, any) {
	t.Helper()
	f := newFixture(t, Config{Logger: log, Registerer: prometheus.NewRegistry()})
	req := f.request(t, "GET", "/v1/test", "")
	w := httptest.NewRecorder()
	var panicked any
	func() {
		defer func() { panicked = recover() }()
		f.server.serve(w, req, &route{op: "test", path: "GET /v1/test", keys: apiKey, handle: h}, nil)
	}()
	return w, panicked
}

func TestInternalErrorsAreRecordedAndNotShown(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]handler{
		"error":       func(*Server, context.Context, *request) (any, error) { return nil, errors.New("disk sda1 is on fire") },
		"panic":       func(*Server, context.Context, *request) (any, error) { panic("disk sda1 is on fire") },
		"unencodable": func(*Server, context.Context, *request) (any, error) { return func() {}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := newRecords()
			w, panicked := serveWith(t, log.logger(), h)
			body := w.Body.String()
			if w.Code != 500 || panicked != nil || !strings.Contains(body, `"api_error"`) || strings.Contains(body, "sda1") {
				t.Errorf("%d %s, panic %v", w.Code, body, panicked)
			}
			id := w.Header().Get("Request-Id")
			if !strings.Contains(body, id) {
				t.Errorf("no request id %s in %s", id, body)
			}
			rec := log.await(t, "test")
			cause, _ := rec["cause"].(string)
			if rec["level"] != slog.LevelError || cause == "" || rec["request_id"] != id {
				t.Errorf("record %v", rec)
			}
		})
	}
}

// Half an answer must not look like a whole one.
func TestPanicInTheMiddleBreaksTheConnection(t *testing.T) {
	t.Parallel()
	log := newRecords()
	_, panicked := serveWith(t, log.logger(), func(_ *Server, _ context.Context, r *request) (any, error) {
		r.w.Write([]byte("half"))
		panic("oops")
	})
	if panicked != http.ErrAbortHandler {
		t.Errorf("panicked with %v", panicked)
	}
	if rec := log.await(t, "test"); rec["cause"] == nil {
		t.Errorf("record %v", rec)
	}
}

func TestErrorHeaders(t *testing.T) {
	t.Parallel()
	yes := true
	w, _ := serveWith(t, slog.New(slog.DiscardHandler), func(*Server, context.Context, *request) (any, error) {
		e := &api.Error{Status: 503, Type: api.TypeOverloaded, Message: "x" + strings.Repeat("é", 5000), Retry: &yes, RetryAfter: 1}
		return nil, fmt.Errorf("append events: %w", e)
	})
	if w.Code != 503 || w.Header().Get("X-Should-Retry") != "true" || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if w.Body.Len() > messageMax+500 || strings.Contains(w.Body.String(), `\ufffd`) {
		t.Errorf("message of %d bytes: %.80s", w.Body.Len(), w.Body)
	}
}
