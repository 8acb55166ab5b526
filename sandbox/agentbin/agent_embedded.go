//go:build embedagent

package agentbin

import _ "embed"

// The Makefile builds it: a static executable of tool/agent/boxagent.
//
//go:embed boxagent
var agent string
