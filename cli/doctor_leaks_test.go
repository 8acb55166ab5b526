package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/leaks"
)

// A worker that was killed at work was a screen full of lines.
func TestLeaksAreSaidByDriver(t *testing.T) {
	t.Parallel()
	found := []leaks.Leak{
		{Kind: "process", Name: "12 (runsc)", Remedy: "kill -9 12", Box: "b", Driver: "0123"},
		{Kind: "network card", Name: "box0", Remedy: "ip link delete box0"},
		{Kind: "process", Name: "11 (runsc)", Remedy: "kill -9 11", Box: "a", Driver: "0123"},
		{Kind: "directory", Name: "/d/a", Remedy: "start a worker", Box: "a", Driver: "0123"},
		{Kind: "directory", Name: "/d/b", Remedy: "start a worker", Box: "b", Driver: "/d"},
	}
	want := []finding{
		{"left behind", findingFailed, "by drivers unknown: network card box0", "ip link delete box0"},
		{"left behind", findingFailed, "by the driver /d, 1 directory of 1 box: directory /d/b", "start a worker"},
		{"left behind", findingFailed, "by the driver 0123, 1 directory, 2 processes of 2 boxes: process 12 (runsc), process 11 (runsc), directory /d/a", "kill -9 12; kill -9 11; start a worker"},
	}
	if diff := cmp.Diff(want, leftBehind(found, true)); diff != "" {
		t.Error(diff)
	}
	for _, f := range leftBehind(found, false) {
		if !strings.Contains(f.Remedy, "--clean") {
			t.Errorf("%+v", f)
		}
	}
	if got := removed(found, found[1:2]).Detail; got != "2 directories, 2 processes of 2 boxes" {
		t.Error(got)
	}
	if got := removed(found, found); got.Status != findingNote {
		t.Errorf("%+v", got)
	}
}

// Only where no worker lives, and nothing but a worker's.
func TestSweepIsForWorkersThatAreGone(t *testing.T) {
	t.Parallel()
	swept := &sweptDriver{}
	p := &Program{Backends: []Backend{{Name: "ns", New: func(BackendOptions) (sandbox.Driver, error) { return swept, nil }}}}
	data := t.TempDir()
	for _, name := range []string{"ns", "ns-0123abcd", "nothing", "boxagent-0123"} {
		if err := os.MkdirAll(filepath.Join(data, "sandbox", name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	try := func(want int) {
		t.Helper()
		if err := p.sweep(t.Context(), []string{data, filepath.Join(data, "none")}); err != nil {
			t.Error(err)
		}
		if swept.times != want {
			t.Errorf("swept %d times, want %d", swept.times, want)
		}
	}
	try(0)
	lock, err := sandbox.Lock(filepath.Join(data, "worker.lock"))
	if err != nil {
		t.Fatal(err)
	}
	try(0)
	lock.Close()
	try(2)
}

type sweptDriver struct {
	sandbox.Driver
	times int
}

func (d *sweptDriver) Sweep(context.Context) error {
	d.times++
	return nil
}
