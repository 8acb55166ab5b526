package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/settings"
)

func settingsDuration(d time.Duration) settings.Duration { return settings.Duration(d) }

// Both protocols that the platform may speak.
func eachProtocol(t *testing.T, do func(t *testing.T, h2 bool)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			t.Parallel()
			do(t, h2)
		})
	}
}

func TestACallIsPassedOnAsItIs(t *testing.T) {
	t.Parallel()
	s := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %s %s %v %q", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Forwarded-Proto"), r.TransferEncoding, r.Header["X-Twice"]))
		w.Header().Set("Connection-Named", r.Header.Get("X-Dropped"))
		w.Write(body)
	})
	eachProtocol(t, func(t *testing.T, h2 bool) {
		l := serve(t, s.URL, nil)
		for _, body := range []string{"", "hello", strings.Repeat("large ", 100_000)} {
			res, got := get(t, l.client(h2), "POST", "https://docs."+domain+"/a%2Fb?c=%20d", body, "X-Twice", "1", "X-Twice", "2", "X-Forwarded-For", "9.9.9.9")
			if res.StatusCode != 200 || got != body {
				t.Errorf("status %d, %d bytes of %d", res.StatusCode, len(got), len(body))
			}
			want := `POST /a%2Fb?c=%20d docs.` + domain + ` docs.` + domain + ` https [] ["1" "2"]`
			if seen := res.Header.Get("X-Seen"); seen != want {
				t.Errorf("the server saw %s, want %s", seen, want)
			}
		}
	})
}

func BenchmarkCall(b *testing.B) {
	page := []byte(strings.Repeat("x", 1024))
	s := upstreamServer(b, func(w http.ResponseWriter, r *http.Request) { w.Write(page) })
	for _, h2 := range []bool{false, true} {
		b.Run(fmt.Sprintf("h2=%v", h2), func(b *testing.B) {
			l := serve(b, s.URL, nil)
			c := l.client(h2)
			b.ReportAllocs()
			for b.Loop() {
				res, err := c.Get("https://docs." + domain + "/")
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}
