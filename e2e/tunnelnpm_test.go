package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// realServers has the model use two servers of npm in one session.
var realServers = scripted.Script{Name: "real servers", Marker: "real servers", Turns: []scripted.Turn{
	{
		Expect: []scripted.Expect{{Tool: "mcp__everything__echo"}, {Tool: "mcp__files__read_text_file"}},
		Calls: []scripted.Call{
			{Name: "mcp__everything__echo", Input: map[string]any{"message": "hello inside"}},
			{Name: "mcp__everything__trigger-long-running-operation", Input: map[string]any{"duration": 1, "steps": 4}},
			{Name: "mcp__files__read_text_file", Input: map[string]any{"path": "note.txt"}},
			{Name: "mcp__files__read_text_file", Input: map[string]any{"path": "/etc/passwd"}},
			{Name: "mcp__files__write_file", Input: map[string]any{"path": "note.txt", "content": "overwritten"}},
		},
	},
	{
		Expect: []scripted.Expect{
			{Contains: "hello inside", OK: true}, {Result: 1, Contains: "completed", OK: true},
			{Result: 2, Contains: "hush-note", OK: true}, {Result: 3, Failed: true, Lacks: "root:"}, {Result: 4, Failed: true},
		},
		Text: "All of it works.",
	},
}}

// Servers as people run them, behind a tunnel: one over HTTP on a host of its own, and a
// program that speaks MCP on its standard streams, which the gateway starts.
func TestTunnelServersOfNPM(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	dir := mcpProject.need(t)
	docs := t.TempDir()
	if err := os.WriteFile(filepath.Join(docs, "note.txt"), []byte("hush-note"), 0o644); err != nil {
		t.Fatal(err)
	}
	const modules = "node_modules/@modelcontextprotocol"
	cmd := exec.Command("node", modules+"/server-everything/dist/index.js", "streamableHttp")
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "PORT=3001"}
	l.run("server-everything", l.upstream.host.within(cmd)).waitFor(regexp.MustCompile("(listening|running) on port"))

	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	l.setUp("everything=http://10.9.0.2:3001", fmt.Sprintf("files=exec:%s %s/%s/server-filesystem/dist/index.js %s", node, dir, modules, docs))
	l.edit("  files:\n", "  files:\n    process: {user: root}\n    dir: "+docs+"\n    tools: {deny: [write_file]}\n")
	l.inside.filter(onlyAnswers, "")
	l.runGateway(2)

	p := l.plane
	create := api.AgentCreate{Name: t.Name(), Model: &api.ModelConfig{ID: modelID}}
	for _, name := range []string{"everything", "files"} {
		var set api.AgentTool
		if err := json.Unmarshal(fmt.Appendf(nil, `{"type":"mcp_toolset","mcp_server_name":%q,"default_config":{"enabled":true,"permission_policy":{"type":"always_allow"}}}`, name), &set); err != nil {
			t.Fatal(err)
		}
		create.Tools = append(create.Tools, set)
		create.MCPServers = append(create.MCPServers, api.MCPServer{Type: "url", Name: name, URL: "https://" + name + "." + l.tunnel.Domain + "/mcp"})
	}
	agent, err := p.client.CreateAgent(within(t), create)
	if err != nil {
		t.Fatal(err)
	}
	env, _ := p.environment(t)
	results := 0
	for _, e := range p.watch(t, p.session(t, agent.ID, env, "try the real servers")).finished() {
		switch b := e.Body.(type) {
		case *api.AgentMCPToolResult:
			results++
			if strings.Contains(b.Content.Text(), "root:") {
				t.Error("the file server reads what is not its own")
			}
		case *api.SessionError:
			t.Errorf("%s: %s", b.Error.Type, b.Error.Message)
		}
	}
	if results != len(realServers.Turns[0].Calls) {
		t.Errorf("%d results", results)
	}
	if text, err := os.ReadFile(filepath.Join(docs, "note.txt")); err != nil || string(text) != "hush-note" {
		t.Errorf("the file is %q, %v: a tool that is denied was called", text, err)
	}
}
