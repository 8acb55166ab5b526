// Launcher starts the boxes of the tests, as the small executable of a release does.
package main

import (
	"os"

	"github.com/bailey-platform/bailey/sandbox/landlock/cage"
)

func main() {
	cage.RunIfRole()
	os.Exit(2)
}
