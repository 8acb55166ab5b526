package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is one run of a program whose output is kept. Every secret of ours
// has a known shape, and none may be in it.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	out  output

	ended chan struct{} // closed when it is gone
	err   error         // of Wait; valid once ended is closed
}

// output collects what a process writes, both streams together.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{} // closed and replaced at every write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(p)
}

func (o *output) String() string {
	text, _ := o.state()
	return text
}

func (o *output) state() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.changed
}

// command prepares a run of the binary in a bare environment.
func command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "TMPDIR=" + os.TempDir()}, env...)
	return cmd
}

// start starts a command. Whoever starts it calls finish in the end.
func start(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, ended: make(chan struct{})}
	p.out.changed = make(chan struct{})
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // should the test itself be killed
	// A descendant that survives holds the output open; it must not hold up Wait.
	cmd.WaitDelay = 5 * time.Second
	started := make(chan error)
	go func() {
		// Pdeathsig goes by the thread that started the process, so one that does
		// not end has to wait for it.
		defer close(p.ended)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	return p
}

// finish kills the process if it is still there, shows what it said if the test
// failed, and looks for secrets in that.
func (p *process) finish() {
	p.t.Helper()
	p.kill()
	if p.t.Failed() {
		p.t.Logf("output of %s (pid %d):\n%s", p.name, p.cmd.Process.Pid, tail(p.out.String()))
	}
	noSecrets(p.t, p.name, p.out.String())
}

// tail is the end of a long text.
func tail(text string) string {
	const most = 16 << 10
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}

// waitFor returns when the output matches re, and the submatches.
func (p *process) waitFor(re *regexp.Regexp) []string {
	p.t.Helper()
	deadline := time.After(timeout)
	for {
		text, changed := p.out.state()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-changed:
		case <-p.ended:
			if m := re.FindStringSubmatch(p.out.String()); m != nil {
				return m
			}
			p.t.Fatalf("%s ended (%v) before it said %q", p.name, p.err, re)
		case <-deadline:
			p.t.Fatalf("%s did not say %q", p.name, re)
		}
	}
}

// signal sends a signal; a process that is gone already is no mistake.
func (p *process) signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// kill ends the process as a power cut would, and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// stop asks the process to end, and expects that it does so properly.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(timeout):
		p.signal(syscall.SIGQUIT) // shows its goroutines
		<-p.ended
		p.t.Errorf("%s did not end after SIGTERM", p.name)
		return
	}
	if p.err != nil {
		p.t.Errorf("%s ended with %v", p.name, p.err)
	}
}

// alive reports whether the process still runs.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// modelKey is the key of the scripted model.
const modelKey = "sk-ant-api03-the-key-of-the-scripted-model-is-a-secret-too"

var secretRE = regexp.MustCompile(`sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{16,}`)

// noSecrets fails the test if a text that anybody may see holds a key or a token.
func noSecrets(t testing.TB, name, text string) {
	t.Helper()
	if at := secretRE.FindStringIndex(text); at != nil {
		line := text[strings.LastIndex(text[:at[0]], "\n")+1:]
		line, _, _ = strings.Cut(line, "\n")
		t.Errorf("%s shows a secret: %s", name, secretRE.ReplaceAllString(line, "[the secret]"))
	}
}
