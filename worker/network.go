package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// Networks opens the network of each box. What may pass through it, and which
// credentials are put in where, is for the implementation to know; the worker
// knows whose box it is.
type Networks interface {
	// Open returns the network of the box with this id, which is about to be started.
	//
	// record is called with each decision before it takes effect, from any
	// goroutine. If it returns an error, what was asked for is refused.
	Open(box string, record func(Decision) error) (Network, error)
}

// A Network is what one box reaches of the world. Its methods may be called by
// several goroutines.
type Network interface {
	// Attach takes over the ways out of the box.
	sandbox.Network

	// Files are what the box has to see, by its path there: see sandbox.Spec.Files.
	Files() map[string]string

	// Env is what the box's environment says of the network ("KEY=value"), the
	// placeholders of credentials included. None of it is secret.
	Env() []string

	// Redact returns text without the values of credentials in it.
	Redact(text string) string

	// Done is closed when the network serves the box no more, and Err then says why.
	// A network that was closed has a nil error.
	Done() <-chan struct{}
	Err() error

	Close() error
}

// A Decision is what a network decided about something that a box asked of it.
type Decision struct {
	Action string // what it is about: "egress.dns", "egress.connect", "egress.http", "credential.use"
	Target string // a name, or a host and port; as the box gave it, and so not to be trusted
	Denied bool
	Reason string // the rule it was decided by
}

const (
	decisionTextMax = 512 // bytes of a decision's target and of its reason
	denialsMax      = 5   // denials that a result names

	// Each decision is a synced write, so a box that asks faster than this is
	// refused, and the record says how often.
	decisionsRate  = 100 // a second
	decisionsBurst = 500
)

// guard keeps the record of what passes through the network of one box. A box whose
// decisions cannot be recorded reaches nothing.
type guard struct {
	actor string
	write func(audit.Record) error

	mu      sync.Mutex
	session string // whose box it is; empty while it is nobody's
	call    string // the call that runs in it
	denials []string
	more    int // denials beyond denialsMax
	limit   *rate.Limiter
	unsaid  int // decisions refused for coming too fast, and not on record yet
}

var (
	errNobodys  = errors.New("the box is not in use")
	errTooFast  = fmt.Errorf("more than %d network requests a second", decisionsRate)
	errNoRecord = errors.New("the audit record cannot be written")
)

func newGuard(actor string, write func(audit.Record) error) *guard {
	return &guard{actor: actor, write: write, limit: rate.NewLimiter(decisionsRate, decisionsBurst)}
}

// assign makes the box a session's.
func (g *guard) assign(session string) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.session = session
}

// begin says which call runs from here on, and end that it does no more; end returns
// what was denied meanwhile, for the model.
func (g *guard) begin(call string) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.call, g.denials, g.more = call, nil, 0
}

func (g *guard) end() string {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.call = ""
	if len(g.denials) == 0 {
		return ""
	}
	text := "[Blocked by the environment's network policy: " + strings.Join(g.denials, "; ")
	if g.more > 0 {
		text += fmt.Sprintf("; and %d more", g.more)
	}
	return text + ". Trying again will not help. Do without, or say that the operator of this environment would have to allow it.]"
}

// record puts a decision on record before it takes effect.
func (g *guard) record(d Decision) error {
	r, err := g.entry(d)
	if err != nil {
		return err
	}
	if err := g.write(r); err != nil {
		return fmt.Errorf("%w: %w", errNoRecord, err)
	}
	return nil
}

// entry is what the record says of a decision.
func (g *guard) entry(d Decision) (audit.Record, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session == "" {
		return audit.Record{}, errNobodys
	}
	if !g.limit.Allow() {
		g.unsaid++
		g.denied(d.Action, errTooFast.Error())
		return audit.Record{}, errTooFast
	}
	r := audit.Record{
		Actor: g.actor, Action: d.Action, Session: g.session, Call: g.call, Start: time.Now(), Outcome: "allowed",
		Detail: fmt.Sprintf("%s: %s", clip(d.Target), clip(d.Reason)),
	}
	if d.Denied {
		r.Outcome = "denied"
		g.denied(clip(d.Target), clip(d.Reason))
	}
	if g.unsaid > 0 {
		r.Detail += fmt.Sprintf(" (before it, %d requests were refused for coming too fast)", g.unsaid)
		g.unsaid = 0
	}
	return r, nil
}

// denied notes a denial for the model. The caller holds mu.
func (g *guard) denied(target, reason string) {
	text := target + " (" + reason + ")"
	switch {
	case slices.Contains(g.denials, text):
	case len(g.denials) < denialsMax:
		g.denials = append(g.denials, text)
	default:
		g.more++
	}
}

// clip makes foreign text safe to show on one line.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > decisionTextMax {
		text = strings.ToValidUTF8(text[:decisionTextMax], "") + "…"
	}
	return text
}

// redacted returns a result without the values of credentials in its text.
func redacted(r tool.Result, redact func(string) string) tool.Result {
	for i, raw := range r.Content {
		var block struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}
		if json.Unmarshal(raw, &block) != nil || block.Type != "text" {
			continue
		}
		if clean := redact(block.Text); clean != block.Text {
			r.Content[i] = tool.Text(clean)
		}
	}
	return r
}
