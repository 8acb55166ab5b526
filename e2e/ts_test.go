package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
)

// The official TypeScript SDK, unmodified, in the version that ts/package-lock.json
// pins.

// tsProject installs the programs in ts and what they need, once, into a directory
// that is removed with the binary.
var tsProject = sync.OnceValues(func() (dir string, err error) {
	dir = filepath.Join(scratch, "ts")
	if err := os.CopyFS(dir, os.DirFS("ts")); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New("npm ci: " + err.Error() + "\n" + string(out))
	}
	return dir, nil
})

// node starts a program of the project.
func node(t *testing.T, program string, env ...string) *process {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "the TypeScript SDK needs %s: %v", tool, err)
		}
	}
	dir, err := tsProject()
	if err != nil {
		missing(t, "the TypeScript SDK cannot be installed: %v", err)
	}
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
