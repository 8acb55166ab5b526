package httpapi

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A deadlines is a connection that knows its write deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	now     time.Time
	atWrite []bool // whether there was one, write by write
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.now = t; return nil }

func (d *deadlines) Write(p []byte) (int, error) {
	d.atWrite = append(d.atWrite, !d.now.IsZero())
	return d.ResponseRecorder.Write(p)
}

func (d *deadlines) FlushError() error {
	d.atWrite = append(d.atWrite, !d.now.IsZero())
	return nil
}

// A write deadline that outlived its write reset silent HTTP/2 streams, and broke
// the next request of a kept connection.
func TestOnlyWritesHaveADeadline(t *testing.T) {
	t.Parallel()
	d := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	w := newResponse(d, time.Minute)
	between := func() {
		t.Helper()
		if !d.now.IsZero() {
			t.Error("a deadline while nothing is written")
		}
	}
	w.WriteHeader(http.StatusOK)
	between()
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	between()
	// The way the passthrough flushes.
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Fatal(err)
	}
	between()
	for i, had := range d.atWrite {
		if !had {
			t.Errorf("write %d had no deadline", i)
		}
	}

	f := newFixture(t, Config{})
	d.now = time.Unix(1, 0) // of an earlier request, long past
	f.server.ServeHTTP(d, httptest.NewRequest("GET", "/healthz", nil))
	between()
	f.server.ServeHTTP(d, f.request(t, "GET", "/v1/agents", ""))
	if d.now.IsZero() {
		t.Error("what is flushed after the handler has no deadline")
	}
}
