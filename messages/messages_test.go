package messages

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	anthropicv1 "github.com/anthropics/anthropic-sdk-go"
	optionv1 "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/google/go-cmp/cmp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/model/scripted"
)

// A lab is a connector behind HTTP, with a scripted model and a real MCP server.
type lab struct {
	url   string
	model *scripted.Server
	mcp   *httptest.Server
	log   *lockedBuffer

	mu      sync.Mutex
	seen    []string // Authorization headers of the MCP server
	ran     []string
	records []string
	full    string // what of "begin" and "end" cannot be put on record
}

// record is the lab's audit record.
func (l *lab) record(c Call) (func(string, []byte) error, error) {
	write := func(what, line string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.full == what {
			return errors.New("no space left")
		}
		l.records = append(l.records, line)
		return nil
	}
	return func(outcome string, output []byte) error {
		return write("end", fmt.Sprintf("end %s %s %s", c.Tool, outcome, output))
	}, write("begin", fmt.Sprintf("begin %s %s %s %t", c.Server, c.Tool, c.Input, strings.HasPrefix(c.ID, mcpUsePrefix)))
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type word struct {
	Text string `json:"text"`
}

func newLab(t *testing.T, turns ...scripted.Turn) *lab {
	t.Helper()
	l := &lab{model: scripted.New(scripted.Options{}, scripted.Script{Turns: turns}), log: &lockedBuffer{}}
	server := sdk.NewServer(&sdk.Implementation{Name: "far", Version: "1"}, nil)
	sdk.AddTool(server, &sdk.Tool{Name: "echo", Description: "Says it again."}, func(_ context.Context, _ *sdk.CallToolRequest, in word) (*sdk.CallToolResult, any, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ran = append(l.ran, in.Text)
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "far says " + in.Text}}}, nil, nil
	})
	sdk.AddTool(server, &sdk.Tool{Name: "fail"}, func(context.Context, *sdk.CallToolRequest, struct{}) (*sdk.CallToolResult, any, error) {
		return nil, nil, errors.New("no such luck")
	})
	handler := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return server }, nil)
	l.mcp = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.seen = append(l.seen, r.Header.Get("Authorization"))
		l.mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer wrong-secret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	far := httptest.NewServer(l.model)
	client, err := model.New(t.Context(), model.Config{BaseURL: far.URL})
	if err != nil {
		t.Fatal(err)
	}
	connector := New(Config{Model: client, HTTP: l.mcp.Client(), Plain: func(host string) bool { return host == "127.0.0.1" }, Logger: slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !Wants(body) {
			t.Error("the request is not one of the connector")
		}
		begun, err := connector.Serve(w, r, body, l.record)
		switch e := api.AsError(err); {
		case err == nil:
		case begun:
			panic(http.ErrAbortHandler)
		case e != nil:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(e.Status)
			fmt.Fprintf(w, `{"type":"error","error":{"type":%q,"message":%q}}`, e.Type, e.Message)
		default:
			http.Error(w, err.Error(), 500)
		}
	}))
	l.url = front.URL
	t.Cleanup(func() {
		front.Close()
		l.mcp.CloseClientConnections()
		l.mcp.Close()
		far.Close()
	})
	return l
}

func (l *lab) v2() anthropic.Client {
	return anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(l.url), option.WithAPIKey("k"), option.WithMaxRetries(0))
}

func (l *lab) params() anthropic.BetaMessageNewParams {
	return anthropic.BetaMessageNewParams{
		Model: "claude-test", MaxTokens: 1000,
		Messages: []anthropic.BetaMessageParam{anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock("hello"))},
		Betas:    []anthropic.AnthropicBeta{anthropic.AnthropicBetaMCPClient2025_11_20},
		MCPServers: []anthropic.BetaRequestMCPServerURLDefinitionParam{{
			Name: "far", URL: l.mcp.URL, AuthorizationToken: anthropic.String("the-secret-token"),
		}},
		Tools: []anthropic.BetaToolUnionParam{{OfMCPToolset: &anthropic.BetaMCPToolsetParam{MCPServerName: "far"}}},
	}
}

func echo(text string) scripted.Call {
	return scripted.Call{Name: "mcp__far__echo", Input: map[string]any{"text": text}}
}

func twoCalls() []scripted.Turn {
	return []scripted.Turn{
		{
			Expect: []scripted.Expect{{Tool: "mcp__far__echo"}}, Text: "Asking.", Usage: &scripted.Usage{InputTokens: 10, OutputTokens: 5, CacheReadInputTokens: 3},
			Calls: []scripted.Call{echo("one"), {Name: "mcp__far__fail"}},
		},
		{Expect: []scripted.Expect{{Contains: "far says one", OK: true}, {Result: 1, Failed: true, Contains: "no such luck"}}, Text: "Again.", Calls: []scripted.Call{echo("two")}, Usage: &scripted.Usage{InputTokens: 20, OutputTokens: 7}},
		{Expect: []scripted.Expect{{Contains: "far says two"}}, Text: "Done.", Usage: &scripted.Usage{InputTokens: 30, OutputTokens: 9}},
	}
}

// shown is what a client makes of a message.
func shown(m *anthropic.BetaMessage) []string {
	out := []string{}
	for _, b := range m.Content {
		switch b := b.AsAny().(type) {
		case anthropic.BetaTextBlock:
			out = append(out, "text "+b.Text)
		case anthropic.BetaMCPToolUseBlock:
			input, _ := json.Marshal(b.Input)
			out = append(out, fmt.Sprintf("use %s %s %s %t", b.ServerName, b.Name, input, strings.HasPrefix(b.ID, "mcptoolu_")))
		case anthropic.BetaMCPToolResultBlock:
			text := ""
			for _, c := range b.Content.OfBetaMCPToolResultBlockContent {
				text += c.Text
			}
			out = append(out, fmt.Sprintf("result %t %s", b.IsError, text))
		case anthropic.BetaMCPToolListingBlock:
			out = append(out, fmt.Sprintf("listing %s %d", b.MCPServerName, len(b.Tools)))
		case anthropic.BetaToolUseBlock:
			out = append(out, "client's "+b.Name)
		default:
			out = append(out, b.(interface{ RawJSON() string }).RawJSON())
		}
	}
	return append(out, fmt.Sprintf("%s %d %d %d", m.StopReason, m.Usage.InputTokens, m.Usage.OutputTokens, m.Usage.CacheReadInputTokens))
}

var wantShown = []string{
	"text Asking.", `use far echo {"text":"one"} true`, "use far fail {} true", "result false far says one", "result true no such luck",
	"text Again.", `use far echo {"text":"two"} true`, "result false far says two", "text Done.", "end_turn 60 21 3",
}

func TestNotStreaming(t *testing.T) {
	t.Parallel()
	l := newLab(t, twoCalls()...)
	client := l.v2()
	m, err := client.Beta.Messages.New(t.Context(), l.params())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantShown, shown(m)); diff != "" {
		t.Error(diff)
	}
	l.check(t)
}

func TestStreaming(t *testing.T) {
	t.Parallel()
	l := newLab(t, twoCalls()...)
	client := l.v2()
	stream := client.Beta.Messages.NewStreaming(t.Context(), l.params())
	var m anthropic.BetaMessage
	for stream.Next() {
		if err := m.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantShown, shown(&m)); diff != "" {
		t.Error(diff)
	}
	l.check(t)
}

func TestFirstSDK(t *testing.T) {
	t.Parallel()
	l := newLab(t, twoCalls()...)
	client := anthropicv1.NewClient(optionv1.WithBaseURL(l.url), optionv1.WithAPIKey("k"), optionv1.WithMaxRetries(0))
	m, err := client.Beta.Messages.New(t.Context(), anthropicv1.BetaMessageNewParams{
		Model: "claude-test", MaxTokens: 1000,
		Messages:   []anthropicv1.BetaMessageParam{anthropicv1.NewBetaUserMessage(anthropicv1.NewBetaTextBlock("hello"))},
		Betas:      []anthropicv1.AnthropicBeta{"mcp-client-2025-11-20"},
		MCPServers: []anthropicv1.BetaRequestMCPServerURLDefinitionParam{{Name: "far", URL: l.mcp.URL, AuthorizationToken: anthropicv1.String("the-secret-token")}},
		Tools:      []anthropicv1.BetaToolUnionParam{{OfMCPToolset: &anthropicv1.BetaMCPToolsetParam{MCPServerName: "far"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Content) != len(wantShown)-1 || m.Content[1].AsMCPToolUse().ServerName != "far" || m.Content[3].AsMCPToolResult().IsError {
		t.Errorf("the message is %s", m.RawJSON())
	}
}

// check verifies that the credential went to the server, and nowhere else.
func (l *lab) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.seen {
		if h != "Bearer the-secret-token" {
			t.Errorf("the server was sent the credential %q", h)
		}
	}
	if strings.Contains(l.log.String(), "the-secret-token") {
		t.Error("the credential is in the log")
	}
	for _, r := range l.model.Requests() {
		if bytes.Contains(r.Body, []byte("the-secret-token")) || bytes.Contains(r.Body, []byte("mcp_servers")) || strings.Contains(r.Header.Get("Anthropic-Beta"), "mcp-client") {
			t.Errorf("the model was told of the server: %s", r.Body)
		}
	}
	if diff := cmp.Diff([]string{"one", "two"}, l.ran); diff != "" {
		t.Errorf("the calls run were others: %s", diff)
	}
}

// A client sends the message back, and the conversation goes on.
func TestConversationGoesOn(t *testing.T) {
	t.Parallel()
	turns := append(twoCalls(), scripted.Turn{Expect: []scripted.Expect{{User: "thank you"}}, Text: "You are welcome."})
	l := newLab(t, turns...)
	client := l.v2()
	params := l.params()
	m, err := client.Beta.Messages.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	params.Messages = append(params.Messages, m.ToParam(), anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock("thank you")))
	if m, err = client.Beta.Messages.New(t.Context(), params); err != nil {
		t.Fatal(err)
	}
	if got := m.Content[0].Text; got != "You are welcome." {
		t.Errorf("the model said %q", got)
	}
}

// The client's own tools are its to run; what was run here is in the message.
func TestClientsOwnTools(t *testing.T) {
	t.Parallel()
	l := newLab(t,
		scripted.Turn{Calls: []scripted.Call{echo("one"), {Name: "mine"}}},
		scripted.Turn{Expect: []scripted.Expect{{Contains: "far says one"}, {Result: 1, Contains: "mine says"}}, Text: "Done."})
	client := l.v2()
	params := l.params()
	params.Tools = append(params.Tools, anthropic.BetaToolUnionParam{OfTool: &anthropic.BetaToolParam{Name: "mine", InputSchema: anthropic.BetaToolInputSchemaParam{}}})
	m, err := client.Beta.Messages.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(m); got[1] != "client's mine" || got[2] != "result false far says one" || m.StopReason != "tool_use" {
		t.Fatalf("the message is %v", got)
	}
	params.Messages = append(params.Messages, m.ToParam(), anthropic.NewBetaUserMessage(anthropic.NewBetaToolResultBlock(m.Content[1].ID, "mine says so", false)))
	if m, err = client.Beta.Messages.New(t.Context(), params); err != nil {
		t.Fatal(err)
	}
	if got := m.Content[0].Text; got != "Done." {
		t.Errorf("the model said %q", got)
	}
}

func TestEndlessCalls(t *testing.T) {
	t.Parallel()
	var turns []scripted.Turn
	for i := range requestsMax + 1 {
		turns = append(turns, scripted.Turn{Calls: []scripted.Call{echo(fmt.Sprint(i))}, Usage: &scripted.Usage{OutputTokens: 1}})
	}
	turns[requestsMax].Calls, turns[requestsMax].Text = nil, "Enough."
	l := newLab(t, turns...)
	client := l.v2()
	params := l.params()
	m, err := client.Beta.Messages.New(t.Context(), params)
	if err != nil || m.StopReason != "pause_turn" || len(m.Content) != 2*requestsMax {
		t.Fatalf("%v, %v", m, err)
	}
	// It goes on where it stopped.
	params.Messages = append(params.Messages, m.ToParam())
	if m, err = client.Beta.Messages.New(t.Context(), params); err != nil || m.Content[0].Text != "Enough." {
		t.Fatalf("%v, %v", m, err)
	}
	// The bound of the output is that of all together.
	params = l.params()
	params.MaxTokens = 3
	if m, err = client.Beta.Messages.New(t.Context(), params); err != nil || m.StopReason != "max_tokens" || m.Usage.OutputTokens != 3 {
		t.Fatalf("%v, %v", m, err)
	}
}

func TestChoiceOfTools(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*anthropic.BetaMessageNewParams)
		want   string
	}{
		"all": {func(*anthropic.BetaMessageNewParams) {}, "mcp__far__echo mcp__far__fail"},
		"none": {func(p *anthropic.BetaMessageNewParams) {
			p.Tools[0].OfMCPToolset.DefaultConfig.Enabled = anthropic.Bool(false)
		}, ""},
		"one": {func(p *anthropic.BetaMessageNewParams) {
			p.Tools[0].OfMCPToolset.DefaultConfig.Enabled = anthropic.Bool(false)
			p.Tools[0].OfMCPToolset.Configs = map[string]anthropic.BetaMCPToolConfigParam{"fail": {Enabled: anthropic.Bool(true)}}
		}, "mcp__far__fail"},
		"pinned": {func(p *anthropic.BetaMessageNewParams) {
			p.Tools[0].OfMCPToolset.Tools = []anthropic.BetaMCPToolParam{{Name: "old", InputSchema: map[string]any{"type": "object"}}}
		}, "mcp__far__old"},
		"older form": {func(p *anthropic.BetaMessageNewParams) {
			p.Betas = []anthropic.AnthropicBeta{anthropic.AnthropicBetaMCPClient2025_04_04}
			p.Tools = nil
			p.MCPServers[0].ToolConfiguration.AllowedTools = []string{"echo"}
		}, "mcp__far__echo"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, scripted.Turn{Text: "Hello."})
			client := l.v2()
			params := l.params()
			test.change(&params)
			if _, err := client.Beta.Messages.New(t.Context(), params); err != nil {
				t.Fatal(err)
			}
			var req struct{ Tools []struct{ Name string } }
			if err := json.Unmarshal(l.model.Requests()[0].Body, &req); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tool := range req.Tools {
				names = append(names, tool.Name)
			}
			if got := strings.Join(names, " "); got != test.want {
				t.Errorf("the model is offered %q", got)
			}
		})
	}
}

func TestListing(t *testing.T) {
	t.Parallel()
	l := newLab(t, scripted.Turn{Text: "Hello."}, scripted.Turn{Expect: []scripted.Expect{{Tool: "mcp__far__echo"}}, Text: "Again."})
	client := l.v2()
	params := l.params()
	params.Betas = []anthropic.AnthropicBeta{anthropic.AnthropicBetaMCPClient2026_09_15}
	m, err := client.Beta.Messages.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(m); got[0] != "listing far 2" {
		t.Errorf("the message is %v", got)
	}
	params.Messages = append(params.Messages, m.ToParam(), anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock("again")))
	if m, err = client.Beta.Messages.New(t.Context(), params); err != nil {
		t.Fatal(err)
	}
	if got := shown(m); got[0] != "text Again." {
		t.Errorf("the message is %v", got)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t, scripted.Turn{Text: "Hello."})
	client := l.v2()
	away := httptest.NewServer(http.NotFoundHandler())
	away.Close()
	for name, test := range map[string]struct {
		change func(*anthropic.BetaMessageNewParams)
		status int
		says   string
	}{
		"no beta":        {func(p *anthropic.BetaMessageNewParams) { p.Betas = nil }, 400, "needs the header anthropic-beta: mcp-client-2025-11-20"},
		"no toolset":     {func(p *anthropic.BetaMessageNewParams) { p.Tools = nil }, 400, "not referenced by any mcp_toolset"},
		"unknown server": {func(p *anthropic.BetaMessageNewParams) { p.Tools[0].OfMCPToolset.MCPServerName = "other" }, 400, "no server named"},
		"plain http":     {func(p *anthropic.BetaMessageNewParams) { p.MCPServers[0].URL = "http://example.com/mcp" }, 400, "must start with https://"},
		"twice":          {func(p *anthropic.BetaMessageNewParams) { p.MCPServers = append(p.MCPServers, p.MCPServers[0]) }, 400, "already used"},
		"away":           {func(p *anthropic.BetaMessageNewParams) { p.MCPServers[0].URL = away.URL }, 502, "MCP server 'far' initialize failed"},
		"wrong credential": {func(p *anthropic.BetaMessageNewParams) {
			p.MCPServers[0].AuthorizationToken = anthropic.String("wrong-secret")
		}, 400, "refuses the credential"},
	} {
		params := l.params()
		test.change(&params)
		_, err := client.Beta.Messages.New(t.Context(), params)
		var e *anthropic.Error
		if !errors.As(err, &e) || e.StatusCode != test.status || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if strings.Contains(l.log.String(), "secret") {
		t.Error("the credential is in the log")
	}
}

func TestModelFailsInTheMiddle(t *testing.T) {
	t.Parallel()
	turns := twoCalls()
	turns[1].Faults = []scripted.Fault{{Kind: scripted.FaultStatus, Status: 529, Type: "overloaded_error", Message: "Busy.", Times: -1}}
	l := newLab(t, turns...)
	client := l.v2()
	stream := client.Beta.Messages.NewStreaming(t.Context(), l.params())
	n := 0
	for stream.Next() {
		n++
	}
	if err := stream.Err(); err == nil || !strings.Contains(err.Error(), "Busy.") || n == 0 {
		t.Errorf("after %d events: %v", n, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"model":"m","mcp_servers":[{"type":"url","name":"a","url":"https://x"}],"tools":[{"type":"mcp_toolset","mcp_server_name":"a"}],"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"mcp_tool_use","id":"mcptoolu_1","name":"t","server_name":"a","input":{}},{"type":"mcp_tool_result","tool_use_id":"mcptoolu_1","content":[{"type":"text","text":"x"}]},{"type":"mcp_tool_listing","mcp_server_name":"a","tools":[{"name":"t","input_schema":{}}]}]}]}`))
	c := New(Config{})
	h := http.Header{"Anthropic-Beta": {betaListing}}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := c.parse(h, body)
		if err != nil {
			return
		}
		all := servers{}
		for _, s := range r.servers {
			all[s.Name] = &linked{tools: s.pinned}
		}
		if err := r.offer(all); err == nil {
			if _, err := json.Marshal(r.body); err != nil {
				t.Errorf("the request does not encode: %v", err)
			}
		}
	})
}

// A call that cannot be put on record is not made, and what came of one is not passed on.
func TestRecord(t *testing.T) {
	t.Parallel()
	said := func(result string) []scripted.Turn {
		return []scripted.Turn{
			{Calls: []scripted.Call{echo("one")}},
			{Expect: []scripted.Expect{{Contains: result}}, Text: "Done."},
		}
	}
	for _, test := range []struct {
		full, result string
		records, ran []string
	}{
		{"", "far says one", []string{`begin far echo {"text":"one"} true`, "end echo ok far says one"}, []string{"one"}},
		{"begin", "nothing was run", nil, nil},
		{"end", "its output is withheld", []string{`begin far echo {"text":"one"} true`}, []string{"one"}},
	} {
		l := newLab(t, said(test.result)...)
		l.full = test.full
		client := l.v2()
		m, err := client.Beta.Messages.New(t.Context(), l.params())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(m.Content); m.Content[n-1].Text != "Done." {
			t.Errorf("full at %q: %q", test.full, shown(m))
		}
		if diff := cmp.Diff(test.records, l.records); diff != "" {
			t.Errorf("full at %q: records:\n%s", test.full, diff)
		}
		if diff := cmp.Diff(test.ran, l.ran); diff != "" {
			t.Errorf("full at %q: ran:\n%s", test.full, diff)
		}
	}
}
