package model_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/model"
)

// A paced reply sends its pieces at their times after the request, and then
// says no more. It honours the request's context as a connection does.
type paced []piece

type piece struct {
	at   time.Duration
	text string
}

func (p paced) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	pr, pw := io.Pipe()
	context.AfterFunc(r.Context(), func() { pw.CloseWithError(context.Cause(r.Context())) })
	wait := func(at time.Duration) error {
		select {
		case <-time.After(time.Until(began.Add(at))):
			return nil
		case <-r.Context().Done():
			return context.Cause(r.Context())
		}
	}
	if len(p) == 0 {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	}
	if err := wait(p[0].at); err != nil {
		return nil, err
	}
	go func() {
		for _, piece := range p {
			if wait(piece.at) != nil {
				return
			}
			if _, err := io.WriteString(pw, piece.text); err != nil {
				return
			}
		}
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: pr, Request: r}, nil
}

// TestLimitsOfSilence plays replies that take minutes and hours, in no time.
func TestLimitsOfSilence(t *testing.T) {
	t.Parallel()
	const ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n"
	const begin, end = "data: " + start + "\n\n", "data: " + endTurn + "\n\ndata: " + stop + "\n\n"
	pings := func(every, until time.Duration) paced {
		p := paced{{0, begin}}
		for at := every; at <= until; at += every {
			p = append(p, piece{at, ping})
		}
		return p
	}
	tests := []struct {
		name  string
		reply paced
		took  time.Duration
		want  string // "" for success
	}{
		{"no reply", nil, 10 * time.Minute, "sent no reply within 10m0s"},
		{"headers only", paced{{0, ""}}, 10 * time.Minute, "sent no reply within 10m0s"},
		{"late first byte", paced{{9 * time.Minute, begin + end}}, 9 * time.Minute, ""},
		{"silence in the middle", paced{{time.Minute, begin}}, 3 * time.Minute, "sent nothing for 2m0s"},
		{"silence inside an event", paced{{0, begin}, {time.Minute, "data: {"}}, 3 * time.Minute, "sent nothing for 2m0s"},
		{"pings bridge the silence", append(pings(time.Minute, 30*time.Minute), piece{31 * time.Minute, end}), 31 * time.Minute, ""},
		{"pings without end", pings(time.Minute, 2*time.Hour), time.Hour, "took longer than 1h0m0s"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				client, err := model.New(context.Background(), model.Config{Key: testKey, HTTPClient: &http.Client{Transport: test.reply}})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				_, err = client.Stream(t.Context(), hello(), nil)
				// The connection may be kept for a moment after the last event.
				if took := time.Since(began); took < test.took || took > test.took+time.Second {
					t.Errorf("took %s, want %s", took, test.took)
				}
				if test.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if e := modelError(t, err); e.Kind != model.Interrupted || !e.Retryable || !strings.Contains(e.Message, test.want) {
					t.Errorf("got %+v, want …%s", e, test.want)
				}
			})
		})
	}
}

func TestDeadlineOfTheCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, err := model.New(context.Background(), model.Config{Key: testKey, HTTPClient: &http.Client{Transport: paced(nil)}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := client.Stream(ctx, hello(), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
