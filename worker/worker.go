// Package worker is the field's end of a session: it claims sessions from an
// environment's queue, runs their tools in boxes and posts the results. It
// speaks the public HTTP API and nothing else, so it serves our own plane and
// Anthropic's alike, and it holds everything that must not be in a box: the
// keys, the event stream, the journal and the audit record.
//
// It knows nothing of how a plane decides (package control), nor of how a box is
// made (package sandbox); tools themselves are in package tool.
//
// # The life of a work item
//
//	queue                worker                                       on disk
//	─────                ──────                                       ───────
//	queued ──poll──────▶ offered                                      (nothing)
//	                        │ written down, then acknowledged         items/<id>
//	starting ◀──ack─────────┤
//	                        │ first heartbeat, at once
//	active ◀──heartbeat─────┤◀─────────────────────────────┐          items/<id>, beat by beat
//	                        │ beats every half lease ──────┘
//	                        ▼
//	             follow the session: open the stream, read the history
//	                        │
//	    ┌──────────────────▶├── nothing to do for MaxIdle, ended, deleted ─┐
//	    │                   ▼                                              │
//	    │        agent.tool_use, permitted                                 │
//	    │                   │ audit start                     audit.jsonl  │
//	    │                   │ box thawed, claimed or started    work/…     │
//	    │                   │ started                         calls/<sesn> │
//	    │                   │ tool runs in the box                         │
//	    │                   │ audit end                       audit.jsonl  │
//	    │                   │ finished, with the result       calls/<sesn> │
//	    │                   │ result posted, until taken or refused        │
//	    └───────────────────┤ settled                         calls/<sesn> │
//	                        │                                              │
//	stopped ◀──stop force───│◀─────────────────────────────────────────────┘
//	                        │
//	(with another) ◀── 412 ─┤  lease lost: the box is stopped, the item left alone
//	(lapses, re-offered) ◀──┘  shut down mid-turn: a last, short lease; another
//	                           worker carries on, or this one once it is back
//
// A worker killed at any point and started on the same DataDir carries on: it
// resumes the leases it held, posts results that were finished, and reports a
// call that was begun and not finished as interrupted. It never runs a call
// twice.
//
// # The life of a box
//
// A session's first box comes from the pool, if one is ready there, or is started. It is
// frozen while it does nothing, between calls and after the turn, and kept when the
// worker lets go of the session, so that one that comes back finds its shell, its
// processes and its network as it left them. It ends with the session, with the lease,
// with its network, at one of its limits, or when it was kept for long enough. The work
// folder stays until the session is deleted.
//
// # Goroutines
//
// Run polls in its own goroutine, one for all sessions. Each session has four:
// the lease's heartbeats, the event feed, the session itself, which alone decides,
// and the one tool call under way.
//
// Start reading at [Worker.Run], then session.go; for boxes at boxes.go.
package worker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
)

// Config says what a worker serves, and how. Fields with a default may be zero.
type Config struct {
	EnvironmentID string
	Key           KeySource // the environment key
	BaseURL       string    // default https://api.anthropic.com/

	// WorkerID names this worker in the plane's statistics and as the actor of
	// audit records. Default: the host's name and a random suffix.
	WorkerID string

	// Fingerprint is what the audit record calls these settings: a hash of the file
	// that they came from, or where else they did. Default "defaults".
	Fingerprint string

	// Notes is what else its first record says, such as why the boxes are of another
	// kind than was asked for.
	Notes []string

	// DataDir is the worker's own directory, made if missing; one worker uses it
	// at a time. It holds the journals that a restart needs, and the audit record
	// unless Audit is set.
	DataDir string

	// WorkDir is where the sessions' work folders are, which stay until their session
	// is deleted; the same holds for it. On a disk of its own, what boxes write cannot
	// keep the worker from its journals. Default: work in DataDir.
	WorkDir string

	// Audit takes the audit record. Nil keeps one in DataDir.
	Audit Recorder

	// MaxSessions is how many sessions are served at a time. While there are as many,
	// one that has nothing to do leaves early, and with none no work is asked for.
	// Default 16.
	MaxSessions int

	// Driver makes the boxes, of Image and with Devices: see sandbox.Spec.
	Driver  sandbox.Driver
	Image   string
	Devices []string

	// Networks opens the network of each box. Nil: boxes have none.
	Networks Networks

	PoolSize int  // boxes kept ready for sessions to come
	Keep     Keep // what becomes of boxes that nothing uses

	// FolderMax bounds a session's work folder, in bytes; 0 does not. It is looked
	// after, not held by the kernel: a box may exceed it for some seconds.
	FolderMax int64

	// DiskReserve is how much of the disks under DataDir and WorkDir stays free, in
	// bytes: with less, no work is taken on. Default 512 MiB, or a twentieth of a disk
	// smaller than 10 GiB.
	DiskReserve int64

	// Shell says whether people may open shells in boxes.
	Shell ShellRules

	// Agent is the host path of the static executable that runs in every box, and
	// AgentArgs are its arguments there.
	Agent     string
	AgentArgs []string

	// BoxEnv is added to the environment of every box ("KEY=value"). The model can
	// read it.
	BoxEnv []string

	// Setup is a bash script that is run in every new box before its first call, as
	// the user that runs the tools and under the same network rules. A box in which it
	// fails is not used, and the call that needed it is told what it said.
	Setup string

	// EagerBox starts a session's box when the session is claimed, not when the
	// first tool is called.
	EagerBox bool

	Limits sandbox.Limits // of every box

	ToolTimeout time.Duration // of one call; default 120 s, at most 24 h
	// MaxIdle is how long a session with nothing to do keeps its place, if nobody else
	// needs it: its turn is over or has not begun, or it waits for a person. Then its
	// item is given back; its box is kept as Keep says. Default 60 s; below 0 until the
	// place is needed.
	MaxIdle time.Duration

	DrainTimeout time.Duration // how long calls may go on once Run is to end; default 30 s

	AuditInput audit.InputMode // how much of tool inputs the record in DataDir keeps; default a hash

	HTTPClient *http.Client          // default: one with HTTP/2 health checks and no overall timeout
	Logger     *slog.Logger          // nil discards
	Metrics    prometheus.Registerer // nil registers nothing
}

// A Recorder takes audit records. *audit.Log is one. Append returns once the record
// is safe, Note does not wait for that; Err says why none is taken any more.
type Recorder interface {
	Append(audit.Record) error
	Note(audit.Record) error
	Err() error
}

const (
	defaultBaseURL      = "https://api.anthropic.com/"
	defaultMaxSessions  = 16
	defaultToolTimeout  = 120 * time.Second
	maxToolTimeout      = 24 * time.Hour
	defaultMaxIdle      = 60 * time.Second
	defaultDrainTimeout = 30 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	var missing []error
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"EnvironmentID", c.EnvironmentID != ""}, {"Key", c.Key != nil}, {"DataDir", c.DataDir != ""}, {"Agent", c.Agent != ""},
	} {
		if !f.set {
			missing = append(missing, fmt.Errorf("worker: Config.%s is required", f.name))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return c, err
	}
	switch {
	case c.MaxSessions < 0:
		return c, fmt.Errorf("worker: Config.MaxSessions is %d", c.MaxSessions)
	case c.ToolTimeout < 0 || c.ToolTimeout > maxToolTimeout:
		return c, fmt.Errorf("worker: Config.ToolTimeout is %s, at most %s is allowed", c.ToolTimeout, maxToolTimeout)
	case c.PoolSize < 0:
		return c, fmt.Errorf("worker: Config.PoolSize is %d", c.PoolSize)
	case c.FolderMax < 0 || c.DiskReserve < 0:
		return c, fmt.Errorf("worker: Config.FolderMax is %d and Config.DiskReserve %d bytes", c.FolderMax, c.DiskReserve)
	case c.DrainTimeout < 0:
		return c, fmt.Errorf("worker: Config.DrainTimeout is %s", c.DrainTimeout)
	case len(c.WorkerID) > api.WorkerIDMax:
		return c, fmt.Errorf("worker: Config.WorkerID is longer than %d bytes", api.WorkerIDMax)
	}
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.ToolTimeout, defaultToolTimeout)
	set(&c.MaxIdle, defaultMaxIdle)
	set(&c.DrainTimeout, defaultDrainTimeout)
	c.Keep = c.Keep.withDefaults()
	if c.WorkDir == "" {
		c.WorkDir = filepath.Join(c.DataDir, "work")
	}
	if c.BaseURL == "" {
		c.BaseURL = defaultBaseURL
	}
	if c.Fingerprint == "" {
		c.Fingerprint = "defaults"
	}
	if c.WorkerID == "" {
		c.WorkerID = randomWorkerID()
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = defaultMaxSessions
	}
	if c.HTTPClient == nil {
		c.HTTPClient = defaultHTTPClient()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.Limits.Validate(); err != nil {
		return c, err
	}
	return c, nil
}

func randomWorkerID() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	return fmt.Sprintf("%.64s-%s", host, hex.EncodeToString(b[:]))
}

// defaultHTTPClient finds out about dead connections by itself: a stream that
// carries nothing for an hour is normal, one whose peer is gone must end.
func defaultHTTPClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 32
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	return &http.Client{
		Transport: t,
		// A redirect would carry the key to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A Worker serves one environment. It is made by [New] and run once.
type Worker struct {
	// Static after New, but for data, audit, space and boxes, which Run sets before
	// anything else, and cfg.Shell, which is guarded by mu.
	cfg     Config
	log     *slog.Logger
	plane   *plane
	keys    *keyring
	metrics *metrics
	data    *dataDir
	audit   Recorder
	boxes   *boxes
	space   *space
	places  *places                 // one taken for each session that is served or asked for
	step    func(name string) error // see dataDir.step

	mu      sync.Mutex
	held    map[string]bool  // ids of the work items in hand
	turns   map[string]*turn // one a session that is served or waited for
	ready   error            // why no work comes in, as far as polling tells
	unfit   error            // why none can be taken on, as the last attempt found
	cramped error            // why none is asked for, as the disk tells
	shells  map[*openShell]bool

	persons sync.WaitGroup // shells that came by a line
}

// turn is the right to serve a session.
type turn struct {
	taken chan struct{} // full while somebody serves it
	users int           // who serves it or waits to; guarded by Worker.mu
}

var (
	errNotStarted = errors.New("the worker has not asked for work yet")
	errDraining   = errors.New("the worker is shutting down")
)

// New checks a configuration and prepares a worker. It touches neither the disk
// nor the network.
func New(c Config) (*Worker, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if c.Driver == nil {
		return nil, errors.New("worker: Config.Driver is required")
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, err
	}
	keys := &keyring{source: c.Key}
	return &Worker{
		cfg:     c,
		log:     c.Logger.With("environment_id", c.EnvironmentID, "worker_id", c.WorkerID),
		plane:   newPlane(c, keys),
		keys:    keys,
		metrics: m,
		step:    func(string) error { return nil },
		places:  newPlaces(c.MaxSessions),
		held:    make(map[string]bool),
		turns:   make(map[string]*turn),
		shells:  make(map[*openShell]bool),
		ready:   errNotStarted,
	}, nil
}

// Run serves the environment until ctx ends. It then asks for no more work and
// begins no more calls, but gives those that run up to DrainTimeout, and returns
// nil once all is left in order. It returns an error only if it could not begin:
// the key cannot be read or is refused at once, see [KeyRefused], or DataDir or the
// audit record in it cannot be used. Whatever the plane answers later, Run carries on
// and [Worker.Ready] says what is wrong.
func (w *Worker) Run(ctx context.Context) error {
	if _, err := w.keys.bearer(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	closeAll, err := w.open()
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	defer closeAll()
	if err := w.noteStart(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	defer w.note(audit.Record{Action: audit.WorkerStop}, w.log)
	if err := w.data.sweepJournals(time.Now()); err != nil {
		w.log.Warn("old journals not removed", "error", err)
	}
	items, err := w.data.items(w.cfg.EnvironmentID)
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	left, err := w.data.leftFolders()
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	left = w.sweepPool(left)

	// Taking no more work and stopping work are two events: ctx is the first,
	// hard is the second.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hard, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	var sessions, rest sync.WaitGroup
	rest.Go(func() { w.boxes.run(ctx) })
	rest.Go(func() { w.sweepFolders(ctx, left) })
	for _, it := range items {
		w.log.Info("resuming work", "work_id", it.ID, "session_id", it.Session)
		w.hold(it.ID)
		sessions.Go(func() {
			if at := w.places.take(ctx); at != nil {
				defer at.leave()
				w.resume(ctx, hard, it, at)
			}
			w.letGo(it.ID)
		})
	}
	refused := w.poll(ctx, func(o *offer, at *place) {
		sessions.Go(func() {
			defer at.leave()
			w.claim(ctx, hard, o, at)
			w.letGo(o.id)
		})
	})
	cancel() // if it was the key

	w.setReady(errDraining)
	w.log.Info("shutting down", "at_most", w.cfg.DrainTimeout)
	late := time.AfterFunc(w.cfg.DrainTimeout, func() { abort(errShutdown) })
	defer late.Stop()
	sessions.Wait()
	w.persons.Wait()
	rest.Wait()
	w.boxes.close()
	return refused
}

// open opens what is on disk, and returns how to close it.
func (w *Worker) open() (closeAll func(), err error) {
	data, err := openDataDir(w.cfg.DataDir, w.cfg.WorkDir, w.step)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	closeAll = data.close
	record := w.cfg.Audit
	if record == nil {
		own, err := audit.Open(data.audit(), audit.Options{Logger: w.log, Input: w.cfg.AuditInput})
		if err != nil {
			data.close()
			return nil, err
		}
		record = own
		closeAll = func() { _ = own.Close(); data.close() }
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data, w.audit = data, record
	w.space = &space{data: w.cfg.DataDir, folders: w.cfg.WorkDir, reserve: w.cfg.DiskReserve, folderMax: w.cfg.FolderMax, look: lookEvery}
	w.boxes = newBoxes(w, newStarter(w.cfg, w.record))
	return closeAll, nil
}

// record writes an audit record of this worker's.
func (w *Worker) record(r audit.Record) error {
	r.Actor, r.Environment = w.cfg.WorkerID, w.cfg.EnvironmentID
	if err := w.step(r.Action); err != nil {
		return err
	}
	if r.Action == audit.EgressEnd {
		return w.audit.Note(r) // nothing depends on it, and there may be many
	}
	return w.audit.Append(r)
}

// note writes an audit record of something that happened already, so that there is
// nothing to refuse if it cannot be written.
func (w *Worker) note(r audit.Record, log *slog.Logger) {
	if err := w.record(r); err != nil {
		log.Error("audit record not written", "action", r.Action, "error", err)
	}
}

// noteStart puts on record that this worker starts, and with what.
func (w *Worker) noteStart() error {
	err := w.record(audit.Record{Action: audit.WorkerStart, Attrs: map[string]string{
		"config": w.cfg.Fingerprint, "plane": w.cfg.BaseURL, "backend": w.cfg.Driver.Name(),
	}, Detail: strings.Join(w.cfg.Notes, "; ")})
	if err != nil {
		return err
	}
	w.keys.told(func() { w.note(audit.Record{Action: audit.KeyRead}, w.log) })
	return nil
}

// Ready returns nil while the worker can take work, and otherwise why it cannot.
// It is for readiness probes: a worker that is not ready still carries on and
// may become ready again.
func (w *Worker) Ready() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.ready, w.unfit, w.cramped); err != nil {
		return err
	}
	return w.audit.Err()
}

func (w *Worker) setReady(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = err
}

func (w *Worker) setUnfit(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unfit = err
}

func (w *Worker) setCramped(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cramped = err
}

// enter waits for the turn to serve a session and returns what gives it back, or
// nil if one of the contexts ended first.
func (w *Worker) enter(ctx, soft context.Context, session string) (leave func()) {
	w.mu.Lock()
	t := w.turns[session]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		w.turns[session] = t
	}
	t.users++
	w.mu.Unlock()
	done := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(w.turns, session)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; done() }
	case <-ctx.Done():
	case <-soft.Done():
	}
	done()
	return nil
}

// hold notes that an item is in hand, and reports false if it already was.
func (w *Worker) hold(item string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[item] {
		return false
	}
	w.held[item] = true
	return true
}

func (w *Worker) letGo(item string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, item)
}
