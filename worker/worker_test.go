package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

// field is a plane, a driver and the workers of one test.
type field struct {
	*testing.T
	plane  *fakePlane
	driver *fakeDriver
	dir    string
}

// virtual runs f in virtual time.
func virtual(t *testing.T, f func(f *field)) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f(&field{T: t, plane: newFakePlane(t), driver: &fakeDriver{t: t, run: echo}, dir: dir})
	})
}

// started is a worker that runs.
type started struct {
	*Worker
	f      *field
	cancel context.CancelFunc
	done   chan error
}

func (f *field) config() Config {
	var log *slog.Logger
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(f.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return Config{
		EnvironmentID: testEnv, Key: StaticKey(testKey), BaseURL: "http://plane.test/", DataDir: f.dir,
		WorkerID: "w1", Driver: f.driver, Agent: "/bin/true",
		HTTPClient: &http.Client{Transport: f.plane}, Logger: log,
	}
}

// start runs a worker until stop, or until the test ends.
func (f *field) start(edit ...func(*Config)) *started {
	f.Helper()
	c := f.config()
	for _, e := range edit {
		e(&c)
	}
	w, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	return f.run(w)
}

func (f *field) run(w *Worker) *started {
	ctx, cancel := context.WithCancel(f.Context())
	s := &started{Worker: w, f: f, cancel: cancel, done: make(chan error, 1)}
	go func() { s.done <- w.Run(ctx) }()
	f.Cleanup(s.stop)
	return s
}

// stop ends the worker and checks what must hold whenever one has ended.
func (s *started) stop() {
	s.f.Helper()
	if s.done == nil {
		return
	}
	s.cancel()
	if err := <-s.done; err != nil && !errors.Is(err, errDead) {
		s.f.Errorf("Run: %v", err)
	}
	s.done = nil
	if n := s.f.driver.live(); n != 0 {
		s.f.Errorf("%d boxes are left", n)
	}
	sum, err := audit.VerifyFile(filepath.Join(s.f.dir, "audit.jsonl"))
	if err != nil || !sum.Complete {
		s.f.Errorf("audit record: %+v, %v", sum, err)
	}
}

// stopped waits until a session's item is stopped.
func (f *field) stopped(session string) {
	f.Helper()
	f.plane.until(session+" stopped", func() bool { return f.plane.item(session).state == "stopped" })
}

// wantResult checks a call's result.
func (f *field) wantResult(session, call, want string, isError bool) {
	f.Helper()
	got, gotErr, ok := f.plane.result(session, call)
	if !ok {
		f.Errorf("%s has no result", call)
	} else if !strings.Contains(got, want) || gotErr != isError {
		f.Errorf("result of %s: %q, error %v\nwant …%s…, error %v", call, got, gotErr, want, isError)
	}
}

func (f *field) left(dir string) []string {
	entries, err := os.ReadDir(filepath.Join(f.dir, dir))
	if err != nil {
		f.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// records returns the audit record's calls as "action tool call outcome".
func (f *field) records() (lines []string) {
	b, err := os.ReadFile(filepath.Join(f.dir, "audit.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var r struct {
			Action, Tool, Outcome string
			CallID                string `json:"call_id"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			f.Fatal(err)
		}
		if r.CallID != "" {
			lines = append(lines, strings.TrimSpace(fmt.Sprint(r.Action, " ", r.Tool, " ", r.CallID, " ", r.Outcome)))
		}
	}
	return lines
}

func bash(id string) toolUse { return toolUse{id: id, name: "bash", input: `{"command":"` + id + `"}`} }

func TestSession(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1",
			[]toolUse{bash("c1"), {id: "c2", name: "read", input: `{"file_path":"x"}`}},
			[]toolUse{bash("c3")})
		began := time.Now()
		w := f.start()
		f.stopped("sesn_1")
		w.stop()

		f.wantResult("sesn_1", "c1", `bash {"command":"c1"}`, false)
		f.wantResult("sesn_1", "c2", `read {"file_path":"x"}`, false)
		f.wantResult("sesn_1", "c3", `bash {"command":"c3"}`, false)
		if diff := cmp.Diff([]string{`bash {"command":"c1"}`, `read {"file_path":"x"}`, `bash {"command":"c3"}`}, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
		if len(f.driver.started()) != 1 {
			t.Errorf("%d boxes were started, want 1", len(f.driver.started()))
		}
		want := []string{
			"tool.start bash c1", "tool.end bash c1 ok", "tool.start read c2", "tool.end read c2 ok",
			"tool.start bash c3", "tool.end bash c3 ok",
		}
		if diff := cmp.Diff(want, f.records()); diff != "" {
			t.Error(diff)
		}
		if got := f.left("items"); len(got) != 0 {
			t.Errorf("item notes left: %v", got)
		}
		if got := f.left("calls"); len(got) != 0 {
			t.Errorf("call journals left: %v", got)
		}
		if diff := cmp.Diff([]string{"sesn_1"}, f.left("work")); diff != "" {
			t.Errorf("work folders: %s", diff)
		}
		// The item is stopped when the session has been idle for MaxIdle.
		var first, stop time.Time
		for _, r := range f.plane.requests {
			switch {
			case strings.HasSuffix(r.path, "/ack") && first.IsZero():
				first = r.at
			case strings.HasSuffix(r.path, "/stop"):
				stop = r.at
				if r.body != `{"force":true}` {
					t.Errorf("stop with body %s", r.body)
				}
			}
		}
		if first.Sub(began) > 0 || stop.Sub(first) != time.Minute {
			t.Errorf("acknowledged after %s, stopped %s later; want 0s and 1m0s", first.Sub(began), stop.Sub(first))
		}
		if n := f.plane.count("POST", "/stop"); n != 1 {
			t.Errorf("%d stops, want 1", n)
		}
	})
}

// TestCredentials checks which request carries which credential.
func TestCredentials(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start()
		f.stopped("sesn_1")
		w.stop()
		for _, r := range f.plane.requests {
			want := "Bearer token-work_sesn_1"
			if strings.HasSuffix(r.path, "/poll") || strings.HasSuffix(r.path, "/ack") {
				want = "Bearer " + testKey
			}
			if got := r.header.Get("Authorization"); got != want {
				t.Errorf("%s %s with %q, want %q", r.method, r.path, got, want)
			}
			if got := r.header.Get("Anthropic-Worker-Id"); (got == "w1") != strings.HasSuffix(r.path, "/poll") {
				t.Errorf("%s %s with worker id %q", r.method, r.path, got)
			}
			if strings.Contains(r.query+r.body, "token-") || strings.Contains(r.query+r.body, testKey) {
				t.Errorf("%s %s shows a credential: %s %s", r.method, r.path, r.query, r.body)
			}
		}
		_ = filepath.WalkDir(f.dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				b, _ := os.ReadFile(path)
				if strings.Contains(string(b), "token-") || strings.Contains(string(b), testKey) {
					t.Errorf("%s holds a credential", path)
				}
			}
			return nil
		})
	})
}

func TestTokenRefusedFallsBackToKey(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if strings.Contains(r.Header.Get("Authorization"), "token-") {
				return &fakeReply{status: 401, body: `{}`}, nil
			}
			return nil, nil
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "c1", false)
	})
}

func TestSecretOfAnotherShape(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"", "!!!", "bm90IGpzb24", "eyJhIjoxfQ==", "eyJzZXNzaW9uc190b2tlbiI6NX0"} {
		if got := sessionsToken(secret); got != "" {
			t.Errorf("sessionsToken(%q) = %q", secret, got)
		}
	}
	if got := sessionsToken("eyJzZXNzaW9uc190b2tlbiI6InQifQ=="); got != "t" {
		t.Errorf("sessionsToken = %q, want t", got)
	}
}

func TestSessionsAtATime(t *testing.T) {
	virtual(t, func(f *field) {
		release := make(chan struct{})
		f.driver.run = func(_ context.Context, _ *fakeBox, c tool.Call) tool.Result {
			<-release
			return text("done")
		}
		for i := range 5 {
			f.plane.session(fmt.Sprint("sesn_", i), []toolUse{bash(fmt.Sprint("c", i))})
		}
		f.start(func(c *Config) { c.MaxSessions = 2; c.MaxIdle = time.Second })
		f.plane.until("two calls run", func() bool { return len(f.driver.ran()) == 2 })
		synctest.Wait()
		polls := f.plane.count("GET", "/poll")
		time.Sleep(10 * time.Second)
		if n := f.plane.count("GET", "/poll"); n != polls || f.driver.live() != 2 {
			t.Errorf("with all slots taken: %d polls and %d boxes, want %d and 2", n, f.driver.live(), polls)
		}
		close(release)
		for i := range 5 {
			f.stopped(fmt.Sprint("sesn_", i))
			f.wantResult(fmt.Sprint("sesn_", i), fmt.Sprint("c", i), "done", false)
		}
	})
}

func TestSessionEnds(t *testing.T) {
	tests := []struct {
		name  string
		start func(f *field)
		after time.Duration // from the claim to the stop
		work  []string      // work folders left
	}{
		{"terminated before it is fetched", func(f *field) {
			f.plane.session("sesn_1", []toolUse{bash("c1")}).status = "terminated"
		}, 0, []string{}},
		{"unknown", func(f *field) {
			f.plane.mu.Lock()
			defer f.plane.mu.Unlock()
			f.plane.queue("work_1", "session", "sesn_1")
		}, 0, []string{}},
		{"terminated in its history", func(f *field) {
			f.plane.session("sesn_1")
			f.plane.say("sesn_1", "session.status_terminated", nil)
		}, 0, []string{}},
		{"terminated later", func(f *field) {
			f.plane.session("sesn_1")
			go func() {
				time.Sleep(7 * time.Second)
				f.plane.say("sesn_1", "session.status_terminated", nil)
			}()
		}, 7 * time.Second, []string{}},
		{"deleted", func(f *field) {
			f.plane.session("sesn_1")
			go func() {
				time.Sleep(7 * time.Second)
				f.plane.say("sesn_1", "session.deleted", nil)
			}()
		}, 7 * time.Second, []string{}},
		{"terminated while a tool runs", func(f *field) {
			f.driver.run = hang
			f.plane.session("sesn_1", []toolUse{bash("c1")})
			go func() {
				time.Sleep(7 * time.Second)
				f.plane.say("sesn_1", "session.status_terminated", nil)
			}()
		}, 7 * time.Second, []string{"sesn_1"}},
		{"another kind of work", func(f *field) {
			f.plane.mu.Lock()
			defer f.plane.mu.Unlock()
			f.plane.queue("work_1", "healthcheck", "sesn_1")
		}, 0, []string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				tt.start(f)
				began := time.Now()
				w := f.start()
				f.stopped("sesn_1")
				// An unknown session is looked up a few times first.
				if got := time.Since(began); got < tt.after || got > tt.after+5*time.Second {
					t.Errorf("stopped after %s, want %s", got, tt.after)
				}
				w.stop()
				if diff := cmp.Diff(tt.work, f.left("work")); diff != "" {
					t.Errorf("work folders: %s", diff)
				}
				if got := f.left("calls"); len(got) != 0 {
					t.Errorf("call journals left: %v", got)
				}
			})
		})
	}
}

// TestIdle checks what starts, stops and restarts the countdown to leaving.
func TestIdle(t *testing.T) {
	idle := func(reason string) map[string]any {
		return map[string]any{"stop_reason": map[string]any{"type": reason}}
	}
	tests := []struct {
		name string
		play func(f *field) // from a session whose turn just ended
		want time.Duration
	}{
		{"end_turn", func(f *field) {}, time.Minute},
		{"an unknown reason ends a turn too", func(f *field) { f.plane.say("sesn_1", "session.status_idle", idle("new_reason")) }, time.Minute},
		{"an event stops the countdown and the next idle starts it afresh", func(f *field) {
			time.Sleep(50 * time.Second)
			f.plane.say("sesn_1", "session.status_running", nil)
			time.Sleep(5 * time.Minute)
			f.plane.say("sesn_1", "session.status_idle", idle("end_turn"))
		}, 50*time.Second + 5*time.Minute + time.Minute},
		{"unknown events count as events", func(f *field) {
			time.Sleep(50 * time.Second)
			f.plane.say("sesn_1", "span.something_new", map[string]any{"stop_reason": 5, "name": []int{1}})
			time.Sleep(50 * time.Second)
			f.plane.say("sesn_1", "session.status_idle", idle("refusal"))
		}, 160 * time.Second},
		{"neutral events do not", func(f *field) {
			time.Sleep(50 * time.Second)
			f.plane.say("sesn_1", "user.interrupt", nil)
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "x", "result": "allow"})
			f.plane.say("sesn_1", "session.thread_status_terminated", map[string]any{"session_thread_id": "sthr_1"})
		}, time.Minute},
		{"requires_action is no end", func(f *field) {
			f.plane.say("sesn_1", "session.status_idle", idle("requires_action"))
			time.Sleep(10 * time.Minute)
			f.plane.say("sesn_1", "session.status_idle", idle("end_turn"))
		}, 11 * time.Minute},
		{"a held call keeps the worker", func(f *field) {
			f.plane.mu.Lock()
			f.plane.ask(f.plane.sessions["sesn_1"], toolUse{id: "c1", name: "bash", permission: "ask"})
			f.plane.mu.Unlock()
			f.plane.say("sesn_1", "session.status_idle", idle("end_turn"))
			time.Sleep(10 * time.Minute)
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "c1", "result": "deny"})
		}, 11 * time.Minute},
		{"a cut stream stops the countdown until it is known again", func(f *field) {
			time.Sleep(50 * time.Second)
			f.plane.cutStreams("sesn_1")
		}, 110 * time.Second},
		{"a call of somebody else's keeps the worker", func(f *field) {
			f.plane.mu.Lock()
			f.plane.ask(f.plane.sessions["sesn_1"], toolUse{id: "c1", name: "web_search"})
			f.plane.mu.Unlock()
			time.Sleep(10 * time.Minute)
			f.plane.cutStreams("sesn_1")
			time.Sleep(10 * time.Minute)
			f.plane.say("sesn_1", "agent.tool_result", map[string]any{"tool_use_id": "c1"})
			f.plane.say("sesn_1", "session.status_idle", idle("end_turn"))
		}, 21 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.session("sesn_1")
				f.start()
				f.plane.until("connected", func() bool { return f.plane.sessions["sesn_1"].streams == 1 })
				synctest.Wait()
				began := time.Now()
				tt.play(f)
				f.stopped("sesn_1")
				if got := time.Since(began); got < tt.want || got > tt.want+2*time.Second {
					t.Errorf("left after %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// TestTurnOverWithACallOpen: a history that ends in an idle but holds a call that
// somebody else has to answer is no reason to leave.
func TestTurnOverWithACallOpen(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1", []toolUse{{id: "c1", name: "web_search"}})
		f.plane.mu.Lock()
		f.plane.step(s)
		f.plane.mu.Unlock()
		f.start()
		time.Sleep(10 * time.Minute)
		if state := f.plane.state("sesn_1"); state != "active" {
			t.Errorf("item is %s, want active", state)
		}
		f.plane.say("sesn_1", "agent.tool_result", map[string]any{"tool_use_id": "c1"})
		f.plane.say("sesn_1", "session.status_idle", map[string]any{"stop_reason": map[string]any{"type": "end_turn"}})
		f.stopped("sesn_1")
	})
}

func TestIdleForEver(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1")
		f.start(func(c *Config) { c.MaxIdle = -1 })
		time.Sleep(time.Hour)
		if state := f.plane.state("sesn_1"); state != "active" {
			t.Errorf("item is %s after an hour, want active", state)
		}
	})
}

// TestNextItemOfASession lets a session sleep and be woken: the work folder is
// the same, the box is another.
func TestNextItemOfASession(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.plane.mu.Lock()
		s.script = [][]toolUse{{bash("c2")}}
		f.plane.step(s)
		f.plane.queue("work_2", "session", "sesn_1")
		f.plane.mu.Unlock()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c2", "c2", false)
		if len(f.driver.started()) != 2 || f.driver.started()[0].spec.WorkDir != f.driver.started()[1].spec.WorkDir {
			t.Errorf("boxes: %d, want 2 with one work folder", len(f.driver.started()))
		}
		if diff := cmp.Diff([]string{`bash {"command":"c1"}`, `bash {"command":"c2"}`}, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStrangeIDs(t *testing.T) {
	t.Parallel()
	const id = "../../etc/sesn 1?x=é"
	if got := fileName(id); strings.ContainsAny(got, "/. ") || len(got) > 100 {
		t.Errorf("fileName = %q", got)
	}
	if fileName(id) == fileName(id+"x") {
		t.Error("two ids have one file name")
	}
	if got, want := sessionPath(id), "v1/sessions/..%2F..%2Fetc%2Fsesn%201%3Fx=%C3%A9"; got != want {
		t.Errorf("sessionPath = %q, want %q", got, want)
	}
}

func TestDataDirInUse(t *testing.T) {
	virtual(t, func(f *field) {
		f.start()
		synctest.Wait()
		w, err := New(f.config())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Run(f.Context()); !errors.Is(err, errInUse) {
			t.Errorf("Run of a second worker: %v, want errInUse", err)
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := Config{EnvironmentID: "e", Key: StaticKey("k"), DataDir: "d", Driver: &fakeDriver{}, Agent: "a"}
	tests := []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"good", func(*Config) {}, ""},
		{"nothing", func(c *Config) { *c = Config{} }, "EnvironmentID is required"},
		{"negative sessions", func(c *Config) { c.MaxSessions = -1 }, "MaxSessions"},
		{"negative tool timeout", func(c *Config) { c.ToolTimeout = -1 }, "ToolTimeout"},
		{"endless tool timeout", func(c *Config) { c.ToolTimeout = 25 * time.Hour }, "ToolTimeout"},
		{"negative drain timeout", func(c *Config) { c.DrainTimeout = -1 }, "DrainTimeout"},
		{"long worker id", func(c *Config) { c.WorkerID = strings.Repeat("x", 300) }, "WorkerID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := good
			tt.edit(&c)
			_, err := New(c)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, want …%s…", err, tt.want)
			}
		})
	}
}

func TestMetricsRegisteredTwice(t *testing.T) {
	t.Parallel()
	c := Config{EnvironmentID: "e", Key: StaticKey("k"), DataDir: "d", Driver: &fakeDriver{}, Agent: "a", Metrics: prometheus.NewRegistry()}
	if _, err := New(c); err != nil {
		t.Fatal(err)
	}
	if _, err := New(c); err == nil {
		t.Error("the same registry took the metrics twice")
	}
}

func TestRunNeedsAKey(t *testing.T) {
	t.Parallel()
	for _, source := range []KeySource{
		StaticKey(""), StaticKey("two\nlines"), KeyFile("/does/not/exist"),
		func() (string, error) { return "", errors.New("vault is shut") },
	} {
		w, err := New(Config{EnvironmentID: "e", Key: source, DataDir: t.TempDir(), Driver: &fakeDriver{}, Agent: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Run(t.Context()); err == nil {
			t.Error("Run without a usable key returned nil")
		}
	}
}

func TestCheck(t *testing.T) {
	names := func(fs []Finding, ok bool) (names []string) {
		for _, f := range fs {
			if f.OK != (f.Remedy == "") {
				t.Errorf("%s: OK %v with remedy %q", f.Name, f.OK, f.Remedy)
			}
			if f.OK == ok {
				names = append(names, f.Name)
			}
		}
		return names
	}
	tests := []struct {
		name string
		edit func(f *field, c *Config)
		bad  []string
	}{
		{"all well", func(*field, *Config) {}, nil},
		{"key refused", func(f *field, c *Config) { c.Key = StaticKey("other") }, []string{"key"}},
		{"no key", func(f *field, c *Config) { c.Key = KeyFile(filepath.Join(f.dir, "nothing")) }, []string{"key"}},
		{"no plane", func(f *field, c *Config) {
			f.plane.fault = func(*http.Request) (*fakeReply, error) { return nil, errors.New("connection refused") }
		}, []string{"key"}},
		{"no agent", func(f *field, c *Config) { c.Agent = f.dir }, []string{"agent"}},
		{"no disk", func(f *field, c *Config) { c.DataDir = "/dev/null/x" }, []string{"disk"}},
		{"clock off", func(f *field, c *Config) {
			f.plane.fault = func(r *http.Request) (*fakeReply, error) {
				h := http.Header{"Date": {time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}}
				return &fakeReply{status: 200, body: `{}`, header: h}, nil
			}
		}, []string{"clock"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				c := f.config()
				tt.edit(f, &c)
				got, err := Check(f.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.bad, names(got, false)); diff != "" {
					t.Errorf("%s%+v", diff, got)
				}
				for _, one := range got {
					if tt.name == "no key" && strings.Contains(one.Remedy, "base URL") {
						t.Errorf("the wrong remedy: %+v", one)
					}
				}
			})
		})
	}
}
