package loop

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/model"
)

// previewed are the ids under which parts of a response were shown while it
// streamed; the events keep them. Empty where nothing was shown.
type previewed struct {
	thinking, message api.EventID
}

// callsMax bounds the calls of one response. Each of them is an event, is waited for
// and is looked up whenever one of them is answered.
const callsMax = 256

// respond returns the events of a response to the open request.
func (s *State) respond(res *model.Response, shown previewed) []api.Draft {
	offers := offers(&s.session.Agent, s.mcp)
	var thought bool
	var text api.Content
	var calls []api.Draft
	var content []json.RawMessage // what is to be sent back
	leftOut := 0
	for i, raw := range res.Content {
		raw = api.SoundText(raw)
		var b struct {
			Type  string          `json:"type"`
			Text  string          `json:"text"`
			ID    string          `json:"id"`
			Name  string          `json:"name"`
			Input json.RawMessage `json:"input"`
		}
		_ = json.Unmarshal(raw, &b) // package model has parsed it before
		switch b.Type {
		case "thinking", "redacted_thinking":
			thought = true
		case "text":
			if strings.TrimSpace(b.Text) != "" {
				text = append(text, api.TextBlock(b.Text))
			}
		case "tool_use":
			if len(calls) == callsMax {
				leftOut++
				continue
			}
			calls = append(calls, s.callDraft(offers, b.Name, b.Input, callNote{b.ID, res.Spoilt[i]}))
		}
		content = append(content, raw)
	}

	note := spanNote{Content: replayable(content), Stop: res.StopReason, LeftOut: leftOut}
	if res.StopReason == stopRefusal {
		// What came before a refusal is shown, but neither run nor sent back.
		calls, note.Content, note.LeftOut, note.Refusal = nil, nil, 0, refusalDetails(res.StopDetails)
	}
	var drafts []api.Draft
	if thought {
		drafts = append(drafts, api.Draft{ID: shown.thinking, Body: &api.AgentThinking{}})
	}
	if len(text) > 0 {
		drafts = append(drafts, api.Draft{ID: shown.message, Body: &api.AgentMessage{Content: text}})
	}
	drafts = append(drafts, calls...)
	drafts = append(drafts, s.endOK(res, note))
	if note.LeftOut > 0 {
		drafts = append(drafts, errorDraft(api.ErrorModelRequest, fmt.Sprintf(
			"The model made %d tool calls in one response, and at most %d are run. It was told so, and goes on.", len(calls)+note.LeftOut, callsMax), api.RetryRetrying))
	}
	return drafts
}

// endOK is the end of the open request with a response.
func (s *State) endOK(res *model.Response, note spanNote) api.Draft {
	return api.Draft{
		Body:    &api.SpanModelRequestEnd{ModelRequestStartID: s.span, ModelUsage: tokens(res.Usage).Span()},
		Private: writeNote(note),
	}
}

func (s *State) callDraft(offers []offer, name string, input json.RawMessage, note callNote) api.Draft {
	private := writeNote(note)
	o := findOffer(offers, name)
	switch {
	case o == nil || note.Spoilt != "":
		// The model invented it, or the tool was switched off meanwhile, or its server is
		// away; or nobody could run it with this input.
		if server, bare, ok := s.ofServer(o, name); ok {
			return api.Draft{Body: &api.AgentMCPToolUse{Name: bare, MCPServerName: server, Input: input, EvaluatedPermission: api.PermissionDeny}, Private: private}
		}
		return api.Draft{Body: &api.AgentToolUse{Name: name, Input: input, EvaluatedPermission: api.PermissionDeny}, Private: private}
	case o.custom:
		return api.Draft{Body: &api.AgentCustomToolUse{Name: name, Input: input}, Private: private}
	}
	permission, evaluation := evaluate(o.policy, name, input) // no rule knows a name of an MCP tool
	if ambiguous(input) {
		// Judged and shown as one thing, it could run as another.
		permission, evaluation = api.PermissionDeny, &api.Evaluation{Type: api.Auto, Verdict: &verdictDeny}
	}
	if o.server != "" {
		return api.Draft{
			Body:    &api.AgentMCPToolUse{Name: o.bare, MCPServerName: o.server, Input: input, EvaluatedPermission: permission, Evaluation: evaluation},
			Private: private,
		}
	}
	return api.Draft{
		Body:    &api.AgentToolUse{Name: name, Input: input, EvaluatedPermission: permission, Evaluation: evaluation},
		Private: private,
	}
}

// ofServer returns the MCP server that a name is of, and the tool's name there.
func (s *State) ofServer(o *offer, name string) (server, bare string, ok bool) {
	if o != nil {
		return o.server, o.bare, o.server != ""
	}
	for _, m := range s.session.Agent.MCPServers {
		if bare, ok := strings.CutPrefix(name, mcp.ModelName(m.Name, "")); ok && bare != "" {
			return m.Name, bare, true
		}
	}
	return "", "", false
}

func refusalDetails(d *model.StopDetails) *api.StopDetails {
	out := &api.StopDetails{Type: "refusal"}
	if d != nil && d.Category != "" {
		out.Category = &d.Category
	}
	if d != nil && d.Explanation != "" {
		out.Explanation = &d.Explanation
	}
	return out
}

func tokens(u model.Usage) api.Tokens {
	return api.Tokens{
		Input: u.InputTokens, Output: u.OutputTokens, CacheRead: u.CacheReadInputTokens,
		CacheCreate5m: u.CacheCreation5m, CacheCreate1h: u.CacheCreation1h,
	}
}
