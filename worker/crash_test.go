package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool"
)

// doom kills a worker at its n-th step that anybody else could see: a durable
// write, or a request before it arrives or before it is answered. From then on
// none of its writes and requests get through, which from outside is a kill.
type doom struct {
	n    int
	kill func()

	mu   sync.Mutex
	seen int
	at   string // the step it died at
}

var errDead = errors.New("the worker is dead")

func (d *doom) step(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen++
	if d.at == "" && d.seen == d.n {
		d.at = name
		d.kill()
	}
	if d.at != "" {
		return errDead
	}
	return nil
}

// doomed is the network as a doomed worker sees it.
type doomed struct {
	*doom
	next http.RoundTripper
}

func (d doomed) RoundTrip(r *http.Request) (*http.Response, error) {
	name := r.Method + " " + r.URL.Path
	if strings.HasSuffix(name, "/poll") {
		// Polls repeat for ever; the first that finds something stands for all.
		return d.poll(r)
	}
	if err := d.step("before " + name); err != nil {
		return nil, err
	}
	res, err := d.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if err := d.step("after " + name); err != nil {
		_ = res.Body.Close()
		return nil, err
	}
	return res, nil
}

func (d doomed) poll(r *http.Request) (*http.Response, error) {
	d.mu.Lock()
	dead := d.at != ""
	d.mu.Unlock()
	if dead {
		return nil, errDead
	}
	res, err := d.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(strings.NewReader(string(b)))
	if string(b) == "null" {
		return res, nil
	}
	if err := d.step("after a poll with work"); err != nil {
		return nil, err
	}
	return res, nil
}

// TestKilledAnywhere kills a worker at every step of a whole session, starts
// another on the same data directory and checks from outside that every call was
// run at most once and answered once, that what was posted twice was the same,
// and that nothing is left behind.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		killedAnywhere(t, func(c *Config) {})
	})
	t.Run("with a pool, kept boxes and networks", func(t *testing.T) {
		t.Parallel()
		killedAnywhere(t, func(c *Config) {
			d := c.Driver.(*fakeDriver)
			d.freezes = true
			d.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
				if err := b.spec.Network.(*fakeNetwork).connect("good.example:443", true); err != nil && !errors.Is(err, errDead) {
					b.driver.t.Error(err)
				}
				return echo(ctx, b, c)
			}
			c.Networks, c.PoolSize = &fakeNetworks{t: d.t}, 1
		})
	})
}

func killedAnywhere(t *testing.T, edit func(*Config)) {
	for n := 1; ; n++ {
		var at string
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			f := &field{T: t, plane: newFakePlane(t), driver: &fakeDriver{t: t, run: echo}, dir: dir}
			at = f.killAt(n, edit)
			if t.Failed() {
				t.Logf("killed at step %d: %s", n, at)
			}
		})
		if at == "" {
			if n < 40 {
				t.Errorf("a session has only %d steps", n)
			}
			return
		}
		if t.Failed() {
			return
		}
	}
}

func (f *field) killAt(n int, edit func(*Config)) (at string) {
	calls := []string{"c1", "c2", "c3"}
	f.plane.session("sesn_1", []toolUse{bash("c1"), {id: "c2", name: "read", input: `{"file_path":"c2"}`}}, []toolUse{bash("c3")})
	d := &doom{n: n}
	killed := make(chan struct{})
	d.kill = func() { close(killed) }
	c := f.config()
	c.MaxIdle = 5 * time.Second
	c.HTTPClient = &http.Client{Transport: doomed{d, f.plane}}
	edit(&c)
	first, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	first.step = d.step
	w := f.run(first)
	select {
	case <-killed:
	case <-time.After(10 * time.Minute):
	}
	w.stop()
	at = d.at

	second := f.start(func(c *Config) { c.MaxIdle = 5 * time.Second }, edit)
	f.stopped("sesn_1")
	time.Sleep(time.Minute)
	second.stop()
	if sessions, pooled := f.folders(); len(sessions) > 1 || len(pooled) > 0 {
		f.Errorf("folders left: %v and %v", sessions, pooled)
	}

	ran := map[string]int{}
	for _, call := range f.driver.ran() {
		for _, id := range calls {
			if strings.Contains(call, id) {
				ran[id]++
			}
		}
	}
	started := map[string]bool{}
	for _, r := range f.records() {
		for _, id := range calls {
			if strings.HasPrefix(r, "tool.start") && strings.HasSuffix(r, id) {
				started[id] = true
			}
		}
	}
	for _, id := range calls {
		text, isError, ok := f.plane.result("sesn_1", id)
		whole := strings.Contains(text, id)
		cut := isError && strings.Contains(text, "was not run again")
		switch {
		case !ok:
			f.Errorf("%s was never answered", id)
		case ran[id] > 1:
			f.Errorf("%s ran %d times", id, ran[id])
		case whole && ran[id] != 1, !whole && !cut:
			f.Errorf("%s ran %d times and was answered with %q", id, ran[id], text)
		}
		if ran[id] > 0 && !started[id] {
			f.Errorf("%s ran without a record of it", id)
		}
		posted := map[string]bool{}
		for _, r := range f.plane.requests {
			if r.method == "POST" && strings.HasSuffix(r.path, "/events") && strings.Contains(r.body, fmt.Sprintf(`"tool_use_id":%q`, id)) {
				posted[r.body] = true
			}
		}
		if len(posted) != 1 {
			f.Errorf("%d different results were posted for %s: %v", len(posted), id, posted)
		}
	}
	if diff := cmp.Diff([]string{}, append(f.left("items"), f.left("calls")...)); diff != "" {
		f.Errorf("left on disk: %s", diff)
	}
	return at
}

// TestRestartResumes: a worker that comes back while its lease lasts carries on
// at once, without its item being offered again.
func TestRestartResumes(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1")
		d := &doom{}
		c := f.config()
		c.HTTPClient = &http.Client{Transport: doomed{d, f.plane}}
		c.MaxIdle = -1
		first, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		first.step = d.step
		w := f.run(first)
		time.Sleep(40 * time.Second) // some beats
		d.mu.Lock()
		d.at = "now"
		d.mu.Unlock()
		w.stop()

		f.plane.mu.Lock()
		s.script = [][]toolUse{{bash("c1")}}
		f.plane.step(s)
		f.plane.mu.Unlock()
		began := time.Now()
		f.start(func(c *Config) { c.MaxIdle = -1 })
		f.plane.until("answered", func() bool { return s.calls["c1"].result != nil })
		if took := time.Since(began); took > time.Second {
			t.Errorf("answered after %s", took)
		}
		if n := f.plane.count("POST", "/ack"); n != 1 {
			t.Errorf("%d acknowledgements, want 1", n)
		}
	})
}

// TestRestartTooLate: by then the item is another worker's, and is left alone,
// also while the plane does not say so yet.
func TestRestartTooLate(t *testing.T) {
	virtual(t, func(f *field) {
		s := f.plane.session("sesn_1")
		write(f, "items/work_sesn_1.json", `{"work_id":"work_sesn_1","environment_id":"env_1","session_id":"sesn_1","last_heartbeat":"stale","beaten":true}`)
		it := f.plane.item("sesn_1")
		f.plane.mu.Lock()
		it.state, it.last, it.until = "active", "fresh", time.Now().Add(time.Hour)
		f.plane.ask(s, bash("c1"))
		f.plane.mu.Unlock()
		began := time.Now()
		f.plane.fault = func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/heartbeat") && time.Since(began) < 5*time.Second {
				return &fakeReply{status: 503, body: "{}"}, nil
			}
			return nil, nil
		}
		w := f.start()
		time.Sleep(time.Minute)
		w.stop()
		if n := f.plane.count("POST", "/stop") + f.plane.count("POST", "/events"); n != 0 {
			t.Errorf("%d stops and results for somebody else's item", n)
		}
		if len(f.driver.ran()) != 0 {
			t.Error("its call was run")
		}
		if got := f.left("items"); len(got) != 0 {
			t.Errorf("item notes left: %v", got)
		}
	})
}
