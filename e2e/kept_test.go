package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// TestPoolAndKeptBoxes: a session's box comes from the pool, keeps what runs in it from
// one turn to the next although the worker lets go of the session, and none of it is
// left behind by a worker that is killed with boxes ready, frozen and kept.
func TestPoolAndKeptBoxes(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"gvisor", "ns"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			p := startPlane(t, planeConfig{scripts: []scripted.Script{{
				Name: "memory", Marker: "memory", OpenEnd: true,
				Turns: []scripted.Turn{
					{Calls: []scripted.Call{bash("cd /tmp; remembered=yes; sleep 1000 & echo set")}},
					{Expect: []scripted.Expect{{OK: true, Contains: "set"}}, Text: "Set."},
					{Calls: []scripted.Call{bash("echo $remembered in $PWD with $(jobs -r | wc -l)")}},
					{Expect: []scripted.Expect{{OK: true, Contains: "yes in /tmp with 1"}}, Text: "It is still there."},
				},
			}}})
			env, key := p.environment(t)
			data := filepath.Join(t.TempDir(), "worker")
			config := filepath.Join(t.TempDir(), "worker.yaml")
			text := "pool: {size: 2}\nsessions: {idle: 1s}\nnetwork: {mode: limited, rules: [{hosts: [a.example], ports: [443]}]}\n"
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			f := p.startField(t, env, key, fieldConfig{sandbox: backend, data: data, args: []string{"--config", config}})
			f.logs(t, `"msg":"box ready"`)
			agent := p.agent(t, toolset(api.AlwaysAllow))
			w := p.watch(t, p.session(t, agent, env, "memory, please"))
			w.finished()
			f.logs(t, `"msg":"box claimed"`)
			f.logs(t, `"msg":"session idle; leaving it"`)
			p.send(t, w.id, userMessage("memory, still?"))
			w.finished()
			if n := strings.Count(f.out.String(), `"msg":"box claimed"`) + strings.Count(f.out.String(), `"msg":"box started"`); n != 1 {
				t.Errorf("%d boxes for one session, want the one that was kept", n)
			}
			f.kill()
			f.run(t)
			f.stop()
			// Of this worker's boxes: others run beside it.
			out, _ := command(nil, "doctor", "--leaks", "--worker-data", data).CombinedOutput()
			record, err := os.ReadFile(filepath.Join(data, "audit.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			boxes := boxRE.FindAllString(string(record), -1)
			if len(boxes) == 0 {
				t.Error("no box is on record")
			}
			for _, box := range boxes {
				if strings.Contains(string(out), box) {
					t.Errorf("doctor finds something of %s:\n%s", box, out)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(data, string(env), "work", ".[pg]*")); len(left) > 0 {
				t.Errorf("folders of the pool are left: %v", left)
			}
		})
	}
}

// boxRE is the name of a box.
var boxRE = regexp.MustCompile(`bailey-[0-9a-f]{12}-[0-9a-f]{8}`)

// logs waits until the worker's log has text.
func (f *field) logs(t testing.TB, text string) {
	t.Helper()
	for ctx := within(t); !strings.Contains(f.out.String(), text); {
		_, changed := f.out.state()
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the worker's log never says %s", text)
		}
	}
}

// TestWaitingForAPersonHoldsNoPlace: with one place, sessions that wait for an approval
// and one that was never spoken to let others through, and carry on once they are
// answered.
func TestWaitingForAPersonHoldsNoPlace(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "echo",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("echo done")}},
			{Expect: []scripted.Expect{{OK: true, Contains: "done"}}, Text: "It is."},
		},
	}}})
	env, key := p.environment(t)
	silent := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env)
	asks := p.agent(t, toolset(api.AlwaysAsk))
	var waiting []*watch
	for range 3 {
		w := p.watch(t, p.session(t, asks, env, "go"))
		w.untilIdle(api.StopRequiresAction)
		waiting = append(waiting, w)
	}
	p.startField(t, env, key, fieldConfig{args: []string{"--max-sessions", "1"}})
	p.watch(t, p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "go")).finished()
	for _, w := range waiting {
		w.next = 0
		for _, call := range w.untilIdle(api.StopRequiresAction).StopReason.EventIDs {
			p.send(t, w.id, &api.UserToolConfirmation{ToolUseID: call, Result: "allow"})
		}
		w.finished()
	}
	p.send(t, silent, userMessage("go"))
	p.watch(t, silent).finished()
}

// TestSettingsAreReadAnew: on SIGHUP, and a file that is wrong changes nothing.
func TestSettingsAreReadAnew(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{Name: "none", Turns: []scripted.Turn{{Text: "Hello."}}}}})
	env, key := p.environment(t)
	config := filepath.Join(t.TempDir(), "worker.yaml")
	write := func(text string) {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("sessions: {max: 2}\n")
	f := p.startField(t, env, key, fieldConfig{args: []string{"--config", config}})
	hangUp := func() {
		if err := f.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	write("sessions: {mux: 3}\n")
	hangUp()
	f.logs(t, `line 1: there is no setting \"mux\" here`)
	write("sessions: {max: 3}\ndrain: 5s\n")
	hangUp()
	f.logs(t, `"msg":"the configuration was read anew"`)
	f.logs(t, `"setting":"drain"`)
}
