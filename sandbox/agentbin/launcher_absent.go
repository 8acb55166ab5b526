//go:build !embedlauncher

package agentbin

const launcher = ""
