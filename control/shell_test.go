package control

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

// A pipe is an end of a shell in memory.
type pipe struct {
	in, out chan api.ShellFrame
	left    chan struct{} // closed when the other side is gone
}

func newPipe() *pipe {
	return &pipe{in: make(chan api.ShellFrame), out: make(chan api.ShellFrame, 16), left: make(chan struct{})}
}

func (p *pipe) Receive(ctx context.Context) (api.ShellFrame, error) {
	select {
	case f := <-p.in:
		return f, nil
	case <-p.left:
		return api.ShellFrame{}, io.EOF
	case <-ctx.Done():
		return api.ShellFrame{}, ctx.Err()
	}
}

func (p *pipe) Send(ctx context.Context, f api.ShellFrame) error {
	select {
	case p.out <- f:
		return nil
	case <-p.left:
		return io.EOF
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quietWorld is a world within a synctest bubble, where time passes by itself.
func quietWorld(t *testing.T, cfg Config) *world {
	w := &world{t: t, ctx: t.Context(), admin: Principal{Kind: api.KeyAPI, Shell: true}}
	c, err := New(w.ctx, storetest.SQLite(t), store.Options{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w.Control = c
	return w
}

func TestAShellThatNoWorkerTakesUpSaysWhy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := quietWorld(t, Config{})
		s, worker := w.session()
		wait := func(fragment string) {
			t.Helper()
			sh := must1[*Shell](t)(w.OpenShell(w.ctx, w.admin, s.ID, api.ShellSize{Columns: 80, Rows: 24}))
			defer sh.Close()
			_, err := sh.Wait(w.ctx)
			wantError(t, err, 409, fragment)
		}
		wait("is one running for its environment?")
		item, _ := w.take(worker)
		wait("serves no shells")
		if sh := must1[*api.Shell](t)(w.NextShell(w.ctx, worker, s.EnvironmentID, item.ID, 0)); sh != nil {
			t.Errorf("a shell that was given up is offered: %+v", sh)
		}
		wait("did not open a shell within")
	})
}

// A worker that goes idle leaves its session; asking for a shell brings one back.
func TestAskingForAShellMakesWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.admin.Shell = true
	s, worker := w.session()
	item, _ := w.take(worker)
	w.stop(worker, item.ID, true)
	if again := w.poll(worker); again != nil {
		t.Fatalf("work before anybody asked: %+v", again)
	}
	sh := must1[*Shell](t)(w.OpenShell(w.ctx, w.admin, s.ID, api.ShellSize{Columns: 80, Rows: 24}))
	defer sh.Close()
	next, _ := w.take(worker)
	info := must1[*api.Shell](t)(w.NextShell(w.ctx, worker, s.EnvironmentID, next.ID, 0))
	if info == nil || info.ID != sh.Info().ID {
		t.Fatalf("the worker is told of %+v", info)
	}
	// It is offered once, and again when nobody has dialled in for it.
	if twice := must1[*api.Shell](t)(w.NextShell(w.ctx, worker, s.EnvironmentID, next.ID, 0)); twice != nil {
		t.Error("one shell was offered twice at once")
	}
	w.pass(time.Minute)
	if later := must1[*api.Shell](t)(w.NextShell(w.ctx, worker, s.EnvironmentID, next.ID, 0)); later == nil {
		t.Error("a shell that nobody dialled in for was not offered again")
	}
	_, err := w.NextShell(w.ctx, Principal{Kind: api.KeyEnvironment, EnvironmentID: "env_other"}, s.EnvironmentID, next.ID, 0)
	wantError(t, err, 404, "")
	_, err = w.AttachShell(w.ctx, Principal{Kind: api.KeySession, EnvironmentID: s.EnvironmentID, WorkID: "work_other"}, s.EnvironmentID, next.ID, info.ID)
	wantError(t, err, 404, "")
	must1[*ShellEnd](t)(w.AttachShell(w.ctx, worker, s.EnvironmentID, next.ID, info.ID))
	_, err = w.AttachShell(w.ctx, worker, s.EnvironmentID, next.ID, info.ID)
	wantError(t, err, 404, "")
}

func TestShellsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{ShellsMax: 5})
	w.admin.Shell = true
	open := func(id api.SessionID) error {
		sh, err := w.OpenShell(w.ctx, w.admin, id, api.ShellSize{Columns: 80, Rows: 24})
		if err == nil {
			t.Cleanup(sh.Close)
		}
		return err
	}
	s, _ := w.session()
	for range shellsPerSession {
		if err := open(s.ID); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, open(s.ID), 429, "4 of them in this session")
	other, _ := w.session()
	if err := open(other.ID); err != nil {
		t.Fatal(err)
	}
	wantError(t, open(other.ID), 429, "5 shells are open")
	none := newWorld(t, Config{ShellsMax: -1})
	none.admin.Shell = true
	s, _ = none.session()
	_, err := none.OpenShell(none.ctx, none.admin, s.ID, api.ShellSize{Columns: 80, Rows: 24})
	wantError(t, err, 403, "max-shells")
}

func TestAShellEndsWhenNothingIsTypedOrItWasOpenTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := quietWorld(t, Config{ShellIdle: 10 * time.Minute, ShellFor: time.Hour})
		s, _ := w.session()
		relay := func(person, worker *pipe) (end chan api.ShellNote) {
			end = make(chan api.ShellNote)
			sh := must1[*Shell](t)(w.OpenShell(w.ctx, w.admin, s.ID, api.ShellSize{Columns: 80, Rows: 24}))
			go func() {
				defer sh.Close()
				end <- sh.Relay(w.ctx, person, worker)
			}()
			return end
		}
		began := time.Now()
		person, worker := newPipe(), newPipe()
		end := <-relay(person, worker)
		if took := time.Since(began); took != 10*time.Minute || end.Reason != "nothing was typed for 10m0s" || end.Code != api.ShellCodeNone {
			t.Errorf("after %s: %+v", took, end)
		}
		if last := <-person.out; last.Note == nil || *last.Note != end {
			t.Errorf("the person was told %+v", last)
		}

		began = time.Now()
		person, worker = newPipe(), newPipe()
		ended := relay(person, worker)
		for {
			select {
			case end = <-ended:
				if took := time.Since(began); took != time.Hour || end.Reason != "it was open for 1h0m0s, the longest there is" {
					t.Errorf("after %s: %+v", took, end)
				}
				return
			case <-time.After(7 * time.Minute):
				person.in <- api.ShellFrame{Data: []byte("x")}
				<-worker.out
				// Output is not typing.
				worker.in <- api.ShellFrame{Data: []byte("y")}
			}
		}
	})
}

// TestAnEmptyFrameIsNotTyping: and what a worker says of the end is no essay.
func TestAnEmptyFrameIsNotTyping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := quietWorld(t, Config{ShellIdle: 10 * time.Minute})
		s, _ := w.session()
		for _, long := range []bool{false, true} {
			person, worker := newPipe(), newPipe()
			end := make(chan api.ShellNote)
			sh := must1[*Shell](t)(w.OpenShell(w.ctx, w.admin, s.ID, api.ShellSize{Columns: 80, Rows: 24}))
			go func() {
				defer sh.Close()
				end <- sh.Relay(w.ctx, person, worker)
			}()
			if long {
				worker.in <- api.ShellFrame{Note: &api.ShellNote{Type: api.ShellExit, Code: 1, Reason: strings.Repeat("ä", 10_000)}}
				if got := <-end; len(got.Reason) != shellReasonMax || got.Code != 1 {
					t.Errorf("%d bytes of %+v", len(got.Reason), got)
				}
				return
			}
			time.Sleep(9 * time.Minute)
			person.in <- api.ShellFrame{}
			time.Sleep(59 * time.Second)
			began := time.Now()
			if got := <-end; got.Reason != "nothing was typed for 10m0s" || time.Since(began) > 2*time.Second || len(worker.out) > 0 {
				t.Errorf("after %s more: %+v, and %d frames went to the box", time.Since(began), got, len(worker.out))
			}
		}
	})
}
