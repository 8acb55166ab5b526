package field

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/none"
)

// A backend whose self-test needs an image gets that of the environment, and only such a
// one is made once for each.
func TestBackendsAreToldWhatTheFileSays(t *testing.T) {
	t.Parallel()
	var told []BackendOptions
	backend := func(name string, images bool) Backend {
		return Backend{Name: name, Images: images, New: func(o BackendOptions) (sandbox.Driver, error) {
			if info, err := os.Stat(o.State); err != nil || !info.IsDir() {
				t.Errorf("state: %v", err)
			}
			o.State, o.Logger = filepath.Base(o.State), nil
			told = append(told, o)
			return none.New(slog.New(slog.DiscardHandler)), nil
		}}
	}
	ds := &drivers{backends: []Backend{backend("host", false), backend("daemon", true)}, dir: t.TempDir(),
		log: slog.New(slog.DiscardHandler), made: make(map[driverKey]*checked)}
	for _, s := range []Sandbox{
		{Backend: "host", Image: "/one"},
		{Backend: "host", Image: "/two"},
		{Backend: "daemon", Image: "/one"},
		{Backend: "daemon", Image: "/two"},
		{Backend: "daemon", Image: "/two"},
		{Backend: "host", AllowOldEngine: true},
	} {
		if _, err := ds.choose(t.Context(), &Settings{Sandbox: s}); err != nil {
			t.Error(err)
		}
	}
	want := []BackendOptions{
		{}, {Image: "/one"}, {Image: "/two"}, {AllowOld: true},
	}
	states := make(map[string]bool)
	for i := range told {
		states[told[i].State] = true
		told[i].State = ""
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
	if len(states) != len(want) {
		t.Errorf("directories are shared: %v", states)
	}
}
