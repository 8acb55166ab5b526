package loop

import (
	"encoding/json"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// previewed are the ids under which parts of a response were shown while it
// streamed; the events keep them. Empty where nothing was shown.
type previewed struct {
	thinking, message api.EventID
}

// respond returns the events of a response to the open request.
func (s *State) respond(res *model.Response, shown previewed) []api.Draft {
	offers := offers(&s.session.Agent)
	var thought bool
	var text api.Content
	var calls []api.Draft
	for _, raw := range res.Content {
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
			calls = append(calls, callDraft(offers, b.Name, b.Input, b.ID))
		}
	}

	note := spanNote{Content: replayable(res.Content), Stop: res.StopReason}
	if res.StopReason == stopRefusal {
		// What came before a refusal is shown, but neither run nor sent back.
		calls, note.Content, note.Refusal = nil, nil, refusalDetails(res.StopDetails)
	}
	var drafts []api.Draft
	if thought {
		drafts = append(drafts, api.Draft{ID: shown.thinking, Body: &api.AgentThinking{}})
	}
	if len(text) > 0 {
		drafts = append(drafts, api.Draft{ID: shown.message, Body: &api.AgentMessage{Content: text}})
	}
	drafts = append(drafts, calls...)
	return append(drafts, s.endOK(res, note))
}

// endOK is the end of the open request with a response.
func (s *State) endOK(res *model.Response, note spanNote) api.Draft {
	return api.Draft{
		Body:    &api.SpanModelRequestEnd{ModelRequestStartID: s.span, ModelUsage: tokens(res.Usage).Span()},
		Private: writeNote(note),
	}
}

func callDraft(offers []offer, name string, input json.RawMessage, ref string) api.Draft {
	private := writeNote(callNote{ToolUseID: ref})
	o := findOffer(offers, name)
	switch {
	case o == nil:
		// The model invented it, or the tool was switched off meanwhile.
		return api.Draft{Body: &api.AgentToolUse{Name: name, Input: input, EvaluatedPermission: api.PermissionDeny}, Private: private}
	case o.custom:
		return api.Draft{Body: &api.AgentCustomToolUse{Name: name, Input: input}, Private: private}
	}
	permission, evaluation := evaluate(o.policy, name, input)
	if ambiguous(input) {
		// Judged and shown as one thing, it could run as another.
		permission, evaluation = api.PermissionDeny, &api.Evaluation{Type: api.Auto, Verdict: &verdictDeny}
	}
	return api.Draft{
		Body:    &api.AgentToolUse{Name: name, Input: input, EvaluatedPermission: permission, Evaluation: evaluation},
		Private: private,
	}
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
