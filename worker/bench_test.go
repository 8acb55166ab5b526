package worker

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// BenchmarkCall measures what the worker adds to a tool call: from the event to
// the plane having the result, with a tool and a plane that take no time, and
// every write synced to a real disk.
func BenchmarkCall(b *testing.B) {
	t := &testing.T{}
	p := newFakePlane(t)
	d := &fakeDriver{t: t, run: echo}
	w, err := New(Config{
		EnvironmentID: testEnv, Key: StaticKey(testKey), BaseURL: "http://plane.test/", DataDir: b.TempDir(),
		Driver: d, Agent: "/bin/true", HTTPClient: &http.Client{Transport: p},
	})
	if err != nil {
		b.Fatal(err)
	}
	s := p.session("sesn_1", []toolUse{bash("c0")})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	answered := func(id string) func() bool { return func() bool { return s.calls[id].result != nil } }
	p.until("answered", answered("c0"))
	took := time.Duration(0)
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprint("c", n)
		p.mu.Lock()
		began := time.Now()
		p.ask(s, bash(id))
		p.mu.Unlock()
		p.until("answered", answered(id))
		took += time.Since(began)
		p.mu.Lock()
		p.requests, s.order = nil, nil
		p.mu.Unlock()
	}
	b.ReportMetric(float64(took.Microseconds())/float64(n), "µs/call")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkClaim measures what a session waits for its first box where one is ready,
// besides the thaw itself: the record of it, and the folder that becomes the session's.
func BenchmarkClaim(b *testing.B) {
	t := &testing.T{}
	d := &fakeDriver{t: t, run: echo, freezes: true}
	w, err := New(Config{
		EnvironmentID: testEnv, Key: StaticKey(testKey), BaseURL: "http://plane.test/", DataDir: b.TempDir(),
		Driver: d, Agent: "/bin/true", HTTPClient: &http.Client{Transport: newFakePlane(t)}, PoolSize: 8,
	})
	if err != nil {
		b.Fatal(err)
	}
	closeAll, err := w.open()
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	p := w.boxes.pool
	n := 0
	for b.Loop() {
		b.StopTimer()
		began := time.Now()
		ready, err := p.make(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		p.put(ready, began)
		n++
		session := fmt.Sprint("sesn_", n)
		b.StartTimer()
		r, how, err := w.boxes.provide(b.Context(), session, nil, discard)
		b.StopTimer()
		if err != nil || how != "claimed" {
			b.Fatal(how, err)
		}
		r.end(discard)
		b.StartTimer()
	}
}
