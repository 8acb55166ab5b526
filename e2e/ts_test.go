package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// The official TypeScript SDK, unmodified, in the version that ts/package-lock.json
// pins.

var tsProject = newNPMProject("ts", "the TypeScript SDK")

// node starts a program of the project.
func node(t *testing.T, program string, env ...string) *process {
	t.Helper()
	dir := tsProject.need(t)
	cmd := exec.Command("node", program)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	p := start(t, program, cmd)
	t.Cleanup(p.finish)
	return p
}

func TestTypeScript(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{talk}, model: scripted.Options{EventDelay: 10 * time.Millisecond}})
	c := node(t, "client.mjs", "PLANE_URL="+p.url, "PLANE_KEY="+p.admin, "PROMPT=let us talk", "ANSWER="+talk.Turns[0].Text)
	c.waitFor(regexp.MustCompile("all as expected"))
}

func TestTypeScriptWorker(t *testing.T) {
	t.Parallel()
	p := startPlane(t, planeConfig{scripts: []scripted.Script{greet}})
	env, key := p.environment(t)
	worker := node(t, "worker.mjs", "PLANE_URL="+p.url, "ENVIRONMENT_ID="+string(env), "ENVIRONMENT_KEY="+key, "WORKDIR="+t.TempDir())
	w := p.watch(t, p.session(t, p.agent(t, toolset(api.AlwaysAllow)), env, "greet me"))
	if n := len(outcomeOf(w.finished()).results); n != greetCalls {
		t.Errorf("%d calls were answered, want %d", n, greetCalls)
	}
	worker.stop()
	p.workStopped(t, env)
}
