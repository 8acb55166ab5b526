//go:build embedlauncher

package agentbin

import _ "embed"

// The Makefile builds it: a static executable of sandbox/launcher/boxlauncher.
//
//go:embed boxlauncher
var launcher string
