package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

// fakePlane says which environments there are, and has no work for any.
type fakePlane struct {
	changed chan struct{}

	mu   sync.Mutex
	envs map[api.EnvironmentID]*api.Environment
	busy []api.EnvironmentID
	keys map[api.EnvironmentID]int // own keys that are good
	log  strings.Builder
}

func (p *fakePlane) CloudEnvironments(ctx context.Context) ([]*api.Environment, error) {
	p.mu.Lock()
	ids := slices.Clone(p.busy)
	p.mu.Unlock()
	return p.CloudConfigured(ctx, ids)
}

func (p *fakePlane) CloudConfigured(_ context.Context, ids []api.EnvironmentID) (found []*api.Environment, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if e := p.envs[id]; e != nil {
			now := *e
			found = append(found, &now)
		}
	}
	return found, nil
}

func (p *fakePlane) CloudChanged() <-chan struct{} { return p.changed }

func (p *fakePlane) OwnKey(id api.EnvironmentID) (string, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[id]++
	return "sk-ant-oat01-" + string(id), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.keys[id]--
	}
}

// RoundTrip is the API.
func (p *fakePlane) RoundTrip(r *http.Request) (*http.Response, error) {
	body := `{"type":"work_queue_stats"}`
	if strings.HasSuffix(r.URL.Path, "/poll") {
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(20 * time.Millisecond):
		}
		body = "null"
	}
	w := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody, Request: r}
	w.Body = readCloser{strings.NewReader(body)}
	return w, nil
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func (p *fakePlane) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// said counts lines of the log.
func (p *fakePlane) said(text string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.log.String(), text)
}

// set changes what there is and tells the cloud.
func (p *fakePlane) set(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func (p *fakePlane) until(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s\n%s", what, p.log.String())
		}
	}
}

func (p *fakePlane) served(id api.EnvironmentID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[id] > 0
}

func environment(t *testing.T, id api.EnvironmentID, config api.EnvironmentConfig) *api.Environment {
	t.Helper()
	config.Type = api.EnvCloud
	if err := config.Resolve(); err != nil {
		t.Fatal(err)
	}
	return &api.Environment{ID: id, Config: config}
}

func serve(t *testing.T, envs ...*api.Environment) *fakePlane {
	t.Helper()
	p := &fakePlane{changed: make(chan struct{}, 1), envs: map[api.EnvironmentID]*api.Environment{}, keys: map[api.EnvironmentID]int{}}
	for _, e := range envs {
		p.envs[e.ID] = e
		p.busy = append(p.busy, e.ID)
	}
	c, err := New(Options{
		Plane: p, HTTPClient: &http.Client{Transport: p}, Data: t.TempDir(), BoxesMax: 2, Drain: time.Second,
		Logger: slog.New(slog.NewTextHandler(p, nil)), Agent: func(string) (string, error) { return "/bin/true", nil },
		Env:      func(string) (string, bool) { return "", false },
		Backends: []field.Backend{{Name: "fake", New: func(field.BackendOptions) (sandbox.Driver, error) { return &fakeDriver{}, nil }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for id, n := range p.keys {
			if n != 0 {
				t.Errorf("%d keys of %s are left", n, id)
			}
		}
	})
	for _, e := range envs {
		p.until(t, "served", func() bool { return p.said("msg=\"worker started\"") >= len(envs) && p.served(e.ID) })
	}
	return p
}

const readAnew = "the configuration was read anew"

// TestRulesOfAnIdleEnvironmentChangeAtOnce: boxes are kept, and shells may be open in
// them.
func TestRulesOfAnIdleEnvironmentChangeAtOnce(t *testing.T) {
	t.Parallel()
	p := serve(t, environment(t, "env_1", api.EnvironmentConfig{}))
	p.set(func() { p.busy = nil })
	p.set(func() {
		p.envs["env_1"] = environment(t, "env_1", api.EnvironmentConfig{Networking: &api.Networking{Type: api.NetworkLimited}})
	})
	p.until(t, "new rules", func() bool { return p.said(readAnew) == 1 })
	if !p.served("env_1") {
		t.Error("it is not served any more")
	}
}

// TestRulesChangeBeforePackagesAreServedAnew: what is to be stopped for other packages
// goes on for a while, and not under the old rules.
func TestRulesChangeBeforePackagesAreServedAnew(t *testing.T) {
	t.Parallel()
	p := serve(t, environment(t, "env_1", api.EnvironmentConfig{}))
	p.set(func() {
		p.envs["env_1"] = environment(t, "env_1", api.EnvironmentConfig{
			Networking: &api.Networking{Type: api.NetworkLimited, AllowPackageManagers: true}, Packages: &api.Packages{Pip: []string{"six"}},
		})
	})
	p.until(t, "served anew", func() bool { return p.said("msg=\"worker started\"") == 2 })
	if p.said(readAnew) != 1 {
		t.Errorf("the rules changed %d times", p.said(readAnew))
	}
}

// TestAnEnvironmentThatIsGoneIsNotServed: at once, with its boxes; but one that is archived
// serves the sessions that it has.
func TestAnEnvironmentThatIsGoneIsNotServed(t *testing.T) {
	t.Parallel()
	p := serve(t, environment(t, "env_1", api.EnvironmentConfig{}), environment(t, "env_2", api.EnvironmentConfig{}), environment(t, "env_3", api.EnvironmentConfig{}))
	now := time.Now()
	p.set(func() {
		for _, id := range []api.EnvironmentID{"env_1", "env_2"} {
			archived := *p.envs[id]
			archived.ArchivedAt = &now
			p.envs[id] = &archived
		}
		delete(p.envs, "env_3")
		p.busy = []api.EnvironmentID{"env_2"}
	})
	p.until(t, "the two that are idle end", func() bool { return !p.served("env_1") && !p.served("env_3") })
	if !p.served("env_2") {
		t.Error("one with work is served no more")
	}
	p.set(func() { p.busy = nil })
	p.until(t, "the last ends", func() bool { return !p.served("env_2") })
}

// TestManyChangesInARow: the last one counts, and it is served all the while.
func TestManyChangesInARow(t *testing.T) {
	t.Parallel()
	p := serve(t, environment(t, "env_1", api.EnvironmentConfig{}))
	for i := range 50 {
		p.set(func() {
			p.envs["env_1"] = environment(t, "env_1", api.EnvironmentConfig{
				Networking: &api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{fmt.Sprintf("h%d.example", i)}},
			})
		})
	}
	last := ""
	p.until(t, "it is quiet", func() bool {
		before := last
		p.mu.Lock()
		last = p.log.String()
		p.mu.Unlock()
		return last == before && strings.Contains(last, readAnew)
	})
	if n := p.said("msg=\"worker started\""); n != 1 || p.said("level=ERROR") > 0 {
		t.Errorf("started %d times\n%s", n, last)
	}
}
