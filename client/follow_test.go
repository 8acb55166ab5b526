package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
)

// frames is the wire form of events with the given ids; an id is also the cursor.
func frames(ids ...string) string {
	var b strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&b, "event: user.message\nid: %s\ndata: {\"id\": %q}\n\n", id, id)
	}
	return b.String()
}

const deleted = "event: session.deleted\ndata: {}\n\n"

// names follows to the end and says what came.
func names(ctx context.Context, c *Client, o FollowOptions) (got []string, err error) {
	for f, err := range c.Follow(ctx, "sesn_1", o) {
		if err != nil {
			return got, err
		}
		got = append(got, f.Name+f.ID)
	}
	return got, nil
}

func TestFollowResumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var cursors []string
		c := newClient(t, func(r *http.Request) (*http.Response, error) {
			cursors = append(cursors, r.Header.Get("Last-Event-Id"))
			switch len(cursors) {
			case 1:
				return reply(200, frames("1", "2")+"event: event_start\ndata: {}\n\nevent: user.message\nid: 3\nda"), nil // cut
			case 2:
				return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
			case 3:
				return reply(503, ""), nil
			case 4:
				return reply(200, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"stopping\"}}\n\n"), nil
			case 5:
				return reply(200, ": hello\n\nevent: ping\ndata: {}\n\nevent: agent.levitated\nid: 3\ndata: {}\n\n"), nil
			}
			return reply(200, deleted), nil
		})
		got, err := names(t.Context(), c, FollowOptions{After: FromStart})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"user.message1", "user.message2", "event_start", "agent.levitated3", "session.deleted"}, got); diff != "" {
			t.Errorf("frames (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"0", "2", "2", "2", "2", "3"}, cursors); diff != "" {
			t.Errorf("Last-Event-ID (-want +got):\n%s", diff)
		}
	})
}

func TestFollowAsksForPreviewsOfAThread(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(r *http.Request) (*http.Response, error) {
		if got := r.URL.RequestURI(); got != "/prefix/v1/sessions/sesn_1/threads/sthr_1/stream?event_deltas%5B%5D=agent.message" {
			t.Errorf("asked for %s", got)
		}
		return reply(200, deleted), nil
	})
	if _, err := names(t.Context(), c, FollowOptions{Thread: "sthr_1", Previews: []api.EventType{api.EvAgentMessage}}); err != nil {
		t.Error(err)
	}
}

func TestFollowGivesUp(t *testing.T) {
	t.Parallel()
	answers := func(all ...string) far {
		n := 0
		return func(*http.Request) (*http.Response, error) {
			if n++; n <= len(all) {
				return reply(200, all[n-1]), nil
			}
			return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
		}
	}
	unwilling := func(status int) far {
		return func(*http.Request) (*http.Response, error) { return reply(status, ""), nil }
	}
	tests := map[string]struct {
		far         far
		least, most time.Duration
	}{
		"at once when there is no such session":    {unwilling(404), 0, 0},
		"at once when the key was revoked":         {unwilling(401), 0, 0},
		"soon when there never was a server":       {answers(), 500 * time.Millisecond, 2 * time.Second},
		"later when there was one":                 {answers(frames("1")), 5 * time.Minute, 6 * time.Minute},
		"later when it accepts and says nothing":   {unwilling(200), 5 * time.Minute, 6 * time.Minute},
		"at once when the stream ends for a fault": {answers("event: error\ndata: {\"error\":{\"type\":\"not_found_error\",\"message\":\"x\"}}\n\n"), 0, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, err := names(t.Context(), newClient(t, tt.far), FollowOptions{})
				if took := time.Since(start); err == nil || took < tt.least || took > tt.most {
					t.Errorf("after %s: %v", took, err)
				}
			})
		})
	}
}

// A connection that is open and dead is left, although nobody closes it.
func TestFollowLeavesASilentStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c := newClient(t, func(r *http.Request) (*http.Response, error) {
			if n++; n > 1 {
				return reply(200, deleted), nil
			}
			body, w := io.Pipe()
			context.AfterFunc(r.Context(), func() { w.CloseWithError(r.Context().Err()) })
			go w.Write([]byte(frames("1")))
			res := reply(200, "")
			res.Body = body
			return res, nil
		})
		start := time.Now()
		got, err := names(t.Context(), c, FollowOptions{})
		if took := time.Since(start); err != nil || len(got) != 2 || took < silenceMax || took > 2*silenceMax {
			t.Errorf("%v, %v after %s", got, err, took)
		}
	})
}

func TestFollowStopsWithItsCaller(t *testing.T) {
	t.Parallel()
	connections := 0
	c := newClient(t, func(*http.Request) (*http.Response, error) {
		connections++
		return reply(200, frames("1", "2")), nil
	})
	for f, err := range c.Follow(t.Context(), "sesn_1", FollowOptions{}) {
		if err != nil || f.ID != "1" {
			t.Errorf("%v, %v", f, err)
		}
		break
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	for f, err := range c.Follow(ctx, "sesn_1", FollowOptions{}) {
		if f == nil && !errors.Is(err, why) {
			t.Errorf("ended with %v", err)
		}
		cancel(why)
	}
	if connections != 2 {
		t.Errorf("%d connections", connections)
	}
}

func TestFrameReaderBoundsAFrame(t *testing.T) {
	t.Parallel()
	endless := io.MultiReader(strings.NewReader("event: x\ndata: "), io.LimitReader(zeros{}, frameMax+1))
	if _, err := newFrameReader(endless).next(); err != errFrameTooLarge {
		t.Errorf("error %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Whatever arrives, and in whatever pieces, the reader ends and yields the same
// frames.
func FuzzFrameReader(f *testing.F) {
	f.Add(frames("1", "2") + deleted)
	f.Add("data: a\ndata: b\r\n\r\n: c\n\nid\nevent\n\nevent:x\n")
	f.Add("\n\n\r\n\x00:\n" + strings.Repeat("x", 5000) + "\ndata\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		all := func(r io.Reader) (out []Frame) {
			fr := newFrameReader(r)
			for {
				frame, err := fr.next()
				if err != nil {
					if err != io.EOF {
						t.Errorf("error %v", err)
					}
					return out
				}
				if frame.Name == "" && frame.Data == nil {
					t.Error("an empty frame")
				}
				if strings.Contains(frame.Name+frame.ID, "\n") {
					t.Errorf("frame %+v", frame)
				}
				out = append(out, *frame)
			}
		}
		if diff := cmp.Diff(all(strings.NewReader(in)), all(oneByte{strings.NewReader(in)})); diff != "" {
			t.Errorf("in one piece and byte by byte:\n%s", diff)
		}
	})
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }
