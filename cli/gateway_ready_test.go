package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What a gateway says of itself is for people, and its JSON is not.
func TestCheckSaysWhyAGatewayIsNotReady(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		`{"reason":"not attached to an edge","status":"unavailable"}` + "\n": "is not ready: not attached to an edge",
		"a proxy's page\n": "is not ready: a proxy's page",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(answer))
		}))
		t.Cleanup(s.Close)
		if f := checkRunning(t.Context(), strings.TrimPrefix(s.URL, "http://")); f.Status != findingFailed || !strings.HasSuffix(f.Detail, want) {
			t.Errorf("%+v, want a failure that ends with %q", f, want)
		}
	}
}
