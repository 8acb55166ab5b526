// Runtime is what the tests of package gvisor run as gVisor, since a test binary
// that was built with the race detector cannot be it. It is an agent too.
package main

import (
	"os"

	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/launcher"
	"github.com/bailey-platform/bailey/tool/agent"
)

func main() {
	launcher.RunIf()
	gvisor.RunIfRuntime()
	os.Exit(agent.Main(os.Args[3:]))
}
