//go:build embedengine

package agentbin

import _ "embed"

// The Makefile builds it: a static executable of sandbox/gvisor/engine/runsc.
//
//go:embed runsc
var engine string
