package model_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/model/scripted"
)

// A plane is the least a caller of Forward does.
func plane(c *model.Client, failed func(error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Request-Id", "req_plane")
		if err := c.Forward(w, r, r.URL.Path); err != nil {
			failed(err)
			var e *model.Error
			if errors.As(err, &e) && !e.Begun {
				http.Error(w, e.Message, e.Status)
				return
			}
			panic(http.ErrAbortHandler)
		}
	})
}

func TestOfficialClientThroughForward(t *testing.T) {
	t.Parallel()
	upstream := scripted.New(scripted.Options{Key: testKey, Models: []string{"m1", "a/b"}}, scripted.Script{Turns: []scripted.Turn{{Text: "hello there"}}})
	ts := httptest.NewServer(plane(newClient(t, upstream), func(err error) { t.Error(err) }))
	t.Cleanup(ts.Close)
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(ts.URL), option.WithAPIKey("sk-client"),
		option.WithHeader("X-Api-Key", "sk-client"), option.WithHeader("Cookie", "c=1"), option.WithHeader("anthropic-beta", "some-beta"))
	params := anthropic.MessageNewParams{Model: "m1", MaxTokens: 9, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hi"))}}

	whole, err := client.Messages.New(t.Context(), params)
	if err != nil || whole.Content[0].Text != "hello there" {
		t.Errorf("whole: %v, %v", whole, err)
	}
	var streamed anthropic.Message
	stream := client.Messages.NewStreaming(t.Context(), params)
	for stream.Next() {
		_ = streamed.Accumulate(stream.Current())
	}
	if stream.Err() != nil || streamed.Content[0].Text != "hello there" {
		t.Errorf("streamed: %v, %v", streamed.Content, stream.Err())
	}
	if n, err := client.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: "m1", Messages: params.Messages}); err != nil || n.InputTokens == 0 {
		t.Errorf("count: %v, %v", n, err)
	}
	if page, err := client.Models.List(t.Context(), anthropic.ModelListParams{}); err != nil || len(page.Data) != 2 {
		t.Errorf("list: %v, %v", page, err)
	}
	if info, err := client.Models.Get(t.Context(), "a/b", anthropic.ModelGetParams{}); err != nil || info.ID != "a/b" {
		t.Errorf("get: %v, %v", info, err)
	}
	// An error of the endpoint is passed back as it is.
	var e *anthropic.Error
	if _, err := client.Models.Get(t.Context(), "nope", anthropic.ModelGetParams{}); !errors.As(err, &e) || e.StatusCode != 404 || e.Type() != "not_found_error" {
		t.Errorf("get nope: %v", err)
	}

	for _, r := range upstream.Requests() {
		if r.Header.Get("X-Api-Key") != "" || r.Header.Get("Authorization") != "Bearer "+testKey || r.Header.Get("Cookie") != "" {
			t.Errorf("%s got the client's headers: %v", r.Path, r.Header)
		}
		if r.Header.Get("Anthropic-Version") != "2026-10-21" || r.Header.Get("Anthropic-Beta") != "some-beta" {
			t.Errorf("%s: version %s, beta %s", r.Path, r.Header.Get("Anthropic-Version"), r.Header.Get("Anthropic-Beta"))
		}
	}
}

func TestForwardStreamsAsItComes(t *testing.T) {
	t.Parallel()
	upstream := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text: "slow words", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 900}},
	}}})
	ts := httptest.NewServer(plane(newClient(t, upstream), func(err error) { t.Error(err) }))
	t.Cleanup(ts.Close)
	res, err := http.Post(ts.URL+"/v1/messages", "application/json",
		strings.NewReader(`{"model":"m","max_tokens":1,"stream":true,"messages":[{"role":"user","content":"hi"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body := bufio.NewReader(res.Body)
	// The endpoint is silent by now, so whatever is read was not held back.
	if line, err := body.ReadString('\n'); err != nil || line != "event: message_start\n" {
		t.Errorf("first line %q, %v", line, err)
	}
	upstream.Release()
	if rest, err := io.ReadAll(body); err != nil || !strings.Contains(string(rest), "message_stop") {
		t.Errorf("rest %v, %v", string(rest), err)
	}
	if got := res.Header.Get("Request-Id"); got != "req_plane" {
		t.Errorf("request id %s", got)
	}
	if got := res.Header.Get("Model-Request-Id"); !strings.HasPrefix(got, "req_01") {
		t.Errorf("the endpoint's request id %q", got)
	}
}

func TestForwardFiltersHeaders(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Type": "application/json", "Anthropic-Organization-Id": "org", "Set-Cookie": "x=1", "Server": "s",
			"Anthropic-Ratelimit-Requests-Limit": "5", "Retry-After": "3", "X-Should-Retry": "true", "Request-Id": "req_up",
		} {
			w.Header().Set(name, value)
		}
		w.WriteHeader(429)
		io.WriteString(w, `{"type":"error","error":{"type":"rate_limit_error","message":"no more for `+testKey+`"}}`)
	})
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/v1/messages?beta=true", strings.NewReader(`{"model":"m"}`))
	if err := newClient(t, h).Forward(w, r, "/v1/messages"); err != nil {
		t.Fatal(err)
	}
	want := http.Header{
		"Content-Type": {"application/json"}, "Anthropic-Ratelimit-Requests-Limit": {"5"}, "Retry-After": {"3"},
		"X-Should-Retry": {"true"}, "Model-Request-Id": {"req_up"},
	}
	if diff := cmp.Diff(want, w.Header()); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if w.Code != 429 || strings.Contains(w.Body.String(), testKey) || !strings.Contains(w.Body.String(), "rate_limit_error") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

func TestForwardRefuses(t *testing.T) {
	t.Parallel()
	bedrock := func(c *model.Config) { c.Provider, c.Region = model.Bedrock, "us-east-1" }
	foundry := func(c *model.Config) { c.Provider = model.Foundry }
	none := func(*model.Config) {}
	notFound := http.NotFoundHandler()
	tests := []struct {
		name         string
		adjust       func(*model.Config)
		method, path string
		body         string
		want         model.Error
		message      string
	}{
		{"other path", none, "GET", "/v1/agents", "", model.Error{Kind: model.Unsupported, Status: 404}, "not an operation"},
		{"other method", none, "DELETE", "/v1/messages", "", model.Error{Kind: model.Unsupported, Status: 404}, "not an operation"},
		{"no model id", none, "GET", "/v1/models/", "", model.Error{Kind: model.Unsupported, Status: 404}, "not an operation"},
		{"dots", none, "GET", "/v1/models/..", "", model.Error{Kind: model.Unsupported, Status: 404}, "not an operation"},
		{"count on bedrock", bedrock, "POST", "/v1/messages/count_tokens", `{"model":"m"}`, model.Error{Kind: model.Unsupported, Status: 501}, "(bedrock) does not offer token counting"},
		{"models on foundry", foundry, "GET", "/v1/models", "", model.Error{Kind: model.Unsupported, Status: 501}, "(foundry) does not offer a list of models"},
		{"endpoint without messages", none, "POST", "/v1/messages", `{"model":"m"}`, model.Error{Kind: model.Unsupported, Status: 501}, "does not serve /v1/messages"},
		{"endpoint without models", none, "GET", "/v1/models", "", model.Error{Kind: model.Unsupported, Status: 501}, "does not serve /v1/models"},
		{"no JSON", none, "POST", "/v1/messages", "{", model.Error{Kind: model.Failed, Status: 400, Type: "invalid_request_error"}, "not a JSON object"},
		{"model of wrong type", none, "POST", "/v1/messages", `{"model":3}`, model.Error{Kind: model.Failed, Status: 400, Type: "invalid_request_error"}, "not a JSON object"},
		{"too large", none, "POST", "/v1/messages", `"` + strings.Repeat("x", 32<<20) + `"`, model.Error{Kind: model.TooLong, Status: 413, Type: "request_too_large"}, "exceeds 33554432 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(test.method, test.path, strings.NewReader(test.body))
			w := httptest.NewRecorder()
			got := modelError(t, newClient(t, notFound, test.adjust).Forward(w, r, test.path))
			if !strings.Contains(got.Message, test.message) {
				t.Errorf("message %q, want %q", got.Message, test.message)
			}
			got.Message = ""
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if w.Body.Len() > 0 {
				t.Errorf("wrote %s", w.Body)
			}
		})
	}
}

func TestForwardReplyThatBreaksOff(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{scripted.FaultCut, scripted.FaultStall} {
		upstream := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
			Text: "some words", Faults: []scripted.Fault{{Kind: fault, After: 900}},
		}}})
		client := newClient(t, upstream, func(c *model.Config) { c.IdleTimeout = 100 * time.Millisecond })
		failed := make(chan error, 1)
		ts := httptest.NewServer(plane(client, func(err error) { failed <- err }))
		t.Cleanup(ts.Close)
		res, err := http.Post(ts.URL+"/v1/messages", "application/json",
			strings.NewReader(`{"model":"m","max_tokens":1,"stream":true,"messages":[{"role":"user","content":"hi"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		// Broken off there must be broken off here: an end would be a lie.
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%s: the client saw a sound end", fault)
		}
		res.Body.Close()
		if e := modelError(t, <-failed); e.Kind != model.Interrupted || !e.Begun {
			t.Errorf("%s: got %+v", fault, e)
		}
	}
}

func TestForwardEndsWithItsClient(t *testing.T) {
	t.Parallel()
	upstream := scripted.New(scripted.Options{}, scripted.Script{Turns: []scripted.Turn{{
		Text: "x", Faults: []scripted.Fault{{Kind: scripted.FaultStall}},
	}}})
	client := newClient(t, upstream)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}`))
		r.Header.Set("Anthropic-Version", "2023-06-01")
		ended <- client.Forward(httptest.NewRecorder(), r.WithContext(ctx), "/v1/messages")
	}()
	if err := upstream.WaitStalled(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestForwardVersionsAndModels(t *testing.T) {
	t.Parallel()
	rec := &recorder{reply: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{}`)
	}}
	forward := func(c *model.Client, version string) {
		t.Helper()
		r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(`{"model":"claude-opus-5","stream":false}`))
		r.Header.Set("Anthropic-Version", version)
		w := httptest.NewRecorder()
		if err := c.Forward(w, r, "/v1/messages"); err != nil || w.Body.String() != "{}" {
			t.Errorf("%v: %s", err, w.Body)
		}
	}

	official, err := model.New(t.Context(), model.Config{Key: testKey, HTTPClient: &http.Client{Transport: inProcess(rec.ServeHTTP)}})
	if err != nil {
		t.Fatal(err)
	}
	forward(official, "2023-06-01")
	if rec.header.Get("X-Api-Key") != testKey || rec.header.Get("Authorization") != "" || rec.header.Get("Anthropic-Version") != "2023-06-01" {
		t.Errorf("older version: %v", rec.header)
	}
	forward(official, "2026-10-21")
	if rec.header.Get("X-Api-Key") != "" || rec.header.Get("Authorization") != "Bearer "+testKey {
		t.Errorf("current version: %v", rec.header)
	}

	forward(newClient(t, rec, bedrockConfig), "2023-06-01")
	if rec.path != "/model/eu.anthropic.claude-opus-5/invoke" || rec.body["anthropic_version"] != "bedrock-2023-05-31" {
		t.Errorf("bedrock: path %s, body %v", rec.path, rec.body)
	}
}
