package loop

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/store"
)

// A plane is the rules over a real SQLite file, a real model client, and the
// scripted model at the other end of in-memory connections. It works inside of a
// synctest bubble too.
type plane struct {
	t       *testing.T
	ctx     context.Context
	db      string
	store   store.Options
	cfg     control.Config
	control *control.Control
	server  *scripted.Server
	model   *model.Client
	mcp     *http.Client // reaches the far server; nil if there is none

	patience time.Duration // of until

	admin control.Principal
	env   api.EnvironmentID
	agent api.AgentID
}

// modelID has a built-in price, and takes system messages by no rule.
const modelID = "claude-sonnet-4-5"

// freshDB is a database with nothing in it but its schema, made once.
var freshDB = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "bailey-loop-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "bailey.db")
	c, err := control.New(context.Background(), "sqlite:"+file, store.Options{}, control.Config{})
	if err == nil {
		err = c.Close()
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
})

func newPlane(t *testing.T, scripts ...scripted.Script) *plane {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bailey.db")
	if err := os.WriteFile(file, must(freshDB())(t), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &plane{
		t: t, ctx: t.Context(), patience: 30 * time.Second, db: "sqlite:" + file,
		admin: control.Principal{Kind: api.KeyAPI},
	}
	p.serve(scripted.New(scripted.Options{}, scripts...), nil)
	p.open()
	t.Cleanup(p.close)
	return p
}

// serve starts the scripted model; spoil, if not nil, may fail requests to it.
func (p *plane) serve(server *scripted.Server, spoil func() error) {
	p.t.Helper()
	p.server = server
	listener := newMemListener()
	web := &http.Server{Handler: server}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = web.Serve(listener) // ends with the test
	}()
	transport := &http.Transport{DialContext: listener.dial, DisableCompression: true}
	p.t.Cleanup(func() {
		transport.CloseIdleConnections()
		web.Close()
		<-served
	})
	client, err := model.New(p.ctx, model.Config{BaseURL: "http://model.test", HTTPClient: &http.Client{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if spoil != nil {
				if err := spoil(); err != nil {
					return nil, err
				}
			}
			return transport.RoundTrip(r)
		}),
	}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.model = client
}

func (p *plane) open() {
	p.t.Helper()
	c, err := control.New(context.WithoutCancel(p.ctx), p.db, p.store, p.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.control = c
}

func (p *plane) close() {
	if err := p.control.Close(); err != nil {
		p.t.Error(err)
	}
}

// engine returns an engine over the plane; change adjusts its configuration.
func (p *plane) engine(change ...func(*Config)) *Engine {
	cfg := Config{Control: p.control, Model: p.model, MCP: p.mcp, Logger: slog.New(slog.NewTextHandler(p.t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	return New(cfg)
}

// run runs an engine until the test ends or stop is called.
func (p *plane) run(e *Engine) (stop func()) {
	ctx, cancel := context.WithCancel(p.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.Run(ctx); err != nil {
			p.t.Error(err)
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-ended
		})
	}
	p.t.Cleanup(stop)
	return stop
}

// must returns v, or ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// session starts a session with the built-in tools, all allowed, the custom tool
// weather, and whatever is given instead.
func (p *plane) session(change func(*api.SessionCreate), messages ...string) api.SessionID {
	p.t.Helper()
	if p.env == "" {
		p.env = must(p.control.CreateEnvironment(p.ctx, p.admin, api.EnvironmentCreate{
			Name: "e", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted},
		}))(p.t).ID
		p.agent = must(p.control.CreateAgent(p.ctx, p.admin, api.AgentCreate{
			Name: "tester", Model: &api.ModelConfig{ID: modelID}, Tools: testSession().Agent.Tools,
		}))(p.t).ID
	}
	in := api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: p.agent}, EnvironmentID: p.env}
	for _, m := range messages {
		in.InitialEvents = append(in.InitialEvents, userMessage(m))
	}
	if change != nil {
		change(&in)
	}
	return must(p.control.CreateSession(p.ctx, p.admin, in))(p.t).ID
}

func userMessage(text string) json.RawMessage {
	return event(api.EvUserMessage, map[string]any{"content": []any{map[string]any{"type": "text", "text": text}}})
}

func event(t api.EventType, fields map[string]any) json.RawMessage {
	all := map[string]any{"type": t}
	for k, v := range fields {
		all[k] = v
	}
	raw, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return raw
}

func result(call api.EventID, text string) json.RawMessage {
	return event(api.EvUserToolResult, map[string]any{"tool_use_id": call, "content": []any{map[string]any{"type": "text", "text": text}}})
}

func customResult(call api.EventID, text string) json.RawMessage {
	return event(api.EvUserCustomToolResult, map[string]any{"custom_tool_use_id": call, "content": []any{map[string]any{"type": "text", "text": text}}})
}

func interrupt() json.RawMessage { return event(api.EvUserInterrupt, nil) }

func (p *plane) send(id api.SessionID, events ...json.RawMessage) []*api.Event {
	p.t.Helper()
	return must(p.control.SendEvents(p.ctx, p.admin, id, api.EventsRequest{Events: events}))(p.t).Data
}

func (p *plane) events(id api.SessionID) []*api.Event {
	p.t.Helper()
	page := must(p.control.ListEvents(context.WithoutCancel(p.ctx), p.admin, id, "", api.EventFilter{}, api.PageRequest{Limit: 1000}))(p.t)
	if page.NextPage != nil {
		p.t.Fatal("the log has more than one page")
	}
	return page.Data
}

// until waits until the log of a session satisfies ok, and returns it.
func (p *plane) until(id api.SessionID, what string, ok func([]*api.Event) bool) []*api.Event {
	p.t.Helper()
	f := must(p.control.Follow(p.ctx, p.admin, id, "", control.FollowOptions{}))(p.t)
	defer f.Close()
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	defer cancel()
	for {
		events := p.events(id)
		if ok(events) {
			return events
		}
		if _, err := f.Next(ctx); err != nil {
			p.t.Fatalf("waiting for %s: %v; the log is %v", what, err, types(events))
		}
	}
}

// idle waits until the newest event is an idle with a stop reason, and nothing is
// queued.
func (p *plane) idle(id api.SessionID, reason string) []*api.Event {
	p.t.Helper()
	return p.until(id, "idle "+reason, func(events []*api.Event) bool {
		if len(events) == 0 {
			return false
		}
		b, ok := events[len(events)-1].Body.(*api.SessionStatusIdle)
		return ok && b.StopReason.Type == reason
	})
}

// seen waits for the n-th event of a type.
func (p *plane) seen(id api.SessionID, t api.EventType, n int) []*api.Event {
	p.t.Helper()
	return p.until(id, string(t), func(events []*api.Event) bool { return len(of(events, t)) >= n })
}

// of returns the events of a type.
func of(events []*api.Event, t api.EventType) []*api.Event {
	return slices.DeleteFunc(slices.Clone(events), func(e *api.Event) bool { return e.Type() != t })
}

// last returns the body of the newest event of a type.
func last[T api.EventBody](t *testing.T, events []*api.Event) T {
	t.Helper()
	for _, e := range slices.Backward(events) {
		if b, ok := e.Body.(T); ok {
			return b
		}
	}
	t.Fatalf("no such event in %v", types(events))
	panic("unreachable")
}

func types(events []*api.Event) []string {
	var out []string
	for _, e := range events {
		name := string(e.Type())
		if e.ProcessedAt == nil {
			name = "?" + name
		}
		out = append(out, name)
	}
	return out
}

// text of the newest agent.message.
func said(t *testing.T, events []*api.Event) string {
	t.Helper()
	return last[*api.AgentMessage](t, events).Content.Text()
}

func wantTypes(t *testing.T, events []*api.Event, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, types(events)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A memListener accepts in-memory connections, which wait like any other
// goroutine of a synctest bubble.
type memListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *memListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.IPAddr{} }
