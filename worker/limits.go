package worker

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// A call that runs into a limit of its box may show no more of that than a status, or a
// hundred lines of one error. It is told which limit it was and what to do, beneath what
// the tool says, and the record has it.

// endingWait is how long after a call the end of its box is waited for, when the call
// looks as if that were about to come.
const endingWait = time.Second

// How results end of a command that was killed, and of a new shell.
const (
	statusKilled = "exit code: 137"
	restarted    = "bash session restarted"
)

// judge adds to the result of a call which limits of the box it ran into, and puts them on
// record.
func (b *box) judge(now *running, id string, c tool.Call, took time.Duration, result tool.Result) tool.Result {
	hits := now.newHits()
	ending := hits.Ending || now.lost() || hits.Memory < 0 && endsWith(result, statusKilled)
	if ending && now.endsSoon() && now.why().Cause == sandbox.CauseMemory {
		// Its end is part of this call, not news for the next.
		result.IsError = true
		return noted(result, b.lossOf(now))
	}
	hit := func(limit, detail string) {
		now.note(audit.Record{Action: audit.LimitHit, Call: id, Detail: detail, Attrs: map[string]string{"limit": limit}}, b.log)
	}
	limits := b.of.starter.spec.Limits.Defaults()
	if hits.Memory > 0 && !hits.Ending {
		hit("memory", fmt.Sprintf("processes that were ended: %d", hits.Memory))
		result = noted(result, fmt.Sprintf("The sandbox ran out of memory, of which all its processes and scratch files together may take %d MiB: "+
			"the kernel ended the largest process (SIGKILL, status 137; in all %d).%s", limits.MemoryBytes>>20, hits.Memory, useLessMemory))
	}
	if full := result.Full; full != nil && full.Bytes <= limits.DiskBytes {
		hit("disk", full.Place+" is full")
		result = noted(result, fmt.Sprintf("The scratch space at %s is full: the sandbox has %d MiB there. "+
			"Remove what is no longer needed, or write to %s, which is no part of it.", full.Place, full.Bytes>>20, sandbox.WorkPath))
	}
	if result.TimedOut {
		if limit := c.Timeout(); took >= limit-limit/20 {
			hit("time", fmt.Sprintf("the call was ended after %s", limit))
			result = noted(result, fmt.Sprintf("The call was ended after %s, which is as long as one may take here (sessions.tool-timeout).%s", limit, inBackground))
		} else {
			result = noted(result, fmt.Sprintf("The command was ended by its timeout_ms, which is %d if it names none; up to %d is possible here.%s",
				tool.TimeoutDefault.Milliseconds(), limit.Milliseconds(), inBackground))
		}
	}
	refused := 0
	if c.Tool == "bash" && hits.Processes != 0 {
		result, refused = collapsed(result)
	}
	if hits.Processes > 0 || refused > 0 {
		detail := fmt.Sprintf("processes and threads that were refused: %d", hits.Processes)
		if hits.Processes < 0 {
			detail = fmt.Sprintf("as the output says; lines of it: %d", refused)
		}
		hit("processes", detail)
		if endsWith(result, restarted) {
			return result // which was the remedy
		}
		result = noted(result, fmt.Sprintf("Processes could not be started: the sandbox may have %d processes and threads at a time, and had as many. "+
			`Start fewer, and wait for them to end; a bash call with {"restart": true} ends what the shell has started.`, limits.Processes))
	}
	return result
}

const inBackground = " Run what takes longer in the background, with its output in a file that later calls look at: COMMAND >out.log 2>&1 &"

// noted adds a sentence of ours to a result.
func noted(r tool.Result, text string) tool.Result {
	r.Content = append(r.Content, tool.Text("["+text+"]"))
	return r
}

// endsWith reports whether the last text of a result ends with a word of the agent's.
func endsWith(r tool.Result, word string) bool {
	for i := len(r.Content) - 1; i >= 0; i-- {
		if text, ok := textOf(r.Content[i]); ok {
			return strings.HasSuffix(text, word)
		}
	}
	return false
}

// textOf returns the text of a block, if it is one of text.
func textOf(block json.RawMessage) (text string, ok bool) {
	var b struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(block, &b) != nil || b.Type != "text" {
		return "", false
	}
	return b.Text, true
}

// processRefused is a line in which a program says that it could not start a process or
// a thread.
var processRefused = regexp.MustCompile(`(?i)(fork|thread|clone|spawn).*(resource temporarily unavailable|errno[ =]*11\b)|can't start new thread`)

// refusedShown is how many of those lines are shown.
const refusedShown = 3

// collapsed returns a result with no more than the first few of the lines in which
// programs say that they could not start something, and how many there were: a shell
// repeats them for as long as it tries.
func collapsed(r tool.Result) (tool.Result, int) {
	total := 0
	for i, block := range r.Content {
		text, ok := textOf(block)
		if !ok || !processRefused.MatchString(text) {
			continue
		}
		found := 0
		var kept, rest strings.Builder
		for line := range strings.Lines(text) {
			to := &kept
			if processRefused.MatchString(line) {
				if found++; found > refusedShown {
					continue
				}
			}
			if found > refusedShown {
				to = &rest
			}
			to.WriteString(line)
		}
		if more := found - refusedShown; more > 0 {
			r.Content[i] = tool.Text(fmt.Sprintf("%s[%d more such lines are left out]\n%s", kept.String(), more, rest.String()))
		}
		total += found
	}
	return r, total
}
