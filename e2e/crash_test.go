package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/store/storetest"
)

// ledger is a session whose calls leave a line each in a file, from 0 on: one that
// ran twice, or never, shows there.
func ledger(turns int) scripted.Script {
	s := scripted.Script{Name: "ledger", Marker: "ledger"}
	for i := range turns {
		s.Turns = append(s.Turns, scripted.Turn{
			Thinking: "Next.",
			Text:     fmt.Sprintf("Two more lines, after %d.", 2*i),
			Calls:    []scripted.Call{bash("echo %d >> ledger; echo wrote", 2*i), bash("echo %d >> ledger; echo wrote", 2*i+1)},
		})
	}
	s.Turns = append(s.Turns, scripted.Turn{Text: "That is all."})
	return s
}

// checkLedger compares what calls did with what their results say: one that
// succeeded has run once, and one that failed not twice. It returns how many failed.
func checkLedger(t *testing.T, f *field, id api.SessionID, events []*api.Event) (failed int) {
	t.Helper()
	data, err := os.ReadFile(f.workFile(id, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]int{}
	for line := range strings.Lines(string(data)) {
		lines[strings.TrimSpace(line)]++
	}
	results := outcomeOf(events).results
	if len(results) != 2*ledgerTurns {
		t.Errorf("%d results, want %d", len(results), 2*ledgerTurns)
	}
	for i, r := range results {
		n := lines[strconv.Itoa(i)]
		switch {
		case r.failed && n > 1, !r.failed && n != 1:
			t.Errorf("call %d ran %d times, and its result is %q", i, n, r.text)
		case r.failed && !strings.Contains(r.text, "unknown"):
			t.Errorf("call %d failed: %q", i, r.text)
		case r.failed:
			failed++
		}
	}
	return failed
}

const ledgerTurns = 6

// A plane that is killed at any moment loses nothing it has acknowledged and
// doubles nothing: the session goes on by itself after the restart.
func TestPlaneKilled(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); killPlane(t, "", 12) })
	// A shared database does not tell that a plane died, so each kill inside of a
	// turn costs the wait for its lease.
	t.Run("postgres", func(t *testing.T) { t.Parallel(); killPlane(t, storetest.Postgres(t), 2) })
}

func killPlane(t *testing.T, db string, kills int) {
	if long() {
		kills *= 8
	}
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))

	p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{ledger(ledgerTurns), {Name: "chat", Marker: "note", OpenEnd: true, Turns: []scripted.Turn{{Text: "Noted."}}}}})
	env, key := p.environment(t)
	// Idle sessions keep their places for a while, and no session is to wait for one.
	f := p.startField(t, env, key, fieldConfig{args: []string{"--max-sessions", fmt.Sprint(kills + 1)}})
	agent := p.agent(t, toolset(api.AlwaysAllow))

	// One session without a kill says how many events there are to be killed at.
	w := p.watch(t, p.session(t, agent, env, "keep a ledger"))
	w.finished()
	steps := len(w.all())

	const killsPerSession = 3
	for kills > 0 {
		n := min(kills, killsPerSession)
		kills -= n
		points := make([]int, n)
		for i := range points {
			points[i] = 1 + random.IntN(steps-1)
		}
		slices.Sort(points)
		t.Logf("kills after %v of %d events", points, steps)

		chat := startChat(t, p, p.session(t, p.agent(t), env))
		w := p.watch(t, p.session(t, agent, env, "keep a ledger"))
		for _, point := range points {
			w.untilCount(point)
			// Somewhere in what follows the event, from the next write to the next request.
			time.Sleep(time.Duration(random.Int64N(int64(15 * time.Millisecond))))
			p.kill()
			p.restart(t)
		}
		w.next = 0
		if failed := checkLedger(t, f, w.id, w.finished()); failed != 0 {
			t.Errorf("%d calls failed, although the worker was not touched", failed)
		}
		chat.check()
	}
}

// A worker that is killed at any moment runs no call twice, and answers for every
// one it began.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	const seed = 2
	random := rand.New(rand.NewPCG(seed, seed))
	p := startPlane(t, planeConfig{scripts: []scripted.Script{ledger(ledgerTurns)}})
	env, key := p.environment(t)
	f := p.startField(t, env, key, fieldConfig{})
	agent := p.agent(t, toolset(api.AlwaysAllow))
	sessions := 3
	if long() {
		sessions *= 8
	}
	for range sessions {
		w := p.watch(t, p.session(t, agent, env, "keep a ledger"))
		points := []int{5 + random.IntN(30), 40 + random.IntN(30), 75 + random.IntN(30)}
		for _, point := range points {
			w.untilCount(point)
			time.Sleep(time.Duration(random.Int64N(int64(30 * time.Millisecond))))
			f.kill()
			f.run(t)
		}
		w.next = 0
		failed := checkLedger(t, f, w.id, w.finished())
		t.Logf("kills after events %v left the outcome of %d calls unknown", points, failed)
		// Its place is wanted for the next one.
		if _, err := p.client.ArchiveSession(within(t), w.id); err != nil {
			t.Error(err)
		}
	}
}

// untilCount waits until n events have come, or the last one has: how many there
// are depends a little on what comes together.
func (w *watch) untilCount(n int) {
	w.t.Helper()
	w.next = 0
	seen := 0
	w.until(fmt.Sprintf("event %d", n), func(ev *api.Event) bool {
		idle, ok := ev.Body.(*api.SessionStatusIdle)
		seen++
		return seen >= n || ok && idle.StopReason.Type == api.StopEndTurn
	})
}

// A chat sends one message after the other to a session, and remembers which of
// them were acknowledged.
type chat struct {
	t  *testing.T
	p  *plane
	w  *watch
	id api.SessionID

	stop, done chan struct{}

	// The chat's own until it is done.
	acked map[api.EventID]string
	lost  map[string]bool // sent without an answer: it may be there or not
}

const (
	// chatMax bounds a chat, whose every message has the model read all before it.
	chatMax = 200
	// chatMin is how many messages have to be acknowledged for a chat to show anything.
	chatMin = 3
)

func startChat(t *testing.T, p *plane, id api.SessionID) *chat {
	t.Helper()
	c := &chat{
		t: t, p: p, id: id, w: p.watch(t, id), stop: make(chan struct{}), done: make(chan struct{}),
		acked: map[api.EventID]string{}, lost: map[string]bool{},
	}
	go c.run()
	t.Cleanup(c.end)
	return c
}

func (c *chat) run() {
	defer close(c.done)
	ctx := c.t.Context()
	for i := range chatMax {
		select {
		case <-c.stop:
			if len(c.acked) >= chatMin {
				return
			}
		case <-time.After(20 * time.Millisecond):
		}
		text := fmt.Sprintf("note %d", i)
		sent, err := c.p.client.Send(ctx, c.id, userMessage(text))
		if err != nil {
			c.lost[text] = true
		} else {
			c.acked[sent[0].ID] = text
		}
	}
}

func (c *chat) end() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	<-c.done
}

// check ends the chat and finds every acknowledged message once, in the session.
func (c *chat) check() {
	c.t.Helper()
	c.end()
	if len(c.acked) < chatMin {
		c.t.Errorf("only %d messages were acknowledged, which shows nothing", len(c.acked))
	}
	last := c.p.send(c.t, c.id, userMessage("the last note"))[0].ID
	c.w.until("the last note processed", func(ev *api.Event) bool { return ev.ID == last && ev.ProcessedAt != nil })
	events := c.w.finished()
	found := map[string]int{}
	for _, ev := range events {
		b, ok := ev.Body.(*api.UserMessage)
		if !ok {
			continue
		}
		text := b.Content.Text()
		found[text]++
		if want, ok := c.acked[ev.ID]; ok && want != text {
			c.t.Errorf("%s was acknowledged as %q and is %q", ev.ID, want, text)
		} else if !ok && ev.ID != last && !c.lost[text] {
			c.t.Errorf("%q is there as %s, which was not acknowledged", text, ev.ID)
		}
	}
	for id, text := range c.acked {
		if found[text] != 1 {
			c.t.Errorf("%q, acknowledged as %s, is there %d times", text, id, found[text])
		}
	}
	for text := range c.lost {
		if found[text] > 1 {
			c.t.Errorf("%q, which was not acknowledged, is there %d times", text, found[text])
		}
	}
	c.t.Logf("%d messages acknowledged, %d without an answer", len(c.acked), len(c.lost))
}

// Of two planes over one database, the one that is left finishes what the other had
// begun.
func TestTwoPlanes(t *testing.T) {
	t.Parallel()
	db := storetest.Postgres(t)
	// A model for each tells which of them makes the request.
	cfg := planeConfig{db: db, scripts: []scripted.Script{{
		Name:  "interrupted by a death",
		Turns: []scripted.Turn{{Text: "The whole answer.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 600}}}},
	}}}
	one := startPlane(t, cfg)
	two := one.twin(t, cfg)
	env, _ := one.environment(t)
	id := two.session(t, one.agent(t), env, "hello")

	holder := make(chan *plane, 2)
	for _, p := range []*plane{one, two} {
		go func() {
			if p.model.WaitStalled(t.Context(), 1) == nil {
				holder <- p
			}
		}()
	}
	dead, left := <-holder, two
	if dead == two {
		left = one
	}
	w := left.watch(t, id)
	w.untilType(api.EvSpanModelRequestStart)
	dead.kill()
	if err := left.model.WaitStalled(within(t), 1); err != nil {
		t.Fatal(err)
	}
	left.model.Release()
	said := outcomeOf(w.finished()).said
	if !slices.Equal(said, []string{"The whole answer."}) {
		t.Errorf("said %q", said)
	}
}
