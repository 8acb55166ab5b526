package loop

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model/scripted"
)

var (
	sims    = flag.Int("sims", 1, "simulations to run in TestSimulation")
	simSeed = flag.Uint64("sim-seed", 1, "seed of the first simulation")
)

// TestSimulation lets several sessions, their clients, workers and engines run
// for some minutes of virtual time while everything breaks: workers die without a
// word and others take over, results come twice, clients interrupt, engines are
// stopped, the model fails, and the database loses writes, replies, or is away
// for longer than any lease. Then all is calm, and every session must come to
// rest with its promises kept.
func TestSimulation(t *testing.T) {
	t.Parallel()
	for i := range *sims {
		seed := *simSeed + uint64(i)
		t.Run(fmt.Sprint("seed_", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

type sim struct {
	*plane
	sessions []api.SessionID

	mu    sync.Mutex
	rnd   *rand.Rand
	calm  bool
	dark  time.Time // the database is away until then
	acked map[api.EventID]api.SessionID
	count map[string]int // what happened
	far   *far
}

const chaosTime = 2 * time.Minute

func simulate(t *testing.T, seed uint64) {
	s := &sim{
		plane: newPlane(t), rnd: rand.New(rand.NewPCG(seed, 1)),
		acked: map[api.EventID]api.SessionID{}, count: map[string]int{},
	}
	s.patience = time.Hour
	s.serve(scripted.New(scripted.Options{FirstByte: 2 * time.Second, EventDelay: 100 * time.Millisecond}), func() error {
		return s.fault("model", 10)
	})
	s.far = s.farServer()
	s.far.work = func() time.Duration { return s.between(0, 20*time.Second) }
	inner := s.mcp.Transport
	s.mcp.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		s.far.away.Store(s.chance("server away", 15))
		res, err := inner.RoundTrip(r)
		if err == nil && s.chance("answer of a server lost", 15) {
			res.Body.Close()
			return nil, errFault
		}
		return res, err
	})
	for range 3 {
		s.sessions = append(s.sessions, s.farSession())
	}
	s.close()
	s.calm = true // while the database is opened
	s.store.BeforeCommit = func() error { return s.fault("lost", 25) }
	s.store.AfterCommit = func() error { return s.fault("reply lost", 25) }
	s.open()
	s.calm = false

	ctx, end := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := s.control.Run(ctx); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	for range 2 {
		all.Go(func() { s.engines(ctx) })
		all.Go(func() { s.workers(ctx) })
	}
	for _, id := range s.sessions {
		all.Go(func() { s.client(ctx, id) })
	}
	time.Sleep(chaosTime)
	s.settle()
	end()
	all.Wait()

	s.mu.Lock()
	t.Log("seed", seed, s.count)
	s.mu.Unlock()
	for _, id := range s.sessions {
		s.check(id)
	}
}

// chance is true once in n times on average, and never when all is calm.
func (s *sim) chance(what string, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calm || s.rnd.IntN(n) > 0 {
		return false
	}
	s.count[what]++
	return true
}

func (s *sim) between(a, b time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a + time.Duration(s.rnd.Int64N(int64(b-a)))
}

func (s *sim) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.IntN(n)
}

func (s *sim) isCalm() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calm
}

func (s *sim) fault(what string, n int) error {
	if s.chance(what, n) {
		return errFault
	}
	if what == "model" {
		return nil
	}
	if s.chance("database away", 200) {
		until := time.Now().Add(s.between(5*time.Second, 40*time.Second))
		s.mu.Lock()
		s.dark = until
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if what == "lost" && !s.calm && time.Now().Before(s.dark) {
		return errFault
	}
	return nil
}

// engines runs engines, one after the other.
func (s *sim) engines(ctx context.Context) {
	for ctx.Err() == nil {
		grace := time.Nanosecond
		if s.pick(2) == 0 {
			grace = 5 * time.Second
		}
		e := s.engine(func(c *Config) { c.Grace, c.Logger = grace, nil })
		life, end := context.WithCancel(ctx)
		go func() {
			for sleep(life, s.between(10*time.Second, 40*time.Second)) {
				if s.chance("engine stopped", 2) {
					end()
				}
			}
		}()
		if err := e.Run(life); err != nil {
			s.t.Error(err)
		}
		end()
	}
}

// client talks to one session.
func (s *sim) client(ctx context.Context, id api.SessionID) {
	say := []string{
		"run ls -la #", "read notes.txt #", "run make test #", "run rm -rf / #", "hello", "run cat a.txt #",
		`call mcp__far__look {"word":"%s"}`, `call mcp__far__work {"word":"%s"}`, `call mcp__far__push {"word":"%s"}`, `call mcp__far__work {"word":"%s"}`,
	}
	for n := 0; sleep(ctx, s.between(time.Second, 15*time.Second)); n++ {
		var events []json.RawMessage
		log := s.log(ctx, id)
		for _, c := range log.calls() {
			if c.ask && c.verdict == "" && c.result == 0 && s.pick(2) == 0 {
				verdict := []string{"allow", "deny"}[s.pick(2)]
				events = append(events, event(api.EvUserToolConfirmation, map[string]any{"tool_use_id": c.id, "result": verdict}))
			}
		}
		switch {
		case s.chance("interrupt", 8):
			events = append(events, interrupt())
		case len(events) == 0 && len(log.waiting()) == 0 && !s.isCalm():
			events = append(events, userMessage(strings.Replace(say[s.pick(len(say))], "%s", fmt.Sprint(id, " ", n), 1)))
		}
		if len(events) == 0 {
			continue
		}
		out, err := s.control.SendEvents(ctx, s.admin, id, api.EventsRequest{Events: events})
		if e := api.AsError(err); e != nil && e.Status >= 500 {
			s.t.Errorf("the client got %v", e)
		}
		s.mu.Lock()
		for _, e := range out.Data {
			if err == nil {
				s.acked[e.ID] = id
			}
		}
		s.mu.Unlock()
	}
}

// workers runs workers, one after the other.
func (s *sim) workers(ctx context.Context) {
	env := control.Principal{Kind: api.KeyEnvironment, EnvironmentID: s.env}
	for n := 0; ctx.Err() == nil; n++ {
		work, err := s.control.PollWork(ctx, env, s.env, api.PollRequest{Block: api.PollBlockMax, WorkerID: fmt.Sprint("worker ", n)})
		if err != nil || work == nil {
			sleep(ctx, s.between(time.Second, 3*time.Second))
			continue
		}
		if _, err := s.control.AckWork(ctx, env, s.env, work.ID); err != nil || s.chance("worker died after ack", 10) {
			continue
		}
		s.serveWork(ctx, work)
	}
}

// serveWork runs the calls of a session until the lease or the worker's life ends.
func (s *sim) serveWork(ctx context.Context, work *api.Work) {
	ctx, die := context.WithCancel(ctx)
	var heart sync.WaitGroup
	defer func() {
		die()
		heart.Wait()
	}()
	p := s.token(ctx, work)
	if p.Kind == "" {
		return
	}
	heart.Go(func() {
		defer die()
		beat, lost := api.HeartbeatNone, 0
		for {
			out, err := s.control.HeartbeatWork(ctx, p, s.env, work.ID, api.HeartbeatRequest{Expected: beat})
			switch {
			case api.AsError(err) != nil:
				return // it is somebody else's now
			case err != nil:
				if lost++; lost == 30 {
					return
				}
				if !sleep(ctx, time.Second) {
					return
				}
				continue
			case out.State == api.WorkStopping || out.State == api.WorkStopped || !out.LeaseExtended:
				return
			}
			beat, lost = out.LastHeartbeat, 0
			if !sleep(ctx, time.Duration(out.TTLSeconds)*time.Second/2) {
				return
			}
		}
	})
	for idle := 0; idle < 30 && sleep(ctx, s.between(time.Second, 4*time.Second)); idle++ {
		log := s.log(ctx, work.Data.ID)
		for _, c := range log.calls() {
			if c.custom || c.mcp || c.denied || c.result > 0 || c.ask && c.verdict != "allow" {
				continue
			}
			idle = 0
			sleep(ctx, s.between(0, 8*time.Second))
			if s.chance("worker died", 12) {
				return
			}
			events := []json.RawMessage{result(c.id, "output of "+string(c.id))}
			if s.chance("result sent twice", 4) {
				events = append(events, events[0])
			}
			out, err := s.control.SendEvents(ctx, p, work.Data.ID, api.EventsRequest{Events: events})
			if err != nil && s.isCalm() && ctx.Err() == nil {
				s.t.Errorf("result of %s in calm: %v\n%s", c.id, err, log)
			}
			if err == nil {
				s.mu.Lock()
				s.acked[out.Data[0].ID] = work.Data.ID
				s.mu.Unlock()
			}
		}
	}
	_, _ = s.control.StopWork(context.WithoutCancel(ctx), p, s.env, work.ID, api.StopRequest{Force: true}) // a lapsed lease does the same
}

// token returns the credential that comes with a work item.
func (s *sim) token(ctx context.Context, work *api.Work) control.Principal {
	raw, err := base64.RawURLEncoding.DecodeString(*work.Secret)
	var secret api.WorkSecret
	if err == nil {
		err = json.Unmarshal(raw, &secret)
	}
	if err != nil {
		s.t.Error(err)
	}
	p, err := s.control.Authenticate(ctx, secret.SessionsToken)
	if err != nil && !errors.Is(err, errFault) && ctx.Err() == nil && api.AsError(err) == nil {
		s.t.Error(err)
	}
	return p
}

func (s *sim) log(ctx context.Context, id api.SessionID) *memLog {
	log := &memLog{}
	page, err := s.control.ListEvents(context.WithoutCancel(ctx), s.admin, id, "", api.EventFilter{}, api.PageRequest{Limit: 1000})
	if err != nil || page.NextPage != nil {
		s.t.Error("listing events: ", err, page.NextPage)
		return log
	}
	for _, e := range page.Data {
		log.entries = append(log.entries, api.Entry{Event: *e, Queued: e.ProcessedAt == nil})
	}
	return log
}

// settle ends the chaos and waits until nothing happens any more.
func (s *sim) settle() {
	s.mu.Lock()
	s.calm = true
	s.mu.Unlock()
	for deadline := time.Now().Add(time.Hour); ; time.Sleep(10 * time.Second) {
		busy := slices.DeleteFunc(slices.Clone(s.sessions), func(id api.SessionID) bool {
			log := s.log(s.ctx, id)
			queued := slices.ContainsFunc(log.entries, func(e api.Entry) bool { return e.Queued })
			session := must(s.control.GetSession(s.ctx, s.admin, id))(s.t)
			return session.Status == api.StatusIdle && !queued && len(log.waiting()) == 0
		})
		if len(busy) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, id := range busy {
				s.t.Errorf("%s does not come to rest:\n%s", id, s.log(s.ctx, id))
				page, _ := s.control.ListWork(s.ctx, s.admin, s.env, api.PageRequest{Limit: 1000})
				for _, w := range page.Data {
					if w.Data.ID == id {
						b, _ := json.Marshal(w)
						s.t.Logf("%s", b)
					}
				}
			}
			return
		}
	}
}

func (s *sim) check(id api.SessionID) {
	checkLog(s.t, s.plane, id)
	checkFeed(s.t, s.plane, id)
	log := s.log(s.ctx, id)
	present := map[api.EventID]bool{}
	for _, e := range log.entries {
		present[e.Event.ID] = true
		if b, ok := e.Event.Body.(*api.SessionError); ok &&
			(strings.Contains(b.Error.Message, "refused the request") || strings.Contains(b.Error.Message, "mistake") || strings.Contains(b.Error.Message, "log says why")) {
			s.t.Errorf("%s: %s", e.Event.ID, b.Error.Message)
		}
	}
	for ev, of := range s.acked {
		if of == id && !present[ev] {
			s.t.Errorf("%s was acknowledged and is lost", ev)
		}
	}
	for _, c := range log.calls() {
		if c.result != 1 {
			s.t.Errorf("call %s has %d results", c.id, c.result)
		}
	}
	s.far.check(s.t, log)
	if s.t.Failed() {
		s.t.Logf("%s:\n%s", id, log)
	}
}
