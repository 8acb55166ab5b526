package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tool"
)

// A line is how a person's shell comes to this worker, which only dials out: while a
// session is served, and if the operator allows shells, the plane is asked for people who
// want one, and dialled for each. A plane that has no shells answers 404 and is not asked
// again for that session.

const (
	linePoll    = 25 * time.Second // that the plane may hold one question
	lineTimeout = 40 * time.Second // for an answer to it
	lineSend    = time.Minute      // for the plane to take in what a terminal shows
	lineLook    = 15 * time.Second // how often to see whether shells are allowed by now
)

// lines asks for shells into the session of a work item until ctx ends. Shells that were
// opened go on; they end with soft.
func (w *Worker) lines(ctx, soft context.Context, work, session string, cred credential, log *slog.Logger) {
	retry := backoff{min: time.Second, max: time.Minute}
	for ctx.Err() == nil {
		if !w.shellsAllowed() {
			sleep(ctx, lineLook)
			continue
		}
		bearer, sh, err := w.nextShell(ctx, work, cred)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			retry.reset()
		case statusOfShell(err) == http.StatusNotFound:
			log.Debug("the plane has no shells")
			return
		case statusOfShell(err) == http.StatusUnauthorized && cred.refused(bearer):
			continue
		default:
			log.Debug("asking for shells failed; trying again", "error", err)
			sleep(ctx, retry.next())
		}
		if sh != nil {
			w.persons.Go(func() { w.answer(soft, work, session, bearer, sh, log.With("shell_id", sh.ID)) })
		}
	}
}

func (w *Worker) shellsAllowed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cfg.Shell.Allow
}

func (w *Worker) nextShell(ctx context.Context, work string, cred credential) (bearer string, sh *api.Shell, err error) {
	if bearer, err = cred.bearer(); err != nil {
		return "", nil, err
	}
	c, err := w.lineClient(bearer)
	if err != nil {
		return bearer, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lineTimeout)
	defer cancel()
	sh, err = c.NextShell(ctx, api.EnvironmentID(w.cfg.EnvironmentID), api.WorkID(work), linePoll)
	return bearer, sh, err
}

func (w *Worker) lineClient(bearer string) (*client.Client, error) {
	return client.New(client.Config{BaseURL: w.cfg.BaseURL, Key: bearer, HTTPClient: w.cfg.HTTPClient, UserAgent: "bailey-worker"})
}

// statusOfShell is the HTTP status of an answer, or 0.
func statusOfShell(err error) int {
	if e := api.AsError(err); e != nil {
		return e.Status
	}
	return 0
}

var errPersonLeft = errors.New("the person has left")

// answer dials the plane for one person and serves the shell.
func (w *Worker) answer(ctx context.Context, work, session, bearer string, sh *api.Shell, log *slog.Logger) {
	c, err := w.lineClient(bearer)
	if err != nil {
		log.Error("shell not opened", "error", err)
		return
	}
	conn, err := c.AttachShell(ctx, api.EnvironmentID(w.cfg.EnvironmentID), api.WorkID(work), sh.ID)
	if err != nil {
		log.Warn("shell not opened: the plane could not be dialled for it", "error", err)
		return
	}
	defer conn.Close()
	log.Info("shell opened", "person", sh.OpenedBy)

	in, typed := io.Pipe()
	sizes := make(chan tool.Terminal)
	ctx, cancel := context.WithCancelCause(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel(errPersonLeft)
		typed.CloseWithError(receive(ctx, conn, typed, sizes))
	})
	exit, err := w.Shell(ctx, session, ShellRequest{
		Person: string(sh.OpenedBy), Terminal: terminal(sh.ShellSize), In: in, Out: shellOut{ctx, conn}, Resize: sizes,
	})
	note := api.ShellNote{Type: api.ShellExit, Code: exit.Code}
	if err != nil {
		note.Code, note.Reason = api.ShellCodeNone, err.Error()
	}
	log.Info("shell closed", "code", note.Code, "reason", note.Reason)
	last, done := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	_ = conn.Send(last, api.ShellFrame{Note: &note}) // a person that left needs no word
	done()
	in.Close()
	cancel(nil)
	conn.Close()
	reader.Wait()
}

func terminal(s api.ShellSize) tool.Terminal {
	return tool.Terminal{Rows: uint16(s.Rows), Cols: uint16(s.Columns), Term: "xterm-256color"}
}

// receive takes in what a person sends, until that ends.
func receive(ctx context.Context, conn *client.ShellConn, typed io.Writer, sizes chan<- tool.Terminal) error {
	for {
		f, err := conn.Receive(ctx)
		if err != nil {
			return err
		}
		if f.Note == nil {
			if _, err := typed.Write(f.Data); err != nil {
				return err
			}
			continue
		}
		if f.Note.Type == api.ShellResize && f.Note.Size != nil && f.Note.Size.Check() == nil {
			select {
			case sizes <- terminal(*f.Note.Size):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// shellOut sends what a terminal shows.
type shellOut struct {
	ctx  context.Context
	conn *client.ShellConn
}

func (o shellOut) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(n+api.ShellDataMax, len(p))]
		ctx, cancel := context.WithTimeout(o.ctx, lineSend)
		err := o.conn.Send(ctx, api.ShellFrame{Data: part})
		cancel()
		if err != nil {
			return n, fmt.Errorf("send to the plane: %w", err)
		}
		n += len(part)
	}
	return n, nil
}
