// Boxagent is the agent that runs in a box, by itself: the command `bailey tool
// serve` without the rest of bailey, which would make every box slower to start.
// Releases embed it, see package sandbox/agentbin.
package main

import (
	"fmt"
	"os"

	"github.com/bailey-platform/bailey/tool/agent"
)

func main() {
	if len(os.Args) < 3 || os.Args[1] != "tool" || os.Args[2] != "serve" {
		fmt.Fprintln(os.Stderr, "usage: boxagent tool serve [flags]")
		os.Exit(2)
	}
	os.Exit(agent.Main(os.Args[3:]))
}
