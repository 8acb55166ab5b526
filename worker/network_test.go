package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool"
)

// fakeNetworks makes networks that decide nothing by themselves.
type fakeNetworks struct {
	t  *testing.T
	mu sync.Mutex

	openErr error
	all     []*fakeNetwork
}

func (n *fakeNetworks) Open(box string, variables []Variable, record func(audit.Record) error) (Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.openErr != nil {
		return nil, n.openErr
	}
	made := &fakeNetwork{t: n.t, box: box, variables: variables, record: record, done: make(chan struct{})}
	n.all = append(n.all, made)
	return made, nil
}

func (n *fakeNetworks) last() *fakeNetwork {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all[len(n.all)-1]
}

type fakeNetwork struct {
	t   *testing.T
	box string

	variables []Variable
	record    func(audit.Record) error
	done      chan struct{}

	mu            sync.Mutex
	attached      bool
	closed        bool
	err           error
	session, call string
	denials       []string
}

func (n *fakeNetwork) Attach(sandbox.Exits) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached {
		n.t.Error("attached twice")
	}
	n.attached = true
	return nil
}

func (n *fakeNetwork) Files() map[string]string {
	return map[string]string{"/etc/resolv.conf": "/dev/null"}
}
func (n *fakeNetwork) Env() []string {
	env := []string{"API_TOKEN=placeholder"}
	for _, v := range n.variables {
		env = append(env, v.Name+"=placeholder of "+v.Name)
	}
	return env
}
func (n *fakeNetwork) Redact(s string) string { return strings.ReplaceAll(s, "hunter2", "placeholder") }
func (n *fakeNetwork) Done() <-chan struct{}  { return n.done }

func (n *fakeNetwork) SetCall(session, call string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session, n.call = session, call
}

func (n *fakeNetwork) Denials() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.denials
	n.denials = nil
	return all
}

func (n *fakeNetwork) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

func (n *fakeNetwork) Close() error { n.lose(nil); return nil }

func (n *fakeNetwork) lose(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.closed, n.err = true, err
		close(n.done)
	}
}

// connect decides about a connection, as the network of a box would.
func (n *fakeNetwork) connect(host string, allow bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := audit.Record{
		Action: audit.EgressDecision, Session: n.session, Call: n.call, Outcome: "allowed",
		Attrs: map[string]string{"protocol": "tcp", "host": host},
	}
	if !allow {
		r.Outcome = "denied"
		n.denials = append(n.denials, host+" is not allowed")
	}
	return n.record(r)
}

// actions returns the actions of the audit record.
func (f *field) actions() (all []string) {
	for _, r := range f.entries() {
		all = append(all, r.Action)
	}
	return all
}

func (f *field) entries() (all []audit.Fields) {
	log, err := audit.OpenSegments(f.dir + "/audit.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	defer log.Close()
	for e, err := range audit.Entries(log, audit.Filter{}) {
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, e.Fields)
	}
	return all
}

func TestNetwork(t *testing.T) {
	freezing(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		f.driver.run = func(_ context.Context, b *fakeBox, c tool.Call) tool.Result {
			n := b.spec.Network.(*fakeNetwork)
			errs := []error{n.connect("good.example:443", true)}
			for i := range 7 {
				errs = append(errs, n.connect(fmt.Sprintf("bad%d.example:443", i), false))
			}
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
			return text("the server said hunter2")
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) { c.Networks = nets; c.BoxEnv = []string{"TZ=UTC"} })
		f.stopped("sesn_1")

		got, _, _ := f.plane.result("sesn_1", "c1")
		want := "the server said placeholder\n[The environment's network policy blocked: bad0.example:443 is not allowed; " +
			"bad1.example:443 is not allowed; bad2.example:443 is not allowed; bad3.example:443 is not allowed; bad4.example:443 is not allowed; " +
			"and 2 more. Trying again will not help. Do without, or say that the operator of this environment would have to allow it.]"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		spec := f.driver.started()[0].spec
		if env := strings.Join(spec.Env, " "); !strings.Contains(env, "TZ=UTC") || !strings.Contains(env, "API_TOKEN=placeholder") || spec.Files["/etc/resolv.conf"] == "" {
			t.Errorf("environment %s, files %v", env, spec.Files)
		}
		decisions := 0
		for _, e := range f.entries() {
			if e.Action == audit.EgressDecision {
				decisions++
				if e.Actor != "w1" || e.Environment != testEnv || e.Session != "sesn_1" || e.Call != "c1" {
					t.Errorf("decision of %q in %q for %q, %q", e.Actor, e.Environment, e.Session, e.Call)
				}
			}
		}
		if decisions != 8 {
			t.Errorf("%d decisions are on record, want 8", decisions)
		}
		// Between calls the box is the session's, and no call's.
		n := nets.last()
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.session != "sesn_1" || n.call != "" || n.closed {
			t.Errorf("the network of a kept box: %q %q, closed %v", n.session, n.call, n.closed)
		}
	})
}

// TestNetworkOfThePool: it is nobody's until the box is claimed.
func TestNetworkOfThePool(t *testing.T) {
	freezing(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		f.start(func(c *Config) { c.Networks = nets; c.PoolSize = 1 })
		synctest.Wait()
		n := nets.last()
		if n.session != "" {
			t.Errorf("the box of the pool is %q's", n.session)
		}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.answered("sesn_1", "c1")
		if n.SetCall("sesn_1", ""); !n.attached {
			t.Error("not attached")
		}
		want := []string{"pool.fill", "pool.claim"}
		var got []string
		for _, a := range f.actions() {
			if strings.HasPrefix(a, "pool") {
				got = append(got, a)
			}
		}
		if diff := cmp.Diff(want, got[:2]); diff != "" {
			t.Error(diff)
		}
	})
}

// TestNetworkLost: no box goes on without its network, and the session gets another.
func TestNetworkLost(t *testing.T) {
	for _, when := range []string{"during a call", "between calls", "while it is kept"} {
		t.Run(when, func(t *testing.T) {
			freezing(t, func(f *field) {
				nets := &fakeNetworks{t: t}
				lost := errors.New("the name server failed")
				f.driver.run = func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
					if when == "during a call" && strings.Contains(string(c.Input), "c1") {
						b.spec.Network.(*fakeNetwork).lose(lost)
						<-ctx.Done()
					}
					return echo(ctx, b, c)
				}
				script := []toolUse{bash("c1")}
				if when != "while it is kept" {
					script = append(script, toolUse{id: "x", name: "web_search"})
				}
				f.plane.session("sesn_1", script)
				f.start(func(c *Config) { c.Networks = nets })
				f.answered("sesn_1", "c1")
				first := f.driver.started()[0]
				switch when {
				case "between calls":
					nets.last().lose(lost)
				case "while it is kept":
					f.stopped("sesn_1")
					nets.last().lose(lost)
				}
				synctest.Wait()
				if !first.over() {
					t.Fatal("the box goes on without its network")
				}
				f.next("sesn_1", bash("c2"))
				f.answered("sesn_1", "c2")
				told, isError := "c2", false
				if when == "during a call" {
					told, isError = "c1", true
				}
				f.wantResult("sesn_1", told, "its network was lost: the name server failed", isError)
				f.wantResult("sesn_1", "c2", `"c2"`, false)
				found := 0
				for _, e := range f.entries() {
					if e.Action == audit.EgressLost && e.Session == "sesn_1" {
						found++
					}
				}
				if found != 1 {
					t.Errorf("%d records of the loss", found)
				}
			})
		})
	}
}

// TestNetworkNotRecorded: what cannot be put on record is refused.
func TestNetworkNotRecorded(t *testing.T) {
	virtual(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		broken := errors.New("disk full")
		var refused error
		f.driver.run = func(_ context.Context, b *fakeBox, c tool.Call) tool.Result {
			refused = b.spec.Network.(*fakeNetwork).connect("good.example:443", true)
			return text("done")
		}
		c := f.config()
		c.Networks = nets
		w, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		w.step = func(name string) error {
			if name == audit.EgressDecision {
				return broken
			}
			return nil
		}
		f.run(w)
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.answered("sesn_1", "c1")
		if !errors.Is(refused, broken) {
			t.Errorf("the connection: %v, want a refusal", refused)
		}
	})
}

// TestNetworkNotOpened: a box without the network it should have is not started.
func TestNetworkNotOpened(t *testing.T) {
	virtual(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.start(func(c *Config) { c.Networks = &fakeNetworks{t: t, openErr: errors.New("no authority")} })
		f.answered("sesn_1", "c1")
		f.wantResult("sesn_1", "c1", "open the box's network: no authority", true)
		if len(f.driver.started()) != 0 {
			t.Error("a box was started")
		}
	})
}

// TestNetworkFlood: a box that asks for too much is refused, and the record says how
// often rather than grow.
func TestNetworkFlood(t *testing.T) {
	virtual(t, func(f *field) {
		var mu sync.Mutex
		var written []audit.Record
		g := newGuard(func(r audit.Record) error {
			mu.Lock()
			defer mu.Unlock()
			written = append(written, r)
			return nil
		})
		refused := 0
		const served = decisionsBurst + decisionsRate*int(decisionWait/time.Second)
		var all sync.WaitGroup
		for range served + 1000 {
			all.Go(func() {
				if err := g.record(audit.Record{Action: audit.EgressDecision, Session: "s"}); err != nil {
					mu.Lock()
					defer mu.Unlock()
					refused++
				}
			})
		}
		all.Wait()
		if len(written) != served || refused != 1000 {
			t.Errorf("%d on record, %d refused; want %d and 1000", len(written), refused, served)
		}
		// What says how a connection ended is not held back.
		if err := g.record(audit.Record{Action: audit.EgressEnd, Session: "s"}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := g.record(audit.Record{Action: audit.EgressDecision, Session: "s"}); err != nil {
			t.Error(err)
		}
		said := 0
		for _, r := range written {
			if strings.Contains(r.Detail, "1000 requests were refused") {
				said++
			}
		}
		if said != 1 {
			t.Errorf("that 1000 were refused is on record %d times", said)
		}
	})
}
