package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model/scripted"
)

// TestCrashes plays one session once for every write it makes, the client's and
// the loop's alike, and for every way in which that write can go wrong: it is
// lost, or it happens and only the reply is lost; and then its process dies, or
// lives on. In the end clients must have seen the same as without the fault.
func TestCrashes(t *testing.T) {
	t.Parallel()
	var want []string
	writes := 0
	synctest.Test(t, func(t *testing.T) {
		f := &faults{}
		want = playCrash(t, f)
		writes = f.begun
	})
	if writes < 15 {
		t.Fatalf("the session makes only %d writes", writes)
	}
	var all []*faults
	for at := 1; at <= writes; at++ {
		all = append(all, &faults{at: at, dies: true}, &faults{at: at, dies: true, afterwards: true})
	}
	for at := 1; at <= livesEvery; at++ {
		all = append(all, &faults{at: at}, &faults{at: at, afterwards: true})
	}
	for _, f := range all {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				got := playCrash(t, f)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("clients saw something else (-without fault +with):\n%s", diff)
				}
			})
		})
	}
}

// TestMCPCrashes does the same with calls that the loop runs itself. A call whose result
// a fault has cost is answered as one that may have run; none is run twice.
func TestMCPCrashes(t *testing.T) {
	t.Parallel()
	var want []string
	writes := 0
	synctest.Test(t, func(t *testing.T) {
		f := &faults{}
		want = playMCPCrash(t, f)
		writes = f.begun
	})
	if writes < 9 {
		t.Fatalf("the session makes only %d writes", writes)
	}
	for at := 1; at <= writes; at++ {
		for _, f := range []*faults{{at: at, dies: true}, {at: at, dies: true, afterwards: true}, {at: at}, {at: at, afterwards: true}} {
			t.Run(f.String(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					got := playMCPCrash(t, f)
					for i, line := range got {
						if i < len(want) && line != want[i] && strings.HasPrefix(want[i], "result: ") && strings.Contains(line, "Whether") {
							got[i] = want[i]
						}
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("clients saw something else (-without fault +with):\n%s", diff)
					}
				})
			})
		}
	}
}

func playMCPCrash(t *testing.T, f *faults) []string {
	f.fired = make(chan struct{})
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "Looking.", Calls: []scripted.Call{word("look", "a"), word("work", "b"), use("weather", nil)}},
		{Calls: []scripted.Call{word("push", "c"), word("nothing", "d")}},
		{Text: "Done."},
		{Calls: []scripted.Call{word("look", "e")}},
		{Text: "Done again."},
	}})
	p.patience = time.Hour
	server := p.farServer()
	server.work = func() time.Duration { return 20 * time.Second } // longer than a lease
	c := &client{p: p, id: p.farSession(), messages: []string{"how is the weather?", "look again"}}
	seen := playWith(t, p, c, f)
	log := memLog{}
	for _, e := range p.events(c.id) {
		log.entries = append(log.entries, api.Entry{Event: *e})
	}
	server.check(t, &log)
	return seen
}

// livesEvery is the distance of spoilt writes in a process that lives on.
const livesEvery = 6

// faults spoils one write, or every sixth.
type faults struct {
	at         int  // the first, from 1; 0 is none
	afterwards bool // it happens, and its reply is lost
	dies       bool // and nothing is written any more; else the sixth after it is next

	mu    sync.Mutex
	armed bool // writes are counted
	begun int
	done  int
	dead  bool
	fired chan struct{} // closed when the process died
}

func (f *faults) String() string {
	what, then := "lost", "lives"
	if f.afterwards {
		what = "reply_lost"
	}
	if f.dies {
		then = "dies"
	}
	return fmt.Sprintf("%02d_%s_%s", f.at, what, then)
}

var errFault = errors.New("a fault of the test")

func (f *faults) arm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = true
}

func (f *faults) before() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errFault
	}
	if !f.armed {
		return nil
	}
	f.begun++
	return f.spoil(!f.afterwards, f.begun)
}

func (f *faults) after() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed {
		return nil
	}
	f.done++
	return f.spoil(f.afterwards, f.done)
}

func (f *faults) spoil(here bool, n int) error {
	if !here || f.at == 0 || n < f.at || (n-f.at)%livesEvery != 0 {
		return nil
	}
	if f.dies {
		f.dead = true
		close(f.fired)
	}
	return errFault
}

// playCrash plays the session, with the process restarted if it dies, and returns
// what clients saw.
func playCrash(t *testing.T, f *faults) []string {
	f.fired = make(chan struct{})
	p := newPlane(t, scripted.Script{Turns: []scripted.Turn{
		{Text: "Looking.", Calls: []scripted.Call{use("read", map[string]any{"file_path": "a"}), use("weather", nil), use("teleport", nil)}},
		{Faults: []scripted.Fault{{Kind: scripted.FaultStatus, Status: 529}}, Text: "It is sunny."},
		{Calls: []scripted.Call{use("write", map[string]any{"file_path": "b", "content": "x"})}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "The user said: No."}}, Text: "I did not write it.", Usage: &scripted.Usage{InputTokens: 5000}},
		{On: "Summarize the conversation above.", Text: "They talked about the weather."},
		{On: "what was it about?", Expect: []scripted.Expect{{User: "They talked about the weather."}}, Text: "The weather."},
	}})
	p.patience = time.Hour
	c := &client{p: p, id: p.session(nil), messages: []string{"how is the weather?", "write it down", "what was it about?"}}
	return playWith(t, p, c, f)
}

// playWith plays a client's session under faults.
func playWith(t *testing.T, p *plane, c *client, f *faults) []string {
	restart := func() (stop func()) {
		p.close()
		p.open()
		return p.run(p.engine(func(c *Config) { c.Grace, c.CompactTokens = time.Nanosecond, 4000 }))
	}
	p.store.BeforeCommit, p.store.AfterCommit = f.before, f.after
	stop := restart()
	f.arm()

	ctx, cancel := context.WithCancel(p.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.play(ctx)
	}()
	select {
	case <-ended:
	case <-f.fired:
		cancel()
		stop()
		<-ended
		p.store.BeforeCommit, p.store.AfterCommit = nil, nil
		p.cfg.Sole = true
		stop = restart()
		c.play(p.ctx)
	}
	cancel()
	stop()
	checkLog(t, p, c.id)
	checkFeed(t, p, c.id)
	return c.seen()
}

// A client sends messages one after the other, answers the calls that the session
// waits for, and looks at the log whenever it cannot be sure that something
// arrived.
type client struct {
	p        *plane
	id       api.SessionID
	messages []string
	acked    []api.EventID
}

// play returns when every message is answered, or ctx ended.
func (c *client) play(ctx context.Context) {
	for ctx.Err() == nil {
		f, err := c.p.control.Follow(ctx, c.p.admin, c.id, "", control.FollowOptions{})
		if err != nil {
			continue
		}
		if c.react(ctx) {
			f.Close()
			return
		}
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		_, _ = f.Next(wait)
		cancel()
		f.Close()
	}
}

// react does what the log calls for, and reports whether that is nothing for good.
func (c *client) react(ctx context.Context) bool {
	page, err := c.p.control.ListEvents(ctx, c.p.admin, c.id, "", api.EventFilter{}, api.PageRequest{Limit: 1000})
	if err != nil {
		return false
	}
	log := memLog{}
	asked := 0
	idle := true // nothing is under way
	for _, e := range page.Data {
		log.entries = append(log.entries, api.Entry{Event: *e})
		switch e.Type() {
		case api.EvUserMessage:
			asked++
			idle = false
		case api.EvSessionStatusRunning:
			idle = false
		case api.EvSessionStatusIdle:
			idle = e.Body.(*api.SessionStatusIdle).StopReason.Type != api.StopRequiresAction
		}
	}
	waiting := log.waiting()
	var events []json.RawMessage
	for _, call := range log.calls() {
		switch {
		case !slices.Contains(waiting, call.id) || call.verdict != "":
		case call.custom:
			events = append(events, customResult(call.id, "sunny"))
		case call.mcp && call.ask:
			events = append(events, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": call.id, "result": "allow"}))
		case call.mcp:
		case call.ask:
			events = append(events, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": call.id, "result": "deny", "deny_message": "No."}))
		default:
			events = append(events, result(call.id, "file a"))
		}
	}
	if len(waiting) == 0 && idle {
		if asked == len(c.messages) {
			return true
		}
		events = append(events, userMessage(c.messages[asked]))
	}
	if len(events) == 0 {
		return false
	}
	// After an error the log will tell whether they arrived.
	if out, err := c.p.control.SendEvents(ctx, c.p.admin, c.id, api.EventsRequest{Events: events}); err == nil {
		for _, e := range out.Data {
			c.acked = append(c.acked, e.ID)
		}
	}
	return false
}

// seen is what a client shows to a person: who said and did what, in order. It
// verifies that every acknowledged event is among it.
func (c *client) seen() []string {
	var out []string
	ids := map[api.EventID]bool{}
	for _, e := range c.p.events(c.id) {
		ids[e.ID] = true
		switch b := e.Body.(type) {
		case *api.UserMessage:
			out = append(out, "user: "+b.Content.Text())
		case *api.AgentMessage:
			out = append(out, "agent: "+b.Content.Text())
		case *api.AgentToolUse:
			out = append(out, "call: "+b.Name)
		case *api.AgentMCPToolUse:
			out = append(out, "call: "+b.Name)
		case *api.AgentMCPToolResult:
			out = append(out, "result: "+b.Content.Text())
		case *api.AgentCustomToolUse:
			out = append(out, "call: "+b.Name)
		case *api.UserToolResult:
			out = append(out, "result: "+b.Content.Text())
		case *api.UserCustomToolResult:
			out = append(out, "result: "+b.Content.Text())
		case *api.AgentToolResult:
			out = append(out, "result: "+b.Content.Text())
		case *api.UserToolConfirmation:
			out = append(out, "confirmation: "+b.Result)
		case *api.SessionStatusIdle:
			if b.StopReason.Type != api.StopRequiresAction {
				out = append(out, "idle: "+b.StopReason.Type)
			}
		}
		if e.ProcessedAt == nil {
			c.p.t.Errorf("%s is still queued", e.ID)
		}
	}
	for _, id := range c.acked {
		if !ids[id] {
			c.p.t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	return out
}

// checkFeed verifies that a stream from the beginning has no gaps and shows every
// event once, or twice if it was queued.
func checkFeed(t *testing.T, p *plane, id api.SessionID) {
	t.Helper()
	ctx := context.WithoutCancel(p.ctx)
	f := must(p.control.Follow(ctx, p.admin, id, "", control.FollowOptions{LastEventID: "0"}))(t)
	defer f.Close()
	n, total := 0, len(p.events(id))
	seen := map[api.EventID]int{}
	for distinct := 0; distinct < total; {
		for _, frame := range must(f.Next(ctx))(t) {
			n++
			if frame.ID != strconv.Itoa(n) {
				t.Errorf("frame %d has the id %s", n, frame.ID)
			}
			var e api.Event
			if err := e.UnmarshalJSON(frame.Data); err != nil {
				t.Fatal(err)
			}
			if seen[e.ID]++; seen[e.ID] == 1 {
				distinct++
			}
			if seen[e.ID] > 2 || seen[e.ID] == 2 && e.ProcessedAt == nil {
				t.Errorf("frame %d shows %s for the %d. time", n, e.ID, seen[e.ID])
			}
		}
	}
}
