package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// An EventType names a kind of event: its domain, a dot, what happened.
type EventType string

// The events clients send.
const (
	EvUserMessage          EventType = "user.message"
	EvUserInterrupt        EventType = "user.interrupt"
	EvUserToolConfirmation EventType = "user.tool_confirmation"
	EvUserToolResult       EventType = "user.tool_result"
	EvUserCustomToolResult EventType = "user.custom_tool_result"
	EvUserDefineOutcome    EventType = "user.define_outcome"
	EvSystemMessage        EventType = "system.message"
)

// The events the plane writes.
const (
	EvAgentMessage            EventType = "agent.message"
	EvAgentThinking           EventType = "agent.thinking"
	EvAgentToolUse            EventType = "agent.tool_use"
	EvAgentToolResult         EventType = "agent.tool_result"
	EvAgentMCPToolUse         EventType = "agent.mcp_tool_use"
	EvAgentMCPToolResult      EventType = "agent.mcp_tool_result"
	EvAgentCustomToolUse      EventType = "agent.custom_tool_use"
	EvAgentContextCompacted   EventType = "agent.thread_context_compacted"
	EvSessionStatusRunning    EventType = "session.status_running"
	EvSessionStatusIdle       EventType = "session.status_idle"
	EvSessionStatusResched    EventType = "session.status_rescheduled"
	EvSessionStatusTerminated EventType = "session.status_terminated"
	EvSessionUpdated          EventType = "session.updated"
	EvSessionUsage            EventType = "session.usage"
	EvSessionError            EventType = "session.error"
	EvSessionDeleted          EventType = "session.deleted"
	EvThreadStatusRunning     EventType = "session.thread_status_running"
	EvThreadStatusIdle        EventType = "session.thread_status_idle"
	EvThreadStatusResched     EventType = "session.thread_status_rescheduled"
	EvThreadStatusTerminated  EventType = "session.thread_status_terminated"
	EvSpanModelRequestStart   EventType = "span.model_request_start"
	EvSpanModelRequestEnd     EventType = "span.model_request_end"
)

// An Event is one entry of a session's log. Body has the fields of its type; its
// dynamic type is always a pointer to the struct of that type.
type Event struct {
	ID EventID
	// ProcessedAt is null while a client's event is queued behind earlier ones.
	// The event is delivered again, with the same id, once it is set.
	ProcessedAt *time.Time
	Body        EventBody
}

// An EventBody is the part of an event that depends on its type.
type EventBody interface{ EventType() EventType }

// Type is the event's type.
func (e *Event) Type() EventType { return e.Body.EventType() }

// The bodies of events, one struct a type.
type (
	UserMessage struct {
		Content Content `json:"content"`
	}
	UserInterrupt struct {
		SessionThreadID *ThreadID `json:"session_thread_id,omitempty"`
	}
	UserToolConfirmation struct {
		ToolUseID       EventID   `json:"tool_use_id"`
		Result          string    `json:"result"` // "allow" or "deny"
		DenyMessage     *string   `json:"deny_message,omitempty"`
		SessionThreadID *ThreadID `json:"session_thread_id,omitempty"`
	}
	UserToolResult struct {
		ToolUseID       EventID   `json:"tool_use_id"`
		Content         Content   `json:"content,omitempty"`
		IsError         *bool     `json:"is_error,omitempty"`
		SessionThreadID *ThreadID `json:"session_thread_id,omitempty"`
	}
	UserCustomToolResult struct {
		CustomToolUseID EventID   `json:"custom_tool_use_id"`
		Content         Content   `json:"content,omitempty"`
		IsError         *bool     `json:"is_error,omitempty"`
		SessionThreadID *ThreadID `json:"session_thread_id,omitempty"`
	}
	SystemMessage struct {
		Content Content `json:"content"`
	}
	AgentMessage struct {
		Content Content `json:"content"`
	}
	AgentThinking struct{}
	AgentToolUse  struct {
		Name                string          `json:"name"`
		Input               json.RawMessage `json:"input"`
		EvaluatedPermission Permission      `json:"evaluated_permission"`
		Evaluation          *Evaluation     `json:"evaluation,omitempty"`
	}
	AgentToolResult struct {
		ToolUseID EventID `json:"tool_use_id"`
		Content   Content `json:"content,omitempty"`
		IsError   *bool   `json:"is_error,omitempty"`
	}
	// AgentMCPToolUse is a call of a tool of one of the agent's MCP servers. The plane
	// runs it.
	AgentMCPToolUse struct {
		Name                string          `json:"name"` // as the server has it
		MCPServerName       string          `json:"mcp_server_name"`
		Input               json.RawMessage `json:"input"`
		EvaluatedPermission Permission      `json:"evaluated_permission"`
		Evaluation          *Evaluation     `json:"evaluation,omitempty"`
	}
	AgentMCPToolResult struct {
		MCPToolUseID EventID `json:"mcp_tool_use_id"`
		Content      Content `json:"content,omitempty"`
		IsError      *bool   `json:"is_error,omitempty"`

		// OutputFile is where the whole text is that Content has only the beginning and
		// the end of, relative to a box's working directory; "" if Content is all. An
		// extension of ours: see GET …/events/{event}/output.
		OutputFile string `json:"bailey_output_file,omitempty"`
	}
	AgentCustomToolUse struct {
		Name  string          `json:"name"`
		Input json.RawMessage `json:"input"`
	}
	AgentContextCompacted   struct{}
	SessionStatusRunning    struct{}
	SessionStatusResched    struct{}
	SessionStatusTerminated struct{}
	SessionStatusIdle       struct {
		StopReason  StopReason   `json:"stop_reason"`
		StopDetails *StopDetails `json:"stop_details"`
	}
	SessionUpdated struct {
		Title    Opt[string]   `json:"title,omitzero"`
		Metadata Metadata      `json:"metadata,omitempty"`
		Agent    *SessionAgent `json:"agent,omitempty"`
		Budget   Opt[Budget]   `json:"budget,omitzero"`
	}
	SessionUsage struct {
		Usage  Usage   `json:"usage"`
		Budget *Budget `json:"budget"`
	}
	SessionError struct {
		Error TurnError `json:"error"`
	}
	SessionDeleted      struct{}
	ThreadStatusRunning struct {
		SessionThreadID ThreadID `json:"session_thread_id"`
		AgentName       string   `json:"agent_name"`
	}
	ThreadStatusIdle struct {
		SessionThreadID ThreadID     `json:"session_thread_id"`
		AgentName       string       `json:"agent_name"`
		StopReason      StopReason   `json:"stop_reason"`
		StopDetails     *StopDetails `json:"stop_details"`
	}
	ThreadStatusResched struct {
		SessionThreadID ThreadID `json:"session_thread_id"`
		AgentName       string   `json:"agent_name"`
	}
	ThreadStatusTerminated struct {
		SessionThreadID ThreadID `json:"session_thread_id"`
		AgentName       string   `json:"agent_name"`
	}
	SpanModelRequestStart struct{}
	SpanModelRequestEnd   struct {
		ModelRequestStartID EventID   `json:"model_request_start_id"`
		IsError             bool      `json:"is_error"`
		ModelUsage          SpanUsage `json:"model_usage"`
	}
)

func (*UserMessage) EventType() EventType             { return EvUserMessage }
func (*UserInterrupt) EventType() EventType           { return EvUserInterrupt }
func (*UserToolConfirmation) EventType() EventType    { return EvUserToolConfirmation }
func (*UserToolResult) EventType() EventType          { return EvUserToolResult }
func (*UserCustomToolResult) EventType() EventType    { return EvUserCustomToolResult }
func (*SystemMessage) EventType() EventType           { return EvSystemMessage }
func (*AgentMessage) EventType() EventType            { return EvAgentMessage }
func (*AgentThinking) EventType() EventType           { return EvAgentThinking }
func (*AgentToolUse) EventType() EventType            { return EvAgentToolUse }
func (*AgentToolResult) EventType() EventType         { return EvAgentToolResult }
func (*AgentMCPToolUse) EventType() EventType         { return EvAgentMCPToolUse }
func (*AgentMCPToolResult) EventType() EventType      { return EvAgentMCPToolResult }
func (*AgentCustomToolUse) EventType() EventType      { return EvAgentCustomToolUse }
func (*AgentContextCompacted) EventType() EventType   { return EvAgentContextCompacted }
func (*SessionStatusRunning) EventType() EventType    { return EvSessionStatusRunning }
func (*SessionStatusIdle) EventType() EventType       { return EvSessionStatusIdle }
func (*SessionStatusResched) EventType() EventType    { return EvSessionStatusResched }
func (*SessionStatusTerminated) EventType() EventType { return EvSessionStatusTerminated }
func (*SessionUpdated) EventType() EventType          { return EvSessionUpdated }
func (*SessionUsage) EventType() EventType            { return EvSessionUsage }
func (*SessionError) EventType() EventType            { return EvSessionError }
func (*SessionDeleted) EventType() EventType          { return EvSessionDeleted }
func (*ThreadStatusRunning) EventType() EventType     { return EvThreadStatusRunning }
func (*ThreadStatusIdle) EventType() EventType        { return EvThreadStatusIdle }
func (*ThreadStatusResched) EventType() EventType     { return EvThreadStatusResched }
func (*ThreadStatusTerminated) EventType() EventType  { return EvThreadStatusTerminated }
func (*SpanModelRequestStart) EventType() EventType   { return EvSpanModelRequestStart }
func (*SpanModelRequestEnd) EventType() EventType     { return EvSpanModelRequestEnd }

// Answers returns the id of the tool call that an event is about, because it is the
// result or the confirmation of it; "" for every other event.
func Answers(body EventBody) EventID {
	switch b := body.(type) {
	case *UserToolResult:
		return b.ToolUseID
	case *UserCustomToolResult:
		return b.CustomToolUseID
	case *UserToolConfirmation:
		return b.ToolUseID
	case *AgentToolResult:
		return b.ToolUseID
	case *AgentMCPToolResult:
		return b.MCPToolUseID
	}
	return ""
}

// newBody returns an empty body of a type, or nil for a type that this server does
// not know.
func newBody(t EventType) EventBody {
	switch t {
	case EvUserMessage:
		return new(UserMessage)
	case EvUserInterrupt:
		return new(UserInterrupt)
	case EvUserToolConfirmation:
		return new(UserToolConfirmation)
	case EvUserToolResult:
		return new(UserToolResult)
	case EvUserCustomToolResult:
		return new(UserCustomToolResult)
	case EvSystemMessage:
		return new(SystemMessage)
	case EvAgentMessage:
		return new(AgentMessage)
	case EvAgentThinking:
		return new(AgentThinking)
	case EvAgentToolUse:
		return new(AgentToolUse)
	case EvAgentToolResult:
		return new(AgentToolResult)
	case EvAgentMCPToolUse:
		return new(AgentMCPToolUse)
	case EvAgentMCPToolResult:
		return new(AgentMCPToolResult)
	case EvAgentCustomToolUse:
		return new(AgentCustomToolUse)
	case EvAgentContextCompacted:
		return new(AgentContextCompacted)
	case EvSessionStatusRunning:
		return new(SessionStatusRunning)
	case EvSessionStatusIdle:
		return new(SessionStatusIdle)
	case EvSessionStatusResched:
		return new(SessionStatusResched)
	case EvSessionStatusTerminated:
		return new(SessionStatusTerminated)
	case EvSessionUpdated:
		return new(SessionUpdated)
	case EvSessionUsage:
		return new(SessionUsage)
	case EvSessionError:
		return new(SessionError)
	case EvSessionDeleted:
		return new(SessionDeleted)
	case EvThreadStatusRunning:
		return new(ThreadStatusRunning)
	case EvThreadStatusIdle:
		return new(ThreadStatusIdle)
	case EvThreadStatusResched:
		return new(ThreadStatusResched)
	case EvThreadStatusTerminated:
		return new(ThreadStatusTerminated)
	case EvSpanModelRequestStart:
		return new(SpanModelRequestStart)
	case EvSpanModelRequestEnd:
		return new(SpanModelRequestEnd)
	}
	return nil
}

// otherEventTypes are the types of the public API that this server never writes.
// Clients may ask for them.
var otherEventTypes = []EventType{
	EvUserDefineOutcome, "agent.thread_message_received",
	"agent.thread_message_sent", "session.thread_created", "span.outcome_evaluation_start", "span.outcome_evaluation_ongoing",
	"span.outcome_evaluation_end", "workflow_run.created", "workflow_run.status_running", "workflow_run.status_idle",
	"workflow_run.status_ended", "workflow_run.error", "workflow_run.phase_started", "workflow_run.phase_ended",
}

// KnownEventType reports whether t can be asked for in a list's `types` filter.
func KnownEventType(t EventType) bool {
	return newBody(t) != nil && t != EvSessionDeleted || slices.Contains(otherEventTypes, t)
}

// A Permission is what the policy made of a tool call.
type Permission string

const (
	PermissionAllow Permission = "allow"
	PermissionAsk   Permission = "ask"
	PermissionDeny  Permission = "deny"
)

// An Evaluation says how a [Permission] came about. Verdict is set for the auto
// policy only.
type Evaluation struct {
	Type    string   `json:"type"`
	Verdict *Verdict `json:"evaluated_permission,omitempty"`
}

// A Verdict is the auto policy's judgement of one call.
type Verdict struct {
	Type       Permission `json:"type"`
	ReasonCode string     `json:"reason_code,omitempty"` // "indeterminate" (ask) or "high_risk" (deny)
}

// A StopReason says why a session went idle.
type StopReason struct {
	Type     string    `json:"type"`
	EventIDs []EventID `json:"event_ids,omitempty"` // for requires_action: the calls waited for
}

const (
	StopEndTurn          = "end_turn"
	StopRequiresAction   = "requires_action"
	StopRetriesExhausted = "retries_exhausted"
	StopBudgetReached    = "budget_reached"
	StopRefusal          = "refusal"
)

// StopDetails explain a refusal.
type StopDetails struct {
	Type        string  `json:"type"` // "refusal"
	Category    *string `json:"category"`
	Explanation *string `json:"explanation"`
}

// A TurnError is an error inside a session. RetryStatus says what happens next:
// "retrying" (by itself) or "exhausted" (the turn is dead, the session is not).
type TurnError struct {
	Type        string      `json:"type"`
	Message     string      `json:"message"`
	RetryStatus RetryStatus `json:"retry_status"`

	// Of credential_host_unreachable_error.
	CredentialID CredentialID `json:"credential_id,omitempty"`
	VaultID      VaultID      `json:"vault_id,omitempty"`

	// Of the errors of MCP servers.
	MCPServerName string `json:"mcp_server_name,omitempty"`
}

// RetryStatus is the next step after a [TurnError].
type RetryStatus struct {
	Type string `json:"type"`
}

const (
	ErrorUnknown          = "unknown_error"
	ErrorModelOverloaded  = "model_overloaded_error"
	ErrorModelRateLimited = "model_rate_limited_error"
	ErrorModelRequest     = "model_request_failed_error"
	ErrorBilling          = "billing_error"

	ErrorMCPConnection     = "mcp_connection_failed_error"
	ErrorMCPAuthentication = "mcp_authentication_failed_error"

	ErrorCredentialHost = "credential_host_unreachable_error"

	RetryRetrying  = "retrying"
	RetryExhausted = "exhausted"
)

type eventHead struct {
	ID          EventID    `json:"id"`
	Type        EventType  `json:"type"`
	ProcessedAt *time.Time `json:"processed_at"`
}

func (e Event) MarshalJSON() ([]byte, error) {
	head, err := json.Marshal(eventHead{e.ID, e.Type(), e.ProcessedAt})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(e.Body)
	if err != nil {
		return nil, err
	}
	if len(body) > 2 { // more than {}
		head[len(head)-1] = ','
		head = append(head, body[1:]...)
	}
	return head, nil
}

func (e *Event) UnmarshalJSON(data []byte) error {
	var head eventHead
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	body, err := DecodeBody(head.Type, data)
	if err != nil {
		return err
	}
	*e = Event{head.ID, head.ProcessedAt, body}
	return nil
}

// DecodeBody reads the fields of an event of type t from a JSON object, leaving
// out those it does not know.
func DecodeBody(t EventType, data []byte) (EventBody, error) {
	body := newBody(t)
	if body == nil {
		return nil, fmt.Errorf("unknown event type %q", t)
	}
	if err := json.Unmarshal(data, body); err != nil {
		return nil, fmt.Errorf("event of type %s: %w", t, err)
	}
	return body, nil
}

// ParseClientEvent reads and checks one event sent by a client. Only the fields
// of its type are accepted.
func ParseClientEvent(data json.RawMessage) (EventBody, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil || fields == nil {
		return nil, Invalid("must be an object")
	}
	var t EventType
	if err := json.Unmarshal(fields["type"], &t); err != nil {
		return nil, Invalid("type: required")
	}
	delete(fields, "type")
	rest, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	switch t {
	case EvUserMessage, EvUserInterrupt, EvUserToolConfirmation, EvUserToolResult, EvUserCustomToolResult, EvSystemMessage:
	case EvUserDefineOutcome:
		return nil, Invalid("type: user.define_outcome is not supported by this server yet")
	default:
		return nil, Invalid("type: %q is not an event that a client can send", t)
	}
	body := newBody(t)
	if err := DecodeStrict(rest, body); err != nil {
		return nil, err
	}
	return body, checkClientEvent(body)
}

func checkClientEvent(body EventBody) error {
	switch b := body.(type) {
	case *UserMessage:
		if len(b.Content) == 0 {
			return Invalid("content: at least one block is required")
		}
		return b.Content.Check(BlockText, BlockImage, BlockDocument)
	case *SystemMessage:
		if len(b.Content) == 0 || len(b.Content) > systemMessageItemsMax {
			return Invalid("content: 1 to %d text blocks are required", systemMessageItemsMax)
		}
		return b.Content.Check(BlockText)
	case *UserInterrupt:
		if b.SessionThreadID != nil {
			return CheckID("session_thread_id", string(*b.SessionThreadID))
		}
	case *UserToolConfirmation:
		if b.Result != "allow" && b.Result != "deny" {
			return Invalid("result: must be \"allow\" or \"deny\"")
		}
		if b.DenyMessage != nil && b.Result != "deny" {
			return Invalid("deny_message: only with result \"deny\"")
		}
		return CheckID("tool_use_id", string(b.ToolUseID))
	case *UserToolResult:
		if err := CheckID("tool_use_id", string(b.ToolUseID)); err != nil {
			return err
		}
		return b.Content.Check(BlockText, BlockImage, BlockDocument, BlockSearchResult)
	case *UserCustomToolResult:
		if err := CheckID("custom_tool_use_id", string(b.CustomToolUseID)); err != nil {
			return err
		}
		return b.Content.Check(BlockText, BlockImage, BlockDocument, BlockSearchResult)
	}
	return nil
}

const systemMessageItemsMax = 1000

// The kinds of content blocks.
const (
	BlockText         = "text"
	BlockImage        = "image"
	BlockDocument     = "document"
	BlockSearchResult = "search_result"
)

// Content is a list of content blocks, each kept as the JSON it came in.
type Content []json.RawMessage

// TextBlock returns a text block.
func TextBlock(text string) json.RawMessage {
	b, err := json.Marshal(struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}{BlockText, text})
	if err != nil {
		panic("api: a text block always encodes: " + err.Error())
	}
	return b
}

// Text returns the text blocks of c, joined.
func (c Content) Text() string {
	var out bytes.Buffer
	for _, raw := range c {
		var b struct{ Type, Text string }
		if json.Unmarshal(raw, &b) == nil && b.Type == BlockText {
			out.WriteString(b.Text)
		}
	}
	return out.String()
}

// Check refuses blocks that are not of the given kinds or not well formed.
func (c Content) Check(kinds ...string) error {
	for i, raw := range c {
		if err := checkBlock(raw, kinds); err != nil {
			return at(err, "content.%d", i)
		}
	}
	return nil
}

func checkBlock(raw json.RawMessage, kinds []string) error {
	var b struct {
		Type   string            `json:"type"`
		Text   *string           `json:"text"`
		Source json.RawMessage   `json:"source"`
		Title  *string           `json:"title"`
		Blocks []json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(raw, &b); err != nil {
		return Invalid("not a content block")
	}
	if !slices.Contains(kinds, b.Type) {
		return Invalid("type: %q is not allowed here", b.Type)
	}
	switch b.Type {
	case BlockText:
		if b.Text == nil {
			return Invalid("text: required")
		}
	case BlockImage, BlockDocument:
		return checkSource(b.Source, b.Type)
	case BlockSearchResult:
		var src string
		if json.Unmarshal(b.Source, &src) != nil || b.Title == nil {
			return Invalid("source and title: required strings")
		}
	}
	return nil
}

func checkSource(raw json.RawMessage, block string) error {
	var s struct {
		Type      string `json:"type"`
		MediaType string `json:"media_type"`
		Data      string `json:"data"`
		URL       string `json:"url"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return Invalid("source: required")
	}
	switch {
	case s.Type == "base64" && s.MediaType != "" && s.Data != "":
	case s.Type == "url" && s.URL != "":
	case s.Type == "text" && block == BlockDocument && s.Data != "":
	case s.Type == "file":
		return Invalid("source.type: files are not supported by this server yet; send the data inline as base64")
	default:
		return Invalid("source: must be base64 (media_type, data), url (url) or, for a document, text (data)")
	}
	return nil
}

// An EventsRequest is the body of POST /v1/sessions/{id}/events. It is all or
// nothing: one refused event refuses the request.
type EventsRequest struct {
	Events []json.RawMessage `json:"events"`
}

// EventsResponse echoes the accepted events with their ids.
type EventsResponse struct {
	Data []*Event `json:"data"`
}

// An EventFilter narrows the event list. Times compare with ProcessedAt.
type EventFilter struct {
	Types     []EventType
	Processed TimeRange
	Order     Order
}

// An Entry is an event at its place in the session's log, with what only the
// plane may see.
type Entry struct {
	Seq   int64 // from 1, without gaps; sequence order is commit order
	Event Event

	// Queued is set on a client's event that no turn has taken yet.
	Queued bool

	// Private is JSON for the loop: never sent to clients. Nil for most events.
	Private json.RawMessage
}

// A Draft is an event about to be appended. One without a Body takes the queued
// event of that ID: it is appended again, as processed now.
type Draft struct {
	ID      EventID
	Body    EventBody
	Private json.RawMessage
	Queued  bool // a client's event that waits for a turn to take it
}

// The frames of a stream that are never stored: previews of an event that is
// still being made.
type (
	// PreviewStart opens the preview of an event.
	PreviewStart struct {
		Type  string       `json:"type"` // "event_start"
		Event PreviewEvent `json:"event"`
	}
	// PreviewEvent names the event that a preview is of.
	PreviewEvent struct {
		Type EventType `json:"type"`
		ID   EventID   `json:"id"`
	}
	// PreviewDelta adds text to block Index of a previewed agent.message.
	PreviewDelta struct {
		Type    string       `json:"type"` // "event_delta"
		EventID EventID      `json:"event_id"`
		Delta   ContentDelta `json:"delta"`
	}
	// ContentDelta is a piece of text.
	ContentDelta struct {
		Type    string          `json:"type"` // "content_delta"
		Index   int             `json:"index"`
		Content json.RawMessage `json:"content"` // a text block
	}
)
