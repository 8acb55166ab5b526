//go:build linux && !slim && !race

package gvisor

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/bailey-platform/bailey/sandbox/gvisor/engine"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
)

// compiled says whether this binary holds gVisor.
const compiled = true

// RunIfRuntime turns the process into gVisor, or into what goes before it, if that is
// what it was started as, and does not return then. It must come first in main, before
// flags are read or goroutines started: a box's parts are this same executable, run
// again under names that begin with "runsc", and by them as /proc/self/exe.
func RunIfRuntime() {
	stage.RunIfRole()
	if name := os.Args[0]; strings.HasPrefix(filepath.Base(name), runtimeName) || name == self {
		engine.Main()
	}
}
