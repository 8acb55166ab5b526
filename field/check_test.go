package field

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/telemetry"
)

// --check passed where the worker then did not start.
func TestATamperedAuditRecordIsFound(t *testing.T) {
	t.Parallel()
	cfg := &Config{Data: t.TempDir()}
	if f := checkAudit(cfg); !f.OK {
		t.Errorf("none yet: %+v", f)
	}
	path := filepath.Join(cfg.Data, "audit.jsonl")
	log, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Append(audit.Record{Action: audit.PlaneStart, Actor: "rack-3", Attrs: map[string]string{"version": "1", "config": "defaults"}}), log.Close()); err != nil {
		t.Fatal(err)
	}
	if f := checkAudit(cfg); !f.OK {
		t.Errorf("a good one: %+v", f)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte("rack-3"), []byte("rack-4"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := checkAudit(cfg); f.OK || f.Remedy == "" {
		t.Errorf("a changed one: %+v", f)
	}
}

// A driver's test box has its work folder elsewhere, where the way is open.
func TestAWorkFolderThatBoxesCannotReachIsFound(t *testing.T) {
	t.Parallel()
	d := fast()
	d.shut = errors.New("user 61000 cannot reach it")
	if f := checkFolder(t.Context(), &Choice{Driver: d}, new(Environment), t.TempDir()); f.OK || !strings.Contains(f.Detail, "cannot reach") {
		t.Errorf("%+v", f)
	}
}

// Boxes that are processes find their folders by the path, on which a worker that is
// root had closed its own directories to them.
func TestBoxesThatAreProcessesReachTheirFolders(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		report sandbox.Report
		want   os.FileMode
	}{
		"a process with a user of its own": {sandbox.Report{Isolation: sandbox.Restricted, Root: true}, 0o711},
		"a process of the worker's user":   {sandbox.Report{Isolation: sandbox.Restricted}, 0o700},
		"a box with mounts":                {sandbox.Report{Isolation: sandbox.SharedKernel, Root: true}, 0o700},
	} {
		outer := t.TempDir()
		if err := os.Chmod(outer, 0o700); err != nil { // the operator's
			t.Fatal(err)
		}
		data := filepath.Join(outer, "data")
		if err := os.Mkdir(data, 0o700); err != nil { // of a worker with another backend
			t.Fatal(err)
		}
		folders := filepath.Join(data, "env_1", "work")
		if f := checkFolder(t.Context(), &Choice{Driver: fast(), Report: test.report}, new(Environment), data, filepath.Dir(folders), folders); !f.OK {
			t.Errorf("%s: %+v", name, f)
		}
		for dir, want := range map[string]os.FileMode{outer: 0o700, data: test.want, filepath.Dir(folders): test.want, folders: test.want} {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s: %v %v, want %o", name, dir, info.Mode(), err, want)
			}
		}
	}
}

func TestRemediesOfBackends(t *testing.T) {
	t.Parallel()
	works := &fakeDriver{name: "gvisor"}
	swept := &fakeDriver{name: "oci", err: &sandbox.Unavailable{Backend: "oci", Cause: "no such runtime", Remedy: []string{"name one"}}}
	for name, test := range map[string]struct {
		settings Sandbox
		want     string
	}{
		"a device that nothing describes": {Sandbox{Backend: "gvisor", Devices: []string{"nvidia.com/gpu=all"}}, "nvidia-ctk cdi generate"},
		"a device without a CDI name":     {Sandbox{Backend: "gvisor", Devices: []string{"/dev/nvidia0"}}, "vendor.com/class=name"},
		"an engine that is not there":     {Sandbox{Backend: "oci"}, "no such runtime; to mend it: name one"},
	} {
		ds := &drivers{backends: []Backend{{Name: "oci", New: func(BackendOptions) (sandbox.Driver, error) { return unswept{swept}, nil }},
			{Name: "gvisor", New: func(BackendOptions) (sandbox.Driver, error) { return works, nil }}}, dir: t.TempDir(), made: make(map[driverKey]*checked)}
		if _, err := ds.choose(t.Context(), &Settings{Sandbox: test.settings}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// unswept is a backend that cannot be swept, as nothing can be done with it.
type unswept struct{ *fakeDriver }

func (d unswept) Sweep(context.Context) error { return errors.New("not swept") }

func TestNamesThatMeanNothing(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		"sandbox: {require: {limits: [mem]}}\n": `"mem" is not one of memory, cpu`,
		"network: {mode: limitd}\n":             `"limitd" is not one of none, limited, unrestricted`,
	} {
		c, problems := parse([]byte(config + minimal))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		c.setDefaults("gvisor")
		if err := c.Validate([]string{"gvisor"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", config, err)
		}
	}
}

// docs/controls.md says that a metric tells when nothing can be put on record.
func TestTheAuditRecordHasItsMetrics(t *testing.T) {
	t.Parallel()
	log, err := audit.Open(filepath.Join(t.TempDir(), "audit.jsonl"), audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	reg := prometheus.NewRegistry()
	if err := telemetry.RegisterAudit(reg, "bailey_worker", "tool calls are", log); err != nil {
		t.Fatal(err)
	}
	all, err := reg.Gather()
	if err != nil || len(all) != 2 || all[1].GetName() != "bailey_worker_audit_writable" || all[1].GetMetric()[0].GetGauge().GetValue() != 1 {
		t.Errorf("%v, %v", all, err)
	}
}
