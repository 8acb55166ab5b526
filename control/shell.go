package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// A shell is a person's terminal in the box of a session, by way of the plane: workers
// only dial out. Somebody asks for one ([Control.OpenShell]); the worker that has the
// session's item learns of it, as it asks for shells all the time if its operator
// wants that ([Control.NextShell]), and dials in ([Control.AttachShell]); from then on
// frames are passed between the two ([Shell.Relay]).
//
// The session itself knows nothing of it: no event is written, and a worker that does
// not ask for shells, as the official ones, never sees one. Shells live in this process
// alone: with several replicas, the person and the worker have to reach the same one.

// A ShellConn is one end of a shell. Receive is called by one goroutine at a time, Send
// by any number. Both fail once the other side has left or the context has ended.
type ShellConn interface {
	Receive(context.Context) (api.ShellFrame, error)
	Send(context.Context, api.ShellFrame) error
}

// A Shell is one that a person has opened, owned by the goroutine that did.
type Shell struct {
	c    *Control
	info api.Shell
	keys []api.KeyID

	attached chan ShellConn // the worker's end
	done     chan struct{}  // closed when the shell has ended

	offered time.Time   // guarded by shells.mu: when it was last handed to a worker
	taken   bool        // guarded by shells.mu: a worker has dialled in
	serving []api.KeyID // guarded by shells.mu: the worker's key
}

// shells are those that are open or waited for.
type shells struct {
	mu    sync.Mutex
	open  map[api.ShellID]*Shell
	asked map[api.SessionID]time.Time // when the session's worker last asked for shells
}

func newShells() *shells {
	return &shells{open: map[api.ShellID]*Shell{}, asked: map[api.SessionID]time.Time{}}
}

const (
	shellsPerSession = 4

	shellOfferFor  = 10 * time.Second // how long a worker that was told of a shell has to dial in
	shellAskedKept = 2 * time.Minute
)

// OpenShell asks for a shell into a session's box and waits until its worker has dialled
// in. What it returns must be relayed or closed.
func (c *Control) OpenShell(ctx context.Context, p Principal, id api.SessionID, size api.ShellSize) (*Shell, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if !p.Shell {
		return nil, api.Forbidden("this key may not open shells; make one that may with `bailey keys create --name NAME --shell`")
	}
	if err := size.Check(); err != nil {
		return nil, err
	}
	if c.cfg.ShellsMax < 0 {
		return nil, api.Forbidden("this server allows no shells; its operator can, with max-shells")
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.LockSession, p, id)
		if err != nil {
			return err
		}
		if s.Status == api.StatusTerminated {
			return api.Invalid("session %s is terminated and has no box any more", id)
		}
		return c.enqueue(tx, s, 0) // for a worker that has left the session alone
	})
	if err != nil {
		return nil, err
	}
	sh := &Shell{
		c: c, keys: p.keys(), attached: make(chan ShellConn), done: make(chan struct{}),
		info: api.Shell{
			ID: newID[api.ShellID](c, api.PrefixShell), Type: "shell", SessionID: id, OpenedBy: p.KeyID,
			CreatedAt: c.cfg.Clock().UTC(), ShellSize: size,
		},
	}
	if err := c.shells.add(sh, c.cfg.ShellsMax); err != nil {
		return nil, err
	}
	c.hub.publish(topicShell(id))
	return sh, nil
}

// add registers a shell.
func (s *shells) add(sh *Shell, most int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, other := range s.open {
		if other.info.SessionID == sh.info.SessionID {
			same++
		}
	}
	if same >= shellsPerSession || len(s.open) >= most {
		e := api.Overloaded(0, "%d shells are open on this server, %d of them in this session; the limits are %d and %d", len(s.open), same, most, shellsPerSession)
		e.Status, e.Type = http.StatusTooManyRequests, api.TypeRateLimit
		return e
	}
	s.open[sh.info.ID] = sh
	return nil
}

// Info is what the shell is.
func (sh *Shell) Info() api.Shell { return sh.info }

// Close ends the shell. The worker's end, if there is one, is told by its own
// connection. It may be called once.
func (sh *Shell) Close() {
	sh.c.shells.mu.Lock()
	delete(sh.c.shells.open, sh.info.ID)
	sh.c.shells.mu.Unlock()
	close(sh.done)
}

// Wait waits for the worker's end.
func (sh *Shell) Wait(ctx context.Context) (ShellConn, error) {
	late := time.NewTimer(sh.c.cfg.ShellWait)
	defer late.Stop()
	select {
	case conn := <-sh.attached:
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, sh.c.noShell(ctx, sh.info.SessionID)
	}
}

// noShell says why no worker has taken a shell up.
func (c *Control) noShell(ctx context.Context, id api.SessionID) error {
	var state api.WorkState
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(id)
		if err != nil {
			return found(err, "session", string(id))
		}
		w, err := tx.LiveWork(s.ID)
		if err == nil {
			state = w.State
		} else if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	c.shells.mu.Lock()
	asked, ever := c.shells.asked[id]
	c.shells.mu.Unlock()
	waited := c.cfg.ShellWait
	switch {
	case state != api.WorkActive && state != api.WorkStopping:
		return api.Conflict("no worker has taken session %s up within %s; is one running for its environment?", id, waited)
	case !ever || c.cfg.Clock().Sub(asked) > shellAskedKept:
		return api.Conflict("the worker that has session %s serves no shells, or asks another replica of this server for them: allow them in its worker.yaml, and let both reach the same replica", id)
	}
	return api.Conflict("the worker that has session %s did not open a shell within %s; its log says why", id, waited)
}

// NextShell hands a worker the next shell that somebody wants into the session of its
// work item, waiting up to block for one. Nil means there is none.
func (c *Control) NextShell(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, block time.Duration) (*api.Shell, error) {
	session, err := c.servedBy(ctx, p, env, id)
	if err != nil {
		return nil, err
	}
	wanted := newSignal()
	defer c.hub.subscribe(topicShell(session), wanted)()
	timeout := time.NewTimer(block)
	defer timeout.Stop()
	for {
		if info := c.shells.next(session, c.cfg.Clock()); info != nil || block == 0 {
			return info, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wanted.C:
			if c.hub.isClosed() {
				return nil, api.Overloaded(time.Second, "the server is stopping; connect again")
			}
		case <-timeout.C:
			block = 0
		}
	}
}

// servedBy finds the session of a work item that its worker holds.
func (c *Control) servedBy(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID) (session api.SessionID, err error) {
	if p.Kind == api.KeyAPI {
		return "", api.Forbidden("shells are served by workers, with an environment key or a session token")
	}
	if err := p.works(env); err != nil {
		return "", err
	}
	if p.Kind == api.KeySession && p.WorkID != id {
		return "", api.NotFound("work item %s was not found", id)
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		w, err := tx.Work(env, id)
		if err != nil {
			return found(err, "work item", string(id))
		}
		if w.State == api.WorkQueued || w.State == api.WorkStopped {
			return api.Conflict("work item %s is %s: no worker has it", id, w.State)
		}
		session = w.Data.ID
		return nil
	})
	return session, err
}

// next finds a shell that no worker has been told of lately.
func (s *shells) next(session api.SessionID, now time.Time) *api.Shell {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.asked {
		if now.Sub(at) > shellAskedKept {
			delete(s.asked, id)
		}
	}
	s.asked[session] = now
	for _, sh := range s.open {
		if sh.info.SessionID == session && !sh.taken && now.Sub(sh.offered) > shellOfferFor {
			sh.offered = now
			info := sh.info
			return &info
		}
	}
	return nil
}

// AttachShell gives the worker's end to the shell that it dialled in for. What it returns
// must be served.
func (c *Control) AttachShell(ctx context.Context, p Principal, env api.EnvironmentID, id api.WorkID, shell api.ShellID) (*ShellEnd, error) {
	session, err := c.servedBy(ctx, p, env, id)
	if err != nil {
		return nil, err
	}
	c.shells.mu.Lock()
	defer c.shells.mu.Unlock()
	sh := c.shells.open[shell]
	if sh == nil || sh.info.SessionID != session || sh.taken {
		return nil, api.NotFound("shell %s was not found", shell)
	}
	key := p.KeyID
	if p.Kind == api.KeySession {
		key = p.Parent // the token ends with its item, and the shell does not
	}
	sh.taken, sh.serving = true, []api.KeyID{key}
	return &ShellEnd{sh}, nil
}

// A ShellEnd is the worker's end of a shell, to be served or given up.
type ShellEnd struct{ sh *Shell }

// Serve lends the worker's connection to the shell until that has ended.
func (e *ShellEnd) Serve(ctx context.Context, conn ShellConn) {
	select {
	case e.sh.attached <- conn:
		<-e.sh.done
	case <-e.sh.done:
	case <-ctx.Done():
		e.GiveUp()
	}
}

// GiveUp has the shell offered again: the worker's connection came to nothing.
func (e *ShellEnd) GiveUp() {
	c := e.sh.c
	c.shells.mu.Lock()
	e.sh.taken, e.sh.serving, e.sh.offered = false, nil, time.Time{}
	c.shells.mu.Unlock()
	c.hub.publish(topicShell(e.sh.info.SessionID))
}

// The ways in which a shell ends, besides by itself.
const (
	shellLeft    = "closed" // by the person
	shellIdle    = "nothing was typed for %s"
	shellFor     = "it was open for %s, the longest there is"
	shellRevoked = "the key it was opened with is good no more"
	shellBarred  = "the worker's key is good no more"
	shellLost    = "the worker has left"
	shellStopped = "the server is stopping"
)

// Relay passes frames between the person's end and the worker's until the shell ends,
// and returns the note that says how. The person's end has then been sent it, if it was
// still there.
func (sh *Shell) Relay(ctx context.Context, person, worker ShellConn) api.ShellNote {
	ctx, cancel := context.WithCancel(ctx)
	typed := make(chan struct{}, 1)
	exit := make(chan api.ShellNote, 2) // one of each direction
	up := make(chan struct{})
	go func() { // person to worker
		defer close(up)
		for {
			f, err := person.Receive(ctx)
			if err != nil {
				exit <- ended(shellLeft)
				return
			}
			switch {
			case f.Note == nil && len(f.Data) == 0:
				continue // nothing is typed
			case f.Note == nil:
				select {
				case typed <- struct{}{}:
				default:
				}
			case f.Note.Type != api.ShellResize || f.Note.Size == nil || f.Note.Size.Check() != nil:
				continue // not for a person to say
			}
			if worker.Send(ctx, f) != nil {
				exit <- ended(shellLost)
				return
			}
		}
	}()
	down := make(chan struct{})
	go func() { // worker to person
		defer close(down)
		for {
			f, err := worker.Receive(ctx)
			switch {
			case err != nil:
				exit <- ended(shellLost)
				return
			case f.Note != nil && f.Note.Type == api.ShellExit:
				end := *f.Note
				end.Size = nil
				if len(end.Reason) > shellReasonMax {
					end.Reason = strings.ToValidUTF8(end.Reason[:shellReasonMax], "")
				}
				exit <- end
				return
			case f.Note != nil:
				continue
			}
			if person.Send(ctx, f) != nil {
				exit <- ended(shellLeft)
				return
			}
		}
	}()

	end := sh.watch(ctx, typed, exit)
	// The last word goes out before the ends are let go of.
	if end.Reason != shellLeft {
		last, done := context.WithTimeout(context.WithoutCancel(ctx), shellLastWord)
		_ = person.Send(last, api.ShellFrame{Note: &end}) // a person that left needs none
		done()
	}
	cancel()
	<-up
	<-down
	return end
}

// shellReasonMax bounds what a worker says of a shell's end, in bytes.
const shellReasonMax = 500

// shellLastWord bounds the sending of how a shell ended.
const shellLastWord = 5 * time.Second

func ended(format string, args ...any) api.ShellNote {
	return api.ShellNote{Type: api.ShellExit, Code: api.ShellCodeNone, Reason: fmt.Sprintf(format, args...)}
}

// watch waits for the first thing that ends a shell.
func (sh *Shell) watch(ctx context.Context, typed <-chan struct{}, exit <-chan api.ShellNote) api.ShellNote {
	sh.c.shells.mu.Lock()
	serving := sh.serving
	sh.c.shells.mu.Unlock()
	revoked := newSignal()
	for _, key := range slices.Concat(sh.keys, serving) {
		defer sh.c.hub.subscribe(topicKey(key), revoked)()
	}
	cfg := &sh.c.cfg
	idle, late := time.NewTimer(cfg.ShellIdle), time.NewTimer(cfg.ShellFor)
	defer idle.Stop()
	defer late.Stop()
	check := time.NewTicker(followPoll)
	defer check.Stop()
	for {
		select {
		case end := <-exit:
			return end
		case <-ctx.Done():
			return ended(shellStopped)
		case <-idle.C:
			return ended(shellIdle, cfg.ShellIdle)
		case <-late.C:
			return ended(shellFor, cfg.ShellFor)
		case <-typed:
			idle.Reset(cfg.ShellIdle)
			continue
		case <-revoked.C:
		case <-check.C:
		}
		if !sh.c.good(ctx, sh.keys) {
			return ended(shellRevoked)
		}
		if !sh.c.good(ctx, serving) {
			return ended(shellBarred)
		}
	}
}

// good reports whether keys are still good. A database that is away for a moment does not
// end a shell.
func (c *Control) good(ctx context.Context, keys []api.KeyID) bool {
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		for _, key := range keys {
			if err := validKey(tx, key); err != nil {
				return err
			}
		}
		return nil
	})
	return api.AsError(err) == nil
}
