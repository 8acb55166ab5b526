package worker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

// ShellRules say whether people may open shells in the boxes of sessions.
type ShellRules struct {
	Allow bool
	Max   int           // shells open at a time; default 4
	For   time.Duration // the longest a shell may be open; default 1 h
	Idle  time.Duration // a shell in which nothing is typed for this long is ended; default 15 min

	// Transcript keeps what passes in a file in DataDir/shells as well (asciicast), to
	// which the audit record has the hash. What is typed into it may be secret.
	Transcript bool
}

func (r ShellRules) withDefaults() ShellRules {
	if r.Max == 0 {
		r.Max = 4
	}
	if r.For == 0 {
		r.For = time.Hour
	}
	if r.Idle == 0 {
		r.Idle = 15 * time.Minute
	}
	return r
}

// A ShellRequest is a person's wish for a shell.
type ShellRequest struct {
	Person   string // who, as somebody who knows has found out; for the record
	Terminal tool.Terminal

	// In is what is typed, Out what the terminal shows. A read of In may still be under
	// way when Shell returns: the caller sees to its end.
	In  io.Reader
	Out io.Writer

	Resize <-chan tool.Terminal // new sizes; may be nil
}

// Errors of [Worker.Shell].
var (
	ErrShellNotAllowed = errors.New("the operator of this worker does not allow shells (shell.allow)")
	ErrShellsMax       = errors.New("as many shells are open as the operator of this worker allows (shell.max)")
	ErrNoBox           = errors.New("this worker has no box of the session")
)

// Why a shell was ended, as causes of its context.
var (
	errShellLong  = errors.New("it was open for as long as the operator allows")
	errShellIdle  = errors.New("nothing was typed for as long as the operator allows")
	errShellEnded = errors.New("the operator of this worker allows no shells any more, or fewer")
)

// An openShell is one that is being opened, or open.
type openShell struct {
	began time.Time
	end   context.CancelCauseFunc

	mu         sync.Mutex
	rules      ShellRules
	typed      time.Time // when something was last
	long, idle *time.Timer
}

func newOpenShell(rules ShellRules, end context.CancelCauseFunc) *openShell {
	now := time.Now()
	return &openShell{
		began: now, end: end, rules: rules, typed: now,
		long: time.AfterFunc(rules.For, func() { end(errShellLong) }),
		idle: time.AfterFunc(rules.Idle, func() { end(errShellIdle) }),
	}
}

// limit has other rules hold for the rest of it.
func (o *openShell) limit(rules ShellRules) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rules = rules
	o.long.Reset(max(0, rules.For-time.Since(o.began)))
	o.idle.Reset(max(0, rules.Idle-time.Since(o.typed)))
}

// touch says that something was typed.
func (o *openShell) touch() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.typed = time.Now()
	o.idle.Reset(o.rules.Idle)
}

func (o *openShell) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.long.Stop()
	o.idle.Stop()
}

// applyShells has new rules hold for the shells that are open: those that they do not
// allow are ended, the youngest if there are too many.
func (w *Worker) applyShells(rules ShellRules) {
	rules = rules.withDefaults()
	w.mu.Lock()
	open := slices.SortedFunc(maps.Keys(w.shells), func(a, b *openShell) int { return a.began.Compare(b.began) })
	w.mu.Unlock()
	for i, o := range open {
		if !rules.Allow || i >= rules.Max {
			o.end(errShellEnded)
			continue
		}
		o.limit(rules)
	}
}

// Shell opens a shell in a session's box, kept ones included, and returns when it has
// ended. That it is opened is on record before it is, and that it has ended after, with
// hashes of what passed. ctx ending ends the shell.
func (w *Worker) Shell(ctx context.Context, session string, r ShellRequest) (tool.ShellExit, error) {
	none := tool.ShellExit{Code: -1}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var open *openShell
	w.mu.Lock()
	rules, boxes := w.cfg.Shell.withDefaults(), w.boxes
	refused := error(nil)
	switch {
	case !rules.Allow:
		refused = ErrShellNotAllowed
	case len(w.shells) >= rules.Max:
		refused = ErrShellsMax
	case boxes == nil:
		refused = ErrNoBox
	default:
		open = newOpenShell(rules, end)
		w.shells[open] = true
	}
	w.mu.Unlock()
	if refused != nil {
		return none, refused
	}
	defer func() {
		open.stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.shells, open)
	}()
	b := boxes.find(session)
	if b == nil {
		return none, ErrNoBox
	}
	now, done, err := b.use(ctx)
	if err != nil {
		return none, fmt.Errorf("%w: %w", ErrNoBox, errors.Join(err, context.Cause(ctx)))
	}
	defer done()
	defer now.enter()()

	t, err := newTap(w.cfg.DataDir, session, r, rules.Transcript)
	if err != nil {
		return none, fmt.Errorf("the transcript cannot be written: %w", err)
	}
	rec := audit.Record{
		Action: audit.ShellStart, Session: session, Start: time.Now(),
		Attrs: map[string]string{"person": r.Person, "box": now.id, "transcript": t.name},
	}
	if err := w.record(rec); err != nil {
		return none, errors.Join(fmt.Errorf("the audit record cannot be written, so no shell is opened: %w", err), t.close())
	}
	exit, err := runShell(ctx, now, r, open, t)
	rec.Action, rec.End, rec.Outcome = audit.ShellEnd, time.Now(), "exit "+strconv.Itoa(exit.Code)
	if err != nil {
		rec.Outcome, rec.Detail = "ended", err.Error()
	}
	closed := t.close()
	for name, value := range t.sums() {
		rec.Attrs[name] = value
	}
	w.note(rec, w.log)
	return exit, errors.Join(err, closed)
}

// shellLastWords is how long a terminal may still take in what a shell showed before it
// was ended.
const shellLastWords = 2 * time.Second

// runShell carries what passes between a person and a shell until one of them ends it.
func runShell(ctx context.Context, now *running, r ShellRequest, open *openShell, t *tap) (tool.ShellExit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, err := now.client.Shell(ctx, r.Terminal)
	if err != nil {
		return tool.ShellExit{Code: -1}, err
	}
	defer s.Close()
	// A read or a write that waits is ended by hanging up.
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()

	var over atomic.Bool // no more is typed
	go func() {
		buf := make([]byte, tool.ShellChunk)
		for {
			n, err := r.In.Read(buf)
			if over.Load() {
				return
			}
			if n > 0 {
				open.touch()
				if err := t.typed(buf[:n]); err != nil {
					cancel(err)
					return
				}
				if _, err := s.Write(buf[:n]); err != nil {
					return // it has ended, which the other direction tells
				}
			}
			if err != nil {
				cancel(nil) // the person hung up
				return
			}
		}
	}()
	defer over.Store(true)
	if r.Resize != nil {
		go func() {
			for {
				select {
				case size := <-r.Resize:
					_ = s.Resize(ctx, size.Rows, size.Cols) // of a shell that has ended, if it fails
				case <-ctx.Done():
					return
				}
			}
		}()
	}

	type end struct {
		exit tool.ShellExit
		err  error
	}
	shown := make(chan end, 1)
	go func() {
		exit, err := show(ctx, s, r.Out, t)
		shown <- end{exit, err}
	}()
	select {
	case e := <-shown:
		return e.exit, e.err
	case <-ctx.Done():
	}
	// A terminal that takes nothing in does not keep the shell open: what waits for it
	// ends with its connection.
	late := time.NewTimer(shellLastWords)
	defer late.Stop()
	select {
	case e := <-shown:
		return e.exit, e.err
	case <-late.C:
		return tool.ShellExit{Code: -1}, context.Cause(ctx)
	}
}

// show passes on what a shell shows until it has ended.
func show(ctx context.Context, s *tool.Shell, to io.Writer, t *tap) (tool.ShellExit, error) {
	none := tool.ShellExit{Code: -1}
	buf := make([]byte, tool.ShellChunk)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if err := t.shown(buf[:n]); err != nil {
				return none, err
			}
			if _, err := to.Write(buf[:n]); err != nil && ctx.Err() != nil {
				return none, context.Cause(ctx)
			} else if err != nil {
				return none, fmt.Errorf("write to the person's terminal: %w", err)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			exit, err := s.Wait(ctx)
			if err == nil && exit.Error != "" {
				err = errors.New(exit.Error)
			}
			return exit, err
		case ctx.Err() != nil:
			return none, context.Cause(ctx)
		default:
			return none, err
		}
	}
}

// A tap hashes what passes through a shell, and writes it down if it is to.
type tap struct {
	name string // of the transcript in DataDir; empty if there is none

	mu      sync.Mutex
	file    *os.File
	written int64
	whole   hash.Hash // of the transcript
	began   time.Time
	closed  bool
	in, out counted
}

type counted struct {
	hash  hash.Hash
	bytes int64
}

func (c *counted) add(p []byte) {
	c.hash.Write(p)
	c.bytes += int64(len(p))
}

const (
	transcriptMax  = 64 << 20 // bytes; a shell that fills it is ended
	transcriptsDir = "shells"
)

var errTapClosed = errors.New("the shell has ended")

func newTap(dir, session string, r ShellRequest, keep bool) (*tap, error) {
	t := &tap{began: time.Now(), whole: sha256.New(), in: counted{hash: sha256.New()}, out: counted{hash: sha256.New()}}
	if !keep {
		return t, nil
	}
	t.name = filepath.Join(transcriptsDir, fmt.Sprintf("%s-%s-%s.cast", t.began.UTC().Format("20060102T150405Z"), fileName(session), strings.ToLower(rand.Text()[:8])))
	if err := os.MkdirAll(filepath.Join(dir, transcriptsDir), 0o700); err != nil {
		return nil, err
	}
	var err error
	if t.file, err = os.OpenFile(filepath.Join(dir, t.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	return t, t.line(map[string]any{
		"version": 2, "width": r.Terminal.Cols, "height": r.Terminal.Rows, "timestamp": t.began.Unix(), "title": session + " by " + r.Person,
	})
}

func (t *tap) typed(p []byte) error { return t.pass(&t.in, "i", p) }
func (t *tap) shown(p []byte) error { return t.pass(&t.out, "o", p) }

func (t *tap) pass(c *counted, kind string, p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errTapClosed
	}
	c.add(p)
	if t.file == nil {
		return nil
	}
	return t.line([]any{time.Since(t.began).Seconds(), kind, string(p)})
}

// line writes a line of the transcript. Once that is under way, the caller holds mu.
func (t *tap) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if t.written += int64(len(b)); t.written > transcriptMax {
		return fmt.Errorf("the transcript is longer than %d MiB", transcriptMax>>20)
	}
	t.whole.Write(b)
	if _, err := t.file.Write(b); err != nil {
		return fmt.Errorf("the transcript cannot be written: %w", err)
	}
	return nil
}

func (t *tap) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.file == nil {
		return nil
	}
	return errors.Join(t.file.Sync(), t.file.Close())
}

// sums are what the audit record keeps of it.
func (t *tap) sums() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	sums := map[string]string{
		"typed_bytes": strconv.FormatInt(t.in.bytes, 10), "typed_sha256": hex.EncodeToString(t.in.hash.Sum(nil)),
		"shown_bytes": strconv.FormatInt(t.out.bytes, 10), "shown_sha256": hex.EncodeToString(t.out.hash.Sum(nil)),
	}
	if t.file != nil {
		sums["transcript_sha256"] = hex.EncodeToString(t.whole.Sum(nil))
	}
	return sums
}
