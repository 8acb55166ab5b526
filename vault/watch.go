package vault

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// A Watch is the transport of one try of a token: it passes requests on, and keeps what
// the server's refusal looked like, for a person. It is safe for concurrent use.
type Watch struct {
	under http.RoundTripper
	token string

	mu   sync.Mutex
	kept *Response
}

// NewWatch makes a watch. A nil transport is the default one.
func NewWatch(under http.RoundTripper, token string) *Watch {
	if under == nil {
		under = http.DefaultTransport
	}
	return &Watch{under: under, token: token}
}

// Kept is the first answer since the last Forget that refused the token or, where none
// did, that was an error; nil if there was no such answer.
func (w *Watch) Kept() *Response {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kept
}

// Forget drops what is kept.
func (w *Watch) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = nil
}

// Refused reports whether the answer is that the token is not accepted.
func (r *Response) Refused() bool {
	return r != nil && (r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden)
}

// RoundTrip makes a request. Of the body of an error no more is passed on than can be shown.
func (w *Watch) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.under.RoundTrip(r)
	// A server need not take goodbyes.
	if err != nil || resp.StatusCode < 300 || r.Method == http.MethodDelete {
		return resp, err
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, bodyShown+tokenMax)) // what there is of it
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	said := shown(resp, body, w.token)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept == nil || said.Refused() && !w.kept.Refused() {
		w.kept = said
	}
	return resp, nil
}
