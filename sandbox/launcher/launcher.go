// Package launcher is the main of the small executable that the parts of a box are
// started by: what has to be done in a process of its own before the box's program can
// run in it. It is small because every box waits for it.
//
// Where there is no such executable, bailey itself is started under its name, so its
// main begins with [RunIf] as well.
package launcher

import (
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
	"github.com/bailey-platform/bailey/sandbox/landlock/cage"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
)

// RunIf does what the process was started for, if that was a part of a box, and does
// not return then. It must come first in main, before flags are read or goroutines
// started.
func RunIf() {
	boxinit.RunIfRole()
	netns.RunIfRole()
	cage.RunIfRole()
	cradle.RunIfRole()
	stage.RunIfRole()
}
