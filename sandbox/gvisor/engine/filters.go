//go:build linux && !race

package engine

import (
	_ "unsafe" // for linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	kernel "gvisor.dev/gvisor/runsc/boot/filter"
	opener "gvisor.dev/gvisor/runsc/fsgofer/filter"
)

// gVisor compiles the filter of each of its processes when that starts, which took a
// seventh of a box's start, unless it was built with compiled ones: its own releases are,
// by their build system. These are made by the same code, for the ways in which we run it;
// for any other it still compiles. A test compares them with what it would compile.
//
//go:generate go run ./precompile filters_amd64.go

//go:linkname kernelPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var kernelPrograms map[string]precompiledseccomp.Program

//go:linkname openerPrograms gvisor.dev/gvisor/runsc/fsgofer/filter.precompiledPrograms
var openerPrograms map[string]precompiledseccomp.Program

// useFilters hands gVisor the compiled filters.
func useFilters() {
	// These have made the maps when they return, and nobody makes them anew.
	kernel.ListPrecompiled()
	opener.ListPrecompiled()
	for _, program := range kernelFilters {
		kernelPrograms[program.Name] = program
	}
	for _, program := range openerFilters {
		openerPrograms[program.Name] = program
	}
}
