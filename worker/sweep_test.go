package worker

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDeletedSessions: what is kept of sessions that were deleted while they were not
// served here goes, and nothing else does.
func TestDeletedSessions(t *testing.T) {
	tests := []struct {
		name  string
		fault func(r *http.Request) (*fakeReply, error)
		want  []string
	}{
		{"all is well", nil, []string{"sesn_1"}},
		{"the plane does not know this environment", func(r *http.Request) (*fakeReply, error) {
			if strings.Contains(r.URL.Path, "/stats") || strings.Contains(r.URL.Path, "/v1/sessions") {
				return &fakeReply{status: 404, body: "{}"}, nil
			}
			return nil, nil
		}, []string{"sesn_1", "sesn_deleted"}},
		{"the plane fails", func(r *http.Request) (*fakeReply, error) {
			if strings.Contains(r.URL.Path, "/v1/sessions") {
				return &fakeReply{status: 500, body: "{}"}, nil
			}
			return nil, nil
		}, []string{"sesn_1", "sesn_deleted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			freezing(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{bash("c1")})
				f.plane.session("sesn_deleted", []toolUse{bash("c2")})
				f.start(func(c *Config) { c.Keep.For = 24 * time.Hour })
				f.stopped("sesn_1")
				f.stopped("sesn_deleted")
				synctest.Wait()
				write(f, "calls/sesn_deleted.jsonl", `{"call":"x","state":"started"}`+"\n")
				f.plane.mu.Lock()
				delete(f.plane.sessions, "sesn_deleted")
				f.plane.mu.Unlock()
				// Folders have the time of the host, which is not the test's.
				old := time.Now().Add(-24 * time.Hour)
				for _, name := range []string{"sesn_1", "sesn_deleted"} {
					if err := os.Chtimes(filepath.Join(f.dir, "work", name), old, old); err != nil {
						t.Fatal(err)
					}
				}
				if tt.fault != nil {
					f.plane.setFault(tt.fault)
				}
				time.Sleep(2 * time.Hour)
				sessions, _ := f.folders()
				if diff := cmp.Diff(tt.want, sessions); diff != "" {
					t.Error(diff)
				}
				if got := f.left("calls"); (len(got) == 1) != (len(tt.want) == 2) {
					t.Errorf("call journals: %v", got)
				}
				if n := f.driver.live(); n != len(tt.want) {
					t.Errorf("%d kept boxes, want %d", n, len(tt.want))
				}
			})
		})
	}
}

// TestServedSessionIsNotSwept: whatever the plane answers in between.
func TestServedSessionIsNotSwept(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) { c.MaxIdle = -1 })
		f.answered("sesn_1", "c1")
		old := time.Now().Add(-24 * time.Hour)
		if err := os.Chtimes(filepath.Join(f.dir, "work/sesn_1"), old, old); err != nil {
			t.Fatal(err)
		}
		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if r.URL.Path == "/v1/sessions/sesn_1" {
				return &fakeReply{status: 404, body: "{}"}, nil
			}
			return nil, nil
		})
		time.Sleep(3 * time.Hour)
		if sessions, _ := f.folders(); len(sessions) != 1 {
			t.Errorf("work folders: %v", sessions)
		}
	})
}
