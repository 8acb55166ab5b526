package field

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/worker"
)

// fakeDriver is a backend with a self-test and no boxes.
type fakeDriver struct {
	name   string
	report sandbox.Report
	err    error
	shut   error // of a box on a work folder of sessions

	mu       sync.Mutex
	swept    int
	checked  int
	prepared []string
}

func (d *fakeDriver) Name() string { return d.name }

func (d *fakeDriver) Check(context.Context) (sandbox.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checked++
	r := d.report
	r.Backend, r.Version = d.name, "1"
	return r, d.err
}

func (d *fakeDriver) Sweep(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.swept++
	return nil
}

func (d *fakeDriver) Prepare(_ context.Context, image string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prepared = append(d.prepared, image)
	if strings.HasSuffix(image, "missing.tar") {
		return errors.New("no such image")
	}
	return nil
}

func (d *fakeDriver) Start(_ context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	if strings.HasPrefix(spec.ID, "check-") {
		return endedBox{}, d.shut
	}
	return nil, errors.New("the fake has no boxes")
}

// endedBox is a box whose command has ended well.
type endedBox struct{ sandbox.Box }

func (endedBox) Wait() sandbox.Exit         { return sandbox.Exit{Cause: sandbox.CauseExited} }
func (endedBox) Stop(context.Context) error { return nil }

// strong and fast are backends as they might be.
func strong() *fakeDriver {
	return &fakeDriver{name: "gvisor", report: sandbox.Report{
		Isolation: sandbox.OwnKernel, Freeze: true, Limits: map[string]sandbox.Enforcement{"memory": sandbox.Hard},
	}}
}

func fast() *fakeDriver {
	return &fakeDriver{name: "ns", report: sandbox.Report{Isolation: sandbox.SharedKernel, Network: true, Freeze: true}}
}

// A yard is a plane, backends and a configuration file.
type yard struct {
	*testing.T
	dir  string
	url  string
	log  *lines
	env  map[string]string
	opts Options

	mu    sync.Mutex
	keys  map[string]string // the key that is accepted, by environment
	polls map[string]int
}

// lines is a log that can be looked through.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

func newYard(t *testing.T, config string, drivers ...*fakeDriver) *yard {
	t.Helper()
	y := &yard{T: t, dir: t.TempDir(), log: new(lines), keys: map[string]string{"env_1": "key-1", "env_2": "key-2"}, polls: map[string]int{}, env: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(y.serve))
	t.Cleanup(server.Close)
	y.url = server.URL
	y.write("worker.yaml", config)
	y.write("key-1", "key-1\n")
	y.write("key-2", "key-2\n")
	y.opts = Options{
		Load:    func() (*Config, error) { return Load(filepath.Join(y.dir, "worker.yaml")) },
		Agent:   func(string) (string, error) { return "/bin/true", nil },
		Env:     func(name string) (string, bool) { v, ok := y.env[name]; return v, ok },
		Logger:  slog.New(slog.NewTextHandler(io.MultiWriter(y.log, t.Output()), nil)),
		Metrics: prometheus.NewRegistry(),
	}
	for _, d := range drivers {
		y.opts.Backends = append(y.opts.Backends, Backend{Name: d.name, New: func(BackendOptions) (sandbox.Driver, error) { return d, nil }})
	}
	return y
}

func (y *yard) write(name, text string) {
	y.Helper()
	if err := os.WriteFile(filepath.Join(y.dir, name), []byte(strings.ReplaceAll(text, "PLANE", y.url)), 0o600); err != nil {
		y.Fatal(err)
	}
}

// serve is a plane with nothing to do.
func (y *yard) serve(w http.ResponseWriter, r *http.Request) {
	env := strings.Split(r.URL.Path, "/")[3]
	y.mu.Lock()
	key := y.keys[env]
	if strings.HasSuffix(r.URL.Path, "/poll") {
		y.polls[env]++
	}
	y.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("Authorization") != "Bearer "+key {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"type":"error","error":{"type":"authentication_error","message":"no"}}`)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/poll") {
		select {
		case <-r.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
		fmt.Fprint(w, "null")
		return
	}
	fmt.Fprint(w, `{"type":"work_queue_stats"}`)
}

func (y *yard) polled(env string) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.polls[env]
}

// run runs a field until the test ends, or stop is called.
func (y *yard) run() (f *Field, stop func() error) {
	y.Helper()
	f, err := New(y.opts)
	if err != nil {
		y.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	y.Cleanup(func() { _ = stop() })
	return f, stop
}

// until waits for something to be so.
func (y *yard) until(what string, so func() bool) {
	y.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			y.Fatalf("never: %s", what)
		}
	}
}

// entries returns the audit record.
func (y *yard) entries() (all []audit.Fields) {
	y.Helper()
	log, err := audit.OpenSegments(filepath.Join(y.dir, "data/audit.jsonl"))
	if err != nil {
		y.Fatal(err)
	}
	defer log.Close()
	for e, err := range audit.Entries(log, audit.Filter{}) {
		if err != nil {
			y.Fatal(err)
		}
		all = append(all, e.Fields)
	}
	return all
}

const head = "server: {base-url: PLANE}\ndata: data\n"

func TestRun(t *testing.T) {
	t.Parallel()
	y := newYard(t, head+"sandbox: {image: ./image.tar}\nenvironments:\n- {id: env_1, key-file: key-1}\n- {id: env_2, key-file: key-2, sandbox: {backend: ns, image: ''}}\n", strong(), fast())
	f, stop := y.run()
	y.until("both poll", func() bool { return y.polled("env_1") > 0 && y.polled("env_2") > 0 })
	y.until("ready", func() bool { return f.Ready() == nil })
	for _, env := range []string{"env_1", "env_2"} {
		if f.Worker(env) == nil {
			t.Errorf("no worker of %s", env)
		}
		if _, err := os.Stat(filepath.Join(y.dir, "data", env, "work")); err != nil {
			t.Error(err)
		}
	}
	if f.Worker("") != nil || f.Worker("env_3") != nil {
		t.Error("a worker of no environment")
	}
	// A second one of the same directory is refused.
	other, err := New(y.opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another worker uses it") {
		t.Errorf("a second worker: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var starts []string
	for _, e := range y.entries() {
		if e.Action == audit.WorkerStart {
			starts = append(starts, e.Environment+" "+e.Attrs["backend"])
			if !strings.HasPrefix(e.Attrs["config"], "sha256:") {
				t.Errorf("config %q", e.Attrs["config"])
			}
		}
	}
	slices.Sort(starts)
	if diff := cmp.Diff([]string{"env_1 gvisor", "env_2 ns"}, starts); diff != "" {
		t.Error(diff)
	}
}

// TestBackends: what an environment gets, and what it is told if it gets nothing.
func TestBackends(t *testing.T) {
	t.Parallel()
	broken := func() *fakeDriver {
		d := strong()
		d.err = &sandbox.Unavailable{Backend: "gvisor", Cause: "no user namespaces", Remedy: []string{"sysctl user.max_user_namespaces=1000"}}
		return d
	}
	tests := []struct {
		name    string
		config  string
		drivers []*fakeDriver
		want    string   // the backend
		says    []string // in the log and the audit record, or in the error
	}{
		{"the strongest is the default", "", []*fakeDriver{strong(), fast()}, "gvisor", nil},
		{"a broken one is no reason for another", "", []*fakeDriver{broken(), fast()}, "", []string{"gvisor cannot be used: no user namespaces", "sysctl user.max_user_namespaces=1000"}},
		{"unless the operator listed it", "sandbox: {fallback: [ns]}\n", []*fakeDriver{broken(), fast()}, "ns", []string{"gvisor cannot be used: no user namespaces"}},
		{"one that lacks something is no better than a broken one", "sandbox: {require: {checkpoint: true}}\n", []*fakeDriver{strong(), fast()}, "", []string{"gvisor lacks checkpoints"}},
		{"the fallback has it", "sandbox: {fallback: [ns], require: {network: true}}\n", []*fakeDriver{strong(), fast()}, "ns", []string{"gvisor lacks network rules"}},
		{"rules require a network by themselves", "network: {mode: limited}\n", []*fakeDriver{strong(), fast()}, "", []string{"gvisor lacks network rules"}},
		{"and devices a GPU", "sandbox: {devices: [nvidia.com/gpu=all]}\n", []*fakeDriver{strong(), fast()}, "", []string{"gvisor lacks a GPU"}},
		{"the fallback is too weak", "sandbox: {backend: ns, fallback: [gvisor], require: {isolation: user-space kernel, limits: [disk]}}\n", []*fakeDriver{strong(), fast()}, "",
			[]string{`ns lacks isolation of at least "user-space kernel" (it has "namespaces")`, `gvisor lacks a hard limit on disk (it is "none")`, "require less"}},
		{"an image that is not there", "sandbox: {image: ./missing.tar}\n", []*fakeDriver{strong()}, "", []string{"missing.tar", "no such image"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, head+tt.config+"environments:\n- {id: env_1, key-file: key-1}\n", tt.drivers...)
			f, stop := y.run()
			if tt.want != "" {
				y.until("it polls", func() bool { return y.polled("env_1") > 0 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				for _, e := range y.entries() {
					if e.Action != audit.WorkerStart {
						continue
					}
					if e.Attrs["backend"] != tt.want {
						t.Errorf("backend %s, want %s", e.Attrs["backend"], tt.want)
					}
					for _, want := range tt.says {
						if !strings.Contains(e.Detail, want) || !y.log.has("a fallback is used: "+want) {
							t.Errorf("neither log nor record say %q (%q)", want, e.Detail)
						}
					}
				}
				return
			}
			// Nobody else being served, that is the end.
			y.until("it gives up", func() bool { return y.log.has("environment is not served") })
			err := stop()
			for _, want := range tt.says {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want …%s…", err, want)
				}
			}
			if ready := f.Ready(); ready == nil {
				t.Error("ready")
			}
			if n := y.polled("env_1"); n != 0 {
				t.Errorf("asked for work %d times", n)
			}
		})
	}
}

// TestOneEnvironmentCannotBeServed: the others are, and readiness says why it is not.
func TestOneEnvironmentCannotBeServed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, bad, want string }{
		{"its boxes", "- {id: env_2, key-file: key-2, sandbox: {require: {gpu: true}}}\n", "environment env_2: no sandbox that this environment may use"},
		{"its key", "- {id: env_2, key-file: key-1}\n", "does not accept the key for environment env_2"},
		{"its key file", "- {id: env_2, key-file: nothing}\n", "read environment key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, head+"environments:\n- {id: env_1, key-file: key-1}\n"+tt.bad, strong())
			f, stop := y.run()
			y.until("the good one polls", func() bool { return y.polled("env_1") > 0 })
			y.until("readiness says why", func() bool {
				err := f.Ready()
				return err != nil && strings.Contains(err.Error(), tt.want)
			})
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func TestWrongKey(t *testing.T) {
	t.Parallel()
	y := newYard(t, head+"environments:\n- {id: env_1, key-file: key-2}\n", strong())
	f, err := New(y.opts)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Run(t.Context())
	if _, ok := errors.AsType[*worker.KeyRefused](err); !ok {
		t.Errorf("Run: %v, want that the key is refused", err)
	}
}

// TestReload: what can change does, what cannot stays and is named.
func TestReload(t *testing.T) {
	t.Parallel()
	before := head + "network: {mode: limited, rules: [{hosts: [a.example]}]}\nenvironments:\n- {id: env_1, key-file: key-1}\n"
	y := newYard(t, before, fast())
	f, stop := y.run()
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), "starting") {
		t.Logf("reload before the start: %v", err) // it may have started already
	}
	y.until("it polls", func() bool { return y.polled("env_1") > 0 })

	y.write("worker.yaml", before+"pool: {sice: 1}\n")
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), "stays as it was") {
		t.Errorf("reload of a broken file: %v", err)
	}

	// The key was rotated at the plane, and another file has the new one.
	y.mu.Lock()
	y.keys["env_1"] = "key-2"
	y.mu.Unlock()
	y.write("worker.yaml", head+`
network: {mode: limited, rules: [{hosts: [b.example]}]}
sessions: {max: 3, tool-timeout: 5m}
pool: {size: 0}
drain: 1m
sandbox: {image: ./other.tar}
credentials: [{name: TOKEN, hosts: [b.example], from: {env: TOKEN}}]
environments:
- {id: env_1, key-file: key-2}
- {id: env_2, key-file: key-2}
`)
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, fixed := range []string{"drain", "environment env_1: sandbox", "environment env_1: sessions.tool-timeout", "environment env_2 (new)"} {
		if !y.log.has(fmt.Sprintf("%q", fixed)) && !y.log.has("setting="+fixed) {
			t.Errorf("the log does not name %q", fixed)
		}
	}
	c := f.Config()
	e := c.environment("env_1")
	if c.Drain != 0 || e.Sandbox.Image != "" || e.Sessions.ToolTimeout != 0 || len(c.Environments) != 1 {
		t.Errorf("what cannot change did: %+v", c)
	}
	if e.Sessions.Max != 3 || e.Network.Rules[0].Hosts[0] != "b.example" || len(e.Credentials) != 1 {
		t.Errorf("what can change did not: %+v", e)
	}
	n := y.polled("env_1")
	y.until("it polls with the new key", func() bool { return y.polled("env_1") > n+2 })
	y.until("ready", func() bool { return f.Ready() == nil })
	// The same file once more changes nothing, and the fixed ones are still named.
	if err := f.Reload(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	changes := 0
	for _, e := range y.entries() {
		if e.Action == audit.ConfigChange {
			changes++
		}
	}
	if changes != 2 {
		t.Errorf("%d changes are on record, want 2", changes)
	}
}

// An environment that was taken out of the file went on until the next start.
func TestReloadWithoutAnEnvironment(t *testing.T) {
	t.Parallel()
	one, two := "- {id: env_1, key-file: key-1}\n", "- {id: env_2, key-file: key-2}\n"
	y := newYard(t, head+"environments:\n"+one+two, fast())
	f, stop := y.run()
	y.until("both poll", func() bool { return y.polled("env_1") > 0 && y.polled("env_2") > 0 })
	was := f.Config().Fingerprint()

	y.write("worker.yaml", head+"environments:\n"+one)
	key := filepath.Join(y.dir, "key-2")
	text, err := os.ReadFile(key)
	if err == nil {
		err = os.Remove(key) // as its operator has no more use for it
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if !y.log.has("no more sessions are claimed") || y.log.has("next start on") {
		t.Error("the log does not say what becomes of it")
	}
	if f.Config().Fingerprint() == was {
		t.Error("the configuration has the same fingerprint")
	}
	n := y.polled("env_1")
	y.until("the other one polls on", func() bool { return y.polled("env_1") > n+2 })
	last := y.polled("env_2")
	n = y.polled("env_1")
	y.until("the other one polls on", func() bool { return y.polled("env_1") > n+3 })
	if more := y.polled("env_2") - last; more > 0 {
		t.Errorf("it was asked %d times more for work", more)
	}
	y.until("ready", func() bool { return f.Ready() == nil })

	y.write("worker.yaml", head+"environments:\n"+one+two)
	y.write("key-2", string(text))
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	y.until("it polls again", func() bool { return y.polled("env_2") > last })
	if f.Config().Fingerprint() != was {
		t.Error("the configuration of before has another fingerprint")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestCheck: each thing that is wrong is found, with a remedy.
func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config string
		bad    []string
	}{
		{"all is well", "environments:\n- {id: env_1, key-file: key-1}\n- {id: env_2, key-file: key-2}\n", nil},
		{"a key", "environments:\n- {id: env_1, key-file: key-2}\n", []string{"env_1 key"}},
		{"a key file", "environments:\n- {id: env_1, key-file: nothing}\n", []string{"env_1 key"}},
		{"boxes", "sandbox: {require: {gpu: true}}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 box"}},
		{"an image", "sandbox: {image: ./missing.tar}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 image"}},
		{"a credential", "network: {mode: limited}\ncredentials: [{name: A, hosts: [a.example], from: {env: NOTHING}}, {name: B, hosts: [a.example], from: {env: TOKEN}}]\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 credential A"}},
		{"a proxy", "network: {mode: limited, proxy-env: NOTHING}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 network"}},
		{"a work directory", "work-dir: /dev/null/x\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 work folder", "env_1 disk"}},
		{"room", "disk-reserve: 1000000TiB\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 disk"}},
		{"a sink in no directory", "audit: {sinks: ['file:nowhere/x.jsonl']}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"audit sink"}},
		{"a socket that is not there", "audit: {sinks: ['syslog:nowhere.sock']}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"audit sink"}},
		{"a collector that is not there", "audit: {sinks: ['otlp+http://127.0.0.1:1?required=true']}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"audit sink"}},
		{"a device", "sandbox: {devices: [example.com/none=all]}\nenvironments:\n- {id: env_1, key-file: key-1}\n", []string{"env_1 box"}},
		{"one environment of two", "environments:\n- {id: env_1, key-file: key-1}\n- {id: env_2, key-file: key-1}\n", []string{"env_2 key"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, head+tt.config, fast())
			y.env["TOKEN"] = "hunter2hunter2"
			f, err := New(y.opts)
			if err != nil {
				t.Fatal(err)
			}
			found, err := f.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var bad []string
			for _, one := range found {
				if one.OK != (one.Remedy == "") {
					t.Errorf("%s: OK %v with remedy %q", one.Name, one.OK, one.Remedy)
				}
				if strings.Contains(one.Detail, "hunter2") {
					t.Errorf("a secret is shown: %s", one.Detail)
				}
				if !one.OK {
					bad = append(bad, strings.TrimSpace(one.Environment+" "+one.Name))
				}
			}
			if diff := cmp.Diff(tt.bad, bad); diff != "" {
				t.Errorf("%s%+v", diff, found)
			}
			for _, n := range []string{"env_1", "env_2"} {
				if y.polled(n) > 0 {
					t.Error("work was asked for")
				}
			}
		})
	}
}

// A directory that many use, such as /tmp, keeps what protects their files from each other.
func TestWayToBoxesKeepsModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "work")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o770|os.ModeSticky|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	if err := letThrough(sandbox.Report{Isolation: sandbox.Restricted, Root: true}, dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if want := os.ModeDir | os.ModeSticky | os.ModeSetgid | 0o771; err != nil || info.Mode() != want {
		t.Errorf("%v, want %v: %v", info.Mode(), want, err)
	}
}
