package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A shellFixture is a session whose work item a worker holds.
type shellFixture struct {
	*sessionFixture
	env  api.EnvironmentID
	work api.WorkID

	person, worker *client.Client
	workerKey      string
}

func newShell(t *testing.T) *shellFixture {
	t.Helper()
	f := &shellFixture{sessionFixture: newSession(t, Config{})}
	ctx := t.Context()
	admin, err := f.control.Authenticate(ctx, f.key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.control.GetSession(ctx, admin, f.session)
	if err != nil {
		t.Fatal(err)
	}
	f.env = s.EnvironmentID
	key, err := f.control.CreateKey(ctx, admin, f.env, api.KeyCreate{Name: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	who, err := f.control.Authenticate(ctx, key.Secret)
	if err != nil {
		t.Fatal(err)
	}
	item, err := f.control.PollWork(ctx, who, f.env, api.PollRequest{})
	if err == nil {
		f.work = item.ID
		_, err = f.control.AckWork(ctx, who, f.env, item.ID)
	}
	if err == nil {
		_, err = f.control.HeartbeatWork(ctx, who, f.env, item.ID, api.HeartbeatRequest{Expected: api.HeartbeatNone})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.person, f.worker, f.workerKey = f.client(t, f.key), f.client(t, key.Secret), key.Secret
	return f
}

func (f *fixture) client(t *testing.T, key string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: f.url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve takes the next shell up and lets do play the box.
func (f *shellFixture) serve(t *testing.T, do func(context.Context, *api.Shell, *client.ShellConn)) (served chan struct{}) {
	served = make(chan struct{})
	ctx := t.Context()
	go func() {
		defer close(served)
		sh, err := f.worker.NextShell(ctx, f.env, f.work, api.ShellPollMax)
		if err != nil || sh == nil {
			t.Errorf("the worker was told of %+v, %v", sh, err)
			return
		}
		conn, err := f.worker.AttachShell(ctx, f.env, f.work, sh.ID)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		do(ctx, sh, conn)
	}()
	return served
}

var size = api.ShellSize{Columns: 80, Rows: 24}

func TestAShellPassesBytesBothWaysUntilItExits(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	served := f.serve(t, func(ctx context.Context, sh *api.Shell, box *client.ShellConn) {
		if sh.SessionID != f.session || sh.ShellSize != size || sh.OpenedBy == "" {
			t.Errorf("the worker was told %+v", sh)
		}
		for {
			in, err := box.Receive(ctx)
			switch {
			case err != nil:
				t.Errorf("the box's end: %v", err)
				return
			case in.Note != nil:
				out := fmt.Sprintf("%s %dx%d", in.Note.Type, in.Note.Size.Columns, in.Note.Size.Rows)
				_ = box.Send(ctx, api.ShellFrame{Data: []byte(out)})
			case string(in.Data) == "exit":
				_ = box.Send(ctx, api.ShellFrame{Note: &api.ShellNote{Type: api.ShellExit, Code: 7}})
				return
			default:
				_ = box.Send(ctx, in)
			}
		}
	})
	ctx := t.Context()
	term, err := f.person.OpenShell(ctx, f.session, size)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	big := strings.Repeat("x", api.ShellDataMax)
	for _, step := range []struct {
		send api.ShellFrame
		want string
	}{
		{api.ShellFrame{Data: []byte("ls\x03\x00\xff")}, "ls\x03\x00\xff"},
		{api.ShellFrame{Data: []byte(big)}, big},
		{api.ShellFrame{Note: &api.ShellNote{Type: api.ShellResize, Size: &api.ShellSize{Columns: 100, Rows: 30}}}, "resize 100x30"},
	} {
		if err := term.Send(ctx, step.send); err != nil {
			t.Fatal(err)
		}
		if got, err := term.Receive(ctx); err != nil || string(got.Data) != step.want {
			t.Fatalf("got %d bytes, %v, want %d", len(got.Data), err, len(step.want))
		}
	}
	// What a person's end must not say is not passed on.
	for _, note := range []api.ShellNote{{Type: api.ShellExit}, {Type: api.ShellResize}, {Type: api.ShellResize, Size: &api.ShellSize{Columns: 1e6, Rows: 1}}} {
		if err := term.Send(ctx, api.ShellFrame{Note: &note}); err != nil {
			t.Fatal(err)
		}
	}
	if err := term.Send(ctx, api.ShellFrame{Data: []byte("exit")}); err != nil {
		t.Fatal(err)
	}
	end, err := term.Receive(ctx)
	if err != nil || end.Note == nil || end.Note.Type != api.ShellExit || end.Note.Code != 7 {
		t.Fatalf("the end is %+v, %v", end.Note, err)
	}
	if _, err := term.Receive(ctx); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	<-served
}

func TestAShellEndsWhenEitherEndLeaves(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	served := f.serve(t, func(context.Context, *api.Shell, *client.ShellConn) {}) // leaves at once
	term, err := f.person.OpenShell(ctx, f.session, size)
	if err != nil {
		t.Fatal(err)
	}
	if end, err := term.Receive(ctx); err != nil || end.Note == nil || end.Note.Code != api.ShellCodeNone || end.Note.Reason != "the worker has left" {
		t.Errorf("the end is %+v, %v", end.Note, err)
	}
	term.Close()
	<-served

	served = f.serve(t, func(ctx context.Context, _ *api.Shell, box *client.ShellConn) {
		if _, err := box.Receive(ctx); !errors.Is(err, io.EOF) {
			t.Errorf("when the person has left: %v", err)
		}
	})
	if term, err = f.person.OpenShell(ctx, f.session, size); err != nil {
		t.Fatal(err)
	}
	term.Close()
	<-served
}

func TestAShellEndsWithItsKey(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	key, err := f.person.CreateKey(ctx, "", api.KeyCreate{Name: "for shells", Shell: true})
	if err != nil {
		t.Fatal(err)
	}
	served := f.serve(t, func(ctx context.Context, _ *api.Shell, box *client.ShellConn) { _, _ = box.Receive(ctx) })
	term, err := f.client(t, key.Secret).OpenShell(ctx, f.session, size)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if _, err := f.person.RevokeKey(ctx, "", key.ID); err != nil {
		t.Fatal(err)
	}
	if end, err := term.Receive(ctx); err != nil || end.Note == nil || !strings.Contains(end.Note.Reason, "key") {
		t.Errorf("the end is %+v, %v", end.Note, err)
	}
	<-served
}

// TestAShellEndsWithTheWorkersKey: what a person types goes to no worker that is barred.
func TestAShellEndsWithTheWorkersKey(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	served := f.serve(t, func(ctx context.Context, _ *api.Shell, box *client.ShellConn) { _, _ = box.Receive(ctx) })
	term, err := f.person.OpenShell(ctx, f.session, size)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	admin, err := f.control.Authenticate(ctx, f.key)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := f.control.ListKeys(ctx, admin, f.env, api.PageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys.Data {
		if _, err := f.person.RevokeKey(ctx, f.env, key.ID); err != nil {
			t.Fatal(err)
		}
	}
	if end, err := term.Receive(ctx); err != nil || end.Note == nil || end.Note.Reason != "the worker's key is good no more" {
		t.Errorf("the end is %+v, %v", end.Note, err)
	}
	<-served
}

// TestAWorkerThatFailsToDialInIsNoEnd: the shell is offered to it again.
func TestAWorkerThatFailsToDialInIsNoEnd(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	opened := make(chan error, 1)
	go func() {
		term, err := f.person.OpenShell(ctx, f.session, size)
		if err == nil {
			term.Close()
		}
		opened <- err
	}()
	sh, err := f.worker.NextShell(ctx, f.env, f.work, api.ShellPollMax)
	if err != nil || sh == nil {
		t.Fatalf("the worker was told of %+v, %v", sh, err)
	}
	// It says that it speaks the protocol, and then not even that of WebSockets.
	r := f.request(t, "GET", fmt.Sprintf("/v1/environments/%s/work/%s/shells/%s/attach", f.env, f.work, sh.ID), "")
	r.Header.Set("Authorization", "Bearer "+f.workerKey)
	r.Header.Del("X-Api-Key")
	r.Header.Set("Sec-WebSocket-Protocol", api.ShellProtocol)
	if res, body := f.answer(t, r); res.StatusCode < 400 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	again, err := f.worker.NextShell(ctx, f.env, f.work, api.ShellPollMax)
	if err != nil || again == nil || again.ID != sh.ID {
		t.Fatalf("the worker was told of %+v, %v", again, err)
	}
	conn, err := f.worker.AttachShell(ctx, f.env, f.work, sh.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestAShellEndsWithTheServer(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	served := f.serve(t, func(ctx context.Context, _ *api.Shell, box *client.ShellConn) { _, _ = box.Receive(ctx) })
	term, err := f.person.OpenShell(ctx, f.session, size)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	go f.server.EndStreams()
	if _, err := term.Receive(ctx); err != nil {
		t.Logf("the end: %v", err) // the note, if it was in time
	}
	<-served
	f.server.Wait()
}

func TestWhoMayOpenAShell(t *testing.T) {
	t.Parallel()
	f := newShell(t)
	ctx := t.Context()
	plain, err := f.person.CreateKey(ctx, "", api.KeyCreate{Name: "without"})
	if err != nil {
		t.Fatal(err)
	}
	without := f.client(t, plain.Secret)
	status := func(err error) int {
		if e := api.AsError(err); e != nil {
			return e.Status
		}
		return 0
	}
	if _, err := without.OpenShell(ctx, f.session, size); status(err) != http.StatusForbidden || !strings.Contains(err.Error(), "keys create --name NAME --shell") {
		t.Errorf("a key without the right: %v", err)
	}
	if _, err := without.CreateKey(ctx, "", api.KeyCreate{Name: "more", Shell: true}); status(err) != http.StatusForbidden {
		t.Errorf("a key without the right gave it away: %v", err)
	}
	if _, err := f.person.CreateKey(ctx, f.env, api.KeyCreate{Name: "more", Shell: true}); status(err) != http.StatusBadRequest {
		t.Errorf("an environment key with the right: %v", err)
	}
	if _, err := f.worker.OpenShell(ctx, f.session, size); status(err) != http.StatusForbidden {
		t.Errorf("a worker: %v", err)
	}
	if _, err := f.person.OpenShell(ctx, "sesn_none", size); status(err) != http.StatusNotFound {
		t.Errorf("no such session: %v", err)
	}
	if _, err := f.person.OpenShell(ctx, f.session, api.ShellSize{Columns: 1e6, Rows: 1}); status(err) != http.StatusBadRequest {
		t.Errorf("no such terminal: %v", err)
	}
	if _, err := f.person.NextShell(ctx, f.env, f.work, time.Millisecond); status(err) != http.StatusForbidden {
		t.Errorf("an API key serves shells: %v", err)
	}
	if _, err := f.worker.AttachShell(ctx, f.env, f.work, "shell_none"); status(err) != http.StatusNotFound {
		t.Errorf("no such shell: %v", err)
	}
	if sh, err := f.worker.NextShell(ctx, f.env, f.work, time.Millisecond); err != nil || sh != nil {
		t.Errorf("a shell that nobody wants: %+v, %v", sh, err)
	}
	res, body := f.answer(t, f.request(t, "GET", "/v1/sessions/"+string(f.session)+"/shell?columns=80&rows=24", ""))
	if res.StatusCode != http.StatusUpgradeRequired || !strings.Contains(body, api.ShellProtocol) {
		t.Errorf("not a WebSocket: %d %s", res.StatusCode, body)
	}
}
