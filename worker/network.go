package worker

import (
	"encoding/json"
	"fmt"
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
	// variables are those of the session that it is for; one whose name the operator has
	// a credential of his own for is left out.
	//
	// record is called with each decision before it takes effect, from any
	// goroutine. If it returns an error, what was asked for is refused. It adds the
	// actor and the environment to the record; the rest is the caller's.
	Open(box string, variables []Variable, record func(audit.Record) error) (Network, error)
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

	// SetCall says whose box it is and which call runs in it, from here on.
	SetCall(session, call string)

	// Denials returns what was refused since it was last asked, a sentence each.
	Denials() []string

	// Redact returns text without the values of credentials in it.
	Redact(text string) string

	// Done is closed when the network serves the box no more, and Err then says why:
	// nil if it was closed, or the box has ended.
	Done() <-chan struct{}
	Err() error

	Close() error
}

// Each decision is a synced write, so a box that asks for more than this waits for its
// turn: an installer that fetches a thousand files takes longer, and fails at nothing.
// What would wait too long is refused, and the record says how often.
const (
	decisionsRate  = 200 // a second
	decisionsBurst = 1000
	decisionWait   = 20 * time.Second
)

// guard keeps the record of what passes through the network of one box.
type guard struct {
	write func(audit.Record) error
	limit *rate.Limiter

	mu     sync.Mutex
	unsaid int // decisions refused for coming too fast, and not on record yet
}

var errTooFast = fmt.Errorf("the box asks for more than %d things a second", decisionsRate)

func newGuard(write func(audit.Record) error) *guard {
	return &guard{write: write, limit: rate.NewLimiter(decisionsRate, decisionsBurst)}
}

// record puts a decision on record before it takes effect.
func (g *guard) record(r audit.Record) error {
	if r.Action == audit.EgressDecision || r.Action == audit.CredentialUse {
		// The wait is known beforehand, so what would wait too long is refused at once.
		turn := g.limit.Reserve()
		if turn.Delay() > decisionWait {
			turn.Cancel()
			g.mu.Lock()
			defer g.mu.Unlock()
			g.unsaid++
			return errTooFast
		}
		time.Sleep(turn.Delay())
		if n := g.takeUnsaid(); n > 0 {
			r.Detail = strings.TrimSpace(fmt.Sprintf("%s (before it, %d requests were refused for coming too fast)", r.Detail, n))
		}
	}
	return g.write(r)
}

func (g *guard) takeUnsaid() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.unsaid
	g.unsaid = 0
	return n
}

// denialsMax is how many denials a result names.
const denialsMax = 5

// denialText tells the model what the network refused during a call, or "".
func denialText(denials []string) string {
	if len(denials) == 0 {
		return ""
	}
	text := "[The environment's network policy blocked: " + strings.Join(denials[:min(len(denials), denialsMax)], "; ")
	if more := len(denials) - denialsMax; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text + ". Trying again will not help. Do without, or say that the operator of this environment would have to allow it.]"
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
