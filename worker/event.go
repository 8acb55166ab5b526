package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// event is what the worker needs of a session event. Events come from the plane
// and are held to this shape whatever else they contain: the worker must serve
// planes newer and older than itself.
type event struct {
	ID          string
	Type        api.EventType
	ProcessedAt time.Time // zero while the event is still queued
	Thread      string    // session thread; empty for the primary one

	// agent.tool_use
	Name       string
	Input      json.RawMessage // as sent; never nil
	Permission string

	ToolUseID  string   // of a result or a confirmation
	Verdict    string   // user.tool_confirmation: "allow" or "deny"
	OutputFile string   // agent.mcp_tool_result: where its whole output is to be found, or ""
	StopReason string   // session.status_idle
	WaitsFor   []string // session.status_idle: ids of the calls it waits for
}

const (
	eventMax   = 32 << 20 // bytes of one event
	eventIDMax = 256
	nameMax    = 128

	outputFileMax = 512
)

// decodeEvent reads one event. An event it cannot make sense of is an error, and
// is then as if it had not been sent: a call that is not understood is not run.
func decodeEvent(raw []byte) (event, error) {
	var head struct {
		ID          string     `json:"id"`
		Type        string     `json:"type"`
		ProcessedAt *time.Time `json:"processed_at"`
		Thread      string     `json:"session_thread_id"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return event{}, fmt.Errorf("decode event: %w", err)
	}
	if head.Type == "" {
		return event{}, errors.New("decode event: it has no type")
	}
	ev := event{ID: head.ID, Type: api.EventType(head.Type), Thread: head.Thread}
	if head.ProcessedAt != nil {
		ev.ProcessedAt = *head.ProcessedAt
	}

	// Only the fields of the types that matter here are looked at, because other
	// types may give the same names to other things.
	var err error
	switch ev.Type {
	case api.EvAgentToolUse:
		var body struct {
			Name       string          `json:"name"`
			Input      json.RawMessage `json:"input"`
			Permission string          `json:"evaluated_permission"`
		}
		err = json.Unmarshal(raw, &body)
		ev.Name, ev.Input, ev.Permission = body.Name, body.Input, body.Permission
		if err == nil && (ev.ID == "" || ev.Name == "") {
			err = errors.New("tool use without id or name")
		}
		if len(ev.Input) == 0 || string(ev.Input) == "null" {
			ev.Input = json.RawMessage("{}")
		}
	case api.EvUserToolResult, api.EvAgentToolResult, api.EvUserToolConfirmation:
		var body struct {
			ToolUseID string `json:"tool_use_id"`
			Result    string `json:"result"`
		}
		err = json.Unmarshal(raw, &body)
		ev.ToolUseID, ev.Verdict = body.ToolUseID, body.Result
	case api.EvAgentMCPToolResult:
		var body struct {
			OutputFile string `json:"bailey_output_file"`
		}
		err = json.Unmarshal(raw, &body)
		if ev.OutputFile = body.OutputFile; err == nil && !filepath.IsLocal(ev.OutputFile) {
			ev.OutputFile = "" // none, or one outside of the working directory
		}
	case api.EvSessionStatusIdle:
		var body struct {
			StopReason struct {
				Type     string   `json:"type"`
				EventIDs []string `json:"event_ids"`
			} `json:"stop_reason"`
		}
		err = json.Unmarshal(raw, &body)
		ev.StopReason, ev.WaitsFor = body.StopReason.Type, body.StopReason.EventIDs
	}
	if err != nil {
		return event{}, fmt.Errorf("decode event of type %.128q: %w", head.Type, err)
	}
	if len(ev.ID) > eventIDMax || len(ev.ToolUseID) > eventIDMax || len(ev.Thread) > eventIDMax || len(ev.Name) > nameMax || len(ev.OutputFile) > outputFileMax || len(ev.Type) > nameMax {
		return event{}, errors.New("decode event: an id or name is too long")
	}
	return ev, nil
}

// endsTurn reports whether ev leaves the session idle with its turn over. Only
// requires_action keeps the turn open; reasons newer than this code end it.
func (ev event) endsTurn() bool {
	return ev.Type == api.EvSessionStatusIdle && ev.StopReason != string(api.StopRequiresAction)
}

// neutral reports whether ev says nothing about the turn being over or open.
func (ev event) neutral() bool {
	switch ev.Type {
	case api.EvUserToolConfirmation, api.EvUserInterrupt, api.EvThreadStatusTerminated:
		return true
	}
	return false
}

// answers reports whether ev is the result of the call it names.
func (ev event) answers() bool {
	return ev.Type == api.EvUserToolResult || ev.Type == api.EvAgentToolResult
}

// ends returns how ev ends its session, or "" if it does not.
func (ev event) ends() outcome {
	switch ev.Type {
	case api.EvSessionStatusTerminated:
		return outcomeTerminated
	case api.EvSessionDeleted:
		return outcomeDeleted
	}
	return ""
}
