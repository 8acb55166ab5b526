package worker

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// polls returns when polls were made, since began.
func (f *field) polls(began time.Time) (at []time.Duration) {
	f.plane.mu.Lock()
	defer f.plane.mu.Unlock()
	for _, r := range f.plane.requests {
		if strings.HasSuffix(r.path, "/poll") && !r.at.Before(began) {
			at = append(at, r.at.Sub(began))
		}
	}
	return at
}

func TestPollsAgainAtOnce(t *testing.T) {
	virtual(t, func(f *field) {
		began := time.Now()
		w := f.start()
		time.Sleep(10 * time.Second)
		w.stop()
		polls := f.polls(began)
		if len(polls) != 11 {
			t.Fatalf("%d polls in 10 s, want 11", len(polls))
		}
		for i, at := range polls {
			if want := time.Duration(i) * 999 * time.Millisecond; at != want {
				t.Errorf("poll %d after %s, want %s", i, at, want)
			}
		}
	})
}

func TestSparesAPlaneThatDoesNotBlock(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.noWait = true
		began := time.Now()
		f.start()
		time.Sleep(100 * time.Second)
		if n := len(f.polls(began)); n < 60 || n > 201 {
			t.Errorf("%d polls in 100 s, want about one a second", n)
		}
	})
}

// TestPickUp measures from queueing to the acknowledgement and the first
// heartbeat, with a worker that waits.
func TestPickUp(t *testing.T) {
	virtual(t, func(f *field) {
		f.start()
		time.Sleep(time.Minute + 300*time.Millisecond)
		queued := time.Now()
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.plane.until("answered", func() bool { return f.plane.sessions["sesn_1"].calls["c1"].result != nil })
		if took := time.Since(queued); took != 0 {
			t.Errorf("answered %s after it was queued, want at once", took)
		}
		f.plane.mu.Lock()
		defer f.plane.mu.Unlock()
		if f.plane.item("sesn_1").beats < 1 {
			t.Error("no heartbeat yet")
		}
	})
}

// TestPollTrouble gives a poll every kind of bad answer for a minute; then there
// is work, which has to be found.
func TestPollTrouble(t *testing.T) {
	status := func(code int) func() (*fakeReply, error) {
		return func() (*fakeReply, error) {
			return &fakeReply{status: code, body: `{"type":"error","error":{"type":"x","message":"EnvironmentInstance not found"}}`}, nil
		}
	}
	tests := []struct {
		name     string
		answer   func() (*fakeReply, error)
		notReady bool
		max      int // polls in that minute
	}{
		{"401", status(401), true, 15},
		{"403", status(403), true, 15},
		{"404", status(404), true, 15},
		{"400", status(400), true, 15},
		{"408", status(408), true, 15},
		{"409", status(409), true, 15},
		{"500", status(500), true, 15},
		{"529", status(529), true, 15},
		{"429 with Retry-After", func() (*fakeReply, error) {
			return &fakeReply{status: 429, body: "{}", header: http.Header{"Retry-After": {"25"}}}, nil
		}, true, 3},
		{"no connection", func() (*fakeReply, error) { return nil, errors.New("connection refused") }, true, 15},
		{"a proxy's page", func() (*fakeReply, error) {
			return &fakeReply{status: 502, body: "<html>", header: http.Header{"Content-Type": {"text/html"}}}, nil
		}, true, 15},
		{"rubbish", func() (*fakeReply, error) { return &fakeReply{status: 200, body: "}{"}, nil }, true, 15},
		{"an object that is no item", func() (*fakeReply, error) { return &fakeReply{status: 200, body: `{"id":5}`}, nil }, false, 150},
		{"no content", func() (*fakeReply, error) { return &fakeReply{status: 204}, nil }, false, 150},
		{"null", func() (*fakeReply, error) { return &fakeReply{status: 200, body: "null"}, nil }, false, 150},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				w := f.start()
				time.Sleep(2 * time.Second)
				synctest.Wait()
				began := time.Now()
				f.plane.setFault(func(*http.Request) (*fakeReply, error) { return tt.answer() })
				time.Sleep(time.Minute)
				if err := w.Ready(); (err != nil) != tt.notReady {
					t.Errorf("Ready: %v, want an error: %v", err, tt.notReady)
				}
				if n := len(f.polls(began)); tt.answer == nil && n == 0 || n > tt.max {
					t.Errorf("%d polls in a minute, want at most %d", n, tt.max)
				}
				f.plane.setFault(nil)
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				f.stopped("sesn_1")
				f.wantResult("sesn_1", "c1", "c1", false)
				if err := w.Ready(); err != nil {
					t.Errorf("Ready: %v", err)
				}
			})
		})
	}
}

func TestKeyRotated(t *testing.T) {
	virtual(t, func(f *field) {
		path := filepath.Join(f.dir, "key")
		write := func(key string) {
			if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(testKey)
		w := f.start(func(c *Config) { c.Key = KeyFile(path) })
		time.Sleep(5 * time.Second)
		f.plane.mu.Lock()
		f.plane.key = "sk-ant-oat01-second"
		f.plane.mu.Unlock()
		time.Sleep(time.Minute)
		if w.Ready() == nil {
			t.Error("ready with a key that is refused")
		}
		write("sk-ant-oat01-second")
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.stopped("sesn_1")
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		f.wantResult("sesn_1", "c1", "c1", false)
	})
}

// TestDuplicate offers an item again while it is being served.
func TestDuplicate(t *testing.T) {
	virtual(t, func(f *field) {
		release := make(chan struct{})
		f.driver.run = func(context.Context, *fakeBox, tool.Call) tool.Result { <-release; return text("once") }
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.plane.until("the call runs", func() bool { return len(f.driver.ran()) == 1 })
		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/poll") {
				return &fakeReply{status: 200, body: `{"id":"work_sesn_1","type":"work","environment_id":"env_1","data":{"type":"session","id":"sesn_1"},"state":"queued","secret":null}`}, nil
			}
			return nil, nil
		})
		time.Sleep(20 * time.Second)
		if n := f.plane.count("POST", "/ack"); n != 1 {
			t.Errorf("%d acknowledgements, want 1", n)
		}
		close(release)
		f.stopped("sesn_1")
		if n := len(f.driver.ran()); n != 1 {
			t.Errorf("the call ran %d times", n)
		}
	})
}

// TestAck checks what becomes of an item whose acknowledgement goes wrong.
func TestAck(t *testing.T) {
	tests := []struct {
		name    string
		reply   func(n int) (*fakeReply, error) // for the n-th try, nil for a good one
		stopped bool                            // the item is stopped without being served
		served  bool
	}{
		{"fails twice", func(n int) (*fakeReply, error) {
			if n < 2 {
				return &fakeReply{status: 503, body: "{}"}, nil
			}
			return nil, nil
		}, false, true},
		{"is gone", func(int) (*fakeReply, error) { return &fakeReply{status: 404, body: "{}"}, nil }, false, false},
		{"is somebody else's", func(int) (*fakeReply, error) { return &fakeReply{status: 409, body: "{}"}, nil }, false, false},
		{"is refused", func(int) (*fakeReply, error) { return &fakeReply{status: 400, body: "{}"}, nil }, true, false},
		{"is never answered and never arrives", func(int) (*fakeReply, error) { return nil, errors.New("no route to host") }, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				n, polled := 0, false
				f.plane.fault = func(r *http.Request) (*fakeReply, error) {
					switch {
					case strings.HasSuffix(r.URL.Path, "/ack"):
						n++
						return tt.reply(n - 1)
					case strings.HasSuffix(r.URL.Path, "/poll"):
						if polled { // offered once only
							return &fakeReply{status: 200, body: "null"}, nil
						}
						polled = true
					}
					return nil, nil
				}
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				w := f.start()
				time.Sleep(2 * time.Minute)
				w.stop()
				if got := len(f.driver.ran()) > 0; got != tt.served {
					t.Errorf("served: %v, want %v", got, tt.served)
				}
				if got := f.plane.count("POST", "/stop") > 0; got != (tt.stopped || tt.served) {
					t.Errorf("stopped: %v", got)
				}
				if got := f.left("items"); len(got) != 0 {
					t.Errorf("item notes left: %v", got)
				}
			})
		})
	}
}

// TestAckAnswerLost: the item is ours although nobody said so; without a
// heartbeat it would stay in "starting" for ever.
func TestAckAnswerLost(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.lose = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/ack") }
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "c1", false)
	})
}

func TestReadyLifecycle(t *testing.T) {
	virtual(t, func(f *field) {
		w, err := New(f.config())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Ready(); !errors.Is(err, errNotStarted) {
			t.Errorf("Ready before Run: %v", err)
		}
		s := f.run(w)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := w.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		s.stop()
		if err := w.Ready(); !errors.Is(err, errDraining) {
			t.Errorf("Ready after Run: %v", err)
		}
	})
}

// TestWrongKeyAtTheStart: a mistake that was just made ends the worker, with a word
// on what to do.
func TestWrongKeyAtTheStart(t *testing.T) {
	for _, status := range []int{401, 403} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.fault = func(*http.Request) (*fakeReply, error) { return &fakeReply{status: status, body: "{}"}, nil }
				w, err := New(f.config())
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err = w.Run(f.Context())
				refused, ok := errors.AsType[*KeyRefused](err)
				if !ok || refused.Environment != testEnv || !strings.Contains(err.Error(), "create a new one") {
					t.Errorf("Run: %v, want that the key is refused", err)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}
