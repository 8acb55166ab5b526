package cloud

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

func TestPolicy(t *testing.T) {
	t.Parallel()
	operator := egress.Policy{Presets: []string{"github"}, Rules: []egress.Rule{
		{Hosts: []string{"index.corp"}, Ports: []egress.Ports{egress.Port(443)}},
		{CIDRs: []string{"10.1.0.0/16"}, Ports: []egress.Ports{egress.Port(5432)}},
	}}
	for name, tc := range map[string]struct {
		networking api.Networking
		want       egress.Policy
	}{
		"unrestricted": {
			api.Networking{Type: api.NetworkUnrestricted},
			egress.Policy{Mode: egress.Unrestricted, Rules: operator.Rules[1:]},
		},
		"limited": {
			api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"a.example"}, AllowPackageManagers: true},
			egress.Policy{Mode: egress.Limited, Presets: []string{"package-managers", "github"}, Rules: append([]egress.Rule{
				{Name: "allowed_hosts a.example", Hosts: []string{"a.example"}},
			}, operator.Rules...)},
		},
	} {
		got := policy(&tc.networking, operator)
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(egress.Ports{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if _, err := got.Compile(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever the API takes, a box can be started with.
func TestEveryNetworkingThatTheAPITakesIsAPolicy(t *testing.T) {
	t.Parallel()
	hosts := make([]string, api.AllowedHostsMax)
	for i := range hosts {
		hosts[i] = "*.h" + strings.Repeat("x", i%50) + ".example" + string(rune('a'+i%26)) + strings.Repeat("y", i/26) + ".org"
	}
	c := api.EnvironmentConfig{Type: api.EnvCloud, Networking: &api.Networking{Type: api.NetworkLimited, AllowedHosts: hosts, AllowPackageManagers: true}}
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	if _, err := policy(c.Networking, egress.Policy{}).Compile(); err != nil {
		t.Error(err)
	}
	for _, host := range []string{"a.example", "*.example.com", "xn--bcher-kva.example", "UPPER.Example", "localhost", "a-b.c-d"} {
		if err := api.CheckAllowedHost(host); err != nil {
			t.Fatal(err)
		}
		if _, err := policy(&api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{host}}, egress.Policy{}).Compile(); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// The script is run with managers that only say what they were asked.
func TestPackagesSetup(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	p := &api.Packages{Cargo: []string{"ripgrep@13"}, Gem: []string{"rake:13.0", "json"}, Go: []string{"example.org/x@v1", "example.org/y"}, NPM: []string{"@s/p@1"}, Pip: []string{"six==1.16", "it's;rm -rf $HOME`x`"}}
	dir := t.TempDir()
	script := strings.ReplaceAll(packagesSetup(p), prefix, dir)
	run := func(names ...string) (string, error) {
		bin := t.TempDir()
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(bin, name), []byte("#!"+bash+"\necho \"${0##*/}\" \"${@//"+strings.ReplaceAll(dir, "/", `\/`)+"/P}\"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"mkdir", "rm"} {
			path, err := exec.LookPath(name)
			if err == nil {
				err = os.Symlink(path, filepath.Join(bin, name))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), bash, "-c", "(set -e\n"+script+")")
		cmd.Env = []string{"PATH=" + bin}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	got, err := run("cargo", "gem", "go", "npm", "python3")
	want := `cargo install --root P/cargo -- ripgrep@13
packages.cargo: installed
gem install --no-document --install-dir P/gem rake -v 13.0
gem install --no-document --install-dir P/gem json
packages.gem: installed
go install example.org/x@v1
go install example.org/y@latest
packages.go: installed
npm install --global --no-audit --no-fund --prefix P/npm --cache P/npm/cache -- @s/p@1
packages.npm: installed
python3 -m pip install --user --break-system-packages --no-cache-dir --no-input -- six==1.16 it's;rm -rf $HOME` + "`x`" + `
packages.pip: installed
`
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if got, err := run("cargo", "gem", "go"); err == nil || !strings.HasSuffix(got, "packages.npm: there is no npm in the image of this environment\n") {
		t.Errorf("without npm: %v, %s", err, got)
	}
	if packagesSetup(&api.Packages{}) != "" || packagesEnv(&api.Packages{}) != nil {
		t.Error("no packages need nothing")
	}
}

// fakeDriver is a backend whose boxes end when they are told to.
type fakeDriver struct {
	checks  int
	swept   bool
	failure error
}

func (d *fakeDriver) Name() string                          { return "fake" }
func (d *fakeDriver) Prepare(context.Context, string) error { return nil }
func (d *fakeDriver) Sweep(context.Context) error           { d.swept = true; return nil }
func (d *fakeDriver) Check(context.Context) (sandbox.Report, error) {
	d.checks++
	return sandbox.Report{Backend: "fake", Network: d.failure == nil, Isolation: sandbox.OwnKernel}, nil
}

func (d *fakeDriver) Start(context.Context, sandbox.Spec) (sandbox.Box, error) {
	return &fakeBox{ended: make(chan struct{})}, d.failure
}

type fakeBox struct {
	sandbox.Box
	ended chan struct{}
}

func (b *fakeBox) Wait() sandbox.Exit         { <-b.ended; return sandbox.Exit{} }
func (b *fakeBox) Stop(context.Context) error { close(b.ended); return nil }

func testCloud(t *testing.T, d *fakeDriver, config *field.Config) (*Cloud, error) {
	t.Helper()
	return New(Options{
		Data: t.TempDir(), Config: config, BoxesMax: 2, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Backends: []field.Backend{{Name: "fake", New: func(field.BackendOptions) (sandbox.Driver, error) { return d, nil }}},
	})
}

func TestReadyAsksTheBackendOnce(t *testing.T) {
	t.Parallel()
	d := &fakeDriver{}
	c, err := testCloud(t, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if d.checks != 1 || !d.swept {
		t.Errorf("%d self-tests, swept %t", d.checks, d.swept)
	}
	weak := &fakeDriver{failure: errors.New("no")}
	if c, err = testCloud(t, weak, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err == nil || err.Error() != "fake lacks network rules" {
		t.Errorf("a backend without network rules: %v", err)
	}
	if c, err = testCloud(t, d, &field.Config{Settings: field.Settings{Sandbox: field.Sandbox{Backend: "other"}}}); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), `no backend "other"`) {
		t.Errorf("a backend that is not there: %v", err)
	}
}

func TestBoxesOfAllEnvironmentsAreBounded(t *testing.T) {
	t.Parallel()
	c, err := testCloud(t, &fakeDriver{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	lent := func(of api.EnvironmentID) sandbox.Driver {
		t.Helper()
		d, err := c.drivers.shared(of)[0].New(field.BackendOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var boxes []sandbox.Box
	for _, of := range []api.EnvironmentID{"env_1", "env_2"} {
		box, err := lent(of).Start(t.Context(), sandbox.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, box)
	}
	d := lent("env_3")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.Start(ctx, sandbox.Spec{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a box too many: %v", err)
	}
	if err := boxes[0].Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), sandbox.Spec{}); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if _, ok := d.(interface{ Sweep(context.Context) error }); ok {
		t.Error("one environment's field would sweep the boxes of another")
	}
}

func TestConfigurationsThatAreNotTheOperators(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]*field.Config{
		"server":       {Server: field.Server{BaseURL: "https://x"}},
		"environments": {Environments: []field.Environment{{ID: "env_1"}}},
		"data":         {Data: "/x"},
		"listen":       {Listen: ":1"},
		"network.mode": {Settings: field.Settings{Network: field.Network{Policy: egress.Policy{Mode: "none"}}}},
	} {
		if _, err := testCloud(t, &fakeDriver{}, config); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An environment's configuration in full, as its worker sees it.
func TestConfigOfAnEnvironment(t *testing.T) {
	t.Parallel()
	base := &field.Config{Settings: field.Settings{Sandbox: field.Sandbox{Setup: "first", Env: map[string]string{"A": "1", "PYTHONUSERBASE": "mine"}}}}
	c, err := testCloud(t, &fakeDriver{}, base)
	if err != nil {
		t.Fatal(err)
	}
	env := &api.Environment{ID: "env_1", Config: api.EnvironmentConfig{Type: api.EnvCloud, Packages: &api.Packages{Pip: []string{"six"}}}}
	if err := env.Config.Resolve(); err != nil {
		t.Fatal(err)
	}
	cfg := c.config(env, "sk-ant-oat01-x")
	e := cfg.Environments[0]
	if e.ID != "env_1" || e.Key != "sk-ant-oat01-x" || cfg.Server.BaseURL != BaseURL || cfg.Data != filepath.Join(c.o.Data, "env_1") {
		t.Errorf("%+v", cfg)
	}
	if e.Network.Mode != egress.Unrestricted || !e.Sandbox.Eager || !strings.HasPrefix(e.Sandbox.Setup, "first\nP=") {
		t.Errorf("%+v", e.Settings)
	}
	if env := e.Sandbox.Env; env["A"] != "1" || env["PYTHONUSERBASE"] != "mine" || !strings.HasPrefix(env["PATH"], prefix) {
		t.Errorf("the box's environment is %v", env)
	}
	if len(base.Sandbox.Env) != 2 {
		t.Error("the operator's configuration was changed")
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "config", cfg.Fingerprint())
	if strings.Contains(out.String(), "sk-ant") {
		t.Error("the key is in the fingerprint")
	}
}
