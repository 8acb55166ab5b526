//go:build !linux || slim || race

package gvisor

import "github.com/bailey-platform/bailey/sandbox/gvisor/stage"

// compiled says whether this binary holds gVisor. It is left out where it cannot
// be built, where the builder asked for a small binary, and under the race
// detector, with which it does not work.
const compiled = false

// RunIfRuntime does what goes before gVisor if that is what the process was started
// for, and does not return then. It must come first in main. This binary cannot be
// gVisor itself.
func RunIfRuntime() { stage.RunIfRole() }
