package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/model/scripted"
)

// An attempt is a call of a tool that should come to a certain end.
type attempt struct {
	name string
	call scripted.Call
	want scripted.Expect
}

// attempts makes a script of attempts, one a turn, that ends with a sound call.
func attempts(all []attempt) scripted.Script {
	s := scripted.Script{Name: "attempts"}
	var expect []scripted.Expect
	for _, a := range append(all, attempt{"a sound call", bash("echo still here"), scripted.Expect{OK: true, Contains: "still here"}}) {
		s.Turns = append(s.Turns, scripted.Turn{Expect: expect, Text: a.name, Calls: []scripted.Call{a.call}})
		expect = []scripted.Expect{a.want}
	}
	s.Turns = append(s.Turns, scripted.Turn{Expect: expect, Text: "That was all."})
	return s
}

// whatever is the end of an attempt of which only matters what it leaves usable.
var whatever = scripted.Expect{Lacks: "never in any result"}

func call(name string, input map[string]any) scripted.Call {
	return scripted.Call{Name: name, Input: input}
}

// Whatever a model asks of the file tools, they stay in the work folder, and
// whatever it asks of the shell, the answer is small and the session goes on.
func TestHostileInputs(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(os.TempDir(), "bailey-e2e-escape-"+rand.Text())
	failed := scripted.Expect{Failed: true}
	flood, flooded := 8<<20, scripted.Expect{OK: true, Contains: "[output truncated]"}
	if long() {
		flood, flooded = 1<<30, whatever // it may take longer than a call can
	}
	all := []attempt{
		{"read above the folder", call("read", map[string]any{"file_path": "../../../../../../etc/passwd"}), scripted.Expect{Failed: true, Lacks: "root:"}},
		{"read outside", call("read", map[string]any{"file_path": "/etc/shadow"}), scripted.Expect{Failed: true, Lacks: "root:"}},
		{"make links", bash("ln -s /etc/passwd link; ln -s / root; ln -s loop loop"), scripted.Expect{OK: true}},
		{"read through a link", call("read", map[string]any{"file_path": "link"}), scripted.Expect{Failed: true, Lacks: "root:"}},
		{"read through a folder that is a link", call("read", map[string]any{"file_path": "root/etc/passwd"}), scripted.Expect{Failed: true, Lacks: "root:"}},
		{"read a loop of links", call("read", map[string]any{"file_path": "loop"}), failed},
		{"read a device", call("read", map[string]any{"file_path": "root/dev/zero"}), failed},
		{"write through a link", call("write", map[string]any{"file_path": "root" + outside, "content": "x"}), failed},
		{"write above the folder", call("write", map[string]any{"file_path": "../escaped", "content": "x"}), failed},
		{"write outside", call("write", map[string]any{"file_path": outside, "content": "x"}), failed},
		{"edit through a link", call("edit", map[string]any{"file_path": "link", "old_string": "root", "new_string": "toor"}), failed},
		{"a NUL in a name", call("read", map[string]any{"file_path": "a\x00b"}), failed},
		{"a NUL in a new name", call("write", map[string]any{"file_path": "a\x00b", "content": "x"}), failed},
		{"a name too long", call("write", map[string]any{"file_path": strings.Repeat("x", 10_000), "content": "x"}), failed},
		{"no name", call("read", map[string]any{}), failed},
		{"a number for a name", call("read", map[string]any{"file_path": 5}), failed},
		{"a list for a command", call("bash", map[string]any{"command": []string{"ls"}}), failed},
		{"no command", call("bash", map[string]any{}), failed},
		{"search everything", call("glob", map[string]any{"pattern": "/**"}), failed},
		{"search above", call("glob", map[string]any{"pattern": "../*"}), failed},
		{"a pattern that is none", call("grep", map[string]any{"pattern": "("}), failed},
		{"a pattern that is an option", call("grep", map[string]any{"pattern": "--files", "path": "/etc"}), scripted.Expect{Lacks: "passwd", Failed: true}},
		{"a flood", bash("yes | head -c %d", flood), flooded},
		{"a flood without end", scripted.Call{Name: "bash", Input: map[string]any{"command": "yes", "timeout_ms": 1000}}, failed},
		{"noise", bash("head -c 300000 /dev/urandom"), scripted.Expect{OK: true}},
		{"a shell that ends", bash("exit 3"), failed},
		{"a shell that is killed", bash("kill -9 $$"), failed},
		{"a shell that reads its input", bash("cat; read x; echo got nothing"), scripted.Expect{OK: true, Contains: "got nothing"}},
		{"a command that takes too long", scripted.Call{Name: "bash", Input: map[string]any{"command": "echo begun; sleep 1000", "timeout_ms": 300}}, failed},
		{"a process left behind", bash("(sleep 1000 &) ; echo gone on"), scripted.Expect{OK: true, Contains: "gone on"}},
	}
	for _, sandbox := range []string{"none", "gvisor"} {
		t.Run(sandbox, func(t *testing.T) {
			t.Parallel()
			p := startPlane(t, planeConfig{scripts: []scripted.Script{attempts(all)}})
			env, key := p.environment(t)
			f := p.startField(t, env, key, fieldConfig{sandbox: sandbox})
			id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "try everything")
			w := p.watch(t, id)
			for i, r := range outcomeOf(w.finished()).results {
				// 100 KiB, before what is no text takes three bytes for one.
				const most = 310 << 10
				if len(r.text) > most || !utf8.ValidString(r.text) {
					t.Errorf("result %d has %d bytes, valid: %t", i, len(r.text), utf8.ValidString(r.text))
				}
			}
			for _, path := range []string{outside, f.workFile(id, "../escaped"), f.workFile(id, "../../escaped")} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s was written", path)
				}
			}
		})
	}
}

// A box bounds what its tools use, shows them nothing of the worker, and when it
// breaks the session gets another.
func TestHostileProcesses(t *testing.T) {
	t.Parallel()
	all := []attempt{
		{"keys", bash("env; cat /proc/*/environ /proc/*/cmdline; true"), scripted.Expect{OK: true, Contains: "PLANE_PORT", Lacks: "sk-ant"}},
		{"the worker's files", bash("ls $WORKER_DATA || ls /root /home/*/.ssh"), scripted.Expect{Failed: true}},
		{"the network", bash("exec 3<>/dev/tcp/127.0.0.1/$PLANE_PORT"), scripted.Expect{Failed: true}},
		{"other processes", bash("cat /proc/*/cmdline | tr '\\0' ' ' | grep -c -- '--environment-i[d]'"), scripted.Expect{Failed: true, Contains: "0"}},
		{"all memory", bash("head -c 2G /dev/zero | tail"), scripted.Expect{Failed: true, Contains: "memory"}},
		{"after that", bash("echo usable"), scripted.Expect{OK: true, Contains: "usable"}},
		{"all scratch space", bash("head -c 1G /dev/zero > /tmp/big"), scripted.Expect{Failed: true}},
		{"a fork bomb", bash("b() { b | b & }; b; sleep 2; echo over"), whatever},
		{"after the bomb", bash("echo usable"), scripted.Expect{OK: true, Contains: "usable"}},
		{"everything that can be killed", bash("kill -9 -1"), whatever},
	}
	p := startPlane(t, planeConfig{scripts: []scripted.Script{attempts(all)}})
	env, key := p.environment(t)
	port := p.url[strings.LastIndex(p.url, ":")+1:]
	data := filepath.Join(t.TempDir(), "worker")
	p.startField(t, env, key, fieldConfig{sandbox: "gvisor", data: data, args: []string{
		"--processes", "64", "--memory", "256MiB", "--disk", "64MiB", "--box-env", "PLANE_PORT=" + port, "--box-env", "WORKER_DATA=" + data,
	}})
	w := p.watch(t, p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "try everything"))
	for _, r := range outcomeOf(w.finished()).results {
		noSecrets(t, "a result", r.text)
	}
}

// A model endpoint that stumbles costs a retry, and nothing of what it said before
// it stumbled is kept.
func TestModelStumbles(t *testing.T) {
	t.Parallel()
	faults := map[string]scripted.Fault{
		"no JSON":          {Kind: scripted.FaultGarbage, After: 800, Garbage: "event: content_block_delta\ndata: {{{{\n\n"},
		"no event":         {Kind: scripted.FaultGarbage, After: 800, Garbage: "\x00\xff\xfe<html>502</html>\n\n"},
		"another event":    {Kind: scripted.FaultGarbage, After: 800, Garbage: "event: message_start\ndata: {\"type\":\"message_start\",\"message\":null}\n\n"},
		"garbage at once":  {Kind: scripted.FaultGarbage, Garbage: "<html>"},
		"a broken line":    {Kind: scripted.FaultCut, After: 800},
		"an early end":     {Kind: scripted.FaultEnd, After: 800},
		"nothing at all":   {Kind: scripted.FaultEnd},
		"an error event":   {Kind: scripted.FaultError, After: 800, Type: "overloaded_error"},
		"overload":         {Kind: scripted.FaultStatus, Status: 529},
		"a failure":        {Kind: scripted.FaultStatus, Status: 500},
		"too many":         {Kind: scripted.FaultStatus, Status: 429, RetryAfter: time.Second},
		"a bad gateway":    {Kind: scripted.FaultStatus, Status: 502},
		"a slow beginning": {Kind: scripted.FaultSlow, Delay: 20 * time.Millisecond},
	}
	const text = "A sound answer, and of some length, so that it can break off in the middle of something."
	var scripts []scripted.Script
	for name, fault := range faults {
		scripts = append(scripts, scripted.Script{Name: name, Marker: "(" + name + ")", Turns: []scripted.Turn{{Text: text, Faults: []scripted.Fault{fault}}}})
	}
	p := startPlane(t, planeConfig{scripts: scripts})
	env, _ := p.environment(t)
	agent := p.agent(t)
	t.Run("all", func(t *testing.T) {
		for name, fault := range faults {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := p.watch(t, p.session(t, agent, env, "("+name+")"))
				events := w.finished()
				if said := outcomeOf(events).said; !slices.Equal(said, []string{text}) {
					t.Errorf("said %q", said)
				}
				errs := 0
				for _, ev := range events {
					if e, ok := ev.Body.(*api.SessionError); ok {
						errs++
						if e.Error.RetryStatus.Type != api.RetryRetrying || e.Error.Message == "" {
							t.Errorf("error %+v", e.Error)
						}
					}
				}
				if want := map[bool]int{true: 0, false: 1}[fault.Kind == scripted.FaultSlow]; errs != want {
					t.Errorf("%d errors were reported, want %d", errs, want)
				}
			})
		}
	})
}

// What trying again does not mend ends the turn, says why, and leaves the session
// usable.
func TestModelRefuses(t *testing.T) {
	t.Parallel()
	refuse := func(marker string, status int) scripted.Script {
		return scripted.Script{Name: marker, Marker: marker, Turns: []scripted.Turn{
			{Text: "Never said.", Faults: []scripted.Fault{{Kind: scripted.FaultStatus, Status: status, Message: "because of " + marker, Times: -1}}},
			{On: "once more", Text: "After all."},
		}}
	}
	p := startPlane(t, planeConfig{scripts: []scripted.Script{
		refuse("(bad request)", 400), refuse("(bad key)", 401), refuse("(forbidden)", 403), refuse("(no money)", 402), refuse("(no such model)", 404),
		{Name: "refusal", Marker: "(refusal)", OpenEnd: true, Turns: []scripted.Turn{{Stop: "refusal", Category: "cyber", Explanation: "No."}, {Text: "Yes."}}},
		{Name: "cut off", Marker: "(cut off)", Turns: []scripted.Turn{{Text: "The first half, ", Stop: "max_tokens"}, {Text: "the second half."}}},
		{Name: "strange calls", Marker: "(strange calls)", Turns: []scripted.Turn{
			{Calls: []scripted.Call{{Name: "no_such_tool", Input: map[string]any{"a": 1}}, {Name: "web_search", Input: map[string]any{"query": "x"}}}},
			{Expect: []scripted.Expect{{Result: 0, Failed: true}, {Result: 1, Failed: true}}, Text: "None of them."},
		}},
		garbled("(half an input)", `{"command": "ec`), garbled("(a list)", `["ls"]`), garbled("(a deep input)", strings.Repeat(`{"command":`, 5000)),
	}})
	env, _ := p.environment(t)
	agent := p.agent(t, toolset(api.AlwaysAllow))
	t.Run("all", func(t *testing.T) { modelRefuses(t, p, env, agent) })
}

// garbled is a model that does not manage to write the input of a call, and is told so.
func garbled(marker, input string) scripted.Script {
	return scripted.Script{Name: marker, Marker: marker, Turns: []scripted.Turn{
		{Calls: []scripted.Call{{Name: "bash", Raw: input}}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "input"}}, Text: "So it was not to be."},
		{On: "something else", Text: "That I can."},
	}}
}

func modelRefuses(t *testing.T, p *plane, env api.EnvironmentID, agent api.AgentID) {
	begin := func(t *testing.T, message string) (api.SessionID, *watch) {
		id := p.session(t, agent, env, message)
		return id, p.watch(t, id)
	}
	for _, marker := range []string{"(bad request)", "(bad key)", "(forbidden)", "(no money)", "(no such model)"} {
		t.Run(marker, func(t *testing.T) {
			t.Parallel()
			id, w := begin(t, marker)
			e := w.untilType(api.EvSessionError).Body.(*api.SessionError).Error
			if e.RetryStatus.Type != api.RetryExhausted || !strings.Contains(e.Message, "because of "+marker) {
				t.Errorf("error %+v", e)
			}
			w.untilIdle(api.StopRetriesExhausted)
			w.check()
			p.send(t, id, userMessage("once more"))
			if said := outcomeOf(w.finished()).said; len(said) != 1 {
				t.Errorf("said %q", said)
			}
		})
	}
	for _, marker := range []string{"(half an input)", "(a list)", "(a deep input)"} {
		t.Run(marker, func(t *testing.T) {
			t.Parallel()
			id, w := begin(t, marker)
			w.untilIdle(api.StopEndTurn)
			w.check()
			p.send(t, id, userMessage("something else"))
			w.finished()
		})
	}
	t.Run("refusal", func(t *testing.T) {
		t.Parallel()
		id, w := begin(t, "(refusal)")
		idle := w.untilIdle(api.StopRefusal)
		if d := idle.StopDetails; d == nil || d.Category == nil || *d.Category != "cyber" {
			t.Errorf("details %+v", d)
		}
		p.send(t, id, userMessage("something else"))
		w.finished()
	})
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		_, w := begin(t, "(cut off)")
		if said := strings.Join(outcomeOf(w.finished()).said, ""); said != "The first half, the second half." {
			t.Errorf("said %q", said)
		}
	})
	t.Run("strange calls", func(t *testing.T) {
		t.Parallel()
		_, w := begin(t, "(strange calls)")
		if said := outcomeOf(w.finished()).said; !slices.Equal(said, []string{"None of them."}) {
			t.Errorf("said %q", said)
		}
	})
}

// tinyDisk mounts a disk of some size, which root can.
func tinyDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		missing(t, "a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill leaves no room in dir, and goes on taking what is freed there, until release
// is called.
func fill(t *testing.T, dir string) (release func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	top := func() error {
		for {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
	}
	if err := top(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var filling sync.WaitGroup
	filling.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				top()
			}
		}
	})
	return func() {
		close(stop)
		filling.Wait()
		f.Close()
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// A plane whose disk is full says so, loses nothing it has acknowledged, and goes
// on when there is room again.
func TestPlaneDiskFull(t *testing.T) {
	t.Parallel()
	disk := tinyDisk(t, "16m")
	p := startPlane(t, planeConfig{data: filepath.Join(disk, "data"), scripts: []scripted.Script{talk, {
		Name: "stalls", Marker: "slow", Turns: []scripted.Turn{{Text: "Slowly.", Faults: []scripted.Fault{{Kind: scripted.FaultStall, After: 500}}}},
	}}})
	env, _ := p.environment(t)
	agent := p.agent(t)
	// One session is in the middle of a turn when the disk fills up.
	slow := p.watch(t, p.session(t, agent, env, "slow"))
	if err := p.model.WaitStalled(within(t), 1); err != nil {
		t.Fatal(err)
	}
	id := p.session(t, agent, env)
	w := p.watch(t, id)
	release := fill(t, disk)

	acked := map[api.EventID]bool{}
	message := "let us talk " + strings.Repeat("about a full disk ", 200)
	for n := 0; ; n++ {
		sent, err := p.client.Send(within(t), id, userMessage(message))
		if err == nil {
			acked[sent[0].ID] = true
			if n == 10_000 {
				t.Fatal("the disk does not fill up")
			}
			continue
		}
		if !refusedForRoom(err) {
			t.Fatalf("after %d messages: %v", n, err)
		}
		break
	}
	if err := p.client.Ready(within(t)); err != nil {
		t.Logf("not ready while the disk is full: %v", err)
	}
	p.events(t, id) // reading needs no room
	p.model.Release()

	release()
	// A write that shares its commit with one from before the release may still be
	// refused, and is to be tried again, as its error says.
	var last api.EventID
	for tries := within(t); last == ""; {
		sent, err := p.client.Send(tries, id, userMessage("talk again"))
		if err == nil {
			last = sent[0].ID
		} else if !refusedForRoom(err) {
			t.Fatal(err)
		}
	}
	w.until("the last message processed", func(ev *api.Event) bool { return ev.ID == last && ev.ProcessedAt != nil })
	w.finished()
	found := map[api.EventID]int{}
	for _, ev := range p.events(t, id) {
		found[ev.ID]++
	}
	for id := range acked {
		if found[id] != 1 {
			t.Errorf("%s was acknowledged and is there %d times", id, found[id])
		}
	}
	if said := outcomeOf(slow.finished()).said; !slices.Equal(said, []string{"Slowly."}) {
		t.Errorf("the turn that was under way said %q", said)
	}
}

// refusedForRoom reports whether err is what a plane says whose disk is full: its
// audit record comes first, its database next.
func refusedForRoom(err error) bool {
	e := api.AsError(err)
	return e != nil && (e.Status == http.StatusServiceUnavailable && strings.Contains(e.Message, "audit record cannot be written") ||
		e.Status == http.StatusInsufficientStorage && strings.Contains(e.Message, "disk is full"))
}

// A worker whose disk is full runs nothing that it cannot put on record, and goes
// on when there is room again.
func TestWorkerDiskFull(t *testing.T) {
	t.Parallel()
	disk := tinyDisk(t, "4m")
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "twice",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("echo ran >> %s/trace", t.TempDir())}},
			{Expect: []scripted.Expect{{Failed: true, Contains: "nothing was run"}}, Text: "It cannot."},
			{Calls: []scripted.Call{bash("echo there is room")}},
			{Expect: []scripted.Expect{{OK: true, Contains: "there is room"}}, Text: "It can."},
		},
	}}})
	env, key := p.environment(t)
	f := p.startField(t, env, key, fieldConfig{data: filepath.Join(disk, "worker"), args: []string{"--max-idle", "-1s"}})
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env)
	w := p.watch(t, id)
	// Claimed while there is room, so that it is a call that finds none.
	waitFile(t, filepath.Join(f.data, string(env), "calls", string(id)+".jsonl"))
	release := fill(t, disk)
	p.send(t, id, userMessage("try"))
	w.finished()
	release()
	p.send(t, id, userMessage("try again"))
	w.finished()
}

// A session for which no worker can be found waits, and can be given up.
func TestNoWorker(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{Name: "waits", Turns: []scripted.Turn{
		{Calls: []scripted.Call{bash("echo never")}},
		{Expect: []scripted.Expect{{Failed: true, Contains: "interrupted"}}, Text: "Very well."},
	}}}})
	env, _ := p.environment(t)
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "wait")
	w := p.watch(t, id)
	w.untilIdle(api.StopRequiresAction)
	stats, err := p.client.WorkStats(within(t), env)
	if err != nil || stats.Depth != 1 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	if err := p.client.DeleteEnvironment(within(t), env); err == nil {
		t.Error("an environment with a live session was deleted")
	}
	p.send(t, id, &api.UserInterrupt{})
	w.untilIdle(api.StopEndTurn)
	p.send(t, id, userMessage("leave it"))
	w.finished()
	for s, err := range p.client.Sessions(within(t), api.SessionFilter{}, client.ListOptions{}) {
		if err != nil || s.ID != id {
			t.Errorf("session %v, %v", s, err)
		}
	}
	if err := p.client.DeleteSession(within(t), id); err != nil {
		t.Error(fmt.Errorf("delete: %w", err))
	}
}
