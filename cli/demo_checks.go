package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// evidence is what the demo saw, for its checks to look at.
type evidence struct {
	streamed []*client.Frame   // events and previews, as they arrived
	listed   []json.RawMessage // the events of the list, afterwards
	events   []*api.Event      // the same, decoded
	session  *api.Session      // afterwards

	before, alive, after traces // of boxes on the host

	edge         recording  // what the tunnel's edge passed on
	desk         *orderDesk // the private server
	heardUnasked int64      // calls that it had got before any was allowed

	workerDir string
	secrets   map[string]string // by what they are
	results   []checkResult
}

type checkResult struct {
	detail string
	err    error
}

// demoChecks are what the demo verifies. Each looks at the evidence and says what
// it found, or what is wrong.
var demoChecks = []struct {
	name string
	look func(*evidence) (detail string, err error)
}{
	{"events in order", checkOrder},
	{"every tool call answered once", checkAnswers},
	{"stream and list agree", checkStream},
	{"live text became the answer", checkPreviews},
	{"usage adds up", checkUsage},
	{"audit record verifies", checkAudit},
	{"tampering shows", checkTampering},
	{"the private call was allowed first", checkAllowed},
	{"the edge saw only ciphertext", checkCiphertext},
	{"no secret in the box", checkSecrets},
	{"the box is gone", checkGone},
}

// checkOrder applies the ordering rules of the public API to the whole log.
func checkOrder(v *evidence) (string, error) {
	var last time.Time
	var request api.EventID // the model request under way
	var previous api.EventType
	seen := map[api.EventID]bool{}
	running, requests, turns := false, 0, 0
	for i, e := range v.events {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("event %d, %s %s: %s", i+1, e.Type(), e.ID, fmt.Sprintf(format, args...))
		}
		switch {
		case seen[e.ID]:
			return "", bad("its id was seen before")
		case e.ProcessedAt == nil:
			return "", bad("is still queued")
		case e.ProcessedAt.Before(last):
			return "", bad("is older than the one before it")
		}
		seen[e.ID], last = true, *e.ProcessedAt
		switch b := e.Body.(type) {
		case *api.SessionStatusRunning:
			running = true
		case *api.SpanModelRequestStart:
			if !running || request != "" {
				return "", bad("while the session was not running, or in the middle of another")
			}
			request = e.ID
			requests++
		case *api.SpanModelRequestEnd:
			if b.ModelRequestStartID != request {
				return "", bad("does not end the request under way")
			}
			request = ""
		case *api.AgentMessage, *api.AgentThinking, *api.AgentToolUse, *api.AgentMCPToolUse, *api.AgentCustomToolUse:
			if request == "" {
				return "", bad("outside of a model request")
			}
		case *api.UserToolResult, *api.AgentMCPToolResult:
			if request != "" {
				return "", bad("in the middle of a model request")
			}
		case *api.SessionStatusIdle:
			if previous != api.EvSessionUsage {
				return "", bad("without a session.usage right before it")
			}
			if request != "" {
				return "", bad("in the middle of a model request")
			}
			running = false
			if b.StopReason.Type == api.StopEndTurn {
				turns++
			}
		case *api.SessionError:
			return "", bad("%s", b.Error.Message)
		}
		previous = e.Type()
	}
	if len(v.events) == 0 || previous != api.EvSessionStatusIdle || running {
		return "", errors.New("the session did not come to rest")
	}
	return fmt.Sprintf("%d events, %d turns, %d model requests", len(v.events), turns, requests), nil
}

// checkAnswers wants exactly one result for each call, after it.
func checkAnswers(v *evidence) (string, error) {
	open, answered := map[api.EventID]bool{}, map[api.EventID]bool{}
	for _, e := range v.events {
		var id api.EventID
		switch b := e.Body.(type) {
		case *api.AgentToolUse, *api.AgentMCPToolUse:
			open[e.ID] = true
			continue
		case *api.UserToolResult:
			id = b.ToolUseID
		case *api.AgentToolResult:
			id = b.ToolUseID
		case *api.AgentMCPToolResult:
			id = b.MCPToolUseID
		default:
			continue
		}
		switch {
		case answered[id]:
			return "", fmt.Errorf("the call %s was answered twice", id)
		case !open[id]:
			return "", fmt.Errorf("%s answers %s, which nobody asked for", e.ID, id)
		}
		answered[id] = true
	}
	if len(open) != len(answered) {
		return "", fmt.Errorf("%d calls, %d answers", len(open), len(answered))
	}
	if len(open) == 0 {
		return "", errors.New("there was no call")
	}
	return fmt.Sprintf("%d calls, %d results", len(open), len(answered)), nil
}

// checkStream wants the stream to have carried the very events that the list has.
func checkStream(v *evidence) (string, error) {
	var order []api.EventID
	final := map[api.EventID]string{}
	for _, f := range v.streamed {
		id, processed := identity(f)
		if !processed {
			continue // a preview, or the first sight of a queued event
		}
		if final[id] == "" {
			order = append(order, id)
		}
		final[id] = compact(f.Data)
	}
	if len(order) != len(v.listed) {
		return "", fmt.Errorf("%d events on the stream, %d in the list", len(order), len(v.listed))
	}
	for i, raw := range v.listed {
		if got := final[order[i]]; got != compact(raw) {
			return "", fmt.Errorf("event %d differs: the stream has %.200s, the list %.200s", i+1, got, raw)
		}
	}
	return fmt.Sprintf("%d events, the same on both", len(order)), nil
}

func compact(raw json.RawMessage) string {
	var out bytes.Buffer
	if json.Compact(&out, raw) != nil {
		return string(raw)
	}
	return out.String()
}

// checkPreviews wants the text shown while it was made to be the beginning of what
// was made.
func checkPreviews(v *evidence) (string, error) {
	live := map[api.EventID]string{}
	pieces := 0
	for _, f := range v.streamed {
		if f.Name != "event_delta" {
			continue
		}
		var d api.PreviewDelta
		if err := json.Unmarshal(f.Data, &d); err != nil {
			return "", fmt.Errorf("a preview: %w", err)
		}
		live[d.EventID] += api.Content{d.Delta.Content}.Text()
		pieces++
	}
	whole := map[api.EventID]string{}
	for _, e := range v.events {
		if m, ok := e.Body.(*api.AgentMessage); ok {
			whole[e.ID] = m.Content.Text()
		}
	}
	for id, text := range live {
		if !strings.HasPrefix(whole[id], text) {
			return "", fmt.Errorf("the preview of %s is no beginning of it", id)
		}
	}
	if pieces == 0 {
		return "", errors.New("nothing was shown live")
	}
	return fmt.Sprintf("%d messages in %d pieces", len(live), pieces), nil
}

// checkUsage wants the model requests to add up to what the session says it used.
func checkUsage(v *evidence) (string, error) {
	var sum api.SpanUsage
	var last *api.SessionUsage
	for _, e := range v.events {
		switch b := e.Body.(type) {
		case *api.SpanModelRequestEnd:
			sum.InputTokens += b.ModelUsage.InputTokens
			sum.OutputTokens += b.ModelUsage.OutputTokens
			sum.CacheCreationInputTokens += b.ModelUsage.CacheCreationInputTokens
			sum.CacheReadInputTokens += b.ModelUsage.CacheReadInputTokens
		case *api.SessionUsage:
			last = b
		}
	}
	if last == nil {
		return "", errors.New("there is no session.usage")
	}
	if got := last.Usage.Tokens.Span(); got != sum {
		return "", fmt.Errorf("session.usage says %+v, the requests add up to %+v", got, sum)
	}
	if got := v.session.Usage.Tokens.Span(); got != sum {
		return "", fmt.Errorf("the session says %+v, the requests add up to %+v", got, sum)
	}
	return fmt.Sprintf("%s tokens in, %s out", thousands(sum.InputTokens+sum.CacheCreationInputTokens+sum.CacheReadInputTokens), thousands(sum.OutputTokens)), nil
}

// checkAudit wants the worker's record whole, with every call in it.
func checkAudit(v *evidence) (string, error) {
	path := filepath.Join(v.workerDir, "audit.jsonl")
	summary, err := verifyAudit(path, "", "")
	if err != nil {
		return "", err
	}
	if !summary.Intact || !summary.Complete {
		return "", errors.New(summary.Problem)
	}
	lines, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	calls := 0
	for _, e := range v.events {
		if _, ok := e.Body.(*api.AgentToolUse); !ok {
			continue
		}
		calls++
		if n := bytes.Count(lines, []byte(e.ID)); n < 2 {
			return "", fmt.Errorf("the call %s is %d times in the record, not at its start and its end", e.ID, n)
		}
	}
	return fmt.Sprintf("%d lines, start and end of %d calls", summary.Records, calls), nil
}

// checkTampering changes copies of the record in the four ways there are and wants
// each to be noticed.
func checkTampering(v *evidence) (string, error) {
	original := filepath.Join(v.workerDir, "audit.jsonl")
	data, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	if len(lines) < 5 {
		return "", errors.New("the record is too short to tamper with")
	}
	copied := filepath.Join(v.workerDir, "tampered.jsonl")
	defer os.Remove(copied)
	join := func(parts ...[][]byte) []byte {
		var out []byte
		for _, p := range parts {
			out = append(out, bytes.Join(p, nil)...)
		}
		return out
	}
	for _, t := range []struct {
		name string
		data []byte
	}{
		{"an edit", bytes.Replace(data, []byte(`"outcome":"ok"`), []byte(`"outcome":"no"`), 1)},
		{"a deletion", join(lines[:2], lines[3:])},
		{"a reorder", join(lines[:1], lines[2:3], lines[1:2], lines[3:])},
		{"a cut", join(lines[:len(lines)-2])},
	} {
		if bytes.Equal(t.data, data) {
			return "", fmt.Errorf("%s could not be tried", t.name)
		}
		if err := os.WriteFile(copied, t.data, 0o600); err != nil {
			return "", err
		}
		summary, err := verifyAudit(copied, original+".key", original+".head")
		if err != nil {
			return "", err
		}
		if summary.Intact && summary.Complete {
			return "", fmt.Errorf("%s went unnoticed", t.name)
		}
	}
	return "an edit, a deletion, a reorder and a cut were all found", nil
}

// checkAllowed wants the private server to have been called once, after it was allowed.
func checkAllowed(v *evidence) (string, error) {
	var call api.EventID
	allowed := false
	for _, e := range v.events {
		switch b := e.Body.(type) {
		case *api.AgentMCPToolUse:
			if call != "" {
				return "", errors.New("there was a second call")
			}
			if call = e.ID; b.EvaluatedPermission != api.PermissionAsk {
				return "", fmt.Errorf("its permission was %q", b.EvaluatedPermission)
			}
		case *api.UserToolConfirmation:
			allowed = allowed || call != "" && b.ToolUseID == call && b.Result == "allow"
		case *api.AgentMCPToolResult:
			switch {
			case b.MCPToolUseID != call || !allowed:
				return "", errors.New("there is a result of a call that nobody allowed")
			case b.IsError != nil && *b.IsError:
				return "", fmt.Errorf("it failed: %s", oneLine(b.Content.Text(), 200))
			}
		}
	}
	switch n := v.desk.calls.Load(); {
	case !allowed:
		return "", errors.New("there was no call that was asked for and allowed")
	case v.heardUnasked > 0:
		return "", errors.New("the server was called before anybody had allowed it")
	case n != 1:
		return "", fmt.Errorf("the server was called %d times", n)
	}
	return "always_ask: held until the demo said yes, then called once", nil
}

// checkCiphertext looks for what the session and its private server said to each other in all
// that the edge passed on. The same search has to find it in what the server itself
// heard and said, or it proves nothing.
func checkCiphertext(v *evidence) (string, error) {
	plain, plainSize, err := v.desk.wire.search(v.desk.words)
	if err != nil {
		return "", fmt.Errorf("at the server: %w", err)
	}
	for what := range v.desk.words {
		if !plain[what] {
			return "", fmt.Errorf("%s is not in what the server itself heard and said: the search proves nothing", what)
		}
	}
	at, size, err := v.edge.search(v.desk.words)
	if err != nil {
		return "", fmt.Errorf("at the edge: %w", err)
	}
	for what := range at {
		return "", fmt.Errorf("%s went through the edge in the clear", what)
	}
	if size < plainSize/2 {
		return "", fmt.Errorf("the edge passed on %d bytes, and the server had %d: the call took another way", size, plainSize)
	}
	return fmt.Sprintf("%s: none in its %s bytes, all in the server's %s",
		strings.Join(slices.Sorted(maps.Keys(v.desk.words)), ", "), thousands(int64(size)), thousands(int64(plainSize))), nil
}

// secretName matches the names of variables that have no business in a box.
var secretName = regexp.MustCompile(`^ANTHROPIC_|KEY|TOKEN|SECRET|PASSW|CREDENTIAL`)

// checkSecrets looks for keys wherever the agent could have seen them.
func checkSecrets(v *evidence) (string, error) {
	for what, secret := range v.secrets {
		if secret == "" {
			return "", fmt.Errorf("%s is not known to the demo", what)
		}
		for i, raw := range v.listed {
			if bytes.Contains(raw, []byte(secret)) {
				return "", fmt.Errorf("%s is in event %d", what, i+1)
			}
		}
		for _, p := range v.alive.processes {
			if strings.Contains(p.environ, secret) || strings.Contains(p.command, secret) {
				return "", fmt.Errorf("%s is in the environment or command line of a box's process", what)
			}
		}
	}
	env, err := boxEnvironment(v.events)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(env) {
		if name, _, _ := strings.Cut(line, "="); secretName.MatchString(name) {
			return "", fmt.Errorf("the box's environment has %s", oneLine(name, 60))
		}
	}
	files := 0
	err = filepath.WalkDir(filepath.Join(v.workerDir, "work"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for what, secret := range v.secrets {
			if bytes.Contains(data, []byte(secret)) {
				return fmt.Errorf("%s is in the work folder's %s", what, filepath.Base(path))
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d variables, %d files, %d processes, %d events looked through",
		strings.Count(env, "\n"), files, len(v.alive.processes), len(v.listed)), nil
}

// boxEnvironment returns what `env` printed inside the box.
func boxEnvironment(events []*api.Event) (string, error) {
	var call api.EventID
	for _, e := range events {
		switch b := e.Body.(type) {
		case *api.AgentToolUse:
			var in struct{ Command string }
			if json.Unmarshal(b.Input, &in) == nil && in.Command == "env" {
				call = e.ID
			}
		case *api.UserToolResult:
			if call != "" && b.ToolUseID == call {
				return b.Content.Text() + "\n", nil
			}
		}
	}
	return "", errors.New("the box was not asked for its environment")
}

// checkGone wants what a box had on this host to be gone, having seen it there.
func checkGone(v *evidence) (string, error) {
	if len(v.alive.processes) == 0 {
		return "", errors.New("no process of the box was seen while it lived, so nothing can be said")
	}
	if !v.after.empty() {
		return "", fmt.Errorf("left behind: %s", v.after)
	}
	return v.alive.String() + " seen while it lived, none left", nil
}
