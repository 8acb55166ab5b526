package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// running is one box, the agent in it and the network around it. It is owned by a
// session's box or by the pool.
type running struct {
	// Static once started.
	id      string
	box     sandbox.Box
	client  *tool.Client
	network Network // nil if boxes have none
	stderr  *stderrLog
	record  func(audit.Record) error
	ended   chan struct{} // closed when the box has ended
	exit    sandbox.Exit  // why; valid once ended is closed

	// Guarded by the owner.
	folder string // its work folder on the host
	frozen bool

	mu      sync.Mutex
	session string            // whose it is; empty while it is the pool's
	doom    *sandbox.Exit     // why we ended it, if we did for a reason of the box's
	over    bool              // its end is on record
	hits    sandbox.LimitHits // that were seen
	shells  int               // of people, open now
	visited bool              // a person was in it since its last call
}

const (
	boxStartTimeout = 90 * time.Second // for the driver and the agent's hello
	boxStopTimeout  = 30 * time.Second
	boxExitWait     = 5 * time.Second // for the cause of a loss to become known
	freezeTimeout   = 10 * time.Second
)

// boxEnv is the environment of every box. Nothing of the worker's own is in it.
var boxEnv = []string{
	"PATH=" + sandbox.DefaultPath,
	"HOME=" + sandbox.WorkPath,
	"LANG=C.UTF-8",
	"TERM=dumb",
	// There is a terminal, and nobody at it to turn pages or to be asked for a password.
	"PAGER=cat",
	"GIT_PAGER=cat",
	"GIT_TERMINAL_PROMPT=0",
}

// starter starts boxes, all alike but for their work folder.
type starter struct {
	driver   sandbox.Driver
	spec     sandbox.Spec // all but ID, WorkDir, Stderr and what the network adds
	networks Networks     // nil for none
	setup    string       // see Config.Setup
	record   func(audit.Record) error
}

func newStarter(c Config, record func(audit.Record) error) *starter {
	return &starter{
		driver: c.Driver, networks: c.Networks, setup: c.Setup, record: record,
		// What else every box is to hold belongs into the Spec here.
		spec: sandbox.Spec{
			Command: append([]string{sandbox.AgentPath}, c.AgentArgs...),
			Agent:   c.Agent,
			Image:   c.Image,
			Devices: c.Devices,
			Env:     sandbox.MergeEnv(boxEnv, c.BoxEnv),
			Limits:  c.Limits,
		},
	}
}

// start starts a box on a work folder and meets its agent. session is whose it is, or
// empty for one of the pool, and variables are that session's.
func (st *starter) start(ctx context.Context, id, session, folder string, variables []Variable, log *slog.Logger) (*running, error) {
	r, err := st.meet(ctx, id, session, folder, variables, log)
	if err != nil || st.setup == "" {
		return r, err
	}
	if err := st.prepare(ctx, r); err != nil {
		r.end(log)
		return nil, err
	}
	return r, nil
}

// setupTimeout bounds what is done in a box before its first call.
const setupTimeout = 10 * time.Minute

// prepare runs the set-up in a new box. That it came to its end is seen by the last
// word, which no failure says.
func (st *starter) prepare(ctx context.Context, r *running) error {
	last := "set up " + rand.Text()
	// In a shell of its own: the session's keeps nothing of it.
	input, err := json.Marshal(map[string]any{
		"command": "(set -e\n" + st.setup + "\n) </dev/null && echo '" + last + "'", "timeout_ms": setupTimeout.Milliseconds(),
	})
	if err != nil {
		return err
	}
	result, err := r.client.Call(ctx, tool.Call{Tool: "bash", Input: input, TimeoutMS: setupTimeout.Milliseconds()})
	if err != nil {
		return fmt.Errorf("set the box up: %w", err)
	}
	text := api.Content(result.Content).Text()
	if strings.HasSuffix(strings.TrimRight(text, "\n"), last) {
		return nil
	}
	if r.network != nil {
		text = r.network.Redact(text)
		if denied := denialText(r.network.Denials()); denied != "" {
			text += "\n" + denied
		}
	}
	if len(text) > setupTextMax {
		text = "…" + strings.ToValidUTF8(text[len(text)-setupTextMax:], "")
	}
	return fmt.Errorf("the box could not be set up: %s", strings.TrimSpace(text))
}

// setupTextMax bounds what is said of a failed set-up, in bytes. How it ended is at the
// end.
const setupTextMax = 4000

// meet starts a box and its agent.
func (st *starter) meet(ctx context.Context, id, session, folder string, variables []Variable, log *slog.Logger) (*running, error) {
	ctx, cancel := context.WithTimeout(ctx, boxStartTimeout)
	defer cancel()
	action := audit.BoxStart
	if session == "" {
		action = audit.PoolFill
	}
	err := st.record(audit.Record{
		Action: action, Session: session, Start: time.Now(),
		Attrs: map[string]string{"backend": st.driver.Name(), "box": id, "image": st.spec.Image},
	})
	if err != nil {
		return nil, fmt.Errorf("the audit record cannot be written: %w", err)
	}
	r := &running{id: id, folder: folder, stderr: &stderrLog{log: log, left: stderrMax}, ended: make(chan struct{}), record: st.record}
	spec := st.spec
	spec.ID, spec.WorkDir, spec.Stderr = id, folder, r.stderr
	if st.networks != nil {
		if r.network, err = st.networks.Open(id, variables, newGuard(st.record).record); err != nil {
			return nil, fmt.Errorf("open the box's network: %w", err)
		}
		spec.Network, spec.Files = r.network, r.network.Files()
		spec.Env = append(spec.Env[:len(spec.Env):len(spec.Env)], r.network.Env()...)
	}
	r.belongTo(session)
	if r.box, err = st.driver.Start(ctx, spec); err != nil {
		r.closeNetwork(log)
		return nil, fmt.Errorf("start box: %w", err)
	}
	go func() {
		r.exit = r.box.Wait()
		close(r.ended)
	}()
	stdin, stdout := r.box.Stdio()
	if r.client, err = tool.Dial(ctx, stdin, stdout); err != nil {
		r.end(log)
		return nil, fmt.Errorf("meet the agent in the box: %w", err)
	}
	if r.network != nil {
		go r.watchNetwork(log)
	}
	return r, nil
}

// watchNetwork ends the box when its network is lost: what left it then would pass
// unseen, or nothing would any more.
func (r *running) watchNetwork(log *slog.Logger) {
	select {
	case <-r.ended:
	case <-r.network.Done():
		err := r.network.Err()
		if err == nil {
			return // closed by us
		}
		log.Error("the network of a box is lost; stopping the box", "error", err)
		r.note(audit.Record{Action: audit.EgressLost, Detail: err.Error()}, log)
		r.condemn(sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: "its network was lost: " + err.Error()}, log)
	}
}

// condemn ends the box for a reason that its next call is to be told. Whoever owns
// it notices that it is lost and cleans up.
func (r *running) condemn(why sandbox.Exit, log *slog.Logger) {
	r.mu.Lock()
	if r.doom == nil {
		r.doom = &why
	}
	r.mu.Unlock()
	// It cannot wait: nobody is to use it from here on.
	stopBox(r.box, log)
	_ = r.client.Close()
}

// why returns how the box ended, once its agent is lost. It waits a moment for the
// cause to become known.
func (r *running) why() sandbox.Exit {
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
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.doom != nil:
		return *r.doom
	case exit.Cause == sandbox.CauseExited && exit.Code == 0:
		// An agent ends in good order only because we hung up on it.
		return silent
	}
	return exit
}

// lost reports whether the box can serve no more calls.
func (r *running) lost() bool {
	select {
	case <-r.client.Done():
		return true
	default:
		return false
	}
}

// newHits returns the limits that the box has run into since this was last asked.
func (r *running) newHits() sandbox.LimitHits {
	counter, ok := r.box.(sandbox.LimitCounter)
	if !ok {
		return sandbox.LimitHits{Memory: -1, Processes: -1}
	}
	hits := counter.LimitHits()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.hits
	r.hits = hits
	since := func(now, before int) int {
		if now < 0 {
			return now
		}
		return max(0, now-before)
	}
	hits.Memory, hits.Processes = since(hits.Memory, seen.Memory), since(hits.Processes, seen.Processes)
	return hits
}

// endsSoon waits a moment for the end of the box, and reports whether it came.
func (r *running) endsSoon() bool {
	wait := time.NewTimer(endingWait)
	defer wait.Stop()
	select {
	case <-r.client.Done():
	case <-r.ended:
	case <-wait.C:
		return false
	}
	return true
}

// freeze stops the box's processes where they are, and reports false if that cannot
// be done to boxes of this kind.
func (r *running) freeze(ctx context.Context) (bool, error) {
	f, ok := r.box.(sandbox.Freezer)
	if !ok || r.frozen {
		return ok, nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := f.Freeze(ctx); err != nil {
		return true, fmt.Errorf("freeze box: %w", err)
	}
	r.frozen = true
	return true, nil
}

func (r *running) thaw(ctx context.Context) error {
	if !r.frozen {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := r.box.(sandbox.Freezer).Thaw(ctx); err != nil {
		return fmt.Errorf("thaw box: %w", err)
	}
	r.frozen = false
	return nil
}

// end stops the box and closes its network. It may be called more than once.
func (r *running) end(log *slog.Logger) {
	if r.client != nil {
		_ = r.client.Close()
	}
	stopBox(r.box, log)
	r.closeNetwork(log)
	r.noteEnd(log)
}

// belongTo makes the box a session's.
func (r *running) belongTo(session string) {
	r.mu.Lock()
	r.session = session
	r.mu.Unlock()
	r.setCall("")
}

// setCall says which call runs in the box from here on, if any.
func (r *running) setCall(call string) {
	if r.network == nil {
		return
	}
	r.mu.Lock()
	session := r.session
	r.mu.Unlock()
	r.network.SetCall(session, call)
}

// enter says that a person's shell is open, until leave is called.
func (r *running) enter() (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shells++
	r.visited = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.shells--
	}
}

// forgetVisit drops what the network has refused since the last call, if a person was in
// the box: it is not the model's business what they tried. What ran on in the background
// between calls is.
func (r *running) forgetVisit() {
	if r.network == nil {
		return
	}
	r.mu.Lock()
	was := r.visited
	r.visited = r.shells > 0
	r.mu.Unlock()
	if was {
		r.network.Denials()
	}
}

// note puts something about the box on record that has happened already, so that there
// is nothing to refuse if it cannot be.
func (r *running) note(rec audit.Record, log *slog.Logger) {
	r.mu.Lock()
	rec.Session = r.session
	r.mu.Unlock()
	if rec.Attrs == nil {
		rec.Attrs = make(map[string]string)
	}
	rec.Attrs["box"] = r.id
	if err := r.record(rec); err != nil {
		log.Error("audit record not written", "action", rec.Action, "error", err)
	}
}

// noteEnd puts the end of the box on record, once, and which limit it met.
func (r *running) noteEnd(log *slog.Logger) {
	patience := time.NewTimer(boxExitWait)
	defer patience.Stop()
	select {
	case <-r.ended:
	case <-patience.C:
		return // it could not be stopped, which is in the log
	}
	r.mu.Lock()
	exit := r.exit
	if r.doom != nil {
		exit = *r.doom
	}
	again := r.over
	r.over = true
	r.mu.Unlock()
	if again {
		return
	}
	if limit := limitNames[exit.Cause]; limit != "" {
		r.note(audit.Record{Action: audit.LimitHit, Detail: exit.Detail, Attrs: map[string]string{"limit": limit}}, log)
	}
	r.note(audit.Record{Action: audit.BoxStop, End: time.Now(), Outcome: string(exit.Cause), Detail: exit.Detail}, log)
}

// limitNames are the limits by what a box ends with that met them.
var limitNames = map[sandbox.Cause]string{
	sandbox.CauseMemory: "memory", sandbox.CauseTime: "lifetime", sandbox.CauseDisk: "disk",
}

func (r *running) closeNetwork(log *slog.Logger) {
	if r.network == nil {
		return
	}
	if err := r.network.Close(); err != nil {
		log.Error("network of a box not closed", "error", err)
	}
}

func stopBox(b sandbox.Box, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), boxStopTimeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		log.Error("box not stopped", "error", err)
	}
}

// boxID names a box: the same owner's boxes alike, no two the same.
func boxID(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	var salt [4]byte
	_, _ = rand.Read(salt[:])
	return "bailey-" + hex.EncodeToString(sum[:6]) + "-" + hex.EncodeToString(salt[:])
}

var errEnding = errors.New("the session is ending")

// stderrMax bounds what one box may write to the worker's log.
const stderrMax = 256 << 10

// stderrLog writes what a box says on standard error to the log, line by line.
type stderrLog struct {
	mu   sync.Mutex
	log  *slog.Logger
	left int
	part []byte
}

// to changes the log that it writes to.
func (l *stderrLog) to(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = log
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
