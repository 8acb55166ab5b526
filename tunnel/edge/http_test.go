package edge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// TestHTTPIsTheSameAsWithoutATunnel makes requests of all kinds, to a server directly and
// through a tunnel, again and again on the same connection.
func TestHTTPIsTheSameAsWithoutATunnel(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			w.Header().Set("Saw", fmt.Sprintf("%s %s %d %q %v %q", r.Method, r.URL, len(body), r.TransferEncoding, err, r.Trailer.Get("Late")))
			w.Header()["Several"] = []string{"a", "b"}
			switch r.URL.Path {
			case "/none":
				w.WriteHeader(http.StatusNoContent)
			case "/same":
				w.WriteHeader(http.StatusNotModified)
			case "/hints":
				w.Header().Set("Link", "</x>")
				w.WriteHeader(http.StatusEarlyHints)
				io.WriteString(w, "after hints")
			case "/chunks":
				w.Header().Set("Trailer", "Sum")
				for i := range 3 {
					fmt.Fprintf(w, "part %d;", i)
					http.NewResponseController(w).Flush()
				}
				w.Header().Set("Sum", "3")
			case "/long":
				w.Header().Set("Long", strings.Repeat("x", 100_000))
				io.WriteString(w, strings.Repeat("y", 300_000))
			case "/redirect":
				http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
			case "/last":
				w.Header().Set("Connection", "close")
				io.WriteString(w, "bye")
			default:
				io.WriteString(w, "hello")
			}
		})
		l.handler = handler
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		direct := httptest.NewServer(handler)
		defer direct.Close()
		plain := &http.Transport{DisableCompression: true}
		defer plain.CloseIdleConnections()

		type answer struct {
			Status  int
			Header  http.Header
			Trailer http.Header
			Body    string
			Length  int64
		}
		ask := func(via http.RoundTripper, base, method, path string, body func() io.Reader) answer {
			t.Helper()
			var r io.Reader
			if body != nil {
				r = body()
			}
			req, err := http.NewRequestWithContext(l.ctx, method, base+path, r)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(path, "trailer") {
				req.Trailer = http.Header{"Late": {"yes"}}
			}
			if strings.Contains(path, "continue") {
				req.Header.Set("Expect", "100-continue")
			}
			res, err := via.RoundTrip(req)
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			res.Header.Del("Date")
			return answer{res.StatusCode, res.Header, res.Trailer, string(text), res.ContentLength}
		}
		known := func() io.Reader { return strings.NewReader("some text") }
		large := func() io.Reader { return strings.NewReader(strings.Repeat("z", 200_000)) }
		unknown := func() io.Reader { return struct{ io.Reader }{strings.NewReader("who knows how long")} }
		for range 2 {
			for _, c := range []struct {
				method, path string
				body         func() io.Reader
			}{
				{"GET", "/", nil},
				{"HEAD", "/", nil},
				{"HEAD", "/long", nil},
				{"GET", "/none", nil},
				{"GET", "/same", nil},
				{"GET", "/hints", nil},
				{"GET", "/chunks", nil},
				{"GET", "/long?a=b&c=%2F", nil},
				{"GET", "/redirect", nil},
				{"DELETE", "/", nil},
				{"OPTIONS", "/", nil},
				{"POST", "/", nil},
				{"POST", "/", known},
				{"POST", "/", large},
				{"POST", "/", unknown},
				{"POST", "/trailer", unknown},
				{"POST", "/continue", known},
				{"PUT", "/none", known},
				{"GET", "/last", nil},
				{"POST", "/last", known},
			} {
				want := ask(plain, direct.URL, c.method, c.path, c.body)
				got := ask(l.dialer, "https://"+host, c.method, c.path, c.body)
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s %s (-direct +tunnel):\n%s", c.method, c.path, d)
				}
			}
		}
	})
}

func TestAnAnswerThatComesBeforeTheBodyIsThere(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close") // net/http's server would wait for the body else
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(w, "too much")
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		body, more := io.Pipe() // without an end
		defer more.Close()
		go more.Write([]byte("a beginning"))
		req, _ := http.NewRequestWithContext(l.ctx, http.MethodPost, "https://"+host+"/", body)
		res, err := l.dialer.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusRequestEntityTooLarge || string(text) != "too much" {
			t.Errorf("%s %q", res.Status, text)
		}
		eventually(t, "the connection is given up", func() bool { return l.edges[0].Stats().Streams == 0 })
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello world") })
		l.mustCall()
	})
}

func TestAnAnswerGivenUpIsNotMistakenForTheNext(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Long") != "" {
				io.WriteString(w, strings.Repeat("hello world", 100_000))
				return
			}
			io.WriteString(w, "hello world")
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		for range 5 {
			req, _ := http.NewRequestWithContext(l.ctx, http.MethodGet, "https://"+host+"/", nil)
			req.Header.Set("Long", "1")
			res, err := l.dialer.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(res.Body, make([]byte, 20))
			res.Body.Close()
			l.mustCall()
		}
	})
}

func TestAHeadThatIsTooLongIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Long", strings.Repeat("x", 2<<20))
	})
	l.edge(edge.Limits{})
	l.connector("one")
	l.dial()
	_, _, err := l.call(l.ctx, "")
	wantStage(t, err, tunnel.StageProtocol)
}

func TestAContextsEndIsWhatTheCallerGets(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		l.edge(edge.Limits{})
		l.connector("one")
		l.dial()
		ctx, cancel := context.WithTimeout(l.ctx, 200*time.Millisecond)
		defer cancel()
		if _, _, err := l.call(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("in the body: %v", err)
		}
		if _, _, err := l.call(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before it began: %v", err)
		}
	})
}
