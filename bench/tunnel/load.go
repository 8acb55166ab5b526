package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// smallSize is how long a small answer is, and bigSize a large one.
const (
	smallSize = 1 << 10
	bigSize   = 1 << 30
)

func get(ctx context.Context, c contender, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.client.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("status %s", res.Status)
	}
	return res, nil
}

func small(ctx context.Context, c contender) error {
	res, err := get(ctx, c, "/small")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != smallSize {
		return fmt.Errorf("%d bytes: %w", n, err)
	}
	return nil
}

// requests has clients make requests one after the other, and returns the median and
// the 99th percentile of the time each took, in seconds.
func requests(ctx context.Context, c contender, clients int, during time.Duration) (p50, p99 float64, err error) {
	times, _, err := storm(ctx, c, clients, during)
	if err != nil {
		return 0, 0, err
	}
	return times[len(times)/2], times[len(times)*99/100], nil
}

// load is how many requests clients get done in a second, the 99th percentile, and the
// time of processors that each took.
func load(ctx context.Context, c contender, clients int, during time.Duration) ([]float64, error) {
	cpu := cpuTime()
	times, took, err := storm(ctx, c, clients, during)
	if err != nil {
		return nil, err
	}
	cpu = (cpuTime() - cpu) / (1 + warmPart) // what warmed up is not counted
	return []float64{float64(len(times)) / took.Seconds(), times[len(times)*99/100], cpu / float64(len(times))}, nil
}

// warmPart is how long loads run before they are measured, as a part of the time.
const warmPart = 0.1

func storm(ctx context.Context, c contender, clients int, during time.Duration) (times []float64, took time.Duration, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	warm := time.Now().Add(time.Duration(float64(during) * warmPart))
	began := warm
	end := warm.Add(during)
	for range clients {
		all.Go(func() {
			var own []float64
			for {
				t := time.Now()
				if t.After(end) || ctx.Err() != nil {
					break
				}
				if e := small(ctx, c); e != nil {
					mu.Lock()
					err = e
					mu.Unlock()
					return
				}
				if t.After(warm) {
					own = append(own, time.Since(t).Seconds())
				}
			}
			mu.Lock()
			times = append(times, own...)
			mu.Unlock()
		})
	}
	all.Wait()
	took = time.Since(began)
	if err == nil && len(times) == 0 {
		err = fmt.Errorf("no request was answered within %v", during)
	}
	slices.Sort(times)
	return times, took, err
}

// stream reads large answers side by side, and returns bytes a second and the time of
// processors that each byte took.
func stream(ctx context.Context, c contender, streams int, during time.Duration) ([]float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var read atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			buf := make([]byte, 64<<10)
			for ctx.Err() == nil {
				res, err := get(ctx, c, "/big")
				if err != nil {
					if ctx.Err() == nil {
						failed.Store(&err)
					}
					return
				}
				for err == nil {
					var n int
					n, err = res.Body.Read(buf)
					read.Add(int64(n))
				}
				res.Body.Close()
				if err != io.EOF && ctx.Err() == nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	time.Sleep(during / 5)
	before, cpu, began := read.Load(), cpuTime(), time.Now()
	time.Sleep(during)
	took := time.Since(began)
	bytes := float64(read.Load() - before)
	cpu = cpuTime() - cpu
	cancel()
	all.Wait()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	return []float64{bytes / took.Seconds(), cpu / bytes}, nil
}

// setups makes requests on new connections, one after the other.
func setups(ctx context.Context, c contender, during time.Duration) (float64, error) {
	var times []float64
	for end := time.Now().Add(during); time.Now().Before(end) && ctx.Err() == nil; {
		c.forget()
		t := time.Now()
		if err := small(ctx, c); err != nil {
			return 0, err
		}
		times = append(times, time.Since(t).Seconds())
	}
	c.forget()
	return median(times), nil
}
