package agent

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	anthropic "github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/bailey-platform/bailey/tool"
)

// timedOut ends the official result of a command that ran out of time. A result
// that ends so and is no such one does not occur: an exit code follows the output
// of every other failed command.
const timedOut = "[timed out]\nsession restarted after timeout"

// bash runs a command in the official tool's shell. The tool's own timer is set to
// the call's, as it returns what the command had printed, which the end of the
// context does not. So the context that the tool sees outlives the deadline a
// little, and ends with the call only where that is cancelled. What it leaves running
// of a command that it cut short is killed.
func bash(t anthropic.BetaTool, children *children) runner {
	return func(ctx context.Context, call tool.Call) tool.Result {
		if deadline, ok := ctx.Deadline(); ok {
			call.Input = withTimeout(call.Input, time.Until(deadline))
		}
		patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				time.AfterFunc(settle/2, cancel)
			} else {
				cancel()
			}
		})()
		before := children.snapshot()
		text, err := official(patient, t, call)
		if err == nil {
			return textResult(text)
		}
		if patient.Err() != nil {
			children.killSince(before)
			return cut(ctx, call)
		}
		if strings.HasSuffix(err.Error(), timedOut) {
			children.killSince(before)
		}
		return tool.ErrorResult(err.Error())
	}
}

// withTimeout returns the input with a timeout of at most limit, which is what a
// command that asks for none gets too if the default is longer. An input that is
// no object is left to the tool to refuse.
func withTimeout(input json.RawMessage, limit time.Duration) json.RawMessage {
	fields := map[string]json.RawMessage{}
	if len(input) > 0 && json.Unmarshal(input, &fields) != nil || fields == nil {
		return input
	}
	// What is not a positive number counts as absent, as it does for the tool.
	var asked int64
	if json.Unmarshal(fields["timeout_ms"], &asked) != nil || asked <= 0 {
		asked = tool.TimeoutDefault.Milliseconds()
	}
	ms, err := json.Marshal(max(1, min(asked, limit.Milliseconds())))
	if err != nil {
		return input
	}
	fields["timeout_ms"] = ms
	out, err := json.Marshal(fields)
	if err != nil {
		return input
	}
	return out
}
