//go:build embedengine

package agentbin

import _ "embed"

// The Makefile builds it: a static executable of gvisor.dev/gvisor/runsc, of the
// version in go.mod.
//
//go:embed runsc
var engine string
