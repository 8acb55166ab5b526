package worker

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestHeartbeats checks the chain and the pace of heartbeats.
func TestHeartbeats(t *testing.T) {
	tests := []struct{ ttl, pace time.Duration }{
		{30 * time.Second, 15 * time.Second},
		{60 * time.Second, 30 * time.Second},
		{10 * time.Minute, 30 * time.Second},
		{time.Second, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.ttl.String(), func(t *testing.T) {
			virtual(t, func(f *field) {
				f.plane.ttl = tt.ttl
				f.plane.session("sesn_1")
				f.start(func(c *Config) { c.MaxIdle = -1 })
				time.Sleep(2*tt.pace + time.Millisecond)
				f.plane.mu.Lock()
				defer f.plane.mu.Unlock()
				var at []time.Duration
				for i, r := range f.plane.requests {
					if !strings.HasSuffix(r.path, "/heartbeat") {
						continue
					}
					at = append(at, r.at.Sub(f.plane.requests[0].at))
					if first := strings.Contains(r.query, "expected_last_heartbeat=NO_HEARTBEAT"); first != (len(at) == 1) {
						t.Errorf("request %d: %s", i, r.query)
					}
				}
				if diff := cmp.Diff([]time.Duration{0, tt.pace, 2 * tt.pace}, at); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestLeaseEnds checks, for everything that can happen to a lease while a tool
// runs, that the tool is stopped, whether the item is, and what is left on disk.
func TestLeaseEnds(t *testing.T) {
	status := func(code int) func(n int) (*fakeReply, error) {
		return func(int) (*fakeReply, error) { return &fakeReply{status: code, body: "{}"}, nil }
	}
	state := func(state string, extended bool) func(n int) (*fakeReply, error) {
		return func(int) (*fakeReply, error) {
			return &fakeReply{status: 200, body: fmt.Sprintf(`{"type":"work_heartbeat","last_heartbeat":"x","lease_extended":%v,"state":%q,"ttl_seconds":30}`, extended, state)}, nil
		}
	}
	down := func(int) (*fakeReply, error) { return nil, errors.New("connection refused") }
	tests := []struct {
		name  string
		reply func(n int) (*fakeReply, error) // to heartbeats after the first
		after time.Duration                   // from the claim to the end of the tool
		stop  bool                            // the item is stopped
	}{
		{"taken over", status(412), 15 * time.Second, false},
		{"asked to stop", state("stopping", true), 15 * time.Second, true},
		{"stopped by force", state("stopped", false), 15 * time.Second, true},
		{"not extended", state("active", false), 15 * time.Second, true},
		{"gone", status(404), 15 * time.Second, true},
		{"refused", status(400), 15 * time.Second, true},
		{"key refused for good", status(401), 16 * time.Second, true},
		{"no connection", down, 30 * time.Second, false},
		{"plane down", status(503), 30 * time.Second, false},
		{"conflicts only", status(409), 30 * time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(f *field) {
				n := 0
				f.plane.fault = func(r *http.Request) (*fakeReply, error) {
					switch {
					case strings.HasSuffix(r.URL.Path, "/heartbeat"):
						if n++; n > 1 {
							return tt.reply(n)
						}
					case strings.HasSuffix(r.URL.Path, "/poll") && n > 0:
						return &fakeReply{status: 200, body: "null"}, nil // offered once only
					}
					return nil, nil
				}
				f.driver.run = hang
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				began := time.Now()
				w := f.start()
				f.plane.until("the tool runs", func() bool { return len(f.driver.ran()) == 1 })
				b := f.driver.started()[0]
				<-b.ended
				if took := time.Since(began); took < tt.after || took > tt.after+3*time.Second {
					t.Errorf("the tool ended after %s, want %s", took, tt.after)
				}
				time.Sleep(time.Second)
				if got := f.plane.count("POST", "/stop") > 0; got != tt.stop {
					t.Errorf("stopped: %v, want %v", got, tt.stop)
				}
				if _, _, ok := f.plane.result("sesn_1", "c1"); ok {
					t.Error("a result was posted without a lease")
				}
				w.stop()
				if got := f.left("items"); len(got) != 0 {
					t.Errorf("item notes left: %v", got)
				}
				// What the call came to is kept, in case the session comes back.
				if got := f.left("calls"); len(got) != 1 {
					t.Errorf("call journals: %v", got)
				}
			})
		})
	}
}

func TestLeaseSurvivesBlips(t *testing.T) {
	virtual(t, func(f *field) {
		n := 0
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/heartbeat") {
				switch n++; n % 4 {
				case 1:
					return &fakeReply{status: 503, body: "{}"}, nil
				case 2:
					return &fakeReply{status: 401, body: "{}"}, nil
				case 3:
					return nil, errors.New("connection reset")
				}
			}
			return nil, nil
		}
		f.plane.session("sesn_1")
		f.start(func(c *Config) { c.MaxIdle = 10 * time.Minute })
		f.stopped("sesn_1")
		if n := f.plane.count("POST", "/ack"); n != 1 {
			t.Errorf("the item was claimed %d times", n)
		}
	})
}

// TestHeartbeatAnswerLost: the plane counted a beat that we did not hear of, so
// the next one does not fit. The item is then offered again, and the call that
// was cut off is not run a second time.
func TestHeartbeatAnswerLost(t *testing.T) {
	virtual(t, func(f *field) {
		n := 0
		f.plane.lose = func(r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/heartbeat") {
				n++
			}
			return n == 2
		}
		f.driver.run = hang
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start()
		f.stopped("sesn_1")
		f.wantResult("sesn_1", "c1", "lost its claim", true)
		if n := len(f.driver.ran()); n != 1 {
			t.Errorf("the call ran %d times", n)
		}
	})
}
