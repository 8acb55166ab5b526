package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// box is a session's box: started when it is first needed, and replaced by a new
// one after it was lost. The work folder outlives every one of them.
type box struct {
	driver  sandbox.Driver
	spec    sandbox.Spec // all but ID
	session string
	log     *slog.Logger
	metrics *metrics

	// mu is held while a box is started, so that two calls never start two.
	mu      sync.Mutex
	now     *running // nil before the first and after a loss
	notice  string   // a loss the model has not been told of
	stopped bool
}

// running is one box and the agent in it.
type running struct {
	box    sandbox.Box
	client *tool.Client
	ended  chan struct{} // closed when the box has ended
	exit   sandbox.Exit  // why; valid once ended is closed
}

const (
	boxStartTimeout = 90 * time.Second // for the driver and the agent's hello
	boxStopTimeout  = 30 * time.Second
	boxExitWait     = 5 * time.Second // for the cause of a loss to become known
)

// boxEnv is the environment of every box. Nothing of the worker's own is in it.
var boxEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=" + sandbox.WorkPath,
	"LANG=C.UTF-8",
	"TERM=dumb",
}

// newBox prepares the box of a session; nothing runs yet. What else a session's
// box is to hold, such as its agent's skills, belongs into the Spec here.
func newBox(w *Worker, session, workDir string, log *slog.Logger) *box {
	return &box{
		driver:  w.cfg.Driver,
		session: session,
		log:     log,
		metrics: w.metrics,
		spec: sandbox.Spec{
			Command: append([]string{sandbox.AgentPath}, w.cfg.AgentArgs...),
			Agent:   w.cfg.Agent,
			WorkDir: workDir,
			Env:     append(boxEnv[:len(boxEnv):len(boxEnv)], w.cfg.BoxEnv...),
			Limits:  w.cfg.Limits,
			Stderr:  &stderrLog{log: log, left: stderrMax},
		},
	}
}

// ensure returns a running box, starting one if there is none.
func (b *box) ensure(ctx context.Context) (now *running, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, errors.New("the session is ending")
	}
	if b.now != nil {
		select {
		case <-b.now.client.Done():
			b.notice = b.lose()
		default:
			return b.now, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, boxStartTimeout)
	defer cancel()
	began := time.Now()
	if b.now, err = b.start(ctx); err != nil {
		b.metrics.boxes.WithLabelValues("failed").Inc()
		b.log.Error("box not started", "error", err)
		return nil, err
	}
	took := time.Since(began)
	b.metrics.boxes.WithLabelValues("started").Inc()
	b.metrics.boxStart.Observe(took.Seconds())
	b.log.Info("box started", "backend", b.driver.Name(), "took", took.Round(time.Millisecond))
	return b.now, nil
}

// takeNotice returns what happened to a box that was lost between two calls, for
// the first call that it makes a difference to.
func (b *box) takeNotice() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.notice
	b.notice = ""
	return n
}

func (b *box) start(ctx context.Context) (*running, error) {
	spec := b.spec
	spec.ID = boxID(b.session)
	started, err := b.driver.Start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start box: %w", err)
	}
	stdin, stdout := started.Stdio()
	client, err := tool.Dial(ctx, stdin, stdout)
	if err != nil {
		b.end(started)
		return nil, fmt.Errorf("meet the agent in the box: %w", err)
	}
	r := &running{box: started, client: client, ended: make(chan struct{})}
	go func() {
		r.exit = started.Wait()
		close(r.ended)
	}()
	return r, nil
}

// boxID names a box: the same session's boxes alike, no two the same.
func boxID(session string) string {
	sum := sha256.Sum256([]byte(session))
	var salt [4]byte
	_, _ = rand.Read(salt[:])
	return "bailey-" + hex.EncodeToString(sum[:6]) + "-" + hex.EncodeToString(salt[:])
}

// call runs a tool in the box that ensure returned. An error means that nothing
// ran; whatever happened to the box meanwhile is a result that says so.
func (b *box) call(ctx context.Context, now *running, c tool.Call) (tool.Result, error) {
	result, err := now.client.Call(ctx, c)
	if !errors.Is(err, tool.ErrLost) {
		return result, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	why := "The sandbox was stopped while the tool ran."
	if b.now == now {
		why = b.lose()
	}
	return tool.ErrorResult(why + " Whether the interrupted call had an effect is unknown."), nil
}

// lose gives up the current box and says, for the model, what happened to it.
// The caller holds mu.
func (b *box) lose() string {
	r := b.now
	b.now = nil
	_ = r.client.Close()
	// The agent's end is seen before the box's; the cause is worth a moment, but
	// a box that hangs must not hold up the session.
	silent := sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: "its agent stopped answering"}
	exit := silent
	wait := time.NewTimer(boxExitWait)
	defer wait.Stop()
	select {
	case <-r.ended:
		exit = r.exit
	case <-wait.C:
	}
	if exit.Cause == sandbox.CauseExited && exit.Code == 0 {
		// An agent ends in good order only because we hung up on it.
		exit = silent
	}
	b.metrics.boxLost.WithLabelValues(string(exit.Cause)).Inc()
	b.log.Warn("box lost", "cause", exit.Cause, "code", exit.Code, "detail", exit.Detail)
	b.end(r.box)
	return lossText(exit, b.spec.Limits.Defaults())
}

// lossText tells the model what ended its box and what to do about it.
func lossText(e sandbox.Exit, l sandbox.Limits) string {
	var why, what string
	switch e.Cause {
	case sandbox.CauseMemory:
		why = fmt.Sprintf("it used more memory than its limit of %d MiB", l.MemoryBytes>>20)
		what = " Use less memory at a time: smaller inputs, fewer processes, streaming instead of loading."
	case sandbox.CauseTime:
		why = fmt.Sprintf("it ran longer than its limit of %s", l.Lifetime)
		what = " Split long work into steps that can be continued."
	case sandbox.CauseExited:
		why = fmt.Sprintf("its main process ended with status %d", e.Code)
	case sandbox.CauseStopped:
		why = "it was stopped from outside"
	default:
		why = "it failed"
	}
	if e.Detail != "" {
		why += " (" + e.Detail + ")"
	}
	return "The sandbox was lost: " + why + ". Files in " + sandbox.WorkPath +
		" are kept; running processes, shell variables and the current directory are gone." + what +
		" The next call gets a new sandbox."
}

// stop ends the box for good.
func (b *box) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	if r := b.now; r != nil {
		b.now = nil
		_ = r.client.Close()
		b.end(r.box)
	}
}

func (b *box) end(started sandbox.Box) {
	ctx, cancel := context.WithTimeout(context.Background(), boxStopTimeout)
	defer cancel()
	if err := started.Stop(ctx); err != nil {
		b.log.Error("box not stopped", "error", err)
	}
}

// stderrMax bounds what one session's boxes may write to the worker's log.
const stderrMax = 256 << 10

// stderrLog writes what a box says on standard error to the log, line by line.
type stderrLog struct {
	log *slog.Logger

	mu   sync.Mutex
	left int
	part []byte
}

func (l *stderrLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left <= 0 {
		return len(p), nil
	}
	l.left -= len(p)
	l.part = append(l.part, p...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.log.Debug("box stderr", "line", string(line))
		l.part = rest
	}
}
