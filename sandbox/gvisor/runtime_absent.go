//go:build !linux || slim || race

package gvisor

// compiled says whether this binary holds gVisor. It is left out where it cannot
// be built, where the builder asked for a small binary, and under the race
// detector, with which it does not work.
const compiled = false

// RunIfRuntime does nothing, as this binary cannot be gVisor.
func RunIfRuntime() {}
