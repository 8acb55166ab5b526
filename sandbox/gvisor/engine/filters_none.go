//go:build linux && !race && !amd64

package engine

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

// Nobody has made them yet: that takes a machine of the kind.
var kernelFilters, openerFilters []precompiledseccomp.Program
