//go:build !embedagent

package agentbin

const agent = ""
