//go:build !embedengine

package agentbin

const engine = ""
