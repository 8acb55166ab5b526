package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

var simSeeds = flag.Uint64("sim.seeds", 3, "how many seeds TestSimulation plays")

// TestSimulation plays a quarter of an hour of bad luck and then a calm: two workers
// that are killed and restarted again and again, a network that drops requests
// and answers, users who interrupt, approve and deny. In the end every call must
// be settled, no worker may have run one twice, and nothing may be left over.
func TestSimulation(t *testing.T) {
	t.Parallel()
	for seed := range *simSeeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			dirs := []string{t.TempDir(), t.TempDir()}
			synctest.Test(t, func(t *testing.T) { newSim(t, seed, dirs).play() })
		})
	}
}

type sim struct {
	*testing.T
	plane *fakePlane
	dirs  []string
	calm  time.Time // when bad luck ends

	mu  sync.Mutex
	rng *rand.Rand
}

func newSim(t *testing.T, seed uint64, dirs []string) *sim {
	s := &sim{T: t, plane: newFakePlane(t), dirs: dirs, calm: time.Now().Add(15 * time.Minute), rng: rand.New(rand.NewPCG(seed, 1))}
	s.plane.fault = func(r *http.Request) (*fakeReply, error) {
		switch {
		case !s.unlucky(4):
			return nil, nil
		case s.unlucky(50):
			return nil, errors.New("connection refused")
		default:
			return &fakeReply{status: []int{401, 429, 500, 503}[s.intn(4)], body: "{}"}, nil
		}
	}
	s.plane.lose = func(*http.Request) bool { return s.unlucky(3) }
	return s
}

func (s *sim) intn(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

// unlucky is true in percent of the cases, until the calm.
func (s *sim) unlucky(percent int) bool {
	return time.Now().Before(s.calm) && s.intn(100) < percent
}

func (s *sim) play() {
	const sessions = 4
	for i := range sessions {
		var script [][]toolUse
		for turn := range 8 {
			var calls []toolUse
			for call := range 1 + s.intn(3) {
				u := bash(fmt.Sprintf("s%d-t%d-c%d.", i, turn, call))
				u.permission = []string{"", "allow", "allow", "ask"}[s.intn(4)]
				calls = append(calls, u)
			}
			script = append(script, calls)
		}
		s.plane.session(fmt.Sprint("sesn_", i), script...)
	}
	ctx, cancel := context.WithCancel(s.Context())
	var running sync.WaitGroup
	drivers := make([]*fakeDriver, len(s.dirs))
	for i, dir := range s.dirs {
		drivers[i] = &fakeDriver{t: s.T, run: func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
			select {
			case <-time.After(time.Duration(s.intn(20)) * time.Second):
				return echo(ctx, b, c)
			case <-ctx.Done():
				return tool.ErrorResult("cancelled")
			}
		}}
		running.Go(func() { s.worker(ctx, fmt.Sprint("w", i), dir, drivers[i]) })
	}
	running.Go(func() { s.users(ctx) })

	deadline := time.Now().Add(4 * time.Hour)
	for !s.settled() {
		if time.Now().After(deadline) {
			s.report()
			break
		}
		time.Sleep(10 * time.Second)
	}
	cancel()
	running.Wait()

	for i, dir := range s.dirs {
		ran := map[string]int{}
		for _, call := range drivers[i].ran() {
			if ran[call]++; ran[call] > 1 {
				s.Errorf("worker %d ran %q %d times", i, call, ran[call])
			}
		}
		if n := drivers[i].live(); n != 0 {
			s.Errorf("worker %d left %d boxes", i, n)
		}
		if sum, err := audit.VerifyFile(filepath.Join(dir, "audit.jsonl")); err != nil || !sum.Complete {
			s.Errorf("audit record of worker %d: %+v, %v", i, sum, err)
		}
	}
}

// worker runs a worker, kills it after a while and starts it again.
func (s *sim) worker(ctx context.Context, id, dir string, driver *fakeDriver) {
	for ctx.Err() == nil {
		d := &doom{}
		if time.Now().Before(s.calm) {
			d.n = 1 + s.intn(150)
		}
		life, end := context.WithCancel(ctx)
		d.kill = end
		w, err := New(Config{
			EnvironmentID: testEnv, Key: StaticKey(testKey), BaseURL: "http://plane.test/", DataDir: dir,
			WorkerID: id, Driver: driver, Agent: "/bin/true", MaxSessions: 3, MaxIdle: 20 * time.Second,
			HTTPClient: &http.Client{Transport: doomed{d, s.plane}}, Logger: discard,
		})
		if err != nil {
			s.Fatal(err)
		}
		w.step = d.step
		// A deploy now and then, instead of a kill.
		stop := time.AfterFunc(time.Duration(60+s.intn(600))*time.Second, func() {
			if time.Now().Before(s.calm) {
				end()
			}
		})
		if err := w.Run(life); err != nil {
			// Bad luck from the very start may look like a wrong key.
			if _, unlucky := errors.AsType[*KeyRefused](err); !unlucky && !errors.Is(err, errDead) {
				s.Errorf("Run: %v", err)
			}
		}
		stop.Stop()
		end()
		sleep(ctx, time.Duration(s.intn(30))*time.Second)
	}
}

// users interrupt, approve and deny, and the plane queues a new item when one
// was stopped with calls still open.
func (s *sim) users(ctx context.Context) {
	p := s.plane
	for n := 0; sleep(ctx, 5*time.Second); n++ {
		p.mu.Lock()
		for _, se := range p.sessions {
			for _, id := range se.order {
				if c := se.calls[id]; c.use.permission == "ask" && c.result == nil && !c.invalid {
					verdict := "allow"
					if len(id)%2 == 0 && strings.Contains(id, "c0") {
						verdict, c.invalid = "deny", true
					}
					p.emit(se, "user.tool_confirmation", map[string]any{"tool_use_id": id, "result": verdict})
				}
			}
			if !se.open() && se.status != "idle" {
				p.step(se)
			}
			if (se.open() || len(se.script) > 0) && p.item(se.id).state == "stopped" {
				p.queue(fmt.Sprint("work_", se.id, "_", n), "session", se.id)
			}
		}
		p.mu.Unlock()
		if s.unlucky(2) {
			p.interrupt(fmt.Sprint("sesn_", s.intn(4)))
		}
	}
}

// settled reports whether every session is through its script and left.
func (s *sim) settled() bool {
	s.plane.mu.Lock()
	defer s.plane.mu.Unlock()
	for _, se := range s.plane.sessions {
		if se.open() || len(se.script) > 0 || s.plane.item(se.id).state != "stopped" {
			return false
		}
	}
	return true
}

func (s *sim) report() {
	s.plane.mu.Lock()
	defer s.plane.mu.Unlock()
	for _, se := range s.plane.sessions {
		s.Errorf("%s: %d turns left, item %s", se.id, len(se.script), s.plane.item(se.id).state)
		for id, c := range se.calls {
			if c.result == nil && !c.invalid {
				s.Errorf("  %s has no result", id)
			}
		}
	}
}
