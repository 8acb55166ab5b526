package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A timeline prints a session's events for a person, in the order in which they
// are given: when, who, what, and how long it took.
//
//	0.0s  user      Write a program that …
//	0.3s  agent     I will write it first.
//	      write     primes.py
//	                │ def primes(n):
//	      ✓ 4ms     File created successfully
//	0.3s  model     0.28s, 1,204 tokens in, 35 out
//
// It is used by one goroutine.
type timeline struct {
	w     io.Writer
	style style
	width int           // columns to stay within, where text may be cut
	live  bool          // print previews as they come; for a terminal
	self  api.SessionID // for the commands in hints; may be ""
	from  time.Time     // zero of the clock; the first event's time if not set
	calls map[api.EventID]call
	// queued are client events shown when they were queued, so that they are not
	// shown again when a turn takes them.
	queued map[api.EventID]bool

	request time.Time // when the model request under way began
	usage   *api.SessionUsage
	thought api.EventID // the thinking that is shown already
	preview api.EventID // the message whose text stands unfinished on the last line
	shown   int         // bytes of its text that are printed
	flow    *flow       // that prints them
}

type call struct {
	name   string
	at     time.Time
	ask    bool // waits for a person
	custom bool // waits for the client's own code
	told   bool // that it waits
}

func newTimeline(w io.Writer, s style, live bool) *timeline {
	return &timeline{w: w, style: s, width: widthOf(w), live: live, calls: map[api.EventID]call{}, queued: map[api.EventID]bool{}}
}

const (
	whenWidth = 7
	whoWidth  = 9
	indent    = whenWidth + 2 + whoWidth + 1
	linesMax  = 6 // of a tool's input or output
)

// event prints one event.
func (t *timeline) event(e *api.Event) {
	var at time.Time
	if e.ProcessedAt != nil {
		at = *e.ProcessedAt
		if t.from.IsZero() {
			t.from = at
		}
	}
	if m, ok := e.Body.(*api.AgentMessage); ok && t.preview == e.ID {
		t.finishPreview(m.Content.Text())
		return
	}
	if e.Type() == api.EvAgentThinking && (t.thought == e.ID || t.preview != "") {
		return // shown when it began, or the text that followed it was
	}
	t.breakPreview()
	if t.queued[e.ID] {
		delete(t.queued, e.ID)
		return
	}
	if at.IsZero() {
		t.queued[e.ID] = true
	}
	switch b := e.Body.(type) {
	case *api.UserMessage:
		t.text(at, t.style.cyan, "user", b.Content.Text())
		t.otherBlocks(b.Content)
	case *api.SystemMessage:
		t.text(at, t.style.cyan, "system", b.Content.Text())
	case *api.UserInterrupt:
		t.line(at, t.style.yellow, "user", "interrupt")
	case *api.UserToolConfirmation:
		what := oneLine(t.calls[b.ToolUseID].name, 60)
		if b.Result == "allow" {
			t.line(at, t.style.green, "user", "allow "+what)
		} else {
			t.line(at, t.style.red, "user", "deny "+what+denial(b.DenyMessage))
		}
	case *api.AgentMessage:
		t.text(at, t.style.bold, "agent", b.Content.Text())
	case *api.AgentThinking:
		t.line(at, t.style.dim, "agent", t.style.dim("thinking"))
	case *api.AgentToolUse:
		t.calls[e.ID] = call{name: b.Name, at: at, ask: b.EvaluatedPermission == api.PermissionAsk}
		t.toolUse(at, b.Name, b.Input)
	case *api.AgentMCPToolUse:
		name := b.MCPServerName + "/" + b.Name
		t.calls[e.ID] = call{name: name, at: at, ask: b.EvaluatedPermission == api.PermissionAsk}
		t.toolUse(at, name, b.Input)
	case *api.AgentMCPToolResult:
		t.result(at, b.MCPToolUseID, b.Content, b.IsError)
	case *api.AgentCustomToolUse:
		t.calls[e.ID] = call{name: b.Name, at: at, custom: true}
		t.toolUse(at, b.Name, b.Input)
	case *api.UserToolResult:
		t.result(at, b.ToolUseID, b.Content, b.IsError)
	case *api.UserCustomToolResult:
		t.result(at, b.CustomToolUseID, b.Content, b.IsError)
	case *api.AgentToolResult:
		t.result(at, b.ToolUseID, b.Content, b.IsError)
	case *api.AgentContextCompacted:
		t.line(at, t.style.dim, "agent", t.style.dim("older messages were summarised to make room"))
	case *api.SpanModelRequestStart:
		t.request = at
	case *api.SpanModelRequestEnd:
		t.requestEnd(at, b)
	case *api.SessionUsage:
		t.usage = b
	case *api.SessionStatusIdle:
		t.idle(at, b)
	case *api.SessionStatusResched:
		t.line(at, t.style.yellow, "session", "waiting to try again")
	case *api.SessionStatusTerminated:
		t.line(at, t.style.red, "session", "terminated")
	case *api.SessionDeleted:
		t.line(at, t.style.red, "session", "deleted")
	case *api.SessionUpdated:
		t.line(at, t.style.dim, "session", t.style.dim("settings changed"))
	case *api.SessionError:
		t.text(at, t.style.red, "error", oneLine(b.Error.Message, 1000)+" ("+retryText(b.Error)+")")
	}
	// session.status_running and the session.thread_status_* events say nothing
	// that the other lines do not.
}

func denial(message *string) string {
	if message == nil {
		return ""
	}
	return ": " + oneLine(*message, 200)
}

func retryText(e api.TurnError) string {
	kind := oneLine(e.Type, 60)
	switch e.RetryStatus.Type {
	case api.RetryRetrying:
		return kind + "; will be tried again"
	case api.RetryExhausted:
		return kind + "; not tried again, the session takes a new message"
	}
	return kind + "; the session has ended"
}

// otherBlocks names the blocks of a message that are not text.
func (t *timeline) otherBlocks(c api.Content) {
	for _, kind := range otherBlocks(c) {
		t.under("[" + kind + "]")
	}
}

func otherBlocks(c api.Content) (kinds []string) {
	for _, raw := range c {
		var b struct{ Type string }
		if json.Unmarshal(raw, &b) == nil && b.Type != api.BlockText {
			kinds = append(kinds, oneLine(b.Type, 40))
		}
	}
	return kinds
}

func (t *timeline) toolUse(at time.Time, name string, input json.RawMessage) {
	headline, detail := describeInput(name, input)
	t.line(at, t.style.yellow, oneLine(name, 40), oneLine(headline, t.width-indent))
	t.block(detail)
}

// describeInput shortens a tool's input to what a person wants to know: a
// headline, and lines to show beneath it.
func describeInput(name string, input json.RawMessage) (headline string, detail []string) {
	var in struct {
		Command   string `json:"command"`
		FilePath  string `json:"file_path"`
		Content   string `json:"content"`
		OldString string `json:"old_string"`
		NewString string `json:"new_string"`
		Pattern   string `json:"pattern"`
		Path      string `json:"path"`
		Restart   bool   `json:"restart"`
	}
	known := slices.Contains(api.SandboxTools, name)
	if !known || json.Unmarshal(input, &in) != nil {
		return string(input), nil
	}
	switch name {
	case "bash":
		first, rest, more := strings.Cut(strings.TrimSpace(in.Command), "\n")
		if in.Restart {
			first = strings.TrimSpace("(new shell) " + first)
		}
		if more {
			detail = strings.Split(rest, "\n")
		}
		return "$ " + first, detail
	case "write":
		return in.FilePath, strings.Split(strings.TrimRight(in.Content, "\n"), "\n")
	case "edit":
		for _, l := range strings.Split(in.OldString, "\n") {
			detail = append(detail, "- "+l)
		}
		for _, l := range strings.Split(in.NewString, "\n") {
			detail = append(detail, "+ "+l)
		}
		return in.FilePath, detail
	case "read":
		return in.FilePath, nil
	}
	return strings.TrimSpace(in.Pattern + " " + in.Path), nil // glob, grep
}

func (t *timeline) result(at time.Time, id api.EventID, content api.Content, isError *bool) {
	c, known := t.calls[id]
	delete(t.calls, id)
	took := ""
	if known && !c.at.IsZero() && !at.IsZero() {
		took = " " + shortDuration(at.Sub(c.at))
	}
	who, paint := "✓"+took, t.style.green
	if isError != nil && *isError {
		who, paint = "✗"+took, t.style.red
	}
	name := ""
	if len(t.calls) > 0 { // others are open, so say whose result it is
		name = oneLine(c.name, 40) + ": "
	}
	var lines []string
	for _, block := range content { // a block's end is that of a line
		lines = append(lines, strings.Split(api.Content{block}.Text(), "\n")...)
	}
	for _, kind := range otherBlocks(content) {
		lines = append(lines, "["+kind+"]")
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.TrimSpace(l) == "" })
	if len(lines) == 0 {
		lines = []string{"(no output)"}
	}
	first := t.width - indent - len(name)
	if len(lines) == 1 {
		t.line(time.Time{}, paint, who, name+t.style.dim(oneLine(lines[0], first)))
		return
	}
	if name != "" {
		t.line(time.Time{}, paint, who, name)
		t.block(lines)
		return
	}
	t.line(time.Time{}, paint, who, t.style.dim("│ "+oneLine(lines[0], first-2)))
	t.block(lines[1:])
}

func (t *timeline) requestEnd(at time.Time, b *api.SpanModelRequestEnd) {
	took := ""
	if !t.request.IsZero() && !at.IsZero() {
		took = shortDuration(at.Sub(t.request)) + ", "
	}
	t.request = time.Time{}
	if b.IsError {
		t.line(at, t.style.red, "model", took+"cut off or failed")
		return
	}
	u := b.ModelUsage
	in := u.InputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens
	t.line(at, t.style.dim, "model", t.style.dim(fmt.Sprintf("%s%s tokens in, %s out", took, thousands(in), thousands(u.OutputTokens))))
}

// idle prints why a session stopped. Waiting for a worker's results is how every
// tool call goes and not worth a line; waiting for a person is.
func (t *timeline) idle(at time.Time, b *api.SessionStatusIdle) {
	reason := b.StopReason
	switch reason.Type {
	case api.StopRequiresAction:
		for _, id := range reason.EventIDs {
			c, open := t.calls[id]
			if !open || c.told {
				continue
			}
			c.told = true
			t.calls[id] = c
			switch {
			case c.custom:
				t.line(at, t.style.yellow, "session", "waits for the client to run "+oneLine(c.name, 60))
			case c.ask:
				t.line(at, t.style.yellow, "session", "waits for you to allow "+oneLine(c.name, 60))
				if t.self != "" {
					t.under(fmt.Sprintf("bailey sessions confirm %s %s   (or deny)", t.self, id))
				}
			}
		}
		return
	case api.StopEndTurn:
		t.line(at, t.style.green, "session", "idle: the turn is done"+t.total())
	case api.StopRefusal:
		text := "idle: the model refused"
		if d := b.StopDetails; d != nil && d.Explanation != nil {
			text += ": " + oneLine(*d.Explanation, 300)
		}
		t.line(at, t.style.yellow, "session", text+t.total())
	case api.StopBudgetReached:
		t.line(at, t.style.yellow, "session", "idle: the budget is used up"+t.total())
	default:
		t.line(at, t.style.yellow, "session", "idle: "+strings.ReplaceAll(oneLine(reason.Type, 60), "_", " ")+t.total())
	}
}

// total says what the session has used so far.
func (t *timeline) total() string {
	if t.usage == nil {
		return ""
	}
	u := t.usage.Usage
	in := u.Tokens.Input + u.Tokens.CacheRead + u.Tokens.CacheCreate5m + u.Tokens.CacheCreate1h
	text := fmt.Sprintf("; %s tokens in, %s out so far", thousands(in), thousands(u.Tokens.Output))
	if u.ListCost != nil {
		text += ", " + dollars(u.ListCost.Money())
	}
	return t.style.dim(text)
}

// previewStart begins the live text of a message, or says that the agent thinks.
func (t *timeline) previewStart(e api.PreviewEvent) {
	if !t.live || e.Type != api.EvAgentMessage && e.Type != api.EvAgentThinking {
		return
	}
	t.breakPreview()
	if e.Type == api.EvAgentThinking {
		t.thought = e.ID
		t.line(time.Time{}, t.style.dim, "agent", t.style.dim("thinking"))
		return
	}
	t.preview, t.shown, t.flow = e.ID, 0, t.flowing()
	t.prefix(time.Time{}, t.style.bold, "agent")
}

// previewText adds live text to a message. The text of several blocks runs on, as
// it does in the whole message.
func (t *timeline) previewText(id api.EventID, text string) {
	if t.preview != id || id == "" {
		return
	}
	t.shown += len(text)
	t.flow.write(clean(text))
}

// finishPreview prints what is left of a previewed message. The previews are a
// prefix of it.
func (t *timeline) finishPreview(whole string) {
	if t.shown <= len(whole) {
		t.flow.write(clean(whole[t.shown:]))
	}
	t.flow.flush()
	io.WriteString(t.w, "\n")
	t.preview = ""
}

// breakPreview leaves a message unfinished because something else comes between.
// If it is finished later after all, it is printed whole.
func (t *timeline) breakPreview() {
	if t.preview != "" {
		t.preview = ""
		t.flow.flush()
		io.WriteString(t.w, t.style.dim(" …")+"\n")
	}
}

func (t *timeline) text(at time.Time, paint func(string) string, who, text string) {
	t.prefix(at, paint, who)
	f := t.flowing()
	f.write(clean(strings.TrimRight(text, "\n")))
	f.flush()
	io.WriteString(t.w, "\n")
}

// flowing is how text stands beside the margin of this timeline.
func (t *timeline) flowing() *flow {
	f := &flow{w: t.w, indent: indent}
	if t.live && t.width > indent+flowMin {
		f.width = t.width
	}
	return f
}

// flowMin is the width below which a column of text is not worth its name.
const flowMin = 20

// line prints one line, whose text is safe already.
func (t *timeline) line(at time.Time, paint func(string) string, who, text string) {
	t.prefix(at, paint, who)
	io.WriteString(t.w, text+"\n")
}

func (t *timeline) prefix(at time.Time, paint func(string) string, who string) {
	when := ""
	if !at.IsZero() {
		when = fmt.Sprintf("%.1fs", max(at.Sub(t.from).Seconds(), 0))
	}
	pad := max(whoWidth-len([]rune(who)), 0)
	fmt.Fprintf(t.w, "%s  %s%s ", t.style.dim(fmt.Sprintf("%*s", whenWidth, when)), paint(who), strings.Repeat(" ", pad))
}

// under prints a line beneath another one.
func (t *timeline) under(text string) {
	fmt.Fprintf(t.w, "%*s%s\n", indent, "", t.style.dim(text))
}

// block prints the first lines of a tool's input or output.
func (t *timeline) block(lines []string) {
	for i, l := range lines {
		if i == linesMax && len(lines) > linesMax+1 {
			t.under(fmt.Sprintf("… %s more lines", thousands(int64(len(lines)-i))))
			return
		}
		t.under("│ " + clip(strings.TrimRight(clean(l), " "), t.width-indent-2))
	}
}

func shortDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", max(d.Milliseconds(), 0))
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func dollars(m api.Money) string {
	cents := m.Amount
	for len(cents) < 3 {
		cents = "0" + cents
	}
	return "$" + cents[:len(cents)-2] + "." + cents[len(cents)-2:]
}
