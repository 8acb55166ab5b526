package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// bash is the tool of that name: one shell that lives from call to call.
type bash struct {
	workdir  string
	children *children

	mu    sync.Mutex // held while a command runs
	shell *bashShell // nil before the first command, and after one that was cut short
}

// run runs a command. Calls come one after the other.
func (b *bash) run(ctx context.Context, call tool.Call) tool.Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	var in struct {
		Command text   `json:"command"`
		Restart truth  `json:"restart"`
		Timeout number `json:"timeout_ms"`
	}
	if err := decode(call.Input, &in); err != nil {
		return tool.ErrorResult(fmt.Sprintf("invalid bash input: %v", err))
	}
	if in.Restart {
		b.end()
		if in.Command == "" {
			return textResult("bash session restarted")
		}
	}
	if in.Command == "" {
		return tool.ErrorResult("bash: command is required")
	}
	if b.shell == nil {
		shell, err := startBash(b.workdir)
		if err != nil {
			return tool.ErrorResult("bash: " + err.Error())
		}
		b.shell = shell
	}
	limit := tool.TimeoutDefault
	if in.Timeout > 0 {
		limit = time.Duration(min(in.Timeout, 1e9)) * time.Millisecond
	}
	before := b.children.snapshot()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said, status, err := b.shell.run(limited, string(in.Command))
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		b.end()
		b.children.killSince(before)
		result := tool.ErrorResult(said + "\n[timed out]\nsession restarted after timeout")
		result.TimedOut = true
		return result
	case errors.Is(err, context.Canceled):
		b.end()
		b.children.killSince(before)
		return cut(ctx, call)
	case err != nil:
		b.end() // whatever state it is in
		return tool.ErrorResult("bash: " + err.Error())
	case status != 0:
		return tool.ErrorResult(fmt.Sprintf("%s\nexit code: %d", said, status))
	}
	return textResult(said)
}

// close ends the shell and what runs in it.
func (b *bash) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end()
}

func (b *bash) end() {
	if b.shell != nil {
		b.shell.end()
		b.shell = nil
	}
}

// environment is ours, without what a worker's own key would be in, where the agent is
// run by hand.
func environment() []string {
	var kept []string
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasPrefix(strings.ToUpper(name), "ANTHROPIC_") {
			kept = append(kept, v)
		}
	}
	return kept
}

// readable is output as the model is to read it: without what terminals are told by,
// and beginning with the first line that is not empty.
func readable(out []byte, whole bool) string {
	out = withoutEscapes(out)
	out = bytes.ReplaceAll(out, []byte("\r"), nil)
	out = bytes.TrimLeft(out, "\n")
	if !whole {
		return truncated + "\n" + string(out)
	}
	return string(out)
}

// withoutEscapes leaves out control sequences (ECMA-48, 5.4): ESC [, then parameters,
// intermediate bytes and a final one.
func withoutEscapes(out []byte) []byte {
	kept := make([]byte, 0, len(out))
	for len(out) > 0 {
		n := escape(out)
		if n == 0 {
			kept = append(kept, out[0])
			n = 1
		}
		out = out[n:]
	}
	return kept
}

// escape is the length of the control sequence that data begins with, or 0.
func escape(data []byte) int {
	if !bytes.HasPrefix(data, []byte("\x1b[")) {
		return 0
	}
	n := 2
	for n < len(data) && (data[n] >= '0' && data[n] <= '9' || data[n] == ';' || data[n] == '?') {
		n++
	}
	for n < len(data) && data[n] >= ' ' && data[n] <= '/' {
		n++
	}
	if n < len(data) && data[n] >= '@' && data[n] <= '~' {
		return n + 1
	}
	return 0
}
