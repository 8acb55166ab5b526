package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool"
)

// TestPermissions checks when a call is run, held and dropped.
func TestPermissions(t *testing.T) {
	verdict := func(v string) func(f *field) {
		return func(f *field) {
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "c1", "result": v})
		}
	}
	nothing := func(*field) {}
	tests := []struct {
		name       string
		permission string
		then       func(f *field)
		runs       bool
	}{
		{"no permission", "", nothing, true},
		{"allow", "allow", nothing, true},
		{"ask", "ask", nothing, false},
		{"ask, then allow", "ask", verdict("allow"), true},
		{"ask, then deny", "ask", verdict("deny"), false},
		{"ask, then something newer", "ask", verdict("maybe"), false},
		{"ask, then an empty verdict", "ask", verdict(""), false},
		{"ask, then allow for another call", "ask", func(f *field) {
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "c2", "result": "allow"})
		}, false},
		{"deny", "deny", nothing, false},
		{"deny, then allow", "deny", verdict("allow"), false},
		{"something newer", "ask_twice", nothing, false},
		{"something newer, then allow", "ask_twice", verdict("allow"), true},
		{"ask, answered by somebody else, then allow", "ask", func(f *field) {
			f.plane.say("sesn_1", "user.tool_result", map[string]any{"tool_use_id": "c1"})
			verdict("allow")(f)
		}, false},
	}
	for _, tt := range tests {
		for _, live := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, live %v", tt.name, live), func(t *testing.T) {
				virtual(t, func(f *field) {
					u := bash("c1")
					u.permission = tt.permission
					ask := func() {
						f.plane.mu.Lock()
						defer f.plane.mu.Unlock()
						f.plane.ask(f.plane.sessions["sesn_1"], u)
					}
					f.plane.session("sesn_1")
					if !live {
						ask()
						tt.then(f)
					}
					f.start(func(c *Config) { c.MaxIdle = -1 })
					time.Sleep(5 * time.Second)
					if live {
						ask()
						synctest.Wait()
						tt.then(f)
					}
					time.Sleep(5 * time.Second)
					if got := len(f.driver.ran()) == 1; got != tt.runs {
						t.Errorf("ran: %v, want %v", got, tt.runs)
					}
					if _, _, ok := f.plane.result("sesn_1", "c1"); ok != tt.runs {
						t.Errorf("result posted: %v, want %v", ok, tt.runs)
					}
					// What was decided stands after a reconnection.
					f.plane.cutStreams("sesn_1")
					time.Sleep(15 * time.Second)
					if got := len(f.driver.ran()) == 1; got != tt.runs {
						t.Errorf("ran after a reconnection: %v, want %v", got, tt.runs)
					}
				})
			})
		}
	}
}

// TestApprovedInOrder: calls that were held run in the order they were asked
// for, whatever the order of the verdicts.
func TestApprovedInOrder(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1")
		f.start(func(c *Config) { c.MaxIdle = -1 })
		time.Sleep(time.Second)
		f.plane.mu.Lock()
		for i := range 6 {
			u := bash(fmt.Sprint("c", i))
			u.permission = "ask"
			f.plane.ask(s, u)
		}
		f.plane.mu.Unlock()
		synctest.Wait()
		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/stream") {
				return nil, errors.New("connection reset")
			}
			return nil, nil
		})
		f.plane.cutStreams("sesn_1")
		for i := range 6 {
			f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": fmt.Sprint("c", 5-i), "result": "allow"})
		}
		f.plane.setFault(nil)
		time.Sleep(time.Minute)
		var want []string
		for i := range 6 {
			want = append(want, fmt.Sprintf(`bash {"command":"c%d"}`, i))
		}
		if diff := cmp.Diff(want, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestNotOurs lists calls that are left to others.
func TestNotOurs(t *testing.T) {
	tests := []toolUse{
		{id: "c1", name: "web_search"},
		{id: "c1", name: "computer_20301"},
		{id: "c1", name: "bash", kind: "agent.custom_tool_use"},
		{id: "c1", name: "bash", kind: "agent.mcp_tool_use"},
	}
	for _, u := range tests {
		t.Run(u.kind+u.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{u})
				f.start()
				time.Sleep(10 * time.Minute)
				if ran := f.driver.ran(); len(ran) > 0 || len(f.driver.started()) > 0 {
					t.Errorf("ran %v in %d boxes", ran, len(f.driver.started()))
				}
				if n := f.plane.count("POST", "/events"); n != 0 {
					t.Errorf("%d events posted", n)
				}
				if state := f.plane.state("sesn_1"); state != "active" {
					t.Errorf("item is %s while a call is open, want active", state)
				}
			})
		})
	}
}

func TestToolTheBoxLacks(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{{id: "c1", name: "grep", input: `{"pattern":"x"}`}})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", `no tool named "grep"`, true)
	})
}

// TestInterrupt interrupts a session with one call running, one waiting and one
// held.
func TestInterrupt(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = hang
		held := bash("c3")
		held.permission = "ask"
		s := f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2"), held})
		f.start()
		f.plane.until("the call runs", func() bool { return len(f.driver.ran()) == 1 })
		time.Sleep(3 * time.Second)
		f.plane.interrupt("sesn_1")
		time.Sleep(time.Second)
		f.plane.say("sesn_1", "user.tool_confirmation", map[string]any{"tool_use_id": "c3", "result": "allow"})
		f.plane.cutStreams("sesn_1")
		time.Sleep(5 * time.Second)
		if n := f.plane.count("POST", "/events"); n != 0 {
			t.Errorf("%d results posted for interrupted calls", n)
		}
		if diff := cmp.Diff([]string{`bash {"command":"c1"}`}, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
		// The session goes on in the same box.
		f.driver.setRun(echo)
		f.plane.mu.Lock()
		s.script = [][]toolUse{{bash("c4")}}
		f.plane.step(s)
		f.plane.mu.Unlock()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c4", "c4", false)
		if len(f.driver.started()) != 1 {
			t.Errorf("%d boxes, want 1", len(f.driver.started()))
		}
		if diff := cmp.Diff([]string{"tool.start bash c1", "tool.end bash c1 interrupted", "tool.start bash c4", "tool.end bash c4 ok"}, f.records()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestInterruptScope checks which calls an interrupt covers.
func TestInterruptScope(t *testing.T) {
	tests := []struct {
		name   string
		fields map[string]any
		thread string
		kind   string
		stops  bool
	}{
		{"session-wide", nil, "", "user.interrupt", true},
		{"still queued", map[string]any{"processed_at": nil}, "", "user.interrupt", false},
		{"of one thread", map[string]any{"session_thread_id": "sthr_1"}, "", "user.interrupt", false},
		{"processed before the call", map[string]any{"processed_at": "1999-01-01T00:00:00Z"}, "", "user.interrupt", false},
		{"its thread ended", map[string]any{"session_thread_id": "sthr_1"}, "sthr_1", "session.thread_status_terminated", true},
		{"another thread ended", map[string]any{"session_thread_id": "sthr_2"}, "sthr_1", "session.thread_status_terminated", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				stopped := make(chan struct{}, 1)
				f.driver.run = func(ctx context.Context, _ *fakeBox, _ tool.Call) tool.Result {
					select {
					case <-ctx.Done():
						stopped <- struct{}{}
						return tool.ErrorResult("cancelled")
					case <-time.After(30 * time.Second):
						return text("finished")
					}
				}
				u := bash("c1")
				u.thread = tt.thread
				f.plane.session("sesn_1", []toolUse{u})
				f.start()
				f.plane.until("the call runs", func() bool { return len(f.driver.ran()) == 1 })
				f.plane.say("sesn_1", tt.kind, tt.fields)
				time.Sleep(40 * time.Second)
				if got := len(stopped) == 1; got != tt.stops {
					t.Errorf("tool stopped: %v, want %v", got, tt.stops)
				}
				if got := f.plane.count("POST", "/events") > 0; got == tt.stops {
					t.Errorf("result posted: %v", got)
				}
			})
		})
	}
}

// TestInterruptWhilePosting: the call is done and its result cannot be posted.
func TestInterruptWhilePosting(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/events") {
				return &fakeReply{status: 503, body: "{}"}, nil
			}
			return nil, nil
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start()
		time.Sleep(5 * time.Second)
		f.plane.interrupt("sesn_1")
		f.stopped("sesn_1")
		w.stop()
		if got := f.left("calls"); len(got) != 0 {
			t.Errorf("call journals left: %v", got)
		}
	})
}

// TestPost checks what is done about answers to a result.
func TestPost(t *testing.T) {
	answer := func(codes ...int) func(n int) (*fakeReply, error) {
		return func(n int) (*fakeReply, error) {
			if n >= len(codes) || codes[n] == 200 {
				return nil, nil
			}
			if codes[n] == 0 {
				return nil, errors.New("connection reset")
			}
			return &fakeReply{status: codes[n], body: `{"type":"error","error":{"type":"x","message":"no"}}`}, nil
		}
	}
	tests := []struct {
		name   string
		answer func(n int) (*fakeReply, error)
		want   string // text of the result, empty for none
		err    bool
		sent   int
	}{
		{"taken", answer(), "c1", false, 1},
		{"trouble for a while", answer(500, 502, 0, 429, 408, 409, 529), "c1", false, 8},
		{"key refused for a while", answer(401, 403), "c1", false, 3}, // the token, the key, the key again
		{"too large", answer(413), "refused by the platform (status 413)", true, 2},
		{"not understood", answer(400), "refused by the platform (status 400)", true, 2},
		{"not wanted", answer(400, 400), "", false, 2},
		{"session gone", answer(404), "", false, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				sent := 0
				f.plane.fault = func(r *http.Request) (*fakeReply, error) {
					if r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/events") {
						sent++
						return tt.answer(sent - 1)
					}
					return nil, nil
				}
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				f.start()
				time.Sleep(2 * time.Minute)
				if tt.want != "" {
					f.wantResult("sesn_1", "c1", tt.want, tt.err)
				} else if _, _, ok := f.plane.result("sesn_1", "c1"); ok {
					t.Error("there is a result")
				}
				f.plane.setFault(nil)
				if sent != tt.sent {
					t.Errorf("%d requests, want %d", sent, tt.sent)
				}
				if n := len(f.driver.ran()); n != 1 {
					t.Errorf("the call ran %d times", n)
				}
			})
		})
	}
}

// TestPostAnswerLost: the plane has the result but could not say so. The same
// bytes are sent again and have no effect.
func TestPostAnswerLost(t *testing.T) {
	virtual(t, func(f *field) {
		n := 0
		f.plane.lose = func(r *http.Request) bool {
			if r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/events") {
				n++
				return n <= 3
			}
			return false
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "c1", false)
		f.plane.mu.Lock()
		defer f.plane.mu.Unlock()
		if c := f.plane.sessions["sesn_1"].calls["c1"]; c.again != 3 {
			t.Errorf("%d repetitions, want 3", c.again)
		}
		bodies := map[string]bool{}
		for _, r := range f.plane.requests {
			if r.method == "POST" && strings.HasSuffix(r.path, "/events") {
				bodies[r.body] = true
			}
		}
		if len(bodies) != 1 {
			t.Errorf("%d different bodies, want 1: %v", len(bodies), bodies)
		}
		if n := len(f.driver.ran()); n != 1 {
			t.Errorf("the call ran %d times", n)
		}
	})
}

// TestPostOutlivesTheLease: while results cannot be posted but heartbeats can,
// the worker keeps trying for longer than one lease.
func TestPostOutlivesTheLease(t *testing.T) {
	virtual(t, func(f *field) {
		began := time.Now()
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/events") && time.Since(began) < 10*time.Minute {
				return &fakeReply{status: 503, body: "{}"}, nil
			}
			return nil, nil
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "c1", false)
	})
}

// TestReconnect cuts the stream at awkward moments: calls asked for and answered
// while nobody listened are found in the history.
func TestReconnect(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
			f.plane.cutStreams("sesn_1")
			return echo(ctx, b, c)
		}
		f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")}, []toolUse{bash("c3")}, []toolUse{bash("c4"), bash("c5")})
		f.start()
		f.stopped("sesn_1")
		for i := 1; i <= 5; i++ {
			f.wantResult("sesn_1", fmt.Sprint("c", i), fmt.Sprint("c", i), false)
		}
		if n := len(f.driver.ran()); n != 5 {
			t.Errorf("%d calls ran, want 5", n)
		}
	})
}

// TestHistoryTrouble: nothing is run on half a history.
func TestHistoryTrouble(t *testing.T) {
	virtual(t, func(f *field) {
		began := time.Now()
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if r.Method == "GET" && strings.HasSuffix(r.URL.Path, "/events") && r.URL.Query().Get("page") != "" && time.Since(began) < time.Minute {
				return &fakeReply{status: 500, body: "{}"}, nil
			}
			return nil, nil
		}
		f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2"), bash("c3")})
		f.plane.say("sesn_1", "user.tool_result", map[string]any{"tool_use_id": "c1"})
		f.start()
		time.Sleep(50 * time.Second)
		if ran := f.driver.ran(); len(ran) != 0 {
			t.Errorf("ran %v", ran)
		}
		time.Sleep(30 * time.Second)
		if diff := cmp.Diff([]string{`bash {"command":"c2"}`, `bash {"command":"c3"}`}, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestStreamRefused: a session whose stream is refused for good is left.
func TestStreamRefused(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.fault = func(r *http.Request) (*fakeReply, error) {
					if strings.HasSuffix(r.URL.Path, "/stream") {
						return &fakeReply{status: code, body: "{}"}, nil
					}
					return nil, nil
				}
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				f.start()
				f.stopped("sesn_1")
			})
		})
	}
}

// TestHostileEvents streams rubbish between good events.
func TestHostileEvents(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1")
		f.start(func(c *Config) { c.MaxIdle = -1 })
		time.Sleep(time.Second)
		f.plane.mu.Lock()
		for _, ev := range []string{
			`5`, `null`, `[]`, `{}`, `"x"`, `{"type":5}`, `{"type":"agent.tool_use"}`,
			`{"type":"agent.tool_use","id":"","name":"bash"}`,
			`{"type":"agent.tool_use","id":"h1","name":5}`,
			`{"type":"agent.tool_use","id":"h2","name":"bash","evaluated_permission":7}`,
			`{"type":"agent.tool_use","id":"h3","name":"bash","evaluated_permission":["allow"]}`,
			`{"type":"agent.tool_use","id":"h4","name":"bash","processed_at":"yesterday"}`,
			`{"type":"agent.tool_use","id":"` + strings.Repeat("x", 300) + `","name":"bash"}`,
			`{"type":"user.interrupt","processed_at":17}`,
			`{"type":"user.tool_confirmation","tool_use_id":{},"result":"allow"}`,
			`{"type":"session.status_idle","stop_reason":"end_turn"}`,
			`{"type":"session.status_terminated","id":7}`,
		} {
			s.events = append(s.events, []byte(ev))
		}
		f.plane.ask(s, bash("c1"))
		f.plane.mu.Unlock()
		time.Sleep(time.Second)
		f.wantResult("sesn_1", "c1", "c1", false)
		if diff := cmp.Diff([]string{`bash {"command":"c1"}`}, f.driver.ran()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestAuditFull: what cannot be put on record is not run, and what ran and could
// not be put on record does not leave.
func TestAuditFull(t *testing.T) {
	for _, tt := range []struct {
		step string
		ran  int
		want string
	}{
		{"tool.start", 0, "audit record cannot be written, so nothing was run"},
		{"tool.end", 1, "its output is withheld"},
	} {
		t.Run(tt.step, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{bash("c1")}, []toolUse{bash("c2")})
				w, err := New(f.config())
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				w.step = func(step string) error {
					if step == tt.step {
						if n++; n == 1 {
							return syscall.ENOSPC
						}
					}
					return nil
				}
				f.run(w)
				f.stopped("sesn_1")
				f.wantResult("sesn_1", "c1", tt.want, true)
				f.wantResult("sesn_1", "c2", "c2", false)
				if n := len(f.driver.ran()); n != tt.ran+1 {
					t.Errorf("%d calls ran, want %d", n, tt.ran+1)
				}
				// Where the record goes on, it does not look as if something had been run.
				if got := slices.Contains(f.records(), "tool.end bash c1 refused"); got != (tt.ran == 0) {
					t.Errorf("records %q", f.records())
				}
			})
		})
	}
}

// TestJournalFull does the same for the journal of calls.
func TestJournalFull(t *testing.T) {
	for _, tt := range []struct {
		step string
		ran  int
		want string
		err  bool
	}{
		{"call started", 0, "so nothing was run", true},
		{"call finished", 1, "c1", false},
		{"call settled", 1, "c1", false},
	} {
		t.Run(tt.step, func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{bash("c1")}, []toolUse{bash("c2")})
				w, err := New(f.config())
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				w.step = func(step string) error {
					if step == tt.step {
						if n++; n == 1 {
							return syscall.ENOSPC
						}
					}
					return nil
				}
				f.run(w)
				f.stopped("sesn_1")
				f.wantResult("sesn_1", "c1", tt.want, tt.err)
				f.wantResult("sesn_1", "c2", "c2", false)
				if n := len(f.driver.ran()); n != tt.ran+1 {
					t.Errorf("%d calls ran, want %d", n, tt.ran+1)
				}
			})
		})
	}
}

func TestItemCannotBeWrittenDown(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w, err := New(f.config())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		w.step = func(step string) error {
			if step == "item" && time.Since(began) < time.Minute {
				return syscall.ENOSPC
			}
			return nil
		}
		s := f.run(w)
		time.Sleep(30 * time.Second)
		if n := f.plane.count("POST", "/ack"); n != 0 {
			t.Errorf("%d acknowledgements of work that was not written down", n)
		}
		if w.Ready() == nil {
			t.Error("ready with a full disk")
		}
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "c1", false)
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		s.stop()
	})
}

// TestSetUpFails: a session that cannot be served here is told so, call by call.
func TestSetUpFails(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(f *field)
		want  string
	}{
		{"no work folder", func(f *field) {
			write(f, "work/sesn_1", "a file is in the way")
		}, "work folder"},
		{"no journal", func(f *field) {
			if err := os.MkdirAll(filepath.Join(f.dir, "calls/sesn_1.jsonl"), 0o700); err != nil {
				f.Fatal(err)
			}
		}, "call journal"},
		{"session not readable", func(f *field) {
			f.plane.fault = func(r *http.Request) (*fakeReply, error) {
				if strings.HasSuffix(r.URL.Path, "/sesn_1") {
					return &fakeReply{status: 400, body: "{}"}, nil
				}
				return nil, nil
			}
		}, "session cannot be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				tt.spoil(f)
				f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")}, []toolUse{bash("c3")})
				began := time.Now()
				f.start()
				f.stopped("sesn_1")
				for _, c := range []string{"c1", "c2", "c3"} {
					f.wantResult("sesn_1", c, tt.want, true)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("left after %s, want at once", took)
				}
				if ran := f.driver.ran(); len(ran) != 0 {
					t.Errorf("ran %v", ran)
				}
			})
		})
	}
}

// write puts a file into the data directory.
func write(f *field, name, content string) {
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		f.Fatal(err)
	}
}
