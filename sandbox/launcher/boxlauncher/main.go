// Boxlauncher is the executable that the parts of a box are started by, by itself:
// without the rest of bailey, which would make every box slower to start. Releases
// embed it, see package sandbox/agentbin.
package main

import (
	"fmt"
	"os"

	"github.com/bailey-platform/bailey/sandbox/launcher"
)

func main() {
	launcher.RunIf()
	fmt.Fprintln(os.Stderr, "boxlauncher: bailey starts this; there is nothing to do by hand")
	os.Exit(2)
}
