package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
)

// A far is the other end: it answers requests without a network, so that tests can
// run in virtual time.
type far func(*http.Request) (*http.Response, error)

func (f far) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func newClient(t *testing.T, f far) *Client {
	t.Helper()
	c, err := New(Config{BaseURL: "http://bailey.test/prefix/", Key: "sk-ant-api03-secret", HTTPClient: &http.Client{Transport: f}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func reply(status int, body string, header ...string) *http.Response {
	h := http.Header{"Request-Id": {"req_1"}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)),
		Header: h, Body: io.NopCloser(strings.NewReader(body)),
	}
}

func TestCalls(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	first := func(seq func(func(*api.Session, error) bool)) error {
		for _, err := range seq {
			return err
		}
		return nil
	}
	for want, call := range map[string]func(*Client) error{
		"GET /v1/agents/agent_1?version=2": func(c *Client) error { _, err := c.GetAgent(t.Context(), "agent_1", 2); return err },
		"GET /v1/agents/agent_1":           func(c *Client) error { _, err := c.GetAgent(t.Context(), "agent_1", 0); return err },
		"POST /v1/agents/agent_1/archive":  func(c *Client) error { _, err := c.ArchiveAgent(t.Context(), "agent_1"); return err },
		`POST /v1/agents/agent_1 {"system":null}`: func(c *Client) error {
			_, err := c.UpdateAgent(t.Context(), "agent_1", api.AgentUpdate{System: api.Opt[string]{Set: true, Null: true}})
			return err
		},
		"DELETE /v1/environments/env_1": func(c *Client) error { return c.DeleteEnvironment(t.Context(), "env_1") },
		`POST /v1/keys {"name":"ci","expires_at":null}`: func(c *Client) error {
			_, err := c.CreateKey(t.Context(), "", api.KeyCreate{Name: "ci"})
			return err
		},
		"POST /v1/environments/env_1/keys/envkey_1/revoke": func(c *Client) error { _, err := c.RevokeKey(t.Context(), "env_1", "envkey_1"); return err },
		"GET /v1/environments/env_1/work/stats":            func(c *Client) error { _, err := c.WorkStats(t.Context(), "env_1"); return err },
		// An identifier cannot change the path.
		"GET /v1/sessions/..%2Fkeys%3Fa": func(c *Client) error { _, err := c.GetSession(t.Context(), "../keys?a"); return err },
		`POST /v1/sessions/sesn_1/events {"events":[{"type":"user.interrupt"},{"type":"user.message","content":[{"type":"text","text":"hi"}]}]}`: func(c *Client) error {
			_, err := c.Send(t.Context(), "sesn_1", &api.UserInterrupt{}, &api.UserMessage{Content: api.Content{api.TextBlock("hi")}})
			return err
		},
		"GET /v1/sessions?agent_id=agent_1&agent_version=3&created_at%5Bgte%5D=2026-01-02T03%3A04%3A05Z&include_archived=true&limit=5&order=asc&statuses%5B%5D=idle&statuses%5B%5D=running": func(c *Client) error {
			return first(c.Sessions(t.Context(), api.SessionFilter{
				AgentID: "agent_1", AgentVersion: 3, Created: api.TimeRange{GTE: &at}, Order: api.Ascending,
				Statuses: []api.SessionStatus{api.StatusIdle, api.StatusRunning}, IncludeArchived: true,
			}, ListOptions{PageSize: 5}))
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			var got string
			c := newClient(t, func(r *http.Request) (*http.Response, error) {
				got = r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/prefix")
				if body, _ := io.ReadAll(r.Body); len(body) > 0 {
					got += " " + string(body)
				}
				for name, v := range map[string]string{
					"Authorization": "Bearer sk-ant-api03-secret", "Anthropic-Version": "2026-10-21",
					"Anthropic-Beta": "managed-agents-2026-04-01,mcp-tunnels-2026-06-22", "User-Agent": "bailey",
				} {
					if h := r.Header.Get(name); h != v {
						t.Errorf("%s is %q", name, h)
					}
				}
				return reply(200, "{}"), nil
			})
			if err := call(c); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestListsWalkAllPages(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(r *http.Request) (*http.Response, error) {
		switch r.URL.Query().Get("page") {
		case "":
			return reply(200, `{"data": [{"id": "env_1"}], "next_page": "page_2"}`), nil
		case "page_2": // an empty page is not the end
			return reply(200, `{"data": [], "next_page": "page_3"}`), nil
		}
		return reply(200, `{"data": [{"id": "env_2"}], "next_page": null}`), nil
	})
	var got []api.EnvironmentID
	for e, err := range c.Environments(t.Context(), ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.ID)
	}
	if diff := cmp.Diff([]api.EnvironmentID{"env_1", "env_2"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsAreTheServers(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(*http.Request) (*http.Response, error) {
		return reply(409, `{"type":"error","error":{"type":"conflict_error","message":"the agent has moved on","details":{"error_code":"x"}},"request_id":"req_1"}`,
			"X-Should-Retry", "false"), nil
	})
	_, err := c.UpdateAgent(t.Context(), "agent_1", api.AgentUpdate{})
	public := api.AsError(err)
	no := false
	want := &api.Error{Status: 409, Type: api.TypeConflict, Message: "the agent has moved on", Retry: &no, Details: map[string]any{"error_code": "x"}}
	if diff := cmp.Diff(want, public); diff != "" {
		t.Error(diff)
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.RequestID != "req_1" {
		t.Errorf("error %#v", err)
	}
	if got := err.Error(); got != "the agent has moved on (HTTP 409, req_1)" {
		t.Errorf("text %q", got)
	}

	// Something else on that port.
	c = newClient(t, func(*http.Request) (*http.Response, error) {
		res := reply(404, "<html>nginx</html>")
		res.Header.Del("Request-Id")
		return res, nil
	})
	_, err = c.GetAgent(t.Context(), "agent_1", 0)
	if public := api.AsError(err); public == nil || public.Status != 404 || strings.Contains(err.Error(), "nginx") {
		t.Errorf("error %v", err)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	reset := &net.OpError{Op: "read", Err: errors.New("connection reset")}
	tests := map[string]struct {
		method   string
		answer   func() (*http.Response, error)
		attempts int
		least    time.Duration
	}{
		"a read is tried again":                 {"GET", func() (*http.Response, error) { return reply(500, ""), nil }, 3, 750 * time.Millisecond},
		"as long after as the server asks":      {"GET", func() (*http.Response, error) { return reply(429, "", "Retry-After", "7"), nil }, 3, 14 * time.Second},
		"but not for an hour":                   {"GET", func() (*http.Response, error) { return reply(529, "", "Retry-After", "3600"), nil }, 3, 2 * time.Minute},
		"not when the server says no":           {"GET", func() (*http.Response, error) { return reply(500, "", "X-Should-Retry", "false"), nil }, 1, 0},
		"when the server says yes":              {"GET", func() (*http.Response, error) { return reply(409, "", "X-Should-Retry", "true"), nil }, 3, 0},
		"a refusal is an answer":                {"GET", func() (*http.Response, error) { return reply(404, ""), nil }, 1, 0},
		"a read whose connection broke":         {"GET", func() (*http.Response, error) { return nil, reset }, 3, 0},
		"a write is never done twice":           {"POST", func() (*http.Response, error) { return reply(500, "", "X-Should-Retry", "true"), nil }, 1, 0},
		"not even when the connection broke":    {"POST", func() (*http.Response, error) { return nil, reset }, 1, 0},
		"only when it cannot have been started": {"POST", func() (*http.Response, error) { return nil, refused }, 3, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				attempts, start := 0, time.Now()
				c := newClient(t, func(*http.Request) (*http.Response, error) {
					attempts++
					return tt.answer()
				})
				if err := c.do(t.Context(), tt.method, "/v1/x", nil, nil, nil); err == nil {
					t.Error("no error")
				}
				if attempts != tt.attempts || time.Since(start) < tt.least {
					t.Errorf("%d attempts in %s", attempts, time.Since(start))
				}
			})
		})
	}
}

func TestCancelledCallSaysWhy(t *testing.T) {
	t.Parallel()
	why := errors.New("the user pressed ^C")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := newClient(t, func(r *http.Request) (*http.Response, error) {
		cancel(why)
		return nil, r.Context().Err()
	})
	if _, err := c.GetAgent(ctx, "agent_1", 0); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
}

// A redirect must not carry the key away.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	calls := 0
	c := newClient(t, func(*http.Request) (*http.Response, error) {
		calls++
		return reply(302, "", "Location", "http://elsewhere.test/"), nil
	})
	_, err := c.GetAgent(t.Context(), "agent_1", 0)
	if e := api.AsError(err); e == nil || e.Status != 302 || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"", "bailey", "ftp://bailey", "http://", "http://u:secret@bailey", "http://bailey?x=secret"} {
		if _, err := New(Config{BaseURL: base}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q): %v", base, err)
		}
	}
	if s := fmt.Sprintf("%v %#v", Config{Key: "secret"}, Config{Key: "secret"}); strings.Contains(s, "secret") {
		t.Errorf("shown as %s", s)
	}
}

func TestEventsKeepUnknownTypes(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(r *http.Request) (*http.Response, error) {
		if got := r.URL.RequestURI(); got != "/prefix/v1/sessions/sesn_1/threads/sthr_1/events?limit=2&order=desc&types%5B%5D=user.message" {
			t.Errorf("asked for %s", got)
		}
		return reply(200, `{"data": [{"id": "sevt_1", "type": "agent.levitated", "height": 3}, {"id": "sevt_2", "type": "user.interrupt", "processed_at": null}]}`), nil
	})
	var frames []*Frame
	for f, err := range c.Events(t.Context(), "sesn_1", EventOptions{
		ListOptions: ListOptions{PageSize: 2}, Thread: "sthr_1",
		Filter: api.EventFilter{Types: []api.EventType{api.EvUserMessage}, Order: api.Descending},
	}) {
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	if len(frames) != 2 || frames[0].Name != "agent.levitated" || !json.Valid(frames[0].Data) {
		t.Fatalf("frames %v", frames)
	}
	if _, err := frames[0].Event(); err == nil {
		t.Error("an unknown type was decoded")
	}
	if e, err := frames[1].Event(); err != nil || e.ID != "sevt_2" || e.Type() != api.EvUserInterrupt {
		t.Errorf("event %v, %v", e, err)
	}
}
