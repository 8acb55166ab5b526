package netjail

import (
	"fmt"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Decision is one thing that a jail decided, or did. No secret is in it. What comes
// from the box (Host, Method, Path) is printable and bounded, and otherwise as the box
// gave it.
type Decision struct {
	Time               time.Time
	Box, Session, Call string
	Action             Action
	Allow              bool
	Rule               string // what decided: a rule of the policy, or what stands in its place
	Reason             string // why it was refused, a sentence for the model and its operator

	Host         string // a name or an address
	Port         uint16
	Protocol     string // "dns", "tcp", "tls", "http", "https"
	Method, Path string // of an HTTP request, without query
	Credential   string // the name of the one used, or misused
	Policy       string // the hash of the policy that decided

	Sent, Received int64 // bytes from and to the box, at a connection's end
}

// An Action is what a Decision is about.
type Action string

// The actions.
const (
	ActionDNS        Action = "egress.dns"     // a name was asked for; once for each name in a call
	ActionConnect    Action = "egress.connect" // a connection
	ActionRequest    Action = "egress.http"    // a request, where they are judged one by one
	ActionCredential Action = "credential.use" // a secret put in, or a placeholder where it has no business
	ActionPolicy     Action = "egress.policy"  // policy or credentials change
	ActionLimit      Action = "egress.limit"   // a limit was hit; once in a while for each
	ActionEnd        Action = "egress.end"     // a connection has ended; nothing is decided, and an error changes nothing
)

// Target is what the decision is about, in a few words.
func (d Decision) Target() string {
	target := d.Host
	if d.Port != 0 {
		target = d.place()
	}
	if d.Method != "" {
		target = d.Method + " " + d.Protocol + "://" + target + d.Path
	}
	if d.Credential != "" {
		target = strings.TrimSpace(d.Credential + " " + target)
	}
	return target
}

// place is the host and port as people write them.
func (d Decision) place() string { return net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port))) }

// A Denial is something that was refused, or that was allowed and could not be reached,
// to be shown to the model beside what its tool returned.
type Denial struct {
	Call  string // the call it happened in
	Text  string // a sentence
	Count int    // how often
}

// denialsMax bounds the denials that are kept; older ones are dropped.
const denialsMax = 64

type denials []Denial

func (l *denials) add(call, text string) {
	for i := range *l {
		if d := &(*l)[i]; d.Call == call && d.Text == text {
			d.Count++
			return
		}
	}
	if len(*l) == denialsMax {
		*l = append((*l)[:0], (*l)[1:]...)
	}
	*l = append(*l, Denial{Call: call, Text: text, Count: 1})
}

// Denials returns what was refused since it was last asked, oldest first.
func (j *Jail) Denials() []Denial {
	j.mu.Lock()
	defer j.mu.Unlock()
	recent := j.denials
	j.denials = nil
	return recent
}

// decision begins a Decision of the call that runs now.
func (j *Jail) decision(action Action) Decision {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Decision{
		Time: time.Now(), Box: j.box, Session: j.session, Call: j.call,
		Action: action, Policy: j.state.Load().rules.Hash(),
	}
}

// note puts a decision on record. If that fails, what it allows must not happen.
func (j *Jail) note(d Decision) error {
	d.Host, d.Method, d.Path, d.Reason = printable(d.Host), printable(d.Method), printable(d.Path), printable(d.Reason)
	if err := j.record(d); err != nil {
		j.log.Warn("a network decision could not be recorded, so it is refused", "box", j.box, "action", d.Action, "error", err)
		return fmt.Errorf("it could not be recorded, so it was refused: %w", err)
	}
	return nil
}

// refuse records and keeps that something was refused.
func (j *Jail) refuse(d Decision) {
	j.counters.denied.Add(1)
	d.Allow = false
	_ = j.note(d) // it is refused either way
	j.tell(d.Call, d.Reason)
}

// tell keeps a sentence for the model.
func (j *Jail) tell(call, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.denials.add(call, printable(text))
}

// limit records that a limit was hit. As a box that hits one does so often, each is on
// record once in a while.
func (j *Jail) limit(name, reason string) {
	const while = 10 * time.Second
	d := j.decision(ActionLimit)
	j.mu.Lock()
	last, ok := j.warned[name]
	again := !ok || d.Time.Sub(last) >= while
	if again {
		j.warned[name] = d.Time
	}
	j.mu.Unlock()
	if !again {
		j.counters.denied.Add(1)
		return
	}
	d.Rule, d.Reason = name, reason
	j.refuse(d)
}

const printableMax = 512

// printable makes foreign text safe to show on one line.
func printable(text string) string {
	if len(text) > printableMax {
		text = text[:printableMax] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

func stack() string { return string(debug.Stack()) }
