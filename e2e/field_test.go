package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A field is a running `bailey worker`.
type field struct {
	*process // the newest of runs
	runs     []*process

	t    testing.TB
	data string

	environment api.EnvironmentID
	env         []string // of a start, and its arguments
	cfg         fieldConfig
}

// fieldConfig says how to start a worker. The zero value has no sandbox, for the
// tests that are about something else.
type fieldConfig struct {
	sandbox string
	data    string // "" is a temporary directory
	uid     int    // runs as this user; 0 is whoever runs the tests
	args    []string
}

// startField starts a worker and returns when it asks for work. The end of the
// test stops it by SIGTERM, and checks that it ends with status 0, that no process
// of a box is left, that the audit record verifies, and that no secret was written.
func (p *plane) startField(t testing.TB, env api.EnvironmentID, key string, cfg fieldConfig) *field {
	t.Helper()
	if cfg.sandbox == "" {
		cfg.sandbox = "none"
	}
	f := &field{t: t, cfg: cfg, data: cfg.data, environment: env}
	if f.data == "" {
		f.data = filepath.Join(t.TempDir(), "worker")
	}
	f.cfg.args = append([]string{
		"worker", "--data", f.data, "--sandbox", cfg.sandbox, "--base-url", p.url, "--environment-id", string(env), "--log-level", "debug",
	}, cfg.args...)
	f.env = []string{"ANTHROPIC_ENVIRONMENT_KEY=" + key}
	t.Cleanup(func() {
		if f.process != nil && f.alive() {
			f.stop()
		}
		for _, run := range f.runs {
			run.finish()
		}
		noLeftovers(t, f.data)
		if t.Failed() || t.Skipped() {
			return
		}
		if out, err := command(nil, "audit", "verify", filepath.Join(f.data, "audit.jsonl")).CombinedOutput(); err != nil {
			t.Errorf("the audit record does not verify: %v\n%s", err, out)
		}
	})
	f.run(t)
	return f
}

var workerRE = regexp.MustCompile(`"msg":"worker started"`)

// run starts the process, at first or after a kill.
func (f *field) run(t testing.TB) {
	t.Helper()
	cmd := command(f.env, f.cfg.args...)
	if f.cfg.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(f.cfg.uid), Gid: uint32(f.cfg.uid)}}
		cmd.Dir = filepath.Dir(f.data)
	}
	f.process = start(t, "worker", cmd)
	f.runs = append(f.runs, f.process)
	// Exit status 10 is the one for a host without this sandbox.
	for {
		// What it said and the wait for more are of one look, so that nothing is missed.
		said, changed := f.out.state()
		if workerRE.MatchString(said) {
			return
		}
		if f.alive() {
			select {
			case <-changed:
			case <-f.ended:
			}
			continue
		}
		var exit *exec.ExitError
		if errors.As(f.err, &exit) && exit.ExitCode() == 10 {
			missing(t, "no sandbox %s on this host: %s", f.cfg.sandbox, f.out.String())
		}
		t.Fatalf("the worker ended: %v", f.err)
	}
}

// workFile is a file of a session's work folder, on the host.
func (f *field) workFile(id api.SessionID, name string) string {
	return filepath.Join(f.data, string(f.environment), "work", string(id), name)
}

// waitFile waits until a file exists.
func waitFile(t testing.TB, path string) {
	t.Helper()
	for ctx := within(t); ; pause(ctx, 10*time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not appear", path)
		}
	}
}

// noLeftovers checks that no process is left whose command line or environment
// names mark. One that was just killed gets a moment.
func noLeftovers(t testing.TB, mark string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = processes(mark); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes are left:\n%s", strings.Join(left, "\n"))
}

// processes lists the processes whose command line, environment or working
// directory names mark.
func processes(mark string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if dir == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		if bytes.Contains(line, []byte(mark)) || bytes.Contains(env, []byte(mark)) || strings.HasPrefix(cwd, mark) {
			found = append(found, filepath.Base(dir)+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return found
}

// ordinaryUser is a user without any right, and a directory that is theirs.
func ordinaryUser(t testing.TB) (uid int, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a worker as another user; this test's sibling runs as the ordinary user that this is")
	}
	uid = 65534
	dir, err := os.MkdirTemp("", "bailey-e2e-user-") // not t.TempDir, whose parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return uid, dir
}
