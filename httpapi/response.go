package httpapi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// A response is the http.ResponseWriter of one request. It remembers what was
// sent, and gives every write and flush a deadline, so that a client that stops
// reading cannot hold its connection. Between them there is none: HTTP/2 would
// reset a stream at its deadline even when nothing is being written.
type response struct {
	http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration

	status int // 0 until the header is written
	bytes  int64
}

func newResponse(w http.ResponseWriter, timeout time.Duration) *response {
	return &response{ResponseWriter: w, rc: http.NewResponseController(w), timeout: timeout}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// began reports whether the header is out, and with it the status.
func (w *response) began() bool { return w.status != 0 }

func (w *response) WriteHeader(code int) {
	if w.began() {
		return
	}
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (int, error) {
	if !w.began() {
		w.WriteHeader(http.StatusOK)
	}
	w.deadline(w.timeout)
	n, err := w.ResponseWriter.Write(p)
	w.deadline(0)
	w.bytes += int64(n)
	return n, err
}

// FlushError is what http.ResponseController calls.
func (w *response) FlushError() error {
	w.deadline(w.timeout)
	defer w.deadline(0)
	return w.rc.Flush()
}

// deadline bounds what is written from now on; 0 is no bound.
func (w *response) deadline(d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	// A writer without deadlines, as in tests and in process, has no client that
	// could stall it.
	_ = w.rc.SetWriteDeadline(t)
}

// json sends v. An error means that v cannot be encoded and nothing was sent; a
// client that left is not an error.
func (w *response) json(code int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(code)
	_, _ = w.Write(data)
	return nil
}
