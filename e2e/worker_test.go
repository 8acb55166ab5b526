package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// bash is a call of bash.
func bash(format string, args ...any) scripted.Call {
	return scripted.Call{Name: "bash", Input: map[string]any{"command": fmt.Sprintf(format, args...)}}
}

// Our worker serves a whole session in every kind of box this host can make.
func TestWorker(t *testing.T) {
	t.Parallel()
	serve := func(t *testing.T, cfg fieldConfig) {
		p := startPlane(t, planeConfig{scripts: []scripted.Script{greet}})
		env, key := p.environment(t)
		f := p.startField(t, env, key, cfg)
		w := p.watch(t, p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "greet me"))
		if n := len(outcomeOf(w.finished()).results); n != greetCalls {
			t.Errorf("%d calls were answered, want %d", n, greetCalls)
		}
		f.stop()
		p.workStopped(t, env)
	}
	t.Run("none", func(t *testing.T) { t.Parallel(); serve(t, fieldConfig{sandbox: "none"}) })
	t.Run("gvisor", func(t *testing.T) { t.Parallel(); serve(t, fieldConfig{sandbox: "gvisor"}) })
	t.Run("gvisor as an ordinary user", func(t *testing.T) {
		t.Parallel()
		uid, dir := ordinaryUser(t)
		serve(t, fieldConfig{sandbox: "gvisor", uid: uid, data: filepath.Join(dir, "worker")})
	})
}

// A policy that asks holds calls back until a person decides, one by one.
func TestPermissionAsk(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{{
			Name: "ask",
			Turns: []scripted.Turn{
				{Calls: []scripted.Call{bash("echo the first ran"), bash("echo the second ran > second")}},
				{
					Expect: []scripted.Expect{
						{Result: 0, OK: true, Contains: "the first ran"},
						{Result: 1, Failed: true, Contains: "not on a Friday"},
					},
					Text: "One of two.",
				},
			},
		}}})
		env, key := p.environment(t)
		f := p.startField(t, env, key, fieldConfig{})
		id := p.session(t, p.agent(t, toolset(api.AlwaysAsk)), env, "try both")
		w := p.watch(t, id)

		waits := w.untilIdle(api.StopRequiresAction).StopReason.EventIDs
		if len(waits) != 2 {
			t.Fatalf("waits for %v, want two calls", waits)
		}
		// A confirmed call is still waited for, until the worker has run it.
		p.send(t, id, &api.UserToolConfirmation{ToolUseID: waits[0], Result: "allow"})
		w.untilType(api.EvUserToolResult)
		if left := w.untilIdle(api.StopRequiresAction).StopReason.EventIDs; !slices.Equal(left, waits[1:]) {
			t.Errorf("waits for %v, want %v", left, waits[1:])
		}
		why := "not on a Friday"
		p.send(t, id, &api.UserToolConfirmation{ToolUseID: waits[1], Result: "deny", DenyMessage: &why})
		w.finished()
		if _, err := os.Stat(f.workFile(id, "second")); err == nil {
			t.Error("the denied call ran")
		}
	})
}

// A custom tool is the client's to answer, while a worker runs the others.
func TestCustomTool(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "custom",
		Turns: []scripted.Turn{
			{
				Expect: []scripted.Expect{{Tool: "find_book"}, {Tool: "bash"}},
				Calls:  []scripted.Call{{Name: "find_book", Input: map[string]any{"title": "Emma"}}, bash("echo from the box")},
			},
			{
				Expect: []scripted.Expect{{Result: 0, OK: true, Contains: "second shelf"}, {Result: 1, OK: true, Contains: "from the box"}},
				Text:   "On the second shelf.",
			},
		},
	}}})
	env, key := p.environment(t)
	p.startField(t, env, key, fieldConfig{})
	custom := api.AgentTool{
		Type: api.ToolCustom, Name: "find_book", Description: "Finds a book.",
		InputSchema: []byte(`{"type":"object","properties":{"title":{"type":"string"}},"required":["title"]}`),
	}
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow), custom), env, "where is Emma?")
	w := p.watch(t, id)
	call := w.untilType(api.EvAgentCustomToolUse)
	if use := call.Body.(*api.AgentCustomToolUse); use.Name != "find_book" || string(use.Input) != `{"title":"Emma"}` {
		t.Errorf("the call is %s with %s", use.Name, use.Input)
	}
	answer := &api.UserCustomToolResult{CustomToolUseID: call.ID, Content: api.Content{api.TextBlock("on the second shelf")}}
	first := p.send(t, id, answer)
	again := p.send(t, id, answer) // as a client does that lost the reply
	if first[0].ID != again[0].ID {
		t.Errorf("the answer became event %s, and sent again %s", first[0].ID, again[0].ID)
	}
	w.finished()
}

// An interrupt ends the turn at once, and with it what runs in the box.
func TestInterruptWhileToolRuns(t *testing.T) {
	t.Parallel()
	for _, sandbox := range []string{"none", "gvisor"} {
		t.Run(sandbox, func(t *testing.T) {
			t.Parallel()
			p := startPlane(t, planeConfig{scripts: []scripted.Script{{
				Name: "sleeper",
				Turns: []scripted.Turn{
					{Calls: []scripted.Call{bash("touch started; sleep 1000"), bash("touch never")}},
					{Expect: []scripted.Expect{
						{Result: 0, Failed: true, Contains: "interrupted"},
						{Result: 1, Failed: true, Contains: "interrupted"},
						{User: "go on"},
					}, Calls: []scripted.Call{bash("ls")}},
					{Expect: []scripted.Expect{{OK: true, Contains: "started", Lacks: "never"}}, Text: "Gone on."},
				},
			}}})
			env, key := p.environment(t)
			f := p.startField(t, env, key, fieldConfig{sandbox: sandbox})
			id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "sleep")
			w := p.watch(t, id)
			waitFile(t, f.workFile(id, "started"))
			p.send(t, id, &api.UserInterrupt{})
			w.untilIdle(api.StopEndTurn)
			w.check()
			p.send(t, id, userMessage("go on"))
			w.finished()
		})
	}
}

// A message that arrives while the model speaks is taken up right after, and
// stands in the history where it was taken.
func TestMessageMidTurn(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, db string) {
		p := startPlane(t, planeConfig{db: db, scripts: []scripted.Script{{
			Name: "patient",
			Turns: []scripted.Turn{
				{Text: "The answer to the first.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 700}}},
				{Expect: []scripted.Expect{{User: "the second"}, {User: "the third"}}, Text: "The answer to both."},
			},
		}}})
		env, _ := p.environment(t)
		id := p.session(t, p.agent(t), env, "the first")
		w := p.watch(t, id)
		if err := p.model.WaitStalled(within(t), 1); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"the second", "the third"} {
			if sent := p.send(t, id, userMessage(text)); sent[0].ProcessedAt != nil {
				t.Errorf("%s is processed at once, although the model speaks", text)
			}
		}
		p.model.Release()
		events := w.finished()
		var order []string
		for _, ev := range events {
			switch b := ev.Body.(type) {
			case *api.UserMessage:
				order = append(order, b.Content.Text())
			case *api.AgentMessage:
				order = append(order, b.Content.Text())
			}
		}
		want := []string{"the first", "The answer to the first.", "the second", "the third", "The answer to both."}
		if !slices.Equal(order, want) {
			t.Errorf("said %q, want %q", order, want)
		}
	})
}

// A worker that is killed in the middle of a call must not run it again: once it
// is back it says that the outcome is unknown, and the session goes on.
func TestWorkerKilledDuringCall(t *testing.T) {
	t.Parallel()
	for sandbox, seconds := range map[string]int{
		"gvisor": 1000,
		"none":   5, // without a box nothing ends what a killed worker leaves behind
	} {
		t.Run(sandbox, func(t *testing.T) {
			t.Parallel()
			p := startPlane(t, planeConfig{scripts: []scripted.Script{{
				Name: "pay",
				Turns: []scripted.Turn{
					{Calls: []scripted.Call{bash("echo paid >> ledger; touch started; sleep %d", seconds), bash("echo after")}},
					{
						Expect: []scripted.Expect{
							{Result: 0, Failed: true, Contains: "effect is unknown"},
							{Result: 1, OK: true, Contains: "after"},
						},
						Calls: []scripted.Call{{Name: "read", Input: map[string]any{"file_path": "ledger"}}},
					},
					{Expect: []scripted.Expect{{OK: true, Contains: "paid", Lacks: "paid\npaid"}}, Text: "Paid once."},
				},
			}}})
			env, key := p.environment(t)
			f := p.startField(t, env, key, fieldConfig{sandbox: sandbox})
			id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "pay")
			w := p.watch(t, id)
			waitFile(t, f.workFile(id, "started"))
			f.kill()
			noLeftovers(t, f.data) // the box dies with its worker
			f.run(t)
			w.finished()
		})
	}
}

// SIGTERM lets the call under way finish and its result out; the next worker, with
// a directory of its own, carries on.
func TestWorkerDrains(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "slow",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("touch started; sleep 1; echo slept"), bash("echo by another")}},
			{
				Expect: []scripted.Expect{{Result: 0, OK: true, Contains: "slept"}, {Result: 1, OK: true, Contains: "by another"}},
				Text:   "Both.",
			},
		},
	}}})
	env, key := p.environment(t)
	f := p.startField(t, env, key, fieldConfig{})
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "go")
	w := p.watch(t, id)
	waitFile(t, f.workFile(id, "started"))
	f.stop()
	if n := strings.Count(f.out.String(), `"msg":"tool call done"`); n != 1 {
		t.Errorf("the worker ended after %d calls, want 1", n)
	}
	p.startField(t, env, key, fieldConfig{})
	w.finished()
}

// One worker serves several sessions at a time, and keeps them apart.
func TestWorkerServesSessionsAtOnce(t *testing.T) {
	t.Parallel()
	const sessions = 3
	// Each waits for the others' files: one after the other, none would end.
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "together",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("touch here; while [ ! -e go ]; do sleep 0.05; done; ls")}},
			{Expect: []scripted.Expect{{OK: true, Contains: "here"}}, Text: "Done."},
		},
	}}})
	env, key := p.environment(t)
	f := p.startField(t, env, key, fieldConfig{args: []string{"--max-sessions", fmt.Sprint(sessions)}})
	agent := p.agent(t, toolset(api.AlwaysAllow))
	var watches []*watch
	for range sessions {
		watches = append(watches, p.watch(t, p.session(t, agent, env, "go")))
	}
	for _, w := range watches {
		waitFile(t, f.workFile(w.id, "here"))
	}
	for _, w := range watches {
		if err := os.WriteFile(f.workFile(w.id, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range watches {
		w.finished()
	}
}
