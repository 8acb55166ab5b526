package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/model/scripted"
)

// TestCommands plays testdata/script/*.txtar against the binary. Besides the
// commands of testscript (https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript)
// they have:
//
//	plane                 start a plane with its data in $DATA; BAILEY_URL and
//	                      BAILEY_KEY_FILE then name it
//	worker ENV KEYFILE    start a worker without a sandbox, with its data in $WORKER
//	worker stop           stop it
//	bailey ARG...         run the binary; ! expects it to fail
//	exits N ARG...        run the binary; it must end with status N and one line on
//	                      standard error that begins with "bailey:"
//	wait-call AGENT       wait until the newest session of an agent waits for a decision;
//	                      SESSION and CALL then name it
//	save NAME PATH        set a variable from the JSON that was just printed; PATH is
//	                      like data.0.id, and - the whole
//	json PATH VALUE       compare a part of that JSON
func TestCommands(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "bin")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(binary, filepath.Join(bin, "bailey"))); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[story{}] = &story{t: env.T().(testing.TB)}
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"plane": startStory, "worker": workerOfStory, "wait-call": waitCall,
			"bailey": runBailey, "exits": runExits, "save": save, "json": compareJSON,
		},
	})
}

// A story is what one script has started.
type story struct {
	t     testing.TB
	p     *plane
	field *field
}

func storyOf(ts *testscript.TestScript) *story { return ts.Value(story{}).(*story) }

func startStory(ts *testscript.TestScript, _ bool, _ []string) {
	s := storyOf(ts)
	s.p = startPlane(s.t, planeConfig{scripts: []scripted.Script{greet, talk, asks}})
	ts.Setenv("BAILEY_URL", s.p.url)
	ts.Setenv("BAILEY_KEY_FILE", filepath.Join(s.p.data, "admin.key"))
	ts.Setenv("DATA", s.p.data)
	ts.Setenv("MODEL_URL", s.p.modelURL)
}

func waitCall(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: wait-call AGENT")
	}
	p, t := storyOf(ts).p, storyOf(ts).t
	for ctx := within(t); ; pause(ctx, 20*time.Millisecond) {
		for s, err := range p.client.Sessions(ctx, api.SessionFilter{AgentID: api.AgentID(args[0])}, client.ListOptions{PageSize: 1}) {
			ts.Check(err)
			if s.Status != api.StatusIdle {
				break
			}
			events := p.events(t, s.ID)
			if n := len(events); n > 0 {
				idle, ok := events[n-1].Body.(*api.SessionStatusIdle)
				if ok && idle.StopReason.Type == api.StopRequiresAction {
					ts.Setenv("SESSION", string(s.ID))
					ts.Setenv("CALL", string(idle.StopReason.EventIDs[0]))
					return
				}
			}
			break
		}
	}
}

// asks is a session with one call to decide about, and an answer for either decision.
var asks = scripted.Script{
	Name:   "asks",
	Marker: "may you",
	Turns: []scripted.Turn{
		{Text: "I would like to run this.", Calls: []scripted.Call{bash("echo allowed")}},
		{Text: "I see."},
	},
	OpenEnd: true,
}

func workerOfStory(ts *testscript.TestScript, _ bool, args []string) {
	s := storyOf(ts)
	if len(args) == 1 && args[0] == "stop" {
		s.field.stop()
		return
	}
	if len(args) != 2 {
		ts.Fatalf("usage: worker ENV KEYFILE, or worker stop")
	}
	key := strings.TrimSpace(ts.ReadFile(args[1]))
	s.field = s.p.startField(s.t, api.EnvironmentID(args[0]), key, fieldConfig{})
	ts.Setenv("WORKER", s.field.data)
}

func runBailey(ts *testscript.TestScript, neg bool, args []string) {
	if err := ts.Exec("bailey", args...); (err != nil) != neg {
		ts.Fatalf("bailey %s: %v", strings.Join(args, " "), err)
	}
	noSecretErrors(ts)
}

func runExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits N ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("bailey", args[1:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	text := ts.ReadFile("stderr")
	if want != 0 && (!strings.HasPrefix(text, "bailey: ") || strings.Count(text, "\n") != 1) {
		ts.Fatalf("an error is one line that begins with bailey:, not %q", text)
	}
	noSecretErrors(ts)
}

// noSecretErrors checks that nothing was said about a secret. A new key is shown on
// standard output, on purpose.
func noSecretErrors(ts *testscript.TestScript) {
	if secretRE.MatchString(ts.ReadFile("stderr")) {
		ts.Fatalf("standard error shows a secret")
	}
}

// printed returns a part of the JSON that was just printed.
func printed(ts *testscript.TestScript, path string) any {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	if path == "-" {
		return v
	}
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(x) {
				ts.Fatalf("%s: no element %s of %d", path, name, len(x))
			}
			v = x[i]
		default:
			ts.Fatalf("%s: nothing to look %s up in", path, name)
		}
	}
	return v
}

func save(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: save NAME PATH")
	}
	v := printed(ts, args[1])
	if v == nil {
		ts.Fatalf("there is no %s", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func compareJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: json PATH VALUE")
	}
	text, ok := printed(ts, args[0]).(string)
	if !ok {
		data, err := json.Marshal(printed(ts, args[0]))
		ts.Check(err)
		text = string(data)
	}
	if (text == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], text)
	}
}

// The demo needs nothing but a sandbox, and proves itself.
func TestDemo(t *testing.T) {
	t.Parallel()
	p := start(t, "demo", command(nil, "demo"))
	t.Cleanup(p.finish)
	select {
	case <-p.ended:
	case <-time.After(timeout):
		t.Fatal("the demo does not end")
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.ExitCode() == 10 {
		missing(t, "no sandbox on this host: %s", p.out.String())
	}
	if p.err != nil || !strings.Contains(p.out.String(), "every tool call answered once") {
		t.Errorf("the demo ended with %v", p.err)
	}
}
