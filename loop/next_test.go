package loop

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
)

var update = flag.Bool("update", false, "rewrite the want sections of testdata")

// TestNext plays the files of testdata: a history, and the steps that follow
// from it up to the first that is not just a write. The comment of a file says
// what rule it shows; its "set" lines change the session. A line of history is
//
//	[?]ID TYPE [FIELDS] [## PRIVATE]
//
// with ? for an event that is still queued, and a JSON string for fields that are
// only a text content.
func TestNext(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := playFile(t, ar)
			got := map[string]string{}
			got["steps"] = steps(t, s)
			for i, f := range ar.Files {
				switch f.Name {
				case "history":
					continue
				case "messages":
					got["messages"] = showMessages(s)
				case "summary":
					got["summary"] = api.Content(s.summaryRequest().Messages[0].Content).Text() + "\n"
				}
				if *update {
					ar.Files[i].Data = []byte(got[f.Name])
				} else if diff := cmp.Diff(string(f.Data), got[f.Name]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// playFile folds the history of a file.
func playFile(t *testing.T, ar *txtar.Archive) *State {
	t.Helper()
	session := testSession()
	s := &State{}
	over := false
	ours := map[api.EventID]bool{}
	for line := range strings.Lines(string(ar.Comment)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "set" {
			continue
		}
		switch words[1] {
		case "over_budget":
			over = true
		case "status":
			session.Status = api.SessionStatus(words[2])
		case "mcp":
			withMCP(&session.Agent)
		case "equipped":
			s.mcp = farTools
		case "ours":
			ours[api.EventID(words[2])] = true
		case "compact_tokens":
			s.compactAt, _ = strconv.ParseInt(words[2], 10, 64)
		default:
			t.Fatalf("unknown setting %q", line)
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(string(ar.Files[0].Data)), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			t.Fatalf("history line %d: %v", i+1, err)
		}
		e.Seq = int64(i + 1)
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	if session.Status == "" {
		session.Status = s.status
	}
	s.Look(session, "sthr_1", over)
	s.adopt(ours)
	return s
}

func parseEntry(line string) (api.Entry, error) {
	var e api.Entry
	line, private, ok := strings.Cut(line, " ## ")
	if ok {
		e.Private = json.RawMessage(private)
	}
	line, e.Queued = strings.CutPrefix(line, "?")
	id, rest, _ := strings.Cut(line, " ")
	typ, fields, _ := strings.Cut(strings.TrimSpace(rest), " ")
	fields = strings.TrimSpace(fields)
	if strings.HasPrefix(fields, `"`) {
		fields = `{"content":[{"type":"text","text":` + fields + `}]}`
	}
	if fields == "" {
		fields = "{}"
	}
	body, err := api.DecodeBody(api.EventType(typ), []byte(fields))
	e.Event = api.Event{ID: api.EventID(id), Body: body}
	return e, err
}

// steps takes the steps of a plan one by one and shows them.
func steps(t *testing.T, s *State) string {
	t.Helper()
	var out strings.Builder
	newID := counter()
	for range settleMax {
		step := s.Next()
		out.WriteString(string(step.Do))
		if !step.NotBefore.IsZero() {
			out.WriteString(" not before " + step.NotBefore.UTC().Format(time.RFC3339))
		}
		out.WriteString("\n")
		var p plan
		if err := s.write(&p, step.Drafts, newID); err != nil {
			t.Fatal(err)
		}
		for _, d := range p.drafts {
			out.WriteString("\t" + showDraft(d) + "\n")
		}
		if step.Do != Append {
			return out.String()
		}
	}
	t.Fatalf("no end of steps:\n%s", out.String())
	return ""
}

func showDraft(d api.Draft) string {
	if d.Body == nil {
		return "take " + string(d.ID)
	}
	line := fmt.Sprintf("%s %s", d.ID, d.Body.EventType())
	if _, ok := d.Body.(*api.SessionUsage); !ok { // control fills it
		if body, _ := json.Marshal(d.Body); string(body) != "{}" {
			line += " " + string(body)
		}
	}
	if d.Private != nil {
		line += " ## " + string(d.Private)
	}
	return line
}

func showMessages(s *State) string {
	var out strings.Builder
	for _, m := range s.messages() {
		out.WriteString(m.Role + "\n")
		for _, b := range m.Content {
			out.WriteString("\t" + string(b) + "\n")
		}
	}
	return out.String()
}

func counter() func() api.EventID {
	n := 0
	return func() api.EventID {
		n++
		return api.EventID("n" + strconv.Itoa(n))
	}
}

// withMCP gives an agent the server far: its tool look is allowed, and push asked for.
func withMCP(agent *api.SessionAgent) {
	agent.MCPServers = []api.MCPServer{{Type: "url", Name: "far", URL: "http://far.test/mcp"}}
	agent.Tools = append(agent.Tools, api.AgentTool{Type: api.ToolsetMCP, MCPServerName: "far", Configs: []api.ToolConfig{
		{Name: "look", PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAllow}},
	}})
	if err := agent.Resolve(); err != nil {
		panic(err)
	}
}

var farTools = &toolbox{tools: map[string][]mcp.Tool{"far": {
	{Name: "look", InputSchema: json.RawMessage(`{"type":"object"}`)}, {Name: "push", InputSchema: json.RawMessage(`{"type":"object"}`)},
}}}

func testSession() *api.Session {
	agent := api.SessionAgent{AgentSpec: api.AgentSpec{
		Name: "tester", Model: api.ModelConfig{ID: "claude-test"},
		Tools: []api.AgentTool{
			{Type: api.ToolsetBuiltin, Configs: []api.ToolConfig{
				{Name: "write", PermissionPolicy: &api.PermissionPolicy{Type: api.AlwaysAsk}},
				{Name: "bash", PermissionPolicy: &api.PermissionPolicy{Type: api.Auto}},
				{Name: "grep", Enabled: new(bool)},
			}},
			{Type: api.ToolCustom, Name: "weather", Description: "The weather.", InputSchema: json.RawMessage(`{"type":"object"}`)},
		},
	}}
	if err := agent.Resolve(); err != nil {
		panic(err)
	}
	return &api.Session{ID: "sesn_1", Agent: agent}
}
