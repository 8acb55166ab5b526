package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/model/scripted"
)

// cloudy is a session in an environment that allows allowed.example and what is below
// below.example. Names are looked up and nothing is connected to: an allowed name gets
// an address of the box's own network, and whether it leads anywhere is not asked.
var cloudy = scripted.Script{
	Name:   "cloudy",
	Marker: "look outside",
	Turns: []scripted.Turn{
		{Calls: []scripted.Call{
			bash("getent ahostsv4 allowed.example | head -1; getent ahostsv4 a.b.below.example | head -1"),
			bash("getent ahostsv4 denied.example || echo nothing at denied.example"),
			bash("getent ahostsv4 below.example || echo nothing at below.example"),
			bash("id -u; env | grep -c sk-ant; true"),
		}},
		{
			Expect: []scripted.Expect{
				{Result: 0, OK: true, Contains: "198.1"},
				{Result: 1, OK: true, Contains: "denied.example is blocked by the network policy"},
				{Result: 2, OK: true, Contains: "nothing at below.example"},
				{Result: 3, OK: true, Contains: "61000\n0"},
			},
			Text: "It is cloudy.",
		},
	},
}

const cloudyCalls = 4

// cloud creates a cloud environment.
func (p *plane) cloud(t testing.TB, packages *api.Packages) api.EnvironmentID {
	t.Helper()
	env, err := p.client.CreateEnvironment(within(t), api.EnvironmentCreate{
		Name: t.Name(), Config: &api.EnvironmentConfig{Type: api.EnvCloud, Packages: packages},
	})
	if err != nil {
		t.Fatal(err)
	}
	return env.ID
}

// A server that is stopped in the middle of a call goes on with it, and with the files
// of the session, when it is back; one without a cloud worker says so at once.
func TestCloudSessionSurvivesTheServer(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "survivor",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("echo kept > file")}},
			{Expect: []scripted.Expect{{OK: true}}, Text: "Written."},
			{Calls: []scripted.Call{bash("cat file")}},
			{Expect: []scripted.Expect{{OK: true, Contains: "kept"}}, Text: "It is there."},
		},
	}}})
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), p.cloud(t, nil), "write it")
	p.watch(t, id).finished()
	p.stop()
	p.restart(t)
	w := p.watch(t, id)
	p.send(t, id, userMessage("read it"))
	w.untilIdle(api.StopEndTurn) // of the first turn
	if n := len(outcomeOf(w.finished()).results); n == 0 {
		t.Error("no call was answered after the restart")
	}
}

func TestCloudSessionIsRefusedWithoutACloudWorker(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{args: []string{"--cloud-worker=false"}})
	env := p.cloud(t, nil)
	agent := p.agent(t, toolset(api.AlwaysAllow))
	_, err := p.client.CreateSession(within(t), api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: agent}, EnvironmentID: env})
	if e := api.AsError(err); e == nil || e.Status != 400 || !strings.Contains(e.Message, "runs no tools itself") {
		t.Errorf("the session: %v", err)
	}
}

// What cannot be installed is said where the session can see it.
func TestCloudPackagesThatCannotBeInstalledAreSaid(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{{
		Name: "packages",
		Turns: []scripted.Turn{
			{Calls: []scripted.Call{bash("true")}},
			{Expect: []scripted.Expect{{Failed: true, Contains: "packages.gem: there is no gem in the image"}}, Text: "I see."},
		},
	}}, args: []string{"--cloud-config", writeFile(t, "cloud.yaml", "sandbox: {setup: 'PATH=/nonexistent; mkdir() { :; }'}\n")}})
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), p.cloud(t, &api.Packages{Gem: []string{"rake"}}), "install it")
	p.watch(t, id).finished()
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A person's shell, through the command line, the server and a worker, into the box of
// a session that works meanwhile.
func TestAPersonInTheBox(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{
		scripts: []scripted.Script{{
			Name: "busy",
			Turns: []scripted.Turn{
				{Calls: []scripted.Call{bash("touch begun; until [ -e go ]; do sleep 0.05; done; echo went")}},
				{Expect: []scripted.Expect{{OK: true, Contains: "went"}}, Text: "Gone."},
			},
		}},
		args: []string{"--cloud-config", writeFile(t, "cloud.yaml", "shell: {allow: true}\n")},
	})
	id := p.session(t, p.agent(t, toolset(api.AlwaysAllow)), p.cloud(t, nil), "wait for it")
	w := p.watch(t, id)
	w.untilIdle(api.StopRequiresAction)
	shell := func(key, input string) (out string, status int) {
		cmd := command([]string{"BAILEY_URL=" + p.url, "BAILEY_KEY=" + key}, "sessions", "shell", string(id))
		var all bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &all, &all
		err := runWithin(t, cmd)
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			return all.String(), failed.ExitCode()
		} else if err != nil {
			t.Fatalf("%v: %s", err, &all)
		}
		return all.String(), 0
	}
	out, status := shell(p.admin, "until [ -e begun ]; do sleep 0.1; done; stty size; id -u; touch go; exit 7\n")
	if status != 7 || !regexp.MustCompile(`(?m)^.*24 80\r?$`).MatchString(out) || !strings.Contains(out, "61000") {
		t.Errorf("exit status %d: %q", status, out)
	}
	// The session's own call was not disturbed, and saw what the person did.
	if n := len(outcomeOf(w.finished()).results); n != 1 {
		t.Errorf("%d calls were answered", n)
	}
	if out, status := shell(p.admin, "echo end of input"); status != 0 || !strings.Contains(out, "end of input") {
		t.Errorf("exit status %d: %q", status, out)
	}
	// The end is heard also where it comes before the shell listens.
	if out, status := shell(p.admin, ""); status != 0 {
		t.Errorf("without input: exit status %d: %q", status, out)
	}
	plain, err := p.client.CreateKey(within(t), "", api.KeyCreate{Name: "without"})
	if err != nil {
		t.Fatal(err)
	}
	if out, status := shell(plain.Secret, "id\n"); status != 4 || !strings.Contains(out, "may not open shells") {
		t.Errorf("without the right: exit status %d: %q", status, out)
	}
	for f, err := range p.client.Events(within(t), id, client.EventOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(f.Data), "shell") {
			t.Errorf("an event speaks of the shell: %s", f.Data)
		}
	}
	// Both shores have it on record.
	records := read(t, filepath.Join(p.data, "audit.jsonl"))
	if !strings.Contains(records, `"operation":"sessions.shell"`) || !strings.Contains(records, `"exit 7"`) {
		t.Error("the plane's record knows nothing of the shell")
	}
	files, err := filepath.Glob(filepath.Join(p.data, "cloud", "env_*", "audit.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the worker's records are %v, %v", files, err)
	}
	if records := read(t, files[0]); !strings.Contains(records, `"action":"shell.start"`) || !strings.Contains(records, `"outcome":"exit 7"`) {
		t.Error("the worker's record knows nothing of the shell")
	}
}

// runWithin runs a command to its end, or kills it when the test has waited enough.
func runWithin(t testing.TB, cmd *exec.Cmd) error {
	t.Helper()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(within(t), func() { _ = cmd.Process.Kill() })()
	return cmd.Wait()
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
