package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// Real MCP servers, and the protocol's own conformance suite, in the versions that
// mcp/package-lock.json pins.

var mcpProject = newNPMProject("mcp", "an MCP server of npm")

// everything starts server-everything with a transport and returns its URL.
func everything(t *testing.T, transport string) string {
	t.Helper()
	dir := mcpProject.need(t)
	port := anyPort()
	cmd := exec.Command("node", "node_modules/@modelcontextprotocol/server-everything/dist/index.js", transport)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, fmt.Sprint("PORT=", port)}
	p := start(t, "server-everything", cmd)
	t.Cleanup(func() {
		if p.alive() {
			p.kill()
		}
	})
	p.waitFor(regexp.MustCompile("(listening|running) on port"))
	path := "/mcp"
	if transport == "sse" {
		path = "/sse"
	}
	return fmt.Sprintf("http://127.0.0.1:%d%s", port, path)
}

func everythingScript() scripted.Script {
	return scripted.Script{Turns: []scripted.Turn{
		{
			Expect: []scripted.Expect{{Tool: "mcp__everything__echo"}, {Tool: "mcp__everything__get-sum"}},
			Calls: []scripted.Call{
				{Name: "mcp__everything__echo", Input: map[string]any{"message": "hello there"}},
				{Name: "mcp__everything__get-sum", Input: map[string]any{"a": 2, "b": 40}},
				{Name: "mcp__everything__trigger-long-running-operation", Input: map[string]any{"duration": 1, "steps": 3}},
				{Name: "mcp__everything__get-tiny-image"},
				{Name: "mcp__everything__get-resource-links", Input: map[string]any{"count": 2}},
				{Name: "mcp__everything__get-structured-content", Input: map[string]any{"location": "Chicago"}},
				{Name: "mcp__everything__echo", Input: map[string]any{"wrong": true}},
			},
		},
		{
			Expect: []scripted.Expect{
				{Contains: "hello there", OK: true}, {Result: 1, Contains: "42", OK: true}, {Result: 2, Contains: "completed", OK: true},
				{Result: 3, OK: true}, {Result: 4, Contains: "demo://", OK: true}, {Result: 5, OK: true}, {Result: 6, Failed: true},
			},
			Text: "All of it works.",
		},
	}}
}

// anyPort is one for a server that cannot be told to take any: of those that the kernel
// does not give out, as such a one may be taken by a connection before the server has it.
func anyPort() int {
	for {
		try := 20_000 + rand.IntN(10_000)
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", try)); err == nil {
			l.Close()
			return try
		}
	}
}

func TestEverythingServerInSessions(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"streamableHttp", "sse"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			url := everything(t, transport)
			p := startPlane(t, planeConfig{scripts: []scripted.Script{everythingScript()}, args: []string{"--mcp-allowed-addresses", "127.0.0.1"}})
			var set api.AgentTool
			if err := json.Unmarshal([]byte(`{"type":"mcp_toolset","mcp_server_name":"everything","default_config":{"enabled":true,"permission_policy":{"type":"always_allow"}}}`), &set); err != nil {
				t.Fatal(err)
			}
			agent, err := p.client.CreateAgent(within(t), api.AgentCreate{
				Name: t.Name(), Model: &api.ModelConfig{ID: modelID}, Tools: []api.AgentTool{set},
				MCPServers: []api.MCPServer{{Type: "url", Name: "everything", URL: url}},
			})
			if err != nil {
				t.Fatal(err)
			}
			env, _ := p.environment(t)
			events := p.watch(t, p.session(t, agent.ID, env, "try everything")).finished()
			results, image := 0, false
			for _, e := range events {
				switch b := e.Body.(type) {
				case *api.AgentMCPToolResult:
					results++
					image = image || strings.Contains(string(must(json.Marshal(b.Content))), `"image"`)
				case *api.SessionError:
					t.Errorf("%s: %s", b.Error.Type, b.Error.Message)
				}
			}
			if results != 7 || !image {
				t.Errorf("%d results, an image among them: %t", results, image)
			}
		})
	}
}

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

func TestEverythingServerInMessages(t *testing.T) {
	t.Parallel()
	url := everything(t, "streamableHttp")
	p := startPlane(t, planeConfig{scripts: []scripted.Script{everythingScript()}, args: []string{"--mcp-allowed-addresses", "127.0.0.1"}})
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(p.url), option.WithAPIKey(p.admin), option.WithMaxRetries(0))
	params := anthropic.BetaMessageNewParams{
		Model: modelID, MaxTokens: 10_000,
		Messages:   []anthropic.BetaMessageParam{anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock("try everything"))},
		Betas:      []anthropic.AnthropicBeta{anthropic.AnthropicBetaMCPClient2025_11_20},
		MCPServers: []anthropic.BetaRequestMCPServerURLDefinitionParam{{Name: "everything", URL: url}},
		Tools:      []anthropic.BetaToolUnionParam{{OfMCPToolset: &anthropic.BetaMCPToolsetParam{MCPServerName: "everything"}}},
	}
	stream := client.Beta.Messages.NewStreaming(within(t), params)
	var m anthropic.BetaMessage
	for stream.Next() {
		if err := m.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if n := len(m.Content); n != 15 || m.Content[n-1].Text != "All of it works." || m.StopReason != "end_turn" {
		t.Errorf("%d blocks, the stop reason is %s: %s", n, m.StopReason, m.RawJSON())
	}
	record, err := os.ReadFile(filepath.Join(p.data, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{"connector.call", "connector.answer"} {
		if n := strings.Count(string(record), `"action":"`+action+`"`); n != 7 {
			t.Errorf("%d records of %s", n, action)
		}
	}
	// Not opened by the operator, it does not exist.
	params.MCPServers[0].URL = "http://127.0.0.2:1/mcp"
	if _, err := client.Beta.Messages.New(within(t), params); err == nil || !strings.Contains(err.Error(), "must start with https://") {
		t.Errorf("another private address: %v", err)
	}
}
